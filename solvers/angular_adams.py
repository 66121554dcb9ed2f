"""Adams predictor-corrector methods of the probability-flow ODE in the angle φ = atan(σ/α)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_number
from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.multistep import Step
from sde_diffusion.noise import Noise
from sde_diffusion.solvers._shared.angular import CORRECTED, PREDICTED, InAngle
from sde_diffusion.solvers._shared.checks import choice

# cos φ below which v hardly depends on the state, and so neither on the error of the first step.
_NOISE: Final = 0.1


@final
@dataclass(frozen=True)
class AngularAdams(InAngle):
    """Adams predictor-corrector in the angle, one evaluation a step: our recommended ODE solver.

    In φ = atan(σ/(α σ_d)) and y = x/(σ_d √(α² + σ²/σ_d²)) the probability-flow ODE of any
    linear SDE is dy/dφ = v, v = cos φ eps − sin φ x0/σ_d. Each prediction v first corrects the
    step that led to it, then makes the next one (P-E-C):

    y_s = y_t + Σ_j w_j v_j,  w_j = ∫ ℓ_j(ψ) dφ from φ_t to φ_s,  ψ = log tan(φ/2),

    with ℓ_j the Lagrange polynomials on the ψ of the last predictions, the one at s among them
    for the corrector. As many of them as the step |Δψ| allows are used, up to ``order`` by the
    corrector and one less by the predictor. Order 4 starts with one classical Runge–Kutta step in
    φ, order 5 with two, but not where the grid starts at noise.

    ``sigma_data``, σ_d, is the standard deviation of the data; only data far from 1 needs it.
    `grid` is the grid that suits it, which `sample` takes if it is given none.

    Order: 1 to 5, as asked for. NFE: 1 a step; 3 more in all for order 4 and 6 more for order 5
    if cos φ > .1 at the grid's start.
    Errors: ValueError for another order or a sigma_data that is not positive; TypeError for an
    SDE that is not linear.
    Source: this package; P-E-C schemes: Hairer, Nørsett & Wanner 1993, section III.1.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, AngularAdams(), (4, 2), steps=10).nfe
    10
    """

    certified: ClassVar[tuple[Mapping[str, Any], ...]] = (
        *({"order": p} for p in (1, 2, 3, 4, 5)),
        {"sigma_data": 0.5},
    )

    def __post_init__(self) -> None:
        choice("AngularAdams", "order", (1, 2, 3, 4, 5), self.order)
        positive_number("AngularAdams", "sigma_data", self.sigma_data)

    def starters(self, at: Sequence[Level]) -> int:
        """Return the number of first steps that are Runge–Kutta ones: none near noise."""
        return 0 if math.cos(self._scaled(at[0]).angle) < _NOISE else max(self.order - 3, 0)

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        # P: y_{i+1} from y_i by v_i, v_{i−1}, …
        return self._step(at, i, i + 1, i, PREDICTED[: max(self.order - 1, 1)])

    def corrector(self, at: Sequence[Level], i: int, noise_scale: float) -> Step | None:  # noqa: ARG002
        # C: y_i from y_{i−1} once more, by v_i at the predicted y_i, v_{i−1}, …
        step = self._step(at, i - 1, i, i, CORRECTED[: self.order])
        return step if len(step.b) > 1 else None

    def start(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        m: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        """Return the classical Runge–Kutta step in φ."""
        known = linear("AngularAdams", dynamics)
        at = known.level(t)
        to = known.level(s)
        start = self._scaled(at).angle
        dphi = self._scaled(to).angle - start
        u = known.time(-math.log(math.tan(start + 0.5 * dphi) * self.sigma_data))
        # y_s = y_t + (Δφ/6)(v₁ + 2v₂ + 2v₃ + v₄): v₂, v₃ at the middle angle, v₄ at φ_s.
        stages = ((u, 0.5, 2), (u, 0.5, 2), (s, 1.0, 1))
        total = m
        v = m
        for time, part, weight in stages:
            level = known.level(time)
            v = self.predict(dynamics, self._moved(x, at, level, v, part * dphi), time, level)
            total = torch.add(total, v, alpha=weight)
        return self._moved(x, at, to, total, dphi / 6)
