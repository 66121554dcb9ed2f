"""Damaged and malicious data files end in a refusal, in little time and memory."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import struct
import subprocess
import sys
import time
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


# --- mutations --------------------------------------------------------------------------------


def picture(mode: str, kind: str, **options: object) -> bytes:
    rng = np.random.default_rng(0)
    made = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    made.save(buffer, kind, **options)
    return buffer.getvalue()


def saved(save: Callable[..., None], *arrays: object, **named: object) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def whole_files() -> dict[str, bytes]:
    """Files of every kind that are read as they are, by name."""
    values = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    images = idx(*values.shape) + values.tobytes()
    labels = np.arange(5)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = [Image.new("L", (7, 9), i) for i in (3, 5)]
    deep = np.arange(9 * 43, dtype=np.uint8).reshape(9, 43)
    deep[:, 0] %= 5
    return {
        "a.idx": images,
        "b.idx.gz": gzip.compress(images),
        "c.npy": saved(np.save, values),
        "d.npy": saved(np.save, values / 7),
        "e.npz": saved(np.savez, x=values, y=labels),
        "f.npz": saved(np.savez_compressed, x_train=values, y_train=labels, x_test=values),
        "g.bin": bytes(2 * 3073),
        "h.png": picture("RGB", "png"),
        "i.png": picture("P", "png", transparency=bytes(range(9))),
        "j.png": saved(lambda b: Image.fromarray(deep.astype(np.uint16)).save(b, "png")),
        "k.png": png(7, 9, 16, 2, zlib.compress(deep.tobytes())),
        "l.jpg": picture("RGB", "jpeg", exif=exif),
        "m.jpg": picture("CMYK", "jpeg", progressive=True),
        "n.gif": picture("L", "gif", save_all=True, append_images=more),
        "o.tif": picture("RGB", "tiff"),
        "p.tif": picture("L", "tiff", compression="tiff_lzw", save_all=True, append_images=more),
        "q.bmp": picture("RGB", "bmp"),
        "r.webp": picture("RGBA", "webp"),
        "s.webp": picture("RGB", "webp", save_all=True, append_images=more),
    }


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return the content with some bytes changed, cut, repeated or replaced by large numbers."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(made) + 1)
        # Headers decide the most, so that half of all changes are made to them.
        place = min(place, rng.randrange(64)) if rng.random() < 0.5 else place
        match rng.randrange(6):
            case 0:
                made[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                made[place : place + 4] = struct.pack(
                    rng.choice("<>") + "I", rng.choice((0, 2**31 - 1, 2**32 - 1, 2**16, 2**28))
                )
            case 2:
                del made[place : place + rng.randrange(1, 30)]
            case 3:
                made[place:place] = rng.randbytes(rng.randrange(1, 30))
            case 4:
                made[place : place + 1] = (
                    bytes([made[place] ^ 1 << rng.randrange(8)]) if (place < len(made)) else b"?"
                )
            case _:
                made[place:place] = made[place : place + rng.randrange(200)]
        made = made or bytearray(b"!")
    return bytes(made)


def with_checksums(content: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums of what they hold now."""
    made = bytearray(content)
    place = 8
    while place + 12 <= len(made):
        end = place + 8 + int.from_bytes(made[place : place + 4], "big")
        if end + 4 > len(made):
            break
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[place + 4 : end]))
        place = end + 4
    return bytes(made)


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    """Seeded; SDE_DIFFUSION_MUTATIONS=100000 asks for more of them."""
    count = int(os.environ.get("SDE_DIFFUSION_MUTATIONS", "4000"))
    files = whole_files()
    rng = random.Random(0)
    for name, content in files.items():
        assert read(tmp_path, name, content, {}) == "read"
    seen = {"read": 0, "refused": 0}
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        name = rng.choice(list(files))
        content = mutated(files[name], rng)
        if name.endswith(".png") and rng.random() < 0.7:
            content = with_checksums(content)
        options = {"frames": rng.choice(("first", "all")), "size": rng.choice((None, 5))}
        began = time.process_time()
        seen[read(tmp_path, name, content, options)] += 1
        spent = time.process_time() - began
        slowest = max(slowest, spent)
        assert spent < 2, (number, name)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert used * 1024 < GIGABYTE, (number, name)
    print(seen, f"slowest {slowest:.2f} s, {used / 2**20:.2f} GiB more at most")  # noqa: T201
    assert min(seen.values()) > count // 100  # it would find nothing where all are alike


def read(folder: Path, name: str, content: bytes, options: dict[str, object]) -> str:
    """Read a file and return what became of it; any other error is the test's failure."""
    file = folder / name
    file.write_bytes(content)
    picture = file.suffix not in (".idx", ".gz", ".npy", ".npz", ".bin")
    try:
        load_data(folder if picture else file, "all", **options)  # type: ignore[arg-type]
    except (ValueError, TypeError, FileNotFoundError, OSError):
        return "refused"
    else:
        return "read"
    finally:
        file.unlink()
