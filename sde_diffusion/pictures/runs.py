"""Pictures of training runs: the loss, the bound and the losses by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_diffusion.pictures._panels import log_ticks, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves_picture(lines: Sequence[Mapping[str, Any]], path: str | Path | None = None) -> Figure:
    """Return the learning curves of a run: loss, gradient norm, learning rate, evaluations.

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
    figure = new_figure(4.5 * columns, 3.2 * rows)
    free = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for name, title in (
        ("loss", "loss"),
        ("grad_norm", "gradient norm"),
        ("learning_rate", "learning rate"),
    ):
        points = [(line["step"], line[name]) for line in steps if line[name] is not None]
        _over_steps(next(free), points, title)
    if bounds:
        _bound_curve(next(free), bounds)
    if levels:
        _level_curves(next(free), levels)
    for axes in free:
        axes.axis("off")
    return save_figure(figure, path)


def _over_steps(axes: Axes, points: Sequence[tuple[int, float]], title: str) -> None:
    """Draw points against steps; on a logarithmic axis where all are positive and some large."""
    values = [value for _, value in points]
    style = "." if len(points) == 1 else "-"
    axes.plot([step for step, _ in points], values, style, linewidth=1)
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(visible=True, which="major", alpha=0.3)


def _bound_curve(axes: Axes, bounds: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    steps = [step for step, _ in bounds]
    bits = [e["bits_per_dim"] for _, e in bounds]
    errors = [e.get("standard_error", 0.0) for _, e in bounds]
    axes.errorbar(steps, bits, yerr=errors, fmt=".-", linewidth=1, elinewidth=0.8, capsize=2)
    best = min(range(len(bits)), key=bits.__getitem__)
    axes.plot(
        steps[best],
        bits[best],
        "o",
        fillstyle="none",
        markersize=10,
        label=f"best {bits[best]:.4f}",
    )
    axes.set_title("held-out bound, bits per dimension")
    axes.set_xlabel("step")
    axes.legend(fontsize=8)
    axes.grid(visible=True, which="major", alpha=0.3)


def _level_curves(axes: Axes, levels: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    ends = [levels[0], levels[-1]] if len(levels) > 1 else [*levels]
    for (step, e), colour in zip(ends, ("0.6", "C0")[-len(ends) :], strict=True):
        axes.plot(e["lambda"], e["loss"], ".-", color=colour, linewidth=1, label=f"step {step}")
    axes.set_yscale("log")
    log_ticks(axes.yaxis)
    axes.set_title("held-out loss by noise level")
    axes.set_xlabel("$\\lambda = \\log(\\alpha/\\sigma)$")
    axes.legend(fontsize=8)
    axes.grid(visible=True, which="major", alpha=0.3)
