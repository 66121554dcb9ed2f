"""The two blocks of a U-Net: residual convolutions and self-attention, both conditioned."""

from __future__ import annotations

from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.nets._layers import (
    Convolution,
    GroupNorm,
    conv,
    convolved,
    group_norm,
    linear,
)
from sde_diffusion.nets._norm import memory_bound
from sde_diffusion.nets.resampling import convolved_double


@final
class ResidualBlock(nn.Module):
    """y = factor (skip(x) + conv(drop(silu((1 + scale) norm(conv(silu(norm(x)))) + shift)))).

    (scale, shift) is a linear map of the conditioning vector; skip is the identity, or a 1×1
    convolution where the channels change. The second convolution is 0 at first.

    With ``beside`` the block's input is x, doubled in size by nearest interpolation if ``beside``
    is twice its size, and ``beside``, one after the other in the channels; where that is faster
    they are convolved apart, to the same result.

    Arguments:
        inputs: channels in, those of ``beside`` included.
        outputs: channels out.
        condition: size E of the conditioning vector.
        dropout: probability in [0, 1).
        factor: of the sum of both branches: 1, or 1/√2 to keep its variance.
        generator: of the weights.
        dims: axes of a sample.

    Shapes: x (B, inputs, *axes); e (B, E); result (B, outputs, *axes).
    Source: Brock et al. 2019; Dhariwal & Nichol 2021; Song et al. 2021, app. H (factor 1/√2).

    >>> block = ResidualBlock(4, 4, 8, 0.0, 0.5, torch.Generator().manual_seed(0))
    >>> block(torch.ones(1, 4, 2, 2), torch.ones(1, 8))[0, 0, 0, 0].item()
    0.5
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int,
        dropout: float,
        factor: float,
        generator: torch.Generator,
        dims: int = 2,
    ) -> None:
        super().__init__()
        ones = (1,) * dims
        self.dropout = dropout
        self.factor = factor
        self.first_norm = group_norm(inputs, affine=True)
        self.first = conv(inputs, outputs, generator, strides=ones)
        self.modulation = linear(condition, 2 * outputs, generator)
        # Scale and shift do what an affine norm would.
        self.second_norm = group_norm(outputs, affine=False)
        self.second = conv(outputs, outputs, None, strides=ones)
        self.skip = (
            conv(inputs, outputs, generator, kernel=1, strides=ones) if inputs != outputs else None
        )

    def forward(self, x: Tensor, e: Tensor, beside: Tensor | None = None) -> Tensor:
        """Return the block's output for the conditioning vectors e."""
        norm = self.first_norm
        factor = self.factor
        parts = [x] if beside is None else _side_by_side(x, beside, norm)
        starts = (0, x.shape[1])
        active = [F.silu(norm(part, first=at)) for part, at in zip(parts, starts, strict=False)]
        scale, shift = self.modulation(e).chunk(2, dim=1)
        h = _convolved(active, self.first)
        h = F.silu(self.second_norm(h, 1 + scale, shift))
        h = F.dropout(h, self.dropout, self.training)
        h = _convolved([h], self.second, factor)
        if self.skip is None:
            return h.add_(x, alpha=factor)
        return h.add_(_convolved(parts, self.skip, factor))


@final
class Attention(nn.Module):
    """y = factor (x + W softmax(qᵀk/√d) v) over the pixels, with W = 0 at first.

    Arguments:
        channels: in and out.
        heads: of attention, a divisor of the channels; d = channels/heads.
        factor: of the sum of both branches: 1, or 1/√2 to keep its variance.
        generator: of the weights.

    Shapes: x (B, channels, *axes); result the same.
    Source: Vaswani et al. 2017; Ho et al. 2020.

    >>> layer = Attention(4, 2, 0.5, torch.Generator().manual_seed(0))
    >>> layer(torch.ones(1, 4, 2, 2))[0, 0, 0, 0].item()
    0.5
    """

    def __init__(
        self, channels: int, heads: int, factor: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads = heads
        self.factor = factor
        self.norm = group_norm(channels, affine=True)
        self.qkv = linear(channels, 3 * channels, generator)
        self.out = linear(channels, channels, None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        # Of PyTorch's own attention, the fused kernels have neither forward mode nor a second
        # derivative, and the plain one looks for rows without any weight.
        # 1×1 convolutions are faster than products where MKL is slow.
        ones = (1,) * (x.ndim - 2)
        h = convolved(self.norm(x), self.qkv.weight.reshape(-1, x.shape[1], *ones), self.qkv.bias)
        shape = (x.shape[0], self.heads, -1, x.shape[2:].numel())
        q, k, v = (part.reshape(shape).mT for part in h.chunk(3, dim=1))
        weights = (q * q.shape[3] ** -0.5 @ k.mT).softmax(dim=3)
        pixels = (weights @ v).transpose(1, 2).flatten(2).unflatten(1, x.shape[2:])
        weight = self.factor * self.out.weight
        bias = self.factor * self.out.bias
        h = convolved(pixels.movedim(-1, 1), weight.reshape(-1, x.shape[1], *ones), bias)
        return h.add_(x, alpha=self.factor)


def _side_by_side(x: Tensor, beside: Tensor, norm: GroupNorm) -> list[Tensor]:
    """Return both, or one image: where that is small, or a group of the norm takes from both."""
    whole = x.shape[1] % (norm.num_channels // norm.num_groups) == 0
    if whole and x.ndim == 4 and memory_bound(beside):
        return [x, beside]
    return [torch.cat([F.interpolate(x, size=beside.shape[2:]), beside], dim=1)]


def _convolved(parts: list[Tensor], layer: Convolution, factor: float = 1.0) -> Tensor:
    """Return factor · layer of images side by side, doubled to the size of the last."""
    weight = layer.weight
    bias = cast("Tensor", layer.bias)
    if factor != 1:  # weights are fewer than pixels
        weight = factor * weight
        bias = factor * bias
    padding = weight.shape[2] // 2
    if len(parts) == 1:
        return convolved(parts[0], weight, bias, padding)
    *weights, last = torch.split(weight, [part.shape[1] for part in parts], dim=1)
    out = F.conv2d(parts[-1], last, bias, padding=padding)
    for part, one in zip(parts, weights, strict=False):
        if part.shape[2:] == out.shape[2:]:
            h = F.conv2d(part, one, padding=padding)
        elif padding:
            h = convolved_double(part, one)
        else:
            h = F.interpolate(F.conv2d(part, one), size=out.shape[2:])
        out = out.add_(h)
    return out
