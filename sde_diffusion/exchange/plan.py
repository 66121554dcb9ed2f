"""Where a solver asks for its network, known ahead for one that takes the steps of its grid."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.integration import dynamics_for
from sde_diffusion.noise import WhiteNoise
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver, check_solver

_SHAPE: Final = (2, 3)  # of the states on which a solver is watched


class PlannedEvaluation(NamedTuple):
    """Where a solver asks for the network: its time, and how many states it has yielded before.

    ``at_state`` says whether that is at the last state, yielded or begun with, and the first
    question there.
    """

    t: float
    step: int
    at_state: bool


def evaluations(
    what: str, solver: Solver[Any], sde: LinearSDE, grid: Tensor
) -> list[PlannedEvaluation]:
    """Return all evaluations of a solve, from a solve with the score of N(0, 1) data.

    Arguments:
        what: the class that refuses.
        solver: a solver with fixed steps.
        sde: variance-preserving, whose dynamics are solved.
        grid: the times of the solve, falling.

    Errors: TypeError for what is no solver; ValueError for one that chooses its steps, or asks
    for states of several times at once, or first elsewhere than at its start.
    """
    check_solver(what, solver)
    if solver.adaptive:
        raise wrong_value(
            what,
            "solver",
            "take the steps of its grid, whose timesteps are known ahead",
            type(solver).__name__,
            "pass one with fixed steps, such as AngularAdams()",
        )
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(_SHAPE)
    watched = _Watched(what, solver, sde, start)
    dynamics = dynamics_for(solver, sde, watched)
    if dynamics.coefficients is not None:
        dynamics.coefficients.tabulate(grid)
    for state in solver.steps(dynamics, start, grid, WhiteNoise(0)):
        watched.reach(state)
    if not watched.found or not watched.found[0].at_state:
        raise wrong_value(
            what,
            "solver",
            "first ask for the network at its start, as a pipeline does",
            solver,
            "pass another, such as AngularAdams()",
        )
    return watched.found


@final
class _Watched(ScoreLike):
    """The score −x of N(0, 1) data, which notes where it is asked."""

    predicts = True
    row_by_row = True

    def __init__(self, what: str, solver: Solver[Any], sde: LinearSDE, start: Tensor) -> None:
        self.what = what
        self.solver = solver
        self.sde = sde
        self.found = list[PlannedEvaluation]()
        self.state = start
        self.fresh = True
        self.step = 0

    def reach(self, state: Tensor) -> None:
        """Take the next state of the solver."""
        self.state = state
        self.fresh = True
        self.step += 1

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if t.ndim or x.shape != _SHAPE:
            raise wrong_value(
                self.what,
                "solver",
                "ask for the network at one time of the whole batch",
                type(self.solver).__name__,
                "pass another, such as AngularAdams()",
            )
        at_state = self.fresh and torch.equal(x, self.state)
        self.found.append(PlannedEvaluation(float(t), self.step, at_state))
        self.fresh = False
        return -x

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        # eps = sigma x, x0 = alpha x and v = 0, finite where alpha or sigma is 0 too.
        factor = {"eps": at.sigma, "x0": at.alpha, "v": 0.0}[form]
        return -self(x, t) * factor
