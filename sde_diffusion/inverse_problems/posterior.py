"""The score of p_t(x | y), as a wrapper of the score of p_t(x): for every solver."""

from __future__ import annotations

from typing import final

from torch import Tensor

from sde_diffusion._tensors import expand
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.forms import converted
from sde_diffusion.inverse_problems.checks import check_method, check_parts
from sde_diffusion.inverse_problems.likelihood_scores import LikelihoodScore, beside, tweedie
from sde_diffusion.inverse_problems.measurement import Measurement
from sde_diffusion.scores import AroundScore, ScoreLike
from sde_diffusion.sde import LinearSDE


@final
class PosteriorScore(AroundScore):
    """∇ log p_t(x | y) = ∇ log p_t(x) + ∇ log p(y | x_t), the last one approximately.

    So every solver draws from a posterior, approximately: `sample_posterior` weighs such draws so
    that they are exact in the limit, and `sde-diffusion verify --posterior` measures both.

    Arguments:
        model: the score of the data, of a linear SDE.
        measurement: y and how it was made.
        method: the approximation of ∇ log p(y | x_t), such as MMPS().

    NFE: 1 an evaluation, and the vector-Jacobian products of the method.
    Errors: TypeError for what is no score model, measurement or method.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> from sde_diffusion.inverse_problems import DenseMMPS, Matrix
    >>> from sde_diffusion.solvers import Heun
    >>> prior = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> seen = Measurement(Matrix(torch.eye(1)), torch.tensor([[1.0]]), std=1.0)
    >>> found = sample(PosteriorScore(prior, seen, DenseMMPS()), Heun(), (4000, 1), steps=50).x
    >>> round(found.mean().item(), 1), round(found.var().item(), 1)  # the posterior is N(½, ½)
    (0.5, 0.5)
    """

    sde: LinearSDE
    predicts = True
    prediction = "x0"

    def __init__(
        self, model: ScoreLike, measurement: Measurement, method: LikelihoodScore
    ) -> None:
        check_parts("PosteriorScore", model, measurement)
        check_method("PosteriorScore", method)
        self.model = model
        self.measurement = measurement
        self.method = method
        self.sde = model.linear_sde()

    def in_double(self) -> PosteriorScore:
        return PosteriorScore(self.model.in_double(), self.measurement, self.method)

    def rows(self, index: Tensor) -> PosteriorScore:
        model = self.model.rows(index)
        measurement = self.measurement.rows(index)
        if model is self.model and measurement is self.measurement:
            return self
        return PosteriorScore(model, measurement, self.method)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ∇ log p_t(x | y)."""
        at = Levels(self.sde.alpha(t), self.sde.sigma(t))
        return self.predict("eps", x, t, at) / expand(-at.sigma, x)

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        gamma = beside(tweedie(at), x)
        guess = self.method(self.model, x, t, at, self.measurement)
        return converted(form, "x0", guess.x0 + gamma * guess.gradient, x, at)
