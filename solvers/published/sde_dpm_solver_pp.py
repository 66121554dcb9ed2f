"""SDE-DPM-Solver++ 2M and 3M with the weights of published code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.solvers._shared.exponential import InLambda, latest
from sde_diffusion.solvers._shared.exponential_sde import kernel, newton, phis


@final
@dataclass(frozen=True)
class SDEDPMSolverPPPublished(InLambda, Multistep[ReverseSDE]):
    """SDE-DPM-Solver++ 2M as published, and the 3M of a widely used code, by their ``memory``.

    2M: `SDEDPMSolverPP` with ½φ₁ for φ₂, a smaller step along D₁ where h is large. 3M: with
    (φ₁/c − 1)/c − ½ for φ₃, which is φ₃ − 1, and half of D₂; its second step is the 2M, its first
    of order 1.

    Order: weak 2, strong 1 for 2M; weak 1, strong ½ for 3M, whose factor of D₂ does not fall
    with h. NFE: 1 a step.
    Errors: ValueError for another memory, TypeError for an SDE that is not linear.
    Source: Lu et al. 2022 (DPM-Solver++), appendix (2M), for τ = 1; the 3M: diffusers'
    DPMSolverMultistepScheduler.

    >>> SDEDPMSolverPPPublished(memory=3).order
    1
    """

    memory: int = 2
    dynamics = ReverseSDE
    form: ClassVar[str] = "x0"
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = ({"memory": 2}, {"memory": 3})

    def __post_init__(self) -> None:
        if self.memory not in (2, 3):
            raise wrong_value(
                "SDEDPMSolverPPPublished",
                "memory",
                "be 2 or 3",
                self.memory,
                "pass memory=2 for 2M",
            )

    @property
    def order(self) -> int:
        """The weak order."""
        return 2 if self.memory == 2 else 1

    @property
    def strong_order(self) -> float:
        """The order along one Brownian path."""
        return 1 if self.memory == 2 else 0.5

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:
        h = at[i + 1].lambda_ - at[i].lambda_
        a, b, c, d = kernel("x0", at[i], at[i + 1], noise_scale)
        phi1, phi2, phi3 = phis(c)
        places = [level.lambda_ for level in latest(at, i, self.memory)]
        slope, bend = (phi2, 0.5 * (phi3 - 1)) if len(places) == 3 else (0.5 * phi1, 0.0)
        return Step(a, [b * w for w in newton(places, phi1, slope * h, bend * h * h)], d)
