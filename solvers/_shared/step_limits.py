"""Where solvers that choose their own steps give up."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion._check import Reason, diverged, wrong_value
from sde_diffusion._tensors import rms
from sde_diffusion._watch import DivergedError, of_first, samples


class Sized(Protocol):
    """Where the samples of a batch are, and their next step sizes.

    Shapes: both (B,), float64.
    """

    t: Tensor
    h: Tensor


def check_tolerance(what: str, x: Tensor, rtol: float, atol: float) -> None:
    """Refuse tolerances that the rounding of the states themselves exceeds.

    That is √(mean((ε x/(atol + rtol |x|))²)) > 1 of a sample, ε the unit roundoff of x's dtype.

    Arguments:
        what: the solver that refuses.
        x: the first states, (B, *event).
        rtol: the tolerance relative to the state.
        atol: the absolute tolerance.
    """
    roundoff = 0.5 * torch.finfo(x.dtype).eps
    if bool((rms(roundoff * x / (atol + rtol * x.abs())) > 1).any()):
        raise wrong_value(
            what,
            "rtol, atol",
            f"allow more than the rounding of x, {roundoff:.3g} of it in {x.dtype}",
            f"{rtol:g}, {atol:g}",
            "raise them, or pass x.double() to a score that takes it",
        )


def too_many(
    what: str, max_steps: int, p: Sized, active: Tensor, evaluations: float
) -> FloatingPointError:
    """Return the error of steps without end.

    Arguments:
        what: the solver's name.
        max_steps: the most tries between two times of the grid.
        p: where the samples are.
        active: the samples still on their way, (n,), int64.
        evaluations: those of a try, at most.
    """
    first = active[0]
    left = torch.zeros_like(p.t, dtype=torch.bool).index_fill(0, active, value=True)
    error = diverged(
        what,
        "steps",
        f"number at most max_steps={max_steps} between two times of the grid",
        Reason(
            f"more, of up to {evaluations:g} evaluations each, by {samples(left)} at "
            f"t = {float(p.t[first]):.6g} with a next step of {float(p.h[first]):.3g}"
        ),
        "raise rtol and atol, or max_steps where the score is smooth, or use fixed steps",
    )
    return DivergedError(str(error), left, f"more than max_steps={max_steps} steps")


def check_steps(what: str, argument: str, p: Sized, i: Tensor, t: Tensor, least: float) -> None:
    """Refuse step sizes that are too small or NaN.

    Arguments:
        what: the solver that refuses.
        argument: the function whose values the error blames.
        p: the batch, with the next step sizes.
        i: the samples that tried a step, (n,), int64.
        t: their times before it, (n,).
        least: the smallest step size allowed.
    """
    small = ~(p.h[i] >= least)  # NaN too
    if bool(small.any()):
        where = float(t[small.nonzero()[0, 0]])
        stuck = torch.zeros_like(p.t, dtype=torch.bool).index_fill(0, i[small], value=True)
        why = f"a step below {least:g} at t = {where:.6g}"
        error = diverged(
            what,
            argument,
            "be finite and smooth",
            f"{why} in {samples(stuck)}",
            "move the ends of the grid, or raise rtol and atol",
        )
        raise DivergedError(str(error), stuck, of_first(why, stuck))
