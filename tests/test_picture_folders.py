"""Folders of pictures as people have them: every mode, depth and turn, classes, sizes, frames."""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sde_diffusion import Dataset, DataSpec, describe, load_data
from sde_diffusion.checkpoints.fingerprint import fingerprint
from sde_diffusion.cli.main import main
from sde_diffusion.data.png import read_png


def noise(*shape: int, seed: int = 0, dtype: type = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, True)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"^load_data: .* must .*, got .*; ") as caught:
        load_data(path, "all", **options)
    return str(caught.value).replace(str(path), "PATH")


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def paeth(a: int, b: int, c: int) -> int:
    return min((a, b, c), key=lambda near: abs(a + b - c - near))  # the first of equals


def png16(pixels: NDArray[np.uint16], filters: list[int], interlaced: int = 0) -> bytes:
    """A PNG of 16 bits, byte by byte from the specification, with these filters in turn."""
    height, width, channels = pixels.shape
    size = 2 * channels
    rows = [bytes(size) + row.astype(">u2").tobytes() for row in pixels]
    above = bytes(len(rows[0]))
    lines = b""
    for row, kind in zip(rows, itertools.cycle(filters), strict=False):
        lines += bytes([kind])
        for i in range(size, len(row)):
            a, b, c = row[i - size], above[i], above[i - size]
            guess = (0, a, b, (a + b) // 2, paeth(a, b, c))[kind]
            lines += bytes([(row[i] - guess) % 256])
        above = row
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    packed = zlib.compress(lines)
    parts = [chunk(b"IHDR", head[:-1] + bytes([interlaced]))]
    parts += [chunk(b"IDAT", packed[:50]), chunk(b"IDAT", packed[50:]), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# --- modes ------------------------------------------------------------------------------------

MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with alpha",
    "P": "palette",
    "RGB": "rgb",
    "RGBA": "rgba",
    "CMYK": "CMYK",
}


@pytest.mark.parametrize(("mode", "pillows"), [("grey", "L"), ("rgb", "RGB"), ("rgba", "RGBA")])
@pytest.mark.parametrize("stored", MODES)
def test_a_picture_of_any_mode_in_the_mode_asked(
    tmp_path: Path, stored: str, mode: str, pillows: str
) -> None:
    picture = Image.fromarray(noise(6, 5, 4)).convert("RGB").convert(stored)
    picture.save(tmp_path / "a.tif")
    data = load_data(tmp_path, mode=mode)
    expected = np.asarray(picture.convert(pillows)).reshape(6, 5, -1)
    assert np.array_equal(data.values[0].numpy(), expected.transpose(2, 0, 1))
    said = f"{tmp_path.name}: pictures 1 of 1 converted to {mode} (1 {MODES[stored]})"
    assert data.notes == (() if stored == pillows else (said,))


@pytest.mark.parametrize(("suffix", "stored"), [("gif", "P"), ("png", "P"), ("bmp", "P")])
def test_a_palette_is_its_colours(tmp_path: Path, suffix: str, stored: str) -> None:
    colours = np.array([[255, 0, 0], [0, 128, 0], [9, 9, 255]], np.uint8)
    index = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)
    picture = Image.fromarray(index).convert("L").convert(stored)
    picture.putdata(index.flatten().tolist())
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(load_data(tmp_path).values[0].numpy(), colours[index].transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["gif", "png", "bmp"])
def test_a_palette_of_greys_is_grey(tmp_path: Path, suffix: str) -> None:
    greys = np.array([200, 3, 90], np.uint8)
    index = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)
    picture = Image.fromarray(index).convert("L").convert("P")
    picture.putdata(index.flatten().tolist())
    picture.putpalette(np.repeat(greys, 3).tobytes())
    picture.save(tmp_path / f"a.{suffix}")
    data = load_data(tmp_path)
    assert np.array_equal(data.values[0, 0].numpy(), greys[index])
    assert data.spec.shape == (1, 2, 3)


def test_a_transparent_palette_is_its_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(4, 4)).convert("P")
    picture.putpalette(noise(256, 3).tobytes())
    picture.save(tmp_path / "a.png", transparency=bytes(range(256)))
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(load_data(tmp_path).values[0].numpy(), expected)


