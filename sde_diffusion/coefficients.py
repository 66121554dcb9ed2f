"""The coefficients of a linear SDE as floats, computed once for all times of a grid.

A step of a solver multiplies the state by a few coefficients. Computing them as 0-d tensors,
step by step, costs more than the step itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import get_ident
from typing import Final, NamedTuple, TypeVar, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_type
from sde_diffusion.sde import LinearSDE

T = TypeVar("T")


_NOISE: Final = -13.0  # λ at which alpha is 2e-6 sigma: x0 is lost in the digits of a float32


class Level(NamedTuple):
    """Where x_t = alpha x0 + sigma eps stands at one time; lambda_ = log(alpha/sigma)."""

    alpha: float
    sigma: float
    lambda_: float

    @property
    def pure_noise(self) -> bool:
        """Whether x_t is sigma eps as far as float32 can tell, as at a zero terminal SNR."""
        return self.lambda_ < _NOISE

    @property
    def radius(self) -> float:
        """√(alpha² + sigma²), which is 1 for VP."""
        return math.hypot(self.alpha, self.sigma)

    @property
    def angle(self) -> float:
        """φ = atan(sigma/alpha): x_t/radius = cos φ x0 + sin φ eps."""
        return math.atan2(self.sigma, self.alpha)


class Levels(NamedTuple):
    """alpha and sigma as tensors, () or (B,), for what differs among samples or has a gradient."""

    alpha: Tensor
    sigma: Tensor

    @property
    def radius(self) -> Tensor:
        """√(alpha² + sigma²), which hypot rounds otherwise in a batch than alone."""
        return (self.alpha.square() + self.sigma.square()).sqrt()


def kernel(s: Level, t: Level) -> tuple[float, float]:
    """Return (a, b²) of x_t | x_s ~ N(a x_s, b² I) for s ≤ t, `LinearSDE.kernel` in floats."""
    b2 = -(t.sigma**2) * math.expm1(2 * (t.lambda_ - s.lambda_))
    return t.alpha / s.alpha, b2


class Slope(NamedTuple):
    """The equation at one time: rate = d log alpha/dt and g2 = g²."""

    rate: float
    g2: float


class _Table(NamedTuple):
    """What one thread remembers along its grid."""

    grid: Tensor
    levels: dict[float, Level]
    slopes: dict[float, Slope]


@final
class Coefficients:
    """The levels and slopes of a linear SDE, by time; remembered while `integrate` runs.

    Every thread remembers its own, so that threads may share a flow.

    Errors: TypeError for an SDE with parameters while gradients are recorded: floats drop them.

    >>> from sde_diffusion import VPSDE
    >>> level = Coefficients(VPSDE()).level(torch.tensor(1.0, dtype=torch.float64))
    >>> round(level.sigma, 6), round(level.radius, 6)
    (0.999978, 1.0)
    """

    def __init__(self, sde: LinearSDE) -> None:
        self.sde = sde
        self._tables: dict[int, _Table] = {}

    def tabulate(self, grid: Tensor | None) -> None:
        """Compute at all times of ``grid`` at once when one is asked for; None forgets them.

        Nothing is remembered without a grid: an SDE with parameters may change between solves.
        Nor while their gradients are recorded, which `ProbabilityFlow.velocity` keeps.
        """
        self._tables.pop(get_ident(), None)
        if grid is not None and not self.sde.alpha(grid[:1]).requires_grad:
            self._tables[get_ident()] = _Table(grid, {}, {})

    @property
    def tabulated(self) -> bool:
        """Whether there is a grid."""
        return get_ident() in self._tables

    def level(self, t: Tensor) -> Level:
        """Return alpha, sigma and lambda at a 0-d time."""
        table = self._tables.get(get_ident())
        if table is None:
            return self._level(t.detach()[None])[0]
        return _found(t, table.grid, table.levels, self._level)

    def slope(self, t: Tensor) -> Slope:
        """Return rate and g² at a 0-d time."""
        table = self._tables.get(get_ident())
        if table is None:
            return self._slope(t.detach()[None])[0]
        return _found(t, table.grid, table.slopes, self._slope)

    def time(self, lambda_: float) -> Tensor:
        """Return the 0-d time at which lambda is ``lambda_``."""
        return self.sde.time(torch.tensor(lambda_, dtype=torch.float64))

    def _level(self, t: Tensor) -> list[Level]:
        columns = self.sde.alpha(t), self.sde.sigma(t), self.sde.lambda_(t)
        return [Level(*row) for row in zip(*map(_numbers, columns), strict=True)]

    def _slope(self, t: Tensor) -> list[Slope]:
        columns = self.sde.rate(t), self.sde.g(t).square()
        return [Slope(*row) for row in zip(*map(_numbers, columns), strict=True)]


def _found(
    t: Tensor, grid: Tensor, known: dict[float, T], compute: Callable[[Tensor], list[T]]
) -> T:
    """Return what is known at a 0-d time, computed for the whole grid at first.

    Arguments:
        t: the time.
        grid: the times of the solve.
        known: what is known by time, which is added to.
        compute: returns the values at times, one each.
    """
    key = float(t)
    if key in known:
        return known[key]
    if not known:
        known.update(zip(grid.tolist(), compute(grid), strict=True))
    if key not in known:  # a stage between two times of the grid
        known[key] = compute(t.detach()[None])[0]
    return known[key]


def _numbers(column: Tensor) -> list[float]:
    if column.requires_grad:
        raise wrong_type(
            "solver",
            "sde",
            "have constant coefficients",
            "parameters with gradients",
            "use one of velocities such as Heun, or torch.no_grad()",
        )
    numbers: list[float] = column.tolist()
    return numbers
