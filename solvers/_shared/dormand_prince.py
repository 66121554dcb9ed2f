"""The Dormand–Prince pair: a batch on its way, one step of the pair, and the size of the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sde_diffusion._tensors import expand, rms
from sde_diffusion.dynamics import ODE

_C: Final = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A: Final = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the fifth-order result
)
_E: Final = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass
class Progress:
    """Where every sample of a batch is: time, next step size, velocity there, steps so far.

    ``lost`` adds up the absolute embedded errors of the steps taken.

    Shapes: x, k1, lost (B, *event); t, h (B,) float64; accepted, rejected (B,) int64.
    """

    x: Tensor
    t: Tensor
    h: Tensor
    k1: Tensor
    lost: Tensor
    accepted: Tensor
    rejected: Tensor
    tries: int = 0  # of the whole batch, over all times of the grid


def stages(
    ode: ODE, x: Tensor, t: Tensor, dt: Tensor, k1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fifth-order state, the velocity there (the next k1) and the embedded error."""
    ks = [k1]
    h = expand(dt, x)
    y = x
    for c, row in zip(_C[1:], _A[1:], strict=True):
        y = x + h * sum((a * k for a, k in zip(row, ks, strict=True) if a), torch.zeros_like(x))
        ks.append(ode.velocity(y, t + c * dt))
    error = h * sum((e * k for e, k in zip(_E, ks, strict=True) if e), torch.zeros_like(x))
    return y, ks[-1], error


def first_sizes(ode: ODE, x: Tensor, t: Tensor, end: Tensor, k1: Tensor, scale: Tensor) -> Tensor:
    """Return the first step sizes from t of Hairer et al.; errors are measured by ``scale``."""
    rows = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    span = float((end - t).abs())
    d0 = rms(x / scale)
    d1 = rms(k1 / scale)
    still = d1 < 1e-10  # at this tolerance the velocity is none: try the whole way at once
    guess = torch.where(d0 < 1e-5, rows + 1e-6, 0.01 * d0 / d1).clamp(max=span)
    signed = guess if end > t else -guess
    later = float(t) + signed
    d2 = rms((ode.velocity(x + expand(signed, x) * k1, later) - k1) / scale) / guess
    most = torch.maximum(d1, d2)
    # Not ** 0.2, which rounds otherwise in a batch than alone.
    sharp = torch.exp(0.2 * (0.01 / most.clamp(min=1e-15)).log())
    refined = torch.where(most < 1e-15, (guess * 1e-3).clamp(min=1e-6), sharp)
    return torch.where(still, rows + span, torch.minimum(100 * guess, refined).clamp(max=span))
