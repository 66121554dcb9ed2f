"""Attention that is fast where nothing differentiates it twice, and differentiates every way."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F


def attended(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ/√d) v over the keys that are not hidden.

    Arguments:
        q: queries; (B, heads, N, d).
        k: keys; (B, heads, M, d).
        v: values, finite in hidden places too; (B, heads, M, d).
        hidden: the keys without weight, never all of a sample; bool, (B, M), or None for none.

    Shapes: result (B, heads, N, d).
    Source: Vaswani et al. 2017, equation 1.

    >>> q, k, v = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 3, 2), torch.arange(6.0)
    >>> attended(q, k, v.reshape(1, 1, 3, 2), torch.tensor([[False, False, True]])).tolist()
    [[[[1.0, 2.0]]]]
    """
    bias = None
    if hidden is not None:
        bias = q.new_zeros(hidden.shape).masked_fill(hidden, -math.inf)[:, None, None]
    if torch.compiler.is_compiling():  # which makes derivatives of its own
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    out: Tensor = _Attention.apply(q, k, v, bias)  # type: ignore[no-untyped-call]
    return out


@final
class _Attention(Function):
    """PyTorch's fused attention, whose own derivatives have no forward mode and no second one.

    With P = softmax(S), S = q kᵀ/√d, the derivative along dS is dP = P (dS − Σ P dS), its own
    transpose.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ANN401, ARG004
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        q, k, v, bias = ctx.saved_tensors
        weights = _weights(q, k, bias)
        mixed = _turned(weights, grad @ v.mT) * q.shape[-1] ** -0.5
        return mixed @ k, mixed.mT @ q, weights.mT @ grad, None

    @staticmethod
    def jvp(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, _: Tensor | None) -> Tensor:  # noqa: ANN401
        q, k, v, bias = ctx.saved_tensors
        weights = _weights(q, k, bias)
        slope = (dq @ k.mT + q @ dk.mT) * q.shape[-1] ** -0.5
        along: Tensor = _turned(weights, slope) @ v + weights @ dv
        return along

    @staticmethod
    def vmap(_: Any, axes: tuple[int | None, ...], *given: Tensor | None) -> tuple[Tensor, int]:  # noqa: ANN401
        """Return the attention of batches of batches, which is that of one batch."""
        count = next(
            x.shape[i] for x, i in zip(given, axes, strict=True) if x is not None and i is not None
        )
        whole = [_in_front(x, axis, count) for x, axis in zip(given, axes, strict=True)]
        flat = [None if x is None else x.flatten(0, 1) for x in whole]
        out: Tensor = _Attention.apply(*flat)  # type: ignore[no-untyped-call]
        return out.reshape(count, -1, *out.shape[1:]), 0


def _in_front(x: Tensor | None, axis: int | None, count: int) -> Tensor | None:
    if x is None:
        return None
    return x.expand(count, *x.shape) if axis is None else x.movedim(axis, 0)


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    scores: Tensor = q * q.shape[-1] ** -0.5 @ k.mT
    return torch.softmax(scores if bias is None else scores + bias, dim=-1)


def _turned(weights: Tensor, slope: Tensor) -> Tensor:
    return weights * (slope - (weights * slope).sum(-1, keepdim=True))
