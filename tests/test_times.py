"""Distributions of times against their densities and scipy, spacings against the uniform one."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineBeta,
    Gaussian,
    LinearSDE,
    RectifiedFlow,
    SubVPSDE,
    lattice,
)
from sde_diffusion.objectives.spacings import (
    SPACINGS,
    Antithetic,
    Independent,
    LossAware,
    Spacing,
    Stratified,
)
from sde_diffusion.time_distributions import (
    TIMES,
    LatticeTimes,
    LikelihoodTimes,
    LogitNormalTimes,
    LogNormalTimes,
    TimeDistribution,
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
DISTRIBUTIONS: list[TimeDistribution] = [
    *TIMES.values(),
    LogNormalTimes(0.4, 1.6),
    LogitNormalTimes(-0.5, 0.7),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels(sde: LinearSDE, n: int) -> Tensor:
    """Times from EPSILON to the horizon, spaced evenly in lambda."""
    first, last = log_snr_range(sde, EPSILON)
    share = torch.linspace(0, 1, n, dtype=torch.float64)
    return sde.time(first + (last - first) * share).clamp(EPSILON, sde.horizon)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_the_density_of_a_distribution_integrates_to_its_quantiles(
    sde: LinearSDE, distribution: TimeDistribution
):
    t = torch.cat([levels(sde, 100_001), torch.linspace(EPSILON, sde.horizon, 100_001).double()])
    t = t.clamp(EPSILON, sde.horizon).unique()
    density = distribution.density(sde, t, EPSILON)
    below = torch.cat([t.new_zeros(1), torch.cumulative_trapezoid(density, t)])
    assert abs(below[-1] - 1) < 2e-6
    u = torch.linspace(0.001, 0.999, 97, dtype=torch.float64)
    quantiles = distribution.time(sde, u, EPSILON)
    found = np.interp(quantiles.numpy(), t.numpy(), below.numpy())
    assert torch.allclose(torch.from_numpy(found), u, atol=3e-6)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_no_number_leads_out_of_the_interval(sde: LinearSDE, distribution: TimeDistribution):
    u = torch.tensor([0.0, 1e-16, 0.5, 1 - 2**-53], dtype=torch.float64)
    t = distribution.time(sde, u, EPSILON)
    assert torch.all((t >= EPSILON) & (t <= sde.horizon))
    assert torch.all(t.diff() >= 0)
    assert torch.isclose(t[0], torch.tensor(EPSILON).double(), rtol=1e-6)
    assert torch.all(distribution.density(sde, t, EPSILON).isfinite())


def test_the_noise_level_of_log_normal_times_is_scipys_truncated_normal():
    sde = EDMSDE(80.0)
    distribution = LogNormalTimes()
    low, high = ((math.log(80 * t) + 1.2) / 1.2 for t in (EPSILON, 1.0))
    expected = stats.truncnorm(low, high, loc=-1.2, scale=1.2)
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    t = distribution.time(sde, u, EPSILON)
    found = (80 * t).log()
    assert torch.allclose(found, torch.from_numpy(expected.ppf(u.numpy())), rtol=1e-10)
    # d ln s = dt/t
    density = torch.from_numpy(expected.pdf(found.numpy())) / t
    assert torch.allclose(distribution.density(sde, t, EPSILON), density, rtol=1e-10)


def test_logit_normal_times_are_log_normal_levels_of_the_straight_interpolant():
    sde = RectifiedFlow()
    u = torch.linspace(0, 0.999, 200, dtype=torch.float64)
    one = LogitNormalTimes(0.3, 0.8)
    other = LogNormalTimes(0.3, 0.8)
    t = one.time(sde, u, EPSILON)
    assert torch.allclose(t, other.time(sde, u, EPSILON), rtol=1e-10)
    found = [distribution.density(sde, t, EPSILON) for distribution in (one, other)]
    assert torch.allclose(*found, rtol=1e-9)


def test_a_law_that_lies_beside_the_levels_is_refused():
    with pytest.raises(ValueError, match="mean, std must put a millionth"):
        LogNormalTimes(mean=30.0).time(VPSDE(), torch.tensor([0.5]).double(), EPSILON)
    with pytest.raises(ValueError, match="std must be finite and above 0"):
        LogitNormalTimes(std=0.0)


def test_lattice_times_are_the_steps_of_the_chain():
    u = (torch.arange(1000) + 0.5).double() / 1000
    assert torch.equal(LatticeTimes(1000).time(VPSDE(), u, EPSILON), lattice(1000).flip(0)[1:])
    assert float(LatticeTimes(7).time(RectifiedFlow(), u, EPSILON).max()) == 0.999


def test_the_batch_means_of_the_spacings_vary_as_they_should():
    # Of f(u) = u: 1/(12 n) independent, 1/(12 n³) stratified, 1/(12 n²) at equal distances.
    n = 16
    repeats = 4000
    for spacing, power in ((Independent(), 1), (Antithetic(), 2), (Stratified(), 3)):
        generator = seeded()
        means = torch.stack([spacing.draw(n, generator).u.mean() for _ in range(repeats)])
        expected = 1 / (12 * n**power)
        assert abs(means.mean() - 0.5) < 4 * math.sqrt(expected / repeats)
        assert abs(means.var() / expected - 1) < 5 * math.sqrt(2 / repeats)


def test_equal_distances_cancel_every_wave_that_does_not_fit_between_them():
    u = Antithetic().draw(6, seeded()).u
    for m in range(1, 13):
        wave = torch.exp(2j * math.pi * m * u).mean().abs()
        assert (wave > 0.99) if m % 6 == 0 else (wave < 1e-14)


def taught(bins: int = 20, history: int = 10) -> LossAware:
    """A spacing that has seen losses like (u + .1)² and noise in every part."""
    spacing = LossAware(bins, history)
    u = torch.rand(60 * bins * history, generator=seeded(1), dtype=torch.float64)
    spacing.observe(u, (u + 0.1) ** 2 * (1 + 0.5 * torch.cos(99 * u)))
    return spacing


def all_spacings() -> list[Spacing]:
    return [build(50) for build in SPACINGS.values()] + [taught()]


@pytest.mark.parametrize("spacing", all_spacings(), ids=lambda s: type(s).__name__)
def test_weighted_means_over_a_spacing_are_means_over_the_uniform_law(spacing: Spacing):
    def f(u: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(u), u, torch.exp(2 * u), (7 * u).sin()])

    n = 64
    repeats = 500
    generator = seeded(5)
    draws = [spacing.draw(n, generator) for _ in range(repeats)]
    assert all(bool(((draw.u >= 0) & (draw.u < 1)).all()) for draw in draws)
    means = torch.stack([(draw.weight * f(draw.u)).mean(1) for draw in draws])
    expected = torch.tensor([1, 0.5, math.expm1(2) / 2, (1 - math.cos(7)) / 7]).double()
    error = means.std(0) / math.sqrt(repeats)
    assert torch.all((means.mean(0) - expected).abs() < 4.5 * error + 1e-12)
    assert torch.all(error < 0.02)


def test_loss_aware_probabilities_are_those_of_the_last_losses():
    bins = 7
    history = 3
    generator = seeded(2)
    spacing = LossAware(bins, history)
    last = [deque[float](maxlen=history) for _ in range(bins)]
    for batch in (1, 4, 30, 5, 200, 3, 64):  # up to ten times the history of a part in one batch
        assert bool((spacing.probabilities() == 1 / bins).all()) or min(map(len, last)) == history
        u = torch.rand(batch, generator=generator, dtype=torch.float64)
        losses = torch.rand(batch, generator=generator, dtype=torch.float64)
        spacing.observe(u, losses)
        for place, loss in zip(u.tolist(), losses.tolist(), strict=True):
            last[int(place * bins)].append(loss)
    root = np.array([math.sqrt(np.mean(np.square(part))) for part in last])
    expected = 0.999 * root / root.sum() + 0.001 / bins
    assert np.allclose(spacing.probabilities().numpy(), expected, rtol=1e-12)


def test_loss_aware_numbers_fall_on_their_parts_as_often_as_they_should():
    spacing = taught()
    p = spacing.probabilities()
    n = 100_000
    u, weight = spacing.draw(n, seeded())
    j = (u * 20).long()
    # The draws fill p evenly: no part is off by more than the two at its ends.
    assert torch.all((torch.bincount(j, minlength=20) - n * p).abs() <= 2)
    assert torch.allclose(weight, 1 / (20 * p[j]), rtol=1e-12)
    inside = u * 20 - j
    assert abs(inside[j == 3].mean() - 0.5) < 0.01


def test_loss_aware_times_are_stratified_until_every_part_is_full():
    spacing = LossAware(4, history=2)
    spacing.observe(torch.tensor([0.1, 0.1, 0.3, 0.3, 0.6, 0.6, 0.9]), torch.ones(7))
    u, weight = spacing.draw(8, seeded(3))
    assert torch.allclose(u, Stratified().draw(8, seeded(3)).u, rtol=1e-14)
    assert torch.allclose(weight, torch.ones(8).double(), rtol=1e-14)


def test_loss_aware_times_cut_the_variance_of_the_likelihood_loss():
    # Uniform times and the weight g²/sigma², the case that importance sampling was made for.
    sde = VPSDE()
    distribution = TIMES["uniform"]
    exact = Gaussian(torch.zeros(1).double(), torch.eye(1).double() * 0.25).diffused(sde)
    spacing = LossAware(100)
    generator = seeded(4)

    def losses(u: Tensor) -> Tensor:
        t = distribution.time(sde, u, 1e-3)
        x0 = exact.oracle.sample(len(u), generator)
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        error = (eps - exact.eps(sde.perturb(x0, t, eps), t)) ** 2
        return (sde.g(t) / sde.sigma(t)) ** 2 * error[:, 0]

    for _ in range(30):
        u, _ = spacing.draw(256, generator)
        spacing.observe(u, losses(u))
    n = 100_000
    plain = losses(Independent().draw(n, generator).u)
    u, weight = spacing.draw(n, generator)
    aware = weight * losses(u)
    assert abs(plain.mean() - aware.mean()) < 5 * plain.std() / math.sqrt(n)
    assert plain.var() > 4 * aware.var()


def test_the_history_is_kept_with_the_state():
    spacing = taught()
    fresh = LossAware(20)
    fresh.load_state_dict(spacing.state_dict())
    assert torch.equal(fresh.draw(64, seeded()).u, spacing.draw(64, seeded()).u)
    both = [
        one.observe(torch.tensor([0.4, 0.4]), torch.tensor([9.0, 1.0])) or one
        for one in (spacing, fresh)
    ]
    assert torch.equal(both[0].losses, both[1].losses)


def test_likelihood_times_need_a_finite_lambda():
    class Straight(LinearSDE):
        def alpha(self, t: Tensor) -> Tensor:
            return 1 - t

        def sigma(self, t: Tensor) -> Tensor:
            return t

    for distribution in (LikelihoodTimes(), LogNormalTimes()):
        with pytest.raises(ValueError, match="set its horizon a little below 1"):
            distribution.time(Straight(), torch.tensor([0.5]).double(), EPSILON)
