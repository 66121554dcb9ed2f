"""Exponential integrators of the reverse SDE in λ: the exact step and its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from sde_diffusion.coefficients import Level


class Kernel(NamedTuple):
    """The numbers of x_s = a x_t + b ∫ c e^{−c(1−r)} m(r) dr + d z, r from 0 at t to 1 at s.

    Arguments:
        a: the factor of the state.
        b: the factor of the average of the prediction m.
        c: the exponent of the average's weight.
        d: the standard deviation of what is drawn.
    """

    a: float
    b: float
    c: float
    d: float


def kernel(form: str, t: Level, s: Level, tau: float) -> Kernel:
    """Return the exact step, m being x0 or eps as a function of r = (λ − λ_t)/(λ_s − λ_t).

    Arguments:
        form: "x0" or "eps", the form of m.
        t: the coefficients at the step's start.
        s: the coefficients at its end.
        tau: the noise scale τ; 0 is the probability-flow ODE, 1 the reverse SDE.
    """
    h = s.lambda_ - t.lambda_
    if form == "x0":
        decay = math.exp(-(tau**2) * h)
        spread = math.sqrt(-math.expm1(-2 * tau**2 * h))
        return Kernel(s.sigma / t.sigma * decay, s.alpha, (1 + tau**2) * h, s.sigma * spread)
    spread = tau * math.sqrt(math.expm1(2 * h)) if tau else 0.0  # τ = 0 allows h < 0
    return Kernel(s.alpha / t.alpha, (1 + tau**2) * s.sigma, -h, s.sigma * spread)


def phis(c: float) -> tuple[float, float, float]:
    """Return φ_k = ∫₀¹ c e^{−c(1−r)} r^{k−1}/(k−1)! dr for k = 1, 2, 3."""
    one = -math.expm1(-c)
    two = 1 - one / c
    return one, two, 0.5 - two / c


def newton(places: Sequence[float], one: float, two: float, three: float) -> list[float]:
    """Return the weights of m_j in one·m + two·m′ + three·m″ at the first place.

    m is the polynomial through the m_j at the places.

    Arguments:
        places: where the m_j are, at most three, the newest first.
        one: the factor of m.
        two: the factor of m′.
        three: the factor of m″.
    """
    if len(places) == 1:
        return [one]
    gap = places[0] - places[1]
    p = two / gap
    q = 0.0
    if len(places) == 3:
        # m′ = m[0,1] + gap m[0,1,2] and m″ = 2 m[0,1,2].
        bend = (two * gap + 2 * three) / (places[0] - places[2])
        p = p + bend / gap
        q = bend / (places[1] - places[2])
    return [one + p, -p - q, q][: len(places)]
