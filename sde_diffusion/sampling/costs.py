"""Evaluations and draws of a solver, counted in a solve with an exact score, never declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion.grids import Grid, times_of
from sde_diffusion.integration import dynamics_for, integrate
from sde_diffusion.matrix_sde import MatrixLinearSDE
from sde_diffusion.models.exact import Gaussian
from sde_diffusion.noise import Noise, WhiteNoise
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver

GridRule: TypeAlias = Callable[[int], Grid]  # steps -> grid of steps + 1 times


@final
@dataclass(frozen=True)
class Cost:
    """Evaluations of the score and normal draws of one solve."""

    nfe: int
    draws: int


@final
class _CountedNoise(Noise):
    """White noise that counts its draws."""

    def __init__(self) -> None:
        self.inner = WhiteNoise(0)
        self.draws = 0

    def normal(self, x: Tensor) -> Tensor:
        self.draws += 1
        return self.inner.normal(x)


def cost(
    solver: Solver[Any], sde: LinearSDE | MatrixLinearSDE, grid: Grid, std: float = 1.0
) -> Cost:
    """Return the counted cost of one solve along ``grid`` for the data N(0, std²).

    Arguments:
        solver: any solver.
        sde: whose dynamics are solved, with the exact score of the data.
        grid: the times of the solve.
        std: standard deviation of the data; it matters to solvers that adapt their steps only.

    >>> from sde_diffusion import VPSDE, uniform
    >>> from sde_diffusion.solvers import Heun
    >>> cost(Heun(), VPSDE(), uniform(3))
    Cost(nfe=6, draws=0)
    """
    data, states = 1, 1
    if isinstance(sde, MatrixLinearSDE):
        data, states = sde.data_parts, sde.parts
    variance = std * std * torch.eye(data, dtype=torch.float64)
    score = Gaussian(torch.zeros(data), variance).diffused(sde)
    noise = _CountedNoise()
    x = torch.ones(1, states, dtype=torch.float64)
    solution = integrate(dynamics_for(solver, sde, score), solver, x, grid, noise=noise)
    return Cost(solution.nfe, noise.draws)


def adapts(solver: Solver[Any], sde: LinearSDE, grid: Grid) -> bool:
    """Return whether the solver chooses its steps: its evaluations depend on the data."""
    return cost(solver, sde, grid, 1.0).nfe != cost(solver, sde, grid, 0.01).nfe


def steps_within(
    name: str, solver: Solver[Any], sde: LinearSDE, grid: GridRule, budget: int
) -> int:
    """Return the most steps whose counted evaluations stay within ``budget``.

    Arguments:
        name: of the solver, for the error.
        solver: a solver that takes the steps of its grid.
        sde: whose dynamics are solved.
        grid: the rule of the grids, a number of steps to a grid of so many.
        budget: the most evaluations of the score in a solve, at least 1.

    Errors: ValueError where one step costs more, or the grid has another number of steps.
    """
    positive_integer("compare", "budgets", budget)

    def nfe(steps: int) -> int:
        found = grid(steps)
        if (taken := len(times_of(found)) - 1) != steps:
            raise wrong_value(
                "compare",
                "grid",
                f"have {steps} steps when asked for them",
                taken,
                "pass a rule for any number of steps",
            )
        return cost(solver, sde, found).nfe

    if nfe(1) > budget:
        raise wrong_value(
            "compare",
            "budgets",
            f"be at least {nfe(1)}, one step of {name}",
            budget,
            "raise the budget or drop the solver",
        )
    low, high = 1, budget
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if nfe(middle) <= budget else (low, middle - 1)
    return low


def plan(
    name: str, solver: Solver[Any], sde: LinearSDE, grid: GridRule, budgets: Sequence[int]
) -> list[int | None]:
    """Return the step counts to run, one for each budget, or None alone if it adapts its steps.

    Arguments:
        name: of the solver, for the error.
        solver: any solver.
        sde: whose dynamics are solved.
        grid: the rule of the grids, a number of steps to a grid of so many.
        budgets: the most evaluations of the score in a solve; equal step counts are run once.

    Errors: those of `steps_within`.
    """
    if adapts(solver, sde, grid(1)):
        return [None]
    found = {steps_within(name, solver, sde, grid, budget) for budget in budgets}
    return [*sorted(found)]
