"""PNDM with its Runge–Kutta start, for steps of any size and as published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion.coefficients import Coefficients, Level
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import CountedScore, ProbabilityFlow, linear
from sde_diffusion.solvers._adams_in_rho import adams_in_rho
from sde_diffusion.solvers.edm_heun import euler_in_rho, middle_in_rho
from sde_diffusion.solvers.ipndm import fixed_step


def _pseudo_runge_kutta(
    known: Coefficients,
    score: CountedScore,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    middle: Tensor,
    s: Tensor,
) -> Tensor:
    """Return the DDIM step with (e₁ + 2e₂ + 2e₃ + e₄)/6, e₂ and e₃ in between, e₁ = eps(x, t)."""
    at, between, to = known.level(t), known.level(middle), known.level(s)
    total = eps
    for u, level, weight in ((middle, between, 2), (middle, between, 2), (s, to, 1)):
        eps = score.predict("eps", euler_in_rho(x, eps, at, level), u, level)
        total = total.add(eps, alpha=weight)
    return euler_in_rho(x, total.div_(6), at, to)


def _runge_kutta_in_rho(
    known: Coefficients, score: CountedScore, x: Tensor, eps: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    middle = middle_in_rho(known, t, s)
    return _pseudo_runge_kutta(known, score, x, eps, t, middle, s)


@final
@dataclass(frozen=True)
class PLMS:
    """PNDM for steps of any size: `IPNDM` of order 4 after three classical Runge–Kutta steps in ρ.

    It is `PLMSPublished` where the steps in ρ = σ/α are equal, but for the middle of the first
    three, which is that in ρ.

    Order: 4. NFE: 1 a step, 3 more in each of the first three.
    Errors: TypeError for an SDE that is not linear.
    Source: Liu et al. 2022, algorithm 2 (F-PNDM), with the weights of the steps there are.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, PLMS(), (4, 2), steps=10).nfe
    19
    """

    dynamics = ProbabilityFlow
    order: ClassVar[float] = 4
    evaluations: ClassVar[int] = 1

    def steps(
        self, dynamics: ProbabilityFlow, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid."""
        return adams_in_rho("PLMS", dynamics, x, grid, noise, order=4, variable="rho",
                            first=(_runge_kutta_in_rho,) * 3)  # fmt: skip


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
        return _pseudo_runge_kutta(known, dynamics.score, x, m, t, 0.5 * (t + s), s)
