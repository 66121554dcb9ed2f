"""Adams predictor-corrector methods of the probability flow in the angle φ = atan(σ/α)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._check import positive_number, wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.grids import angular
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ProbabilityFlow, linear
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers._weights import Array, integrals

# The largest step |Δψ| at which so many values are used. Where the data is much narrower than the
# noise, v' = v/φ and a step is −Δψ on the axis of stability, where Adams–Bashforth methods of 2,
# 3 and 4 values end at 1, 6/11 and 3/10. The corrector's are what was best in trials.
PREDICTED: Final = (math.inf, 1.0, 6 / 11, 3 / 10)
CORRECTED: Final = (math.inf, 5 / 4, 1.0, 6 / 11, 3 / 10)
_NOISE: Final = 0.1  # cos φ below which v hardly depends on the state


@final
@dataclass(frozen=True)
class AngularAdams(Multistep[ProbabilityFlow]):
    """Adams predictor-corrector in the angle, one evaluation a step: our recommended ODE solver.

    In φ = atan(σ/(α σ_d)) and y = x/(σ_d √(α² + σ²/σ_d²)) the flow of any linear SDE is dy/dφ = v,
    v = cos φ eps − sin φ x0/σ_d. Each prediction v first corrects the step that led to it, then
    makes the next one (P-E-C):

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

    order: int = 5
    sigma_data: float = 1.0
    dynamics = ProbabilityFlow
    form: ClassVar[str] = "v"
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = (
        *({"order": p} for p in (1, 2, 3, 4, 5)), {"sigma_data": 0.5},
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4, 5):
            raise wrong_value("AngularAdams", "order", "be 1, 2, 3, 4 or 5", self.order,
                              "pass order=5")  # fmt: skip
        positive_number("AngularAdams", "sigma_data", self.sigma_data)

    @property
    def memory(self) -> int:
        """The largest number of predictions that a step combines."""
        return self.order

    def starters(self, at: Sequence[Level]) -> int:
        """Return the number of first steps that are Runge–Kutta ones.

        Where there is almost only noise v hardly depends on the state, and so neither on the error
        of the first step.
        """
        return 0 if math.cos(self._scaled(at[0]).angle) < _NOISE else max(self.order - 3, 0)

    def grid(
        self, sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
    ) -> Tensor:
        """Return the grid that suits the solver, `angular` with its sigma_data."""
        return angular(sde, steps, start, end, sigma_data=self.sigma_data)

    def predict(self, dynamics: ProbabilityFlow, x: Tensor, t: Tensor, at: Level) -> Tensor:
        """Return v of the data divided by σ_d."""
        v, d = super().predict(dynamics, x, t, at), self.sigma_data
        if d == 1:
            return v if abs(at.radius - 1) < 1e-14 else v / at.radius
        scaled, mixed = self._scaled(at), at.alpha**2 + at.sigma**2
        skip = at.alpha * (at.sigma - scaled.sigma / d) / (mixed * scaled.radius)
        return (x * skip).add_(v, alpha=scaled.radius / mixed)

    def denoised(self, at: Level) -> tuple[float, float]:
        """Return p and q of E[x0 | x] = p x + q v."""
        scaled = self._scaled(at)
        return at.alpha / scaled.radius**2, -at.sigma / scaled.radius

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        return self._step(at, i, i + 1, i, PREDICTED[: max(self.order - 1, 1)])

    def corrector(self, at: Sequence[Level], i: int, noise_scale: float) -> Step | None:  # noqa: ARG002
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
        at, to = known.level(t), known.level(s)
        start = self._scaled(at).angle
        dphi = self._scaled(to).angle - start
        u = known.time(-math.log(math.tan(start + 0.5 * dphi) * self.sigma_data))
        stages, total, v = ((u, 0.5, 2), (u, 0.5, 2), (s, 1.0, 1)), m, m
        for time, part, weight in stages:
            level = known.level(time)
            v = self.predict(dynamics, self._moved(x, at, level, v, part * dphi), time, level)
            total = torch.add(total, v, alpha=weight)
        return self._moved(x, at, to, total, dphi / 6)

    def _step(
        self, at: Sequence[Level], i: int, j: int, newest: int, most: Sequence[float]
    ) -> Step:
        """Return the step from at[i] to at[j] by the predictions at at[newest] and before."""
        t, s = self._scaled(at[i]), self._scaled(at[j])
        start, end = half_angle(t), half_angle(s)
        count = min(sum(abs(end - start) <= bound for bound in most), newest + 1)
        if count == 1:
            weights = [s.angle - t.angle]
        else:
            nodes = [half_angle(self._scaled(at[newest - k])) for k in range(count)]
            weights = integrals(nodes, start, end, _sine)
        scale = self.sigma_data * s.radius
        return Step(s.radius / t.radius, [scale * w for w in weights])

    def _moved(self, x: Tensor, at: Level, to: Level, v: Tensor, dphi: float) -> Tensor:
        """Return the state at ``to`` whose y is that of ``x`` plus dphi v."""
        radius = self._scaled(to).radius
        x = x * (radius / self._scaled(at).radius)
        return x.add_(v, alpha=self.sigma_data * radius * dphi)

    def _scaled(self, at: Level) -> Level:
        """Return the level of x/σ_d, whose data has standard deviation 1."""
        d = self.sigma_data
        return Level(at.alpha, at.sigma / d, at.lambda_ + math.log(d))


def half_angle(at: Level) -> float:
    """Return ψ = log tan(φ/2) = −asinh(1/tan φ)."""
    return -math.asinh(at.alpha / at.sigma) if at.sigma > 0 else -math.inf


def _sine(psi: Array) -> Array:
    """Return sin φ = dφ/dψ."""
    found: Array = 1 / np.cosh(psi)
    return found
