"""Pictures of likelihoods: their distribution over samples and their terms."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_diffusion.pictures._panels import log_ticks, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sde_diffusion.ddpm.discrete_bound import StepTable
    from sde_diffusion.evaluation.results import Evaluation


def likelihood_picture(found: Evaluation, title: str, path: str | Path | None = None) -> Figure:
    """Return histograms of the bits per dimension of samples, one for every bound.

    The terms of the discrete evidence lower bound are in a second panel: a point for each step
    that was drawn, and a line through the means over ranges of steps.
    """
    table = found.per_step()
    figure = new_figure(6.5 if table is None else 12.0, 3.8)
    left, *rest = figure.subplots(1, 1 if table is None else 2, squeeze=False)[0]
    _histograms(left, found)
    left.set_title(title)
    if table is not None:
        _terms(rest[0], table)
        parts = [found.term(f"vlb_{name}")[2] for name in ("prior", "diffusion", "reconstruction")]
        rest[0].set_title(
            "$L_T + \\Sigma L_k + L_0$ = {:.2g} + {:.4f} + ({:.4f})".format(*parts), fontsize=10
        )
    return save_figure(figure, path)


def _histograms(axes: Axes, found: Evaluation) -> None:
    """Draw a histogram for every bound, and a line at its mean."""
    from matplotlib import colormaps

    known = {bound: found.bits_per_dim(bound) for bound in found.bounds}
    columns = {bound: bits[bits.isfinite()].tolist() for bound, bits in known.items()}
    low, high = min(map(min, columns.values())), max(map(max, columns.values()))
    bins = max(10, min(50, len(found.index) // 8))
    for i, (bound, bits) in enumerate(columns.items()):
        summary = found.summary(bound)
        colour = colormaps["tab10"](i)
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
        log_ticks(axes.xaxis)
        log_ticks(axes.yaxis)
    axes.set_xlabel("k")
    axes.set_ylabel("$L_k$, bits per dimension")
    axes.grid(visible=True, which="major", alpha=0.3)


def _stretches(table: StepTable) -> list[tuple[float, float]]:
    """Return the mean term of each of about thirty ranges of steps, at its geometric middle."""
    n = len(table.number)
    edges = sorted({round(n ** (i / 30)) for i in range(31)})
    found = []
    for first, last in pairwise(edges):
        number = float(table.number[first:last].sum())
        if number:
            mean = float(table.total[first:last].sum()) / number
            found.append((math.sqrt(first * (last - 1)), mean / (table.dimension * math.log(2))))
    return found
