"""Picard sweeps end where the sequential solver ends, in fewer calls, sample by sample."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    ODE,
    VESDE,
    VPSDE,
    CosineBeta,
    GaussianMixture,
    OneStep,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    integrate,
    uniform,
)
from sde_diffusion.grids import recommended
from sde_diffusion.solvers import Ancestral, Euler, Heun, RungeKutta4
from sde_diffusion.solvers.ddim import DDIM
from sde_diffusion.solvers.deis import DEIS
from sde_diffusion.solvers.edm_heun import EDMHeun
from sde_diffusion.solvers.midpoint import Midpoint
from sde_diffusion.solvers.picard import Picard

FAMILY = [VPSDE(), VPSDE(CosineBeta()), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow()]
every_sde = pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: repr(sde)[:24])


def mixture(sde):
    means = torch.tensor([[1.0, 0.0], [-0.5, 0.5]])
    return GaussianMixture([1, 2], means, stds=[0.4, 0.3]).diffused(sde)


def start(sde, rows=5):
    z = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return z * sde.sigma(torch.tensor(sde.horizon, dtype=torch.float64))


def solve(solver, sde, grid, x=None, score=None):
    """Return the solution, with all states."""
    states = []
    found = integrate(
        ProbabilityFlow(sde, score or mixture(sde)),
        solver,
        start(sde) if x is None else x,
        grid,
        callback=lambda k, t, state: states.append(state),  # noqa: ARG005
    )
    return found, torch.stack(states)


@every_sde
@pytest.mark.parametrize("window", [1, 6, 100])
@pytest.mark.parametrize(
    "solver", [DDIM(), Euler(), Midpoint(), Heun(), RungeKutta4()], ids=lambda s: type(s).__name__
)
def test_all_states_are_the_sequential_solvers(sde, solver, window) -> None:
    grid = recommended(sde, 24)
    expected, path = solve(solver, sde, grid)
    found, states = solve(Picard(solver, window, tolerance=1e-12), sde, grid)
    scale = torch.hypot(sde.alpha(grid), sde.sigma(grid))[1:, None, None]
    assert float(((states - path) / scale).abs().max()) < 1e-10
    assert torch.allclose(found.x, expected.x, atol=1e-10)


@every_sde
@pytest.mark.parametrize("window", [1, 3, 40])
def test_a_sweep_settles_a_step_at_least(sde, window) -> None:
    """The finite termination of Picard's iteration: n sweeps for n steps, with no tolerance."""
    grid = uniform(20, sde.horizon, 0.0)
    expected, _ = solve(DDIM(), sde, grid)
    found, _ = solve(Picard(DDIM(), window, tolerance=0.0), sde, grid)
    assert found.nfe <= 20
    assert window > 1 or found.nfe == 20
    assert torch.allclose(found.x, expected.x, atol=1e-11)


@every_sde
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_small_steps_take_few_sweeps(sde, dtype) -> None:
    grid = recommended(sde, 200)
    x = start(sde).to(dtype)
    expected, _ = solve(DDIM(), sde, grid, x)
    found, _ = solve(Picard(window=64), sde, grid, x)
    assert found.nfe <= 14
    assert torch.allclose(found.x, expected.x, atol=5e-5)


def paradigms(score, sde, x, grid, window, tolerance):
    """Algorithm 1 of Shih et al. for one sample, its drift the DDIM's, in plain loops."""

    def increment(k, y):
        a = sde.alpha(grid[k + 1]) / sde.alpha(grid[k])
        eps = -sde.sigma(grid[k]) * score(y, grid[k])
        return (a - 1) * y + (sde.sigma(grid[k + 1]) - a * sde.sigma(grid[k])) * eps

    n = len(grid) - 1
    first = 0
    calls = 0
    guess = [x] * (n + 1)
    while first < n:
        last = min(first + window, n)
        drifts = [increment(k, guess[k]) for k in range(first, last)]
        calls += 1
        moved = []
        for k in range(first, last):
            new = guess[first] + sum(drifts[: k - first + 1])
            moved.append(float((new - guess[k + 1]).square().mean().sqrt()))
            guess[k + 1] = new
        first += next((j + 1 for j, m in enumerate(moved[:-1]) if m > tolerance), last - first)
        for k in range(last + 1, n + 1):
            guess[k] = guess[last]
    return guess[n], calls


