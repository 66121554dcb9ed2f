"""Which reader a file or a folder asks for, and what rows must be like whoever reads them.

A reader returns `Rows`. Nothing is unpickled, a file that is cut short is never read in part, and
what a file expands to is bounded by its header first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from sde_diffusion._check import wrong_value
from sde_diffusion.data.arrays import has_test_arrays, read_npy, read_npz
from sde_diffusion.data.binaries import read_cifar, read_idx
from sde_diffusion.data.layout import channels_first
from sde_diffusion.data.picture_files import SUFFIXES, find_pictures
from sde_diffusion.data.pictures import read_pictures
from sde_diffusion.data.rows import ReadingOptions, Rows, check_undivided, joined, refusal
from sde_diffusion.data.sounds import SUFFIX, read_sounds
from sde_diffusion.data.spec import check_span

# The files of a folder that belong together, by split.
_FOLDERS: Final[tuple[tuple[Callable[[Path], Rows], dict[str, str]], ...]] = (
    (
        read_idx,
        {
            "train": r"train-images[-.]idx3-ubyte(\.gz)?",
            "test": r"t10k-images[-.]idx3-ubyte(\.gz)?",
        },
    ),
    (read_cifar, {"train": r"data_batch_\d+\.bin", "test": r"test_batch\.bin"}),
)
_PICKLED: Final = r"data_batch_\d+|test_batch"  # the batches of CIFAR-10's Python version
_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]")
_ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".zip")
_BINARY: Final = (
    "get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and "
    "pass its folder cifar-10-batches-bin"
)


def read_file(path: Path, split: str, reading: ReadingOptions) -> Rows | None:
    """Return the rows of one file, or None for a kind of file that is not read."""
    if path.suffix == ".npz":
        return read_npz(path, split)
    reader: Callable[[Path], Rows]
    if path.name.endswith(_ARCHIVES):
        raise refusal(path, "be unpacked", "an archive", "unpack it and pass the folder")
    if path.suffix == ".npy":
        reader = read_npy
    elif path.suffix.lower() == SUFFIX:
        check_undivided(path, split)
        return read_sounds(path, [path], reading.length)
    elif path.suffix == ".bin":
        reader = read_cifar
    elif path.suffix == ".gz" or "idx" in path.name:
        reader = read_idx
    else:
        _check_not_pickled(path)
        return None
    check_undivided(path, split)
    return reader(path)


def read_folder(path: Path, split: str, limit: int | None, reading: ReadingOptions) -> Rows:
    """Return the rows of a split of a folder of MNIST files, CIFAR-10 batches, sounds or pictures.

    Arguments:
        path: the folder.
        split: "train", "test" or "all".
        limit: the number of pictures that are read; all if None.
        reading: how pictures and sounds are read.

    Errors: FileNotFoundError where files of the split are missing; ValueError.
    """
    for reader, patterns in _FOLDERS:
        found = {part: _matching(path, pattern) for part, pattern in patterns.items()}
        if not any(found.values()):
            continue
        wanted = list(found) if split == "all" else [split]
        for part in wanted:
            if not found[part]:
                error = refusal(
                    path,
                    f"hold the {part} files",
                    "none that match " + patterns[part],
                    "add them or choose another split",
                )
                raise FileNotFoundError(str(error))
        return joined(path, [reader(file) for part in wanted for file in found[part]])
    for file in _matching(path, _PICKLED):
        _check_not_pickled(file)
    shown = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    sounds = [file for file in shown if file.suffix.lower() == SUFFIX]
    if sounds:
        _check_sounds_alone(path, shown)
        check_undivided(path, split)
        return read_sounds(path, sounds, reading.length)
    return read_pictures(path, find_pictures(path, split), limit, reading)


def kind_of(path: Path) -> str:
    """Return whether a source holds "sounds", "pictures" or "numbers", by its names alone."""
    if not path.is_dir():
        return "sounds" if path.suffix.lower() == SUFFIX else "numbers"
    if any(_matching(path, pattern) for _, parts in _FOLDERS for pattern in parts.values()):
        return "numbers"
    names = [file for file in path.iterdir() if not file.name.startswith(".")]
    return "sounds" if any(file.suffix.lower() == SUFFIX for file in names) else "pictures"


def check_reading(source: str, kind: str, reading: ReadingOptions) -> None:
    """Refuse what is asked of pictures or sounds, for a source that holds none.

    Arguments:
        source: its name or path, for the error.
        kind: what it holds, as `kind_of` tells.
        reading: how it is to be read.
    """
    asked = (
        ("size", reading.size, None, "pictures"),
        ("frames", reading.frames, "first", "pictures"),
        ("length", reading.length, None, "sounds"),
    )
    for name, value, usual, of in asked:
        if value != usual and kind != of:
            rule = f"be left out for {source}, which holds no {of}"
            raise wrong_value("load_data", name, rule, value, f"drop it (--{name})")


def _check_sounds_alone(path: Path, files: list[Path]) -> None:
    pictures = [file.name for file in files if file.suffix.lower() in SUFFIXES]
    if pictures:
        got = f"{pictures[0]} beside sounds"
        raise refusal(path, "hold sounds or pictures", got, "move one kind to a folder of its own")


def part_held_out(path: Path) -> str:
    """Return the split to evaluate on: "test" where there is one, else all that there is."""
    if not path.is_dir():
        parts = path.is_file() and path.suffix == ".npz" and has_test_arrays(path)
        return "test" if parts else "all"
    for _, patterns in _FOLDERS:
        found = {part: _matching(path, pattern) for part, pattern in patterns.items()}
        if any(found.values()):
            return "test" if found["test"] else "train"
    return "test" if (path / "test").is_dir() else "all"


def _check_not_pickled(path: Path) -> None:
    with path.open("rb") as file:
        if not _PICKLE.match(file.read(2)):
            return
    cifar = re.fullmatch(_PICKLED, path.name) is not None
    raise refusal(
        path,
        "hold numbers alone",
        "a Python pickle, which can run code and is not read",
        _BINARY if cifar else "save its arrays with numpy.savez",
    )


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern, each once: `a` and not `a.gz` where both are there."""
    names = sorted(file.name for file in folder.iterdir() if re.fullmatch(pattern, file.name))
    return [
        folder / name
        for name in names
        if name.removesuffix(".gz") == name or name.removesuffix(".gz") not in names
    ]


