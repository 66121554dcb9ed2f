"""Pictures of samples and of errors. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sde_diffusion.compare import Comparison, Row
    from sde_diffusion.ddpm import StepTable
    from sde_diffusion.evaluation import Evaluation
    from sde_diffusion.metrics import Interval
    from sde_diffusion.orders import Convergence

_MARKERS: Final = "osD^vP*X<>"
_TILES: Final = 16  # images in one cell of the picture of all solvers
_POINTS: Final = 1000
_LINES: Final = 12  # that one panel can tell apart


def sample_picture(x: Tensor, path: str | Path) -> None:
    """Write a picture of samples as PNG: images as tiles, vectors as points, numbers as bars.

    Images have values in [−1, 1]; of vectors the first two coordinates are drawn.

    Shapes: (B, H, W), (B, 1, H, W) or (B, 3, H, W); (B, D); (B, 1).
    """
    figure = _figure(5.0, 5.0)
    _draw(figure.subplots(), x, limit=None)
    _save(figure, path)


def error_picture(comparisons: Sequence[Comparison], path: str | Path) -> None:
    """Write error against counted evaluations as PNG, one row of panels per comparison.

    Left the distance to the flow of the solvers that draw nothing, right the distance of all to
    held-out data, with the noise floor as a band. Dashed lines belong to solvers that draw. On the
    left the grey band is the reference's own error.
    """
    names = _names([row for c in comparisons for row in c.rows])
    height = max(3.4 * len(comparisons), 0.3 * len(names) + 1)
    figure = _figure(11.0, height)
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
    handles = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    order = [name for name in (*names, "noise floor") if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside right center")
    _save(figure, path)


def solver_picture(comparison: Comparison, path: str | Path) -> None:
    """Write samples as PNG: one column per solver, its evaluations growing downwards."""
    kept = [row for row in comparison.rows if row.samples is not None]
    columns = {name: [row for row in kept if row.solver == name] for name in _names(kept)}
    height = max([1, *map(len, columns.values())])
    figure = _figure(1.55 * (len(columns) + 1), 1.75 * height + 0.3)
    panels = figure.subplots(height, len(columns) + 1, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    data = comparison.data
    limit = 1.3 * float(data.double().flatten(1).abs().max())
    _cell(panels[0][0], data, limit, comparison.against, "")
    for column, (name, rows) in enumerate(columns.items(), start=1):
        for axes, row in zip(panels[:, column], rows, strict=False):
            title = name if row is rows[0] else ""
            _cell(axes, row.samples, limit, title, f"NFE {row.nfe}")
    _save(figure, path)


def order_picture(
    curves: Mapping[tuple[str, float], Mapping[str, Convergence]], title: str, path: str | Path
) -> None:
    """Write error against steps as PNG, a panel for each kind and order, beside its slope.

    A panel with too many lines is continued in another.
    """
    panels = [
        (kind, order, list(lines.items())[first : first + _LINES])
        for (kind, order), lines in curves.items()
        for first in range(0, len(lines), _LINES)
    ]
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = _figure(7.5 * columns, 3.4 * rows)
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for axes in cells[len(panels) :]:
        axes.axis("off")
    for axes, (kind, order, lines) in zip(cells, panels, strict=False):
        _slopes(axes, lines, order)
        axes.set_title(f"{kind} order {order:g}, {title}")
    _save(figure, path)


def likelihood_picture(found: Evaluation, title: str, path: str | Path) -> None:
    """Write how many samples have how many bits per dimension as PNG, for every bound.

    With the terms of the vlb in a second panel: a point for each step that was drawn, and a line
    through the means over stretches of steps.
    """
    table = found.per_step()
    figure = _figure(6.5 if table is None else 12.0, 3.8)
    left, *rest = figure.subplots(1, 1 if table is None else 2, squeeze=False)[0]
    _histograms(left, found)
    left.set_title(title)
    if table is not None:
        _terms(rest[0], table)
        parts = [found.term(f"vlb_{name}")[2] for name in ("prior", "diffusion", "reconstruction")]
        rest[0].set_title("$L_T + \\Sigma L_k + L_0$ = {:.2g} + {:.4f} + ({:.4f})".format(*parts),
                          fontsize=10)  # fmt: skip
    _save(figure, path)


def curves_picture(lines: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write the learning curves of a run as PNG: loss, gradient norm, learning rate, evaluations.

    ``lines`` are those of metrics.jsonl. The held-out bound has its standard error as bars and a
    ring around its best; the loss by level is that of the first and of the last evaluation.
    """
    steps = [line for line in lines if "loss" in line]
    found = [(line["step"], line["evaluation"]) for line in lines if "evaluation" in line]
    bounds = [(step, e) for step, e in found if "bits_per_dim" in e]
    levels = [(step, e["loss_by_level"]) for step, e in found if "loss_by_level" in e]
    panels = 3 + bool(bounds) + bool(levels)
    columns = min(3, panels)
    rows = -(-panels // columns)
    figure = _figure(4.5 * columns, 3.2 * rows)
    free = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for name, title in (("loss", "loss"), ("grad_norm", "gradient norm"),
                        ("learning_rate", "learning rate")):  # fmt: skip
        points = [(line["step"], line[name]) for line in steps if line[name] is not None]
        _over_steps(next(free), points, title)
    if bounds:
        _bound_curve(next(free), bounds)
    if levels:
        _level_curves(next(free), levels)
    for axes in free:
        axes.axis("off")
    _save(figure, path)


def _over_steps(axes: Axes, points: Sequence[tuple[int, float]], title: str) -> None:
    """Draw points against steps; on a logarithmic axis where all are positive and some large."""
    values = [value for _, value in points]
    style = "." if len(points) == 1 else "-"
    axes.plot([step for step, _ in points], values, style, linewidth=1)
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(visible=True, which="major", alpha=0.3)


def _bound_curve(axes: Axes, bounds: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    steps, bits = [step for step, _ in bounds], [e["bits_per_dim"] for _, e in bounds]
    errors = [e.get("standard_error", 0.0) for _, e in bounds]
    axes.errorbar(steps, bits, yerr=errors, fmt=".-", linewidth=1, elinewidth=0.8, capsize=2)
    best = min(range(len(bits)), key=bits.__getitem__)
    axes.plot(steps[best], bits[best], "o", fillstyle="none", markersize=10,
              label=f"best {bits[best]:.4f}")  # fmt: skip
    axes.set_title("held-out bound, bits per dimension")
    axes.set_xlabel("step")
    axes.legend(fontsize=8)
    axes.grid(visible=True, which="major", alpha=0.3)


def _level_curves(axes: Axes, levels: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    ends = [levels[0], levels[-1]] if len(levels) > 1 else [*levels]
    for (step, e), colour in zip(ends, ("0.6", "C0")[-len(ends) :], strict=True):
        axes.plot(e["lambda"], e["loss"], ".-", color=colour, linewidth=1, label=f"step {step}")
    axes.set_yscale("log")
    axes.set_title("held-out loss by noise level")
    axes.set_xlabel("$\\lambda = \\log(\\alpha/\\sigma)$")
    axes.legend(fontsize=8)
    axes.grid(visible=True, which="major", alpha=0.3)


def _histograms(axes: Axes, found: Evaluation) -> None:
    """Draw a histogram for every bound, and a line at its mean."""
    from matplotlib import colormaps

    columns = {bound: found.bits_per_dim(bound).tolist() for bound in found.bounds}
    low, high = min(map(min, columns.values())), max(map(max, columns.values()))
    bins = max(10, min(50, len(found.index) // 8))
    for i, (bound, bits) in enumerate(columns.items()):
        summary, colour = found.summary(bound), colormaps["tab10"](i)
        text = f"{bound} {summary.bits_per_dim:.4f}"
        if summary.samples > 1:
            text += f" ± {summary.standard_error:.4f}"
        if high > low:
            style: dict[str, Any] = {"bins": bins, "range": (low, high), "histtype": "stepfilled"}
            axes.hist(bits, **style, edgecolor=colour, facecolor=(*colour[:3], 0.15))
        axes.axvline(summary.bits_per_dim, color=colour, linestyle="--", label=text)
    axes.set_xlabel("bits per dimension")
    axes.set_ylabel("samples")
    axes.legend(fontsize=8)


def _terms(axes: Axes, table: StepTable) -> None:
    """Draw the terms L_1, L_2 …, which are positive, on logarithmic axes."""
    bits = table.bits_per_dim
    shown = [k for k in range(1, len(bits)) if float(bits[k]) > 0]
    axes.plot(shown, bits[shown].tolist(), ".", color="0.7", markersize=3)
    means = [(k, mean) for k, mean in _stretches(table) if mean > 0]
    if means:
        axes.plot(*zip(*means, strict=True), color="C0")
    if shown:  # few draws may leave none above 0
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel("k")
    axes.set_ylabel("$L_k$, bits per dimension")
    axes.grid(visible=True, which="major", alpha=0.3)


def _stretches(table: StepTable) -> list[tuple[float, float]]:
    """Return the mean term of each of some thirty stretches of steps, at its middle."""
    n = len(table.number)
    edges = sorted({round(n ** (i / 30)) for i in range(31)})
    found = []
    for first, last in pairwise(edges):
        number = float(table.number[first:last].sum())
        if number:
            mean = float(table.total[first:last].sum()) / number
            found.append((math.sqrt(first * (last - 1)), mean / (table.dimension * math.log(2))))
    return found


def _slopes(axes: Axes, lines: Sequence[tuple[str, Convergence]], order: float) -> None:
    """Draw errors against steps, and the slope that all of them should have."""
    from matplotlib import colormaps

    for i, (name, found) in enumerate(lines):
        kept = [(n, e) for n, e in zip(found.steps, found.errors, strict=True) if e > 0]
        axes.plot(
            *zip(*kept, strict=True), label=name if len(name) < 45 else f"{name[:42]}…",
            color=colormaps["tab20"](i), marker=_MARKERS[i % len(_MARKERS)], markersize=4,
            linewidth=1,
        )  # fmt: skip
    steps = sorted({n for _, found in lines for n in found.steps})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(*axes.get_ylim())
    low, high = axes.get_ylim()
    guide = [math.sqrt(low * high) * (n * n / steps[0] / steps[-1]) ** (-order / 2) for n in steps]
    axes.plot(steps, guide, "--", color="0.6", linewidth=2, zorder=0, label=f"$n^{{-{order:g}}}$")
    _plain_ticks(axes, steps)
    axes.yaxis.set_major_formatter("{x:.0e}")
    axes.set_xlabel("steps n")
    axes.set_ylabel("error")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)


def _names(rows: Sequence[Row]) -> list[str]:
    """Return the solvers: first those that draw, then the others."""
    ordered = sorted(rows, key=lambda row: row.error is not None)
    return list(dict.fromkeys(row.solver for row in ordered))


def _figure(width: float, height: float) -> Figure:
    # A Figure of its own, not pyplot's: no display, no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: str | Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))


def _cell(axes: Axes, x: Tensor | None, limit: float, title: str, below: str) -> None:
    if x is None:
        return
    axes.axis("on")
    _draw(axes, x[:_TILES] if x.ndim > 2 else x, limit)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(below, fontsize=8, labelpad=2)


def _draw(axes: Axes, x: Tensor, limit: float | None) -> None:
    values = x.detach().cpu().float()
    if values.ndim > 2:
        axes.imshow(tiles(values).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.axis("off") if limit is None else None
    elif values.shape[1] == 1:
        axes.hist(values[:, 0].numpy(), bins=50)
    else:
        points = values[:_POINTS]
        axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=2, alpha=0.5, linewidths=0)
        axes.set_aspect("equal")
        if limit is not None:
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)


def tiles(x: Tensor) -> Tensor:
    """Return images as one, nearly square, with a gap of one pixel; [−1, 1] becomes [0, 1].

    Shapes: (B, H, W) or (B, 1 or 3, H, W) → (rows·(H+1) − 1, columns·(W+1) − 1[, 3]).
    Errors: ValueError for another shape.

    >>> tiles(torch.ones(3, 1, 2, 2)).shape
    torch.Size([5, 5])
    """
    images = x[:, None] if x.ndim == 3 else x
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise wrong_value("picture", "x", "hold images (B, 1 or 3, H, W), or vectors (B, D)",
                          tuple(x.shape), "choose what to draw")  # fmt: skip
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    # The gaps are white, so that dark images stay apart.
    cells = torch.ones(rows * columns, channels, height + 1, width + 1)
    cells[:count, :, :height, :width] = (0.5 * images + 0.5).clamp(0, 1)
    cells = cells.reshape(rows, columns, channels, height + 1, width + 1)
    whole = cells.permute(0, 3, 1, 4, 2).reshape(rows * (height + 1), columns * (width + 1), -1)
    return whole[:-1, :-1].squeeze(-1)


def _curves(
    axes: Axes, comparison: Comparison, names: list[str], value: Callable[[Row], Interval | None]
) -> None:
    from matplotlib import colormaps

    colours, bars = colormaps["tab10"], list[tuple[Any, ...]]()
    for i, name in enumerate(names):
        rows = [row for row in comparison.rows if row.solver == name]
        found = [(row.nfe, v) for row in rows if (v := value(row)) is not None]
        if not found:
            continue
        means, high = [v.mean for _, v in found], [v.half_width for _, v in found]
        # On a logarithmic axis a bar must end above 0.
        low = [min(half, 0.99 * mean) for mean, half in zip(means, high, strict=True)]
        style: dict[str, Any] = {
            "color": colours(i % 10), "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": "-" if rows[0].error is not None else "--",
        }  # fmt: skip
        nfe = [n for n, _ in found]
        axes.plot(nfe, means, label=name, markersize=5, linewidth=1.2, **style)
        bars.append((nfe, means, [low, high], style["color"]))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(*axes.get_ylim())  # fixed before the bars, which would squeeze the curves
    for x, y, sides, colour in bars:
        axes.errorbar(x, y, yerr=sides, fmt="none", elinewidth=0.8, alpha=0.5, ecolor=colour)
    axes.grid(visible=True, which="major", alpha=0.3)
    _plain_ticks(axes, sorted({row.nfe for row in comparison.rows}))


def _plain_ticks(axes: Axes, numbers: list[int]) -> None:
    """Label the evaluations that were used, leaving out those that would overlap."""
    shown: list[int] = []
    for number in numbers:
        if not shown or number > 1.35 * shown[-1]:
            shown.append(number)
    if len(numbers) == 1:  # an axis of one number has no width of its own
        axes.set_xlim(numbers[0] / 2, numbers[0] * 2)
    axes.set_xticks(shown, [str(number) for number in shown])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(_number)
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(_number if high < 10 * low else "")


def _number(value: float, _position: object) -> str:
    return f"{value:g}"


def _floor(axes: Axes, comparison: Comparison) -> None:
    floor = comparison.floor_sliced_wasserstein
    low, high = axes.get_ylim()
    bottom = max(floor.mean - floor.half_width, 1e-3 * floor.mean)
    axes.axhspan(bottom, floor.mean + floor.half_width, color="0.85", zorder=0)
    axes.axhline(floor.mean, color="0.45", linestyle=":", label="noise floor")
    # All of the line, but not all of the band, which may reach far down.
    axes.set_ylim(min(0.9 * low, 0.8 * floor.mean), max(high, 1.2 * floor.mean))
