"""Models of diffusers' folders predict the x0 that diffusers' own schedulers compute.

Each folder is saved by diffusers, with a small network of random weights. Beside it stands the
scheduler itself: it is handed the network's output and the noise of a time, and its own code
makes x0 of them. At float64 only alpha-bar is made anew, a product of its float32 betas.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    Affine,
    DataSpec,
    DiscreteBeta,
    Guided,
    ProbabilityFlow,
    ScoreModel,
    from_diffusers,
    guided,
    integrate,
    load,
    log_prob,
    log_snr,
)
from sde_diffusion.cli.main import main
from sde_diffusion.foreign import (
    diffusers_networks as networks,
    diffusers_schedulers as schedulers,
)
from sde_diffusion.solvers import DDIM, DPMSolverPP, DPMSolverPPPublished, Euler, Heun

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

# NumPy 2 warns of the conversion of tensors in diffusers.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

N: Final = 1000
BATCH: Final = 50
CLASSES: Final = 5
SMALL: Final = {
    "sample_size": 8,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}


def unet(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = diffusers.UNet2DModel(**SMALL | {"add_attention": False} | settings)
    return net.eval()


def dit(out_channels: int = 8) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=out_channels,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=CLASSES,
    )
    return net.eval()


def conditional(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "mid_block_type": None}
    blocks |= {"up_block_types": ("CrossAttnUpBlock2D",)}
    more = {"in_channels": 3, "out_channels": 3, "cross_attention_dim": 6}
    net: nn.Module = diffusers.UNet2DConditionModel(
        **SMALL | blocks | more | {"attention_head_dim": 2} | settings
    )
    return net.eval()


NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {
    "unet": unet,
    "unet of a learned variance": lambda: unet(out_channels=6),
    "unet of classes": lambda: unet(num_class_embeds=CLASSES),
    "unet of sigma": lambda: unet(time_embedding_type="fourier"),
    "unet with a table of timesteps": lambda: unet(
        time_embedding_type="learned", num_train_timesteps=N
    ),
    "dit": dit,
    "dit of a fixed variance": lambda: dit(4),
    "conditional": conditional,
}
# What the conditional network attends to: 4 rows for all samples.
ROWS: Final = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Case:
    """A network and a scheduler, with its settings."""

    network: str
    scheduler: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = (f"{name}={str(value)[:20]}" for name, value in self.settings.items())
        return " ".join((self.network, self.scheduler.removesuffix("Scheduler"), *words))

    @property
    def kind(self) -> str:
        """What its noise is: a chain, a flow, VE or EDM."""
        if self.scheduler == FLOW or self.settings.get("use_flow_sigmas"):
            return "flow"
        return {VE: "VE"}.get(self.scheduler, "EDM" if self.scheduler in EDMS else "chain")

    def made(self) -> tuple[nn.Module, Any]:
        kind = getattr(diffusers, self.scheduler)
        return NETWORKS[self.network](), kind(**self.settings)


DDPM, DDIM_, DPM, UNIPC = (
    f"{name}Scheduler" for name in ("DDPM", "DDIM", "DPMSolverMultistep", "UniPCMultistep")
)
EDMS: Final = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW: Final = "FlowMatchEulerDiscreteScheduler"
VE: Final = "ScoreSdeVeScheduler"
UNCLIPPED: Final = {DDPM: {"clip_sample": False}, DDIM_: {"clip_sample": False}}
PICTURE: Final = DataSpec("picture", (3, 8, 8), 256)
OWN_BETAS: Final = np.linspace(0.002, 0.03, 200).tolist()


def of_chain(network: str, scheduler: str, **settings: Any) -> Case:
    return Case(network, scheduler, UNCLIPPED.get(scheduler, {}) | settings)


CHAINS: Final = [
    of_chain("unet", scheduler, prediction_type=prediction)
    for scheduler in (DDPM, DDIM_, DPM, UNIPC)
    for prediction in ("epsilon", "sample", "v_prediction")
] + [
    of_chain("unet", DDIM_, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    of_chain("unet", DPM, beta_schedule="squaredcos_cap_v2"),
    of_chain("unet", DDPM, beta_schedule="sigmoid"),
    of_chain("unet", UNIPC, trained_betas=OWN_BETAS, num_train_timesteps=len(OWN_BETAS)),
    of_chain("unet", DDIM_, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    of_chain("unet", DDPM, rescale_betas_zero_snr=True, prediction_type="sample"),
    of_chain("unet", DPM, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    of_chain("unet of classes", DDIM_),
    of_chain("unet with a table of timesteps", DDPM),
    of_chain("unet of a learned variance", DDPM, variance_type="learned_range"),
    of_chain("unet of a learned variance", DPM, variance_type="learned_range"),
    of_chain("dit", DDPM, variance_type="learned_range"),
    of_chain("dit", DDIM_),
    of_chain("dit", DPM),
    of_chain("dit", UNIPC),
    *(of_chain("conditional", one) for one in (DDPM, DDIM_, DPM, UNIPC)),
    of_chain("conditional", DDIM_, prediction_type="v_prediction", rescale_betas_zero_snr=True),
]
FLOWS: Final = [
    Case("unet", FLOW, {"shift": 3.0}),
    Case("dit of a fixed variance", FLOW),
    Case("conditional", FLOW),
    Case("unet", DPM, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    Case("unet", UNIPC, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
]
NOISES: Final = [
    *(
        Case("unet", one, {"prediction_type": p})
        for one in EDMS
        for p in ("epsilon", "v_prediction")
    ),
    Case("dit of a fixed variance", EDMS[0], {"sigma_data": 1.0, "sigma_max": 40.0}),
    Case("dit of a fixed variance", EDMS[1]),
    *(Case("conditional", one) for one in EDMS),
    Case("unet of sigma", VE),
    Case("dit of a fixed variance", VE),
    Case("conditional", VE),
]


@pytest.fixture(scope="module")
def vae() -> nn.Module:
    """The smallest autoencoder, which makes a folder that of a latent model."""
    small = {"block_out_channels": (4,), "norm_num_groups": 2, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    made: nn.Module = diffusers.AutoencoderKL(**small, **blocks)
    return made


def saved(folder: Path, network: nn.Module, scheduler: Any, vae: nn.Module) -> str:
    if isinstance(network, diffusers.DiTTransformer2DModel):
        pipeline = diffusers.DiTPipeline(network, vae, scheduler)
    else:
        pipeline = diffusers.DDPMPipeline(network, scheduler)
    pipeline.save_pretrained(folder)
    return f"diffusers:{folder}"


# --- their x0 ---


def spread(c: Tensor) -> Tensor:
    return c.reshape(-1, 1, 1, 1)


def called(network: Any, x: Tensor, k: Tensor, labels: Tensor) -> Tensor:
    """The network's prediction, its first half where there are two."""
    takes = network.config.get("num_class_embeds") or network.config.get("num_embeds_ada_norm")
    given: dict[str, Tensor] = {"class_labels": labels} if takes else {}
    if isinstance(network, diffusers.UNet2DConditionModel):
        given["encoder_hidden_states"] = ROWS.to(x.dtype).expand(len(x), *ROWS.shape)
    out: Tensor = network(x, k, **given).sample
    return out[:, : x.shape[1]]


