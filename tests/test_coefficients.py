"""Numbers computed once for a grid are the SDE's own, and the fast paths change no result."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from sde_diffusion import (
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    DiscreteBeta,
    GaussianMixture,
    LinearSDE,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    ScoreModel,
    SubVPSDE,
    WhiteNoise,
    integrate,
    lattice,
    linear_betas,
    uniform,
)
from sde_diffusion.coefficients import Coefficients
from sde_diffusion.counting import CountedScore
from sde_diffusion.dynamics import linear
from sde_diffusion.forms import FORMS, converted
from sde_diffusion.solvers import DDPM, Ancestral, Heun

FAMILY = [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]
every_sde = pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
T = torch.tensor(0.6, dtype=torch.float64)


def exact(sde):
    means = torch.tensor([[1.0, 0.0], [-0.5, 0.5]])
    return GaussianMixture([1, 2], means, stds=[0.4, 0.3]).diffused(sde)


def states(sde) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = float(sde.sigma(T)) + 1
    return spread * torch.randn(6, 2, generator=generator, dtype=torch.float64)


class Told(nn.Module):
    """A network that gives the exact answer at one time, in any prediction but edm."""

    def __init__(self, model, prediction: str) -> None:
        super().__init__()
        self.model = model
        self.prediction = prediction

    def forward(self, x, c):
        at = Coefficients(self.model.sde).level(c.double()[0])
        score = self.model(x, c.double()[0])
        if self.prediction == "score":
            return score
        if self.prediction == "flow":
            eps, x0 = (converted(form, "score", score, x, at) for form in ("eps", "x0"))
            return eps - x0
        return converted(self.prediction, "score", score, x, at)


@every_sde
def test_levels_and_slopes_are_the_sdes_own(sde) -> None:
    grid = uniform(7, sde.horizon, 0.01)
    known = Coefficients(sde)
    asked = Coefficients(sde)
    known.tabulate(grid)
    for t in (*grid, torch.tensor(0.123, dtype=torch.float64)):
        at = known.level(t)
        slope = known.slope(t)
        assert at.alpha == pytest.approx(float(sde.alpha(t)), rel=1e-14)
        assert at.sigma == pytest.approx(float(sde.sigma(t)), rel=1e-14)
        assert at.lambda_ == pytest.approx(float(sde.lambda_(t)), rel=1e-13, abs=1e-14)
        assert slope.rate == pytest.approx(float(sde.rate(t)), rel=1e-14)
        assert slope.g2 == pytest.approx(float(sde.g(t)) ** 2, rel=1e-13)
        assert asked.level(t) == pytest.approx(at, rel=1e-13, abs=1e-14)
        assert float(known.time(at.lambda_)) == pytest.approx(float(t), rel=1e-9)
        phi = torch.tensor(at.angle, dtype=torch.float64)
        assert at.radius * phi.cos() == pytest.approx(at.alpha, rel=1e-12)
        assert at.radius * phi.sin() == pytest.approx(at.sigma, rel=1e-12)


@every_sde
@pytest.mark.parametrize("form", ["eps", "x0", "v"])
def test_all_ways_to_a_prediction_agree(sde, form) -> None:
    model = exact(sde)
    x = states(sde)
    a = sde.alpha(T)
    s = sde.sigma(T)
    truth = {"eps": model.eps(x, T), "x0": model.denoise(x, T)}
    truth["v"] = a * truth["eps"] - s * truth["x0"]
    networks = [ScoreModel(Told(model, p), sde, p) for p in FORMS]
    at = Coefficients(sde).level(T)
    for score in (model, model.score, *networks):  # by denoise, by the score alone, by predict
        counted = CountedScore.of("test", score, sde)
        assert torch.allclose(counted.predict(form, x, T, at), truth[form], rtol=1e-9, atol=1e-10)
        assert counted.calls == 1


@every_sde
@pytest.mark.parametrize("kind", [ReverseSDE, ProbabilityFlow], ids=lambda kind: kind.__name__)
def test_velocity_and_drift_along_a_grid_are_those_elsewhere(sde, kind) -> None:
    model = exact(sde)
    x = states(sde)
    networks = [ScoreModel(Told(model, p), sde, p) for p in FORMS]
    for score in (model, *networks):
        dynamics = kind(sde, score)
        push = dynamics.velocity if kind is ProbabilityFlow else dynamics.drift
        elsewhere = push(x, T)
        dynamics.coefficients.tabulate(uniform(4, 0.9, 0.1))
        assert torch.allclose(push(x, T), elsewhere, rtol=1e-10, atol=1e-11)
        assert dynamics.nfe == 2


def test_a_model_of_another_sde_is_refused_and_its_score_alone_is_not() -> None:
    """Its eps and x0 would need its own alpha and sigma; its score is, by the caller's word."""
    sde = VESDE(0.01, 5.0)
    model = exact(VPSDE())
    for kind in (ReverseSDE, ProbabilityFlow):
        with pytest.raises(ValueError, match=r"score must be of the SDE VESDE.*got one of VPSDE"):
            kind(sde, model)
    x = states(sde)
    at = Coefficients(sde).level(T)
    eps = ReverseSDE(sde, model.score).score.predict("eps", x, T, at)
    assert torch.allclose(eps, -sde.sigma(T) * model(x, T), rtol=1e-12)


