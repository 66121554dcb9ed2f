"""DEIS with the start of published code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver
from sde_diffusion.solvers._shared.adams_in_rho import adams_in_rho
from sde_diffusion.solvers._shared.checks import choice
from sde_diffusion.solvers._shared.weights_in_rho import VARIABLES


@final
@dataclass(frozen=True)
class DEISPublished(Solver[ProbabilityFlow]):
    """DEIS as published: the polynomial grows from degree 0 in the first steps, and nothing else.

    The DDIM step that starts it errs by O(dt²), so that no ``degree`` takes the end state beyond
    order 2; `DEIS` spends up to four evaluations more on its start and keeps its order.

    Order: 1 for degree 0, 2 for degrees 1 to 3. NFE: 1 a step.
    Errors: those of `DEIS`.
    Source: Zhang & Chen 2023, tAB0 to tAB3 and ρAB0 to ρAB3; "lambda" is diffusers'
    DEISMultistepScheduler of order degree + 1.

    >>> DEISPublished(degree=3).order
    2
    """

    degree: int = 3
    variable: str = "t"
    dynamics = ProbabilityFlow
    evaluations: ClassVar[int] = 1
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"degree": degree, "variable": variable} for variable in VARIABLES for degree in (1, 3)
    )

    def __post_init__(self) -> None:
        choice("DEISPublished", "degree", (0, 1, 2, 3), self.degree)
        choice("DEISPublished", "variable", tuple(VARIABLES), self.variable)

    @property
    def order(self) -> int:
        """1 for degree 0, else 2."""
        return min(self.degree + 1, 2)

    def steps(
        self, dynamics: ProbabilityFlow, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid."""
        return adams_in_rho(
            "DEISPublished",
            dynamics,
            x,
            grid,
            noise,
            order=self.degree + 1,
            variable=self.variable,
        )
