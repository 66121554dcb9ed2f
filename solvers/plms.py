"""PNDM with its Runge–Kutta start, for steps of any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sde_diffusion.coefficients import Coefficients
from sde_diffusion.counting import CountedScore
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver
from sde_diffusion.solvers._shared.adams_in_rho import adams_in_rho
from sde_diffusion.solvers.edm_heun import euler_in_rho, middle_in_rho


def pseudo_runge_kutta(
    known: Coefficients,
    score: CountedScore,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    middle: Tensor,
    s: Tensor,
) -> Tensor:
    """Return the DDIM step with (e₁ + 2e₂ + 2e₃ + e₄)/6, by three evaluations more.

    Arguments:
        known: the coefficients of the SDE.
        score: the score, evaluated twice at ``middle`` and once at s.
        x: the state at t, (B, *event).
        eps: e₁ = eps(x, t), (B, *event).
        t: the time of the state, ().
        middle: the time of e₂ and e₃, between t and s, ().
        s: the time of e₄, to which the step goes, ().
    """
    at = known.level(t)
    between = known.level(middle)
    to = known.level(s)
    total = eps
    for u, level, weight in ((middle, between, 2), (middle, between, 2), (s, to, 1)):
        eps = score.predict("eps", euler_in_rho(x, eps, at, level), u, level)
        total = total.add(eps, alpha=weight)
    return euler_in_rho(x, total.div_(6), at, to)


def _runge_kutta_in_rho(
    known: Coefficients, score: CountedScore, x: Tensor, eps: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    middle = middle_in_rho(known, t, s)
    return pseudo_runge_kutta(known, score, x, eps, t, middle, s)


@final
@dataclass(frozen=True)
class PLMS(Solver[ProbabilityFlow]):
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
        return adams_in_rho(
            "PLMS",
            dynamics,
            x,
            grid,
            noise,
            order=4,
            variable="rho",
            first=(_runge_kutta_in_rho,) * 3,
        )
