"""Bits back: a block of samples on one stack, along the chain of latents.

To encode x_0 … x_N, pop x_1 ~ q(x_1|x_0) and push x_0 under p(x_0|x_1), pop x_2 ~ q(x_2|x_1) and
push x_1 under p(x_1|x_2), …, and push x_N under the prior: −log2 p + log2 q bits in all, whose
mean is the discrete bound. The decoder goes back and ends with the stack that it began with.

Samples go in groups that grow with the bits on the stack. The first ones go by `Counts` of their
levels, so that there are bits to begin with; the first one of the chain, alone, borrows the rest
from words that everybody knows, and each later group what earlier ones have left.

Source: Townsend et al. 2019 (BB-ANS); Kingma et al. 2019 (Bit-Swap), algorithm 1.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from math import ceil
from typing import Final, final

import numpy as np

from sde_diffusion._check import Reason, wrong_value
from sde_diffusion.coding.counts import Counts
from sde_diffusion.coding.normals import Integers
from sde_diffusion.coding.predictions import Exceptions, Predictor, Sum
from sde_diffusion.coding.stack import LostError, Stack, Words, borrowed
from sde_diffusion.coding.varints import read_varints, varints
from sde_diffusion.coding.whole_chain import WholeChain

_GROUP: Final = 64  # samples of the largest group
_SUM: Final = struct.Struct("<I")
_MOST_COUNTED: Final = 2**26  # dimensions times levels, whose probabilities a decoder makes
_SLOWEST: Final = 254
_ALONE: Final = 255  # groups of one


@final
class BlockCoder:
    """Samples to bytes, and back.

    Arguments:
        whole: the chain.
        predictor: the network's predictions along it.
        dimension: D, of a sample.
    """

    def __init__(self, whole: WholeChain, predictor: Predictor, dimension: int) -> None:
        self._whole = whole
        self._predictor = predictor
        self._d = dimension
        self._levels = len(whole.levels.centres)
        self._counts = Counts(self._levels)
        self._lent = borrowed(dimension + 64)

    def encoded(self, levels: Integers) -> bytes:
        """Return the code of levels (n, D), with their checksum and that of the predictions."""
        try:
            return self._encoded(levels, None)
        except LostError:  # the samples are not alike, and those before left too little
            pass
        try:
            return self._encoded(levels, _ALONE)
        except LostError as error:
            rule = "be in reach of the model's prior"
            got = "noised data that are far outside"
            raise wrong_value("compress", "data", rule, Reason(got), "scale the data") from error

    def _encoded(self, levels: Integers, pace: int | None) -> bytes:
        stack = Stack(self._lent, sealed=True)
        exceptions = Exceptions()
        check = Sum()
        counted = self._counted(levels)
        self._counts.push(stack, levels[:counted])
        begun = stack.bits
        for i in _first(counted, len(levels)):
            self._push(stack, levels[i : i + 1], i, exceptions, check)
        if pace is None:  # so that what a group borrows is there, left by the samples before it
            shares = 1.25 * self._whole.lent(self._d) / max(stack.bits - begun, 1)
            pace = min(max(ceil(shares), 1), _SLOWEST)
        for group in _groups(counted + 1, len(levels), pace):
            self._push(stack, levels[group], group.start, exceptions, check)
        words = stack.words()
        untouched = _common(words, self._lent)
        head = varints(pace, counted, untouched) + _SUM.pack(_sum(levels, check))
        return head + exceptions.to_bytes() + words[untouched:].astype("<u4").tobytes()

    def decoded(self, code: bytes, count: int) -> Integers | None:
        """Return the levels of the code of ``count`` samples, None where predictions differ.

        Errors: ValueError for a code that ends early.
        """
        (pace, counted, untouched), rest = read_varints(memoryview(code), 3)
        if len(rest) < _SUM.size:
            raise _short(len(code))
        (told,) = _SUM.unpack_from(rest)
        exceptions, rest = Exceptions.from_bytes(rest[_SUM.size :])
        if len(rest) % 4 or not len(rest) or untouched > len(self._lent) or not pace:
            raise _short(len(code))
        words = np.frombuffer(rest, "<u4").astype(np.uint32)
        if not words[-1] or counted > self._most_counted(count):  # no code ends or begins so
            raise _short(len(code))
        stack = Stack(np.concatenate([self._lent[:untouched], words]))
        check = Sum()
        parts = list[Integers]()
        first = [slice(i, i + 1) for i in _first(counted, count)]
        try:
            for group in reversed([*first, *_groups(counted + 1, count, pace)]):
                size = group.stop - group.start
                parts.append(self._pop(stack, size, group.start, exceptions, check))
            parts.append(self._counts.pop(stack, (counted, self._d)))
        except LostError:
            return None
        levels = np.concatenate(parts[::-1])
        right = _sum(levels, check) == told
        return levels if right and stack.holds(self._lent) else None

    def _counted(self, levels: Integers) -> int:
        """Return how many samples go by their counts.

        Such a sample takes about twice the bits that the chain would: it is worth that as long as
        more than half of them would be borrowed otherwise. One that takes less than a bit a
        dimension leaves too few for the block's shape to be believed.
        """
        taken = self._counts.bits(levels[: self._most_counted(len(levels))])
        left = self._whole.lent(self._d) - np.cumsum(taken) + taken
        enough = (taken >= 2 * left) | (taken < self._d)
        return int(np.append(enough, True).argmax())

    def _most_counted(self, count: int) -> int:
        return min(count, _GROUP, _MOST_COUNTED // (self._d * self._levels))

    def _push(
        self, stack: Stack, levels: Integers, first: int, exceptions: Exceptions, check: Sum
    ) -> None:
        whole = self._whole
        before = levels
        for k in range(1, whole.steps + 1):
            state = whole.forward(k).pop(stack, whole.forward_mean(before, k))
            place = self._place(first, k, len(levels))
            x0_hat, told = self._predictor.at(state, k)
            if k > 1:
                mean = whole.backward_mean(state, x0_hat, k)
                far = ~whole.backward(k).holds(before, mean)
                x0_hat = np.where(far, whole.nearer(before, state, k), x0_hat)
                told |= far
            exceptions.add(place, told, x0_hat)
            check.add(x0_hat, place)
            if k == 1:
                whole.levels.push(stack, before, x0_hat)
            else:
                mean = whole.backward_mean(state, x0_hat, k)
                whole.backward(k).push(stack, before, mean)
            before = state
        whole.prior().push(stack, before, np.zeros_like(before))

    def _pop(
        self, stack: Stack, size: int, first: int, exceptions: Exceptions, check: Sum
    ) -> Integers:
        whole = self._whole
        state = whole.prior().pop(stack, np.zeros((size, self._d), np.int64))
        for k in range(whole.steps, 0, -1):
            place = self._place(first, k, size)
            x0_hat = exceptions.apply(place, self._predictor.at(state, k)[0])
            check.add(x0_hat, place)
            if k == 1:
                before = whole.levels.pop(stack, x0_hat)
            else:
                mean = whole.backward_mean(state, x0_hat, k)
                before = whole.backward(k).pop(stack, mean)
            whole.forward(k).push(stack, state, whole.forward_mean(before, k))
            state = before
        return state

    def _place(self, first: int, k: int, size: int) -> int:
        """Return where the predictions of a group at x_k stand in the order of all."""
        return (first * self._whole.steps + (k - 1) * size) * self._d


def _first(counted: int, count: int) -> range:
    """Return the first sample of the chain, if there is one."""
    return range(counted, min(counted + 1, count))


def _groups(first: int, count: int, pace: int) -> Iterator[slice]:
    """Yield the groups of samples from ``first``: 1/pace of those before each, or one."""
    while first < count:
        size = 1 if pace == _ALONE else min(max(first // pace, 1), _GROUP, count - first)
        yield slice(first, first + size)
        first += size


def _common(words: Words, others: Words) -> int:
    """Return how many words two begin with in common, short of all of the first."""
    n = min(len(words) - 1, len(others))
    different = (words[:n] != others[:n]).nonzero()[0]
    return int(different[0]) if len(different) else n


def _sum(levels: Integers, predictions: Sum) -> int:
    return zlib.crc32(levels.astype("<i4").tobytes(), predictions.value)


def _short(size: int) -> ValueError:
    return wrong_value(
        "decompress", "block", "hold a whole code", f"{size} bytes", "get the file again"
    )
