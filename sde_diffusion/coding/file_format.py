r"""The bytes of a compressed file: a head in JSON and blocks, each with its length and checksum.

    b"SDZ\x01"  head's length, CRC-32   head   {length, CRC-32, samples   code} …

All numbers are little-endian of 32 bits. Nothing is unpickled, and no number of a file asks for
memory: samples are made a group at a time, from the bits that are there, and a head may say no
more dimensions than its blocks have bits for.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Final, final

from sde_diffusion._check import Reason, wrong_value
from sde_diffusion._files import json_object

_MAGIC: Final = b"SDZ"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<II")
_BLOCK: Final = struct.Struct("<III")
_LONGEST: Final = 2**16  # bytes of a head
# The latents x_1 of a block's first sample, ¾ cell wide at least, take .9 bits a dimension of the
# borrowed words, which the block then holds changed: .11 bytes. A shape of more than 1/16 byte a
# dimension is refused, but for so many dimensions, where a path of latents may fall out short.
_FREE: Final = 2**12
MOST_SAMPLES: Final = 2**16  # of a block
MOST_STEPS: Final = 2**14
MOST_DIMENSIONS: Final = 2**24


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
        text = json.dumps(asdict(self), separators=(",", ":")).encode()
        return _MAGIC + bytes([_VERSION]) + _HEAD.pack(len(text), zlib.crc32(text)) + text


def joined(head: Head, blocks: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the file of blocks, each a number of samples and their code."""
    parts = [head.to_bytes()]
    for i, (samples, code) in enumerate(blocks):
        crc = zlib.crc32(code, _place(i, samples))
        parts.append(_BLOCK.pack(len(code), crc, samples) + code)
    return b"".join(parts)


def parsed(data: bytes) -> tuple[Head, list[tuple[int, bytes]]]:
    """Return the head and the blocks of a file, all of whose checksums agree.

    Errors: ValueError that says what is wrong.
    """
    if data[:3] != _MAGIC or len(data) < 4:
        raise _wrong("file", "begin as compress writes it", data[:4], "pass what compress wrote")
    if data[3] != _VERSION:
        raise _wrong("file", f"have version {_VERSION}", data[3], "install a newer sde_diffusion")
    start = 4 + _HEAD.size
    size, crc = _HEAD.unpack(_whole(data[4:start], _HEAD.size))
    text = _whole(data[start : start + min(size, _LONGEST)], size)
    _check_sum("head", text, crc, 0)
    head = _head(text)
    blocks = list[tuple[int, bytes]]()
    at = start + size
    while at < len(data):
        size, crc, samples = _BLOCK.unpack(_whole(data[at : at + _BLOCK.size], _BLOCK.size))
        code = _whole(data[at + _BLOCK.size : at + _BLOCK.size + size], size)
        _check_sum("block", code, crc, _place(len(blocks), samples))
        blocks.append((samples, code))
        at += _BLOCK.size + size
    if any(16 * len(code) < prod(head.shape) - _FREE for _, code in blocks):
        rule = "have a shape that its blocks have bytes for"
        raise _wrong("file", rule, head.shape, "pass what compress wrote")
    total = sum(samples for samples, _ in blocks)
    if total != head.samples or not all(1 <= n <= MOST_SAMPLES for n, _ in blocks):
        raise _cut("file", f"{total} of {head.samples} samples")
    return head, blocks


def _place(i: int, samples: int) -> int:
    """Return what the checksum of block i begins with, so that no block stands for another."""
    return zlib.crc32(_HEAD.pack(i, samples))


def _head(text: bytes) -> Head:
    try:
        values = json_object(text)
    except ValueError as error:
        raise _wrong(
            "file", "have a head of JSON", Reason(error), "pass what compress wrote"
        ) from error
    kinds = {"model": str, "shape": list}
    if set(values) != {field.name for field in fields(Head)} or not all(
        type(value) is kinds.get(name, int) for name, value in values.items()
    ):
        raise _wrong("file", "have a head of compress", values, "pass what compress wrote")
    head = Head(**values | {"shape": tuple(values["shape"])})
    if not re.fullmatch("[0-9a-f]{16}", head.model):
        rule = "have the fingerprint of a model"
        raise _wrong("file", rule, head.model, "pass what compress wrote")
    if not 2 <= head.steps <= MOST_STEPS or not 2 <= head.levels <= 2**16:
        raise _wrong("file", "have a head of compress", values, "pass what compress wrote")
    if not all(type(n) is int and n > 0 for n in head.shape) or (
        prod(head.shape) > MOST_DIMENSIONS
    ):
        raise _wrong("file", "have a shape of compress", head.shape, "pass what compress wrote")
    return head


def _whole(part: bytes, size: int) -> bytes:
    if len(part) < size:
        raise _cut("file", f"{len(part)} of {size} bytes of a part")
    return part


def _check_sum(what: str, part: bytes, crc: int, start: int) -> None:
    if zlib.crc32(part, start) != crc:
        raise _wrong(
            "file", f"hold a {what} of its checksum", "another", "get it again, it is damaged"
        )


def _cut(argument: str, got: str) -> ValueError:
    return _wrong(argument, "be whole", Reason(got), "get it again, it is cut short")


def _wrong(argument: str, rule: str, got: object, remedy: str) -> ValueError:
    return wrong_value("decompress", argument, rule, got, remedy)
