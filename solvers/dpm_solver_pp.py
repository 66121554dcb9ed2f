"""DPM-Solver++: exponential integrators of the probability-flow ODE in data form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from sde_diffusion.solvers._shared.exponential_adams import Adams
from sde_diffusion.solvers._shared.singlestep import Singlestep


@final
@dataclass(frozen=True)
class DPMSolverPP(Adams):
    """DPM-Solver++ 1, 2M and 3M: x_s = (σ_s/σ_t) x_t + α_s ∫ e^{λ−λ_s} x0 dλ, λ from λ_t to λ_s.

    x0 is taken for the polynomial in λ through its last ``order`` predictions, which makes order 1
    the DDIM. In the paper's letters 3M is

    x_s = (σ_s/σ_t) x_t − α_s (e^{−h} − 1) D₀ + α_s ((e^{−h} − 1)/h + 1) D₁
          − α_s ((e^{−h} − 1 + h)/h² − ½) D₂,  D₂ = 2 (D₁⁰ − D₁¹)/(r₀ + r₁),

    with the 2 that published codes drop (`DPMSolverPPPublished`) and a two-stage first step.

    Order: 1, 2 or 3. NFE: 1 a step, for order 3 one more in the first.
    Errors: ValueError for another order, TypeError for an SDE that is not linear.
    Source: Lu et al. 2022 (DPM-Solver++), section 4.2, algorithm 2 (2M); Hochbruck & Ostermann
    2010, section 2.5.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, DPMSolverPP(order=3), (4, 2), steps=5).nfe
    6
    """

    form: ClassVar[str] = "x0"


@final
@dataclass(frozen=True)
class DPMSolverPPSinglestep(Singlestep):
    """DPM-Solver++ 1S, 2S and 3S: x_s = (σ_s/σ_t) x_t + α_s ∫ e^{λ−λ_s} x0 dλ within one step.

    1: x0 is taken for constant (DDIM). 2: for its value at λ_t + ½h, h = λ_s − λ_t. 3: for the
    line through its values at λ_t and λ_t + ⅔h, the latter reached by the line through λ_t and
    λ_t + ⅓h.

    Order: 1, 2 or 3. NFE: the order, a step; 1 for a step to σ_s = 0.
    Errors: ValueError for another order, TypeError for an SDE that is not linear.
    Source: Lu et al. 2022 (DPM-Solver++), algorithm 1 (2S), and their code (3S).

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, DPMSolverPPSinglestep(order=2), (4, 2), steps=5).nfe
    10
    """

    form: ClassVar[str] = "x0"
