"""What a solve does not let its callback, a solver's step or a trained score do to it."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    VPSDE,
    Exact,
    Gaussian,
    GaussianMixture,
    ProbabilityFlow,
    ReverseSDE,
    ScoreModel,
    WhiteNoise,
    integrate,
    log_prob,
    sample,
    uniform,
)
from sde_diffusion.dynamics import ODE
from sde_diffusion.solver import OneStep, Solver
from sde_diffusion.solvers import (
    Ancestral,
    DormandPrince,
    Euler,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    SongLangevin,
    catalogue,
)

VP = VPSDE()
MODEL = GaussianMixture.ring(8).diffused(VP)
MILD = Gaussian(torch.zeros(2), 0.25 * torch.eye(2)).diffused(VP)  # implicit methods converge
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
CERTIFIED = catalogue.instances()
SOLVERS = {
    **CERTIFIED,
    **{f"{k.__name__}()": k() for k in dict.fromkeys(map(type, CERTIFIED.values()))},
    "SongLangevin": PredictorCorrector(Ancestral(), SongLangevin()),
}


# --- callbacks ---


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_what_a_callback_changes_in_place_changes_no_sample(solver) -> None:
    grid = uniform(8, 1.0, 0.2)
    times = grid.clone()
    given = {"grid": grid, "seed": 1, "dtype": torch.float64}
    plain = sample(MILD, solver, (3, 2), **given)
    seen = []

    def change(k: int, t: Tensor, x: Tensor) -> None:
        seen.append((k, float(t), x.clone()))
        x.add_(2)
        t.zero_()

    found = sample(MILD, solver, (3, 2), **given, callback=change)
    assert torch.equal(found.x, plain.x)
    assert torch.equal(grid, times)
    assert [(k, t) for k, t, _ in seen] == list(enumerate(times.tolist()))[1:]
    assert torch.equal(seen[-1][2], plain.x)


# --- steps ---


class Wrong(OneStep[ODE]):
    """Euler's method with a slip at its end."""

    dynamics = ODE

    def __init__(self, slip) -> None:
        self.slip = slip

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        return self.slip(x + (s - t) * dynamics.velocity(x, t))


@pytest.mark.parametrize(
    ("slip", "error", "got"),
    [
        (lambda x: x[:-1], ValueError, r"got \(7, 2\) and torch.float32"),
        (lambda x: x[:, :1], ValueError, r"got \(8, 1\) and torch.float32"),
        (lambda x: x.sum(), ValueError, r"got \(\) and torch.float32"),
        (lambda x: x[None], ValueError, r"got \(1, 8, 2\) and torch.float32"),
        (lambda x: x.double(), ValueError, r"got \(8, 2\) and torch.float64"),
        (lambda x: None, TypeError, "tensor after a step, got NoneType; return the state at s"),  # noqa: ARG005
        (lambda x: (x, 1), TypeError, "tensor after a step, got tuple"),
    ],
)
def test_a_step_to_another_form_is_refused_with_its_class(slip, error, got) -> None:
    with pytest.raises(error, match=f"Wrong: state must .*{got}"):
        integrate(ProbabilityFlow(VP, MODEL), Wrong(slip), X, uniform(4))


@pytest.mark.parametrize(("states", "got"), [(0, "got none"), (5, "got more")])
def test_more_states_than_steps_and_none_are_refused(states, got) -> None:
    class Some(Solver[ODE]):
        dynamics = ODE

        def steps(self, dynamics, x, grid, noise):  # noqa: ARG002
            for _ in range(states):
                yield x

    says = f"Some: steps must yield a state after each of the 4 steps, .*{got}; yield x after each"
    with pytest.raises(ValueError, match=says):
        integrate(ProbabilityFlow(VP, MODEL), Some(), X, uniform(4), callback=lambda *_: None)


# --- divergence ---


