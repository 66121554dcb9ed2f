"""Weights w(t) on ‖eps − eps_θ‖², and the times at which a training batch looks.

A weight λ(t) on ‖s_θ + eps/sigma‖² is w = λ/sigma² on ‖eps − eps_θ‖².
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.grids import check_lambda
from sde_diffusion.sde import LinearSDE

Weighting: TypeAlias = Callable[[LinearSDE, Tensor], Tensor]
TimeDraw: TypeAlias = Callable[[LinearSDE, Tensor, float], Tensor]


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
    """Return w = min(SNR, 5)/SNR, which keeps x0 predictions from serving small t alone.

    Source: Hang et al. 2023, equation 7, γ = 5.
    """
    return (5 * torch.exp(-2 * sde.lambda_(t))).clamp(max=1.0)


def uniform_times(sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
    """Return times uniform on [t_min, horizon] from ``u`` uniform on [0, 1]."""
    return t_min + (sde.horizon - t_min) * u


def likelihood_times(sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
    """Return times with density r(t) = g²/(sigma² Z) on [t_min, horizon] from uniform ``u``.

    g²/sigma² = −2 dλ/dt for every linear SDE, so the draw is uniform in λ = log(alpha/sigma) and
    Z = 2(λ(t_min) − λ(horizon)). For the VP-SDE this is B(t) = log1p(expm1(B(t_min)) e^{uZ}).
    Under r, Z ‖eps − eps_θ‖² estimates ∫ (g²/sigma²) ‖eps − eps_θ‖² dt with no weight left in it.

    Source: Song et al. 2021, "Maximum likelihood training", section 5.1 (VP).
    """
    first, last = log_snr_range(sde, t_min)
    # Rounding may carry the inverse a hair outside the interval, where sigma may be 0.
    return sde.time(first + (last - first) * u).clamp(t_min, sde.horizon)


def log_snr_range(sde: LinearSDE, t_min: float) -> tuple[Tensor, Tensor]:
    """Return λ(t_min) and λ(horizon), 0-d float64."""
    ends = torch.tensor([t_min, sde.horizon], dtype=torch.float64)
    check_lambda("likelihood_times", sde, t_min, sde.horizon)
    first, last = sde.lambda_(ends)
    return first, last


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """Return u_i = (i + U_i)/n: one uniform number in each of n equal parts of [0, 1).

    Each is uniform over a batch in random order; the mean over the batch varies less than that
    of n independent draws.

    Shapes: (n,), float64.
    """
    draws = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
    return (torch.arange(n, dtype=torch.float64, device=generator.device) + draws) / n


# The objectives of training by name: the law of t, and the weight that is left for the loss.
OBJECTIVES: Final[dict[str, tuple[TimeDraw, Weighting]]] = {
    "perceptual": (uniform_times, perceptual),
    "likelihood": (likelihood_times, perceptual),
    "min-snr": (uniform_times, min_snr),
}


def check_objective(what: str, name: object) -> None:
    """Refuse a name that is not one of `OBJECTIVES`."""
    if name not in OBJECTIVES:
        rule = f"be one of {', '.join(OBJECTIVES)}"
        raise wrong_value(what, "weighting", rule, name, "pass weighting='perceptual'")
