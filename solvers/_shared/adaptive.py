"""What solvers with a step size for every sample share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sde_diffusion._tensors import expand
from sde_diffusion.solvers._shared.step_limits import Limits, Sized


class Moving(Sized, Protocol):
    """Where samples are, and how many steps the batch has tried.

    Shapes: told (B,), int64 or bool: what the next try asks of the last one, on the CPU.
    """

    tries: int

    @property
    def told(self) -> Tensor:
        """What is read of every sample after a try, together with all else."""


class Counted(Moving, Protocol):
    """A batch that counts the steps of every sample.

    Shapes: accepted, rejected (B,) int64.
    """

    accepted: Tensor
    rejected: Tensor


class Round(NamedTuple):
    """The samples that try a step, (n,) int64, and what the batch has told of them, on the CPU.

    Nothing is told before the first try: zeros.
    """

    i: Tensor
    told: Tensor


def under_way(limits: Limits, p: Moving, stop: float, intervals: int = 1) -> Iterator[Round]:
    """Yield the samples still on their way, to be tried a step each, until all are at ``stop``.

    A try is followed by one look at the batch, which waits for the GPU, and by no other.

    Arguments:
        limits: where the solver gives up.
        p: where the samples are; none is at ``stop``.
        stop: the time to come to, in [0, 1].
        intervals: of the grid on the way there.

    Errors: FloatingPointError where the steps become too many or too small.
    """
    active = torch.arange(len(p.t), device=p.t.device)
    told = torch.zeros(len(p.t), dtype=torch.int64)
    most = p.tries + limits.max_steps * intervals
    while len(active) and p.tries < most:
        yield Round(active, told)
        p.tries += 1
        small = ~(p.h[active] >= limits.least)  # NaN too
        seen = torch.stack([(p.t[active] != stop).long(), small.long(), p.told[active].long()])
        left, stuck, told = seen.cpu()
        if bool(stuck.any()):
            raise limits.too_small(p, marked(active, stuck.bool()))
        active = marked(active, left.bool())
        told = told[left.bool()]
    if len(active):
        raise limits.too_many(p, active)


def marked(i: Tensor, mask: Tensor) -> Tensor:
    """Return the samples that a mask on the CPU marks, without waiting for the GPU."""
    if bool(mask.all()):
        return i
    if not bool(mask.any()):
        return i[:0]
    return i[mask.nonzero()[:, 0].to(i.device, non_blocking=True)]


def growth(error: Tensor, power: float | Tensor) -> Tensor:
    """Return the next step size in units of this one, .9 E^{−power}; .2 where E is not finite."""
    # Not E ** −power, which rounds otherwise in a batch than alone.
    factor = 0.9 * torch.exp(-power * error.clamp(min=1e-10).log())
    return torch.where(error.isfinite(), factor, 0.2)


def settle(p: Counted, i: Tensor, good: Tensor, s: Tensor) -> None:
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
