"""SDE-DPM-Solver++: multistep exponential integrators of the reverse SDE in data form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.solvers._shared.exponential import InLambda, latest
from sde_diffusion.solvers._shared.exponential_sde import kernel, newton, phis
from sde_diffusion.solvers._shared.singlestep_sde import staged


@final
@dataclass(frozen=True)
class SDEDPMSolverPP(InLambda, Multistep[ReverseSDE]):
    """SDE-DPM-Solver++ 1, 2M and 3M, ``memory`` being how many predictions of x0 it combines.

    x_s = (σ_s/σ_t) e^{−τ²h} x_t + α_s (φ₁ D₀ + φ₂ D₁ + φ₃ D₂) + σ_s √(1 − e^{−2τ²h}) z,

    with τ the noise scale, h = λ_s − λ_t, c = (1+τ²)h, φ₁ = 1 − e^{−c}, φ₂ = 1 − φ₁/c,
    φ₃ = ½ − φ₂/c. D₀, D₁, D₂ are m, h m′, h² m″ at λ_t of the polynomial m in λ through the
    last predictions. 3M starts with a two-stage step. τ = 0 is `DPMSolverPP`, τ = 1 of memory 1
    the DDPM; the step is exact where E[x0 | x] is constant.

    Order: weak 1 for memory 1, else 2, as no earlier prediction knows the noise of the last step;
    strong 1, as z stands for an integral ∫ e^{…} dw. NFE: 1 a step, for memory 3 one more in the
    first.
    Errors: ValueError for another memory, TypeError for an SDE that is not linear.
    Source: Lu et al. 2022 (DPM-Solver++), section 5 and appendix, for τ = 1; Xue et al. 2023
    (SA-Solver), proposition 4.2, for the family in τ.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, SDEDPMSolverPP(), (4, 2), steps=10).nfe
    10
    """

    memory: int = 2
    dynamics = ReverseSDE
    form: ClassVar[str] = "x0"
    strong_order: ClassVar[float] = 1
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple({"memory": n} for n in (1, 2, 3))

    def __post_init__(self) -> None:
        if self.memory not in (1, 2, 3):
            raise wrong_value(
                "SDEDPMSolverPP", "memory", "be 1, 2 or 3", self.memory, "pass memory=2 for 2M"
            )

    @property
    def order(self) -> int:
        """The weak order."""
        return min(self.memory, 2)

    def starters(self, at: Sequence[Level]) -> int:  # noqa: ARG002
        """Return the number of first steps that have two stages."""
        return self.memory // 3

    def start(
        self, dynamics: ReverseSDE, x: Tensor, m: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> Tensor:
        return staged("x0", 2, dynamics, x, m, t, s, noise)

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:
        h = at[i + 1].lambda_ - at[i].lambda_
        a, b, c, d = kernel("x0", at[i], at[i + 1], noise_scale)
        phi1, phi2, phi3 = phis(c)
        places = [level.lambda_ for level in latest(at, i, self.memory)]
        weights = newton(places, phi1, phi2 * h, phi3 * h * h)
        return Step(a, [b * w for w in weights], d)
