"""Discrete normal distributions in whole numbers that every machine has alike.

A normal on the points of a lattice, p_i ∝ exp(−½((i − μ)/s)²), has the normaliser, the mean and
the variance of the density up to exp(−2π²s²): at s = ¾ cells the code is as short as the density
says, to 1.5e-5, and takes few bits of those that are borrowed.

Weights come of sums, products and roundings of float64 alone, an operation at a time, whose
results IEEE 754 fixes to the last bit; a library's `exp` is another number on another machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.coding.stack import Stack

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

PARTS: Final = 128  # of a cell: means are multiples of 1/128
FINE: Final = 2**10  # standard deviations and levels are multiples of a part's 1/1024
_UNIT: Final = 2.0**40  # the weight at the mean
_REACH: Final = 8  # standard deviations
_LOG_2: Final = 0.6931471805599453
# 2^−f on [0, 1] by its Taylor series, (−log 2)ⁿ/n!, whose last term is below 2⁻⁵³.
_SERIES: Final = list(accumulate(range(1, 19), lambda c, n: -c * _LOG_2 / n, initial=1.0))


def weights(exponent: Floats) -> Floats:
    """Return ⌊2⁴⁰ e^{−y}⌋ for y ≥ 0, the same whole numbers on every machine.

    >>> weights(np.array([0.0, 1.0, 50.0])).tolist() == [2.0**40, 404487723187.0, 0.0]
    True
    """
    z = np.minimum(exponent, 700.0) * (1 / _LOG_2)
    whole = np.floor(z)
    f = z - whole
    power = np.full_like(f, _SERIES[-1])
    for c in _SERIES[-2::-1]:
        power = power * f  # not in one line with the sum: no compiler may fuse them
        power = power + c
    scaled: Floats = np.floor(np.ldexp(power * _UNIT, -whole.astype(np.int32)))
    return scaled


@final
@dataclass(frozen=True)
class Normals:
    """The normals of one standard deviation, a row of weights for each part of a cell.

    Arguments:
        reach: cells on either side of the one that the mean is in.
        table: the weights; (PARTS, 2 reach + 1).
    """

    reach: int
    table: Floats

    @classmethod
    def of(cls, std: int, reach: int = _REACH) -> Normals:
        """Return those of a standard deviation, in parts/FINE, to ``reach`` of it."""
        cells = -(-reach * std // (PARTS * FINE)) + 1
        points = np.arange(-cells, cells + 1, dtype=np.int64) * PARTS
        away = (points - np.arange(PARTS)[:, None]) * FINE
        return cls(cells, weights(half_squares(away, std)))

    def holds(self, values: Integers, means: Integers) -> NDArray[np.bool_]:
        """Return which values are within the reach of their means."""
        within: NDArray[np.bool_] = np.abs(values - means // PARTS) <= self.reach
        return within

    def push(self, stack: Stack, values: Integers, means: Integers) -> None:
        """Encode the cells ``values`` under normals around ``means``, in parts."""
        cell, part = np.divmod(means.ravel(), PARTS)
        stack.push(values.ravel() - cell + self.reach, part, self.table.__getitem__)

    def pop(self, stack: Stack, means: Integers) -> Integers:
        """Return cells drawn from the stack by normals around ``means``, in parts."""
        cell, part = np.divmod(means.ravel(), PARTS)
        drawn: Integers = stack.pop(part, self.table.__getitem__) + (cell - self.reach)
        return drawn.reshape(means.shape)


def half_squares(away: Integers, std: int) -> Floats:
    """Return ½(away/std)² of whole numbers."""
    ratio: Floats = away.astype(np.float64) / float(std)
    return ratio * ratio * 0.5


@final
@dataclass(frozen=True)
class LevelNormals:
    """p(v) ∝ exp(−½((centre_v − mean)/std)²) over all levels: `LevelDecoder`.

    Arguments:
        centres: of the levels, in parts/FINE; (L,).
        std: the standard deviation, in parts/FINE.
    """

    centres: Integers
    std: int

    def _weights(self, means: Integers) -> Floats:
        y = half_squares(self.centres - FINE * means[:, None], self.std)
        return weights(y - y.min(1, keepdims=True))

    def push(self, stack: Stack, levels: Integers, means: Integers) -> None:
        """Encode levels around ``means``, in parts."""
        stack.push(levels.ravel(), means.ravel(), self._weights, len(self.centres))

    def pop(self, stack: Stack, means: Integers) -> Integers:
        """Return levels from the stack around ``means``, in parts."""
        return stack.pop(means.ravel(), self._weights, len(self.centres)).reshape(means.shape)
