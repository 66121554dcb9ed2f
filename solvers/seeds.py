"""SEEDS: singlestep exponential integrators of the reverse SDE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, final

from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.integration import OneStep
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ReverseSDE, linear

# Row i: the place r of stage i between λ_t and λ_s, and the two predictions through which the line
# goes that leads there from λ_t; the same one twice stands for a constant.
_ROWS: Final = {
    1: ((1, 0, 0),),
    2: ((1 / 2, 0, 0), (1, 1, 1)),
    3: ((1 / 3, 0, 0), (2 / 3, 0, 1), (1, 0, 2)),
}


class Kernel(NamedTuple):
    """The numbers of x_s = a x_t + b ∫ c e^{−c(1−r)} m(r) dr + d z, r from 0 at t to 1 at s."""

    a: float
    b: float
    c: float
    d: float


def kernel(form: str, t: Level, s: Level, tau: float) -> Kernel:
    """Return the exact step, m being x0 or eps as a function of r = (λ − λ_t)/(λ_s − λ_t)."""
    h = s.lambda_ - t.lambda_
    if form == "x0":
        decay, spread = math.exp(-(tau**2) * h), math.sqrt(-math.expm1(-2 * tau**2 * h))
        return Kernel(s.sigma / t.sigma * decay, s.alpha, (1 + tau**2) * h, s.sigma * spread)
    spread = tau * math.sqrt(math.expm1(2 * h)) if tau else 0.0  # a flow may have h < 0
    return Kernel(s.alpha / t.alpha, (1 + tau**2) * s.sigma, -h, s.sigma * spread)


def phis(c: float) -> tuple[float, float, float]:
    """Return φ_k = ∫₀¹ c e^{−c(1−r)} r^{k−1}/(k−1)! dr for k = 1, 2, 3."""
    one = -math.expm1(-c)
    two = 1 - one / c
    return one, two, 0.5 - two / c


def staged(
    form: str,
    stages: int,
    dynamics: ReverseSDE,
    x: Tensor,
    m: Tensor,
    t: Tensor,
    s: Tensor,
    noise: Noise,
) -> Tensor:
    """Return the state at s of a step with so many stages; m is the prediction at t."""
    known, tau = linear("SEEDS", dynamics), dynamics.noise_scale
    at, to = known.level(t), known.level(s)
    found, places, y, drawn = [m], [0.0], x, None
    before, here = t, at
    for r, j, k in _ROWS[stages]:
        if len(found) <= k:
            found.append(dynamics.score.predict(form, y, before, here))
        u = s if r == 1 else known.time(at.lambda_ + r * (to.lambda_ - at.lambda_))
        level = known.level(u)
        a, b, c, _ = kernel(form, at, level, tau)
        one, two, _ = phis(c)
        slope = two * r / (places[k] - places[j]) if j != k else 0.0
        y = (x * a).add_(found[j], alpha=b * (one - slope))
        if slope:
            y.add_(found[k], alpha=b * slope)
        if tau:  # the integral up to u of one noise, not a draw of its own for each stage
            a, _, _, d = kernel(form, here, level, tau)
            z = noise.unit(x, before, u) * d
            drawn = z if drawn is None else z.add_(drawn, alpha=a)
            y.add_(drawn)
        places.append(r)
        before, here = u, level
    return y


@final
@dataclass(frozen=True)
class SEEDS(OneStep[ReverseSDE]):
    """SEEDS-1, -2 and -3: DPM-Solver's stages with the noise up to each, in data or noise form.

    x0: x_s = (σ_s/σ_t) e^{−τ²h} x_t + α_s ∫ (1+τ²) e^{−(1+τ²)(λ_s−λ)} x0 dλ + σ_s √(1−e^{−2τ²h}) z
    eps: x_s = (α_s/α_t) x_t − (1+τ²) σ_s ∫ e^{λ_s−λ} eps dλ + τ σ_s √(e^{2h} − 1) z

    with τ the noise scale and h = λ_s − λ_t. 1 stage: the prediction is taken for constant.
    2: for its value at λ_t + ½h. 3: for the line through its values at λ_t and λ_t + ⅔h, the
    latter reached by the line through λ_t and λ_t + ⅓h. The noise of a stage is what has come of
    the last stage's, and a new draw for the stretch between. (Published code gives two of the
    three draws each other's factor.)

    τ = 0 is the singlestep DPM-Solver of that order, or DPM-Solver++ for the form x0, whose step
    is exact where E[x0 | x] is constant. The form eps is the paper's own, and diverges in steps of
    h > ½ or so: its noise outgrows σ_s, and only eps takes it back.

    Order: weak 1 for one stage, else 2; strong 1, as z stands for an integral ∫ e^{…} dw. NFE: the
    stages, a step; 1 for a step to σ_s = 0.
    Errors: ValueError for other stages or forms, TypeError for an SDE that is not linear.
    Source: Gonzalez et al. 2023 (SEEDS), algorithms 1 to 4, there for τ = 1.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, SEEDS(stages=2), (4, 2), steps=5).nfe
    10
    """

    stages: int = 3
    form: str = "x0"
    dynamics = ReverseSDE
    strong_order: ClassVar[float] = 1
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"stages": stages, "form": form} for form in ("x0", "eps") for stages in (1, 2, 3)
    )

    def __post_init__(self) -> None:
        if self.stages not in (1, 2, 3):
            raise wrong_value("SEEDS", "stages", "be 1, 2 or 3", self.stages, "pass stages=3")
        if self.form not in ("x0", "eps"):
            raise wrong_value("SEEDS", "form", "be x0 or eps", self.form, "pass form='x0'")

    @property
    def order(self) -> int:  # type: ignore[override]  # depends on the stages
        """The weak order."""
        return min(self.stages, 2)

    @property
    def evaluations(self) -> int:
        """Network calls a step."""
        return self.stages

    def step(self, dynamics: ReverseSDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        known, score = linear("SEEDS", dynamics), dynamics.score
        if known.level(s).sigma == 0:
            return score.predict("x0", x, t, known.level(t)) * known.level(s).alpha
        m = score.predict(self.form, x, t, known.level(t))
        return staged(self.form, self.stages, dynamics, x, m, t, s, noise)
