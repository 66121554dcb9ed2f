"""The rows of docs/your_data.md are typed as they stand there."""

from __future__ import annotations

import gzip
import pickle
import re
import shlex
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from sde_diffusion import describe
from sde_diffusion.cli.main import main
from sde_diffusion.data.sounds import write_sounds

PAGE = Path(__file__).resolve().parents[1] / "docs" / "your_data.md"
ROWS = [
    tuple(cell.strip() for cell in line.strip("|\n").split("|"))
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and "`sde-diffusion" in line
]
RNG = np.random.default_rng(0)


def noise(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, np.uint8)


def idx(values: NDArray[np.uint8]) -> bytes:
    head = bytes([0, 0, 8, values.ndim])
    return head + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def save(folder: Path, name: str, *pictures: Image.Image) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    first, *more = pictures
    first.save(folder / name, **({"save_all": True, "append_images": more} if more else {}))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    colours = [Image.fromarray(noise(8, 8, 3)) for _ in range(6)]
    for i, picture in enumerate(colours):
        save(folder, f"pictures/{i}.{('png', 'jpg', 'webp', 'bmp', 'tif', 'png')[i]}", picture)
        save(folder, f"photos/{i}.png", picture.resize((20 + i, 30 - i)))
        save(folder, f"mixed/{i}.tif", picture.convert(("RGB", "RGB", "RGB", "L", "CMYK", "P")[i]))
        save(folder, f"pets/{('cat', 'dog')[i % 2]}/{i}.png", picture)
        save(folder, f"parts/{('train', 'test')[i % 2]}/{i}.png", picture.convert("L"))
    write_sounds(folder / "song.wav", RNG.integers(0, 2**16, size=(6, 2, 256)), 8000)
    save(folder, "clips/a.gif", *(picture.convert("L") for picture in colours))
    (folder / "scans").mkdir()
    (folder / "scans" / "a.png").write_bytes(deep_png())
    arrays(folder)
    binaries(folder)
    return folder


def deep_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + noise(8, 6).tobytes() for _ in range(8))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    )


def arrays(folder: Path) -> None:
    images, labels = noise(6, 8, 8), np.arange(6) % 3
    np.save(folder / "images.npy", images)
    np.save(folder / "last.npy", noise(6, 8, 8, 3))
    np.save(folder / "features.npy", RNG.normal(size=(6, 8, 8, 16)))
    np.save(folder / "counts.npy", images.astype(np.uint16) * 16)
    np.save(folder / "floats.npy", images.astype(np.float64))
    np.save(folder / "points.npy", RNG.normal(size=(6, 2)))
    np.save(folder / "units.npy", RNG.uniform(0, 255, size=(6, 3)))
    np.save(folder / "series.npy", RNG.normal(size=(6, 2, 100)))
    np.save(folder / "scans3d.npy", noise(6, 1, 8, 8, 8))
    np.savez(folder / "labelled.npz", images=images, labels=labels)
    named = {"x_train": images, "y_train": labels, "x_test": images[::-1], "y_test": labels}
    np.savez(folder / "parts.npz", **named)  # type: ignore[arg-type]


def binaries(folder: Path) -> None:
    for name in ("mnist-files", "cifar-10-batches-bin", "cifar-10-batches-py"):
        (folder / name).mkdir()
    mnist = folder / "mnist-files"
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(noise(6, 8, 8))))
    (mnist / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(6, dtype=np.uint8) % 3))
    (folder / "letters.idx.gz").write_bytes(gzip.compress(idx(noise(6, 8, 8))))
    records = b"".join(bytes([i]) + noise(3072).tobytes() for i in range(4))
    (folder / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(records)
    (folder / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps({}))


@pytest.mark.parametrize(("have", "words", "samples"), ROWS, ids=[row[1] for row in ROWS])
def test_a_row_does_what_it_says(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    have: str,
    words: str,
    samples: str,
) -> None:
    for source in files.iterdir():
        (tmp_path / source.name).symlink_to(source)
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(words.strip("`"))
    assert program == "sde-diffusion", have
    done = CliRunner().invoke(main, arguments)
    if samples.startswith("refused"):
        assert done.exit_code == 2, done.output
        assert "cifar-10-binary.tar.gz" in done.stderr
        return
    assert done.exit_code == 0, done.output
    (run,) = (tmp_path / "runs").iterdir()
    made = describe(run)
    shape = re.search(r"`\(([\d, ]*)\)`", samples)
    levels = re.search(r"of (\d+) levels", samples)
    classes = re.search(r"of (\d) classes", samples)
    assert shape is not None
    assert made["data"]["shape"] == [int(n) for n in shape[1].split(",") if n.strip()]
    assert made["data"]["levels"] == (int(levels[1]) if levels else None)
    assert made["network"]["config"].get("classes") == (int(classes[1]) if classes else None)
    assert ("note: " in done.stderr) == ("with a note" in samples), done.stderr


def test_the_table_has_all_that_the_page_promises() -> None:
    assert len(ROWS) >= 20
