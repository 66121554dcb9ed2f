"""The loop: counting, callbacks, refusals; every solver on every SDE and shape; batch splits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sde_diffusion import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    BrownianPath,
    CosineBeta,
    Gaussian,
    GaussianMixture,
    PerSampleNoise,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    ScoreModel,
    Solution,
    SubVPSDE,
    WhiteNoise,
    integrate,
    karras,
    sample,
    uniform,
)
from sde_diffusion.integration import dynamics_for
from sde_diffusion.sampling.costs import cost
from sde_diffusion.solvers import (
    AdamsBashforth,
    AdaptiveAdams,
    Ancestral,
    DormandPrince,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    SongLangevin,
    TorchDiffEq,
    TorchDiffEqAdjoint,
    catalogue,
)
from sde_diffusion.solvers._shared.torchdiffeq import ORDERS

CERTIFIED = catalogue.instances()
# In these instances adaptive solvers take the steps of the grid; here they choose their own.
ADAPTIVE = {
    f"{kind.__name__}()": kind()
    for kind in dict.fromkeys(map(type, CERTIFIED.values()))
    if kind().adaptive and kind not in (TorchDiffEq, TorchDiffEqAdjoint)
}
SOLVERS = {
    **{k: s for k, s in CERTIFIED.items() if not isinstance(s, TorchDiffEq)},
    **ADAPTIVE,
    "SongLangevin": PredictorCorrector(Ancestral(), SongLangevin()),
}
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
FAMILY = [VPSDE(), VPSDE(CosineBeta()), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]
SHAPES = [(2,), (3, 4, 5)]


def name(value: object) -> str:
    return repr(value)[:60]


def data(event: tuple[int, ...]) -> GaussianMixture:
    means = torch.stack([torch.full(event, 0.6), torch.full(event, -0.4)])
    return GaussianMixture([1, 1], means, stds=[0.2, 0.3])


@pytest.mark.parametrize(("sde", "event"), list(zip(FAMILY, 3 * SHAPES, strict=True)), ids=name)
@every_solver
def test_every_solver_samples_every_sde_and_shape(solver, sde, event) -> None:
    """Samples have the mixture's mean (.1) and mean square (.325), within six standard errors."""
    model = data(event).diffused(sde)
    n = 256
    d = torch.Size(event).numel()
    x = sample(model, solver, (n, *event), grid=karras(sde, 60), seed=1, dtype=torch.float64).x
    # Coordinates of a sample share their component: one sample, one draw of it.
    assert float(x.mean()) == pytest.approx(0.1, abs=6 * 0.56 / n**0.5)
    assert float(x.square().mean()) == pytest.approx(0.325, abs=6 * (0.3 / (n * d) ** 0.5 + 0.01))


@pytest.mark.parametrize("sde", FAMILY, ids=name)
@pytest.mark.parametrize("method", ORDERS)
def test_every_torchdiffeq_method_follows_the_flow_or_refuses(method, sde) -> None:
    model = Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([[0.3, 0.1], [0.1, 0.2]]))
    model = model.diffused(sde)
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    t, s = (sde.time(torch.tensor(v, dtype=torch.float64)) for v in (-0.5, 0.5))
    grid = uniform(40 if method != "euler" else 2000, float(t), float(s))
    found = integrate(dynamics_for(Heun(), sde, model), TorchDiffEq(method), x, grid).x
    assert torch.allclose(found, model.flow(x, grid[0], grid[-1]), rtol=3e-3, atol=1e-3)
    if "adams" in method:
        with pytest.raises(ValueError, match=f"grid must be uniform for {method}, got steps from"):
            integrate(dynamics_for(Heun(), sde, model), TorchDiffEq(method), x, karras(sde, 10))


