"""DPM-Solver steps of two neighbouring orders by the same predictions, one time a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion._tensors import expand
from sde_diffusion.counting import CountedScore
from sde_diffusion.sde import LinearSDE


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
    """Return the states at s of DPM-Solver of one order less and of the order.

    Arguments:
        order: 2 or 3.
        score: the score of these samples.
        sde: the SDE, for its coefficients.
        x: the states at t, (n, *event).
        eps: eps(x, t), (n, *event).
        t: the times of the states, (n,).
        s: the times to which the steps go, (n,).
        h: λ_s − λ_t, (n,).

    Source: Lu et al. 2022 (DPM-Solver), algorithms 1 (order 2) and 2 (order 3).
    """

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
    """Return eps(x, t) = −σ_t score, each sample at its own time.

    Arguments:
        score: the score of these samples.
        sde: the SDE, for σ_t.
        x: the states at t, (n, *event).
        t: their times, (n,).
    """
    return expand(-sde.sigma(t), x) * score(x, t)
