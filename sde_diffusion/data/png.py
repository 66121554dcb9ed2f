"""A reader of PNG pictures that keeps 16 bits a channel, of which Pillow keeps 8."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CHANNELS: Final = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type; 3 is a palette


def read_png(content: bytes) -> NDArray[Any]:
    """Return the picture (H, W, channels), uint8 or uint16, of a file that is not interlaced.

    Errors: ValueError, zlib.error or struct.error for a damaged file or another kind of PNG.
    Source: ISO/IEC 15948, the PNG specification, sections 5, 9 and 10.
    """
    header, data = _chunks(content)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth not in (8, 16) or colour not in _CHANNELS or interlaced:
        message = f"depth {depth}, colour type {colour}, interlaced {interlaced}"
        raise ValueError(message)
    pixel = _CHANNELS[colour] * depth // 8
    size = height * (1 + width * pixel)
    lines = zlib.decompressobj().decompress(data, size + 1)
    if len(lines) != size:
        message = f"{len(lines)} bytes of {size}"
        raise ValueError(message)
    rows = np.frombuffer(lines, np.uint8).reshape(height, 1 + width * pixel)
    plain = _unfiltered(rows[:, 0], rows[:, 1:].reshape(height, width, pixel))
    if depth == 8:
        return plain
    return np.ascontiguousarray(plain).view(">u2").astype(np.uint16)


def _chunks(content: bytes) -> tuple[bytes, bytes]:
    """Return the header and the packed picture."""
    if not content.startswith(_SIGNATURE):
        message = "no PNG signature"
        raise ValueError(message)
    found: dict[bytes, list[bytes]] = {b"IHDR": [], b"IDAT": [], b"IEND": []}
    place = len(_SIGNATURE)
    while not found[b"IEND"]:
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 8 + length
        (crc,) = struct.unpack_from(">I", content, end)
        if zlib.crc32(content[place + 4 : end]) != crc:
            message = f"chunk {kind!r} is damaged"
            raise ValueError(message)
        found.setdefault(kind, []).append(content[place + 8 : end])
        place = end + 4
    return found[b"IHDR"][0], b"".join(found[b"IDAT"])


def _unfiltered(filters: NDArray[np.uint8], lines: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bytes of which every line was saved as differences to a guess.

    A pixel's guess needs those left, above and above left, so that all pixels of a diagonal, where
    row + column is the same, are known at once.
    """
    height, width, pixel = lines.shape
    if filters.max() > 4:
        message = f"filter {filters.max()}"
        raise ValueError(message)
    known = np.zeros((height + 1, width + 1, pixel), np.int16)
    for diagonal in range(height + width - 1):
        r = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        c = diagonal - r
        a = known[r + 1, c]
        b = known[r, c + 1]
        guesses = (np.zeros_like(a), a, b, (a + b) // 2, _paeth(a, b, known[r, c]))
        guess = np.choose(filters[r][:, None], guesses)
        known[r + 1, c + 1] = (lines[r, c] + guess) & 255
    return known[1:, 1:].astype(np.uint8)


def _paeth(a: NDArray[np.int16], b: NDArray[np.int16], c: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return which of left a, above b and above left c is nearest to a + b − c."""
    to_a = abs(b - c)
    to_b = abs(a - c)
    to_c = abs(a + b - 2 * c)
    return np.where((to_a <= to_b) & (to_a <= to_c), a, np.where(to_b <= to_c, b, c))
