"""A batch on its way by adaptive DPM-Solver, and one step tried by both orders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion._tensors import rms
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.solvers._adaptive import check_steps, growth, kept, settle
from sde_diffusion.solvers._dpm_pair import pair, predicted


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
    return Progress(x, x, torch.zeros_like(x), rows + float(t), rows + h,
                    rows.bool(), counts, counts.clone())  # fmt: skip


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
    x, t = p.x[i], p.t[i]
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
    p.x, p.low = kept(p.x, i, good, high), kept(p.low, i, good, low)
    p.known[i] = ~good
    settle(p, i, good, s)
    check_steps("AdaptiveDPMSolver", "score", p.h[i], t, 1e-12)
