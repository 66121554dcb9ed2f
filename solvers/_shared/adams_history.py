"""The past of samples with steps of their own, and Adams weights on its uneven nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sde_diffusion._tensors import expand
from sde_diffusion.dynamics import ODE
from sde_diffusion.solvers._shared.adaptive import kept
from sde_diffusion.solvers._shared.dormand_prince import first_sizes

# What part of Adams–Bashforth's error Adams–Moulton's has, at the same order 1, 2 … 6.
RATIO: Final = torch.tensor([1, 1 / 5, 1 / 9, 19 / 251, 27 / 475, 863 / 19087]).double()


@dataclass
class History:
    """Where every sample of a batch is, with the last velocities, newest first.

    ``known`` of the nodes are the sample's own, the rest fill the table. ``lost`` adds up the
    absolute estimated errors of the steps taken.

    Shapes: x, lost (B, *event); t, h, known, accepted, rejected (B,); times (B, nodes) and
    velocities (nodes, B, *event).
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
    tries: int = 0  # of the whole batch, over all times of the grid

    def push(self, i: Tensor, good: Tensor, t: Tensor, v: Tensor) -> None:
        """Note the velocities v at t of the samples ``i`` whose step is good."""
        shifted = torch.cat([t[:, None], self.times[i, :-1]], 1)
        self.times = kept(self.times, i, good, shifted)
        older = torch.cat([v[None], self.velocities[:-1, i]])
        rows = torch.where(expand(good, v).bool(), older, self.velocities[:, i])
        self.velocities = self.velocities.index_copy(1, i, rows)
        most = self.times.shape[1]
        self.known[i] = torch.where(good, (self.known[i] + 1).clamp(max=most), self.known[i])


def begun(ode: ODE, x: Tensor, grid: Tensor, nodes: int, scale: Tensor) -> History:
    """Return the history of samples that start at grid[0]; errors are measured by ``scale``."""
    v = ode.velocity(x, grid[0])
    h = first_sizes(ode, x, grid[0], grid[-1], v, scale)
    times = torch.full_like(h, float(grid[0]))[:, None].repeat(1, nodes)
    velocities = torch.cat([v[None], torch.zeros_like(v).expand(nodes - 1, *v.shape)])
    none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return History(
        x.clone(),
        times[:, 0].clone(),
        h,
        times,
        velocities,
        none + 1,
        torch.zeros_like(x),
        none,
        none.clone(),
    )


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
    solved: Tensor = torch.linalg.solve(torch.where(both, powers, identity), moments)
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
