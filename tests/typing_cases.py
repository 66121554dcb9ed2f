"""Mistakes the type checker must find: an ignore that is not needed fails the strict check."""

from __future__ import annotations

import torch

from sde_diffusion import (
    VPSDE,
    Gaussian,
    ProbabilityFlow,
    ReverseSDE,
    WhiteNoise,
    integrate,
    uniform,
)
from sde_diffusion.solvers import EulerMaruyama, Heun

model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
reverse = ReverseSDE(model.sde, model)
flow = ProbabilityFlow(model.sde, model)
x = torch.zeros(1, 2)
grid = uniform(10)

integrate(flow, Heun(), x, grid)
integrate(reverse, EulerMaruyama(), x, grid, noise=WhiteNoise(0))
integrate(model.sde, EulerMaruyama(), x, grid.flip(0), noise=WhiteNoise(0))
integrate(reverse, Heun(), x, grid)  # type: ignore[misc]
integrate(flow, EulerMaruyama(), x, grid)  # type: ignore[misc]
