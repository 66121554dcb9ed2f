"""What solvers with a step size for every sample share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion._tensors import expand
from sde_diffusion.solvers._shared.step_limits import Sized, too_many


class Moving(Sized, Protocol):
    """Where samples are and their steps so far, with how many steps the batch has tried.

    Shapes: accepted, rejected (B,) int64.
    """

    accepted: Tensor
    rejected: Tensor
    tries: int


def under_way(
    what: str, p: Moving, stop: float, max_steps: int, evaluations: float
) -> Iterator[Tensor]:
    """Yield the samples still on their way, to be tried a step each, until all are at ``stop``.

    Arguments:
        what: the solver's name, for the error.
        p: where the samples are.
        stop: the time to come to, in [0, 1].
        max_steps: the most tries on the way there.
        evaluations: those of a try, at most.

    Errors: FloatingPointError where the steps become too many.
    """
    active = (p.t != stop).nonzero()[:, 0]
    most = p.tries + max_steps
    while len(active) and p.tries < most:
        yield active
        p.tries += 1
        active = active[p.t[active] != stop]
    if len(active):
        raise too_many(what, max_steps, p, active, evaluations)


def growth(error: Tensor, power: float | Tensor) -> Tensor:
    """Return the next step size in units of this one, .9 E^{−power}; .2 where E is not finite."""
    # Not E ** −power, which rounds otherwise in a batch than alone.
    factor = 0.9 * torch.exp(-power * error.clamp(min=1e-10).log())
    return torch.where(error.isfinite(), factor, 0.2)


def settle(p: Moving, i: Tensor, good: Tensor, s: Tensor) -> None:
    """Move samples on to their new times where their step is good, and count the steps.

    Arguments:
        p: the batch, which is changed.
        i: the samples that tried a step, (n,), int64.
        good: whether their step is accepted, (n,), bool.
        s: the times to which the steps go, (n,), float64.
    """
    p.t[i] = torch.where(good, s, p.t[i])
    p.accepted[i] += good
    p.rejected[i] += ~good


def kept(old: Tensor, i: Tensor, good: Tensor, new: Tensor) -> Tensor:
    """Return the rows of the batch with those replaced whose step is good.

    Arguments:
        old: the rows of the whole batch, (B, *event).
        i: the samples that tried a step, (n,), int64.
        good: whether their step is accepted, (n,), bool.
        new: what takes the place of their rows, (n, *event).
    """
    # A copy, not a write in place: a graph back to the start must survive.
    return old.index_copy(0, i, torch.where(expand(good, new).bool(), new, old[i]))
