"""The three evaluations of one batch: by the flow, the continuous bound and the discrete bound.

Each evaluates log p of a batch of model inputs; what these are, dequantized integers or real
numbers, and in which units, is for `Evaluator` to say.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion.ddpm.discrete_bound import vlb
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.evaluation.chains import variance_of
from sde_diffusion.evaluation.settings import EvaluationSettings
from sde_diffusion.latents.latent_model import LatentModel
from sde_diffusion.likelihood.continuous_bound import elbo
from sde_diffusion.likelihood.decoders import BinDecoder, Decoder, GaussianDecoder, LevelDecoder
from sde_diffusion.likelihood.divergence import Divergence
from sde_diffusion.likelihood.flow import LogLikelihood, log_prob
from sde_diffusion.likelihood.flow_variables import FlowVariable
from sde_diffusion.likelihood.latent_bound import latent_log_prob
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver

_DRAWS: Final = 2  # of the latents of each sample


@final
@dataclass
class BatchBound:
    """One bound of the log-likelihoods of a batch.

    Arguments:
        nats: the bound of log p for each sample; (B,), float64, nats.
        error: its standard error for each sample; (B,), float64, nats.
        terms: the parts of the bound by name; (B,) each, float64, nats.
        nfe: evaluations of the score for each sample.
        sums: quantities summed over the batch, by name; (N,) each for the N steps of a chain.
    """

    nats: Tensor
    error: Tensor
    terms: dict[str, Tensor]
    nfe: int
    sums: dict[str, Tensor] = field(default_factory=dict)

    def moved(self, volume: Tensor) -> BatchBound:
        """Return the same where the log-density is larger by ``volume``, as in other units."""
        terms = {name: term.cpu().double() for name, term in self.terms.items()}
        if "reconstruction" in terms:  # whose terms are of −log p
            terms["reconstruction"] = terms["reconstruction"] - volume
        else:
            terms["volume"] = volume
        nats = self.nats.cpu().double() + volume
        return BatchBound(nats, self.error.cpu().double(), terms, self.nfe, self.sums)


class BoundEvaluation(ABC):
    """An evaluation of one bound of log p for any batch."""

    @abstractmethod
    def of(self, x: Tensor, first: int, decoder: Decoder) -> BatchBound:
        """Return the bound of the samples first, first + 1, … of the data set.

        Arguments:
            x: the model's inputs; (B, *event).
            first: the index of the first sample: sample i draws by first + i.
            decoder: the distribution of the data given the state at the smallest time.
        """

    def level_decoder(self, centres: Tensor) -> Decoder:
        """Return the decoder of integers without dequantization, from the centres of levels."""
        return LevelDecoder(centres)


@final
@dataclass(frozen=True, eq=False)
class FlowEvaluation(BoundEvaluation):
    """log p of the probability flow, which needs no decoder.

    Arguments:
        model: the score model.
        solver: a solver of ODEs.
        grid: rising times of the solve; None for an adaptive solver's whole way.
        variable: the variable in which the flow is solved.
        divergence: the divergence for a batch that begins with a given sample.
    """

    model: ScoreLike
    solver: Solver[Any]
    grid: Tensor | None
    variable: FlowVariable
    divergence: Callable[[int], Divergence]

    def of(self, x: Tensor, first: int, decoder: Decoder) -> BatchBound:  # noqa: ARG002
        found = log_prob(
            x,
            ProbabilityFlow(self.model.sde, self.model),
            self.solver,
            grid=self.grid,
            divergence=self.divergence(first),
            variable=self.variable,
        )
        terms = dict(found.terms) | {"tolerance_error": found.tolerance_error}
        return BatchBound(found.nats, found.standard_error, terms, found.nfe)


@final
@dataclass(frozen=True, eq=False)
class ContinuousEvaluation(BoundEvaluation):
    """The evidence lower bound in continuous time, `elbo`."""

    model: ScoreLike
    settings: EvaluationSettings

    def of(self, x: Tensor, first: int, decoder: Decoder) -> BatchBound:
        found = elbo(
            x,
            self.model,
            decoder=decoder,
            draws=self.settings.times,
            seed=self.settings.seed,
            first=first,
            t_min=self.settings.t_min,
        )
        return BatchBound(found.nats, found.standard_error, dict(found.terms), found.nfe)


@final
@dataclass(frozen=True, eq=False)
class DiscreteEvaluation(BoundEvaluation):
    """The evidence lower bound of the DDPM with the times of ``grid``, `vlb`."""

    model: ScoreLike
    grid: Tensor
    settings: EvaluationSettings

    def of(self, x: Tensor, first: int, decoder: Decoder) -> BatchBound:
        every = self.settings.times >= 2 * (len(self.grid) - 1)
        found = vlb(
            x,
            self.model,
            self.grid,
            variance=variance_of(self.settings),
            decoder=decoder,
            draws=None if every else self.settings.times,
            seed=self.settings.seed,
            first=first,
        )
        table = found.per_step
        sums = {"number": table.number, "total": table.total, "squares": table.squares}
        return BatchBound(found.nats, found.standard_error, dict(found.terms), found.nfe, sums)

    def level_decoder(self, centres: Tensor) -> Decoder:
        return BinDecoder(centres) if self.settings.decoder == "bins" else LevelDecoder(centres)


@final
@dataclass(frozen=True, eq=False)
class LatentEvaluation(BoundEvaluation):
    """The bound of a model of latents, `latent_log_prob`, by another bound of the latents.

    Each sample has two draws of its latents, whose difference is the error, or none where the
    autoencoder is exact.

    Arguments:
        model: the model of latents with its autoencoder.
        inner: the bound of log p(z).
        seed: of the draws of z.
    """

    model: LatentModel
    inner: BoundEvaluation
    seed: int

    def of(self, x: Tensor, first: int, decoder: Decoder) -> BatchBound:  # noqa: ARG002
        found = latent_log_prob(
            x, self.model, self._log_p, draws=_DRAWS, seed=self.seed, first=first
        )
        terms = dict(found.terms) | {"tolerance_error": found.tolerance_error}
        return BatchBound(found.nats, found.standard_error, terms, found.nfe)

    def _log_p(self, z: Tensor, first: int) -> LogLikelihood:
        found = self.inner.of(z, first, GaussianDecoder())
        nats, error = found.nats, found.error
        lost = found.terms.get("tolerance_error", torch.full_like(nats, math.nan))
        return LogLikelihood(nats, nats, error, lost, found.terms, found.nfe, z)
