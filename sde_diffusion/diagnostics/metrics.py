"""Distances between sets of samples, and confidence intervals over replicates; in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_value

_MEDIAN_ROWS: Final = 1000  # rows whose pairs give the median distance
_COMPONENTS: Final = 32  # of the Fréchet distance: few enough for covariances of 64 samples
_BLOCK: Final = 1024  # rows of a kernel matrix held at once


def rms_distance(x: Tensor, y: Tensor) -> float:
    """Return √(mean (x − y)²), the mean over samples *and* coordinates.

    Between end points of a solver and of the exact ODE, from the same starts, it is the solver's
    error per coordinate; it does not grow with the number of dimensions.

    Shapes: x, y (B, *event).
    Errors: ValueError for different shapes.

    >>> rms_distance(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    1.0
    """
    if x.shape != y.shape:
        raise wrong_value(
            "rms_distance",
            "y",
            f"have the shape {tuple(x.shape)} of x",
            tuple(y.shape),
            "pair every sample with its own target",
        )
    return float((x.double() - y.to(x.device, torch.float64)).square().mean().sqrt())


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

    Arguments:
        x: samples; (n, *event).
        y: samples of the same event shape; (m, *event).
        projections: the number of directions θ.
        seed: of the directions.

    Errors: ValueError for different event shapes or an empty sample.
    Source: Rabin et al. 2012; Bonneel et al. 2015.

    >>> round(sliced_wasserstein(torch.zeros(3, 1), torch.full((2, 1), 2.0)), 12)
    2.0
    """
    u, v = _rows("sliced_wasserstein", x, y, least=1)
    theta = directions(u.shape[1], projections, seed).to(u.device)
    return _quantile_gap((u @ theta).sort(dim=0).values, (v @ theta).sort(dim=0).values)


def median_distance(y: Tensor) -> float:
    """Return the median distance between different rows of ``y`` (of its first 1000).

    Errors: ValueError where it is 0, since most rows are then equal.
    """
    rows = y.double().flatten(1)[:_MEDIAN_ROWS]
    median = float(torch.pdist(rows).median()) if len(rows) > 1 else 0.0
    if median == 0:
        raise wrong_value(
            "median_distance",
            "y",
            "hold different rows",
            "a median distance of 0",
            "pass a bandwidth",
        )
    return median


def mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """Return the unbiased estimate of MMD² = E k(x,x′) + E k(y,y′) − 2 E k(x,y).

    The kernel is k(a, b) = e^{−‖a−b‖²/2h²}. Without a bandwidth, h is the median distance within
    the reference ``y`` only: it must not change with the samples under test. The *square* is
    returned, since it is the unbiased quantity; it is often below 0 where both distributions
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
    return _within(u, h) + _within(v, h) - 2 * _between(u, v, h)


def frechet_distance(x: Tensor, y: Tensor, components: int = _COMPONENTS) -> float:
    """Return W₂ of the Gaussians with the means and covariances of both samples, in y's PCA.

    W₂² = ‖μ_x − μ_y‖² + tr(C_x + C_y − 2 (C_y^½ C_x C_y^½)^½), in the first ``components``
    principal components of the reference ``y``: they must not change with the samples under test.
    The Fréchet inception distance is its square in the features of a network, where this one takes
    the data themselves. It depends on means and covariances only, and is biased upwards for few
    samples, most of all for fewer than components.

    Shapes: x (n, *event), y (m, *event), each with at least 2 rows.
    Errors: ValueError for different event shapes, too few rows or components.
    Source: Dowson & Landau 1982; Heusel et al. 2017.

    >>> round(frechet_distance(torch.eye(3) + 2, torch.eye(3)) / math.sqrt(12), 6)
    1.0
    """
    u, v = _rows("frechet_distance", x, y, least=2)
    return _Principal(v, components).frechet(u)


@final
class Reference:
    """Samples that others are compared with: what all comparisons share is computed once.

    `sliced_wasserstein`, `mmd` and `frechet` of x are those functions of x and these samples.

    Shapes: y (m, *event) with at least 2 rows.
    Errors: those of the functions.

    >>> y = torch.tensor([[0.0], [1.0], [3.0]])
    >>> Reference(y).sliced_wasserstein(y + 2.0)
    2.0
    """

    def __init__(self, y: Tensor, projections: int = 256, seed: int = 0) -> None:
        self.y = y
        (v, _) = _rows("Reference", y, y, least=2)
        self._theta = directions(v.shape[1], projections, seed).to(v.device)
        self._sorted = (v @ self._theta).sort(dim=0).values
        self.bandwidth = median_distance(v)
        self._v = v
        self._within = _within(v, self.bandwidth)
        self._principal = _Principal(v, _COMPONENTS)

    def sliced_wasserstein(self, x: Tensor) -> float:
        """Return SW₂ of x."""
        u = self._rows(x, least=1)
        return _quantile_gap((u @ self._theta).sort(dim=0).values, self._sorted)

    def mmd(self, x: Tensor) -> float:
        """Return the unbiased estimate of MMD² of x, with the median distance as bandwidth."""
        u = self._rows(x)
        h = self.bandwidth
        return _within(u, h) + self._within - 2 * _between(u, self._v, h)

    def frechet(self, x: Tensor) -> float:
        """Return the Fréchet distance of x, in at most 32 principal components."""
        return self._principal.frechet(self._rows(x))

    def _rows(self, x: Tensor, least: int = 2) -> Tensor:
        return _rows("Reference", x, self.y[:2], least=least)[0].to(self._v.device)


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

    To compare two solvers pass their differences on the same seeds: the variance that both share
    cancels.

    Errors: ValueError for fewer than 2 values or a level outside (0, 1).
    Source: Student 1908.

    >>> interval = paired_interval([1.0, 2.0, 3.0])
    >>> round(interval.mean, 3), round(interval.half_width, 3)
    (2.0, 2.484)
    """
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        raise wrong_value(
            "paired_interval", "values", "hold at least 2 replicates", n, "run more seeds"
        )
    if not 0 < level < 1:
        raise wrong_value("paired_interval", "level", "lie in (0, 1)", level, "pass level=0.95")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    quantile = float(stdtrit(n - 1, 0.5 + 0.5 * level))
    return Interval(mean, quantile * math.sqrt(variance / n))


def _rows(what: str, x: Tensor, y: Tensor, *, least: int) -> tuple[Tensor, Tensor]:
    """Return both samples as float64 rows on x's device: (n, D), (m, D)."""
    if x.shape[1:] != y.shape[1:] or x.ndim < 2:
        raise wrong_value(
            what,
            "x, y",
            "be (n, *event) and (m, *event) with one event shape",
            f"{tuple(x.shape)} and {tuple(y.shape)}",
            "reshape one",
        )
    for name, value in (("x", x), ("y", y)):
        if len(value) < least:
            raise wrong_value(
                what, name, f"hold at least {least} samples", len(value), "draw more"
            )
    return x.detach().double().flatten(1), y.detach().to(x.device, torch.float64).flatten(1)


class _Principal:
    """The mean, leading directions and standard deviations along them of some rows."""

    def __init__(self, v: Tensor, components: int) -> None:
        positive_integer("frechet_distance", "components", components)
        variances, basis = torch.linalg.eigh(_covariance(v))  # by size, the largest last
        self.mean = v.mean(0)
        self.basis = basis[:, -components:]
        self.std = variances[-components:].clamp(min=0).sqrt()

    def frechet(self, u: Tensor) -> float:
        """Return the Fréchet distance of other rows."""
        turned = (u - self.mean) @ self.basis
        c = _covariance(turned)
        # C_y is diagonal here, so that C_y^½ C_x C_y^½ is symmetric and easily had.
        cross = torch.linalg.eigvalsh(self.std[:, None] * c * self.std).clamp(min=0).sqrt().sum()
        spread = c.trace() + self.std.square().sum() - 2 * cross
        return float((turned.mean(0).square().sum() + spread).clamp(min=0).sqrt())


def _covariance(v: Tensor) -> Tensor:
    centred = v - v.mean(0)
    return centred.T @ centred / (len(v) - 1)


def _quantile_gap(a: Tensor, b: Tensor) -> float:
    """Return √(mean over columns of ∫ (F_a⁻¹ − F_b⁻¹)²) of sorted columns."""
    n = len(a)
    m = len(b)
    if n == m:
        return float((a - b).square().mean().sqrt())
    # Levels in units of 1/(nm): integers, so that i/n = j/m is recognised exactly.
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(m) * n]).sort().values.to(a.device)
    left = levels[:-1]
    width = levels.diff().double() / (n * m)
    gap = (a[left // m] - b[left // n]).square()
    return float((width @ gap).mean().sqrt())


def _within(u: Tensor, h: float) -> float:
    """Return the mean kernel of different rows."""
    n = len(u)
    u = u - u.mean(0)
    total = 0.0
    for first in range(0, n, _BLOCK):
        block = u[first : first + _BLOCK]
        later = u[first + _BLOCK :]
        # k(a, a) = 1 on the diagonal, which the unbiased estimate leaves out.
        total += _kernel_sum(block, block, h) - len(block) + 2 * _kernel_sum(block, later, h)
    return total / (n * (n - 1))


def _between(u: Tensor, v: Tensor, h: float) -> float:
    """Return the mean kernel of a row of each."""
    centre = v.mean(0)
    u = u - centre
    v = v - centre
    total = sum(_kernel_sum(block, v, h) for block in torch.split(u, _BLOCK))
    return total / (len(u) * len(v))


def _kernel_sum(u: Tensor, v: Tensor, h: float) -> float:
    """Return Σ_ij e^{−‖u_i − v_j‖²/2h²} of centred rows."""
    # ‖u‖² + ‖v‖² − 2 u·v is one matrix product, a hundred times faster than differences, and in
    # float64 exact enough: what cancels is about 1e-16 of ‖u‖², which centring keeps small.
    d2 = u.square().sum(1, keepdim=True) + v.square().sum(1) - 2 * u @ v.T
    return float(d2.clamp_(min=0).mul_(-0.5 / h**2).exp_().sum())
