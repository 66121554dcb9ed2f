"""Matrix-linear SDEs: their moments, exact scores, training without simulation, and solvers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor

from sde_diffusion import (
    MLP,
    SDE,
    VPSDE,
    BlockMatrix,
    CriticallyDampedLangevin,
    Dataset,
    DataSpec,
    Exact,
    Gaussian,
    GaussianMixture,
    HybridScoreMatching,
    LinearBeta,
    MatrixLinearSDE,
    MatrixScoreModel,
    OrnsteinUhlenbeck,
    PerSampleNoise,
    ProbabilityFlow,
    ReverseSDE,
    ScoreModel,
    TrainingConfig,
    WhiteNoise,
    elbo,
    hidden_parts_bound,
    hybrid_loss,
    integrate,
    load,
    log_prob,
    sample,
    save_model,
    train,
    uniform,
)
from sde_diffusion.diagnostics.orders import certify
from sde_diffusion.solvers import (
    SRA,
    DormandPrince,
    EulerMaruyama,
    Heun,
    Milstein,
    catalogue,
)

MIXTURE = GaussianMixture([0.4, 0.6], torch.tensor([[-0.8], [0.7]]), stds=[0.5, 0.3])
CLD = CriticallyDampedLangevin()
PAIR = OrnsteinUhlenbeck(((-1.0, 0.5), (0.3, -2.0)), ((1.0, 0.3), (0.3, 0.5)))
FAMILY = {
    "cld": CLD,
    "cld of another schedule": CriticallyDampedLangevin(LinearBeta(0.1, 8.0), 2.0, 1.0),
    "pair": PAIR,
    "three with noise in one": OrnsteinUhlenbeck(
        ((0.0, 1.0, 0.0), (-1.0, 0.0, 2.0), (0.0, -2.0, -3.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 2.0)),
    ),
}
every_sde = pytest.mark.parametrize("sde", FAMILY.values(), ids=FAMILY)


def at(*values: float) -> torch.Tensor:
    found = torch.tensor(values, dtype=torch.float64)
    return found[0] if len(values) == 1 else found


class Turning(MatrixLinearSDE):
    """Constant matrices in a frame R(t) that turns by t²: F(t) commutes at no two times."""

    F = ((-1.0, 2.0), (0.0, -3.0))
    G = ((1.0, 0.2), (0.0, 0.5))

    def frame(self, t: torch.Tensor) -> torch.Tensor:
        c, s = (t**2).cos(), (t**2).sin()
        return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)

    def drift_matrix(self, t: torch.Tensor) -> torch.Tensor:
        r = self.frame(t)
        spin = 2 * t[..., None, None] * at((0.0, -1.0), (1.0, 0.0))
        return r @ at(*self.F) @ r.mT + spin

    def diffusion_matrix(self, t: torch.Tensor) -> torch.Tensor:
        return self.frame(t) @ at(*self.G)


def by_scipy(sde: MatrixLinearSDE, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Φ' = F Φ and Σ' = F Σ + Σ Fᵀ + G Gᵀ from Φ = I and Σ(0), stepped by SciPy."""
    n = sde.parts

    def slope(s: float, y: np.ndarray) -> np.ndarray:
        f, g = (m(at(s)).numpy() for m in (sde.drift_matrix, sde.diffusion_matrix))
        mean, covariance = y.reshape(2, n, n)
        moved = f @ covariance + covariance @ f.T + g @ g.T
        return np.concatenate([(f @ mean).ravel(), moved.ravel()])

    start = np.concatenate([np.eye(n).ravel(), sde.start_covariance.numpy().ravel()])
    found = solve_ivp(slope, (0, t), start, "DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    return found[: n * n].reshape(n, n), found[n * n :].reshape(n, n)


@every_sde
@pytest.mark.parametrize("t", [1e-4, 0.03, 0.4, 1.0])
def test_moments_solve_the_moment_equations_to_1e_10(sde: MatrixLinearSDE, t: float) -> None:
    for found, wanted in zip(sde.moments(at(t)), by_scipy(sde, t), strict=True):
        assert np.abs(found.numpy() - wanted).max() < 1e-10


def test_critical_damping_has_its_closed_form() -> None:
    """F̄ + 2/Γ is nilpotent: Φ = e^{−2B/Γ} (I + B (F̄ + 2/Γ)), and Σ keeps its digits near 0."""
    sde = CriticallyDampedLangevin(LinearBeta(0.1, 8.0), friction=2.0)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    f, b = at(*sde.matrices()[0]), sde.beta.integral(t)[:, None, None]
    wanted = (-b).exp() * (torch.eye(2) + b * (f + torch.eye(2)))
    assert torch.allclose(sde.mean_matrix(t), wanted, rtol=1e-12, atol=1e-15)
    # ∫₀ᵇ 2Γ (s e^{−s}/M)² ds = 4 (¼ − e^{−2b} (b²/2 + b/2 + ¼)) for M = 1, Γ = 2; 4b³/3 at first.
    from_v = sde.mean_matrix(t)[:, 0, 1] ** 2 * sde.gamma * sde.mass
    b = b[:, 0, 0]
    spread = 4 * (0.25 - (-2 * b).exp() * (b**2 / 2 + b / 2 + 0.25))
    assert torch.allclose(sde.covariance(t)[:, 0, 0] - from_v, spread, rtol=1e-9, atol=1e-14)
    bare = OrnsteinUhlenbeck(*sde.matrices(), beta=LinearBeta(1.0, 1.0))
    tiny = bare.covariance(at(1e-5))[0, 0]
    assert float(tiny) == pytest.approx(4 / 3 * 1e-15 * (1 - 1.5e-5), rel=1e-9)


def test_a_schedule_is_a_time_change_of_matrix_exponentials() -> None:
    """Van Loan's block exponential in B(t) gives Φ and Σ too."""
    t = at(0.3)
    f, g = (np.array(m) for m in PAIR.matrices())
    block = expm(np.block([[f, g @ g.T], [0 * f, -f.T]]) * float(PAIR.beta.integral(t)))
    mean, covariance = PAIR.moments(t)
    assert np.allclose(mean.numpy(), block[:2, :2], rtol=1e-12)
    assert np.allclose(covariance.numpy(), block[:2, 2:] @ block[:2, :2].T, rtol=1e-12)


def test_a_drift_that_commutes_at_no_two_times_is_solved() -> None:
    """In the turning frame the equation has constant matrices, whose exponentials are known."""
    sde = Turning()
    t = torch.linspace(0.01, 1, 9, dtype=torch.float64)
    mean, covariance = sde.moments(t)
    f, g = np.array(sde.F), np.array(sde.G)
    for i, s in enumerate(t.tolist()):
        block = expm(np.block([[f, g @ g.T], [0 * f, -f.T]]) * s)
        r = sde.frame(t[i]).numpy()
        assert np.abs(mean[i].numpy() - r @ block[:2, :2]).max() < 1e-10
        inner = block[:2, 2:] @ block[:2, :2].T
        assert np.abs(covariance[i].numpy() - r @ inner @ r.T).max() < 1e-10


@every_sde
def test_the_score_matrix_is_that_of_the_kernel(sde: MatrixLinearSDE) -> None:
    """−L⁻ᵀ eps is ∇ log N(x_t; Φ x_0, Σ) in the parts that noise drives, by autograd."""
    t = at(0.4)
    x0 = torch.randn(3, 2 * sde.data_parts, generator=torch.Generator().manual_seed(0)).double()
    eps = torch.randn(sde.start(x0).shape, generator=torch.Generator().manual_seed(1)).double()
    x = sde.perturb(x0, t, eps).requires_grad_()
    mean, covariance = sde.moments(t)
    off = (x - BlockMatrix(mean) * sde.start(x0)).unflatten(1, (sde.parts, 2)).movedim(2, 1)
    density = torch.distributions.MultivariateNormal(torch.zeros(sde.parts).double(), covariance)
    wanted = torch.autograd.grad(density.log_prob(off).sum(), x)[0]
    found = sde.score_matrix(t) * eps
    k = 2 * sde.driven
    assert torch.allclose(found[:, k:], wanted[:, k:], rtol=1e-9)
    assert (found[:, :k] == 0).all()


@every_sde
def test_the_oracles_score_is_the_gradient_of_its_density(sde: MatrixLinearSDE) -> None:
    means = torch.tensor([[-0.8, 0.1], [0.7, 0.2]]).repeat(1, sde.data_parts)
    data = GaussianMixture([0.4, 0.6], means, stds=[0.5, 0.3])
    model = data.diffused(sde)
    generator = torch.Generator().manual_seed(0)
    x = model.sample(4, at(0.3), generator).requires_grad_()
    for t in (at(0.3), at(0.2, 0.3, 0.5, 0.5)):
        wanted = torch.autograd.grad(model.log_prob(x, t).sum(), x)[0]
        assert torch.allclose(model(x, t), wanted, rtol=1e-9)
    alone = torch.cat([model(x[i : i + 1], at(0.2, 0.3, 0.5, 0.5)[i]) for i in range(4)])
    assert torch.allclose(model(x, at(0.2, 0.3, 0.5, 0.5)), alone, rtol=1e-12)


def test_the_oracles_moments_are_those_of_its_draws() -> None:
    model = MIXTURE.diffused(CLD)
    x = model.sample(200_000, at(0.1), torch.Generator().manual_seed(0))
    marginal = model.marginal(at(0.1))
    mean = marginal.weights @ marginal.means
    within = marginal.bases * marginal.variances[:, None] @ marginal.bases.mT
    off = marginal.means - mean
    wanted = (marginal.weights[:, None, None] * (within + off[:, :, None] * off[:, None])).sum(0)
    assert torch.allclose(x.mean(0), mean, atol=0.01)
    assert torch.allclose(torch.cov(x.T), wanted, atol=0.01)


def test_reverse_and_flow_push_by_g_gt_of_the_score() -> None:
    """f − ½(1 + l²) G Gᵀ s with a G that mixes, written out."""
    x, t = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double(), at(0.4)
    score = lambda x, t: -(x**3)  # noqa: E731, ARG005
    f, g = PAIR.drift_matrix(t), PAIR.diffusion_matrix(t)
    on = lambda m, x: torch.einsum("ij,bjc->bic", m, x.unflatten(1, (2, 2))).flatten(1)  # noqa: E731
    flow = on(f, x) + 0.5 * on(g @ g.mT, x**3)
    reverse = on(f, x) + 0.5 * (1 + 0.25) * on(g @ g.mT, x**3)
    assert torch.allclose(ProbabilityFlow(PAIR, score).velocity(x, t), flow, rtol=1e-12)
    halved = ReverseSDE(PAIR, score, 0.5)
    assert torch.allclose(halved.drift(x, t), reverse, rtol=1e-12)
    assert torch.allclose(halved.diffusion(x, t) * x, 0.5 * on(g, x), rtol=1e-12)


class Mixed(SDE):
    """dx = −x dt + G dw of one's own, by a `BlockMatrix`."""

    def __init__(self, g: torch.Tensor) -> None:
        self.g = g

    def drift(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return -x

    def diffusion(self, x: torch.Tensor, t: torch.Tensor) -> BlockMatrix:  # noqa: ARG002
        return BlockMatrix(self.g)


@pytest.mark.parametrize("solver", [EulerMaruyama(), Milstein(), SRA()])
def test_noise_that_a_matrix_mixes_is_solved_for_any_sde(solver) -> None:
    """The covariance at 1 is G Gᵀ (1 − e^{−2})/2."""
    g = at((1.0, 0.0), (0.8, 0.5))
    noise = WhiteNoise(0)
    x = torch.zeros(20_000, 2, dtype=torch.float64)
    found = integrate(Mixed(g), solver, x, uniform(100, 0.0, 1.0), noise=noise).x
    wanted = g @ g.mT * (1 - math.exp(-2)) / 2
    assert torch.allclose(torch.cov(found.T), wanted, atol=0.015)


SOLVERS = {
    name: solver
    for name, solver in catalogue.instances().items()
    if not name.startswith(("TorchDiffEq", "AdaptiveSDE", "Milstein", "Picard(solver", "SRA"))
}
SLOW = {name: s for name, s in catalogue.instances().items() if name not in SOLVERS}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_solver_has_its_order_on_cld_or_refuses_it(solver) -> None:
    try:
        found = certify(solver, CLD)
    except TypeError as error:
        assert "must come from a LinearSDE, for alpha and sigma" in str(error)  # noqa: PT017
        return
    assert found.passed, [(m.kind, m.declared, m.convergence.slopes) for m in found.measurements]


@pytest.mark.slow
@pytest.mark.parametrize("solver", SLOW.values(), ids=SLOW)
def test_so_have_the_others(solver) -> None:
    assert certify(solver, CLD).passed


@pytest.mark.parametrize("solver", [EulerMaruyama(), Heun()], ids=repr)
def test_orders_hold_where_a_matrix_mixes_the_noise(solver) -> None:
    assert certify(solver, PAIR).passed


@pytest.mark.slow
def test_a_louder_noise_is_no_order_1() -> None:
    class Loud(type(EulerMaruyama()).__mro__[1]):  # type: ignore[misc]
        dynamics, order = SDE, 1

        def step(self, dynamics, x, t, s, noise):
            dw = 1.01 * noise.increment(x, t, s)
            return x + dynamics.drift(x, t) * (s - t) + dynamics.diffusion(x, t) * dw

    assert not certify(Loud(), CLD).passed


def trained(model, objective, steps: int = 200):
    """Return the model after a short training on the mixture."""
    x0 = MIXTURE.sample(20_000, torch.Generator().manual_seed(0)).float()
    data = Dataset(DataSpec("points", (1,), None), x0, None)
    config = TrainingConfig(
        steps=steps, batch_size=256, learning_rate=4e-3, warmup=20, ema_decay=0.98
    )
    for _ in train(model, data, config, objective=objective):
        pass
    return model


def relative_error(model, exact, t: torch.Tensor) -> float:
    x = exact.sample(4000, t, torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        found, wanted = (s[:, -1:].double() for s in (model(x, t), exact(x, t)))
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def test_training_without_simulation_reaches_the_oracles_score_as_vps_does(tmp_path) -> None:
    """∇_v log p under CLD, and ∇ log p under VP of the same network, steps and data."""
    cld = trained(MatrixScoreModel(MLP(2, width=64, depth=2), CLD), HybridScoreMatching())
    vp = trained(ScoreModel(MLP(1, width=64, depth=2), VPSDE()), None)
    times = [at(t) for t in (0.1, 0.3, 0.6, 0.9)]
    ours = [relative_error(cld, MIXTURE.diffused(CLD), t) for t in times]
    theirs = [relative_error(vp, MIXTURE.diffused(VPSDE()), t) for t in times]
    assert max(ours[1:]) < 0.06, ours
    assert sum(ours) < 1.2 * sum(theirs), (ours, theirs)

    save_model(tmp_path / "cld.safetensors", cld)
    again = load(tmp_path / "cld.safetensors", sde=CLD)
    assert isinstance(again, MatrixScoreModel)
    assert again.sde == CLD
    x = sample(again, EulerMaruyama(), (2000, 2), steps=60).x
    assert torch.equal(x, sample(cld, EulerMaruyama(), (2000, 2), steps=60).x)
    positions = CLD.data_part(x)
    assert float((positions > 0).double().mean()) == pytest.approx(0.6145, abs=0.06)
    assert float(positions.std()) == pytest.approx(0.8333, abs=0.06)


def test_the_loss_is_least_at_the_exact_score() -> None:
    """Its mean at eps_θ = −Lᵀ∇ log p less that of a network a little off is −(what is off)²."""

    class Off(torch.nn.Module):
        def __init__(self, off: float) -> None:
            super().__init__()
            self.off = off

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            exact = MIXTURE.diffused(CLD)(x, t.double())
            inverse = torch.linalg.inv(CLD.score_matrix(at(0.3)).matrix[1:, 1:])
            return exact * inverse + self.off

    x0 = MIXTURE.sample(30_000, torch.Generator().manual_seed(0))
    eps = torch.randn(len(x0), 2, generator=torch.Generator().manual_seed(1)).double()
    best, above, below = (
        hybrid_loss(MatrixScoreModel(Off(off), CLD), x0, at(0.3), eps).mean()
        for off in (0.0, 0.1, -0.1)
    )
    assert float(above - best) == pytest.approx(0.01, abs=2e-3)
    assert float(below - best) == pytest.approx(0.01, abs=2e-3)


def test_the_likelihood_of_a_state_is_the_oracles() -> None:
    model = MIXTURE.diffused(CriticallyDampedLangevin(LinearBeta(6.0, 6.0)))
    x = model.sample(3, at(1e-5), torch.Generator().manual_seed(0))
    flow = ProbabilityFlow(model.sde, model)
    found = log_prob(x, flow, DormandPrince(1e-5, 1e-5), divergence=Exact())
    # What is left is the mismatch of the prior at B = 6, e⁻¹² (1 + 12)².
    assert torch.allclose(found.nats, model.log_prob(x, at(1e-5)), atol=2e-3)


def test_the_bound_on_the_data_alone_is_tight_for_the_exact_score() -> None:
    """p_0(x, v) = p(x) N(v; 0, γM): what is averaged is log p(x) for every draw of v."""
    model = MIXTURE.diffused(CriticallyDampedLangevin(LinearBeta(6.0, 6.0)))
    x = MIXTURE.sample(2, torch.Generator().manual_seed(0))
    flow = ProbabilityFlow(model.sde, model)
    solver = DormandPrince(1e-5, 1e-5)
    found = hidden_parts_bound(x, flow, solver, WhiteNoise(0), draws=2, divergence=Exact())
    assert torch.allclose(found.nats, MIXTURE.log_prob(x), atol=3e-3)
    assert float(found.standard_error.max()) < 3e-3


def test_samples_do_not_depend_on_their_batch() -> None:
    model = MIXTURE.diffused(CLD)
    whole = sample(model, EulerMaruyama(), (5, 2), steps=10).x
    parts = [sample(model, EulerMaruyama(), (1, 2), steps=10, first=i).x for i in range(5)]
    assert torch.equal(whole, torch.cat(parts))
    network = MatrixScoreModel(MLP(4), CLD).eval()
    x0 = torch.ones(3, 2)
    t = at(0.1, 0.2, 0.3)
    eps = PerSampleNoise([1, 2, 3]).normal(torch.empty(3, 4))
    moved = CLD.perturb(x0, t, eps)
    each = [CLD.perturb(x0[i : i + 1], t[i : i + 1], eps[i : i + 1]) for i in range(3)]
    assert torch.equal(moved, torch.cat(each))
    alone = [network(moved[i : i + 1], t[i : i + 1]) for i in range(3)]
    assert torch.allclose(network(moved, t), torch.cat(alone), rtol=1e-5, atol=1e-6)


class Exploding(MatrixLinearSDE):
    """dx = x/(½ − t) dt + dw, of no moments from ½ on."""

    parts = 1

    def drift_matrix(self, t: torch.Tensor) -> torch.Tensor:
        return (1 / (0.5 - t)).reshape(1, 1)

    def diffusion_matrix(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ones(1, 1, dtype=t.dtype)


class Missing(Exploding):
    """The same with a drift that is no number beyond ½."""

    def drift_matrix(self, t: torch.Tensor) -> torch.Tensor:
        return torch.where(t > 0.5, torch.nan, -torch.ones_like(t)).reshape(1, 1)


def test_moments_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FloatingPointError, match=r"have finite moments up to 1, got none beyond"):
        Missing().moments(torch.tensor(0.9, dtype=torch.float64))


def test_images_and_their_velocities_are_states() -> None:
    x0 = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    eps = torch.zeros(2, 6, 4, 4)
    x = CLD.perturb(x0, at(0.3), eps)
    mean = CLD.mean_matrix(at(0.3)).float()
    assert torch.allclose(CLD.data_part(x), mean[0, 0] * x0)
    assert torch.allclose(x[:, 3:], mean[1, 0] * x0)


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda: CriticallyDampedLangevin(friction=0.0), ValueError, "friction must be finite"),
        (lambda: CriticallyDampedLangevin(0.5), TypeError, "beta must be a schedule"),
        (
            lambda: OrnsteinUhlenbeck(((1.0,), (2.0,)), ((1.0,),)),
            ValueError,
            r"rate must be a square matrix, got \(2, 1\)",
        ),
        (lambda: OrnsteinUhlenbeck("ab", ((1.0,),)), TypeError, "rate must be rows of numbers"),
        (
            lambda: OrnsteinUhlenbeck(((-1.0, 0.0), (0.0, -1.0)), ((0.0, 0.0), (0.0, 1.0))),
            ValueError,
            "noise must reach every part",
        ),
        (lambda: CLD.perturb(torch.ones(2, 1), at(0.5), torch.ones(2, 1)), ValueError, "state"),
        (lambda: CLD.data_part(torch.ones(2, 3)), ValueError, "second dimension of 2 equal"),
        (lambda: BlockMatrix(torch.ones(2, 3)), ValueError, r"shape \(n, n\)"),
        (lambda: MatrixScoreModel(MLP(2), VPSDE()), TypeError, "ScoreModel"),
        (lambda: ScoreModel(MLP(2), CLD), TypeError, "MatrixScoreModel"),
        (lambda: trained(MatrixScoreModel(MLP(2), CLD), None), TypeError, "HybridScoreMatching"),
        (
            lambda: trained(ScoreModel(MLP(1), VPSDE()), HybridScoreMatching()),
            TypeError,
            "model must be a MatrixScoreModel",
        ),
        (
            lambda: sample(MIXTURE.diffused(CLD), Heun(), (4, 3)),
            ValueError,
            "second dimension of 2 equal parts",
        ),
        (
            lambda: elbo(torch.ones(2, 2).double(), MIXTURE.diffused(CLD), draws=2),
            TypeError,
            "model must be a score model of a LinearSDE",
        ),
        (
            lambda: MIXTURE.diffused(CLD).eps(torch.ones(2, 2), at(0.5)),
            TypeError,
            "sde must be a LinearSDE",
        ),
        (
            lambda: hidden_parts_bound(
                torch.ones(2, 2), ProbabilityFlow(PAIR, abs), Heun(), WhiteNoise(0)
            ),
            ValueError,
            "flow must have parts that are no data",
        ),
        (
            lambda: hidden_parts_bound(
                torch.ones(2, 2), ProbabilityFlow(VPSDE(), abs), Heun(), WhiteNoise(0)
            ),
            TypeError,
            "flow must be of a MatrixLinearSDE",
        ),
        (lambda: PAIR.score_matrix(at(0.0)), ValueError, "covariance.t. must be regular"),
    ],
)
def test_what_is_not_known_is_refused_by_name(wrong, error, says) -> None:
    with pytest.raises(error, match=says):
        wrong()


