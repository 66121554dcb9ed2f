"""A score model of the latents of an autoencoder: latent diffusion."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from sde_diffusion._check import an_object, wrong_type, wrong_value
from sde_diffusion._shown import as_call
from sde_diffusion._tensors import check_state
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.latents.autoencoder import Autoencoder
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.nets.conditions import Condition
from sde_diffusion.scores import AroundScore, ScoreLike


@final
class LatentModel(nn.Module, AroundScore):
    """The score of latents z, with the autoencoder that makes samples x of them.

    It is a score in the space of latents, and all that takes scores sees nothing else: `data`
    describes the latents, `observed` the samples. ``decode(sample(model, …).x)`` are samples;
    `latent_log_prob` bounds their log-likelihood, and is exact where the autoencoder is.
    Conditions are those of the score.

    Arguments:
        autoencoder: between x and z.
        score: of the latents: a `ScoreModel`, an oracle's ``.diffused(sde)`` or any `ScoreLike`.

    Shapes: states (B, *latent), t () or (B,); every form returns the states' shape.
    Errors: TypeError for other objects; ValueError for a score of another shape than the latents.
    Source: Rombach et al. 2022; Vahdat et al. 2021 (LSGM).

    >>> import torch
    >>> from sde_diffusion import Gaussian, LinearAutoencoder, VPSDE
    >>> score = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> model = LatentModel(LinearAutoencoder(0.5 * torch.eye(2)), score)
    >>> model.decode(torch.ones(1, 2)).tolist()  # a sample of N(0, 4)
    [[2.0, 2.0]]
    """

    def __init__(self, autoencoder: Autoencoder, score: ScoreLike) -> None:
        super().__init__()
        remedy = "pass a GaussianAutoencoder or a LinearAutoencoder"
        an_object("LatentModel", "autoencoder", autoencoder, Autoencoder, remedy)
        an_object("LatentModel", "score", score, ScoreLike, "pass a ScoreModel of the latents")
        if score.data is not None and score.data.shape != autoencoder.latent:
            rule = f"be of latents of the autoencoder's shape {autoencoder.latent}"
            remedy = "train it on autoencoder.latents(dataset)"
            raise wrong_value("LatentModel", "score", rule, score.data.shape, remedy)
        self.autoencoder = autoencoder
        self.model = score
        self.sde = score.sde
        self._latents = DataSpec("latents", autoencoder.latent, None)

    def __repr__(self) -> str:
        return as_call("LatentModel", {"autoencoder": self.autoencoder, "score": self.model})

    @property
    def data(self) -> DataSpec:
        """What the latents are."""
        return self._latents if self.model.data is None else self.model.data

    @property
    def observed(self) -> DataSpec:
        """What the samples are: real data of the autoencoder's shape where it does not tell."""
        known = self.autoencoder.data
        return DataSpec("x", self.autoencoder.event, None) if known is None else known

    @property
    def predicts(self) -> bool:
        return self.model.predicts

    @property
    def prediction(self) -> str:
        return self.model.prediction

    @property
    def variance(self) -> str:
        return self.model.variance

    @property
    def classes(self) -> int | None:
        return self.model.classes

    def in_training(self) -> bool:
        drawn = self.autoencoder.training and not self.autoencoder.exact
        return self.model.in_training() or drawn

    def in_double(self) -> LatentModel:
        return LatentModel(copy.deepcopy(self.autoencoder).double(), self.model.in_double())

    def rows(self, index: Tensor) -> LatentModel:
        """Return the model for the samples ``index`` of the batch, with their conditions."""
        score = self.model.rows(index)
        return self if score is self.model else LatentModel(self.autoencoder, score)

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """The conditions beside labels that the network of the score takes, by name."""
        return self.model.conditions if isinstance(self.model, LearnedScore) else {}

    def given(self, labels: Tensor | int | None = None, **conditions: object) -> LatentModel:
        """Return the model conditioned on labels and more, as `ScoreModel.given` does."""
        if not isinstance(self.model, LearnedScore):
            got = type(self.model).__name__
            rule = "be of a network, to be given labels"
            raise wrong_type("LatentModel", "score", rule, got, "pass a ScoreModel")
        return LatentModel(self.autoencoder, self.model.given(labels, **conditions))

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of samples: the means of q(z|x)."""
        return self.autoencoder.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the samples of latents: the means of p(x|z)."""
        return self.autoencoder.decode(z)

    def latents(self, dataset: Dataset) -> Dataset:
        """Return the latents of a data set, as real data on which the score is trained."""
        return self.autoencoder.latents(dataset)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self._check(x)
        return self.model(x, t)

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        self._check(x)
        return self.model.predict(form, x, t, at)

    def with_fraction(self, form: str, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        self._check(x)
        return self.model.with_fraction(form, x, t)

    def _check(self, x: Tensor) -> None:
        """Refuse states that are no latents, and samples in their place by name."""
        check_state("LatentModel", x)
        latent = self.autoencoder.latent
        if tuple(x.shape[1:]) == latent:
            return
        remedy = f"pass shape=(B, {', '.join(map(str, latent))}) to sample"
        if tuple(x.shape[1:]) == self.autoencoder.event:
            remedy = "pass model.encode(x), or for its likelihood latent_log_prob(x, model, log_p)"
        rule = f"be latents of shape {latent}"
        raise wrong_value("LatentModel", "x", rule, tuple(x.shape[1:]), remedy)


def observed(score: ScoreLike) -> DataSpec | None:
    """Return what the samples of a score are, those that latents are decoded to."""
    return score.observed if isinstance(score, LatentModel) else score.data
