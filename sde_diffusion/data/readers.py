"""Readers of data files, which refuse a damaged file with an error that says what is wrong.

A reader returns the samples and their class numbers, or None where the file has none. Nothing is
unpickled, and a file that is cut short is never read in part.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sde_diffusion._check import wrong_value

Rows = tuple[NDArray[Any], NDArray[Any] | None]

SPLITS: Final = ("train", "test", "all")
_IDX_IMAGES: Final = 0x0803
_IDX_LABELS: Final = 0x0801
_CIFAR_SHAPE: Final = (3, 32, 32)
_CIFAR_CLASSES: Final = 10
_CHANNELS: Final = (1, 3, 4)
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_PICTURE_MODES: Final = ("L", "RGB", "RGBA")


def _refusal(path: Path, rule: str, got: object, remedy: str) -> ValueError:
    return wrong_value("load_data", str(path), rule, got, remedy)


def read_file(path: Path, split: str) -> Rows | None:
    """Return the rows of one file, or None for a kind of file that is not read."""
    reader: Callable[[Path], Rows]
    if path.suffix in {".npy", ".npz"}:
        reader = read_arrays
    elif path.suffix == ".bin":
        reader = read_cifar
    elif path.suffix == ".gz" or "idx" in path.name:
        reader = read_idx
    else:
        return None
    _check_undivided(path, split)
    return reader(path)


def read_folder(path: Path, split: str, limit: int | None) -> Rows:
    """Return the rows of a split of a folder of MNIST files, CIFAR-10 batches or images."""
    for reader, parts in (
        (
            read_idx,
            {
                "train": r"train-images[-.]idx3-ubyte(\.gz)?",
                "test": r"t10k-images[-.]idx3-ubyte(\.gz)?",
            },
        ),
        (read_cifar, {"train": r"data_batch_\d+\.bin", "test": r"test_batch\.bin"}),
    ):
        found = {part: _matching(path, pattern) for part, pattern in parts.items()}
        if not any(found.values()):
            continue
        wanted = list(found) if split == "all" else [split]
        for part in wanted:
            if not found[part]:
                error = _refusal(
                    path,
                    f"hold the {part} files",
                    "none that match " + parts[part],
                    "add them or choose another split",
                )
                raise FileNotFoundError(str(error))
        return _joined(path, [reader(file) for part in wanted for file in found[part]])
    return read_pictures(_pictures(path, split)[:limit]), None


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern, each once: `a` and not `a.gz` where both are there."""
    names = sorted(file.name for file in folder.iterdir() if re.fullmatch(pattern, file.name))
    return [
        folder / name
        for name in names
        if name.removesuffix(".gz") == name or name.removesuffix(".gz") not in names
    ]


def _joined(path: Path, parts: list[Rows]) -> Rows:
    shapes = {values.shape[1:] for values, _ in parts}
    if len(shapes) > 1:
        raise _refusal(path, "hold files of one image size", sorted(shapes), "split the folder")
    labels = [classes for _, classes in parts if classes is not None]
    complete = len(labels) == len(parts)
    return np.concatenate([values for values, _ in parts]), (
        np.concatenate(labels) if complete else None
    )


def _check_undivided(path: Path, split: str) -> None:
    if split == "test":
        rule = f"be train or all for {path}, which has no test part"
        raise wrong_value(
            "load_data",
            "split",
            rule,
            split,
            "keep test data in a file of its own, with split='all'",
        )


def checked(path: Path, rows: Rows) -> Rows:
    """Return rows of numbers, channels first, with one label a row.

    Errors: ValueError for no rows, dtypes other than integers and floats, single numbers as
    samples, and labels that do not fit.
    """
    values, labels = rows
    if values.dtype.kind not in "uif":
        raise _refusal(
            path,
            "hold integers or floats",
            f"dtype {values.dtype}",
            "save the array as uint8 or float32",
        )
    if values.ndim < 2:
        raise _refusal(
            path,
            "hold an array (N, …) of at least two axes",
            values.shape,
            "save array.reshape(N, -1)",
        )
    if 0 in values.shape:
        raise _refusal(
            path,
            "hold at least one sample",
            f"shape {values.shape}",
            "check how the file was written",
        )
    if labels is not None and (labels.dtype.kind not in "ui" or labels.shape != values.shape[:1]):
        raise _refusal(
            path,
            f"hold one integer label for each of {len(values)} rows",
            f"{labels.dtype} of shape {labels.shape}",
            "save class numbers",
        )
    return _channels_first(values), labels


