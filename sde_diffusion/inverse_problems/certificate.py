"""Posterior samplers against exact posteriors: a mixture seen through a matrix and noise.

Each problem draws x* from a mixture of four Gaussians in eight dimensions and measures three
numbers of it. The posterior is known in closed form, so that of every sampler the errors of mean,
modes and evidence are measured and not judged by eye. A perfect sampler of P particles has errors
too: those of P exact draws, the floor. What only inpaints is measured, with a floor of its own, on
three of the eight coordinates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion._shown import shown
from sde_diffusion.diagnostics.metrics import Interval, paired_interval
from sde_diffusion.inverse_problems.exact import exact_posterior
from sde_diffusion.inverse_problems.inpainting import repaint
from sde_diffusion.inverse_problems.likelihood_scores import (
    DPS,
    TMPD,
    DenseMMPS,
    DiffPIR,
    LikelihoodScore,
    PiGDM,
)
from sde_diffusion.inverse_problems.measurement import Measurement
from sde_diffusion.inverse_problems.operators import Mask, Matrix, Operator
from sde_diffusion.inverse_problems.particles import PosteriorSamples, sample_posterior
from sde_diffusion.models.exact import ExactScore, GaussianMixture
from sde_diffusion.sde import VPSDE, LinearSDE

# The samplers that are measured: of these twists, and of these likelihood scores alone.
_TWISTS: Final = (DenseMMPS, PiGDM)
_ALONE: Final = (DenseMMPS, TMPD, PiGDM, DPS, DiffPIR)
NAMES: Final = (
    "exact draws",
    *(f"particles, {kind.__name__}" for kind in _TWISTS),
    *(kind.__name__ for kind in _ALONE),
    "exact draws, inpainting",
    "RePaint, inpainting",
)
_LEVEL: Final = 0.9  # of the sets whose coverage is measured
_STD: Final = 0.2  # sigma_y


@final
@dataclass(frozen=True)
class PosteriorCertificate:
    """Errors of one posterior sampler over the problems, with 95 % confidence intervals.

    Arguments:
        name: of the sampler.
        mean_error: RMS error of the posterior mean, in posterior standard deviations.
        mode_distance: total variation distance of the weights of the posterior's components.
        coverage: the share of problems whose x* lies in the 90 % set of highest density.
        covered: the interval in which a true coverage of .9 puts that share, exact binomial.
        uniform: the p-value of the Kolmogorov–Smirnov test that the levels of x* are uniform.
        evidence_error: of log p(y), nats; None for a sampler that gives none.
        effective_share: effective size over the number of particles.
        seconds: for all problems, by the clock on the wall.
    """

    name: str
    mean_error: Interval
    mode_distance: Interval
    coverage: float
    covered: tuple[float, float]
    uniform: float
    evidence_error: Interval | None
    effective_share: float
    seconds: float

    __repr__ = shown


@final
@dataclass(frozen=True)
class _Drawn:
    """Weighted draws of all problems; (Q, P, D), (Q, P) and (Q,) or None."""

    x: Tensor
    weights: Tensor
    log_evidence: Tensor | None


_Sampler: TypeAlias = Callable[[], _Drawn]


def certify_posteriors(
    *,
    problems: int = 60,
    particles: int = 256,
    steps: int = 200,
    seed: int = 0,
    sde: LinearSDE | None = None,
    told: Callable[[str], None] = lambda _name: None,
) -> list[PosteriorCertificate]:
    """Return the errors of exact draws, of particles with twists, and of likelihood scores alone.

    A likelihood score alone is followed by ancestral steps: particles that are neither weighted
    nor resampled. RePaint has measurements of its own, of three coordinates of the same mixture.

    Arguments:
        problems: how many measurements; at least 2.
        particles: the draws of each posterior.
        steps: of the recommended grid.
        seed: of the problems and of all draws.
        sde: of the exact score; VPSDE() if not given.
        told: called with the name of every sampler as it begins.

    >>> rows = certify_posteriors(problems=2, particles=8, steps=5)
    >>> [row.name for row in rows][:3]
    ['exact draws', 'particles, DenseMMPS', 'particles, PiGDM']
    """
    if problems < 2:
        raise wrong_value(
            "certify_posteriors", "problems", "be 2 or more", problems, "pass for example 60"
        )
    data, operator = mixture_problem()
    sde = VPSDE() if sde is None else sde
    mask = Mask(torch.arange(data.dimension) < 3)
    sums, masked = (
        _Bench(data.diffused(sde), a, problems, particles, steps, seed) for a in (operator, mask)
    )
    by_sampler = [(sums, each) for each in sums.samplers()]
    by_sampler += [(masked, each) for each in masked.inpainting()]
    found = []
    for name, (bench, sampler) in zip(NAMES, by_sampler, strict=True):
        told(name)
        found.append(bench.judged(name, sampler))
    return found


def mixture_problem() -> tuple[GaussianMixture, Matrix]:
    """Return the mixture of four correlated Gaussians in eight dimensions, and A of three rows."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = 1.2 * normal(4, 8)
    factors = 0.25 * normal(4, 8, 8)
    covariances = factors @ factors.mT + 0.03 * torch.eye(8, dtype=torch.float64)
    operator = Matrix(normal(3, 8) / math.sqrt(8))
    return GaussianMixture([0.4, 0.3, 0.2, 0.1], means, covariances), operator


