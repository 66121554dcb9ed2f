"""Samples of a model: a draw of the prior, carried to the data by a solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion.grids import Grid, check_grid, recommended, times_of
from sde_diffusion.integration import (
    Callback,
    Solution,
    check_evaluation,
    check_falling,
    dynamics_for,
    integrate,
)
from sde_diffusion.models.protocols import Model
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver

GridT = TypeVar("GridT", bound=Grid)


def sample(
    model: Model,
    solver: Solver[Any],
    shape: Sequence[int],
    *,
    steps: int | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    first: int = 0,
    callback: Callback | None = None,
    dtype: torch.dtype = torch.float32,
) -> Solution:
    """Return samples of ``model``: a draw of the prior, carried to the data by ``solver``.

    Sample i of a run depends on ``seed`` and ``first`` + i only, not on the batch it is in (unless
    the solver's own rule does, as `SongLangevin`'s). Give a grid, or a number of steps (20 if
    neither is given) for the `recommended` one of the solver.

    Shapes: shape (B, *event).
    Errors: those of `integrate`; ValueError for steps and grid together or a model in training.
    """
    if not isinstance(getattr(model, "sde", None), LinearSDE):
        raise wrong_type(
            "sample",
            "model",
            "have a LinearSDE as .sde",
            type(model).__name__,
            "pass a ScoreModel, or an oracle's .diffused(sde)",
        )
    check_evaluation("sample", model)
    for size in shape:
        positive_integer("sample", "shape", size)
    grid = grid_for("sample", model.sde, solver, steps, grid)
    check_grid(times_of(grid), model.sde.horizon)
    check_falling("sample", times_of(grid))
    noise = PerSampleNoise.numbered(seed, first, shape[0])
    with torch.no_grad():
        x = model.sde.prior().sample(noise, shape, dtype=dtype, device=model.device)
        dynamics = dynamics_for(solver, model.sde, model)
        return integrate(dynamics, solver, x, grid, noise=noise, callback=callback)


def grid_for(
    what: str, sde: LinearSDE, solver: Solver[Any], steps: int | None, grid: GridT | None
) -> GridT | Tensor:
    """Return the grid, or the solver's `recommended` one of so many steps, 20 if none is given."""
    if steps is not None and grid is not None:
        raise wrong_value(what, "steps, grid", "not be given together", "both", "drop one")
    if grid is None:
        return recommended(sde, 20 if steps is None else steps, solver=solver)
    return grid
