"""DPM-Solver: exponential integrators of the probability-flow ODE in noise form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from sde_diffusion.solvers._shared.exponential_adams import Adams
from sde_diffusion.solvers._shared.singlestep import Singlestep


@final
@dataclass(frozen=True)
class DPMSolver(Singlestep):
    """DPM-Solver-1, -2 and -3: x_s = (α_s/α_t) x_t − σ_s ∫ e^{λ_s−λ} eps dλ, λ from λ_t to λ_s.

    1: eps is taken for constant (DDIM). 2: for its value at λ_t + ½h, h = λ_s − λ_t. 3: for the
    line through its values at λ_t and λ_t + ⅔h, the latter reached by the line through λ_t and
    λ_t + ⅓h.

    Order: 1, 2 or 3. NFE: the order, a step; 1 for a step to σ_s = 0.
    Errors: ValueError for another order, TypeError for an SDE that is not linear.
    Source: Lu et al. 2022 (DPM-Solver), equation 3.4, algorithms 1 (order 2) and 2 (order 3).

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, DPMSolver(order=3), (4, 2), steps=5).nfe
    15
    """

    form: ClassVar[str] = "eps"


@final
@dataclass(frozen=True)
class DPMSolverMultistep(Adams):
    """Multistep DPM-Solver: x_s = (α_s/α_t) x_t − σ_s ∫ e^{λ_s−λ} eps dλ, by the last predictions.

    eps is taken for the polynomial in λ through its last ``order`` values, which makes order 1
    the DDIM. The first step of order 3 is DPM-Solver-2's.

    Order: 1, 2 or 3. NFE: 1 a step, for order 3 one more in the first.
    Errors: ValueError for another order, TypeError for an SDE that is not linear.
    Source: Lu et al. 2022 (DPM-Solver), equation 3.4, and their code; Hochbruck & Ostermann 2010,
    section 2.5.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, DPMSolverMultistep(order=3), (4, 2), steps=5).nfe
    6
    """

    form: ClassVar[str] = "eps"
