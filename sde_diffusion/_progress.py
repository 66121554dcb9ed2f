"""A progress bar for those who ask for one: the library prints nothing of its own accord."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def bar(total: int, unit: str, *, shown: bool) -> Any:  # noqa: ANN401  (tqdm has no types)
    """Return a bar on standard error or, in a notebook, below the cell; nothing unless ``shown``.

    Arguments:
        total: how many units there are.
        unit: what is counted.
        shown: whether there is a bar at all.
    """
    from tqdm.auto import tqdm

    return tqdm(total=total, unit=f" {unit}", disable=not shown, dynamic_ncols=True)


@contextmanager
def way(first: float, last: float, *, shown: bool) -> Iterator[Callable[[Tensor], object]]:
    """Give a function that is told the times of a solve, and show how much of the way is done.

    That is what the slowest sample has behind it, in per cent, whatever steps it takes.

    Arguments:
        first: the first time of the solve.
        last: its last time.
        shown: whether there is a bar at all.
    """
    with bar(100, "%", shown=shown) as done:

        def see(t: Tensor) -> None:
            part = 100 * (t.detach() - first) / (last - first)
            done.update(max(0, round(float(part.min())) - done.n))

        yield see if shown else _nothing
        done.update(100 - done.n)


def _nothing(_t: Tensor) -> None:
    """Do nothing: nobody looks."""
