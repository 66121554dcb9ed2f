"""The headers of pictures, by which they are refused before their pixels take any memory."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, final

from sde_diffusion.data.rows import (
    MODES,
    ReadingOptions,
    RefusedFileError,
    check_expansion,
    most_bytes,
    refusal,
    why,
)

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile
    from PIL.ImagePalette import ImagePalette

ReadT = TypeVar("ReadT")
CHANNELS: Final = {"grey": 1, "rgb": 3, "rgba": 4}
DEEP_GREY: Final = ("I;16", "I;16B", "I;16L")  # Pillow's modes of 16 bits
_DEEP: Final = {"LA;16": "grey", "RGB;16": "rgb", "RGBA;16": "rgba"}  # of which it drops 8 bits
_KINDS: Final = {
    **dict.fromkeys(("1", "L", "LA", *DEEP_GREY), "grey"),
    **dict.fromkeys(("P", "RGB", "RGBX", "CMYK", "YCbCr"), "rgb"),
    "RGBA": "rgba",
    **_DEEP,
}
# Pillow's names of modes in words.
WORDS: Final = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with alpha",
    "P": "palette",
    "RGB": "rgb",
    "RGBX": "rgb with padding",
    "RGBA": "rgba",
    **dict.fromkeys(DEEP_GREY, "16-bit grey"),
    "LA;16": "16-bit grey with alpha",
    "RGB;16": "16-bit rgb",
    "RGBA;16": "16-bit rgba",
}
_FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
_SEVERAL: Final = ("PNG", "WEBP", "TIFF", "GIF")  # formats whose frames are pictures of equal rank
_MOST_PIXELS: Final = 2**26  # of one picture: 8192 × 8192
_FEW: Final = 2**22  # pixels that any file may have
_DENSEST: Final = 1000  # pixels for each byte of a larger one
_MOST_DEEP: Final = 2**24  # where our own reader takes ten times their memory


@final
@dataclass(frozen=True)
class Header:
    """What the header of a file says of its picture.

    Arguments:
        file: where it is.
        stored: the mode by Pillow's name, with ";16" where 8 of 16 bits would be dropped.
        kind: one of `MODES`, that of its own colours.
        size: width and height as they are stored.
        frames: the number of frames; of several the least is 2 where only the first is read.
        used: the number of those that are read.
        deep: whether a channel has 16 bits.
    """

    file: Path
    stored: str
    kind: str
    size: tuple[int, int]
    frames: int
    used: int
    deep: bool


class _Held(io.BufferedReader):
    """A file of which no read asks for more memory than the file holds bytes.

    Pillow reads as many as a header says, and a damaged one may say four billion.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(io.FileIO(str(file)))
        self._bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self._bytes if size is None or size < 0 else min(size, self._bytes))


def opened(file: Path, read: Callable[[ImageFile], ReadT]) -> ReadT:
    """Return what ``read`` finds in a picture; all that a damaged one may raise is a refusal."""
    # Imported where it is needed: arrays and IDX files must not wait for it.
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _Held(file) as held, Image.open(held, formats=_FORMATS) as image:
                return read(image)
    except RefusedFileError:
        raise
    except UnidentifiedImageError as error:
        known = f"none of {', '.join(_FORMATS)}"
        raise refusal(file, "be a whole image", known, "save it again as .png") from error
    # Pillow raises about ten kinds, SyntaxError among them.
    except Exception as error:
        raise refusal(file, "be a whole image", why(error), "save it again as .png") from error


def header_of(file: Path, reading: ReadingOptions) -> Header:
    """Return what the header of a file says.

    Errors: those of `check_frame`; ValueError for a damaged file.
    """

    def read(image: ImageFile) -> Header:
        stored = check_frame(file, image)
        cut = stored in _DEEP
        most = 1
        palette = image.palette  # of the first frame
        if image.format in _SEVERAL and not cut:
            most = most_bytes(file.stat().st_size) // (image.width * image.height) + 1
        frames = _frames(image, min(most, 2) if reading.frames == "first" else most)
        used = 1 if reading.frames == "first" else frames
        deep = cut or stored in DEEP_GREY
        kind = "grey" if _is_grey(palette) else _KINDS[stored]
        return Header(file, stored, kind, image.size, frames, used, deep)

    return opened(file, read)


