"""A progress bar for those who ask for one: the library prints nothing of its own accord."""

from __future__ import annotations

from typing import Any


def bar(total: int, unit: str, *, shown: bool) -> Any:  # noqa: ANN401  (tqdm has no types)
    """Return a bar on standard error or, in a notebook, below the cell; nothing unless ``shown``.

    Arguments:
        total: how many units there are.
        unit: what is counted.
        shown: whether there is a bar at all.
    """
    from tqdm.auto import tqdm

    return tqdm(total=total, unit=f" {unit}", disable=not shown, dynamic_ncols=True)
