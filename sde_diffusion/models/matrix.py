"""The score model of a matrix-linear SDE: a network of the noise in the driven parts."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from sde_diffusion._block_matrix import parts_of
from sde_diffusion._check import an_object
from sde_diffusion._tensors import check_state, per_sample
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.matrix_sde import MatrixLinearSDE
from sde_diffusion.models.calls import check_failed
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.scores import check_result, tensor_in


@final
class MatrixScoreModel(LearnedScore):
    """The score −L⁻ᵀ eps_θ(x, t) of a matrix-linear SDE, x_t = Φ x_0 + L eps, in the driven parts.

    The network is called as ``network(x, t)`` with whole states and returns as many numbers. Where
    noise drives the last parts alone, as the velocities of a Langevin equation, only their score
    is learned and asked for: that of the parts before is 0. `HybridScoreMatching` trains it. The
    network's ``data`` describe the data, not the states.

    Shapes: x (B, n·C, *rest), t () or (B,); result like x.
    Errors: TypeError for anything but a network and a matrix-linear SDE.
    Source: Dockhorn, Vahdat & Kreis 2022, section 3.

    >>> import torch
    >>> from sde_diffusion import MLP, CriticallyDampedLangevin
    >>> model = MatrixScoreModel(MLP(2), CriticallyDampedLangevin())  # of one position
    >>> (model(torch.ones(1, 2), torch.tensor(0.5)) == 0).tolist()  # as the first output is
    [[True, True]]
    """

    prediction = "eps"
    sde: MatrixLinearSDE

    def __init__(
        self, network: nn.Module, sde: MatrixLinearSDE, *, data: DataSpec | None = None
    ) -> None:
        super().__init__(network, data)
        remedy = "pass CriticallyDampedLangevin(), or ScoreModel(network, sde) for a LinearSDE"
        an_object("MatrixScoreModel", "sde", sde, MatrixLinearSDE, remedy)
        self.sde = sde

    def _around(self, network: nn.Module) -> MatrixScoreModel:
        return MatrixScoreModel(network, self.sde, data=self.data).train(self.training)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.sde.score_matrix(t) * self.eps(x, t)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[eps | x_t] as learned, of x's shape; only the driven parts mean something."""
        check_state("MatrixScoreModel", x)
        parts_of("MatrixScoreModel", x, self.sde.parts)
        try:
            output = self.network(x, per_sample(t, x))
        except (TypeError, RuntimeError) as error:
            check_failed("MatrixScoreModel", self.network, x, error)
            raise
        return check_result("MatrixScoreModel", tensor_in(output), x)
