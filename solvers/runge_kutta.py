"""The classical Runge–Kutta method in t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sde_diffusion._tensors import plus
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep


def rk4_step(ode: ODE, x: Tensor, t: Tensor, s: Tensor, k1: Tensor) -> Tensor:
    """Return the classical Runge–Kutta step from t to s, by three evaluations more.

    Arguments:
        ode: the equation.
        x: the state at t, (B, *event).
        t: the time of the state, () or (B,).
        s: the time to which the step goes, in t's shape.
        k1: velocity(x, t), (B, *event).
    """
    dt = s - t
    middle = 0.5 * (t + s)
    k2 = ode.velocity(plus(x, k1, 0.5 * dt), middle)
    k3 = ode.velocity(plus(x, k2, 0.5 * dt), middle)
    k4 = ode.velocity(plus(x, k3, dt), s)
    for k, weight in ((k1, 1 / 6), (k2, 1 / 3), (k3, 1 / 3), (k4, 1 / 6)):
        x = plus(x, k, weight * dt)
    return x


@final
@dataclass(frozen=True)
class RungeKutta4(OneStep[ODE]):
    """Classical Runge–Kutta step x_s = x_t + dt/6 (k1 + 2k2 + 2k3 + k4).

    Order: 4. NFE: 4 a step.
    Source: Kutta 1901; Hairer, Nørsett & Wanner 1993, section II.1.

    >>> RungeKutta4().order
    4
    """

    dynamics = ODE
    order: ClassVar[float] = 4
    evaluations: ClassVar[int] = 4

    def step(self, dynamics: ODE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002
        return rk4_step(dynamics, x, t, s, dynamics.velocity(x, t))
