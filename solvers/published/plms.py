"""PNDM with its pseudo Runge–Kutta start and the weights of equal steps, as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.solvers.plms import pseudo_runge_kutta
from sde_diffusion.solvers.published.ipndm import fixed_step


@final
@dataclass(frozen=True)
class PLMSPublished(Multistep[ProbabilityFlow]):
    """PNDM as published: the weights 55/24, −59/24, 37/24, −9/24 of equal steps, on any steps.

    The first three steps are pseudo Runge–Kutta steps: DDIM steps from t with (e₁ + 2e₂ + 2e₃ +
    e₄)/6, of which e₂ and e₃ are taken at ½(t + s).

    Order: 2; on a grid of equal steps in ρ = σ/α, such as a uniform one for EDM, nearly that of
    `PLMS` (certified apart, since no one number holds). NFE: that of `PLMS`.
    Errors: TypeError for an SDE that is not linear.
    Source: Liu et al. 2022, equations 9 to 13 and algorithm 2 (F-PNDM).

    >>> PLMSPublished.order
    2
    """

    dynamics: ClassVar[type[Any]] = ProbabilityFlow
    form: ClassVar[str] = "eps"
    order: ClassVar[float] = 2
    memory: ClassVar[int] = 4
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    def starters(self, at: Sequence[Level]) -> int:  # noqa: ARG002
        """Return the number of first steps that are pseudo Runge–Kutta ones."""
        return 3

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        return fixed_step(at[i], at[i + 1], 3)

    def start(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        m: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        known = linear("PLMSPublished", dynamics)
        return pseudo_runge_kutta(known, dynamics.score, x, m, t, 0.5 * (t + s), s)
