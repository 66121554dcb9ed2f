"""A noise-conditional U-Net for series, images and volumes of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, cast, final

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
    conv,
    group_norm,
    home,
    keep_freed_memory,
)
from sde_diffusion.nets._norm import channels_last, memory_bound
from sde_diffusion.nets.blocks import Attention, ResidualBlock
from sde_diffusion.nets.conditions import ConditionalNetwork
from sde_diffusion.nets.embedding import Conditioning, resolve
from sde_diffusion.nets.given import CrossAttention, Tokens, VectorEmbedding, asked, beside
from sde_diffusion.nets.resampling import doubled, halved

RESAMPLINGS: Final = ("strided", "fir")
PROGRESSIVES: Final = ("none", "residual")
_MOST_BLOCKS: Final = 100  # a level; minutes would pass before memory ran out on far more
# The sum of two signals of variance 1 has variance 2.
FACTORS: Final = {"half-power": 0.5**0.5, "none": 1.0}


@final
class Stage(nn.Module):
    """A residual block, followed by self-attention unless ``heads`` is None.

    Arguments:
        inputs: channels in.
        outputs: channels out.
        heads: of attention; None for no attention.
        condition: size of the conditioning vector.
        dropout: probability in [0, 1).
        factor: of every sum of two branches.
        generator: of the weights.
        dims: axes of a sample.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        heads: int | None,
        condition: int,
        dropout: float,
        factor: float,
        generator: torch.Generator,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, condition, dropout, factor, generator, dims)
        self.attention = None if heads is None else Attention(outputs, heads, factor, generator)

    def forward(self, x: Tensor, e: Tensor, beside: Tensor | None = None) -> Tensor:
        """Return the stage's output for the conditioning vectors e."""
        h: Tensor = self.block(x, e, beside)
        return h if self.attention is None else self.attention(h)


