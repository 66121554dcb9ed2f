"""Checks of a machine: each returns a number that is 0 in exact arithmetic, and its bound.

States of a device in float32 are compared with those of the CPU in float64, so that a check says
something on the CPU too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion.diagnostics.convergence import TOLERANCE
from sde_diffusion.diagnostics.orders import certify
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.grids import uniform
from sde_diffusion.integration import integrate
from sde_diffusion.likelihood.divergence import Exact
from sde_diffusion.likelihood.flow import log_prob
from sde_diffusion.models.exact import ExactScore
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver

Loss: TypeAlias = Callable[[ScoreModel, Tensor, Tensor, Tensor], Tensor]  # model, x0, t, eps
REPORT: Final = "report it with all of this output"
_PRECISION: Final = (
    "switch TF32 and automatic casts off, try --device cpu, and report the device that differs"
)


@final
@dataclass(frozen=True)
class Check:
    """One check: a number that was found, and how large it may be.

    Arguments:
        name: of what is checked.
        measures: what the number is.
        found: the number; NaN fails.
        bound: the largest that passes.
        because: where the bound comes from.
        remedy: what to do where it fails.

    >>> Check("sum", "1 + 1 − 2", 0.0, 0.0, "integers are exact", "report it").passed
    True
    """

    name: str
    measures: str
    found: float
    bound: float
    because: str
    remedy: str

    @property
    def passed(self) -> bool:
        """Whether the number is within its bound."""
        return self.found <= self.bound


def rounding(device: torch.device) -> tuple[float, str]:
    """Return how much rounding may change some ten evaluations of a network, and why.

    200 units of 2⁻²⁴ for sums in float32, and 20 of 2⁻¹¹ for factors where a GPU takes TF32.
    """
    if device.type == "cuda" and allows_tf32():
        return 200 * 2.0**-24 + 20 * 2.0**-11, "200 roundings to float32 and 20 to TF32"
    return 200 * 2.0**-24, "200 roundings to float32 in ten evaluations of a network"


def allows_tf32() -> bool:
    """Return whether a GPU may multiply in TF32, in matrix products or in convolutions."""
    return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


def order(solver: Solver[Any], sde: LinearSDE) -> Check:
    """Return how far the orders of a solver are from those that it declares."""
    found = certify(solver, sde).measurements
    gaps = [m.declared - m.observed if m.least else abs(m.observed - m.declared) for m in found]
    kinds = ", ".join(f"{m.kind} {m.observed:.3f} of {m.declared:g}" for m in found)
    return Check(
        f"order of {type(solver).__name__}",
        f"largest gap from the declared orders ({kinds})",
        largest(gaps),
        TOLERANCE,
        "what the next term of the error still adds at the finest steps",
        "reinstall the versions of constraints.txt; if it stays, " + REPORT,
    )


def steps(solver: Solver[Any], model: ScoreModel, device: torch.device) -> Check:
    """Return how far five steps on the device in float32 end from the CPU's in float64."""
    event = event_of(model)
    x = PerSampleNoise.numbered(0, 0, 8).normal(torch.zeros(8, *event))
    ends = [
        integrate(ProbabilityFlow(one.sde, one), solver, y, uniform(5)).x.cpu().double()
        for one, y in (float32_there(model, x, device), float64_here(model, x))
    ]
    return Check(
        f"five steps of {type(solver).__name__}",
        "RMS difference of float32 on the device from float64 on the CPU, relative",
        _apart(*ends),
        *rounding(device),
        _PRECISION,
    )


