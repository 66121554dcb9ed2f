"""Adaptive steps for SDEs with additive noise, on one Brownian path whatever is rejected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion._diffusion import diffusion_of
from sde_diffusion._tensors import expand, rms
from sde_diffusion.dynamics import ReverseSDE
from sde_diffusion.noise import Noise
from sde_diffusion.sde import SDE
from sde_diffusion.solver import Adaptive, Reached
from sde_diffusion.solvers._shared.adaptive import Round, growth, under_way
from sde_diffusion.solvers._shared.brownian_pieces import BrownianBatch, start
from sde_diffusion.solvers._shared.checks import above_zero
from sde_diffusion.solvers._shared.step_limits import Limits, check_tolerance
from sde_diffusion.solvers.sra import check_additive


@final
@dataclass(frozen=True)
class AdaptiveSDE(Adaptive[SDE]):
    """Adaptive steps for dx = f dt + g(t) dw, of either direction; each sample has its own.

    x' = x_t + f(x_t, t) dt + g_t dw (Euler–Maruyama),
    x'' = ½(x' + x_t + f(x', s) dt + g_s dw) (stochastic improved Euler).

    A step is accepted, with x'', where E = √(mean((x' − x'')²/δ²)) ≤ 1, the mean being over the
    sample's own elements and δ = max(atol, rtol·max(|x_t|, |x'|)); the next h is .9 h E^{−.9}. The
    increment over every step of the grid is drawn first; steps split it by Brownian bridges, and
    a rejected step leaves its parts to those that follow. So rejection does not bias the path.

    Every time of the grid is met exactly; two are enough. Memory: a state for each step of the
    grid, and one for each split ahead.

    Order: weak 2, strong 1, at infinite tolerances, where every step of the grid is one.
    NFE: 2 a step tried; one batched call counts once.

    Arguments:
        rtol: the tolerance relative to the state, above 0.
        atol: the absolute tolerance, above 0, in the units of x.
        max_steps: the most steps that may be tried, on average over the steps of the grid. On the
            way from noise to data a mixture takes 400 at the default tolerances, 3300 at 1e-3.

    Errors: ValueError for a tolerance that is not positive or below the rounding of the states, or
    a diffusion that depends on x; FloatingPointError naming t and the samples where the steps
    become too small or too many.
    Source: Jolicoeur-Martineau et al. 2021, algorithm 1; Roberts 2012 (x'');
    Rackauckas & Nie 2017 (rejection on one path).

    >>> import torch
    >>> from sde_diffusion import VPSDE, WhiteNoise, integrate, uniform
    >>> x = torch.zeros(2000, 1)  # forward in time: data at 0 becomes noise of variance 1
    >>> found = integrate(VPSDE(), AdaptiveSDE(), x, uniform(1, 0.0, 1.0), noise=WhiteNoise(0))
    >>> found.steps, bool((found.x.var() - 1).abs() < 0.1)
    (1, True)
    """

    rtol: float = 0.02
    atol: float = 0.0078
    max_steps: int = 5_000
    dynamics = SDE
    order: ClassVar[float] = 2
    strong_order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 2
    certified: ClassVar[tuple[dict[str, Any], ...]] = ({"rtol": math.inf, "atol": math.inf},)

    def __post_init__(self) -> None:
        above_zero("AdaptiveSDE", "0.01", rtol=self.rtol, atol=self.atol)
        positive_integer("AdaptiveSDE", "max_steps", self.max_steps)

    def reached(self, dynamics: SDE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Reached]:
        """Yield the states at the times of the grid, once all samples have met all of them."""
        check_tolerance("AdaptiveSDE", x, self.rtol, self.atol)
        check_additive("AdaptiveSDE", dynamics, x, grid[0])
        p = start(x, grid, noise)
        limits = Limits("AdaptiveSDE", "drift", self.max_steps, self.evaluations, 1e-14)
        for now in under_way(limits, p, float(grid[-1]), len(grid) - 1):
            # All rows draw at every try: a sample's k-th draw is that of its k-th try.
            self._try(dynamics, p, now, noise.normal(x))
        for found in p.found:
            yield Reached(found, None)

    def _try(self, sde: SDE, p: BrownianBatch, now: Round, z: Tensor) -> None:
        """Try one step of some samples and keep it where its error is small enough."""
        i = now.i
        x = p.x[i]
        t = p.t[i]
        s, dw = p.split(now, z[i])
        if len(i) < len(p.t) and isinstance(sde, ReverseSDE):
            sde = sde.rows(i)
        dt = expand(s - t, x)
        x1 = x + dt * sde.drift(x, t) + diffusion_of(sde, x, t) * dw
        x2 = 0.5 * (x1 + (x + dt * sde.drift(x1, s) + diffusion_of(sde, x1, s) * dw))
        delta = (self.rtol * torch.maximum(x.abs(), x1.abs())).clamp(min=self.atol)
        error = rms((x1 - x2) / delta.nan_to_num(nan=math.inf))  # nan is ∞·0
        good = error <= 1  # false for NaN
        factor = growth(error, 0.9).clamp(0.2, 5.0)
        h = (s - t).abs() * factor
        # A step cut short by the end of its piece is no reason to shorten the next one.
        p.h[i] = torch.where(good, torch.maximum(h, p.h[i] * factor.clamp(max=1)), h)
        p.accept(i, good, x2)