@final
class UNet(ConditionalNetwork):
    """A U-Net of wide residual blocks, conditioned on the noise level and more.

    It takes series (C, L), images (C, H, W) or volumes and clips (C, D, H, W), as ``dims`` says.

    Level i has ``width · multipliers[i]`` channels and ``blocks`` blocks in the encoder, each with
    a skip connection to its counterpart in the decoder; the levels in ``attention`` end in both
    with self-attention, as do the two blocks at the bottom if the last level is among them.
    Between levels a strided convolution halves the size, rounding up, and nearest interpolation
    restores it exactly, so any length, height and width will do, odd ones too. With ``strides`` of
    (1, 2, 2) a clip is halved in space and never in time. The output is 0 at first.

    The label −1 and labels=None stand for no class, None and the value of `nothing` for no other
    condition: vectors are added to the embedding, images stand beside the channels of x, and every
    self-attention is followed by one to the tokens of a text, 0 at first. ``config`` holds all
    arguments: ``UNet(**net.config)`` is the same network, weights drawn from ``seed`` included.

    Arguments:
        channels: of a sample.
        width: channels of level 0 before its multiplier, at least 4.
        multipliers: of ``width``, one for each level.
        blocks: residual blocks of a level, in the encoder and in the decoder.
        attention: the levels with self-attention, from 0.
        heads: of attention, a divisor of the channels of those levels.
        embedding: of c, "sinusoidal" or "fourier".
        time_scale: largest frequency in radians, or std of frequencies in cycles; None: 1000, 16.
        classes: how many; None for a network without labels.
        dropout: probability in [0, 1).
        seed: of the weights.
        outputs: channels of the result; None for ``channels``.
        resampling: "strided", or "fir" for the filter 1, 3, 3, 1 both ways.
        progressive: "residual" adds the image, halved and convolved, at every encoder level.
        rescaling: "half-power" divides every sum of two branches by √2; "none" does not.
        dims: axes of a sample beside its channels: 1, 2 or 3.
        strides: by which each axis shrinks between levels, 1 or 2; None for 2 along all.
        vector: the size of a vector that each sample is given; None for none.
        image: the channels of an image that each sample is given, beside its own; None for none.
        text: the most bytes of a text that each sample is given; None for none.
        context: the size of tokens of another encoder that each sample is given; None for none.
        times: how many times c holds: 1, or 2 for that of the state and that of a step's end.

    Shapes: x (B, channels, *axes); c (B,), or (B, 2) for two times; labels (B,) int64;
    vector (B, size) and image (B, channels, *axes), NaN for what is not known; text (B, bytes)
    int64, −1 behind the end; context (B, L, size), NaN for masked tokens; result
    (B, outputs, *axes), by default like x.
    Units: c is the time t in [0, 1], or ¼ ln sigma.
    Errors: ValueError and TypeError for arguments, shapes, dtypes and labels that do not fit.
    Source: Ho et al. 2020; Song et al. 2021 (DDPM++); Karras et al. 2022.

    >>> net = UNet(**mnist_config())  # 1×28×28
    >>> sum(p.numel() for p in net.parameters())
    2639913
    >>> net(torch.ones(1, 1, 28, 28), torch.tensor([0.5])).abs().max().item()
    0.0
    >>> sound = UNet(2, 8, (1, 2, 2), 1, (), dims=1)  # stereo, of any length
    >>> sound(torch.ones(1, 2, 4001), torch.tensor([0.5])).shape
    torch.Size([1, 2, 4001])
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (2,),
        heads: int = 4,
        embedding: str = "sinusoidal",
        time_scale: float | None = None,
        classes: int | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        outputs: int | None = None,
        resampling: str = "strided",
        progressive: str = "none",
        rescaling: str = "half-power",
        dims: int = 2,
        strides: Sequence[int] | None = None,
        vector: int | None = None,
        image: int | None = None,
        text: int | None = None,
        context: int | None = None,
        times: int = 1,
    ) -> None:
        super().__init__()
        keep_freed_memory()
        multipliers = _integers("multipliers", multipliers)
        attention = _integers("attention", attention)
        _check_config(channels, width, multipliers, blocks, attention, heads)
        outputs = channels if outputs is None else outputs
        positive_integer("UNet", "outputs", outputs)
        check_dropout("UNet", dropout)
        check_seed("UNet", seed)
        one_of("UNet", "resampling", resampling, RESAMPLINGS)
        one_of("UNet", "progressive", progressive, PROGRESSIVES)
        one_of("UNet", "rescaling", rescaling, FACTORS)
        strides = _check_axes(dims, strides)
        positive_integer("UNet", "times", times, most=2)
        scale = resolve("UNet", embedding, time_scale, classes)
        self.config: dict[str, Any] = {
            "channels": channels,
            "width": width,
            "multipliers": multipliers,
            "blocks": blocks,
            "attention": attention,
            "heads": heads,
            "embedding": embedding,
            "time_scale": scale,
            "classes": classes,
            "dropout": dropout,
            "seed": seed,
            "outputs": outputs,
            "resampling": resampling,
            "progressive": progressive,
            "rescaling": rescaling,
        }
        # Left out where they are those of version 0.1, whose models keep their fingerprints.
        if dims != 2 or strides != [2, 2]:
            self.config |= {"dims": dims, "strides": strides}
        sizes = {"vector": vector, "image": image, "text": text, "context": context}
        self.config |= asked("UNet", sizes)
        if not attention and (text is not None or context is not None):
            rule = "list a level, after whose self-attention the tokens are attended to"
            remedy = f"pass attention=({len(multipliers) - 1},)"
            raise wrong_value("UNet", "attention", rule, attention, remedy)
        if times != 1:
            self.config |= {"times": times}
        self.factor = FACTORS[rescaling]
        generator = torch.Generator().manual_seed(seed)
        with home():
            self._build([width * m for m in multipliers], generator)

    def _build(self, widths: list[int], generator: torch.Generator) -> None:
        """Create the layers, from the input to the output."""
        config = self.config
        condition = 4 * widths[0]
        dims = config.get("dims", 2)
        ones = (1,) * dims
        self.condition = Conditioning(
            widths[0],
            condition,
            config["embedding"],
            config["time_scale"],
            config["classes"],
            generator,
            self.times,
        )

        def stages(level: int, inputs: int, number: int) -> nn.ModuleList:
            heads = config["heads"] if level in config["attention"] else None
            kind = (condition, config["dropout"], self.factor, generator, dims)
            plain = (Stage(inputs, widths[level], None, *kind) for _ in range(number - 1))
            return nn.ModuleList([*plain, Stage(inputs, widths[level], heads, *kind)])

        levels = range(len(widths))
        blocks = config["blocks"]
        pairs = list(pairwise(widths))
        channels = config["channels"] + 2 * config.get("image", 0)
        self.stem = conv(channels, widths[0], generator, strides=ones)
        self.down = nn.ModuleList(stages(i, widths[i], blocks) for i in levels)
        strides = self.strides if config["resampling"] == "strided" else ones
        self.shrink = nn.ModuleList(conv(a, b, generator, strides=strides) for a, b in pairs)
        self.middle = stages(levels[-1], widths[-1], 2)
        self.grow = nn.ModuleList(conv(b, a, generator, strides=ones) for a, b in pairs)
        self.up = nn.ModuleList(stages(i, 2 * widths[i], blocks) for i in levels)
        self.norm = group_norm(widths[0], affine=True)
        self.head = conv(widths[0], config["outputs"], None, strides=ones)
        # Drawn last, so that the other weights are the same without it.
        images = [] if config["progressive"] == "none" else [config["channels"], *widths[1:]]
        self.pyramid = nn.ModuleList(
            conv(a, b, generator, strides=strides) for a, b in pairwise(images)
        )
        if "vector" in config:
            self.vector = VectorEmbedding(config["vector"], condition, generator)
        if "text" in config or "context" in config:
            width = widths[-1]
            self.tokens = Tokens(config.get("text"), config.get("context"), width, generator)
            order = (*levels, levels[-1], *reversed(levels))  # of the stages: down, middle, up
            sizes = [widths[i] for i in order if i in config["attention"]]
            kind = (config["heads"], width, generator)
            self.crosses = nn.ModuleList(CrossAttention(size, *kind) for size in sizes)

    @property
    def times(self) -> int:
        """How many times c holds."""
        return int(self.config.get("times", 1))

    @property
    def strides(self) -> tuple[int, ...]:
        """By which each axis shrinks between levels."""
        return tuple(self.config.get("strides", (2, 2)))

    def __repr__(self) -> str:
        return as_call(type(self).__name__, self.config)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        labels: Tensor | None = None,
        *,
        vector: Tensor | None = None,
        image: Tensor | None = None,
        text: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output for the states x at the noise levels c."""
        event = (self.config["channels"], *AXES[len(self.strides)])
        check_input("UNet", x, event, self.stem.weight)
        check_condition("UNet", x, c, labels, self.config["classes"], self.times)
        self.check_given(x, vector=vector, image=image, text=text, context=context)
        e = self.condition(c, labels, self.vector(vector) if "vector" in self.config else None)
        crossed = self._crossing(len(x), text, context)
        known = self.config.get("image")
        h: Tensor = self.stem(x if known is None else beside(x, image, known))
        if memory_bound(h):  # convolutions run a tenth to a third faster with the channels last
            h = channels_last(h)
        small = x
        skips: list[Tensor] = []
        for level in range(len(self.down)):
            if level:
                h = self._shrunk(self.shrink[level - 1], h)
            if level and len(self.pyramid):
                small = self._shrunk(self.pyramid[level - 1], small)
                h = small = (h + small) * self.factor
            for stage in _parts(self.down[level]):
                h = crossed(stage, stage(h, e))
                skips.append(h)
        for stage in self.middle:
            h = crossed(stage, stage(h, e))
        for level in reversed(range(len(self.up))):
            for stage in _parts(self.up[level]):
                h = crossed(stage, stage(h, e, skips.pop()))
            if level:
                h = self._grown(self.grow[level - 1], h, skips[-1])
        out: Tensor = self.head(F.silu(self.norm(h)))
        return out.contiguous()

    def _crossing(
        self, batch: int, text: Tensor | None, context: Tensor | None
    ) -> Callable[[nn.Module, Tensor], Tensor]:
        """Return (stage, h) ↦ h after the cross-attention that follows its self-attention."""
        if not self.conditions.keys() & {"text", "context"}:
            return lambda _, h: h
        seen = self.tokens(batch, text, context)
        crosses = iter(self.crosses)

        def crossed(stage: nn.Module, h: Tensor) -> Tensor:
            if cast("Stage", stage).attention is None:
                return h
            return cast("CrossAttention", next(crosses)).of_image(h, *seen)

        return crossed

    def _shrunk(self, layer: nn.Module, h: Tensor) -> Tensor:
        """Return h at half the size."""
        whole = self.config["resampling"] == "strided"
        out: Tensor = layer(h if whole else halved(h, self.strides))
        return out

    def _grown(self, layer: nn.Module, h: Tensor, like: Tensor) -> Tensor:
        """Return h at twice the size, or one less along an axis: the size of ``like``."""
        size = like.shape[2:]
        out: Tensor = layer(h)
        if self.config["resampling"] == "fir":
            whole = (slice(None), slice(None))
            return doubled(out, self.strides)[*whole, *map(slice, size)]
        if size == tuple(2 * n for n in out.shape[2:]):
            return out  # the block that comes next does it in its convolutions
        return F.interpolate(out, size=tuple(size))


