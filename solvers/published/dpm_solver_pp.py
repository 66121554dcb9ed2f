"""DPM-Solver++ 2M and 3M with the weights of published code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.solvers._shared.exponential import InLambda, half_difference, latest


@final
@dataclass(frozen=True)
class DPMSolverPPPublished(InLambda, Multistep[ProbabilityFlow]):
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
    form: ClassVar[str] = "x0"
    order: ClassVar[float] = 2
    certified: ClassVar[tuple[dict[str, Any], ...]] = ({"memory": 2}, {"memory": 3})

    def __post_init__(self) -> None:
        if self.memory not in (2, 3):
            raise wrong_value(
                "DPMSolverPPPublished", "memory", "be 2 or 3", self.memory, "pass memory=2 for 2M"
            )

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        t = at[i]
        s = at[i + 1]
        a = s.sigma / t.sigma
        h = s.lambda_ - t.lambda_
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
        d0 = (phi2 + bend) / r0
        d1 = -bend / r1
        return Step(a, [s.alpha * b for b in (phi1 + d0, d1 - d0, -d1)])
