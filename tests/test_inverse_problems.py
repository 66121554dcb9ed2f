"""Operators, measurements, likelihood scores: identities, closed forms, other programs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    Gaussian,
    GaussianMixture,
    PerSampleNoise,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    sample,
    uniform,
)
from sde_diffusion.coefficients import Coefficients, Levels
from sde_diffusion.inverse_problems import (
    DPS,
    MMPS,
    TMPD,
    Blur,
    DenseMMPS,
    DiffPIR,
    Downsample,
    Grey,
    Magnitudes,
    Mask,
    Matrix,
    Measurement,
    Nonlinear,
    PiGDM,
    PosteriorScore,
    exact_posterior,
)
from sde_diffusion.inverse_problems.operators import conjugate_gradients
from sde_diffusion.solvers import DDIM, Ancestral, DormandPrince, EulerMaruyama, Heun

SDES = [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def kept(*event: int) -> Tensor:
    return normal(*event, seed=5) > 0


LINEAR = {
    "matrix": (Matrix(normal(3, 6, seed=1)), (6,)),
    "matrix of images": (Matrix(normal(3, 12, seed=1), (3, 2, 2)), (3, 2, 2)),
    "mask": (Mask(kept(2, 3)), (2, 3)),
    "downsample": (Downsample(2), (3, 4, 6)),
    "blur": (Blur(normal(3, 5, seed=2)), (2, 5, 6)),
    "gaussian blur": (Blur.gaussian(0.7), (1, 6, 6)),
    "grey": (Grey(3), (3, 2, 4)),
    "derivative": (Magnitudes().linearised(normal(2, 1, 3, 3, seed=3)), (1, 3, 3)),
}
every_linear = pytest.mark.parametrize(("operator", "event"), LINEAR.values(), ids=LINEAR)


# --- operators ---


@every_linear
def test_the_adjoint_is_the_transpose(operator, event) -> None:
    x = normal(2, *event)
    y = normal(*operator(x).shape, seed=9)
    forth = (operator(x) * y).flatten(1).sum(1)
    back = (x * operator.adjoint(y)).flatten(1).sum(1)
    assert torch.allclose(forth, back, rtol=1e-12, atol=1e-12)


@every_linear
def test_both_systems_are_solved(operator, event) -> None:
    x = normal(2, *event)
    y = operator(x)
    u = operator.gram_solve(y, 0.3, 1.7)
    assert torch.allclose(0.3 * u + 1.7 * operator(operator.adjoint(u)), y, atol=1e-9)
    z = operator.normal_solve(x, 0.3, 1.7)
    assert torch.allclose(0.3 * z + 1.7 * operator.adjoint(operator(z)), x, atol=1e-9)


def test_a_blur_is_a_convolution() -> None:
    """(k * x)_ij = Σ k_ab x_{i−a, j−b}, zeros outside."""
    kernel = normal(3, 3)
    x = normal(1, 1, 4, 5, seed=1)
    found = Blur(kernel)(x)[0, 0]
    for i in range(4):
        for j in range(5):
            terms = [
                kernel[1 + a, 1 + b] * x[0, 0, i - a, j - b]
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
                if 0 <= i - a < 4 and 0 <= j - b < 5
            ]
            assert float(found[i, j]) == pytest.approx(float(sum(terms)), abs=1e-12)


def test_a_gaussian_blur_keeps_what_is_flat_and_has_its_variance() -> None:
    kernel = Blur.gaussian(1.5).kernel
    at = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    assert float(kernel.sum()) == pytest.approx(1)
    assert float((kernel.sum(0) * at**2).sum()) == pytest.approx(1.5**2, rel=0.02)


def test_a_derivative_is_the_difference_of_near_values() -> None:
    x, v = normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1)
    operator = Magnitudes()
    h = 1e-6
    slope = (operator(x + h * v) - operator(x - h * v)) / (2 * h)
    assert torch.allclose(operator.linearised(x)(v), slope, atol=1e-8)


def test_magnitudes_keep_the_energy() -> None:
    x = normal(2, 1, 3, 5)
    energy = Magnitudes()(x).square().flatten(1).sum(1)
    assert torch.allclose(energy, x.square().flatten(1).sum(1))


def test_conjugate_gradients_of_a_row_do_not_depend_on_the_others() -> None:
    scale = torch.tensor([1.0, 10.0, 1e3], dtype=torch.float64)

    def apply(u: Tensor) -> Tensor:
        return u * scale

    r = torch.stack([torch.tensor([1.0, 0.0, 0.0]).double(), normal(3)])
    whole = conjugate_gradients(apply, r)
    assert torch.equal(whole[:1], conjugate_gradients(apply, r[:1]))
    assert torch.equal(whole[1:], conjugate_gradients(apply, r[1:]))
    assert torch.allclose(whole, r / scale, rtol=1e-10)


# --- measurements ---


def test_the_density_of_a_measurement_is_the_normal_one() -> None:
    seen = Measurement(Matrix(normal(2, 3)), normal(1, 2, seed=1), std=0.4)
    x = normal(5, 3, seed=2)
    wanted = torch.distributions.Normal(x @ seen.operator.matrix.mT, 0.4).log_prob(seen.y).sum(1)
    assert torch.allclose(seen.log_prob(x), wanted)


def test_a_drawn_measurement_has_its_noise() -> None:
    x = normal(4000, 2)
    seen = Measurement.drawn(Matrix(torch.eye(2)), x, 0.3)
    assert float((seen.y - x).std()) == pytest.approx(0.3, rel=0.05)
    part = Measurement.drawn(seen.operator, x[7:9], 0.3, first=7)
    assert torch.equal(part.y, seen.y[7:9])
    prior = PerSampleNoise.numbered(0, 0, 4000).normal(x)
    assert abs(float(((seen.y - x) * prior).mean())) < 0.02  # of no other draw of the seed
    assert torch.equal(seen.rows(torch.tensor([3, 1])).y, seen.y[[3, 1]])


# --- likelihood scores, where they are exact ---

MEAN = torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.6, 0.4, -0.2], [0.4, 0.4, 0.0], [-0.2, 0.0, 0.4]]).double()
CORRELATED = Gaussian(MEAN, COVARIANCE)
SEEN = Measurement(Matrix(normal(2, 3, seed=7)), normal(1, 2, seed=8), std=0.3)


def guess(method, data, sde, x, t, seen=SEEN):
    return method(data.diffused(sde), x, t, Coefficients(sde).level(t), seen)


def middle(sde, lambda_: float = 0.2) -> Tensor:
    return sde.time(torch.tensor(lambda_, dtype=torch.float64))


def exact_log_likelihood(data: Gaussian, sde, x: Tensor, t: Tensor, seen: Measurement) -> Tensor:
    """Return log N(y; A E[x0|x], A Cov[x0|x] Aᵀ + σ²) of Gaussian data, by its own formulas."""
    a, s = sde.alpha(t), sde.sigma(t)
    c = (data.bases[0] * data.variances[0]) @ data.bases[0].mT
    marginal = a**2 * c + s**2 * torch.eye(len(c), dtype=torch.float64)
    gain = a * c @ torch.linalg.inv(marginal)
    x0 = data.means + (x - a * data.means) @ gain.mT
    left = c - a * gain @ c
    m = seen.operator.matrix
    of_y = m @ left @ m.mT + seen.std**2 * torch.eye(len(m), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(x0 @ m.mT, of_y).log_prob(seen.y)


@every_sde
def test_moment_matching_is_exact_for_gaussian_data(sde) -> None:
    t = middle(sde)
    x = normal(4, 3, seed=1).requires_grad_()
    exact = exact_log_likelihood(CORRELATED, sde, x, t, SEEN)
    (gradient,) = torch.autograd.grad(exact.sum(), x)
    found = guess(DenseMMPS(), CORRELATED, sde, x.detach(), t)
    assert torch.allclose(found.gradient, gradient, atol=1e-10)
    constant = (found.log_likelihood - exact).detach()
    assert torch.allclose(constant, constant[:1].expand(4), atol=1e-10)
    other = guess(MMPS(iterations=2), CORRELATED, sde, x.detach(), t)  # y has two numbers
    assert torch.allclose(other.gradient, gradient, atol=1e-9)


def test_moment_matching_tells_the_density_of_its_normal() -> None:
    """log N(y; A x̂0, sigma_y² + (sigma²/alpha) A J Aᵀ), J by autograd, of data that are curved."""
    sde = VPSDE()
    mixture = GaussianMixture([1, 2], normal(2, 3), stds=[0.3, 0.7])
    model = mixture.diffused(sde)
    t = middle(sde)
    at = Coefficients(sde).level(t)
    x = normal(4, 3, seed=1)
    a = SEEN.operator.matrix
    exact = []
    for row in x:
        j = torch.autograd.functional.jacobian(lambda r: model.denoise(r[None], t)[0], row)
        s = SEEN.std**2 * torch.eye(2).double() + at.sigma**2 / at.alpha * a @ j @ a.mT
        mean = model.denoise(row[None], t)[0] @ a.mT
        exact.append(torch.distributions.MultivariateNormal(mean, s).log_prob(SEEN.y[0]))
    off = guess(DenseMMPS(), mixture, sde, x, t).log_likelihood - torch.stack(exact)
    assert torch.allclose(off, off[:1].expand(4), atol=1e-9)


@every_sde
def test_pseudo_inverse_guidance_is_exact_for_a_ball(sde) -> None:
    ball = Gaussian(MEAN, 0.49 * torch.eye(3))
    t = middle(sde)
    x = normal(4, 3, seed=1)
    exact = guess(DenseMMPS(), ball, sde, x, t)
    found = guess(PiGDM(data_std=0.7), ball, sde, x, t)
    assert torch.allclose(found.gradient, exact.gradient, atol=1e-10)
    assert not torch.allclose(guess(PiGDM(), ball, sde, x, t).gradient, exact.gradient, atol=1e-3)


@every_sde
def test_moment_projection_is_exact_where_the_covariance_of_y_is_diagonal(sde) -> None:
    diagonal = Gaussian(MEAN, torch.tensor([0.3, 0.6, 0.9]).diag())
    seen = Measurement(Mask(torch.tensor([True, False, True])), normal(1, 2), std=0.3)
    t = middle(sde)
    x = normal(4, 3, seed=1)
    exact = guess(DenseMMPS(), diagonal, sde, x, t, seen)
    found = guess(TMPD(), diagonal, sde, x, t, seen)
    assert torch.allclose(found.gradient, exact.gradient, atol=1e-10)
    constant = found.log_likelihood - exact.log_likelihood
    assert torch.allclose(constant, constant[:1].expand(4), atol=1e-10)


@every_sde
def test_restoration_moves_to_the_least_of_its_objective(sde) -> None:
    t = middle(sde)
    x = normal(4, 3, seed=1)
    level = Coefficients(sde).level(t)
    found = guess(DiffPIR(weight=2.0), CORRELATED, sde, x, t)
    moved = (found.x0 + level.sigma**2 / level.alpha * found.gradient).requires_grad_()
    fit = SEEN.residual(moved).square().sum() / SEEN.std**2
    near = (2.0 * level.alpha**2 / level.sigma**2) * (moved - found.x0).square().sum()
    (slope,) = torch.autograd.grad(fit + near, moved)
    assert float(slope.abs().max()) < 1e-9


def test_diffusion_posterior_sampling_moves_as_published() -> None:
    """One uniform step of N moves the state by −ζ ∇‖y − A x̂0‖, beside the step without y."""
    sde = VPSDE()
    model = CORRELATED.diffused(sde)
    t = torch.tensor(0.5, dtype=torch.float64)
    grid = torch.stack([t, t - 1 / 1000])
    x = normal(4, 3, seed=1).requires_grad_()
    norm = SEEN.residual(model.denoise(x, t)).norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(norm, x)
    x = x.detach()

    def stepped(score) -> Tensor:
        from sde_diffusion import ReverseSDE, WhiteNoise, integrate

        return integrate(ReverseSDE(sde, score), EulerMaruyama(), x, grid, noise=WhiteNoise(0)).x

    moved = stepped(PosteriorScore(model, SEEN, DPS(scale=0.7))) - stepped(model)
    assert torch.allclose(moved, -0.7 * gradient, rtol=1e-6)


METHODS = [DenseMMPS(), MMPS(2), TMPD(), PiGDM(), DPS(), DiffPIR()]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


@every_method
def test_log_likelihoods_are_the_gradients_potentials_for_gaussian_data(method) -> None:
    """Their covariances S do not depend on x here, so nothing is left out but for DiffPIR's J."""
    sde = VPSDE()
    t = middle(sde)
    x = normal(4, 3, seed=1)
    found = guess(method, CORRELATED, sde, x, t)
    h = 1e-5
    slopes = []
    for j in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[j] = h
        high, low = (
            guess(method, CORRELATED, sde, x + sign * step, t).log_likelihood for sign in (1, -1)
        )
        slopes.append((high - low) / (2 * h))
    agree = torch.allclose(torch.stack(slopes, 1), found.gradient, rtol=1e-6, atol=1e-6)
    assert agree != isinstance(method, DiffPIR)


