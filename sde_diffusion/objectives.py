"""What a training step minimises, as objects: which times it looks at, and the loss there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor, nn

from sde_diffusion.losses import denoising_loss
from sde_diffusion.noise import Noise
from sde_diffusion.score import ScoreModel
from sde_diffusion.sde import LinearSDE
from sde_diffusion.times import Spacing, Stratified, TimeLaw
from sde_diffusion.weighting import WEIGHTINGS, Weighting

if TYPE_CHECKING:
    from sde_diffusion.training import TrainingConfig


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

    def __init__(self, law: TimeLaw, spacing: Spacing, t_min: float) -> None:
        super().__init__()
        self.law, self.spacing, self.t_min = law, spacing, t_min

    def check(self, model: ScoreModel) -> None:
        """Refuse, by name, a model that this objective cannot train."""

    def pair(self, x0: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002  (most pair nothing)
        """Return the noise of a whole batch in the order in which it goes with the data."""
        return eps

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
    """Denoising score matching, w(t) ‖eps − eps_θ(x_t, t)‖²/D."""

    def __init__(
        self, law: TimeLaw, spacing: Spacing, t_min: float, weighting: Weighting
    ) -> None:
        super().__init__(law, spacing, t_min)
        self.weighting = weighting

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        """Return the loss of every sample."""
        return denoising_loss(model, batch.x0, batch.t, batch.eps, self.weighting)


def objective_of(config: TrainingConfig) -> Objective:
    """Return the objective that the settings name."""
    law, weighting = WEIGHTINGS[config.weighting]
    return Denoising(law, Stratified(), config.t_min, weighting)
