"""Our solvers in the pipelines of diffusers end where `sample` and `integrate` end.

The networks are diffusers' own, tiny and random, and read by us with `ScoreModel.from_timesteps`:
a timestep off by one, a wrong prediction or a step that is run in another order shows.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
import threading

import pytest
import torch
from torch import nn

from sde_diffusion import (
    ClassLabels,
    PerSampleNoise,
    ProbabilityFlow,
    ReverseSDE,
    ScoreModel,
    guided,
    integrate,
    leading,
    linear_betas,
    recommended,
    sample,
    scaled_linear_betas,
    trailing,
)
from sde_diffusion.dynamics import ODE
from sde_diffusion.solver import OneStep
from sde_diffusion.solvers import (
    DDIM,
    DEIS,
    PLMS,
    AdamsBashforth,
    Ancestral,
    AngularAdams,
    DormandPrince,
    DPMSolver,
    DPMSolverPP,
    EDMHeun,
    EDMStochastic,
    Heun,
    Picard,
    PredictorCorrector,
    Restart,
    RungeKutta4,
    SDEDPMSolverPP,
    UniPC,
)

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
from sde_diffusion.exchange import SolverScheduler  # noqa: E402  (after the skip)

SHAPE = (2, 1, 8, 8)
BETAS = linear_betas(1000)
EXACT = 1e-5
BLOCK = {"layers_per_block": 1, "block_out_channels": (32,), "norm_num_groups": 8}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def seeded(make):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make().eval()


@pytest.fixture(scope="module")
def unet():
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return seeded(
        lambda: diffusers.UNet2DModel(8, in_channels=1, out_channels=1, **kinds, **BLOCK)
    )


@pytest.fixture(scope="module")
def model(unet):
    """The network read as one of v, so that states keep the size of data."""
    return ScoreModel.from_timesteps(unet, BETAS, "v")


def start(shape=SHAPE, seed=0):
    return PerSampleNoise.numbered(seed, 0, shape[0]).normal(torch.zeros(shape))


def test_a_chain_of_zero_terminal_snr_is_left_from_pure_noise(unet) -> None:
    """Their DDIM and ours in the same loop, from the same noise at alpha = 0."""
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    theirs = diffusers.DDIMScheduler(
        timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, **settings
    )
    ours = SolverScheduler(DDIM(), grid="trailing", **settings)
    ends = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(50)
        ends.append(looped(scheduler, unet, start()))
    assert list(ours.timesteps) == list(theirs.timesteps)
    assert off(*ends) < EXACT


@torch.no_grad()
def looped(scheduler, network, x, **settings):
    """The loop of every pipeline."""
    for k in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, k)
        x = scheduler.step(network(seen, k).sample, k, x, **settings).prev_sample
    return x


def off(one, other):
    """Return the largest difference, of states of size 1, in float32, or larger ones."""
    return float((one - other).abs().max()) / max(1.0, float(other.abs().max()))


DETERMINISTIC = [
    AngularAdams(),
    DDIM(),
    DPMSolverPP(),
    UniPC(3),
    DEIS(3),
    EDMHeun(),
    Heun(),
    RungeKutta4(),
    DPMSolver(3),
    PLMS(),
    AdamsBashforth(4),
]


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=lambda s: type(s).__name__)
def test_it_ends_where_sample_ends(solver, unet, model) -> None:
    expected = sample(model, solver, SHAPE, steps=6)
    scheduler = SolverScheduler(solver, prediction_type="v_prediction")
    scheduler.set_timesteps(6)
    assert len(scheduler.timesteps) == expected.nfe
    assert off(looped(scheduler, unet, start()), expected.x) < EXACT


def test_a_short_chain_is_left_at_its_first_step(unet) -> None:
    """Below t = 1/N no timestep was trained, and k = tN − 1 would be negative."""
    betas = torch.linspace(0.005, 0.2, 50).double()
    scheduler = SolverScheduler(
        Heun(), 50, trained_betas=betas.tolist(), prediction_type="v_prediction"
    )
    scheduler.set_timesteps(6)
    assert scheduler.timesteps[-1] == 0
    model = ScoreModel.from_timesteps(unet, betas, "v")
    grid = recommended(model.sde, 6, end=1 / 50)
    assert off(looped(scheduler, unet, start()), sample(model, Heun(), SHAPE, grid=grid).x) < EXACT


STOCHASTIC = [
    Ancestral(),
    SDEDPMSolverPP(),
    EDMStochastic(40),
    PredictorCorrector(),
    Restart(intervals=((0.1, 0.9, 2),)),
]


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda s: type(s).__name__)
def test_a_solver_that_draws_has_the_same_noise_in_both(solver, unet, model) -> None:
    x = start(seed=5)
    grid = recommended(model.sde, 6)
    noise = PerSampleNoise.numbered(3, 0, 2)
    with torch.no_grad():
        expected = integrate(ReverseSDE(model.sde, model), solver, x, grid, noise=noise)
    scheduler = SolverScheduler(solver, prediction_type="v_prediction", seed=3)
    scheduler.set_timesteps(grid=grid)
    assert len(scheduler.timesteps) == expected.nfe
    assert off(looped(scheduler, unet, x), expected.x) < EXACT


@pytest.mark.parametrize("name", ["DDPMPipeline", "DDIMPipeline"])
def test_a_pipeline_of_pictures_runs_it(name, unet) -> None:
    """The network predicts eps here, and the pipeline's own noise is the start."""
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=1e-3, beta_end=0.01)
    pipeline = getattr(diffusers, name)(unet=unet, scheduler=theirs)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SolverScheduler.from_config(
        pipeline.scheduler.config, solver=AngularAdams(), grid="leading"
    )
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    eps = ScoreModel.from_timesteps(unet, scaled_linear_betas(1000, 1e-3, 0.01))
    with torch.no_grad():
        flow = ProbabilityFlow(eps.sde, eps)
        expected = integrate(flow, AngularAdams(), x, leading(1000, 5)).x
    images = pipeline(2, torch.Generator().manual_seed(4), num_inference_steps=5, output_type="np")
    pictures = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float(((pictures > 0) & (pictures < 1)).double().mean()) > 0.1  # not all clipped
    assert off(torch.as_tensor(images.images), pictures) < EXACT


