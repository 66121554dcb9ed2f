"""Predictor-corrector sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion._check import wrong_type
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep
from sde_diffusion.solvers.ancestral import Ancestral
from sde_diffusion.solvers.annealed_langevin import AnnealedLangevin
from sde_diffusion.solvers.corrector import Corrector
from sde_diffusion.solvers.langevin import Langevin
from sde_diffusion.solvers.reverse_diffusion import ReverseDiffusion


def _predicts(part: object) -> bool:
    return isinstance(part, OneStep) and issubclass(ReverseSDE, part.dynamics)


@final
@dataclass(frozen=True)
class PredictorCorrector(OneStep[ReverseSDE]):
    """Predictor-corrector step: the corrector at t, then the predictor from t to s.

    The correction comes first, as in the published code, so that the score is never evaluated at
    the grid's end, where sigma may be 0.

    Order: the lesser of both parts'. NFE: the predictor's plus the corrector's count, a step.
    Errors: TypeError for parts that are not a predictor of the reverse SDE and a corrector.
    Source: Song et al. 2021, section 4.2, algorithms 2 (VE) and 3 (VP).

    >>> from sde_diffusion.solvers import ReverseDiffusion
    >>> PredictorCorrector(ReverseDiffusion(), Langevin(count=2)).evaluations
    3
    """

    predictor: OneStep[Any] = ReverseDiffusion()  # noqa: RUF009  (it is frozen)
    corrector: Corrector = Langevin()  # noqa: RUF009  (it too)
    dynamics = ReverseSDE
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"predictor": ReverseDiffusion(), "corrector": Langevin()},
        {"predictor": Ancestral(), "corrector": AnnealedLangevin(count=2)},
    )

    def __post_init__(self) -> None:
        if not _predicts(self.predictor):
            raise wrong_type(
                "PredictorCorrector",
                "predictor",
                "be a one-step SDE solver",
                type(self.predictor).__name__,
                "pass for example ReverseDiffusion()",
            )
        if not isinstance(self.corrector, Corrector):
            raise wrong_type(
                "PredictorCorrector",
                "corrector",
                "be a Corrector",
                type(self.corrector).__name__,
                "pass for example Langevin(snr=0.16)",
            )

    @property
    def order(self) -> float:
        """The lesser of the parts' orders."""
        return min(self.predictor.order, self.corrector.order)

    @property
    def evaluations(self) -> float:
        """Evaluations a step."""
        return self.predictor.evaluations + self.corrector.count

    def step(self, dynamics: ReverseSDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        x = self.corrector.correct(dynamics, x, t, s, noise)
        return self.predictor.step(dynamics, x, t, s, noise)
