"""Exponential integrators of the probability-flow ODE in λ = log(alpha/sigma).

In noise form x_s = (α_s/α_t) x_t − σ_s ∫ e^{λ_s−λ} eps dλ, in data form
x_s = (σ_s/σ_t) x_t + α_s ∫ e^{λ−λ_s} x0 dλ. A method replaces the prediction by a polynomial in λ
through values that it knows, and integrates that exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from torch import Tensor

from sde_diffusion.coefficients import Level
from sde_diffusion.grids import log_snr
from sde_diffusion.multistep import Step
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers._shared.weights import integrals

ORDERS: Final = tuple({"order": p} for p in (1, 2, 3))


def through(form: str, nodes: Sequence[Level], t: Level, s: Level) -> Step:
    """Return the exact step with the prediction taken for a polynomial in λ.

    Arguments:
        form: "eps" or "x0", the form of the prediction.
        nodes: the coefficients at the times of the predictions that the polynomial goes through.
        t: the coefficients at the step's start.
        s: the coefficients at its end.
    """
    if form == "eps":
        sign = -1
        scale = -s.sigma
        a = s.alpha / t.alpha
    else:
        sign = 1
        scale = s.alpha
        a = s.sigma / t.sigma
    places = [node.lambda_ for node in nodes]
    return Step(
        a,
        integrals(places, t.lambda_, s.lambda_, lambda u: scale * np.exp(sign * (u - s.lambda_))),
    )


class InLambda:
    """A solver whose polynomials are in λ, and the grid that suits it."""

    def grid(
        self, sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
    ) -> Tensor:
        """Return `log_snr`, on which the steps in λ are equal."""
        return log_snr(sde, steps, start, end)


def latest(at: Sequence[Level], i: int, count: int) -> Sequence[Level]:
    """Return at[i], at[i−1], …, as many as ``count`` or as there are."""
    return at[max(i + 1 - count, 0) : i + 1][::-1]


def half_difference(t: Level, s: Level, other: Level, width: float) -> tuple[float, float]:
    """Return the weights of x0 at t and at another level, with the slope's integral made simple.

    x_s = (σ_s/σ_t) x_t + α_s ((1 − e^{−h}) m_t + ½ B (m_other − m_t)/r), h = λ_s − λ_t and
    r = (λ_other − λ_t)/h.

    Arguments:
        t: the coefficients at the step's start.
        s: the coefficients at its end.
        other: the coefficients at the time of the other prediction.
        width: B, which stands for h or a number close to it.
    """
    h = s.lambda_ - t.lambda_
    slope = 0.5 * s.alpha * width * h / (other.lambda_ - t.lambda_)
    return -s.alpha * math.expm1(-h) - slope, slope
