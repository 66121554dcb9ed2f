"""Adams predictor–corrector with a step size for every sample and one evaluation a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion._tensors import expand, rms
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Adaptive, Reached
from sde_diffusion.solvers._shared.adams_history import History, adams_weights, moved
from sde_diffusion.solvers._shared.adaptive import growth, kept, settle, under_way
from sde_diffusion.solvers._shared.checks import above_zero, choice
from sde_diffusion.solvers._shared.dormand_prince import first_sizes
from sde_diffusion.solvers._shared.step_limits import Limits, check_tolerance


@final
@dataclass(frozen=True)
class AdaptiveAdams(Adaptive[ODE]):
    """Adams–Bashforth predicts, Adams–Moulton corrects, on every sample's own uneven steps.

    P-E-C: the velocity at the predicted state corrects the step that led there and predicts the
    next. The predictor has up to highest − 1 nodes, the corrector one more; a step is taken where
    the corrector's error at one order less, a known part of their difference, is small enough.

    Six to seven tenths of the evaluations of `DormandPrince` at equal error where the velocity is
    smooth in t, and no fewer where it is not.

    Order: of steps by tolerance up to ``highest``. NFE: 1 a step tried, and 2 at first.

    Arguments:
        rtol: the tolerance relative to the state, above 0; inf takes every step of the grid.
        atol: the absolute tolerance, above 0, in the units of x.
        highest: the highest order, 2 … 7.
        max_steps: the most steps that may be tried between two times of the grid; a mixture takes
            80 at tolerances of 1e-5, 770 at 1e-11, and with ``highest`` 3 thousands.

    Errors: as `DormandPrince`; ValueError for a ``highest`` that is not 2 … 7.
    Source: Shampine & Gordon 1975; step control of Hairer, Nørsett & Wanner 1993, section III.7.

    >>> from sde_diffusion import ODE, integrate, uniform
    >>> class Growth(ODE):
    ...     def velocity(self, x, t):
    ...         return x
    >>> x, solver = torch.ones(1, 1, dtype=torch.float64), AdaptiveAdams(1e-9, 1e-9)
    >>> round(integrate(Growth(), solver, x, uniform(1, 0.0, 1.0)).x.item(), 7)
    2.7182818
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    highest: int = 5
    max_steps: int = 6_000
    dynamics = ODE
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"highest": k, "rtol": math.inf, "atol": math.inf} for k in (2, 3)
    )

    @property
    def order(self) -> float:
        """The order along a grid, where the first step lets no more than 3 pass."""
        return min(self.highest, 3)

    def __post_init__(self) -> None:
        choice("AdaptiveAdams", "highest", range(2, 8), self.highest)
        above_zero("AdaptiveAdams", "1e-5", rtol=self.rtol, atol=self.atol)
        positive_integer("AdaptiveAdams", "max_steps", self.max_steps)

    def reached(
        self,
        dynamics: ODE,
        x: Tensor,
        grid: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Iterator[Reached]:
        check_tolerance("AdaptiveAdams", x, self.rtol, self.atol)
        v = dynamics.velocity(x, grid[0])
        scale = self.atol + self.rtol * x.abs()
        h = first_sizes(dynamics, x, grid[0], grid[-1], v, scale)
        past = History.begun(x, grid[0], h, v, self.highest - 1)
        limits = Limits("AdaptiveAdams", "velocity", self.max_steps, 1, 1e-14)
        for stop in grid[1:].tolist():
            for now in under_way(limits, past, stop):
                self._try(dynamics, past, stop, now.i)
            yield Reached(past.x, past.lost)

    def _try(self, ode: ODE, p: History, stop: float, i: Tensor) -> None:
        """Try one step of the samples ``i`` and keep it where its error is small enough."""
        ode = ode.rows(i) if len(i) < len(p.t) else ode
        x = p.x[i]
        t = p.t[i]
        known = p.known[i]
        left = stop - p.t[i]
        last = p.h[i] >= left.abs()
        dt = torch.where(last, left, p.h[i].copysign(left))
        s = torch.where(last, stop, t + dt)
        nodes = (p.times[i] - t[:, None]) / dt[:, None]
        past = p.velocities[:, i]
        predicted = x + moved(adams_weights(nodes, known), past, dt)
        v = ode.velocity(predicted, s)
        nodes = torch.cat([torch.ones_like(nodes[:, :1]), nodes], 1)
        x_s = x + moved(adams_weights(nodes, known + 1), torch.cat([v[None], past]), dt)
        error = expand(p.ratio[known - 1], x) * (x_s - predicted)
        norm = rms(error / (self.atol + self.rtol * torch.maximum(x.abs(), x_s.abs())))
        good = norm <= 1  # false for NaN
        h = growth(norm, 1 / (known + 1.0)).clamp(0.2, 2.0) * dt.abs()
        p.h[i] = torch.where(good & last, torch.maximum(p.h[i], h), h)
        p.x = kept(p.x, i, good, x_s)
        p.lost = kept(p.lost, i, good, p.lost[i] + error.detach().abs())
        p.push(i, good, s, v)
        settle(p, i, good, s)