def test_mixed_modes_become_that_of_most_pictures_of_all_parts(tmp_path: Path) -> None:
    for part, modes in {"train": ("RGB", "L", "L"), "test": ("RGB", "RGB")}.items():
        (tmp_path / part).mkdir()
        for i, mode in enumerate(modes):
            Image.fromarray(noise(4, 4, 3)).convert(mode).save(tmp_path / part / f"{i}.png")
    data = load_data(tmp_path, "train")
    assert data.spec.shape == (3, 4, 4)  # as in the test part, though most here are grey
    assert data.notes == (f"{tmp_path.name}: pictures 2 of 3 converted to rgb (2 grey)",)
    assert load_data(tmp_path, "train", mode="grey").spec.shape == (1, 4, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(16, 24, 3)).save(file, exif=exif, lossless=True)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert expected.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    assert np.array_equal(load_data(tmp_path).values[0].numpy(), expected.transpose(2, 0, 1))


# --- 16 bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_levels(tmp_path: Path, suffix: str) -> None:
    pixels = noise(5, 7, dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    data = load_data(tmp_path)
    assert data.spec == DataSpec(tmp_path.name, (1, 5, 7), 65536)
    assert np.array_equal(data.values[0, 0].numpy(), pixels)
    assert data.notes == ()


@pytest.mark.parametrize("filters", [[0], [1], [2], [3], [4], [4, 3, 2, 1, 0, 4, 1]], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_colours_of_16_bits_keep_their_levels(
    tmp_path: Path, channels: int, filters: list[int]
) -> None:
    smooth = np.cumsum(noise(9, 6, channels) // 8, axis=1).astype(np.uint16) * 257
    pixels = np.where(noise(9, 6, 1, seed=1) < 128, smooth, noise(9, 6, channels, dtype=np.uint16))
    (tmp_path / "a.png").write_bytes(png16(pixels, filters))
    kept = pixels if channels != 2 else pixels[..., :1]  # grey without its alpha
    data = load_data(tmp_path)
    assert data.spec == DataSpec(tmp_path.name, (kept.shape[2], 9, 6), 65536)
    assert np.array_equal(data.values[0].numpy(), kept.transpose(2, 0, 1))


def test_grey_of_16_bit_colours_is_the_published_sum(tmp_path: Path) -> None:
    pixels = noise(4, 4, 3, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png16(pixels, [0]))
    grey = load_data(tmp_path, mode="grey").values[0, 0].double().numpy()
    assert np.abs(grey - pixels @ np.array([0.299, 0.587, 0.114])).max() <= 0.5
    (tmp_path / "a.png").write_bytes(png16(pixels[..., :1], [0]))
    rgb = load_data(tmp_path, mode="rgb").values[0].numpy()
    assert np.array_equal(rgb, np.repeat(pixels[..., :1], 3, 2).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_the_png_reader_agrees_with_pillow(tmp_path: Path, mode: str) -> None:
    """Pillow chooses a filter for every line, and it cannot write colours of 16 bits."""
    slope = np.add.outer(np.arange(40), np.arange(30))[..., None] * np.array([1, 2, 3, 4])
    picture = Image.fromarray((slope + noise(40, 30, 4) // 64).astype(np.uint8)).convert(mode)
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture).reshape(40, 30, -1)
    content = (tmp_path / "a.png").read_bytes()
    assert np.array_equal(read_png(content), expected)
    with pytest.raises((ValueError, zlib.error)):
        read_png(content[:200] + b"!" + content[201:])


def test_depths_that_are_not_read_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "b.png"
    deep = noise(4, 4, 3, dtype=np.uint16)
    file.write_bytes(png16(deep, [0], interlaced=1))
    assert "PATH/b.png must not be interlaced, having 16 bits a channel" in refusal(tmp_path)
    file.write_bytes(png16(deep, [0]))
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "a.png")
    assert "PATH/b.png must have the 8 bits a channel of a.png, got 16; put" in refusal(tmp_path)
    file.unlink()
    (tmp_path / "a.png").unlink()
    Image.fromarray(noise(4, 4).astype(np.float32)).save(tmp_path / "a.tif")
    assert "must have 8 or 16 bits a channel, grey or of colours, got mode F; save" in refusal(
        tmp_path
    )
    (tmp_path / "a.tif").write_bytes(tiff16())
    assert "or 16 in a .png or of grey, got 16 bits of RGB in a TIFF; save it as .png" in refusal(
        tmp_path
    )


def tiff16() -> bytes:
    """A TIFF of one pixel of three times 16 bits, from the format's description."""
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 6), (284, 3, 1, 1)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<6H", 16, 16, 16, 1, 2, 3)


# --- sizes and frames -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (8, 8), (5, 6)])
def test_size_resizes_and_crops_at_the_centre(tmp_path: Path, shape: tuple[int, int]) -> None:
    picture = Image.fromarray(noise(*shape, 3))
    picture.save(tmp_path / "a.png")
    data = load_data(tmp_path, size=8)
    expected = np.asarray(ImageOps.fit(picture, (8, 8), Image.Resampling.BICUBIC), np.int16)
    assert np.abs(data.values[0].numpy().astype(np.int16) - expected.transpose(2, 0, 1)).max() <= 1
    said = (f"{tmp_path.name}: pictures 1 of 1 resized and cropped to 8 × 8",)
    assert data.notes == (() if shape == (8, 8) else said)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_wide_picture_is_the_middle_of_its_small_copy(tmp_path: Path, dtype: type) -> None:
    pixels = noise(8, 24, dtype=dtype)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = Image.fromarray(pixels.astype(np.float32)).resize((12, 4), Image.Resampling.BICUBIC)
    middle = np.asarray(small)[:, 4:8].clip(0, np.iinfo(dtype).max)
    assert np.abs(load_data(tmp_path, size=4).values[0, 0].numpy() - middle).max() < 0.51


def test_frames_are_read_on_demand(tmp_path: Path) -> None:
    frames = [np.full((4, 5), 60 * i, np.uint8) for i in range(3)]
    first, *rest = map(Image.fromarray, frames)
    for name in ("a.gif", "b.tif"):
        first.save(tmp_path / name, save_all=True, append_images=rest)
    Image.fromarray(frames[2]).save(tmp_path / "c.png")
    data = load_data(tmp_path)
    assert data.values[:, 0, 0, 0].tolist() == [0, 0, 120]
    said = "of 2 with several frames the first; --frames all reads all"
    assert data.notes[0].endswith(said)
    assert load_data(tmp_path, frames="all").values[:, 0, 3, 4].tolist() == [
        *(0, 60, 120),
        *(0, 60, 120),
        120,
    ]


# --- classes ----------------------------------------------------------------------------------


def fill(folder: Path, counts: dict[str, int]) -> None:
    """Pictures whose first pixel is the number of their class in the order given."""
    for value, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = noise(8, 8, seed=i)
            pixels[0, 0] = value
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_folders_of_classes_are_labels_with_names(tmp_path: Path) -> None:
    fill(tmp_path, {"ant": 4, "bee": 8, "cat": 2})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes").mkdir()
    data = load_data(tmp_path)
    assert data.classes == ("ant", "bee", "cat")
    assert data.labels is not None
    assert data.labels.tolist() == data.values[:, 0, 0, 0].tolist()
    # Any part holds the classes in proportion, so that --limit and --held-out keep all of them.
    for half in (data.labels[:7], data.labels[7:]):
        assert half.bincount().tolist() == [2, 4, 1]
    assert load_data(tmp_path, limit=7).labels.tolist() == data.labels[:7].tolist()  # type: ignore[union-attr]


def test_the_classes_of_a_part_have_the_numbers_of_the_whole(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"ant": 2, "bee": 1, "cat": 1})
    fill(tmp_path / "test", {"cat": 3})
    test = load_data(tmp_path, "test")
    assert test.classes == ("ant", "bee", "cat")
    assert test.labels is not None
    assert test.labels.tolist() == [2, 2, 2]
    assert len(load_data(tmp_path, "all")) == 7


def test_classes_named_by_numbers_come_in_the_order_of_these(tmp_path: Path) -> None:
    fill(tmp_path, {str(i): 1 for i in range(12)})
    data = load_data(tmp_path)
    assert data.labels is not None
    assert data.labels.tolist() == data.values[:, 0, 0, 0].tolist() == list(range(12))


def test_pictures_beside_folders_of_classes_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"ant": 1})
    Image.fromarray(noise(8, 8)).save(tmp_path / "logo.png")
    assert "not both, got logo.png beside ant; move" in refusal(tmp_path)


