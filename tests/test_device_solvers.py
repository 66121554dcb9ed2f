"""Every solver on a CUDA device: the states of the CPU, and no step that waits for the host.

The device is the GPU where there is one, else the pretend one of `pretend_device`, which counts
kernels, copies and waits.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pretend_device import DeviceMismatch, cuda_device
from torch import Tensor

from sde_diffusion import (
    VPSDE,
    BrownianPath,
    CounterNoise,
    GaussianMixture,
    Noise,
    OneStep,
    PerSampleNoise,
    ProbabilityFlow,
    ScoreLike,
    ScoreModel,
    UNet,
    WhiteNoise,
    integrate,
    recommended,
    uniform,
)
from sde_diffusion.integration import dynamics_for
from sde_diffusion.solvers import (
    AdaptiveAdams,
    AdaptiveDPMSolver,
    AdaptiveSDE,
    DormandPrince,
    Euler,
    Picard,
    TorchDiffEq,
    TorchDiffEqAdjoint,
    catalogue,
)

SOLVERS = catalogue.instances()
# Convergence is read, and a program of others.
READERS = (Picard, TorchDiffEq, TorchDiffEqAdjoint)
STEPPING = [n for n, s in SOLVERS.items() if not s.adaptive and not isinstance(s, READERS)]
DRAWING = {  # one of each class
    type(SOLVERS[name]): name
    for name in STEPPING
    if not issubclass(ProbabilityFlow, SOLVERS[name].dynamics)
}
ADAPTIVE = [name for name, solver in SOLVERS.items() if solver.adaptive]
# What chooses its steps by a tolerance, and the most evaluations of a try.
CHOOSING = {
    "DormandPrince": (DormandPrince(1e-3, 1e-3), 6),
    "AdaptiveAdams": (AdaptiveAdams(1e-2, 1e-2), 1),
    "AdaptiveDPMSolver": (AdaptiveDPMSolver(), 2),
    "AdaptiveSDE": (AdaptiveSDE(0.5, 0.1), 2),
}


class Drawn(Noise):
    """The CPU's normals on every device, put there ahead of the solve."""

    def __init__(self, x: Tensor, grid: Tensor) -> None:  # noqa: ARG002
        noise = PerSampleNoise(range(len(x)))
        host = torch.empty(x.shape)
        self.ahead = iter([noise.normal(host).to(x.device) for _ in range(60)])

    def normal(self, x: Tensor) -> Tensor:  # noqa: ARG002
        return next(self.ahead)


@cache
def network() -> UNet:
    """Return a small network whose output is not zero."""
    net = UNet(channels=1, width=4, multipliers=(1,), blocks=1, attention=(), classes=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def model(kind: str, device: str) -> ScoreLike:
    if kind == "oracle":
        return GaussianMixture.ring(3).to(device).diffused(VPSDE())
    return ScoreModel(copy.deepcopy(network()), VPSDE()).to(device).eval()


SHAPES = {"oracle": (3, 2), "unet": (4, 1, 4, 4)}


def counters(x: Tensor, grid: Tensor) -> Noise:  # noqa: ARG001
    """Return noise whose numbers of samples are on the device, as after the draw of a prior."""
    noise = CounterNoise(0, range(len(x)))
    noise.normal(x)
    return noise


Make = Callable[[Tensor, Tensor], Noise]
NOISES: dict[str, Make] = {
    "white": lambda _, grid: WhiteNoise(0),  # noqa: ARG005
    "own": lambda x, _: PerSampleNoise(range(len(x))),
    "counters": counters,
    "path": lambda _, grid: BrownianPath(0, grid=grid),
    "own path": lambda x, grid: BrownianPath.numbered(0, 0, len(x), grid=grid),
}


class Found(NamedTuple):
    x: Tensor  # on the CPU
    nfe: int
    steps: list[Counter[str]]  # what each did, empty on the CPU and on a GPU
    places: list[Counter[str]]


def solved(kind: str, solver, device: str, log=None, make: Make = Drawn) -> Found:
    """Return the end of a solve of a few steps."""
    score = model(kind, device)
    x = torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(1)).to(device)
    # Some of torchdiffeq's methods take no other grid, and do not converge from far away.
    even = isinstance(solver, (TorchDiffEq, TorchDiffEqAdjoint))
    grid = uniform(4, 0.6, 0.4) if even else recommended(score.sde, 4, solver=solver)
    noise = make(x, grid)
    marks = [0 if log is None else len(log.events)]

    def mark(*_: object) -> None:
        marks.append(0 if log is None else len(log.events))

    dynamics = dynamics_for(solver, score.sde, score)
    with torch.no_grad():
        end = integrate(dynamics, solver, x, grid, noise=noise, callback=mark)
    spans = [] if log is None else list(pairwise(marks))
    return Found(
        end.x.cpu(),
        end.nfe,
        [log.counts(*span) for span in spans],
        [log.places("sync", *span) + log.places("h2d", *span) for span in spans],
    )


