"""A batch on its way by adaptive DPM-Solver, and one step tried by both orders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion._tensors import rms
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.solvers._shared.adaptive import Round, growth, kept, marked, settle
from sde_diffusion.solvers._shared.dpm_pair import pair, predicted


@dataclass
class DPMBatch:
    """A batch whose samples have times and step sizes in λ of their own.

    Arguments:
        x: the states, (B, *event).
        low: the lower-order results of their last steps, (B, *event).
        eps: the predictions at (x, t), where ``known``; (B, *event).
        t: the times of the states, (B,), float64.
        h: the next step sizes in λ, (B,), float64.
        known: whether eps is that of (x, t), (B,), bool.
        accepted: steps accepted so far, (B,), int64.
        rejected: steps rejected so far, (B,), int64.
        tries: steps tried by the whole batch, over all times of the grid.
    """

    x: Tensor
    low: Tensor
    eps: Tensor
    t: Tensor
    h: Tensor
    known: Tensor
    accepted: Tensor
    rejected: Tensor
    tries: int = 0

    @property
    def told(self) -> Tensor:
        """Whether eps is known: the next try need not ask for it."""
        return self.known


def start(x: Tensor, t: Tensor, h: float) -> DPMBatch:
    """Return all samples at t before their first step, of size h."""
    rows = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    counts = rows.long()
    return DPMBatch(
        x, x, torch.zeros_like(x), rows + float(t), rows + h, rows.bool(), counts, counts.clone()
    )


def attempt(
    order: int,
    rtol: float,
    atol: float,
    flow: ProbabilityFlow,
    p: DPMBatch,
    now: Round,
    stop: float,
) -> None:
    """Try one step of some samples and keep it where its error is small enough.

    Arguments:
        order: of the step that is kept, 2 or 3.
        rtol: the tolerance relative to the state, above 0.
        atol: the absolute tolerance, above 0, in the units of x.
        flow: the probability-flow ODE.
        p: the batch, which is changed.
        now: the samples that try a step, and whether their eps is known.
        stop: the time that no step goes beyond.
    """
    sde = linear("AdaptiveDPMSolver", flow).sde
    i = now.i
    fresh = marked(i, now.told == 0)
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
