"""DEIS: exponential integrators that extrapolate eps by polynomials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver
from sde_diffusion.solvers._shared.adams_in_rho import STARTS, adams_in_rho
from sde_diffusion.solvers._shared.checks import choice
from sde_diffusion.solvers._shared.weights_in_rho import VARIABLES


@final
@dataclass(frozen=True)
class DEIS(Solver[ProbabilityFlow]):
    """Exponential integrator x_s = α_s (x_t/α_t + Σ_j w_j eps_j), w_j = ∫_{ρ_t}^{ρ_s} ℓ_j(u) dρ.

    The last predictions are extrapolated by a polynomial in the ``variable`` u: "t" (the paper's
    tAB), "rho" = σ/α (its ρAB) or "lambda" = −log ρ (what diffusers calls DEIS; the polynomial is
    that of DPM-Solver's multistep methods). Order 3 starts with one Heun step in ρ, order 4 with
    two of Kutta's, then with the polynomial of one degree less.

    Order: 1 to 4, as asked for; 1 is the DDIM. NFE: 1 a step, 1 more in all for order 3, 4 more
    for order 4.
    Errors: ValueError for another order or variable; TypeError for an SDE that is not linear.
    Source: Zhang & Chen 2023, sections 3 and 4.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, DEIS(order=3), (4, 2), steps=10).nfe
    11
    """

    order: int = 3
    variable: str = "t"
    dynamics = ProbabilityFlow
    evaluations: ClassVar[int] = 1
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        [{"order": order} for order in (1, 2, 3, 4)]
        + [{"order": order, "variable": "lambda"} for order in (2, 3, 4)]
    )

    def __post_init__(self) -> None:
        choice("DEIS", "order", (1, 2, 3, 4), self.order)
        choice("DEIS", "variable", tuple(VARIABLES), self.variable)

    def steps(
        self, dynamics: ProbabilityFlow, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid."""
        return adams_in_rho(
            "DEIS",
            dynamics,
            x,
            grid,
            noise,
            order=self.order,
            variable=self.variable,
            first=STARTS[self.order],
        )
