"""`sde-diffusion verify`: the order of solvers, from closed forms alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion._check import wrong_value
from sde_diffusion._files import writing
from sde_diffusion.cli import _common, _model_orders, menu, report
from sde_diffusion.cli._posteriors import verify_posteriors
from sde_diffusion.cli._solvers import solver_class

if TYPE_CHECKING:
    from sde_diffusion.diagnostics.convergence import Certificate, OrderMeasurement
    from sde_diffusion.diagnostics.doubling import Rule
    from sde_diffusion.matrix_sde import MatrixLinearSDE
    from sde_diffusion.scores import ScoreLike
    from sde_diffusion.sde import LinearSDE

EXAMPLES: Final = """\b
Examples:
  sde-diffusion verify
  sde-diffusion verify --solver dpm-solver-pp:order=3 --solver heun --sde edm
  sde-diffusion verify --solver my_module:MySolver --grid log-snr
  sde-diffusion verify --sde cld
  sde-diffusion verify --model diffusers:FOLDER --solver heun
  sde-diffusion verify --posterior
"""
_SDES: Final = ("vp", "vp-cosine", "sub-vp", "ve", "edm", "rectified-flow")
_HEADERS: Final = (
    "solver",
    "solves",
    "declared",
    "observed",
    "strong",
    "evaluations a step",
    "error constant",
    "verdict",
)
_SOLVES: Final = {
    "SDE": "any SDE",
    "ReverseSDE": "reverse SDE",
    "ODE": "any ODE",
    "ProbabilityFlow": "flow",
}


def solved(solver: Any) -> str:  # noqa: ANN401  (any Solver)
    """Return the kind of equation that a solver solves, in words."""
    name = str(solver.dynamics.__name__)
    return _SOLVES.get(name, name)


class Uncertified(click.ClickException):
    """An order that is not the declared one."""

    exit_code = 1


@dataclass
class OrderRow:
    """One solver on all SDEs.

    Arguments:
        name: of the solver, as text.
        solver: the solver.
        certificates: its measured orders, by the name of the SDE.
        diverged: the errors of SDEs on which it diverged.
        refused: the errors of SDEs or grids that it refused.
    """

    name: str
    solver: Any
    certificates: dict[str, Certificate] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """pass, FAIL, refused, or "by tolerance" for a solver without an order."""
        if self.diverged or not all(c.passed for c in self.certificates.values()):
            return "FAIL"
        if self.refused:
            return "refused"
        return "pass" if self.certificates else "by tolerance"

    def of(self, *kinds: str) -> list[OrderMeasurement]:
        """Return the measurements of these kinds in which a higher order does not pass either."""
        found = [m for c in self.certificates.values() for m in c.measurements]
        return [m for m in found if m.kind in kinds and not m.least]


@click.command(epilog=EXAMPLES)
@click.option(
    "--solver",
    "solvers",
    multiple=True,
    shell_complete=menu.completing(menu.SOLVER_NAMES),
    help="A name of `sde-diffusion solvers`, or package.module:attr; repeatable. A name "
    "without arguments stands for all variants. All solvers if not given.",
)
@click.option(
    "--sde",
    "sdes",
    multiple=True,
    default=("all",),
    show_default=True,
    help=f"all ({', '.join(_SDES)}), one of them, cld, or package.module:attr; repeatable.",
)
@click.option(
    "--model",
    "model_name",
    default=None,
    shell_complete=menu.completing(menu.MODEL_NAMES, files=True),
    help="A model as in `sde-diffusion sample`: the SDE is its own, with its betas, and solvers "
    "of the ODE are measured on its flow too. The solvers of `compare` if none is named.",
)
@click.option(
    "--grid",
    default="uniform",
    show_default=True,
    help=f"Spacing of the times: {', '.join(menu.GRID_NAMES)}, or package.module:attr.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="verify-results",
    show_default=True,
    help="Folder for the results.",
)
@click.option(
    "--posterior",
    is_flag=True,
    help="Measure posterior samplers against exact posteriors instead; some 5 minutes.",
)
@_common.count_option(
    "--problems", default=60, least=2, help="Of --posterior: the number of measurements."
)
@_common.count_option(
    "--particles", default=256, help="Of --posterior: the draws of each posterior."
)
@_common.count_option("--steps", default=200, help="Of --posterior: the steps of the samplers.")
@_common.json_option
def command(
    solvers: tuple[str, ...],
    sdes: tuple[str, ...],
    model_name: str | None,
    grid: str,
    out: Path,
    posterior: bool,
    problems: int,
    particles: int,
    steps: int,
    as_json: bool,
) -> None:
    """Measure the order of solvers against closed forms.

    Deterministic solvers are compared with the exact solution of the probability-flow ODE,
    stochastic ones with the exact mean and variance (weak order) and along one Brownian path
    (strong order). After n steps the error is about C n^-order, C being the error constant.
    With --model no order on the network's flow decides: where it is not smooth, neither is it.
    Writes table.md, verify.json and orders.png; exits 1 where an observed order is more than 0.15
    from the declared one, or where a solver that was named refuses the grid or the SDE.

    With --posterior: the errors of posterior samplers where the posterior is known in closed form.
    Writes posterior.txt and posterior.json.
    """
    if posterior:
        _only_posteriors(solvers, sdes, grid, model_name)
        verify_posteriors(_common.output_folder(out), problems, particles, steps, as_json=as_json)
        return
    model = None if model_name is None else _model(model_name, sdes)
    names = solvers if solvers or model is None else menu.COMPARED
    rows = [OrderRow(name, made) for name, made in _chosen(names).items()]
    # Any, as a grid of the menu refuses by name the SDE that it cannot space.
    chosen: dict[str, Any] = {
        name: menu.verified_sde(name) for name in (_SDES if sdes == ("all",) else sdes)
    }
    if model is not None:
        chosen = {str(model_name): model.sde}
    folder = _common.output_folder(out)
    on_flow = dict[str, Any]()
    total = len(rows) * (len(chosen) + (model is not None))
    with _common.progress(total, "measurement") as bar:
        for row in rows:
            for name, sde in chosen.items():
                bar.set_description(row.name[:30], refresh=False)
                _measure(row, name, sde, partial(menu.grid, grid, sde))
                bar.update()
        if model is not None:
            solved_by = {row.name: row.solver for row in rows}
            rule = partial(menu.grid, grid, model.linear_sde())
            on_flow = _model_orders.on_the_flow(solved_by, model, rule, bar)
    lines = [markdown(rows), *(_notes(rows) if names else [*_unmeasured(), *_notes(rows)])]
    result: dict[str, Any] = {
        "grid": grid,
        "sdes": list(chosen),
        "solvers": [to_json(row) for row in rows],
    }
    if model is not None:
        lines += _model_orders.lines(on_flow, str(model_name))
        result |= {"on the flow": _model_orders.to_json(on_flow)}
    with (
        _common.shown_if_unwritten(result, lines, as_json=as_json),
        writing("verify", folder, "what is printed above is all that is kept", "run it again"),
    ):
        files = _write(folder, rows, next(iter(chosen)), "\n".join(lines))
        report.write_json(folder / "verify.json", result)
    lines += ["", *(f"wrote {file}" for file in files)]
    _common.show({**result, "files": [str(file) for file in files]}, lines, as_json=as_json)
    wrong = [
        row.name for row in rows if row.verdict == "FAIL" or (solvers and row.verdict == "refused")
    ]
    if wrong:
        message = f"not certified: {', '.join(wrong)}"
        raise Uncertified(message)


def _model(name: str, sdes: tuple[str, ...]) -> ScoreLike:
    """Return the model whose own SDE is looked at, and no other."""
    if sdes != ("all",):
        raise wrong_value(
            "verify",
            "--sde",
            "not be given with --model, whose SDE it is",
            ", ".join(sdes),
            "drop one",
        )
    found: ScoreLike = menu.model(name)
    menu.event_shape(found)
    return found


def _only_posteriors(
    solvers: tuple[str, ...], sdes: tuple[str, ...], grid: str, model: str | None
) -> None:
    """Refuse what --posterior does not look at."""
    given = [
        name
        for name, value, usual in (
            ("--solver", solvers, ()),
            ("--sde", sdes, ("all",)),
            ("--grid", grid, "uniform"),
            ("--model", model, None),
        )
        if value != usual
    ]
    if given:
        raise wrong_value(
            "verify",
            ", ".join(given),
            "not be given with --posterior, whose problem is fixed",
            "both",
            "drop one",
        )


def _chosen(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the solvers by the text of their rows."""
    from sde_diffusion.solvers import catalogue

    found: dict[str, Any] = {} if names else catalogue.instances()
    for name in names:
        if name in menu.SOLVER_NAMES:
            found |= catalogue.instances_of(solver_class(name))
        else:
            made = menu.solver(name)
            ours = name.partition(":")[0] in menu.SOLVER_NAMES
            found[catalogue.text(made) if ours else name] = made
    if not found:
        raise wrong_value(
            "--solver",
            "solver",
            "have an order that can be measured",
            ", ".join(names),
            "see its documentation",
        )
    return found


