"""Error of a solver on fitted grids and on known ones, on draws that no grid was fitted to.

Run it as `python benchmarks/grids.py`. RMS distance per coordinate to the flow's end points
(Dormand–Prince) from the same draws of the prior, with the most steps whose counted evaluations
stay within the budget. The mixtures have exact scores in float64, the digits model is float32. The
seconds are those of fitting one grid; `below both` says whether its error is below that of Karras'
grid and that of the log-SNR one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import torch
from _common import options, parsed, table, write
from quality import PROBLEMS
from torch import Tensor

from sde_diffusion import (
    VPSDE,
    LinearSDE,
    ProbabilityFlow,
    integrate,
    karras,
    load,
    log_snr,
    quadratic,
    uniform,
)
from sde_diffusion.diagnostics.metrics import rms_distance
from sde_diffusion.grids import cosine
from sde_diffusion.integration import dynamics_for
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sampling.costs import steps_within
from sde_diffusion.sampling.grid_fitting import optimised
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import AdamsBashforth, Ancestral, DormandPrince, Heun
from sde_diffusion.solvers.dpm_solver_pp import DPMSolverPP
from sde_diffusion.solvers.unipc import UniPC

SOLVERS: Final[Mapping[str, Solver[Any]]] = {
    "Ancestral(eta=0)": Ancestral(eta=0.0),
    "AdamsBashforth(2)": AdamsBashforth(2),
    "AdamsBashforth(3)": AdamsBashforth(3),
    "Heun": Heun(),
    "DPMSolverPP(order=2)": DPMSolverPP(order=2),
    "UniPC(p=2)": UniPC(p=2),
}
KNOWN: Final[Mapping[str, Callable[[LinearSDE, int], Tensor]]] = {
    "karras": karras,
    "log-snr": log_snr,
    "uniform": lambda sde, n: uniform(n, sde.horizon, sde.cutoff),
    "quadratic": lambda sde, n: quadratic(n, sde.horizon, sde.cutoff),
    "cosine": cosine,
}
HELD_OUT_SEED: Final = 1  # the grids are fitted to draws of the seed 0


@dataclass(frozen=True)
class Problem:
    """A model, the shape of a sample, and how many are fitted to and measured on."""

    model: ScoreLike
    event: tuple[int, ...]
    fitted: int
    held_out: int
    dtype: torch.dtype
    tolerance: float


@dataclass(frozen=True)
class Cell:
    """The held-out errors of one solver within one budget, grid by grid."""

    problem: str
    solver: str
    budget: int
    steps: int
    errors: dict[str, float]
    seconds: float

    @property
    def below_both(self) -> bool:
        """Whether the fitted grid is better than Karras' and the log-SNR one."""
        return self.errors["optimised"] < min(self.errors["karras"], self.errors["log-snr"])


def problems(chosen: argparse.Namespace) -> dict[str, Problem]:
    """Return the mixtures of `quality.py` and the digits model."""
    exact = {name: data().diffused(VPSDE()) for name, data in PROBLEMS.items()}
    found = {
        name: Problem(
            model, model.oracle.event, chosen.fitted, chosen.held_out, torch.float64, 1e-8
        )
        for name, model in exact.items()
    }
    few = max(2, chosen.fitted // 32)
    digits = Problem(load("digits"), (1, 8, 8), few, 2 * few, torch.float32, 1e-5)
    return found | {"digits model": digits}


def end(problem: Problem, solver: Solver[Any], x: Tensor, grid: Tensor) -> Tensor:
    """Return where the solver carries ``x``."""
    with torch.no_grad():
        dynamics = dynamics_for(solver, problem.model.sde, problem.model)
        return integrate(dynamics, solver, x, grid).x


def cells(name: str, problem: Problem, chosen: argparse.Namespace) -> list[Cell]:
    """Measure all solvers and budgets on one problem."""
    model = problem.model
    sde = problem.model.sde
    noise = PerSampleNoise.numbered(HELD_OUT_SEED, 0, problem.held_out)
    x = sde.prior().sample(noise, (problem.held_out, *problem.event), dtype=problem.dtype)
    tight = DormandPrince(problem.tolerance, problem.tolerance)
    with torch.no_grad():
        truth = integrate(ProbabilityFlow(sde, model), tight, x, karras(sde, 1)).x
    found: list[Cell] = []
    for solver_name in chosen.solvers:
        solver = SOLVERS[solver_name]
        for budget in chosen.budgets:
            steps = steps_within(solver_name, solver, sde, partial(karras, sde), budget)
            grids = {rule: make(sde, steps) for rule, make in KNOWN.items()}
            begin = time.perf_counter()
            shape = (problem.fitted, *problem.event)
            grids["optimised"] = optimised(model, solver, steps, shape=shape, dtype=problem.dtype)
            taken = time.perf_counter() - begin
            errors = {
                rule: rms_distance(end(problem, solver, x, grid), truth)
                for rule, grid in grids.items()
            }
            found.append(Cell(name, solver_name, budget, steps, errors, taken))
    return found


def show(name: str, problem: Problem, found: list[Cell]) -> None:
    """Print the table of one problem."""
    rules = [*KNOWN, "optimised"]
    rows = [
        [
            c.solver,
            c.budget,
            *(f"{c.errors[rule]:.4f}" for rule in rules),
            f"{c.seconds:.1f}",
            "yes" if c.below_both else "no",
        ]
        for c in found
    ]
    title = (
        f"{name}: RMS distance to the flow map of {problem.held_out} held-out draws, grids "
        f"fitted to {problem.fitted}"
    )
    table(title, ["solver", "NFE", *rules, "s", "below both"], rows)


def main() -> None:
    """Measure every problem, print the tables and write the JSON."""
    parser = options(__doc__)
    parser.add_argument("--budgets", type=int, nargs="+", default=[6, 8, 10])
    parser.add_argument("--fitted", type=int, default=2048, help="draws; 1/32 of it for digits")
    parser.add_argument("--held-out", type=int, default=8192, help="draws of the mixtures")
    parser.add_argument("--solvers", choices=SOLVERS, nargs="+", default=list(SOLVERS))
    parser.add_argument("--problems", nargs="+", help="the first words of their names")
    chosen = parsed(parser)
    if chosen.quick:
        chosen.problems = chosen.problems or ["ring"]
        chosen.solvers = chosen.solvers[:1]
        chosen.budgets = [4]
        chosen.fitted = 64
        chosen.held_out = 64
    found: list[Cell] = []
    for name, problem in problems(chosen).items():
        if chosen.problems and not name.startswith(tuple(chosen.problems)):
            continue
        part = cells(name, problem, chosen)
        show(name, problem, part)
        found += part
    write(
        chosen.out,
        cells=[asdict(cell) | {"below_both": cell.below_both} for cell in found],
        fitted=chosen.fitted,
        held_out=chosen.held_out,
    )


if __name__ == "__main__":
    main()
