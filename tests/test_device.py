"""No step reads a state: on the meta device, where nothing can be read, reading raises.

`tests/test_device_solvers.py` looks for waits and copies too, which the meta device cannot see;
`tests/test_gpu.py` asks the GPU itself, where there is one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sde_diffusion import VPSDE, ScoreModel, uniform
from sde_diffusion.integration import dynamics_for
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import Milstein, Picard, TorchDiffEq, TorchDiffEqAdjoint, catalogue

# A check of g, convergence, a program of others.
READERS = (Milstein, Picard, TorchDiffEq, TorchDiffEqAdjoint)
SOLVERS = {
    name: solver
    for name, solver in catalogue.instances().items()
    if not solver.adaptive and not isinstance(solver, READERS)
}


class Unread(Noise):
    """Normals without values."""

    def normal(self, x):
        return torch.empty_like(x)


class Empty(nn.Module):
    def forward(self, x, c):
        assert c.device == x.device
        return torch.empty_like(x)


@pytest.mark.parametrize("prediction", ["eps", "v", "edm"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_no_step_reads_the_state(solver: Solver[Any], prediction: str) -> None:
    model = ScoreModel(Empty(), VPSDE(), prediction).eval()
    x = torch.empty(2, 3, dtype=torch.float32, device="meta")
    dynamics = dynamics_for(solver, model.sde, model)
    states = list(solver.steps(dynamics, x, uniform(6), Unread()))
    assert len(states) == 6
    assert {(y.dtype, y.device.type) for y in states} == {(torch.float32, "meta")}


def test_a_solver_that_reads_the_state_is_noticed() -> None:
    model = ScoreModel(Empty(), VPSDE()).eval()
    x = torch.empty(2, 3, device="meta")
    dynamics = dynamics_for(Picard(), model.sde, model)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|item"):
        list(Picard().steps(dynamics, x, uniform(6), Unread()))
