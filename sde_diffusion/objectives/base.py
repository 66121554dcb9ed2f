"""What a training step minimises: a distribution of times, and a loss at each time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion.latents.encoder_decoder import GaussianAutoencoder
from sde_diffusion.models.few_steps import FewStepModel
from sde_diffusion.models.matrix import MatrixScoreModel
from sde_diffusion.models.score import DirectScore, LearnedScore, ScoreModel
from sde_diffusion.noise import Noise
from sde_diffusion.objectives.coupling import Coupling, IndependentCoupling
from sde_diffusion.objectives.spacings import Spacing
from sde_diffusion.sde import LinearSDE
from sde_diffusion.time_distributions import TimeDistribution

Trained: TypeAlias = LearnedScore | GaussianAutoencoder  # what a run trains


class Drawn(NamedTuple):
    """The times t of a batch, the quantiles u that they are, and the weights of their losses.

    Shapes: all (n,), float64.
    """

    t: Tensor
    u: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Data with their times and their noise.

    Arguments:
        x0: the data, scaled; (B, *event).
        t: their times; (B,), float64.
        eps: the standard normal noise inside x_t; (B, *event).
        noise: the source of whatever else a loss draws, such as probes or paths.
    """

    x0: Tensor
    t: Tensor
    eps: Tensor
    noise: Noise

    __repr__ = shown


class Objective(nn.Module, ABC):
    """The expectation of a loss over a distribution of times.

    Its parameters, if it has any, are trained with the model's. They and its buffers are saved
    with the state of a run, not with the model.

    Arguments:
        law: the distribution from which times are drawn.
        spacing: how the quantiles u of a batch are spread over [0, 1).
        t_min: the least time.
    """

    coupling: Coupling = IndependentCoupling()

    __repr__ = shown

    def __init__(self, law: TimeDistribution, spacing: Spacing, t_min: float) -> None:
        super().__init__()
        self.distribution = law
        self.spacing = spacing
        self.t_min = t_min

    def check(self, model: ScoreModel) -> None:
        """Refuse a model that this objective cannot train; nothing is changed.

        Errors: ValueError or TypeError that names what does not fit.
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

    def check_direct(self, model: DirectScore) -> None:  # noqa: ARG002  (whatever it is)
        """Refuse a model without eps that this objective cannot train; nothing is changed.

        Errors: TypeError or ValueError that names what does not fit.
        """
        raise wrong_type(
            "train",
            "objective",
            "be Implicit or Sliced for a DirectScore",
            type(self).__name__,
            "pass objective=Sliced(Paths(…), Stratified(), 0.0)",
        )

    def check_matrix(self, model: MatrixScoreModel) -> None:  # noqa: ARG002  (whatever it is)
        """Refuse a model of a matrix-linear SDE that this objective cannot train.

        Errors: TypeError or ValueError that names what does not fit.
        """
        raise wrong_type(
            "train",
            "objective",
            "be HybridScoreMatching for a MatrixScoreModel",
            type(self).__name__,
            "pass objective=HybridScoreMatching()",
        )

    def check_few_steps(self, model: FewStepModel) -> None:  # noqa: ARG002  (whatever it is)
        """Refuse a student that this objective cannot train.

        Errors: TypeError or ValueError that names what does not fit.
        """
        raise wrong_type(
            "train",
            "objective",
            "be one of students for a FewStepModel",
            type(self).__name__,
            "pass for example objective=MeanFlow(DataTrajectory(), model.sde)",
        )

    def check_autoencoder(self, model: GaussianAutoencoder) -> None:  # noqa: ARG002
        """Refuse an autoencoder, which has no times.

        Errors: TypeError.
        """
        raise wrong_type(
            "train",
            "objective",
            "be AutoencoderBound for a GaussianAutoencoder",
            type(self).__name__,
            "pass objective=AutoencoderBound()",
        )

    def adopt(self, model: ScoreModel) -> None:
        """Write on the model how it is trained from here on, and take from it what is asked for.

        For a model that `check` accepts. A trainer calls it when it takes its first step.
        """
        model.coupling = self.coupling.name

    def pair(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return the noise of a whole batch, permuted as the coupling pairs it with the data.

        Shapes: x0, eps and result (B, *event).
        """
        return self.coupling.pair(x0, eps)

    def draw(self, sde: LinearSDE, n: int, generator: torch.Generator) -> Drawn:
        """Return the times of a whole batch of n samples."""
        u, weight = self.spacing.draw(n, generator)
        return Drawn(self.distribution.time(sde, u, self.t_min), u, weight)

    @abstractmethod
    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        """Return the loss of every sample, to be multiplied by the weight of its time.

        Shapes: result (B,).
        """
