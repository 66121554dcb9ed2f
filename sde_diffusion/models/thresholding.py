"""Thresholding: score models whose predicted data stays inside limits, for any solver.

A threshold replaces x0 = E[x0 | x_t] by a clipped x̂0 and keeps the rest consistent with it:
eps = (x − alpha x̂0)/sigma, score = −eps/sigma. Every sample is clipped by itself. Data are in
[−1, 1], as for the published methods, unless a limit says otherwise.

Source: Saharia et al. 2022 (Imagen), section 2.3 and appendix C.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Self, final

import torch
from torch import Tensor

from sde_diffusion._check import number, positive_number, real_number, wrong_type, wrong_value
from sde_diffusion._tensors import expand
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.forms import converted
from sde_diffusion.scores import AroundScore, ScoreLike
from sde_diffusion.sde import LinearSDE


class Threshold(AroundScore, ABC):
    """A score model with clipped x0; the kinds differ in `clip` alone."""

    sde: LinearSDE

    def __init__(self, model: ScoreLike) -> None:
        if not isinstance(model, ScoreLike) or not isinstance(model.sde, LinearSDE):
            raise wrong_type(
                type(self).__name__,
                "model",
                "be a score model of a LinearSDE",
                type(model).__name__,
                "pass a ScoreModel, or an oracle's .diffused(sde)",
            )
        self.model = model
        self.sde = model.sde

    @abstractmethod
    def clip(self, x0: Tensor) -> Tensor:
        """Return x0 inside the limits."""

    @abstractmethod
    def _around(self, model: ScoreLike) -> Self:
        """Return the same threshold of another model."""

    @property
    def prediction(self) -> str:
        return "x0"

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score, so that the threshold itself is a score."""
        return self.score(x, t)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the clipped x̂0."""
        return self.clip(self.model.denoise(x, t))

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Return (x − alpha x̂0)/sigma."""
        alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
        return (x - alpha * self.denoise(x, t)) / sigma

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Return −eps/sigma."""
        return self.eps(x, t) / expand(-self.sde.sigma(t), x)

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        return converted(form, "x0", self.denoise(x, t), x, at)

    @property
    def variance(self) -> str:
        """That of the model, whose learned variance the clipped steps have."""
        return self.model.variance

    def with_fraction(self, form: str, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return a clipped form, and the fraction of the model's learned variance."""
        x0, fraction = self.model.with_fraction("x0", x, t)
        return converted(form, "x0", self.clip(x0), x, self._levels(x, t)), fraction

    def rows(self, index: Tensor) -> Self:
        part = self.model.rows(index)
        return self if part is self.model else self._around(part)


@final
class StaticThreshold(Threshold):
    """Static thresholding: x̂0 is x0 clipped to [low, high], by default [−1, 1].

    Errors: TypeError for a model that cannot denoise, ValueError unless low < high.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> model = StaticThreshold(Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE()))
    >>> t = torch.tensor(0.01, dtype=torch.float64)
    >>> model.denoise(torch.tensor([[0.5], [3.0]]), t).flatten().tolist()[1]
    1.0
    """

    def __init__(self, model: ScoreLike, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(model)
        for name, value in (("low", low), ("high", high)):
            real_number("StaticThreshold", name, value, "pass for example -1.0, 1.0")
        if not low < high:
            raise wrong_value(
                "StaticThreshold",
                "low, high",
                "satisfy low < high",
                f"{low}, {high}",
                "pass for example -1.0, 1.0",
            )
        self.low, self.high = low, high

    def clip(self, x0: Tensor) -> Tensor:
        return x0.clamp(self.low, self.high)

    def _around(self, model: ScoreLike) -> StaticThreshold:
        return StaticThreshold(model, self.low, self.high)


@final
class DynamicThreshold(Threshold):
    """Dynamic thresholding: x̂0 = clip(x0, −s, s) limit/s, s = max(quantile of |x0|, limit).

    The quantile is over one sample's own elements, so that a few of them saturate and the others
    move inward, instead of all that exceed the limit saturating.

    Errors: TypeError for a model that cannot denoise; ValueError for a quantile outside (0, 1] or
    a limit that is not positive.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> inner = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> x0 = torch.tensor([[2.0, -4.0]])
    >>> DynamicThreshold(inner, quantile=1.0).clip(x0).tolist()
    [[0.5, -1.0]]
    """

    def __init__(self, model: ScoreLike, quantile: float = 0.995, limit: float = 1.0) -> None:
        super().__init__(model)
        number("DynamicThreshold", "quantile", quantile, "pass .995")
        if not 0 < quantile <= 1:
            raise wrong_value(
                "DynamicThreshold", "quantile", "lie in (0, 1]", quantile, "pass .995"
            )
        positive_number("DynamicThreshold", "limit", limit)
        self.quantile = quantile
        self.limit = limit

    def clip(self, x0: Tensor) -> Tensor:
        s = expand(_quantile(x0.abs().flatten(1), self.quantile).clamp(min=self.limit), x0)
        # Scaled before it is clipped, which is the same: no rounding leads out of the limits.
        return (x0 * (self.limit / s)).clamp(-self.limit, self.limit)

    def _around(self, model: ScoreLike) -> DynamicThreshold:
        return DynamicThreshold(model, self.quantile, self.limit)


def _quantile(rows: Tensor, q: float) -> Tensor:
    """Return the q-quantile of every row, with linear interpolation: (B, D) → (B,).

    torch.quantile refuses half precision and more than 2²⁴ elements.
    """
    place = q * (rows.shape[1] - 1)
    low = math.floor(place)
    # The values from `low` on are the largest few, cheaper to find than to sort all.
    top = rows.topk(rows.shape[1] - low).values
    above = top[:, -2] if top.shape[1] > 1 else top[:, -1]
    return torch.lerp(top[:, -1], above, place - low)
