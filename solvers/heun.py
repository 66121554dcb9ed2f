"""Heun's method in t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sde_diffusion._tensors import plus
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep


def heun_step(ode: ODE, x: Tensor, t: Tensor, s: Tensor, k1: Tensor) -> Tensor:
    """Return the Heun step from t to s, by one evaluation more.

    Arguments:
        ode: the equation.
        x: the state at t, (B, *event).
        t: the time of the state, () or (B,).
        s: the time to which the step goes, in t's shape.
        k1: velocity(x, t), (B, *event).
    """
    dt = s - t
    k2 = ode.velocity(plus(x, k1, dt), s)
    return plus(plus(x, k1, 0.5 * dt), k2, 0.5 * dt)


@final
@dataclass(frozen=True)
class Heun(OneStep[ODE]):
    """Heun step x_s = x_t + ½dt (k1 + k2), k1 = v(x_t, t), k2 = v(x_t + dt k1, s).

    Order: 2. NFE: 2 a step.
    Source: Heun 1900; for diffusion models Karras et al. 2022, algorithm 1.

    >>> Heun().order
    2
    """

    dynamics = ODE
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2

    def step(self, dynamics: ODE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002
        return heun_step(dynamics, x, t, s, dynamics.velocity(x, t))
