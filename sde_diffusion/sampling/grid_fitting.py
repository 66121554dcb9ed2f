"""Grids fitted to a solver and a model, from evaluations of the score alone, without data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import check_shape, diverged, wrong_type, wrong_value
from sde_diffusion._tensors import check_dtype
from sde_diffusion.grids import cosine, karras, log_snr, quadratic, sampling_ends
from sde_diffusion.integration import check_evaluation, dynamics_for, integrate
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sampling.costs import adapts, cost
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver, check_solver

_REFERENCE: Final = 32  # Runge–Kutta steps of the reference flow
_LOCAL: Final = 12  # Runge–Kutta steps beside all steps of the grid, at least one beside each
_ROUNDS: Final = 4  # of equidistribution, and of least squares
_NUDGE: Final = 0.02  # change of a log step size in a difference quotient
_REACH: Final = 0.7  # largest change of a log step size in one round


def optimised(
    model: ScoreLike,
    solver: Solver[Any],
    steps: int,
    *,
    shape: Sequence[int],
    seed: int = 0,
    start: float | None = None,
    end: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return a grid on which this solver ends close to the probability-flow ODE of the model.

    Two stages, in lambda. Equidistribution: from the best of four known grids, the step sizes are
    changed until every step makes the same local error e, in steps of equal parts of
    Σ e^{1/(p+1)}, p being the solver's order and e the distance to Runge–Kutta steps from the
    solver's own states. Gauss–Newton: damped rounds on the log step sizes reduce the distance of
    the end points to the ODE's, the global error.

    The draws of the prior are those of `sample` with this seed. The few samples that end at
    another mode dominate the distance: take 1000 or more where the model is cheap.

    Arguments:
        model: the score model or exact score, with a LinearSDE, in evaluation mode.
        solver: a solver that draws no noise and takes the steps of its grid.
        steps: of the grid.
        shape: (B, *event), of the batch to fit to.
        seed: of the draws of the prior.
        start: the first time; None for the SDE's horizon.
        end: the last time; None for the model's t_min, or else the SDE's cutoff.
        dtype: of the states.

    Shapes: result (steps + 1,), float64.
    NFE: about 320 + 20·steps + 4·steps² of the whole batch, for a solver with one a step.
    Errors: TypeError for a model without a LinearSDE; ValueError for a solver that draws or
    adapts its steps; FloatingPointError where no known grid gives finite end points.
    Source: equidistribution, de Boor 1973; damping, Levenberg 1944.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> from sde_diffusion.solvers import Ancestral
    >>> ring = GaussianMixture.ring(8).diffused(VPSDE())
    >>> grid = optimised(ring, Ancestral(eta=0.0), 6, shape=(64, 2))
    >>> len(grid), float(grid[0]), float(grid[-1])
    (7, 1.0, 0.001)
    """
    if not isinstance(model, ScoreLike) or not isinstance(model.sde, LinearSDE):
        raise wrong_type(
            "optimised",
            "model",
            "be a ScoreLike of a LinearSDE",
            type(model).__name__,
            "pass a ScoreModel, or an oracle's .diffused(sde)",
        )
    sde = model.linear_sde()
    check_evaluation("optimised", model)
    check_solver("optimised", solver)
    check_shape("optimised", shape)
    check_dtype("optimised", dtype)
    end = model.t_min if end is None else end
    start, end = sampling_ends("optimised", sde, steps, start, end)
    if not start > end:
        raise wrong_value(
            "optimised", "start, end", "run from noise to data", f"{start}, {end}", "swap them"
        )
    known = [
        quadratic(steps, start, end),
        cosine(sde, steps, start, end),
        log_snr(sde, steps, start, end),
        karras(sde, steps, start=start, end=end),
    ]
    _check_solver(solver, sde, known[0])
    noise = PerSampleNoise.numbered(seed, 0, shape[0])
    with torch.no_grad():
        x = sde.prior().sample(noise, shape, dtype=dtype, device=model.device)
        fit = _Calibration(model, solver, x, start, end)
        grid = min(known, key=fit.error)
        if not math.isfinite(fit.error(grid)):
            raise diverged(
                "optimised",
                "solver",
                "end at finite states",
                "NaN or infinity",
                "use more steps, or move the ends of the grid",
            )
        return fit.refined(fit.equidistributed(grid))


def _check_solver(solver: Solver[Any], sde: LinearSDE, grid: Tensor) -> None:
    name = type(solver).__name__
    if cost(solver, sde, grid).draws:
        raise wrong_value(
            "optimised",
            "solver",
            "draw no noise, so that it has end points",
            name,
            "pass for example Ancestral(eta=0.0)",
        )
    if adapts(solver, sde, grid):
        raise wrong_value(
            "optimised",
            "solver",
            "take the steps of its grid",
            name,
            "pass a solver without tolerances",
        )


