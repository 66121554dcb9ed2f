"""What a solve that starts at t_ε and not at 0 leaves out, by solves that start nearer.

sigma falls as √t or faster: at most a tenth of what t_ε costs is left at a hundredth of it, unless
the data are narrower than sigma there. Then log p rises by ln 10 or more for each of their narrow
dimensions, and so it is asked how much it rises at a hundredth of that, and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from sde_diffusion.evaluation.ledger import Line
from sde_diffusion.likelihood.flow import LogLikelihood

_NEARER: Final = 100.0
_NARROW: Final = 1.0  # nats; less than ln 10
_MOST: Final = 5  # solves: down to t_ε/10¹⁰
_STEPS: Final = 16  # of a solver of fixed steps, for each hundredth


def truncation(
    found: LogLikelihood,
    solve: Callable[[Any, Tensor], LogLikelihood],
    solver: Any,  # noqa: ANN401  (a solver)
    grid: Tensor,
) -> tuple[Line, LogLikelihood]:
    """Return the line of t_ε, and the last of the solves that start nearer to the data.

    Each starts at a hundredth of the time before, until that moves no sample by more than a nat,
    or than half of the move before. What is left is taken to go on as a geometric series, and to
    be as large as the last move where the moves do not fall.

    Arguments:
        found: the log-likelihoods from t_ε.
        solve: returns those by a solver along a grid.
        solver: the solver.
        grid: rising times of the solve from t_ε; (steps + 1,), float64.
    """
    nats = [found.nats.double()]
    moves = list[Tensor]()
    nearest = found
    falls = False
    while not falls and len(moves) < _MOST:
        grid = _nearer(grid, solver)
        nearest = solve(_sharper(solver, len(moves)), grid)
        nats.append(nearest.nats.double())
        moves.append((nats[-1] - nats[-2]).abs())
        half = 0.5 * moves[-2] if len(moves) > 1 else torch.zeros_like(moves[0])
        falls = bool((moves[-1] <= half.clamp(min=_NARROW)).all())
    share = torch.zeros_like(moves[-1])
    if len(moves) > 1:
        ratio = (moves[-1] / moves[-2]).nan_to_num(0.5, 0.5).clamp(max=0.5)
        share = ratio / (1 - ratio)
    how = f"by a solve from t = {float(grid[0]):g}"
    if not falls:
        how += ", where it has not begun to fall, as on data without a density"
    error = share.clamp(min=_NEARER**-0.5) * moves[-1]
    return Line("truncation", nats[-1] - nats[0], error, how), nearest


def _nearer(grid: Tensor, solver: Any) -> Tensor:  # noqa: ANN401
    """Return the grid from a hundredth of its first time."""
    steps = 1 if solver.adaptive else _STEPS
    powers = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    return torch.cat([grid[0] * _NEARER**-powers, grid])


def _sharper(solver: Any, times: int) -> Any:  # noqa: ANN401
    """Return the solver with a tolerance that falls as sigma at the start of its solve does."""
    if not solver.adaptive or times == 0:
        return solver
    share = _NEARER ** (-0.5 * times)
    rtol = max(solver.rtol * share, 1e-13)
    atol = max(solver.atol * share, 1e-13)
    return dataclasses.replace(solver, rtol=rtol, atol=atol)
