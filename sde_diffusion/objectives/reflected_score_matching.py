"""Denoising score matching between walls, by the kernel of the reflected diffusion."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from sde_diffusion._check import wrong_type
from sde_diffusion._tensors import expand, flat_sum
from sde_diffusion.models.matrix import MatrixScoreModel
from sde_diffusion.models.score import DirectScore, LearnedScore, ScoreModel
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.objectives.spacings import Spacing, Stratified
from sde_diffusion.reflected_sde import ReflectedDiffusion
from sde_diffusion.time_distributions import TimeDistribution, UniformTimes


@final
class ReflectedScoreMatching(Objective):
    """v(t) ‖s_θ(x_t, t) − ∇ log p_t(x_t | x0)‖²/D, x_t a draw of the kernel: no path is simulated.

    For a `DirectScore` of a `ReflectedDiffusion`, and data in [0, 1].

    Arguments:
        law: the distribution of times over which the mean is minimised, of any SDE.
        spacing: how the quantiles u of a batch are spread over [0, 1).
        t_min: the least time.

    Source: Lou & Ermon 2023, section 4.

    >>> ReflectedScoreMatching().t_min
    0.001
    """

    def __init__(
        self,
        law: TimeDistribution | None = None,
        spacing: Spacing | None = None,
        t_min: float = 1e-3,
    ) -> None:
        law = UniformTimes() if law is None else law
        super().__init__(law, Stratified() if spacing is None else spacing, t_min)

    def check(self, model: ScoreModel) -> None:
        self._refuse(model)

    def check_direct(self, model: DirectScore) -> None:
        if not isinstance(model.sde, ReflectedDiffusion):
            self._refuse(model)

    def check_matrix(self, model: MatrixScoreModel) -> None:
        self._refuse(model)

    def _refuse(self, model: LearnedScore) -> None:
        raise wrong_type(
            "ReflectedScoreMatching",
            "model",
            "be a DirectScore of a ReflectedDiffusion",
            f"{type(model).__name__} of {type(model.sde).__name__}",
            "pass DirectScore(network, ReflectedDiffusion())",
        )

    def forward(self, model: Any, batch: Batch) -> Tensor:  # noqa: ANN401  (its base's is another)
        x0, t = batch.x0, batch.t
        x = model.sde.perturb(x0, t, batch.noise.normal(x0))
        off = model(x, t) - model.sde.kernel_score(x, x0, t).to(x.dtype)
        scaled = expand(model.sde.variance(t).sqrt(), x) * off
        found: Tensor = flat_sum(scaled**2) / x[0].numel()
        return found
