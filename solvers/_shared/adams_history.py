"""The past of samples with steps of their own, and Adams weights on its uneven nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from sde_diffusion._tensors import expand
from sde_diffusion.solvers._shared.adaptive import kept

# What part of Adams–Bashforth's error Adams–Moulton's has, at the same order 1, 2 … 6.
RATIO: Final = torch.tensor([1, 1 / 5, 1 / 9, 19 / 251, 27 / 475, 863 / 19087]).double()


@dataclass
class History:
    """Where every sample of a batch is, with the last velocities, newest first.

    Arguments:
        x: the states, (B, *event).
        t: their times, (B,), float64.
        h: the next step sizes in t, (B,), float64.
        times: those of the last velocities, (B, nodes), float64.
        velocities: the last velocities, (nodes, B, *event).
        known: how many of the nodes are a sample's own, the rest only filling the table; (B,).
        lost: the sum of the absolute estimated errors of the steps taken, (B, *event).
        accepted: steps accepted so far, (B,), int64.
        rejected: steps rejected so far, (B,), int64.
        ratio: `RATIO`, where the states are.
        tries: steps tried by the whole batch, over all times of the grid.
    """

    x: Tensor
    t: Tensor
    h: Tensor
    times: Tensor
    velocities: Tensor
    known: Tensor
    lost: Tensor
    accepted: Tensor
    rejected: Tensor
    ratio: Tensor
    tries: int = 0

    @property
    def told(self) -> Tensor:
        """Nothing that a try asks of the last one: their number."""
        return self.accepted

    @classmethod
    def begun(cls, x: Tensor, t: Tensor, h: Tensor, v: Tensor, nodes: int) -> Self:
        """Return the history of samples that start at one time.

        Arguments:
            x: the states, (B, *event).
            t: their time, ().
            h: the first step sizes, (B,), float64.
            v: the velocities at (x, t), (B, *event).
            nodes: the number of velocities to remember.
        """
        times = torch.full_like(h, float(t))
        velocities = torch.cat([v[None], torch.zeros_like(v).expand(nodes - 1, *v.shape)])
        none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(
            x.clone(),
            times.clone(),
            h,
            times[:, None].repeat(1, nodes),
            velocities,
            none + 1,
            torch.zeros_like(x),
            none,
            none.clone(),
            RATIO.to(x.device),
        )

    def push(self, i: Tensor, good: Tensor, t: Tensor, v: Tensor) -> None:
        """Note the velocities of the samples whose step is good.

        Arguments:
            i: the samples that tried a step, (n,), int64.
            good: whether their step is accepted, (n,), bool.
            t: the times to which the steps go, (n,), float64.
            v: the velocities there, (n, *event).
        """
        shifted = torch.cat([t[:, None], self.times[i, :-1]], 1)
        self.times = kept(self.times, i, good, shifted)
        older = torch.cat([v[None], self.velocities[:-1, i]])
        rows = torch.where(expand(good, v).bool(), older, self.velocities[:, i])
        self.velocities = self.velocities.index_copy(1, i, rows)
        most = self.times.shape[1]
        self.known[i] = torch.where(good, (self.known[i] + 1).clamp(max=most), self.known[i])


def adams_weights(nodes: Tensor, known: Tensor) -> Tensor:
    """Return w with Σ_j w_j r_j^k = ∫_0^1 r^k dr for all k below ``known``, and 0 beyond.

    Shapes: nodes r (B, N), in units of the step from its start; known (B,); result (B, N).
    """
    k = torch.arange(nodes.shape[1], device=nodes.device)
    own = k < known[:, None]
    both = own[:, :, None] & own[:, None, :]
    powers = nodes[:, None, :] ** k[:, None]
    identity = torch.eye(len(k), dtype=nodes.dtype, device=nodes.device)
    moments = torch.where(own, 1 / (k + 1.0).to(nodes.dtype), torch.zeros_like(nodes))
    # Not `solve`, which waits for the GPU to know that the matrices have inverses.
    solved: Tensor = torch.linalg.solve_ex(torch.where(both, powers, identity), moments).result
    return solved


def moved(weights: Tensor, velocities: Tensor, dt: Tensor) -> Tensor:
    """Return Σ_j dt w_j v_j.

    Shapes: weights (B, N), velocities (N, B, *event), dt (B,).
    """
    masses = (weights * dt[:, None]).T
    return sum(
        (expand(m, v) * v for m, v in zip(masses, velocities, strict=True)),
        torch.zeros_like(velocities[0]),
    )