def between(alpha_bar: Tensor, k: Tensor) -> Tensor:
    """Their alpha-bar at k, and between two timesteps as straight a line as log alpha-bar is."""
    below = k.floor().long()
    above = (below + 1).clamp(max=len(alpha_bar) - 1)
    part = k - below
    return torch.where(
        part == 0,
        alpha_bar[below],
        alpha_bar[below] ** (1 - part) * alpha_bar[above] ** part,
    )


def x0_of_chain(scheduler: Any, k: Tensor, x: Tensor, out: Tensor) -> Tensor:
    bar = scheduler.alphas_cumprod
    if x.dtype == torch.float64:
        bar = torch.cumprod(1 - scheduler.betas.double(), 0)
    bar = spread(between(bar, k)).to(x.dtype)
    if hasattr(scheduler, "convert_model_output"):
        return converted(scheduler, ((1 - bar) / bar).sqrt(), x, out)
    if isinstance(scheduler, diffusers.DDIMScheduler):
        scheduler.set_timesteps(N)
    scheduler.alphas_cumprod = bar[None]  # its timestep 0 is now the time of each sample
    scheduler.register_to_config(variance_type="fixed_small")
    found: Tensor = scheduler.step(out, 0, x).pred_original_sample
    return found


def converted(scheduler: Any, sigma: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """The x0 of their multistep schedulers at a sigma for each sample."""
    scheduler.sigmas = sigma[None]
    scheduler._step_index = 0
    found: Tensor = scheduler.convert_model_output(out, sample=x)
    return found


def x0_of_flow(scheduler: Any, sigma: Tensor, x: Tensor, out: Tensor) -> Tensor:
    if hasattr(scheduler, "convert_model_output"):
        return converted(scheduler, spread(sigma), x, out)
    if x.dtype == torch.float64:  # which its step rounds to float32
        return x - spread(sigma) * out
    rows = []
    for i in range(len(x)):
        scheduler.sigmas = torch.stack([sigma[i], torch.zeros(())])
        scheduler.timesteps = sigma[i : i + 1] * N
        scheduler._step_index = 0
        step = scheduler.step(out[i : i + 1], scheduler.timesteps[0], x[i : i + 1])
        rows.append(step.prev_sample)
    return torch.cat(rows)


def x0_of_ve(scheduler: Any, sigma: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """The mean of a step from the lowest noise, whose next lower one is 0."""
    rows = []
    for i in range(len(x)):
        scheduler.discrete_sigmas = sigma[i : i + 1]
        step = scheduler.step_pred(out[i : i + 1], 0, x[i : i + 1])
        rows.append(step.prev_sample_mean)
    return torch.cat(rows)


def near_whole(k: Tensor) -> Tensor:
    near = k.round()
    return torch.where((k - near).abs() < 1e-3, near, k)


def theirs(
    case: Case, network: Any, scheduler: Any, t: Tensor, x: Tensor, labels: Tensor
) -> Tensor:
    """Their x0 at our times t, in the dtype of x."""
    network = network.to(x.dtype)
    if case.kind == "chain":
        steps = len(scheduler.betas)
        k, seen = (near_whole(time.double() * steps - 1) for time in (t, t.to(x.dtype)))
        seen = seen.round().long() if "table" in case.network else seen.to(x.dtype)
        return x0_of_chain(scheduler, k, x, called(network, x, seen, labels))
    t = t.to(x.dtype)
    if case.kind == "flow":
        return x0_of_flow(scheduler, t, x, called(network, x, N * t, labels))
    if case.kind == "VE":
        low, high = scheduler.config.sigma_min, scheduler.config.sigma_max
        sigma = low * ((high / low) ** (2 * t.double()) - 1).sqrt().to(x.dtype)
        return x0_of_ve(scheduler, sigma, x, called(network, x, sigma, labels))
    sigma = scheduler.config.sigma_max * t
    y = scheduler.precondition_inputs(x, spread(sigma))
    out = called(network, y, scheduler.precondition_noise(sigma), labels)
    return scheduler.precondition_outputs(x, out, spread(sigma))


def times(case: Case) -> Tensor:
    """50 times of the lattice and 50 between."""
    last = N
    if case.settings.get("trained_betas"):
        last = len(OWN_BETAS)
    # A step of zero signal has no time inside, and their multistep code divides by it.
    whole = not case.settings.get("rescale_betas_zero_snr")
    highest = last if whole or case.scheduler in (DDPM, DDIM_) else last - 1
    generator = torch.Generator().manual_seed(0)
    k = torch.linspace(1, highest, BATCH, dtype=torch.float64).round()
    inside = torch.rand(BATCH, generator=generator, dtype=torch.float64)
    off = k.clamp(max=last - 2) + 0.01 + 0.98 * inside
    if case.kind != "chain":
        k = k.clamp(max=last - 1)
    return torch.cat([k, off]) / last


def states(model: ScoreModel, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    assert model.data is not None
    x0 = torch.randn(len(t), *model.data.shape, generator=generator, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (len(t),), generator=generator)
    return model.sde.perturb(x0, t, eps).to(dtype), labels


def error(found: Tensor, expected: Tensor) -> float:
    """The largest error, in units of the largest number of its sample where that is above 1."""
    scale = expected.abs().flatten(1).amax(1).clamp(min=1)
    return float(((found - expected).abs().flatten(1).amax(1) / scale).max())


@pytest.mark.parametrize("case", [*CHAINS, *FLOWS, *NOISES], ids=str)
@torch.no_grad()
def test_x0_is_that_of_the_scheduler(case: Case, tmp_path: Path, vae: nn.Module) -> None:
    network, scheduler = case.made()
    rows = ROWS if case.network == "conditional" else None
    model = load(saved(tmp_path / "folder", network, scheduler, vae), embeddings=rows)
    t = times(case)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        x, labels = states(model, t, dtype)
        ours = model if model.classes is None else model.given(labels)
        ours = ours.in_double() if dtype == torch.float64 else ours
        expected = theirs(case, network, case.made()[1], t, x, labels)
        assert expected.dtype == dtype
        assert error(ours.denoise(x, t), expected) < tolerance


def test_every_network_is_compared_under_every_scheduler() -> None:
    pairs = {
        (type(NETWORKS[case.network]()).__name__, case.scheduler)
        for case in (*CHAINS, *FLOWS, *NOISES)
    }
    assert pairs == {(one, other) for one in networks.NETWORKS for other in schedulers.SCHEDULERS}


# --- mistakes ---


class Turned(nn.Module):
    """A network of diffusers with something about it changed."""

    def __init__(self, network: nn.Module, change: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.change = change

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return self.change(lambda x, k: self.network(x, k).sample, x, k)


MISTAKES: Final[dict[str, tuple[Callable[..., Tensor], str]]] = {
    "a timestep too high": (lambda net, x, k: net(x, k + 1), "eps"),
    "a timestep too low": (lambda net, x, k: net(x, k - 1), "eps"),
    "the other sign": (lambda net, x, k: -net(x, k), "eps"),
    "the other half of the channels": (lambda net, x, k: net(x, k).roll(3, 1), "eps"),
    "eps read as v": (lambda net, x, k: net(x, k), "v"),
    "eps read as x0": (lambda net, x, k: net(x, k), "x0"),
}


@pytest.mark.parametrize("name", [None, *MISTAKES])
@torch.no_grad()
def test_each_mistake_is_beyond_the_tolerance(name: str | None) -> None:
    case = of_chain("unet of a learned variance", DDIM_)
    network, scheduler = case.made()
    change, prediction = MISTAKES.get(str(name), (lambda net, x, k: net(x, k), "eps"))
    betas = scheduler.betas.double()
    wrong = ScoreModel.from_timesteps(
        Turned(network, change).eval(), betas, prediction, variance="learned"
    )
    t = times(case)
    x, labels = states(from_diffusers(network, scheduler, data=PICTURE), t, torch.float32)
    expected = theirs(case, network, case.made()[1], t, x, labels)
    found = error(wrong.denoise(x, t), expected)
    assert found < 1e-5 if name is None else found > 5e-5


@torch.no_grad()
def test_the_learned_variance_is_that_of_ddpm() -> None:
    network, scheduler = of_chain(
        "unet of a learned variance", DDPM, variance_type="learned_range"
    ).made()
    model = from_diffusers(network, scheduler, data=PICTURE)
    betas = scheduler.betas.double()
    bar = torch.cumprod(1 - betas, 0)
    scheduler.betas, scheduler.alphas_cumprod = betas, bar
    for k in (1, 250, N - 1):
        t = torch.tensor((k + 1) / N, dtype=torch.float64)
        x = states(model, t.expand(3), torch.float32)[0]
        second = network(x, torch.full((3,), k)).sample[:, 3:]
        expected = scheduler._get_variance(k, predicted_variance=second)  # its logarithm
        posterior = betas[k] * (1 - bar[k - 1]) / (1 - bar[k])
        v = model.fraction(x, t)
        found = v * betas[k].log() + (1 - v) * posterior.log()
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)


# --- loops ---


def start(model: ScoreModel, sigma: float = 1.0) -> Tensor:
    return sigma * states(model, torch.ones(2, dtype=torch.float64), torch.float32)[0]


def looped(network: nn.Module, scheduler: Any, x: Tensor) -> Tensor:
    """Their loop, as their pipelines write it."""
    for k in scheduler.timesteps:
        y = scheduler.scale_model_input(x, k) if "EDM" in type(scheduler).__name__ else x
        out = network(y, k.expand(len(x))).sample
        x = scheduler.step(out, k, x).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "solver", "settings"),
    [
        (DDIM_, DDIM(), {"clip_sample": False}),
        (DPM, DPMSolverPPPublished(memory=2), {"lower_order_final": False}),
        (DPM, DPMSolverPP(order=2), {"lower_order_final": False, "solver_type": "heun"}),
    ],
    ids=["DDIM", "DPM-Solver++ midpoint", "DPM-Solver++ heun"],
)
@torch.no_grad()
def test_their_loop_ends_where_ours_does(name, solver, settings, prediction) -> None:
    network = unet()
    last = {} if name == DDIM_ else {"final_sigmas_type": "sigma_min"}
    scheduler = getattr(diffusers, name)(
        prediction_type=prediction, timestep_spacing="trailing", **settings, **last
    )
    scheduler.set_timesteps(20)
    model = from_diffusers(network, scheduler, data=PICTURE)
    k = scheduler.timesteps.double()
    grid = torch.cat([k + 1, torch.tensor([0.0 if name == DDIM_ else 1.0])]) / N
    x = start(model)
    found = integrate(ProbabilityFlow(model.sde, model), solver, x, grid).x
    assert error(found, looped(network, scheduler, x)) < 1e-5


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP(order=1)], ids=repr)
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@torch.no_grad()
def test_a_loop_from_no_signal_at_all_ends_where_ours_does(
    prediction: str, solver: DDIM | DPMSolverPP
) -> None:
    """Their DDIM from alpha = 0, which ours does not divide by."""
    network = unet()
    scheduler = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True,
        prediction_type=prediction,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(20)
    model = from_diffusers(network, scheduler, data=PICTURE)
    grid = torch.cat([scheduler.timesteps.double() + 1, torch.zeros(1)]) / N
    x = start(model)
    found = integrate(ProbabilityFlow(model.sde, model), solver, x, grid).x
    assert error(found, looped(network, scheduler, x)) < 1e-5


