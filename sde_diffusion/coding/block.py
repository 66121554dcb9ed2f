"""Bits back: a block of samples on one stack, along the chain of latents.

To encode x_0 … x_N, pop x_1 ~ q(x_1|x_0) and push x_0 under p(x_0|x_1), pop x_2 ~ q(x_2|x_1) and
push x_1 under p(x_1|x_2), …, and push x_N under the prior: −log2 p + log2 q bits in all, whose
mean is the discrete bound. The decoder goes back and ends with the stack that it began with.

Samples go in groups that grow with the bits on the stack: the first one, alone, borrows from words
that everybody knows, each later group what earlier ones have left.

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
from sde_diffusion.coding.normals import Integers
from sde_diffusion.coding.predictions import Exceptions, Predictor, Sum
from sde_diffusion.coding.stack import LostError, Stack, Words, borrowed
from sde_diffusion.coding.whole_chain import WholeChain

_GROUP: Final = 64  # samples of the largest group
_HEAD: Final = struct.Struct("<BIII")
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
        begun = stack.bits
        self._push(stack, levels[:1], 0, exceptions, check)
        if pace is None:  # so that what a group borrows is there, left by the samples before it
            shares = 1.25 * self._whole.lent(self._d) / max(stack.bits - begun, 1)
            pace = min(max(ceil(shares), 1), _SLOWEST)
        for group in _groups(len(levels), pace):
            self._push(stack, levels[group], group.start, exceptions, check)
        words = stack.words()
        untouched = _common(words, self._lent)
        head = _HEAD.pack(pace, untouched, zlib.crc32(_bytes(levels)), check.value)
        return head + exceptions.to_bytes() + words[untouched:].astype("<u4").tobytes()

    def decoded(self, code: bytes, count: int) -> Integers | None:
        """Return the levels of the code of ``count`` samples, None where predictions differ.

        Errors: ValueError for a code that ends early.
        """
        if len(code) < _HEAD.size:
            raise _short(len(code))
        pace, untouched, levels_sum, predictions_sum = _HEAD.unpack_from(code)
        exceptions, rest = Exceptions.from_bytes(memoryview(code)[_HEAD.size :])
        if len(rest) % 4 or not len(rest) or untouched > len(self._lent) or not pace:
            raise _short(len(code))
        words = np.frombuffer(rest, "<u4").astype(np.uint32)
        if not words[-1]:  # no code ends so
            raise _short(len(code))
        stack = Stack(np.concatenate([self._lent[:untouched], words]))
        check = Sum()
        parts = list[Integers]()
        try:
            for group in reversed([slice(0, 1), *_groups(count, pace)]):
                size = group.stop - group.start
                parts.append(self._pop(stack, size, group.start, exceptions, check))
        except LostError:
            return None
        levels = np.concatenate(parts[::-1])
        sums = (zlib.crc32(_bytes(levels)), check.value)
        right = sums == (levels_sum, predictions_sum)
        return levels if right and stack.holds(self._lent) else None

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


def _groups(count: int, pace: int) -> Iterator[slice]:
    """Yield the groups of ``count`` samples but the first: 1/pace of those before each, or one."""
    first = 1
    while first < count:
        size = 1 if pace == _ALONE else min(max(first // pace, 1), _GROUP, count - first)
        yield slice(first, first + size)
        first += size


def _common(words: Words, others: Words) -> int:
    """Return how many words two begin with in common, short of all of the first."""
    n = min(len(words) - 1, len(others))
    different = (words[:n] != others[:n]).nonzero()[0]
    return int(different[0]) if len(different) else n


def _bytes(levels: Integers) -> bytes:
    return levels.astype("<i4").tobytes()


def _short(size: int) -> ValueError:
    return wrong_value(
        "decompress", "block", "hold a whole code", f"{size} bytes", "get the file again"
    )
