"""The denoising loss and its weightings against closed forms and quadrature, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineBeta,
    Gaussian,
    GaussianMixture,
    LinearSDE,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    denoising_loss,
    lattice,
    linear_betas,
)
from sde_diffusion._tensors import expand
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.ddpm.discrete_bound import step_bound
from sde_diffusion.ddpm.variances import ForwardVariance
from sde_diffusion.likelihood.decoders import GaussianDecoder
from sde_diffusion.models.score import PREDICTIONS
from sde_diffusion.objectives.denoising import explicit_loss
from sde_diffusion.objectives.spacings import Stratified
from sde_diffusion.objectives.weighting import (
    EDM,
    P2,
    VDM,
    ExactWeighting,
    flow_matching,
    likelihood,
    min_snr,
    perceptual,
)
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import derivative
from sde_diffusion.time_distributions import (
    LatticeTimes,
    LikelihoodTimes,
    UniformTimes,
    log_snr_range,
)

SDES: list[LinearSDE] = [
    VPSDE(),
    VPSDE(CosineBeta()),
    SubVPSDE(),
    VESDE(0.01, 50.0),
    EDMSDE(80.0),
    RectifiedFlow(),
]
EPSILON = 1e-5


def names(sde: LinearSDE) -> str:
    return type(sde).__name__


def hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights with ∑ w f(z) = E f(Z) for a standard normal Z."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def quadrature(x0: Tensor, p0: Tensor, n: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (x0, eps) and their probabilities, for weighted nodes x0 and a normal eps."""
    z, p = hermite(n)
    pairs = torch.cartesian_prod(x0, z)
    return pairs[:, :1], pairs[:, 1:], torch.outer(p0, p).flatten()


@pytest.mark.parametrize("sde", SDES, ids=names)
@pytest.mark.parametrize("t", [0.03, 0.4, 0.9])
def test_loss_of_the_exact_score_is_the_posterior_variance_of_eps(sde: LinearSDE, t: float):
    m = 0.3
    v = 0.49
    time = torch.tensor(t, dtype=torch.float64)
    mean = torch.tensor([m]).double()
    variance = torch.tensor([[v]], dtype=torch.float64)
    exact = Gaussian(mean, variance).diffused(sde)
    z, p = hermite(20)
    x0, eps, p = quadrature(m + math.sqrt(v) * z, p, 20)
    a2v = sde.alpha(time) ** 2 * v
    s2 = sde.sigma(time) ** 2
    least = a2v / (a2v + s2)
    assert torch.isclose(p @ denoising_loss(exact, x0, time, eps), least, rtol=1e-9)
    weighted = p @ denoising_loss(exact, x0, time, eps, likelihood)
    assert torch.isclose(weighted, least * sde.g(time) ** 2 / s2, rtol=1e-9)