@pytest.mark.parametrize(("window", "tolerance"), [(4, 1e-3), (10, 1e-2), (40, 1e-4), (1, 1.0)])
def test_vp_is_the_published_algorithm(window, tolerance) -> None:
    sde = VPSDE()
    grid = uniform(30, 1.0, 1e-3)
    model = mixture(sde)
    for x in start(sde, 3):
        expected, calls = paradigms(model, sde, x[None], grid, window, tolerance)
        found, _ = solve(Picard(DDIM(), window, tolerance), sde, grid, x[None])
        assert found.nfe == calls
        assert torch.allclose(found.x, expected, atol=1e-12)


def test_every_sample_has_its_own_window() -> None:
    """At a tolerance that shows: a window shared with slower samples would change the faster."""
    sde = VPSDE()
    grid = uniform(40, 1.0, 1e-3)
    x = torch.cat([start(sde, 3), torch.tensor([[0.001, 0.2], [8.0, -9.0]], dtype=torch.float64)])
    solver = Picard(DDIM(), 8, tolerance=0.01)
    together, states = solve(solver, sde, grid, x)
    alone = [solve(solver, sde, grid, row[None]) for row in x]
    assert torch.allclose(states, torch.cat([path for _, path in alone], 1), atol=1e-12)
    calls = [found.nfe for found, _ in alone]
    assert together.nfe == max(calls) > min(calls)


class Labels(torch.nn.Module):
    """A network of x, t and a label a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(3, 2)
        self.double()

    def forward(self, x, c, labels):
        return torch.tanh(x + self.table(labels) * c[:, None])


@pytest.mark.parametrize("labels", [torch.tensor([2, 0, 1, 1, 0]), torch.tensor(2)])
def test_every_sample_keeps_its_label(labels) -> None:
    sde = VPSDE()
    grid = uniform(20, 1.0, 1e-3)
    torch.manual_seed(0)
    model = ScoreModel(Labels(), sde).eval().given(labels)
    with torch.no_grad():
        expected, _ = solve(DDIM(), sde, grid, score=model)
        found, _ = solve(Picard(DDIM(), 7, tolerance=1e-12), sde, grid, score=model)
    assert torch.allclose(found.x, expected.x, atol=1e-10)


def test_gradients_are_the_sequential_solvers() -> None:
    sde = VPSDE()
    grid = uniform(12, 1.0, 1e-3)
    slopes = []
    for solver in (DDIM(), Picard(DDIM(), 5, tolerance=0.0)):
        x = start(sde).requires_grad_()
        solve(solver, sde, grid, x)[0].x.square().sum().backward()
        slopes.append(x.grad)
    assert torch.allclose(*slopes, atol=1e-10)


class Oscillator(ODE):
    """x'' = −x as a plane rotation: a user's own ODE, forward in time."""

    def velocity(self, x, t):  # noqa: ARG002
        return torch.stack([x[:, 1], -x[:, 0]], 1)


def test_any_ode_forward_in_time() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    grid = uniform(30, 0.0, 1.0)
    expected = integrate(Oscillator(), RungeKutta4(), x, grid).x
    found = integrate(Oscillator(), Picard(RungeKutta4(), 8, tolerance=1e-13), x, grid).x
    assert torch.allclose(found, expected, atol=1e-11)


class OneTime(OneStep[ODE]):
    """Euler's step for 0-d times: with one a sample, dt·v multiplies the wrong dimension."""

    dynamics = ODE
    order = 1

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        return x + (s - t) * dynamics.velocity(x, t)


@pytest.mark.parametrize("solver", [EDMHeun(), OneTime()], ids=lambda s: type(s).__name__)
def test_a_solver_that_takes_one_time_for_all_is_refused(solver) -> None:
    text = f"one time for each sample, got {type(solver).__name__}; pass for example DDIM"
    with pytest.raises(TypeError, match=text):
        Picard(solver)


@pytest.mark.parametrize("solver", [Ancestral(eta=0.0), DEIS(), Euler], ids=str)
def test_what_is_no_one_step_ode_solver_is_refused(solver) -> None:
    with pytest.raises(TypeError, match="Picard: solver must be a one-step ODE solver, got"):
        Picard(solver)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="Picard: window must be at least 1, got 0"):
        Picard(window=0)
    with pytest.raises(ValueError, match="Picard: tolerance must be finite and at least 0"):
        Picard(tolerance=-1e-3)
