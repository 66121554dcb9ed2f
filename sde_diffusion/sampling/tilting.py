"""Feynman–Kac weights: samples of guided scores, weighted to be those of the tilted density.

With γ = 1 + w, the guided score s = γ s_c + (1−γ) s_0 belongs to q_t ∝ p_t(x|c)^γ p_t(x)^{1−γ}.
Both densities obey the forward equation of dx = f dt + g dw; of their powers follows

    ∂_t q = −∇·(f q) + ½ g² Δq − ½ g² γ(γ−1) ‖s_c − s_0‖² q,

a Fokker–Planck equation but for the last term, a source of mass. Backward in time, the reverse
SDE of the guided score has the drift −f + ½(1+l²) g² s and the noise l g: with s = ∇log q its own
Fokker–Planck equation has the first two terms for every noise scale l, l = 0 (the probability-flow
ODE) included. So its weighted paths have the density q_t if the weights obey
d log W = −½ g² γ(γ−1) ‖s_c − s_0‖² dt, dt < 0, and only then.

The weights may have heavy tails: more noise, l > 1, makes them lighter, and a larger γ heavier.
An effective sample size that is small, or that changes with the seed, says not to trust them.

Source: Skreta et al. 2025 (Feynman–Kac correctors); Bradley & Nakkiran 2024 (what guidance
samples without).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import check_shape, diverged, wrong_type, wrong_value
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_dtype, expand, flat_sum
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.counting import CountedScore, Counter
from sde_diffusion.dynamics import ProbabilityFlow, ReverseSDE, check_coupling
from sde_diffusion.forms import converted
from sde_diffusion.grids import check_grid
from sde_diffusion.integration import check_evaluation, check_falling, dynamics_for
from sde_diffusion.models.guidance import Guided
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sampling.generate import grid_for
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import OneStep


@final
@dataclass(frozen=True)
class Tilted:
    """Weighted samples of q ∝ p(x|c)^{1+w} p(x)^{−w}, and what they cost.

    ``log_mass`` is estimated as the change along the grid: at the start of the grid it is taken
    to be 0, as it is up to the mismatch of the prior.

    Arguments:
        x: the samples; (B, *event).
        log_weights: log W of each since it was last resampled, float64; (B,).
        log_mass: an estimate of log ∫ p(x|c)^{1+w} p(x)^{−w} dx at the end of the grid, nats.
        nfe: evaluations of the guided score.
        resamplings: how often the samples were resampled.

    >>> found = Tilted(torch.zeros(2, 1), torch.zeros(2).double(), 0.0, 1, 0)
    >>> found.weights.tolist(), round(found.effective_size, 3)
    ([0.5, 0.5], 2.0)
    """

    x: Tensor
    log_weights: Tensor
    log_mass: float
    nfe: int
    resamplings: int

    __repr__ = shown

    @property
    def weights(self) -> Tensor:
        """The weights, with the sum 1."""
        return self.log_weights.softmax(0)

    @property
    def effective_size(self) -> float:
        """The effective sample size (ΣW)²/ΣW²."""
        return 1 / float(self.weights.square().sum())

    def resampled(self, seed: int = 0) -> Tensor:
        """Return B samples of equal weight, resampled by their weights: some are repeated."""
        return self.x[systematic(self.weights, mix(seed, Purpose.RESAMPLING)).to(self.x.device)]


def sample_tilted(
    guided: Guided,
    solver: OneStep[Any],
    shape: Sequence[int],
    *,
    steps: int | None = None,
    grid: Tensor | None = None,
    seed: int = 0,
    noise_scale: float = 1.0,
    resample_below: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tilted:
    """Return weighted samples of the density whose score the guided score is.

    Without the weights, guidance samples another density. The samples are those of the solver on
    the reverse SDE with ``noise_scale``, or on the probability-flow ODE if the solver is of ODEs;
    the log-weights are integrated along the path by the trapezoidal rule. Where the effective
    sample size falls below ``resample_below`` × B the samples are resampled by their weights;
    then, and only then, a sample depends on its batch-mates.

    Arguments:
        guided: the guided score, with one number as its weight w.
        solver: a one-step solver, of the reverse SDE or of ODEs.
        shape: (B, *event), of the samples.
        steps: along the `recommended` grid of the solver; 20 if there is no grid either.
        grid: the times instead, falling from noise to data; (steps + 1,).
        seed: of the prior, of the solver's noise and of the resampling.
        noise_scale: l of the reverse SDE; without effect for a solver of ODEs.
        resample_below: share of B, in [0, 1]; 0 never resamples.
        dtype: of the states.

    Shapes: result's x (B, *event).
    NFE: the solver's, less the evaluation that begins a step, and one of the weights a step.
    Errors: TypeError for anything but a `Guided` or a one-step solver; ValueError for a weight
    that depends on t, for resampling of samples with labels of their own, for steps and grid
    together; FloatingPointError for divergence.
    Source: Skreta et al. 2025; Kitagawa 1996 (systematic resampling).

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.solvers import Heun
    >>> data = [Gaussian(torch.zeros(1), v * torch.eye(1)).diffused(VPSDE()) for v in (0.5, 1.0)]
    >>> found = sample_tilted(Guided(*data, 1.0), Heun(), (500, 1), steps=20)
    >>> square = found.x.double().square()[:, 0]  # N(0, .5)²/N(0, 1) has the variance 1/3
    >>> round(float(square.mean()), 2), round(float(found.weights @ square), 2), found.nfe
    (0.24, 0.31, 41)
    """
    weight = _checked(guided, solver, shape, resample_below)
    check_dtype("sample_tilted", dtype)
    grid = grid_for("sample_tilted", guided, solver, steps, grid)
    check_grid(grid, guided.sde.horizon)
    check_falling("sample_tilted", grid)
    noise = PerSampleNoise.numbered(seed, 0, shape[0])
    with torch.no_grad():
        x = guided.sde.prior().sample(noise, shape, dtype=dtype, device=guided.device)
        score = _Remembering(guided, weight)
        dynamics: ReverseSDE | ProbabilityFlow = dynamics_for(solver, guided.sde, score)
        if isinstance(dynamics, ReverseSDE):
            dynamics = ReverseSDE(guided.sde, score, noise_scale)
        log_weights = torch.zeros(shape[0], dtype=torch.float64, device=x.device)
        log_mass = 0.0
        resamplings = 0
        rate = score.rate(x, grid[0])
        for step, (t, s) in enumerate(pairwise(grid), start=1):
            x = solver.step(dynamics, x, t, s, noise)
            before = rate
            rate = score.rate(x, s)
            log_weights = log_weights + 0.5 * float(t - s) * (before + rate)
            _check_finite(log_weights, step, s)
            weights = log_weights.softmax(0)
            crowded = weights.square().sum() * resample_below * len(x) > 1
            if resample_below and step < len(grid) - 1 and bool(crowded):
                index = systematic(weights, mix(seed, Purpose.RESAMPLING, step)).to(x.device)
                x = x[index]
                rate = rate[index]
                log_mass = log_mass + _log_mean(log_weights)
                log_weights = torch.zeros_like(log_weights)
                resamplings = resamplings + 1
    log_mass = log_mass + _log_mean(log_weights)
    return Tilted(x, log_weights, log_mass, score.counter.calls, resamplings)


@final
class _Remembering(ScoreLike):
    """A guided score that keeps its last value: a step begins where a weight was computed."""

    sde: LinearSDE
    predicts = True

    def __init__(self, guided: Guided, weight: float) -> None:
        self.guided = guided
        self.sde = guided.sde
        self.weight = weight
        self.counter = Counter()
        self._counted = CountedScore(guided, self.counter)
        self._x = torch.empty(0)
        self._t = torch.empty(())
        self._eps = torch.empty(0)

    def rate(self, x: Tensor, t: Tensor) -> Tensor:
        """Return d log W/|dt| = ½ g² γ(γ−1) ‖eps_c − eps_0‖²/sigma², float64."""
        self.counter.count()
        c, u = self.guided.parts(x, t)
        self._x = x
        self._t = t
        self._eps = c + self.weight * (c - u)
        factor = 0.5 * (1 + self.weight) * self.weight
        slope = factor * float(self.sde.g(t) / self.sde.sigma(t)) ** 2
        return slope * flat_sum((c - u).double().square())

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        """Return eps, x0 or v at (x, t), from what is known if it is there."""
        if self._known(x, t):
            return converted(form, "eps", self._eps, x, at)
        return self._counted.predict(form, x, t, at)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the guided score at (x, t)."""
        if self._known(x, t):
            return self._eps / expand(-self.sde.sigma(t), x)
        return self._counted(x, t)

    def _known(self, x: Tensor, t: Tensor) -> bool:
        return x is self._x and bool(t == self._t)


