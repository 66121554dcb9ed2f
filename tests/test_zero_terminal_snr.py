"""Solves from pure noise, alpha = 0, are right in float32 or refused: none is finite and wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    VPSDE,
    DiscreteBeta,
    Gaussian,
    GaussianMixture,
    LinearSDE,
    PerSampleNoise,
    RectifiedFlow,
    ScoreModel,
    Solution,
    integrate,
    lattice,
    linear_betas,
    log_snr,
    recommended,
    sample,
    uniform,
    zero_terminal_snr,
)
from sde_diffusion.ddpm import AnalyticVariance, Chain, vlb
from sde_diffusion.dynamics import ODE
from sde_diffusion.integration import dynamics_for
from sde_diffusion.solvers import (
    DDIM,
    DDPM,
    ERSDE,
    SEEDS,
    Ancestral,
    AngularAdams,
    AngularSDE,
    DormandPrince,
    DPMSolver,
    EDMHeun,
    Euler,
    EulerMaruyama,
    Midpoint,
    SASolver,
    SDEDPMSolverPP,
    catalogue,
)

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
STD = 0.5
ZERO = VPSDE(DiscreteBeta(zero_terminal_snr(linear_betas(1000))))
PROBLEMS = {"betas": (ZERO, lattice(1000, 5)), "flow": (RectifiedFlow(), uniform(5, 1.0, 0.02))}
every_problem = pytest.mark.parametrize(("sde", "grid"), PROBLEMS.values(), ids=PROBLEMS)
FIXED = {name: solver for name, solver in catalogue.instances().items() if not solver.adaptive}
# Solvers of a drift, which is infinite in pure noise but for the flow of a straight path.
DRIFTING = ("EulerMaruyama", "Milstein", "SRA")


class Network(nn.Module):
    """A prediction of data N(mean, std²), in x's dtype."""

    def __init__(self, sde: LinearSDE, form: str, mean: Tensor = MEAN, std: float = STD) -> None:
        super().__init__()
        self.sde = sde
        self.form = form
        self.mean = mean
        self.std = std

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a = self.sde.alpha(t.double()).to(x.dtype)[:, None]
        s = self.sde.sigma(t.double()).to(x.dtype)[:, None]
        r = (x - a * self.mean.to(x)) / (a**2 * self.std**2 + s**2)
        x0 = self.mean.to(x) + a * self.std**2 * r
        made = {"eps": s * r, "x0": x0, "v": a * s * r - s * x0, "flow": s * r - x0}
        return made[self.form]


def model(sde: LinearSDE, form: str = "v", mean: Tensor = MEAN, std: float = STD) -> ScoreModel:
    return ScoreModel(Network(sde, form, mean, std), sde, form).eval()


def solved(solver, score, grid, n=4, dtype=torch.float64) -> tuple[Tensor, Solution]:
    noise = PerSampleNoise.numbered(0, 0, n)
    x = noise.normal(torch.empty(n, 2)).to(dtype)
    with torch.no_grad():
        return x, integrate(dynamics_for(solver, score.sde, score), solver, x, grid, noise=noise)


# --- the chain whose last beta is 1 ---


def test_betas_that_end_with_one_are_the_chain_at_its_times_and_invertible_between() -> None:
    betas = zero_terminal_snr(linear_betas(1000))
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(ZERO.alpha(t), (1 - betas).cumprod(0).sqrt(), rtol=1e-11, atol=0)
    assert float(ZERO.alpha(t[-1])) == 0
    assert float(ZERO.sigma(t[-1])) == 1
    inside = torch.tensor([0.5, 0.99905, 0.9995, 0.999999], dtype=torch.float64)
    assert torch.allclose(ZERO.time(ZERO.lambda_(inside)), inside, rtol=1e-12, atol=0)
    assert float(ZERO.time(torch.tensor(-math.inf, dtype=torch.float64))) == 1
    # Along a line in the last cell, so that g² = β = −2 alpha'/alpha.
    part = 1000 * inside[1:] - 999
    assert torch.allclose(ZERO.alpha(inside[1:]), ZERO.alpha(t[-2]) * (1 - part), rtol=1e-9)
    assert torch.allclose(ZERO.rate(inside[1:]), -1000 / (1 - part), rtol=1e-9)
    assert torch.allclose(LinearSDE.rate(ZERO, inside), ZERO.rate(inside), rtol=1e-7)


