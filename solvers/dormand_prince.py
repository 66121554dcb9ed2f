"""Dormand–Prince 5(4) with a step size for every sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion._tensors import rms
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Adaptive, Reached
from sde_diffusion.solvers._shared.adaptive import growth, kept, settle, under_way
from sde_diffusion.solvers._shared.checks import above_zero
from sde_diffusion.solvers._shared.dormand_prince import (
    DormandPrinceBatch,
    Stages,
    first_sizes,
    stages,
)
from sde_diffusion.solvers._shared.step_limits import Limits, check_tolerance


@final
@dataclass(frozen=True)
class DormandPrince(Adaptive[ODE]):
    """Dormand–Prince 5(4) pair; each sample has its own times and step sizes.

    A step is accepted where √(mean((error/(atol + rtol·max(|x_t|, |x_s|)))²)) ≤ 1, the mean being
    over the sample's own elements, so no sample's result depends on its batch-mates. Samples
    that have arrived leave the batch. Every time of the grid is met exactly; two are enough.

    Order: 5. NFE: 6 a step tried, and 2 at the start; one batched call counts once.

    Arguments:
        rtol: the tolerance relative to the state, above 0.
        atol: the absolute tolerance, above 0, in the units of x.
        max_steps: the most steps that may be tried between two times of the grid. On the way from
            noise to data a mixture takes 50 at tolerances of 1e-5, 260 at 1e-11, and a U-Net 30.

    Errors: ValueError for tolerances that are not positive or below the rounding of the states;
    FloatingPointError naming t and the samples where the steps become too small or too many.
    Source: Dormand & Prince 1980; step control of Hairer, Nørsett & Wanner 1993, section II.4,
    equations 4.11 and 4.13.

    >>> import torch
    >>> from sde_diffusion import ODE, integrate, uniform
    >>> class Growth(ODE):
    ...     def velocity(self, x, t):
    ...         return x
    >>> x = torch.ones(1, 1, dtype=torch.float64)
    >>> round(integrate(Growth(), DormandPrince(1e-9, 1e-9), x, uniform(1, 0.0, 1.0)).x.item(), 8)
    2.71828183
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 1_000
    dynamics = ODE
    order: ClassVar[float] = 5
    evaluations: ClassVar[int] = 6
    # No error is too large: one step a step of the grid.
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = ({"rtol": math.inf, "atol": math.inf},)

    def __post_init__(self) -> None:
        above_zero("DormandPrince", "1e-5", rtol=self.rtol, atol=self.atol)
        positive_integer("DormandPrince", "max_steps", self.max_steps)

    def reached(
        self,
        dynamics: ODE,
        x: Tensor,
        grid: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Iterator[Reached]:
        check_tolerance("DormandPrince", x, self.rtol, self.atol)
        k1 = dynamics.velocity(x, grid[0])
        scale = self.atol + self.rtol * x.abs()
        h = first_sizes(dynamics, x, grid[0], grid[-1], k1, scale)
        p = DormandPrinceBatch.begun(x, grid[0], h, k1)
        limits = Limits("DormandPrince", "velocity", self.max_steps, self.evaluations, 1e-14)
        for stop in grid[1:].tolist():
            for i, _ in under_way(limits, p, stop):
                rows = dynamics if len(i) == len(p.t) else dynamics.rows(i)
                dt, last = p.next_steps(i, stop)
                found = stages(rows, p.x[i], p.t[i], dt, p.k1[i])
                self._keep(p, i, dt, last, stop, found)
            yield Reached(p.x, p.lost)

    def _keep(
        self,
        p: DormandPrinceBatch,
        i: Tensor,
        dt: Tensor,
        last: Tensor,
        stop: float,
        found: Stages,
    ) -> None:
        """Keep the steps of the samples ``i`` whose error is small enough, and size the next."""
        x = p.x[i]
        t = p.t[i]
        norm = rms(found.error / (self.atol + self.rtol * torch.maximum(x.abs(), found.x.abs())))
        good = norm <= 1  # false for NaN
        h = growth(norm, 1 / 5).clamp(0.2, 5.0) * dt.abs()
        # A step cut short by the end of the interval is no reason to shorten the next one.
        p.h[i] = torch.where(good & last, torch.maximum(p.h[i], h), h)
        p.x = kept(p.x, i, good, found.x)
        p.k1 = kept(p.k1, i, good, found.k7)
        p.lost = kept(p.lost, i, good, p.lost[i] + found.error.detach().abs())
        settle(p, i, good, torch.where(last, stop, t + dt))
