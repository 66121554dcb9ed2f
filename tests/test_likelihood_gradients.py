"""Gradients of the likelihood, in data and parameters, against finite differences and the score.

At t = 0 the gradient in the data is the score, whatever solver found the likelihood.
"""

from __future__ import annotations

import copy

import pytest
import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    Angle,
    Exact,
    Gaussian,
    Hutchinson,
    LinearSDE,
    LogSNR,
    ProbabilityFlow,
    ScoreModel,
    Time,
    log_prob,
    log_snr,
    uniform,
)
from sde_diffusion.sde import IsotropicNormal
from sde_diffusion.solvers import (
    AdamsBashforth,
    DormandPrince,
    Heun,
    RungeKutta4,
    TorchDiffEq,
    TorchDiffEqAdjoint,
)

ENDS = torch.tensor([1e-3, 1.0], dtype=torch.float64)
FINE = uniform(24, 1e-3, 1.0)


def network() -> ScoreModel:
    net = MLP(2, width=8, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in net.parameters():  # the last layer starts from 0
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).double()
    return ScoreModel(net, VPSDE(), prediction="edm").eval()


def fixed() -> dict[str, object]:
    return {"heun": Heun(), "rk4": RungeKutta4(), "ab3": AdamsBashforth(3)}


def adaptive(model: ScoreModel) -> dict[str, object]:
    return {
        "dormand-prince": DormandPrince(1e-6, 1e-6),
        "dopri5": TorchDiffEq("dopri5", 1e-6, 1e-6),
        "adjoint": TorchDiffEqAdjoint("dopri5", 1e-5, 1e-5, tuple(model.parameters())),
    }


X = torch.tensor([[0.3, -0.4], [0.1, 0.8]], dtype=torch.float64)
every_divergence = pytest.mark.parametrize(
    "divergence", [Exact(), Hutchinson(2, seed=3)], ids=["exact", "hutchinson"]
)


def total(model, solver, grid, x: torch.Tensor, divergence, *, graph: bool) -> torch.Tensor:
    flow = ProbabilityFlow(model.sde, model)
    found = log_prob(x, flow, solver, grid=grid, divergence=divergence, keep_graph=graph)
    assert found.nats.requires_grad == graph
    return found.nats.sum()


def slopes(model, solver, grid, divergence) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the gradient in the data and the parameters, and a random direction in them."""
    x = X.clone().requires_grad_()
    generator = torch.Generator().manual_seed(4)
    at = [x, *model.parameters()]
    gradient = torch.autograd.grad(total(model, solver, grid, x, divergence, graph=True), at)
    along = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in at]
    return list(gradient), along


@every_divergence
@pytest.mark.parametrize("name", fixed())
def test_gradients_are_those_of_finite_differences(name: str, divergence) -> None:
    model = network()
    h = 1e-5
    solver = fixed()[name]
    gradient, along = slopes(model, solver, FINE, divergence)

    def value(dx: float, dp: float) -> float:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, a in zip(moved.parameters(), along[1:], strict=True):
                p += dp * a
        return float(total(moved, solver, FINE, X + dx * along[0], divergence, graph=False))

    found = [float((g * a).sum()) for g, a in zip(gradient, along, strict=True)]
    in_data = (value(h, 0) - value(-h, 0)) / (2 * h)
    in_parameters = (value(0, h) - value(0, -h)) / (2 * h)
    assert in_data == pytest.approx(found[0], rel=1e-6, abs=1e-6)
    assert in_parameters == pytest.approx(sum(found[1:]), rel=1e-6, abs=1e-6)


@pytest.fixture(scope="module")
def many_steps() -> list[torch.Tensor]:
    grid = log_snr(VPSDE(), 320).flip(0)
    return slopes(network(), RungeKutta4(), grid, Hutchinson(seed=3))[0]


@pytest.mark.parametrize("name", ["dormand-prince", "dopri5", "adjoint"])
def test_adaptive_gradients_are_those_of_many_fixed_steps(name: str, many_steps) -> None:
    model = network()
    gradient, _ = slopes(model, adaptive(model)[name], ENDS, Hutchinson(seed=3))
    for found, wanted in zip(gradient, many_steps, strict=True):
        assert float((found - wanted).abs().max()) < 3e-3 * (1 + float(wanted.abs().max()))


@pytest.mark.parametrize("variable", [Time, Angle, LogSNR])
def test_the_gradient_in_the_data_is_the_score(variable) -> None:
    root = torch.tensor([[1.0, 0.0], [0.6, 0.5]], dtype=torch.float64)
    data = Gaussian(torch.tensor([0.2, -0.1]), root @ root.T)
    model = data.diffused(VPSDE())
    x = X.clone().requires_grad_()
    ends = torch.tensor([1e-6, 1.0], dtype=torch.float64)
    found = log_prob(
        x,
        ProbabilityFlow(model.sde, model),
        DormandPrince(1e-9, 1e-9),
        grid=ends,
        variable=variable,
        divergence=Exact(),
        prior=model.marginal(ends[1]),
        keep_graph=True,
    )
    score = torch.autograd.grad(found.nats.sum(), x)[0]
    assert torch.allclose(score, model(X, ends[0]), atol=1e-6)


class LearnedVP(LinearSDE):
    """β(t) = high t."""

    def __init__(self, high: torch.Tensor) -> None:
        self.high = high

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.exp(-0.25 * self.high * t**2)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(-torch.expm1(-0.5 * self.high * t**2))


def test_an_sde_that_learns_gets_its_gradient() -> None:
    """d log p/d high for the score of N(0, ¼), by central differences."""

    def value(high: torch.Tensor) -> torch.Tensor:
        sde = LearnedVP(high)
        flow = ProbabilityFlow(sde, lambda x, t: -x / (1 - 0.75 * sde.alpha(t) ** 2))
        found = log_prob(
            X[:, :1],
            flow,
            RungeKutta4(),
            grid=FINE,
            divergence=Exact(),
            variable=Time,
            prior=IsotropicNormal(1.0),
            keep_graph=True,
        )
        return found.nats.sum()

    high = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    slope = float(torch.autograd.grad(value(high), high)[0])
    with torch.no_grad():
        steps = [float(value(torch.tensor(4.0 + d, dtype=torch.float64))) for d in (1e-4, -1e-4)]
    assert slope == pytest.approx((steps[0] - steps[1]) / 2e-4, rel=1e-5)


def test_an_sde_that_learns_has_no_prior_of_its_own() -> None:
    sde = LearnedVP(torch.tensor(4.0, dtype=torch.float64, requires_grad=True))
    flow = ProbabilityFlow(sde, lambda x, t: -x)  # noqa: ARG005
    with pytest.raises(ValueError, match=r"prior must be given for an SDE that learns, got none"):
        log_prob(X, flow, Heun(), grid=FINE, keep_graph=True)
