"""What is looked at after every step of a solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import Reason, a_function, diverged, wrong_type, wrong_value

Callback = Callable[[int, Tensor, Tensor], object]  # (step from 1, its time, its state)

_CHECK_EVERY: Final = 64  # steps between looks for a non-finite state; each look waits for the GPU
_NAMED: Final = 5  # samples that an error names by their numbers


@final
class DivergedError(FloatingPointError):
    """A solve that ended because samples left the finite numbers, or could not go on.

    Arguments:
        message: what is said of all.
        ill: which samples of the batch they are, none where that is unknown; (B,), bool.
        why: what happened to them, and where.

    >>> DivergedError("x must stay finite", torch.tensor([False, True]), "NaN at step 3").why
    'NaN at step 3'
    """

    def __init__(self, message: str, ill: Tensor, why: str) -> None:
        super().__init__(message)
        self.ill = ill
        self.why = why


@final
class Watch:
    """Sees every state: its form, whether it is finite, and that the callback gets a copy.

    It looks for the first non-finite state without waiting for the GPU at every step.
    """

    def __init__(self, solver: str, x: Tensor, grid: Tensor, callback: Callback | None) -> None:
        if callback is not None:
            form = "(step, t, x)"
            a_function("integrate", "callback", callback, form, "drop it, or pass a function")
        self.solver = solver
        self.shape = x.shape
        self.dtype = x.dtype
        self.grid = grid
        self.callback = callback
        self.count = 0
        self.summed = torch.promote_types(x.dtype, torch.float32)
        self.sums = list[Tensor]()  # of the states not looked at
        self.last = x

    def see(self, x: Tensor, *, denoised: bool = False) -> None:
        """Take the state after a step along the grid, or the denoised one at time 0."""
        self._check_form(x)
        if self.count == len(self.grid) - 1 and not denoised:
            raise self._miscounted("more")
        self.count += 1
        self.last = x.detach()
        self.sums.append(self.last.sum(dtype=self.summed))
        if len(self.sums) == _CHECK_EVERY:
            self.look()
        if self.callback is not None:
            t = torch.zeros_like(self.grid[-1]) if denoised else self.grid[self.count].clone()
            # What a callback changes in place is its own, not the solve's.
            self.callback(self.count, t, x.clone())

    def look(self) -> None:
        """Refuse a state that was not finite."""
        if not self.sums:
            return
        bad = ~torch.isfinite(torch.stack(self.sums))
        if bool(bad.any()):
            step = self.count - len(self.sums) + int(bad.nonzero()[0]) + 1
            t = float(self.grid[min(step, len(self.grid) - 1)])
            ill = ~torch.isfinite(self.last).flatten(1).all(1)
            where = f" in {samples(ill)}" if bool(ill.any()) else ""
            why = f"NaN or infinity at step {step} (t = {t:.6g})"
            remedy = "use more steps, or move the ends of the grid"
            if t == 0:  # where sigma is 0, and with it the score infinite
                remedy = "end the grid above t = 0, or use DDIM() or AngularAdams()"
            if bool(ill.any()) and not bool(ill.all()):
                remedy = f"{remedy}; sample_finite keeps the others"
            error = diverged("integrate", "x", "stay finite", Reason(f"{why}{where}"), remedy)
            raise DivergedError(str(error), ill, of_first(why, ill))
        self.sums.clear()

    def check_end(self) -> None:
        """Refuse a solve without any state; one that yields its end alone is a solver too."""
        if self.count == 0:
            raise self._miscounted("none")

    def _miscounted(self, got: str) -> ValueError:
        return wrong_value(
            self.solver,
            "steps",
            f"yield a state after each of the {len(self.grid) - 1} steps, or the last alone",
            got,
            "yield x after each step",
        )

    def _check_form(self, x: object) -> None:
        """Refuse what a step must not return."""
        if not isinstance(x, Tensor):
            raise wrong_type(
                self.solver,
                "state",
                "be a tensor after a step",
                type(x).__name__,
                "return the state at s",
            )
        if x.shape != self.shape or x.dtype != self.dtype:
            raise wrong_value(
                self.solver,
                "state",
                f"keep the shape {tuple(self.shape)} and {self.dtype} of x in a step",
                f"{tuple(x.shape)} and {x.dtype}",
                "return every sample's state at s; a velocity or drift in x's dtype",
            )


def of_first(why: str, bad: Tensor) -> str:
    """Return what happened to the first of the samples that a mask (B,) marks, as such."""
    count = int(bad.sum())
    return why if count < 2 else f"{why} in the first of {count} samples"


def samples(bad: Tensor) -> str:
    """Return in words how many samples a mask (B,) marks and which, as "2 of 8 samples (1, 5)"."""
    index = bad.nonzero()[:, 0].tolist()
    first = ", ".join(map(str, index[:_NAMED]))
    return f"{len(index)} of {len(bad)} samples ({first}{', …' if len(index) > _NAMED else ''})"
