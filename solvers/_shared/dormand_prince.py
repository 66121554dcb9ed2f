"""The Dormand–Prince pair: a batch on its way, one step of the pair, and the size of the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Self

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
class DormandPrinceBatch:
    """A batch whose samples have times and step sizes of their own.

    Arguments:
        x: the states, (B, *event).
        t: their times, (B,), float64.
        h: the next step sizes in t, (B,), float64.
        k1: the velocities at (x, t), (B, *event).
        lost: the sum of the absolute embedded errors of the steps taken, (B, *event).
        accepted: steps accepted so far, (B,), int64.
        rejected: steps rejected so far, (B,), int64.
        tries: steps tried by the whole batch, over all times of the grid.
    """

    x: Tensor
    t: Tensor
    h: Tensor
    k1: Tensor
    lost: Tensor
    accepted: Tensor
    rejected: Tensor
    tries: int = 0

    @property
    def told(self) -> Tensor:
        """Nothing that a try asks of the last one: their number."""
        return self.accepted

    @classmethod
    def begun(cls, x: Tensor, t: Tensor, h: Tensor, k1: Tensor) -> Self:
        """Return the batch at one time before its first step.

        Arguments:
            x: the states, (B, *event).
            t: their time, ().
            h: the first step sizes, (B,), float64.
            k1: the velocities at (x, t), (B, *event).
        """
        counts = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        times = torch.full_like(h, float(t))
        return cls(x.clone(), times, h, k1, torch.zeros_like(x), counts, counts + 0)

    def next_steps(self, i: Tensor, stop: float) -> tuple[Tensor, Tensor]:
        """Return the signed steps of the samples ``i``, and whether they end at ``stop``."""
        left = stop - self.t[i]
        last = self.h[i] >= left.abs()
        return torch.where(last, left, self.h[i].copysign(left)), last


class Stages(NamedTuple):
    """The fifth-order state, the velocity there (the next k1) and the embedded error."""

    x: Tensor
    k7: Tensor
    error: Tensor


def stages(ode: ODE, x: Tensor, t: Tensor, dt: Tensor, k1: Tensor) -> Stages:
    """Return one step of every sample.

    Arguments:
        ode: the equation of these samples.
        x: the states at t, (n, *event).
        t: their times, (n,).
        dt: the steps, signed, (n,).
        k1: velocity(x, t), (n, *event).

    Source: Dormand & Prince 1980; Hairer, Nørsett & Wanner 1993, table II.5.2.
    """
    ks = [k1]
    h = expand(dt, x)
    y = x
    for c, row in zip(_C[1:], _A[1:], strict=True):
        y = x + h * sum((a * k for a, k in zip(row, ks, strict=True) if a), torch.zeros_like(x))
        ks.append(ode.velocity(y, t + c * dt))
    error = h * sum((e * k for e, k in zip(_E, ks, strict=True) if e), torch.zeros_like(x))
    return Stages(y, ks[-1], error)


def first_sizes(ode: ODE, x: Tensor, t: Tensor, end: Tensor, k1: Tensor, scale: Tensor) -> Tensor:
    """Return the first step sizes from t, by one evaluation; (B,).

    Arguments:
        ode: the equation.
        x: the states at t, (B, *event).
        t: the time at which all samples start, ().
        end: the last time of the solve, on either side of t, ().
        k1: velocity(x, t), (B, *event).
        scale: the error allowed of every element of x, (B, *event).

    Source: Hairer, Nørsett & Wanner 1993, section II.4, "Starting step size".
    """
    rows = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    span = float((end - t).abs())
    d0 = rms(x / scale)
    d1 = rms(k1 / scale)
    still = d1 < 1e-10  # at this tolerance the velocity is 0: try the whole way at once
    guess = torch.where(d0 < 1e-5, rows + 1e-6, 0.01 * d0 / d1).clamp(max=span)
    signed = guess if end > t else -guess
    later = float(t) + signed
    d2 = rms((ode.velocity(x + expand(signed, x) * k1, later) - k1) / scale) / guess
    most = torch.maximum(d1, d2)
    # Not ** 0.2, which rounds otherwise in a batch than alone.
    sharp = torch.exp(0.2 * (0.01 / most.clamp(min=1e-15)).log())
    refined = torch.where(most < 1e-15, (guess * 1e-3).clamp(min=1e-6), sharp)
    return torch.where(still, rows + span, torch.minimum(100 * guess, refined).clamp(max=span))
