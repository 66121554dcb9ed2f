"""ER-SDE-Solver: multistep integrators of the reverse SDE with any amount of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, final

import numpy as np

from sde_diffusion._check import wrong_value
from sde_diffusion._shown import shown
from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.solvers._shared.checks import own_noise
from sde_diffusion.solvers._shared.exponential_sde import newton

NoiseFunction: TypeAlias = Callable[[float], float]

_POINTS, _WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(16))


def er_sde_5(u: float) -> float:
    """Return the paper's ER SDE 5, φ(u) = u (e^{u^0.3} + 10): more noise at high noise levels."""
    return u * (math.exp(u**0.3) + 10)


def moments(phi: NoiseFunction, t: float, s: float) -> tuple[float, float]:
    """Return ∫ du/φ(u) and ∫ (u − t)/φ(u) du from s to t."""
    zeroth = first = 0.0
    half = 0.5 * math.log(t / s)  # in log u, as φ may fall over many powers of ten
    for point, weight in zip(_POINTS, _WEIGHTS, strict=True):
        u = s * math.exp(half * (1 + point))
        part = weight * half * u / phi(u)
        zeroth += part
        first += (u - t) * part
    return zeroth, first


@final
@dataclass(frozen=True)
class ERSDE(Multistep[ReverseSDE]):
    """ER-SDE-Solver-1, -2 and -3, ``memory`` being how many predictions of x0 it combines.

    With u = σ/α, y = x/α and the noise function φ, which takes the place of a noise scale,

    y_s = ρ y_t + (1 − ρ) m + (u_s − u_t + φ_s ∫ du/φ) m′
          + (½(u_s − u_t)² + φ_s ∫ (u − u_t)/φ du) m″ + √(u_s² − ρ² u_t²) z,

    with ρ = φ_s/φ_t, the integrals from u_s to u_t, and m, m′, m″ the value and derivatives at u_t
    of the polynomial in u through the last predictions. (The paper's m′ leaves out what the third
    of them adds.) φ = u is the flow, u² the reverse SDE, u^{1+τ²} that of noise scale τ; any φ
    will do for which φ(u)/u never falls, and all keep the marginals p_t. The step is exact where
    E[x0 | x] is constant. As x0 levels off in u, not in λ, it stands large steps best.

    Order: weak 1 for memory 1, else 2; strong 1, as z stands for an integral over the step.
    NFE: 1 a step.
    Errors: ValueError for another memory, for φ(u)/u that falls, or for dynamics with a
    noise_scale, which is what φ is; TypeError for an SDE that is not linear.
    Source: Cui et al. 2023 (ER-SDE-Solver), propositions 3 to 5 and appendix A.8 (φ).

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, ERSDE(phi=lambda u: u**1.5), (4, 2), steps=10).nfe
    10
    """

    memory: int = 2
    phi: NoiseFunction = er_sde_5
    dynamics = ReverseSDE
    form: ClassVar[str] = "x0"
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple({"memory": n} for n in (1, 2, 3))

    __repr__ = shown

    def __post_init__(self) -> None:
        if self.memory not in (1, 2, 3):
            raise wrong_value("ERSDE", "memory", "be 1, 2 or 3", self.memory, "pass memory=2")

    @property
    def order(self) -> int:
        """The weak order."""
        return min(self.memory, 2)

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:
        own_noise("ERSDE", noise_scale, "set the noise by phi: ERSDE(phi=…)")
        t = at[i]
        s = at[i + 1]
        levels = at[max(i + 1 - self.memory, 0) : i + 2][::-1]
        s_u, *places = (math.exp(-level.lambda_) for level in levels)
        phi_s = self.phi(s_u)
        rho = phi_s / self.phi(places[0])
        kept = rho * places[0] / s_u
        if not 0 < kept < 1 + 1e-9:
            raise wrong_value(
                "ERSDE",
                "phi",
                "be positive, and phi(u)/u not fall as u grows",
                f"{phi_s / s_u:.6g} for phi(u)/u at {s_u:.4g}, and less above",
                "pass for example phi=lambda u: u**2",
            )
        zeroth, first = moments(self.phi, places[0], s_u)
        step = s_u - places[0]
        weights = newton(places, 1 - rho, step + phi_s * zeroth, 0.5 * step**2 + phi_s * first)
        drawn = 1 - kept**2 if kept < 1 - 1e-14 else 0.0  # rounding is no noise, √ makes it 1e-8
        spread = s.sigma * math.sqrt(drawn)
        return Step(s.sigma / t.sigma * kept, [s.alpha * w for w in weights], spread)