def from_high_noise(scheduler: Any) -> Tensor:
    """Set its 20 steps, below pure noise where that is at t = 1, and return our grid of them."""
    if type(scheduler).__name__ == FLOW:
        scheduler.set_timesteps(sigmas=np.linspace(0.99, 0.05, 20))
        sigmas = scheduler.sigmas.double()
        return 1 - sigmas if scheduler.config.invert_sigmas else sigmas
    scheduler.set_timesteps(20)
    sigmas: Tensor = scheduler.sigmas.double()
    if scheduler.config.final_sigmas_type == "sigma_min":  # whose last step stands still
        sigmas = sigmas[:-1]
    return sigmas / scheduler.config.sigma_max


@pytest.mark.parametrize(
    ("scheduler", "solver"),
    [
        (diffusers.EDMEulerScheduler(), Euler()),
        (diffusers.EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0), Euler()),
        (
            diffusers.EDMDPMSolverMultistepScheduler(
                final_sigmas_type="sigma_min", lower_order_final=False
            ),
            DPMSolverPPPublished(memory=2),
        ),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), Euler()),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), Euler()),
    ],
    ids=["EDM", "EDM of v", "EDM DPM-Solver++", "flow", "flow to data at 1"],
)
@torch.no_grad()
def test_their_loop_of_continuous_noise_ends_where_ours_does(scheduler, solver) -> None:
    network = unet()
    model = from_diffusers(network, scheduler, data=PICTURE)
    grid = from_high_noise(scheduler)
    x = start(model, model.sde.prior().std)
    found = integrate(ProbabilityFlow(model.sde, model), solver, x, grid).x
    assert error(found, looped(network, scheduler, x)) < 1e-5


