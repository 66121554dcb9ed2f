"""How the noise of a batch is paired with its data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sde_diffusion._shown import shown


class Coupling(ABC):
    """A rule that pairs the rows of a batch with rows of noise; neither distribution changes."""

    name: str

    __repr__ = shown

    @abstractmethod
    def pair(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return the noise, permuted so that each row is paired with that row of the data.

        Shapes: x0, eps and result (B, *event).
        """


@final
class IndependentCoupling(Coupling):
    """The noise in the order in which it was drawn.

    >>> IndependentCoupling().pair(torch.zeros(2, 1), torch.tensor([[2.0], [1.0]])).tolist()
    [[2.0], [1.0]]
    """

    name = "independent"

    def pair(self, x0: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002
        return eps


@final
class OptimalTransport(Coupling):
    """The permutation of the noise with the least Σ ‖x0 − eps‖² over the batch.

    The flow with the velocity E[alpha' x0 + sigma' eps | x_t] still takes the noise to the data,
    along straighter paths. But x_t given x0 is no longer normal, −E[eps | x_t]/sigma is not the
    score, and no bound on the likelihood holds: such a model is for `ProbabilityFlow` alone.

    Source: Pooladian et al. 2023; Tong et al. 2024 (Minibatch optimal transport).

    >>> x0, eps = torch.tensor([[0.0], [3.0]]), torch.tensor([[2.0], [1.0]])
    >>> OptimalTransport().pair(x0, eps).tolist()
    [[1.0], [2.0]]
    """

    name = "optimal-transport"

    def pair(self, x0: Tensor, eps: Tensor) -> Tensor:
        # ‖x0‖² and ‖eps‖² sum to the same for every permutation.
        cost = -(x0.double().flatten(1) @ eps.double().flatten(1).T)
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        return eps[torch.from_numpy(columns).to(eps.device)]


COUPLINGS: Final[dict[str, Coupling]] = {
    coupling.name: coupling for coupling in (IndependentCoupling(), OptimalTransport())
}