def test_an_equal_sde_is_the_same_sde() -> None:
    """A learned variance was once dropped in silence where the SDE was another object."""
    betas = linear_betas(20)
    network = MLP(2, width=8, outputs=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    model = ScoreModel(network, VPSDE(DiscreteBeta(betas)), variance="learned").eval()
    again = VPSDE(DiscreteBeta(betas.clone()))
    assert again is not model.sde
    assert again == model.sde
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    solve = partial(integrate, solver=DDPM(), x=x, grid=lattice(20))
    with torch.no_grad():
        one, other, fixed = (
            solve(ReverseSDE(sde, score), noise=WhiteNoise(0)).x
            for sde, score in ((model.sde, model), (again, model), (again, model.score))
        )
    assert torch.equal(one, other)
    assert float((one - fixed).abs().max()) > 1e-3  # the score alone has β for its variance


class Learnable(LinearSDE):
    """VP with a learnable speed."""

    def __init__(self) -> None:
        self.speed = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def alpha(self, t):
        return torch.exp(-self.speed * t)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * self.speed * t))

    def rate(self, t):
        return -self.speed * torch.ones_like(t)

    def g(self, t):
        return torch.sqrt(2 * self.speed) * torch.ones_like(t)


def test_parameters_of_an_sde_keep_their_gradient_or_are_refused() -> None:
    sde = Learnable()
    x = torch.ones(2, 2, dtype=torch.float64)

    def score_of_half(x, t):  # noqa: ARG001
        return -0.5 * x

    flow = ProbabilityFlow(sde, score_of_half)

    def solve() -> torch.Tensor:
        return integrate(flow, Heun(), x, uniform(3, 0.9, 0.5), keep_graph=True).x.sum()

    (slope,) = torch.autograd.grad(solve(), sde.speed)
    with torch.no_grad():
        sde.speed += 1e-6
        up = solve()
        sde.speed -= 2e-6
        down = solve()
    assert float(slope) == pytest.approx(float((up - down) / 2e-6), rel=1e-6)
    assert abs(float(slope)) > 1e-3
    reverse = ReverseSDE(sde, score_of_half)
    with pytest.raises(TypeError, match=r"sde must have constant coefficients, got parameters"):
        integrate(reverse, Ancestral(eta=0.0), x, uniform(3, 0.9, 0.5), keep_graph=True)
    found = integrate(reverse, Ancestral(eta=0.0), x, uniform(3, 0.9, 0.5)).x
    assert not found.requires_grad


def test_a_solver_that_needs_alpha_says_so() -> None:
    class Plain(SDE):
        def drift(self, x, t):  # noqa: ARG002
            return -x

        def diffusion(self, x, t):  # noqa: ARG002
            return torch.ones((), dtype=torch.float64)

    with pytest.raises(TypeError, match=r"DDIM: dynamics must come from a LinearSDE.*got Plain"):
        linear("DDIM", ReverseSDE(Plain(), lambda x, t: -x))  # noqa: ARG005
