"""The discrete bound as a training loss: its mean, its gradients, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    MLP,
    VPSDE,
    DataSpec,
    DiscreteBeta,
    Gaussian,
    PerSampleNoise,
    RectifiedFlow,
    ScoreModel,
    cosine_betas,
    lattice,
    linear_betas,
)
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.ddpm.discrete_bound import vlb
from sde_diffusion.ddpm.variances import AnalyticVariance, ForwardVariance, LearnedVariance
from sde_diffusion.likelihood.continuous_bound import prior_kl
from sde_diffusion.likelihood.decoders import BinDecoder, bin_centres
from sde_diffusion.objectives.base import Batch
from sde_diffusion.objectives.denoising import denoising_loss
from sde_diffusion.objectives.discrete_bound import Hybrid, Vlb
from sde_diffusion.objectives.spacings import LossAware, Stratified

LN2 = math.log(2)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def batch(x0: Tensor, k: Tensor, n: int, eps: Tensor, horizon: float = 1.0) -> Batch:
    return Batch(x0, k.double() / n * horizon, eps, PerSampleNoise(range(len(x0))))


class Known(nn.Module):
    """The exact eps of N(0, v), beside the outputs of a variance that is a function of time."""

    def __init__(self, v: float, sde, second=None) -> None:
        super().__init__()
        self.exact = Gaussian(torch.zeros(1), torch.tensor([[v]])).diffused(sde)
        self.second = second

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        eps = self.exact.eps(x, c.double())
        if self.second is None:
            return eps
        return torch.cat([eps, self.second(c)[:, None].expand_as(x)], 1)


def corners(v: float, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x0, eps) at ±√v, ±1 for k = 1 … n: where all is squares their mean is that of N(0, v)."""
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64).repeat(n, 1)
    k = torch.arange(1, n + 1).repeat_interleave(4)
    return v**0.5 * signs[:, :1], signs[:, 1:], k


@pytest.mark.parametrize("variance", ["fixed", "learned"])
@pytest.mark.parametrize("betas", [linear_betas(60), cosine_betas(60)], ids=["linear", "cosine"])
def test_its_mean_is_the_bound_without_its_constant(betas, variance) -> None:
    """σ² = β, v = 1, is exact on N(0, 1): L_T + the mean of the loss is the entropy."""
    sde = VPSDE(DiscreteBeta(betas))
    second = torch.ones_like if variance == "learned" else None
    model = ScoreModel(Known(1.0, sde, second), sde, variance=variance)
    x0, eps, k = corners(1.0, 60)
    losses = Vlb(60, Stratified())(model, batch(x0, k, 60, eps))
    constant = prior_kl(x0, sde).mean() / LN2
    entropy = 0.5 * math.log2(2 * math.pi * math.e)
    assert float(losses.mean() + constant) == pytest.approx(entropy, abs=1e-9)
    assert float(constant) > 1e-9


def test_two_numbers_a_sample_halve_it() -> None:
    sde = RectifiedFlow()  # and a horizon below 1
    model = ScoreModel(MLP(2).double(), sde)
    x0 = randn(50, 2)
    eps = randn(50, 2, seed=1)
    k = torch.arange(1, 51)
    both = Vlb(50, Stratified())(model, batch(x0, k, 50, eps, sde.horizon))
    one = ScoreModel(MLP(1).double(), sde)
    parts = [
        Vlb(50, Stratified())(one, batch(x0[:, i : i + 1], k, 50, eps[:, i : i + 1], sde.horizon))
        for i in range(2)
    ]
    assert torch.allclose(both, 0.5 * (parts[0] + parts[1]), rtol=1e-12)


