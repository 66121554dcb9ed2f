"""Where a restart goes back to, and the ways down from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from sde_diffusion.grids import karras
from sde_diffusion.sde import LinearSDE


class Interval(NamedTuple):
    """Where to go back and how often; the way down has the grid's own times if steps is None."""

    s_min: float
    s_max: float
    repeats: int = 1
    steps: int | None = None


Intervals: TypeAlias = Sequence[tuple[float, float, int] | tuple[float, float, int, int]]


def ways_down(
    sde: LinearSDE, grid: Tensor, intervals: Intervals
) -> dict[int, list[tuple[Tensor, int]]]:
    """Return the ways down to each place of the grid where there are restarts, and their K."""
    lambda_, plan = sde.lambda_(grid), dict[int, list[tuple[Tensor, int]]]()
    for s_min, s_max, repeats, steps in (Interval(*i) for i in intervals):
        ends = -torch.tensor([s_min, s_max], dtype=torch.float64).log()
        low, high = (lambda_ - ends[:, None]).abs().argmin(1).tolist()
        way = grid[high : low + 1]
        if steps is not None:
            top = min(float(sde.time(ends[1])), sde.horizon)
            rises = float(grid[low]) < top
            way = karras(sde, steps, start=top, end=float(grid[low])) if rises else grid[:1]
        if low > 0 and repeats and len(way) > 1:
            plan.setdefault(low, []).append((way, repeats))
    return plan
