"""The chain, its variances and its bound against published formulas and exact Gaussian answers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    DiscreteBeta,
    Exact,
    Gaussian,
    GaussianMixture,
    LinearBeta,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    cosine_betas,
    lattice,
    linear_betas,
    log_prob,
    trailing,
    uniform,
)
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.ddpm.discrete_bound import step_bound, vlb
from sde_diffusion.ddpm.variances import (
    AnalyticVariance,
    ForwardVariance,
    LearnedVariance,
    PosteriorVariance,
    Variance,
    reverse_step,
)
from sde_diffusion.likelihood.continuous_bound import elbo, prior_kl
from sde_diffusion.likelihood.decoders import BinDecoder, GaussianDecoder, bin_centres
from sde_diffusion.solvers import DormandPrince

NORMAL = GaussianDecoder()
LINEAR = Chain.ddpm(linear_betas(1000))
COSINE = Chain.ddpm(cosine_betas(1000))
CHAINS = {
    "linear": LINEAR,
    "cosine": COSINE,
    "respaced": Chain(LINEAR.sde, trailing(1000, 50)),
    "sub-vp": Chain(SubVPSDE(), lattice(100)),
    "edm": Chain(EDMSDE(80.0), lattice(100)),
    "flow": Chain(RectifiedFlow(), uniform(100, 0.999, 0.0)),
}
every_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def normal(v: float, d: int = 1) -> Gaussian:
    return Gaussian(torch.zeros(d), v * torch.eye(d, dtype=torch.float64))


def correlated(d: int = 3) -> Gaussian:
    a = randn(d, d)
    return Gaussian(0.5 * randn(d, seed=1), a @ a.mT / d + 0.1 * torch.eye(d).double())


def same(k: int, n: int) -> Tensor:
    return torch.full((n,), k)


# The chain


@pytest.mark.parametrize(
    ("chain", "alpha_bar", "bits"),
    [(LINEAR, 4.0358e-5, 2.9112e-5), (COSINE, 2.43e-9, 1.753e-9)],
    ids=["linear", "cosine"],
)
def test_published_constants(chain, alpha_bar, bits) -> None:
    """ᾱ_1000, and L_T in bits per dimension at x0 = ±1."""
    assert float(chain.alpha_bars[-1]) == pytest.approx(alpha_bar, rel=2e-3)
    x0 = torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64)
    assert float(prior_kl(x0, chain.sde)) / 3 / math.log(2) == pytest.approx(bits, rel=2e-3)


def test_forward_steps_make_the_closed_form() -> None:
    """Affine in (x0, z_1 … z_k): the mean factor and the summed squares of the noise factors."""
    betas = cosine_betas(20)
    chain = Chain.ddpm(betas)
    one = torch.ones(1, 1, dtype=torch.float64)
    mean = one
    variance = 0 * one
    for k in range(1, 21):
        mean = chain.step(mean, k, 0 * one)
        variance = chain.step(variance.sqrt(), k, 0 * one) ** 2 + chain.step(0 * one, k, one) ** 2
        assert torch.allclose(mean, chain.perturb(one, k, 0 * one), rtol=1e-12)
        assert torch.allclose(variance, chain.perturb(0 * one, k, one) ** 2, rtol=1e-12)
        assert torch.allclose(chain.step(0 * one, k, one) ** 2, betas[k - 1], rtol=1e-12)


def test_posterior_is_that_of_ho_et_al() -> None:
    """Equations 6, 7 and 11 with the products of 1 − β_k, all k at once."""
    betas = linear_betas(1000)
    bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1).double(), bar[:-1]])
    x0 = randn(1000, 3)
    eps = randn(1000, 3, seed=1)
    k = torch.arange(1, 1001)
    x = bar.sqrt()[:, None] * x0 + (1 - bar).sqrt()[:, None] * eps
    expected = (before.sqrt() * betas / (1 - bar))[:, None] * x0
    expected += ((1 - betas).sqrt() * (1 - before) / (1 - bar))[:, None] * x
    mean, variance = LINEAR.posterior(x, x0, k)
    assert torch.allclose(mean, expected, rtol=0, atol=1e-12)
    assert torch.allclose(variance, (1 - before) / (1 - bar) * betas, rtol=1e-10, atol=1e-18)
    by_eps = (x - (betas / (1 - bar).sqrt())[:, None] * eps) / (1 - betas).sqrt()[:, None]
    assert torch.allclose(LINEAR.posterior_mean(x, eps, k), by_eps, rtol=0, atol=1e-12)
    assert torch.allclose(LINEAR.perturb(x0, k, eps), x, rtol=0, atol=1e-13)


@every_chain
def test_both_forms_of_the_posterior_agree(chain) -> None:
    n = len(chain)
    x0 = randn(n, 3)
    eps = randn(n, 3, seed=1)
    k = torch.arange(1, n + 1)
    x = chain.perturb(x0, k, eps)
    scale = chain.sigma.max()
    mean = chain.posterior(x, x0, k)[0]
    assert torch.allclose(mean, chain.posterior_mean(x, eps, k), rtol=0, atol=1e-12 * scale)


@every_chain
def test_posterior_is_gaussian_conditioning_of_the_joint(chain) -> None:
    """(x_{k−1}, x_k) given x0 is normal with covariance [[s², a s²], [a s², a² s² + b²]]."""
    n = len(chain)
    x0 = randn(n, 3)
    x = randn(n, 3, seed=1)
    k = torch.arange(1, n + 1)
    a = (chain.alpha[1:] / chain.alpha[:-1])[:, None]
    s2 = chain.sigma[:-1, None] ** 2
    b2 = chain.betas[:, None]
    gain = a * s2 / (a**2 * s2 + b2)
    expected = chain.alpha[:-1, None] * x0 + gain * (x - a * chain.alpha[:-1, None] * x0)
    mean, variance = chain.posterior(x, x0, k)
    assert torch.allclose(mean, expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(variance[:, None], s2 - gain * a * s2, rtol=1e-7, atol=1e-13)
    # The kernel itself: noise of two steps adds up to the closed form.
    assert torch.allclose(a**2 * s2 + b2, chain.sigma[1:, None] ** 2, rtol=1e-12)


def test_betas_lead_to_the_sde_and_back() -> None:
    for betas in (linear_betas(1000), cosine_betas(50)):
        assert torch.allclose(Chain.ddpm(betas).betas, betas, rtol=1e-12)
    # From a continuous SDE: the DDPM that has its marginals at the lattice exactly.
    chain = Chain(VPSDE(), lattice(200))
    again = Chain.ddpm(chain.betas)
    assert max(again.gap(VPSDE())) < 1e-11


def test_gap_of_the_linear_ddpm_to_the_linear_sde_falls_as_one_over_n() -> None:
    def gap(n: int) -> tuple[float, ...]:
        k = torch.arange(1, n + 1, dtype=torch.float64)
        return Chain.ddpm((0.1 + 19.9 * k / n) / n).gap(VPSDE(LinearBeta()))

    for coarse, fine in zip(gap(4000), gap(8000), strict=True):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.05)


def test_respaced_betas_are_those_of_improved_diffusion() -> None:
    """β' = 1 − ᾱ_i/ᾱ_{last kept}; the respaced chain is the DDPM of them."""
    bar = torch.cumprod(1 - linear_betas(1000), 0)
    kept = (trailing(1000, 50) * 1000).round().long().flip(0)[1:]
    last = 1.0
    expected = []
    for i in kept.tolist():
        expected.append(1 - float(bar[i - 1]) / last)
        last = float(bar[i - 1])
    betas = CHAINS["respaced"].betas
    assert torch.allclose(betas, torch.tensor(expected, dtype=torch.float64), rtol=1e-11)
    data = correlated()
    x = data.sample(4, generator())
    part = vlb(x, data.diffused(LINEAR.sde), trailing(1000, 50))
    whole = vlb(x, data.diffused(VPSDE(DiscreteBeta(betas))), lattice(50))
    assert torch.allclose(part.nats, whole.nats, rtol=1e-9)


