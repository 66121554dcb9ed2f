"""Bounds of the probability of integers, on lattices whose probabilities are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    Gaussian,
    GaussianMixture,
    ScoreModel,
    save_model,
)
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion.data.scaling import Affine, Logit, Scaling
from sde_diffusion.likelihood.dequantization import (
    Dequantizer,
    TruncatedNormal,
    Uniform,
    discrete_log_prob,
    importance_weighted,
)
from sde_diffusion.likelihood.learned_dequantization import Variational, fit_dequantizer
from sde_diffusion.scores import ScoreLike

ONE = {
    (levels, scaling): DataSpec("one", (1,), levels, scaling)
    for levels in (17, 256)
    for scaling in (Affine(), Affine(0, 3), Logit(0.05))
}
every_spec = pytest.mark.parametrize("spec", ONE.values(), ids=lambda s: f"{s.levels} {s.scaling}")
PAIR = DataSpec("pair", (2,), 9)
# Correlated, and narrower than a bin of PAIR, so that the noise has much to gain.
NARROW = GaussianMixture(
    [0.6, 0.4],
    torch.tensor([[0.1, -0.2], [-0.3, 0.3]]),
    torch.tensor([[[0.01, 0.008], [0.008, 0.01]], [[0.02, 0.0], [0.0, 0.02]]]),
)
LINE = GaussianMixture([0.5, 0.3, 0.2], torch.tensor([[-0.5], [0.1], [0.9]]), stds=[0.1, 0.3, 0.2])


def unfitted(spec: DataSpec, couplings: int = 0, seed: int = 0) -> Variational:
    """A variational dequantizer with random layers: any q, far from uniform."""
    noise = Variational(spec, couplings=couplings, width=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in noise.layers.parameters():
        torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    noise.layers.double()
    return noise


def laws(spec: DataSpec) -> list[Dequantizer]:
    return [
        Uniform(),
        TruncatedNormal(0.4),
        TruncatedNormal(3.0),
        unfitted(spec),
        unfitted(spec, couplings=2),
    ]


def quadrature_error(noise: Dequantizer) -> float:
    """What 60 nodes leave: the learned maps have tails in v = Φ(z)."""
    return 2e-3 if isinstance(noise, Variational) else 1e-12


def gauss(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]^d."""
    v, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(n))
    v = (v + 1) / 2
    w = w / 2
    nodes = torch.cartesian_prod(*[v] * d).reshape(-1, d)
    weights = torch.cartesian_prod(*[w] * d).reshape(-1, d).prod(1)
    return nodes, weights


def levels_of(spec: DataSpec) -> Tensor:
    assert spec.levels is not None
    every = torch.arange(spec.levels)
    return torch.cartesian_prod(*[every] * spec.shape[0]).reshape(-1, spec.shape[0])


def exact(data: Any, spec: DataSpec, k: Tensor) -> Tensor:
    """log P(k) by Gauss–Legendre quadrature over the bin, in u."""
    nodes, weights = gauss(40, spec.shape[0])
    rows = k.repeat_interleave(len(nodes), 0)
    u = nodes.repeat(len(k), 1)
    log_p = log_density(data, spec, rows, u).reshape(len(k), -1)
    return (log_p + weights.log()).logsumexp(1)


def log_density(data: Any, spec: DataSpec, k: Tensor, u: Tensor) -> Tensor:
    x = spec.encode(k, u)
    return data.log_prob(x) + spec.log_volume(x)


@torch.no_grad()
def expectations(data: Any, spec: DataSpec, noise: Dequantizer, k: Tensor) -> tuple[Tensor, ...]:
    """E w and E log w by quadrature over z = Φ⁻¹(v), v in [0, 1]^d."""
    nodes, weights = gauss(60, spec.shape[0])
    rows = k.repeat_interleave(len(nodes), 0)
    u, log_q = noise.transform(torch.special.ndtri(nodes).repeat(len(k), 1), rows)
    log_w = (log_density(data, spec, rows, u) - log_q).reshape(len(k), -1)
    return (log_w.exp() * weights).sum(1), (log_w * weights).sum(1)


