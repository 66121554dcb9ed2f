"""Adams predictor-corrector of the reverse SDE in the angle φ = atan(σ/α)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np
from torch import Tensor

from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.grids import angular
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers._shared.angular import CORRECTED, PREDICTED, half_angle
from sde_diffusion.solvers._shared.weights import integrals

# As many values as `AngularAdams` of order 3 uses.
_PREDICTED = PREDICTED[:2]
_CORRECTED = CORRECTED[:3]
_REACH: Final = 0.5  # the longest (1 + κ)|Δψ| with all the noise: best of a few tried


@final
@dataclass(frozen=True)
class AngularSDE(Multistep[ReverseSDE]):
    """`AngularAdams` with fresh noise, one evaluation a step.

    In φ = atan(σ/α) and y = x/√(α² + σ²) the reverse SDE of noise scale τ is, φ falling,
    dy = ((1+κ) v + κ tan φ y) dφ + √(2κ tan φ |dφ|) z, v = cos φ eps − sin φ x0, κ = τ². With
    c = cos φ_t/cos φ_s, ℓ_j the Lagrange polynomials on the ψ = log tan(φ/2) of the predictions,

    y_s = c^κ y_t + Σ_j w_j v_j + √(1 − c^{2κ}) z,
    w_j = (1+κ) ∫ (cos φ/cos φ_s)^κ ℓ_j(ψ) dφ from φ_t to φ_s,

    of two of them at most, three in the corrector (P-E-C, with the same z). Any κ that changes in
    time keeps the marginals p_t, and where the data is narrow a step is −(1+κ)|Δψ| on the axis of
    stability: κ is τ², or less where (1+κ)|Δψ| would exceed ½, and 0 where |Δψ| does. So the
    last four of 10 steps of `grid` have no noise, and all of 100 have it all.

    τ = 0 is `AngularAdams` of order 3. The step is exact for data N(0, I).

    Order: weak 2; strong 1, as z stands for an integral over the step. NFE: 1 a step.
    Errors: TypeError for an SDE that is not linear.
    Source: this package.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, AngularSDE(), (4, 2), steps=10).nfe
    10
    """

    order: ClassVar[float] = 2
    strong_order: ClassVar[float] = 1
    dynamics = ReverseSDE
    form: ClassVar[str] = "v"
    memory: ClassVar[int] = 3

    def grid(
        self, sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
    ) -> Tensor:
        """Return the grid that suits the solver, `angular`."""
        return angular(sde, steps, start, end)

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:
        return _step(at, i, i + 1, i, _PREDICTED, noise_scale)

    def corrector(self, at: Sequence[Level], i: int, noise_scale: float) -> Step | None:
        step = _step(at, i - 1, i, i, _CORRECTED, noise_scale)
        return step if len(step.b) > 1 else None


def _step(
    at: Sequence[Level], i: int, j: int, newest: int, most: Sequence[float], tau: float
) -> Step:
    """Return the step from at[i] to at[j] by the predictions at at[newest] and before."""
    start = half_angle(at[i])
    end = half_angle(at[j])
    cosine = at[j].alpha / at[j].radius
    length = abs(end - start)
    kappa = min(tau**2, max(_REACH / length - 1, 0.0))
    count = min(sum(length <= bound for bound in most), newest + 1)
    nodes = [at[newest - k] for k in range(count)]
    weights = integrals(  # cos φ = −tanh ψ and dφ = sin φ dψ
        [half_angle(node) for node in nodes],
        start,
        end,
        lambda psi: (1 + kappa) * (-np.tanh(psi) / cosine) ** kappa / np.cosh(psi),
    )
    radius = at[j].radius
    b = [radius / node.radius * w for node, w in zip(nodes, weights, strict=True)]
    ratio = at[i].alpha / at[i].radius / cosine
    if ratio == 0:  # from pure noise, none of which is kept where any is drawn
        return Step(0.0 if kappa else radius / at[i].radius, b, radius if kappa else 0.0)
    log_c = kappa * math.log(ratio)
    drawn = radius * math.sqrt(-math.expm1(2 * log_c)) if kappa else 0.0
    return Step(radius / at[i].radius * math.exp(log_c), b, drawn)
