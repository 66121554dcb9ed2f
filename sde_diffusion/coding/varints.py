"""Whole numbers as bytes of seven bits each, the last one below 128: LEB128."""

from __future__ import annotations

from sde_diffusion._check import wrong_value


def varint(number: int) -> bytes:
    """Return the bytes of a number from 0.

    >>> varint(300).hex(), read_varint(memoryview(varint(300) + b"rest"))[0]
    ('ac02', 300)
    """
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def varints(*numbers: int) -> bytes:
    """Return the bytes of several."""
    return b"".join(map(varint, numbers))


def read_varint(data: memoryview) -> tuple[int, memoryview]:
    """Return the number below 2⁶³ at the beginning of bytes, and those that follow.

    Errors: ValueError for bytes that end before it does.
    """
    number = 0
    for i, byte in enumerate(data[:9]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, data[i + 1 :]
    raise wrong_value(
        "decompress", "block", "hold whole numbers", "one without an end", "get the file again"
    )


def read_varints(data: memoryview, count: int) -> tuple[list[int], memoryview]:
    """Return ``count`` numbers at the beginning of bytes, and those that follow."""
    numbers = list[int]()
    for _ in range(count):  # never more than there are bytes
        number, data = read_varint(data)
        numbers.append(number)
    return numbers, data
