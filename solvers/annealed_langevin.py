"""The annealed Langevin corrector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.solvers.corrector import Corrector


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
