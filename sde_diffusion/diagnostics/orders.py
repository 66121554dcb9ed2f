"""Observed orders of convergence, from closed forms alone.

ODE solvers: distance to the exact solution map, of a mixture in one dimension, where the
probability-flow ODE preserves quantiles, and of a correlated Gaussian in three. Weak order of SDE
solvers: with Gaussian data every step is affine in the state and its normals, so unit vectors for
both give the mean and variance of the solution exactly, without Monte Carlo. Strong order:
solutions with n and 2n steps on one Brownian path, for the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_type
from sde_diffusion.brownian import BrownianPath
from sde_diffusion.diagnostics.convergence import (
    Certificate,
    Convergence,
    Kind,
    OrderMeasurement,
    declared,
)
from sde_diffusion.diagnostics.doubling import Errors, Rule, asked, grid_of, settled
from sde_diffusion.diagnostics.matrix_orders import certify_matrix
from sde_diffusion.diagnostics.problems import (
    CORRELATED,
    MIXTURE,
    GaussianLine,
    MixtureAndGaussian,
    MixtureLine,
    tensor,
)
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.grids import uniform
from sde_diffusion.integration import dynamics_for, integrate
from sde_diffusion.matrix_sde import MatrixLinearSDE
from sde_diffusion.noise import Noise
from sde_diffusion.sampling.costs import cost
from sde_diffusion.scores import Score
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver

_STRONG_STEPS: Final = ((32, 64, 128), (128, 256, 512))  # more where the first are coarse


def ends(sde: LinearSDE, kind: Kind = "ode") -> tuple[float, float]:
    """Return the times between which orders of the kind are measured.

    For ODEs lambda runs from −1 to ½. Multistep SDE solvers have large error terms of the next
    order, for which 512 steps are few: weak orders are measured from lambda −¼ to ¼, and strong
    ones, whose error terms add as squares, from −⅛ to ⅛.
    """
    first, last = {"ode": (-1.0, 0.5), "weak": (-0.25, 0.25), "strong": (-0.125, 0.125)}[kind]
    start, end = sde.time(tensor(first, last)).tolist()
    return start, end


def certify(
    solver: Solver[Any],
    sde: LinearSDE | MatrixLinearSDE,
    *,
    grid: Rule = uniform,
    seed: int = 0,
) -> Certificate:
    """Return the measured orders of ``solver`` on ``sde``: all that it declares.

    A deterministic solver has an order of its state, measured on two problems; a stochastic one
    has a weak order, and a strong one if it declares ``strong_order``. An adaptive solver has an
    order at infinite tolerances, where it takes every step of the grid.

    Arguments:
        solver: any solver that declares an order.
        sde: whose reverse SDE or probability-flow ODE is solved; of a matrix-linear one the
            problems are those of `certify_matrix`.
        grid: the rule of the grids, called as grid(steps, start, end).
        seed: of the Brownian path of the strong order.

    Errors: those of the solver; TypeError for one that declares no order.

    >>> from sde_diffusion import VPSDE
    >>> from sde_diffusion.solvers import Heun
    >>> found = certify(Heun(), VPSDE())
    >>> found.passed, found.evaluations, round(found.measurements[0].observed, 1)
    (True, 2.0, 2.0)
    """
    order = declared(solver)
    if order is None:
        raise wrong_type(
            type(solver).__name__,
            "order",
            "be a number",
            "a tolerance instead",
            "declare the order at infinite tolerances",
        )
    if isinstance(sde, MatrixLinearSDE):
        return certify_matrix(solver, sde, order, grid, seed)
    once, twice = (cost(solver, sde, grid(n, *ends(sde))) for n in (12, 24))
    evaluations = max((twice.nfe - once.nfe) / 12, 0.0)  # sweeps of all steps at once have none
    if not twice.draws:
        mixture, gaussian = settled(_flow_errors(solver, sde, grid), least=64)
        return Certificate(
            evaluations,
            (
                OrderMeasurement("ode", "mixture", order, mixture),
                OrderMeasurement("ode", "correlated Gaussian", order, gaussian, least=True),
            ),
        )
    (moments,) = settled(_moment_errors(solver, sde, grid), least=128)
    found = [OrderMeasurement("weak", "Gaussian", order, moments)]
    if solver.strong_order is not None:
        found.append(_strong(solver, sde, solver.strong_order, grid, seed))
    return Certificate(evaluations, tuple(found))


def _strong(
    solver: Solver[Any], sde: LinearSDE, order: float, grid: Rule, seed: int
) -> OrderMeasurement:
    """Return the strong order, from more steps where the first are too coarse to show it."""
    for steps in _STRONG_STEPS:
        errors = strong_convergence(solver, sde, steps, grid=grid, seed=seed)
        found = OrderMeasurement("strong", "mixture", order, errors)
        if found.passed:
            break
    return found


def _flow_errors(solver: Solver[Any], sde: LinearSDE, rule: Rule) -> Errors:
    """Return the RMS errors of both problems of the ODE, as a function of the step count.

    One solve is of both, side by side; each has its own exact solution.
    """
    start, end = tensor(*ends(sde))
    line = torch.linspace(-1.2, 1.3, 33, dtype=torch.float64)
    x = torch.stack([line, (5 * line).sin(), (3 * line).cos(), line.square()], 1)
    x = x * math.hypot(float(sde.alpha(start)), float(sde.sigma(start)))
    mixture = MIXTURE.diffused(sde).flow(x[:, :1], start, end)
    gaussian = CORRELATED.diffused(sde).flow(x[:, 1:], start, end)
    exact = torch.cat([mixture, gaussian], 1)
    model = MixtureAndGaussian(sde)

    def errors(steps: int) -> tuple[float, ...]:
        grid = grid_of(rule, steps, *ends(sde))
        found = integrate(dynamics_for(solver, sde, model), solver, x, grid).x
        off = (found - exact).square().mean(0)
        return float(off[0].sqrt()), float(off[1:].mean().sqrt())

    return errors


def ode_convergence(
    solver: Solver[Any], sde: LinearSDE, steps: Sequence[int], *, grid: Rule = uniform
) -> Convergence:
    """Return the distance to the exact solution of both problems of `certify`, by step count.

    Arguments:
        solver: a deterministic solver.
        sde: whose probability-flow ODE is solved.
        steps: the step counts, doubling.
        grid: the rule of the grids, called as grid(steps, start, end).
    """
    errors = _flow_errors(solver, sde, grid)
    return Convergence(tuple(steps), tuple(math.hypot(*errors(n)) for n in steps))


@final
class _Probe(Noise):
    """Unit vectors for draws: draw j is 1 in row 2 + j and 0 in the others."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        z[2 + self.draws : 3 + self.draws] = 1  # nothing where there is no such row
        self.draws += 1
        return z