@cache
def on_device(kind: str, name: str) -> Found:
    with cuda_device() as log:
        return solved(kind, SOLVERS[name], "cuda", log)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solve_on_the_device_is_that_of_the_cpu(name: str, kind: str) -> None:
    found = on_device(kind, name)
    expected = solved(kind, SOLVERS[name], "cpu")
    assert found.nfe == expected.nfe
    assert torch.allclose(found.x, expected.x, rtol=1e-4, atol=1e-4)


def check_silent(found: Found) -> None:
    """Refuse a step, but for the first, that waits, copies or computes in float64."""
    for step, places in list(zip(found.steps, found.places, strict=True))[1:]:
        assert step["sync"] + step["h2d"] + step["d2h"] == 0, places
        assert step["fp64"] == 0, "float64 kernels"


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", STEPPING)
def test_no_step_waits_or_copies(name: str, kind: str) -> None:
    check_silent(on_device(kind, name))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", DRAWING.values())
def test_no_draw_waits_or_copies(name: str, noise: str) -> None:
    with cuda_device() as log:
        check_silent(solved("oracle", SOLVERS[name], "cuda", log, NOISES[noise]))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_step_along_a_grid_of_a_choosing_solver_waits_once(name: str, kind: str) -> None:
    found = on_device(kind, name)
    for step, places in list(zip(found.steps, found.places, strict=True))[1:]:
        assert step["sync"] <= 1, places


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", CHOOSING)
def test_a_try_of_a_choosing_solver_waits_once(name: str, kind: str) -> None:
    """And three times a solve: for its tolerance, its first look and its last state."""
    solver, evaluations = CHOOSING[name]
    with cuda_device() as log:
        found = solved(kind, solver, "cuda", log)
    expected = solved(kind, solver, "cpu")
    assert found.nfe == expected.nfe
    assert torch.allclose(found.x, expected.x, rtol=1e-4, atol=1e-4)
    if log is not None:
        waits = sum(step["sync"] for step in found.steps)
        places = sum(found.places, Counter())
        assert waits <= found.nfe / evaluations + 3, places


@pytest.mark.parametrize("kind", SHAPES)
def test_a_sweep_of_picard_waits_once(kind: str) -> None:
    """For which states have settled. A sweep evaluates once by a step of one evaluation."""
    with cuda_device() as log:
        found = solved(kind, Picard(), "cuda", log)
    if log is not None:
        places = sum(found.places, Counter())
        assert sum(step["sync"] for step in found.steps) <= found.nfe, places
        assert sum(step["d2h"] for step in found.steps) <= found.nfe, places


def step_of(x: Tensor, dynamics: ProbabilityFlow, t: Tensor, s: Tensor) -> Tensor:
    return x + (s - t) * dynamics.velocity(x, t)


class Constant(OneStep[ProbabilityFlow]):
    dynamics = ProbabilityFlow

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        return step_of(x, dynamics, t, s) + torch.zeros(x.shape[1:])


class Item(OneStep[ProbabilityFlow]):
    dynamics = ProbabilityFlow

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        return step_of(x, dynamics, t, s) * (1.0 + 0.0 * x.sum().item())


class HostGenerator(OneStep[ProbabilityFlow]):
    dynamics = ProbabilityFlow

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        z = torch.randn(x.shape, generator=torch.Generator(), device=x.device)
        return step_of(x, dynamics, t, s) + 0 * z


class Double(OneStep[ProbabilityFlow]):
    dynamics = ProbabilityFlow

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        return step_of(x, dynamics, t, s).double().mul(1.0).to(x.dtype)


class ByNumpy(OneStep[ProbabilityFlow]):
    dynamics = ProbabilityFlow

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        moved = step_of(x, dynamics, t, s)
        return torch.as_tensor(np.asarray(moved), device=x.device)


class Table(OneStep[ProbabilityFlow]):
    dynamics = ProbabilityFlow

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        weights = torch.tensor([1.0, 1.0], device=x.device)
        return step_of(x, dynamics, t, s) * weights[0]


PLANTED = {
    Constant: (DeviceMismatch, r"expected all tensors on cuda:0, found \[\(1, 4, 4\)\] on cpu"),
    Item: (AssertionError, "_local_scalar_dense"),
    HostGenerator: (DeviceMismatch, "a cpu generator on cuda"),
    Double: (AssertionError, "float64"),
    ByNumpy: (TypeError, "cuda:0 device type tensor to numpy"),
    Table: (AssertionError, "h2d"),
}


@pytest.mark.parametrize("mistake", PLANTED, ids=lambda mistake: mistake.__name__)
def test_a_planted_mistake_is_found(pretend, mistake) -> None:
    """On the CPU, where all of them give Euler's states, no other test would see them."""
    plain = solved("unet", Euler(), "cpu").x
    assert torch.allclose(solved("unet", mistake(), "cpu").x, plain, rtol=1e-4, atol=1e-4)
    error, says = PLANTED[mistake]
    with pytest.raises(error, match=says):
        check_silent(solved("unet", mistake(), "cuda", pretend))
