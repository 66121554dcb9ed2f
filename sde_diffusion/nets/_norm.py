"""Group norms that are fast with the channels last, and differentiate every way there."""

from __future__ import annotations

from typing import Any, Final, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

EPS: Final = 1e-5
# Values of a temporary that stays in the cache of a core.
CACHED: Final = 2**19
# Values that a core reads in the time of a few calls.
SMALL: Final = 2**17


def memory_bound(x: Tensor) -> bool:
    """Return whether passes over x take longer than calls: on the CPU, unless x is small."""
    if torch.compiler.is_compiling():  # which fuses the passes itself
        return False
    plain = x.dtype in (torch.float32, torch.float64)
    return plain and x.device.type == "cpu" and x.numel() >= SMALL


def normalised(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Return weight (x − mean)/√(variance + 1e-5) + bias, with the moments of every group.

    Arguments:
        x: series, images or volumes; (B, channels, *axes).
        groups: of channels, equally many in each.
        weight: (channels,) or (B, channels).
        bias: (channels,) or (B, channels).

    Shapes: result (B, channels, *axes).
    """
    # PyTorch's own takes several times as long as this on the CPU with the channels last, where
    # neither its forward mode nor a batch of vectors goes through.
    if memory_bound(x):
        given = x, weight.reshape(-1, x.shape[1]), bias.reshape(-1, x.shape[1]), groups
        if not torch.is_grad_enabled():
            return _GroupNorm.forward(*given)[0]
        out: Tensor = _GroupNorm.apply(*given)[0]  # type: ignore[no-untyped-call]
        return out
    own = weight if weight.ndim == 1 else None
    h = F.group_norm(x.contiguous(), groups, own, None if own is None else bias, EPS)
    if own is None:
        ones = (1,) * (x.ndim - 2)
        h = torch.addcmul(
            bias.reshape(*bias.shape, *ones), h, weight.reshape(*weight.shape, *ones)
        )
    return h if x.is_contiguous() else channels_last(h)


def channels_last(x: Tensor) -> Tensor:
    """Return x with the channels last in memory."""
    # Not contiguous(memory_format=…), which torch.func.vmap refuses.
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@final
class _GroupNorm(Function):
    """The group norm of rows of pixels: few passes, and few operations on groups.

    With h = (x − mean) rate, the derivative along v is rate (v − ⟨v⟩ − h ⟨h v⟩), where ⟨⟩ is a
    group's mean. It is its own transpose.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        pixels = _pixels(x)
        mean, rate = _moments(pixels, groups)
        slope = rate * _grouped(weight, groups)
        out = _affine(_grouped(bias, groups) - mean * slope, pixels, slope)
        return _image(out, x), mean, rate

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ANN401
        x, weight, _, ctx.groups = inputs
        _, mean, rate = output
        ctx.mark_non_differentiable(mean, rate)
        ctx.save_for_backward(x, weight, mean, rate)
        ctx.save_for_forward(x, weight, mean, rate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, mean, rate = ctx.saved_tensors
        pixels = _pixels(x)
        g = _pixels(grad)
        w = _grouped(weight, ctx.groups)
        if torch.is_grad_enabled():  # for second derivatives, which go through both
            mean, rate = _moments(pixels, ctx.groups)
        by_bias, by_weight = _along(g, pixels, mean, rate)
        start, slope = _shares(w * by_bias, w * by_weight, pixels, mean, rate)
        out = _affine(start, pixels, slope).addcmul_(g, _row(rate * w))
        parts = (_row(v)[:, 0].sum_to_size(weight.shape) for v in (by_weight, by_bias))
        return _image(out, x), *parts, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        x, weight, mean, rate = ctx.saved_tensors
        pixels = _pixels(x)
        v = _pixels(tangents[0])
        w = _grouped(weight, ctx.groups)
        along_weight, along_bias = (_grouped(part, ctx.groups) for part in tangents[1:3])
        start, slope = _shares(*_along(v, pixels, mean, rate), pixels, mean, rate)
        turn = rate * along_weight
        out = _affine(w * start - mean * turn + along_bias, pixels, w * slope + turn)
        return _image(out + v * _row(rate * w), x), None, None


# Pixels are (B, H·W, channels), or as many as a sample has, and what belongs to groups is
# (B, groups, 1 or channels of each).


def _pixels(x: Tensor) -> Tensor:
    return x.movedim(1, -1).reshape(x.shape[0], -1, x.shape[1])


def _image(pixels: Tensor, x: Tensor) -> Tensor:
    return pixels.reshape(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)


def _grouped(channels: Tensor, groups: int) -> Tensor:
    return channels.reshape(channels.shape[0], groups, -1)


def _row(grouped: Tensor) -> Tensor:
    return grouped.reshape(grouped.shape[0], 1, -1)


def _affine(start: Tensor, pixels: Tensor, slope: Tensor) -> Tensor:
    """Return start + slope · pixels."""
    size = pixels.shape[2] // start.shape[1]
    start, slope = (part.expand(-1, -1, size) for part in (start, slope))
    return torch.addcmul(_row(start), pixels, _row(slope))


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the sums of a · b over the pixels."""
    # A product of the whole batch would be written to memory and read again.
    rows = max(1, CACHED // a[0].numel())
    parts = zip(torch.split(a, rows), torch.split(b, rows), strict=True)
    return torch.cat([(p * q).sum(1) for p, q in parts])


def _moments(pixels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and 1/√(variance + 1e-5) of every group."""
    n = pixels[0].numel() // groups
    sums = torch.cat([pixels.sum(1), _dots(pixels, pixels)], dim=1)
    both = _grouped(sums, 2 * groups).sum(2, keepdim=True) / n
    mean, square = both.chunk(2, dim=1)
    return mean, ((square - mean * mean).clamp(min=0) + EPS).rsqrt()


def _along(v: Tensor, pixels: Tensor, mean: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of v and of h v over the pixels."""
    groups = mean.shape[1]
    total = _grouped(v.sum(1), groups)
    return total, rate * (_grouped(_dots(v, pixels), groups) - mean * total)


def _shares(
    total: Tensor, along: Tensor, pixels: Tensor, mean: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor]:
    """Return start and slope of start + slope x = −rate (⟨v⟩ + h ⟨h v⟩)."""
    n = pixels[0].numel() // mean.shape[1]
    slope = rate.square() * along.sum(2, keepdim=True) / -n
    return rate * total.sum(2, keepdim=True) / -n - slope * mean, slope
