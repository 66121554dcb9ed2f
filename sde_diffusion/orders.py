"""Observed orders of convergence, from closed forms alone.

ODE solvers: distance to the exact flow map of a one-dimensional mixture, which keeps quantiles.
SDE solvers, weakly: with Gaussian data every step is affine in the state and its normals, so
probing it with unit vectors propagates mean and variance exactly, without Monte Carlo. Strongly:
solutions with n and 2n steps on one Brownian path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_type
from sde_diffusion.grids import uniform
from sde_diffusion.integration import OneStep, Solver, dynamics_for, integrate
from sde_diffusion.noise import BrownianPath, Noise
from sde_diffusion.oracles import ExactScore, Gaussian, GaussianMixture
from sde_diffusion.reverse import ReverseSDE
from sde_diffusion.sde import LinearSDE

_FLOOR = 1e-13  # errors below it are rounding and say nothing of the order


@final
@dataclass(frozen=True)
class Convergence:
    """Errors at doubling step counts.

    >>> round(Convergence((1, 2, 4), (1.0, 0.25, 0.0625)).order, 6)
    2.0
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def slopes(self) -> list[float]:
        """The observed order of every doubling, as far as the errors are above rounding."""
        kept = [e for e in self.errors if e > _FLOOR]
        return [math.log2(a / b) for a, b in pairwise(kept)]

    @property
    def order(self) -> float:
        """The observed order: the slope of the finest doubling above rounding."""
        return self.slopes[-1]


def ends(sde: LinearSDE) -> tuple[float, float]:
    """Return the times at which lambda is −1 and ½, between which orders are measured."""
    start, end = sde.time(torch.tensor([-1.0, 0.5], dtype=torch.float64)).tolist()
    return start, end


def ode_convergence(solver: Solver[Any], sde: LinearSDE, steps: Sequence[int]) -> Convergence:
    """Return the RMS error of the flow map over 33 starting points, by step count."""
    means = torch.tensor([[-0.8], [0.7]], dtype=torch.float64)
    model = GaussianMixture([0.4, 0.6], means, stds=[0.5, 0.3]).diffused(sde)
    start, end = ends(sde)
    scale = math.hypot(*(float(f(torch.tensor(start))) for f in (sde.alpha, sde.sigma)))
    x = scale * torch.linspace(-1.2, 1.3, 33, dtype=torch.float64)[:, None]
    exact = model.flow(x, *torch.tensor([start, end], dtype=torch.float64))

    def error(n: int) -> float:
        dynamics = dynamics_for(solver, sde, model)
        found = integrate(dynamics, solver, x, uniform(n, start, end)).x
        return float((found - exact).square().mean().sqrt())

    return Convergence(tuple(steps), tuple(error(n) for n in steps))


@final
class _Probe(Noise):
    """Unit vectors for draws: draw j is 1 in row 2 + j and 0 in the others."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        z[2 + self.draws] = 1
        self.draws += 1
        return z


def weak_convergence(
    solver: OneStep[Any], sde: LinearSDE, steps: Sequence[int], *, noise_scale: float = 1.0
) -> Convergence:
    """Return the error of mean and standard deviation on N(.3, .5²), by step count.

    Errors: TypeError for a solver that is not one-step.
    """
    if not isinstance(solver, OneStep):
        raise wrong_type("weak_convergence", "solver", "be a OneStep", type(solver).__name__,
                         "use ode_convergence for a multistep ODE solver")  # fmt: skip
    data = Gaussian(torch.tensor([0.3]), torch.tensor([[0.25]]))
    model, (start, end) = data.diffused(sde), ends(sde)
    first, last = (model.marginal(torch.tensor(t, dtype=torch.float64)) for t in (start, end))

    def error(n: int) -> float:
        mean, variance = float(first.means), float(first.variances)
        dynamics: Any = ReverseSDE(sde, model, noise_scale)
        for t, s in uniform(n, start, end).unfold(0, 2, 1):
            shift, factor, spread = _affine(solver, dynamics, t, s)
            mean, variance = factor * mean + shift, factor**2 * variance + spread
        off = abs(mean - float(last.means)), abs(variance**0.5 - float(last.variances) ** 0.5)
        return math.hypot(*off)

    return Convergence(tuple(steps), tuple(error(n) for n in steps))


def _affine(
    solver: OneStep[Any], dynamics: ReverseSDE, t: Tensor, s: Tensor, most_draws: int = 6
) -> tuple[float, float, float]:
    """Return c, a and Σ b_j² of a step x ↦ a x + c + Σ b_j z_j."""
    x = torch.zeros(2 + most_draws, 1, dtype=torch.float64)
    x[1] = 1
    y = solver.step(dynamics, x, t, s, _Probe())[:, 0]
    shift = float(y[0])
    return shift, float(y[1]) - shift, float(((y[2:] - shift) ** 2).sum())


def strong_convergence(
    solver: Solver[Any],
    sde: LinearSDE,
    steps: Sequence[int],
    *,
    paths: int = 400,
    seed: int = 0,
    score: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Convergence:
    """Return the RMS distance of n- and 2n-step solutions on one Brownian path, by n."""
    model = score or _strong_model(sde)
    start, end = ends(sde)
    generator = torch.Generator().manual_seed(seed)
    x = float(sde.sigma(torch.tensor(start))) * torch.randn(
        paths, 1, generator=generator, dtype=torch.float64
    )
    path = BrownianPath(seed + 1)
    found = [
        integrate(ReverseSDE(sde, model), solver, x, uniform(n, start, end), noise=path).x
        for n in (*steps, 2 * steps[-1])
    ]
    errors = [
        float((a - b).square().mean().sqrt()) for a, b in pairwise(found)
    ]
    return Convergence(tuple(steps), tuple(errors))


def _strong_model(sde: LinearSDE) -> ExactScore:
    return Gaussian(torch.tensor([0.3]), torch.tensor([[0.25]])).diffused(sde)
