"""Classical one-step Runge–Kutta methods in t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sde_diffusion._tensors import plus
from sde_diffusion.integration import OneStep
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ODE


def heun_step(ode: ODE, x: Tensor, t: Tensor, s: Tensor, k1: Tensor) -> Tensor:
    """Return the Heun step from t to s, given k1 = velocity(x, t)."""
    dt = s - t
    k2 = ode.velocity(plus(x, k1, dt), s)
    return plus(plus(x, k1, 0.5 * dt), k2, 0.5 * dt)


def rk4_step(ode: ODE, x: Tensor, t: Tensor, s: Tensor, k1: Tensor) -> Tensor:
    """Return the classical Runge–Kutta step from t to s, given k1 = velocity(x, t)."""
    dt, middle = s - t, 0.5 * (t + s)
    k2 = ode.velocity(plus(x, k1, 0.5 * dt), middle)
    k3 = ode.velocity(plus(x, k2, 0.5 * dt), middle)
    k4 = ode.velocity(plus(x, k3, dt), s)
    for k, weight in ((k1, 1 / 6), (k2, 1 / 3), (k3, 1 / 3), (k4, 1 / 6)):
        x = plus(x, k, weight * dt)
    return x


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


@final
@dataclass(frozen=True)
class Midpoint(OneStep[ODE]):
    """Midpoint step x_s = x_t + dt v(x_t + ½dt v(x_t, t), t + ½dt).

    Order: 2 (for the flow of Gaussian data 3, where α² and σ² are quadratic in t as for EDM and
    `RectifiedFlow`). NFE: 2 a step, neither at s, where the velocity may be infinite.
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


@final
@dataclass(frozen=True)
class RungeKutta4(OneStep[ODE]):
    """Classical Runge–Kutta step x_s = x_t + dt/6 (k1 + 2k2 + 2k3 + k4).

    Order: 4. NFE: 4 a step.
    Source: Kutta 1901.

    >>> RungeKutta4().order
    4
    """

    dynamics = ODE
    order: ClassVar[float] = 4
    evaluations: ClassVar[int] = 4

    def step(self, dynamics: ODE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002
        return rk4_step(dynamics, x, t, s, dynamics.velocity(x, t))
