"""Levels one after another by how often each was seen: what the first samples of a block take.

After n levels, n_v of them v, the next one is v with probability (n_v + 1/L)/(n + 1). That takes
more bits than the model's chain, but it borrows none, and what it leaves on the stack is there for
the latents of the samples that follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.coding.normals import Floats, Integers
from sde_diffusion.coding.stack import Stack

_ONE: Final = np.zeros(1, np.int64)


@final
class Counts:
    """n_v of the levels so far.

    Arguments:
        levels: L, the number of levels.
    """

    def __init__(self, levels: int) -> None:
        self._levels = levels

    def bits(self, samples: Integers) -> Floats:
        """Return the bits that each of (m, D) takes after those before it; (m,).

        >>> Counts(2).bits(np.array([[0, 0], [1, 1]])).round(3).tolist()  # ½·¾, then ⅙·⅜
        [1.415, 4.0]
        """
        flat = samples.reshape(-1, 1)
        n = np.arange(len(flat))[:, None]
        taken = np.log2(n + 1) - np.log2(seen_before(flat) + 1 / self._levels)
        each: Floats = taken.reshape(samples.shape).sum(1)
        return each

    def push(self, stack: Stack, samples: Integers) -> None:
        """Encode (m, D), so that `pop` returns them."""
        flat = samples.ravel()
        counts = np.bincount(flat, minlength=self._levels)
        for i in reversed(range(len(flat))):
            counts[flat[i]] -= 1
            stack.push(flat[i : i + 1], _ONE, self._weights(counts), self._levels)

    def pop(self, stack: Stack, shape: tuple[int, int]) -> Integers:
        """Return samples of a shape (m, D).

        Errors: LostError where the stack has not enough bits.
        """
        found = np.zeros(shape[0] * shape[1], np.int64)
        counts = np.zeros(self._levels, np.int64)
        for i in range(len(found)):
            found[i] = stack.pop(_ONE, self._weights(counts), self._levels)[0]
            counts[found[i]] += 1
        return found.reshape(shape)

    def _weights(self, counts: Integers) -> Callable[[Integers], Floats]:
        """Return what gives L n_v + 1, whole numbers; (1, L)."""
        table = (self._levels * counts + 1).astype(np.float64)[None]
        return lambda _: table


def seen_before(values: NDArray[np.integer]) -> Integers:
    """Return how often each of (N, D) stands before its place in its column.

    It is the rank of a place among those of its level, by a stable sort of each column: no table
    of all levels, of which 16 bits have 65536 a column.

    >>> seen_before(np.array([[3], [1], [3], [3]])).ravel().tolist()
    [0, 0, 1, 2]
    """
    order = values.argsort(0, kind="stable")
    ordered = np.take_along_axis(values, order, 0)
    rank = np.arange(len(values))[:, None]
    begins = np.ones(values.shape, bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    sorted_ranks = rank - np.maximum.accumulate(np.where(begins, rank, 0), 0)
    found = np.empty_like(sorted_ranks)
    np.put_along_axis(found, order, sorted_ranks, 0)
    return found