@pytest.mark.parametrize(
    ("solver", "where"),
    [(Euler(), "7 (t = 0.3007)"), (Heun(), "6 (t = 0.4006)"), (EulerMaruyama(), "7 (t = 0.3007)")],
)
def test_a_divergence_says_how_many_samples_and_which(solver, where) -> None:
    """The score is infinite from t = .4006 on, which Heun asks for a step earlier."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((t < 0.5) & (x[:, 1:] == 0), torch.inf, 0 * x)

    x = X.clone()
    x[2, 1] = x[5, 1] = 0.0
    flow = ProbabilityFlow(VP, score)
    dynamics = flow if solver.dynamics is ODE else ReverseSDE(VP, score, 0.0)
    says = re.escape(f"at step {where} in 2 of 8 samples (2, 5); use more steps")
    with pytest.raises(FloatingPointError, match=says):
        integrate(dynamics, solver, x, uniform(10, 1.0, 1e-3), noise=WhiteNoise(0))


def test_many_samples_are_named_by_the_first_five() -> None:
    score = lambda x, t: x * torch.nan  # noqa: E731, ARG005
    with pytest.raises(FloatingPointError, match=r"in 8 of 8 samples \(0, 1, 2, 3, 4, …\)"):
        integrate(ProbabilityFlow(VP, score), Heun(), X, uniform(3))


# --- graphs ---


class Scaled(nn.Module):
    """eps = sigma w x, so that the score is −w x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return VP.sigma(c)[:, None] * self.weight * x


def saved(**given) -> int:
    """Return how many tensors a solve keeps for a backward pass."""
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return tensor

    model = ScoreModel(Scaled(), VP).eval()
    x = given.pop("x", X.double())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        integrate(ProbabilityFlow(VP, model), Heun(), x, uniform(10), **given)
    return count


def test_a_trained_score_leaves_no_graph_unless_it_is_asked_for() -> None:
    assert saved() == 0
    assert saved(keep_graph=True) > 10
    assert saved(x=X.double().requires_grad_()) > 10
    with torch.no_grad():
        assert saved(keep_graph=True) == 0


def test_keep_graph_gives_the_gradient_in_the_parameters() -> None:
    """dx/dt = −½β(1 − w)x, so that d log x_s/dw = −½ ∫_s^t β."""
    model = ScoreModel(Scaled(), VP).eval()
    flow = ProbabilityFlow(VP, model)
    grid = uniform(1, 0.9, 0.1)
    solver = DormandPrince(1e-10, 1e-10)
    assert not integrate(flow, solver, X.double(), grid).x.requires_grad
    end = integrate(flow, solver, X.double(), grid, keep_graph=True).x
    (slope,) = torch.autograd.grad(end.sum(), model.network.weight)
    total = float(end.detach().sum())
    between = float(VP.beta.integral(grid[0]) - VP.beta.integral(grid[1]))
    assert float(slope) == pytest.approx(-0.5 * between * total, rel=1e-7)


# --- half precision ---


def test_likelihoods_of_half_precision_data_are_summed_in_float32() -> None:
    """N(0, ¼ I) of 64 dimensions: around 70 nats bfloat16 has steps of a half."""
    data = Gaussian(torch.zeros(64), 0.25 * torch.eye(64))
    model = data.diffused(VP)
    generator = torch.Generator().manual_seed(0)
    x = (0.5 * torch.randn(16, 64, generator=generator)).bfloat16()
    flow = ProbabilityFlow(VP, model)
    found = log_prob(x, flow, Heun(), grid=uniform(200, 1e-3, 1.0), divergence=Exact())
    assert found.nats.dtype == found.bits_per_dim.dtype == torch.float32
    assert {term.dtype for term in found.terms.values()} == {torch.float32}
    assert found.latent.dtype == torch.bfloat16
    exact = data.log_prob(x.double())
    assert float((found.nats - exact).abs().max()) < 0.15
    bits = -exact / (64 * math.log(2))
    assert torch.allclose(found.bits_per_dim.double(), bits, atol=0.15 / (64 * math.log(2)))


def test_a_priors_density_of_half_precision_states_is_summed_in_float32() -> None:
    x = torch.ones(2, 100, dtype=torch.bfloat16) * 1.0078125  # 1 + 2⁻⁷, in bfloat16
    exact = -50 * (1.0078125**2 + math.log(2 * math.pi))
    found = VP.prior().log_prob(x)
    assert found.tolist() == pytest.approx([exact] * 2, rel=1e-6)
    assert re.match("torch.float32", str(found.dtype))