def test_names_leave_the_specification_and_its_fingerprint_alone(tmp_path: Path) -> None:
    fill(tmp_path / "folder", {"ant": 2, "bee": 2})
    data = load_data(tmp_path / "folder")
    np.save(tmp_path / "folder.npy", data.values.numpy())
    plain = load_data(tmp_path / "folder.npy")
    assert data.spec == plain.spec
    assert fingerprint(data.spec) == fingerprint(plain.spec)
    with pytest.raises(ValueError, match=r"labels of 'folder' must be below the 1 names of clas"):
        Dataset(data.spec, data.values, data.labels, ("ant",))


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


TINY = ["--steps", 1, "--width", 8, "--batch-size", 4, "--device", "cpu", "--network", "blocks=1"]


def test_classes_are_learned_shown_and_sampled_by_name(tmp_path: Path) -> None:
    fill(tmp_path / "pets", {"cat": 3, "dog": 3, "t-shirt": 3})
    out = tmp_path / "run"
    made = run("train", "--data", tmp_path / "pets", "--conditional", *TINY, "--out", out)
    assert "note:" not in made.stderr
    assert describe(out)["network"]["config"]["classes"] == 3
    assert "classes=[cat, dog, t-shirt]" in run("info", out).stdout
    assert json.loads(run("info", out, "--json").stdout)["dataset"]["classes"][1] == "dog"
    for words, labels in (
        ("dog", [1, 1, 1, 1]),
        ("t-shirt,cat", [2, 0, 2, 0]),
        ("0-1", [0, 1, 0, 1]),
        ("cat-dog", [0, 1, 0, 1]),
    ):
        drawn = tmp_path / words
        run("sample", "--model", out, "--class", words, "-n", 4, "--steps", 1, "--out", drawn)
        assert np.load(drawn / "samples.npz")["labels"].tolist() == labels
    arguments = ["sample", "--model", str(out), "--class", "cow", "--out", str(tmp_path / "none")]
    refused = CliRunner().invoke(main, arguments)
    assert "class must be of cat, dog, t-shirt, or 0 … 2, such as" in refused.stderr