def test_the_chain_from_pure_noise_is_bayes_rule() -> None:
    chain = Chain(ZERO, lattice(1000, 5))
    x, x0 = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(0)).double()
    mean, variance = chain.posterior(x, x0, torch.full((4,), 5))
    # x_5 says nothing of x_4: what is left is q(x_4 | x0).
    assert torch.allclose(mean, chain.alpha[4] * x0, rtol=1e-12)
    assert float(variance[0]) == pytest.approx(float(chain.sigma[4]) ** 2, rel=1e-12)
    with pytest.raises(ValueError, match=r"alpha above 0.* use ForwardVariance"):
        AnalyticVariance(torch.ones(5)).table(chain)


@pytest.mark.parametrize("draws", [None, 12])
def test_the_bound_of_such_a_chain_is_that_of_nearly_such_a_chain(draws) -> None:
    data = Gaussian(MEAN, STD**2 * torch.eye(2))
    x = data.sample(40, torch.Generator().manual_seed(0))
    near = VPSDE(DiscreteBeta(zero_terminal_snr(linear_betas(1000), 1e-7)))
    bounds = [vlb(x, data.diffused(sde), lattice(1000, 8), draws=draws) for sde in (ZERO, near)]
    difference = (bounds[0].nats - bounds[1].nats).mean()
    assert bool(bounds[0].nats.isfinite().all())
    if draws is None:  # the same draws of all steps
        assert float(difference) == pytest.approx(0, abs=0.02)
    else:
        spread = torch.stack([b.standard_error.square() for b in bounds]).sum().sqrt() / 40
        assert abs(float(difference)) < 4 * float(spread)


# --- solvers ---


# Solvers of velocities are refused on the chain, and need the straight path; all else is alike.
CASES = {
    f"{name}-{kind}": (solver, *PROBLEMS[kind])
    for name, solver in FIXED.items()
    for kind in (["betas", "flow"] if solver.dynamics is ODE else ["betas"])
}


@pytest.mark.parametrize(("solver", "sde", "grid"), CASES.values(), ids=CASES)
def test_from_pure_noise_every_solver_is_as_exact_in_float32_or_refuses(solver, sde, grid) -> None:
    score = model(sde, "v" if sde is ZERO else "flow")
    velocities = solver.dynamics.__name__ == "ODE" and "Picard()" not in repr(solver)
    if type(solver).__name__ in DRIFTING or (velocities and sde is ZERO):
        with pytest.raises((ValueError, FloatingPointError), match=r"alpha above 0|must stay fin"):
            solved(solver, score, grid)
        return
    if repr(solver).startswith("Picard(solver=Heun"):  # times of its own for each sample
        with pytest.raises(FloatingPointError, match="must stay finite"):
            solved(solver, score, grid)
        return
    _, fine = solved(solver, score, grid)
    _, coarse = solved(solver, score, grid, dtype=torch.float32)
    assert float((coarse.x - fine.x).abs().max()) < 5e-6


@pytest.mark.parametrize("terminal", [1e-6, 1e-15])
def test_the_ddim_is_as_exact_in_float32_from_any_small_alpha(terminal: float) -> None:
    sde = VPSDE(DiscreteBeta(zero_terminal_snr(linear_betas(1000), terminal)))
    for solver in (DDIM(), Ancestral(0.0), Ancestral(), EDMHeun(), DPMSolver(order=2)):
        _, fine = solved(solver, model(sde), lattice(1000, 6))
        _, coarse = solved(solver, model(sde), lattice(1000, 6), dtype=torch.float32)
        assert float((coarse.x - fine.x).abs().max()) < 5e-6


