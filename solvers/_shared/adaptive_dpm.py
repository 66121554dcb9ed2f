"""A batch on its way by adaptive DPM-Solver, and one step tried by both orders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion._tensors import expand, rms
from sde_diffusion.counting import CountedScore
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers._shared.adaptive import check_steps, growth, kept, settle


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


def start(x: Tensor, t: Tensor, h: float) -> Progress:
    """Return all samples at t before their first step, of size h."""
    rows = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    counts = rows.long()
    return Progress(
        x, x, torch.zeros_like(x), rows + float(t), rows + h, rows.bool(), counts, counts.clone()
    )


def attempt(
    order: int,
    rtol: float,
    atol: float,
    flow: ProbabilityFlow,
    p: Progress,
    i: Tensor,
    stop: float,
) -> None:
    """Try one step of the samples ``i`` and keep it where its error is small enough."""
    sde = linear("AdaptiveDPMSolver", flow).sde
    fresh = i[~p.known[i]]
    if len(fresh):
        found = predicted(flow.score.rows(fresh), sde, p.x[fresh], p.t[fresh])
        p.eps = p.eps.index_copy(0, fresh, found)
        p.known[fresh] = True
    x = p.x[i]
    t = p.t[i]
    lambda_ = sde.lambda_(t)
    left = sde.lambda_(torch.full_like(t, stop)) - lambda_
    last = p.h[i] >= left.abs()
    h = torch.where(last, left, p.h[i].copysign(left))
    s = torch.where(last, stop, sde.time(lambda_ + h))
    low, high = pair(order, flow.score.rows(i), sde, x, p.eps[i], t, s, h)
    delta = (rtol * torch.maximum(low.abs(), p.low[i].abs())).clamp(min=atol)
    error = rms((high - low) / delta)
    good = error <= 1  # false for NaN
    p.h[i] = growth(error, 1 / order) * h.abs()
    p.x = kept(p.x, i, good, high)
    p.low = kept(p.low, i, good, low)
    p.known[i] = ~good
    settle(p, i, good, s)
    check_steps("AdaptiveDPMSolver", "score", p.h[i], t, 1e-12)


def pair(
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
        return moved(s, 1, eps), moved(s, 1, predicted(score, sde, moved(u, 1 / 2, eps), u))
    u = sde.time(lambda_ + h / 3)
    v = sde.time(lambda_ + 2 * h / 3)
    first = predicted(score, sde, moved(u, 1 / 3, eps), u) - eps
    y = moved(v, 2 / 3, eps) + bent(v, 2 / 3, 1 / 3, first)
    second = predicted(score, sde, y, v) - eps
    return moved(s, 1, eps + 1.5 * first), moved(s, 1, eps) + bent(s, 1, 2 / 3, second)


def predicted(score: CountedScore, sde: LinearSDE, x: Tensor, t: Tensor) -> Tensor:
    """Return eps(x, t) = −σ_t score, each sample at its own time."""
    return expand(-sde.sigma(t), x) * score(x, t)
