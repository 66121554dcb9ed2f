"""Euler–Maruyama, forward or backward in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._block_matrix import BlockMatrix
from sde_diffusion._diffusion import diffusion_of
from sde_diffusion._tensors import expand, plus
from sde_diffusion.noise import Noise
from sde_diffusion.sde import SDE
from sde_diffusion.solver import OneStep


@final
@dataclass(frozen=True)
class EulerMaruyama(OneStep[SDE]):
    """Euler–Maruyama step x_s = x_t + drift(x_t, t) dt + diffusion(x_t, t) dw, dt = s − t.

    dw = W_s − W_t. Between walls it is folded back, so that states stay inside.

    Order: weak 1; strong 1 for additive noise (½ otherwise). NFE: 1 a step.
    Source: Maruyama 1955; Kloeden & Platen 1992, section 10.2.

    >>> from sde_diffusion import VPSDE, WhiteNoise, integrate, uniform
    >>> import torch
    >>> x = torch.zeros(4, 2)  # forward in time: data at 0 becomes noise of variance 1
    >>> integrate(VPSDE(), EulerMaruyama(), x, uniform(50, 0.0, 1.0), noise=WhiteNoise(0)).steps
    50
    """

    dynamics = SDE
    order: ClassVar[float] = 1
    strong_order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 1
    reflects: ClassVar[bool] = True

    def step(self, dynamics: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        drift = dynamics.drift(x, t)
        g = diffusion_of(dynamics, x, t)
        dt = s - t
        if isinstance(g, BlockMatrix):
            return dynamics.inside(plus(x, drift, dt) + g * noise.increment(x, t, s))
        if t.ndim == g.ndim == 0 and not g.requires_grad:  # two passes over the state, not four
            spread = float(g * dt.abs().sqrt())
            free = torch.add(x, drift, alpha=float(dt)).add_(noise.unit(x, t, s), alpha=spread)
            return dynamics.inside(free)
        dt = expand(dt, x)
        return dynamics.inside(x + drift * dt + g * dt.abs().sqrt() * noise.unit(x, t, s))
