"""A solve that stops where its network is asked for, and goes on when somebody answers.

A solver calls its score in the middle of a step, and no thread waits there. The first question
without an answer raises out of the step. When the answer has come the step of a `OneStep` is run
once more from its beginning, on a tape of the answers and normals that it had; another solver,
which remembers earlier steps, is run from the start, n² steps in all. Where a question is at a
state that the solver has just yielded, the solver is left alone there and nothing is run twice: so
a multistep solver keeps one evaluation and one pass a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion._tensors import expand
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.exchange.plan import PlannedEvaluation
from sde_diffusion.forms import converted
from sde_diffusion.integration import dynamics_for
from sde_diffusion.multistep import Multistep
from sde_diffusion.noise import Noise
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import OneStep, Solver


class _Unanswered(Exception):
    """A question to which there is no answer yet."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


@final
class _Tape:
    """Tensors in their order, which are played once more after `rewind`."""

    def __init__(self) -> None:
        self.values = list[Tensor]()
        self.place = 0

    def play(self, make: Callable[[], Tensor]) -> Tensor:
        """Return the next tensor, a new one at the end of the tape."""
        if self.place == len(self.values):
            self.values.append(make())
        self.place += 1
        return self.values[self.place - 1].clone()

    def clear(self) -> None:
        """Forget all tensors."""
        self.values.clear()
        self.place = 0


@final
class _Replayed(Noise):
    """A noise whose draws are kept on a tape."""

    def __init__(self, inner: Noise, tape: _Tape) -> None:
        self.inner = inner
        self.tape = tape

    def normal(self, x: Tensor) -> Tensor:
        return self.tape.play(lambda: self.inner.normal(x))


@final
class _Asking(ScoreLike):
    """The score whose network answers from a tape, or not yet."""

    prediction: str
    predicts = True
    row_by_row = True

    def __init__(self, sde: LinearSDE, prediction: str, device: torch.device) -> None:
        self.sde = sde
        self.prediction = prediction
        self._device = device
        self.answers = _Tape()

    @property
    def device(self) -> torch.device:
        return self._device

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.predict("eps", x, t, self._levels(x, t)) / expand(
            -self.linear_sde().sigma(t), x
        )

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:  # noqa: ARG002
        def ask() -> Tensor:
            raise _Unanswered(x)

        return converted(form, self.prediction, self.answers.play(ask), x, at)


@final
class PausedSolve:
    """A solve between two evaluations of its network, which somebody else computes.

    ``x`` is the state at which the network is to be evaluated, at the time of
    ``plan[answered]``, and the end of the solve once ``done``.

    Arguments:
        solver: a solver with fixed steps.
        sde: variance-preserving, whose dynamics are solved.
        prediction: what the network's output means, a key of `FORMS`.
        plan: the `evaluations` of the solve.
        x: the start; (B, *event).
        grid: the times of the solve, falling.
        noise: every random draw of the solver.
    """

    def __init__(
        self,
        solver: Solver[Any],
        sde: LinearSDE,
        prediction: str,
        plan: list[PlannedEvaluation],
        x: Tensor,
        grid: Tensor,
        noise: Noise,
    ) -> None:
        self.solver = solver
        self.plan = plan
        self.grid = grid
        self.x = x
        self.answered = 0
        self._score = _Asking(sde, prediction, x.device)
        self._draws = _Tape()
        self._noise = _Replayed(noise, self._draws)
        self._dynamics = dynamics_for(solver, sde, self._score)
        if self._dynamics.coefficients is not None:
            self._dynamics.coefficients.tabulate(grid)
        self._last_inside = max((i for i, e in enumerate(plan) if not e.at_state), default=-1)
        self._begin(x, 0)

    @property
    def done(self) -> bool:
        """Whether there is nothing more to answer, so that ``x`` is the end."""
        return self.answered == len(self.plan)

    @property
    def editable(self) -> bool:
        """Whether the state may be another one than ``x``: nothing of the step is computed yet."""
        if not self.plan[self.answered].at_state:
            return False
        if isinstance(self.solver, Multistep):
            return self.answered > self._last_inside  # else it is begun again from the start
        return isinstance(self.solver, OneStep)

    def edit(self, x: Tensor) -> None:
        """Go on from another state, where that is `editable`."""
        if isinstance(self.solver, Multistep):
            self.x.copy_(x)  # what it has yielded, it reads when the next step begins
        else:
            self.x = x
            self._begin(x, self._step)

    def answer(self, output: Tensor) -> None:
        """Take the network's output at ``x`` and go on to the next question, or to the end."""
        self._score.answers.values.append(output)
        self.answered += 1
        while True:
            try:
                state = next(self._walk)
            except _Unanswered as asked:  # in the middle of a step, which is run again
                self._check_asked()
                self.x = asked.x
                self._begin(*self._from)
                return
            except StopIteration:
                return
            self._reach(state)
            if self._waits():
                return

    def _check_asked(self) -> None:
        """Refuse a question that the plan does not have there."""
        if self.done or self.plan[self.answered].at_state:
            raise wrong_value(
                type(self.solver).__name__,
                "evaluations",
                f"be the {len(self.plan)} at known times, whatever the states are",
                f"another one after {self.answered}",
                "pass a solver whose steps do not depend on the states",
            )

    def _waits(self) -> bool:
        """Return whether the next question is at the state just reached."""
        if self.done:
            return False  # there may be states to come that need no network
        ahead = self.plan[self.answered]
        return ahead.at_state and ahead.step == self._step

    def _reach(self, state: Tensor) -> None:
        self._step += 1
        self.x = state
        alone = isinstance(self.solver, OneStep)
        answers = self._score.answers
        played = answers.place == len(answers.values)
        if played and (alone or self.answered > self._last_inside):
            # Nothing before this state is run again.
            answers.clear()
            self._draws.clear()
        if alone:
            self._begin(state, self._step)

    def _begin(self, x: Tensor, step: int) -> None:
        """Start the solver at grid[step], with the tapes at their beginnings."""
        self._from = (x, step)
        self._step = step
        self._score.answers.place = 0
        self._draws.place = 0
        rest = self.grid[step:]
        steps = [] if len(rest) < 2 else self.solver.steps(self._dynamics, x, rest, self._noise)
        self._walk = iter(steps)
