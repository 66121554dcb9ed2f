"""The order of a data set's rows in training: a new permutation for every epoch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sde_diffusion._seeds import Purpose, mix


def batch_rows(rows: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Return the rows of a step, the next ``batch_size`` of a sequence of shuffled epochs.

    Arguments:
        rows: the number of rows of the data.
        batch_size: rows of a step.
        seed: of the permutations.
        step: the number of the step, from 1.

    Shapes: result (batch_size,), int64.
    """
    first = (step - 1) * batch_size
    places = torch.arange(first, first + batch_size)
    epochs = range(first // rows, (first + batch_size - 1) // rows + 1)
    order = torch.cat([_order(rows, seed, epoch) for epoch in epochs])
    return order[places - epochs[0] * rows]


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(mix(seed, Purpose.ORDER, epoch))
    return torch.randperm(rows, generator=generator)
