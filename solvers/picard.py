"""Parallel-in-time sampling by Picard sweeps over a sliding window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep, Solver
from sde_diffusion.solvers._shared.checks import at_least_zero
from sde_diffusion.solvers._shared.picard import beside, check_solver, radius, sweep
from sde_diffusion.solvers.ddim import DDIM
from sde_diffusion.solvers.heun import Heun


@final
@dataclass(frozen=True)
class Picard(Solver[ODE]):
    """Picard sweeps: the steps of a one-step solver, ``window`` of them in each batched call.

    With Φ_k the step from t_k to t_k+1 and z_k = x_k/√(α_k² + σ_k²) (z = x unless the SDE is
    linear), a sweep sets z_k+1 = z_i + Σ_{m=i}^{k} (Φ_m(z_m) − z_m) in the whole window from i at
    once. A state is final when no state before it has moved by more than ``tolerance`` (root
    mean square of z); the window then slides to it. The first of the window always is: at most
    one sweep a step, and fewer the smoother the trajectory is. The end state is the solver's own,
    to about the tolerance; 0 asks for all digits. Every sample has its own window.

    Order: the solver's, for errors above the tolerance. NFE: the solver's a sweep, in calls of
    window · batch samples; memory for that many states and for those that others still lack.
    Errors: TypeError for a solver that is not a one-step solver of ODEs, or does not take one time
    for each sample (`DDIM` and `Euler`, `Midpoint`, `Heun`, `RungeKutta4` do); ValueError for a
    negative tolerance.
    Source: Shih et al. 2023 (ParaDiGMS), algorithm 1, whose rule this is for VP, where z = x. For
    VE and EDM z takes less than half the sweeps of x.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), 0.25 * torch.eye(2)).diffused(VPSDE())
    >>> sample(model, Picard(window=32), (4, 2), steps=64).nfe < 32
    True
    """

    solver: OneStep[Any] = field(default_factory=DDIM)
    window: int = 32
    tolerance: float = 1e-5
    waits: ClassVar[bool] = True
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {},
        {"solver": Heun(), "tolerance": 1e-10},
    )

    def __post_init__(self) -> None:
        positive_integer("Picard", "window", self.window)
        at_least_zero("Picard", "tolerance", self.tolerance, "pass tolerance=1e-5")
        check_solver(self.solver)

    @property
    def dynamics(self) -> type[Any]:
        """What the solver solves."""
        return self.solver.dynamics

    @property
    def order(self) -> float:
        """The solver's order."""
        return self.solver.order

    def steps(self, dynamics: ODE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid, as soon as all samples have them."""
        n = len(grid) - 1
        scale = radius(dynamics, grid)
        batch = torch.arange(len(x), device=x.device)
        window = min(self.window, n)
        places = torch.arange(window + 1)[:, None]
        z = (x / scale[0]).expand(window + 1, *x.shape)
        start = torch.zeros(len(x), dtype=torch.int64)  # of the window of every sample
        found: dict[int, Tensor] = {}
        for done in range(n):
            while int(start.min()) <= done:
                k = start + places[:-1]
                row, b = (k < n).nonzero(as_tuple=True)
                z_s, moved = sweep(self.solver, dynamics, z, grid, scale, noise, k[row, b], row, b)
                settled = (moved <= self.tolerance).cpu()
                stride = (1 + settled[:-1].long().cumprod(0).sum(0)).minimum(n - start)
                for m in range(int(start.min()) + 1, int((start + stride).max()) + 1):
                    who = ((start < m) & (m <= start + stride)).nonzero()[:, 0]
                    state = found.setdefault(m, torch.empty_like(x))
                    ready = beside(x, who)
                    state[ready] = z_s[beside(x, m - start[who]), ready] * scale[m]
                z = z_s[beside(x, (places + stride).clamp(max=window)), batch]
                start = start + stride
            yield found.pop(done + 1)
