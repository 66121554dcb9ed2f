"""Song's reverse-diffusion predictor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sde_diffusion.coefficients import kernel
from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep
from sde_diffusion.solvers._shared.checks import backward


@final
@dataclass(frozen=True)
class ReverseDiffusion(OneStep[ReverseSDE]):
    """Reverse-diffusion step x_s = (2 − a) x_t + ½(1+l²) b² score(x_t, t) + l b z.

    The forward kernel x_t | x_s ~ N(a x_s, b² I) is reversed the way the forward chain was
    discretised. With betas on their lattice a = √(1−β_k), b² = β_k: Song's rule for VP; with VE
    a = 1, b² = σ_t² − σ_s². Every linear SDE has a and b, sub-VP included.

    Order: weak 1, strong 1. NFE: 1 a step.
    Errors: TypeError for an SDE that is not linear, ValueError for a grid that runs forward.
    Source: Song et al. 2021, appendix E, algorithms 2 and 3.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, ReverseDiffusion(), (4, 2), steps=10).nfe
    10
    """

    dynamics = ReverseSDE
    order: ClassVar[float] = 1
    strong_order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 1

    def step(self, dynamics: ReverseSDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        backward("ReverseDiffusion", t, s)
        known = linear("ReverseDiffusion", dynamics)
        scale = dynamics.noise_scale
        at = known.level(t)
        to = known.level(s)
        a, b2 = kernel(to, at)
        push = 0.5 * (1 + scale**2) * b2
        mean = (x * (2 - a)).add_(dynamics.score(x, t), alpha=push)
        return mean.add_(noise.unit(x, t, s), alpha=scale * math.sqrt(b2))