# Variances


def test_what_beta_as_variance_costs() -> None:
    """Σ_{k≥2} ½(β̃/β − 1 − log β̃/β): .486 bits per dimension linear, .432 cosine (all x0 known)."""
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    for chain, bits in ((LINEAR, 0.486), (COSINE, 0.432)):
        total = sum(
            float(step_bound(x0, x0, x0, chain, same(k, 1), ForwardVariance(), NORMAL))
            for k in range(2, 1001)
        )
        assert total / math.log(2) == pytest.approx(bits, abs=5e-4)
        for k in (2, 500, 1000):  # and β̃ costs nothing
            one = step_bound(x0, x0, x0, chain, same(k, 1), PosteriorVariance(), NORMAL)
            assert float(one) == pytest.approx(0, abs=1e-15)


def test_learned_variance_runs_from_posterior_to_forward() -> None:
    x = randn(999, 2)
    k = torch.arange(2, 1001)
    posterior = LINEAR.posterior_variances[1:, None]
    forward = LINEAR.betas[1:, None]

    def at(v: float) -> Tensor:
        return LearnedVariance(lambda x, _: torch.full_like(x, v)).at(LINEAR, x, k)

    assert torch.allclose(at(0.0), posterior.expand(-1, 2), rtol=1e-12)
    assert torch.allclose(at(1.0), forward.expand(-1, 2), rtol=1e-12)
    assert torch.allclose(at(0.5), (posterior * forward).sqrt().expand(-1, 2), rtol=1e-12)
    # v for every number, and at the time of the step
    own = LearnedVariance(lambda _, t: torch.stack([t, 0 * t], 1)).at(LINEAR, x, k)
    mixed = forward[:, 0].log() * k / 1000 + posterior[:, 0].log() * (1 - k / 1000)
    assert torch.allclose(own[:, 0], mixed.exp(), rtol=1e-12)
    assert torch.allclose(own[:, 1], posterior[:, 0], rtol=1e-12)