def by_distribution_function(spec: DataSpec, k: Tensor) -> Tensor:
    """log P(k) of LINE: differences of its distribution function at the ends of the bin."""
    assert spec.levels is not None
    ends = [spec.scaling.forward(k.double() + e, spec.levels).numpy() for e in (0, 1)]
    total = 0.0
    for weight, mean, variance in zip(LINE.weights, LINE.means, LINE.variances, strict=True):
        law = scipy.stats.norm(float(mean), float(variance) ** 0.5)
        below, above = (law.cdf(e) for e in ends)
        tail = law.sf(ends[0]) - law.sf(ends[1])  # keeps its digits on the right
        total = total + float(weight) * np.where(below < 0.5, above - below, tail)
    return torch.from_numpy(np.log(total[:, 0]))


# --- laws of the noise --------------------------------------------------------------------------


@every_spec
def test_the_mean_weight_is_the_probability(spec: DataSpec) -> None:
    """E w = P(k), to quadrature's error, for every law and scaling; E log w ≤ log P(k)."""
    k = levels_of(spec)
    truth = by_distribution_function(spec, k)
    k = k[truth > -20]
    truth = truth[truth > -20]
    assert torch.allclose(exact(LINE, spec, k), truth, rtol=0, atol=1e-12)
    for noise in laws(spec):
        mean, bound = expectations(LINE, spec, noise, k)
        assert torch.allclose(mean.log(), truth, rtol=0, atol=quadrature_error(noise)), noise
        assert bool((bound < truth).all()), noise


def test_the_mean_weight_is_the_probability_in_the_plane() -> None:
    k = torch.tensor([[4, 4], [5, 3], [2, 5], [3, 6]])
    truth = exact(NARROW, PAIR, k)
    for noise in laws(PAIR):
        mean, bound = expectations(NARROW, PAIR, noise, k)
        assert torch.allclose(mean.log(), truth, rtol=0, atol=quadrature_error(noise)), noise
        assert bool((bound < truth).all()), noise


@pytest.mark.parametrize("couplings", [0, 1, 3])
def test_log_q_is_that_of_the_map(couplings: int) -> None:
    """log q(u) = log N(z) − log|det du/dz|, with autograd's determinant."""
    spec = DataSpec("image", (2, 3, 2), 17)
    generator = torch.Generator().manual_seed(3)
    k = torch.randint(0, 17, (4, 2, 3, 2), generator=generator)
    z = torch.randn(4, 2, 3, 2, generator=generator, dtype=torch.float64)
    noise = unfitted(spec, couplings)
    log_q = noise.transform(z, k)[1].detach()
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=i: noise.transform(v[None], k[i : i + 1])[0], z[i]
        ).reshape(12, 12)
        if couplings == 0:
            assert bool((jacobian - jacobian.diag().diag()).abs().max() == 0)
        normal = torch.distributions.Normal(0, 1).log_prob(z[i]).sum()
        expected = normal - torch.linalg.slogdet(jacobian)[1]
        assert float(log_q[i]) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("law", range(5))
def test_q_integrates_to_one(law: int) -> None:
    spec = ONE[17, Affine()]
    noise = laws(spec)[law]
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        u, log_q = noise.transform(z, torch.full_like(z, 5).long())
    assert bool((u[:, 0].diff() >= 0).all())
    assert float(torch.trapezoid(log_q.exp(), u[:, 0])) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [0.01, 0.2, 1.0, 50.0])
def test_the_truncated_normal_is_scipys(scale: float) -> None:
    z = torch.linspace(-4, 4, 101, dtype=torch.float64)[:, None]
    u, log_q = TruncatedNormal(scale).transform(z, torch.zeros(101, 1).long())
    law = scipy.stats.truncnorm(-0.5 / scale, 0.5 / scale, loc=0.5, scale=scale)
    level = scipy.stats.norm.cdf(z.numpy())
    assert np.allclose(u.numpy(), law.ppf(level), rtol=0, atol=1e-9)
    assert np.allclose(log_q.numpy(), law.logpdf(u.numpy())[:, 0], rtol=0, atol=1e-9)