@every_problem
def test_one_step_from_pure_noise_is_the_mean_of_the_data_and_the_noise(sde, grid) -> None:
    ring = GaussianMixture.ring(5, radius=2.0, std=0.1)
    data = GaussianMixture(torch.ones(2), torch.stack([MEAN, MEAN + 1]), stds=[0.1, 0.4])
    for oracle, mean in ((ring, torch.zeros(2)), (data, MEAN + 0.5)):
        score = oracle.diffused(sde)
        s = grid[3]
        for solver in (DDIM(), Ancestral(0.0), EDMHeun()):
            x, found = solved(solver, score, torch.stack([grid[0], s]))
            expected = sde.alpha(s) * mean + sde.sigma(s) * x  # x_1 is eps
            assert torch.allclose(found.x, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sde", [ZERO, RectifiedFlow()], ids=PROBLEMS)
def test_flows_from_pure_noise_end_where_the_exact_flow_does(sde) -> None:
    score = model(sde, "v" if sde is ZERO else "flow")
    exact = Gaussian(MEAN, STD**2 * torch.eye(2)).diffused(sde)
    grids = [lattice(1000, n)[:-1] if sde is ZERO else uniform(n, 1.0, 0.02) for n in (20, 80)]
    for solver, bound in ((DDIM(), 2.7), (EDMHeun(), 8.0), *([] if sde is ZERO else STRAIGHT)):
        errors = []
        for times in grids:
            x, found = solved(solver, score, times)
            errors.append(float((found.x - exact.flow(x, times[0], times[-1])).abs().max()))
        assert errors[1] < 0.05
        # 4 times the steps: a quarter of the error at first order, less at second.
        assert errors[1] < errors[0] / bound


STRAIGHT = ((Euler(), 3.3), (Midpoint(), 12.0))
KEEPING = (Ancestral(), DDPM(), SASolver(), SDEDPMSolverPP(), ERSDE(), SEEDS(), AngularSDE())


@pytest.mark.parametrize("solver", KEEPING, ids=repr)
def test_where_x0_is_known_stochastic_steps_from_pure_noise_keep_the_marginals(solver) -> None:
    times = lattice(1000, 25)[:10]
    _, found = solved(solver, model(ZERO, std=0.0), times, n=600)
    alpha, sigma = (float(f(times[-1])) for f in (ZERO.alpha, ZERO.sigma))
    assert float(found.x.std(0).mean()) == pytest.approx(sigma, rel=4 / math.sqrt(2400))
    assert torch.allclose(found.x.mean(0), alpha * MEAN, atol=4 * sigma / math.sqrt(600))


def test_sample_draws_the_noise_of_the_time_at_which_it_starts() -> None:
    still = Gaussian(torch.zeros(2), torch.eye(2)).diffused(RectifiedFlow())
    normals = PerSampleNoise.numbered(0, 0, 4).normal(torch.empty(4, 2, dtype=torch.float64))
    run = sample(still, DDIM(), (4, 2), grid=uniform(1, 1.0, 0.5), dtype=torch.float64)
    # E[x0 | x_1] = 0 for all x_1 = eps, so that the step ends at sigma_s eps.
    assert torch.allclose(run.x, 0.5 * normals)


REFUSED = {
    "eps": (
        lambda: solved(DDIM(), model(ZERO, "eps"), lattice(1000, 10)),
        r"model gives eps, .*; start the grid at sde.horizon or before, or use a model that",
    ),
    "a drift": (
        lambda: solved(EulerMaruyama(), model(RectifiedFlow(), "flow"), uniform(10)),
        r"alpha above 0 for a finite drift, .*; start the grid at sde.horizon",
    ),
    "steps of its own": (
        lambda: solved(DormandPrince(), model(RectifiedFlow(), "flow"), uniform(10)),
        r"DormandPrince: grid must start at the horizon 0.999 at most .*; start it at 0.999",
    ),
    "to noise": (
        lambda: solved(DDIM(), model(ZERO), torch.tensor([0.5, 1.0], dtype=torch.float64)),
        r"end at the horizon 0.999999 at most, .*; end it at 0.999999",
    ),
    "λ": (
        lambda: log_snr(ZERO, 10, start=1.0),
        r"lie in \(0, 0.999999\], where lambda is finite, got 1.0; pass start=0.999999",
    ),
}


@pytest.mark.parametrize(("call", "text"), REFUSED.values(), ids=REFUSED)
def test_what_pure_noise_does_not_tell_is_refused(call, text) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_by_default_a_solve_of_such_a_chain_starts_where_lambda_is_finite() -> None:
    last = float(ZERO.alpha(torch.tensor(0.999, dtype=torch.float64)))
    for solver in (DDIM(), AngularAdams(), DPMSolver()):
        start = recommended(ZERO, 5, solver=solver)[0]
        assert float(ZERO.alpha(start)) == pytest.approx(1e-3 * last, rel=1e-6)
