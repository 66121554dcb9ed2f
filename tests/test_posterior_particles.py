"""Particles with twists: exact posteriors, evidence, and what does not change them."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import VPSDE, Gaussian, GaussianMixture, quadratic
from sde_diffusion.inverse_problems import (
    TMPD,
    DenseMMPS,
    Guess,
    LikelihoodScore,
    Mask,
    Matrix,
    Measurement,
    PiGDM,
    PosteriorSamples,
    certify_posteriors,
    exact_posterior,
    sample_posterior,
)
from sde_diffusion.inverse_problems.certificate import (
    _mean_error,
    _mode_distance,
    mixture_problem,
)

MIXTURE = GaussianMixture([0.7, 0.3], torch.tensor([[-0.8, 0.2], [0.9, -0.4]]), stds=[0.4, 0.3])
SEEN = Measurement(Matrix(torch.tensor([[1.0, 0.5]]).double()), torch.tensor([[0.1]]), std=0.5)


class Blind(LikelihoodScore):
    """No likelihood score and no twist: particles of the prior, weighted at the end."""

    def __call__(self, model, x, t, at, measurement) -> Guess:  # noqa: ARG002
        x0 = model.predict("x0", x, t, at)
        return Guess(x0, torch.zeros_like(x), torch.zeros(len(x), dtype=torch.float64))


class Wrong(LikelihoodScore):
    """A likelihood score that pulls to one side, with a twist of its own."""

    def __call__(self, model, x, t, at, measurement) -> Guess:  # noqa: ARG002
        x0 = model.predict("x0", x, t, at)
        return Guess(x0, torch.full_like(x, 0.2), 0.2 * x.double().sum(1))


def test_the_exact_posterior_is_bayes_rule() -> None:
    """On a fine grid of the plane: p(x) p(y | x), normalised, and its integral."""
    found, log_evidence = exact_posterior(MIXTURE, SEEN)
    line = torch.linspace(-4, 4, 401, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    cell = float(line[1] - line[0]) ** 2
    joint = (MIXTURE.log_prob(x) + SEEN.log_prob(x)).exp()
    assert log_evidence == pytest.approx(math.log(float(joint.sum()) * cell), abs=1e-9)
    assert torch.allclose(found.log_prob(x).exp(), joint / math.exp(log_evidence), atol=1e-9)


def test_the_exact_posterior_of_images_is_that_of_flat_ones() -> None:
    means = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    kept = torch.tensor([[[True, False], [False, True]]])
    images = exact_posterior(
        GaussianMixture([1, 2], means, stds=[0.3, 0.5]),
        Measurement(Mask(kept), torch.tensor([[0.4, -0.2]]), 0.1),
    )
    matrix = torch.eye(4, dtype=torch.float64)[[0, 3]]
    flat = exact_posterior(
        GaussianMixture([1, 2], means.flatten(1), stds=[0.3, 0.5]),
        Measurement(Matrix(matrix), torch.tensor([[0.4, -0.2]]), 0.1),
    )
    assert torch.allclose(images[0].means.flatten(1), flat[0].means)
    assert images[1] == pytest.approx(flat[1])


@pytest.mark.parametrize(
    ("method", "below"),
    [
        (DenseMMPS(), 0.5),
        (DenseMMPS(), 1.0),  # resampled at every step
        (PiGDM(), 0.5),
        (TMPD(), 0.5),
        (Wrong(), 0.9),
        (Blind(), 0.5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, LikelihoodScore) else value,
)
def test_particles_reach_the_posterior_and_the_evidence_by_any_twist(method, below) -> None:
    posterior, log_evidence = exact_posterior(MIXTURE, SEEN)
    many = Measurement(SEEN.operator, SEEN.y.expand(12, -1), SEEN.std)
    found = sample_posterior(
        MIXTURE.diffused(VPSDE()),
        many,
        (2,),
        method,
        particles=800,
        steps=100,
        seed=3,
        resample_below=below,
        dtype=torch.float64,
    )
    assert (below == 1) == bool((found.resamplings == 100).all())
    mean = posterior.weights @ posterior.means
    of_means = found.mean.mean(0)
    error = found.mean.std(0) / 12**0.5
    # Four standard errors of twelve runs, and the bias of a hundred steps.
    assert bool(((of_means - mean).abs() < 4 * error + 0.02).all()), (of_means, mean, error)
    evidence = (found.log_evidence - log_evidence).exp()
    assert float(evidence.mean()) == pytest.approx(
        1, abs=4 * float(evidence.std()) / 12**0.5 + 0.03
    )


def test_the_bias_of_the_steps_falls_with_their_number() -> None:
    """With Gaussian data and the exact twist only the steps are wrong, and at first order."""
    data = Gaussian(torch.tensor([0.4]), torch.tensor([[0.3]]))
    seen = Measurement(Matrix(torch.eye(1)), torch.tensor([[1.0]]), std=0.5)
    _, log_evidence = exact_posterior(data, seen)
    errors = []
    for steps in (25, 100):
        found = sample_posterior(
            data.diffused(VPSDE()),
            Measurement(seen.operator, seen.y.expand(20, -1), seen.std),
            (1,),
            particles=2000,
            steps=steps,
            dtype=torch.float64,
        )
        errors.append(abs(float(found.log_evidence.exp().mean().log()) - log_evidence))
    assert errors[1] < 0.5 * errors[0]


def test_a_measurement_is_sampled_as_it_would_be_alone() -> None:
    model = MIXTURE.diffused(VPSDE())
    many = Measurement(SEEN.operator, torch.tensor([[0.1], [1.5], [-2.0]]), SEEN.std)
    settings = {"particles": 16, "steps": 20, "seed": 4, "resample_below": 0.9}
    whole = sample_posterior(model, many, (2,), PiGDM(), **settings)
    first = sample_posterior(model, many.rows(torch.tensor([0])), (2,), PiGDM(), **settings)
    assert torch.equal(whole.x[:1], first.x)
    assert torch.equal(whole.log_weights[:1], first.log_weights)
    assert torch.equal(whole.log_evidence[:1], first.log_evidence)
    last = sample_posterior(
        model, many.rows(torch.tensor([1, 2])), (2,), PiGDM(), first=1, **settings
    )
    assert torch.equal(whole.x[1:], last.x)
    assert bool((whole.resamplings > 0).all())


def test_resampling_keeps_the_distribution_and_is_counted() -> None:
    model = MIXTURE.diffused(VPSDE())
    never = sample_posterior(model, SEEN, (2,), PiGDM(), particles=50, steps=20, resample_below=0)
    often = sample_posterior(model, SEEN, (2,), PiGDM(), particles=50, steps=20, resample_below=1)
    assert never.resamplings.tolist() == [0]
    assert often.resamplings.tolist() == [20]  # at every step but for equal weights
    assert never.nfe == often.nfe == 20
    assert float(never.effective_size) < float(often.effective_size)


def test_weighted_statistics_are_those_of_the_weights() -> None:
    x = torch.tensor([[[0.0], [1.0], [3.0]]], dtype=torch.float64)
    weights = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    found = PosteriorSamples(x, weights.log(), torch.zeros(1), 0, torch.zeros(1))
    assert found.mean.item() == pytest.approx(1.0)
    assert found.std.item() ** 2 == pytest.approx(0.5 * 1 + 0 + 0.25 * 4)
    assert found.effective_size.item() == pytest.approx(1 / (0.25 + 2 * 0.0625))
    at = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    twice = PosteriorSamples(
        x.expand(2, -1, -1), weights.log().expand(2, -1), torch.zeros(2), 0, torch.zeros(2)
    )
    assert twice.levels(at).flatten().tolist() == pytest.approx([0.625, 0.75])
    drawn = found.resampled(seed=1)[0, :, 0].tolist()
    assert drawn.count(0.0) in (1, 2)  # systematic: ⌊3 · ½⌋ or one more


def test_the_certificate_tells_particles_from_the_approximations() -> None:
    """The floor is met by exact draws, nearly by particles, and not by the likelihood scores."""
    rows = {row.name: row for row in certify_posteriors(problems=12, particles=64, steps=40)}
    floor = rows["exact draws"]
    twisted = rows["particles, DenseMMPS"]
    assert floor.evidence_error is None
    assert floor.mean_error.mean == pytest.approx(64**-0.5, rel=0.4)  # of 64 draws: 1/√64
    assert twisted.mean_error.mean < 1.6 * floor.mean_error.mean
    assert 0.0 in twisted.evidence_error
    assert floor.effective_share == pytest.approx(1)
    assert twisted.effective_share < 1
    for name in ("TMPD", "PiGDM", "DPS", "DiffPIR"):
        assert rows[name].mean_error.mean > twisted.mean_error.mean
        assert rows[name].evidence_error is None
    masked, repainted = rows["exact draws, inpainting"], rows["RePaint, inpainting"]
    assert masked.mean_error.mean == pytest.approx(64**-0.5, rel=0.4)
    low = repainted.mean_error.mean - repainted.mean_error.half_width
    assert low > masked.mean_error.mean + masked.mean_error.half_width  # its bias shows
    assert repainted.evidence_error is None
    low, high = floor.covered
    assert low < 0.9 < high
    assert low <= floor.coverage <= high


def test_the_errors_are_those_of_hand_made_draws() -> None:
    """Two modes far apart with weights .7 and .3, and draws of the first alone, half a std off."""
    means = torch.tensor([[-50.0, 0.0], [50.0, 0.0]])
    covariances = torch.eye(2).expand(2, 2, 2)
    posterior = GaussianMixture([0.7, 0.3], means, covariances)
    x = means[:1].double().expand(4, -1)
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    assert _mode_distance(posterior, x, weights) == pytest.approx(0.3)
    # The mean is −20 and the variance 1 + .7 · 30² + .3 · 70² beside 1 across.
    wide = 1 + 0.7 * 30**2 + 0.3 * 70**2
    off = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    error = math.sqrt((30**2 / wide + 0.5**2) / 2)
    assert _mean_error(posterior, x + off, weights) == pytest.approx(error)


def test_the_problem_is_one_whose_prior_is_not_its_posterior() -> None:
    data, operator = mixture_problem()
    x = data.sample(4, torch.Generator().manual_seed(0))
    measured = Measurement(operator, operator(x), 0.2)
    for q in range(4):
        posterior, _ = exact_posterior(data, measured.rows(torch.tensor([q])))
        assert float((posterior.weights - data.weights).abs().sum()) > 0.05


def test_bad_input_is_named() -> None:
    model = MIXTURE.diffused(VPSDE())

    def call(*args, **kwargs):
        return lambda: sample_posterior(*args, **kwargs)

    cases = [
        (call(len, SEEN, (2,)), "model must be a score model"),
        (call(model, SEEN.y, (2,)), "measurement must be a Measurement object, got Tensor"),
        (
            call(model, SEEN, (2,), PiGDM),
            "method must be a LikelihoodScore object, got the class PiGDM",
        ),
        (call(model, SEEN, (2,), particles=0), "particles must be at least 1, got 0"),
        (call(model, SEEN, (0,)), "event must be at least 1, got 0"),
        (call(model, SEEN, (2,), resample_below=2), r"resample_below must lie in \[0, 1\], got 2"),
        (
            call(model, SEEN, (2,), steps=3, grid=quadratic(3)),
            "steps, grid must not be given together",
        ),
        (call(model, SEEN, (2,), grid=quadratic(3).flip(0)), "grid must run from noise"),
        (lambda: certify_posteriors(problems=1), "problems must be 2 or more, got 1"),
    ]
    for wrong, text in cases:
        with pytest.raises((TypeError, ValueError), match=text):
            wrong()
