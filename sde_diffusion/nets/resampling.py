"""Halving and doubling the size of series, images and volumes, with convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.nets._layers import convolved

_LINEAR: Final = {1: "linear", 2: "bilinear", 3: "trilinear"}


def halved(x: Tensor, strides: Sequence[int] = (2, 2)) -> Tensor:
    """Return x at half the size, rounded up: (x₂ᵢ₋₁ + 3 x₂ᵢ + 3 x₂ᵢ₊₁ + x₂ᵢ₊₂)/8 every way.

    Beyond the edges the image goes on as it ends, so a constant stays one. Along an axis of stride
    1 nothing is changed.

    Shapes: x (B, channels, *axes); result (B, channels, ⌈axis/stride⌉, …).
    Source: Karras et al. 2019 (StyleGAN); Song et al. 2021 (NCSN++).

    >>> import torch
    >>> halved(torch.tensor([[[[0.0, 0.0, 8.0, 8.0]]]])).tolist()
    [[[[1.0, 7.0]]]]
    """
    # 1, 3, 3, 1 made where they are needed: a copy from the CPU would wait for the GPU.
    i = torch.arange(4, dtype=x.dtype, device=x.device)
    weights = (i * (3 - i) + 1) / 8
    sides = [weights if stride == 2 else torch.ones_like(weights[:1]) for stride in strides]
    kernel = reduce(lambda k, side: k[..., None] * side, sides)
    ends = [
        (1, 1 + n % 2) if s == 2 else (0, 0) for n, s in zip(x.shape[2:], strides, strict=True)
    ]
    padded = F.pad(x, [end for pair in reversed(ends) for end in pair], mode="replicate")
    return convolved(
        padded, kernel.expand(x.shape[1], 1, *kernel.shape), strides=strides, groups=x.shape[1]
    )


def doubled(x: Tensor, strides: Sequence[int] = (2, 2)) -> Tensor:
    """Return x at twice the size: (xᵢ₋₁ + 3 xᵢ)/4 and (3 xᵢ + xᵢ₊₁)/4 every way.

    Away from the edges this is 2 for each axis times the transpose of `halved`. Along an axis of
    stride 1 nothing is changed.

    >>> import torch
    >>> doubled(torch.tensor([[[[0.0, 4.0]]]])).tolist()
    [[[[0.0, 1.0, 3.0, 4.0], [0.0, 1.0, 3.0, 4.0]]]]
    """
    scale = tuple(map(float, strides))
    return F.interpolate(x, scale_factor=scale, mode=_LINEAR[len(scale)])


def convolved_double(x: Tensor, weight: Tensor) -> Tensor:
    """Return the 3×3 convolution of x doubled by nearest interpolation, at 4/9 of its cost.

    Shapes: x (B, inputs, H, W); weight (outputs, inputs, 3, 3); result (B, outputs, 2H, 2W).
    """
    # What one pixel of x adds to the 4×4 around the four that it becomes: sums of neighbours.
    mirrored = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    kernel = F.avg_pool2d(mirrored, 2, stride=1, divisor_override=1)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1)
