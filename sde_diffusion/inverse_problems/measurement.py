"""What was measured: y of A(x) and noise."""

from __future__ import annotations

from typing import final

from torch import Tensor

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state
from sde_diffusion.inverse_problems.measurement_noise import GaussianNoise, MeasurementNoise
from sde_diffusion.inverse_problems.operators import Operator
from sde_diffusion.noise import PerSampleNoise


@final
class Measurement:
    """A measurement y of samples x: y = A(x) + sigma_y n, n ~ N(0, I), or by another noise.

    Arguments:
        operator: A.
        y: what was measured: one for all samples, (1, *measurement), or one a row,
            (B, *measurement).
        std: sigma_y, above 0, in the unit of y; or a `MeasurementNoise` such as
            PoissonNoise(30.0), which samplers by closed forms refuse.

    >>> import torch
    >>> from sde_diffusion.inverse_problems import Matrix
    >>> found = Measurement(Matrix(torch.ones(1, 2)), torch.tensor([[1.0]]), std=0.5)
    >>> found.residual(torch.tensor([[0.5, 0.0], [2.0, 1.0]])).tolist()
    [[0.5], [-2.0]]
    """

    __repr__ = shown

    def __init__(self, operator: Operator, y: Tensor, std: float | MeasurementNoise) -> None:
        if not isinstance(operator, Operator):
            raise wrong_type(
                "Measurement",
                "operator",
                "be an Operator",
                type(operator).__name__,
                "pass for example Mask(kept), or Nonlinear(function)",
            )
        check_state("Measurement", y, "y")
        self.operator = operator
        self.y = y
        self.noise = _noise(std)

    @classmethod
    def drawn(
        cls,
        operator: Operator,
        x: Tensor,
        std: float | MeasurementNoise,
        *,
        seed: int = 0,
        first: int = 0,
    ) -> Measurement:
        """Return a measurement of every sample, with the noise drawn.

        Arguments:
            operator: A.
            x: the samples that are measured; (B, *event).
            std: sigma_y, or another noise.
            seed: of the noise; a sample's depends on it and on the sample's number alone.
            first: the number of the first sample.
        """
        exact = operator(x)
        noise = PerSampleNoise.numbered(mix(seed, Purpose.MEASUREMENT), first, len(x))
        return cls(operator, _noise(std).drawn(exact, noise), std)

    @property
    def std(self) -> float:
        """sigma_y, where the noise is Gaussian."""
        return self.gaussian_std("Measurement.std")

    def gaussian_std(self, what: str) -> float:
        """Return sigma_y, for a method by a closed form of Gaussian noise.

        Errors: TypeError, in the name of the method ``what``, for another noise.
        """
        if isinstance(self.noise, GaussianNoise):
            return self.noise.std
        raise wrong_type(
            what,
            "measurement.noise",
            "be Gaussian",
            type(self.noise).__name__,
            "use PlugIn(), which takes any noise, and sample_posterior for its weights",
        )

    def residual(self, x0: Tensor) -> Tensor:
        """Return y − A(x0), one a row."""
        exact = self.operator(x0)
        return self._beside(exact) - exact

    def _beside(self, exact: Tensor) -> Tensor:
        """Return y in the shape of A(x), one a row."""
        y = self.y.to(exact)
        if y.shape[1:] != exact.shape[1:] or len(y) not in (1, len(exact)):
            raise wrong_value(
                "Measurement",
                "y",
                f"have the shape {tuple(exact.shape)} of the operator's result, or one row",
                tuple(self.y.shape),
                "measure samples of the model's shape, as many as are drawn",
            )
        return y.expand_as(exact)

    def log_prob(self, x0: Tensor) -> Tensor:
        """Return log p(y | x0), for Gaussian noise the density of N(A(x0), sigma_y² I) at y.

        Shapes: (B, *event) → (B,). Units: nats.
        """
        exact = self.operator(x0)
        return self.noise.log_prob(self._beside(exact), exact)

    def rows(self, index: Tensor) -> Measurement:
        """Return the measurement of the samples ``index``."""
        if len(self.y) == 1:
            return self
        return Measurement(self.operator, self.y[index.to(self.y.device)], self.noise)


def _noise(std: float | MeasurementNoise) -> MeasurementNoise:
    return std if isinstance(std, MeasurementNoise) else GaussianNoise(std)