def test_loss_on_a_correlated_gaussian_with_event_shape_and_one_time_each():
    sde = VPSDE()
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    data = Gaussian(torch.zeros(1, 2, 3).double(), root @ root.T)
    n = 40_000
    t = UniformTimes().time(sde, Stratified().draw(n, generator).u, EPSILON)
    x0 = data.sample(n, generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    loss = denoising_loss(data.diffused(sde), x0, t, eps)
    variances = torch.linalg.eigvalsh(root @ root.T)
    signal = sde.alpha(t)[:, None] ** 2 * variances
    least = (signal / (signal + sde.sigma(t)[:, None] ** 2)).mean(1)
    difference = loss - least
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(n)
    assert difference.std() / math.sqrt(n) < 0.005


class Affine(ScoreLike):
    """eps_θ = a x + b, a model in which both objectives are polynomials of θ."""

    def __init__(self, sde: LinearSDE, theta: Tensor) -> None:
        self.sde = sde
        self.theta = theta

    def eps(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return self.theta[0] * x + self.theta[1]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.eps(x, t) / expand(-self.sde.sigma(t), x)


@pytest.mark.parametrize("sde", SDES, ids=names)
def test_explicit_and_denoising_score_matching_differ_by_a_constant(sde: LinearSDE):
    t = torch.tensor(0.35, dtype=torch.float64)
    weights = [0.3, 0.7]
    means = [-0.8, 0.5]
    stds = [0.2, 0.4]
    mixture = GaussianMixture(
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(means, dtype=torch.float64)[:, None],
        stds=torch.tensor(stds, dtype=torch.float64),
    )
    exact = mixture.diffused(sde)
    z, p = hermite(40)
    x0 = torch.cat([m + s * z for m, s in zip(means, stds, strict=True)])
    x0, eps, p = quadrature(x0, torch.cat([w * p for w in weights]))
    width = float(sde.alpha(t) + sde.sigma(t)) * 12
    x = torch.linspace(-width, width, 20_001, dtype=torch.float64)[:, None]
    density = exact.log_prob(x, t).exp() * (x[1] - x[0])
    optimum = exact.eps(x, t)
    gaps = []
    for start in ([0.0, 0.0], [0.7, -0.2], [-1.3, 2.0]):
        theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        model = Affine(sde, theta)
        denoising = p @ denoising_loss(model, x0, t, eps, likelihood)
        explicit = density @ (likelihood(sde, t) * (model.eps(x, t) - optimum) ** 2).flatten()
        both = [torch.autograd.grad(loss, theta)[0] for loss in (denoising, explicit)]
        assert torch.allclose(*both, rtol=1e-7, atol=1e-9)
        gaps.append((denoising - explicit).detach())
    assert torch.allclose(torch.stack(gaps), gaps[0], rtol=1e-7)
    assert gaps[0] > 0


@pytest.mark.parametrize("sde", SDES, ids=names)
def test_explicit_loss_is_the_squared_distance_of_the_scores(sde: LinearSDE):
    exact = GaussianMixture.ring(3, std=0.4).diffused(sde)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 50, 2, generator=generator, dtype=torch.float64)
    t = UniformTimes().time(sde, Stratified().draw(50, generator).u, 1e-2)
    model = Affine(sde, torch.tensor([0.4, -0.1], dtype=torch.float64))
    x_t = sde.perturb(x0, t, eps)
    sigma = sde.sigma(t)[:, None]
    distance = (-model.eps(x_t, t) / sigma - exact.score(x_t, t)).square().sum(1)
    expected = sde.g(t) ** 2 * distance / 2
    found = explicit_loss(model, exact, x0, t, eps, likelihood)
    assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=names)
def test_likelihood_weight_is_the_speed_of_the_log_snr(sde: LinearSDE):
    t = torch.linspace(0.01, 0.95, 50, dtype=torch.float64, requires_grad=True)
    speed = torch.autograd.grad(sde.lambda_(t).sum(), t)[0]
    assert torch.allclose(likelihood(sde, t), -2 * speed, rtol=1e-6)


def test_likelihood_weight_is_beta_over_variance_for_vp_only():
    t = torch.tensor(0.2, dtype=torch.float64)
    for sde, equal in ((VPSDE(), True), (SubVPSDE(), False)):
        wrong = sde.beta.beta(t) / sde.sigma(t) ** 2
        assert torch.isclose(likelihood(sde, t), wrong, rtol=1e-12).item() is equal


def test_min_snr_weight_is_one_below_the_bound_and_falls_as_the_inverse_snr():
    sde = VPSDE()
    t = torch.tensor([1e-3, 0.1, 0.9], dtype=torch.float64)
    snr = (sde.alpha(t) / sde.sigma(t)) ** 2
    assert snr[0] > 5 > snr[2]
    assert torch.allclose(min_snr(sde, t), snr.clamp(max=5) / snr, rtol=1e-12)


