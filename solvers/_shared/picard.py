"""A Picard sweep, and what it asks of the SDE and of the solver."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._check import wrong_type
from sde_diffusion._tensors import expand
from sde_diffusion.dynamics import ODE, ProbabilityFlow
from sde_diffusion.noise import Noise, NoNoise
from sde_diffusion.sde import VPSDE
from sde_diffusion.solver import OneStep


def radius(dynamics: ODE, grid: Tensor) -> Tensor:
    """Return √(α² + σ²), by which states of a linear SDE are measured; else ones."""
    known = dynamics.coefficients if isinstance(dynamics, ProbabilityFlow) else None
    if known is None:
        return torch.ones_like(grid)
    return torch.hypot(known.sde.alpha(grid), known.sde.sigma(grid))


def beside(x: Tensor, index: Tensor) -> Tensor:
    """Return an index on the device of ``x``, which one of the CPU would have to wait for."""
    return index.to(x.device, non_blocking=True)


def sweep(
    solver: OneStep[Any],
    dynamics: ODE,
    z: Tensor,
    grid: Tensor,
    scale: Tensor,
    noise: Noise,
    k: Tensor,
    row: Tensor,
    b: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the window after a sweep, and by how much every state but the first moved.

    Step k of sample b starts from the state of that sample in the given row of the window.

    Arguments:
        solver: the one-step solver.
        dynamics: the equation of the whole batch.
        z: the scaled states of the window, (window + 1, B, *event).
        grid: the times of the solve, (steps + 1,).
        scale: x/z at the times of the grid, (steps + 1,).
        noise: the source of normals, of which none is drawn.
        k: the places in the grid at which the n steps start, (n,), int64.
        row: the rows of the window in which they start, (n,), int64.
        b: the samples that take them, (n,), int64.

    Shapes: result (window + 1, B, *event) and (window, B).
    """
    places = (beside(z, row), beside(z, b))
    old = z[places]
    x = old * expand(scale[k], old)
    x_s = solver.step(dynamics.rows(b), x, grid[k], grid[k + 1], noise)
    step = torch.zeros_like(z[1:])
    step[places] = x_s / expand(scale[k + 1], old) - old
    z_s = torch.cat([z[:1], z[0] + step.cumsum(0)])
    change = (z_s[1:] - z[1:]).detach().flatten(2)
    return z_s, torch.linalg.vector_norm(change, dim=2) / math.sqrt(change.shape[2])


def check_solver(solver: object) -> None:
    """Refuse what does not step every sample from its own t to its own s, tried on an example."""
    rule = "be a one-step ODE solver"
    remedy = "pass for example DDIM() or Euler()"
    if not isinstance(solver, OneStep) or not issubclass(ProbabilityFlow, solver.dynamics):
        raise wrong_type("Picard", "solver", rule, type(solver).__name__, remedy)
    flow = ProbabilityFlow(VPSDE(), lambda x, t: -x * expand(1 + t, x))
    t, s = torch.tensor([[0.9, 0.8, 0.7], [0.8, 0.6, 0.5]], dtype=torch.float64)
    x = t.outer(s)
    draws = NoNoise()
    alone = [solver.step(flow, x[i : i + 1], t[i], s[i], draws) for i in range(3)]
    try:
        same = torch.allclose(solver.step(flow, x, t, s, draws), torch.cat(alone), rtol=1e-9)
    except (RuntimeError, TypeError, ValueError):  # of shapes, or of float(t)
        same = False
    if not same:
        raise wrong_type(
            "Picard",
            "solver",
            f"{rule} that takes one time for each sample",
            type(solver).__name__,
            remedy,
        )