def test_folders_of_classes_that_are_not_learned_are_said_to_be_unused(tmp_path: Path) -> None:
    fill(tmp_path / "pets", {"cat": 3, "dog": 3})
    made = run("train", "--data", tmp_path / "pets", *TINY, "--out", tmp_path / "run")
    said = "note: pets: its 2 classes are not learned; --conditional learns them\n"
    assert made.stderr.endswith(said)
    assert made.stderr.count("note:") == 1
    assert "classes" not in describe(tmp_path / "run")["dataset"]


# --- parts ------------------------------------------------------------------------------------


def test_a_flat_folder_is_compared_and_evaluated_as_a_whole(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(6):
        Image.fromarray(noise(8, 8, seed=i)).convert("RGB").save(flat / f"{i}.png")
    model = ["--model", tmp_path / "run", "--data", flat, "--device", "cpu"]
    run("train", "--data", flat, "--mode", "grey", *TINY, "--out", tmp_path / "run")
    fast = ["--tolerance", 0.1, "--probes", 1, "--mode", "reverse"]
    done = run("likelihood", *model, *fast, "--out", tmp_path / "bits", "--json")
    assert json.loads(done.stdout)["samples"] == 6
    assert "6 of 6 converted to grey (6 rgb)" in done.stderr
    short = ["--solver", "ddim", "--nfe", 2, "--samples", 2, "--replicates", 2]
    for split in ([], ["--split", "train"]):
        done = run("compare", *model, *short, "--reference-steps", 4, *split, "--out", tmp_path)
        assert "6 of 6 converted to grey" in done.stderr