@final
class _Bench:
    """The problems, their exact posteriors, and the samplers on them."""

    def __init__(
        self,
        model: ExactScore,
        operator: Operator,
        problems: int,
        particles: int,
        steps: int,
        seed: int,
    ) -> None:
        self.data = model.oracle
        self.model = model
        self.truth = self.data.sample(problems, torch.Generator().manual_seed(seed))
        self.measurement = Measurement.drawn(operator, self.truth, _STD, seed=seed)
        each = [self.measurement.rows(torch.tensor([q])) for q in range(problems)]
        self.exact = [exact_posterior(self.data, one) for one in each]
        self.particles = particles
        self.steps = steps
        self.seed = seed

    def samplers(self) -> Sequence[_Sampler]:
        """Return the floor, particles, and likelihood scores alone."""
        twisted = [self._weighted(kind()) for kind in _TWISTS]
        alone = [self._alone(DPS(steps=self.steps) if kind is DPS else kind()) for kind in _ALONE]
        return [self._exact, *twisted, *alone]

    def inpainting(self) -> Sequence[_Sampler]:
        """Return the floor and what takes masks alone."""
        return [self._exact, self._repainted]

    def _repainted(self) -> _Drawn:
        found = repaint(
            self.model,
            self.measurement,
            self.data.event,
            draws=self.particles,
            steps=self.steps,
            seed=self.seed,
            dtype=torch.float64,
        )
        return self._alike(found.x)

    def _exact(self) -> _Drawn:
        generator = torch.Generator().manual_seed(self.seed + 1)
        x = torch.stack([p.sample(self.particles, generator) for p, _ in self.exact])
        return self._alike(x)

    def _weighted(self, method: LikelihoodScore) -> _Sampler:
        def drawn() -> _Drawn:
            found = self._sampled(method, resample_below=0.5)
            return _Drawn(found.x, found.weights, found.log_evidence)

        return drawn

    def _alone(self, method: LikelihoodScore) -> _Sampler:
        """Return ancestral samples of the approximate posterior score, all of one weight."""
        return lambda: self._alike(self._sampled(method, resample_below=0.0).x)

    def _sampled(self, method: LikelihoodScore, resample_below: float) -> PosteriorSamples:
        return sample_posterior(
            self.model,
            self.measurement,
            self.data.event,
            method,
            particles=self.particles,
            steps=self.steps,
            seed=self.seed,
            resample_below=resample_below,
            dtype=torch.float64,
        )

    def _alike(self, x: Tensor) -> _Drawn:
        weights = torch.full(x.shape[:2], 1 / self.particles, dtype=torch.float64)
        return _Drawn(x, weights, None)

    def judged(self, name: str, sampler: _Sampler) -> PosteriorCertificate:
        """Return the errors of a sampler's draws."""
        begin = time.perf_counter()
        drawn = sampler()
        seconds = time.perf_counter() - begin
        errors = []
        modes = []
        levels = []
        evidence = []
        for q, (posterior, log_evidence) in enumerate(self.exact):
            x = drawn.x[q]
            w = drawn.weights[q]
            errors.append(_mean_error(posterior, x, w))
            modes.append(_mode_distance(posterior, x, w))
            below = posterior.log_prob(x) < posterior.log_prob(self.truth[q : q + 1])
            levels.append(float(w[below].sum()))
            if drawn.log_evidence is not None:
                evidence.append(float(drawn.log_evidence[q]) - log_evidence)
        effective = drawn.weights.square().sum(1).reciprocal().mean() / self.particles
        return PosteriorCertificate(
            name,
            paired_interval(errors),
            paired_interval(modes),
            sum(level > 1 - _LEVEL for level in levels) / len(levels),
            _binomial(len(levels)),
            _uniform(levels),
            paired_interval(evidence) if evidence else None,
            float(effective),
            seconds,
        )


def _mean_error(posterior: GaussianMixture, x: Tensor, weights: Tensor) -> float:
    """Return the RMS error of the weighted mean, in posterior standard deviations."""
    mean, std = posterior.moments()
    return float(((weights @ x - mean) / std).square().mean().sqrt())


def _mode_distance(posterior: GaussianMixture, x: Tensor, weights: Tensor) -> float:
    """Return ½ Σ_k |Σ_i W_i p(k | x_i) − w_k|."""
    one = torch.ones((), dtype=torch.float64)
    shares = weights @ posterior._components(x, one, 0 * one)[2].softmax(1)
    return 0.5 * float((shares - posterior.weights).abs().sum())


def _binomial(n: int) -> tuple[float, float]:
    """Return the central 95 % interval of the share of n trials that succeed with chance .9."""
    from scipy.stats import binom

    low, high = binom.interval(0.95, n, _LEVEL)
    return float(low) / n, float(high) / n


def _uniform(levels: list[float]) -> float:
    """Return the p-value of the Kolmogorov–Smirnov test of uniformity."""
    from scipy.stats import kstest

    return float(kstest(levels, "uniform").pvalue)
