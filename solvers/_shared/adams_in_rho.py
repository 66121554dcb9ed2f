"""Adams–Bashforth methods of the probability-flow ODE dy/dρ = eps, with y = x/α and ρ = σ/α."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion.coefficients import Coefficients, Level
from sde_diffusion.counting import CountedScore
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.solvers._shared.weights_in_rho import adams_weights_in_rho
from sde_diffusion.solvers.edm_heun import heun_in_rho, kutta_in_rho

Start: TypeAlias = Callable[[Coefficients, CountedScore, Tensor, Tensor, Tensor, Tensor], Tensor]
# An order p needs p − 1 states with errors O(dt^p): a step of order p − 1 makes one, and so does
# the polynomial of degree p − 2 as soon as it has its p − 1 predictions.
STARTS: Final[Mapping[int, Sequence[Start]]] = {
    1: (),
    2: (),
    3: (heun_in_rho,),
    4: (kutta_in_rho, kutta_in_rho),
}


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
    """Yield the states along the grid.

    Arguments:
        what: the solver that refuses an SDE that is not linear.
        dynamics: the probability-flow ODE.
        x: the states at grid[0], (B, *event).
        grid: the times of the solve, (steps + 1,).
        noise: the source of normals, of which none is drawn.
        order: the number of predictions that a step combines, at most.
        variable: a key of `VARIABLES`, that in which eps is taken for a polynomial.
        first: the Runge–Kutta steps with which the solve starts.
    """
    known = linear(what, dynamics)
    levels = [known.level(t) for t in grid]
    levels = levels[1:] if levels[0].pure_noise else levels  # from which there is no polynomial
    finite = torch.tensor([v.lambda_ for v in levels if v.sigma > 0], dtype=torch.float64)
    weights = adams_weights_in_rho(known.sde, finite, order, variable)
    return _AdamsInRho(weights, first).steps(dynamics, x, grid, noise)
