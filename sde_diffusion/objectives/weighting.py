"""Weights w(t) on ‖eps − eps_θ‖², and the distributions of times over which they are minimised.

A weight λ(t) on ‖s_θ + eps/sigma‖² is w = λ/sigma² on ‖eps − eps_θ‖². With s = sigma/alpha a
weight on ‖x0 − x̂0‖² is w = s² times it, for x0 − x̂0 = −s (eps − eps_θ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_value
from sde_diffusion.sde import LinearSDE
from sde_diffusion.time_distributions import (
    LatticeTimes,
    LikelihoodTimes,
    LogitNormalTimes,
    LogNormalTimes,
    TimeDistribution,
    UniformTimes,
    log_snr_range,
)

Weighting: TypeAlias = Callable[[LinearSDE, Tensor], Tensor]


def perceptual(sde: LinearSDE, t: Tensor) -> Tensor:  # noqa: ARG001  (the weightings' signature)
    """Return w = 1, that is λ = sigma²: Ho et al.'s simple objective, in t's shape."""
    return torch.ones_like(t)


def likelihood(sde: LinearSDE, t: Tensor) -> Tensor:
    """Return w = g²/sigma², that is λ = g²: half its integral over t bounds the likelihood.

    λ = g² holds for every SDE; it equals β(t) for the VP-SDE only.

    Source: Song et al. 2021, "Maximum likelihood training", theorem 1.
    """
    return (sde.g(t) / sde.sigma(t)) ** 2


def min_snr(sde: LinearSDE, t: Tensor) -> Tensor:
    """Return w = min(SNR, 5)/SNR, that is min(SNR, 5) on ‖x0 − x̂0‖², which bounds it at small t.

    Source: Hang et al. 2023, equation 7, γ = 5.
    """
    return (5 * torch.exp(-2 * sde.lambda_(t))).clamp(max=1.0)


def flow_matching(sde: LinearSDE, t: Tensor) -> Tensor:
    """Return w = (g²/(2 sigma))², so that w ‖eps − eps_θ‖² is ‖u − u_θ‖².

    u = alpha' x0 + sigma' eps is the velocity of x_t = alpha x0 + sigma eps at fixed x0 and eps,
    u_θ that of the model's flow; at a given x_t they differ by −sigma λ' (eps − eps_θ). It holds
    for every linear SDE; for `RectifiedFlow` u = eps − x0 and w = 1/alpha².

    Source: Lipman et al. 2023, equation 9; Liu et al. 2022, equation 1.
    """
    return (sde.g(t) ** 2 / (2 * sde.sigma(t))) ** 2


@final
@dataclass(frozen=True)
class P2:
    """w = 1/(κ + SNR)^γ; γ = 0 is the simple objective.

    Source: Choi et al. 2022 (P2).

    >>> from sde_diffusion import RectifiedFlow
    >>> P2()(RectifiedFlow(), torch.tensor(0.5)).item()
    0.5
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        positive_number("P2", "k", self.k)
        if not 0 <= self.gamma < float("inf"):
            raise wrong_value(
                "P2", "gamma", "be finite and at least 0", self.gamma, "pass gamma=1.0"
            )

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """Return the weight, in t's shape."""
        return (self.k + torch.exp(2 * sde.lambda_(t))) ** -self.gamma


@final
@dataclass(frozen=True)
class EDM:
    """w = (s² + σ_d²)/σ_d², that is (s² + σ_d²)/(s σ_d)² on ‖x0 − x̂0‖², s = sigma/alpha.

    The squared error of the inner network F_θ then has weight 1 at every level. `Denoising` takes
    ``sigma_data`` from the model that it trains.

    Source: Karras et al. 2022, table 1.

    >>> from sde_diffusion import EDMSDE
    >>> EDM(0.5)(EDMSDE(80.0), torch.tensor(0.5 / 80)).item()
    2.0
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        positive_number("EDM", "sigma_data", self.sigma_data)

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """Return the weight, in t's shape."""
        return 1 + torch.exp(-2 * sde.lambda_(t)) / self.sigma_data**2


@final
@dataclass(frozen=True)
class VDM:
    """w = λ(t_min) − λ(horizon) under `LikelihoodTimes`: the mean is the diffusion term of −log p.

    −½ ∫ SNR'(t) E‖x0 − x̂0‖² dt = ½ ∫ (g²/sigma²) E‖eps − eps_θ‖² dt from t_min to the horizon,
    in nats; it depends on the SDE by the two ends of λ alone.

    Source: Kingma et al. 2021 (Variational diffusion models), the continuous-time model.

    >>> from sde_diffusion import EDMSDE
    >>> VDM(1e-3)(EDMSDE(1.0), torch.tensor(0.5).double()).exp().round().item()
    1000.0
    """

    t_min: float

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """Return the weight, in t's shape."""
        first, last = log_snr_range(sde, self.t_min)
        return (first - last).to(t).expand(t.shape)


@final
@dataclass(frozen=True)
class ExactWeighting:
    """w = λ_k = β_k²/(2σ_k² (1−β_k)(1−ᾱ_k)), σ_k² = β_k, at the times of a chain of N steps.

    The sum of λ_k E‖eps − eps_θ‖² over k is that of the terms L_{k−1} of the chain's bound whose
    variance is `ForwardVariance`, less what no eps_θ changes. With r_k = 1 − SNR_k/SNR_{k−1},
    λ_k = ½ r_k (alpha_{k−1}/alpha_k)² for every linear SDE.

    Source: Ho et al. 2020, equation 12.

    >>> from sde_diffusion import VPSDE, DiscreteBeta
    >>> sde = VPSDE(DiscreteBeta(torch.tensor([0.1, 0.2], dtype=torch.float64)))
    >>> weight = ExactWeighting(2)(sde, torch.tensor(1.0).double())
    >>> round(weight.item(), 9)  # .04/(2 · .2 · .8 · .28)
    0.446428571
    """

    steps: int

    def __post_init__(self) -> None:
        positive_integer("ExactWeighting", "steps", self.steps)

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """Return the weight at times of `LatticeTimes` of as many steps, in t's shape."""
        k = torch.round(t * (self.steps / sde.horizon))
        before = sde.horizon * (k - 1) / self.steps
        share = -torch.expm1(2 * (sde.lambda_(t) - sde.lambda_(before)))
        return 0.5 * share * (sde.alpha(before) / sde.alpha(t)) ** 2


def _always(times: TimeDistribution, weighting: Weighting) -> Callable[[float, int], Minimised]:
    return lambda t_min, steps: (times, weighting)  # noqa: ARG005


Minimised: TypeAlias = tuple[TimeDistribution, Weighting]

# What is minimised, by name, for a t_min and a number of steps: a distribution of times and the
# weight w of E[w(t) ‖eps − eps_θ‖²] over it.
WEIGHTINGS: Final[dict[str, Callable[[float, int], Minimised]]] = {
    "perceptual": _always(UniformTimes(), perceptual),
    "likelihood": _always(LikelihoodTimes(), perceptual),
    "min-snr": _always(UniformTimes(), min_snr),
    "p2": _always(UniformTimes(), P2()),
    "exact": lambda t_min, steps: (LatticeTimes(steps), ExactWeighting(steps)),  # noqa: ARG005
    "edm": _always(LogNormalTimes(), EDM()),
    "vdm": lambda t_min, steps: (LikelihoodTimes(), VDM(t_min)),  # noqa: ARG005
    "flow-matching": _always(UniformTimes(), flow_matching),
    "sd3": _always(LogitNormalTimes(), flow_matching),
}
