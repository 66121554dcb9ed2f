"""Sounds: WAV files of 16-bit PCM, read into clips of one length and written again."""

from __future__ import annotations

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
_RULE: Final = "be a whole WAV file of 16-bit PCM"
_REMEDY: Final = "convert it with ffmpeg -i IN.wav -c:a pcm_s16le OUT.wav"


def read_sounds(path: Path, files: Sequence[Path], length: int | None) -> Rows:
    """Return clips of sounds, channels first, of 65536 levels, and their sampling rate.

    Every file is cut into clips of ``length`` samples from its beginning; what is left at its end
    is dropped. Without a length every file is a clip.

    Arguments:
        path: the file or folder, for notes.
        files: the sounds, in their order as samples.
        length: of a clip, in samples; None for whole files.

    Errors: ValueError that names the file that is damaged, too short, or of another length, rate
    or number of channels than the first.
    """
    clips: list[NDArray[Any]] = []
    dropped = 0
    first: tuple[Path, int, tuple[int, ...]] | None = None
    for file in files:
        sound, rate = _read(file)
        channels, samples = sound.shape
        size = samples if length is None else length
        if samples < size:
            rule = f"be at least {size} samples long"
            remedy = f"pass --length {samples} (length={samples} in Python)"
            raise refusal(file, rule, f"{samples} samples", remedy)
        first = first or (file, rate, (channels, size))
        _check_alike(file, rate, (channels, size), first)
        count, rest = divmod(samples, size)
        whole = sound[:, : count * size].reshape(channels, count, size)
        clips.append(whole.swapaxes(0, 1))
        dropped += rest
    name = path.name or path
    note = f"{name}: {dropped} samples at the ends of {len(files)} sounds fill no clip"
    return Rows(
        np.concatenate(clips),
        layout="cl",
        levels=LEVELS,
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
    """Return the levels of a file, (channels, samples), and its rate."""
    try:
        with wave.open(str(file), "rb") as sound:
            kind = sound.getparams()
            content = sound.readframes(kind.nframes)
    except Exception as error:  # wave raises several kinds for damaged headers
        raise refusal(file, _RULE, why(error), _REMEDY) from error
    if kind.sampwidth != 2:
        raise refusal(file, _RULE, f"{8 * kind.sampwidth} bits a sample", _REMEDY)
    size = kind.nframes * kind.nchannels * 2
    if len(content) != size or not size or kind.framerate < 1:
        got = f"{len(content)} bytes of sound, {size} by its header"
        raise refusal(file, _RULE, got, "copy or download it again")
    pcm = np.frombuffer(content, "<i2").reshape(-1, kind.nchannels)
    return (pcm.T.astype(np.int32) + _MIDDLE).astype(np.uint16), kind.framerate


def _check_alike(
    file: Path, rate: int, shape: tuple[int, ...], first: tuple[Path, int, tuple[int, ...]]
) -> None:
    model, known, like = first
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
