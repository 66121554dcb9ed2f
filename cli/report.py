"""Results as an aligned table and as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sde_diffusion.diagnostics.comparison import Comparison, ComparisonRow
    from sde_diffusion.diagnostics.convergence import Convergence, Kind
    from sde_diffusion.diagnostics.metrics import Interval
    from sde_diffusion.diagnostics.model_comparison import ModelDifference

_NAMED = 8  # differences that a legend names
_LONGEST = 94  # characters of a model's name
_SMALL = 1e-3  # half widths below it would take more places than a column has
_NAME = 21  # the width of a solver's name
_HEADERS = ("solver", "steps", "NFE", "s", "RMS", "SW2", "excess", "MMD2", "FD")
_ORDERS = {"ode": "order", "weak": "weak order", "strong": "strong order"}
_LEGEND = """\
NFE: evaluations of the network a sample; s: seconds of a solve
RMS: root mean square distance to the ends of the flow from the same noise
SW2, MMD2, FD: sliced 2-Wasserstein distance, squared maximum mean discrepancy and Frechet distance
to {against}; excess: SW2 above the noise floor"""


_MODELS = ("", "solver", "steps", "NFE", "s", "SW2", "MMD2", "FD")
_OF_MODELS = """\
NFE: evaluations of the network a sample; s: seconds of a solve
SW2, MMD2, FD: sliced 2-Wasserstein distance, squared maximum mean discrepancy and Frechet distance
to {against}, mean ± 95 % interval over {replicates} replicates of {samples} samples
{letters}: mean of the differences d of each replicate, which has the same noise and split of
the data for all models, ± t s_d/√{replicates}, t = {quantile:.2f}; * where 0 is outside"""


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return the cells as text: the first ``left`` columns flush left, the others flush right.

    >>> print(table(("solver", "NFE"), [("heun", "20"), ("rk4", "8")]))
    solver  NFE
    ------  ---
    heun     20
    rk4       8
    """
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = [headers, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i >= left else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def comparison_text(
    comparison: Comparison, orders: Mapping[str, tuple[Kind, Convergence]] | None = None
) -> str:
    """Return the table of a comparison, under a line that says what was compared.

    ``orders`` are the measured ones of samplers of other programs, by name.
    """
    c = comparison
    lines = [
        f"{c.problem}: {c.replicates} × {c.samples} samples; values are mean ± 95 % interval",
        table(_HEADERS, [line for row in c.rows for line in _folded(_cells(row))]),
        _LEGEND.format(against=c.against),
        f"noise floor, these against themselves: SW2 {_interval(c.floor_sliced_wasserstein)}, "
        f"MMD2 {_interval(c.floor_mmd)}, FD {_interval(c.floor_frechet)}",
        f"the flow: the probability-flow ODE by {c.reference}, {c.reference_nfe} evaluations,",
        f"{c.reference_error:.2g} from itself with half the steps",
    ]
    lines += [_order_text(name, *found) for name, found in (orders or {}).items()]
    failures = [f"{row.solver}, NFE {row.nfe}: {row.failure}" for row in c.rows if row.failure]
    return "\n".join(lines + failures)


def rounding_text(found: Mapping[str, Any]) -> str:
    """Return what a network in half precision costs, against float32."""
    from sde_diffusion.diagnostics.metrics import Interval

    rows = []
    for row in found["rows"]:
        half, full = row["nfe"]
        evaluations = f"{full}" if half == full else f"{half}, {full} in float32"
        rows.append((row["solver"], evaluations, _interval(Interval(**row["error"]))))
    lines = [
        f"{found['problem']} with its network in {found['precision']}, states in float32",
        table(("solver", "NFE", "distance of samples to float32"), rows),
        "distance: root mean square, from the same noise",
    ]
    likelihood = found["likelihood"]
    if likelihood is not None:
        change, size = (Interval(**likelihood[name]) for name in ("change", "size"))
        lines.append(
            f"log-likelihood of {likelihood['samples']} held-out samples of "
            f"{likelihood['dimensions']} dimensions, nats: change {_interval(change)}, its size "
            f"{_interval(size)}"
        )
    return "\n".join(lines)


def models_text(comparisons: Sequence[Comparison], apart: Sequence[ModelDifference]) -> str:
    """Return one table of several models on the same data, with their differences to the first."""
    letters = {c.problem: _letter(i) for i, c in enumerate(comparisons)}
    failures = [
        f"{letters[c.problem]}, {row.solver}, NFE {row.nfe}: {row.failure}"
        for c in comparisons
        for row in c.rows
        if row.failure
    ]
    return "\n".join(
        [
            *(f"{letter}: {_clipped(name)}" for name, letter in letters.items()),
            table(_MODELS, _model_rows(comparisons, apart, letters), left=2),
            _models_legend(comparisons[0], [*letters.values()][1:_NAMED]),
            *failures,
        ]
    )


def _model_rows(
    comparisons: Sequence[Comparison],
    apart: Sequence[ModelDifference],
    letters: Mapping[str, str],
) -> list[tuple[str, ...]]:
    """Return the rows by solver and steps, each model's followed by its difference."""
    rows = {(c.problem, row.solver, row.steps): row for c in comparisons for row in c.rows}
    known = {(d.model, d.solver, d.steps): d for d in apart}
    cells = list[tuple[str, ...]]()
    for solver, steps in dict.fromkeys(key[1:] for key in rows):
        for model, letter in letters.items():
            row = rows.get((model, solver, steps))
            if row is not None:
                own = _cells(row)
                cells.append((letter, *own[:4], own[5], *own[7:]))
            difference = known.get((model, solver, steps))
            if difference is not None:
                cells.append(_difference_cells(difference, letters))
    return cells


def _models_legend(first: Comparison, others: Sequence[str]) -> str:
    from scipy.special import stdtrit

    floors = {
        "SW2": first.floor_sliced_wasserstein,
        "MMD2": first.floor_mmd,
        "FD": first.floor_frechet,
    }
    legend = _OF_MODELS.format(
        against=first.against,
        replicates=first.replicates,
        samples=first.samples,
        letters=", ".join(f"{letter}−A" for letter in others),
        quantile=float(stdtrit(first.replicates - 1, 0.975)),
    )
    floor = ", ".join(f"{name} {_interval(interval)}" for name, interval in floors.items())
    return f"{legend}\nnoise floor, these against themselves: {floor}"


def _difference_cells(d: ModelDifference, letters: Mapping[str, str]) -> tuple[str, ...]:
    steps = "own" if d.steps is None else str(d.steps)
    values = (
        _interval(interval) + ("" if 0.0 in interval else "*")
        for interval in (d.sliced_wasserstein, d.mmd, d.frechet)
    )
    return (f"{letters[d.model]}−{letters[d.baseline]}", d.solver, steps, "", "", *values)


def _letter(i: int) -> str:
    """Return A … Z, then A1 … Z1 and so on."""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


def _clipped(name: str) -> str:
    return name if len(name) <= _LONGEST else f"… {name[-_LONGEST + 2 :]}"


def _order_text(name: str, kind: Kind, found: Convergence) -> str:
    """Return the measured order of a solver in a line."""
    last = " and ".join(map(str, found.steps[-2:]))
    return f"{name}: measured {_ORDERS[kind]} {found.order:.2f}, of {last} steps"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    from sde_diffusion._files import write_atomically

    write_atomically(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically.

    Errors: ValueError for NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False))


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    steps = "own" if row.steps is None else str(row.steps)
    seconds = "-" if row.seconds is None else _short(f"{row.seconds:.2g}")
    if row.failure is not None:
        return (row.solver, steps, str(row.nfe), seconds, "diverged", "-", "-", "-", "-")
    return (
        row.solver,
        steps,
        str(row.nfe),
        seconds,
        _interval(row.error),
        _interval(row.sliced_wasserstein),
        _interval(row.excess),
        _interval(row.mmd),
        _interval(row.frechet),
    )


def _folded(cells: Sequence[str]) -> list[Sequence[str]]:
    """Return a row in as many lines as its name takes, as those of other programs' samplers."""
    name = cells[0]
    first, rest = name[:_NAME], name[_NAME:]
    pieces = [rest[i : i + _NAME - 2] for i in range(0, len(rest), _NAME - 2)]
    more = [(f"  {piece}", *[""] * (len(cells) - 1)) for piece in pieces]
    return [(first, *cells[1:]), *more]


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    mean, half = interval.mean, interval.half_width
    if not _SMALL <= half < math.inf:
        digits = ".1e" if abs(mean) < _SMALL else ".2g"
        return f"{_short(f'{mean:{digits}}')}±{_short(f'{half:.0e}')}"
    # One digit more than the interval's own: further ones mean nothing.
    places = max(1 - math.floor(math.log10(half)), 0)
    return f"{_short(f'{mean:.{places}f}')}±{_short(f'{half:.1g}')}"


def _short(number: str) -> str:
    """Return a number without the zero before its point, and without that of its exponent."""
    return re.sub(r"^(-?)0\.", r"\1.", number).replace("e-0", "e-")
