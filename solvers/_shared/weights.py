"""Weights of multistep methods: integrals of a kernel times Lagrange polynomials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# On [0, 1]. Exact to rounding for polynomials times kernels such as e^u over steps of ten or so.
_POINTS, _MASSES = (0.5 * part for part in np.polynomial.legendre.leggauss(32))
_POINTS = _POINTS + 0.5
_POWERS: Final = _POINTS[:, None] ** np.arange(8)
_ONE: Final[Any] = np.ones_like


def integrals(
    nodes: Sequence[float],
    start: float,
    end: float,
    kernel: Callable[[Array], Array] = _ONE,
) -> list[float]:
    """Return w_j = ∫ kernel(u) ℓ_j(u) du from start to end, ℓ_j the Lagrange polynomials.

    Σ_j w_j m(u_j) is the integral of kernel·m for every polynomial m of degree below the number
    of nodes u_j, eight at most. The moments come by Gauss–Legendre quadrature, and the weights
    from the Vandermonde system Σ_j w_j r_j^k = moment k, r = (u − start)/(end − start).

    Arguments:
        nodes: the u_j, all different.
        start: the lower end of the integral.
        end: its upper end; it may lie below ``start``.
        kernel: the weight function of u, vectorised; 1 by default.

    Source: Björck & Pereyra 1970, the dual system.

    >>> [round(w, 12) for w in integrals([1.0, 0.0], 1.0, 2.0)]  # Adams–Bashforth of order 2
    [1.5, -0.5]
    """
    h = end - start
    n = len(nodes)
    masses = h * _MASSES * kernel(start + h * _POINTS)
    w: list[float] = (masses @ _POWERS[:, :n]).tolist()
    r = [(node - start) / h for node in nodes]
    for j in range(n - 1):
        for i in range(n - 1, j, -1):
            w[i] -= r[j] * w[i - 1]
    for j in range(n - 2, -1, -1):
        for i in range(j + 1, n):
            w[i] /= r[i] - r[i - j - 1]
        for i in range(j, n - 1):
            w[i] -= w[i + 1]
    return w
