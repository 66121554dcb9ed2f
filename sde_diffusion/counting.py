"""Evaluations of the score, counted where they happen."""

from __future__ import annotations

from collections.abc import Iterator
from threading import get_ident
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Coefficients, Level, Levels
from sde_diffusion.scores import Score, ScoreLike, check_result, score_of
from sde_diffusion.sde import SDE, LinearSDE

if TYPE_CHECKING:
    from sde_diffusion.data.spec import DataSpec


class _Own:
    """What one thread counted."""

    __slots__ = ("calls", "tracked")

    def __init__(self) -> None:
        self.calls = 0
        self.tracked = True  # whether the last result, if any, came with a derivative in x


@final
class Counter:
    """A number of evaluations, for all that count together.

    Every thread counts on its own, so that threads lose no count of a score that they share, and
    a solve tells its own evaluations: the difference of `here` before and after.

    >>> counter = Counter()
    >>> score = counter.counting(lambda x, t: -x)
    >>> _ = score(torch.ones(1, 2), torch.tensor(1.0)), score(torch.ones(1, 2), torch.tensor(0.5))
    >>> counter.calls
    2
    """

    def __init__(self) -> None:
        self._threads: dict[int, _Own] = {}
        self.looked = False  # whether a score's way with (B,) times was looked at

    @property
    def own(self) -> _Own:
        """The count of this thread."""
        thread = get_ident()
        own = self._threads.get(thread)
        if own is None:
            own = self._threads[thread] = _Own()
        return own

    @property
    def calls(self) -> int:
        """The number of evaluations so far, of all threads."""
        return sum(own.calls for own in list(self._threads.values()))

    @property
    def here(self) -> int:
        """The number of evaluations so far of this thread."""
        return self.own.calls

    def count(self, calls: int = 1) -> None:
        """Count evaluations of this thread."""
        self.own.calls += calls

    def counting(self, function: Score) -> Score:
        """Return a function of (x, t) whose calls are counted here."""

        def counted(x: Tensor, t: Tensor) -> Tensor:
            self.count()
            return function(x, t)

        return counted


@final
class CountedScore(ScoreLike):
    """A score that counts its evaluations where they happen, with its SDE's coefficients.

    A user's score may take a ``(B,)`` time for B numbers along another dimension of x: where one
    has just that size, nothing would fail. So where it first meets such times it is evaluated
    once for different times and once for equal ones: the first row must be the same. Both count.

    Arguments:
        score: the score itself.
        counter: where its evaluations are counted; one of its own if not given.
        coefficients: of its SDE; made anew if not given, None for an SDE that is not linear.

    >>> from sde_diffusion import VPSDE
    >>> score = CountedScore.of("example", lambda x, t: -x, VPSDE())
    >>> x = torch.ones(1, 2)
    >>> _ = score(x, torch.tensor(1.0)), score(x, torch.tensor(0.5))
    >>> score.calls
    2
    """

    def __init__(
        self,
        score: ScoreLike,
        counter: Counter | None = None,
        coefficients: Coefficients | None = None,
    ) -> None:
        self.function = score
        self.sde = score.sde
        self.counter = Counter() if counter is None else counter
        made = Coefficients(score.sde) if isinstance(score.sde, LinearSDE) else None
        self.coefficients = made if coefficients is None else coefficients

    @classmethod
    def of(cls, what: str, score: Score | ScoreLike, sde: SDE) -> CountedScore:
        """Return the counted score of a model or function; one that counts already is itself."""
        found = score_of(what, score, sde)
        return found if isinstance(found, CountedScore) else cls(found)

    @property
    def calls(self) -> int:
        """The number of evaluations so far."""
        return self.counter.calls

    @property
    def tracked(self) -> bool:
        """Whether the last result, in this thread, came with a derivative in x."""
        return self.counter.own.tracked

    @property
    def device(self) -> torch.device:
        return self.function.device

    @property
    def predicts(self) -> bool:
        return self.function.predicts

    @property
    def prediction(self) -> str:
        return self.function.prediction

    @property
    def row_by_row(self) -> bool:
        return self.function.row_by_row

    @property
    def variance(self) -> str:
        return self.function.variance

    @property
    def coupling(self) -> str:
        return self.function.coupling

    @property
    def data(self) -> DataSpec | None:
        return self.function.data

    @property
    def t_min(self) -> float | None:
        return self.function.t_min

    def in_training(self) -> bool:
        return self.function.in_training()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.function.parameters(recurse)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score at (x, t), counted, in x's dtype."""
        own = self.counter.own
        own.calls += 1
        if t.ndim:
            self._meet_times(x, t)
        found = check_result(type(self.function).__name__, self.function(x, t), x)
        own.tracked = _differentiable(found)
        return found

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        """Return eps, x0 or v at (x, t), counted, in x's dtype."""
        own = self.counter.own
        own.calls += 1
        if t.ndim:
            self._meet_times(x, t)
        found = self.function.predict(form, x, t, at)
        found = check_result(type(self.function).__name__, found, x)
        own.tracked = _differentiable(found)
        return found

    def with_fraction(self, form: str, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return eps, x0 or v and the learned variance's fraction, counted as one evaluation."""
        own = self.counter.own
        own.calls += 1
        found, fraction = self.function.with_fraction(form, x, t)
        found = check_result(type(self.function).__name__, found, x)
        own.tracked = _differentiable(found)
        return found, fraction

    def jump(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the state at s by one step of the score or the student, counted as one."""
        own = self.counter.own
        own.calls += 1
        found = check_result(type(self.function).__name__, self.function.jump(x, t, s), x)
        own.tracked = _differentiable(found)
        return found

    def _meet_times(self, x: Tensor, t: Tensor) -> None:
        """Look, once, at what the score does with (B,) times where a mistake would not show."""
        if self.counter.looked or self.function.row_by_row:
            return
        if len(t) > 1 and len(t) in x.shape[1:]:
            self.counter.looked = True
            self._look(x.detach())

    @torch.no_grad()
    def _look(self, x: Tensor) -> None:
        """Refuse a score whose first row depends on the times of the others."""
        early, late = 0.25 * self.sde.horizon, 0.75 * self.sde.horizon
        times = torch.linspace(early, late, len(x), dtype=torch.float64, device=x.device)
        what = type(self.function).__name__
        apart, alike = (
            check_result(what, self.function(x, t), x)[0]
            for t in (times, times[:1].expand(len(x)))
        )
        self.counter.count(2)
        difference = float((apart - alike).abs().max())
        # A network rounds a row by its place in the batch; a time of another row is far off.
        if difference > 1e-3 * float(alike.abs().max()):
            raise wrong_value(
                what,
                "t",
                f"be one time for each row where it has shape ({len(x)},)",
                f"a first row that changes by {difference:.3g} with the times of the others",
                "spread it: t.reshape(-1, *[1] * (x.ndim - 1)) where t has a dimension",
            )

    def rows(self, index: Tensor) -> CountedScore:
        """Return the score of the samples ``index``, counted together with this one."""
        part = self.function.rows(index)
        if part is self.function:
            return self
        return CountedScore(part, self.counter, self.coefficients)


def _differentiable(score: Tensor) -> bool:
    """Return whether the score has a graph, or a tangent in forward mode."""
    if score.requires_grad:
        return True
    return forward_ad.unpack_dual(score).tangent is not None  # type: ignore[no-untyped-call]