@pytest.mark.parametrize("event", SHAPES, ids=str)
@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "SongLangevin"])
def test_a_batch_may_be_split_in_any_way_bit_for_bit(name, event) -> None:
    solver = SOLVERS[name]
    model = data(event).diffused(VPSDE())
    whole = sample(model, solver, (7, *event), steps=10, seed=3)
    parts = [
        sample(model, solver, (n, *event), steps=10, seed=3, first=first).x
        for first, n in ((0, 1), (1, 4), (5, 2))
    ]
    assert torch.equal(whole.x, torch.cat(parts))


def test_song_langevin_does_depend_on_the_batch() -> None:
    model = data((2,)).diffused(VPSDE())
    solver = PredictorCorrector(Ancestral(), SongLangevin())
    whole = sample(model, solver, (4, 2), steps=10).x
    assert not torch.equal(whole[:2], sample(model, solver, (2, 2), steps=10).x)


def test_dormand_prince_takes_the_same_steps_alone_and_in_a_batch() -> None:
    model = data((2,)).diffused(VPSDE())
    solver = DormandPrince(1e-6, 1e-6)
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def solve(rows: torch.Tensor) -> Solution:
        return integrate(ProbabilityFlow(model.sde, model), solver, rows, uniform(1, 1.0, 1e-3))

    whole = solve(x)
    alone = [solve(row[None]) for row in x]
    for i, found in enumerate(alone):
        assert torch.equal(found.x, whole.x[i : i + 1])
        assert torch.equal(found.lost, whole.lost[i : i + 1])
    calls = {found.nfe for found in alone}
    assert len(calls) > 1  # samples do differ in their steps
    assert whole.nfe == max(calls)  # all step in one call, and those that arrive leave


@settings(max_examples=15)
@given(n=st.integers(1, 12), seed=st.integers(0, 5))
def test_forward_then_backward_flow_is_the_identity(n: int, seed: int) -> None:
    model = data((2,)).diffused(VPSDE())
    solver = DormandPrince(1e-10, 1e-10)
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    flow = ProbabilityFlow(model.sde, model)
    noise = integrate(flow, solver, x, uniform(1, 0.01, 1.0)).x
    assert torch.allclose(integrate(flow, solver, noise, uniform(1, 1.0, 0.01)).x, x, atol=1e-7)


@pytest.mark.parametrize("solver", [EulerMaruyama(), ReverseDiffusion()], ids=name)
def test_noise_scale_0_is_the_flow_of_the_deterministic_twin(solver) -> None:
    model = data((2,)).diffused(VPSDE())
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = uniform(2000, 0.9, 0.1)
    still = ReverseSDE(model.sde, model, noise_scale=0.0)
    flow = integrate(ProbabilityFlow(model.sde, model), DormandPrince(), x, grid[[0, -1]]).x
    found = integrate(still, solver, x, grid, noise=WhiteNoise(0)).x
    assert torch.allclose(found, flow, atol=2e-2)
    euler = integrate(ProbabilityFlow(model.sde, model), Euler(), x, grid).x
    assert isinstance(solver, ReverseDiffusion) or torch.allclose(found, euler, atol=1e-12)


@every_solver
def test_nfe_is_what_an_independent_counter_sees(solver) -> None:
    model = data((4,)).diffused(VPSDE())
    calls = []

    def score(x, t):
        calls.append(len(x))
        return model(x, t)

    dynamics = dynamics_for(solver, model.sde, score)
    x = torch.ones(3, 4, dtype=torch.float64)  # never as many samples as dimensions
    found = integrate(dynamics, solver, x, uniform(8), noise=WhiteNoise(0))
    assert found.nfe == len(calls) == dynamics.nfe
    assert found.steps == 8
    again = integrate(dynamics, solver, x, uniform(8), noise=WhiteNoise(0))
    assert (again.nfe, dynamics.nfe) == (found.nfe, 2 * found.nfe)


