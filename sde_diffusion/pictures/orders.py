"""Pictures of orders: the error against the number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sde_diffusion.pictures._panels import (
    LINES,
    MARKERS,
    log_ticks,
    new_figure,
    plain_ticks,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sde_diffusion.diagnostics.convergence import Convergence


def order_picture(
    curves: Mapping[tuple[str, float], Mapping[str, Convergence]],
    title: str,
    path: str | Path | None = None,
) -> Figure:
    """Return error against steps: a panel for each kind and order, with a line of its slope.

    ``curves`` are the measured errors by the name of the solver, by kind and declared order. A
    panel with more than 12 lines is continued in another.
    """
    panels = [
        (kind, order, list(lines.items())[first : first + LINES])
        for (kind, order), lines in curves.items()
        for first in range(0, len(lines), LINES)
    ]
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = new_figure(7.5 * columns, 3.4 * rows)
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for axes in cells[len(panels) :]:
        axes.axis("off")
    for axes, (kind, order, lines) in zip(cells, panels, strict=False):
        _slopes(axes, lines, order)
        axes.set_title(f"{kind} order {order:g}, {title}")
    return save_figure(figure, path)


def _slopes(axes: Axes, lines: Sequence[tuple[str, Convergence]], order: float) -> None:
    """Draw errors against steps, and the slope that all of them should have."""
    from matplotlib import colormaps

    for i, (name, found) in enumerate(lines):
        kept = [(n, e) for n, e in zip(found.steps, found.errors, strict=True) if e > 0]
        axes.plot(
            *zip(*kept, strict=True),
            label=name if len(name) < 45 else f"{name[:42]}…",
            color=colormaps["tab20"](i),
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            linewidth=1,
        )
    steps = sorted({n for _, found in lines for n in found.steps})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(*axes.get_ylim())
    low, high = axes.get_ylim()
    guide = [math.sqrt(low * high) * (n * n / steps[0] / steps[-1]) ** (-order / 2) for n in steps]
    axes.plot(steps, guide, "--", color="0.6", linewidth=2, zorder=0, label=f"$n^{{-{order:g}}}$")
    plain_ticks(axes, steps)
    axes.yaxis.set_major_formatter("{x:.0e}")
    log_ticks(axes.yaxis)
    axes.set_xlabel("steps n")
    axes.set_ylabel("error")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
