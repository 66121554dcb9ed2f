"""Observed orders of convergence on a matrix-linear SDE, with exact scores.

ODE solvers: distance to a solution by SciPy's DOP853 at a tolerance of 1e-13, on a mixture. Weak
order: with Gaussian data every step is affine in the state and its normals, so unit vectors for
both give mean and covariance of the solution exactly. Strong order: n and 2n steps on one Brownian
path, for the mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, TypeVar, final

import torch
from torch import Tensor

from sde_diffusion.brownian import BrownianPath
from sde_diffusion.diagnostics.convergence import Certificate, Convergence, Kind, OrderMeasurement
from sde_diffusion.diagnostics.doubling import Errors, Rule, asked, grid_of, settled
from sde_diffusion.diagnostics.problems import tensor
from sde_diffusion.dynamics import ProbabilityFlow, ReverseSDE
from sde_diffusion.integration import dynamics_for, integrate
from sde_diffusion.matrix_sde import MatrixLinearSDE
from sde_diffusion.models.exact import Gaussian, GaussianMixture, MatrixExactScore, Oracle
from sde_diffusion.noise import Noise
from sde_diffusion.sampling.costs import cost
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver

T = TypeVar("T")

_ENDS: Final[dict[Kind, tuple[float, float]]] = {  # in parts of the horizon
    "ode": (0.55, 0.35),
    "weak": (0.5, 0.4),
    "strong": (0.45, 0.4),
}
_STRONG_STEPS: Final = (32, 64, 128)
_PATHS: Final = 300
_TRUSTED: Final = 1e-12  # distances below it are errors of the solution that is compared with


@final
class _Remembered(ScoreLike):
    """The exact score of an oracle's data, whose marginals are kept by their times."""

    row_by_row = True

    def __init__(self, oracle: Oracle, sde: MatrixLinearSDE) -> None:
        self.sde = sde
        self.exact = MatrixExactScore(oracle, sde)
        self._known: dict[float, Oracle] = {}

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        key = float(t.flatten()[0])
        if t.ndim and bool((t != key).any()):
            return self.exact(x, t)
        if key not in self._known:
            self._known[key] = self.exact.marginal(t.flatten()[0])
        return self._known[key].score(x)


def _by_sde(make: Callable[[MatrixLinearSDE], T]) -> Callable[[MatrixLinearSDE], T]:
    """Return a function that remembers what it made of the last SDEs, of those with a hash.

    One without may change after it has been asked: nothing is remembered of it.
    """
    known = lru_cache(maxsize=4)(make)

    def found(sde: MatrixLinearSDE) -> T:
        try:
            hash(sde)
        except TypeError:
            return make(sde)
        return known(sde)

    return found


@_by_sde
def _mixture(sde: MatrixLinearSDE) -> _Remembered:
    """Return the score of .4 N(−.8, .5²) + .6 N(.7, .3²), the same in every part of the data."""
    means = tensor(-0.8, 0.7)[:, None].expand(2, sde.data_parts)
    return _Remembered(GaussianMixture([0.4, 0.6], means, stds=[0.5, 0.3]), sde)


@_by_sde
def _gaussian(sde: MatrixLinearSDE) -> _Remembered:
    """Return the score of N(.3, .5²) in every part of the data."""
    p = sde.data_parts
    variance = 0.25 * torch.eye(p, dtype=torch.float64)
    return _Remembered(Gaussian(tensor(0.3).expand(p), variance), sde)


def _ends(sde: MatrixLinearSDE, kind: Kind) -> tuple[float, float]:
    start, end = _ENDS[kind]
    return start * sde.horizon, end * sde.horizon


def certify_matrix(
    solver: Solver[Any], sde: MatrixLinearSDE, order: float, grid: Rule, seed: int
) -> Certificate:
    """Return the measured orders of ``solver`` on ``sde``: all that it declares.

    Arguments:
        solver: any solver that declares an order.
        sde: whose reverse SDE or probability-flow ODE is solved.
        order: the declared one.
        grid: the rule of the grids, called as grid(steps, start, end).
        seed: of the Brownian path of the strong order.

    Errors: those of the solver, such as the refusal of one that needs alpha and sigma.
    """
    once, twice = (cost(solver, sde, grid(n, *_ends(sde, "ode"))) for n in (12, 24))
    evaluations = max((twice.nfe - once.nfe) / 12, 0.0)
    if not twice.draws:
        (states,) = settled(_flow_errors(solver, sde, grid), least=64)
        return Certificate(evaluations, (OrderMeasurement("ode", "mixture", order, states),))
    (moments,) = settled(_moment_errors(solver, sde, grid), least=128)
    found = [OrderMeasurement("weak", "Gaussian", order, moments)]
    if solver.strong_order is not None:
        strong = _strong_convergence(solver, sde, grid, seed)
        # Without noise in x itself the leading error of a method above order 1 is 0.
        declared = solver.strong_order
        found.append(OrderMeasurement("strong", "mixture", declared, strong, least=declared > 1))
    return Certificate(evaluations, tuple(found))