def test_the_best_learned_variance_is_the_analytic_one() -> None:
    """On N(0, v) the gradient to the variance is 0 at σ_k² = Var(x_{k−1}|x_k), at every k > 1."""
    v = 0.3
    n = 40
    chain = Chain.ddpm(linear_betas(n, 1e-3, 0.3))
    sde = chain.sde
    total = chain.alpha**2 * v + chain.sigma**2
    best = AnalyticVariance(chain.sigma[1:] ** 2 / total[1:]).table(chain)[1:].log()
    low, high = chain.posterior_variances[1:].log(), chain.betas[1:].log()
    fraction = torch.cat([torch.tensor([0.5]).double(), (best - low) / (high - low)])
    for shift in (0.0, 0.1):
        outs = (2 * (fraction + shift) - 1).requires_grad_()
        known = Known(v, sde, lambda c, outs=outs: outs[(c * n).round().long() - 1])
        model = ScoreModel(known, sde, variance="learned")
        x0, eps, k = corners(v, n)
        losses = Vlb(n, Stratified())(model, batch(x0, k, n, eps))
        (gradient,) = torch.autograd.grad(losses.mean(), outs)
        if shift == 0:
            assert float(gradient.abs().max()) < 1e-10
        else:
            assert float(gradient[1:20].min()) > 1e-5
        assert gradient[0] == 0  # β_1 is both ends


def doubled(d: int = 2) -> ScoreModel:
    """An MLP in float64 with a variance, no weight of which is 0."""
    net = MLP(d, width=8, outputs=2 * d).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return ScoreModel(net, VPSDE(), "v", variance="learned")


def test_the_bound_in_the_hybrid_reaches_the_variance_alone() -> None:
    """∂L_vlb/∂μ = 0: the head of the mean has L_simple's gradient, the other .001 L_vlb's."""
    model = doubled()
    n = 30
    x0 = randn(30, 2)
    eps = randn(30, 2, seed=1)
    k = torch.arange(1, 31)
    drawn = batch(x0, k, n, eps)
    head = model.network.head.weight

    def gradient(losses: Tensor) -> Tensor:
        return torch.autograd.grad(losses.sum(), head)[0]

    hybrid = gradient(Hybrid(n, Stratified())(model, drawn))
    simple = gradient(denoising_loss(model, x0, drawn.t, eps))
    bound = gradient(Vlb(n, Stratified())(model, drawn))
    assert torch.allclose(hybrid[:2], simple[:2], rtol=1e-12, atol=1e-12)
    assert torch.allclose(hybrid[2:], 1e-3 * bound[2:], rtol=1e-10, atol=1e-14)
    assert float(simple[2:].abs().max()) == 0
    for found in (hybrid[2:], bound[:2]):  # while L_vlb by itself has a gradient to both
        assert float(found.abs().min()) > 1e-5


def test_the_hybrid_is_that_of_improved_diffusion() -> None:
    """‖eps − eps_θ‖²/D + (N/1000) KL/(D ln 2), by means and log-variances; one pass."""
    betas = linear_betas(1000)
    n = 3
    bar = torch.cumprod(1 - betas, 0)
    net = doubled().network
    model = ScoreModel(net, VPSDE(DiscreteBeta(betas)), variance="learned")
    x0 = randn(n, 2)
    eps = randn(n, 2, seed=1)
    k = torch.tensor([2, 300, 1000])
    now, before, beta = (
        values[k - 1][:, None]
        for values in (bar, torch.cat([torch.ones(1).double(), bar[:-1]]), betas)
    )
    x = now.sqrt() * x0 + (1 - now).sqrt() * eps
    out, second = net(x, k.double() / 1000).chunk(2, 1)
    log_low = (beta * (1 - before) / (1 - now)).log()
    fraction = (second + 1) / 2
    log_v = fraction * beta.log() + (1 - fraction) * log_low
    m1, m2 = ((x - beta / (1 - now).sqrt() * e) / (1 - beta).sqrt() for e in (eps, out))
    kl = 0.5 * (-1 + log_v - log_low + (log_low - log_v).exp() + (m1 - m2) ** 2 / log_v.exp())
    expected = ((eps - out) ** 2).mean(1) + kl.mean(1) / LN2  # their factor is N/1000 = 1
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    found = Hybrid(1000, Stratified())(model, batch(x0, k, 1000, eps))
    assert torch.allclose(found, expected, rtol=1e-9)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", [Vlb, Hybrid])
