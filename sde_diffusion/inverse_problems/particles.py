"""Sequential Monte Carlo on a posterior: draws by an approximate score, with exact weights.

A particle goes from x_t to x_s by the proposal q(x_s | x_t, y), the ancestral step at the x0 that
a likelihood score has moved. With the model's own step p(x_s | x_t) and a twist ψ_t(x), which
stands for p(y | x_t), its weight is multiplied by

    p(x_s | x_t) ψ_s(x_s) / (q(x_s | x_t, y) ψ_t(x_t)),

at first by ψ_1(x_1), and at last by p(y | x0)/ψ(x0): all twists cancel, so that the weighted
particles are of p(x0 | y) ∝ p(x0) p(y | x0) for any ψ > 0 as their number grows, and their mean
weight has the expectation p(y), under the model as the ancestral steps sample it. What a twist
does is to keep the weights alike.

Source: Wu et al. 2023 (twisted diffusion sampler, algorithm 1); Naesseth et al. 2019 (twists).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from sde_diffusion._check import diverged, positive_integer, wrong_value
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_dtype, flat_sum
from sde_diffusion.coefficients import Coefficients, Level, kernel
from sde_diffusion.counting import CountedScore
from sde_diffusion.inverse_problems.checks import check_method, check_posterior, decided_grid
from sde_diffusion.inverse_problems.likelihood_scores import (
    DenseMMPS,
    Guess,
    LikelihoodScore,
    tweedie,
)
from sde_diffusion.inverse_problems.measurement import Measurement
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sampling.tilting import systematic
from sde_diffusion.scores import ScoreLike


@final
@dataclass(frozen=True)
class PosteriorSamples:
    """Weighted samples of the posteriors of Q measurements, P each.

    Arguments:
        x: the samples; (Q, P, *event).
        log_weights: log of each weight since it was last resampled, float64; (Q, P).
        log_evidence: an estimate of log p(y) of each measurement, nats, float64; (Q,).
        nfe: evaluations of the score of all particles.
        resamplings: how often the particles of each measurement were resampled; (Q,).
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    nfe: int
    resamplings: Tensor

    __repr__ = shown

    @property
    def weights(self) -> Tensor:
        """The weights of each measurement's particles, with the sum 1; (Q, P)."""
        return self.log_weights.softmax(1)

    @property
    def effective_size(self) -> Tensor:
        """The effective sample size (ΣW)²/ΣW² of each measurement; (Q,)."""
        return self.weights.square().sum(1).reciprocal()

    @property
    def mean(self) -> Tensor:
        """The posterior means; (Q, *event)."""
        return _weighted(self.weights, self.x)

    @property
    def std(self) -> Tensor:
        """The posterior standard deviations, element by element; (Q, *event)."""
        return _weighted(self.weights, (self.x - self.mean[:, None]).square()).sqrt()

    def levels(self, x: Tensor) -> Tensor:
        """Return P(X < x) + ½ P(X = x) of every element under the weighted samples.

        Where x is a draw of the posterior its levels are uniform, so that a share L of them lies
        within ½ ± L/2: the coverage.

        Shapes: x (Q, *event) → the same.
        """
        below = (self.x < x[:, None]).double() + 0.5 * (self.x == x[:, None]).double()
        return _weighted(self.weights, below)

    def resampled(self, seed: int = 0) -> Tensor:
        """Return P samples of equal weight for each measurement: some are repeated."""
        seeds = (mix(seed, Purpose.POSTERIOR_RESAMPLING, q) for q in range(len(self.x)))
        chosen = [systematic(w, s) for w, s in zip(self.weights, seeds, strict=True)]
        return torch.stack([x[i.to(x.device)] for x, i in zip(self.x, chosen, strict=True)])


