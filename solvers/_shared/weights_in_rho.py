"""Weights of Adams–Bashforth methods in ρ = σ/α, for polynomials in another variable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.sde import LinearSDE

# What eps is taken for a polynomial in, as a function of λ = −log ρ.
VARIABLES: Final[Mapping[str, Callable[[LinearSDE, Tensor], Tensor]]] = {
    "t": lambda sde, lambda_: sde.time(lambda_),
    "rho": lambda sde, lambda_: torch.exp(-lambda_),  # noqa: ARG005
    "lambda": lambda sde, lambda_: lambda_,  # noqa: ARG005
}
_POINTS, _MASSES = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(32))


def adams_weights_in_rho(
    sde: LinearSDE, lambda_: Tensor, order: int, variable: str
) -> list[list[float]]:
    """Return w_ij = ∫ ℓ_j(u(ρ)) dρ over step i, for the predictions at u_i, u_i−1, ….

    ℓ_j are the Lagrange polynomials in the variable u on the last ``order`` times, or on as many
    as there are. The integral is taken in λ, where t is smooth even at the ends of a schedule.

    Arguments:
        sde: the SDE, for its time as a function of λ.
        lambda_: λ at the times of the grid, (steps + 1,).
        order: the number of predictions that a step combines, at most.
        variable: a key of `VARIABLES`, the name of u.
    """
    u = VARIABLES[variable](sde, lambda_)
    half = 0.5 * lambda_.diff()[:, None]
    inside = lambda_[:-1, None] + half * (1 + _POINTS)
    masses = -half * _MASSES * torch.exp(-inside)
    inside = VARIABLES[variable](sde, inside)
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
