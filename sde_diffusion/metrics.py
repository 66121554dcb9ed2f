"""Distances between samples, and intervals over replicates; all in float64 and repeatable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_value

_MEDIAN_ROWS: Final = 1000  # rows whose pairs give the median distance
_BLOCK: Final = 1024  # rows of a kernel matrix held at once


def rms_distance(x: Tensor, y: Tensor) -> float:
    """Return √(mean (x − y)²), the mean over samples *and* coordinates.

    Between a solver's end points and the flow's, from the same starts, it is the solver's error
    per coordinate; it does not grow with the dimension.

    Shapes: x, y (B, *event).
    Errors: ValueError for different shapes.

    >>> rms_distance(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    1.0
    """
    if x.shape != y.shape:
        raise wrong_value("rms_distance", "y", f"have the shape {tuple(x.shape)} of x",
                          tuple(y.shape), "pair every sample with its own target")  # fmt: skip
    return float((x.double() - y.double()).square().mean().sqrt())


def directions(dimension: int, projections: int, seed: int = 0) -> Tensor:
    """Return unit vectors θ, uniform on the sphere, as columns in float64.

    Shapes: result (D, P).
    """
    positive_integer("directions", "projections", projections)
    positive_integer("directions", "seed", seed, least=0)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(dimension, projections, generator=generator, dtype=torch.float64)
    length: Tensor = torch.linalg.vector_norm(z, dim=0)
    return z / length


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 256, seed: int = 0) -> float:
    """Return SW₂ = √(mean_θ W₂²(θ·x, θ·y)) between two samples, of equal sizes or not.

    In one dimension W₂² = ∫₀¹ (F_x⁻¹(u) − F_y⁻¹(u))² du, evaluated without discretisation: both
    quantile functions are constant between the merged levels i/n and j/m. The same seed gives
    the same directions θ, so results of different solvers are paired.

    Shapes: x (n, *event), y (m, *event).
    Errors: ValueError for different event shapes or an empty sample.
    Source: Rabin et al. 2012; Bonneel et al. 2015.

    >>> round(sliced_wasserstein(torch.zeros(3, 1), torch.full((2, 1), 2.0)), 12)
    2.0
    """
    u, v = _rows("sliced_wasserstein", x, y, least=1)
    theta = directions(u.shape[1], projections, seed).to(u.device)
    a, b = (u @ theta).sort(dim=0).values, (v @ theta).sort(dim=0).values
    n, m = len(a), len(b)
    if n == m:
        return float((a - b).square().mean().sqrt())
    # Levels in units of 1/(nm): integers, so that i/n = j/m is recognised exactly.
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(m) * n]).sort().values.to(u.device)
    left, width = levels[:-1], levels.diff().double() / (n * m)
    gap = (a[left // m] - b[left // n]).square()
    return float((width @ gap).mean().sqrt())


def median_distance(y: Tensor) -> float:
    """Return the median distance between different rows of ``y`` (of its first 1000).

    Errors: ValueError where it is 0, since most rows are then equal.
    """
    rows = y.double().flatten(1)[:_MEDIAN_ROWS]
    median = float(torch.pdist(rows).median()) if len(rows) > 1 else 0.0
    if median == 0:
        raise wrong_value("median_distance", "y", "hold different rows", "a median distance of 0",
                          "pass a bandwidth")  # fmt: skip
    return median


def mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """Return the unbiased estimate of MMD² = E k(x,x′) + E k(y,y′) − 2 E k(x,y).

    The kernel is k(a, b) = e^{−‖a−b‖²/2h²}. Without a bandwidth, h is the median distance within
    the reference ``y`` only: it must not change with the samples under test. The *square* is
    returned, since it is the unbiased quantity; it is below 0 half of the time when both laws
    are equal.

    Shapes: x (n, *event), y (m, *event), each with at least 2 rows.
    Errors: ValueError for different event shapes, too few rows, or a bandwidth not above 0.
    Source: Gretton et al. 2012, equation 3.

    >>> mmd(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [2.0]]), bandwidth=1.0) < 0
    True
    """
    u, v = _rows("mmd", x, y, least=2)
    h = median_distance(v) if bandwidth is None else bandwidth
    positive_number("mmd", "bandwidth", h)
    n, m = len(u), len(v)
    # k(a, a) = 1 on the diagonals, which the unbiased estimate leaves out.
    within_x = (_kernel_sum(u, u, h) - n) / (n * (n - 1))
    within_y = (_kernel_sum(v, v, h) - m) / (m * (m - 1))
    return within_x + within_y - 2 * _kernel_sum(u, v, h) / (n * m)


@final
@dataclass(frozen=True)
class Interval:
    """A mean over replicates and half the width of its confidence interval.

    >>> 0.0 in Interval(0.1, 0.2)
    True
    """

    mean: float
    half_width: float

    def __contains__(self, value: float) -> bool:
        """Return whether ``value`` lies in mean ± half_width."""
        return abs(value - self.mean) <= self.half_width


def paired_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return mean ± t·s/√n over n replicates, t being Student's quantile with n − 1 degrees.

    Pass differences of two solvers on the same seeds to compare the two: what both share of a
    seed's luck cancels.

    Errors: ValueError for fewer than 2 values or a level outside (0, 1).
    Source: Student 1908.

    >>> interval = paired_interval([1.0, 2.0, 3.0])
    >>> round(interval.mean, 3), round(interval.half_width, 3)
    (2.0, 2.484)
    """
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        raise wrong_value("paired_interval", "values", "hold at least 2 replicates", n,
                          "run more seeds")  # fmt: skip
    if not 0 < level < 1:
        raise wrong_value("paired_interval", "level", "lie in (0, 1)", level, "pass level=0.95")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    quantile = float(stdtrit(n - 1, 0.5 + 0.5 * level))
    return Interval(mean, quantile * math.sqrt(variance / n))


def _rows(what: str, x: Tensor, y: Tensor, *, least: int) -> tuple[Tensor, Tensor]:
    """Return both samples as float64 rows on x's device: (n, D), (m, D)."""
    if x.shape[1:] != y.shape[1:] or x.ndim < 2:
        raise wrong_value(what, "x, y", "be (n, *event) and (m, *event) with one event shape",
                          f"{tuple(x.shape)} and {tuple(y.shape)}", "reshape one")  # fmt: skip
    for name, value in (("x", x), ("y", y)):
        if len(value) < least:
            raise wrong_value(what, name, f"hold at least {least} samples", len(value),
                              "draw more")  # fmt: skip
    return x.detach().double().flatten(1), y.detach().to(x.device, torch.float64).flatten(1)


def _kernel_sum(u: Tensor, v: Tensor, h: float) -> float:
    """Return Σ_ij e^{−‖u_i − v_j‖²/2h²}."""
    # The matrix-product form of cdist would lose small distances to cancellation.
    exact = "donot_use_mm_for_euclid_dist"
    blocks = (torch.cdist(block, v, compute_mode=exact) for block in torch.split(u, _BLOCK))
    return sum(float(torch.exp(-0.5 * (d / h).square()).sum()) for d in blocks)