@final
class _Calibration:
    """A batch of draws of the prior, and the end points of the probability-flow ODE from them."""

    def __init__(
        self, model: ScoreLike, solver: Solver[Any], x: Tensor, start: float, end: float
    ) -> None:
        self.model = model
        self.sde = model.linear_sde()
        self.solver = solver
        self.x = x
        self.start, self.end = start, end
        self.target = flow(model, x, cosine(self.sde, _REFERENCE, start, end))

    def residual(self, grid: Tensor) -> Tensor:
        """Return the flat difference of the solver's end points to the ODE's."""
        dynamics = dynamics_for(self.solver, self.sde, self.model)
        try:
            x = integrate(dynamics, self.solver, self.x, grid).x
        except FloatingPointError:
            x = torch.full_like(self.x, math.inf)
        return (x - self.target).double().flatten()

    def error(self, grid: Tensor) -> float:
        return float(self.residual(grid).square().mean())

    def grid(self, log_steps: Tensor) -> Tensor:
        """Return the grid with the given logarithms, up to a constant, of its steps in lambda."""
        first, last = self.sde.lambda_(torch.tensor([self.start, self.end], dtype=torch.float64))
        part = torch.cat([torch.zeros(1, dtype=torch.float64), log_steps.softmax(0).cumsum(0)])
        grid = self.sde.time(first + (last - first) * part)
        grid[0], grid[-1] = self.start, self.end
        return grid

    def log_steps(self, grid: Tensor) -> Tensor:
        return self.sde.lambda_(grid).diff().log()

    def local_errors(self, grid: Tensor) -> Tensor:
        """Return the RMS error of every step, from the state that the solver has there."""
        states = [self.x]
        parts = math.ceil(_LOCAL / (len(grid) - 1))
        dynamics = dynamics_for(self.solver, self.sde, self.model)
        integrate(dynamics, self.solver, self.x, grid, callback=lambda _k, _t, y: states.append(y))
        errors = []
        for (x, y), (t, s) in zip(pairwise(states), pairwise(grid.tolist()), strict=True):
            exact = flow(self.model, x, cosine(self.sde, parts, t, s))
            errors.append((y - exact).double().square().mean().sqrt().cpu())
        return torch.stack(errors)

    def equidistributed(self, grid: Tensor) -> Tensor:
        """Return the best grid of some rounds of equidistribution of the local errors."""
        order = 1 if math.isnan(self.solver.order) else float(self.solver.order)
        exponent = 1 / (order + 1)
        best = grid
        least = self.error(grid)
        for _ in range(_ROUNDS):
            density = self.local_errors(grid) ** exponent
            if not bool(density.isfinite().all()) or float(density.min()) == 0:
                break
            grid = self.grid(_equal_parts(density, self.log_steps(grid).exp()).log())
            error = self.error(grid)
            if error < least:
                best = grid
                least = error
        return best

    def refined(self, grid: Tensor) -> Tensor:
        """Return the grid after rounds of damped least squares on its log step sizes."""
        z = self.log_steps(grid)
        r = self.residual(grid)
        damping = 0.03
        for _ in range(_ROUNDS if len(z) > 1 else 0):
            # The last log step stays: only ratios of steps matter.
            nudges = _NUDGE * torch.eye(len(z), dtype=torch.float64)[:-1]
            columns = [(self.residual(self.grid(z + nudge)) - r) / _NUDGE for nudge in nudges]
            j = torch.stack(columns, 1)
            square = (j.mT @ j).cpu()
            gradient = (j.mT @ r).cpu()
            if not bool(square.isfinite().all()):
                break
            scale = square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
            for _ in range(3):
                move = -torch.linalg.lstsq(square + damping * scale, gradient).solution
                move = move * min(1.0, _REACH / float(move.abs().max().clamp(min=1e-12)))
                trial = z + torch.nn.functional.pad(move, (0, 1))
                residual = self.residual(self.grid(trial))
                better = bool(residual.square().sum() < r.square().sum())
                damping *= 0.25 if better else 6
                if better:
                    z = trial
                    r = residual
                    break
            else:
                break
        return self.grid(z)


def _equal_parts(mass: Tensor, widths: Tensor) -> Tensor:
    """Return widths that hold equal masses, the given ones holding theirs evenly."""
    zero = torch.zeros(1, dtype=torch.float64)
    held = torch.cat([zero, mass.cumsum(0)])
    place = torch.cat([zero, widths.cumsum(0)])
    wanted = torch.linspace(0, float(held[-1]), len(held), dtype=torch.float64)
    i = (torch.searchsorted(held, wanted, right=True) - 1).clamp(0, len(mass) - 1)
    return (place[i] + (wanted - held[i]) / mass[i] * widths[i]).diff()


def flow(model: ScoreLike, x: Tensor, times: Tensor) -> Tensor:
    """Return the solution of the probability-flow ODE from ``x`` by Runge–Kutta in the angle.

    With φ = atan(sigma/alpha), r² = alpha² + sigma² and y = x/r: dy/dφ = −tan φ (y + r score).

    Order: 4. NFE: 4 a step.
    """
    sde = model.linear_sde()

    def radius(t: Tensor) -> Tensor:
        return torch.hypot(sde.alpha(t), sde.sigma(t))

    def slope(y: Tensor, phi: Tensor) -> Tensor:
        t = sde.time(-phi.tan().log())
        r = radius(t)
        return -phi.tan() * (y + r * model(r * y, t))

    y = x / radius(times[0])
    for phi, psi in pairwise(torch.exp(-sde.lambda_(times)).atan()):
        h = psi - phi
        middle = 0.5 * (phi + psi)
        k1 = slope(y, phi)
        k2 = slope(y + 0.5 * h * k1, middle)
        k3 = slope(y + 0.5 * h * k2, middle)
        k4 = slope(y + h * k3, psi)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * radius(times[-1])