def _channels_first(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 3:
        return values[:, None]
    last = values.ndim == 4 and values.dtype == np.uint8 and values.shape[3] in _CHANNELS
    return np.moveaxis(values, 3, 1) if last and values.shape[1] not in _CHANNELS else values


def read_arrays(path: Path) -> Rows:
    """Return the array of a .npy file, or `images`, `x` or the only array of a .npz file."""
    try:
        # Opened here, because numpy leaves a damaged .npz open.
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded, None
            with loaded:
                arrays = {key: np.asarray(loaded[key]) for key in loaded.files}
    # A damaged file makes numpy and zipfile raise about ten kinds, SyntaxError among them.
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise _refusal(
            path,
            "be a whole .npy or .npz file of numbers",
            got,
            "save integers or floats with numpy.save",
        ) from error
    labels = next((arrays.pop(key) for key in ("labels", "y") if key in arrays), None)
    values = next((arrays[key] for key in ("images", "x") if key in arrays), None)
    if values is None and len(arrays) == 1:
        (values,) = arrays.values()
    if values is None:
        raise _refusal(
            path,
            "hold an array named images or x, or one array only",
            sorted(arrays),
            "save it as numpy.savez(path, images=…, labels=…)",
        )
    return values, labels


def read_idx(path: Path) -> Rows:
    """Return the images of an IDX file, with the labels that lie beside it under MNIST's names.

    Source: Y. LeCun, C. Cortes, C. Burges, the MNIST database, "File formats".
    """
    images = _idx(path, _IDX_IMAGES)
    plain = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    if "images" not in path.name:
        return images, None
    beside = [path.with_name(plain + suffix) for suffix in ("", ".gz")]
    labels = next((_idx(file, _IDX_LABELS) for file in beside if file.is_file()), None)
    return images, labels


def _idx(path: Path, magic: int) -> NDArray[Any]:
    content = _content(path)
    if content[:4] != magic.to_bytes(4, "big"):
        kind = "images" if magic == _IDX_IMAGES else "labels"
        raise _refusal(
            path,
            f"start with the IDX magic number 0x{magic:08x} of {kind}",
            f"0x{content[:4].hex()}",
            f"pass the file of {kind}",
        )
    axes = magic & 0xFF
    start = 4 + 4 * axes
    shape = struct.unpack_from(f">{axes}I", content.ljust(start, b"\0"), 4)
    whole = start + math.prod(shape)
    if len(content) != whole:
        raise _refusal(
            path,
            f"be {whole} bytes long by its header",
            f"{len(content)} bytes",
            "download it again",
        )
    return np.frombuffer(content, np.uint8)[start:].reshape(shape)


def _content(path: Path) -> bytes:
    """Return the bytes of a file, unpacked where they are gzip, whatever the file is called."""
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise _refusal(path, "be a whole gzip file", str(error), "download it again") from error


def read_cifar(path: Path) -> Rows:
    """Return the images and labels of a CIFAR-10 binary batch: records of 1 + 3·32·32 bytes.

    Source: A. Krizhevsky, the CIFAR-10 data set, "Binary version".
    """
    record = 1 + math.prod(_CIFAR_SHAPE)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if content.size % record:
        raise _refusal(
            path,
            f"hold whole CIFAR-10 records of {record} bytes",
            f"{content.size} bytes",
            "download it again",
        )
    records = content.reshape(-1, record)
    labels = records[:, 0]
    if labels.size and labels.max() >= _CIFAR_CLASSES:
        raise _refusal(
            path,
            "start each CIFAR-10 record with a label from 0 to 9",
            int(labels.max()),
            "pass the batches of the binary version",
        )
    return records[:, 1:].reshape(-1, *_CIFAR_SHAPE), labels


def _pictures(path: Path, split: str) -> list[Path]:
    """Return the image files of a folder, by name, or of its subfolders train and test."""
    parts = {part: path / part for part in ("train", "test") if (path / part).is_dir()}
    if not parts:
        folders = [path]
    else:
        folders = list(parts.values()) if split == "all" else [parts.get(split, path / split)]
    files = [
        file
        for folder in folders
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in _PICTURES and not file.name.startswith(".")
    ]
    if not files:
        raise _refusal(
            folders[0],
            f"hold MNIST files, CIFAR-10 batches or {'/'.join(_PICTURES)}",
            "none of them",
            "pass the folder that holds them",
        )
    if not parts:
        _check_undivided(path, split)
    return files


def read_pictures(files: list[Path]) -> NDArray[Any]:
    """Return 8-bit images of one size and one mode (grey, RGB or RGBA), channels first.

    Shapes: (N, C, H, W).
    """
    first = _picture(files[0])
    pictures = np.empty((len(files), *first.shape), np.uint8)
    for row, file in enumerate(files):
        picture = _picture(file)
        if picture.shape != first.shape:
            raise _refusal(
                file,
                f"have the shape {first.shape} of {files[0].name}",
                picture.shape,
                "resize the images to one size and mode",
            )
        pictures[row] = picture
    return pictures


def _picture(file: Path) -> NDArray[Any]:
    # Imported where it is needed: arrays and IDX files must not wait for it.
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode = image.mode
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _refusal(
            file, "be a whole image", f"{type(error).__name__}: {error}", "save it again as .png"
        ) from error
    if mode not in _PICTURE_MODES:
        raise _refusal(file, "be 8-bit grey, RGB or RGBA", f"mode {mode}", "convert it to RGB")
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