@_by_sde
def _solution(sde: MatrixLinearSDE) -> tuple[Tensor, Tensor]:
    """Return states at the first time of the ODE, and where the flow takes them."""
    from scipy.integrate import solve_ivp

    flow = ProbabilityFlow(sde, _mixture(sde))
    line = torch.linspace(-1.2, 1.3, 17, dtype=torch.float64)
    x = torch.stack([(1 + i) * line.sin() + i * (3 * line).cos() for i in range(sde.parts)], 1)

    def slope(t: float, y: Any) -> Any:  # noqa: ANN401  (arrays of scipy)
        return flow.velocity(torch.from_numpy(y).reshape(x.shape), tensor(t)[0]).numpy().ravel()

    found = solve_ivp(
        slope, _ends(sde, "ode"), x.numpy().ravel(), "DOP853", rtol=1e-13, atol=1e-14
    )
    return x, torch.from_numpy(found.y[:, -1].copy()).reshape(x.shape)


def _flow_errors(solver: Solver[Any], sde: MatrixLinearSDE, rule: Rule) -> Errors:
    """Return the RMS error of the state as a function of the step count."""
    x, exact = _solution(sde)

    def errors(steps: int) -> tuple[float, ...]:
        grid = grid_of(rule, steps, *_ends(sde, "ode"))
        found = integrate(dynamics_for(solver, sde, _mixture(sde)), solver, x, grid).x
        off = float((found - exact).square().mean().sqrt())
        return (off if off > _TRUSTED else 0.0,)

    return errors


@final
class _Units(Noise):
    """Unit vectors for draws of n elements: element i of draw j is 1 in row 1 + n (1 + j) + i."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        first = 1 + n * (1 + self.draws)
        self.draws += 1
        z = torch.zeros_like(x)
        there = z[first : first + n]  # nothing where there are no such rows
        there.copy_(torch.eye(n).to(z)[: len(there)])
        return z


def _moment_errors(solver: Solver[Any], sde: MatrixLinearSDE, rule: Rule) -> Errors:
    """Return the error of mean and covariance, as a function of the step count."""
    score = _gaussian(sde)
    (first, spread), (last, wide) = (
        _moments(score, t) for t in tensor(*_ends(sde, "weak")).unbind()
    )
    n = sde.parts

    def images(steps: int, rows: int) -> Tensor:
        noise = _Units()
        x = torch.zeros(rows, n, dtype=torch.float64)
        x[1 : 1 + n] = torch.eye(n)
        grid = grid_of(rule, steps, *_ends(sde, "weak"))
        found = integrate(ReverseSDE(sde, score), solver, x, grid, noise=noise).x
        wanted = 1 + n * (1 + noise.draws)
        return found if wanted <= rows else images(steps, wanted)

    def errors(steps: int) -> tuple[float, ...]:
        y = images(steps, 1 + n)
        a = (y[1 : 1 + n] - y[0]).mT
        drawn = y[1 + n :] - y[0]
        mean = a @ first + y[0]
        covariance = a @ spread @ a.mT + drawn.mT @ drawn
        off = (mean - last).square().sum() + (covariance - wide).square().sum()
        return (float(off.sqrt()),)

    return errors


def _moments(score: _Remembered, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of the one Gaussian at a time."""
    o = score.exact.marginal(t)
    bases = torch.eye(o.dimension) if o.bases is None else o.bases[0]
    return o.means[0], bases * o.variances[0] @ bases.mT


def _strong_convergence(
    solver: Solver[Any], sde: MatrixLinearSDE, rule: Rule, seed: int
) -> Convergence:
    """Return the RMS distance of n- and 2n-step solutions on one Brownian path, by n."""
    score = _mixture(sde)
    start, end = _ends(sde, "strong")
    x = score.exact.sample(_PATHS, tensor(start)[0], torch.Generator().manual_seed(seed))
    grids = [grid_of(rule, n, start, end) for n in (*_STRONG_STEPS, 2 * _STRONG_STEPS[-1])]
    dynamics = ReverseSDE(sde, score)
    path = BrownianPath(seed, grid=asked(dynamics, solver, x[:1], grids))
    found = [integrate(dynamics, solver, x, each, noise=path).x for each in grids]
    errors = [float((a - b).square().mean().sqrt()) for a, b in pairwise(found)]
    return Convergence(_STRONG_STEPS, tuple(errors))
