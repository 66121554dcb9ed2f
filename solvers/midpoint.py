"""The midpoint method in t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sde_diffusion._tensors import plus
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep


@final
@dataclass(frozen=True)
class Midpoint(OneStep[ODE]):
    """Midpoint step x_s = x_t + dt v(x_t + ½dt v(x_t, t), t + ½dt).

    Order: 2; 3 for the probability-flow ODE of Gaussian data where α² and σ² are quadratic in t,
    as for EDM and `RectifiedFlow`. NFE: 2 a step, none at s, where the velocity may be infinite.
    Source: Runge 1895.

    >>> Midpoint().order
    2
    """

    dynamics = ODE
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2

    def step(self, dynamics: ODE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002
        dt = s - t
        middle = plus(x, dynamics.velocity(x, t), 0.5 * dt)
        return plus(x, dynamics.velocity(middle, t + 0.5 * dt), dt)
