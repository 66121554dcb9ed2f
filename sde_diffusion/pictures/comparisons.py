"""Pictures of a comparison: errors against evaluations, and samples of every solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_diffusion.pictures._panels import MARKERS, log_ticks, new_figure, plain_ticks, save_figure
from sde_diffusion.pictures.samples import draw_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sde_diffusion.diagnostics.comparison import Comparison, ComparisonRow
    from sde_diffusion.diagnostics.metrics import Interval


def error_picture(comparisons: Sequence[Comparison], path: str | Path | None = None) -> Figure:
    """Return error against counted evaluations, one row of panels per comparison.

    Left the distance of the deterministic solvers to the end points of the probability-flow ODE,
    with the reference's own error as a grey band; right the distance of all solvers to held-out
    data, with the noise floor as a band. Dashed lines are stochastic solvers.
    """
    names = _names([row for c in comparisons for row in c.rows])
    height = max(3.4 * len(comparisons), 0.3 * len(names) + 1)
    figure = new_figure(11.0, height)
    panels = figure.subplots(len(comparisons), 2, squeeze=False)
    for (left, right), c in zip(panels, comparisons, strict=True):
        _curves(left, c, names, lambda row: row.error)
        _curves(right, c, names, lambda row: row.sliced_wasserstein)
        left.set_ylabel("RMS distance to the flow", labelpad=6)
        right.set_ylabel(f"sliced $W_2$ to {c.against}", labelpad=8)
        left.axhspan(0, c.reference_error, color="0.85", zorder=0)
        _floor(right, c)
        for axes in (left, right):
            axes.set_title(c.problem)
            axes.set_xlabel("evaluations (NFE)")
            log_ticks(axes.yaxis)
    handles = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    order = [name for name in (*names, "noise floor") if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside right center")
    return save_figure(figure, path)


def solver_picture(comparison: Comparison, path: str | Path | None = None) -> Figure:
    """Return samples: one column per solver, with more evaluations from row to row."""
    kept = [row for row in comparison.rows if row.samples is not None]
    columns = {name: [row for row in kept if row.solver == name] for name in _names(kept)}
    height = max([1, *map(len, columns.values())])
    figure = new_figure(1.55 * (len(columns) + 1), 1.75 * height + 0.3)
    panels = figure.subplots(height, len(columns) + 1, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    data = comparison.data
    draw_cell(panels[0][0], data, data, comparison.against, "")
    for column, (name, rows) in enumerate(columns.items(), start=1):
        for axes, row in zip(panels[:, column], rows, strict=False):
            title = name if row is rows[0] else ""
            draw_cell(axes, row.samples, data, title, f"NFE {row.nfe}")
    return save_figure(figure, path)


def _names(rows: Sequence[ComparisonRow]) -> list[str]:
    """Return the solvers: first the stochastic ones, then the deterministic ones."""
    ordered = sorted(rows, key=lambda row: row.error is not None)
    return list(dict.fromkeys(row.solver for row in ordered))


def _curves(
    axes: Axes,
    comparison: Comparison,
    names: list[str],
    value: Callable[[ComparisonRow], Interval | None],
) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab10"]
    bars = list[tuple[Any, ...]]()
    for i, name in enumerate(names):
        rows = [row for row in comparison.rows if row.solver == name]
        found = [(row.nfe, v) for row in rows if (v := value(row)) is not None]
        if not found:
            continue
        means = [v.mean for _, v in found]
        high = [v.half_width for _, v in found]
        # On a logarithmic axis a bar must end above 0.
        low = [min(half, 0.99 * mean) for mean, half in zip(means, high, strict=True)]
        style: dict[str, Any] = {
            "color": colours(i % 10),
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": "-" if rows[0].error is not None else "--",
        }
        nfe = [n for n, _ in found]
        axes.plot(nfe, means, label=name, markersize=5, linewidth=1.2, **style)
        bars.append((nfe, means, [low, high], style["color"]))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(*axes.get_ylim())  # fixed before the bars, which would squeeze the curves
    for x, y, sides, colour in bars:
        axes.errorbar(x, y, yerr=sides, fmt="none", elinewidth=0.8, alpha=0.5, ecolor=colour)
    axes.grid(visible=True, which="major", alpha=0.3)
    plain_ticks(axes, sorted({row.nfe for row in comparison.rows}))


def _floor(axes: Axes, comparison: Comparison) -> None:
    floor = comparison.floor_sliced_wasserstein
    low, high = axes.get_ylim()
    bottom = max(floor.mean - floor.half_width, 1e-3 * floor.mean)
    axes.axhspan(bottom, floor.mean + floor.half_width, color="0.85", zorder=0)
    axes.axhline(floor.mean, color="0.45", linestyle=":", label="noise floor")
    # All of the line, but not all of the band, which may reach far down.
    axes.set_ylim(min(0.9 * low, 0.8 * floor.mean), max(high, 1.2 * floor.mean))