@every_chain
def test_analytic_variance_is_exact_on_n_0_v(chain) -> None:
    """Var(x_{k−1}|x_k) of x0 ~ N(0, v), by conditioning the unconditional joint."""
    v = 0.3
    total = chain.alpha**2 * v + chain.sigma**2
    a = chain.alpha[1:] / chain.alpha[:-1]
    exact = total[:-1] * chain.betas / total[1:]
    assert torch.allclose(a**2 * total[:-1] + chain.betas, total[1:], rtol=1e-12)
    power = chain.sigma[1:] ** 2 / total[1:]  # sigma² E‖∇log q‖²
    assert torch.allclose(AnalyticVariance(power).table(chain), exact, rtol=1e-9)


def test_analytic_variance_is_that_of_bao_et_al() -> None:
    """β̃ + (√((1−ᾱ_k)/(1−β_k)) − √(1−ᾱ_{k−1}−β̃_k))² (1 − (1−ᾱ_k) E‖s‖²/D)."""
    betas = linear_betas(1000)
    power = torch.linspace(0.1, 0.9, 1000, dtype=torch.float64)
    bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1).double(), bar[:-1]])
    tilde = (1 - before) / (1 - bar) * betas
    root = ((1 - bar) / (1 - betas)).sqrt() - (1 - before - tilde).clamp(min=0).sqrt()
    expected = tilde + root**2 * (1 - power)
    assert torch.allclose(AnalyticVariance(power).table(LINEAR), expected, rtol=1e-9)


def test_analytic_variance_from_data() -> None:
    data = normal(0.3, 4)
    chain = CHAINS["respaced"]
    x0 = data.sample(1500, generator())
    found = AnalyticVariance.estimated(data.diffused(chain.sde), x0, chain, seed=1)
    power = chain.sigma[1:] ** 2 / (0.3 * chain.alpha[1:] ** 2 + chain.sigma[1:] ** 2)
    # A mean of 6000 squares of normals: relative error √(2/6000), five times that at most.
    assert torch.allclose(found.power, power, rtol=5 * (2 / 6000) ** 0.5)
    assert float((found.power / power - 1).abs().max()) > 1e-4


