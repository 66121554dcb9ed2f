"""One base class for all that answers at (x, t), and what is refused of a user's own score."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sde_diffusion import (
    MLP,
    SDE,
    VPSDE,
    DirectScore,
    Exact,
    FunctionScore,
    Gaussian,
    GuidanceInterval,
    Guided,
    ProbabilityFlow,
    ReverseSDE,
    ScoreLike,
    ScoreModel,
    StaticThreshold,
    WhiteNoise,
    integrate,
    log_prob,
    sample,
    uniform,
)
from sde_diffusion.counting import CountedScore
from sde_diffusion.solvers import (
    DDIM,
    AdaptiveAdams,
    AdaptiveDPMSolver,
    AdaptiveSDE,
    DormandPrince,
    Euler,
    Heun,
)

VP = VPSDE()
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
T = torch.tensor(0.4, dtype=torch.float64)
NORMAL = Gaussian(torch.zeros(3), torch.eye(3)).diffused(VP)
WIDE = Gaussian(torch.zeros(3), 4 * torch.eye(3)).diffused(VP)


def states(b: int, d: int = 3) -> Tensor:
    return torch.randn(b, d, generator=torch.Generator().manual_seed(b), dtype=torch.float64)


class Told(ScoreLike):
    """The score of WIDE as a user would write it: an VP and one method."""

    sde = VP

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        variance = 4 * self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2
        return -x / variance.reshape(-1, *(1 for _ in x.shape[1:]))


SCORES: list[ScoreLike] = [
    NORMAL,
    WIDE,
    Told(),
    FunctionScore(WIDE.score, VP),
    CountedScore(WIDE),
    Guided(WIDE, NORMAL, 0.5),
    Guided(WIDE, NORMAL, GuidanceInterval(VP, 1.0)),
    StaticThreshold(WIDE, -9.0, 9.0),
    ScoreModel(MLP(3, width=8), VP).double().eval(),
    ScoreModel(MLP(3, width=8), VP, "edm").double().eval(),
]


@pytest.mark.parametrize("score", SCORES, ids=lambda score: type(score).__name__)
def test_all_forms_are_images_of_the_score(score: ScoreLike) -> None:
    x = states(5)
    alpha, sigma = VP.alpha(T), VP.sigma(T)
    found = score(x, T)
    eps, x0 = score.eps(x, T), score.denoise(x, T)
    assert torch.allclose(eps, -sigma * found, atol=1e-10)
    assert torch.allclose(alpha * x0 + sigma * eps, x, atol=1e-10)
    v = score.predict("v", x, T, CountedScore(score).coefficients.level(T))
    assert torch.allclose(v, alpha * eps - sigma * x0, atol=1e-10)
    flow = ProbabilityFlow(VP, score).velocity(x, T)
    assert torch.allclose(score.velocity(x, T), flow, atol=1e-10)


def test_a_users_score_samples_as_the_oracle_it_is() -> None:
    own = sample(Told(), DDIM(), (4, 3), steps=8, dtype=torch.float64)
    exact = sample(WIDE, DDIM(), (4, 3), steps=8, dtype=torch.float64)
    assert torch.allclose(own.x, exact.x, atol=1e-9)
    assert own.nfe == exact.nfe == 8


def test_a_function_becomes_a_score_by_its_sde() -> None:
    with pytest.raises(TypeError, match=r"or FunctionScore\(function, sde\)"):
        sample(WIDE.score, DDIM(), (4, 3), steps=4)
    found = sample(FunctionScore(WIDE.score, VP), DDIM(), (4, 3), steps=4)
    assert torch.allclose(found.x, sample(WIDE, DDIM(), (4, 3), steps=4).x, atol=1e-5)


def test_what_a_function_is_made_of_is_seen() -> None:
    network = nn.Linear(3, 3)

    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
            return self.inner(x)

    score = FunctionScore(Score(), VP)
    assert [p is q for p, q in zip(score.parameters(), network.parameters(), strict=True)]
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        integrate(ProbabilityFlow(VP, score), Euler(), states(2).float(), uniform(3))
    double = score.in_double()
    assert next(double.parameters()).dtype == torch.float64
    assert network.weight.dtype == torch.float32


# --- times ---


class Trusted(Told):
    """A score that says of itself that it takes (B,) times row by row."""

    row_by_row = True


def shared(x: Tensor, t: Tensor) -> Tensor:
    """The score of WIDE, whose time is taken for one number."""
    variance = 4 * VP.alpha(t) ** 2 + VP.sigma(t) ** 2
    return -x / variance


class Shared(ScoreLike):
    """The same mistake in a class."""

    sde = VP

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return shared(x, t)


@pytest.mark.parametrize("score", [shared, Shared(), Guided(Shared(), WIDE, 0.5)])
@pytest.mark.parametrize(
    "solve",
    [
        lambda x, flow: integrate(flow, DormandPrince(), x, uniform(1)),
        lambda x, flow: log_prob(x, flow, DormandPrince()),
        lambda x, flow: log_prob(x, flow, DormandPrince(), divergence=Exact()),
        lambda x, flow: log_prob(x, flow, DormandPrince(), divergence=Exact(mode="forward")),
        lambda x, flow: log_prob(x, flow, DormandPrince(), keep_graph=True),
    ],
    ids=["adaptive", "log_prob", "exact", "forward", "graph"],
)
def test_a_time_taken_for_one_number_is_refused_where_nothing_would_fail(score, solve) -> None:
    x = states(3)  # as many samples as dimensions
    with pytest.raises(ValueError, match=r"t must be one time for each row .* spread it: t.resh"):
        solve(x, ProbabilityFlow(VP, score))


def test_the_look_at_the_times_costs_two_evaluations_once() -> None:
    calls = 0

    def right(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return Told()(x, t)

    def solve(x: Tensor, score: Any) -> tuple[Tensor, int]:
        found = integrate(ProbabilityFlow(VP, score), DormandPrince(), x, uniform(1))
        return found.x, found.nfe

    x, trusted = solve(states(3), Trusted())
    looked, nfe = solve(states(3), right)
    assert torch.equal(x, looked)
    assert nfe == calls == trusted + 2
    assert solve(states(3), Told())[1] == trusted + 2
    assert solve(states(2), right)[1] == solve(states(2), Trusted())[1]  # fewer than dimensions


def test_a_score_of_the_rows_that_are_left_is_looked_at_once_too() -> None:
    """Samples leave an adaptive solve one by one, each time with a new score of the others."""

    class Rows(Told):
        def rows(self, index: Tensor) -> Rows:  # noqa: ARG002
            return Rows()

    x = states(6, 3) * torch.linspace(0.1, 30, 6, dtype=torch.float64)[:, None]
    own = integrate(ProbabilityFlow(VP, Rows()), DormandPrince(), x, uniform(1))
    trusted = integrate(ProbabilityFlow(VP, Trusted()), DormandPrince(), x, uniform(1))
    assert torch.equal(own.x, trusted.x)
    assert own.nfe in {trusted.nfe, trusted.nfe + 2}


def test_other_dimensions_than_the_last_are_looked_at_too() -> None:
    """With t[:, None] a time goes along the second last dimension of images."""

    def askew(x: Tensor, t: Tensor) -> Tensor:
        variance = 4 * VP.alpha(t) ** 2 + VP.sigma(t) ** 2
        return -x / (variance[:, None] if t.ndim else variance)

    x = torch.zeros(3, 1, 3, 5, dtype=torch.float64) + states(3)[:, None, :, None]
    with pytest.raises(ValueError, match="be one time for each row"):
        integrate(ProbabilityFlow(VP, askew), DormandPrince(), x, uniform(1))


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_right_function_has_the_likelihood_of_the_oracle(mode: str) -> None:
    def likelihood(score: Any) -> Any:
        flow = ProbabilityFlow(VP, score)
        return log_prob(states(3), flow, DormandPrince(), divergence=Exact(mode=mode))

    found, exact = likelihood(lambda x, t: Told()(x, t)), likelihood(Trusted())
    assert torch.equal(found.nats, exact.nats)
    assert found.nfe == exact.nfe + 2


def test_times_that_are_one_number_are_never_looked_at() -> None:
    for score in (shared, Shared()):
        found = integrate(ProbabilityFlow(VP, score), Euler(), states(3), uniform(5))
        assert found.nfe == 5


# --- results ---


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda x, t: x[:, :1], ValueError, r"result must have the shape \(3, 3\) of x, got \(3, 1\)"),  # noqa: ARG005, E501
        (lambda x, t: x[0], ValueError, r"got \(3,\); return one number for each of x"),  # noqa: ARG005
        (lambda x, t: x.sum(), ValueError, r"got \(\)"),  # noqa: ARG005
        (lambda x, t: x[:, 0], ValueError, r"got \(3,\)"),  # noqa: ARG005  (as many as dimensions)
        (lambda x, t: (None, t), TypeError, "result must be a tensor, got tuple"),  # noqa: ARG005
        (lambda x, t: [x, t], TypeError, "got list"),
        (lambda x, t: None, TypeError, "got NoneType; return it alone, as a torch.Tensor"),  # noqa: ARG005
        (lambda x, t: x.numpy(), TypeError, "got ndarray"),  # noqa: ARG005
        (lambda x, t: x.long(), TypeError, "point on cpu, as x is, got torch.int64"),  # noqa: ARG005
        (lambda x, t: x.to("meta"), TypeError, "got torch.float64 on meta"),  # noqa: ARG005
    ],
)  # fmt: skip
def test_a_result_that_is_no_score_is_refused(function, error, text) -> None:
    for dynamics in (ProbabilityFlow(VP, function), ReverseSDE(VP, function, 0.0)):
        with pytest.raises(error, match=text):
            dynamics.score(states(3), T)

    class Own(ScoreLike):
        sde = VP

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return function(x, t)

    with pytest.raises(error, match=f"Own: .*{text}"):
        sample(Own(), DDIM(), (3, 3), steps=2, dtype=torch.float64)


class Output:
    """What a network of another program may return."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