def _measure(row: OrderRow, name: str, sde: LinearSDE | MatrixLinearSDE, rule: Rule) -> None:
    from sde_diffusion.diagnostics.convergence import declared
    from sde_diffusion.diagnostics.orders import certify

    try:
        if declared(row.solver) is not None:
            row.certificates[name] = certify(row.solver, sde, grid=rule)
    except FloatingPointError as error:
        row.diverged[name] = _common.one_line(error)
    except (ValueError, TypeError) as error:
        row.refused[name] = _common.one_line(error)


def markdown(rows: Iterable[OrderRow]) -> str:
    """Return the rows as a Markdown table."""
    lines = [_HEADERS, ["---"] * len(_HEADERS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: OrderRow) -> list[str]:
    states = row.of("ode", "weak")
    paths = row.of("strong")
    strong = f"{paths[0].declared:g}: {span([m.observed for m in paths])}" if paths else "–"
    return [
        f"`{row.name}`",
        solved(row.solver),
        f"{states[0].declared:g}" if states else "–",
        span([m.observed for m in states]),
        strong,
        span([c.evaluations for c in row.certificates.values()], ".3g"),
        span([m.constant for m in states], ".2g"),
        row.verdict,
    ]


def span(values: Iterable[float], form: str = ".2f") -> str:
    """Return ``least – most``, or the one number both round to.

    >>> span([0.999, 1.0]), span([1.98, 2.0]), span([-0.001], ".1f")
    ('1.00', '1.98 – 2.00', '0.0')
    """
    ordered = sorted(values)
    if not ordered:
        return "–"
    # + 0.0: an order of −0.00 is 0.
    low, high = (f"{float(f'{value:{form}}') + 0.0:{form}}" for value in (ordered[0], ordered[-1]))
    return low if low == high else f"{low} – {high}"


def _unmeasured() -> list[str]:
    from sde_diffusion.solvers import catalogue

    names = ", ".join(f"`{name}`" for name in catalogue.unmeasured())
    return ["", f"Not measured, for the reasons in their documentation: {names}."]


def _notes(rows: Iterable[OrderRow]) -> list[str]:
    """Return a line for every divergence, refusal and wrong order."""
    found = list[str]()
    for row in rows:
        found += [f"{row.name} on {sde}: {text}" for sde, text in row.diverged.items()]
        found += [f"{row.name} on {sde}: {text}" for sde, text in row.refused.items()]
        found += [
            f"{row.name} on {sde}: {m.kind} order {m.observed:.2f} on the {m.problem}, "
            f"declared {m.declared:g}"
            for sde, c in row.certificates.items()
            for m in c.measurements
            if not m.passed
        ]
    return ["", *found] if found else []


def to_json(row: OrderRow) -> dict[str, object]:
    """Return the row with all errors behind its orders."""
    return {
        "solver": row.name,
        "solves": row.solver.dynamics.__name__,
        "verdict": row.verdict,
        "diverged": row.diverged,
        "refused": row.refused,
        "certificates": {
            sde: {
                "evaluations": c.evaluations,
                "measurements": [
                    {
                        "kind": m.kind,
                        "problem": m.problem,
                        "declared": m.declared,
                        "observed": _number(m.observed),
                        "constant": _number(m.constant),
                        "passed": m.passed,
                        **asdict(m.convergence),
                    }
                    for m in c.measurements
                ],
            }
            for sde, c in row.certificates.items()
        },
    }


def _number(value: float) -> float | None:
    return value if value == value else None  # JSON has no NaN


def _write(folder: Path, rows: Iterable[OrderRow], sde: str, text: str) -> list[Path]:
    from sde_diffusion.pictures.orders import order_picture

    table = folder / "table.md"
    picture = folder / "orders.png"
    report.write_text(table, text)
    curves: dict[tuple[str, float], dict[str, Any]] = {}
    for row in rows:
        if sde in row.certificates:
            for m in row.certificates[sde].measurements:
                if not m.least:
                    curves.setdefault((m.kind, m.declared), {})[row.name] = m.convergence
    order_picture(dict(sorted(curves.items())), sde, picture)
    return [table, folder / "verify.json", picture]
