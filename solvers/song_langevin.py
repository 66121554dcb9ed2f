"""Song's Langevin corrector, whose step size is the batch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.solvers.corrector import Corrector


@final
@dataclass(frozen=True)
class SongLangevin(Corrector):
    """Song's corrector with δ = 2 (α_t/α_s)² (snr·mean‖z‖/mean‖score‖)², means over the batch.

    For reproducing published results only: by definition a sample depends on all of its batch.

    Source: Song et al. 2021, algorithms 4 (VE) and 5 (VP).

    >>> SongLangevin(snr=0.16, count=2).count
    2
    """

    def size(self, dynamics: ReverseSDE, score: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        a, _ = linear("SongLangevin", dynamics).sde.kernel(s, t)
        ratio = _mean_norm(z) / _mean_norm(score)
        return 2 * (a * self.snr * ratio).square()


def _mean_norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1).sqrt().mean()
