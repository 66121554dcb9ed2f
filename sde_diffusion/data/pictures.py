"""A reader of pictures: of one mode and size, turned upright, with the depth that they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.data.picture_files import PictureFiles
from sde_diffusion.data.picture_headers import (
    CHANNELS,
    DEEP_GREY,
    WORDS,
    Header,
    check_depth,
    check_frame,
    check_memory,
    header_of,
    mode_of_most,
    opened,
)
from sde_diffusion.data.png import read_png
from sde_diffusion.data.rows import ReadingOptions, Rows, refusal

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_PILLOWS: Final = {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}  # Pillow's names of our modes
_ORIENTATION: Final = 0x0112  # the tag of EXIF
_UPRIGHT: Final[dict[int, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


def read_pictures(
    path: Path, found: PictureFiles, limit: int | None, reading: ReadingOptions
) -> Rows:
    """Return pictures of one size, mode and depth, channels first, with their labels.

    Arguments:
        path: the folder, for notes and errors.
        found: the pictures.
        limit: the number of files that are read; all if None.
        reading: the mode, the size and the frames.

    Errors: ValueError that names the file.
    """
    wanted = found.files[:limit]
    seen = found.everywhere if reading.mode is None else wanted
    known = {file: header_of(file, reading) for file in seen}
    mode = reading.mode or mode_of_most(known.values())
    headers = [known[file] for file in wanted]
    check_depth(headers)
    check_memory(path, headers, mode, reading)
    clips = reading.frames == "clip"
    count = len(headers) if clips else sum(header.used for header in headers)
    first, *_ = _samples_of(headers[0], mode, reading)
    values = np.empty((count, *first.shape), first.dtype)
    labels = np.empty(count, np.int64)
    row = 0
    for place, header in enumerate(headers):
        for picture in _samples_of(header, mode, reading):
            _check_shape(header.file, picture, headers[0].file, first)
            values[row] = picture
            labels[row] = 0 if found.labels is None else found.labels[place]
            row += 1
    return Rows(
        values,
        None if found.labels is None else labels,
        found.classes,
        layout="cdhw" if clips else "chw",
        levels=2**16 if headers[0].deep else 2**8,
        notes=_notes(path, headers, mode, reading),
    )


def _check_shape(file: Path, picture: NDArray[Any], model: Path, first: NDArray[Any]) -> None:
    if picture.shape[:-2] != first.shape[:-2]:  # of one mode: clips of other lengths
        rule = f"have the {first.shape[1]} frames of {model.name}"
        remedy = "cut them to one length, or pass --frames all (frames='all' in Python)"
        raise refusal(file, rule, picture.shape[1], remedy)
    if picture.shape != first.shape:
        smallest = min(*picture.shape[-2:], *first.shape[-2:])
        raise refusal(
            file,
            f"have the size {_size(first)} of {model.name}",
            _size(picture),
            f"pass --size {smallest} (size={smallest} in Python) to resize and crop all of them",
        )


def _size(picture: NDArray[Any]) -> str:
    return f"{picture.shape[-1]} × {picture.shape[-2]}"


def _samples_of(header: Header, mode: str, reading: ReadingOptions) -> list[NDArray[Any]]:
    """Return the samples of a file: its frames, or one clip (C, D, H, W) of them."""
    frames = _frames_of(header, mode, reading)
    return [np.stack(frames, axis=1)] if reading.frames == "clip" else frames


def _frames_of(header: Header, mode: str, reading: ReadingOptions) -> list[NDArray[Any]]:
    """Return the frames of a file that are read, (C, H, W)."""

    def read(image: ImageFile) -> list[NDArray[Any]]:
        frames = []
        for number in range(header.used):
            image.seek(number)
            check_frame(header.file, image, header.deep)
            image.load()  # before EXIF is asked: a TIFF is turned, and its tag dropped, in loading
            frames.append(_upright(_pixels(header, image, mode), image.getexif()))
        return frames

    def made(pixels: NDArray[Any]) -> NDArray[Any]:
        fitted = pixels if reading.size is None else _fitted(pixels, reading.size)
        return np.moveaxis(_in_mode(fitted, mode), 2, 0)

    return [made(pixels) for pixels in opened(header.file, read)]


def _upright(pixels: NDArray[Any], exif: Mapping[int, Any]) -> NDArray[Any]:
    turn = _UPRIGHT.get(exif.get(_ORIENTATION, 1))
    return pixels if turn is None else turn(pixels)


def _pixels(header: Header, image: ImageFile, mode: str) -> NDArray[Any]:
    """Return a loaded frame: of 16 bits as it is stored, of 8 in the mode asked.

    Shapes: (H, W, channels).
    """
    if header.stored.endswith(";16") and header.stored not in DEEP_GREY:
        found = read_png(header.file.read_bytes())
        return found[..., :1] if header.kind == "grey" else found
    if header.deep:
        return np.asarray(image).astype(np.uint16)[..., None]
    # By way of RGBA, as Pillow warns of what it would do at once.
    clear = image.mode == "P" and "transparency" in image.info
    plain = image.convert("RGBA") if clear else image
    pixels = np.asarray(plain.convert(_PILLOWS[mode]))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _in_mode(pixels: NDArray[Any], mode: str) -> NDArray[Any]:
    """Return 16-bit pixels of any mode in the one asked; those of 8 bits are so already.

    Grey is (299 R + 587 G + 114 B)/1000, rounded.

    Shapes: (H, W, channels).
    Source: ITU-R BT.601.
    """
    have = pixels.shape[2]
    if have == CHANNELS[mode]:
        return pixels
    if mode == "grey":
        r, g, b = (pixels[..., i].astype(np.uint32) for i in range(3))
        grey = (299 * r + 587 * g + 114 * b + 500) // 1000
        return grey[..., None].astype(pixels.dtype)
    colours = pixels[..., :3] if have > 1 else np.repeat(pixels, 3, axis=2)
    if mode == "rgb":
        return colours
    opaque = np.full_like(colours[..., :1], np.iinfo(pixels.dtype).max)
    return np.concatenate([colours, opaque], axis=2)


def _fitted(pixels: NDArray[Any], size: int) -> NDArray[Any]:
    """Return the largest central square, resized to size × size by Pillow's bicubic filter.

    Shapes: (H, W, channels).
    """
    from PIL import Image, ImageOps

    channels = [
        ImageOps.fit(
            Image.fromarray(np.ascontiguousarray(channel, np.float32)),
            (size, size),
            Image.Resampling.BICUBIC,
        )
        for channel in np.moveaxis(pixels, 2, 0)
    ]
    exact = np.stack([np.asarray(channel) for channel in channels], axis=2)
    fitted: NDArray[Any] = np.rint(exact).clip(0, np.iinfo(pixels.dtype).max)
    return fitted.astype(pixels.dtype)


def _notes(
    path: Path, headers: Sequence[Header], mode: str, reading: ReadingOptions
) -> tuple[str, ...]:
    """Return one line of all that was made of the pictures, or none."""
    own = {_PILLOWS[mode], f"{_PILLOWS[mode]};16", *(DEEP_GREY if mode == "grey" else ())}
    others = [header.stored for header in headers if header.stored not in own]
    converted = Counter(WORDS.get(stored, stored) for stored in others)
    said = []
    if converted:
        modes = ", ".join(f"{count} {name}" for name, count in converted.most_common())
        said.append(f"{converted.total()} of {len(headers)} converted to {mode} ({modes})")
    size = reading.size
    resized = sum(size is not None and header.size != (size, size) for header in headers)
    if resized:
        said.append(f"{resized} of {len(headers)} resized and cropped to {size} × {size}")
    more = sum(header.frames > header.used for header in headers)
    if more:
        said.append(f"of {more} with several frames the first; --frames all reads all")
    return (f"{path.name or path}: pictures {'; '.join(said)}",) if said else ()
