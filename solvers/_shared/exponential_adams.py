"""Multistep exponential integrators of the probability-flow ODE in λ."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.solvers._shared.checks import choice
from sde_diffusion.solvers._shared.exponential import ORDERS, InLambda, latest, through
from sde_diffusion.solvers._shared.singlestep import singlestep


@dataclass(frozen=True)
class Adams(InLambda, Multistep[ProbabilityFlow], ABC):
    """A multistep exponential integrator: the polynomial through the last ``order`` predictions.

    The first step of order 3 is a two-stage one: a first-order step would leave order 2.
    """

    order: int = 3
    dynamics = ProbabilityFlow
    certified: ClassVar[tuple[dict[str, Any], ...]] = ORDERS

    def __post_init__(self) -> None:
        choice(type(self).__name__, "order", (1, 2, 3), self.order)

    @property
    def memory(self) -> int:
        """The largest number of predictions that a step combines."""
        return self.order

    def starters(self, at: Sequence[Level]) -> int:  # noqa: ARG002
        """Return the number of first steps that are singlestep ones."""
        return self.order // 3

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        return through(self.form, latest(at, i, self.order), at[i], at[i + 1])

    def start(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        m: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        known = linear(type(self).__name__, dynamics)
        return singlestep(self.form, self.order - 1, known, dynamics.score, x, m, t, s)
