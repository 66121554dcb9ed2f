"""Predictor-corrector sampling and Langevin correctors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_type
from sde_diffusion.integration import OneStep
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ReverseSDE, linear
from sde_diffusion.solvers.ancestral import Ancestral
from sde_diffusion.solvers.reverse_diffusion import ReverseDiffusion


@dataclass(frozen=True)
class Corrector(ABC):
    """Langevin steps x ← x + δ score(x, t) + √(2δ) z at one time; the kinds differ in δ.

    A finite δ leaves p_t invariant up to O(δ) only, whatever the number of predictor steps: a
    corrector of fixed snr has a bias O(snr²) and the scheme's order is 0.
    """

    snr: float = 0.16
    count: int = 1
    order: ClassVar[float] = 0

    def __post_init__(self) -> None:
        positive_number(type(self).__name__, "snr", self.snr)
        positive_integer(type(self).__name__, "count", self.count)

    @abstractmethod
    def size(
        self, dynamics: ReverseSDE, score: Tensor, z: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        """Return δ, 0-d."""

    def correct(
        self, dynamics: ReverseSDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> Tensor:
        """Return ``x`` after `count` Langevin steps at t, before the predictor goes to s."""
        for _ in range(self.count):
            score, z = dynamics.score(x, t), noise.normal(x)
            delta = self.size(dynamics, score, z, t, s)
            x = x + delta * score + (2 * delta).sqrt() * z
        return x


@final
@dataclass(frozen=True)
class Langevin(Corrector):
    """Langevin corrector with δ = 2 (snr·sigma(t))²: a sample never sees its batch-mates.

    Source: the scaling of Song & Ermon 2019, without their batch statistics.

    >>> Langevin(snr=0.1).count
    1
    """

    def size(
        self,
        dynamics: ReverseSDE,
        score: Tensor,  # noqa: ARG002
        z: Tensor,  # noqa: ARG002
        t: Tensor,
        s: Tensor,  # noqa: ARG002
    ) -> Tensor:
        return 2 * (self.snr * linear("Langevin", dynamics).sde.sigma(t)) ** 2


@final
@dataclass(frozen=True)
class AnnealedLangevin(Corrector):
    """Annealed Langevin corrector with δ = 2 (α_t/α_s)² (snr·sigma(t))².

    The factor (α_t/α_s)² of the coming step is Song's 1 − β_k on the lattice of `DiscreteBeta`
    and 1 for VE; every linear SDE has it, sub-VP included.

    Source: Song et al. 2021, appendix G, the annealed corrector of their code.

    >>> AnnealedLangevin().snr
    0.16
    """

    def size(
        self,
        dynamics: ReverseSDE,
        score: Tensor,  # noqa: ARG002
        z: Tensor,  # noqa: ARG002
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        sde = linear("AnnealedLangevin", dynamics).sde
        return 2 * sde.kernel(s, t)[0] ** 2 * (self.snr * sde.sigma(t)) ** 2


@final
@dataclass(frozen=True)
class SongLangevin(Corrector):
    """Song's corrector with δ = 2 (α_t/α_s)² (snr·mean‖z‖/mean‖score‖)², means over the batch.

    For reproducing published results only: a sample depends on its batch-mates by design.

    Source: Song et al. 2021, algorithms 4 and 5.

    >>> SongLangevin(snr=0.16, count=2).count
    2
    """

    def size(
        self, dynamics: ReverseSDE, score: Tensor, z: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        a, _ = linear("SongLangevin", dynamics).sde.kernel(s, t)
        ratio = _mean_norm(z) / _mean_norm(score)
        return 2 * (a * self.snr * ratio).square()


def _mean_norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1).sqrt().mean()


def _predicts(part: object) -> bool:
    return isinstance(part, OneStep) and issubclass(ReverseSDE, part.dynamics)


@final
@dataclass(frozen=True)
class PredictorCorrector(OneStep[ReverseSDE]):
    """Predictor-corrector step: the corrector at t, then the predictor from t to s.

    The correction comes first, as in the published code, so that no score is asked for at the
    grid's end, where sigma may be 0.

    Order: the lesser of both parts'. NFE: the predictor's plus the corrector's count, a step.
    Errors: TypeError for parts that are not a predictor of the reverse SDE and a corrector.
    Source: Song et al. 2021, section 4.2.

    >>> from sde_diffusion.solvers import ReverseDiffusion
    >>> PredictorCorrector(ReverseDiffusion(), Langevin(count=2)).evaluations
    3
    """

    predictor: OneStep[Any] = ReverseDiffusion()  # noqa: RUF009  (it is frozen)
    corrector: Corrector = Langevin()
    dynamics = ReverseSDE
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"predictor": ReverseDiffusion(), "corrector": Langevin()},
        {"predictor": Ancestral(), "corrector": AnnealedLangevin(count=2)},
    )

    def __post_init__(self) -> None:
        if not _predicts(self.predictor):
            raise wrong_type("PredictorCorrector", "predictor", "be a one-step SDE solver",
                             type(self.predictor).__name__,
                             "pass for example ReverseDiffusion()")  # fmt: skip
        if not isinstance(self.corrector, Corrector):
            raise wrong_type("PredictorCorrector", "corrector", "be a Corrector",
                             type(self.corrector).__name__,
                             "pass for example Langevin(snr=0.16)")  # fmt: skip

    @property
    def order(self) -> float:  # type: ignore[override]  # depends on the parts
        """The lesser of the parts' orders."""
        return min(self.predictor.order, self.corrector.order)

    @property
    def evaluations(self) -> int:
        """Network calls a step."""
        return int(getattr(self.predictor, "evaluations", 1)) + self.corrector.count

    def step(self, dynamics: ReverseSDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        x = self.corrector.correct(dynamics, x, t, s, noise)
        return self.predictor.step(dynamics, x, t, s, noise)