def _moment_errors(
    solver: Solver[Any], sde: LinearSDE, rule: Rule, noise_scale: float = 1.0
) -> Errors:
    """Return the error of mean and standard deviation on N(.3, .5²), as a function of steps.

    A whole solve is an affine map x ↦ a x + c + Σ_j b_j z_j of the start and its normals, whose
    coefficients follow from the images of 0, of x = 1 and of every z_j = 1.
    """
    model = GaussianLine(sde)
    (start, end) = ends(sde, "weak")
    (first, spread) = model.moments(start)
    (last, wide) = model.moments(end)
    rows = 2

    def images(steps: int) -> Tensor:
        nonlocal rows
        grid = grid_of(rule, steps, start, end)
        probe = _Probe()
        x = torch.zeros(rows, 1, dtype=torch.float64)
        x[1:2] = 1
        found = integrate(ReverseSDE(sde, model, noise_scale), solver, x, grid, noise=probe).x
        enough = rows >= 2 + probe.draws
        rows = 2 + 2 * probe.draws  # for twice the steps; the solve was a count if too few
        return found[:, 0] if enough else images(steps)

    def errors(steps: int) -> tuple[float, ...]:
        y = images(steps)
        a = y[1] - y[0]
        drawn = (y[2:] - y[0]).square().sum()
        mean = a * first + y[0]
        std = ((a * spread).square() + drawn).sqrt()
        return (math.hypot(float(mean) - last, float(std) - wide),)

    return errors


def weak_convergence(
    solver: Solver[Any],
    sde: LinearSDE,
    steps: Sequence[int],
    *,
    grid: Rule = uniform,
    noise_scale: float = 1.0,
) -> Convergence:
    """Return the error of mean and standard deviation on N(.3, .5²), by step count.

    Arguments:
        solver: a stochastic solver.
        sde: whose reverse SDE is solved.
        steps: the step counts, doubling.
        grid: the rule of the grids, called as grid(steps, start, end).
        noise_scale: l of the reverse SDE.
    """
    errors = _moment_errors(solver, sde, grid, noise_scale)
    return Convergence(tuple(steps), tuple(*zip(*map(errors, steps), strict=True)))


def observed_order(
    solver: Solver[Any], sde: LinearSDE, steps: Sequence[int] = (16, 32, 64)
) -> tuple[Kind, Convergence]:
    """Return the kind of order of a solver that declares none, and its errors by step count.

    The order is that of its state, "ode", or "weak" for a solver that draws.

    >>> from sde_diffusion import VPSDE
    >>> from sde_diffusion.solvers import Heun
    >>> kind, errors = observed_order(Heun(), VPSDE())
    >>> kind, round(errors.order, 1)
    ('ode', 2.0)
    """
    if cost(solver, sde, uniform(steps[0], *ends(sde))).draws:
        return "weak", weak_convergence(solver, sde, steps)
    return "ode", ode_convergence(solver, sde, steps)


def strong_convergence(
    solver: Solver[Any],
    sde: LinearSDE,
    steps: Sequence[int],
    *,
    grid: Rule = uniform,
    paths: int = 1000,
    seed: int = 0,
    score: Score | None = None,
) -> Convergence:
    """Return the RMS distance of n- and 2n-step solutions on one Brownian path, by n.

    Arguments:
        solver: a stochastic solver.
        sde: whose reverse SDE is solved.
        steps: the step counts n, doubling.
        grid: the rule of the grids, called as grid(steps, start, end).
        paths: how many, each with its own start.
        seed: of the starts and of the Brownian paths.
        score: the score; None for the exact one of the mixture.
    """
    start, end = ends(sde, "strong")
    model = MixtureLine(sde)
    x = model.exact.sample(paths, tensor(start)[0], torch.Generator().manual_seed(seed))
    grids = [grid_of(grid, n, start, end) for n in (*steps, 2 * steps[-1])]
    dynamics = ReverseSDE(sde, score or model)
    path = BrownianPath(seed, grid=asked(dynamics, solver, x[:1], grids))
    found = [integrate(dynamics, solver, x, each, noise=path).x for each in grids]
    errors = [float((a - b).square().mean().sqrt()) for a, b in pairwise(found)]
    return Convergence(tuple(steps), tuple(errors))
