"""Multistep solvers of linear SDEs: a step is x_s = a x_t + Σ_j b_j m_j + c z.

The m_j are the score model's last predictions in one form, eps, x0 or v = alpha eps − sigma x0,
newest first. A method is its numbers a, b_j and c; the loop, the counting of steps, the history
and the last step are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor

from sde_diffusion.coefficients import Level
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ProbabilityFlow, ReverseSDE, linear
from sde_diffusion.score import FORMS

LinearT = TypeVar("LinearT", bound="ReverseSDE | ProbabilityFlow")


class Step(NamedTuple):
    """The numbers of one step: of the state, of the predictions newest first, of the normal."""

    a: float
    b: Sequence[float]
    c: float = 0.0


class Multistep(ABC, Generic[LinearT]):
    """A solver whose step combines the state and the last predictions; one evaluation a step.

    A subclass gives `predictor`, and `corrector` if the prediction at the end of a step first
    improves that step before it serves the next one (P-E-C: no extra evaluation). ``form`` says
    which prediction is combined, ``memory`` how many at most. The first ``starters`` steps may be
    other one-step methods, see `start`.

    No prediction is asked for at the grid's last time. Where sigma is 0 there, the last step is
    x_s = alpha_s E[x0 | x_t] whatever the method: no polynomial reaches lambda = ∞.
    """

    dynamics: ClassVar[type[Any]]
    form: ClassVar[str]
    evaluations: ClassVar[int] = 1

    @property
    @abstractmethod
    def memory(self) -> int:
        """The largest number of predictions that a step combines."""

    @property
    def starters(self) -> int:
        """The number of first steps that `start` makes."""
        return 0

    @abstractmethod
    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:
        """Return the step from at[i] to at[i+1], of predictions at at[i], at[i−1], …."""

    def corrector(self, at: Sequence[Level], i: int, noise_scale: float) -> Step | None:  # noqa: ARG002
        """Return the step from at[i−1] to at[i] once more, of predictions at at[i], at[i−1], ….

        Its draw is the predictor's. None corrects nothing.
        """
        return None

    def start(
        self, dynamics: LinearT, x: Tensor, m: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> Tensor:
        """Return the state at s of one of the first ``starters`` steps; m is the prediction at t.

        It may evaluate more, to start with the accuracy that the order needs.
        """
        raise NotImplementedError

    def steps(
        self, dynamics: LinearT, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid, each before its correction."""
        known = linear(type(self).__name__, dynamics)
        at = [known.level(t) for t in grid]
        scale = float(getattr(dynamics, "noise_scale", 0.0))
        before, z, history = x, None, list[Tensor]()
        for i in range(len(grid) - 1):
            t, s = grid[i], grid[i + 1]
            m = dynamics.score.predict(self.form, x, t, at[i])
            history = [m, *history[: self.memory - 1]]
            if i > self.starters and (step := self.corrector(at, i, scale)) is not None:
                x = _combined(before, step, history, z)
            before, z = x, None
            if at[i + 1].sigma == 0:
                p, q = FORMS[self.form]["x0"](at[i].alpha, at[i].sigma)
                step = Step(at[i + 1].alpha * float(p), [at[i + 1].alpha * float(q)])
            elif i < self.starters:
                x = self.start(dynamics, x, m, t, s, noise)
                yield x
                continue
            else:
                step = self.predictor(at, i, scale)
                z = noise.unit(x, t, s) if step.c else None
            x = _combined(x, step, history, z)
            yield x


def _combined(x: Tensor, step: Step, history: Sequence[Tensor], z: Tensor | None) -> Tensor:
    found = x * step.a
    for weight, m in zip(step.b, history, strict=False):  # the oldest may go unused
        found.add_(m, alpha=weight)
    return found if z is None or not step.c else found.add_(z, alpha=step.c)
