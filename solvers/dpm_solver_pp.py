"""DPM-Solver++: exponential integrators of the probability flow in data form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.reverse import ProbabilityFlow
from sde_diffusion.solvers._exponential import Adams, Singlestep, latest, own_grid


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
    Source: Lu et al. 2022 (DPM-Solver++), section 4.2; Hochbruck & Ostermann 2010, section 2.5.

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


def half_difference(t: Level, s: Level, other: Level, width: float) -> tuple[float, float]:
    """Return the weights of x0 at t and at another level, with the slope's integral made simple.

    x_s = (σ_s/σ_t) x_t + α_s ((1 − e^{−h}) m_t + ½ B (m_other − m_t)/r), h = λ_s − λ_t and
    r = (λ_other − λ_t)/h, the ``width`` B standing for h or what is close to it.
    """
    h = s.lambda_ - t.lambda_
    slope = 0.5 * s.alpha * width * h / (other.lambda_ - t.lambda_)
    return -s.alpha * math.expm1(-h) - slope, slope


@final
@dataclass(frozen=True)
class DPMSolverPPPublished(Multistep[ProbabilityFlow]):
    """DPM-Solver++ 2M and 3M as published, the ``memory`` being the number of predictions.

    2M: x_s = (σ_s/σ_t) x_t − α_s (e^{−h} − 1)(D₀ + ½ D₁). 3M: as `DPMSolverPP`, with half of its
    D₂. The first step is of order 1, the second of 3M is 2M.

    Order: 2, for both. NFE: 1 a step.
    Errors: ValueError for another memory, TypeError for an SDE that is not linear.
    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2 (2M), and their code (3M).

    >>> DPMSolverPPPublished(memory=3).order
    2
    """

    memory: int = 3
    dynamics = ProbabilityFlow
    grid = own_grid
    form: ClassVar[str] = "x0"
    order: ClassVar[float] = 2
    certified: ClassVar[tuple[dict[str, Any], ...]] = ({"memory": 2}, {"memory": 3})

    def __post_init__(self) -> None:
        if self.memory not in (2, 3):
            raise wrong_value("DPMSolverPPPublished", "memory", "be 2 or 3", self.memory,
                              "pass memory=2 for 2M")  # fmt: skip

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        t, s = at[i], at[i + 1]
        a, h = s.sigma / t.sigma, s.lambda_ - t.lambda_
        phi1 = -math.expm1(-h)
        nodes = latest(at, i, self.memory)
        if len(nodes) == 1:
            return Step(a, [s.alpha * phi1])
        if len(nodes) == 2:
            return Step(a, half_difference(t, s, nodes[1], phi1))
        r0, r1 = ((p.lambda_ - q.lambda_) / h for p, q in pairwise(nodes))
        phi2 = 1 - phi1 / h
        phi3 = 0.5 - phi2 / h
        # D₁ = D₁⁰ + r₀ D₂ and D₂ = (D₁⁰ − D₁¹)/(r₀ + r₁).
        bend = (r0 * phi2 + phi3) / (r0 + r1)
        d0, d1 = (phi2 + bend) / r0, -bend / r1
        return Step(a, [s.alpha * b for b in (phi1 + d0, d1 - d0, -d1)])
