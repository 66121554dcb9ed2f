"""Denoising score matching for matrix-linear SDEs, whose kernel takes the place of simulation."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from sde_diffusion._check import an_object, wrong_type
from sde_diffusion._tensors import check_state, check_times, flat_sum
from sde_diffusion.models.matrix import MatrixScoreModel
from sde_diffusion.models.score import DirectScore, LearnedScore, ScoreModel
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.objectives.spacings import Spacing, Stratified
from sde_diffusion.time_distributions import TimeDistribution, UniformTimes


def hybrid_loss(model: MatrixScoreModel, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return ‖eps − eps_θ(x_t, t)‖²/D of the driven parts, with D elements; x_t = Φ x_0 + L eps.

    Parts that are no data start as noise and are integrated out with it: x_t is drawn from
    p(x_t | data), not from p(x_t | x_0). Its mean is least at the score's own −Lᵀ∇ log p_t.

    Arguments:
        model: its SDE, and its prediction eps_θ.
        x0: the data, scaled; (B, p·C, *rest).
        t: the times; () or (B,).
        eps: standard normal noise, in the shape of states; (B, n·C, *rest).

    Shapes: result (B,).
    Source: Dockhorn, Vahdat & Kreis 2022, section 3 (hybrid score matching, λ = ℓ_t⁻²).

    >>> import torch
    >>> from sde_diffusion import MLP, CriticallyDampedLangevin
    >>> model = MatrixScoreModel(MLP(2), CriticallyDampedLangevin())  # whose first output is 0
    >>> hybrid_loss(model, torch.ones(1, 1), torch.tensor(0.5), torch.tensor([[5.0, 3.0]])).item()
    9.0
    """
    remedy = "pass MatrixScoreModel(network, sde)"
    an_object("hybrid_loss", "model", model, MatrixScoreModel, remedy)
    check_state("hybrid_loss", x0, "x0")
    check_state("hybrid_loss", eps, "eps")
    check_times("hybrid_loss", t)
    error = eps - model.eps(model.sde.perturb(x0, t, eps), t)
    driven = error[:, eps.shape[1] // model.sde.parts * model.sde.driven :]
    return flat_sum(driven**2) / driven[0].numel()


@final
class HybridScoreMatching(Objective):
    """The mean of `hybrid_loss` over times and data, for a `MatrixScoreModel`.

    Arguments:
        law: the distribution of times over which the mean is minimised, of any SDE.
        spacing: how the quantiles u of a batch are spread over [0, 1).
        t_min: the least time.

    >>> HybridScoreMatching().t_min
    1e-05
    """

    def __init__(
        self,
        law: TimeDistribution | None = None,
        spacing: Spacing | None = None,
        t_min: float = 1e-5,
    ) -> None:
        law = UniformTimes() if law is None else law
        super().__init__(law, Stratified() if spacing is None else spacing, t_min)

    def check(self, model: ScoreModel) -> None:
        self._refuse(model)

    def check_direct(self, model: DirectScore) -> None:
        self._refuse(model)

    def check_matrix(self, model: MatrixScoreModel) -> None:
        """Accept every one."""

    def _refuse(self, model: LearnedScore) -> None:
        raise wrong_type(
            "HybridScoreMatching",
            "model",
            "be a MatrixScoreModel",
            type(model).__name__,
            "drop objective, or pass MatrixScoreModel(network, CriticallyDampedLangevin())",
        )

    def forward(self, model: Any, batch: Batch) -> Tensor:  # noqa: ANN401  (its base's is another)
        eps = batch.noise.normal(model.sde.start(batch.x0))
        return hybrid_loss(model, batch.x0, batch.t, eps)
