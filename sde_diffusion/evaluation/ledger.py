"""The error ledger of a log-likelihood: its sources of error line by line, and their total."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion._shown import shown

LINES: Final = (
    "score",
    "prior",
    "truncation",
    "tolerance",
    "rounding",
    "probes",
    "dequantization",
    "offset",
)


@final
@dataclass(frozen=True)
class Line:
    """One source of error.

    Arguments:
        name: the source, one of `LINES`.
        shift: what taking the source away adds to log p; (B,), float64, nats.
        error: the standard error of the shift, or an estimated bound of it; (B,), float64, nats.
        how: how shift and error were found, in words.
        random: whether the error is a standard error, independent for every sample.
    """

    name: str
    shift: Tensor
    error: Tensor
    how: str
    random: bool = False

    @property
    def mean_error(self) -> float:
        """The error of the mean over the batch: random errors of its rows are independent."""
        if self.random:
            return float(self.error.square().sum().sqrt()) / len(self.error)
        return float(self.error.mean())


@final
@dataclass(frozen=True)
class Ledger:
    """A log-likelihood, its errors line by line, and the interval that is left.

    `value` is the mean as it was found; `corrected` has the shifts added; the truth lies within
    `half_width` of that: Student's quantile times the root sum of squares of the random errors,
    with Welch and Satterthwaite's degrees of freedom where few rows make most of it, plus the sum
    of the other errors. "offset" is no error but what the scaling of integers adds; it is in the
    ledger so that a wrong number of levels is seen. The properties are means over the batch.

    Arguments:
        nats: log p as it was found; (B,), float64, nats.
        dimension: the dimensions D of a sample.
        lines: the sources of error, in the order of `LINES`.
        freedom: the degrees of freedom of every row's random error.
        nfe: evaluations of the score by all solves.
    """

    nats: Tensor
    dimension: int
    lines: tuple[Line, ...]
    freedom: int
    nfe: int

    __repr__ = shown

    def line(self, name: str) -> Line:
        """Return one of the lines.

        Errors: ValueError for a source that is not in the ledger.
        """
        for line in self.lines:
            if line.name == name:
                return line
        known = ", ".join(line.name for line in self.lines)
        raise wrong_value("Ledger", "name", f"be one of {known}", repr(name), "pass one of them")

    @property
    def value(self) -> float:
        """The mean log-likelihood as it was found."""
        return float(self.nats.mean())

    @property
    def corrected(self) -> float:
        """The mean log-likelihood with all shifts but the offset."""
        shifts = (float(line.shift.mean()) for line in self.lines if line.name != "offset")
        return self.value + math.fsum(shifts)

    def half_width(self, level: float = 0.99) -> float:
        """Return half the width of the interval around `corrected`; NaN where a line is unknown.

        At 0.99, because the spread of a few probes is not normal: intervals of four rows with
        four probes each cover 95 to 97 of 100, and 92 at 0.95.
        """
        from scipy.special import stdtrit

        rows = len(self.nats)
        variances = sum(
            (line.error.square() for line in self.lines if line.random),
            torch.zeros_like(self.nats, dtype=torch.float64),
        )
        total = float(variances.sum())
        fourth = float(variances.square().sum())
        freedom = max(1, self.freedom) * (total**2 / fourth if fourth else 1.0)
        t = float(stdtrit(freedom, 0.5 * (1 + level)))
        known = (float(line.error.mean()) for line in self.lines if not line.random)
        return t * math.sqrt(total) / rows + math.fsum(known)

    def bits(self, nats: float) -> float:
        """Return −nats/(D ln 2), as bits per dimension without an offset."""
        return 0.0 - nats / (self.dimension * math.log(2))  # 0, not −0

    def table(self) -> list[tuple[str, float, float, str]]:
        """Return name, shift and error in bits per dimension, means over the batch, and how."""
        return [
            (
                line.name,
                self.bits(float(line.shift.mean())),
                abs(self.bits(line.mean_error)),
                line.how,
            )
            for line in self.lines
        ]
