"""The parts of networks that take conditions: vectors, images beside the state, and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion._check import positive_integer
from sde_diffusion.nets._layers import linear, vectors
from sde_diffusion.nets.attention import attended
from sde_diffusion.nets.conditions import BYTES
from sde_diffusion.nets.positions import coordinates, sinusoids

_EPS: Final = 1e-6
_TEXT_DEPTH: Final = 2
_HEADS: Final = 4


def asked(what: str, sizes: Mapping[str, int | None]) -> dict[str, int]:
    """Return the conditions that are asked for, by name, as a configuration keeps them."""
    for name, size in sizes.items():
        if size is not None:
            positive_integer(what, name, size)
    return {name: size for name, size in sizes.items() if size is not None}


def known_and_where(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers with 0 for NaN, and 1 where there was a number, else 0."""
    there = ~value.isnan()
    return value.where(there, 0), there.to(value.dtype)


@final
class VectorEmbedding(nn.Module):
    """A linear map of a vector and of which of its numbers are known.

    Shapes: vector (B, size) or None for nothing; result (B, width), or (width,) for nothing.
    """

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.map = linear(2 * size, width, generator)

    def forward(self, vector: Tensor | None) -> Tensor:
        """Return the embedding."""
        if vector is None:
            return self.map.bias
        found: Tensor = self.map(torch.cat(known_and_where(vector), dim=1))
        return found


def beside(x: Tensor, image: Tensor | None, channels: int) -> Tensor:
    """Return the state, an image beside it with 0 for NaN, and where that is known.

    Shapes: x (B, C, *axes); image (B, channels, *axes) or None for nothing; result
    (B, C + 2 channels, *axes).
    """
    if image is None:
        return torch.cat([x, x.new_zeros(len(x), 2 * channels, *x.shape[2:])], dim=1)
    return torch.cat([x, *known_and_where(image.to(x.dtype))], dim=1)


@final
class TextLayer(nn.Module):
    """x + attention(norm(x)), then x + W gelu(V norm(x)): the layer of an encoder.

    Shapes: x (B, N, width); hidden (B, N) bool, the tokens that none sees; result like x.
    Source: Vaswani et al. 2017; Xiong et al. 2020 (the norm first).
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.qkv = linear(width, 3 * width, generator)
        self.out = linear(width, width, generator)
        self.inner = linear(width, 4 * width, generator)
        self.outer = linear(4 * width, width, generator)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the layer's output."""
        heads = heads_of(x.shape[2])
        split = (3, heads, x.shape[2] // heads)
        q, k, v = self.qkv(_normal(x)).unflatten(2, split).permute(2, 0, 3, 1, 4)
        x = x + self.out(attended(q, k, v, hidden).transpose(1, 2).flatten(2))
        added: Tensor = self.outer(F.gelu(self.inner(_normal(x)), approximate="tanh"))
        return x + added


@final
class Tokens(nn.Module):
    """What cross-attention looks at: a first token of the network's own, then those given.

    A text is read byte by byte, by a transformer that is trained with the network; tokens of
    another encoder pass a linear map. Of no text, or no tokens, the first token alone is left: it
    is what the network learns of nothing.

    Arguments:
        text: the longest text in bytes; None for no texts.
        context: the size of tokens of another encoder; None for none.
        width: of the tokens that come out.
        generator: of the weights.

    Shapes: text (B, bytes) int64, −1 behind the end; context (B, L, size), masked ones NaN; result
    tokens (B, N, width) and hidden (B, N) bool.
    """

    def __init__(
        self, text: int | None, context: int | None, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.first = vectors(1, width, generator)
        self.bytes = None if text is None else vectors(BYTES, width, generator)
        layers = () if text is None else range(_TEXT_DEPTH)
        self.layers = nn.ModuleList(TextLayer(width, generator) for _ in layers)
        self.map = None if context is None else linear(context, width, generator)

    def forward(
        self, batch: int, text: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens, and which of them are hidden."""
        tokens = [self.first.weight.expand(batch, 1, -1)]
        hidden = [torch.zeros(batch, 1, dtype=torch.bool, device=tokens[0].device)]
        if text is not None and self.bytes is not None:
            tokens.append(self.bytes(text.clamp(min=0)))
            hidden.append(text < 0)
        h, unseen = torch.cat(tokens, dim=1), torch.cat(hidden, dim=1)
        if self.bytes is not None:
            h = h + sinusoids(coordinates(h.shape[1:2], h), h.shape[2]).to(h.dtype)
            for layer in self.layers:
                h = layer(h, unseen)
        if context is not None and self.map is not None:
            there = ~context.isnan().any(dim=2)
            of_others = self.map(context.to(h.dtype).where(there[:, :, None], 0))
            h, unseen = torch.cat([h, of_others], dim=1), torch.cat([unseen, ~there], dim=1)
        return h, unseen


@final
class CrossAttention(nn.Module):
    """x + W softmax(q kᵀ/√d) v of tokens, q of x, k and v of the tokens; W = 0 at first.

    Arguments:
        channels: of x.
        heads: of attention, a divisor of the channels; d = channels/heads.
        width: of a token.
        generator: of the weights.

    Shapes: x (B, N, channels); tokens (B, M, width); hidden (B, M) bool; result like x.
    Source: Rombach et al. 2022, section 3.3.
    """

    def __init__(self, channels: int, heads: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query = linear(channels, channels, generator)
        self.keys = linear(width, 2 * channels, generator)
        self.out = linear(channels, channels, None)

    def forward(self, x: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Return x, with what it takes from the tokens that are not hidden."""
        size = x.shape[2] // self.heads
        q = self.query(_normal(x)).unflatten(2, (self.heads, size)).transpose(1, 2)
        k, v = (
            self.keys(_normal(tokens)).unflatten(2, (2, self.heads, size)).permute(2, 0, 3, 1, 4)
        )
        added: Tensor = self.out(attended(q, k, v, hidden).transpose(1, 2).flatten(2))
        return x + added

    def of_image(self, x: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Return the same of an image, each pixel of which is a row; (B, channels, *axes)."""
        rows: Tensor = self(x.flatten(2).mT, tokens, hidden)
        return rows.mT.reshape(x.shape)


def heads_of(width: int) -> int:
    """Return the heads of an encoder of a width: four, or as many as divide it."""
    return next(n for n in range(_HEADS, 0, -1) if width % n == 0)


def _normal(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPS)
