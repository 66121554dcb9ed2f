"""Noise of measurements: densities, draws, and posteriors against quadrature in the plane."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import logsigmoid

from sde_diffusion import VPSDE, GaussianMixture, PerSampleNoise, sample
from sde_diffusion.coefficients import Coefficients
from sde_diffusion.inverse_problems import (
    DPS,
    MMPS,
    TMPD,
    DenseMMPS,
    DiffPIR,
    LaplaceNoise,
    Mask,
    Matrix,
    Measurement,
    Nonlinear,
    OwnNoise,
    PiGDM,
    PlugIn,
    PoissonNoise,
    PosteriorScore,
    exact_posterior,
    repaint,
    sample_posterior,
)
from sde_diffusion.solvers import Ancestral

SDE = VPSDE()
MIXTURE = GaussianMixture([0.7, 0.3], torch.tensor([[-0.8, 0.2], [0.9, -0.4]]), stds=[0.4, 0.3])
SUM = Matrix(torch.tensor([[1.0, 0.5]]).double())


def one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def yes(y: Tensor, a: Tensor) -> Tensor:
    """y = 1 with the probability of a logistic regression."""
    return logsigmoid((2 * y - 1) * 3 * a).sum(1)


SEEN = {
    "Laplace": Measurement(SUM, one(0.4), LaplaceNoise(0.3)),
    "Poisson": Measurement(SUM, one(9), PoissonNoise(6.0, dark=0.5)),
    "curved Poisson": Measurement(
        Nonlinear(lambda x: (x[:, :1] - 0.5 * x[:, 1:]).exp()), one(3), PoissonNoise(2.0, 0.0)
    ),
    "logistic": Measurement(SUM, one(1), OwnNoise(yes)),
    "Gaussian": Measurement(SUM, one(0.1), 0.5),
}
every_noise = pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)


def quadrature(seen: Measurement) -> tuple[Tensor, float]:
    """Return E[x | y] and log p(y) by sums over a grid of the plane."""
    line = torch.linspace(-4, 4, 401, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    joint = (MIXTURE.log_prob(x) + seen.log_prob(x)).exp()
    total = joint.sum()
    cell = float(line[1] - line[0]) ** 2
    return (joint[:, None] * x).sum(0) / total, math.log(float(total) * cell)


@pytest.mark.parametrize(
    ("noise", "theirs", "y"),
    [
        (LaplaceNoise(0.4), lambda a: torch.distributions.Laplace(a, 0.4), [[0.3, -2.0]]),
        (
            PoissonNoise(3.0, shift=0.5, dark=0.2),
            lambda a: torch.distributions.Poisson(3 * (a + 0.5).clamp(min=0) + 0.2),
            [[0.0, 7.0]],
        ),
    ],
    ids=["Laplace", "Poisson"],
)
def test_densities_are_those_of_other_programs(noise, theirs, y) -> None:
    exact = torch.tensor([[0.1, 1.3], [-0.7, 2.0], [-0.4, 0.0]], dtype=torch.float64)
    found = Measurement(Matrix(torch.eye(2)), torch.tensor(y).double(), noise).log_prob(exact)
    assert torch.allclose(found, theirs(exact).log_prob(torch.tensor(y).double()).sum(1))


def test_draws_have_their_distributions() -> None:
    x = torch.full((4000, 1), 0.7, dtype=torch.float64)
    same = Matrix(torch.eye(1))
    laplace = Measurement.drawn(same, x, LaplaceNoise(0.4), seed=1)
    assert stats.kstest(laplace.y[:, 0].numpy(), stats.laplace(0.7, 0.4).cdf).pvalue > 0.01
    counts = Measurement.drawn(same, x, PoissonNoise(4.0, dark=0.2), seed=1).y[:, 0]
    rate = 4 * 1.7 + 0.2
    seen = torch.bincount(counts.long(), minlength=16)[:16].double().numpy()
    wanted = stats.poisson(rate).pmf(range(16))
    assert stats.chisquare(seen, wanted * (seen.sum() / wanted.sum())).pvalue > 0.01
    both = (LaplaceNoise(0.4), laplace.y[:, 0]), (PoissonNoise(4.0, dark=0.2), counts)
    for noise, whole in both:
        standard_error = float(whole.double().std()) / 4000**0.5
        assert abs(float(whole.mean()) - float(noise.expected(x)[0])) < 4 * standard_error
        part = Measurement.drawn(same, x[7:9], noise, seed=1, first=7)
        assert torch.equal(part.y[:, 0], whole[7:9])


@every_noise
def test_plugging_in_is_the_slope_of_the_likelihood_of_the_denoised_state(seen) -> None:
    model = MIXTURE.diffused(SDE)
    t = torch.tensor(0.3, dtype=torch.float64)
    at = Coefficients(SDE).level(t)
    x = PerSampleNoise.numbered(0, 0, 4).normal(torch.zeros(4, 2, dtype=torch.float64))
    found = PlugIn()(model, x, t, at, seen)
    assert torch.allclose(found.log_likelihood, seen.log_prob(model.denoise(x, t)))
    h = 1e-5
    for j in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[j]
        high, low = (seen.log_prob(model.denoise(x + s * step, t)) for s in (1, -1))
        assert torch.allclose(found.gradient[:, j], (high - low) / (2 * h), atol=1e-6)


def test_dps_has_the_direction_of_plugging_in() -> None:
    """∇ log N(y; A x̂0, σ²) = −(‖r‖/σ²) ∇‖r‖, and DPS takes −(ζN/g²) ∇‖r‖."""
    model = MIXTURE.diffused(SDE)
    t = torch.tensor(0.3, dtype=torch.float64)
    at = Coefficients(SDE).level(t)
    x = torch.tensor([[0.3, -0.8], [1.0, 0.2]], dtype=torch.float64)
    seen = SEEN["Gaussian"]
    plain = PlugIn()(model, x, t, at, seen).gradient
    dps = DPS(scale=0.7, steps=50)(model, x, t, at, seen).gradient
    norm = seen.residual(model.denoise(x, t)).abs() / seen.std**2
    assert torch.allclose(dps / (0.7 * 50 / SDE.g(t) ** 2), plain / norm)


@every_noise
def test_particles_reach_the_posterior_by_quadrature(seen) -> None:
    mean, log_evidence = quadrature(seen)
    many = Measurement(seen.operator, seen.y.expand(8, -1), seen.noise)
    found = sample_posterior(
        MIXTURE.diffused(SDE),
        many,
        (2,),
        PlugIn(),
        particles=600,
        steps=80,
        seed=3,
        dtype=torch.float64,
    )
    error = found.mean.std(0) / 8**0.5
    # Four standard errors of eight runs, and the bias of eighty steps.
    assert bool(((found.mean.mean(0) - mean).abs() < 4 * error + 0.02).all())
    evidence = (found.log_evidence - log_evidence).exp()
    assert float(evidence.mean()) == pytest.approx(
        1, abs=4 * float(evidence.std()) / 8**0.5 + 0.03
    )


def test_the_quadrature_is_the_closed_form_where_there_is_one() -> None:
    posterior, log_evidence = exact_posterior(MIXTURE, SEEN["Gaussian"])
    mean, found = quadrature(SEEN["Gaussian"])
    assert torch.allclose(mean, posterior.weights @ posterior.means, atol=1e-9)
    assert found == pytest.approx(log_evidence, abs=1e-9)


def test_without_weights_plugging_in_is_biased() -> None:
    seen = SEEN["Laplace"]
    score = PosteriorScore(MIXTURE.diffused(SDE), seen, PlugIn())
    x = sample(score, Ancestral(), (2000, 2), steps=40, dtype=torch.float64).x
    off = (x.mean(0) - quadrature(seen)[0]).abs()
    assert float(off.max()) > 5 * float(x.std(0).max()) / 2000**0.5


@pytest.mark.parametrize(
    "method", [DenseMMPS(), MMPS(2), TMPD(), PiGDM(), DPS(), DiffPIR()], ids=repr
)
def test_methods_of_gaussian_noise_refuse_others_by_name(method) -> None:
    model = MIXTURE.diffused(SDE)
    says = f"{type(method).__name__}: measurement.noise must be Gaussian, got LaplaceNoise; use"
    with pytest.raises(TypeError, match=says):
        sample_posterior(model, SEEN["Laplace"], (2,), method, particles=2, steps=2)


def test_bad_noise_is_named() -> None:
    model = MIXTURE.diffused(SDE)
    masked = Measurement(Mask(torch.tensor([True, False])), one(0.1), LaplaceNoise(0.1))
    counts = Measurement(SUM, one(0.5), PoissonNoise(3.0))
    silent = Measurement(SUM, one(0.5), OwnNoise(lambda y, a: (y - a).sum()))
    cases = [
        (lambda: exact_posterior(MIXTURE, SEEN["Poisson"]), "exact_posterior: measurement.noise"),
        (lambda: repaint(model, masked, (2,)), "repaint: measurement.noise must be Gaussian"),
        (lambda: masked.std, "Measurement.std: measurement.noise must be Gaussian"),
        (lambda: LaplaceNoise(0.0), "scale must be finite and above 0"),
        (lambda: PoissonNoise(-1.0), "peak must be finite and above 0"),
        (lambda: PoissonNoise(1.0, dark=0.0), "dark must be finite and above 0"),
        (lambda: PoissonNoise(1.0, "one"), "shift must be a number"),
        (lambda: OwnNoise(3), "function must be a callable"),
        (lambda: counts.log_prob(torch.zeros(1, 2)), "y must hold counts 0, 1, 2, … for Poisson"),
        (lambda: silent.log_prob(torch.zeros(3, 2)), "one number for each of 3 rows, got ()"),
        (
            lambda: Measurement.drawn(SUM, torch.zeros(3, 2).double(), OwnNoise(yes)),
            "noise must be one that can be drawn, got OwnNoise",
        ),
    ]
    for call, text in cases:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert text in str(caught.value)
