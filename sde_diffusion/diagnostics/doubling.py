"""Errors at doubling step counts, for any kind of SDE: what `orders` and `matrix_orders` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.diagnostics.convergence import FLOOR, Convergence
from sde_diffusion.diagnostics.problems import tensor
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.integration import integrate
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver

Rule: TypeAlias = Callable[[int, float, float], Tensor]  # steps, start, end -> grid, as `uniform`
Errors: TypeAlias = Callable[[int], Sequence[float]]  # steps -> an error for each problem
_COARSEST: Final = 8
_MOST: Final = 512  # steps
_STILL: Final = 0.03  # difference of two slopes that are nearly where they go


def settled(errors: Errors, least: int) -> list[Convergence]:
    """Return the errors at doubling step counts, until the slopes have converged or are rounding.

    The next order's part of a slope halves with each doubling: where two slopes differ by d, all
    later ones together change by d.
    """
    steps = [_COARSEST]
    rows = [errors(_COARSEST)]
    while True:
        steps.append(2 * steps[-1])
        rows.append(errors(steps[-1]))
        found = [Convergence(tuple(steps), column) for column in zip(*rows, strict=True)]
        if steps[-1] >= _MOST or all(_still(c, least) for c in found):
            return found


def _still(c: Convergence, least: int) -> bool:
    if c.errors[-1] <= FLOOR:
        return True
    enough = c.steps[-1] >= least and len(c.slopes) > 1
    return enough and abs(c.slopes[-1] - c.slopes[-2]) < _STILL


def grid_of(rule: Rule, steps: int, start: float, end: float) -> Tensor:
    """Return the grid of a rule, refusing another number of steps or other ends.

    Arguments:
        rule: called as rule(steps, start, end).
        steps: how many steps it must have.
        start: its first time.
        end: its last time.
    """
    found = rule(steps, start, end)
    ours = len(found) == steps + 1 and torch.allclose(found[[0, -1]], tensor(start, end))
    if not ours:
        shown = f"{len(found) - 1} steps from {float(found[0]):.6g} to {float(found[-1]):.6g}"
        raise wrong_value(
            "certify",
            "grid",
            f"have {steps} steps from {start:.6g} to {end:.6g}",
            shown,
            "pass a rule (steps, start, end)",
        )
    return found


@final
class _Clock(Noise):
    """Noise 0 that records the times between which increments were asked for."""

    def __init__(self) -> None:
        self.times = set[float]()

    def normal(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def unit(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.times.update(t.flatten().tolist(), s.flatten().tolist())
        return self.normal(x)


def asked(dynamics: ReverseSDE, solver: Solver[Any], x: Tensor, grids: Sequence[Tensor]) -> Tensor:
    """Return the times of all solves: those of the grids, and of stages between them.

    A path is cheap at the times that it knows beforehand.

    Arguments:
        dynamics: the reverse SDE.
        solver: a stochastic solver.
        x: a state, (1, *event).
        grids: the grids of all solves.
    """
    clock = _Clock()
    for grid in grids:
        integrate(dynamics, solver, x, grid, noise=clock)
        if clock.times <= set(grid.tolist()):  # and so it will be on the others
            return grids[-1]
    times = torch.tensor(sorted(clock.times), dtype=torch.float64)
    apart = times.diff(prepend=times[:1] - 1) > 2.0**-42  # one time, rounded in two ways
    return times[apart]
