"""A learned uncertainty for every noise level, which gives all levels the same weight."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from sde_diffusion.nets.embedding import GaussianFourier
from sde_diffusion.sde import LinearSDE


@final
class Uncertainty(nn.Module):
    """u(c), c = ¼ ln(sigma/alpha), trained on loss · e^{−u} + u; u = 0 at first.

    The best u is ln E[loss | t], and with it the model minimises the mean of ln E[loss | t] over
    the distribution of times. A weight w(t) only adds a constant to that.

    Shapes: losses (B,); t (B,); result (B,).
    Source: Karras et al. 2024 (EDM2); Kendall et al. 2018.

    >>> from sde_diffusion import VPSDE
    >>> Uncertainty()(torch.tensor([3.0]), VPSDE(), torch.tensor([0.5])).tolist()
    [3.0]
    """

    def __init__(self, pairs: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.features = GaussianFourier(pairs, 1.0, torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(torch.zeros(2 * pairs))

    def forward(self, losses: Tensor, sde: LinearSDE, t: Tensor) -> Tensor:
        """Return loss · e^{−u} + u for every sample."""
        u = self.level(sde, t).to(losses.dtype)
        return losses * torch.exp(-u) + u

    def level(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """Return u at every time."""
        c = (-0.25 * sde.lambda_(t)).to(self.weight)
        # Not a matrix product, which autocast would take to half precision.
        waves: Tensor = self.features(c)
        return (waves * self.weight).sum(1)
