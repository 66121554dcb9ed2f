"""Noise functions φ of ER-SDE solvers, and their integrals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

NoiseFunction: TypeAlias = Callable[[float], float]

_POINTS, _WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(16))


def er_sde_5(u: float) -> float:
    """Return the paper's favourite φ(u) = u (e^{u^0.3} + 10): noise while there is much of it."""
    return u * (math.exp(u**0.3) + 10)


def moments(phi: NoiseFunction, t: float, s: float) -> tuple[float, float]:
    """Return ∫ du/φ(u) and ∫ (u − t)/φ(u) du from s to t."""
    zeroth = first = 0.0
    half = 0.5 * math.log(t / s)  # in log u, as φ may fall over many powers of ten
    for point, weight in zip(_POINTS, _WEIGHTS, strict=True):
        u = s * math.exp(half * (1 + point))
        part = weight * half * u / phi(u)
        zeroth += part
        first += (u - t) * part
    return zeroth, first
