"""SDE-DPM-Solver++: multistep exponential integrators of the reverse SDE in data form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ReverseSDE
from sde_diffusion.solvers._exponential import own_grid
from sde_diffusion.solvers.seeds import kernel, phis, staged


def newton(places: Sequence[float], one: float, two: float, three: float) -> list[float]:
    """Return the weights of m_j in one·m + two·m′ + three·m″ at the first place.

    m is the polynomial through the m_j at the places, of which there are three at most.
    """
    if len(places) == 1:
        return [one]
    gap = places[0] - places[1]
    p, q = two / gap, 0.0
    if len(places) == 3:
        # m′ = m[0,1] + gap m[0,1,2] and m″ = 2 m[0,1,2].
        bend = (two * gap + 2 * three) / (places[0] - places[2])
        p, q = p + bend / gap, bend / (places[1] - places[2])
    return [one + p, -p - q, q][: len(places)]


def _lambdas(at: Sequence[Level], i: int, memory: int) -> list[float]:
    return [level.lambda_ for level in at[max(i + 1 - memory, 0) : i + 1]][::-1]


@final
@dataclass(frozen=True)
class SDEDPMSolverPP(Multistep[ReverseSDE]):
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
    grid = own_grid
    form: ClassVar[str] = "x0"
    strong_order: ClassVar[float] = 1
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple({"memory": n} for n in (1, 2, 3))

    def __post_init__(self) -> None:
        if self.memory not in (1, 2, 3):
            raise wrong_value("SDEDPMSolverPP", "memory", "be 1, 2 or 3", self.memory,
                              "pass memory=2 for 2M")  # fmt: skip

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
        weights = newton(_lambdas(at, i, self.memory), phi1, phi2 * h, phi3 * h * h)
        return Step(a, [b * w for w in weights], d)


@final
@dataclass(frozen=True)
class SDEDPMSolverPPPublished(Multistep[ReverseSDE]):
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
    grid = own_grid
    form: ClassVar[str] = "x0"
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = ({"memory": 2}, {"memory": 3})

    def __post_init__(self) -> None:
        if self.memory not in (2, 3):
            raise wrong_value("SDEDPMSolverPPPublished", "memory", "be 2 or 3", self.memory,
                              "pass memory=2 for 2M")  # fmt: skip

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
        places = _lambdas(at, i, self.memory)
        slope, bend = (phi2, 0.5 * (phi3 - 1)) if len(places) == 3 else (0.5 * phi1, 0.0)
        return Step(a, [b * w for w in newton(places, phi1, slope * h, bend * h * h)], d)
