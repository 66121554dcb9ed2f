"""DPM-Solver-12 and -23 with a step size for every sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion._tensors import expand, rms
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import CountedScore, ProbabilityFlow, linear
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers._adaptive import carry, check_steps

_THETA = 0.9  # the safety factor of the step size


@dataclass
class Progress:
    """Where every sample of a batch is: time, next step size in λ, eps there, steps so far.

    ``low`` is the lower-order result of its last step, ``known`` whether eps is that of (x, t).

    Shapes: x, low, eps (B, *event); t, h (B,) float64; known, accepted, rejected (B,).
    """

    x: Tensor
    low: Tensor
    eps: Tensor
    t: Tensor
    h: Tensor
    known: Tensor
    accepted: Tensor
    rejected: Tensor
    tries: int = 0  # of the whole batch, over all times of the grid


@final
@dataclass(frozen=True)
class AdaptiveDPMSolver:
    """DPM-Solver-12 (order 2) and -23 (order 3); each sample has its own times and step sizes.

    `DPMSolver` of the order makes the step and shares its predictions with a step of one order
    less. The difference of both is accepted where E = √(mean((difference/δ)²)) ≤ 1,
    δ = max(atol, rtol max(|x_low|, |x_low before|)), the mean being over the sample's own
    elements; the next step size in λ is .9 h E^{−1/order}. So no sample's result depends on its
    batch-mates, and samples that have arrived leave the batch. Every time of the grid is met
    exactly; two are enough. A step to σ_s = 0 is x_s = α_s E[x0 | x_t], without any error control:
    let another time come before it.

    Order: 2 or 3, of the step that is kept. NFE: the order, a step tried, less 1 after a rejected
    one; one batched call counts once.
    Errors: ValueError for another order, or tolerances or h_init that are not positive; TypeError
    for an SDE that is not linear; FloatingPointError naming t where the steps become too small or
    too many.
    Source: Lu et al. 2022 (DPM-Solver), appendix C, whose tolerances are the defaults.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, AdaptiveDPMSolver(), (1, 2), steps=1, dtype=torch.float64).nfe
    31
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    max_steps: int = 10_000
    dynamics = ProbabilityFlow
    adaptive: ClassVar[bool] = True
    certified: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"order": p, "atol": math.inf, "h_init": math.inf} for p in (2, 3)
    )

    def __post_init__(self) -> None:
        what = "AdaptiveDPMSolver"
        if self.order not in (2, 3):
            raise wrong_value(what, "order", "be 2 or 3", self.order, "pass order=3")
        for name in ("rtol", "atol", "h_init"):
            value = getattr(self, name)
            if not value > 0:
                raise wrong_value(what, name, "be above 0", value, f"pass {name}=0.01")
        positive_integer(what, "max_steps", self.max_steps)

    @property
    def evaluations(self) -> int:
        """Network calls a step that is accepted at once."""
        return self.order

    def steps(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        grid: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Iterator[Tensor]:
        """Yield the states at the times of the grid."""
        known = linear("AdaptiveDPMSolver", dynamics)
        progress = self.start(x, grid[0])
        for t, s in pairwise(grid):
            if known.level(s).sigma == 0:
                x0 = dynamics.score.predict("x0", progress.x, t, known.level(t))
                progress.x = x0 * known.level(s).alpha
            else:
                self.advance(dynamics, progress, s)
            yield progress.x

    def start(self, x: Tensor, t: Tensor) -> Progress:
        """Return the state at t before its first step."""
        rows = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        counts = rows.long()
        return Progress(x, x, torch.zeros_like(x), rows + float(t), rows + self.h_init,
                        rows.bool(), counts, counts.clone())  # fmt: skip

    def advance(self, flow: ProbabilityFlow, p: Progress, end: Tensor) -> None:
        """Carry every sample of ``p`` to the time ``end``, at which sigma is above 0."""
        stop, what = float(end), "AdaptiveDPMSolver"
        carry(what, p, stop, self.max_steps, lambda i: self._try(flow, p, i, stop))

    def _try(self, flow: ProbabilityFlow, p: Progress, i: Tensor, stop: float) -> None:
        """Try one step of the samples ``i`` and keep it where its error is small enough."""
        sde = linear("AdaptiveDPMSolver", flow).sde
        fresh = i[~p.known[i]]
        if len(fresh):
            found = _eps(flow.score.rows(fresh), sde, p.x[fresh], p.t[fresh])
            p.eps = p.eps.index_copy(0, fresh, found)
            p.known[fresh] = True
        x, t = p.x[i], p.t[i]
        lambda_ = sde.lambda_(t)
        left = sde.lambda_(torch.full_like(t, stop)) - lambda_
        last = p.h[i] >= left.abs()
        h = torch.where(last, left, p.h[i].copysign(left))
        s = torch.where(last, stop, sde.time(lambda_ + h))
        low, high = _pair(self.order, flow.score.rows(i), sde, x, p.eps[i], t, s, h)
        delta = (self.rtol * torch.maximum(low.abs(), p.low[i].abs())).clamp(min=self.atol)
        error = rms((high - low) / delta)
        good = error <= 1  # false for NaN
        factor = _THETA * error.clamp(min=1e-10) ** (-1 / self.order)
        p.h[i] = torch.where(error.isfinite(), factor, 0.2) * h.abs()
        kept = expand(good, x).bool()
        p.x = p.x.index_copy(0, i, torch.where(kept, high, x))
        p.low = p.low.index_copy(0, i, torch.where(kept, low, p.low[i]))
        p.t[i] = torch.where(good, s, t)
        p.known[i] = ~good
        p.accepted[i] += good
        p.rejected[i] += ~good
        check_steps("AdaptiveDPMSolver", "score", p.h[i], t, 1e-12)


def _pair(
    order: int,
    score: CountedScore,
    sde: LinearSDE,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    s: Tensor,
    h: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the states at s of DPM-Solver of one order less and of the order, given eps(x, t)."""

    def moved(u: Tensor, r: float, m: Tensor) -> Tensor:
        """Return (α_u/α_t) x − σ_u (e^{rh} − 1) m."""
        c = -sde.sigma(u) * torch.expm1(r * h)
        return expand(sde.alpha(u) / sde.alpha(t), x) * x + expand(c, x) * m

    def bent(u: Tensor, r: float, q: float, difference: Tensor) -> Tensor:
        """Return −(σ_u r/q)((e^{rh} − 1)/(rh) − 1)(eps at qh − eps), what a slope adds."""
        c = -sde.sigma(u) * r / q * (torch.expm1(r * h) / (r * h) - 1)
        return expand(c, x) * difference

    lambda_ = sde.lambda_(t)
    if order == 2:
        u = sde.time(lambda_ + h / 2)
        return moved(s, 1, eps), moved(s, 1, _eps(score, sde, moved(u, 1 / 2, eps), u))
    u, v = sde.time(lambda_ + h / 3), sde.time(lambda_ + 2 * h / 3)
    first = _eps(score, sde, moved(u, 1 / 3, eps), u) - eps
    y = moved(v, 2 / 3, eps) + bent(v, 2 / 3, 1 / 3, first)
    second = _eps(score, sde, y, v) - eps
    return moved(s, 1, eps + 1.5 * first), moved(s, 1, eps) + bent(s, 1, 2 / 3, second)


def _eps(score: CountedScore, sde: LinearSDE, x: Tensor, t: Tensor) -> Tensor:
    return expand(-sde.sigma(t), x) * score(x, t)