def test_equal_settings_are_equal() -> None:
    assert CriticallyDampedLangevin() == CLD
    assert CriticallyDampedLangevin(gamma=0.1) != CLD
    made = partial(OrnsteinUhlenbeck, ((-1.0,),), beta=LinearBeta(1.0, 1.0))
    assert made(torch.eye(1)) == made(((1.0,),))
    assert Gaussian(torch.zeros(1), torch.eye(1)).diffused(made(((1.0,),))).sde.parts == 1


@dataclass
class Settable(MatrixLinearSDE):
    """`OrnsteinUhlenbeck` with matrices that are one for all times; it has no hash."""

    rate: float = 1.0

    def drift_matrix(self, t: Tensor) -> Tensor:  # noqa: ARG002  (one for all times)
        return torch.tensor([[-self.rate, 0.5], [0.0, -2.0]], dtype=torch.float64)

    def diffusion_matrix(self, t: Tensor) -> Tensor:  # noqa: ARG002
        return torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64)


def test_matrices_that_are_one_for_all_times_may_be_given_once() -> None:
    sde = Settable()
    one = LinearBeta(1.0, 1.0)
    same = OrnsteinUhlenbeck(((-1.0, 0.5), (0.0, -2.0)), ((1.0, 0.3), (0.3, 1.0)), one)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    x = torch.tensor([[0.3, -0.4], [1.0, 0.2]], dtype=torch.float64)
    data = GaussianMixture([1, 2], torch.tensor([[0.5, -0.5], [0.0, 1.0]]), stds=[0.3, 0.6])
    assert torch.allclose(sde.score_matrix(t) * x, same.score_matrix(t) * x, atol=1e-9)
    for mine, theirs in ((ReverseSDE, ReverseSDE), (ProbabilityFlow, ProbabilityFlow)):
        a, b = mine(sde, data.diffused(sde)), theirs(same, data.diffused(same))
        name = "drift" if mine is ReverseSDE else "velocity"
        assert torch.allclose(getattr(a, name)(x, t), getattr(b, name)(x, t), atol=1e-8)


def test_an_sde_without_a_hash_is_certified_as_it_is_now() -> None:
    """It may change between two measurements: nothing of the first is remembered."""
    sde = Settable()
    assert certify(Heun(), sde).passed
    sde = Settable()  # no cached moments of another rate
    sde.rate = 1.5
    assert certify(Heun(), sde).passed


def test_data_that_the_parts_do_not_divide_are_refused_by_name() -> None:
    three = Gaussian(torch.zeros(3), torch.eye(3))
    pair = OrnsteinUhlenbeck(((-1.0, 0.5), (0.0, -2.0)), ((1.0, 0.3), (0.3, 1.0)))
    says = r"diffused: oracle must be data of 2 equal parts along .*, got \(3,\); pass"
    with pytest.raises(ValueError, match=says):
        three.diffused(pair)
    assert three.diffused(CriticallyDampedLangevin())(torch.zeros(1, 6), torch.tensor(0.5)).shape
