"""What samplers of posteriors ask of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion._check import an_object, positive_integer, wrong_type, wrong_value
from sde_diffusion.dynamics import check_coupling
from sde_diffusion.grids import check_grid, recommended
from sde_diffusion.integration import check_evaluation, check_falling
from sde_diffusion.inverse_problems.likelihood_scores import LikelihoodScore
from sde_diffusion.inverse_problems.measurement import Measurement
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE


def check_parts(what: str, model: object, measurement: object) -> None:
    """Refuse what is no score model of a linear SDE, or no measurement."""
    if not isinstance(model, ScoreLike) or not isinstance(model.sde, LinearSDE):
        raise wrong_type(
            what,
            "model",
            "be a score model of a linear SDE",
            type(model).__name__,
            "pass a ScoreModel, or an oracle's .diffused(sde)",
        )
    remedy = "pass Measurement(operator, y, std)"
    an_object(what, "measurement", measurement, Measurement, remedy)


def check_method(what: str, method: object) -> None:
    """Refuse what is no likelihood score."""
    remedy = "pass for example MMPS(), with its brackets"
    an_object(what, "method", method, LikelihoodScore, remedy)


def check_posterior(
    what: str, model: ScoreLike, measurement: Measurement, event: Sequence[int]
) -> None:
    """Refuse what no posterior is sampled from.

    Arguments:
        what: the function that asks, for the error.
        model: a score model of a linear SDE, one for all samples.
        measurement: a `Measurement`.
        event: the shape of a sample.
    """
    check_parts(what, model, measurement)
    check_evaluation(what, model)
    check_coupling(what, "model", model)
    for size in event:
        positive_integer(what, "event", size)
    if model.rows(torch.zeros(1, dtype=torch.int64)) is not model:
        raise wrong_type(
            what,
            "model",
            "be one for all samples",
            "one with conditions of each",
            "condition it on one class or embedding for all",
        )


def decided_grid(what: str, model: ScoreLike, steps: int | None, grid: Tensor | None) -> Tensor:
    """Return the grid that is given, or the recommended one of so many steps; 100 of None.

    Arguments:
        what: the function that asks, for the error.
        model: the score model.
        steps: of the recommended grid.
        grid: the times instead.
    """
    if steps is not None and grid is not None:
        raise wrong_value(what, "steps, grid", "not be given together", "both", "drop one")
    if grid is None:
        grid = recommended(model.linear_sde(), 100 if steps is None else steps, end=model.t_min)
    check_grid(grid, model.linear_sde().horizon)
    check_falling(what, grid)
    return grid
