"""Dormand–Prince 5(4) with a step size for every sample."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion._tensors import rms
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.solvers._shared.adaptive import carry, check_steps, growth, kept, settle
from sde_diffusion.solvers._shared.checks import above_zero
from sde_diffusion.solvers._shared.dormand_prince import Progress, first_sizes, stages


@final
@dataclass(frozen=True)
class DormandPrince:
    """Dormand–Prince 5(4) pair; each sample has its own times and step sizes.

    A step is accepted where √(mean((error/(atol + rtol·max(|x_t|, |x_s|)))²)) ≤ 1, the mean being
    over the sample's own elements, so no sample's result depends on its batch-mates. Samples
    that have arrived leave the batch. Every time of the grid is met exactly; two are enough.

    Order: 5. NFE: 6 a step tried, and 2 at the start; one batched call counts once.
    Errors: ValueError for tolerances that are not positive; FloatingPointError naming t where
    the steps become too small or too many.
    Source: Dormand & Prince 1980; step control of Hairer, Nørsett & Wanner 1993, section II.4.

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
    max_steps: int = 10_000
    dynamics = ODE
    adaptive: ClassVar[bool] = True
    order: ClassVar[float] = 5
    evaluations: ClassVar[int] = 6
    # No error is too large: one step a step of the grid.
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = ({"rtol": math.inf, "atol": math.inf},)

    def __post_init__(self) -> None:
        above_zero("DormandPrince", "1e-5", rtol=self.rtol, atol=self.atol)
        positive_integer("DormandPrince", "max_steps", self.max_steps)

    def steps(
        self,
        dynamics: ODE,
        x: Tensor,
        grid: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Generator[Tensor, None, Tensor]:
        """Yield the states at the times of the grid and return the sum of |embedded errors|."""
        progress = self.start(dynamics, x, grid[0], grid[-1])
        for s in grid[1:]:
            self.advance(dynamics, progress, s)
            yield progress.x
        return progress.lost

    def start(self, ode: ODE, x: Tensor, t: Tensor, end: Tensor) -> Progress:
        """Return the state at t with the first step sizes of Hairer et al."""
        k1 = ode.velocity(x, t)
        scale = self.atol + self.rtol * x.abs()
        h = first_sizes(ode, x, t, end, k1, scale)
        counts = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        lost = torch.zeros_like(x)
        return Progress(x.clone(), torch.full_like(h, float(t)), h, k1, lost, counts, counts + 0)

    def advance(self, ode: ODE, p: Progress, end: Tensor) -> None:
        """Carry every sample of ``p`` to the time ``end``."""
        stop = float(end)
        carry("DormandPrince", p, stop, self.max_steps, lambda i: self._try(ode, p, i, stop))

    def _try(self, ode: ODE, p: Progress, i: Tensor, stop: float) -> None:
        """Try one step of the samples ``i`` and keep it where its error is small enough."""
        if len(i) < len(p.t):
            ode = ode.rows(i)
        x = p.x[i]
        t = p.t[i]
        left = stop - p.t[i]
        last = p.h[i] >= left.abs()
        dt = torch.where(last, left, p.h[i].copysign(left))
        x_s, k7, error = stages(ode, x, t, dt, p.k1[i])
        norm = rms(error / (self.atol + self.rtol * torch.maximum(x.abs(), x_s.abs())))
        good = norm <= 1  # false for NaN
        h = growth(norm, 1 / 5).clamp(0.2, 5.0) * dt.abs()
        # A step cut short by the end of the interval says nothing against the longer one.
        p.h[i] = torch.where(good & last, torch.maximum(p.h[i], h), h)
        p.x = kept(p.x, i, good, x_s)
        p.k1 = kept(p.k1, i, good, k7)
        p.lost = kept(p.lost, i, good, p.lost[i] + error.detach().abs())
        settle(p, i, good, torch.where(last, stop, t + dt))
        check_steps("DormandPrince", "velocity", p.h[i], t, 1e-14)
