"""Sounds: WAV files of 16-bit PCM or floats, read into clips of one length and written again."""

from __future__ import annotations

import struct
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sde_diffusion._check import Reason, positive_integer, wrong_value
from sde_diffusion._files import write_atomically
from sde_diffusion.data.rows import Rows, refusal, why

SUFFIX: Final = ".wav"
LEVELS: Final = 2**16
_MIDDLE: Final = LEVELS // 2  # the level of silence
_FLOATS: Final = 3  # WAVE_FORMAT_IEEE_FLOAT
_EXTENSIBLE: Final = 0xFFFE
_DTYPES: Final = {(1, 16): "<i2", (_FLOATS, 32): "<f4", (_FLOATS, 64): "<f8"}
_RULE: Final = "be a whole WAV file of 16-bit PCM or floats"
_REMEDY: Final = "convert it with ffmpeg -i IN.wav -c:a pcm_s16le OUT.wav"


def read_sounds(path: Path, files: Sequence[Path], length: int | None) -> Rows:
    """Return clips of sounds, channels first, and their sampling rate.

    Those of 16-bit PCM have 65536 levels; those of floats, of 32 or 64 bits, are real numbers.

    Every file is cut into clips of ``length`` samples from its beginning; what is left at its end
    is dropped. Without a length every file is a clip.

    Arguments:
        path: the file or folder, for notes.
        files: the sounds, in their order as samples.
        length: of a clip, in samples; None for whole files.

    Errors: ValueError that names the file that is damaged, too short, or of another length, rate,
    kind of numbers or number of channels than the first.
    """
    clips: list[NDArray[Any]] = []
    dropped = 0
    first: tuple[Path, int, tuple[int, ...], bool] | None = None
    for file in files:
        sound, rate = _read(file)
        channels, samples = sound.shape
        size = samples if length is None else length
        if samples < size:
            rule = f"be at least {size} samples long"
            remedy = (
                f"leave it out, or for a model of your own pass --length {samples} "
                f"(length={samples} in Python)"
            )
            raise refusal(file, rule, f"{samples} samples", remedy)
        real = sound.dtype.kind == "f"
        first = first or (file, rate, (channels, size), real)
        _check_alike(file, rate, (channels, size), first)
        if real != first[3]:
            rule = f"hold {'floats' if first[3] else '16-bit PCM'} like {first[0].name}"
            raise refusal(file, rule, "the other", _REMEDY)
        count, rest = divmod(samples, size)
        whole = sound[:, : count * size].reshape(channels, count, size)
        clips.append(whole.swapaxes(0, 1))
        dropped += rest
    name = path.name or path
    note = f"{name}: {dropped} samples at the ends of {len(files)} sounds fill no clip"
    return Rows(
        np.concatenate(clips),
        layout="cl",
        levels=None if first is not None and first[3] else LEVELS,
        rate=None if first is None else first[1],
        notes=(note,) if dropped else (),
    )


def write_sounds(path: Path, levels: NDArray[Any], rate: int) -> None:
    """Write clips of levels as one WAV file, one after another, whole or not at all.

    `read_sounds` with their length returns them as they are.

    Arguments:
        path: the file.
        levels: integers in 0 … 65535, the middle being silence; (N, channels, L).
        rate: samples a second.

    Errors: ValueError for another shape, rate or range.
    """
    levels = np.asarray(levels)
    remedy = "pass spec.decode(x).numpy() of a model of sounds"
    if levels.ndim != 3 or not levels.size:
        rule = "have the shape (N, channels, L)"
        raise wrong_value("write_sounds", "levels", rule, levels.shape, remedy)
    if not 0 <= levels.min() <= levels.max() < LEVELS:
        got = Reason(f"{levels.min()} … {levels.max()}")
        raise wrong_value("write_sounds", "levels", f"lie in 0 … {LEVELS - 1}", got, remedy)
    positive_integer("write_sounds", "rate", rate)
    pcm = (levels.astype(np.int32) - _MIDDLE).astype("<i2")

    def save(temporary: Path) -> None:
        with wave.open(str(temporary), "wb") as file:
            file.setnchannels(pcm.shape[1])
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(pcm.swapaxes(1, 2).tobytes())

    write_atomically(path, save)


def _read(file: Path) -> tuple[NDArray[Any], int]:
    """Return the levels of a file, or its floats, (channels, samples), and its rate."""
    try:  # not the module wave, which takes no floats, and WAVE_FORMAT_EXTENSIBLE only of late
        chunks = _chunks(file.read_bytes())
        form = chunks[b"fmt "]
        code, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", form)
        if code == _EXTENSIBLE:  # whose kind is the start of a GUID
            (code,) = struct.unpack_from("<H", form, 24)
        content, told = chunks[b"data"], struct.unpack("<I", chunks[b"size"])[0]
    except Exception as error:  # of several kinds
        raise refusal(file, _RULE, why(error), _REMEDY) from error
    dtype = _DTYPES.get((code, bits))
    if dtype is None:
        raise refusal(file, _RULE, f"{bits} bits a sample, of format {code}", _REMEDY)
    if frame * 8 != channels * bits:
        got = f"{channels} channels of {bits} bits in {frame} bytes"
        raise refusal(file, _RULE, got, _REMEDY)
    if not content or len(content) != told or rate < 1 or not channels or len(content) % frame:
        got = f"{len(content)} bytes of sound, {told} by its header"
        raise refusal(file, _RULE, got, "copy or download it again")
    values = np.frombuffer(content, dtype).reshape(-1, channels).T
    if code == _FLOATS:
        return values.astype(np.float64 if bits == 64 else np.float32), rate
    return (values.astype(np.int32) + _MIDDLE).astype(np.uint16), rate


def _chunks(content: bytes) -> dict[bytes, bytes]:
    """Return the first chunk of every name, and the size that "data" tells as "size".

    Errors: ValueError for what is no WAV file.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        message = "no RIFF header of WAVE"
        raise ValueError(message)
    found: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        found.setdefault(name, content[at + 8 : at + 8 + size])
        if name == b"data":
            found.setdefault(b"size", content[at + 4 : at + 8])
        at += 8 + size + size % 2
    return found


def _check_alike(
    file: Path, rate: int, shape: tuple[int, ...], first: tuple[Path, int, tuple[int, ...], bool]
) -> None:
    model, known, like, _ = first
    if rate != known:
        remedy = f"convert it with ffmpeg -i IN.wav -ar {known} OUT.wav"
        raise refusal(file, f"have the rate {known} of {model.name}", f"{rate}", remedy)
    if shape[0] != like[0]:
        remedy = f"convert it with ffmpeg -i IN.wav -ac {like[0]} OUT.wav"
        raise refusal(file, f"have the {like[0]} channels of {model.name}", shape[0], remedy)
    if shape != like:
        least = min(shape[1], like[1])
        remedy = f"pass --length {least} (length={least} in Python) to cut all of them"
        raise refusal(file, f"be {like[1]} samples long like {model.name}", shape[1], remedy)
