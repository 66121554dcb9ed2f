"""What a training step minimises, as objects: which times it looks at, and the loss there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion.models.score import DirectScore, ScoreModel
from sde_diffusion.noise import Noise
from sde_diffusion.objectives.coupling import Coupling, IndependentCoupling
from sde_diffusion.objectives.spacings import Spacing
from sde_diffusion.sde import LinearSDE
from sde_diffusion.time_distributions import TimeLaw


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
        self.law = law
        self.spacing = spacing
        self.t_min = t_min

    def check(self, model: ScoreModel) -> None:
        """Refuse, by name, a model that this objective cannot train.

        What training makes of a model that it cannot tell by itself is written on it here.
        """
        if model.variance == "learned":
            raise wrong_value(
                "train",
                "objective",
                "be vlb or hybrid to learn a variance",
                type(self).__name__,
                "pass objective='hybrid'",
            )
        if model.coupling not in ("independent", self.coupling.name):
            raise wrong_value(
                "train",
                "coupling",
                "be that of the model to go on with",
                self.coupling.name,
                f"pass coupling={model.coupling!r}",
            )
        model.coupling = self.coupling.name

    def check_direct(self, model: DirectScore) -> None:  # noqa: ARG002  (whatever it is)
        """Refuse, by name, a model that has no eps, or one that this objective cannot train."""
        raise wrong_type(
            "train",
            "objective",
            "be Implicit or Sliced for a DirectScore",
            type(self).__name__,
            "pass objective=Sliced(Paths(…), Stratified(), 0.0)",
        )

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