@pytest.mark.parametrize(
    "solver", [AngularAdams(), SDEDPMSolverPP(), EDMStochastic(40), EDMHeun()]
)
def test_the_pipeline_of_dit_runs_it_with_guidance(solver) -> None:
    """Guidance doubles the batch, and puts its first half over the second after every step."""
    transformer = seeded(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=8,
            num_embeds_ada_norm=1000,
            norm_num_groups=4,
        )
    )
    vae = seeded(lambda: diffusers.AutoencoderKL(latent_channels=4, **BLOCK))
    scheduler = SolverScheduler(solver, prediction_type="v_prediction")
    pipeline = diffusers.DiTPipeline(transformer, vae, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    labels = ClassLabels(1000, null=1000, keyword="class_labels")
    model = ScoreModel.from_timesteps(transformer, BETAS, "v", variance="learned", labels=labels)
    ours = guided(model, torch.tensor([7, 99]), 3.0)
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(4))
    kind = ProbabilityFlow if issubclass(solver.dynamics, ODE) else ReverseSDE
    noise = PerSampleNoise.numbered(0, 0, 2)
    grid = recommended(model.sde, 5, solver=solver)
    with torch.no_grad():
        latents = integrate(kind(model.sde, ours), solver, x, grid, noise=noise).x
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
    expected = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    found = pipeline(
        [7, 99],
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(4),
        num_inference_steps=5,
        output_type="np",
    )
    assert off(torch.as_tensor(found.images), expected) < EXACT


