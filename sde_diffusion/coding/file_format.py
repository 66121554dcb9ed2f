r"""The bytes of a compressed file: a head of some 30 bytes and blocks, each with its checksum.

    b"SDZ\x02"  model  axes, shape …, levels, samples, steps  chain  CRC-32
    {length, samples  CRC-32  code} …

The model's fingerprint has 8 bytes, checksums have 4, little-endian, and all other numbers are
varints. Nothing is unpickled, and no number of a file asks for memory: samples are made a group at
a time, from the bits that are there, and a head may say no more dimensions than its blocks have
bits for.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Final, final

from sde_diffusion._check import Reason, wrong_value
from sde_diffusion.coding.varints import read_varints, varints

_BEGIN: Final = b"SDZ\x02"
_MODEL: Final = 8  # bytes of a fingerprint
_SUM: Final = struct.Struct("<I")
_MOST_AXES: Final = 16
# The latents x_1 of a block's first sample, ¾ cell wide at least, take .9 bits a dimension of the
# borrowed words, which the block then holds changed: .11 bytes. A shape of more than 1/16 byte a
# dimension is refused, but for so many dimensions, where a path of latents may fall out short.
_FREE: Final = 2**12
MOST_SAMPLES: Final = 2**16  # of a block
MOST_STEPS: Final = 2**14
MOST_DIMENSIONS: Final = 2**24
_REMEDY: Final = "pass what compress wrote"


@final
@dataclass(frozen=True)
class Head:
    """What a file says of itself.

    Arguments:
        model: the model's fingerprint.
        shape: of a sample.
        levels: of the data.
        samples: of all blocks.
        steps: of the chain.
        chain: the checksum of the chain in whole numbers.
    """

    model: str
    shape: tuple[int, ...]
    levels: int
    samples: int
    steps: int
    chain: int

    def to_bytes(self) -> bytes:
        """Return it as it stands in a file."""
        numbers = varints(len(self.shape), *self.shape, self.levels, self.samples, self.steps)
        head = _BEGIN + bytes.fromhex(self.model) + numbers + _SUM.pack(self.chain)
        return head + _SUM.pack(zlib.crc32(head))


def joined(head: Head, blocks: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the file of blocks, each a number of samples and their code."""
    parts = [head.to_bytes()]
    for i, (samples, code) in enumerate(blocks):
        crc = zlib.crc32(code, _place(i, samples))
        parts.append(varints(len(code), samples) + _SUM.pack(crc) + code)
    return b"".join(parts)


def parsed(data: bytes) -> tuple[Head, list[tuple[int, bytes]]]:
    """Return the head and the blocks of a file, all of whose checksums agree.

    Errors: ValueError that says what is wrong.
    """
    if data[:3] != _BEGIN[:3] or len(data) < 4:
        raise _wrong("file", "begin as compress writes it", data[:4], "pass what compress wrote")
    if data[3] != _BEGIN[3]:
        remedy = "install the sde_diffusion that wrote it"
        raise _wrong("file", f"have version {_BEGIN[3]}", data[3], remedy)
    head, rest = _head(memoryview(data))
    blocks = list[tuple[int, bytes]]()
    while rest:
        (size, samples), rest = _numbers(rest, 2)
        crc, rest = _stored_sum(rest)
        code = bytes(_whole(rest, size))
        _check_sum("block", code, crc, _place(len(blocks), samples))
        blocks.append((samples, code))
        rest = rest[size:]
    if any(16 * len(code) < prod(head.shape) - _FREE for _, code in blocks):
        rule = "have a shape that its blocks have bytes for"
        raise _wrong("file", rule, head.shape, "pass what compress wrote")
    total = sum(samples for samples, _ in blocks)
    if total != head.samples or not all(1 <= n <= MOST_SAMPLES for n, _ in blocks):
        raise _cut("file", f"{total} of {head.samples} samples")
    return head, blocks


def _place(i: int, samples: int) -> int:
    """Return what the checksum of block i begins with, so that no block stands for another."""
    return zlib.crc32(varints(i, samples))


def _head(data: memoryview) -> tuple[Head, memoryview]:
    """Return the head, and what follows it."""
    start = len(_BEGIN) + _MODEL
    model = bytes(_whole(data, start)[len(_BEGIN) :]).hex()
    (axes,), rest = _numbers(data[start:], 1)
    if axes > _MOST_AXES:
        raise _wrong("file", "have a shape of compress", f"{axes} axes", _REMEDY)
    numbers, rest = _numbers(rest, axes + 3)
    *shape, levels, samples, steps = numbers
    chain, rest = _stored_sum(rest)
    text = bytes(data[: len(data) - len(rest)])
    crc, rest = _stored_sum(rest)
    _check_sum("head", text, crc, 0)
    head = Head(model, tuple(shape), levels, samples, steps, chain)
    if not 2 <= steps <= MOST_STEPS or not 2 <= levels <= 2**16:
        raise _wrong("file", "have a head of compress", head, _REMEDY)
    if not all(shape) or prod(shape) > MOST_DIMENSIONS:
        raise _wrong("file", "have a shape of compress", head.shape, _REMEDY)
    return head, rest


def _numbers(data: memoryview, count: int) -> tuple[list[int], memoryview]:
    try:
        return read_varints(data, count)
    except ValueError as error:
        raise _cut("file", "numbers without an end") from error


def _stored_sum(data: memoryview) -> tuple[int, memoryview]:
    (crc,) = _SUM.unpack(_whole(data, _SUM.size))
    return crc, data[_SUM.size :]


def _whole(data: memoryview, size: int) -> memoryview:
    if len(data) < size:
        raise _cut("file", f"{len(data)} of {size} bytes of a part")
    return data[:size]


def _check_sum(what: str, part: bytes, crc: int, start: int) -> None:
    if zlib.crc32(part, start) != crc:
        raise _wrong(
            "file", f"hold a {what} of its checksum", "another", "get it again, it is damaged"
        )


def _cut(argument: str, got: str) -> ValueError:
    return _wrong(argument, "be whole", Reason(got), "get it again, it is cut short")


def _wrong(argument: str, rule: str, got: object, remedy: str) -> ValueError:
    return wrong_value("decompress", argument, rule, got, remedy)
