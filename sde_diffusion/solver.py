"""Solvers as iterators of states: what a solver's author subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.sde import SDE

DynamicsT = TypeVar("DynamicsT", bound="SDE | ODE")
ContraT = TypeVar("ContraT", bound="SDE | ODE", contravariant=True)


class Solver(Protocol[ContraT]):
    """What `integrate` needs: the kind of dynamics, and an iterator of states along the grid."""

    @property
    def dynamics(self) -> type[Any]:
        """The class of the dynamics this solver solves."""

    def steps(self, dynamics: ContraT, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Yield the state at grid[1], grid[2], …, given ``x`` at grid[0].

        A generator may return the sum of its steps' absolute embedded errors, in x's shape.
        """


class OneStep(ABC, Generic[DynamicsT]):
    """A solver whose steps do not depend on earlier steps: one method, `step`."""

    dynamics: ClassVar[type[Any]]
    order: ClassVar[float]  # of the error in the step size: of the state (ODE) or of the law (SDE)

    @abstractmethod
    def step(self, dynamics: DynamicsT, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """Return the state at s, given ``x`` at t; dt = s − t is signed."""

    def steps(
        self, dynamics: DynamicsT, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid."""
        for t, s in pairwise(grid):
            x = self.step(dynamics, x, t, s, noise)
            yield x
