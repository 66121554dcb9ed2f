"""The loop that runs a solver along a grid, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state
from sde_diffusion._watch import Callback, Watch
from sde_diffusion.dynamics import ODE, ProbabilityFlow, ReverseSDE, linear
from sde_diffusion.grids import Denoised, Grid, check_grid, times_of
from sde_diffusion.noise import Noise, given_noise
from sde_diffusion.reflected_sde import ReflectedDiffusion
from sde_diffusion.scores import Score, ScoreLike, first_time
from sde_diffusion.sde import SDE, LinearSDE
from sde_diffusion.solver import Adaptive, DynamicsT, Reached, Solver, check_solver

WITH_SCORE: Final = (ReverseSDE, ProbabilityFlow)  # the dynamics that have one


@final
@dataclass(frozen=True)
class Solution:
    """The end of a solve, and what it cost.

    Arguments:
        x: the state at the last time; (B, *event).
        nfe: evaluations of the score, counted where they happened.
        steps: steps of the grid, the last one of a `Denoised` grid included.
        seconds: by the clock on the wall.
        lost: the sum of an adaptive solver's absolute embedded errors, (B, *event); else None.
    """

    x: Tensor
    nfe: int
    steps: int
    seconds: float
    lost: Tensor | None = None

    __repr__ = shown


def integrate(
    dynamics: DynamicsT,
    solver: Solver[DynamicsT],
    x: Tensor,
    grid: Grid,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    keep_graph: bool = False,
) -> Solution:
    """Return the solution of ``dynamics`` from ``x`` at grid[0] to grid[−1].

    A `Denoised` grid has one step more, from the last time to E[x0 | x_t], the same for all
    solvers.

    The graph of all steps stays in memory where ``x`` requires a gradient, and else only with
    ``keep_graph``: gradients in the parameters of a score or an SDE must be asked for. Without
    it a score that differentiates on its own does so under ``torch.enable_grad()``.

    Arguments:
        dynamics: the equation, of the class that the solver solves.
        solver: a solver object.
        x: the state at grid[0]; (B, *event).
        grid: the times, in [0, 1], and the only owner of the ends; (steps + 1,) or `Denoised`.
        noise: every random draw of the solver; a solver that draws needs one.
        callback: called after every step with its number from 1, its time and its state: copies.
        keep_graph: whether the result is differentiable in whatever the dynamics are made of.

    Errors: TypeError for dynamics the solver does not solve, or a drawing solver without noise,
    or a `Denoised` grid without a score of a linear SDE; ValueError for a wrong state or grid, or
    a step to another shape or dtype; FloatingPointError, naming step, t and samples, for
    divergence.
    """
    _check_dynamics(dynamics, solver)
    _check_walls(dynamics, solver)
    check_state("integrate", x)
    denoise = denoiser(dynamics, grid)
    grid = times_of(grid)
    check_grid(grid, dynamics.latest)
    _check_direction(dynamics, grid)
    _check_beyond(dynamics, solver, grid)
    if isinstance(dynamics, WITH_SCORE):
        check_evaluation("integrate", dynamics.score)
    begin = time.perf_counter()
    before = _evaluations(dynamics)
    watch = Watch(type(solver).__name__, x, grid, callback)
    noise = given_noise("integrate", noise)
    state = x
    lost: Tensor | None = None
    with _graph(x, keep_graph=keep_graph), tabulated(dynamics, grid):
        walk = _reached(solver, dynamics, x, grid, noise)
        for state, lost in walk:  # noqa: B007  (the last is told)
            watch.see(state)
        watch.check_end()
        if denoise is not None:
            state = denoise(state)
            watch.see(state, denoised=True)
    watch.look()
    nfe = _evaluations(dynamics) - before
    return Solution(state, nfe, watch.count, time.perf_counter() - begin, lost)


def _reached(
    solver: Solver[DynamicsT], dynamics: DynamicsT, x: Tensor, grid: Tensor, noise: Noise
) -> Iterator[Reached]:
    """Return the states along the grid, with their lost sums from a solver that tells them."""
    if isinstance(solver, Adaptive):
        return solver.reached(dynamics, x, grid, noise)
    return map(partial(Reached, lost=None), solver.steps(dynamics, x, grid, noise))


@contextmanager
def _graph(x: Tensor, *, keep_graph: bool) -> Iterator[None]:
    """Record the steps where something is to be differentiated by them, and else not."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and (keep_graph or x.requires_grad)):
        yield


def denoiser(dynamics: object, grid: Grid) -> Callable[[Tensor], Tensor] | None:
    """Return x ↦ E[x0 | x_t] at the last time of a `Denoised` grid, None for another grid."""
    if not isinstance(grid, Denoised):
        return None
    if not isinstance(dynamics, WITH_SCORE):
        raise wrong_type(
            "integrate",
            "grid",
            "be plain times for dynamics without a score",
            "Denoised",
            "pass grid.times",
        )
    score = dynamics.score
    t = grid.times[-1]
    at = linear("Denoised", dynamics)
    return lambda x: score.predict("x0", x, t, at.level(t))


