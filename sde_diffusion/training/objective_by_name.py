"""The objective that a configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sde_diffusion._check import wrong_value
from sde_diffusion.objectives.base import Objective
from sde_diffusion.objectives.coupling import COUPLINGS
from sde_diffusion.objectives.denoising import Denoising
from sde_diffusion.objectives.discrete_bound import Hybrid, Vlb
from sde_diffusion.objectives.score_matching import Implicit, Sliced
from sde_diffusion.objectives.spacings import SPACINGS, Spacing
from sde_diffusion.objectives.uncertainty import Uncertainty
from sde_diffusion.objectives.weighting import WEIGHTINGS
from sde_diffusion.time_distributions import TIMES, UniformTimes

if TYPE_CHECKING:
    from sde_diffusion.training.config import TrainingConfig

# Weights that make the loss a bound on the likelihood, or a multiple of one.
_BOUNDS: Final = ("likelihood", "exact", "vdm")
_LEVELS: Final = 100  # parts of [0, 1) in which loss-aware times keep their losses


def objective_of(config: TrainingConfig) -> Objective:
    """Return the objective that the settings name.

    Errors: ValueError, by name, for settings that make no sense together.

    >>> from sde_diffusion import TrainingConfig
    >>> objective_of(TrainingConfig(weighting="exact", times="uniform"))
    Traceback (most recent call last):
    ValueError: TrainingConfig: times must be None with weighting='exact', got 'uniform'; drop it
    """
    settings = vars(config)
    for name, allowed, other in _rules(config):
        if settings[name] not in allowed:
            rule = f"be {' or '.join(map(repr, allowed))} with {other}={settings[other]!r}"
            raise wrong_value("TrainingConfig", name, rule, repr(settings[name]), "drop it")
    steps = config.chain_steps
    t_min = config.t_min
    chain = config.objective in ("vlb", "hybrid") or config.weighting == "exact"
    spacing = SPACINGS[config.spacing](steps if chain else _LEVELS)
    if config.objective != "denoising":
        return _other(config.objective, spacing, steps, t_min)
    minimised, weighting = WEIGHTINGS[config.weighting](t_min, steps)
    return Denoising(
        minimised,
        spacing,
        t_min,
        weighting,
        times=None if config.times is None else TIMES[config.times],
        coupling=COUPLINGS[config.coupling],
        uncertainty=Uncertainty() if config.uncertainty == "learned" else None,
    )


def _other(name: str, spacing: Spacing, steps: int, t_min: float) -> Objective:
    if name in ("vlb", "hybrid"):
        return (Vlb if name == "vlb" else Hybrid)(steps, spacing)
    return (Sliced if name == "sliced" else Implicit)(UniformTimes(), spacing, t_min)


def _rules(config: TrainingConfig) -> Iterator[tuple[str, tuple[str | None, ...], str]]:
    """Yield settings, the values that each may have, and the setting that says so."""
    if config.objective != "denoising":  # it has its own weight, times and states
        yield "weighting", ("perceptual",), "objective"
        yield "times", (None,), "objective"
        yield "coupling", ("independent",), "objective"
        yield "uncertainty", ("none",), "objective"
    if config.weighting == "exact":
        yield "times", (None,), "weighting"  # a lattice has no density
    if config.weighting in _BOUNDS:
        # Normal times are rarely near the ends of λ, where much of the bound is.
        yield "times", (None, "uniform", "likelihood"), "weighting"
        yield "coupling", ("independent",), "weighting"
        yield "uncertainty", ("none",), "weighting"
    if config.spacing == "loss-aware":  # the losses that choose the times are then all alike
        yield "uncertainty", ("none",), "spacing"
