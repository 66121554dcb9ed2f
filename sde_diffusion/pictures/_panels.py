"""Figures, axes and files: what all pictures share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sde_diffusion._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS: Final = "osD^vP*X<>"
LINES: Final = 12  # that one panel can tell apart


def new_figure(width: float, height: float) -> Figure:
    # A Figure of its own, not pyplot's: no display, no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))


def plain_ticks(axes: Axes, numbers: list[int]) -> None:
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