def test_sampling_with_the_analytic_variance_keeps_every_marginal_of_n_0_v() -> None:
    """Affine in (x, z): the variance of each x_{k−1} is exact, even in 5 steps."""
    v = 0.3
    sde = VPSDE()
    one = torch.ones(1, 1, dtype=torch.float64)
    chain = Chain(sde, uniform(5, 1.0, 0.0))
    total = chain.alpha**2 * v + chain.sigma**2
    model = normal(v).diffused(sde)
    variance = AnalyticVariance(chain.sigma[1:] ** 2 / total[1:])
    for k in range(5, 1, -1):

        def step(x: Tensor, z: Tensor, k: int = k) -> Tensor:
            x0_hat = model.denoise(x, chain.times[k])
            return reverse_step(x, x0_hat, chain, same(k, 1), variance, z)

        there = step(one, 0 * one) ** 2 * total[k] + step(0 * one, one) ** 2
        assert float(there) == pytest.approx(float(total[k - 1]), rel=1e-12)
    last = reverse_step(one, 0.7 * one, chain, same(1, 1), variance, one)
    assert torch.allclose(last, 0.7 * one)  # no noise at the end


@pytest.mark.parametrize(
    ("kind", "name"), [(ForwardVariance(), "fixed_large"), (PosteriorVariance(), "fixed_small")]
)
def test_reverse_steps_are_those_of_diffusers(kind, name, monkeypatch) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDPMScheduler(1000, clip_sample=False, variance_type=name)
    betas = linear_betas(1000)
    scheduler.betas = betas
    scheduler.alphas = 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    x, z, eps = (randn(2, 1, 2, 3, seed=i) for i in range(3))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: z)
    for k in (1, 2, 300, 1000):
        theirs = scheduler.step(eps, k - 1, x).prev_sample
        x0_hat = (x - LINEAR.sigma[k] * eps) / LINEAR.alpha[k]
        ours = reverse_step(x, x0_hat, LINEAR, same(k, 2), kind, z)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


# The bound


class Clipped(Variance):
    """The published programs' σ_k²: β̃_1, which is 0, is replaced by β̃_2, for β as well."""

    def __init__(self, kind: Variance) -> None:
        self.kind = kind

    def table(self, chain: Chain) -> Tensor:
        table = self.kind.table(chain).clone()
        table[0] = chain.posterior_variances[1]
        return table


@pytest.mark.parametrize("kind", [ForwardVariance(), PosteriorVariance()], ids=repr)
def test_terms_are_those_of_improved_diffusion(kind) -> None:
    """_vb_terms_bpd transcribed: KL by means and log-variances, and the decoder at k = 1."""
    betas = linear_betas(1000)
    n = 6
    bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1).double(), bar[:-1]])
    tilde = betas * (1 - before) / (1 - bar)
    clipped = torch.cat([tilde[1:2], tilde[1:]]).log()
    log_v = clipped if kind == PosteriorVariance() else torch.cat([tilde[1:2], betas[1:]]).log()
    levels = 2 * torch.arange(256, dtype=torch.float64) / 255 - 1
    x0 = levels[torch.randint(256, (n, 5), generator=generator())]
    x0[0, 0], x0[0, 1] = -1.0, 1.0

    def mean(a: Tensor, x: Tensor, k: int) -> Tensor:
        b = betas[k - 1]
        pb = before[k - 1]
        cb = bar[k - 1]
        return pb.sqrt() * b / (1 - cb) * a + (1 - b).sqrt() * (1 - pb) / (1 - cb) * x

    def cdf(y: Tensor) -> Tensor:  # exact, where theirs is the approximation by tanh
        return 0.5 * (1 + torch.erf(y / math.sqrt(2)))

    for k in (1, 2, 10, 500, 1000):
        x = bar[k - 1].sqrt() * x0 + (1 - bar[k - 1]).sqrt() * randn(n, 5, seed=k)
        x0_hat = x0 + 0.01 * randn(n, 5, seed=k + 1)
        m1 = mean(x0, x, k)
        m2 = mean(x0_hat, x, k)
        v1 = clipped[k - 1]
        v2 = log_v[k - 1]
        kl = 0.5 * (-1.0 + v2 - v1 + (v1 - v2).exp() + (m1 - m2) ** 2 * (-v2).exp())
        upper, lower = ((x0 - m2 + s / 255) * (-0.5 * v2).exp() for s in (1, -1))
        mass = torch.where(x0 < -0.999, cdf(upper), cdf(upper) - cdf(lower))
        mass = torch.where(x0 > 0.999, 1 - cdf(lower), mass)
        theirs = kl if k > 1 else -mass.clamp(min=1e-12).log()
        ours = step_bound(x0, x0_hat, x, LINEAR, same(k, n), Clipped(kind), BinDecoder(levels))
        # Their clamp cuts −log p at 27.6 nats a number; the draws stay below.
        assert torch.allclose(ours, theirs.sum(1), rtol=1e-8, atol=1e-9)