def test_callback_sees_every_step_in_order() -> None:
    model = data((2,)).diffused(VPSDE())
    seen = []
    grid = uniform(4)
    result = sample(model, Heun(), (2, 2), grid=grid, callback=lambda *step: seen.append(step))
    assert [i for i, _, _ in seen] == [1, 2, 3, 4]
    assert [t for _, t, _ in seen] == grid[1:].tolist()
    assert torch.equal(seen[-1][2], result.x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@every_solver
def test_states_keep_their_dtype(solver, dtype) -> None:
    model = data((2,)).diffused(VPSDE())
    if dtype == torch.bfloat16 and isinstance(solver, (DormandPrince, AdaptiveAdams)):
        solver = replace(solver, rtol=0.05, atol=0.05)  # 1e-5 would be below its rounding
    assert sample(model, solver, (4, 2), steps=9, dtype=dtype).x.dtype == dtype
    if dtype != torch.bfloat16 and not cost(solver, model.sde, uniform(5)).draws:
        # Drawing solvers differ by the rounding of a path; these by nothing else.
        x = torch.ones(1, 2, dtype=dtype)
        dynamics = dynamics_for(solver, model.sde, model)
        low = integrate(dynamics, solver, x, uniform(5)).x
        high = integrate(dynamics, solver, x.double(), uniform(5)).x
        assert torch.allclose(low.double(), high, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE(), RectifiedFlow()], ids=name)
def test_the_default_grid_suits_the_sde(sde) -> None:
    """Twenty Heun steps reproduce the ring's modes, whose standard deviation is .1."""
    ring = GaussianMixture.ring(8)
    x = sample(ring.diffused(sde), Heun(), (4000, 2), dtype=torch.float64).x
    means = ring.means
    spread = (x[:, None] - means).square().sum(2).min(1).values.mean().div(2).sqrt()
    assert float(spread) == pytest.approx(0.1, rel=0.25)


def test_gradients_flow_through_an_adaptive_solve() -> None:
    model = Gaussian(torch.zeros(2), torch.diag(torch.tensor([0.5, 2.0]))).diffused(VPSDE())
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64, requires_grad=True)
    grid = uniform(3, 0.9, 0.1)
    flow = ProbabilityFlow(model.sde, model)
    end = integrate(flow, DormandPrince(1e-9, 1e-9), x, grid).x
    # The exact map is linear with slopes √(v_s/v_t).
    exact = model.flow(torch.eye(2, dtype=torch.float64), grid[0], grid[-1]).diagonal()
    found = torch.autograd.grad(end.sum(), x)[0]
    assert torch.allclose(found, exact.expand(2, 2), atol=1e-6)


class Geometric(SDE):
    """A user's own non-linear SDE, geometric Brownian motion dx = μx dt + νx dw."""

    def drift(self, x, t):  # noqa: ARG002
        return 0.5 * x

    def diffusion(self, x, t):  # noqa: ARG002
        return 0.3 * x


def test_euler_maruyama_converges_on_a_users_sde() -> None:
    """Strong order ½ for multiplicative noise, against the closed form on the same path."""
    x = torch.ones(4000, 1, dtype=torch.float64)
    path = BrownianPath(2)
    exact = torch.exp((0.5 - 0.5 * 0.3**2) + 0.3 * path.at(x, 1.0))

    def error(n: int) -> float:
        found = integrate(Geometric(), EulerMaruyama(), x, uniform(n, 0.0, 1.0), noise=path).x
        return float((found - exact).square().mean().sqrt())

    ratio = error(64) / error(256)
    assert 4**0.5 * 0.9 < ratio < 4 * 1.1  # between strong orders ½ and 1: drift error helps
    assert error(256) < 0.01


class Pearson(SDE):
    """dx = −θx dt + √(2θ(1 + x²)/ν) dw with a stationary Student-t law: reversible in time."""

    theta = 1.0
    nu = 8.0

    def drift(self, x, t):  # noqa: ARG002
        return -self.theta * x

    def diffusion(self, x, t):  # noqa: ARG002
        return (2 * self.theta / self.nu * (1 + x**2)).sqrt()


