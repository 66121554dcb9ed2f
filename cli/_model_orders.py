"""`sde-diffusion verify --model`: orders on the flow of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sde_diffusion.cli import _common, menu

if TYPE_CHECKING:
    from sde_diffusion.diagnostics.convergence import Convergence
    from sde_diffusion.diagnostics.doubling import Rule
    from sde_diffusion.scores import ScoreLike

_SAMPLES = 4


def on_the_flow(
    solvers: Mapping[str, Any],
    model: ScoreLike,
    rule: Rule,
    bar: Any,  # noqa: ANN401  (a bar)
) -> dict[str, Convergence | str]:
    """Return the errors on the model's flow, or why there are none, by the name of the solver.

    Arguments:
        solvers: by their names; only those of the ODE are measured.
        model: the score model.
        rule: of the grids.
        bar: moved by one for each solver.
    """
    from sde_diffusion.diagnostics.model_orders import model_convergence
    from sde_diffusion.dynamics import ODE, ProbabilityFlow

    shape = (_SAMPLES, *menu.event_shape(model))
    found = dict[str, Any]()
    for name, solver in solvers.items():
        if solver.dynamics in (ODE, ProbabilityFlow):
            bar.set_description(f"{name[:20]} on the flow", refresh=False)
            try:
                found[name] = model_convergence(solver, model, shape, grid=rule)
            except (FloatingPointError, ValueError, TypeError) as error:
                found[name] = _common.one_line(error)
        bar.update()
    return found


def lines(found: Mapping[str, Convergence | str], name: str) -> list[str]:
    """Return the table of the observed orders, with what it means."""
    head = ("solver", "order by 16, 32, 64, 128 steps", "distance of 128 to 256")
    rows = [head, ("---",) * len(head), *(_cells(*row) for row in found.items())]
    return [
        "",
        f"On the flow of {name} itself, where no closed form is known: RMS distances of n to 2n",
        "steps. A lower order than the declared one is the network's, where it is not smooth.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _cells(name: str, found: Convergence | str) -> tuple[str, str, str]:
    if isinstance(found, str):
        return f"`{name}`", found, "–"
    slopes = ", ".join(f"{slope:.2f}" for slope in found.slopes) or "–"
    return f"`{name}`", slopes, f"{found.errors[-1]:.2g}"


def to_json(found: Mapping[str, Convergence | str]) -> dict[str, object]:
    """Return all errors behind the orders, by the name of the solver."""
    return {
        name: row if isinstance(row, str) else {"steps": row.steps, "errors": row.errors}
        for name, row in found.items()
    }
