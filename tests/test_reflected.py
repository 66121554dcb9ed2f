"""Between walls: the kernel against its other series, mass, walls, training and sampling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    DirectScore,
    PerSampleNoise,
    ProbabilityFlow,
    ReflectedDiffusion,
    ReflectedPoints,
    ReflectedScoreMatching,
    ReverseSDE,
    TrainingConfig,
    WhiteNoise,
    integrate,
    polynomial,
    sample,
    train,
    uniform,
)
from sde_diffusion.solvers import Euler, EulerMaruyama, Heun, Milstein

SDE = ReflectedDiffusion()
POINTS = torch.tensor([[0.1, 0.9], [0.7, 0.2], [1.0, 0.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MODEL = ReflectedPoints(POINTS, SDE, WEIGHTS)


def time_of(v: float) -> Tensor:
    """Return the t with ∫₀ᵗ g² = v."""
    return torch.tensor(
        math.log1p(v / SDE.low**2) / (2 * math.log(SDE.high / SDE.low)), dtype=torch.float64
    )


def eigenfunctions(x: Tensor, x0: Tensor, v: float) -> tuple[Tensor, Tensor]:
    """Return the kernel and its slope in x by cosines, which rest at both ends."""
    n = torch.arange(1, 2000, dtype=torch.float64)
    decay = (-(n**2) * math.pi**2 * v / 2).exp() * (n * math.pi * x0).cos()
    value = 1 + 2 * (decay * (n * math.pi * x).cos()).sum(1)
    slope = -2 * (decay * n * math.pi * (n * math.pi * x).sin()).sum(1)
    return value, slope


@pytest.mark.parametrize("v", [1e-3, 0.03, 0.3, 2.0, 20.0])
def test_images_are_the_series_of_eigenfunctions_to_1e_10(v: float) -> None:
    t = time_of(v)
    assert float(SDE.variance(t)) == pytest.approx(v, rel=1e-12)
    line = torch.linspace(0, 1, 21, dtype=torch.float64)
    x, x0 = (part[:, None] for part in torch.cartesian_prod(line, line[::4]).unbind(1))
    value, slope = eigenfunctions(x, x0, v)
    found = SDE.log_kernel(x, x0, t).exp()
    assert float((found - value).abs().max()) < 1e-10
    # Where the density is not so small that its series is rounding.
    large = value > 1e-3
    score = SDE.kernel_score(x, x0, t)[:, 0]
    off = (score * found - slope)[large].abs().max()
    assert float(off) < 1e-10 * (1 + float(slope.abs().max()))


@pytest.mark.parametrize("v", [1e-4, 0.02, 0.5, 9.0])
def test_mass_is_kept_and_none_flows_through_the_faces(v: float) -> None:
    t = time_of(v)
    nodes = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
    weights = torch.full((4001,), 1 / 4000, dtype=torch.float64)
    weights[[0, -1]] /= 2
    for x0 in (0.0, 0.03, 0.5, 1.0):
        density = SDE.log_kernel(nodes, torch.full_like(nodes, x0), t).exp()
        assert float((weights * density).sum()) == pytest.approx(1, abs=1e-10)
        faces = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        through = SDE.kernel_score(faces, torch.full_like(faces, x0), t)[:, 0]
        through = through * SDE.log_kernel(faces, torch.full_like(faces, x0), t).exp()
        assert float(through.abs().max()) < 1e-10


def test_the_uniform_distribution_is_stationary_and_the_end() -> None:
    """∫ p_t(x | x0) dx0 = 1 for all x, and p_1 is 1 to 1e-12."""
    line = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    weights = torch.full((2001,), 1 / 2000, dtype=torch.float64)
    weights[[0, -1]] /= 2
    for x in (0.0, 0.21, 1.0):
        density = SDE.log_kernel(torch.full_like(line, x), line, time_of(0.01)).exp()
        assert float((weights * density).sum()) == pytest.approx(1, abs=1e-10)
    last = SDE.log_kernel(line, torch.full_like(line, 0.3), torch.tensor(1.0).double())
    assert float(last.abs().max()) < 1e-12
    draws = SDE.prior().sample(PerSampleNoise.numbered(0, 0, 20_000), (20_000, 1))
    assert float(draws.min()) >= 0
    assert float(draws.max()) <= 1
    steps = torch.linspace(0, 1, 20_000)
    assert float((draws[:, 0].sort().values - steps).abs().max()) < 1.63 / 20_000**0.5


def test_the_oracle_is_the_gradient_of_its_density() -> None:
    x = torch.tensor([[0.2, 0.7], [0.99, 0.02], [0.5, 0.5]], dtype=torch.float64)
    for t in (time_of(0.02), torch.stack([time_of(v) for v in (0.01, 0.1, 1.0)])):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(MODEL.log_prob(leaf, t).sum(), leaf)
        assert torch.allclose(MODEL(x, t), slope, atol=1e-9)


def test_euler_maruyama_forward_is_the_kernel_whatever_its_steps() -> None:
    """Without a drift, folding after every step is folding at the end, in distribution."""
    n = 20_000
    x0 = torch.full((n, 1), 0.93, dtype=torch.float64)
    grid = uniform(400, 0.0, 0.5)
    x = integrate(SDE, EulerMaruyama(), x0, grid, noise=WhiteNoise(0)).x
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    v = float(SDE.variance(grid[-1]))
    cosine = (math.pi * x).cos()
    exact = math.exp(-(math.pi**2) * v / 2) * math.cos(0.93 * math.pi)
    # The left end of each step is taken, g² grows: v of the steps is 1.5 % less.
    assert float(cosine.mean()) == pytest.approx(
        exact, abs=4 * float(cosine.std()) / n**0.5 + 0.004
    )


def test_reversed_it_ends_on_the_points_in_their_shares() -> None:
    n = 1500
    ends = torch.tensor([[0.1], [1.0]], dtype=torch.float64)
    shares = torch.tensor([0.65, 0.35], dtype=torch.float64)
    model = ReflectedPoints(ends, SDE, shares)
    x = SDE.prior().sample(PerSampleNoise.numbered(3, 0, n), (n, 1), dtype=torch.float64)
    seen = []
    grid = polynomial(60, 2.0, 1.0, 1e-3)
    found = integrate(
        ReverseSDE(SDE, model),
        EulerMaruyama(),
        x,
        grid,
        noise=PerSampleNoise.numbered(4, 0, n),
        callback=lambda _step, _t, state: seen.extend([float(state.min()), float(state.max())]),
    ).x
    assert min(seen) >= 0
    assert max(seen) <= 1
    distance = torch.cdist(found, ends)
    assert float((distance.min(1).values < 0.1).double().mean()) > 0.99
    first = float((distance.argmin(1) == 0).double().mean())
    assert first == pytest.approx(0.65, abs=4 * (0.65 * 0.35 / n) ** 0.5 + 0.01)


def test_the_loss_by_the_kernel_is_least_at_the_oracles_score() -> None:
    """E‖s − ∇ log p(x_t|x0)‖² = E‖s − ∇ log p_t‖² + a constant: a shift of s adds its square."""
    n = 6000
    generator = torch.Generator().manual_seed(0)
    x0 = POINTS[torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)]
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    eps = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x = SDE.perturb(x0, t, eps)
    target = SDE.kernel_score(x, x0, t)
    v = SDE.variance(t)[:, None]
    shift = 0.3 / v.sqrt() * x.cos()
    change = (v * ((MODEL(x, t) + shift - target) ** 2 - (MODEL(x, t) - target) ** 2)).sum(1)
    expected = (v * shift**2).sum(1)
    error = (change - expected).std() / n**0.5
    assert abs(float((change - expected).mean())) < 4 * float(error)


def test_training_without_simulation_nears_the_oracle(tmp_path) -> None:
    data = Dataset(DataSpec("points", (1,), None), torch.tensor([[0.2], [0.9], [0.9]]), None)
    model = DirectScore(MLP(1, width=64, depth=2, time_scale=1.0), SDE)
    config = TrainingConfig(
        steps=150, batch_size=128, learning_rate=4e-3, warmup=20, ema_decay=0.98
    )
    exact = ReflectedPoints(data.values, SDE)
    t = time_of(0.05)
    x = torch.linspace(0, 1, 41)[:, None]
    wanted = exact(x, t)

    def off() -> float:
        with torch.no_grad():
            return float(((model.eval()(x, t) - wanted) ** 2).mean() / (wanted**2).mean())

    before = off()
    for _ in train(model, data, config, out=tmp_path / "run", objective=ReflectedScoreMatching()):
        pass
    assert before > 0.9
    assert off() < 0.3


@pytest.mark.parametrize("solver", [Heun(), Euler(), Milstein()], ids=repr)
def test_solvers_whose_states_may_leave_refuse_it_by_name(solver) -> None:
    kind = ReverseSDE if isinstance(solver, Milstein) else ProbabilityFlow
    x = torch.full((2, 2), 0.5, dtype=torch.float64)
    says = f"{type(solver).__name__}: dynamics must be an SDE without walls"
    with pytest.raises(TypeError, match=says):
        integrate(kind(SDE, MODEL), solver, x, uniform(3, 1.0, 0.1), noise=WhiteNoise(0))


def test_bad_input_is_named() -> None:
    t = torch.tensor(0.5)
    net = MLP(2, width=8)
    cases = [
        (lambda: ReflectedDiffusion(low=0.0), "low must be finite and above 0"),
        (lambda: ReflectedDiffusion(low=1.0, high=0.5), "high must be above low, got 0.5"),
        (lambda: SDE.perturb(2 * POINTS, t, POINTS), "x0 must lie in [0, 1], got numbers from 0"),
        (lambda: ReflectedPoints(POINTS - 1, SDE), "points must lie in [0, 1]"),
        (lambda: ReflectedPoints(POINTS, VPSDE()), "sde must be a ReflectedDiffusion object"),
        (lambda: ReflectedPoints(POINTS, SDE, -WEIGHTS), "weights must be 3 numbers above 0"),
        (lambda: sample(MODEL, EulerMaruyama(), (2, 2)), "must be a ScoreLike of a LinearSDE"),
        (
            lambda: ReflectedScoreMatching().check_direct(DirectScore(net, VPSDE())),
            "model must be a DirectScore of a ReflectedDiffusion, got DirectScore of VPSDE",
        ),
    ]
    for call, text in cases:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert text in str(caught.value)
