"""What stands between A(x) and the measurement y: log p(y | A(x)), by whatever noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sde_diffusion._check import a_function, positive_number, real_number, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import flat_sum
from sde_diffusion.noise import Noise


class MeasurementNoise(ABC):
    """The distribution of y given A(x), each row of its own."""

    __repr__ = shown

    @abstractmethod
    def log_prob(self, y: Tensor, exact: Tensor) -> Tensor:
        """Return log p(y | A(x) = exact) in nats, differentiable in ``exact``.

        Shapes: both (B, *measurement) → (B,).
        """

    @abstractmethod
    def drawn(self, exact: Tensor, noise: Noise) -> Tensor:
        """Return a draw of y for every A(x), made of the normals of ``noise``."""

    def expected(self, exact: Tensor) -> Tensor:
        """Return E[y | A(x) = exact]: A(x) itself where the noise has mean 0, as here."""
        return exact


@final
@dataclass(frozen=True, repr=False)
class GaussianNoise(MeasurementNoise):
    """y = A(x) + sigma_y n, n ~ N(0, I): the noise that closed forms are for.

    Arguments:
        std: sigma_y, above 0, in the unit of y.
    """

    std: float

    def __post_init__(self) -> None:
        positive_number("Measurement", "std", self.std, "pass for example 0.05")

    def log_prob(self, y: Tensor, exact: Tensor) -> Tensor:
        z = (y - exact).double() / self.std
        each = 0.5 * math.log(2 * math.pi) + math.log(self.std)
        return -0.5 * flat_sum(z * z) - z[0].numel() * each

    def drawn(self, exact: Tensor, noise: Noise) -> Tensor:
        return exact + self.std * noise.normal(exact)


@final
@dataclass(frozen=True, repr=False)
class LaplaceNoise(MeasurementNoise):
    """y = A(x) + b ℓ with p(ℓ) = ½ exp(−|ℓ|): outliers among the numbers of y.

    Arguments:
        scale: b, above 0, in the unit of y; the standard deviation is √2 b.

    >>> LaplaceNoise(0.5).log_prob(torch.tensor([[1.0]]), torch.tensor([[0.0]])).item()  # −1/b
    -2.0
    """

    scale: float

    def __post_init__(self) -> None:
        positive_number("LaplaceNoise", "scale", self.scale, "pass for example 0.05")

    def log_prob(self, y: Tensor, exact: Tensor) -> Tensor:
        z = (y - exact).double().abs() / self.scale
        return -flat_sum(z) - z[0].numel() * math.log(2 * self.scale)

    def drawn(self, exact: Tensor, noise: Noise) -> Tensor:
        # ½ (z_1² + z_2²) is exponential, and the difference of two such is Laplace's.
        squares = [noise.normal(exact).square() for _ in range(4)]
        return exact + 0.5 * self.scale * (squares[0] + squares[1] - squares[2] - squares[3])


@final
@dataclass(frozen=True, repr=False)
class PoissonNoise(MeasurementNoise):
    """Counts y ~ Poisson(peak · max(A(x) + shift, 0) + dark), as a camera's few photons are.

    Arguments:
        peak: counts for each unit of A(x), above 0.
        shift: what makes A(x) a brightness: 1 for pixels from −1 to 1.
        dark: counts where it is dark, above 0.

    >>> found = PoissonNoise(2.0, dark=1.0).log_prob(torch.tensor([[0.0]]), torch.tensor([[0.5]]))
    >>> found.item()  # none of four expected
    -4.0
    """

    peak: float
    shift: float = 1.0
    dark: float = 0.1

    def __post_init__(self) -> None:
        positive_number("PoissonNoise", "peak", self.peak, "pass for example 30.0")
        real_number("PoissonNoise", "shift", self.shift, "pass 1.0")
        positive_number("PoissonNoise", "dark", self.dark, "pass 0.1")

    def _rate(self, exact: Tensor) -> Tensor:
        return self.peak * (exact.double() + self.shift).clamp(min=0) + self.dark

    def expected(self, exact: Tensor) -> Tensor:
        return self._rate(exact).to(exact)

    def log_prob(self, y: Tensor, exact: Tensor) -> Tensor:
        rate = self._rate(exact)
        counts = y.double()
        if bool((counts < 0).any()) or not bool((counts == counts.round()).all()):
            rule = "hold counts 0, 1, 2, … for PoissonNoise"
            remedy = "pass the counts themselves, not y / peak"
            raise wrong_value("Measurement", "y", rule, "other numbers", remedy)
        return flat_sum(counts * rate.log() - rate - torch.lgamma(counts + 1))

    def drawn(self, exact: Tensor, noise: Noise) -> Tensor:
        from scipy.special import ndtr
        from scipy.stats import poisson

        u = ndtr(noise.normal(exact).double().cpu().numpy())
        counts = poisson.ppf(u, self._rate(exact).cpu().numpy())
        return torch.from_numpy(counts).to(exact)


@final
class OwnNoise(MeasurementNoise):
    """A log p(y | A(x)) that you bring: a function of y and A(x), one number a row.

    Gradients come by automatic differentiation. It may leave out what does not depend on A(x);
    the evidence then leaves it out too.

    Arguments:
        function: (y, exact) -> log p; (B, *measurement) twice → (B,).

    >>> coins = OwnNoise(lambda y, a: (y * a - a.exp().log1p()).flatten(1).sum(1))
    >>> round(coins.log_prob(torch.ones(1, 2), torch.zeros(1, 2)).item(), 4)  # two fair ones
    -1.3863
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        a_function("OwnNoise", "function", function, "(y, exact) -> log p", "pass a lambda")
        self.function = function

    def log_prob(self, y: Tensor, exact: Tensor) -> Tensor:
        found = self.function(y, exact)
        if not isinstance(found, Tensor) or found.shape != exact.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            rule = f"be a tensor of one number for each of {len(exact)} rows"
            remedy = "sum over all dimensions but the first"
            raise wrong_value("OwnNoise", "result", rule, got, remedy)
        return found.double()

    def drawn(self, exact: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002  (the protocol's)
        raise wrong_type(
            "Measurement.drawn",
            "noise",
            "be one that can be drawn",
            "OwnNoise",
            "measure by yourself: Measurement(operator, y, noise)",
        )
