"""Declared and observed orders of every solver, from closed forms, as a Markdown table.

Run it as `python benchmarks/orders.py --sde all`. It exits 1 where an observed order differs from
the declared one by more than 0.15, and where an exported solver is missing.

Observed: ODE solvers against the exact flow map; SDE solvers weakly, with the exact moments of
Gaussian data. Strong: solutions with n and 2n steps on one Brownian path.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from _common import options, parsed, table, write
from _solvers import DETERMINISTIC, ONE_STEP_A_GRID_STEP, STOCHASTIC, TORCHDIFFEQ

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineBeta,
    LinearSDE,
    RectifiedFlow,
    SubVPSDE,
    solvers,
    uniform,
)
from sde_diffusion.budgets import cost
from sde_diffusion.integration import Solver
from sde_diffusion.orders import ends, ode_convergence, strong_convergence, weak_convergence

SDES: Final[Mapping[str, LinearSDE]] = {
    "vp": VPSDE(),
    "vp-cosine": VPSDE(CosineBeta()),
    "sub-vp": SubVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "rectified-flow": RectifiedFlow(),
}
FLOW_STEPS: Final = (16, 32, 64, 128, 256, 512)
FEW_STEPS: Final = (5, 10, 20, 40, 80)  # a fifth-order method is at rounding beyond
WEAK_STEPS: Final = (64, 128, 256, 512, 1024)
STRONG_STEPS: Final = (16, 32, 64, 128)
TOLERANCE: Final = 0.15
# A batch statistic decides SongLangevin's step, so no closed form gives its order; Corrector is
# the abstract base.
NOT_MEASURED: Final = {"Corrector", "SongLangevin"}


@dataclass(frozen=True)
class Orders:
    """One solver's row: what it declares, and what was observed on every SDE."""

    solver: str
    dynamics: str
    declared: float
    observed: dict[str, float]
    declared_strong: float | None
    strong: dict[str, float]
    evaluations: float

    @property
    def off(self) -> float:
        """The largest distance of an observed order from the declared one."""
        strong = [abs(order - (self.declared_strong or 0.0)) for order in self.strong.values()]
        return max([abs(order - self.declared) for order in self.observed.values()] + strong)

    def cells(self) -> list[str]:
        """Return the row as the table shows it."""
        strong = shown(self.strong.values()) if self.strong else "—"
        return [
            self.solver, self.dynamics, f"{self.declared:g}", shown(self.observed.values()),
            strong, f"{self.evaluations:g}",
        ]  # fmt: skip


def shown(orders: Sequence[float] | Any) -> str:  # noqa: ANN401  (a view of a dictionary)
    """Return ``min–max``, or the one number both round to."""
    # + 0.0: a corrector's order of −0.00 is 0.
    low, high = (f"{round(value, 2) + 0.0:.2f}" for value in (min(orders), max(orders)))
    return low if low == high else f"{low} – {high}"


def evaluations(solver: Solver[Any], sde: LinearSDE) -> float:
    """Return the evaluations of one more step, counted: what starting costs drops out."""
    few, many = (cost(solver, sde, uniform(n, *ends(sde))).nfe for n in (20, 40))
    return (many - few) / 20


def flow_row(name: str, solver: Any, sdes: Mapping[str, LinearSDE]) -> Orders:  # noqa: ANN401
    """Return the row of a solver that draws nothing."""
    steps = FEW_STEPS if solver.order > 4 else FLOW_STEPS
    observed = {key: ode_convergence(solver, sde, steps).order for key, sde in sdes.items()}
    count = evaluations(solver, next(iter(sdes.values())))
    return Orders(name, solver.dynamics.__name__, solver.order, observed, None, {}, count)


def noisy_row(
    name: str,
    solver: Any,  # noqa: ANN401
    sdes: Mapping[str, LinearSDE],
    paths: int,
) -> Orders:
    """Return the row of a solver that draws: the order of the law, and along a path."""
    observed = {key: weak_convergence(solver, sde, WEAK_STEPS).order for key, sde in sdes.items()}
    declared = getattr(solver, "strong_order", None)
    strong = {}
    if declared is not None:
        for key, sde in sdes.items():
            errors = strong_convergence(solver, sde, STRONG_STEPS, paths=paths).errors
            strong[key] = math.log2(errors[0] / errors[-1]) / (len(errors) - 1)
    count = evaluations(solver, next(iter(sdes.values())))
    kind = solver.dynamics.__name__
    return Orders(name, kind, solver.order, observed, declared, strong, count)


def missing() -> set[str]:
    """Return the exported solvers and correctors that no row measures."""
    flow = [*DETERMINISTIC.values(), ONE_STEP_A_GRID_STEP, *TORCHDIFFEQ.values()]
    noisy = STOCHASTIC.values()
    correctors = {type(s.corrector).__name__ for s in noisy if hasattr(s, "corrector")}
    measured = {type(solver).__name__ for solver in (*flow, *noisy)} | correctors
    return set(solvers.__all__) - measured - NOT_MEASURED


def main() -> int:
    """Measure, print the table, and return 1 for an order that is not the declared one."""
    parser = options(__doc__)
    parser.add_argument("--sde", choices=[*SDES, "all"], default="all")
    parser.add_argument("--paths", type=int, default=2000, help="paths of the strong order")
    chosen = parsed(parser)
    name = "vp" if chosen.quick and chosen.sde == "all" else chosen.sde
    sdes = SDES if name == "all" else {name: SDES[name]}
    paths = min(chosen.paths, 400) if chosen.quick else chosen.paths

    flow = {**DETERMINISTIC, "DormandPrince": ONE_STEP_A_GRID_STEP, **TORCHDIFFEQ}
    rows = [noisy_row(key, solver, sdes, paths) for key, solver in STOCHASTIC.items()]
    rows += [flow_row(key, solver, sdes) for key, solver in flow.items()]
    spread = ", min–max over the SDEs" if len(sdes) > 1 else ""
    header = ["Solver", "dynamics", "declared", f"observed{spread}", "strong", "evaluations/step"]
    table(f"Orders on {', '.join(sdes)}", header, [row.cells() for row in rows])
    write(chosen.out, rows=[asdict(row) for row in rows], tolerance=TOLERANCE)

    wrong = [row.solver for row in rows if not row.off <= TOLERANCE]  # not <=: NaN is wrong too
    for text, names in (("order is not the declared one", wrong),
                        ("exported and not measured", sorted(missing()))):  # fmt: skip
        if names:
            print(f"orders: {text}: {', '.join(names)}", file=sys.stderr)
    return 1 if wrong or missing() else 0


if __name__ == "__main__":
    sys.exit(main())
