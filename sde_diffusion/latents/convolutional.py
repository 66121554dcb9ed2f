"""A convolutional encoder and decoder for series, images and volumes of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion._check import positive_integer, positive_number, wrong_type, wrong_value
from sde_diffusion._shown import as_call
from sde_diffusion.latents.encoder_decoder import EncoderDecoder
from sde_diffusion.nets._layers import check_input, check_seed, conv, group_norm, home

_WHAT: Final = "ConvolutionalAutoencoder"
_LOGS: Final = (-15.0, 10.0)  # between which log s is kept, as in Rombach et al.
_SPREAD: Final = 0.5  # the decoder's deviation before it is learned, of data in [−1, 1]
_MOST_BLOCKS: Final = 100


@final
class Residual(nn.Module):
    """y = x + conv(silu(norm(conv(silu(norm(x)))))), the second convolution 0 at first."""

    def __init__(self, channels: int, dims: int, generator: torch.Generator) -> None:
        super().__init__()
        ones = (1,) * dims
        self.first_norm = group_norm(channels, affine=True)
        self.first = conv(channels, channels, generator, strides=ones)
        self.second_norm = group_norm(channels, affine=True)
        self.second = conv(channels, channels, None, strides=ones)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        h = self.first(F.silu(self.first_norm(x)))
        added: Tensor = self.second(F.silu(self.second_norm(h)))
        return x + added


@final
class ConvolutionalAutoencoder(EncoderDecoder):
    """Residual convolutions that halve every axis between levels, and double it on the way back.

    Level i has ``width · multipliers[i]`` channels. Sizes are halved rounding up, and the decoder
    gives each level the size that it had, so that any size will do. ``config`` holds all
    arguments: ``ConvolutionalAutoencoder(**net.config)`` is the same network.

    Arguments:
        event: the shape of a sample: (C, L), (C, H, W) or (C, D, H, W).
        latent: channels of the latents.
        width: channels of level 0 before its multiplier, at least 4.
        multipliers: of ``width``, one for each level; sizes are halved between two.
        blocks: residual blocks of a level, in the encoder and in the decoder.
        noise: s, a constant deviation of the encoder; None for a learned s(x).
        spread: σ, a constant deviation of the decoder; None for one number that is learned.
        seed: of the weights.

    Shapes: x (B, *event), h (B, latent, *axes) with axes ⌈size/2^(levels − 1)⌉.
    Errors: ValueError and TypeError for arguments, shapes and dtypes that do not fit.
    Source: Rombach et al. 2022; Rybkin et al. 2021 (the learned σ).

    >>> net = ConvolutionalAutoencoder((1, 9, 7), latent=2, width=8, multipliers=(1, 1, 1))
    >>> net.latent
    (2, 3, 2)
    """

    def __init__(
        self,
        event: Sequence[int],
        latent: int = 4,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        noise: float | None = None,
        spread: float | None = None,
        seed: int = 0,
    ) -> None:
        event = _integers("event", event)
        multipliers = _integers("multipliers", multipliers)
        _check(event, latent, width, blocks, seed)
        for name, given in (("noise", noise), ("spread", spread)):
            if given is not None:
                positive_number(_WHAT, name, given, f"pass {name}=0.1")
        self._sizes = [
            tuple(math.ceil(n / 2**level) for n in event[1:]) for level in range(len(multipliers))
        ]
        super().__init__(tuple(event), (latent, *self._sizes[-1]))
        self.config: dict[str, Any] = {
            "event": event,
            "latent": latent,
            "width": width,
            "multipliers": multipliers,
            "blocks": blocks,
            "noise": noise,
            "spread": spread,
            "seed": seed,
        }
        generator = torch.Generator().manual_seed(seed)
        with home():
            self._build([width * m for m in multipliers], blocks, generator)

    def _build(self, widths: list[int], blocks: int, generator: torch.Generator) -> None:
        """Create the layers, from the data to the latents and back."""
        channels, dims = self.event[0], len(self.event) - 1
        ones, twos = (1,) * dims, (2,) * dims

        def level(width: int) -> nn.Sequential:
            return nn.Sequential(*(Residual(width, dims, generator) for _ in range(blocks)))

        inner = self.latent[0]
        outputs = inner if self.config["noise"] is not None else 2 * inner
        self.stem = conv(channels, widths[0], generator, strides=ones)
        self.down = nn.ModuleList(level(width) for width in widths)
        self.shrink = nn.ModuleList(
            conv(a, b, generator, strides=twos) for a, b in pairwise(widths)
        )
        self.to_latent = conv(widths[-1], outputs, generator, kernel=1, strides=ones)
        self.from_latent = conv(inner, widths[-1], generator, strides=ones)
        self.up = nn.ModuleList(level(width) for width in reversed(widths))
        self.grow = nn.ModuleList(
            conv(b, a, generator, strides=ones) for a, b in reversed([*pairwise(widths)])
        )
        self.last_norm = group_norm(widths[0], affine=True)
        self.head = conv(widths[0], channels, generator, strides=ones)
        if self.config["spread"] is None:
            self.log_spread = nn.Parameter(torch.tensor(math.log(_SPREAD), device=home()))

    def __repr__(self) -> str:
        return as_call(_WHAT, self.config)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_input(_WHAT, x, self.event, self.stem.weight)
        h = self.down[0](self.stem(x))
        for shrink, level in zip(self.shrink, self.down[1:], strict=True):
            h = level(shrink(h))
        out = self.to_latent(F.silu(h))
        if self.config["noise"] is not None:
            return out, torch.full_like(out, self.config["noise"])
        mean, log_std = out.chunk(2, dim=1)
        return mean, log_std.clamp(*_LOGS).exp()

    def reconstruction(self, h: Tensor) -> tuple[Tensor, Tensor]:
        check_input(_WHAT, h, self.latent, self.stem.weight)
        h = self.up[0](self.from_latent(h))
        sizes = reversed(self._sizes[:-1])
        for grow, level, size in zip(self.grow, self.up[1:], sizes, strict=True):
            h = level(grow(F.interpolate(h, size=size, mode="nearest")))
        mean = self.head(F.silu(self.last_norm(h)))
        if self.config["spread"] is None:
            return mean, self.log_spread.exp()
        return mean, mean.new_tensor(self.config["spread"])


def _integers(name: str, values: object) -> list[int]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        remedy = f"pass for example {name}=(1, 28, 28)"
        raise wrong_type(_WHAT, name, "be a row of integers", values, remedy)
    for value in values:
        positive_integer(_WHAT, name, value)
    return [int(value) for value in values]


def _check(event: list[int], latent: int, width: int, blocks: int, seed: int) -> None:
    if not 2 <= len(event) <= 4:
        rule = "be (C, L), (C, H, W) or (C, D, H, W)"
        remedy = "pass event=(1, 28, 28), or of rows of numbers take a LinearAutoencoder"
        raise wrong_value(_WHAT, "event", rule, event, remedy)
    positive_integer(_WHAT, "latent", latent)
    positive_integer(_WHAT, "width", width, least=4)
    positive_integer(_WHAT, "blocks", blocks, most=_MOST_BLOCKS)
    check_seed(_WHAT, seed)
