"""Halving and doubling the size of images, with convolutions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def halved(x: Tensor) -> Tensor:
    """Return x at half the size, rounded up: (x₂ᵢ₋₁ + 3 x₂ᵢ + 3 x₂ᵢ₊₁ + x₂ᵢ₊₂)/8 both ways.

    Beyond the edges the image goes on as it ends, so a constant stays one.

    Shapes: x (B, channels, H, W); result (B, channels, ⌈H/2⌉, ⌈W/2⌉).
    Source: Karras et al. 2019 (StyleGAN); Song et al. 2021 (NCSN++).

    >>> import torch
    >>> halved(torch.tensor([[[[0.0, 0.0, 8.0, 8.0]]]])).tolist()
    [[[[1.0, 7.0]]]]
    """
    height, width = x.shape[2:]
    # 1, 3, 3, 1 made where they are needed: a copy from the CPU would wait for the GPU.
    i = torch.arange(4, dtype=x.dtype, device=x.device)
    weights = (i * (3 - i) + 1) / 8
    kernel = weights.outer(weights).expand(x.shape[1], 1, 4, 4)
    padded = F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2), mode="replicate")
    return F.conv2d(padded, kernel, stride=2, groups=x.shape[1])


def doubled(x: Tensor) -> Tensor:
    """Return x at twice the size: (xᵢ₋₁ + 3 xᵢ)/4 and (3 xᵢ + xᵢ₊₁)/4 both ways.

    Away from the edges this is 4 times the transpose of `halved`.

    >>> import torch
    >>> doubled(torch.tensor([[[[0.0, 4.0]]]])).tolist()
    [[[[0.0, 1.0, 3.0, 4.0], [0.0, 1.0, 3.0, 4.0]]]]
    """
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def convolved_double(x: Tensor, weight: Tensor) -> Tensor:
    """Return the 3×3 convolution of x doubled by nearest interpolation, at 4/9 of its cost.

    Shapes: x (B, inputs, H, W); weight (outputs, inputs, 3, 3); result (B, outputs, 2H, 2W).
    """
    # What one pixel of x adds to the 4×4 around the four that it becomes: sums of neighbours.
    mirrored = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    kernel = F.avg_pool2d(mirrored, 2, stride=1, divisor_override=1)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1)
