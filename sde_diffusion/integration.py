"""Solvers as iterators of states, and the loop that runs them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast, final

import torch
from torch import Tensor

from sde_diffusion._check import diverged, positive_integer, wrong_type, wrong_value
from sde_diffusion._tensors import check_state
from sde_diffusion.grids import Denoised, Grid, check_grid, recommended, times_of
from sde_diffusion.noise import Noise, NoNoise, PerSampleNoise
from sde_diffusion.reverse import ODE, ProbabilityFlow, ReverseSDE, Score, linear
from sde_diffusion.sde import SDE, LinearSDE

DynamicsT = TypeVar("DynamicsT", bound="SDE | ODE")
GridT = TypeVar("GridT", bound=Grid)
ContraT = TypeVar("ContraT", bound="SDE | ODE", contravariant=True)

Callback = Callable[[int, Tensor, Tensor], object]  # (step from 1, its time, its state)

_CHECK_EVERY = 64  # steps between looks for a non-finite state; each look waits for the GPU


class Solver(Protocol[ContraT]):
    """What `integrate` needs: the kind of dynamics, and an iterator of states along the grid."""

    @property
    def dynamics(self) -> type[Any]:
        """The class of the dynamics this solver solves."""

    def steps(self, dynamics: ContraT, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Yield the state at grid[1], grid[2], …, given ``x`` at grid[0].

        A generator may return the sum of its steps' absolute embedded errors, in x's shape.
        """


