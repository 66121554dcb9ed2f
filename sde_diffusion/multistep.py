"""Multistep solvers of linear SDEs: a step is x_s = a x_t + Σ_j b_j m_j + c z.

The m_j are the score model's last predictions in one form, eps, x0 or v = alpha eps − sigma x0,
newest first. A method is its numbers a, b_j and c; the loop, the counting of steps, the history
and the last step are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor

from sde_diffusion._shown import shown
from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ProbabilityFlow, ReverseSDE, linear
from sde_diffusion.forms import FORMS, turned
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver

LinearT = TypeVar("LinearT", bound="ReverseSDE | ProbabilityFlow")


class Step(NamedTuple):
    """The numbers of one step: of the state, of the predictions newest first, of the normal.

    >>> Step(0.5, [1.0, -0.5])  # x_s = ½ x_t + m_0 − ½ m_1
    Step(a=0.5, b=[1.0, -0.5], c=0.0)
    """

    a: float
    b: Sequence[float]
    c: float = 0.0

    def __repr__(self) -> str:
        return shown(self)


class Multistep(Solver[LinearT], ABC, Generic[LinearT]):
    """A solver whose step combines the state and the last predictions; one evaluation a step.

    A subclass gives `predictor`, and `corrector` if the prediction at the end of a step first
    improves that step before it serves the next one (P-E-C: no extra evaluation). ``form`` says
    which prediction is combined, ``memory`` how many at most. The first ``starters`` steps may be
    other one-step methods, see `start`.

    No prediction is asked for at the grid's last time. Where sigma is 0 there, the last step is
    x_s = alpha_s x0, by the state and the last prediction, whatever the method: no polynomial
    reaches lambda = ∞. Nor does one reach −∞: from pure noise the first step of a method of eps or
    x0 is `from_noise`, and the method starts after it.
    """

    form: ClassVar[str]
    evaluations: ClassVar[float] = 1

    @property
    @abstractmethod
    def memory(self) -> int:
        """The largest number of predictions that a step combines."""

    def starters(self, at: Sequence[Level]) -> int:  # noqa: ARG002
        """Return the number of first steps that `start` makes."""
        return 0

    @abstractmethod
    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:
        """Return the step from at[i] to at[i+1], of predictions at at[i], at[i−1], …."""

    def corrector(self, at: Sequence[Level], i: int, noise_scale: float) -> Step | None:  # noqa: ARG002
        """Return the step from at[i−1] to at[i] once more, of predictions at at[i], at[i−1], ….

        Its a and c are the predictor's. None corrects nothing.
        """
        return None

    def start(
        self, dynamics: LinearT, x: Tensor, m: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> Tensor:
        """Return the state at s of one of the first ``starters`` steps; m is the prediction at t.

        It may evaluate more, to start with the accuracy that the order needs.

        Arguments:
            dynamics: the reverse SDE or the probability flow.
            x: the state at t; (B, *event).
            m: the prediction at (x, t); (B, *event).
            t: the time of x; (), float64.
            s: the time to go to; (), float64.
            noise: every random draw of the step.
        """
        raise NotImplementedError

    def predict(self, dynamics: LinearT, x: Tensor, t: Tensor, at: Level) -> Tensor:
        """Return the prediction m that the steps combine; one evaluation.

        Arguments:
            dynamics: the reverse SDE or the probability flow.
            x: the state at t; (B, *event).
            t: the time of x; (), float64.
            at: alpha, sigma and lambda at t.
        """
        return dynamics.score.predict(self.form, x, t, at)

    def denoised(self, at: Level) -> tuple[float, float]:
        """Return p and q of E[x0 | x] = p x + q m."""
        p, q = FORMS[self.form]["x0"](at.alpha, at.sigma)
        return float(p), float(q)

    def steps(self, dynamics: LinearT, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid, each before its correction."""
        known = linear(type(self).__name__, dynamics)
        if self.form != "v" and known.level(grid[0]).pure_noise:
            x = from_noise(dynamics, x, grid[0], grid[1], noise)
            yield x
            grid = grid[1:]
        at = [known.level(t) for t in grid]
        scale = float(dynamics.noise_scale)
        starters = self.starters(at)
        made: Step | None = None  # the predictor's last step
        history = list[Tensor]()
        for i, (t, s) in enumerate(pairwise(grid)):
            m = self.predict(dynamics, x, t, at[i])
            # One more than a step combines: what a correction takes back may be as old.
            history = [m, *history[: self.memory]]
            change = [] if made is None else _change(made, self.corrector(at, i, scale))
            made = None
            z = None
            if at[i + 1].sigma == 0:
                p, q = self.denoised(at[i])
                step = Step(at[i + 1].alpha * p, [at[i + 1].alpha * q])
            elif i < starters:
                x = self.start(dynamics, x, m, t, s, noise)
                yield x
                continue
            else:
                made = step = self.predictor(at, i, scale)
                z = noise.unit(x, t, s) if step.c else None
            x = _combined(x, _after(change, step), history, z)
            yield x


def from_noise(
    dynamics: ReverseSDE | ProbabilityFlow, x: Tensor, t: Tensor, s: Tensor, noise: Noise
) -> Tensor:
    """Return alpha_s x0 + sigma_s eps by the x0 at pure noise: a step of first order.

    eps is what x is made of for a flow, as in the DDIM, and drawn afresh for a reverse SDE, as in
    the DDPM.

    Arguments:
        dynamics: the reverse SDE or the probability flow.
        x: the state at t; (B, *event).
        t: the time of x; (), float64.
        s: the time to go to; (), float64.
        noise: the draw of a reverse SDE.
    """
    known = linear("from_noise", dynamics)
    at = known.level(t)
    to = known.level(s)
    v = dynamics.score.predict("v", x, t, at)
    if dynamics.noise_scale == 0 or to.sigma == 0:
        return turned(x, v, at, to.alpha, to.sigma)
    return turned(x, v, at, to.alpha, 0.0).add_(noise.unit(x, t, s), alpha=to.sigma)


def _change(made: Step, again: Step | None) -> list[float]:
    """Return what the corrector adds to the state, by prediction, newest first."""
    if again is None:
        return []
    return [c - p for c, p in zip_longest(again.b, (0.0, *made.b), fillvalue=0.0)]


def _after(change: Sequence[float], step: Step) -> Step:
    """Return the step from the state as corrected: one pass over the predictions, not two."""
    if not change:
        return step
    b = [step.a * d + w for d, w in zip_longest(change, step.b, fillvalue=0.0)]
    return Step(step.a, b, step.c)


def _combined(x: Tensor, step: Step, history: Sequence[Tensor], z: Tensor | None) -> Tensor:
    found = x * step.a
    for weight, m in zip(step.b, history, strict=False):  # the oldest may go unused
        found.add_(m, alpha=weight)
    return found if z is None or not step.c else found.add_(z, alpha=step.c)
