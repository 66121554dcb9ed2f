"""Differences between models, paired over the replicates of their comparisons with the same data.

Replicate i of every comparison has the same normals, as the prior draws and the noise of solvers
follow from the seed and the number of a sample, and the same split of the data. So what the models
have in common cancels in dᵢ = mᵢ(B) − mᵢ(A), m a distance to the data, and the interval is that of
the mean of the dᵢ: d̄ ± t s_d/√R, t the 97.5 % quantile of Student's distribution with R − 1
degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, final

import torch

from sde_diffusion._check import wrong_value
from sde_diffusion.diagnostics.comparison import Comparison, ComparisonRow
from sde_diffusion.diagnostics.metrics import Interval, paired_interval

METRICS: Final = ("sliced_wasserstein", "mmd", "frechet")


@final
@dataclass(frozen=True)
class ModelDifference:
    """The distances to the data of one model less those of another, by the same solver and steps.

    Arguments:
        model: the name of the one.
        baseline: that of the other.
        solver: the name of the solver.
        steps: of its grid; None for a solver that chooses its own.
        nfe: evaluations of the one.
        sliced_wasserstein: the difference of sliced W₂.
        mmd: the difference of MMD².
        frechet: the difference of Fréchet distances.
    """

    model: str
    baseline: str
    solver: str
    steps: int | None
    nfe: int
    sliced_wasserstein: Interval
    mmd: Interval
    frechet: Interval

    def to_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


def differences(comparisons: Sequence[Comparison]) -> list[ModelDifference]:
    """Return what every other comparison has above the first one, where both have a row.

    Errors: ValueError for comparisons of other data, samples, replicates or seeds.
    """
    first, *others = comparisons
    for other in others:
        _check_alike(first, other)
    rows = {(row.solver, row.steps): row for row in first.rows if row.failure is None}
    return [
        _difference(other.problem, first.problem, row, rows[row.solver, row.steps])
        for other in others
        for row in other.rows
        if row.failure is None and (row.solver, row.steps) in rows
    ]


def _difference(
    model: str, baseline: str, row: ComparisonRow, other: ComparisonRow
) -> ModelDifference:
    def interval(metric: str) -> Interval:
        pairs = zip(row.replicates[metric], other.replicates[metric], strict=True)
        return paired_interval([b - a for b, a in pairs])

    of = {metric: interval(metric) for metric in METRICS}
    return ModelDifference(model, baseline, row.solver, row.steps, row.nfe, **of)


def _check_alike(one: Comparison, other: Comparison) -> None:
    alike = {
        "samples": one.samples == other.samples,
        "replicates": one.replicates == other.replicates,
        "seed": one.seed == other.seed,
        "data": torch.equal(one.data.double(), other.data.double()),
    }
    for name, same in alike.items():
        if not same:
            raise wrong_value(
                "differences",
                name,
                f"be the same for {one.problem} and {other.problem}, to pair them",
                "others",
                "compare both with the same data, samples, replicates and seed",
            )