def likelihood(
    solver: Solver[Any], model: ExactScore, score: ScoreLike, device: torch.device
) -> Check:
    """Return the error of log p(x) by the flow of a score, against its closed form.

    Arguments:
        solver: an adaptive solver of a tolerance of 1e-8 or less.
        model: the closed form: of one Gaussian.
        score: the score of the flow, of the same data.
        device: where it is solved, in float64.
    """
    x = model.oracle.sample(8, torch.Generator().manual_seed(0)).to(device)
    start, end = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    found = log_prob(
        x,
        ProbabilityFlow(score.sde, score),
        solver,
        grid=torch.stack([start, end]),
        divergence=Exact(),
        prior=model.marginal(end),
    )
    stated = float(found.tolerance_error.max())
    return Check(
        "log-likelihood of a Gaussian",
        f"largest error in nats of 8 samples, by {found.nfe} evaluations (it states {stated:.1g})",
        float((found.nats - model.log_prob(x, start)).abs().max()),
        1e-5,
        "some fifty times the error that a tolerance of 1e-8 states",
        "reinstall the versions of constraints.txt, try --device cpu; if it stays, " + REPORT,
    )


def training(model: ScoreModel, loss: Loss, device: torch.device) -> Check:
    """Return how 20 steps of gradient descent on the device differ from the CPU's in float64.

    Arguments: those of `descent`.
    """
    found, _ = _descended(*float32_there(model, _points(model), device), loss)
    exact, _ = _descended(*float64_here(model, _points(model)), loss)
    return Check(
        "20 training steps",
        "RMS difference of the weights' change from that in float64 on the CPU, relative",
        _apart(found, exact),
        *rounding(device),
        _PRECISION,
    )


def descent(model: ScoreModel, loss: Loss, device: torch.device) -> Check:
    """Return what 20 steps of gradient descent leave of the loss.

    Arguments:
        model: a small one, whose weights stay what they are.
        loss: (model, x0, t, eps) -> one loss a sample.
        device: where it trains, in float32.
    """
    _, losses = _descended(*float32_there(model, _points(model), device), loss)
    return Check(
        "the loss falls",
        f"loss after 20 steps over that before, {losses[-1]:.3f} over {losses[0]:.3f}",
        losses[-1] / losses[0],
        0.5,
        "in float64 a fifth is left",
        "try --device cpu, which says whether the device is at fault; " + REPORT,
    )


def event_of(model: ScoreModel) -> tuple[int, ...]:
    """Return the shape of a sample; points of the plane where the model has no data."""
    return (2,) if model.data is None else tuple(model.data.shape)


def float32_there(model: ScoreModel, x: Tensor, device: torch.device) -> tuple[ScoreModel, Tensor]:
    """Return the model and its states on the device in float32."""
    return copy.deepcopy(model).to(device=device, dtype=torch.float32), x.float().to(device)


def float64_here(model: ScoreModel, x: Tensor) -> tuple[ScoreModel, Tensor]:
    """Return the model and its states on the CPU in float64."""
    return copy.deepcopy(model).to(device="cpu", dtype=torch.float64), x.double().cpu()


def largest(values: Sequence[float]) -> float:
    """Return the largest, NaN where one is."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _apart(found: Tensor, exact: Tensor) -> float:
    """Return ‖found − exact‖/‖exact‖."""
    return float((found - exact).norm() / exact.norm())


def _points(model: ScoreModel) -> Tensor:
    """Return 64 samples N(1, 0.3²) and as many normals: (64, *event) and the same, in one."""
    shape = (64, *event_of(model))
    x0, eps = (PerSampleNoise.numbered(k, 0, 64).normal(torch.zeros(shape)) for k in (0, 1))
    return torch.cat([1 + 0.3 * x0, eps])


def _descended(model: ScoreModel, points: Tensor, loss: Loss) -> tuple[Tensor, list[float]]:
    """Return the change of the weights by 20 steps, and the losses before and after each."""
    x0, eps = points.chunk(2)
    t = torch.linspace(0.02, 0.98, len(x0), dtype=torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    losses = []
    for _ in range(20):
        mean = loss(model, x0, t, eps).mean()
        losses.append(float(mean.detach()))
        optimizer.zero_grad()
        mean.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    losses.append(float(loss(model, x0, t, eps).mean().detach()))
    pairs = zip(model.parameters(), before, strict=True)
    return torch.cat([(p.detach() - b).flatten() for p, b in pairs]).cpu().double(), losses