class OneStep(ABC, Generic[DynamicsT]):
    """A solver whose steps do not depend on earlier steps: one method, `step`."""

    dynamics: ClassVar[type[Any]]
    order: ClassVar[float]  # of the error in the step size: of the state (ODE) or of the law (SDE)

    @abstractmethod
    def step(self, dynamics: DynamicsT, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """Return the state at s, given ``x`` at t; dt = s − t is signed."""

    def steps(
        self, dynamics: DynamicsT, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid."""
        for t, s in pairwise(grid):
            x = self.step(dynamics, x, t, s, noise)
            yield x


@final
@dataclass(frozen=True)
class Solution:
    """The end of a solve: the state, what it cost in evaluations, steps and wall-clock seconds.

    ``lost`` adds up the absolute embedded errors of an adaptive solver's steps, in x's shape; None
    from a solver that tells none.
    """

    x: Tensor
    nfe: int
    steps: int
    seconds: float
    lost: Tensor | None = None


def integrate(
    dynamics: DynamicsT,
    solver: Solver[DynamicsT],
    x: Tensor,
    grid: Grid,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Return the solution of ``dynamics`` from ``x`` at grid[0] to grid[−1].

    A `Denoised` grid has one step more, from the last time to E[x0 | x_t], the same for all
    solvers.

    Shapes: x (B, *event); grid (steps + 1,).
    Errors: TypeError for dynamics the solver does not solve, or a drawing solver without noise,
    or a `Denoised` grid without a score of a linear SDE;
    ValueError for a wrong state or grid; FloatingPointError, naming step and t, for divergence.
    """
    _check_dynamics(dynamics, solver)
    check_state("integrate", x)
    denoise, grid = _denoiser(dynamics, grid), times_of(grid)
    check_grid(grid, dynamics.horizon)
    _check_direction(dynamics, grid)
    if isinstance(dynamics, (ReverseSDE, ProbabilityFlow)):
        check_evaluation("integrate", dynamics.score.function)
    begin, before = time.perf_counter(), getattr(dynamics, "nfe", 0)
    watch = _Watch(grid)
    count = 0
    state = x
    with _tabulated(dynamics, grid):
        walk = _Walk(solver.steps(dynamics, x, grid, NoNoise() if noise is None else noise))
        for state in walk:
            count += 1
            watch.see(state)
            if callback is not None:
                callback(count, grid[count], state)
        if denoise is not None:
            state, count = denoise(state), count + 1
            watch.see(state)
            if callback is not None:
                callback(count, torch.zeros_like(grid[-1]), state)
    watch.look()
    nfe = getattr(dynamics, "nfe", 0) - before
    return Solution(state, nfe, count, time.perf_counter() - begin, walk.lost)


@final
class _Walk:
    """The states of a solver, and what its generator returns at the end: the embedded errors."""

    def __init__(self, states: Iterator[Tensor]) -> None:
        self.states, self.lost = states, cast("Tensor | None", None)

    def __iter__(self) -> Iterator[Tensor]:
        end: object = yield from cast("Generator[Tensor, None, object]", self.states)
        self.lost = end if isinstance(end, Tensor) else None


def _denoiser(dynamics: object, grid: Grid) -> Callable[[Tensor], Tensor] | None:
    """Return x ↦ E[x0 | x_t] at the last time of a `Denoised` grid, None for another grid."""
    if not isinstance(grid, Denoised):
        return None
    if not isinstance(dynamics, (ReverseSDE, ProbabilityFlow)):
        raise wrong_type("integrate", "grid", "be plain times for dynamics without a score",
                         "Denoised", "pass grid.times")  # fmt: skip
    score, t, at = dynamics.score, grid.times[-1], linear("Denoised", dynamics)
    return lambda x: score.predict("x0", x, t, at.level(t))


@contextmanager
def _tabulated(dynamics: object, grid: Tensor) -> Iterator[None]:
    """Let a linear SDE's coefficients be computed once for the whole grid."""
    known = getattr(dynamics, "coefficients", None)
    if known is None:
        yield
        return
    known.tabulate(grid)
    try:
        yield
    finally:
        known.tabulate(None)


class Model(Protocol):
    """What `sample` needs of a score model: the score itself, its SDE and its device."""

    @property
    def sde(self) -> LinearSDE:
        """The SDE whose score it is."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score at (x, t)."""


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
        raise wrong_type("sample", "model", "have a LinearSDE as .sde", type(model).__name__,
                         "pass a ScoreModel, or an oracle's .diffused(sde)")  # fmt: skip
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


def check_evaluation(what: str, model: object) -> None:
    """Refuse a model in training mode, whose dropout would draw from the global generator."""
    if getattr(model, "training", False):
        raise wrong_value(what, "model", "be in evaluation mode", "training mode",
                          "call model.eval() first")  # fmt: skip


def dynamics_for(solver: Solver[Any], sde: SDE, score: Score) -> ReverseSDE | ProbabilityFlow:
    """Return the dynamics the solver asks for: the reverse SDE or the probability flow."""
    kind = _kind(solver)
    return ReverseSDE(sde, score) if issubclass(ReverseSDE, kind) else ProbabilityFlow(sde, score)


def _kind(solver: object) -> type[Any]:
    kind = getattr(solver, "dynamics", None)
    if isinstance(solver, type) or not isinstance(kind, type) or not hasattr(solver, "steps"):
        got = solver.__name__ if isinstance(solver, type) else type(solver).__name__
        raise wrong_type("integrate", "solver", "be a solver object", got,
                         "pass for example Heun(), with its brackets")  # fmt: skip
    return kind


def _check_dynamics(dynamics: object, solver: object) -> None:
    kind = _kind(solver)
    if isinstance(dynamics, kind):
        return
    if issubclass(kind, ODE):
        remedy = "pass ProbabilityFlow(sde, score)"
    else:
        remedy = "pass ReverseSDE(sde, score)"
    raise wrong_type(type(solver).__name__, "dynamics", f"be of the kind {kind.__name__}",
                     type(dynamics).__name__, remedy)  # fmt: skip


def check_falling(what: str, grid: Tensor) -> None:
    """Refuse a grid from the data to the prior."""
    if grid[0] < grid[-1]:
        raise wrong_value(what, "grid", "run from noise (t near 1) to data",
                          f"{float(grid[0]):.4g} … {float(grid[-1]):.4g}",
                          "reverse it with grid.flip(0)")  # fmt: skip


def _check_direction(dynamics: object, grid: Tensor) -> None:
    """Refuse what runs silently to nonsense: drawing noise against the direction of time."""
    if isinstance(dynamics, ReverseSDE) and dynamics.noise_scale > 0:
        check_falling("integrate", grid)
    elif isinstance(dynamics, LinearSDE) and grid[0] > grid[-1]:
        raise wrong_value("integrate", "grid", "run forward for a forward SDE",
                          f"{float(grid[0]):.4g} … {float(grid[-1]):.4g}",
                          "pass ReverseSDE(sde, score) to go back")  # fmt: skip


class _Watch:
    """Looks for the first non-finite state without waiting for the GPU at every step."""

    def __init__(self, grid: Tensor) -> None:
        self.grid, self.sums, self.seen = grid, list[Tensor](), 0

    def see(self, x: Tensor) -> None:
        self.sums.append(x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32)))
        if len(self.sums) == _CHECK_EVERY:
            self.look()

    def look(self) -> None:
        if not self.sums:
            return
        bad = ~torch.isfinite(torch.stack(self.sums))
        if bool(bad.any()):
            step = self.seen + int(bad.nonzero()[0]) + 1
            t = float(self.grid[min(step, len(self.grid) - 1)])
            got = f"NaN or infinity at step {step} (t = {t:.6g})"
            raise diverged("integrate", "x", "stay finite", got,
                           "use more steps, or move the ends of the grid")  # fmt: skip
        self.seen += len(self.sums)
        self.sums.clear()
