"""A batch on its way along Brownian paths that steps of its own divide."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion._tensors import expand
from sde_diffusion.noise import Noise
from sde_diffusion.solvers._shared.adaptive import Round, kept

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
        tries: steps tried by the whole batch.
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
    tries: int = 0

    @property
    def told(self) -> Tensor:
        """The place of the top of a stack, for which the next try makes room."""
        return self.top

    def split(self, now: Round, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the end and dw of the next step of some samples: their top piece or a part.

        A piece of length L and increment dw is split at p L by a Brownian bridge into p dw + b,
        b ~ N(0, p(1 − p)L), and the rest, which stays below. The path is never drawn anew.
        """
        i = now.i
        k = self.top[i]
        left = self.ends[k, i] - self.t[i]
        dw = self.dw[k, i]
        part = self.h[i] / left.abs()
        p = torch.where(part > _SLIVER, 1.0, part)
        b = expand((p * (1 - p) * left.abs()).sqrt(), dw) * z
        first = expand(p, dw) * dw + b
        more = p < 1
        if int(now.told.max()) + 1 == len(self.ends):
            self.ends = torch.cat([self.ends, torch.zeros_like(self.ends[:1])])
            self.dw = torch.cat([self.dw, torch.zeros_like(self.dw[:1])])
        # What is written above the top of a stack is nobody's.
        self.dw[k, i] = torch.where(expand(more, dw).bool(), dw - first, dw)
        self.dw[k + 1, i] = first
        self.ends[k + 1, i] = self.t[i] + p * left
        self.top[i] = k + more
        return self.ends[self.top[i], i], first

    def accept(self, i: Tensor, good: Tensor, x: Tensor) -> None:
        """Move samples on to ``x`` at the end of their top piece, and drop it, where it is good.

        Arguments:
            i: the samples that tried a step, (n,), int64.
            good: whether their step is accepted, (n,), bool.
            x: the states to which the steps go, (n, *event).
        """
        self.x = kept(self.x, i, good, x)
        s = torch.where(good, self.ends[self.top[i], i], self.t[i])
        self.t[i] = s
        self.top[i] -= good.long()
        m = self.met[i]
        here = good & (s == self.times[m])
        self.found[m, i] = torch.where(expand(here, x).bool(), x, self.found[m, i])
        self.met[i] += here


def start(x: Tensor, grid: Tensor, noise: Noise) -> BrownianBatch:
    """Return all samples at the grid's start, with the increments over its steps ahead."""
    rows = torch.ones(len(x), dtype=torch.float64, device=x.device)
    dw = [noise.increment(x, t, s) for t, s in pairwise(grid)]
    count = torch.zeros_like(rows, dtype=torch.int64)
    h = float((grid[1] - grid[0]).abs()) * rows  # a rejection costs two evaluations and no more
    times = grid[1:].to(x.device)
    found = x.new_empty(len(dw), *x.shape)
    # Room for a part of the first piece: before the first try nothing is known of the stacks.
    above = torch.zeros_like(x)
    ends = torch.cat([times.flip(0), times[:1]])[:, None] * rows
    return BrownianBatch(
        x,
        float(grid[0]) * rows,
        h,
        count,
        count + len(dw) - 1,
        ends,
        torch.stack([*dw[::-1], above]),
        times,
        found,
    )
