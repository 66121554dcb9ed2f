"""Samples of a model: a draw of the prior, from which a solver runs to the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from sde_diffusion._block_matrix import parts_of
from sde_diffusion._check import check_shape, positive_integer, wrong_type, wrong_value
from sde_diffusion._progress import bar
from sde_diffusion._tensors import check_dtype
from sde_diffusion._watch import Callback
from sde_diffusion.dynamics import ProbabilityFlow, ReverseSDE
from sde_diffusion.grids import Denoised, Grid, check_grid, quadratic, recommended, times_of
from sde_diffusion.integration import (
    Solution,
    check_evaluation,
    check_falling,
    dynamics_for,
    integrate,
)
from sde_diffusion.matrix_sde import MatrixLinearSDE, PartsNormal
from sde_diffusion.models.exact import ExactScore
from sde_diffusion.noise import Noise, NoiseOfRun, PerSampleNoise, noise_of_run
from sde_diffusion.priors import check_moments
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import IsotropicNormal, LinearSDE
from sde_diffusion.solver import Solver, check_solver

GridT = TypeVar("GridT", bound=Grid)


def sample(
    model: ScoreLike,
    solver: Solver[Any],
    shape: Sequence[int],
    *,
    steps: int | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    first: int = 0,
    noise: NoiseOfRun = PerSampleNoise.of_run,
    callback: Callback | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Solution:
    """Return samples of ``model``: a draw of the prior, carried to the data by ``solver``.

    Sample i of the batch depends on ``seed`` and ``first`` + i only, not on the batch it is in
    (unless the solver's own rule does, as `SongLangevin`'s).

    Arguments:
        model: the score model or exact score, in evaluation mode, with a LinearSDE or a
            MatrixLinearSDE, whose samples are whole states: ``sde.data_part`` takes the data out.
        solver: any solver; its ``dynamics`` say whether the reverse SDE or the ODE is solved.
        shape: (B, *event), of the samples.
        steps: along the `recommended` grid of the solver; 20 if there is no grid either.
        grid: the times instead, falling from noise to data; (steps + 1,).
        seed: of the prior and of the solver's noise.
        first: the number of the first sample, so that batches of one run differ.
        noise: what draws; ``CounterNoise`` draws the same bits on every machine, in a number of
            kernels that does not grow with the batch.
        callback: called after each step with its number from 1, its time and the state.
        dtype: of the states.
        progress: show a bar of the steps that are done.

    Shapes: result's x (B, *event).
    Errors: those of `integrate`; ValueError for steps and grid together or a model in training.
    Where samples diverge `sample_finite` keeps the others.
    """
    grid = checked_grid("sample", model, solver, shape, steps, grid)
    check_dtype("sample", dtype)
    positive_integer("sample", "first", first, least=0)
    drawn = noise_of_run("sample", noise, seed, range(first, first + shape[0]))
    steps_in_all = len(times_of(grid)) - 1 + isinstance(grid, Denoised)
    with torch.no_grad(), bar(steps_in_all, "step", shown=progress) as done:

        def after(step: int, t: Tensor, x: Tensor) -> None:
            done.update(step - done.n)
            if callback is not None:
                callback(step, t, x)

        told = after if progress else callback
        x, dynamics = begun(model, solver, drawn, shape, grid, dtype)
        return integrate(dynamics, solver, x, grid, noise=drawn, callback=told)


def checked_grid(
    what: str,
    model: ScoreLike,
    solver: Solver[Any],
    shape: Sequence[int],
    steps: int | None,
    grid: Grid | None,
) -> Grid:
    """Return the times of a draw, once nothing is found wrong with what it is of.

    Arguments:
        what: the function that draws, for the error.
        model: the score model or exact score.
        solver: the solver.
        shape: (B, *event), of the samples.
        steps: of the recommended grid; None for 20.
        grid: the grid itself, if one is given.

    Errors: those of `sample` before it solves anything.
    """
    if not isinstance(model, ScoreLike) or not isinstance(model.sde, (LinearSDE, MatrixLinearSDE)):
        raise wrong_type(
            what,
            "model",
            "be a ScoreLike of a LinearSDE or a MatrixLinearSDE",
            type(model).__name__,
            "pass a ScoreModel, an oracle's .diffused(sde) or FunctionScore(function, sde)",
        )
    check_evaluation(what, model)
    check_solver(what, solver)
    check_shape(what, shape)
    found = grid_for(what, model, solver, steps, grid)
    check_grid(times_of(found), model.sde.latest)
    check_falling(what, times_of(found))
    if isinstance(model, ExactScore) and float(times_of(found)[0]) == model.sde.horizon:
        check_moments(what, model.sde, *model.oracle.moments())
    return found


def begun(
    model: ScoreLike,
    solver: Solver[Any],
    noise: Noise,
    shape: Sequence[int],
    grid: Grid,
    dtype: torch.dtype,
) -> tuple[Tensor, ReverseSDE | ProbabilityFlow]:
    """Return a draw of the prior at the grid's first time, and what the solver is to solve.

    Arguments:
        model: the score model or exact score.
        solver: the solver.
        noise: that of the prior.
        shape: (B, *event), of the samples.
        grid: the times, falling.
        dtype: of the states.
    """
    sde = model.sde
    if isinstance(sde, MatrixLinearSDE):
        parts_of("sample", torch.empty(tuple(shape), device="meta"), sde.parts)
        prior: IsotropicNormal | PartsNormal = sde.prior()
    else:
        prior = prior_at(model.linear_sde(), times_of(grid)[0])
    x = prior.sample(noise, shape, dtype=dtype, device=model.device)
    return x, dynamics_for(solver, sde, model)


def prior_at(sde: LinearSDE, t: Tensor) -> IsotropicNormal:
    """Return the SDE's prior, or x_t's own distribution where t is beyond the horizon."""
    return IsotropicNormal(float(sde.sigma(t))) if float(t) > sde.horizon else sde.prior()


def grid_for(
    what: str, model: ScoreLike, solver: Solver[Any], steps: int | None, grid: GridT | None
) -> GridT | Tensor:
    """Return the grid, or the solver's `recommended` one of so many steps.

    Arguments:
        what: the function that asks, for the error.
        model: for whose times the grid is recommended; it ends at the model's t_min, if any.
        solver: for which the grid is recommended.
        steps: of the recommended grid; None for 20.
        grid: the grid itself, if one is given.

    Errors: ValueError for steps and grid together.
    """
    if steps is not None and grid is not None:
        raise wrong_value(what, "steps, grid", "not be given together", "both", "drop one")
    if grid is None:
        count = 20 if steps is None else steps
        if isinstance(model.sde, MatrixLinearSDE):
            end = model.sde.cutoff if model.t_min is None else model.t_min
            return quadratic(count, model.sde.horizon, end)
        return recommended(model.linear_sde(), count, end=model.t_min, solver=solver)
    return grid
