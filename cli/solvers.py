"""`sde-diffusion solvers`: the names that --solver takes, and what is known of each."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

import click

from sde_diffusion.cli import _common, menu, report
from sde_diffusion.cli._solvers import solver_class

EXAMPLES: Final = """\b
Examples:
  sde-diffusion solvers
  sde-diffusion solvers --json
"""
_HEADERS: Final = ("solver", "order", "evaluations", "solves", "arguments")
_LEGEND: Final = (
    "order: of the state, or of the distribution for solvers that draw noise",
    "evaluations: of the score in a step; - where their number varies",
    "solves: any ODE, any SDE, or the flow or the reverse SDE of a linear SDE",
    "arguments: as in --solver unipc:p=3, with commas between several",
)


@click.command(epilog=EXAMPLES)
@_common.json_option
def command(as_json: bool) -> None:
    """List the solvers, their orders and evaluations.

    sample, likelihood, compare and verify take these names, and package.module:attr for a solver
    of your own.
    """
    rows = [_row(name) for name in menu.SOLVER_NAMES]
    lines = [report.table(_HEADERS, [_cells(row) for row in rows]), "", *_LEGEND]
    _common.show({"solvers": rows}, lines, as_json=as_json)


def _row(name: str) -> dict[str, Any]:
    from sde_diffusion.cli.verify import solved
    from sde_diffusion.diagnostics.convergence import declared

    made = solver_class(name)()
    return {
        "solver": name,
        "order": declared(made),
        "evaluations": made.evaluations,
        "solves": solved(made),
        "arguments": [field.name for field in dataclasses.fields(made) if field.init],
    }


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = [row["order"], row["evaluations"]]
    shown = ["-" if n is None or not math.isfinite(n) else f"{n:g}" for n in numbers]
    return [row["solver"], *shown, row["solves"], " ".join(row["arguments"])]
