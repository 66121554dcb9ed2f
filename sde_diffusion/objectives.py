"""What a training step minimises, as objects: which times it looks at, and the loss there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion.coupling import COUPLINGS, Coupling, IndependentCoupling
from sde_diffusion.losses import denoising_loss, explicit_loss
from sde_diffusion.models.protocols import NoisePredictor
from sde_diffusion.models.score import DirectScore, ScoreModel
from sde_diffusion.noise import Noise
from sde_diffusion.sde import LinearSDE
from sde_diffusion.time_distributions import SPACINGS, TIMES, Spacing, TimeLaw, UniformTimes
from sde_diffusion.uncertainty import Uncertainty
from sde_diffusion.weighting import EDM, WEIGHTINGS, Weighting

if TYPE_CHECKING:
    from sde_diffusion.training_config import TrainingConfig


class Drawn(NamedTuple):
    """The times of a batch, the numbers behind them and what each counts for.

    Shapes: all (n,), float64.
    """

    t: Tensor
    u: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Data, their times and their noise; ``noise`` gives whatever else a loss draws.

    Shapes: x0, eps (B, *event); t (B,), float64.
    """

    x0: Tensor
    t: Tensor
    eps: Tensor
    noise: Noise


class Objective(nn.Module, ABC):
    """E over times of ``law``, spaced by ``spacing``, of a loss.

    Its parameters, if it has any, are trained beside the model's, and its buffers are kept: both
    are part of a run's state, not of the model.
    """

    coupling: Coupling = IndependentCoupling()

    def __init__(self, law: TimeLaw, spacing: Spacing, t_min: float) -> None:
        super().__init__()
        self.law, self.spacing, self.t_min = law, spacing, t_min

    def check(self, model: ScoreModel) -> None:
        """Refuse, by name, a model that this objective cannot train.

        What training makes of a model that it cannot tell by itself is written on it here.
        """
        if model.variance == "learned":
            raise wrong_value("train", "objective", "be vlb or hybrid to learn a variance",
                              type(self).__name__, "pass objective='hybrid'")  # fmt: skip
        if model.coupling not in ("independent", self.coupling.name):
            raise wrong_value("train", "coupling", "be that of the model to go on with",
                              self.coupling.name, f"pass coupling={model.coupling!r}")  # fmt: skip
        model.coupling = self.coupling.name

    def check_direct(self, model: DirectScore) -> None:  # noqa: ARG002  (whatever it is)
        """Refuse, by name, a model that has no eps, or one that this objective cannot train."""
        raise wrong_type("train", "objective", "be Implicit or Sliced for a DirectScore",
                         type(self).__name__,
                         "pass objective=Sliced(Paths(…), Stratified(), 0.0)")  # fmt: skip

    def pair(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return the noise of a whole batch in the order in which it goes with the data."""
        return self.coupling.pair(x0, eps)

    def draw(self, sde: LinearSDE, n: int, generator: torch.Generator) -> Drawn:
        """Return the times of a whole batch of n."""
        u, weight = self.spacing.draw(n, generator)
        return Drawn(self.law.time(sde, u, self.t_min), u, weight)

    @abstractmethod
    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        """Return the loss of every sample, to be weighted by its draw's weight.

        Shapes: result (B,).
        """


@final
class Denoising(Objective):
    """Denoising score matching, E over times of ``law`` of w(t) ‖eps − eps_θ(x_t, t)‖²/D.

    Times drawn by another law, ``times``, count with the ratio of the densities, so that what is
    minimised stays and its noise changes. An `Uncertainty` evens out the levels; a coupling other
    than the independent one makes a model of its flow alone, and is written on the model.

    >>> from sde_diffusion import VPSDE
    >>> from sde_diffusion.time_distributions import Stratified
    >>> from sde_diffusion.weighting import perceptual
    >>> objective = Denoising(UniformTimes(), Stratified(), 1e-5, perceptual)
    >>> objective.draw(VPSDE(), 3, torch.Generator().manual_seed(0)).weight.tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        law: TimeLaw,
        spacing: Spacing,
        t_min: float,
        weighting: Weighting,
        *,
        times: TimeLaw | None = None,
        coupling: Coupling | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        super().__init__(law if times is None else times, spacing, t_min)
        self.own, self.weighting = law, weighting
        if coupling is not None:
            self.coupling = coupling
        self.uncertainty = uncertainty

    def check(self, model: ScoreModel) -> None:
        if self.coupling.name != "independent" and model.classes:
            # Within a class the coupled noise would not be standard normal, as sampling has it.
            raise wrong_value("train", "coupling", "be independent for a network with classes",
                              self.coupling.name, "drop it, or build classes=None")  # fmt: skip
        super().check(model)
        if isinstance(self.weighting, EDM):
            self.weighting = EDM(model.sigma_data)

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        sde, t = model.sde, batch.t
        losses = denoising_loss(model, batch.x0, t, batch.eps, self.weighting)
        if self.uncertainty is not None:
            losses = self.uncertainty(losses, sde, t)
        if self.own == self.law:
            return losses
        ratio = self.own.density(sde, t, self.t_min) / self.law.density(sde, t, self.t_min)
        return ratio.to(losses) * losses


@final
class Explicit(Objective):
    """Explicit score matching against an oracle, w(t) ‖E[eps|x_t] − eps_θ(x_t, t)‖²/D.

    >>> from sde_diffusion import VPSDE, Gaussian
    >>> from sde_diffusion.time_distributions import Stratified
    >>> from sde_diffusion.weighting import perceptual
    >>> exact = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> Explicit(UniformTimes(), Stratified(), 1e-5, perceptual, exact).t_min
    1e-05
    """

    def __init__(
        self, law: TimeLaw, spacing: Spacing, t_min: float, weighting: Weighting,
        exact: NoisePredictor,
    ) -> None:  # fmt: skip
        super().__init__(law, spacing, t_min)
        self.weighting, self.exact = weighting, exact

    def check(self, model: ScoreModel) -> None:
        super().check(model)
        if self.exact.sde != model.sde:
            raise wrong_value("Explicit", "exact", f"be diffused by the model's {model.sde}",
                              str(self.exact.sde), "pass oracle.diffused(model.sde)")  # fmt: skip

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        return explicit_loss(model, self.exact, batch.x0, batch.t, batch.eps, self.weighting)


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
    for name, allowed, other in _rules(config):
        if getattr(config, name) not in allowed:
            rule = f"be {' or '.join(map(repr, allowed))} with {other}={getattr(config, other)!r}"
            raise wrong_value("TrainingConfig", name, rule, repr(getattr(config, name)), "drop it")
    steps, t_min = config.chain_steps, config.t_min
    chain = config.objective in ("vlb", "hybrid") or config.weighting == "exact"
    spacing = SPACINGS[config.spacing](steps if chain else _LEVELS)
    if config.objective != "denoising":
        return _other(config.objective, spacing, steps, t_min)
    law, weighting = WEIGHTINGS[config.weighting](t_min, steps)
    return Denoising(
        law, spacing, t_min, weighting,
        times=None if config.times is None else TIMES[config.times],
        coupling=COUPLINGS[config.coupling],
        uncertainty=Uncertainty() if config.uncertainty == "learned" else None,
    )  # fmt: skip


def _other(name: str, spacing: Spacing, steps: int, t_min: float) -> Objective:
    # They import this module.
    from sde_diffusion.score_matching import Implicit, Sliced
    from sde_diffusion.variational_loss import Hybrid, Vlb

    if name in ("vlb", "hybrid"):
        return (Vlb if name == "vlb" else Hybrid)(steps, spacing)
    return (Sliced if name == "sliced" else Implicit)(UniformTimes(), spacing, t_min)


def _rules(config: TrainingConfig) -> Iterator[tuple[str, tuple[str | None, ...], str]]:
    """Yield settings, the values that each may have, and the setting that says so."""
    if config.objective != "denoising":  # it has its own weight, law and states
        yield "weighting", ("perceptual",), "objective"
        yield "times", (None,), "objective"
        yield "coupling", ("independent",), "objective"
        yield "uncertainty", ("none",), "objective"
    if config.weighting == "exact":
        yield "times", (None,), "weighting"  # a lattice has no density
    if config.weighting in _BOUNDS:
        # The normal laws hardly ever look at the ends, where much of the bound is.
        yield "times", (None, "uniform", "likelihood"), "weighting"
        yield "coupling", ("independent",), "weighting"
        yield "uncertainty", ("none",), "weighting"
    if config.spacing == "loss-aware":  # it evens out the losses that the times would go by
        yield "uncertainty", ("none",), "spacing"
