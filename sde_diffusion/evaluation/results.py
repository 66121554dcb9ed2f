"""The log-likelihoods of a whole data set: per sample, their means, and the errors of both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import diverged
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

    Samples without a finite likelihood are left out, see `Evaluation.failures`.

    ``estimator_error`` is the part of ``standard_error`` that more probes, draws or times would
    remove.

    Arguments:
        samples: the number N of samples in the mean.
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
        failures: by the index of a sample without a finite likelihood, why it has none.
    """

    dimension: int
    bounds: tuple[str, ...]
    index: Tensor
    values: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    nfe: Mapping[str, int]
    seconds: float
    failures: Mapping[int, str]

    __repr__ = shown

    @classmethod
    def of(cls, batches: Iterable[EvaluatedBatch], evaluator: Evaluator) -> Evaluation:
        """Return the batches as one, whatever their order."""
        parts = sorted(batches, key=lambda batch: batch.first)
        index = torch.tensor([i for part in parts for i in part.indices])
        values = {name: _joined(parts, name) for name in _names(part.values for part in parts)}
        sums = {
            name: torch.tensor(
                [part.sums[name] for part in parts if name in part.sums], dtype=_DOUBLE
            ).sum(0)
            for name in _names(part.sums for part in parts)
        }
        bounds = evaluator.settings.bounds
        nfe = {bound: max(part.nfe[bound] for part in parts) for bound in bounds}
        failures = {int(i): why for part in parts for i, why in part.failures.items()}
        seconds = math.fsum(part.seconds for part in parts)
        return cls(evaluator.dimension, bounds, index, values, sums, nfe, seconds, failures)

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
        """Return the mean of a bound with its errors, over the samples where it is finite.

        Errors: FloatingPointError where it is finite for none.
        """
        finite = self.nats(bound).isfinite()
        if not bool(finite.any()):
            raise diverged(
                "Evaluation",
                bound,
                "be finite for some sample",
                f"none of {len(finite)}",
                f"look at the first: {next(iter(self.failures.values()), 'log p is not finite')}",
            )
        bits = self.bits_per_dim(bound)[finite].tolist()
        nats = self.nats(bound)[finite].tolist()
        n = len(bits)
        scale = self.dimension * _LN2
        errors = self.standard_error(bound)[finite].tolist()
        own = math.sqrt(math.fsum(e * e for e in errors)) / n
        error = _error(bits)
        return Summary(
            n, math.fsum(bits) / n, error, own / scale, math.fsum(nats) / n, error * scale
        )

    def term(self, name: str) -> tuple[int, float, float, float]:
        """Return a term's samples, mean in nats and in bits per dimension, and error in nats."""
        column = self.values[name]
        values = column[column.isfinite()].tolist()
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


def _names(parts: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the names that any of them has, in order."""
    return list(dict.fromkeys(name for part in parts for name in part))


def _joined(parts: Sequence[EvaluatedBatch], name: str) -> Tensor:
    """Return a column of all samples, NaN for batches in which it was not found."""
    numbers = [part.values.get(name, [math.nan] * part.count) for part in parts]
    return torch.tensor([v for column in numbers for v in column], dtype=_DOUBLE)


def _error(values: Sequence[float]) -> float:
    """Return the standard error of a mean, NaN for one value."""
    n = len(values)
    if n < 2:
        return math.nan
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
