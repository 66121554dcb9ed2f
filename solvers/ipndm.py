"""Pseudo linear multistep methods (PNDM): Adams–Bashforth averages of eps in the DDIM step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver
from sde_diffusion.solvers._shared.adams_in_rho import STARTS, adams_in_rho
from sde_diffusion.solvers._shared.checks import choice


@final
@dataclass(frozen=True)
class IPNDM(Solver[ProbabilityFlow]):
    """Improved PNDM for steps of any size: Adams–Bashforth for dy/dρ = eps, y = x/α and ρ = σ/α.

    The published 3/2, −1/2 and so on are right where the steps in ρ are equal. Weights for the
    steps there are make it ρAB-DEIS: `DEIS` with variable="rho", its start included.

    Order: 1 to 4, as asked for; 1 is the DDIM. NFE: 1 a step, 1 more in all for order 3, 4 more
    for order 4.
    Errors: ValueError for another order; TypeError for an SDE that is not linear.
    Source: Zhang & Chen 2023, appendix B; Liu et al. 2022.

    >>> IPNDM(order=3).order
    3
    """

    order: int = 4
    dynamics = ProbabilityFlow
    evaluations: ClassVar[int] = 1
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"order": order} for order in (1, 2, 3, 4)
    )

    def __post_init__(self) -> None:
        choice("IPNDM", "order", (1, 2, 3, 4), self.order)

    def steps(
        self, dynamics: ProbabilityFlow, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid."""
        return adams_in_rho(
            "IPNDM",
            dynamics,
            x,
            grid,
            noise,
            order=self.order,
            variable="rho",
            first=STARTS[self.order],
        )
