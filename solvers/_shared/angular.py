"""Adams steps of the probability-flow ODE in the angle φ = atan(σ/α)."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from torch import Tensor

from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.grids import angular
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers._shared.weights import Array, integrals

# The largest step |Δψ| at which so many values are used. Where the data is much narrower than the
# noise, v' = v/φ and a step is −Δψ on the axis of stability, where Adams–Bashforth methods of 2,
# 3 and 4 values end at 1, 6/11 and 3/10. The corrector's are what was best in trials.
PREDICTED: Final = (math.inf, 1.0, 6 / 11, 3 / 10)
CORRECTED: Final = (math.inf, 5 / 4, 1.0, 6 / 11, 3 / 10)


@dataclass(frozen=True)
class InAngle(Multistep[ProbabilityFlow], ABC):
    """A multistep method in φ, whose prediction is v of the data divided by σ_d."""

    order: int = 5
    sigma_data: float = 1.0
    dynamics = ProbabilityFlow
    form: ClassVar[str] = "v"

    @property
    def memory(self) -> int:
        """The largest number of predictions that a step combines."""
        return self.order

    def grid(
        self, sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
    ) -> Tensor:
        """Return the grid that suits the solver, `angular` with its sigma_data."""
        return angular(sde, steps, start, end, sigma_data=self.sigma_data)

    def predict(self, dynamics: ProbabilityFlow, x: Tensor, t: Tensor, at: Level) -> Tensor:
        """Return v of the data divided by σ_d."""
        v = dynamics.score.predict("v", x, t, at)
        d = self.sigma_data
        if d == 1:
            return v if abs(at.radius - 1) < 1e-14 else v / at.radius
        # cos φ eps − sin φ x0/σ_d of eps = (σ x + α v)/mixed and x0 = (α x − σ v)/mixed.
        scaled = self._scaled(at)
        mixed = at.alpha**2 + at.sigma**2
        skip = at.alpha * (at.sigma - scaled.sigma / d) / (mixed * scaled.radius)
        return (x * skip).add_(v, alpha=scaled.radius / mixed)

    def denoised(self, at: Level) -> tuple[float, float]:
        """Return p and q of E[x0 | x] = p x + q v."""
        scaled = self._scaled(at)
        return at.alpha / scaled.radius**2, -at.sigma / scaled.radius

    def _step(
        self, at: Sequence[Level], i: int, j: int, newest: int, most: Sequence[float]
    ) -> Step:
        """Return the step from at[i] to at[j] by the predictions at at[newest] and before."""
        t = self._scaled(at[i])
        s = self._scaled(at[j])
        start, end = half_angle(t), half_angle(s)
        count = min(sum(abs(end - start) <= bound for bound in most), newest + 1)
        # w_j = ∫ ℓ_j(ψ) dφ over the step, where dφ = sin φ dψ.
        if count == 1:
            weights = [s.angle - t.angle]
        else:
            nodes = [half_angle(self._scaled(at[newest - k])) for k in range(count)]
            weights = integrals(nodes, start, end, _sine)
        # x = σ_d r y with r = √(α² + σ²/σ_d²), so x_s = (r_s/r_t) x_t + σ_d r_s Σ_j w_j v_j.
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
