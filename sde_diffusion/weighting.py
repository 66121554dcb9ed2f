"""Weights w(t) on ‖eps − eps_θ‖².

A weight λ(t) on ‖s_θ + eps/sigma‖² is w = λ/sigma² on ‖eps − eps_θ‖².
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from torch import Tensor

from sde_diffusion.sde import LinearSDE
from sde_diffusion.times import LikelihoodTimes, TimeLaw, UniformTimes

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
    """Return w = min(SNR, 5)/SNR, which keeps x0 predictions from serving small t alone.

    Source: Hang et al. 2023, equation 7, γ = 5.
    """
    return (5 * torch.exp(-2 * sde.lambda_(t))).clamp(max=1.0)


# What is minimised, by name: E over the law of the weight times ‖eps − eps_θ‖².
WEIGHTINGS: Final[dict[str, tuple[TimeLaw, Weighting]]] = {
    "perceptual": (UniformTimes(), perceptual),
    "likelihood": (LikelihoodTimes(), perceptual),
    "min-snr": (UniformTimes(), min_snr),
}