def _parts(stages: nn.Module) -> nn.ModuleList:
    return cast("nn.ModuleList", stages)  # what a list of lists holds, which its type forgets


def mnist_config() -> dict[str, Any]:
    """Return the arguments of a U-Net of about 2.6 million weights for 1×28×28.

    Its time scale is small for the reason of `digits_config`, and smaller still: ¼ ln sigma,
    which the "edm" prediction conditions on, spans three units where t spans one.
    """
    return {
        "channels": 1,
        "width": 44,
        "multipliers": [1, 2, 2],
        "blocks": 2,
        "attention": [2],
        "time_scale": 30.0,
    }


def digits_config() -> dict[str, Any]:
    """Return the arguments of a U-Net of about 0.9 million weights (3.5 MB) for 1×8×8.

    Its embedding of t has a tenth of DDPM's frequencies: solvers of high order and adaptive ones
    need a score that is smooth in t.
    """
    return {
        "channels": 1,
        "width": 32,
        "multipliers": [1, 2],
        "blocks": 2,
        "attention": [1],
        "time_scale": 100.0,
    }


_EXAMPLES: Final = {"attention": "(1,)", "multipliers": "(1, 2, 2)", "strides": "(1, 2)"}


def _integers(argument: str, got: Sequence[int]) -> list[int]:
    """Return the integers as a list, which is what JSON makes of them."""
    whole = isinstance(got, Sequence) and all(type(n) is int for n in got)
    if isinstance(got, str) or not whole:
        raise wrong_type(
            "UNet",
            argument,
            "be a sequence of integers",
            got,
            f"pass for example {argument}={_EXAMPLES[argument]}",
        )
    return list(got)