def sample_posterior(
    model: ScoreLike,
    measurement: Measurement,
    event: Sequence[int],
    method: LikelihoodScore | None = None,
    *,
    particles: int = 64,
    steps: int | None = None,
    grid: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    resample_below: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> PosteriorSamples:
    """Return weighted samples of p(x0 | y) for every row of y, and estimates of log p(y).

    The particles of a measurement meet one another where they are resampled, and no others: each
    measurement's result is that of it alone. The last state, divided by alpha, counts as x0, so
    the grid should end where sigma is small beside sigma_y.

    Arguments:
        model: the score of the data.
        measurement: y, one row a posterior.
        event: the shape of a sample.
        method: the likelihood score of proposals and twists; `DenseMMPS` if not given.
        particles: P, of each posterior.
        steps: along the `recommended` grid; 100 if there is no grid either.
        grid: the times instead, falling from noise to data; (steps + 1,).
        seed: of the prior, of the noise and of the resampling.
        first: the number of the first measurement, where those of one run are sampled in parts.
        resample_below: share of P below which the effective size leads to resampling; in [0, 1].
        dtype: of the states.

    Shapes: result's x (Q, P, *event), with Q rows of y.
    NFE: 1 a step and particle, and the method's vector-Jacobian products.
    Errors: TypeError for a wrong kind of model, measurement or method; ValueError for settings
    out of range; FloatingPointError for weights that are not finite.
    Source: Wu et al. 2023, algorithm 1.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.inverse_problems import Matrix
    >>> prior = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> seen = Measurement(Matrix(torch.eye(1)), torch.tensor([[1.0]]), std=1.0)
    >>> found = sample_posterior(prior, seen, (1,), particles=4000)
    >>> round(found.mean.item(), 1), round(found.std.item() ** 2, 1)  # N(½, ½)
    (0.5, 0.5)
    >>> round(found.log_evidence.item(), 1)  # log N(1; 0, 2)
    -1.5
    """
    method = DenseMMPS() if method is None else method
    positive_integer("sample_posterior", "particles", particles)
    check_dtype("sample_posterior", dtype)
    check_posterior("sample_posterior", model, measurement, event)
    check_method("sample_posterior", method)
    if not 0 <= resample_below <= 1:
        rule = "lie in [0, 1]"
        raise wrong_value("sample_posterior", "resample_below", rule, resample_below, "pass .5")
    grid = decided_grid("sample_posterior", model, steps, grid)
    with torch.no_grad():
        return _Particles(model, measurement, method, particles, seed, first).run(
            tuple(event), grid, resample_below, dtype
        )


@final
class _Particles:
    """Q groups of P particles in one batch of Q P rows, and their weights."""

    def __init__(
        self,
        model: ScoreLike,
        measurement: Measurement,
        method: LikelihoodScore,
        particles: int,
        seed: int,
        first: int,
    ) -> None:
        self._score = CountedScore(model)
        self._groups = len(measurement.y)
        self._count = particles
        owner = torch.arange(self._groups).repeat_interleave(particles)
        self._measurement = measurement.rows(owner)
        self._method = method
        self._seed = seed
        self._first = first
        self._device = model.device
        zeros = torch.zeros(self._groups, dtype=torch.float64, device=self._device)
        self._log_weights = zeros[:, None].expand(-1, particles)
        self._log_evidence = zeros
        self._resamplings = torch.zeros(self._groups, dtype=torch.int64)

    def run(
        self, event: tuple[int, ...], grid: Tensor, resample_below: float, dtype: torch.dtype
    ) -> PosteriorSamples:
        """Return the particles at the end of the grid."""
        # One stream for each measurement: its particles are resampled among themselves anyway.
        noise = PerSampleNoise.numbered(self._seed, self._first, self._groups)
        prior = self._score.function.linear_sde().prior()
        grouped = (self._groups, self._count, *event)
        x = prior.sample(noise, grouped, dtype=dtype, device=self._device).flatten(0, 1)
        known = Coefficients(self._score.function.linear_sde())
        levels = [known.level(t) for t in grid]
        guess = self._guess(x, grid[0], levels[0])
        self._weigh(guess.log_likelihood, 0)
        moves = zip(grid[1:], pairwise(levels), strict=True)
        for step, (s, (at, to)) in enumerate(moves, start=1):
            x, guess = self._resampled(x, guess, step, resample_below)
            move = AncestralStep(at, to)
            own = move.mean(guess.x0, x)
            towards = move.mean(guess.x0 + tweedie(at) * guess.gradient, x)
            z = noise.normal(x.view(grouped)).flatten(0, 1)
            x = towards + move.std * z
            # log p(x_s | x_t) − log q(x_s | x_t, y) at x_s = towards + std z.
            off = ((towards - own) / move.std).double()
            ratio = -flat_sum(off * (0.5 * off + z.double()))
            before = guess.log_likelihood
            if step == len(grid) - 1:
                after = self._measurement.log_prob(x / to.alpha)
            else:
                guess = self._guess(x, s, to)
                after = guess.log_likelihood
            self._weigh(ratio + after - before, step)
        evidence = self._log_evidence + _log_mean(self._log_weights)
        x = (x / levels[-1].alpha).view(grouped)
        nfe = self._score.calls
        return PosteriorSamples(x, self._log_weights, evidence, nfe, self._resamplings)

    def _guess(self, x: Tensor, t: Tensor, at: Level) -> Guess:
        return self._method(self._score, x, t, at, self._measurement)

    def _weigh(self, change: Tensor, step: int) -> None:
        self._log_weights = self._log_weights + change.reshape(self._groups, self._count)
        if not bool(torch.isfinite(self._log_weights).all()):
            raise diverged(
                "sample_posterior",
                "log_weights",
                "stay finite",
                f"NaN or infinity at step {step}",
                "use more steps or a larger std, or a method with smaller moves",
            )

    def _resampled(self, x: Tensor, guess: Guess, step: int, below: float) -> tuple[Tensor, Guess]:
        """Resample the groups whose effective size is below a share of their particles."""
        weights = self._log_weights.softmax(1)
        crowded = weights.square().sum(1) * below * self._count > 1
        if not bool(crowded.any()):
            return x, guess
        index = torch.arange(len(x)).reshape(self._groups, self._count)
        for group in crowded.nonzero()[:, 0].tolist():
            seed = mix(self._seed, Purpose.POSTERIOR_RESAMPLING, step, self._first + group)
            index[group] = index[group][systematic(weights[group], seed)]
        self._log_evidence = torch.where(
            crowded, self._log_evidence + _log_mean(self._log_weights), self._log_evidence
        )
        self._log_weights = torch.where(
            crowded[:, None], torch.zeros_like(self._log_weights), self._log_weights
        )
        self._resamplings = self._resamplings + crowded.cpu()
        chosen = index.flatten().to(x.device)
        return x[chosen], Guess(*(part[chosen] for part in guess))


@final
class AncestralStep:
    """q(x_s | x_t, x0) = N(mean(x0, x_t), std² I), the posterior of the forward process.

    Source: Ho et al. 2020, equation 7, for any linear SDE.
    """

    def __init__(self, at: Level, to: Level) -> None:
        a, b2 = kernel(to, at)
        self._of_x0 = to.alpha * b2 / at.sigma**2
        self._of_x = a * to.sigma**2 / at.sigma**2
        self.std = to.sigma * math.sqrt(b2) / at.sigma

    def mean(self, x0: Tensor, x: Tensor) -> Tensor:
        return self._of_x0 * x0 + self._of_x * x


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def _weighted(weights: Tensor, x: Tensor) -> Tensor:
    """Return Σ_p W_qp x_qp: (Q, P), (Q, P, *event) → (Q, *event)."""
    return torch.einsum("qp,qp...->q...", weights, x.double()).to(x.dtype)
