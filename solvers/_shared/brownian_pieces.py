"""A batch on its way along Brownian paths that steps of its own divide."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion._tensors import expand
from sde_diffusion.noise import Noise

_SLIVER = 0.99  # a step of more than this share of what is left takes all of it


@dataclass
class BrownianBatch:
    """A batch whose samples have times of their own, and the Brownian path ahead of each.

    The path ahead is a stack of pieces, the next one on top.

    Arguments:
        x: the states, (B, *event).
        t: their times, (B,), float64.
        h: the next step sizes in t, (B,), float64.
        met: how many times of the grid a sample has met, (B,), int64.
        top: the place of the top of its stack, (B,), int64.
        ends: where the pieces end, (pieces, B), float64.
        dw: the increments of W over the pieces, (pieces, B, *event).
        times: the grid after its start, (steps,), float64.
        found: the states at these times, (steps, B, *event).
    """

    x: Tensor
    t: Tensor
    h: Tensor
    met: Tensor
    top: Tensor
    ends: Tensor
    dw: Tensor
    times: Tensor
    found: Tensor

    def ahead(self) -> Tensor:
        """Return the samples that have not met all times of the grid."""
        return (self.met < len(self.times)).nonzero()[:, 0]

    def split(self, i: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the end and dw of the next step of the samples ``i``: their top piece or a part.

        A piece of length L and increment dw is split at p L by a Brownian bridge into p dw + b,
        b ~ N(0, p(1 − p)L), and the rest, which stays below. The path is never drawn anew.
        """
        k = self.top[i]
        left = self.ends[k, i] - self.t[i]
        dw = self.dw[k, i]
        part = self.h[i] / left.abs()
        p = torch.where(part > _SLIVER, 1.0, part)
        b = expand((p * (1 - p) * left.abs()).sqrt(), dw) * z
        first = expand(p, dw) * dw + b
        more = p < 1
        if int(k.max()) + 1 == len(self.ends):
            self.ends = torch.cat([self.ends, torch.zeros_like(self.ends[:1])])
            self.dw = torch.cat([self.dw, torch.zeros_like(self.dw[:1])])
        rows = i[more]
        below = k[more]
        self.dw[below, rows] = (dw - first)[more]
        self.dw[below + 1, rows] = first[more]
        self.ends[below + 1, rows] = (self.t[i] + p * left)[more]
        self.top[i] = k + more
        return self.ends[self.top[i], i], first

    def accept(self, i: Tensor, x: Tensor) -> None:
        """Move the samples ``i`` on to ``x`` at the end of their top piece, and drop it."""
        self.x = self.x.index_copy(0, i, x)
        self.t[i] = self.ends[self.top[i], i]
        self.top[i] -= 1
        here = i[self.t[i] == self.times[self.met[i]]]
        self.found[self.met[here], here] = self.x[here]
        self.met[here] += 1


def start(x: Tensor, grid: Tensor, noise: Noise) -> BrownianBatch:
    """Return all samples at the grid's start, with the increments over its steps ahead."""
    rows = torch.ones(len(x), dtype=torch.float64, device=x.device)
    dw = [noise.increment(x, t, s) for t, s in pairwise(grid)]
    count = torch.zeros_like(rows, dtype=torch.int64)
    h = float((grid[1] - grid[0]).abs()) * rows  # a rejection costs two evaluations and no more
    times = grid[1:].to(x.device)
    found = x.new_empty(len(dw), *x.shape)
    ends = times.flip(0)[:, None] * rows
    return BrownianBatch(
        x,
        float(grid[0]) * rows,
        h,
        count,
        count + len(dw) - 1,
        ends,
        torch.stack(dw[::-1]),
        times,
        found,
    )
