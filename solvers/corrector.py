"""What Langevin correctors share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.noise import Noise


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
    def size(self, dynamics: ReverseSDE, score: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return δ, of shape ().

        Arguments:
            dynamics: the reverse SDE whose p_t the corrector leaves nearly invariant.
            score: the score at (x, t), (B, *event).
            z: the normals of this Langevin step, (B, *event).
            t: the time of the correction, ().
            s: the time to which the predictor goes next, ().
        """

    def correct(
        self, dynamics: ReverseSDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> Tensor:
        """Return ``x`` after `count` Langevin steps at t, before the predictor goes to s.

        Arguments:
            dynamics: the reverse SDE, whose score is evaluated `count` times.
            x: the state at t, (B, *event).
            t: the time of the correction, ().
            s: the time to which the predictor goes next, ().
            noise: the source of the normals.
        """
        for _ in range(self.count):
            score = dynamics.score(x, t)
            z = noise.normal(x)
            delta = self.size(dynamics, score, z, t, s)
            x = x + delta * score + (2 * delta).sqrt() * z
        return x