def _check_axes(dims: int, strides: Sequence[int] | None) -> list[int]:
    """Return the strides, one for each axis."""
    positive_integer("UNet", "dims", dims, most=max(AXES))
    if strides is None:
        return [2] * dims
    found = _integers("strides", strides)
    if len(found) != dims or not set(found) <= {1, 2}:
        rule = f"be {dims} numbers for dims={dims}, 1 or 2 each"
        remedy = f"pass strides=({', '.join(['1', *['2'] * (dims - 1)])},)"
        raise wrong_value("UNet", "strides", rule, found, remedy)
    return found


def _check_config(
    channels: int,
    width: int,
    multipliers: list[int],
    blocks: int,
    attention: list[int],
    heads: int,
) -> None:
    positive_integer("UNet", "channels", channels)
    positive_integer("UNet", "width", width, least=4)
    positive_integer("UNet", "blocks", blocks, most=_MOST_BLOCKS)
    positive_integer("UNet", "heads", heads)
    if not multipliers or min(multipliers) < 1:
        raise wrong_value(
            "UNet",
            "multipliers",
            "be positive, one or more",
            multipliers,
            "pass for example multipliers=(1, 2, 2)",
        )
    levels = len(multipliers)
    for level in attention:
        if not 0 <= level < levels:
            rule = f"list levels from 0 to {levels - 1}"
            remedy = f"pass attention=({levels - 1},)"
            raise wrong_value("UNet", "attention", rule, attention, remedy)
        if width * multipliers[level] % heads:
            rule = f"divide the {width * multipliers[level]} channels of level {level}"
            raise wrong_value("UNet", "heads", rule, heads, "pass heads=1")
