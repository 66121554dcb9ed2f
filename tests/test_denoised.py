"""The final denoising belongs to the grid, the default grid to the solver."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    Denoised,
    GaussianMixture,
    ProbabilityFlow,
    WhiteNoise,
    angular,
    integrate,
    karras,
    log_snr,
    quadratic,
    recommended,
    sample,
    uniform,
)
from sde_diffusion.diagnostics.comparison import Problem
from sde_diffusion.dynamics import ODE
from sde_diffusion.integration import dynamics_for
from sde_diffusion.solvers import (
    AngularAdams,
    DormandPrince,
    DPMSolver,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    SDEDPMSolverPP,
    UniPC,
)


def mixture(sde):
    means = torch.tensor([[1.0, 0.0], [-0.5, 0.5]])
    return GaussianMixture([1, 2], means, stds=[0.4, 0.3]).diffused(sde)


X = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(5.0)], ids=repr)
@pytest.mark.parametrize(
    "solver", [EulerMaruyama(), Heun(), AngularAdams(), DormandPrince()], ids=repr
)
def test_a_denoised_grid_ends_with_the_posterior_mean(sde, solver) -> None:
    model = mixture(sde)
    times = uniform(6, 0.9, 0.05)
    seen = []
    dynamics = dynamics_for(solver, sde, model)
    plain = integrate(dynamics, solver, X, times, noise=WhiteNoise(0))
    found = integrate(
        dynamics,
        solver,
        X,
        Denoised(times),
        noise=WhiteNoise(0),
        callback=lambda k, t, x: seen.append((k, float(t), x)),
    )
    assert torch.allclose(found.x, model.denoise(plain.x, times[-1]), rtol=1e-12, atol=1e-12)
    assert (found.nfe, found.steps) == (plain.nfe + 1, plain.steps + 1)
    assert [k for k, _, _ in seen] == list(range(1, found.steps + 1))
    assert seen[-1][1] == 0.0
    assert torch.equal(seen[-1][2], found.x)


def test_denoising_takes_the_noise_of_the_last_time_out() -> None:
    """Samples at t_ε are the data's plus N(0, σ²); the posterior mean of narrow data is not."""
    narrow = GaussianMixture([1.0], torch.zeros(1, 1), stds=[1e-3]).diffused(VPSDE())
    times = quadratic(20, 1.0, 0.01)
    noisy = sample(narrow, Heun(), (400, 1), grid=times, dtype=torch.float64).x.std()
    clean = sample(narrow, Heun(), (400, 1), grid=Denoised(times), dtype=torch.float64).x.std()
    sigma = float(narrow.sde.sigma(times[-1]))
    assert float(noisy) == pytest.approx(sigma, rel=0.2)
    assert float(clean) < 0.1 * sigma


def test_an_equation_without_a_score_refuses_it() -> None:
    class Decay(ODE):
        def velocity(self, x, t):  # noqa: ARG002
            return -x

    with pytest.raises(TypeError, match=r"grid must be plain times .* got Denoised; pass grid\.t"):
        integrate(Decay(), Heun(), X, Denoised(uniform(3)))


def test_a_solver_brings_its_own_default_grid() -> None:
    sde = VPSDE()
    solver = AngularAdams(sigma_data=0.5)
    assert torch.equal(recommended(sde, 7, solver=solver), angular(sde, 7, sigma_data=0.5))
    assert torch.equal(
        recommended(sde, 7, 0.9, 0.1, solver=solver), angular(sde, 7, 0.9, 0.1, sigma_data=0.5)
    )
    for by_lambda in (DPMSolverPP(), DPMSolver(), UniPC(), SDEDPMSolverPP()):
        assert torch.equal(recommended(sde, 7, solver=by_lambda), log_snr(sde, 7))
    assert torch.equal(recommended(sde, 7, solver=Heun()), quadratic(7))
    assert torch.equal(recommended(EDMSDE(), 7, solver=Heun()), karras(EDMSDE(), 7))
    model = mixture(sde)
    found = []
    sample(model, solver, (2, 2), steps=7, callback=lambda k, t, x: found.append(t))  # noqa: ARG005
    assert found == list(angular(sde, 7, sigma_data=0.5)[1:])
    problem = Problem("mixture", model, torch.zeros(8, 2))
    assert torch.equal(problem.rule(solver)(7), angular(sde, 7, sigma_data=0.5))
    assert torch.equal(problem.rule(Heun())(7), quadratic(7))


def test_the_flow_of_a_model_is_solved_from_noise_without_extra_evaluations() -> None:
    model = mixture(VPSDE())
    flow = ProbabilityFlow(model.sde, model)
    assert integrate(flow, AngularAdams(), X, angular(model.sde, 12)).nfe == 12
    assert integrate(flow, AngularAdams(), X, uniform(12, 0.5, 0.1)).nfe == 12 + 6