def test_levels_are_taken_at_their_centres(kind) -> None:
    """Whatever place of its bin a number was drawn at; with a gradient at both open ends too."""
    model = doubled(1)
    n = 20
    model.data = DataSpec("levels", (1,), 5)
    levels = torch.arange(5).repeat_interleave(n)[:, None]
    k = torch.arange(1, n + 1).repeat(5)
    eps = randn(5 * n, 1)
    low, mid, high = (
        kind(n, Stratified())(model, batch(model.data.encode(levels, u).double(), k, n, eps))
        for u in (0.01, 0.5, 0.99)
    )
    assert torch.equal(low, mid)
    assert torch.equal(mid, high)
    first = mid[k == 1]
    gradient = torch.autograd.grad(first.sum(), model.network.head.weight)[0]
    assert bool(gradient.isfinite().all())
    if kind is Vlb:  # L_0: the mass of the five bins, given x_1 of each
        chain = Chain(VPSDE(), lattice(n))
        x0 = bin_centres(5)[:, None]
        x_1 = chain.perturb(x0, 1, eps[k == 1])
        x0_hat = model.denoise(x_1, chain.times[1])
        decoder = BinDecoder(bin_centres(5))
        expected = -n / LN2 * decoder.log_prob(x0, x0_hat, chain.betas[:1])
        assert torch.allclose(first, expected, rtol=1e-6)


def test_the_decoders_gradient_is_that_of_its_values() -> None:
    centres = bin_centres(5)
    mean = randn(4, 5).requires_grad_()
    variance = (0.05 + randn(4, 5).square()).requires_grad_()
    levels = centres.expand(4, 5)

    def law(mean: Tensor, variance: Tensor) -> Tensor:
        return BinDecoder(centres).log_prob(levels, mean, variance)

    assert torch.autograd.gradcheck(law, (mean, variance))


def test_steps_are_the_bins_of_loss_aware_draws() -> None:
    """Bin j of N is step j + 1 for every u in it, and no other: p is then over the steps."""
    n = 1000
    sde = VPSDE()
    edges = torch.arange(n, dtype=torch.float64) / n
    inside = torch.tensor([1e-12, 0.5, 1 - 1e-9], dtype=torch.float64) / n
    u = (edges[:, None] + inside).flatten()
    spacing = LossAware(n, history=1)
    objective = Vlb(n, spacing)
    model = ScoreModel(MLP(1), sde)
    t = objective.distribution.time(sde, u, objective.t_min)
    one = torch.zeros(3 * n, 1)
    k = objective._states(model, Batch(one, t, one, PerSampleNoise(range(3 * n))))[1]
    assert torch.equal(k, torch.arange(1, n + 1).repeat_interleave(3))
    for i in range(3):  # every bin sees what its own step lost
        spacing.observe(u[i::3], k[i::3].double())
        p = spacing.probabilities()
        steps = torch.arange(1, n + 1, dtype=torch.float64)
        assert torch.allclose(p, 0.999 * steps / steps.sum() + 0.001 / n, rtol=1e-12)
    drawn = objective.draw(sde, 4000, torch.Generator().manual_seed(0))
    step = (drawn.t * n).round().long()
    assert torch.allclose(drawn.weight, 1 / (n * p[step - 1]), rtol=1e-12)


def test_vlb_takes_the_variance_that_the_model_learned_in_one_pass() -> None:
    model = doubled().eval()
    x = randn(3, 2)
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    own = vlb(x, model, lattice(10))
    assert own.nfe == len(calls) == 20
    given = vlb(x, model, lattice(10), variance=LearnedVariance(model.fraction))
    assert given.nfe == len(calls) - 20 == 40
    assert torch.allclose(own.nats, given.nats, rtol=1e-12)
    fixed = vlb(x, model, lattice(10), variance=ForwardVariance())
    assert float((fixed.nats - own.nats).abs().min()) > 1e-3


def test_refusals() -> None:
    plain = ScoreModel(MLP(2), VPSDE())
    with pytest.raises(ValueError, match="Hybrid: model must learn a variance, got variance='fix"):
        Hybrid(10, Stratified()).check(plain)
    Vlb(10, Stratified()).check(plain)
    coupled = ScoreModel(
        MLP(2, outputs=4), VPSDE(), variance="learned", coupling="optimal-transport"
    )
    for kind in (Vlb, Hybrid):
        with pytest.raises(ValueError, match="model must have coupling='independent' to be"):
            kind(10, Stratified()).check(coupled)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Vlb(0, Stratified())
