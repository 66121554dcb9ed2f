"""Weights of multistep methods: integrals of a kernel times Lagrange polynomials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Exact to rounding for polynomials times kernels such as e^u over steps of up to ten or so.
_POINTS, _WEIGHTS = (np.asarray(part) for part in np.polynomial.legendre.leggauss(32))
_ONE: Final[Any] = np.ones_like


def integrals(
    nodes: Sequence[float],
    start: float,
    end: float,
    kernel: Callable[[Array], Array] = _ONE,
) -> list[float]:
    """Return w_j = ∫ kernel(u) ℓ_j(u) du from start to end, by Gauss–Legendre quadrature.

    ℓ_j are the Lagrange polynomials on the nodes, so Σ_j w_j m(u_j) is the integral of
    kernel·m for every polynomial m of degree below their number.

    >>> integrals([1.0, 0.0], 1.0, 2.0)  # Adams–Bashforth of order 2
    [1.5, -0.5]
    """
    half = 0.5 * (end - start)
    u = start + half * (1 + _POINTS)
    values = half * _WEIGHTS * kernel(u)
    weights = []
    for j, node in enumerate(nodes):
        basis = np.ones_like(u)
        for k, other in enumerate(nodes):
            if k != j:
                basis *= (u - other) / (node - other)
        weights.append(float(values @ basis))
    return weights
