"""The two blocks of a U-Net: residual convolutions and self-attention, both conditioned."""

from __future__ import annotations

import math
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sde_diffusion.nets._layers import conv, group_norm, linear

# The sum of two signals of variance 1 has variance 2.
HALF_POWER: Final = math.sqrt(0.5)


@final
class ResidualBlock(nn.Module):
    """y = (skip(x) + conv(drop(silu((1 + scale) norm(conv(silu(norm(x)))) + shift)))) / √2.

    (scale, shift) is a linear map of the conditioning vector; skip is the identity, or a 1×1
    convolution where the channels change. The second convolution is 0 at first.

    Shapes: x (B, inputs, H, W); e (B, E); result (B, outputs, H, W).
    Source: Brock et al. 2019; Dhariwal & Nichol 2021; Song et al. 2021, app. H (the 1/√2).

    >>> block = ResidualBlock(4, 4, 8, 0.0, torch.Generator().manual_seed(0))
    >>> block(torch.ones(1, 4, 2, 2), torch.ones(1, 8))[0, 0, 0, 0].item()
    0.7071067690849304
    """

    def __init__(
        self, inputs: int, outputs: int, condition: int, dropout: float,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dropout = dropout
        self.first_norm = group_norm(inputs, affine=True)
        self.first = conv(inputs, outputs, generator)
        self.modulation = linear(condition, 2 * outputs, generator)
        # Scale and shift do what an affine norm would.
        self.second_norm = group_norm(outputs, affine=False)
        self.second = conv(outputs, outputs, None)
        self.skip = conv(inputs, outputs, generator, kernel=1) if inputs != outputs else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return the block's output for the conditioning vectors e."""
        scale, shift = self.modulation(e).unflatten(1, (-1, 1, 1)).chunk(2, dim=1)
        h = self.second_norm(self.first(F.silu(self.first_norm(x))))
        h = F.silu(torch.addcmul(shift, h, 1 + scale))  # one pass over h instead of two
        h = self.second(F.dropout(h, self.dropout, self.training))
        out: Tensor = ((x if self.skip is None else self.skip(x)) + h) * HALF_POWER
        return out


@final
class Attention(nn.Module):
    """y = (x + W softmax(qᵀk/√d) v) / √2 over the pixels, with W = 0 at first.

    Shapes: x (B, channels, H, W); result the same.
    Source: Vaswani et al. 2017; Ho et al. 2020.

    >>> layer = Attention(4, 2, torch.Generator().manual_seed(0))
    >>> layer(torch.ones(1, 4, 2, 2))[0, 0, 0, 0].item()
    0.7071067690849304
    """

    def __init__(self, channels: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, affine=True)
        self.qkv = linear(channels, 3 * channels, generator)
        self.out = linear(channels, channels, None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        pixels = self.norm(x).flatten(2).mT  # (B, H·W, channels)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(pixels).chunk(3, dim=2)
        )
        # The fused kernels have neither forward mode nor a second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            h = F.scaled_dot_product_attention(q, k, v)
        added: Tensor = self.out(h.transpose(1, 2).flatten(2)).mT.unflatten(2, x.shape[2:])
        return (x + added) * HALF_POWER
