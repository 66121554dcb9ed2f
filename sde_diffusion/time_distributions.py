"""Distributions of the times of a training batch, or of an estimate, by their quantiles.

A `Spacing` draws u in [0, 1), a `TimeDistribution` takes u to its u-quantile t. What an objective
minimises is stated by a distribution of its own and a weight; times drawn from another one are
weighted by the ratio of the densities, which changes the gradient's variance and not its mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_value
from sde_diffusion.grids import check_lambda
from sde_diffusion.sde import LinearSDE


class TimeDistribution(ABC):
    """A distribution of t on [t_min, horizon]."""

    @abstractmethod
    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        """Return the u-quantile of the distribution, at the SDE and the least time ``t_min``.

        Shapes: u, in [0, 1], and result (n,), float64.
        """

    @abstractmethod
    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        """Return the density at t, in t's shape, of times on [t_min, horizon]."""


@final
@dataclass(frozen=True)
class UniformTimes(TimeDistribution):
    """Times uniform on [t_min, horizon].

    >>> from sde_diffusion import VPSDE
    >>> UniformTimes().time(VPSDE(), torch.tensor([0.0, 0.5]).double(), 0.5).tolist()
    [0.5, 0.75]
    """

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        return t_min + (sde.horizon - t_min) * u

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        return torch.full_like(t, 1 / (sde.horizon - t_min))


@final
@dataclass(frozen=True)
class AngleTimes(TimeDistribution):
    """Times at which the angle φ = atan(sigma/alpha) is uniform.

    dφ/dt = −λ' sin φ cos φ = g²/(2 sigma²) · alpha sigma/(alpha² + sigma²).

    >>> from sde_diffusion import RectifiedFlow
    >>> AngleTimes().time(RectifiedFlow(), torch.tensor([0.5]).double(), 0.001).round(decimals=9)
    tensor([0.5000], dtype=torch.float64)
    """

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        first, last = _angles(sde, t_min)
        phi = torch.lerp(first, last, u)
        inside: Tensor = sde.time(-phi.tan().log()).clamp(t_min, sde.horizon)
        return inside

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        first, last = _angles(sde, t_min)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        slope = 0.5 * (sde.g(t) / sigma) ** 2 * alpha * sigma / (alpha**2 + sigma**2)
        found: Tensor = slope / (last - first)
        return found


def _angles(sde: LinearSDE, t_min: float) -> Tensor:
    """Return φ at the least time and at the horizon."""
    ends = torch.tensor([t_min, sde.horizon], dtype=torch.float64)
    return torch.atan(torch.exp(-sde.lambda_(ends)))


@final
@dataclass(frozen=True)
class LikelihoodTimes(TimeDistribution):
    """Times with density r(t) = g²/(sigma² Z) on [t_min, horizon].

    g²/sigma² = −2 dλ/dt for every linear SDE, so the draw is uniform in λ = log(alpha/sigma) and
    Z = 2(λ(t_min) − λ(horizon)). For the VP-SDE this is B(t) = log1p(expm1(B(t_min)) e^{uZ}).
    Under r, Z ‖eps − eps_θ‖² is an unbiased estimate of ∫ (g²/sigma²) ‖eps − eps_θ‖² dt: the
    weight is constant.

    Source: Song et al. 2021, "Maximum likelihood training", section 5.1 (VP).

    >>> from sde_diffusion import EDMSDE
    >>> half = torch.tensor([0.5]).double()
    >>> round(LikelihoodTimes().time(EDMSDE(80.0), half, 1e-4).item(), 12)  # the geometric mean
    0.01
    """

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        first, last = log_snr_range(sde, t_min)
        # Rounding may put the inverse just outside the interval, where sigma may be 0.
        return sde.time(first + (last - first) * u).clamp(t_min, sde.horizon)

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        first, last = log_snr_range(sde, t_min)
        return (sde.g(t) / sde.sigma(t)) ** 2 / (2 * (first - last))


def log_snr_range(sde: LinearSDE, t_min: float) -> tuple[Tensor, Tensor]:
    """Return λ(t_min) and λ(horizon), 0-d float64."""
    ends = torch.tensor([t_min, sde.horizon], dtype=torch.float64)
    check_lambda("TimeDistribution", sde, t_min, sde.horizon)
    first, last = sde.lambda_(ends)
    return first, last


