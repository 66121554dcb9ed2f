"""Adams–Bashforth on any grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion._tensors import plus
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver
from sde_diffusion.solvers.heun import heun_step
from sde_diffusion.solvers.runge_kutta import rk4_step


def adams_weights(nodes: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return ∫_t^s ℓ_j(τ) dτ for the Lagrange polynomials ℓ_j on the nodes.

    With u = (τ − t)/(s − t), the weights w solve Σ_j w_j u_j^m = 1/(m+1) for m below their number.

    Shapes: nodes (p,), float64; result (p,).
    """
    u = (nodes - t) / (s - t)
    powers = torch.arange(len(nodes), dtype=torch.float64)
    moments: Tensor = torch.linalg.solve(u[None] ** powers[:, None], 1 / (powers + 1))
    return (s - t) * moments


@final
@dataclass(frozen=True)
class AdamsBashforth(Solver[ODE]):
    """Adams–Bashforth x_s = x_t + Σ_j w_j v_j, integrating the polynomial through the last v_j.

    The first order − 1 steps are Runge–Kutta steps accurate enough to keep the order: Euler for
    order 2, Heun for 3, classical Runge–Kutta for 4.

    Order: 1 to 4, as asked for. NFE: 1 a step, more in the first steps for orders 3 and 4.
    Errors: ValueError for another order.
    Source: Bashforth & Adams 1883; Hairer, Nørsett & Wanner 1993, section III.1.

    >>> AdamsBashforth(order=3).order
    3
    """

    order: int = 2
    dynamics = ODE
    evaluations: ClassVar[int] = 1
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"order": order} for order in (1, 2, 3, 4)
    )

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise wrong_value(
                "AdamsBashforth", "order", "be 1, 2, 3 or 4", self.order, "pass order=2"
            )

    def steps(self, dynamics: ODE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield the states of all steps along the grid."""
        history: list[Tensor] = []
        for i, (t, s) in enumerate(pairwise(grid)):
            history = [dynamics.velocity(x, t), *history[: self.order - 1]]
            if len(history) < self.order and self.order > 2:
                start = heun_step if self.order == 3 else rk4_step
                x = start(dynamics, x, t, s, history[0])
            else:
                nodes = grid[i + 1 - len(history) : i + 1].flip(0)
                for w, v in zip(adams_weights(nodes, t, s), history, strict=True):
                    x = plus(x, v, w)
            yield x
