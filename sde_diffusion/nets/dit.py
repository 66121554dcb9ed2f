"""A noise-conditional diffusion transformer for series, images and volumes of any size."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion._check import one_of, positive_integer, wrong_type, wrong_value
from sde_diffusion._shown import as_call
from sde_diffusion.nets._layers import (
    AXES,
    check_condition,
    check_dropout,
    check_input,
    check_seed,
    home,
    keep_freed_memory,
    linear,
)
from sde_diffusion.nets.attention import attended
from sde_diffusion.nets.conditions import ConditionalNetwork
from sde_diffusion.nets.embedding import Conditioning, resolve
from sde_diffusion.nets.given import CrossAttention, Tokens, VectorEmbedding, asked, beside
from sde_diffusion.nets.patches import grid_of, inside, samples_of, tokens_of
from sde_diffusion.nets.positions import angles, coordinates, rotated, sinusoids

POSITIONS: Final = ("sin-cos", "rotary", "none")
QK_NORMS: Final = ("none", "rms")
_DEEPEST: Final = 1000  # layers; minutes would pass before memory ran out on far more
_EPS: Final = 1e-6


@final
class SelfAttention(nn.Module):
    """W softmax(q kᵀ/√d) v of tokens, with rotary positions and normalised q and k if asked for.

    Arguments:
        width: of a token.
        heads: of attention, a divisor of the width; d = width/heads.
        qk_norm: "rms" gives queries and keys a root mean square that is learned; "none" does not.
        generator: of the weights.

    Shapes: x (B, N, width); turn (N, d/2) or None; hidden (B, N) bool or None; result like x.
    Source: Vaswani et al. 2017; Su et al. 2021 (rotary); Dehghani et al. 2023 (qk_norm).
    """

    def __init__(self, width: int, heads: int, qk_norm: str, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width, generator)
        self.out = linear(width, width, generator)
        ones = torch.ones(2, width // heads, device=self.out.weight.device)
        self.scales = nn.Parameter(ones) if qk_norm == "rms" else None

    def forward(self, x: Tensor, turn: Tensor | None, hidden: Tensor | None) -> Tensor:
        """Return what each token takes from those that are not hidden."""
        split = (3, self.heads, x.shape[2] // self.heads)
        q, k, v = self.qkv(x).unflatten(2, split).permute(2, 0, 3, 1, 4)
        if self.scales is not None:
            q, k = (_of_size(part, size) for part, size in zip((q, k), self.scales, strict=True))
        if turn is not None:
            q, k = rotated(q, turn), rotated(k, turn)
        out: Tensor = self.out(attended(q, k, v, hidden).transpose(1, 2).flatten(2))
        return out


@final
class Block(nn.Module):
    """x + a₁ attention(m₁(x)), then x + a₂ W gelu(V m₂(x)), m(x) = (1 + scale) norm(x) + shift.

    The gates a, scales and shifts are a linear map of the conditioning vector that is 0 at first,
    so that the block is the identity.

    Arguments:
        width: of a token.
        heads: of attention.
        qk_norm: that of `SelfAttention`.
        dropout: probability in [0, 1), between V and W.
        generator: of the weights.

    Shapes: x (B, N, width); e (B, width); result like x.
    Source: Peebles & Xie 2023, figure 3 (adaLN-Zero).

    >>> block = Block(4, 2, "none", 0.0, torch.Generator().manual_seed(0))
    >>> block(torch.ones(1, 3, 4), torch.ones(1, 4)).unique().tolist()
    [1.0]
    """

    def __init__(
        self, width: int, heads: int, qk_norm: str, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.modulation = linear(width, 6 * width, None)
        self.attention = SelfAttention(width, heads, qk_norm, generator)
        self.inner = linear(width, 4 * width, generator)
        self.outer = linear(4 * width, width, generator)

    def forward(
        self, x: Tensor, e: Tensor, turn: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Return the block's output for the conditioning vectors e."""
        parts = self.modulation(e)[:, None].chunk(6, dim=2)
        shift, scale, gate, shift_inner, scale_inner, gate_inner = parts
        x = x + gate * self.attention(modulated(x, shift, scale), turn, hidden)
        h = F.gelu(self.inner(modulated(x, shift_inner, scale_inner)), approximate="tanh")
        h = F.dropout(h, self.dropout, self.training)
        out: Tensor = x + gate_inner * self.outer(h)
        return out