def test_a_conditional_unet_runs_it() -> None:
    condition = torch.randn((2, 3, 16), generator=torch.Generator().manual_seed(1))
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
    network = seeded(
        lambda: diffusers.UNet2DConditionModel(
            8,
            in_channels=1,
            out_channels=1,
            cross_attention_dim=16,
            attention_head_dim=8,
            **kinds,
            **BLOCK,
        )
    )

    class Given(nn.Module):
        def forward(self, x, k):
            return network(x, k, encoder_hidden_states=condition)

    model = ScoreModel.from_timesteps(Given().eval(), BETAS, "v").eval()
    expected = sample(model, AngularAdams(), SHAPE, grid=trailing(1000, 6)).x
    scheduler = SolverScheduler(AngularAdams(), prediction_type="v_prediction", grid="trailing")
    scheduler.set_timesteps(6, device="cpu")
    assert scheduler.timesteps.tolist() == [999, 832, 666, 499, 332, 166]
    assert off(looped(scheduler, Given(), start()), expected) < EXACT


@pytest.mark.parametrize("solver", [AngularAdams(order=3), DDIM(), Heun(), SDEDPMSolverPP()])
def test_a_pipeline_may_start_from_a_noisy_image(solver, unet, model) -> None:
    """The first timesteps are left out, as by pipelines from image to image."""
    scheduler = SolverScheduler(solver, prediction_type="v_prediction")
    scheduler.set_timesteps(8)
    first = 3 * scheduler.order
    x = scheduler.add_noise(0.1 * start(seed=1), start(), scheduler.timesteps[first])
    grid = recommended(model.sde, 8, solver=solver)[3:]
    kind = ProbabilityFlow if issubclass(solver.dynamics, (ODE, ProbabilityFlow)) else ReverseSDE
    noise = PerSampleNoise.numbered(0, 0, 2)
    with torch.no_grad():
        expected = integrate(kind(model.sde, model), solver, x, grid, noise=noise).x
        for k in scheduler.timesteps[first:]:
            x = scheduler.step(unet(x, k).sample, k, x).prev_sample
    assert off(x, expected) < EXACT


def test_a_solver_with_steps_of_its_own_at_the_start_says_which_one_has_none() -> None:
    scheduler = SolverScheduler(PLMS())
    scheduler.set_timesteps(8)
    x = start()
    with pytest.raises(ValueError, match=r"pass AngularAdams\(order=3\) or DDIM\(\) to start"):
        scheduler.step(x, scheduler.timesteps[-2], x)


# --- states that a pipeline changes ---


class Constant(nn.Module):
    """What does not depend on the state, so that a change of the state has a closed form."""

    def forward(self, x, k):
        return (0.3 + 0.001 * k) * torch.ones_like(x)


def ratio(sde, grid, i, prediction):
    """How a change at grid[i] arrives at the end, by the form that does not feel it."""
    alpha, sigma = sde.alpha(grid), sde.sigma(grid)
    kept = {"epsilon": alpha, "sample": sigma, "v_prediction": torch.ones_like(alpha)}
    return float(kept[prediction][-1] / kept[prediction][i])


