"""What a reader returns, how it is asked to read, and how it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from sde_diffusion._check import one_of, positive_integer, wrong_value

SPLITS: Final = ("train", "test", "all")
MODES: Final = ("grey", "rgb", "rgba")
FRAMES: Final = ("first", "all", "clip")
LAYOUTS: Final = ("hw", "chw", "hwc", "cl", "lc", "cdhw", "dhwc")
_LARGEST: Final = 2**28  # bytes that any file may expand to
_DENSEST: Final = 100  # bytes for each of a larger file's; deflate reaches 1032


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """The samples of a source, as its files have them.

    Arguments:
        values: integers or floats; (N, …).
        labels: the class numbers, integers; (N,) or (N, 1), None where there are none.
        classes: the names of the classes, by number; None where they have none.
        layout: the axes of a sample, one of `LAYOUTS`; to be recognised if None.
        levels: the number of grey levels of integers; that of bytes if None.
        rate: samples a second, of sounds.
        notes: a line for everything that was converted.
        conditions: what else is known of each sample, by name, as `Dataset` has it.
    """

    values: NDArray[Any]
    labels: NDArray[Any] | None = None
    classes: tuple[str, ...] | None = None
    layout: str | None = None
    levels: int | None = None
    rate: int | None = None
    notes: tuple[str, ...] = ()
    conditions: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class ReadingOptions:
    """How files are read where there is a choice.

    Arguments:
        mode: of pictures: "grey", "rgb" or "rgba"; that of most of them if None.
        size: the height and width to which pictures are resized and cropped; None for their own.
        frames: of a picture that has several: "first", "all" or, as one sample, "clip".
        layout: the axes of a sample of an array, such as "hwc"; recognised if None.
        length: of clips of sounds, in samples; whole files if None.

    Errors: ValueError or TypeError for another value.
    """

    mode: str | None = None
    size: int | None = None
    frames: str = "first"
    layout: str | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if self.mode is not None:
            one_of("load_data", "mode", self.mode, MODES)
        if self.size is not None:
            positive_integer("load_data", "size", self.size)
        if self.length is not None:
            positive_integer("load_data", "length", self.length)
        one_of("load_data", "frames", self.frames, FRAMES)
        if self.layout is not None:
            one_of("load_data", "layout", self.layout, LAYOUTS)


class RefusedFileError(ValueError):
    """A file that is not as a reader needs it: its text says why, and what to do."""


def refusal(path: Path, rule: str, got: object, remedy: str) -> RefusedFileError:
    """Return the error of a file that is not as a reader needs it.

    Arguments:
        path: the file or folder.
        rule: what it must do or be.
        got: what it is.
        remedy: what to do.
    """
    return RefusedFileError(str(wrong_value("load_data", str(path), rule, got, remedy)))


def check_undivided(path: Path, split: str) -> None:
    """Refuse the split "test" of a source without parts."""
    if split == "test":
        error = wrong_value(
            "load_data",
            "split",
            f"be train or all for {path}, which has no test part",
            split,
            "keep test data in a file of its own, with split='all'",
        )
        raise RefusedFileError(str(error))


def joined(path: Path, parts: list[Rows]) -> Rows:
    """Return the rows of several arrays, with labels where all of them have any.

    Errors: ValueError for samples of several shapes.
    """
    shapes = {part.values.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise refusal(path, "hold samples of one shape", sorted(shapes), "split it")
    if len(parts) == 1:
        return parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    if min(array.ndim for array in (*labels, *(part.values for part in parts))) == 0:
        raise refusal(path, "hold arrays of samples and labels", "a single number", "save arrays")
    flat = [array[:, 0] if array.shape[1:] == (1,) else array for array in labels]
    if len({array.shape[1:] for array in flat}) > 1:
        got = [array.shape for array in labels]
        raise refusal(path, "hold one label for each row", got, "save class numbers")
    whole = np.concatenate(flat) if len(flat) == len(parts) else None
    return replace(parts[0], values=np.concatenate([p.values for p in parts]), labels=whole)


def why(error: Exception) -> str:
    """Return an error of another library as a short text."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 80 else f"{text[:79]}…"


def most_bytes(packed: int) -> int:
    """Return the most bytes to which a file of ``packed`` bytes may expand."""
    return max(_LARGEST, _DENSEST * packed)


def check_expansion(path: Path, expanded: int, packed: int) -> None:
    """Refuse a file that its header expands beyond all measure, before anything is expanded.

    Arguments:
        path: the file or folder.
        expanded: its bytes in memory, as its header says.
        packed: its bytes on disk.

    Errors: ValueError.
    """
    most = most_bytes(packed)
    if expanded > most:
        raise refusal(
            path,
            f"expand to at most {most} bytes, being {packed} bytes long",
            f"{expanded} by its header",
            "if that is right, save the numbers unpacked with numpy.save",
        )
