"""Orders on a model's own flow, of which no closed form is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from sde_diffusion._check import an_object, wrong_type
from sde_diffusion.diagnostics.convergence import Convergence
from sde_diffusion.diagnostics.doubling import Rule, grid_of
from sde_diffusion.diagnostics.orders import ends
from sde_diffusion.diagnostics.problems import tensor
from sde_diffusion.dynamics import ODE, ProbabilityFlow
from sde_diffusion.grids import uniform
from sde_diffusion.integration import integrate
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver


def model_convergence(
    solver: Solver[Any],
    model: ScoreLike,
    shape: Sequence[int],
    steps: Sequence[int] = (16, 32, 64, 128),
    *,
    grid: Rule = uniform,
    seed: int = 0,
) -> Convergence:
    """Return the RMS distance of n- and 2n-step solutions of a model's own flow, by n.

    Where the error of n steps is C n^{−p}, their distance is (1 − 2^{−p}) C n^{−p}: its slope is
    p too. Between the times of `certify`, in float64 where the model has weights; a network that
    is not smooth in x and t, or still far from its limit at these steps, shows a lower order than
    the solver's.

    Arguments:
        solver: a deterministic solver.
        model: the score model, of a LinearSDE.
        shape: (B, *event), of the states.
        steps: the step counts n, doubling.
        grid: the rule of the grids, called as grid(steps, start, end).
        seed: of the states at the start.

    Errors: TypeError for a solver of the reverse SDE.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.solvers import Heun
    >>> model = Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.1]))).diffused(VPSDE())
    >>> round(model_convergence(Heun(), model, (4, 2)).order, 1)
    2.0
    """
    an_object("model_convergence", "model", model, ScoreLike, "pass a ScoreModel")
    if solver.dynamics not in (ODE, ProbabilityFlow):
        raise wrong_type(
            "model_convergence",
            "solver",
            "solve the probability-flow ODE",
            type(solver).__name__,
            "pass for example Heun()",
        )
    sde = model.linear_sde()
    start, end = ends(sde)
    noise = PerSampleNoise.numbered(seed, 0, shape[0])
    x = noise.normal(torch.empty(tuple(shape), dtype=torch.float64, device=model.device))
    at = tensor(start)[0]
    x = x * math.hypot(float(sde.alpha(at)), float(sde.sigma(at)))
    flow = ProbabilityFlow(sde, model.in_double())
    with torch.no_grad():
        found = [
            integrate(flow, solver, x, grid_of(grid, n, start, end)).x
            for n in (*steps, 2 * steps[-1])
        ]
    errors = [float((a - b).square().mean().sqrt()) for a, b in pairwise(found)]
    return Convergence(tuple(steps), tuple(errors))
