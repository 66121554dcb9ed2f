"""Moving pictures of clips: tiles of all of them, a frame at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion._files import write_atomically
from sde_diffusion.pictures.samples import as_grey, tiles

if TYPE_CHECKING:
    from sde_diffusion.data.spec import DataSpec

_LASTS: Final = 120  # milliseconds of a frame


def clip_animation(x: Tensor, path: str | Path, data: DataSpec | None = None) -> None:
    """Write clips as one GIF, tiled, that repeats for ever.

    They have values in [−1, 1], but real data with a scaling are stretched between their extremes.

    Arguments:
        x: clips as the model gives them, grey, RGB or RGBA; (B, 1, 3 or 4, D, H, W).
        path: the file to write.
        data: what they are, where that is known.

    Errors: ValueError for another shape.

    >>> clip_animation(torch.zeros(2, 2, 4, 5, 5), "clips.gif")
    Traceback (most recent call last):
    ValueError: clip_animation: x must hold clips (B, 1, 3 or 4, D, H, W), got (2, 2, 4, 5, 5); \
pass x.flatten(0, 1)[:, None], a grey clip for each channel
    """
    from PIL import Image

    if x.ndim != 5 or x.shape[1] not in (1, 3, 4) or not x.numel():
        raise wrong_value(
            "clip_animation",
            "x",
            "hold clips (B, 1, 3 or 4, D, H, W)",
            tuple(x.shape),
            "pass x.flatten(0, 1)[:, None], a grey clip for each channel",
        )
    values = as_grey(x.detach().cpu().float(), data)
    frames = [(255 * tiles(frame)).round().to(torch.uint8) for frame in values.unbind(2)]
    first, *rest = (Image.fromarray(frame.numpy()).convert("RGB") for frame in frames)

    def save(temporary: Path) -> None:
        first.save(temporary, "GIF", save_all=True, append_images=rest, duration=_LASTS, loop=0)

    write_atomically(path, save)
