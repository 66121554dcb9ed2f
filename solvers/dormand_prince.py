"""Dormand–Prince 5(4) with a step size for every sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion._tensors import expand, rms
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ODE
from sde_diffusion.solvers._adaptive import carry, check_steps

_C: Final = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A: Final = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the fifth-order result
)
_E: Final = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass
class Progress:
    """Where every sample of a batch is: time, next step size, velocity there, steps so far.

    Shapes: x, k1 (B, *event); t, h (B,) float64; accepted, rejected (B,) int64.
    """

    x: Tensor
    t: Tensor
    h: Tensor
    k1: Tensor
    accepted: Tensor
    rejected: Tensor
    tries: int = 0  # of the whole batch, over all times of the grid


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
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not value > 0:
                raise wrong_value("DormandPrince", name, "be above 0", value, f"pass {name}=1e-5")
        positive_integer("DormandPrince", "max_steps", self.max_steps)

    def steps(self, dynamics: ODE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield the states at the times of the grid."""
        progress = self.start(dynamics, x, grid[0], grid[-1])
        for s in grid[1:]:
            self.advance(dynamics, progress, s)
            yield progress.x

    def start(self, ode: ODE, x: Tensor, t: Tensor, end: Tensor) -> Progress:
        """Return the state at t with the first step sizes of Hairer et al."""
        rows = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        k1 = ode.velocity(x, t)
        span, scale = float((end - t).abs()), self.atol + self.rtol * x.abs()
        d0, d1 = rms(x / scale), rms(k1 / scale)
        still = d1 < 1e-10  # at this tolerance the velocity is none: try the whole way at once
        guess = torch.where(d0 < 1e-5, rows + 1e-6, 0.01 * d0 / d1).clamp(max=span)
        signed = guess if end > t else -guess
        later = float(t) + signed
        d2 = rms((ode.velocity(x + expand(signed, x) * k1, later) - k1) / scale) / guess
        most = torch.maximum(d1, d2)
        refined = torch.where(most < 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / most) ** 0.2)
        h = torch.where(still, rows + span, torch.minimum(100 * guess, refined).clamp(max=span))
        counts = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return Progress(x.clone(), rows + float(t), h, k1, counts, counts.clone())

    def advance(self, ode: ODE, p: Progress, end: Tensor) -> None:
        """Carry every sample of ``p`` to the time ``end``."""
        stop = float(end)
        carry("DormandPrince", p, stop, self.max_steps, lambda i: self._try(ode, p, i, stop))

    def _try(self, ode: ODE, p: Progress, i: Tensor, stop: float) -> None:
        """Try one step of the samples ``i`` and keep it where its error is small enough."""
        if len(i) < len(p.t):
            ode = ode.rows(i)
        x, t, h = p.x[i], p.t[i], p.h[i]
        left = stop - t
        last = h >= left.abs()
        dt = torch.where(last, left, h.copysign(left))
        x_s, k7, error = _stages(ode, x, t, dt, p.k1[i])
        scale = self.atol + self.rtol * torch.maximum(x.abs(), x_s.abs())
        norm = rms(error / scale)
        good = norm <= 1  # false for NaN
        factor = (0.9 * norm.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        factor = torch.where(good, factor, torch.where(norm.isfinite(), factor.clamp(max=1), 0.2))
        # A step cut short by the end of the interval says nothing against the longer one.
        p.h[i] = torch.where(good & last, torch.maximum(h, factor * dt.abs()), factor * dt.abs())
        kept = expand(good, x).bool()
        # Copies, not writes in place: a graph back to the start must survive.
        p.x = p.x.index_copy(0, i, torch.where(kept, x_s, x))
        p.k1 = p.k1.index_copy(0, i, torch.where(kept, k7, p.k1[i]))
        p.t[i] = torch.where(good, torch.where(last, stop, t + dt), t)
        p.accepted[i] += good
        p.rejected[i] += ~good
        check_steps("DormandPrince", "velocity", p.h[i], t, 1e-14)


def _stages(
    ode: ODE, x: Tensor, t: Tensor, dt: Tensor, k1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fifth-order state, the velocity there (the next k1) and the embedded error."""
    ks, h, y = [k1], expand(dt, x), x
    for c, row in zip(_C[1:], _A[1:], strict=True):
        y = x + h * sum((a * k for a, k in zip(row, ks, strict=True) if a), torch.zeros_like(x))
        ks.append(ode.velocity(y, t + c * dt))
    error = h * sum((e * k for e, k in zip(_E, ks, strict=True) if e), torch.zeros_like(x))
    return y, ks[-1], error
