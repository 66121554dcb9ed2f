"""SA-Solver: stochastic Adams methods of the reverse SDE in data form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import numpy as np

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.solvers._shared.exponential import latest
from sde_diffusion.solvers._shared.exponential_sde import kernel
from sde_diffusion.solvers._shared.weights import integrals

_REACH: Final = 40.0  # e-folds of the kernel: what is beyond is rounding, and spoils quadrature


def _adams(nodes: Sequence[Level], t: Level, s: Level, noise_scale: float) -> Step:
    """Return the step from t to s with x0 taken for its polynomial in λ through the nodes."""
    a, b, _, d = kernel("x0", t, s, noise_scale)
    k = 1 + noise_scale**2
    start = max(t.lambda_ - s.lambda_, -_REACH / k)
    places = [node.lambda_ - s.lambda_ for node in nodes]
    weights = integrals(places, start, 0.0, lambda u: k * np.exp(k * u))
    return Step(a, [b * w for w in weights], d)


def _check_points(name: str, points: int, least: int) -> None:
    if points not in range(least, 5):
        rule = f"be one of {least}, …, 4"
        raise wrong_value("SASolver", name, rule, points, f"pass {name}=2")


@final
@dataclass(frozen=True)
class SASolver(Multistep[ReverseSDE]):
    """SA-Solver, an Adams predictor and corrector without extra evaluations (P-E-C).

    x_s = (σ_s/σ_t) e^{−τ²h} x_t + α_s Σ_j b_j m_j + σ_s √(1 − e^{−2τ²h}) z,
    b_j = ∫ (1+τ²) e^{−(1+τ²)(λ_s−λ)} ℓ_j(λ) dλ from λ_t to λ_s,

    with τ the noise scale, h = λ_s − λ_t and ℓ_j the Lagrange polynomials on the λ of the
    predictions m_j of x0. First these are the last ``predictor_points``. Once the prediction at s
    is known the step is taken again, z too, with the last ``corrector_points`` that end there (not
    with 0). τ = 0 is an exponential Adams scheme of the ODE; the step is exact where E[x0 | x] is
    constant. One and two points, the default, extrapolate nothing, which serves large steps best.

    Order: weak 1 if the corrector, or the predictor without one, has one point, else 2; strong 1,
    as z stands for an integral ∫ e^{…} dw. NFE: 1 a step.
    Errors: ValueError for other numbers of points, TypeError for an SDE that is not linear.
    Source: Xue et al. 2023 (SA-Solver), algorithm 1; published codes add O(h³) to the weights of
    two points.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, SASolver(), (4, 2), steps=10).nfe
    10
    """

    predictor_points: int = 1
    corrector_points: int = 2
    dynamics = ReverseSDE
    form: ClassVar[str] = "x0"
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"predictor_points": p, "corrector_points": q} for p, q in ((1, 0), (1, 2), (2, 2))
    )

    def __post_init__(self) -> None:
        _check_points("predictor_points", self.predictor_points, least=1)
        _check_points("corrector_points", self.corrector_points, least=0)

    @property
    def order(self) -> int:
        """The weak order."""
        return min(self.corrector_points or self.predictor_points, 2)

    @property
    def memory(self) -> int:
        """The largest number of predictions that a step combines."""
        return max(self.predictor_points, self.corrector_points)

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:
        return _adams(latest(at, i, self.predictor_points), at[i], at[i + 1], noise_scale)

    def corrector(self, at: Sequence[Level], i: int, noise_scale: float) -> Step | None:
        if not self.corrector_points:
            return None
        return _adams(latest(at, i, self.corrector_points), at[i - 1], at[i], noise_scale)