def check_frame(file: Path, image: ImageFile, deep: bool | None = None) -> str:
    """Return the mode in which a frame is stored, by Pillow's name and ";16" where it drops bits.

    Arguments:
        file: the picture.
        image: at the frame, which need not be loaded.
        deep: whether a channel must have 16 bits; either if None.

    Errors: ValueError for too many pixels, or a depth or mode that is not read.
    """
    stored = _stored_mode(image)
    packed = file.stat().st_size
    most = min(_MOST_DEEP if stored in _DEEP else _MOST_PIXELS, max(_FEW, _DENSEST * packed))
    if image.width * image.height > most:
        raise refusal(
            file,
            f"have at most {most} pixels, being {packed} bytes long",
            f"{image.width} × {image.height}",
            "save a smaller copy of it, as an uncompressed .bmp if it is almost empty",
        )
    if stored in _DEEP and image.format != "PNG":
        raise refusal(
            file,
            "have 8 bits a channel, or 16 in a .png or of grey",
            f"16 bits of {stored.removesuffix(';16')} in a {image.format}",
            "save it as .png, all of whose 16 bits are read",
        )
    if stored in _DEEP and image.info.get("interlace"):
        raise refusal(
            file,
            "not be interlaced, having 16 bits a channel",
            "an interlaced .png",
            "save it again without interlacing",
        )
    if stored not in _KINDS:
        raise refusal(
            file,
            "have 8 or 16 bits a channel, grey or of colours",
            f"mode {stored}",
            "save all pictures as one array with numpy.save",
        )
    if deep is not None and deep != (stored in _DEEP or stored in DEEP_GREY):
        raise refusal(
            file, "have frames of one depth", "8 and 16 bits", "save each as a picture of its own"
        )
    return stored


def _stored_mode(image: ImageFile) -> str:
    raw = " ".join(str(tile[3]) for tile in image.tile[:1])
    if image.format not in ("PNG", "TIFF") or ";16" not in raw or image.mode in DEEP_GREY:
        return image.mode
    return "LA;16" if "LA;16" in raw else f"{image.mode};16"


def _is_grey(palette: ImagePalette | None) -> bool:
    """Return whether all colours of a palette are greys."""
    if palette is None:
        return False
    layout, colours = palette.getdata()
    n = len(layout)
    if layout not in ("RGB", "BGR", "RGBX", "BGRX") or not colours:
        return False
    return colours[0::n] == colours[1::n] == colours[2::n]


def _frames(image: ImageFile, most: int) -> int:
    """Return the number of frames, counted up to ``most``."""
    count = 1
    try:
        while count < most:
            image.seek(count)
            count += 1
    except EOFError:
        pass
    return count


def mode_of_most(headers: Iterable[Header]) -> str:
    """Return the mode that most pictures have; of equally many the one that holds more."""
    counts = Counter(header.kind for header in headers)
    return max(MODES, key=lambda mode: (counts[mode], MODES.index(mode)))


def check_depth(headers: Sequence[Header]) -> None:
    """Refuse pictures of 8 bits beside those of 16."""
    for header in headers:
        if header.deep != headers[0].deep:
            depths = [16 if one.deep else 8 for one in (headers[0], header)]
            raise refusal(
                header.file,
                f"have the {depths[0]} bits a channel of {headers[0].file.name}",
                f"{depths[1]}",
                "put pictures of each depth into a folder of their own",
            )


def check_memory(
    path: Path, headers: Sequence[Header], mode: str, reading: ReadingOptions
) -> None:
    """Refuse a folder of pictures that are much larger than their files.

    Arguments:
        path: the folder.
        headers: of the pictures that are read.
        mode: in which they are read.
        reading: for their size.

    Errors: ValueError.
    """
    size = reading.size
    pixels = sum(
        header.used * (header.size[0] * header.size[1] if size is None else size**2)
        for header in headers
    )
    packed = sum(header.file.stat().st_size for header in headers)
    check_expansion(path, pixels * CHANNELS[mode] * (2 if headers[0].deep else 1), packed)
