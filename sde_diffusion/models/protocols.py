"""What is asked of whatever answers at (x, t)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion.sde import LinearSDE


class Model(Protocol):
    """What `sample` needs of a score model: the score itself, its SDE and its device."""

    @property
    def sde(self) -> LinearSDE:
        """The SDE whose score it is."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score at (x, t)."""


class NoisePredictor(Protocol):
    """What a denoising loss needs of a model: its SDE and E[eps | x_t]."""

    @property
    def sde(self) -> LinearSDE:
        """The SDE that perturbs the data."""

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted noise, in x's shape."""


class Denoiser(Protocol):
    """What a threshold needs of a score model."""

    @property
    def sde(self) -> LinearSDE:
        """The SDE whose score it is."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[x0 | x_t]."""