def test_a_narrow_truncated_normal_is_the_noise_of_t_min() -> None:
    """With scale = σ/α L/2, x is the centre and σ/α z, as the docstring says."""
    spec = ONE[256, Affine()]
    sde = VPSDE()
    t = torch.tensor(1e-5, dtype=torch.float64)
    ratio = float(sde.sigma(t) / sde.alpha(t))
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    k = torch.full((9, 1), 77)
    u, _ = TruncatedNormal(ratio * 128).transform(z, k)
    assert torch.allclose(spec.encode(k, u), spec.encode(k, 0.5).double() + ratio * z, atol=1e-6)


def test_uniform_noise_is_uniform() -> None:
    rows = torch.zeros(4000, 2).long()
    [(u, log_q)] = Uniform(seed=1).draws(rows)
    assert torch.equal(log_q, torch.zeros(4000, dtype=torch.float64))
    # The Kolmogorov statistic of 8000 uniform numbers: above .0218 once in a thousand times.
    assert scipy.stats.kstest(u.flatten().numpy(), "uniform").statistic < 0.0218
    assert bool(((u >= 0) & (u < 1)).all())
    # The far tails of z round to the last numbers of the bin, never out of it.
    z = torch.tensor([[-40.0, 40.0]], dtype=torch.float64)
    for noise in (Uniform(), TruncatedNormal(0.1), Variational(PAIR)):
        edge = noise.transform(z, torch.zeros(1, 2).long())[0].detach()
        assert 0 <= float(edge.min()) <= float(edge.max()) < 1


