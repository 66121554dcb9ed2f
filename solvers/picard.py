"""Parallel-in-time sampling by Picard sweeps over a sliding window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type
from sde_diffusion._tensors import expand
from sde_diffusion.integration import OneStep
from sde_diffusion.noise import Noise, NoNoise
from sde_diffusion.reverse import ODE, ProbabilityFlow
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers._checks import at_least_zero
from sde_diffusion.solvers.ddim import DDIM
from sde_diffusion.solvers.runge_kutta import Heun


@final
@dataclass(frozen=True)
class Picard:
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
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {}, {"solver": Heun(), "tolerance": 1e-10},
    )  # fmt: skip

    def __post_init__(self) -> None:
        positive_integer("Picard", "window", self.window)
        at_least_zero("Picard", "tolerance", self.tolerance, "pass tolerance=1e-5")
        _check_solver(self.solver)

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
        n, scale, batch = len(grid) - 1, _radius(dynamics, grid), torch.arange(len(x))
        window = min(self.window, n)
        places = torch.arange(window + 1)[:, None]
        z = (x / scale[0]).expand(window + 1, *x.shape)
        start = torch.zeros(len(x), dtype=torch.int64)  # of the window of every sample
        found: dict[int, Tensor] = {}
        for done in range(n):
            while int(start.min()) <= done:
                k = start + places[:-1]
                row, b = (k < n).nonzero(as_tuple=True)
                z_s, moved = self._sweep(dynamics, z, grid, scale, noise, k[row, b], row, b)
                settled = (moved <= self.tolerance).cpu()
                stride = (1 + settled[:-1].long().cumprod(0).sum(0)).minimum(n - start)
                for m in range(int(start.min()) + 1, int((start + stride).max()) + 1):
                    who = ((start < m) & (m <= start + stride)).nonzero()[:, 0]
                    state = found.setdefault(m, torch.empty_like(x))
                    state[who] = z_s[m - start[who], who] * scale[m]
                z = z_s[(places + stride).clamp(max=window), batch]
                start = start + stride
            yield found.pop(done + 1)

    def _sweep(
        self,
        dynamics: ODE,
        z: Tensor,
        grid: Tensor,
        scale: Tensor,
        noise: Noise,
        k: Tensor,
        row: Tensor,
        b: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the window after a sweep, and by how much every state but the first moved."""
        old = z[row, b]
        x = old * expand(scale[k], old)
        x_s = self.solver.step(dynamics.rows(b), x, grid[k], grid[k + 1], noise)
        step = torch.zeros_like(z[1:])
        step[row, b] = x_s / expand(scale[k + 1], old) - old
        z_s = torch.cat([z[:1], z[0] + step.cumsum(0)])
        change = (z_s[1:] - z[1:]).detach().flatten(2)
        return z_s, torch.linalg.vector_norm(change, dim=2) / math.sqrt(change.shape[2])


def _radius(dynamics: ODE, grid: Tensor) -> Tensor:
    """Return √(α² + σ²), by which states of a linear SDE are measured; else ones."""
    known = getattr(dynamics, "coefficients", None)
    if known is None:
        return torch.ones_like(grid)
    return torch.hypot(known.sde.alpha(grid), known.sde.sigma(grid))


def _check_solver(solver: object) -> None:
    """Refuse what does not step every sample from its own t to its own s, tried on an example."""
    rule, remedy = "be a one-step ODE solver", "pass for example DDIM() or Euler()"
    if not isinstance(solver, OneStep) or not issubclass(ProbabilityFlow, solver.dynamics):
        raise wrong_type("Picard", "solver", rule, type(solver).__name__, remedy)
    flow = ProbabilityFlow(VPSDE(), lambda x, t: -x * expand(1 + t, x))
    t, s = torch.tensor([[0.9, 0.8, 0.7], [0.8, 0.6, 0.5]], dtype=torch.float64)
    x, draws = t.outer(s), NoNoise()
    alone = [solver.step(flow, x[i : i + 1], t[i], s[i], draws) for i in range(3)]
    try:
        same = torch.allclose(solver.step(flow, x, t, s, draws), torch.cat(alone), rtol=1e-9)
    except (RuntimeError, TypeError, ValueError):  # of shapes, or of float(t)
        same = False
    if not same:
        raise wrong_type("Picard", "solver", f"{rule} that takes one time for each sample",
                         type(solver).__name__, remedy)  # fmt: skip
