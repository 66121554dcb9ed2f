"""Error against evaluations with exact scores: our solvers beside those of other programs.

Run it as `python benchmarks/quality.py`. The SDE is VP with the linear schedule, float64, from
t = 1 to the cutoff 1e-3. Deterministic solvers: RMS distance per coordinate to the true flow map
(Dormand–Prince at 1e-10) from the same noise. Solvers that draw: sliced W₂ to the data, beside
the floor, data against data of the same size. Every solver takes the most steps whose counted
evaluations stay within the budget.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import torch
from _common import options, parsed, table, write
from _peers import PEERS, Peer
from _solvers import DETERMINISTIC, STOCHASTIC
from torch import Tensor

from sde_diffusion import (
    VPSDE,
    GaussianMixture,
    WhiteNoise,
    integrate,
    karras,
    log_snr,
    quadratic,
    uniform,
)
from sde_diffusion.budgets import steps_within
from sde_diffusion.integration import Solver, dynamics_for
from sde_diffusion.metrics import rms_distance, sliced_wasserstein
from sde_diffusion.oracles import ExactScore
from sde_diffusion.solvers import DormandPrince

SDE: Final = VPSDE()
BUDGETS: Final = (5, 10, 20, 50, 100, 200)
GRIDS: Final[Mapping[str, Callable[[int], Tensor]]] = {
    "uniform": lambda n: uniform(n, SDE.horizon, SDE.cutoff),
    "quadratic": lambda n: quadratic(n, SDE.horizon, SDE.cutoff),
    "log-snr": lambda n: log_snr(SDE, n),
    "karras": lambda n: karras(SDE, n),
}
# A solve of so many evaluations along the grid: x at its start to x at its end, and the count.
Solve = Callable[[ExactScore, Tensor, Tensor], tuple[Tensor, int]]


def correlated(dimension: int = 64, modes: int = 4, seed: int = 0) -> GaussianMixture:
    """Return modes with full covariances whose eigenvalues fall from .3 to .003."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.7 * torch.randn(modes, dimension, generator=generator, dtype=torch.float64)
    z = torch.randn(modes, dimension, dimension, generator=generator, dtype=torch.float64)
    bases, _ = torch.linalg.qr(z)
    variances = 0.3 * torch.logspace(-2, 0, dimension, dtype=torch.float64)
    covariances = bases * variances @ bases.mT
    return GaussianMixture(torch.ones(modes), means, 0.5 * (covariances + covariances.mT))


PROBLEMS: Final[Mapping[str, Callable[[], GaussianMixture]]] = {
    "ring of 8, 2-d": lambda: GaussianMixture.ring(8),
    "4 correlated modes, 64-d": correlated,
}


@dataclass(frozen=True)
class Cell:
    """What one solver reached within one budget, or why it has no number."""

    problem: str
    solver: str
    grid: str
    budget: int
    nfe: int
    steps: int
    value: float | None
    failure: str | None = None


def ours(solver: Solver[Any]) -> Solve:
    """Return `integrate` with this solver."""

    def solve(model: ExactScore, x: Tensor, grid: Tensor) -> tuple[Tensor, int]:
        dynamics = dynamics_for(solver, SDE, model)
        found = integrate(dynamics, solver, x, grid, noise=WhiteNoise(1))
        return found.x, found.nfe

    return solve


def theirs(peer: Peer) -> Solve:
    """Return a peer's solve, its evaluations counted where the score is called."""

    def solve(model: ExactScore, x: Tensor, grid: Tensor) -> tuple[Tensor, int]:
        calls = 0

        def eps(x_t: Tensor, i: int) -> Tensor:
            nonlocal calls
            calls += 1
            return model.eps(x_t, grid[i])

        try:
            return peer.make(SDE, grid)(eps, x, lambda: None), calls
        except RuntimeError as error:  # a singular matrix; ours say it with their own errors
            raise FloatingPointError(str(error)) from error

    return solve


def own_steps(name: str, solver: Solver[Any], rule: str, budget: int) -> int:
    """Return the most steps of ours whose counted evaluations stay within the budget."""
    return steps_within(name, solver, SDE, GRIDS[rule], budget)


def peer_steps(peer: Peer, rule: str, budget: int) -> int:  # noqa: ARG001  (as for ours)
    """Return the most steps of a peer within the budget."""
    return peer.steps(budget)


def contenders(draws: bool) -> dict[str, tuple[Solve, Callable[[str, int], int]]]:
    """Return every solver of the kind that is there: its solve, and its steps within a budget."""
    own: Mapping[str, Solver[Any]] = STOCHASTIC if draws else DETERMINISTIC
    found: dict[str, tuple[Solve, Callable[[str, int], int]]] = {
        name: (ours(solver), partial(own_steps, name, solver)) for name, solver in own.items()
    }
    for name, peer in PEERS.items():
        if peer.draws == draws and peer.absent() is None:
            found[name] = theirs(peer), partial(peer_steps, peer)
    return found