@pytest.mark.parametrize("sde", SDES, ids=names)
def test_drawn_times_have_the_density_of_the_likelihood_weight(sde: LinearSDE):
    first, last = log_snr_range(sde, EPSILON)
    u = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    h = 1e-6
    t, up, down = (LikelihoodTimes().time(sde, v, EPSILON) for v in (u, u + h, u - h))
    density = likelihood(sde, t) / (2 * (first - last))
    assert torch.allclose((up - down) / (2 * h) * density, torch.ones_like(u), rtol=1e-5)
    ends = LikelihoodTimes().time(sde, torch.tensor([0.0, 1.0], dtype=torch.float64), EPSILON)
    assert torch.allclose(ends, torch.tensor([EPSILON, sde.horizon]).double(), rtol=1e-7)
    assert ends[0] >= EPSILON
    assert ends[1] <= sde.horizon


def test_vp_draw_is_the_published_formula():
    sde = VPSDE()
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    start, end = (sde.beta.integral(torch.tensor(t, dtype=torch.float64)) for t in (EPSILON, 1.0))
    z = torch.log(torch.expm1(end) / torch.expm1(start))
    assert abs(float(z) - 23.864472) < 1e-6
    first, last = log_snr_range(sde, EPSILON)
    assert torch.isclose(2 * (first - last), z, rtol=1e-12)
    expected = torch.log1p(torch.expm1(start) * torch.exp(u * z))
    drawn = sde.beta.integral(LikelihoodTimes().time(sde, u, EPSILON))
    assert torch.allclose(drawn, expected, rtol=1e-9)


