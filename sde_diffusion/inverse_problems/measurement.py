"""What was measured: y = A(x) + sigma_y n."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor

from sde_diffusion._check import positive_number, wrong_type, wrong_value
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state, flat_sum
from sde_diffusion.inverse_problems.operators import Operator
from sde_diffusion.noise import PerSampleNoise


@final
class Measurement:
    """A measurement y = A(x) + sigma_y n of samples x, n ~ N(0, I).

    Arguments:
        operator: A.
        y: what was measured: one for all samples, (1, *measurement), or one a row,
            (B, *measurement).
        std: sigma_y, above 0, in the unit of y.

    >>> import torch
    >>> from sde_diffusion.inverse_problems import Matrix
    >>> found = Measurement(Matrix(torch.ones(1, 2)), torch.tensor([[1.0]]), std=0.5)
    >>> found.residual(torch.tensor([[0.5, 0.0], [2.0, 1.0]])).tolist()
    [[0.5], [-2.0]]
    """

    __repr__ = shown

    def __init__(self, operator: Operator, y: Tensor, std: float) -> None:
        if not isinstance(operator, Operator):
            raise wrong_type(
                "Measurement",
                "operator",
                "be an Operator",
                type(operator).__name__,
                "pass for example Mask(kept), or Nonlinear(function)",
            )
        check_state("Measurement", y, "y")
        positive_number("Measurement", "std", std, "pass for example 0.05")
        self.operator = operator
        self.y = y
        self.std = float(std)

    @classmethod
    def drawn(
        cls, operator: Operator, x: Tensor, std: float, *, seed: int = 0, first: int = 0
    ) -> Measurement:
        """Return a measurement of every sample, with the noise drawn.

        Arguments:
            operator: A.
            x: the samples that are measured; (B, *event).
            std: sigma_y.
            seed: of the noise; a sample's depends on it and on the sample's number alone.
            first: the number of the first sample.
        """
        exact = operator(x)
        noise = PerSampleNoise.numbered(mix(seed, Purpose.MEASUREMENT), first, len(x))
        return cls(operator, exact + std * noise.normal(exact), std)

    def residual(self, x0: Tensor) -> Tensor:
        """Return y − A(x0), one a row."""
        predicted = self.operator(x0)
        y = self.y.to(predicted)
        if y.shape[1:] != predicted.shape[1:] or len(y) not in (1, len(predicted)):
            raise wrong_value(
                "Measurement",
                "y",
                f"have the shape {tuple(predicted.shape)} of the operator's result, or one row",
                tuple(y.shape),
                "measure samples of the model's shape, as many as are drawn",
            )
        return y - predicted

    def log_prob(self, x0: Tensor) -> Tensor:
        """Return log p(y | x0), the density of N(A(x0), sigma_y² I) at y.

        Shapes: (B, *event) → (B,). Units: nats.
        """
        z = self.residual(x0).double() / self.std
        each = 0.5 * math.log(2 * math.pi) + math.log(self.std)
        return -0.5 * flat_sum(z * z) - z[0].numel() * each

    def rows(self, index: Tensor) -> Measurement:
        """Return the measurement of the samples ``index``."""
        if len(self.y) == 1:
            return self
        return Measurement(self.operator, self.y[index.to(self.y.device)], self.std)
