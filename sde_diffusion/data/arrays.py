"""Readers of NumPy's files, which look at their headers before they take any memory."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from sde_diffusion.data.rows import (
    RefusedFileError,
    Rows,
    check_expansion,
    check_undivided,
    joined,
    refusal,
    why,
)

ReadT = TypeVar("ReadT")
Pair: TypeAlias = tuple[str, str]  # the names of the samples and of their labels
Members: TypeAlias = Mapping[str, zipfile.ZipInfo]
# As they are found in use; the first that is there counts.
_PARTS: Final[tuple[Mapping[str, Pair], ...]] = (
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")},
    {"train": ("train_images", "train_labels"), "test": ("test_images", "test_labels")},
)
_WHOLES: Final = ("images", "x")
_LABELS: Final = ("labels", "y")
_CONDITIONS: Final = ("text", "vector", "image", "context")
_UNNAMED: Final = ("arr_0", "arr_1")  # of numpy.savez(path, samples, labels)
_HEADERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_NAMES: Final = {"uif": "integers or floats", "f": "conditions of floats"}
_RULE: Final = "be a whole .npy or .npz file of numbers"
_REMEDY: Final = "save integers or floats with numpy.save"


def read_npy(path: Path) -> Rows:
    """Return the array of a .npy file."""
    return _whole(path, lambda: Rows(_array(path, lambda: path.open("rb"), path.stat().st_size)))


def read_npz(path: Path, split: str) -> Rows:
    """Return the samples of a .npz file, their labels and conditions; no other array is read.

    The conditions are `text`, `vector`, `image` and `context`, of a file without parts. Samples
    are `images`, `x` or the only array beside these and `labels` or `y`, or `arr_0` and `arr_1`;
    of a file with parts `x_train` and `y_train`, or `train_images` and `train_labels`, and so on.
    """

    def read() -> list[Rows]:
        # Opened here, because numpy leaves a damaged .npz open.
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            return [
                Rows(
                    _member(path, archive, members[samples]),
                    _member(path, archive, members[labels]) if labels in members else None,
                    conditions=_conditions(path, archive, members),
                )
                for samples, labels in _wanted(path, members, split)
            ]

    return joined(path, _whole(path, read))


def has_test_arrays(path: Path) -> bool:
    """Return whether a .npz file has arrays of a test part.

    Errors: ValueError for a damaged file.
    """

    def read() -> Members:
        with zipfile.ZipFile(path) as archive:
            return _members(archive)

    return "test" in _parts(_whole(path, read))


def _whole(path: Path, read: Callable[[], ReadT]) -> ReadT:
    """Return what ``read`` does; all that a damaged file may raise becomes a refusal."""
    try:
        return read()
    except RefusedFileError:
        raise
    # numpy and zipfile raise about ten kinds, SyntaxError among them.
    except Exception as error:
        raise refusal(path, _RULE, why(error), _REMEDY) from error


def _members(archive: zipfile.ZipFile) -> Members:
    return {member.filename.removesuffix(".npy"): member for member in archive.infolist()}


def _parts(members: Members) -> Mapping[str, Pair]:
    """Return the names of a file with parts, by split; none for a file without."""
    for parts in _PARTS:
        if parts["train"][0] in members:
            return {part: pair for part, pair in parts.items() if pair[0] in members}
    return {}


def _wanted(path: Path, members: Members, split: str) -> list[Pair]:
    """Return the names of samples and labels that are to be read."""
    parts = _parts(members)
    if not parts or (split == "test" and "test" not in parts):
        check_undivided(path, split)
    if parts:
        return [pair for part, pair in parts.items() if split in (part, "all")]
    labels = next((name for name in _LABELS if name in members), "")
    if set(members) == {*_UNNAMED}:
        return [_UNNAMED]
    others = [name for name in members if name not in (*_LABELS, *_CONDITIONS)]
    for name in (*_WHOLES, *(others if len(others) == 1 else ())):
        if name in members:
            return [(name, labels)]
    raise refusal(
        path,
        "hold an array named images, x or x_train, or one array only",
        sorted(members)[:6],
        "save it as numpy.savez(path, images=…, labels=…)",
    )


def _conditions(path: Path, archive: zipfile.ZipFile, members: Members) -> dict[str, NDArray[Any]]:
    """Return the conditions of the samples of a file without parts."""
    found = {}
    for name in _CONDITIONS if not _parts(members) else ():
        if name in members:
            held = _member(path, archive, members[name], "U" if name == "text" else "f")
            found[name] = _encoded(held) if name == "text" else held.astype(np.float32)
    return found


def _encoded(texts: NDArray[Any]) -> NDArray[Any]:
    """Return a row of texts in UTF-8, −1 behind the end; (N, bytes of the longest)."""
    coded = [str(text).encode() for text in texts.ravel()]
    found = np.full((len(coded), max(map(len, coded), default=0)), -1, np.int64)
    for row, code in zip(found, coded, strict=True):
        row[: len(code)] = [*code]
    return found


def _member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, kinds: str = "uif"
) -> NDArray[Any]:
    check_expansion(path, member.file_size, member.compress_size)
    return _array(path, lambda: archive.open(member), member.file_size, kinds)


def _array(
    path: Path, opened: Callable[[], IO[bytes]], size: int, kinds: str = "uif"
) -> NDArray[Any]:
    """Return the array of a stream of ``size`` bytes, once its header says the same."""
    with opened() as stream:
        shape, _, dtype = _HEADERS[npy.read_magic(stream)](stream)
        whole = stream.tell() + math.prod(shape) * dtype.itemsize
    if dtype.kind not in kinds:
        texts = kinds == "U"
        raise refusal(
            path,
            "hold texts as text" if texts else f"hold {_NAMES[kinds]}",
            f"dtype {dtype}",
            "save numpy.array(texts)" if texts else "save the array as uint8 or float32",
        )
    if whole != size or min(shape, default=1) < 0:
        raise refusal(path, _RULE, f"{size} bytes, {whole} by its header", _REMEDY)
    with opened() as stream:
        found: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return found