class Foreign(nn.Module):
    """A network whose output is wrapped, or of another dtype; its prediction is eps = ½x."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor, c: Tensor) -> Any:  # noqa: ARG002
        return self.wrap(0.5 * x)


WRAPS = [lambda y: (y, "more"), Output, lambda y: Output(y.double()), lambda y: y.double()]
ADAPTIVE = [
    lambda score: integrate(ProbabilityFlow(VP, score), DormandPrince(), X, uniform(1)),
    lambda score: integrate(ProbabilityFlow(VP, score), AdaptiveAdams(), X, uniform(1)),
    lambda score: integrate(ProbabilityFlow(VP, score), AdaptiveDPMSolver(), X, uniform(1)),
    lambda score: integrate(
        ReverseSDE(VP, score), AdaptiveSDE(), X, uniform(1), noise=WhiteNoise(0)
    ),
    lambda score: integrate(ProbabilityFlow(VP, score), Heun(), X, uniform(3)),
]


@pytest.mark.parametrize("wrap", WRAPS, ids=["tuple", "object", "float64 object", "float64"])
@pytest.mark.parametrize("solve", ADAPTIVE)
def test_wrapped_and_float64_outputs_are_the_plain_ones(wrap, solve) -> None:
    """½x is exact in both dtypes, so the solves are the same bit for bit."""
    plain = solve(lambda x, t: -0.5 * x)  # noqa: ARG005
    found = solve(lambda x, t: wrap(-0.5 * x))  # noqa: ARG005
    assert torch.equal(found.x, plain.x)
    assert found.x.dtype == torch.float32
    model, other = (solve(ScoreModel(Foreign(w), VP).eval()) for w in (lambda y: y, wrap))
    assert torch.equal(model.x, other.x)
    assert model.nfe == other.nfe
    direct = solve(DirectScore(Foreign(lambda y: wrap(-y)), VP).eval())
    assert torch.equal(direct.x, plain.x)


@pytest.mark.parametrize("wrap", WRAPS, ids=["tuple", "object", "float64 object", "float64"])
def test_wrapped_and_float64_outputs_have_the_plain_likelihood(wrap) -> None:
    def likelihood(score: Any) -> Tensor:
        return log_prob(X, ProbabilityFlow(VP, score), DormandPrince()).nats

    assert torch.equal(
        likelihood(lambda x, t: wrap(-0.5 * x)),  # noqa: ARG005
        likelihood(lambda x, t: -0.5 * x),  # noqa: ARG005
    )


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (lambda y: None, "TypeError: ScoreModel: result must be a tensor, got NoneType"),  # noqa: ARG005
        (lambda y: y.numpy(), "TypeError: ScoreModel: result must be a tensor, got ndarray"),
        (lambda y: y[:, :1], r"ValueError: ScoreModel: network must have 3 .* shape \(3, 1\)"),
        (lambda y: y[0], r"ValueError: ScoreModel: network must have 3 .* shape \(3,\)"),
        (lambda y: y.sum(), r"ValueError: ScoreModel: network must have 3 .* shape \(\)"),
        (lambda y: y.long(), r"TypeError: ScoreModel: result must be of floating point on cpu"),
    ],
)
def test_what_a_network_returns_is_understood_or_refused_by_name(output, says) -> None:
    model = ScoreModel(Foreign(output), VP).eval()
    with pytest.raises((TypeError, ValueError)) as error:
        sample(model, DDIM(), (3, 3), steps=2)
    assert re.match(says, f"{error.type.__name__}: {error.value}")


def test_threads_that_share_a_flow_count_their_own_evaluations() -> None:
    """And find what they find alone: each has its own table of coefficients too."""
    flow = ProbabilityFlow(VP, WIDE)
    x = states(4)
    grids = [uniform(40), uniform(60, 1.0, 0.2)]

    def both(i: int) -> tuple[Tensor, int, int]:
        barrier.wait()
        end = integrate(flow, Heun(), x, grids[i])
        nats = log_prob(x, flow, Heun(), grid=grids[i].flip(0))
        return torch.cat([end.x.flatten(), nats.nats]), end.nfe, nats.nfe

    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(both, range(2)))
    barrier = threading.Barrier(1)
    for i in range(2):
        values, nfe, of_nats = both(i)
        assert torch.equal(found[i][0], values)
        assert found[i][1:] == (nfe, of_nats) == (2 * len(grids[i]) - 2,) * 2
    assert flow.nfe == 2 * 4 * (40 + 60)


def test_an_sde_without_a_kernel_has_a_score_alone() -> None:
    class Driftless(SDE):
        def drift(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
            return torch.zeros_like(x)

        def diffusion(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
            return torch.ones_like(t)

    score = DirectScore(MLP(3, width=8), Driftless())
    with pytest.raises(TypeError, match="DirectScore: sde must be a LinearSDE, for alpha and"):
        score.eps(states(2).float(), T)


LEARNED = ScoreModel(MLP(3, width=8), VP).eval()
OF_A_TIME = {
    f"{kind}.{name}": getattr(score, name)
    for kind, score in (("exact", NORMAL), ("learned", LEARNED))
    for name in ("__call__", "eps", "denoise", "velocity")
} | {"marginal": VP.marginal, "drift": VP.drift, "diffusion": VP.diffusion}


@pytest.mark.parametrize("method", OF_A_TIME.values(), ids=OF_A_TIME)
def test_a_time_that_is_a_plain_number_is_refused_with_what_to_pass(method: Any) -> None:
    expected = method(X, torch.tensor(0.5, dtype=torch.float64))
    assert_close(remedied(method, 0.5), expected, rtol=0, atol=0)


def remedied(method: Any, t: float) -> Any:
    """Return method(X, t) with the time that the refusal of ``t`` says to pass."""
    with pytest.raises(TypeError, match=r"t must be a torch\.Tensor, got float; ") as refused:
        method(X, t)
    remedy = re.search(r"pass (.+\)), or one time", str(refused.value))
    assert remedy is not None
    return method(X, eval(remedy[1], {"torch": torch}))
