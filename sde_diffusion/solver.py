"""Solvers as iterators of states: what a solver's author subclasses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor

from sde_diffusion._check import kind_of, wrong_type
from sde_diffusion._shown import shown
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.sde import SDE, LinearSDE

DynamicsT = TypeVar("DynamicsT", bound="SDE | ODE")
ContraT = TypeVar("ContraT", bound="SDE | ODE", contravariant=True)


class Solver(ABC, Generic[ContraT]):
    """What `integrate` needs: the kind of dynamics, and an iterator of states along the grid.

    `OneStep`, `Multistep` and `Adaptive` are the kinds to subclass; this one asks for `steps`.
    What a solver does not say of itself has the default given here.
    """

    # The instances whose orders are certified, as keyword arguments.
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)

    __repr__ = shown

    @property
    @abstractmethod
    def dynamics(self) -> type[Any]:
        """The class of the dynamics that it solves, as in ``dynamics = ODE``."""

    if TYPE_CHECKING:
        # A subclass may give these in any way: on the class, as a property or as a field.
        @property
        def order(self) -> float:
            """The order of the error in the step size, of the state (ODE) or weakly (SDE)."""

        @property
        def strong_order(self) -> float | None:
            """The order along one Brownian path, None where none is declared."""

        @property
        def evaluations(self) -> float:
            """The evaluations of a step, not a number where it is not declared."""

        @property
        def adaptive(self) -> bool:
            """Whether the solver chooses its own steps between the times of the grid."""

        @property
        def reflects(self) -> bool:
            """Whether every state is one that `SDE.inside` has returned."""

        @property
        def waits(self) -> bool:
            """Whether the host looks at states between steps, so that no graph records them."""
    else:
        order = math.nan  # none is declared
        strong_order = None
        evaluations = math.nan
        adaptive = False
        reflects = False
        waits = False

    def grid(
        self,
        sde: LinearSDE,  # noqa: ARG002
        steps: int,  # noqa: ARG002
        start: float | None = None,  # noqa: ARG002
        end: float | None = None,  # noqa: ARG002
    ) -> Tensor | None:
        """Return the grid that suits the solver, None for that of `recommended`.

        Arguments:
            sde: the SDE of the model.
            steps: how many steps the grid has.
            start: its first time; the SDE's horizon if not given.
            end: its last time; the SDE's cutoff if not given.
        """
        return None

    @abstractmethod
    def steps(self, dynamics: ContraT, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Yield the state at grid[1], grid[2], …, given ``x`` at grid[0].

        Arguments:
            dynamics: what is solved, of the class `dynamics`.
            x: the state at grid[0]; (B, *event).
            grid: the times, strictly monotone; (steps + 1,), float64 on the CPU.
            noise: every random draw of the solver.
        """


def check_solver(what: str, solver: object) -> None:
    """Refuse what is no solver, and a class in place of its object."""
    if not isinstance(solver, Solver):
        got = solver.__name__ if isinstance(solver, type) else kind_of(solver)
        remedy = "pass for example Heun(), with its brackets"
        raise wrong_type(what, "solver", "be a solver object", got, remedy)


class OneStep(Solver[DynamicsT], ABC, Generic[DynamicsT]):
    """A solver whose steps do not depend on earlier steps: one method, `step`."""

    @abstractmethod
    def step(self, dynamics: DynamicsT, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """Return the state at s, given ``x`` at t; dt = s − t is signed.

        Arguments:
            dynamics: what is solved, of the class `dynamics`.
            x: the state at t; (B, *event).
            t: the time of x, in [0, 1]; (), float64.
            s: the time to go to; (), float64.
            noise: every random draw of the step.
        """

    def steps(
        self, dynamics: DynamicsT, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        for t, s in pairwise(grid):
            x = self.step(dynamics, x, t, s, noise)
            yield x


class Reached(NamedTuple):
    """A state at a time of the grid, and the sum of absolute embedded errors on the way there.

    Shapes: both (B, *event); ``lost`` is None from a solver that tells none.

    >>> Reached(Tensor([[1.0]]), None).lost is None
    True
    """

    x: Tensor
    lost: Tensor | None

    def __repr__(self) -> str:
        return shown(self)


class Adaptive(Solver[DynamicsT], ABC, Generic[DynamicsT]):
    """A solver that chooses its own steps between the times of the grid, by a tolerance."""

    adaptive = True
    waits = True

    @abstractmethod
    def reached(
        self, dynamics: DynamicsT, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Reached]:
        """Yield the state at grid[1], grid[2], … and what the steps so far may have lost.

        Arguments:
            dynamics: what is solved, of the class `dynamics`.
            x: the state at grid[0]; (B, *event).
            grid: the times that are met, strictly monotone; (steps + 1,), float64 on the CPU.
            noise: every random draw of the solver.
        """

    def steps(
        self, dynamics: DynamicsT, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        for found in self.reached(dynamics, x, grid, noise):
            yield found.x