def test_steps_of_one_batch_may_mix_the_last_with_others() -> None:
    x0, x0_hat, x = (randn(3, 2, seed=i) for i in range(3))
    x0_hat.requires_grad_()
    k = torch.tensor([1, 7, 1])
    variance = LearnedVariance(lambda x, _: torch.full_like(x, 0.3))
    found = step_bound(x0, x0_hat, x, LINEAR, k, variance, NORMAL)
    for i in range(3):
        row = slice(i, i + 1)
        alone = step_bound(x0[row], x0_hat[row], x[row], LINEAR, k[row], variance, NORMAL)
        assert torch.allclose(alone, found[row], rtol=1e-13)
    (gradient,) = torch.autograd.grad(found.sum(), x0_hat)
    assert bool(gradient.isfinite().all())


def expected_bound(v: float, chain: Chain, variance: Variance) -> Tensor:
    """L_T + Σ L_{k−1} + L_0 averaged over x0 ~ N(0, v) and eps, exactly: all terms are squares."""
    x0 = v**0.5 * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)
    eps = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    model = normal(v).diffused(chain.sde)
    total = prior_kl(x0, chain.sde)
    for k in range(1, len(chain) + 1):
        x = chain.perturb(x0, k, eps)
        index = same(k, 4)
        x0_hat = model.denoise(x, chain.times[k])
        total = total + step_bound(x0, x0_hat, x, chain, index, variance, NORMAL)
    return total.mean()


def entropy(v: float) -> float:
    return 0.5 * math.log(2 * math.pi * math.e * v)


def prior_mismatch(v: float, sde) -> float:
    """KL(p_T‖π) of N(0, v)."""
    t = torch.tensor(sde.horizon, dtype=torch.float64)
    ratio = float(sde.alpha(t) ** 2 * v + sde.sigma(t) ** 2) / sde.prior().std ** 2
    return 0.5 * (ratio - 1 - math.log(ratio))


def test_gap_to_the_entropy_falls_as_one_over_n() -> None:
    v = 0.3
    sde = VPSDE()
    least = entropy(v) + prior_mismatch(v, sde)
    steps = (100, 200, 400, 800)
    gaps = [
        float(expected_bound(v, Chain(sde, lattice(n)), ForwardVariance())) - least for n in steps
    ]
    assert min(gaps) > 0
    for coarse, fine in itertools.pairwise(gaps):
        assert math.log2(fine / coarse) == pytest.approx(-1, abs=0.03)


def test_posterior_variance_keeps_half_of_eulers_constant() -> None:
    """Σ ½(1/(k−1) − log(k/(k−1))) = γ/2 nats a dimension in the limit of many steps."""
    v = 0.3
    sde = VPSDE(LinearBeta(1.0, 1.0))
    gamma = 0.5772156649
    least = entropy(v) + prior_mismatch(v, sde)
    gaps = [
        float(expected_bound(v, Chain(sde, lattice(n)), PosteriorVariance())) - least
        for n in (200, 400, 800)
    ]
    # The rest is (a + b log N)/N, which extrapolating twice removes.
    once = [2 * fine - coarse for coarse, fine in itertools.pairwise(gaps)]
    assert 2 * once[1] - once[0] == pytest.approx(gamma / 2, abs=1e-4)


@every_chain
def test_with_the_analytic_variance_n_0_v_has_its_exact_likelihood(chain) -> None:
    """All reverse kernels are exact, however few: only the prior's mismatch is left."""
    v = 0.3
    total = chain.alpha**2 * v + chain.sigma**2
    variance = AnalyticVariance(chain.sigma[1:] ** 2 / total[1:])
    least = entropy(v) + prior_mismatch(v, chain.sde)
    assert float(expected_bound(v, chain, variance)) == pytest.approx(least, abs=1e-8)


