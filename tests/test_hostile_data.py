"""Damaged and malicious data files end in a refusal, in little time and memory."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sde_diffusion import load_data

GIGABYTE = 2**30
CHILD = """
import resource, sys
from sde_diffusion import load_data
load_data("digits")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for source in sys.argv[1:]:
    try:
        load_data(source, "all")
    except ValueError as error:
        print((peak() - before) * 1024, error)
"""


def idx(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width: int, height: int, depth: int, colour: int, packed: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def npy(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def npz(content: bytes, claimed: int) -> bytes:
    """An archive whose directory claims more bytes for its array than there are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
        archive.filelist[0].file_size = claimed
    return buffer.getvalue()


def zeros(megabytes: int) -> bytes:
    """Gzip members of zeros, a thousandth of their size."""
    return gzip.compress(bytes(2**20)) * megabytes


HUGE = 3 * GIGABYTE
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "whole.idx.gz": (
        lambda: gzip.compress(idx(3 * 2**10, 2**10, 2**10)) + zeros(3 * 2**10),
        "must expand to at most",
    ),
    "longer.idx.gz": (
        lambda: gzip.compress(idx(1, 2**10, 2**10)) + zeros(3 * 2**10),
        "must be 1048592 bytes long by its header, got more than 1048592 bytes",
    ),
    "head.idx": (lambda: idx(2**31, 2**31, 2**31), "must expand to at most"),
    "head.npy": (lambda: npy((HUGE, 2)), f"got 128 bytes, {2 * HUGE + 128} by its header"),
    "overflow.npy": (lambda: npy((2**62, 2**62), "<f8"), "got 128 bytes, "),
    "negative.npy": (lambda: npy((-2, -8)) + bytes(16), "got 144 bytes, 144 by its header"),
    "claimed.npz": (lambda: npz(npy((HUGE, 1)), HUGE + 128), "must expand to at most"),
    "inside.npz": (lambda: npz(npy((HUGE, 1)), 128), f"got 128 bytes, {HUGE + 128} by its"),
    "wide.png": (lambda: png(9000, 9000, 8, 2, bytes(10**5)), "must have at most 67108864 pixels"),
    "wider.png": (lambda: png(2**30, 2**30, 8, 2, b""), "must be a whole image, got Decompress"),
    "deep.png": (
        lambda: png(2**12 + 1, 2**12, 16, 2, bytes(10**5)),
        "must have at most 16777216 pix",
    ),
    "empty.png": (
        lambda: png(3000, 3000, 8, 2, b""),
        "must have at most 4194304 pixels, being 57 bytes long, got 3000 × 3000; save a smaller",
    ),
    "packed.png": (
        lambda: png(64, 64, 16, 2, zlib.compress(bytes(2**28)) * 12),
        "must be a whole image",
    ),
}


def test_bombs_are_refused_by_their_headers(tmp_path: Path) -> None:
    sources = []
    for number, (name, (content, _)) in enumerate(BOMBS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(content())
        sources.append(str(folder if name.endswith("png") else folder / name))
    child = [sys.executable, "-c", CHILD, *sources]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS), lines
    for line, (_, text) in zip(lines, BOMBS.values(), strict=True):
        used, _, said = line.partition(" ")
        assert text in said, said
        assert int(used) < GIGABYTE, said


def test_a_folder_of_pictures_that_are_small_alone_is_bounded_as_a_whole(tmp_path: Path) -> None:
    blank = Image.fromarray(np.zeros((1024, 1024, 3), np.uint8))
    blank.save(tmp_path / "0.png")
    content = (tmp_path / "0.png").read_bytes()
    for i in range(1, 100):
        (tmp_path / f"{i}.png").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"must expand to at most 268435456 bytes, being .* got 31"
    ):
        load_data(tmp_path)
    assert load_data(tmp_path, limit=2, size=8).values.shape == (2, 3, 8, 8)