@contextmanager
def tabulated(dynamics: object, grid: Tensor) -> Iterator[None]:
    """Let a linear SDE's coefficients be computed once for the whole grid."""
    known = dynamics.coefficients if isinstance(dynamics, WITH_SCORE) else None
    if known is None:
        yield
        return
    known.tabulate(grid)
    try:
        yield
    finally:
        known.tabulate(None)


def _evaluations(dynamics: object) -> int:
    return dynamics.score.counter.here if isinstance(dynamics, WITH_SCORE) else 0


def check_evaluation(what: str, model: ScoreLike) -> None:
    """Refuse a model in training mode, whose dropout would draw from the global generator."""
    if model.in_training():
        raise wrong_value(
            what, "model", "be in evaluation mode", "training mode", "call model.eval() first"
        )


def dynamics_for(solver: Solver[Any], sde: SDE, score: Score) -> ReverseSDE | ProbabilityFlow:
    """Return the dynamics the solver asks for: the reverse SDE or the probability flow."""
    check_solver("integrate", solver)
    if issubclass(ReverseSDE, solver.dynamics):
        return ReverseSDE(sde, score)
    return ProbabilityFlow(sde, score)


def _check_dynamics(dynamics: object, solver: Solver[Any]) -> None:
    check_solver("integrate", solver)
    kind = solver.dynamics
    if isinstance(dynamics, kind):
        return
    if issubclass(kind, ODE):
        remedy = "pass ProbabilityFlow(sde, score)"
    else:
        remedy = "pass ReverseSDE(sde, score)"
    raise wrong_type(
        type(solver).__name__,
        "dynamics",
        f"be of the kind {kind.__name__}",
        type(dynamics).__name__,
        remedy,
    )


def _check_walls(dynamics: object, solver: Solver[Any]) -> None:
    """Refuse an SDE between walls for a solver whose states may leave them."""
    sde = dynamics.sde if isinstance(dynamics, WITH_SCORE) else dynamics
    if isinstance(sde, ReflectedDiffusion) and not solver.reflects:
        rule = "be an SDE without walls, which its states may leave"
        remedy = "use EulerMaruyama() on the ReverseSDE, which reflects"
        raise wrong_type(type(solver).__name__, "dynamics", rule, type(sde).__name__, remedy)


def check_falling(what: str, grid: Tensor) -> None:
    """Refuse a grid from the data to the prior."""
    if grid[0] < grid[-1]:
        raise wrong_value(
            what,
            "grid",
            "run from noise (t near 1) to data",
            f"{float(grid[0]):.4g} … {float(grid[-1]):.4g}",
            "reverse it with grid.flip(0)",
        )


def _check_direction(dynamics: object, grid: Tensor) -> None:
    """Refuse what runs silently to nonsense: drawing noise against the direction of time."""
    if isinstance(dynamics, ReverseSDE) and dynamics.noise_scale > 0:
        check_falling("integrate", grid)
    elif isinstance(dynamics, LinearSDE) and grid[0] > grid[-1]:
        raise wrong_value(
            "integrate",
            "grid",
            "run forward for a forward SDE",
            f"{float(grid[0]):.4g} … {float(grid[-1]):.4g}",
            "pass ReverseSDE(sde, score) to go back",
        )


def _check_beyond(dynamics: SDE | ODE, solver: Solver[Any], grid: Tensor) -> None:
    """Refuse times beyond the horizon but for a start at pure noise, by steps that are given."""
    if float(grid[-1]) > dynamics.horizon:
        raise wrong_value(
            "integrate",
            "grid",
            f"end at the horizon {dynamics.horizon:.12g} at most, before pure noise",
            float(grid[-1]),
            f"end it at {dynamics.horizon:.12g}",
        )
    if solver.adaptive and float(grid[0]) > dynamics.horizon:
        raise wrong_value(
            type(solver).__name__,
            "grid",
            f"start at the horizon {dynamics.horizon:.12g} at most for steps of a solver's choice",
            float(grid[0]),
            f"start it at {dynamics.horizon:.12g}, or use a solver of fixed steps, as DDIM()",
        )


def whole_way(what: str, flow: ProbabilityFlow, solver: Solver[Any]) -> Tensor:
    """Return the flow's first time and horizon, between which an adaptive solver finds its way."""
    start = first_time(flow.score)
    if not solver.adaptive:
        raise wrong_value(
            what,
            "grid",
            "be given for a solver with fixed steps",
            "none",
            f"pass for example uniform(100, {start:g}, {flow.horizon:.12g})",
        )
    return torch.tensor([start, flow.horizon], dtype=torch.float64)