@pytest.mark.parametrize(
    ("solver", "prediction"),
    [
        (AngularAdams(), "v_prediction"),
        (DPMSolverPP(2), "sample"),
        (UniPC(2), "sample"),
        (SDEDPMSolverPP(), "sample"),
        (EDMHeun(), "epsilon"),
        (DDIM(), "epsilon"),
        (DPMSolver(3), "epsilon"),
    ],
    ids=lambda s: type(s).__name__ if isinstance(s, OneStep) else str(s)[:20],
)
def test_a_change_between_steps_is_seen(solver, prediction) -> None:
    scheduler = SolverScheduler(solver, prediction_type=prediction)
    scheduler.set_timesteps(8)
    each = len(scheduler.timesteps) // 8
    first = len(scheduler.timesteps) - 8 * each  # evaluations of a start by other steps
    change = torch.full(SHAPE, 0.25, dtype=torch.float64)

    def solved(at):
        x = start().double()
        for i, k in enumerate(scheduler.timesteps):
            if i == at:
                x += change  # in place, as some pipelines do
            x = scheduler.step(Constant()(x, k), k, x).prev_sample
        return x

    i = 5
    grid = recommended(scheduler.sde, 8, solver=solver)
    at = i * each + first
    difference = solved(at) - solved(None)
    expected = ratio(scheduler.sde, grid, i, prediction)
    if isinstance(solver, SDEDPMSolverPP):  # the kernel of the reverse SDE at a given x0
        alpha, sigma = scheduler.sde.alpha(grid), scheduler.sde.sigma(grid)
        expected = float((sigma[-1] / sigma[i]) ** 2 * alpha[i] / alpha[-1])
    assert off(difference, expected * change) < 1e-9


@pytest.mark.parametrize(
    ("solver", "at"), [(Heun(), 3), (PLMS(), 12), (EDMStochastic(4), 4), (UniPC(3), 1)]
)
def test_a_change_that_cannot_be_seen_is_refused(solver, at) -> None:
    scheduler = SolverScheduler(solver)
    scheduler.set_timesteps(8)
    x = start()
    for k in scheduler.timesteps[:at]:
        x = scheduler.step(0.1 * x, k, x).prev_sample
    k = scheduler.timesteps[at]
    with pytest.raises(ValueError, match="sample must be what the last step returned"):
        scheduler.step(0.1 * x, k, x + 0.1)
    scheduler.step(0.1 * x, k, x)  # a check changes nothing


# --- what is refused ---


@pytest.mark.parametrize(
    ("solver", "says"),
    [
        (DormandPrince(), "solver must take the steps of its grid"),
        (Picard(), "solver must ask for the network at one time of the whole batch"),
        (Heun, "solver must be a solver object"),
        ({"class": "os.system"}, "got 'os.system', which is no class of the package"),
        ({"class": "sde_diffusion.solvers.Langevin", "snr": 0.1}, "solver must be a solver"),
        ({"class": "sde_diffusion.solvers.Heun", "order": 3}, "unexpected keyword"),
        ({"class": "sde_diffusion.solvers.catalogue"}, "no class of the package"),
    ],
)
def test_another_solver_is_refused_in_a_sentence(solver, says) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        SolverScheduler(solver)
    assert str(refused.value).startswith("SolverScheduler: solver must ")
    assert says in str(refused.value)


def test_timesteps_come_in_their_order() -> None:
    scheduler = SolverScheduler(Heun())
    x = start()
    with pytest.raises(ValueError, match="timesteps must be set before a step"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="timestep must be the next of timesteps, 999, got 42"):
        scheduler.step(x, 42, x)
    y = scheduler.step(x, 999, x).prev_sample
    with pytest.raises(ValueError, match="timestep must be the next of timesteps, "):
        scheduler.step(y, 999, y)
    with pytest.raises(ValueError, match=r"set the noise by the solver, as in Ancestral"):
        scheduler.step(y, scheduler.timesteps[1], y, eta=1.0)
    with pytest.raises(FloatingPointError, match="NaN or infinity after timestep"):
        scheduler.step(y / 0, scheduler.timesteps[1], y)


def test_an_unfinished_run_leaves_no_thread_and_the_next_begins_anew(unet, model) -> None:
    before = threading.enumerate()
    scheduler = SolverScheduler(Heun(), prediction_type="v_prediction")
    scheduler.set_timesteps(6)
    x = start()
    for k in scheduler.timesteps[:3]:
        x = scheduler.step(0.1 * x, k, x).prev_sample
    assert threading.enumerate() == before
    scheduler.set_timesteps(6)
    assert off(looped(scheduler, unet, start()), sample(model, Heun(), SHAPE, steps=6).x) < EXACT