@torch.no_grad()
def test_guidance_of_a_dit_is_that_of_its_pipeline() -> None:
    """Their eps is u + s (c − u) with the label 5 for none; our weight is s − 1."""
    network = dit()
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(10)
    model = from_diffusers(network, scheduler, data=DataSpec("latent", (4, 8, 8), None))
    labels = torch.tensor([0, 3])
    x = begin = start(model)
    none = torch.full((2,), CLASSES)
    for k in scheduler.timesteps:
        c, u = (network(x, k.expand(2), y).sample[:, :4] for y in (labels, none))
        x = scheduler.step(u + 4.0 * (c - u), k, x).prev_sample
    grid = torch.cat([scheduler.timesteps.double() + 1, torch.zeros(1)]) / N
    ours = guided(model, labels, 3.0)
    found = integrate(ProbabilityFlow(model.sde, ours), DDIM(), begin, grid).x
    assert error(found, x) < 1e-5


# --- likelihoods ---


class InOurForm(nn.Module):
    """The same network called with t, its index worked out here."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.network(x, (t.double() * N - 1).clamp(min=0).to(t.dtype)).sample
        return out


def test_the_likelihood_is_that_of_the_same_model_in_our_form() -> None:
    """Within the standard error of its probes, and by far: both have the same."""
    network = unet()
    scheduler = diffusers.DDIMScheduler()
    wrapped = from_diffusers(network, scheduler, data=PICTURE)
    sde = VPSDE(DiscreteBeta(scheduler.betas.double()))
    ours = ScoreModel(InOurForm(network), sde, "eps", data=PICTURE).eval()
    x = 0.5 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grid = log_snr(sde, 6, end=1 / N).flip(0)
    one, other = (
        log_prob(x, ProbabilityFlow(sde, model), Heun(), grid=grid) for model in (wrapped, ours)
    )
    difference = (one.nats - other.nats).abs()
    assert bool((difference < one.standard_error).all())
    assert bool((difference < 1e-4 * other.nats.abs()).all())


# --- conditions ---


@torch.no_grad()
def test_a_conditional_network_is_called_with_its_embeddings() -> None:
    network = conditional()
    scheduler = diffusers.DDIMScheduler()
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    model = from_diffusers(network, scheduler, embeddings=rows, data=PICTURE)
    t = torch.tensor(0.5, dtype=torch.float64)
    x = start(model)
    k = torch.full((2,), N // 2 - 1)
    expected = network(x, k, encoder_hidden_states=torch.stack([rows, rows])).sample
    assert torch.equal(model.eps(x, t), expected)
    other = from_diffusers(network, scheduler, embeddings=-rows, data=PICTURE)
    assert not torch.allclose(other.eps(x, t), expected, atol=1e-3)
    # Each sample has its own condition, which follows it; the network keeps its mode.
    both = from_diffusers(network, scheduler, embeddings=torch.stack([rows, -rows]))
    assert not both.training
    assert not network.training
    assert error(both.eps(x, t)[:1], expected[:1]) < 1e-6
    assert error(both.rows(torch.tensor([1])).eps(x[1:], t), other.eps(x, t)[1:]) < 1e-6


@pytest.mark.parametrize("name", [*EDMS, VE])
def test_a_network_of_noise_was_trained_from_its_least_noise_on(name: str) -> None:
    scheduler = getattr(diffusers, name)(sigma_min=0.03)
    model = from_diffusers(unet(), scheduler)
    t = torch.tensor(model.t_min, dtype=torch.float64)
    sde = model.sde
    assert float(sde.sigma(t) / sde.alpha(t)) == pytest.approx(0.03)


@torch.no_grad()
def test_guidance_of_two_conditions_is_that_of_their_pipelines() -> None:
    """Their eps is u + s (c − u); our weight is s − 1."""
    network = conditional()
    scheduler = diffusers.DDIMScheduler()
    generator = torch.Generator().manual_seed(3)
    text, empty = (torch.randn(4, 6, generator=generator) for _ in range(2))
    one, other = (
        from_diffusers(network, scheduler, embeddings=rows, data=PICTURE) for rows in (text, empty)
    )
    x = start(one)
    k = torch.full((2,), 499)
    c, u = (
        network(x, k, encoder_hidden_states=rows.expand(2, 4, 6)).sample for rows in (text, empty)
    )
    found = Guided(one, other, 6.5).eps(x, torch.tensor(0.5, dtype=torch.float64))
    assert error(found, u + 7.5 * (c - u)) < 1e-5


@torch.no_grad()
def test_a_conditional_network_without_attention_needs_no_embeddings(tmp_path, vae) -> None:
    plain = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    network = conditional(**plain, mid_block_type=None)
    model = load(saved(tmp_path, network, diffusers.DDIMScheduler(), vae))
    x = start(model)
    expected = network(x, torch.full((2,), 499), encoder_hidden_states=None).sample
    assert torch.equal(model.eps(x, torch.tensor(0.5, dtype=torch.float64)), expected)


@torch.no_grad()
def test_a_null_class_of_a_unet_is_the_one_that_is_named() -> None:
    network = NETWORKS["unet of classes"]()
    model = from_diffusers(network, diffusers.DDIMScheduler(), null=CLASSES - 1, data=PICTURE)
    assert model.classes == CLASSES - 1
    x = start(model)
    k = torch.full((2,), 499)
    expected = network(x, k, class_labels=torch.full((2,), CLASSES - 1)).sample
    assert torch.equal(model.eps(x, torch.tensor(0.5, dtype=torch.float64)), expected)


@torch.no_grad()
def test_the_remedy_for_another_scheduler_of_a_chain_works() -> None:
    network = unet()
    scheduler = diffusers.PNDMScheduler(beta_schedule="scaled_linear", prediction_type="epsilon")
    with pytest.raises(TypeError, match=r"DDIMScheduler\.from_config\(scheduler\.config\)"):
        from_diffusers(network, scheduler)
    ddim = diffusers.DDIMScheduler.from_config(scheduler.config)
    model = from_diffusers(network, ddim, data=PICTURE)
    x = start(model)
    t = torch.tensor(0.3, dtype=torch.float64)
    eps = network(x, torch.full((2,), 299)).sample
    alpha = scheduler.alphas_cumprod[299].sqrt()
    sigma = (1 - scheduler.alphas_cumprod[299]).sqrt()
    assert error(model.denoise(x, t), (x - sigma * eps) / alpha) < 1e-5


# --- folders ---


def test_pictures_and_latents_are_told_apart(tmp_path: Path, vae: nn.Module) -> None:
    found = load(saved(tmp_path / "a", unet(), diffusers.DDPMScheduler(), vae)).data
    assert found == DataSpec("diffusers:a", (3, 8, 8), 256)
    found = load(saved(tmp_path / "b", dit(), diffusers.DDIMScheduler(), vae)).data
    assert found == DataSpec("diffusers:b", (4, 8, 8), None)
    network = NETWORKS["unet of sigma"]()
    found = load(saved(tmp_path / "c", network, diffusers.ScoreSdeVeScheduler(), vae)).data
    assert found == DataSpec("diffusers:c", (3, 8, 8), 256, Affine(0, 1))


def test_a_latent_model_has_no_bits_per_pixel(tmp_path: Path, vae: nn.Module) -> None:
    name = saved(tmp_path, dit(), diffusers.DDIMScheduler(), vae)
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 8, 8), np.uint8))
    words = f"likelihood --model {name} --data {tmp_path / 'x.npy'} --out {tmp_path / 'nll'}"
    told = CliRunner().invoke(main, words.split())
    assert told.exit_code == 2
    assert "must have the model's no grey levels, got 256" in told.output


def test_the_older_names_of_attention_are_read(tmp_path: Path, vae: nn.Module) -> None:
    network = unet(add_attention=True, attention_head_dim=4)
    name = saved(tmp_path, network, diffusers.DDPMScheduler(), vae)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = {}
    for key, tensor in load_file(path).items():
        for word, old in new.items():
            key = key.replace(word, old)
        older[key] = tensor
    save_file(older, path)
    found = load(name).network.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_folder_of_half_precision_alone_is_read_into_float32(tmp_path, vae, safe) -> None:
    network = unet().half()
    pipeline = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path, variant="fp16", safe_serialization=safe)
    assert [path.suffixes[0] for path in (tmp_path / "unet").glob("*.fp16.*")] == [".fp16"]
    found = load(f"diffusers:{tmp_path}").network.network.state_dict()
    for name, tensor in network.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.float())
    # Beside weights without a variant those are not looked at.
    saved(tmp_path, unet(), diffusers.DDPMScheduler(), vae)
    full = load(f"diffusers:{tmp_path}").network.network.state_dict()
    assert all(torch.equal(full[name], tensor) for name, tensor in unet().state_dict().items())


def test_loading_leaves_the_global_generator_alone(tmp_path: Path, vae: nn.Module) -> None:
    name = saved(tmp_path, unet(), diffusers.DDPMScheduler(), vae)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(name)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_in_several_files_are_read(tmp_path: Path, vae: nn.Module) -> None:
    network = unet()
    name = saved(tmp_path, network, diffusers.DDPMScheduler(), vae)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(tmp_path / "unet", max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    found = load(name).network.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


def test_weights_in_torchs_format_are_read_without_being_run(tmp_path, vae) -> None:
    network = unet()
    name = saved(tmp_path, network, diffusers.DDPMScheduler(), vae)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    weights = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    torch.save(network.state_dict(), weights)
    found = load(name).network.network
    assert torch.equal(found.conv_in.weight, network.conv_in.weight)
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    torch.save(network.state_dict() | {"conv_in.weight": Bomb()}, weights)
    with pytest.raises(ValueError, match=r"load: .* must hold a network"):
        load(name)
    assert not ran.exists()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replaced(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, **changes)


def without_a_tensor(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    kept = load_file(path)
    kept.pop("conv_in.weight")
    save_file(kept, path)


INDEX: Final = "model_index.json"
SCHEDULER: Final = "scheduler/scheduler_config.json"
DAMAGES: Final[dict[str, tuple[Callable[[Path], object], type[Exception], str]]] = {
    "no index": (
        lambda f: (f / INDEX).unlink(),
        FileNotFoundError,
        r"with model_index\.json, got",
    ),
    "no scheduler": (lambda f: (f / SCHEDULER).unlink(), FileNotFoundError, "with scheduler/"),
    "no JSON": (
        lambda f: (f / INDEX).write_text("{"),
        ValueError,
        "must hold a JSON object, got JSON",
    ),
    "a list": (
        lambda f: (f / INDEX).write_text("[]"),
        ValueError,
        "hold a JSON object, got ValueError: a list",
    ),
    "another library": (
        replaced(INDEX, unet=["transformers", "UNet2DModel"]),
        ValueError,
        "name a class of diffusers for unet.*got .'transformers', 'UNet2DModel'",
    ),
    "another class": (
        replaced(INDEX, scheduler=["diffusers", "LCMScheduler"]),
        ValueError,
        "name a class of diffusers for scheduler, one of DDPMScheduler",
    ),
    "code of its own": (
        replaced(INDEX, unet=["pipeline", "UNet2DModel"]),
        ValueError,
        "name a class of diffusers for unet",
    ),
    "no network": (replaced(INDEX, unet=None), ValueError, "for unet, one of.*got None"),
    "a tensor missing": (without_a_tensor, ValueError, "no others, got conv_in.weight"),
    "no weights": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        ValueError,
        "hold a network and a scheduler as diffusers saves them, got OSError: Error no file",
    ),
    "a network of 300 GB": (
        replaced("unet/config.json", block_out_channels=[2**30]),
        ValueError,
        "ask for no larger a network than its .* bytes of weights can fill, got .* or more",
    ),
    "a network of a billion layers": (
        replaced("unet/config.json", layers_per_block=10**9),
        ValueError,
        "ask for no larger a network than its .* bytes of weights can fill",
    ),
    "JSON that is nested deeply": (
        lambda f: (f / INDEX).write_text('{"unet": ' + 100 * "[" + 100 * "]" + "}"),
        ValueError,
        "got ValueError: lists and objects that are nested too deeply",
    ),
    "weights of another size": (
        replaced("unet/config.json", block_out_channels=[4]),
        ValueError,
        "must hold a network and a scheduler",
    ),
    "more inputs than outputs": (
        replaced("unet/config.json", out_channels=3, in_channels=3, class_embed_type="timestep"),
        ValueError,
        "class_embed_type must be None|hold the weights of its network",
    ),
    "an unknown schedule": (
        replaced(SCHEDULER, beta_schedule="steep"),
        ValueError,
        "got NotImplementedError: steep",
    ),
    "too many steps": (replaced(SCHEDULER, num_train_timesteps=10**12), ValueError, "be at most"),
    "eps without a signal": (
        replaced(SCHEDULER, rescale_betas_zero_snr=True, prediction_type="epsilon"),
        ValueError,
        "prediction_type must be v_prediction or sample where",
    ),
    "no betas": (
        replaced(SCHEDULER, trained_betas=[]),
        ValueError,
        "be one non-empty row of numbers",
    ),
    "a beta of 2": (
        replaced(SCHEDULER, trained_betas=[2.0]),
        ValueError,
        r"for a last one of 1, got 2",
    ),
    "samples of a million million": (
        replaced("unet/config.json", sample_size=10**6),
        ValueError,
        "have a sample_size of at most 4096, got 1000000; save it",
    ),
    "more weights than bytes": (
        replaced("unet/config.json", block_out_channels=[256]),
        ValueError,
        r"ask for no larger a network than its \d+ bytes of weights can fill, got \d+ numbers",
    ),
    "a side missing": (
        replaced("unet/config.json", sample_size=[8]),
        ValueError,
        "sample_size must be one side or two, got \\[8\\]",
    ),
    "another variance": (
        replaced(SCHEDULER, variance_type="learned"),
        ValueError,
        "variance_type must be learned_range or a fixed one, got learned",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_folder_that_is_none_ends_in_one_sentence(name: str, tmp_path, vae) -> None:
    damage, kind, words = DAMAGES[name]
    model = saved(tmp_path, unet(), diffusers.DDPMScheduler(), vae)
    damage(tmp_path)
    with pytest.raises(kind, match=words) as refused:
        load(model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("kind", "junk"), [(EDMS[0], "x"), (UNIPC, -1)])
def test_a_setting_of_another_kind_ends_in_one_sentence_or_is_not_read(kind, junk, tmp_path, vae):
    name = saved(tmp_path, unet(), getattr(diffusers, kind)(), vae)
    config = (tmp_path / SCHEDULER).read_text()
    refusals = []
    for key in json.loads(config):
        (tmp_path / SCHEDULER).write_text(config)
        edit(tmp_path / SCHEDULER, **{key: junk})
        try:
            load(name)
        except (ValueError, TypeError) as error:
            refusals.append(str(error))
    assert refusals
    for said in refusals:
        assert re.fullmatch(r"\w+: .* must .*, got .*; .*", said), said


def test_the_positions_of_a_transformer_are_bounded_before_they_are_made(tmp_path, vae) -> None:
    """Its table, of 4000² rows, is in no file of weights."""
    name = saved(tmp_path, dit(), diffusers.DDIMScheduler(), vae)
    edit(tmp_path / "transformer/config.json", sample_size=4000, patch_size=1)
    with pytest.raises(ValueError, match="have a sample_size of at most 1024, got 4000"):
        load(name)


@torch.no_grad()
def test_load_takes_the_null_class_and_the_condition_of_a_folder(tmp_path, vae) -> None:
    network = NETWORKS["unet of classes"]()
    name = saved(tmp_path / "classes", network, diffusers.DDIMScheduler(), vae)
    t = torch.tensor(0.5, dtype=torch.float64)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"labels must be classes 0 … 4, .*null= .*to load"):
        load(name).eps(x, t)
    model = load(name, null=CLASSES - 1)
    k = torch.full((2,), 499)
    expected = network(x, k, class_labels=torch.full((2,), CLASSES - 1)).sample
    assert torch.equal(model.eps(x, t), expected)
    assert torch.equal(guided(model, 3, 0.0).eps(x, t), model.given(3).eps(x, t))

    network = conditional()
    name = saved(tmp_path / "text", network, diffusers.DDIMScheduler(), vae)
    with pytest.raises(ValueError, match=r"embeddings must be given.*pass embeddings= to load"):
        load(name)
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    expected = network(x, k, encoder_hidden_states=torch.stack([rows, rows])).sample
    assert torch.equal(load(name, embeddings=rows).eps(x, t), expected)
    for wrong in (rows.numpy(), rows.tolist()):
        with pytest.raises(TypeError, match=r"embeddings must be a tensor, .*torch\.as_tensor"):
            load(name, embeddings=wrong)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="embeddings, null must be left out for what is no"):
        load("digits", null=3)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"must name a folder behind diffusers:, got .*absent; check"
    ):
        load(f"diffusers:{tmp_path / 'absent'}")
    with pytest.raises(ValueError, match="network, sde must be left out for diffusers:FOLDER"):
        load(f"diffusers:{tmp_path}", sde=EDMSDE())


def test_what_the_numbers_would_not_mean_is_refused() -> None:
    ddim = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match=r"embeddings must be given, of shape \(L, 6\)"):
        from_diffusers(conditional(), ddim)
    with pytest.raises(ValueError, match=r"have shape \(L, 6\), or \(B, L, 6\)"):
        from_diffusers(conditional(), ddim, embeddings=torch.zeros(4, 4, 5))
    with pytest.raises(ValueError, match="embeddings must be left out for UNet2DModel"):
        from_diffusers(unet(), ddim, embeddings=torch.zeros(4, 6))
    with pytest.raises(ValueError, match="out_channels must be 3 as in_channels, or 6"):
        from_diffusers(unet(out_channels=1), ddim)
    with pytest.raises(ValueError, match="as many as its inputs with EDMEulerScheduler"):
        from_diffusers(unet(out_channels=6), diffusers.EDMEulerScheduler())
    with pytest.raises(ValueError, match="use_flow_sigmas must be true for flow_prediction"):
        from_diffusers(unet(), diffusers.UniPCMultistepScheduler(use_flow_sigmas=True))
    with pytest.raises(TypeError, match=r"network must be one of diffusers' UNet2DModel, .* got"):
        from_diffusers(nn.Linear(2, 2), ddim)
    with pytest.raises(TypeError, match=r"scheduler must be one of .* got LCMScheduler"):
        from_diffusers(unet(), diffusers.LCMScheduler())


def test_without_diffusers_one_sentence_says_what_to_install(tmp_path, vae, monkeypatch) -> None:
    name = saved(tmp_path, unet(), diffusers.DDPMScheduler(), vae)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        ValueError, match=r"diffusers must be installed, .* type pip install"
    ) as it:
        load(name)
    assert "\n" not in str(it.value)


# --- commands ---


def test_commands_take_a_folder(tmp_path: Path, vae: nn.Module) -> None:
    network = unet(in_channels=1, out_channels=1)
    name = saved(tmp_path / "tiny", network, diffusers.DDPMScheduler(), vae)
    data = torch.randint(256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", data.to(torch.uint8).numpy())
    size = sum(weight.numel() for weight in network.parameters())
    told = CliRunner().invoke(main, ["info", name])
    assert told.exit_code == 0, told.output
    assert f"UNet2DModel, {size:,} parameters" in told.output
    out = tmp_path / "out"
    draw = f"sample --model {name} -n 2 --steps 2 --device cpu --solver ddim --out {out}"
    drawn = CliRunner().invoke(main, draw.split())
    assert drawn.exit_code == 0, drawn.output
    solve = f"likelihood --model {name} --data {tmp_path / 'x.npy'} --steps 2 --solver heun"
    solved = CliRunner().invoke(main, [*solve.split(), "--out", str(tmp_path / "nll")])
    assert solved.exit_code == 0, solved.output
    # On the folder's own betas. Its network interpolates between them, which has kinks.
    certified = f"verify --model {name} --solver ddim --out {tmp_path / 'orders'}"
    found = CliRunner().invoke(main, certified.split())
    assert found.exit_code == 0, found.output
    assert re.search(r"`DDIM\(\)` \| flow \| 1 \| (1\.0|0\.9)\d .* pass", found.stdout)
    assert f"On the flow of {name} itself" in found.stdout


def test_compare_puts_their_sampler_of_their_folder_beside_ours(tmp_path: Path, vae) -> None:
    """Their DDIM and ours from the same noise end in the same samples."""
    network = unet(in_channels=1, out_channels=1)
    name = saved(tmp_path / "tiny", network, diffusers.DDIMScheduler(), vae)
    peer = "diffusers:DDIMScheduler"
    words = f"compare --model {name} --solver ddim --nfe 4 --samples 2 --replicates 2 --json"
    words += f" --reference-steps 4 --device cpu --peer {peer} --out {tmp_path / 'compared'}"
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "compared" / "results.json").read_text())
    rows = {row["solver"]: row for row in found["comparisons"][0]["rows"]}
    assert set(rows) == {"ddim", peer}
    ours, theirs = (row["error"]["mean"] for row in rows.values())
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert rows[peer]["nfe"] == 4
