"""Where solvers that choose their own steps give up, and what they say then."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import (
    VPSDE,
    Gaussian,
    GaussianMixture,
    ProbabilityFlow,
    ReverseSDE,
    WhiteNoise,
    integrate,
    log_prob,
    sample,
    uniform,
)
from sde_diffusion.integration import dynamics_for
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import (
    AdaptiveAdams,
    AdaptiveDPMSolver,
    AdaptiveSDE,
    DormandPrince,
    TorchDiffEq,
    TorchDiffEqAdjoint,
)

VP = VPSDE()
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
RING = GaussianMixture.ring(8).diffused(VP)


class Kinked:
    """A score with a jump at x = 0, across which the flow goes back and forth; it counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        self.calls += 1
        return -x - 5 * torch.sign(x)


def solve(solver: Solver[Any], score: Any, x: Tensor = X) -> Tensor:
    return integrate(dynamics_for(solver, VP, score), solver, x, uniform(1), noise=WhiteNoise(0)).x


@pytest.mark.parametrize(
    ("solver", "most"),
    [
        (DormandPrince(), 6 * 1000 + 2),
        (AdaptiveAdams(max_steps=500), 500 + 2),
        (AdaptiveDPMSolver(rtol=1e-7, atol=1e-7, max_steps=200), 3 * 200),
        (AdaptiveSDE(1e-4, 1e-4, max_steps=200), 2 * 200),
        (TorchDiffEq(max_steps=100), 6 * 100 + 2),
        (TorchDiffEq("bosh3", max_steps=100), 3 * 100 + 2),
        (TorchDiffEqAdjoint("dopri5", max_steps=100), 6 * 100 + 2),
        (TorchDiffEq("scipy_solver", 1e-7, 1e-7, max_steps=30), 6 * 30),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_score_with_a_jump_is_given_up_soon_and_by_name(solver, most) -> None:
    score = Kinked()
    with pytest.raises(FloatingPointError) as error:
        solve(solver, score)
    says = str(error.value)
    assert score.calls <= most
    assert says.startswith(type(solver).__name__.removesuffix("Adjoint"))
    assert re.search(r"at t = 0\.\d+", says)
    assert "evaluations" in says
    assert "raise rtol and atol, or max_steps where the score is smooth" in says
    if isinstance(solver, TorchDiffEq | TorchDiffEqAdjoint):
        assert re.search(rf"in steps of about \d\S*, after {score.calls} evaluations", says)
    else:
        assert f"at most max_steps={solver.max_steps} between two times" in says
        assert re.search(r"\d of 4 samples \(.*\) at t = .* with a next step of \d", says)


def test_the_bound_is_that_of_the_way_between_two_times_of_the_grid() -> None:
    """Forty times are forty ways: each takes a step at least, and none of them more than four."""
    solver = DormandPrince(1e-4, 1e-4, max_steps=4)
    with pytest.raises(FloatingPointError, match="at most max_steps=4"):
        sample(RING, solver, (4, 2), grid=uniform(1))
    fine = sample(RING, solver, (4, 2), grid=uniform(40))
    free = sample(RING, DormandPrince(1e-4, 1e-4), (4, 2), grid=uniform(40))
    assert torch.equal(fine.x, free.x)


LOW = [
    DormandPrince(1e-9, 1e-9),
    AdaptiveAdams(1e-9, 1e-9),
    AdaptiveDPMSolver(rtol=1e-9, atol=1e-9),
    AdaptiveSDE(1e-9, 1e-9),
    TorchDiffEq("dopri5", 1e-9, 1e-9),
    TorchDiffEq("scipy_solver", 1e-9, 1e-9),
]


@pytest.mark.parametrize("solver", LOW, ids=lambda solver: repr(solver)[:40])
def test_a_tolerance_below_the_rounding_of_the_states_is_refused_before_any_call(solver) -> None:
    score = Kinked()
    says = (
        rf"{type(solver).__name__}: rtol, atol must allow more than the rounding of x, "
        r"5.96e-08 of it in torch.float32, got 1e-09, 1e-09; raise them, or pass x.double\(\)"
    )
    with pytest.raises(ValueError, match=says):
        solve(solver, score)
    assert score.calls == 0


def test_a_tolerance_in_the_units_of_small_states_is_none_below_their_rounding() -> None:
    """1e-8 is a hundredth of a percent of states of size 1e-4, and float32 resolves that."""
    x = 1e-4 * X
    model = Gaussian(torch.zeros(3), 1e-8 * torch.eye(3)).diffused(VP)
    flow = ProbabilityFlow(VP, model)
    grid = uniform(1, 1e-3, 0.05)
    found = integrate(flow, DormandPrince(1e-8, 1e-8), x, grid).x
    exact = model.flow(x.double(), grid[0], grid[1])
    assert torch.allclose(found.double(), exact, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("solver", LOW[:1], ids=["DormandPrince"])
def test_a_likelihood_is_refused_by_the_same_rule(solver) -> None:
    flow = ProbabilityFlow(VP, lambda x, t: -x)  # noqa: ARG005
    with pytest.raises(ValueError, match="rtol, atol must allow more than the rounding of x"):
        log_prob(X, flow, solver)
    assert flow.nfe == 0


def test_the_samples_whose_velocity_is_not_finite_are_named() -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        return torch.where(x[:, :1] > 3, torch.nan, -x)

    x = X.clone()
    x[1] = x[3] = 4.0
    for solver in (DormandPrince(), AdaptiveAdams(), AdaptiveDPMSolver()):
        with pytest.raises(FloatingPointError, match=r"at t = 1 in 2 of 4 samples \(1, 3\);"):
            solve(solver, broken, x)


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "fixed_adams"])
def test_an_adams_method_of_torchdiffeq_chooses_the_uniform_grid_that_it_asks_for(method) -> None:
    solver = TorchDiffEq(method)
    data = Gaussian(torch.zeros(2), 0.25 * torch.eye(2)).diffused(VP)
    found = sample(data, solver, (5, 2), steps=60, dtype=torch.float64)
    same = sample(data, solver, (5, 2), grid=uniform(60), dtype=torch.float64)
    assert torch.equal(found.x, same.x)


def test_fixed_methods_of_torchdiffeq_keep_the_recommended_grid() -> None:
    assert TorchDiffEq("rk4").grid(VP, 5) is None


def test_reversed_noise_is_no_part_of_the_bound() -> None:
    """`AdaptiveSDE` walks all times of the grid at once: its bound is for all of them."""
    reverse = ReverseSDE(VP, RING)
    solver = AdaptiveSDE(max_steps=60)
    x = torch.zeros(3, 2)
    with pytest.raises(FloatingPointError, match="AdaptiveSDE: steps must number at most"):
        integrate(reverse, solver, x, uniform(1), noise=WhiteNoise(0))
    assert integrate(reverse, solver, x, uniform(20), noise=WhiteNoise(0)).steps == 20