def checked(path: Path, rows: Rows, limit: int | None, layout: str | None) -> Rows:
    """Return the first rows of numbers, channels first, with one label a row.

    Arguments:
        path: the file or folder, for errors.
        rows: what was read of it.
        limit: how many rows are kept; all if None.
        layout: the axes of a sample; recognised if None.

    Errors: ValueError for no rows, dtypes other than integers and floats, single numbers as
    samples, labels that do not fit, and floats that are not finite in float32.
    """
    values = rows.values
    if values.dtype.kind not in "uif":
        raise refusal(
            path,
            "hold integers or floats",
            f"dtype {values.dtype}",
            "save the array as uint8 or float32",
        )
    if values.ndim < 2:
        raise refusal(
            path,
            "hold an array (N, …) of at least two axes",
            values.shape,
            "save array.reshape(N, -1)",
        )
    if 0 in values.shape:
        raise refusal(
            path,
            "hold at least one sample",
            f"shape {values.shape}",
            "check how the file was written",
        )
    labels = _one_label_a_row(path, rows)
    kept = values[:limit]
    if kept.dtype.kind == "f":
        check_span("load_data", str(path), kept, None)
    first, notes = channels_first(path, kept, rows.layout or layout)
    labels = None if labels is None else labels[:limit]
    given = {
        name: _of_rows(path, name, held, rows)[:limit] for name, held in rows.conditions.items()
    }
    notes = (*rows.notes, *notes)
    return replace(rows, values=first, labels=labels, notes=notes, conditions=given)


def _of_rows(path: Path, name: str, held: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """Return a condition, refusing another number of rows than of samples."""
    if held.shape[:1] != rows.values.shape[:1]:
        rule = f"hold one {name} for each of {len(rows.values)} rows"
        remedy = f"save as many, or leave out {name}"
        raise refusal(path, rule, f"shape {held.shape}", remedy)
    return held


def _one_label_a_row(path: Path, rows: Rows) -> NDArray[Any] | None:
    labels = rows.labels
    if labels is None:
        return None
    count = len(rows.values)
    flat = labels.reshape(count) if labels.shape == (count, 1) else labels
    if flat.dtype.kind not in "ui" or flat.shape != (count,):
        one_hot = flat.ndim == 2 and len(flat) == count
        raise refusal(
            path,
            f"hold one integer label for each of {count} rows",
            f"{labels.dtype} of shape {labels.shape}",
            "save labels.argmax(1)" if one_hot else "save class numbers",
        )
    return flat
