"""What solvers with a step size for every sample share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sde_diffusion._check import diverged


class Moving(Protocol):
    """Where the samples of a batch are, t (B,), and how many steps the batch has tried."""

    t: Tensor
    tries: int


def carry(
    what: str, p: Moving, stop: float, max_steps: int, attempt: Callable[[Tensor], object]
) -> None:
    """Try steps, ``attempt`` taking the samples still on their way, until all are at ``stop``.

    Errors: FloatingPointError where the steps become too many.
    """
    active = (p.t != stop).nonzero()[:, 0]
    while len(active) and p.tries < max_steps:
        attempt(active)
        p.tries += 1
        active = active[p.t[active] != stop]
    if len(active):
        raise too_many(what, max_steps, p.t[active])


def too_many(what: str, max_steps: int, t: Tensor) -> FloatingPointError:
    """Return the error of steps without end, at the first of the times ``t``."""
    return diverged(what, "steps", f"number at most {max_steps}", f"more at t = {float(t[0]):.6g}",
                    "raise rtol and atol, or max_steps")  # fmt: skip


def check_steps(what: str, argument: str, h: Tensor, t: Tensor, least: float) -> None:
    """Refuse step sizes ``h`` below ``least``, or not numbers, of samples at the times ``t``."""
    small = ~(h >= least)  # NaN too
    if bool(small.any()):
        where = float(t[small.nonzero()[0, 0]])
        raise diverged(what, argument, "be finite and smooth",
                       f"a step below {least:g} at t = {where:.6g}",
                       "move the ends of the grid, or raise rtol and atol")  # fmt: skip
