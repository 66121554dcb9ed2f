"""Where solvers that choose their own steps give up."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Limits:
    """Where a solver gives up.

    Arguments:
        what: its name, for the error.
        argument: the function whose values the error blames for steps that become too small.
        max_steps: the most tries between two times of the grid.
        evaluations: those of a try, at most.
        least: the smallest step size.
    """

    what: str
    argument: str
    max_steps: int
    evaluations: float
    least: float

    def too_many(self, p: Sized, active: Tensor) -> FloatingPointError:
        """Return the error of steps without end of the samples still on their way, (n,) int64."""
        first = active[0]
        left = _mask(p, active)
        error = diverged(
            self.what,
            "steps",
            f"number at most max_steps={self.max_steps} between two times of the grid",
            Reason(
                f"more, of up to {self.evaluations:g} evaluations each, by {samples(left)} at "
                f"t = {float(p.t[first]):.6g} with a next step of {float(p.h[first]):.3g}"
            ),
            "raise rtol and atol, or max_steps where the score is smooth, or use fixed steps",
        )
        return DivergedError(str(error), left, f"more than max_steps={self.max_steps} steps")

    def too_small(self, p: Sized, stuck: Tensor) -> FloatingPointError:
        """Return the error of step sizes that are too small or NaN, of the samples (n,) int64."""
        left = _mask(p, stuck)
        why = f"a step below {self.least:g} at t = {float(p.t[stuck[0]]):.6g}"
        error = diverged(
            self.what,
            self.argument,
            "be finite and smooth",
            f"{why} in {samples(left)}",
            "move the ends of the grid, or raise rtol and atol",
        )
        return DivergedError(str(error), left, of_first(why, left))


def _mask(p: Sized, index: Tensor) -> Tensor:
    """Return where the samples ``index`` are among all: (n,) → (B,)."""
    return torch.zeros_like(p.t, dtype=torch.bool).index_fill(0, index, value=True)