@every_method
def test_times_of_each_sample_are_taken_row_by_row(method) -> None:
    sde = VPSDE()
    model = GaussianMixture([1, 2], normal(2, 3), stds=[0.3, 0.5]).diffused(sde)
    x = normal(3, 3, seed=1)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    score = PosteriorScore(model, SEEN, method)
    whole = score(x, t)
    alone = torch.cat([score(x[i : i + 1], t[i]) for i in range(3)])
    assert torch.allclose(whole, alone, atol=1e-9)


@every_method
def test_nonlinear_operators_are_linearised(method) -> None:
    sde = VPSDE()
    t = middle(sde)
    x = normal(3, 3, seed=1)
    linear = guess(method, CORRELATED, sde, x, t)
    same = Measurement(Nonlinear(SEEN.operator), SEEN.y, SEEN.std)
    found = guess(method, CORRELATED, sde, x, t, same)
    assert torch.allclose(found.gradient, linear.gradient, atol=1e-9)


# --- other programs ---


# azula's MMPS differentiates with torch.func.jvp, whose first call warns of what it is made of.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["TMPD", "MMPS", "DiffPIR"])
def test_azula_moves_x0_alike(name) -> None:
    denoise = pytest.importorskip("azula.denoise")
    guidance = pytest.importorskip("azula.guidance")
    linalg = pytest.importorskip("azula.linalg.covariance")
    schedules = pytest.importorskip("azula.noise")
    sde = VPSDE()
    mixture = GaussianMixture([1, 2], normal(2, 3), stds=[0.4, 0.6]).diffused(sde)
    t = middle(sde)
    at = Coefficients(sde).level(t)

    class Schedule(schedules.Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return t.new_tensor([at.alpha]), t.new_tensor([at.sigma])

    class Denoiser(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Schedule()

        def forward(self, x: Tensor, t: Tensor):
            return denoise.DiracPosterior(mean=mixture.denoise(x, t))

    a, y, variance = SEEN.operator, SEEN.y, SEEN.std**2
    theirs = {
        "TMPD": lambda: guidance.TMPDenoiser(Denoiser(), y, a, variance),
        "MMPS": lambda: guidance.MMPSDenoiser(
            Denoiser(),
            y.expand(5, -1),
            a,
            linalg.DiagonalCovariance(torch.full((2,), variance, dtype=torch.float64)),
            solver="cg",
            iterations=2,
        ),
        "DiffPIR": lambda: guidance.DiffPIRDenoiser(
            Denoiser(), y.expand(5, -1), a, variance, lmbda=2.0, solver="cg", iterations=3
        ),
    }[name]()
    ours = {"TMPD": TMPD(), "MMPS": MMPS(2), "DiffPIR": DiffPIR(weight=2.0)}[name]
    x = normal(5, 3, seed=1)
    found = guess(ours, mixture.oracle, sde, x, t)
    moved = found.x0 + at.sigma**2 / at.alpha * found.gradient
    assert torch.allclose(moved, theirs(x, t).mean, atol=1e-8)


# --- the score of the posterior ---


@every_sde
def test_the_posterior_score_of_a_gaussian_is_that_of_its_exact_posterior(sde) -> None:
    exact = exact_posterior(CORRELATED, SEEN)[0].diffused(sde)
    score = PosteriorScore(CORRELATED.diffused(sde), SEEN, DenseMMPS())
    x = normal(4, 3, seed=1)
    for lambda_ in (-1.0, 0.0, 1.0):
        t = middle(sde, lambda_)
        assert torch.allclose(score(x, t), exact(x, t), atol=1e-9)
        at = Coefficients(sde).level(t)
        levels = Levels(sde.alpha(t), sde.sigma(t))
        for form in ("eps", "x0", "v"):
            wanted = exact.predict(form, x, t, at)
            assert torch.allclose(score.predict(form, x, t, at), wanted, atol=1e-9)
            assert torch.allclose(score.predict(form, x, t, levels), wanted, atol=1e-9)


@pytest.mark.parametrize(
    "solver", [DDIM(), Heun(), Ancestral(), DormandPrince(1e-6, 1e-6)], ids=repr
)
def test_every_kind_of_solver_takes_it(solver) -> None:
    posterior = exact_posterior(CORRELATED, SEEN)[0]
    score = PosteriorScore(CORRELATED.diffused(VPSDE()), SEEN, DenseMMPS())
    grid = uniform(1, 1.0, 1e-3) if solver.adaptive else uniform(200, 1.0, 1e-3)
    x = sample(score, solver, (2000, 3), grid=grid, seed=2, dtype=torch.float64).x
    std = (posterior.bases[0].square() @ posterior.variances[0]).sqrt()
    assert torch.allclose(x.mean(0), posterior.means[0], atol=5 * float(std.max()) / 2000**0.5)
    assert torch.allclose(x.std(0), std, rtol=0.1)


def test_rows_take_their_own_measurement() -> None:
    many = Measurement(SEEN.operator, normal(5, 2, seed=3), 0.3)
    score = PosteriorScore(CORRELATED.diffused(VPSDE()), many, DenseMMPS())
    x = normal(5, 3, seed=1)
    t = torch.tensor(0.5, dtype=torch.float64)
    index = torch.tensor([4, 0])
    assert torch.allclose(score.rows(index)(x[index], t), score(x, t)[index], atol=1e-12)


# --- what is refused ---


def test_bad_input_is_named() -> None:
    model = CORRELATED.diffused(VPSDE())
    cases = [
        (lambda: Matrix(torch.ones(3)), r"matrix must be a tensor \(m, D\), got \(3,\)"),
        (lambda: Matrix(torch.ones(2, 3), (2, 2)), "event must have 3 elements, one a column"),
        (lambda: SEEN.operator(normal(2, 4)), r"x must have the event shape \(3,\), got \(4,\)"),
        (lambda: Mask(torch.ones(3)), "kept must be a tensor of booleans"),
        (lambda: Mask(torch.zeros(3) > 0), "some of them true, got none that is true"),
        (lambda: Downsample(2)(normal(1, 1, 3, 4)), "with sides that are multiples of 2"),
        (lambda: Downsample(0), "factor must be"),
        (lambda: Blur(torch.ones(2, 3)), "kernel must be a tensor with two odd sides"),
        (lambda: Blur.gaussian(0.0), "std must be finite and above 0"),
        (lambda: Blur.gaussian("wide"), "std must be a number, got wide"),
        (lambda: Blur(torch.ones(1, 1))(normal(2, 3)), "x must be images"),
        (lambda: Grey(3)(normal(2, 1, 4)), r"have shape \(B, 3, \*sides\)"),
        (lambda: Magnitudes()(normal(2, 3)), "x must be images"),
        (lambda: Nonlinear(3), "function must be a callable"),
        (lambda: Nonlinear(lambda x: x.sum())(normal(2, 3)), "one row for each of 2 samples"),
        (lambda: Measurement(len, normal(1, 2), 0.1), "operator must be an Operator"),
        (lambda: Measurement(SEEN.operator, normal(1, 2), 0.0), "std must be finite and above 0"),
        (lambda: Measurement(SEEN.operator, normal(1, 2), "a"), "std must be a number, got a"),
        (lambda: Measurement(SEEN.operator, normal(2), 0.1), r"shape \(B, \*event\)"),
        (
            lambda: Measurement(SEEN.operator, normal(1, 3), 0.1).residual(normal(2, 3)),
            r"y must have the shape \(2, 2\) of the operator's result, or one row, got \(1, 3\)",
        ),
        (lambda: PosteriorScore(len, SEEN, MMPS()), "model must be a score model"),
        (lambda: PosteriorScore(model, 1, MMPS()), "measurement must be a Measurement"),
        (
            lambda: PosteriorScore(model, SEEN, MMPS),
            "method must be a LikelihoodScore object, got the class MMPS",
        ),
        (lambda: MMPS(0), "iterations must be"),
        (lambda: DiffPIR(0.0), "weight must be finite and above 0"),
        (lambda: DPS(scale=-1.0), "scale must be finite and above 0"),
        (lambda: DPS(steps=0), "steps must be at least 1"),
        (lambda: PiGDM("one"), "data_std must be a number"),
        (
            lambda: exact_posterior(CORRELATED, Measurement(Nonlinear(len), normal(1, 2), 1.0)),
            "operator must be a LinearOperator",
        ),
        (
            lambda: exact_posterior(CORRELATED, Measurement(SEEN.operator, normal(2, 2), 1.0)),
            "y must have one row, got 2",
        ),
    ]
    for call, text in cases:
        with pytest.raises((TypeError, ValueError), match=text):
            call()


def test_a_coupled_model_is_refused_in_its_posterior_too() -> None:
    """Its eps is no score, which the posterior does not hide."""
    model = ScoreModel(MLP(3, width=8), RectifiedFlow(), "flow").eval()
    model.coupling = "optimal-transport"
    with pytest.raises(ValueError, match="coupling"):
        sample(PosteriorScore(model, SEEN, PiGDM()), Ancestral(), (2, 3), steps=2)


def test_pure_noise_is_refused_by_name() -> None:
    flow = RectifiedFlow()
    score = PosteriorScore(CORRELATED.diffused(flow), SEEN, MMPS())
    with pytest.raises(ValueError, match="in pure noise nothing is known of x0"):
        score.predict(
            "x0",
            normal(2, 3),
            torch.tensor(1.0),
            Coefficients(flow).level(torch.tensor(1.0).double()),
        )
    assert math.isfinite(float(score(normal(2, 3), torch.tensor(0.9).double()).sum()))
