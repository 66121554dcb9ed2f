"""Evaluations of the score, counted where they happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor
from torch.autograd import forward_ad

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.forms import converted
from sde_diffusion.sde import SDE

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class CountedScore:
    """A score that counts its evaluations where they happen.

    >>> import torch
    >>> score, x = CountedScore(lambda x, t: -x), torch.ones(1, 2)
    >>> _ = score(x, torch.tensor(1.0)), score(x, torch.tensor(0.5))
    >>> score.calls
    2
    """

    def __init__(
        self, score: Score, counter: list[int] | None = None, sde: SDE | None = None
    ) -> None:
        self.function = score
        self.tracked = False  # whether the last score came with a derivative in x
        self._counter = [0] if counter is None else counter
        self._sde = sde
        # Forms of a model trained for another SDE mean other things; its score does not.
        known = getattr(score, "sde", None) is sde and sde is not None
        self._predict = getattr(score, "predict", None) if known else None
        self._denoise = getattr(score, "denoise", None) if known else None
        learned = known and getattr(score, "variance", "fixed") == "learned"
        self._with_fraction = getattr(score, "with_fraction", None) if learned else None

    @property
    def calls(self) -> int:
        """The number of evaluations so far."""
        return self._counter[0]

    @property
    def coupling(self) -> str:
        """How data met noise in the model's training."""
        return str(getattr(self.function, "coupling", "independent"))

    @property
    def predicts(self) -> bool:
        """Whether the score is made of eps, x0 or v, which are then had without a division."""
        return self._predict is not None

    @property
    def learns(self) -> bool:
        """Whether the model has learned a variance, which `with_fraction` tells."""
        return self._with_fraction is not None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score at (x, t), counted."""
        self._counter[0] += 1
        score = self.function(x, t)
        self.tracked = _differentiable(score)
        return score

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        """Return eps, x0 or v = alpha eps − sigma x0 at (x, t), counted.

        ``at`` is the level at t, in numbers or tensors, and the forms are those of `FORMS`.
        """
        self._counter[0] += 1
        if self._predict is not None:
            found: Tensor = self._predict(form, x, t, at)
        elif self._denoise is not None:
            found = converted(form, "x0", self._denoise(x, t), x, at)
        else:
            found = converted(form, "score", self.function(x, t), x, at)
        self.tracked = _differentiable(found)
        return found

    def with_fraction(self, form: str, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `ScoreModel.with_fraction` does, counted: eps, x0 or v and the fraction."""
        if self._with_fraction is None:
            raise wrong_value(
                "CountedScore",
                "score",
                "be a model with a learned variance",
                type(self.function).__name__,
                "ask for predict",
            )
        self._counter[0] += 1
        found: tuple[Tensor, Tensor] = self._with_fraction(form, x, t)
        self.tracked = _differentiable(found[0])
        return found

    def beside(self, function: Score) -> CountedScore:
        """Return another function, counted together with this one."""
        return CountedScore(function, self._counter, self._sde)

    def rows(self, index: Tensor) -> CountedScore:
        """Return the score of the samples ``index``, counted together with this one."""
        part = getattr(self.function, "rows", None)
        return self if part is None else self.beside(part(index))


def _differentiable(score: Tensor) -> bool:
    """Return whether the score has a graph, or a tangent in forward mode."""
    if score.requires_grad:
        return True
    return forward_ad.unpack_dual(score).tangent is not None  # type: ignore[no-untyped-call]
