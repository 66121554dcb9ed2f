"""Samples whose likelihood is not finite, told from their batch-mates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sde_diffusion.evaluation.bounds import BatchBound


def separated(
    found: Callable[[range], BatchBound], indices: range
) -> tuple[BatchBound, dict[int, str]]:
    """Return a bound of a batch, NaN where a sample has none, and why by the sample's index.

    A solve that diverges ends with its whole batch, so the halves of such a batch are evaluated
    each by itself, down to the samples that are the cause.

    Arguments:
        found: evaluates a bound of some samples; its FloatingPointError is that of one of them.
        indices: the samples of the batch.
    """
    try:
        whole = found(indices)
    except FloatingPointError as error:
        if len(indices) == 1:
            nothing = torch.full((1,), math.nan, dtype=torch.float64)
            return BatchBound(nothing, nothing, {}, 0), {indices.start: str(error)}
        middle = len(indices) // 2
        one, first = separated(found, indices[:middle])
        other, second = separated(found, indices[middle:])
        return _joined(one, other), first | second
    values = whole.nats.tolist()
    wrong = {
        i: f"log p is {nats}"
        for i, nats in zip(indices, values, strict=True)
        if not math.isfinite(nats)
    }
    return whole, wrong


def _joined(one: BatchBound, other: BatchBound) -> BatchBound:
    terms = {
        name: torch.cat([_column(one, name), _column(other, name)])
        for name in {**one.terms, **other.terms}
    }
    return BatchBound(
        torch.cat([one.nats.cpu().double(), other.nats.cpu().double()]),
        torch.cat([one.error.cpu().double(), other.error.cpu().double()]),
        terms,
        max(one.nfe, other.nfe),
        _summed(one.sums, other.sums),
    )


def _column(part: BatchBound, name: str) -> Tensor:
    if name in part.terms:
        return part.terms[name].cpu().double()
    return torch.full((len(part.nats),), math.nan, dtype=torch.float64)


def _summed(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    both = {name: one[name] + other[name] for name in one if name in other}
    return {**one, **other, **both}
