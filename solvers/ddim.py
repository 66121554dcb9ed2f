"""DDIM as a solver of the probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sde_diffusion.coefficients import Levels
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.forms import turned
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep
from sde_diffusion.solvers.edm_heun import ddim_form, ddim_step


@final
@dataclass(frozen=True)
class DDIM(OneStep[ProbabilityFlow]):
    """DDIM step x_s = (α_s/α_t) x_t + (σ_s − (α_s/α_t) σ_t) eps(x_t, t), also from data to noise.

    It is Euler's step for dy/dρ = eps, y = x/α and ρ = σ/α, and `Ancestral` with η = 0 as an ODE
    solver. Like the solvers of velocities it takes one time, or one for each sample.

    Order: 1. NFE: 1 a step.
    Errors: TypeError for an SDE that is not linear.
    Source: Song et al. 2021 (DDIM), equation 13, of the ODE in their equation 14.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, DDIM(), (4, 2), steps=10).nfe
    10
    """

    dynamics = ProbabilityFlow
    order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 1

    def step(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        known = linear("DDIM", dynamics)
        score = dynamics.score
        if t.ndim == 0:
            at = known.level(t)
            form = ddim_form(score, at)
            return ddim_step(form, x, score.predict(form, x, t, at), at, known.level(s))
        sde = known.sde
        levels = Levels(sde.alpha(t), sde.sigma(t))
        return turned(x, score.predict("v", x, t, levels), levels, sde.alpha(s), sde.sigma(s))