def within(error: Tensor, se: Tensor) -> None:
    """Errors with mean 0, as large as their standard errors say."""
    n = len(error)
    assert abs(float(error.mean())) < 4 * float(se.square().sum().sqrt()) / n
    assert float(error.square().mean() / se.square().mean()) == pytest.approx(1, abs=6 / n**0.5)


@pytest.mark.parametrize("draws", [None, 4, 20, 60])
def test_on_a_standard_normal_every_sample_has_its_likelihood(draws) -> None:
    """σ² = β is exact for N(0, I)."""
    x = randn(200, 5)
    bound = vlb(x, normal(1.0, 5).diffused(VPSDE()), lattice(30), draws=draws)
    within(bound.nats - normal(1.0, 5).log_prob(x), bound.standard_error)
    assert bound.nfe == (60 if draws is None else draws)
    assert torch.allclose(-sum(bound.terms.values()), bound.nats, rtol=1e-12)


@pytest.mark.parametrize("draws", [None, 30])
@pytest.mark.parametrize("variance", [ForwardVariance(), PosteriorVariance(), "learned"], ids=str)
def test_estimate_and_table_agree_with_the_exact_terms(variance, draws) -> None:
    """At fixed x0 all terms are squares of eps, so two eps give their means exactly."""
    if variance == "learned":
        variance = LearnedVariance(lambda x, _: torch.full_like(x, 0.8))
    v = 0.3
    sde = VPSDE()
    n = 25
    chain = Chain(sde, lattice(n))
    model = normal(v).diffused(sde)
    x0 = torch.full((400, 1), 0.4, dtype=torch.float64)
    bound = vlb(x0, model, lattice(n), variance=variance, draws=draws, seed=4)
    eps = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    exact = []
    for k in range(1, n + 1):
        x = chain.perturb(x0[:2], k, eps)
        x0_hat = model.denoise(x, chain.times[k])
        term = step_bound(x0[:2], x0_hat, x, chain, same(k, 2), variance, NORMAL)
        exact.append(float(term.mean()))
    total = sum(exact) + float(prior_kl(x0[:1], sde))
    within(bound.nats + total, bound.standard_error)
    table = bound.per_step
    z = (table.nats - torch.tensor(exact, dtype=torch.float64)) / table.standard_error
    seen = table.number > 20
    assert int(seen.sum()) > 12
    assert float(z[seen].abs().max()) < 5
    if draws is None:
        terms = bound.terms["diffusion"] + bound.terms["reconstruction"]
        assert torch.allclose(table.nats.sum(), terms.mean(), rtol=1e-12)
    # Both draws of a sample at one step count once, by their mean.
    assert float(table.number[0]) == 400
    assert float(table.number.sum()) <= 400 * (n if draws is None else 29)
    assert torch.allclose(table.bits_per_dim, table.nats / math.log(2), equal_nan=True)


def test_tables_of_batches_add_up() -> None:
    data = correlated()
    x = data.sample(7, generator())
    model = data.diffused(VPSDE())
    whole = vlb(x, model, lattice(10), draws=8).per_step
    begin = vlb(x[:3], model, lattice(10), draws=8).per_step
    both = begin + vlb(x[3:], model, lattice(10), draws=8, first=3).per_step
    for name in ("number", "total", "squares"):
        assert torch.allclose(getattr(both, name), getattr(whole, name), rtol=1e-12)


@pytest.mark.parametrize("draws", [None, 12])
@pytest.mark.parametrize("decoder", [None, BinDecoder(bin_centres(17))], ids=["real", "levels"])
def test_a_value_is_the_same_alone_and_in_a_batch_bit_for_bit(decoder, draws) -> None:
    means = randn(4, 1, 8, 8)
    model = GaussianMixture([1, 2, 3, 4], means, stds=[0.3, 0.5, 0.2, 0.4]).diffused(VPSDE())
    x = bin_centres(17)[torch.randint(17, (6, 1, 8, 8), generator=generator())]
    whole = vlb(x, model, lattice(10), decoder=decoder, draws=draws, seed=3)
    for i, j in ((0, 1), (1, 4), (4, 6)):
        part = vlb(x[i:j], model, lattice(10), decoder=decoder, draws=draws, seed=3, first=i)
        assert torch.equal(part.nats, whole.nats[i:j])
        assert torch.equal(part.standard_error, whole.standard_error[i:j])


