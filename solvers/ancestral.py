"""Ancestral sampling of DDPM and DDIM, for any linear SDE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level, kernel
from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep
from sde_diffusion.solvers._shared.checks import at_least_zero, backward, own_noise
from sde_diffusion.solvers.edm_heun import ddim_form, ddim_step


@final
@dataclass(frozen=True)
class Ancestral(OneStep[ReverseSDE]):
    """Ancestral step: the posterior q(x_s | x_t, x0) at the predicted x0, its variance times η².

    x_s = α_s x0 + √(σ_s² − c²) eps + c z, c² = η² β̃, β̃ = (σ_s²/σ_t²)(σ_t² − (α_t/α_s)²σ_s²), with
    eps = −σ_t score and x0 = (x_t − σ_t eps)/α_t. On the lattice of `DiscreteBeta`, η = 1 is the
    DDPM (Ho et al., algorithm 2, variance β̃) and η = 0 the DDIM. A variance that the model has
    learned is not used here: `DDPM` steps by it.

    Order: weak 1 (of the state at η = 0). NFE: 1 a step.
    Errors: ValueError for η outside [0, 1], a grid that runs forward, or dynamics with
    a noise_scale, which is what η is; TypeError for an SDE that is not linear.
    Source: Ho et al. 2020, equation 7 and algorithm 2; Song et al. 2021 (DDIM), equation 12, with
    the σ(η) of equation 16.

    >>> import torch
    >>> from sde_diffusion import DiscreteBeta, Gaussian, VPSDE, lattice, linear_betas, sample
    >>> ddpm = VPSDE(DiscreteBeta(linear_betas(1000)))
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(ddpm)
    >>> sample(model, Ancestral(), (4, 2), grid=lattice(1000)).nfe
    1000
    """

    eta: float = 1.0
    dynamics = ReverseSDE
    order: ClassVar[float] = 1
    strong_order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 1
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"eta": eta} for eta in (1.0, 0.5, 0.0)
    )

    def __post_init__(self) -> None:
        at_least_zero("Ancestral", "eta", self.eta, "pass 1.0 for DDPM or 0.0 for DDIM")
        if self.eta > 1:
            raise wrong_value(
                "Ancestral",
                "eta",
                "be at most 1, where all of β̃ is drawn",
                self.eta,
                "pass 1.0 for DDPM or 0.0 for DDIM",
            )

    def step(self, dynamics: ReverseSDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        backward("Ancestral", t, s)
        known = linear("Ancestral", dynamics)
        own_noise("Ancestral", dynamics.noise_scale, "set the noise by eta: Ancestral(eta=…)")
        at = known.level(t)
        to = known.level(s)
        (_, b2) = kernel(to, at)
        c2 = self.eta**2 * b2 * (to.sigma / at.sigma) ** 2
        # max: rounding may take σ_s² − c² below 0 where almost all of σ_s² is drawn.
        left = Level(to.alpha, math.sqrt(max(to.sigma**2 - c2, 0.0)), to.lambda_)
        form = ddim_form(dynamics.score, at)
        mean = ddim_step(form, x, dynamics.score.predict(form, x, t, at), at, left)
        if self.eta == 0:
            return mean
        return mean.add_(noise.unit(x, t, s), alpha=math.sqrt(c2))
