"""Adams–Bashforth methods of the probability flow dy/dρ = eps, with y = x/α and ρ = σ/α."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.coefficients import Coefficients, Level
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import CountedScore, ProbabilityFlow, linear
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers.edm_heun import heun_in_rho, kutta_in_rho

# What eps is taken for a polynomial in, as a function of λ = −log ρ.
VARIABLES: Final[Mapping[str, Callable[[LinearSDE, Tensor], Tensor]]] = {
    "t": lambda sde, lambda_: sde.time(lambda_),
    "rho": lambda sde, lambda_: torch.exp(-lambda_),  # noqa: ARG005
    "lambda": lambda sde, lambda_: lambda_,  # noqa: ARG005
}
Start: TypeAlias = Callable[[Coefficients, CountedScore, Tensor, Tensor, Tensor, Tensor], Tensor]
# An order p needs p − 1 states with errors O(dt^p): a step of order p − 1 makes one, and so does
# the polynomial of degree p − 2 as soon as it has its p − 1 predictions.
STARTS: Final[Mapping[int, Sequence[Start]]] = {
    1: (), 2: (), 3: (heun_in_rho,), 4: (kutta_in_rho, kutta_in_rho),
}  # fmt: skip
_POINTS, _MASSES = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(32))


def adams_weights_in_rho(
    sde: LinearSDE, lambda_: Tensor, order: int, variable: str
) -> list[list[float]]:
    """Return w_ij = ∫ ℓ_j(u(ρ)) dρ over step i, for the predictions at u_i, u_i−1, ….

    ℓ_j are the Lagrange polynomials in the variable u on the last ``order`` times, or on as many
    as there are. The integral is taken in λ, where t is smooth even at the ends of a schedule.
    """
    u, half = VARIABLES[variable](sde, lambda_), 0.5 * lambda_.diff()[:, None]
    inside = lambda_[:-1, None] + half * (1 + _POINTS)
    masses, inside = -half * _MASSES * torch.exp(-inside), VARIABLES[variable](sde, inside)
    weights: list[list[float]] = []
    for k in range(1, min(order, len(half)) + 1):  # the steps that have k predictions
        count = 1 if k < order else len(half) - k + 1
        nodes = [u[k - 1 - j : k - 1 - j + count, None] for j in range(k)]
        columns = []
        for node in nodes:
            basis = masses[k - 1 : k - 1 + count]
            for other in nodes:
                if other is not node:
                    basis = basis * (inside[k - 1 : k - 1 + count] - other) / (node - other)
            columns.append(basis.sum(1))
        weights += torch.stack(columns, 1).tolist()
    return weights


@final
@dataclass(frozen=True)
class _AdamsInRho(Multistep[ProbabilityFlow]):
    """The steps y_s = y_t + Σ_j w_j eps_j, the weights of all steps given."""

    weights: Sequence[Sequence[float]]
    first: Sequence[Start]
    dynamics: ClassVar[type[Any]] = ProbabilityFlow
    form: ClassVar[str] = "eps"

    @property
    def memory(self) -> int:
        return max(map(len, self.weights), default=1)

    def starters(self, at: Sequence[Level]) -> int:  # noqa: ARG002
        return len(self.first)

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        alpha = at[i + 1].alpha
        return Step(alpha / at[i].alpha, [alpha * w for w in self.weights[i]])

    def start(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        m: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        return self.first[0](linear("DEIS", dynamics), dynamics.score, x, m, t, s)


def adams_in_rho(
    what: str,
    dynamics: ProbabilityFlow,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    *,
    order: int,
    variable: str,
    first: Sequence[Start] = (),
) -> Iterator[Tensor]:
    """Yield the states along the grid, the first of them by the Runge–Kutta steps ``first``."""
    known = linear(what, dynamics)
    lambdas = (known.level(t).lambda_ for t in grid)
    finite = torch.tensor([v for v in lambdas if v < math.inf], dtype=torch.float64)
    weights = adams_weights_in_rho(known.sde, finite, order, variable)
    return _AdamsInRho(weights, first).steps(dynamics, x, grid, noise)
