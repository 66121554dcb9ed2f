"""Figures, axes and files: what all pictures share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sde_diffusion._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MARKERS: Final = "osD^vP*X<>"
LINES: Final = 12  # that one panel can tell apart


def new_figure(width: float, height: float) -> Figure:
    # A Figure of its own, not pyplot's: no display, no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path | None) -> Figure:
    """Write the figure as PNG, if it is given a path; return it, for a notebook."""
    if path is not None:
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return figure


def plain_ticks(axes: Axes, numbers: list[int]) -> None:
    """Label the evaluations that were used, leaving out those that would overlap."""
    shown: list[int] = []
    for number in numbers:
        if not shown or number > 1.35 * shown[-1]:
            shown.append(number)
    if len(numbers) == 1:  # an axis of one number has no width of its own, and warns of that
        axes.set_autoscalex_on(False)
        axes.set_xlim(numbers[0] / 2, numbers[0] * 2)
    axes.set_xticks(shown, [str(number) for number in shown])
    axes.set_xticks([], minor=True)


def log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis at no less than three places, whatever it spans.

    These are powers of ten; 1, 2 and 5 times these; or, on less than a decade or so, equidistant.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = sorted(axis.get_view_interval())
    if not 0 < low < high:
        return
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    if sum(low <= power <= high for power in powers) > 2:
        return  # matplotlib labels them well
    fine = [factor * power for power in powers for factor in (1, 2, 5)]
    places = [place for place in fine if low <= place <= high]
    if len(places) < 3:
        near = MaxNLocator(nbins=5, min_n_ticks=3).tick_values(low, high)
        places = [float(place) for place in near if low <= place <= high]
    axis.set_ticks(places, _labels(places))
    axis.set_minor_formatter("")


def _labels(places: list[float]) -> list[str]:
    """Return the numbers in as few digits as tell them apart, and as they are."""
    for digits in range(1, 16):
        labels = [f"{place:.{digits}g}" for place in places]
        if all(
            math.isclose(float(t), p, rel_tol=1e-9) for t, p in zip(labels, places, strict=True)
        ):
            break
    return labels
