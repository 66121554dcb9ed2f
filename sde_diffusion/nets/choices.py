"""The arguments of networks that suit data of a shape, where nothing else is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from sde_diffusion.nets.unet import digits_config, mnist_config

_SMALL: Final = 16  # the longest side of what two levels see whole
_MOST_PLACES: Final = 1024  # at the bottom, where all attend to all
_WIDTH_OF_VOLUMES: Final = 24  # kernels of 27 weights in place of 9


def unet_for(shape: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of a U-Net for samples of a shape: (C, L), (C, H, W) or (C, D, H, W).

    Those of images are `digits_config` up to 16 × 16, else `mnist_config`. Series and volumes get
    levels until at most 1024 places are left at the bottom, where the attention is.

    >>> unet_for((2, 16000))["multipliers"]
    [1, 2, 2, 2, 2]
    """
    channels, *axes = shape
    config = digits_config() if max(axes) <= _SMALL else mnist_config()
    config["channels"] = channels
    if len(axes) == 2:
        return config
    multipliers = config["multipliers"]
    while math.prod(-(-n // 2 ** (len(multipliers) - 1)) for n in axes) > _MOST_PLACES:
        multipliers = [*multipliers, 2]
    config |= {"multipliers": multipliers, "attention": [len(multipliers) - 1], "dims": len(axes)}
    return config | ({"width": _WIDTH_OF_VOLUMES} if len(axes) == 3 else {})
