"""The continuous-time bound against exact densities, closed forms and a transcribed theorem 3."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineBeta,
    Gaussian,
    GaussianMixture,
    LinearBeta,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
)
from sde_diffusion._seeds import mix
from sde_diffusion.likelihood.continuous_bound import elbo, prior_kl, score_form
from sde_diffusion.likelihood.decoders import (
    BinDecoder,
    GaussianDecoder,
    LevelDecoder,
    bin_centres,
)
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.objectives.weighting import likelihood
from sde_diffusion.scores import ScoreLike
from sde_diffusion.time_distributions import LikelihoodTimes, log_snr_range


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def correlated(d: int, event: tuple[int, ...] | None = None) -> Gaussian:
    a = torch.randn(d, d, generator=generator(), dtype=torch.float64)
    mean = 0.5 * torch.randn(event or (d,), generator=generator(1), dtype=torch.float64)
    return Gaussian(mean, a @ a.mT / d + 0.1 * torch.eye(d, dtype=torch.float64))


def mixture(*event: int) -> GaussianMixture:
    means = torch.randn(4, *event, generator=generator(2), dtype=torch.float64)
    return GaussianMixture([1, 2, 3, 4], means, stds=[0.3, 0.5, 0.2, 0.4])


def within(error: Tensor, se: Tensor, bias: float = 0.0) -> None:
    """Errors of mean at most ``bias``, and as large as their standard errors say."""
    n = len(error)
    assert abs(float(error.mean())) < bias + 4 * float(se.square().sum().sqrt()) / n
    # The mean squares agree within what n errors and the few pairs of each allow.
    assert float(error.square().mean() / se.square().mean()) == pytest.approx(1, abs=6 / n**0.5)


DATA = {
    "gaussian-2": correlated(2),
    "gaussian-16": correlated(16),
    "gaussian-64": correlated(64),
    "gaussian-image": correlated(64, (1, 8, 8)),
    "mixture-2": mixture(2),
    "mixture-16": mixture(16),
    "mixture-64": mixture(64),
    "mixture-image": mixture(1, 8, 8),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_of_an_exact_score_it_is_the_exact_likelihood_of_every_sample(data) -> None:
    """The reverse of the exact score draws q(path|x0) itself: only prior and decoder remain."""
    x = data.sample(100, generator(3))
    bound = elbo(x, data.diffused(VPSDE()), draws=64)
    # KL(p_1‖N(0, I)) is about alpha²‖x‖²/2; the decoder loses about D (sigma/std)² at 1e-5.
    bias = 5e-5 * float(x.square().flatten(1).sum(1).mean()) + 1e-4 * data.dimension
    within(bound.nats - data.log_prob(x), bound.standard_error, bias)
    assert torch.allclose(-sum(bound.terms.values()), bound.nats, rtol=1e-12)
    bits = -bound.nats / (data.dimension * math.log(2))
    assert torch.allclose(bound.bits_per_dim, bits, rtol=1e-12)


@pytest.mark.parametrize(
    "sde",
    [SubVPSDE(), VESDE(0.01, 50.0), EDMSDE(80.0), RectifiedFlow(), VPSDE(CosineBeta())],
    ids=lambda sde: type(sde).__name__,
)
def test_under_every_sde(sde) -> None:
    data = correlated(4)
    x = data.sample(100, generator(3))
    bound = elbo(x, data.diffused(sde), draws=64)
    start = likelihood_gap(data, sde)
    within(bound.nats - data.log_prob(x) + start, bound.standard_error, 1e-9)


def likelihood_gap(data: Gaussian, sde, t_min: float = 1e-5) -> float:
    """E of the bound less the entropy: KL(p_T‖π) + E KL(q(x0|x_ε)‖decoder), in closed form."""
    v = data.variances[0]
    m2 = data.means[0].square().sum()

    def level(t: float) -> tuple[Tensor, Tensor]:
        return sde.alpha(number(t)) ** 2, sde.sigma(number(t)) ** 2

    (a2, s2) = level(sde.horizon)
    std2 = sde.prior().std ** 2
    last = (a2 * v + s2) / std2
    prior = 0.5 * (last - 1 - last.log()).sum() + 0.5 * a2 * m2 / std2
    a2, s2 = level(t_min)
    noise = s2 / a2  # the decoder's variance; x0|x_ε has variance v noise/(v + noise)
    own = v * noise / (v + noise)
    # E(decoder mean − posterior mean)² = (noise/(v + noise))² Var(x_ε/alpha − m)
    shift = (noise / (v + noise)) ** 2 * (v + noise)
    decoder = 0.5 * (own / noise - 1 - (own / noise).log() + shift / noise).sum()
    return float(prior + decoder)


def test_averages_are_entropy_plus_prior_mismatch_plus_the_decoders_gap() -> None:
    """A coarse end and a weak beta make both large: t_min = .05, β = 3."""
    data = correlated(3)
    sde = VPSDE(LinearBeta(3.0, 3.0))
    x = data.sample(4000, generator(5))
    bound = elbo(x, data.diffused(sde), draws=32, t_min=0.05)
    excess = -bound.nats + data.log_prob(x)
    gap = likelihood_gap(data, sde, 0.05)
    assert gap > 0.1
    error = 4 * float(excess.std()) / len(x) ** 0.5
    assert error < 0.1 * gap
    assert float(excess.mean()) == pytest.approx(gap, abs=error)


class Scaled(ScoreLike):
    """A model whose score is (1 + δ) times the exact one."""

    def __init__(self, model, delta: float) -> None:
        self.model = model
        self.sde = model.sde
        self.delta = delta

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        return (1 + self.delta) * self.model.eps(x, t)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return (1 + self.delta) * self.model(x, t)


def test_a_wrong_score_costs_half_the_integral_of_its_squared_error() -> None:
    """½ ∫ g² δ² E‖∇log p‖² dt, which for N(0, v I) is D δ² [λ − ½ log(1 + v e^{2λ})]."""
    v = 0.3
    d = 5
    delta = 0.2
    sde = VPSDE()
    data = Gaussian(torch.zeros(d), v * torch.eye(d).double())
    x = data.sample(2000, generator(4))
    model = data.diffused(sde)
    right, wrong = (elbo(x, m, draws=64) for m in (model, Scaled(model, delta)))
    ends = torch.stack(log_snr_range(sde, 1e-5))
    primitive = ends - 0.5 * torch.log1p(v * torch.exp(2 * ends))
    expected = d * delta**2 * float(primitive[0] - primitive[1])
    cost = right.nats - wrong.nats
    error = 4 * float(cost.std()) / len(x) ** 0.5
    assert error < 0.2 * expected
    assert float(cost.mean()) == pytest.approx(expected, abs=error)


@pytest.mark.parametrize(
    "sde",
    [VPSDE(), SubVPSDE(), VESDE(0.01, 50.0), EDMSDE(80.0), RectifiedFlow()],
    ids=lambda sde: type(sde).__name__,
)
def test_vdm_form_is_invariant_to_the_schedule(sde) -> None:
    """½ ∫ g²/sigma² E‖eps − eps_θ‖² dt between two values of λ, by Gauss–Legendre in t."""
    v = 0.3
    x0 = 0.7
    first = 3.0
    last = -3.0

    def primitive(lambda_: float) -> float:
        # E‖eps − eps_θ‖² = (SNR v/(1 + SNR v))² + SNR x0²/(1 + SNR v)² at fixed x0
        snr = math.exp(2 * lambda_)
        return 0.5 * (math.log1p(snr * v) + 1 / (1 + snr * v) - x0**2 / v / (1 + snr * v))

    # Equal pieces in λ, each smooth enough in t for the rule.
    knots = sde.time(torch.linspace(last, first, 41, dtype=torch.float64)).flip(0)
    nodes, weights = legendre(20)
    t = (0.5 * (knots[1:] + knots[:-1])[:, None] + 0.5 * knots.diff()[:, None] * nodes).flatten()
    dt = (0.5 * knots.diff()[:, None] * weights).flatten()
    eps = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]  # exact for a square
    model = Gaussian(torch.zeros(1), v * torch.eye(1).double()).diffused(sde)
    total = 0.0
    for e in eps:
        noise = e.expand(len(t), 1)
        data = torch.full((len(t), 1), x0, dtype=torch.float64)
        x0_hat = model.denoise(sde.perturb(data, t, noise), t)
        snr = (sde.alpha(t) / sde.sigma(t)) ** 2
        falls = likelihood(sde, t) * snr  # −SNR' = (g²/sigma²) SNR
        total += 0.25 * float((dt * falls * (x0 - x0_hat[:, 0]) ** 2).sum())
    assert total == pytest.approx(primitive(first) - primitive(last), abs=1e-8)


def legendre(n: int) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights on [−1, 1] by the eigenvalues of Jacobi's matrix."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, 2 * vectors[0] ** 2


def test_equal_draws_under_other_schedules_give_the_equal_bound() -> None:
    """With the same ends of λ every path has the same x_t/alpha, so every number is the same."""
    data = correlated(3)
    x = data.sample(5, generator())
    b = float(CosineBeta().integral(number(1.0)))
    reference = VPSDE(CosineBeta())
    first = float(reference.lambda_(number(1e-3)))
    alike = VPSDE(LinearBeta(b, b))
    straight = EDMSDE(math.exp(-float(reference.lambda_(number(1.0)))))
    one, *others = (
        elbo(x, data.diffused(sde), draws=20, t_min=float(sde.time(number(first))))
        for sde in (reference, alike, straight)
    )
    for other in others:
        assert torch.allclose(other.terms["diffusion"], one.terms["diffusion"], rtol=1e-8)
        same = other.terms["reconstruction"]
        assert torch.allclose(same, one.terms["reconstruction"], rtol=1e-8)


@pytest.mark.parametrize(
    "sde", [VPSDE(), SubVPSDE(), EDMSDE(80.0)], ids=lambda sde: type(sde).__name__
)
def test_theorem_3_with_equal_draws_is_the_same_bound(sde) -> None:
    """Song et al. 2021 transcribed in g, scores and ∇·f, on the draws of the same seed.

    −E log π(x_T) + ½ ∫ E[g²‖s − ∇log q‖² − g²‖∇log q‖² − 2∇·f] dt bounds −E log p(x_{t_min});
    the end, E log q(x_{t_min}|x0) − E log p(x0|x_{t_min}), is −D log alpha(t_min).
    """
    data = correlated(3)
    d = 3
    draws = 40
    t_min = 1e-4
    model = data.diffused(sde)
    x = data.sample(6, generator())
    bound = elbo(x, model, draws=draws, seed=9, first=2, t_min=t_min)
    song = score_form(bound, x, sde)
    noise = PerSampleNoise.numbered(mix(9, 11), 2, len(x))
    first, last = log_snr_range(sde, t_min)
    integral = torch.zeros(6, dtype=torch.float64)
    c = torch.ones(6, dtype=torch.float64)
    for stratum in range(draws // 2):
        level = torch.zeros(6, dtype=torch.float64)
        for _ in range(2):
            u = torch.special.ndtr(noise.normal(torch.empty(6, 1, dtype=torch.float64))[:, 0])
            t = LikelihoodTimes().time(sde, (stratum + u) / (draws // 2), t_min)
            eps = noise.normal(x)
            g2 = sde.g(t) ** 2
            sigma = sde.sigma(t)
            density = g2 / sigma**2 / (2 * (first - last))
            q_score = -eps / sigma[:, None]
            x_t = sde.alpha(t)[:, None] * x + sigma[:, None] * eps
            distance = (model.score(x_t, t) - q_score).square().sum(1)
            # E‖∇log q‖² = D/sigma², and c of the difference from it as control variate
            control = c * (q_score.square().sum(1) - d / sigma**2)
            integrand = 0.5 * g2 * (distance - control - d / sigma**2)
            integral += integrand / density / draws
            level += 0.5 * distance * sigma**2 / d
        c = 0.5 * (c + level)
    assert torch.allclose(song.terms["score"], integral, rtol=1e-9)
    nodes, weights = legendre(20)
    knots = torch.linspace(t_min, sde.horizon, 201, dtype=torch.float64)
    t = 0.5 * (knots[1:] + knots[:-1])[:, None] + 0.5 * knots.diff()[:, None] * nodes
    divergence = d * float((0.5 * knots.diff()[:, None] * weights * sde.rate(t)).sum())
    ones = torch.ones(6, dtype=torch.float64)
    assert torch.allclose(song.terms["divergence"], -divergence * ones, rtol=1e-9, atol=1e-12)
    std = sde.prior().std
    (mean, sigma) = sde.marginal(x, number(sde.horizon))
    cross = 0.5 * (mean.square().sum(1) + d * sigma**2) / std**2
    cross = cross + 0.5 * d * math.log(2 * math.pi * std**2)
    assert torch.allclose(song.terms["prior"], cross, rtol=1e-12)
    end = -d * sde.alpha(number(t_min)).log()
    assert torch.allclose(song.terms["end"], end * ones, atol=1e-11)
    assert torch.allclose(-sum(song.terms.values()), bound.nats, rtol=1e-11)


class NoControl:
    """c = 0: the plain estimate."""

    def __init__(self, x: Tensor) -> None:
        self.c = torch.zeros(len(x), dtype=torch.float64)

    def see(self, one: Tensor, other: Tensor) -> None:
        """Learn nothing."""


def test_the_control_variate_cuts_the_error_and_moves_nothing(monkeypatch) -> None:
    data = correlated(16)
    model = data.diffused(VPSDE())
    x = data.sample(200, generator(3))
    with_it = elbo(x, model, draws=64)
    monkeypatch.setattr("sde_diffusion.likelihood.continuous_bound.Control", NoControl)
    without = elbo(x, model, draws=64)
    variances = [b.standard_error.square().mean() for b in (with_it, without)]
    assert variances[0] < 0.25 * variances[1]
    difference = with_it.nats - without.nats
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / 200**0.5


# Decoders


@pytest.mark.parametrize("levels", [256, 17])
@pytest.mark.parametrize("kind", [BinDecoder, LevelDecoder])
def test_decoder_sums_to_1_over_the_levels(kind, levels: int) -> None:
    centres = bin_centres(levels)
    decoder = kind(centres)
    for mean in (-3.0, -0.99, 0.001, 0.4, 1.5):
        for std in (1e-3, 0.01, 0.3, 5.0):
            log_p = decoder.log_prob(
                centres[:, None], number(mean).expand(levels, 1), number(std**2)
            )
            assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_bins_are_those_of_ho_et_al() -> None:
    """Equation 13 as published, on x = 2k/255 − 1: CDF differences with open ends."""
    k = torch.arange(256, dtype=torch.float64)
    x = 2 * k / 255 - 1
    mean = x + 0.02 * torch.sin(k)
    std = 0.01

    def cdf(y: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf((y - mean) / std / math.sqrt(2)))

    upper = torch.where(x > 0.999, torch.ones_like(x), cdf(x + 1 / 255))
    lower = torch.where(x < -0.999, torch.zeros_like(x), cdf(x - 1 / 255))
    found = BinDecoder(x).log_prob(x[:, None], mean[:, None], number(std**2))
    assert torch.allclose(found, (upper - lower).log(), rtol=1e-9, atol=1e-9)


def test_a_bin_keeps_its_digits_far_in_either_tail() -> None:
    """50 standard deviations off, where 1 − Φ is 0 in float64: ∫ N over the bin by a fine sum."""
    centres = bin_centres(10)
    std = 0.01
    y = torch.linspace(0.2, 0.4, 200_001, dtype=torch.float64)  # the bin of .3
    weights = torch.full_like(y, float(y[1] - y[0])).log()
    weights[0] -= math.log(2)
    weights[-1] -= math.log(2)
    for mean in (-0.3, 0.9):
        log_density = -0.5 * ((y - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
        exact = float((log_density + weights).logsumexp(0))
        for sign in (1, -1):  # and mirrored
            found = BinDecoder(centres).log_prob(
                number(sign * 0.3).reshape(1, 1), number(sign * mean).reshape(1, 1), number(1e-4)
            )
            assert float(found) == pytest.approx(exact, rel=1e-6)
            assert exact < -1000


def test_levels_are_those_of_vdm() -> None:
    """P(k|x_t) ∝ N(x_t; alpha x_k, sigma²)."""
    sde = VPSDE()
    t = number(0.02)
    centres = bin_centres(17)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x0 = centres[torch.randint(17, (8, 3), generator=generator())]
    x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator(1), dtype=torch.float64)
    joint = torch.distributions.Normal(alpha * centres, sigma).log_prob(x_t[:, :, None])
    k = ((x0 + 1) * 17 / 2).floor().long()
    expected = joint.log_softmax(2).gather(2, k[:, :, None]).sum((1, 2))
    found = LevelDecoder(centres).log_prob(x0, x_t / alpha, (sigma / alpha) ** 2)
    assert torch.allclose(found, expected, rtol=1e-10)


def test_gaussian_decoder_is_the_normal_density() -> None:
    x, mean = torch.randn(2, 5, 3, generator=generator(), dtype=torch.float64)
    expected = torch.distributions.Normal(mean, 0.3).log_prob(x).sum(1)
    assert torch.allclose(GaussianDecoder().log_prob(x, mean, number(0.09)), expected)


@pytest.mark.parametrize("t_min", [1e-5, 0.003])
def test_on_integers_it_is_the_log_probability_itself(t_min: float) -> None:
    """The pmf of two pixels of 5 levels, its exact score by 25 points: −log P(k), no offset."""
    centres = bin_centres(5)
    sde = VPSDE()
    points = torch.cartesian_prod(centres, centres)
    p = torch.rand(25, generator=generator(), dtype=torch.float64) + 0.05
    p = p / p.sum()
    model = GaussianMixture(p, points, stds=[1e-5] * 25).diffused(sde)
    k = torch.multinomial(p, 100, replacement=True, generator=generator(1))
    bound = elbo(points[k], model, decoder=LevelDecoder(centres), draws=200, t_min=t_min)
    within(bound.nats - p[k].log(), bound.standard_error, 1e-4)
    if t_min < 1e-4:  # the decoder is certain: no noise of the draws, nor a control of it
        assert float(bound.terms["reconstruction"].abs().max()) < 1e-9


def test_where_the_decoder_does_not_see_which_level_it_lies_below() -> None:
    """At sigma of half a level, pixels on their own lose what they know of each other."""
    centres = bin_centres(5)
    sde = VPSDE()
    points = torch.cartesian_prod(centres, centres)
    p = torch.eye(5, dtype=torch.float64).flatten() + 0.01
    p = p / p.sum()
    model = GaussianMixture(p, points, stds=[1e-5] * 25).diffused(sde)
    k = torch.multinomial(p, 300, replacement=True, generator=generator(1))
    bound = elbo(points[k], model, decoder=LevelDecoder(centres), draws=100, t_min=0.05)
    gap = p[k].log() - bound.nats
    assert float(gap.mean()) > 10 * float(gap.std()) / 300**0.5


def test_offset_of_dequantized_levels() -> None:
    model = correlated(2).diffused(VPSDE())
    x = 2 * torch.rand(3, 2, generator=generator(), dtype=torch.float64) - 1
    plain = elbo(x, model)
    of_17 = elbo(x, model, levels=17)
    assert torch.equal(plain.nats, of_17.nats)
    offset = torch.full((3,), math.log2(8.5), dtype=torch.float64)
    assert torch.allclose(of_17.bits_per_dim - plain.bits_per_dim, offset)
    with pytest.raises(ValueError, match="elbo: x must be dequantized"):
        elbo(bin_centres(17)[torch.arange(16).reshape(8, 2)], model, levels=17)


def test_prior_kl_of_a_normal_is_its_formula() -> None:
    sde = EDMSDE(2.0)
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    assert torch.allclose(prior_kl(x, sde), number(0.5 * 5 / 4))  # equal variances: ½‖x0‖²/σ²
    vp = VPSDE(LinearBeta(1.0, 1.0))
    q = torch.distributions.Normal(vp.alpha(number(1.0)) * x, vp.sigma(number(1.0)))
    normal = torch.distributions.Normal(torch.zeros_like(x), 1.0)
    expected = torch.distributions.kl_divergence(q, normal).sum(1)
    assert torch.allclose(prior_kl(x, vp), expected, rtol=1e-12)


# Draws, counts and refusals


@pytest.mark.parametrize("decoder", [None, LevelDecoder(bin_centres(17))], ids=["real", "levels"])
def test_a_value_is_the_same_alone_and_in_a_batch_bit_for_bit(decoder) -> None:
    data = mixture(1, 8, 8)
    model = data.diffused(VPSDE())
    x = bin_centres(17)[torch.randint(17, (9, 1, 8, 8), generator=generator())]
    whole = elbo(x, model, decoder=decoder, draws=10, seed=3)
    for i, j in ((0, 1), (1, 4), (4, 9)):
        part = elbo(x[i:j], model, decoder=decoder, draws=10, seed=3, first=i)
        assert torch.equal(part.nats, whole.nats[i:j])
        assert torch.equal(part.standard_error, whole.standard_error[i:j])


def test_float32_gives_the_same_to_its_rounding() -> None:
    """Other draws, as float32 normals are others: so in terms of what both estimate."""
    data = mixture(16)
    x = data.sample(200, generator())
    single = elbo(x.float(), data.diffused(VPSDE()), draws=64)
    assert single.nats.dtype == torch.float64
    within(single.nats - data.log_prob(x), single.standard_error, 0.01)


class Network(nn.Module):
    """eps = x, counting its calls."""

    calls = rows = 0

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        self.calls = self.calls + 1
        self.rows = max(self.rows, len(x))
        return x


def test_one_draw_is_one_call_of_one_batch() -> None:
    network = Network()
    model = ScoreModel(network, VPSDE()).eval()
    assert elbo(torch.zeros(3, 2), model, draws=8).nfe == 8
    assert (network.calls, network.rows) == (8, 3)


class Bad(nn.Module):
    """NaN."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        return x * math.nan


def test_refusals() -> None:
    model = correlated(2).diffused(VPSDE())
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"draws must be even.*got 7; pass draws=8"):
        elbo(x, model, draws=7)
    with pytest.raises(ValueError, match="evaluation mode"):
        elbo(x, ScoreModel(Network(), VPSDE()))
    with pytest.raises(TypeError, match="model must be a score model of a LinearSDE"):
        elbo(x, lambda x, _: x)
    with pytest.raises(ValueError, match=r"lie on the 4 levels of the decoder, got a value 0\.25"):
        elbo(x, model, decoder=LevelDecoder(bin_centres(4)))
    with pytest.raises(ValueError, match="levels must be left out with a decoder of levels"):
        elbo(x + 0.25, model, decoder=LevelDecoder(bin_centres(4)), levels=4)
    with pytest.raises(ValueError, match="centres must be two or more rising numbers"):
        BinDecoder(torch.ones(3))
    with pytest.raises(FloatingPointError, match="the diffusion term must be finite"):
        elbo(x, ScoreModel(Bad(), VPSDE()).eval())