def test_an_unfitted_variational_law_is_the_uniform_one() -> None:
    image = DataSpec("image", (1, 4, 4), 17)
    k = torch.randint(0, 17, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    for couplings in (0, 3):
        noise = Variational(image, couplings=couplings, seed=5)
        for (u, log_q), (v, _) in zip(noise.draws(k, 2), Uniform(5).draws(k, 2), strict=True):
            assert torch.equal(u, v)
            assert torch.equal(log_q, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("law", range(5))
def test_noise_depends_on_seed_and_sample_alone_bit_for_bit(law: int) -> None:
    image = DataSpec("image", (3, 5, 4), 256)
    k = torch.randint(0, 256, (7, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    noise = laws(image)[law]
    state = torch.random.get_rng_state()
    if isinstance(noise, Variational):
        noise.layers.float()  # as they come: convolutions of a batch round otherwise than alone
    whole = list(noise.draws(k, 3, first=10))
    for i in range(7):
        alone = list(noise.draws(k[i : i + 1], 3, first=10 + i))
        for (u, log_q), (v, log_r) in zip(whole, alone, strict=True):
            assert torch.equal(u[i : i + 1], v)
            assert torch.equal(log_q[i : i + 1], log_r)
    values = torch.stack([u for u, _ in whole]).flatten(2)
    distinct = torch.unique(values.reshape(21, -1), dim=0)
    assert len(distinct) == 21  # no two draws or samples share their noise
    assert torch.equal(torch.random.get_rng_state(), state)


def test_seeds_give_other_noise() -> None:
    k = torch.zeros(1, 2).long()
    for make in (Uniform, lambda seed: TruncatedNormal(0.5, seed)):
        [(u, _)] = make(seed=1).draws(k)
        [(v, _)] = make(seed=2).draws(k)
        assert not torch.equal(u, v)


# --- bounds -------------------------------------------------------------------------------------


def line(x: Tensor, first: int) -> Tensor:  # noqa: ARG001  (exact: it draws nothing)
    return LINE.log_prob(x)


@pytest.mark.parametrize("scaling", [Affine(), Logit(0.05)], ids=repr)
@pytest.mark.parametrize("make", [lambda _: Uniform(3), unfitted], ids=["uniform", "variational"])
def test_bounds_order_and_reach_the_truth(
    scaling: Scaling, make: Callable[[DataSpec], Dequantizer]
) -> None:
    """K = 1 ≤ 4 ≤ 64 → log P, whatever the noise; the gap and error of 64 draws are honest."""
    spec = DataSpec("one", (1,), 17, scaling)
    k = levels_of(spec)
    truth = by_distribution_function(spec, k)
    k = k[truth > -12].repeat(10, 1)
    truth = by_distribution_function(spec, k)
    found = discrete_log_prob(k, spec, line, make(spec), draws=64)
    means = []
    for size in (1, 4, 64):
        groups = found.log_weights.reshape(64 // size, size, -1)
        parts = [importance_weighted(group)[0] for group in groups]
        means.append(float(torch.stack(parts).mean()))
    assert means[0] < means[1] < means[2]
    error = float(found.standard_error.square().sum().sqrt()) / len(k)
    assert means[2] == pytest.approx(float((truth - found.gap).mean()), abs=4 * error)
    assert float((truth - found.nats).mean()) < 0.1 * (float(truth.mean()) - means[0])
    z = (found.nats - truth) / found.standard_error
    assert 0.8 < float(z.square().mean()) < 1.4
    assert torch.allclose(found.bits_per_dim, -found.nats / math.log(2), rtol=1e-14)


def test_truncated_normal_noise_is_better_where_the_density_peaks_at_the_centre() -> None:
    spec = DataSpec("one", (1,), 17)
    data = Gaussian(torch.zeros(1), torch.tensor([[0.02**2]]))  # bin 8 is ±1/17 around 0
    k = torch.tensor([[8]])
    scale = 0.02 * 17 / 2
    truth = exact(data, spec, k)
    uniform, near, same = (
        float(truth - expectations(data, spec, noise, k)[1])
        for noise in (Uniform(), TruncatedNormal(0.3), TruncatedNormal(scale))
    )
    assert uniform > 0.5 > 2 * near > 0.1
    assert same == pytest.approx(0, abs=1e-8)  # q is p(k + u)/P(k)


@pytest.mark.parametrize("scaling", [Affine(), Logit(0.05)], ids=repr)
def test_a_fitted_law_closes_the_gap(scaling: Scaling) -> None:
    """Few steps, one call of the score each: Gaussian, then flow, close most of the gap."""
    spec = DataSpec("pair", (2,), 9, scaling)
    rows = spec.decode(NARROW.sample(4000, torch.Generator().manual_seed(0)))
    dataset = Dataset(spec, rows, None)
    model = Calls(NARROW.diffused(VPSDE()))
    k, count = torch.unique(rows, dim=0, return_counts=True)
    k = k[count > 40]
    share = (count[count > 40] / count[count > 40].sum()).double()
    truth = exact(NARROW, spec, k)
    gaps = []
    for noise in (Uniform(), Variational(spec), Variational(spec, couplings=2)):
        if isinstance(noise, Variational):
            model.number = 0
            fit_dequantizer(noise, dataset, model, steps=300, learning_rate=0.02, blur=0.01)
            assert model.number == 300
        bound = expectations(NARROW, spec, noise, k)[1]
        gaps.append(float(((truth - bound) * share).sum()))
    assert gaps[0] > 0.5
    assert gaps[0] / 3 > gaps[1] > 1.2 * gaps[2] > 0


class Calls(ScoreLike):
    """A score that counts its calls."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.sde = model.sde
        self.number = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.number += 1
        return self.model(x, t)


def test_a_fit_repeats_itself_and_leaves_the_global_generator_alone() -> None:
    rows = PAIR.decode(NARROW.sample(100, torch.Generator().manual_seed(0)))
    dataset = Dataset(PAIR, rows, None)
    model = NARROW.diffused(VPSDE())
    state = torch.random.get_rng_state()
    fitted = []
    for seed in (1, 1, 2):
        noise = Variational(PAIR, width=8)
        fit_dequantizer(noise, dataset, model, steps=3, seed=seed)
        fitted.append(torch.cat([p.flatten() for p in noise.layers.parameters()]))
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("scaling", [Affine(), Logit(1e-3)], ids=repr)
def test_the_gradient_of_a_fit_is_that_of_the_bound(scaling: Scaling) -> None:
    """The score in the place of the density: gradients agree with autograd's."""
    spec = DataSpec("pair", (2,), 9, scaling)
    data = Gaussian(torch.zeros(2), torch.tensor([[2.0, 0.3], [0.3, 1.0]]))
    noise = unfitted(spec, couplings=1)
    before = [p.detach().clone() for p in noise.layers.parameters()]
    # One row many times over: the only batch there is, whatever its order.
    rows = torch.tensor([[8, 0]]).expand(64, 2)
    dataset = Dataset(spec, rows, None)
    model = data.diffused(VPSDE())
    # One step of Adam moves every weight by the rate against the sign of its gradient.
    fit_dequantizer(noise, dataset, model, steps=1, learning_rate=1e-3, blur=1e-3)
    moves = [p.detach() - q for p, q in zip(noise.layers.parameters(), before, strict=True)]
    for p, q in zip(noise.layers.parameters(), before, strict=True):
        p.data = q
    # as the fit's first step draws
    generator = torch.Generator().manual_seed(mix(0, Purpose.DEQUANTIZER_FIT, 1))
    z = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    u, log_q = noise.transform(z, rows)
    x = spec.scaling.forward(rows.double() + u, 9)
    loss = (log_q - data.log_prob(x) - spec.log_volume(x)).mean()
    gradients = torch.autograd.grad(loss, list(noise.layers.parameters()))
    for move, gradient in zip(moves, gradients, strict=True):
        large = gradient.abs() > 1e-4
        assert bool(large.any())
        assert torch.equal(move[large].sign(), -gradient[large].sign())


def test_a_bound_is_the_same_alone_and_in_a_batch_bit_for_bit() -> None:
    spec = DataSpec("pair", (2,), 17, Logit(0.05))
    k = torch.randint(0, 17, (9, 2), generator=torch.Generator().manual_seed(0))
    firsts: list[int] = []

    def density(x: Tensor, first: int) -> Tensor:
        firsts.append(first)
        return NARROW.log_prob(x)

    noise = unfitted(spec, couplings=1)
    whole = discrete_log_prob(k, spec, density, noise, draws=5, first=3)
    assert firsts == [3] * 5
    for start, stop in ((0, 1), (1, 5), (5, 9)):
        part = discrete_log_prob(k[start:stop], spec, density, noise, draws=5, first=3 + start)
        for name in ("nats", "standard_error", "gap", "bits_per_dim"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[start:stop]), name


def test_the_jackknife_by_leaving_out() -> None:
    """The formulas, with every sum written out; weights of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    log_w = 4 * torch.randn(6, 50, generator=generator, dtype=torch.float64) - 900
    nats, error, gap = importance_weighted(log_w)
    for b in range(50):
        values = [v + 900 for v in log_w[:, b].tolist()]
        whole = math.log(math.fsum(map(math.exp, values)) / 6)
        without = [
            math.log(math.fsum(math.exp(v) for j, v in enumerate(values) if j != i) / 5)
            for i in range(6)
        ]
        mean = math.fsum(without) / 6
        assert float(nats[b]) + 900 == pytest.approx(whole, abs=1e-11)
        assert float(gap[b]) == pytest.approx(5 * (whole - mean), abs=1e-10)
        squares = math.fsum((v - mean) ** 2 for v in without)
        assert float(error[b]) == pytest.approx(math.sqrt(5 / 6 * squares), abs=1e-10)


def test_the_gap_of_many_draws_is_the_variance_over_2k() -> None:
    generator = torch.Generator().manual_seed(0)
    w = 1 + 0.1 * torch.randn(2000, 40, generator=generator, dtype=torch.float64)
    nats, error, gap = importance_weighted(w.log())
    variance = w.var(0) / w.mean(0) ** 2
    assert torch.allclose(gap, variance / 2 / 2000, rtol=0.02)
    assert torch.allclose(error, (variance / 2000).sqrt(), rtol=0.02)
    assert torch.allclose(nats, w.mean(0).log(), rtol=0, atol=1e-13)


def test_the_gap_of_normal_log_weights() -> None:
    """log E w = s²/2, so the truth is known: near at a spread of 1, about half of it at 2."""
    generator = torch.Generator().manual_seed(0)
    for spread, low, high in ((0.3, 0.9, 1.1), (1.0, 0.8, 1.0), (2.0, 0.4, 0.65)):
        log_w = spread * torch.randn(8, 20_000, generator=generator, dtype=torch.float64)
        nats, error, gap = importance_weighted(log_w)
        truth = spread**2 / 2 - float(nats.mean())
        assert low < float(gap.mean()) / truth < high
        assert float(error.square().mean().sqrt()) == pytest.approx(float(nats.std()), rel=0.05)


def test_one_draw_knows_nothing_of_its_error() -> None:
    nats, error, gap = importance_weighted(torch.tensor([[-3.0, 2.0]]))
    assert nats.tolist() == [-3.0, 2.0]
    assert bool(error.isnan().all())
    assert bool(gap.isnan().all())


# --- files and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("couplings", [0, 2])
def test_a_loaded_law_is_the_saved_one(tmp_path: Path, couplings: int) -> None:
    spec = DataSpec("image", (1, 4, 4), 17, Logit(0.01))
    noise = unfitted(spec, couplings, seed=4)
    noise.save(tmp_path / "q.safetensors")
    loaded = Variational.load(tmp_path / "q.safetensors")
    assert (loaded.spec, loaded.config) == (spec, noise.config)
    k = torch.randint(0, 17, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    for saved, again in zip(noise.draws(k, 2), loaded.draws(k, 2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(saved, again, strict=True))


def test_files_of_something_else(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    save_model(file, ScoreModel(MLP(2, width=8), VPSDE()))
    with pytest.raises(ValueError, match=r"must hold a dequantizer, got .*; pass the file that"):
        Variational.load(file)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"must be a whole \.safetensors file"):
        Variational.load(file)
    with pytest.raises(FileNotFoundError):
        Variational.load(tmp_path / "none")


REAL = DataSpec("real", (2,), None)
K = torch.tensor([[1, 2]])


class Broken(ScoreLike):
    """A score that is infinite."""

    sde = VPSDE()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return x / 0


def fit(dataset: Dataset, model: Any, **options: Any) -> None:
    fit_dequantizer(Variational(PAIR, width=8), dataset, model, **options)


PAIRS = Dataset(PAIR, K, None)
MISTAKES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: discrete_log_prob(K, REAL, line, Uniform()),
        ValueError,
        "discrete_log_prob: spec must have levels, got real numbers; evaluate their density as",
    ),
    (
        lambda: discrete_log_prob(K[:, :1], PAIR, line, Uniform()),
        ValueError,
        r"k must have shape \(N, 2\), got \(1, 1\); pass rows of dataset.values",
    ),
    (
        lambda: discrete_log_prob(K + 8, PAIR, line, Uniform()),
        ValueError,
        "k must hold integers from 0 to 8, got 9 … 10",
    ),
    (
        lambda: discrete_log_prob(K.double(), PAIR, line, Uniform()),
        TypeError,
        "k must be an integer tensor",
    ),
    (
        lambda: discrete_log_prob(K, PAIR, lambda x, _: x, Uniform()),
        TypeError,
        r"density must return 1 numbers, got \(1, 2\); sum over the event dimensions",
    ),
    (
        lambda: discrete_log_prob(K, PAIR, line, Uniform(), draws=0),
        ValueError,
        "draws must be at least 1, got 0",
    ),
    (lambda: TruncatedNormal(0), ValueError, "scale must be finite and above 0, got 0"),
    (lambda: Uniform(-1), ValueError, "seed must be at least 0, got -1"),
    (lambda: Variational(REAL), ValueError, "Variational: spec must have levels"),
    (lambda: Variational(PAIR, couplings=-1), ValueError, "couplings must be at least 0, got -1"),
    (lambda: Variational(PAIR, width=0), ValueError, "width must be at least 1, got 0"),
    (
        lambda: fit(PAIRS, Broken()),
        FloatingPointError,
        "fit_dequantizer: score must be finite at step 1, got .*; pass a larger blur",
    ),
    (
        lambda: fit(PAIRS, ScoreModel(MLP(2, width=8), VPSDE())),
        ValueError,
        "fit_dequantizer: model must be in evaluation mode",
    ),
    (
        lambda: fit(Dataset(DataSpec("p", (2,), 10), K, None), Broken()),
        ValueError,
        "samples must have the model's 9 grey levels, got 10",
    ),
    (lambda: fit(PAIRS, Broken(), steps=0), ValueError, "steps must be at least 1, got 0"),
]


@pytest.mark.parametrize(("call", "error", "text"), MISTAKES, ids=[text for *_, text in MISTAKES])
def test_mistakes_end_in_one_clear_sentence(
    call: Callable[[], object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call()
