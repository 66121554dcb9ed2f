"""Which axis of an array holds the channels: pictures, series and volumes, channels first."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.data.rows import refusal

_FEW: Final = 4  # channels that pictures usually have, at most
_LONG: Final = 4  # a series is longer than so many times the number of its channels
_WORDS: Final = {
    "hwc": "pictures with the channels last",
    "cl": "series with the channels first, not as pictures of one channel (layout hw)",
    "lc": "series with the channels last, not as pictures of one channel (layout hw)",
    "dhwc": "volumes with the channels last",
}


def channels_first(
    path: Path, values: NDArray[Any], layout: str | None
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the samples with their channels on axis 1, and a note where that was a guess.

    Arguments:
        path: the file, for notes and errors.
        values: the samples; (N, …).
        layout: the axes of a sample, such as "hwc"; recognised if None.

    Errors: ValueError for a layout of another number of axes, and for arrays whose channels
    cannot be told from the rest.
    """
    axes = values.ndim - 1
    if layout is not None and len(layout) != axes:
        raise refusal(
            path,
            f"have samples of the {len(layout)} axes of layout {layout}",
            f"shape {values.shape}",
            "leave out --layout",
        )
    found = _recognised(path, values.shape[1:]) if layout is None else layout
    words = _guessed(found, values.shape[1:]) if layout is None else None
    notes = () if words is None else (f"{path.name}: {values.shape} is read as {words}",)
    if found == "hw":
        return values[:, None], notes
    place = found.index("c") if "c" in found else 0
    return np.moveaxis(values, 1 + place, 1), notes


def _guessed(found: str, shape: tuple[int, ...]) -> str | None:
    """Return what samples are taken for, None where their shape leaves no doubt."""
    if found in _WORDS:
        return _WORDS[found]
    first = shape[0]
    if len(shape) < 3 or first <= _FEW < shape[-1]:
        return None
    kind = "pictures" if found == "chw" else "volumes"
    other = found[1:] + found[0]
    return f"{kind} with the channels first, {first} of them: --layout {other} if they are last"


def _recognised(path: Path, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "d"
    if len(shape) == 2:
        return _of_two(*shape)
    if len(shape) == 3:
        return _of_three(path, *shape)
    if len(shape) == 4:
        return _of_four(path, shape)
    raise refusal(
        path,
        "have samples of 1 to 4 axes",
        f"shape (N, {', '.join(map(str, shape))})",
        "save array.reshape(N, -1) for rows of numbers",
    )


def _of_two(a: int, b: int) -> str:
    if max(a, b) <= _LONG * min(a, b):
        return "hw"
    return "cl" if a < b else "lc"


def _of_three(path: Path, a: int, b: int, c: int) -> str:
    """Pictures are square more often than not; else their channels are the shortest axis."""
    last = b != c and (a == b or c < a)
    if not last:
        return "chw"
    if c <= _FEW:
        return "hwc"
    raise _unclear(path, (a, b, c), "chw", "hwc")


def _of_four(path: Path, shape: tuple[int, ...]) -> str:
    first, second, *_, last = shape
    if first <= _FEW or (min(shape) > _FEW and first == min(shape)):
        return "cdhw"
    if last <= _FEW < second:
        return "dhwc"
    raise _unclear(path, shape, "cdhw", "dhwc")


def _unclear(path: Path, shape: tuple[int, ...], first: str, last: str) -> Exception:
    return refusal(
        path,
        "show by its shape which axis holds the channels",
        f"(N, {', '.join(map(str, shape))})",
        f"pass --layout {first} if it is the first (layout={first!r} in Python), else {last}",
    )