# --- generators, noise, files ---


def test_generators_set_the_noise_of_each_sample(unet) -> None:
    scheduler = SolverScheduler(Ancestral(), prediction_type="v_prediction")
    scheduler.set_timesteps(4)

    def solved(*seeds):
        given = [torch.Generator().manual_seed(seed) for seed in seeds]
        return looped(scheduler, unet, start(), generator=given if len(given) > 1 else given[0])

    both = solved(1, 2)
    assert off(solved(1, 3)[0], both[0]) < EXACT
    assert off(solved(1, 3)[1], both[1]) > 0.1
    assert off(solved(8), solved(8)) == 0
    assert off(solved(8), solved(9)) > 0.1


def test_noise_is_added_as_diffusers_adds_it() -> None:
    scheduler = SolverScheduler(AngularAdams())
    x0, eps = start(), start(seed=1)
    for k in (torch.tensor([0, 640]), torch.tensor([999, 20])):
        theirs = diffusers.DDPMScheduler().add_noise(x0, eps, k)
        assert off(scheduler.add_noise(x0, eps, k), theirs) < EXACT
    assert off(scheduler.alphas_cumprod, torch.cumprod(1 - BETAS, 0)) < EXACT


@pytest.mark.parametrize(
    "solver", [AngularAdams(order=3), PredictorCorrector(), Restart(), EDMStochastic(), UniPC()]
)
def test_the_configuration_goes_to_a_folder_and_back(solver, tmp_path) -> None:
    scheduler = SolverScheduler(
        solver, 50, trained_betas=[0.01] * 50, prediction_type="sample", grid="trailing", seed=4
    )
    scheduler.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert written["solver"]["class"] == f"sde_diffusion.solvers.{type(solver).__name__}"
    again = SolverScheduler.from_pretrained(tmp_path)
    assert again.solver == solver
    assert again.sde == scheduler.sde
    assert dict(again.config) == dict(scheduler.config)
    other = SolverScheduler.from_pretrained(tmp_path, solver=DDIM())
    assert other.solver == DDIM()


def test_a_pipeline_is_saved_and_opened_with_it(unet, tmp_path) -> None:
    scheduler = SolverScheduler(Heun(), prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is SolverScheduler
    assert dict(again.scheduler.config) == dict(scheduler.config)


def test_half_precision_keeps_its_dtype_and_its_place() -> None:
    """The coefficients are float64, so that bfloat16 is off by its own rounding alone."""
    ends = []
    for dtype in (torch.float64, torch.bfloat16):
        scheduler = SolverScheduler(AngularAdams(), prediction_type="v_prediction")
        scheduler.set_timesteps(6)
        x = start().bfloat16().to(dtype)
        with torch.no_grad():
            for k in scheduler.timesteps:
                x = scheduler.step(0.1 * x, k, x).prev_sample
        assert x.dtype == dtype
        ends.append(x.double())
    assert off(*ends) < 0.03 * float(ends[0].abs().max())


def test_a_solver_of_ones_own_is_passed_again(tmp_path) -> None:
    class Mine(OneStep[ODE]):
        dynamics = ODE

        def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
            return x + (s - t) * dynamics.velocity(x, t)

    SolverScheduler(Mine()).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="Mine', which is no class of the package; pass solver="):
        SolverScheduler.from_pretrained(tmp_path)
    assert isinstance(SolverScheduler.from_pretrained(tmp_path, solver=Mine()).solver, Mine)


def test_without_diffusers_a_sentence_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as Python has a module that is missing
    source = importlib.util.find_spec("sde_diffusion.exchange.scheduler").origin
    with pytest.raises(ImportError) as refused:
        runpy.run_path(source)
    told = str(refused.value)
    assert told.startswith("sde_diffusion: the package diffusers must be installed, got ")
    assert told.endswith("; type pip install diffusers")
