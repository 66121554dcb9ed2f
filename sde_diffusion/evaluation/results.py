"""The log-likelihoods of a whole data set: per sample, their means, and the errors of both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._shown import shown
from sde_diffusion.ddpm.discrete_bound import StepTable
from sde_diffusion.evaluation.evaluator import Evaluator
from sde_diffusion.evaluation.sample_log import EvaluatedBatch

_DOUBLE: Final = torch.float64
_LN2: Final = math.log(2)


@final
@dataclass(frozen=True)
class Summary:
    """The mean over samples of one bound, in bits per dimension and in nats, with its errors.

    ``estimator_error`` is the part of ``standard_error`` that more probes, draws or times would
    remove.

    Arguments:
        samples: the number N of samples.
        bits_per_dim: the mean of −log2 p/D.
        standard_error: s/√N over the samples, NaN for one; bits per dimension.
        estimator_error: √(Σ e_i²)/N by each sample's own error e_i, if known; bits per dimension.
        nats: the mean of log p; nats.
        nats_error: its standard error over the samples; nats.
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
    """What is known of every sample, in the order of their indices.

    ``values`` has for each bound B "B_nats", "B_standard_error" (of that sample's own estimate)
    and the terms of the bound, for integers their means over the draws.

    Arguments:
        dimension: the dimensions D of a sample.
        bounds: of "flow", "elbo" and "vlb".
        index: the indices of the samples in their data set; (N,), int64.
        values: quantities of every sample by name; (N,) each, float64, nats.
        sums: quantities summed over the samples by name, as the vlb's terms of every step.
        nfe: by bound, the most evaluations that a sample took.
        seconds: the time of all batches together; seconds.
    """

    dimension: int
    bounds: tuple[str, ...]
    index: Tensor
    values: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    nfe: Mapping[str, int]
    seconds: float

    __repr__ = shown

    @classmethod
    def of(cls, batches: Iterable[EvaluatedBatch], evaluator: Evaluator) -> Evaluation:
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
