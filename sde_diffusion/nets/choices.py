"""The arguments of networks that suit data of a shape, where nothing else is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from sde_diffusion.nets.patches import grid_of
from sde_diffusion.nets.unet import digits_config, mnist_config

_SMALL: Final = 16  # the longest side of what two levels see whole
_MOST_PLACES: Final = 1024  # at the bottom, where all attend to all
_WIDTH_OF_VOLUMES: Final = 24  # kernels of 27 weights in place of 9
_MOST_TOKENS: Final = 256  # of a transformer, all of which attend to all in every block


def unet_for(
    shape: Sequence[int],
    multipliers: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the arguments of a U-Net for samples of a shape: (C, L), (C, H, W) or (C, D, H, W).

    Those of images are `digits_config` up to 16 × 16, else `mnist_config`. Series and volumes get
    levels until at most 1024 places are left at the bottom, where the attention is; where the
    multipliers or the strides that are asked for leave more, there is none.

    >>> unet_for((2, 16000))["multipliers"]
    [1, 2, 2, 2, 2]
    >>> unet_for((2, 16000), multipliers=(1, 2))["attention"]
    []
    """
    channels, *axes = shape
    config = digits_config() if max(axes) <= _SMALL else mnist_config()
    config["channels"] = channels
    images = len(axes) == 2
    steps = [2] * len(axes) if strides is None else strides
    levels = list(config["multipliers"] if multipliers is None else multipliers)
    if not images:
        config |= {"dims": len(axes)}
        while multipliers is None and _may_shrink(axes, steps, len(levels)):
            levels.append(2)
    if not images or multipliers is not None:
        few = images or math.prod(_left(axes, steps, len(levels))) <= _MOST_PLACES
        config |= {"multipliers": levels, "attention": [len(levels) - 1] if few else []}
    return config | ({"width": _WIDTH_OF_VOLUMES} if len(axes) == 3 else {})


def dit_for(shape: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of a `DiT` for samples of a shape, with about those of `unet_for`.

    The patches are cubes of the least side, a power of 2, that leaves 256 of them or fewer.

    >>> dit_for((3, 64, 64))["patch"]
    [4, 4]
    """
    channels, *axes = shape
    side = 2
    while math.prod(grid_of(axes, [side] * len(axes))) > _MOST_TOKENS:
        side *= 2
    small = max(axes) <= _SMALL
    size = {"width": 96, "depth": 4} if small else {"width": 144, "depth": 6}
    scale = digits_config()["time_scale"] if small else mnist_config()["time_scale"]
    return {"channels": channels, "patch": [side] * len(axes), **size, "time_scale": scale}


def _left(axes: Sequence[int], strides: Sequence[int], levels: int) -> list[int]:
    """Return the sizes at the bottom of so many levels."""
    return [-(-n // s ** (levels - 1)) for n, s in zip(axes, strides, strict=False)]


def _may_shrink(axes: Sequence[int], strides: Sequence[int], levels: int) -> bool:
    """Return whether too many places are left, and one more level leaves fewer."""
    now = math.prod(_left(axes, strides, levels))
    return now > _MOST_PLACES and math.prod(_left(axes, strides, levels + 1)) < now