@final
@dataclass(frozen=True)
class LogNormalTimes(TimeDistribution):
    """Times at which ln s = ln(sigma/alpha) is N(mean, std²), truncated to [t_min, horizon].

    Errors: ValueError for a std that is not positive, or where less than a millionth of the
    distribution lies on [t_min, horizon].
    Source: Karras et al. 2022, table 1 (training).

    >>> from sde_diffusion import EDMSDE
    >>> half = torch.tensor([0.5]).double()
    >>> t = LogNormalTimes().time(EDMSDE(80.0), half, 1e-9)
    >>> round(math.log(80 * t.item()), 4)
    -1.2
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        positive_number("LogNormalTimes", "std", self.std)

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        first, last = log_snr_range(sde, t_min)
        z = _between(u, *self._ends(sde, t_min))
        lambda_ = (-self.mean - self.std * z).clamp(last, first)
        return sde.time(lambda_).clamp(t_min, sde.horizon)

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        z = (-sde.lambda_(t) - self.mean) / self.std
        speed = 0.5 * (sde.g(t) / sde.sigma(t)) ** 2  # −dλ/dt
        return _gaussian(z) * speed / (self.std * _mass(*self._ends(sde, t_min)))

    def _ends(self, sde: LinearSDE, t_min: float) -> tuple[Tensor, Tensor]:
        first, last = log_snr_range(sde, t_min)
        return (-first - self.mean) / self.std, (-last - self.mean) / self.std


@final
@dataclass(frozen=True)
class LogitNormalTimes(TimeDistribution):
    """Times at which ln(t/(1 − t)) is N(mean, std²), truncated to [t_min, horizon].

    On `RectifiedFlow` that is ln(sigma/alpha), so that this is `LogNormalTimes(mean, std)`.

    Errors: as `LogNormalTimes`.
    Source: Esser et al. 2024 (Stable Diffusion 3), section 3.1.

    >>> from sde_diffusion import RectifiedFlow
    >>> half = torch.tensor([0.5]).double()
    >>> round(LogitNormalTimes().time(RectifiedFlow(), half, 1e-3).item(), 12)
    0.5
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        positive_number("LogitNormalTimes", "std", self.std)

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        z = _between(u, *self._ends(sde, t_min))
        return torch.sigmoid(self.mean + self.std * z).clamp(t_min, sde.horizon)

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        inside = t.clamp(max=1 - 2**-53)  # at 1 it is 0/0
        z = (inside.logit() - self.mean) / self.std
        mass = _mass(*self._ends(sde, t_min))
        return _gaussian(z) / (inside * (1 - inside) * self.std * mass)

    def _ends(self, sde: LinearSDE, t_min: float) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([t_min, sde.horizon], dtype=torch.float64)
        low, high = (ends.logit() - self.mean) / self.std
        return low, high


@final
@dataclass(frozen=True)
class LatticeTimes(TimeDistribution):
    """The times of steps 1 … N of a chain, horizon · k/N, with equal probabilities.

    Its density is the probability 1/N of each. ``t_min`` is ignored: the first time is horizon/N.

    >>> from sde_diffusion import VPSDE
    >>> LatticeTimes(4).time(VPSDE(), torch.tensor([0.0, 0.3, 0.99]).double(), 0.0).tolist()
    [0.25, 0.5, 1.0]
    """

    steps: int

    def __post_init__(self) -> None:
        positive_integer("LatticeTimes", "steps", self.steps)

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:  # noqa: ARG002
        return sde.horizon * (torch.floor(u * self.steps) + 1) / self.steps

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:  # noqa: ARG002
        return torch.full_like(t, 1 / self.steps)


def _gaussian(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _mass(low: Tensor, high: Tensor) -> Tensor:
    """Return the probability that a standard normal variable lies in [low, high]."""
    mass: Tensor = torch.special.ndtr(high) - torch.special.ndtr(low)
    if not float(mass) >= 1e-6:  # the difference of two rounded numbers
        raise wrong_value(
            "TimeDistribution",
            "mean, std",
            "put a millionth of the distribution or more on [t_min, horizon]",
            f"{float(mass):.2g}",
            "move the mean to the SDE's levels",
        )
    return mass


def _between(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the u-quantile of a standard normal variable truncated to [low, high]."""
    z: Tensor = torch.special.ndtri(torch.special.ndtr(low) + _mass(low, high) * u)
    return z.clamp(low, high)


# The distributions that a configuration can name.
TIMES: Final[dict[str, TimeDistribution]] = {
    "uniform": UniformTimes(),
    "likelihood": LikelihoodTimes(),
    "log-normal": LogNormalTimes(),
    "logit-normal": LogitNormalTimes(),
}