@pytest.mark.parametrize(
    "data",
    [
        correlated(2),
        correlated(16),
        GaussianMixture([1, 2], randn(2, 1, 8, 8, seed=2), stds=[0.4, 0.6]),
    ],
    ids=["2", "16", "image"],
)
def test_exact_flow_and_bounds_come_in_this_order(data) -> None:
    """−log p, the flow and the continuous bound agree; the discrete ones lie below, 1/N apart."""
    sde = VPSDE()
    x = data.sample(60, generator(3))
    model = data.diffused(sde)
    flow = log_prob(x, ProbabilityFlow(sde, model), DormandPrince(1e-6, 1e-6), divergence=Exact())
    exact = data.log_prob(x)
    bound = elbo(x, model, draws=128)
    coarse, fine = (vlb(x, model, lattice(n), draws=128) for n in (5, 80))

    def error(*bounds) -> float:
        return 4 * sum(float(b.standard_error.square().sum()) for b in bounds) ** 0.5 / 60

    mismatch = 1e-3 * data.dimension  # of the prior, and the start at t = 1e-5
    assert abs(float((flow.nats - exact).mean())) < mismatch
    assert abs(float((flow.nats - bound.nats).mean())) < error(bound) + mismatch
    assert float((bound.nats - fine.nats).mean()) > -error(bound, fine)
    assert float((fine.nats - coarse.nats).mean()) > error(fine, coarse)


def test_on_integers_it_is_the_log_probability_itself() -> None:
    """Points on levels far apart: L_0 is 0 for certain, and the sum −log P(k) as N grows."""
    centres = bin_centres(5)
    sde = VPSDE()
    points = torch.cartesian_prod(centres, centres)
    p = torch.rand(25, generator=generator(), dtype=torch.float64) + 0.05
    p = p / p.sum()
    model = GaussianMixture(p, points, stds=[1e-5] * 25).diffused(sde)
    k = torch.multinomial(p, 300, replacement=True, generator=generator(1))
    decoder = BinDecoder(centres)
    excess = []
    for n in (200, 400):
        bound = vlb(
            points[k], model, lattice(n), decoder=decoder, draws=200, variance=PosteriorVariance()
        )
        assert float(bound.terms["reconstruction"].abs().max()) < 1e-9
        excess.append(float((p[k].log() - bound.nats).mean()))
    error = 4 * float(bound.standard_error.square().sum()) ** 0.5 / 300
    assert excess[1] > 0 < error < 0.5 * excess[0]
    assert excess[0] == pytest.approx(2 * excess[1], abs=2 * error)


class Network(nn.Module):
    """eps = x."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        return x


def test_refusals() -> None:
    model = normal(1.0, 2).diffused(VPSDE())
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="grid must fall to 0, where the data are"):
        vlb(x, model, uniform(10, 1.0, 1e-3))
    with pytest.raises(ValueError, match="grid must fall to 0, where the data are"):
        vlb(x, model, lattice(10).flip(0))
    with pytest.raises(ValueError, match="draws must be even"):
        vlb(x, model, lattice(10), draws=5)
    with pytest.raises(ValueError, match="draws must be at least 4"):
        vlb(x, model, lattice(10), draws=2)
    with pytest.raises(ValueError, match="draws must be left out for a chain of one step"):
        vlb(x, model, lattice(1), draws=4)
    with pytest.raises(ValueError, match="evaluation mode"):
        vlb(x, ScoreModel(Network(), VPSDE()), lattice(10))
    with pytest.raises(TypeError, match="sde must be a LinearSDE"):
        Chain(model, lattice(10))
    with pytest.raises(ValueError, match=r"power must have 10 numbers, got \(3,\)"):
        AnalyticVariance(torch.zeros(3)).table(Chain(VPSDE(), lattice(10)))
    with pytest.raises(ValueError, match="k must count steps from 1"):
        LINEAR.posterior(x, x, 0)
