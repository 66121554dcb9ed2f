"""The times at which a training batch looks: how numbers fill [0, 1), and the law they go to.

A `Spacing` draws u in [0, 1), a `TimeLaw` takes u to t. What an objective minimises is stated by
its own law and weight; times drawn by another law count with the ratio of the densities, so that
the choice changes how noisy the gradient is, and not what it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from sde_diffusion.grids import check_lambda
from sde_diffusion.sde import LinearSDE


class TimeLaw(ABC):
    """A law of t on [t_min, horizon]."""

    @abstractmethod
    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        """Return the u-quantile of the law, float64, for ``u`` in [0, 1]."""

    @abstractmethod
    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        """Return the density at t, in t's shape."""


@final
@dataclass(frozen=True)
class UniformTimes(TimeLaw):
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
class LikelihoodTimes(TimeLaw):
    """Times with density r(t) = g²/(sigma² Z) on [t_min, horizon].

    g²/sigma² = −2 dλ/dt for every linear SDE, so the draw is uniform in λ = log(alpha/sigma) and
    Z = 2(λ(t_min) − λ(horizon)). For the VP-SDE this is B(t) = log1p(expm1(B(t_min)) e^{uZ}).
    Under r, Z ‖eps − eps_θ‖² estimates ∫ (g²/sigma²) ‖eps − eps_θ‖² dt with no weight left in it.

    Source: Song et al. 2021, "Maximum likelihood training", section 5.1 (VP).

    >>> from sde_diffusion import EDMSDE
    >>> half = torch.tensor([0.5]).double()
    >>> round(LikelihoodTimes().time(EDMSDE(80.0), half, 1e-4).item(), 12)  # the geometric mean
    0.01
    """

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        first, last = log_snr_range(sde, t_min)
        # Rounding may carry the inverse a hair outside the interval, where sigma may be 0.
        return sde.time(first + (last - first) * u).clamp(t_min, sde.horizon)

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        first, last = log_snr_range(sde, t_min)
        return (sde.g(t) / sde.sigma(t)) ** 2 / (2 * (first - last))


def log_snr_range(sde: LinearSDE, t_min: float) -> tuple[Tensor, Tensor]:
    """Return λ(t_min) and λ(horizon), 0-d float64."""
    ends = torch.tensor([t_min, sde.horizon], dtype=torch.float64)
    check_lambda("LikelihoodTimes", sde, t_min, sde.horizon)
    first, last = sde.lambda_(ends)
    return first, last


class Spaced(NamedTuple):
    """Numbers u in [0, 1) and what each counts for: weights that make their means unbiased.

    Shapes: both (n,), float64.
    """

    u: Tensor
    weight: Tensor


class Spacing(nn.Module, ABC):
    """How the numbers of a batch fill [0, 1). What it learns is kept in its buffers."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        """Return n numbers, each uniform in law once it is weighted."""

    def observe(self, u: Tensor, losses: Tensor) -> None:
        """Take note of the losses at the numbers of the last draw.

        Shapes: both (n,).
        """


@final
class Stratified(Spacing):
    """u_i = (i + U_i)/n: one uniform number in each of n equal parts of [0, 1).

    Each is uniform over a batch in random order; the mean over the batch varies less than that
    of n independent draws.

    >>> (Stratified().draw(4, torch.Generator().manual_seed(0)).u * 4).floor().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        draws = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
        places = torch.arange(n, dtype=torch.float64, device=generator.device)
        return Spaced((places + draws) / n, torch.ones_like(draws))
