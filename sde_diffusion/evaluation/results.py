"""The log-likelihoods of a whole data set: per sample, their means, and the errors of both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion.ddpm.discrete_bound import StepTable
from sde_diffusion.evaluation.evaluator import Evaluator
from sde_diffusion.evaluation.sample_log import Batch

_DOUBLE: Final = torch.float64
_LN2: Final = math.log(2)


@final
@dataclass(frozen=True)
class Summary:
    """The mean over samples of one bound of −log p, in bits per dimension, and of `nats` of log p.

    ``standard_error`` and ``nats_error`` are over the samples, s/√N, NaN for one sample;
    ``estimator_error`` (bits per dimension) is the part of it that more probes, draws or times
    would remove, √(Σ e_i²)/N, NaN where a sample's own error e_i is unknown.
    """

    samples: int
    bits_per_dim: float
    standard_error: float
    estimator_error: float
    nats: float
    nats_error: float


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is known of every sample, in the order of their numbers.

    ``values`` has for each bound B "B_nats", "B_standard_error" (of that sample's own estimate, in
    nats) and the terms of the bound, for integers their means over the draws. ``nfe`` is the most
    that a sample took, ``seconds`` the time of all batches together.

    Shapes: index and all values (N,); float64.
    """

    dimension: int
    bounds: tuple[str, ...]
    index: Tensor
    values: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    nfe: Mapping[str, int]
    seconds: float

    @classmethod
    def of(cls, batches: Iterable[Batch], evaluator: Evaluator) -> Evaluation:
        """Return the batches as one, whatever their order."""
        parts = sorted(batches, key=lambda batch: batch.first)
        index = torch.tensor([i for part in parts for i in part.indices])
        values = {
            name: torch.tensor([v for part in parts for v in part.values[name]], dtype=_DOUBLE)
            for name in parts[0].values
        }
        sums = {
            name: torch.tensor([part.sums[name] for part in parts], dtype=_DOUBLE).sum(0)
            for name in parts[0].sums
        }
        bounds = evaluator.settings.bounds
        nfe = {bound: max(part.nfe[bound] for part in parts) for bound in bounds}
        seconds = math.fsum(part.seconds for part in parts)
        return cls(evaluator.dimension, bounds, index, values, sums, nfe, seconds)

    def nats(self, bound: str) -> Tensor:
        """Return the (bound of the) log-likelihood of every sample."""
        return self.values[f"{bound}_nats"]

    def bits_per_dim(self, bound: str) -> Tensor:
        """Return −nats/(D ln 2)."""
        return -self.nats(bound) / (self.dimension * _LN2)

    def standard_error(self, bound: str) -> Tensor:
        """Return the error of every sample's own estimate, in nats; NaN where it is unknown."""
        return self.values[f"{bound}_standard_error"]

    def summary(self, bound: str) -> Summary:
        """Return the mean of a bound with its errors."""
        bits = self.bits_per_dim(bound).tolist()
        nats = self.nats(bound).tolist()
        n = len(bits)
        scale = self.dimension * _LN2
        own = math.sqrt(math.fsum(e * e for e in self.standard_error(bound).tolist())) / n
        error = _error(bits)
        return Summary(
            n, math.fsum(bits) / n, error, own / scale, math.fsum(nats) / n, error * scale
        )

    def term(self, name: str) -> tuple[int, float, float, float]:
        """Return a term's samples, mean in nats and in bits per dimension, and error in nats."""
        values = self.values[name].tolist()
        mean = math.fsum(values) / len(values)
        return len(values), mean, mean / (self.dimension * _LN2), _error(values)

    def per_step(self) -> StepTable | None:
        """Return the terms L_0, L_1 … of the vlb over the steps of the chain."""
        if "vlb_number" not in self.sums:
            return None
        return StepTable(
            self.sums["vlb_number"],
            self.sums["vlb_total"],
            self.sums["vlb_squares"],
            self.dimension,
        )


def _error(values: Sequence[float]) -> float:
    """Return the standard error of a mean, NaN for one value."""
    n = len(values)
    if n < 2:
        return math.nan
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