def test_reverse_of_a_stationary_sde_with_state_dependent_noise_is_the_sde_itself() -> None:
    """In equilibrium the reverse drift, seen in reversed time, is the forward drift.

    The stationary density of Pearson's SDE is p ∝ (1 + x²)^{−ν/2 − 1}: g² log p' + (g²)' = 2f.
    Dropping ∇·(g gᵀ) from the reverse drift breaks the identity.
    """
    sde = Pearson()

    def score(x, t):  # noqa: ARG001
        return -(sde.nu + 2) * x / (1 + x**2)

    x = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    t = torch.tensor(0.5, dtype=torch.float64)
    assert torch.allclose(-ReverseSDE(sde, score).drift(x, t), sde.drift(x, t), atol=1e-12)
    # And the flow of a stationary law stands still.
    assert torch.allclose(ProbabilityFlow(sde, score).velocity(x, t), 0 * x, atol=1e-12)


ZERO = lambda x, t: -x  # noqa: E731, ARG005  (the score of N(0, I))
VP_MODEL = data((2,)).diffused(VPSDE())
X = torch.ones(2, 2)


class Nothing(torch.nn.Module):
    def forward(self, x, c):  # noqa: ARG002
        return torch.full_like(x, torch.nan)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: integrate(ReverseSDE(VPSDE(), ZERO), Heun(), X, uniform(5)),
            TypeError,
            r"Heun: dynamics must be of the kind ODE, got ReverseSDE; pass ProbabilityFlow",
        ),
        (
            lambda: integrate(ProbabilityFlow(VPSDE(), ZERO), EulerMaruyama(), X, uniform(5)),
            TypeError,
            r"EulerMaruyama: dynamics must be of the kind SDE, got ProbabilityFlow",
        ),
        (
            lambda: integrate(ReverseSDE(Geometric(), ZERO), Ancestral(), X, uniform(5)),
            TypeError,
            r"come from a LinearSDE, for alpha and sigma, got Geometric; use EulerMaruyama",
        ),
        (
            lambda: integrate(ReverseSDE(VPSDE(), ZERO), EulerMaruyama(), X, uniform(5)),
            TypeError,
            r"noise must be given for a solver that draws, got none; pass noise=WhiteNoise",
        ),
        (
            lambda: integrate(ProbabilityFlow(VPSDE(), ZERO), Heun, X, uniform(5)),
            TypeError,
            r"be a solver object, got Heun; pass for example Heun\(\), with its brackets",
        ),
        (
            lambda: integrate(ReverseSDE(VPSDE(), ZERO, 0.5), Ancestral(), X, uniform(5)),
            ValueError,
            r"noise_scale must be 1, got 0.5; set the noise by eta",
        ),
        (
            lambda: integrate(ReverseSDE(VPSDE(), ZERO), Ancestral(), X, uniform(5, 0.1, 1.0)),
            ValueError,
            r"grid must run from noise",
        ),
        (
            lambda: integrate(ReverseSDE(VPSDE(), ZERO), EulerMaruyama(), X, uniform(5).flip(0)),
            ValueError,
            r"grid must run from noise \(t near 1\) to data, got 0.001 … 1",
        ),
        (
            lambda: integrate(VPSDE(), EulerMaruyama(), X, uniform(5), noise=WhiteNoise(0)),
            ValueError,
            r"run forward for a forward SDE, got 1 … 0.001; pass ReverseSDE",
        ),
        (
            lambda: integrate(
                ProbabilityFlow(VPSDE(), ScoreModel(Nothing(), VPSDE())), Heun(), X, uniform(5)
            ),
            ValueError,
            r"integrate: model must be in evaluation mode",
        ),
        (
            lambda: integrate(ProbabilityFlow(RectifiedFlow(), ZERO), Heun(), X, uniform(5)),
            ValueError,
            r"score: t must have alpha above 0 where the model gives score",
        ),
        (
            lambda: integrate(ProbabilityFlow(VPSDE(), ZERO), Heun(), X.long(), uniform(5)),
            TypeError,
            r"x must have a floating-point dtype, got torch.int64",
        ),
        (
            lambda: integrate(ProbabilityFlow(VPSDE(), ZERO), Heun(), X[0], uniform(5)),
            ValueError,
            r"x must have shape \(B, \*event\)",
        ),
        (
            lambda: integrate(ProbabilityFlow(VPSDE(), ZERO), Heun(), [1.0], uniform(5)),
            TypeError,
            r"x must be a torch.Tensor, got list",
        ),
        (
            lambda: sample(ScoreModel(Nothing(), VPSDE()).eval(), Heun(), (2, 2), steps=5),
            FloatingPointError,
            r"stay finite, got NaN or infinity at step 1 \(t = 0.650159\)",
        ),
        (
            lambda: sample(ScoreModel(Nothing(), VPSDE()).eval(), DormandPrince(), (2, 2)),
            FloatingPointError,
            r"velocity must be finite and smooth, got a step below 1e-14 at t = 1",
        ),
        (
            lambda: sample(ScoreModel(Nothing(), VPSDE()).eval(), TorchDiffEq(), (2, 2)),
            FloatingPointError,
            r"TorchDiffEq: velocity must be finite and smooth, got underflow in dt",
        ),
        (
            lambda: sample(ScoreModel(Nothing(), VPSDE()), Heun(), (2, 2)),
            ValueError,
            r"be in evaluation mode, got training mode; call model.eval\(\) first",
        ),
        (
            lambda: sample(3, Heun(), (2, 2)),
            TypeError,
            r"be a ScoreLike of a LinearSDE or a MatrixLinearSDE, got int",
        ),
        (lambda: sample(VP_MODEL, Heun(), (0, 2)), ValueError, "shape must be at least 1, got 0"),
        (lambda: sample(VP_MODEL, Heun(), (2, 2), steps=0), ValueError, "steps must be at least"),
        (
            lambda: sample(VP_MODEL, Heun(), (2, 2), steps=5, grid=uniform(5)),
            ValueError,
            "not be given together",
        ),
        (lambda: sample(VP_MODEL, Heun(), (2, 2), seed=-1), ValueError, "seed must be at least 0"),
        (lambda: Ancestral(eta=-0.1), ValueError, "eta must be finite and at least 0, got -0.1"),
        (lambda: Ancestral(eta=1.1), ValueError, "eta must be at most 1"),
        (lambda: AdamsBashforth(5), ValueError, "order must be 1, 2, 3 or 4, got 5"),
        (lambda: DormandPrince(rtol=0.0), ValueError, "rtol must be above 0, got 0.0"),
        (lambda: TorchDiffEq("rk5"), ValueError, "method must be one of euler, .* got rk5"),
        (lambda: TorchDiffEq(atol=-1.0), ValueError, "atol must be above 0"),
        (lambda: Langevin(snr=0.0), ValueError, "Langevin: snr must be finite and above 0"),
        (lambda: SongLangevin(count=0), ValueError, "count must be at least 1"),
        (
            lambda: PredictorCorrector(Heun(), Langevin()),
            TypeError,
            "predictor must be a one-step SDE solver, got Heun",
        ),
        (
            lambda: PredictorCorrector(Ancestral(), Ancestral()),
            TypeError,
            "corrector must be a Corrector, got Ancestral",
        ),
        (lambda: ReverseSDE(VPSDE(), ZERO, -1.0), ValueError, "noise_scale must be finite and at"),
        (lambda: ReverseSDE(3, ZERO), TypeError, "sde must be an SDE, got int"),
        (lambda: ProbabilityFlow(VPSDE(), 3), TypeError, r"callable \(x, t\) -> score, got int"),
        (
            lambda: PerSampleNoise([0]).increment(X, *torch.tensor([1.0, 0.5])),
            ValueError,
            "one row for each of the 1 seeds",
        ),
    ],
)
def test_mistakes_end_in_one_clear_sentence(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