def _checked(guided: object, solver: object, shape: Sequence[int], resample_below: float) -> float:
    """Return the weight of guidance, a number."""
    what = "sample_tilted"
    if not isinstance(guided, Guided):
        raise wrong_type(
            what,
            "guided",
            "be a Guided",
            type(guided).__name__,
            "pass guided(model, labels, weight)",
        )
    if not isinstance(solver, OneStep):
        raise wrong_type(
            what,
            "solver",
            "be a one-step solver",
            type(solver).__name__,
            "pass for example EulerMaruyama() or Heun()",
        )
    check_evaluation(what, guided)
    check_coupling(what, "guided", guided)
    check_shape(what, shape)
    if callable(guided.weight):
        raise wrong_value(
            what,
            "guided.weight",
            "be one number for all t",
            "a function",
            "leave out the weights: use sample",
        )
    if not 0 <= resample_below <= 1:
        raise wrong_value(what, "resample_below", "lie in [0, 1]", resample_below, "pass .5")
    if resample_below and guided.rows(torch.arange(shape[0])) is not guided:
        raise wrong_value(
            what,
            "resample_below",
            "be 0 where samples have their own labels",
            resample_below,
            "sample one class at a time",
        )
    return guided.weight


def _check_finite(log_weights: Tensor, step: int, t: Tensor) -> None:
    if not bool(torch.isfinite(log_weights).all()):
        got = f"NaN or infinity at step {step} (t = {float(t):.6g})"
        raise diverged(
            "sample_tilted",
            "log_weights",
            "stay finite",
            got,
            "use more steps, or move the ends of the grid",
        )


def _log_mean(log_weights: Tensor) -> float:
    return float(log_weights.logsumexp(0)) - math.log(len(log_weights))


def systematic(weights: Tensor, seed: int) -> Tensor:
    """Return the indices of systematic resampling: i at least ⌊B W_i⌋ times."""
    n = len(weights)
    u = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    levels = (torch.arange(n, dtype=torch.float64) + u) / n
    return torch.searchsorted(weights.cpu().cumsum(0), levels).clamp(max=n - 1)