def test_importance_draw_keeps_the_integral_and_cuts_the_variance():
    sde = VPSDE()
    data = Gaussian(torch.zeros(1).double(), torch.eye(1).double() * 0.25)
    exact = data.diffused(sde)
    n = 400_000
    generator = torch.Generator().manual_seed(1)
    x0 = data.sample(n, generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    u = Stratified().draw(n, generator).u
    first, last = log_snr_range(sde, EPSILON)
    plain = UniformTimes().time(sde, u, EPSILON)
    uniform = denoising_loss(exact, x0, plain, eps, likelihood) * (1 - EPSILON)
    drawn = LikelihoodTimes().time(sde, u, EPSILON)
    by_importance = 2 * (first - last) * denoising_loss(exact, x0, drawn, eps, perceptual)
    # ∫ −2λ' α²v/(α²v + σ²) dt = ln(1 + v e^{2λ}) between the ends of λ
    integral = torch.log1p(0.25 * torch.exp(2 * first)) - torch.log1p(0.25 * torch.exp(2 * last))
    assert abs(by_importance.mean() - integral) < 4 * by_importance.std() / math.sqrt(n)
    assert uniform.var() > 100 * by_importance.var()


def test_stratified_puts_one_number_in_every_part():
    u = Stratified().draw(1000, torch.Generator().manual_seed(3)).u
    assert torch.equal((u * 1000).floor(), torch.arange(1000).double())
    inside = u * 1000 - torch.arange(1000)
    assert 0.45 < inside.mean() < 0.55


def test_loss_refuses_noise_of_another_shape():
    exact = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    with pytest.raises(ValueError, match="eps must have the shape"):
        denoising_loss(exact, torch.zeros(3, 2), torch.tensor(0.5).double(), torch.zeros(3, 1))


def test_p2_weight_is_the_power_of_the_snr_and_without_it_the_simple_objective():
    sde = VPSDE()
    t = torch.tensor([1e-3, 0.1, 0.9], dtype=torch.float64)
    snr = sde.alpha(t) ** 2 / sde.sigma(t) ** 2
    for gamma, k in ((0.5, 1.0), (1.0, 2.0)):
        assert torch.allclose(P2(gamma, k)(sde, t), 1 / (k + snr) ** gamma, rtol=1e-12)
    assert torch.equal(P2(0.0)(sde, t), perceptual(sde, t))
    with pytest.raises(ValueError, match="gamma must be finite and at least 0, got -1"):
        P2(-1.0)


@pytest.mark.parametrize("sde", SDES, ids=names)
def test_edm_weight_is_the_published_one_on_the_denoised_data(sde: LinearSDE):
    d = 0.7
    generator = torch.Generator().manual_seed(0)
    x0, eps, made = torch.randn(3, 40, 2, generator=generator, dtype=torch.float64)
    t = UniformTimes().time(sde, Stratified().draw(40, generator).u, 1e-3)
    s = sde.sigma(t) / sde.alpha(t)

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
            return made

    model = ScoreModel(Network(), sde, "edm", sigma_data=d)
    found = denoising_loss(model, x0, t, eps, EDM(d))
    x_t = sde.perturb(x0, t, eps)
    error = (x0 - model.denoise(x_t, t)).square().mean(1)
    assert torch.allclose(found, (s**2 + d**2) / (s * d) ** 2 * error, rtol=1e-6)
    # It is the error of the inner network, whose target is (x0 − c_skip y)/c_out.
    s, total = s[:, None], (s**2 + d**2)[:, None]
    y = x0 + s * eps
    target = (x0 - d**2 / total * y) / (s * d / total.sqrt())
    assert torch.allclose(found, (target - made).square().mean(1), rtol=1e-6)


@pytest.mark.parametrize("sde", SDES, ids=names)
def test_the_best_inner_network_of_edm_is_zero_on_a_gaussian_of_its_width(sde: LinearSDE):
    d = 0.7

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
            return self.out[0] + self.out[1] * x

    model = ScoreModel(Network(), sde, "edm", sigma_data=d)
    z, p = hermite(20)
    x0, eps, p = quadrature(d * z, p, 20)
    for t in torch.tensor([0.02, 0.4, 0.9], dtype=torch.float64):
        loss = p @ denoising_loss(model, x0, t, eps, EDM(d))
        (slope,) = torch.autograd.grad(loss, model.network.out)
        assert slope.abs().max() < 1e-9
        assert torch.isclose(loss, torch.ones_like(loss), rtol=1e-9)  # at every level


def test_vdm_loss_is_an_integral_over_the_snr_whatever_the_schedule():
    # −½ ∫ SNR' mmse dt of N(0, v): mmse = v/(1 + v SNR), so ½ ln(1 + v SNR) between the ends.
    v = 0.3
    first = 3.5
    last = -4.0
    nodes, weights = np.polynomial.legendre.leggauss(400)

    class Warped(LinearSDE):
        """VP at an uneven speed."""

        def alpha(self, t: Tensor) -> Tensor:
            return VPSDE().alpha(0.1 * t + 0.9 * t**3)

        def sigma(self, t: Tensor) -> Tensor:
            return VPSDE().sigma(0.1 * t + 0.9 * t**3)

    class Cut(LinearSDE):
        """One that ends where its λ is ``last``."""

        def __init__(self, sde: LinearSDE) -> None:
            self.inner = sde
            self.horizon = float(sde.time(torch.tensor(last).double()))

        def alpha(self, t: Tensor) -> Tensor:
            return self.inner.alpha(t)

        def sigma(self, t: Tensor) -> Tensor:
            return self.inner.sigma(t)

    expected = 0.5 * (math.log1p(v * math.exp(2 * first)) - math.log1p(v * math.exp(2 * last)))
    for inner in (*SDES, Warped()):
        sde = Cut(inner)
        t_min = float(inner.time(torch.tensor(first).double()))
        u = torch.from_numpy((nodes + 1) / 2)
        law = LikelihoodTimes()
        t = law.time(sde, u, t_min)
        snr = torch.exp(2 * inner.lambda_(t))
        mmse = v * snr / (1 + v * snr)  # of eps
        found = torch.from_numpy(weights / 2) @ (VDM(t_min)(sde, t) * mmse)
        assert abs(found - expected) < 1e-8
        # The same by −½ SNR' on ‖x0 − x̂0‖², over t itself.
        t = t_min * (sde.horizon / t_min) ** u
        pace = t * math.log(sde.horizon / t_min)
        slope = derivative(lambda t: torch.exp(2 * inner.lambda_(t)), t)  # noqa: B023
        x0_mmse = v / (1 + v * torch.exp(2 * inner.lambda_(t)))
        published = torch.from_numpy(weights / 2) @ (-0.5 * slope * x0_mmse * pace)
        assert abs(found - published) < 1e-8
        weight = VDM(t_min)(sde, t) * law.density(sde, t, t_min)
        assert torch.allclose(weight, 0.5 * likelihood(sde, t), rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_flow_matching_is_the_squared_distance_of_velocities(prediction: str):
    sde = RectifiedFlow()
    generator = torch.Generator().manual_seed(0)
    x0, eps, made = torch.randn(3, 40, 2, generator=generator, dtype=torch.float64)

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return made * (1 + c[:, None]) - x

    model = ScoreModel(Network(), sde, prediction)
    t = UniformTimes().time(sde, Stratified().draw(40, generator).u, 1e-3)
    u_theta = model.velocity(sde.perturb(x0, t, eps), t)
    expected = (eps - x0 - u_theta).square().mean(1)
    found = denoising_loss(model, x0, t, eps, flow_matching)
    assert torch.allclose(found, expected, rtol=1e-9)
    assert torch.allclose(flow_matching(sde, t), 1 / sde.alpha(t) ** 2, rtol=1e-12)


@pytest.mark.parametrize("sde", SDES, ids=names)
def test_flow_matching_holds_for_every_interpolant(sde: LinearSDE):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 40, 1, generator=generator, dtype=torch.float64)
    exact = Gaussian(torch.tensor([0.3]), torch.tensor([[0.5]])).diffused(sde)
    t = UniformTimes().time(sde, Stratified().draw(40, generator).u, 1e-2)
    u = derivative(sde.alpha, t)[:, None] * x0 + derivative(sde.sigma, t)[:, None] * eps
    error = (u - exact.velocity(sde.perturb(x0, t, eps), t)).square()[:, 0]
    found = denoising_loss(exact, x0, t, eps, flow_matching)
    assert torch.allclose(found, error, rtol=1e-6)


def test_exact_weights_are_those_of_ho_et_al():
    betas = linear_betas(1000)
    chain = Chain.ddpm(betas)
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    t = LatticeTimes(1000).time(chain.sde, u, 0.0)
    bars = torch.cumprod(1 - betas, 0)
    expected = betas**2 / (2 * betas * (1 - betas) * (1 - bars))
    assert torch.allclose(ExactWeighting(1000)(chain.sde, t), expected, rtol=1e-10)


@pytest.mark.parametrize("sde", [s for s in SDES if s.horizon == 1.0], ids=names)
def test_exact_weights_are_those_of_the_chains_bound(sde: LinearSDE):
    n = 40
    generator = torch.Generator().manual_seed(0)
    chain = Chain(sde, lattice(n))
    k = torch.arange(1, n + 1)
    x0, eps, wrong = torch.randn(3, n, 2, generator=generator, dtype=torch.float64)
    x = chain.perturb(x0, k, eps)
    x0_hat = (x - chain.sigma[k][:, None] * wrong) / chain.alpha[k][:, None]

    def bound(x0_hat: Tensor) -> Tensor:
        return step_bound(x0, x0_hat, x, chain, k, ForwardVariance(), GaussianDecoder())

    # Less what is left where x̂0 = x0.
    found = ExactWeighting(n)(sde, chain.times[k]) * (eps - wrong).square().sum(1)
    assert torch.allclose(found, bound(x0_hat) - bound(x0), rtol=1e-9)
    at = chain.data_weights.square() / (2 * chain.betas) * (chain.sigma / chain.alpha)[1:] ** 2
    assert torch.allclose(ExactWeighting(n)(sde, chain.times[1:]), at, rtol=1e-12)