@final
class DiT(ConditionalNetwork):
    """A diffusion transformer, conditioned on the noise level and more.

    It takes series (C, L), images (C, H, W) or volumes and clips (C, D, H, W), by the number of
    sides of a ``patch``. Patches are its tokens; positions are functions of their coordinates, so
    that any size and aspect ratio will do, those that no patch divides too. A batch of samples of
    mixed sizes is filled up at the ends, and ``sizes`` says how large each is: what lies outside
    is seen by none, and the output is 0 there. The output is 0 at first.

    The label −1 and labels=None stand for no class, None and the value of `nothing` for no other
    condition: vectors are added to the embedding, images stand beside the channels of x, and every
    block is followed by attention to the tokens of a text, 0 at first. ``config`` holds all
    arguments: ``DiT(**net.config)`` is the same network, weights drawn from ``seed`` included.

    Arguments:
        channels: of a sample.
        patch: the sides of a patch, one for each axis of a sample.
        width: of a token.
        depth: blocks.
        heads: of attention, a divisor of the width.
        positions: "sin-cos" adds them to the tokens, "rotary" turns queries and keys; "none".
        qk_norm: "rms" normalises queries and keys; "none" does not.
        embedding: of c, "sinusoidal" or "fourier".
        time_scale: largest frequency in radians, or std of frequencies in cycles; None: 1000, 16.
        classes: how many; None for a network without labels.
        dropout: probability in [0, 1).
        seed: of the weights.
        outputs: channels of the result; None for ``channels``.
        vector: the size of a vector that each sample is given; None for none.
        image: the channels of an image that each sample is given, beside its own; None for none.
        text: the most bytes of a text that each sample is given; None for none.
        context: the size of tokens of another encoder that each sample is given; None for none.

    Shapes: x (B, channels, *axes); c (B,); labels (B,) int64; sizes (B, axes), integers;
    vector (B, size) and image
    (B, channels, *axes), NaN for what is not known; text (B, bytes) int64, −1 behind the end;
    context (B, L, size), NaN for masked tokens; result (B, outputs, *axes), by default like x.
    Units: c is the time t in [0, 1], or ¼ ln sigma.
    Errors: ValueError and TypeError for arguments, shapes, dtypes and labels that do not fit.
    Source: Peebles & Xie 2023.

    >>> net = DiT(1, (2, 2), width=32, depth=2)
    >>> net(torch.ones(1, 1, 8, 5), torch.tensor([0.5])).abs().max().item()
    0.0
    """

    def __init__(
        self,
        channels: int,
        patch: Sequence[int] = (2, 2),
        width: int = 192,
        depth: int = 6,
        heads: int = 4,
        positions: str = "sin-cos",
        qk_norm: str = "none",
        embedding: str = "sinusoidal",
        time_scale: float | None = None,
        classes: int | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        outputs: int | None = None,
        vector: int | None = None,
        image: int | None = None,
        text: int | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__()
        keep_freed_memory()
        patch = _sides(patch)
        positive_integer("DiT", "channels", channels)
        positive_integer("DiT", "depth", depth, most=_DEEPEST)
        one_of("DiT", "positions", positions, POSITIONS)
        one_of("DiT", "qk_norm", qk_norm, QK_NORMS)
        _check_heads(width, heads, positions)
        outputs = channels if outputs is None else outputs
        positive_integer("DiT", "outputs", outputs)
        check_dropout("DiT", dropout)
        check_seed("DiT", seed)
        scale = resolve("DiT", embedding, time_scale, classes)
        self.config: dict[str, Any] = {
            "channels": channels,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "positions": positions,
            "qk_norm": qk_norm,
            "embedding": embedding,
            "time_scale": scale,
            "classes": classes,
            "dropout": dropout,
            "seed": seed,
            "outputs": outputs,
        } | asked("DiT", {"vector": vector, "image": image, "text": text, "context": context})
        with home():
            self._build(torch.Generator().manual_seed(seed))

    def _build(self, generator: torch.Generator) -> None:
        """Create the layers, from the input to the output."""
        config = self.config
        width = config["width"]
        place = prod(config["patch"])
        settings = (config["embedding"], config["time_scale"], config["classes"])
        self.condition = Conditioning(width, width, *settings, generator)
        channels = config["channels"] + 2 * config.get("image", 0)
        self.stem = linear(channels * place, width, generator)
        kind = (width, config["heads"], config["qk_norm"], config["dropout"], generator)
        self.blocks = nn.ModuleList(Block(*kind) for _ in range(config["depth"]))
        self.modulation = linear(width, 2 * width, None)
        self.head = linear(width, config["outputs"] * place, None)
        # Drawn last, so that the other weights are the same without them.
        if "vector" in config:
            self.vector = VectorEmbedding(config["vector"], width, generator)
        if "text" in config or "context" in config:
            self.tokens = Tokens(config.get("text"), config.get("context"), width, generator)
            cross = (width, config["heads"], width, generator)
            self.crosses = nn.ModuleList(CrossAttention(*cross) for _ in range(config["depth"]))

    @property
    def _crossed(self) -> bool:
        """Whether blocks are followed by attention to tokens."""
        return bool(self.config.keys() & {"text", "context"})

    def __repr__(self) -> str:
        return as_call(type(self).__name__, self.config)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        labels: Tensor | None = None,
        *,
        sizes: Tensor | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
        text: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output for the states x at the noise levels c."""
        patch = self.config["patch"]
        check_input("DiT", x, (self.config["channels"], *AXES[len(patch)]), self.stem.weight)
        check_condition("DiT", x, c, labels, self.config["classes"])
        self.check_given(x, vector=vector, image=image, text=text, context=context)
        axes = x.shape[2:]
        if "image" in self.config:
            x = beside(x, image, self.config["image"])
        there = hidden = None
        if sizes is not None:
            there = inside(x, sizes)
            x = x.where(there, 0)
            hidden = ~tokens_of(there, patch).any(dim=2)
        h, turn = self._placed(self.stem(tokens_of(x, patch)), grid_of(axes, patch))
        e = self.condition(c, labels, self.vector(vector) if "vector" in self.config else None)
        seen = self.tokens(len(x), text, context) if self._crossed else None
        for i, block in enumerate(self.blocks):
            h = block(h, e, turn, hidden)
            h = h if seen is None else self.crosses[i](h, *seen)
        shift, scale = self.modulation(e)[:, None].chunk(2, dim=2)
        out = samples_of(self.head(modulated(h, shift, scale)), patch, axes)
        return out if there is None else out.where(there, 0)

    def _placed(self, h: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Return the tokens, with their positions in them or beside them as angles."""
        positions = self.config["positions"]
        at = coordinates(grid, h)
        if positions == "sin-cos":
            return h + sinusoids(at, h.shape[2]).to(h.dtype), None
        size = h.shape[2] // self.config["heads"]
        return h, angles(at, size) if positions == "rotary" else None


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return (1 + scale) norm(x) + shift, the norm over the last axis."""
    return F.layer_norm(x, x.shape[-1:], eps=_EPS) * (1 + scale) + shift


def _of_size(x: Tensor, size: Tensor) -> Tensor:
    """Return vectors of root mean square 1, times ``size``."""
    return x * (x.square().mean(-1, keepdim=True) + _EPS).rsqrt() * size


def _sides(patch: Sequence[int]) -> list[int]:
    """Return the sides of a patch as a list, which is what JSON makes of them."""
    example = "pass for example patch=(2, 2)"
    whole = isinstance(patch, Sequence) and all(type(n) is int for n in patch)
    if isinstance(patch, str) or not whole:
        raise wrong_type("DiT", "patch", "be a sequence of integers", patch, example)
    if not 1 <= len(patch) <= max(AXES) or min(patch) < 1:
        rule = "be 1 to 3 positive numbers, one for each axis"
        raise wrong_value("DiT", "patch", rule, list(patch), example)
    return list(patch)


def _check_heads(width: int, heads: int, positions: str) -> None:
    positive_integer("DiT", "width", width)
    positive_integer("DiT", "heads", heads)
    if width % heads:
        rule = f"divide the width {width}"
        raise wrong_value("DiT", "heads", rule, heads, "pass heads=1")
    if positions == "rotary" and width // heads % 2:
        rule = f"be such that width/heads is even for rotary, where width is {width}"
        remedy = "pass positions='sin-cos', or an even width and heads=1"
        raise wrong_value("DiT", "heads", rule, heads, remedy)