def cells(
    problem: str,
    model: ExactScore,
    x: Tensor,
    measure: Callable[[Tensor], float],
    chosen: argparse.Namespace,
    *,
    draws: bool,
) -> Iterable[Cell]:
    """Yield the cells of one problem, solver by solver."""
    for name, (solve, steps) in contenders(draws).items():
        for rule, budget in itertools.product(chosen.grids, chosen.budgets):
            try:
                n = steps(rule, budget)
                end, nfe = solve(model, x, GRIDS[rule](n))
            except (FloatingPointError, ValueError) as error:
                yield Cell(problem, name, rule, budget, 0, 0, None, str(error))
                continue
            value = measure(end)
            failure = None if math.isfinite(value) else "not finite"
            yield Cell(problem, name, rule, budget, nfe, n, None if failure else value, failure)


def show(title: str, found: Sequence[Cell], budgets: Sequence[int], *, draws: bool) -> None:
    """Print one line a solver and grid, and for every budget the best of each side."""
    values = {(c.solver, c.grid, c.budget): c.value for c in found}
    lines = list(dict.fromkeys((c.solver, c.grid) for c in found))

    def text(value: float | None) -> str:
        if value is None:
            return "—"
        return f"{value:.4f}" if draws else f"{value:.2e}"

    rows: list[list[str]] = [
        [solver, grid, *(text(values[solver, grid, b]) for b in budgets)] for solver, grid in lines
    ]
    for side, is_peer in (("best of ours", False), ("best peer", True)):
        best = [
            min((v for (s, _, budget), v in values.items()
                 if budget == b and v is not None and (s in PEERS) == is_peer), default=None)
            for b in budgets
        ]  # fmt: skip
        rows.append([side, "any", *map(text, best)])
    for name, peer in PEERS.items():
        if peer.draws == draws and (reason := peer.absent()):
            rows.append([name, reason, *("" for _ in budgets)])
    table(title, ["solver", "grid", *(f"NFE {b}" for b in budgets)], rows)


def flow_part(chosen: argparse.Namespace) -> list[Cell]:
    """Measure the deterministic solvers and print their tables."""
    found: list[Cell] = []
    for problem, data in PROBLEMS.items():
        model = data().diffused(SDE)
        x = torch.randn(chosen.samples, *model.oracle.event, dtype=torch.float64,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
        tight = DormandPrince(chosen.tolerance, chosen.tolerance)
        end, _ = ours(tight)(model, x, GRIDS["uniform"](1))

        def distance(y: Tensor, end: Tensor = end) -> float:
            return rms_distance(y, end)

        part = list(cells(problem, model, x, distance, chosen, draws=False))
        show(f"{problem}: RMS distance to the flow map, {chosen.samples} samples", part,
             chosen.budgets, draws=False)  # fmt: skip
        found += part
    return found


def law_part(chosen: argparse.Namespace) -> tuple[list[Cell], dict[str, float]]:
    """Measure the solvers that draw and print their tables; also return the floors."""
    found: list[Cell] = []
    floors: dict[str, float] = {}
    for problem, data in PROBLEMS.items():
        oracle, n = data(), chosen.law_samples
        generator = torch.Generator().manual_seed(0)
        held, other = oracle.sample(n, generator), oracle.sample(n, generator)
        floors[problem] = sliced_wasserstein(other, held)
        x = torch.randn(n, *oracle.event, generator=generator, dtype=torch.float64)

        def distance(y: Tensor, held: Tensor = held) -> float:
            return sliced_wasserstein(y, held) if bool(torch.isfinite(y).all()) else math.nan

        part = list(cells(problem, oracle.diffused(SDE), x, distance, chosen, draws=True))
        title = f"{problem}: sliced W₂ to the data, {n} samples; floor {floors[problem]:.4f}"
        show(title, part, chosen.budgets, draws=True)
        found += part
    return found, floors


def options_of_this() -> argparse.Namespace:
    """Return the options, made tiny for a quick run."""
    parser = options(__doc__)
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--grids", choices=GRIDS, nargs="+", default=list(GRIDS))
    parser.add_argument("--samples", type=int, default=1024, help="for the flow map")
    parser.add_argument("--law-samples", type=int, default=20_000, help="for the sliced W₂")
    parser.add_argument("--tolerance", type=float, default=1e-10, help="of the flow map")
    chosen = parsed(parser)
    if chosen.quick:
        chosen.budgets, chosen.grids = [10, 20], ["log-snr"]
        chosen.samples, chosen.law_samples, chosen.tolerance = 32, 200, 1e-7
    return chosen


def main() -> None:
    """Measure both kinds, print the tables and write the JSON."""
    chosen = options_of_this()
    flow = flow_part(chosen)
    law, floors = law_part(chosen)
    write(chosen.out, flow=[asdict(cell) for cell in flow], law=[asdict(cell) for cell in law],
          floors=floors, samples=chosen.samples, law_samples=chosen.law_samples,
          tolerance=chosen.tolerance)  # fmt: skip


if __name__ == "__main__":
    main()
