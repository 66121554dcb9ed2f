"""Euler's method in t."""

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
class Euler(OneStep[ODE]):
    """Euler step x_s = x_t + dt·velocity(x_t, t), dt = s − t.

    Order: 1. NFE: 1 a step.

    >>> import torch
    >>> from sde_diffusion import ODE, integrate, uniform
    >>> class Growth(ODE):
    ...     def velocity(self, x, t):
    ...         return x
    >>> x = torch.ones(1, 1, dtype=torch.float64)
    >>> integrate(Growth(), Euler(), x, uniform(2, 0.0, 1.0)).x.item()
    2.25
    """

    dynamics = ODE
    order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 1

    def step(self, dynamics: ODE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002
        return plus(x, dynamics.velocity(x, t), s - t)
