"""In a session every public object is a short line, without whole tensors or addresses."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sde_diffusion
from sde_diffusion import (
    MLP,
    SDE,
    VPSDE,
    Chain,
    ConvolutionalAutoencoder,
    CriticallyDampedLangevin,
    Dataset,
    DataSpec,
    Denoised,
    DirectScore,
    DiscreteBeta,
    DivergedError,
    Evaluator,
    GaussianAutoencoder,
    GaussianMixture,
    GuidanceInterval,
    Guided,
    LatentModel,
    LevelDecoder,
    LinearAutoencoder,
    LogSNR,
    MatrixScoreModel,
    Noise,
    OneStep,
    Paths,
    ProbabilityFlow,
    ReflectedDiffusion,
    ReflectedPoints,
    ReverseSDE,
    ScoreModel,
    Solution,
    TrainingConfig,
    WhiteNoise,
    lattice,
    linear_betas,
    load,
    log_prob,
    sample,
    uniform,
)
from sde_diffusion._shown import brief
from sde_diffusion.models.conventions import Reading
from sde_diffusion.objectives.spacings import LossAware, Stratified
from sde_diffusion.objectives.weighting import min_snr
from sde_diffusion.solvers import ERSDE, Ancestral, DormandPrince, EulerMaruyama, Heun, catalogue
from sde_diffusion.time_distributions import UniformTimes

SDE_OF = VPSDE(DiscreteBeta(linear_betas(1000)))
RING = GaussianMixture.ring(8).diffused(SDE_OF)
FLOW = ProbabilityFlow(SDE_OF, RING)
MANY = torch.linspace(0, 1, 900, dtype=torch.float64)
SPEC = DataSpec("points", (2,), 17)
ENCODER = ConvolutionalAutoencoder((1, 8, 8), width=8)
DATA = Dataset(SPEC, torch.zeros(300, 2, dtype=torch.uint8), torch.arange(300) % 10)


class _Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))

    def forward(self, x: Any, c: Any) -> Any:  # noqa: ARG002
        return self.layers(x)


# What a class is made of, by the names of its arguments.
PARTS: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("nats", "bits_per_dim", "standard_error", "tolerance_error", "lost", "latent"),
            *("power", "gap", "log_weights", "residual", "iterations", "error", "remainder"),
            *("x", "index", "number"),
        ),
        MANY,
    ),
    **dict.fromkeys(("times", "grid"), lattice(1000)),
    **dict.fromkeys(("nfe", "steps", "dimension", "freedom", "resamplings", "chain_steps"), 20),
    **dict.fromkeys(("seconds", "log_mass", "t_min", "scale", "a"), 0.123456789),
    **{key: {f"part {i}": MANY for i in range(9)} for key in ("terms", "values", "sums")},
    **dict.fromkeys(("model", "conditional", "unconditional", "exact"), RING),
    **dict.fromkeys(("v", "draw", "function"), lambda x, t: -x),  # noqa: ARG005
    "centres": torch.linspace(-1, 1, 256, dtype=torch.float64),
    "covariance": torch.eye(20),
    "mean": torch.zeros(20),
    "means": torch.zeros(300, 2),
    "weights": torch.ones(300),
    "covariances": torch.eye(2).expand(300, 2, 2),
    "betas": linear_betas(1000),
    "sde": SDE_OF,
    "flow": FLOW,
    "score": RING,
    "spec": SPEC,
    "data": SPEC,
    "labels": torch.arange(300) % 10,
    "dataset": DATA,
    "solver": Heun(),
    "network": _Own(),
    "name": "points" * 100,
    "shape": (3, 32, 32),
    "levels": 256,
    "law": UniformTimes(),
    "spacing": LossAware(100),
    "weighting": min_snr,
    "seed": 0,
    "seeds": range(1000),
    "samples": range(1000),
    "folder": Path("runs") / ("deep/" * 50),
    "channels": 3,
    "weight": 2.0,
    "b": [0.123456789] * 20,
    "count": 1000,
    "failures": {i: "log_prob: x must stay finite" for i in range(99)},
    "tensors": {f"layer {i}": MANY for i in range(99)},
    "readings": (Reading("as given", torch.ones(2, 300)),) * 9,
    "lines": (("probes", MANY, MANY),) * 9,
    "bounds": ("flow", "elbo", "vlb"),
    "per_step": MANY,
    "message": "integrate: x must stay finite, got NaN at step 3 (t = 0.5)",
    "ill": torch.arange(300) % 2 == 0,
    "why": "NaN at step 3 (t = 0.5)",
    "matrix": torch.eye(20),
    **dict.fromkeys(("rate", "noise"), torch.eye(3) / 7),
    "classifier": lambda x, t: x,  # noqa: ARG005
}
SPECIAL: dict[str, Any] = {
    "DivergedError": DivergedError("x must stay finite", MANY > 0.5, "NaN at step 3"),
    "Dataset": DATA,
    "Guided": Guided(RING, RING, GuidanceInterval(SDE_OF, 2.0)),
    "Evaluator": Evaluator(
        load("digits"),
        sde_diffusion.load_data("digits", limit=3),
        Heun(),
        grid=uniform(3, 1e-3, 1.0),
    ),
    "Paths": Paths(EulerMaruyama(), uniform(1000, 0.0, 1.0)),
    "ConvolutionalAutoencoder": ENCODER,
    "GaussianAutoencoder": GaussianAutoencoder(ENCODER),
    "LatentModel": LatentModel(
        LinearAutoencoder(torch.eye(2)), GaussianMixture.ring(8).diffused(SDE_OF)
    ),
    "ReflectedPoints": ReflectedPoints(torch.full((300, 2), 0.5), ReflectedDiffusion()),
    "Denoised": Denoised(uniform(1000)),
    "Chain": Chain(SDE_OF, lattice(1000)),
    "MatrixScoreModel": MatrixScoreModel(_Own(), CriticallyDampedLangevin()),
    "LogSNR": LogSNR(FLOW, uniform(1000, 0.01, 0.99)),
    "GaussianMixture": GaussianMixture(torch.ones(300), torch.zeros(300, 2), stds=[0.1] * 300),
}


def made(kind: type[Any]) -> Any:
    """An object of the class: of its defaults, and of `PARTS` by name where there are none."""
    if kind.__name__ == "TensorBoard":
        pytest.importorskip("tensorboard")
    if kind.__name__ in SPECIAL:
        return SPECIAL[kind.__name__]
    wanted = inspect.signature(kind).parameters.values()
    asked = [p for p in wanted if p.default is p.empty]
    return kind(**{p.name: PARTS[p.name] for p in asked})


CLASSES = [
    kind
    for name in sde_diffusion.__all__
    if isinstance(kind := getattr(sde_diffusion, name), type)
    and not inspect.isabstract(kind)
    and name != "Monitor"  # a protocol
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_public_object_is_a_short_line(kind: type[Any]) -> None:
    if kind.__name__ == "TensorBoard":
        pytest.importorskip("tensorboard")
    text = repr(made(kind))
    assert text.startswith(kind.__name__)
    assert len(text) <= 400
    assert " at 0x" not in text
    assert "tensor(" not in text
    assert "\n" not in text


def test_every_solver_is_a_short_line() -> None:
    for solver in catalogue.instances().values():
        assert len(repr(solver)) <= 400
        assert " at 0x" not in repr(solver)
    assert repr(ERSDE()) == "ERSDE(memory=2, phi=er_sde_5)"


class _Pulled(SDE):
    rate = 3.0

    def drift(self, x: Any, t: Any) -> Any:  # noqa: ARG002
        return -x

    def diffusion(self, x: Any, t: Any) -> Any:  # noqa: ARG002
        return torch.ones(())


class _Silent(Noise):
    def __init__(self) -> None:
        self.level = 0.0

    def normal(self, x: Any) -> Any:
        return 0 * x


class _Euler(OneStep[Any]):
    dynamics, order = ProbabilityFlow, 1

    def step(self, dynamics: Any, x: Any, t: Any, s: Any, noise: Any) -> Any:  # noqa: ARG002
        return x


def test_objects_of_ones_own_are_shown_by_their_attributes() -> None:
    assert repr(_Pulled()) == "_Pulled()"
    assert repr(_Silent()) == "_Silent(level=0.0)"
    assert repr(_Euler()) == "_Euler()"
    assert repr(DirectScore(_Own(), _Pulled())) == (
        "DirectScore(network=_Own of 300 parameters, sde=_Pulled(), prediction='score', data=None)"
    )


def test_a_solution_and_a_log_likelihood_say_shapes_costs_and_means() -> None:
    solution = Solution(torch.full((64, 1, 8, 8), 0.25), 20, 10, 1.23456789)
    expected = (
        "Solution(x=(64, 1, 8, 8) of mean 0.25, nfe=20, steps=10, seconds=1.23457, lost=None)"
    )
    assert repr(solution) == expected
    ring = GaussianMixture.ring(8).diffused(VPSDE())
    x = torch.zeros(6, 2, dtype=torch.float64)
    found = log_prob(x, ProbabilityFlow(ring.sde, ring), DormandPrince(1e-2, 1e-2))
    mean = f"{float(found.nats.mean()):.4g}"
    assert f"nats=(6,) of mean {mean}," in repr(found)
    assert f"nfe={found.nfe}," in repr(found)
    assert "latent=(6, 2) of mean " in repr(found)
    drawn = sample(ring, Ancestral(), (5, 2), steps=3)
    assert repr(drawn).startswith(
        f"Solution(x=(5, 2) of mean {float(drawn.x.double().mean()):.4g}"
    )


def test_models_and_networks_say_their_size_and_settings() -> None:
    digits = load("digits")
    assert repr(digits).startswith("ScoreModel(network=UNet of 873,537 parameters, sde=VPSDE(")
    assert "prediction='v'" in repr(digits)
    assert re.match(r"UNet\(channels=1, width=32, multipliers=\[1, 2\], ", repr(digits.network))
    assert repr(MLP(2, width=16)).startswith("MLP(dimension=2, width=16, depth=3, ")
    assert "MLP of " in repr(ScoreModel(MLP(2), VPSDE()))


def test_settings_that_differ_are_shown_and_the_rest_where_there_is_room() -> None:
    assert repr(TrainingConfig(steps=7, ema_widths=(0.1,))) == (
        "TrainingConfig(steps=7, ema_widths=(0.1,))"
    )
    assert repr(sde_diffusion.Hutchinson()).startswith("Hutchinson(probes=1, ")


def test_equations_say_what_they_cost_so_far() -> None:
    flow = ProbabilityFlow(VPSDE(), GaussianMixture.ring(8).diffused(VPSDE()))
    flow.velocity(torch.zeros(1, 2), torch.tensor(0.5, dtype=torch.float64))
    assert repr(flow).endswith(", nfe=1)")
    reverse = ReverseSDE(flow.sde, flow.score, 0.5)
    assert "noise_scale=0.5" in repr(reverse)


def test_values_are_brief() -> None:
    assert brief(torch.zeros(0, 3)) == "(0, 3)"
    assert brief(torch.tensor([1.5, 2.0])) == "[1.5, 2.0]"
    assert brief(torch.eye(2)) == "(2, 2) of mean 0.5"
    assert brief(torch.ones(2, 3, dtype=torch.uint8)) == "(2, 3) of mean 1"
    assert brief(list(range(9))) == "[0, 1, 2, 3, … 9 in all]"
    assert brief(Stratified().draw) == "Stratified.draw"
    assert brief(object()) == "object"
    assert len(brief("x" * 1000)) == 120
    assert repr(WhiteNoise(3)) == "WhiteNoise(seed=3, draw_dtype=torch.float32)"
    assert repr(LevelDecoder(torch.linspace(-1, 1, 256))).startswith("LevelDecoder(")
