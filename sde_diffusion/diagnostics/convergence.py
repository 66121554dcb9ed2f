"""Measured orders of convergence, compared with the declared order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, TypeAlias, final

from sde_diffusion._check import wrong_type
from sde_diffusion.solver import Solver

Kind: TypeAlias = Literal["ode", "weak", "strong"]

TOLERANCE: Final = 0.15  # how far an observed order may be from the declared one
FLOOR: Final = 1e-13  # errors below it are rounding and say nothing of the order


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
        kept = [e for e in self.errors if e > FLOOR]
        return [math.log2(a / b) for a, b in pairwise(kept)]

    @property
    def order(self) -> float:
        """The observed order, the slope of the finest doubling above rounding; NaN without one."""
        return (self.slopes or [math.nan])[-1]

    @property
    def overall(self) -> float:
        """The mean slope of all doublings, for errors that are averages over paths."""
        return sum(self.slopes) / len(self.slopes) if self.slopes else math.nan

    def constant(self, order: float) -> float:
        """Return C of error ≈ C n^{−order}, from the most steps n with an error above rounding."""
        kept = [(n, e) for n, e in zip(self.steps, self.errors, strict=True) if e > FLOOR]
        return kept[-1][1] * kept[-1][0] ** order if kept else math.nan


@final
@dataclass(frozen=True)
class OrderMeasurement:
    """One measured order beside the declared one.

    On linear problems the leading error of some methods is 0 (that of the midpoint rule on EDM
    is): there a higher order than the declared one passes too.

    Arguments:
        kind: "ode" for the error of the state, "weak" or "strong".
        problem: the data distribution, whose solution is known in closed form.
        declared: the order that the solver declares.
        convergence: the measured errors.
        least: whether a higher order than the declared one passes too.
    """

    kind: Kind
    problem: str
    declared: float
    convergence: Convergence
    least: bool = False

    @property
    def observed(self) -> float:
        """The observed order: over all doublings if it is a strong one, else of the finest."""
        return self.convergence.overall if self.kind == "strong" else self.convergence.order

    @property
    def constant(self) -> float:
        """C of error ≈ C n^{−declared}, with n steps between the ends of the grid."""
        return self.convergence.constant(self.declared)

    @property
    def passed(self) -> bool:
        """Whether the observed order is the declared one within `TOLERANCE`; NaN is not."""
        off = self.observed - self.declared
        return off >= -TOLERANCE and (self.least or off <= TOLERANCE)


@final
@dataclass(frozen=True)
class Certificate:
    """All orders of a solver on one SDE, and the counted evaluations of the score in a step."""

    evaluations: float
    measurements: tuple[OrderMeasurement, ...]

    @property
    def passed(self) -> bool:
        """Whether every order is the declared one."""
        return all(m.passed for m in self.measurements)


def declared(solver: Solver[Any]) -> float | None:
    """Return the order that the solver declares; None for an adaptive one without an order.

    Errors: TypeError for a solver that has neither.
    """
    order = solver.order
    if isinstance(order, (int, float)) and math.isfinite(order):
        return float(order)
    if solver.adaptive:
        return None
    raise wrong_type(
        type(solver).__name__,
        "order",
        "be a number",
        order,
        "declare it on the class, as in order = 2",
    )
