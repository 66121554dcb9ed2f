"""Improved PNDM with the weights of equal steps, as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.solvers._shared.checks import choice

# Adams–Bashforth for steps of one size, by degree of the polynomial.
_FIXED: Final = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def fixed_step(at: Level, to: Level, degree: int) -> Step:
    """Return the DDIM step with the average of degree + 1 predictions for equal steps."""
    a = to.alpha / at.alpha
    return Step(a, [(to.sigma - a * at.sigma) * w for w in _FIXED[degree]])


@final
@dataclass(frozen=True)
class IPNDMPublished(Multistep[ProbabilityFlow]):
    """Improved PNDM as published: x_s = α_s (x_t/α_t + (ρ_s − ρ_t) Σ_j w_j eps_j), fixed w_j.

    The weights 3/2, −1/2 and so on of equal steps leave an error O(dt²) where steps in ρ differ,
    and the DDIM step at the start leaves one on every grid, whatever the polynomial's ``degree``.

    Order: 1 for degree 0, 2 for degrees 1 to 3. NFE: 1 a step.
    Errors: ValueError for another degree; TypeError for an SDE that is not linear.
    Source: Zhang & Chen 2023, appendix B (iPNDM); diffusers' IPNDMScheduler.

    >>> IPNDMPublished(degree=3).order
    2
    """

    degree: int = 3
    dynamics: ClassVar[type[Any]] = ProbabilityFlow
    form: ClassVar[str] = "eps"
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"degree": degree} for degree in (1, 3)
    )

    def __post_init__(self) -> None:
        choice("IPNDMPublished", "degree", (0, 1, 2, 3), self.degree)

    @property
    def order(self) -> int:
        """1 for degree 0, else 2."""
        return min(self.degree + 1, 2)

    @property
    def memory(self) -> int:
        return self.degree + 1

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        return fixed_step(at[i], at[i + 1], min(i, self.degree))
