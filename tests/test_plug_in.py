"""What a user writes — an SDE, a solver, a score, noise, a grid — works as our own does."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import (
    SDE,
    DiscreteBeta,
    Gaussian,
    LinearSDE,
    OneStep,
    ProbabilityFlow,
    ReverseSDE,
    WhiteNoise,
    integrate,
    linear_betas,
    log_prob,
    sample,
    uniform,
)
from sde_diffusion.diagnostics.orders import ode_convergence, weak_convergence
from sde_diffusion.dynamics import ODE
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers import (
    SRA,
    AdaptiveSDE,
    Ancestral,
    DormandPrince,
    EulerMaruyama,
    Heun,
    Langevin,
    Milstein,
    PredictorCorrector,
)


class Trigonometric(LinearSDE):
    """A user's schedule in two lines: α = cos(πt/2), σ = sin(πt/2)."""

    horizon = 0.995

    def alpha(self, t):
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t):
        return torch.sin(0.5 * math.pi * t)


class Ralston(OneStep[ODE]):
    """A user's solver: Ralston's second-order method."""

    dynamics = ODE
    order = 2
    evaluations = 2

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        dt = s - t
        k1 = dynamics.velocity(x, t)
        k2 = dynamics.velocity(x + 2 / 3 * dt * k1, t + 2 / 3 * dt)
        return x + dt * (k1 / 4 + 3 * k2 / 4)


class Pearson(SDE):
    """A user's non-linear SDE dx = −x dt + √(¼(1 + x²)) dw, Student-t in equilibrium."""

    nu = 8.0

    def drift(self, x, t):  # noqa: ARG002
        return -x

    def diffusion(self, x, t):  # noqa: ARG002
        return (2 / self.nu * (1 + x**2)).sqrt()


