"""Milstein's scheme for diagonal noise, forward or backward in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._block_matrix import BlockMatrix
from sde_diffusion._check import wrong_value
from sde_diffusion._diffusion import diffusion_of
from sde_diffusion._tensors import expand, plus
from sde_diffusion.noise import Noise
from sde_diffusion.sde import SDE
from sde_diffusion.solver import OneStep


@final
@dataclass(frozen=True)
class Milstein(OneStep[SDE]):
    """Milstein step x_s = x_t + f dt + g dw + ½ g g' (dw² − |dt|), dt = s − t of either sign.

    g_i may depend on x_i and t, and g' is ∂g_i/∂x_i, by one backward pass through g for all
    elements. Backward in time dw is the increment of a Brownian motion in reversed time, and the
    reverse SDE an Itô equation there: so dw² − |dt| whatever the direction. With additive noise
    this is Euler–Maruyama.

    Order: weak 1, strong 1. NFE: 1 a step.
    Errors: ValueError for a g_i that depends on other elements than x_i: that needs Lévy areas.
    Source: Milstein 1974; Kloeden & Platen 1992, section 10.3.

    >>> import torch
    >>> from sde_diffusion import SDE, WhiteNoise, integrate, uniform
    >>> class Growth(SDE):  # dx = ½x dt + x dw is the exponential of a Brownian motion
    ...     def drift(self, x, t):
    ...         return 0.5 * x
    ...     def diffusion(self, x, t):
    ...         return x
    >>> x = torch.ones(1, 1, dtype=torch.float64)
    >>> found = integrate(Growth(), Milstein(), x, uniform(1000, 0.0, 1.0), noise=WhiteNoise(0)).x
    >>> noise, grid = WhiteNoise(0), uniform(1000, 0.0, 1.0)
    >>> w = sum(noise.increment(x, t, s) for t, s in zip(grid, grid[1:]))
    >>> bool((found / w.exp() - 1).abs() < 0.01)
    True
    """

    dynamics = SDE
    order: ClassVar[float] = 1
    strong_order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 1

    def steps(self, dynamics: SDE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:
        ramp = torch.linspace(1, 2, x[0].numel()).to(x).reshape(x.shape[1:]).expand(x.shape)
        weighted, slope = (_slope(dynamics, x, grid[0], w)[1] for w in (ramp, torch.ones_like(x)))
        # Σ_i w_i ∂g_i/∂x_j = w_j ∂g_j/∂x_j for weights that differ only if the rest is 0.
        if not torch.allclose(weighted, ramp * slope, rtol=1e-3):
            raise wrong_value(
                "Milstein",
                "dynamics.diffusion",
                "be elementwise, g_i of x_i alone",
                "one that mixes elements",
                "use EulerMaruyama",
            )
        return super().steps(dynamics, x, grid, noise)

    def step(self, dynamics: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        dt = s - t
        dw = noise.increment(x, t, s)
        g, slope = _slope(dynamics, x, t, torch.ones_like(x))
        if slope.ndim:  # 0-d where g does not depend on x
            dw = dw + 0.5 * slope * (dw * dw - expand(dt.abs(), x))
        return plus(x, dynamics.drift(x, t), dt) + g * dw


def _slope(sde: SDE, x: Tensor, t: Tensor, weights: Tensor) -> tuple[Tensor | BlockMatrix, Tensor]:
    """Return g, and Σ_i w_i ∂g_i/∂x_j, 0-d and 0 where g does not depend on x."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        g = diffusion_of(sde, leaf, t)
        if isinstance(g, BlockMatrix):
            return g, x.new_zeros(())
        slope = None
        if g.requires_grad:
            rows = torch.broadcast_to(g, x.shape)
            slope = torch.autograd.grad(rows, leaf, weights, allow_unused=True)[0]
    return g.detach(), x.new_zeros(()) if slope is None else slope
