"""The Langevin corrector, every sample by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.solvers.corrector import Corrector


@final
@dataclass(frozen=True)
class Langevin(Corrector):
    """Langevin corrector with δ = 2 (snr·sigma(t))²: no sample depends on others in its batch.

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