@pytest.mark.parametrize(
    "solver", [Ancestral(), PredictorCorrector(Ancestral(), Langevin(0.05)), Heun(), Ralston()]
)
def test_a_users_schedule_samples_its_data(solver) -> None:
    data = Gaussian(torch.tensor([1.0, -1.0]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    model = data.diffused(Trigonometric())
    x = sample(model, solver, (4000, 2), steps=100, dtype=torch.float64).x
    error = 5 / 4000**0.5
    assert torch.allclose(x.mean(0), data.means[0], atol=error)
    expected = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    assert torch.allclose(torch.cov(x.T), expected, atol=0.03 + error)


def test_a_users_schedule_has_the_exact_likelihood() -> None:
    data = Gaussian(torch.tensor([1.0, -1.0]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    model = data.diffused(Trigonometric())
    x = data.sample(5, torch.Generator().manual_seed(0))
    ends = torch.tensor([0.0, 0.995], dtype=torch.float64)
    found = log_prob(
        x,
        ProbabilityFlow(model.sde, model),
        DormandPrince(1e-9, 1e-9),
        grid=ends,
        prior=model.marginal(ends[1]),
    )
    exact = data.log_prob(x)
    assert float((found.nats - exact).abs().mean()) < 3  # one probe on a correlated Jacobian
    from sde_diffusion import Exact

    found = log_prob(
        x,
        ProbabilityFlow(model.sde, model),
        DormandPrince(1e-9, 1e-9),
        grid=ends,
        prior=model.marginal(ends[1]),
        divergence=Exact(),
    )
    assert torch.allclose(found.nats, exact, atol=1e-6)


def test_a_users_solver_is_measured_like_ours() -> None:
    found = ode_convergence(Ralston(), VPSDE(), (64, 128, 256))
    assert found.order == pytest.approx(Ralston.order, abs=0.15)


class Backwards(OneStep[SDE]):
    """The shortest wrong solver: dt taken positive. Its measured order must give it away."""

    dynamics = SDE
    order = 1

    def step(self, dynamics, x, t, s, noise):
        dt = (s - t).abs()
        return x + dynamics.drift(x, t) * dt + dynamics.diffusion(x, t) * noise.increment(x, t, s)


def test_a_wrong_solver_is_found_out() -> None:
    found = weak_convergence(Backwards(), VPSDE(), (64, 128, 256))
    assert found.order < 0.2


def test_reverse_of_a_users_non_linear_sde_keeps_its_equilibrium() -> None:
    """Reversed with its exact score, a stationary diffusion stays stationary: E x² = 1/(ν−2)·…

    The Student law with p ∝ (1 + x²)^{−ν/2−1} has variance 1/(ν − 1).
    """
    sde = Pearson()

    def score(x, t):  # noqa: ARG001
        return -(sde.nu + 2) * x / (1 + x**2)

    n = 20_000
    generator = torch.Generator().manual_seed(0)
    # x = T/√(ν+1) with T Student of ν + 1 degrees of freedom has this density.
    z = torch.randn(n, int(sde.nu) + 2, generator=generator, dtype=torch.float64)
    x = (z[:, 0] / z[:, 1:].square().sum(1).sqrt())[:, None]
    assert float(x.var()) == pytest.approx(1 / (sde.nu - 1), rel=0.05)
    reverse = ReverseSDE(sde, score)
    end = integrate(reverse, EulerMaruyama(), x, uniform(200, 1.0, 0.0), noise=WhiteNoise(1)).x
    assert float(end.var()) == pytest.approx(1 / (sde.nu - 1), rel=0.06)
    # Without ∇·(g gᵀ) the reverse drift is wrong by 2x·¼·…: the variance leaves its place.
    flow = integrate(ProbabilityFlow(sde, score), Heun(), x, uniform(10, 1.0, 0.0)).x
    assert torch.allclose(flow, x, atol=1e-12)


def test_a_users_score_is_any_function() -> None:
    """N(0, I) under the DDPM: ancestral sampling of its exact score keeps mean 0, variance 1."""
    sde = VPSDE(DiscreteBeta(linear_betas(100, 1e-3, 0.2)))
    dynamics = ReverseSDE(sde, lambda x, t: -x)  # noqa: ARG005
    noise = WhiteNoise(0)
    x = noise.normal(torch.empty(20_000, 1, dtype=torch.float64))
    grid = torch.arange(100, -1, -1, dtype=torch.float64) / 100
    end = integrate(dynamics, Ancestral(), x, grid, noise=noise).x
    assert float(end.mean()) == pytest.approx(0, abs=5 / 20_000**0.5)
    # Each posterior draw with variance β̃ < β loses a little: Ho et al. call it the lower bound.
    assert float(end.var()) == pytest.approx(1, abs=0.08)


# --- the diffusion of a user's SDE ---


class Own(SDE):
    """dx = −x dt + g dw with a g of the user's."""

    def __init__(self, g) -> None:
        self.g = g

    def drift(self, x, t):  # noqa: ARG002
        return -x

    def diffusion(self, x, t):
        return self.g(x, t)


FORWARD = [EulerMaruyama(), Milstein(), SRA(), AdaptiveSDE()]
MATRIX = torch.tensor([[0.5, 0.2], [0.1, 0.4]])
ROWS = [2, 3]  # as many samples as dimensions, and more


def ways(sde: SDE, b: int) -> list:
    """Return what asks for g at b samples of two dimensions."""
    x = torch.ones(b, 2)
    t = torch.tensor(0.5, dtype=torch.float64)
    score = lambda x, t: -x  # noqa: E731, ARG005
    return [
        lambda: ReverseSDE(sde, score).drift(x, t),
        lambda: ReverseSDE(sde, score).diffusion(x, t) * torch.ones(b, 2),
        lambda: ProbabilityFlow(sde, score).velocity(x, t),
        *(
            lambda s=s: integrate(sde, s, x, uniform(3, 0.0, 1.0), noise=WhiteNoise(0)).x
            for s in FORWARD
        ),
    ]


@pytest.mark.parametrize(
    ("g", "got"),
    [
        (lambda x, t: MATRIX, r"got \(2, 2\)"),  # noqa: ARG005
        (lambda x, t: MATRIX.expand(len(x), 2, 2), r"got \(\d, 2, 2\)"),  # noqa: ARG005
        (lambda x, t: torch.tensor([0.5, 0.2]), r"got \(2,\)"),  # noqa: ARG005
        (lambda x, t: x[:, :, None], r"got \(\d, 2, 1\)"),  # noqa: ARG005
    ],
    ids=["matrix", "matrices", "one a dimension", "column vectors"],
)
@pytest.mark.parametrize("b", ROWS)
def test_a_diffusion_of_another_shape_is_refused_by_name(b, g, got) -> None:
    for ask in ways(Own(g), b):
        with pytest.raises(ValueError, match=rf"Own: diffusion\(x, t\) must have .*{got}"):
            ask()


def test_a_matrix_that_looks_like_states_is_seen_at_one_sample() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 2\) for the first sample alone; return g.exp"):
        ways(Own(lambda x, t: MATRIX), 2)[0]()  # noqa: ARG005
    with pytest.raises(TypeError, match=r"Own: diffusion\(x, t\) must be a tensor, got float"):
        ways(Own(lambda x, t: 0.5), 2)[0]()  # noqa: ARG005


@pytest.mark.parametrize("b", ROWS)
@pytest.mark.parametrize(
    "each",
    [
        lambda x, t: 0.5 + 0.1 * x.detach()[:, 0].square() + 0 * t,
        lambda x, t: 0.3 * torch.arange(1, 4)[: len(x)] + 0 * x[:, 0].detach() + 0 * t,
        lambda x, t: 0.5 * torch.ones_like(t),  # noqa: ARG005
    ],
    ids=["of the state", "of the place", "of the time"],
)
def test_one_number_a_sample_is_understood_as_a_column_is(b, each) -> None:
    """`of the place` is another number for every sample of the batch."""

    def column(x, t):
        g = each(x, t)
        return g.reshape(-1, *[1] * (x.ndim - 1)) if g.ndim else g

    for ask, same in zip(ways(Own(each), b), ways(Own(column), b), strict=True):
        assert torch.equal(ask(), same())


@pytest.mark.parametrize("b", ROWS)
def test_one_number_a_dimension_is_understood_in_the_shape_of_the_states(b) -> None:
    """ReverseSDE's drift is f − g² score with the score −x: −x + g² x."""
    g = torch.tensor([0.5, 0.2])
    sde = Own(lambda x, t: g.expand_as(x))  # noqa: ARG005
    assert torch.allclose(ways(sde, b)[0](), (g**2 - 1).expand(b, 2))
    row = Own(lambda x, t: g[None])  # noqa: ARG005
    for ask, same in zip(ways(sde, b), ways(row, b), strict=True):
        assert torch.equal(ask(), same())
