"""The chain of the discrete bound: its times and its variances, by the model and the data.

What is best depends on where the data stop. Levels are found at once from a little less noise than
parts them, and there nothing is gained below it; a density of real numbers has no such end. Where
x0 is as good as known, the posterior's variance is the best, on a smooth density the forward one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from torch import Tensor

from sde_diffusion.data.spec import DataSpec
from sde_diffusion.ddpm.level_times import (
    OF_LEVELS,
    log_snr_chain,
    own_betas,
    time_of_levels,
)
from sde_diffusion.ddpm.variances import ForwardVariance, PosteriorVariance, Variance
from sde_diffusion.evaluation.settings import EvaluationSettings
from sde_diffusion.lattices import lattice
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE

# sigma/alpha at t_1 over the distance of levels with noise in their bins. Measured on digits and
# MNIST, where it is best to within .01 bits/dim (docs/likelihood.md).
_IN_BINS: Final = 0.1
_STEPS: Final = 1000
_VARIANCES: Final[Mapping[str, Variance | None]] = {
    "learned": None,  # what `vlb` takes by itself: the model's own, or else β_k
    "forward": ForwardVariance(),
    "posterior": PosteriorVariance(),
}


def decided_chain(
    settings: EvaluationSettings, model: ScoreLike, spec: DataSpec
) -> EvaluationSettings:
    """Return the settings with what "auto" stands for in the chain and its variance.

    The chain of levels is "log-snr", but for a model with a `DiscreteBeta` its own lattice, on
    whose times alone it may have been trained; that of real numbers is "lattice". The variance is
    the learned one if there is any, else "posterior" for levels and "forward" for real numbers.
    """
    chain = settings.chain
    if chain == "auto":
        lattice_is_better = spec.levels is None or own_betas(model.sde)
        chain = "lattice" if lattice_is_better else "log-snr"
    variance = settings.variance
    if variance == "auto":
        fixed = "forward" if spec.levels is None else "posterior"
        variance = "learned" if model.variance == "learned" else fixed
    return replace(settings, chain=chain, variance=variance)


def variance_of(settings: EvaluationSettings) -> Variance | None:
    """Return the variance of the steps, None for what the model has learned, or else β_k."""
    return _VARIANCES[settings.variance]


def chain_times(settings: EvaluationSettings, model: ScoreLike, spec: DataSpec) -> Tensor:
    """Return the falling times of the chain, the last one 0.

    "lattice" is that of the SDE's betas, or else equal steps of t. "log-snr" is equal steps of
    λ = log(alpha/sigma) from the horizon to t_1, and a last one to 0; at t_1 sigma/alpha is a
    share of the least distance between levels; for real data t_1 is the SDE's cutoff. It is not
    below the model's own t_min.

    Shapes: result (steps + 1,), float64.
    """
    sde = model.linear_sde()
    steps = settings.steps
    betas = own_betas(sde)
    if settings.chain == "lattice" and betas:
        return lattice(betas, steps)
    steps = steps or betas or _STEPS
    if settings.chain == "lattice" or steps == 1:
        return lattice(steps) * sde.horizon
    first = max(_first_time(settings, sde, spec), model.t_min or 0.0)
    return log_snr_chain(sde, steps, first)


def _first_time(settings: EvaluationSettings, sde: LinearSDE, spec: DataSpec) -> float:
    if spec.levels is None:
        return sde.cutoff
    share = OF_LEVELS if settings.dequantization == "none" else _IN_BINS
    return time_of_levels(sde, spec, share)
