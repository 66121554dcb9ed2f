"""The stack of an entropy coder, from which draws are popped and onto which symbols are pushed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.foreign.installed import program

Words = NDArray[np.uint32]
_ENTRIES: Final = 2**20  # weights at once


class LostError(Exception):
    """A stack that no encoder made: it ran out of bits, or held what cannot come of it."""


@final
class Stack:
    """A stack of 32-bit words under an asymmetric numeral system, constriction's.

    `push` adds −log2 p bits and `pop`, its inverse to the bit, takes as many. Symbols are numbers
    of weights, whole numbers in float64 that need not sum to one; each has at least 2⁻²⁴.

    Source: Duda 2009; Bamler 2022 (constriction).
    """

    def __init__(self, words: Words, *, sealed: bool = False) -> None:
        """Begin with words that another stack gave, or, sealed, with any."""
        stream = program("constriction", "constriction").stream
        self._coder: Any = stream.stack.AnsCoder(words, sealed)
        self._family: Any = stream.model.Categorical(perfect=False)

    def push(
        self,
        symbols: NDArray[np.int64],
        rows: NDArray[np.int64],
        weights: Callable[[NDArray[np.int64]], NDArray[np.float64]],
        width: int = 1,
    ) -> None:
        """Encode symbols, so that `pop` returns them in their order.

        Arguments:
            symbols: from 0; (n,).
            rows: what the weights of each are made of; (n,).
            weights: their weights, of a part of the rows; (m,) to (m, K).
            width: about K, where that is large.
        """
        for part in reversed(_slices(len(rows), width)):
            table = weights(rows[part])
            if not ((symbols[part] >= 0) & (symbols[part] < table.shape[1])).all():
                raise LostError
            chosen = np.ascontiguousarray(symbols[part], np.int32)
            self._coder.encode_reverse(chosen, self._family, table)

    def pop(
        self,
        rows: NDArray[np.int64],
        weights: Callable[[NDArray[np.int64]], NDArray[np.float64]],
        width: int = 1,
    ) -> NDArray[np.int64]:
        """Return decoded symbols, (n,); the arguments are those of `push`.

        Errors: LostError where there are not enough bits.
        """
        parts = []
        for part in _slices(len(rows), width):
            parts.append(self._coder.decode(self._family, weights(rows[part])))
            if not self.bits:  # what is drawn of nothing is no draw
                raise LostError
        return np.concatenate(parts).astype(np.int64)

    @property
    def bits(self) -> int:
        """The bits that are on it."""
        return int(self._coder.num_valid_bits())

    def words(self) -> Words:
        """Return all that is on it."""
        found: Words = self._coder.get_compressed()
        return found

    def holds(self, words: Words) -> bool:
        """Return whether on it is what it began with, sealed."""
        return np.array_equal(self.words(), [*words, 1])


def borrowed(count: int) -> Words:
    """Return so many words to begin with, pseudorandom and everywhere the same.

    Draws of latents take bits from the stack, which the decoder puts back: the first ones, with
    nothing on it yet, take these.
    """
    found = hashlib.shake_256(b"sde_diffusion").digest(4 * count)
    return np.frombuffer(found, "<u4").astype(np.uint32)


def _slices(count: int, width: int) -> list[slice]:
    step = max(_ENTRIES // max(width, 32), 1)
    return [slice(first, first + step) for first in range(0, count, step)]
