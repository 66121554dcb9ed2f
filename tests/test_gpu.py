"""What must hold on a GPU; skipped without one."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion import (
    VPSDE,
    BrownianPath,
    CounterNoise,
    PerSampleNoise,
    ProbabilityFlow,
    ScoreModel,
    UNet,
    WhiteNoise,
    integrate,
    sample,
    uniform,
)
from sde_diffusion.integration import dynamics_for
from sde_diffusion.nets.unet import digits_config
from sde_diffusion.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    SEEDS,
    SRA,
    AdamsBashforth,
    Ancestral,
    AngularAdams,
    DPMSolver,
    DPMSolverPP,
    EDMHeun,
    EDMStochastic,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    RungeKutta4,
    SASolver,
    SDEDPMSolverPP,
    UniPC,
)

pytestmark = pytest.mark.gpu


def model(device: str) -> ScoreModel:
    """Return a network whose output is not zero, the same on every device."""
    net = UNet(**digits_config())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return ScoreModel(net, VPSDE()).to(device).eval()


def test_the_flow_is_the_same_as_on_the_cpu() -> None:
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    ends = []
    for device in ("cpu", "cuda"):
        scored = model(device).double()
        flow = ProbabilityFlow(scored.sde, scored)
        with torch.no_grad():
            end = integrate(flow, Heun(), noise.to(device).double(), uniform(20)).x
        ends.append(end.cpu())
    assert torch.allclose(*ends, rtol=1e-6, atol=1e-6)


def test_samples_are_made_where_the_model_is() -> None:
    assert sample(model("cuda"), Ancestral(), (2, 1, 8, 8), steps=3).x.device.type == "cuda"


@pytest.mark.parametrize(
    "noise",
    [
        WhiteNoise(0),
        PerSampleNoise(range(4)),
        BrownianPath(0, grid=uniform(5)),
        BrownianPath.numbered(0, 0, 4, grid=uniform(5)),
    ],
    ids=["white", "own", "path", "own path"],
)
@pytest.mark.parametrize(
    "solver",
    [
        EulerMaruyama(),
        ReverseDiffusion(),
        Ancestral(),
        Heun(),
        RungeKutta4(),
        AdamsBashforth(3),
        PredictorCorrector(ReverseDiffusion(), Langevin()),
        DDIM(),
        EDMHeun(),
        DPMSolver(),
        DPMSolverPP(),
        UniPC(),
        DEIS(),
        AngularAdams(),
        SDEDPMSolverPP(),
        SASolver(),
        ERSDE(),
        SEEDS(),
        SRA(),
        EDMStochastic(),
        Restart(),
    ],
    ids=repr,
)
def test_no_step_waits_for_the_gpu(solver, noise) -> None:
    scored = model("cuda")
    x = torch.zeros(4, 1, 8, 8, device="cuda")
    dynamics = dynamics_for(solver, scored.sde, scored)
    with torch.no_grad():
        list(solver.steps(dynamics, x, uniform(2), noise))  # warm up: generators, kernels
        torch.cuda.set_sync_debug_mode("error")
        try:
            list(solver.steps(dynamics, x, uniform(5), noise))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_counters_draw_the_bits_of_the_cpu() -> None:
    for ahead in (1, 3):
        there = CounterNoise(2**40 + 3, range(5, 69), ahead=ahead)
        here = CounterNoise(2**40 + 3, range(5, 69))
        for _ in range(4):
            z = there.normal(torch.zeros(64, 3, 32, 32, device="cuda"))
            assert torch.equal(z.cpu(), here.normal(torch.zeros(64, 3, 32, 32)))
