"""Adaptive steps for SDEs with additive noise, on one Brownian path whatever is rejected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion._tensors import expand, rms
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ReverseSDE
from sde_diffusion.sde import SDE
from sde_diffusion.solvers._adaptive import check_steps, too_many
from sde_diffusion.solvers.sra import check_additive

_THETA, _R = 0.9, 0.9  # the next step is θ h E^{−r}
_SLIVER = 0.99  # a step of more than this share of what is left takes all of it


@dataclass
class _Progress:
    """Where every sample is, and the path ahead of it: a stack of pieces, the next one on top.

    Shapes: x (B, *event); t, h (B,) float64; met, top (B,) int64, the times of the grid met and
    the place of the top; ends (M, B) float64, dw (M, B, *event), where a piece ends and its W.
    """

    x: Tensor
    t: Tensor
    h: Tensor
    met: Tensor
    top: Tensor
    ends: Tensor
    dw: Tensor

    def split(self, i: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the end and dw of the next step of the samples ``i``: their top piece or a part.

        A piece of length L and increment dw is split at p L by a Brownian bridge into p dw + b,
        b ~ N(0, p(1 − p)L), and the rest, which stays below. The path is never drawn anew.
        """
        k = self.top[i]
        left, dw = self.ends[k, i] - self.t[i], self.dw[k, i]
        part = self.h[i] / left.abs()
        p = torch.where(part > _SLIVER, 1.0, part)
        b = expand((p * (1 - p) * left.abs()).sqrt(), dw) * z
        first = expand(p, dw) * dw + b
        more = p < 1
        if int(k.max()) + 1 == len(self.ends):
            self.ends = torch.cat([self.ends, torch.zeros_like(self.ends[:1])])
            self.dw = torch.cat([self.dw, torch.zeros_like(self.dw[:1])])
        rows, below = i[more], k[more]
        self.dw[below, rows] = (dw - first)[more]
        self.dw[below + 1, rows] = first[more]
        self.ends[below + 1, rows] = (self.t[i] + p * left)[more]
        self.top[i] = k + more
        return self.ends[self.top[i], i], first

    def accept(self, i: Tensor, x: Tensor) -> None:
        """Move the samples ``i`` on to ``x`` at the end of their top piece, and drop it."""
        self.x = self.x.index_copy(0, i, x)
        self.t[i] = self.ends[self.top[i], i]
        self.top[i] -= 1


@final
@dataclass(frozen=True)
class AdaptiveSDE:
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
    Errors: ValueError for a tolerance that is not positive, or a diffusion that depends on x;
    FloatingPointError naming t where the steps become too small or too many.
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
    max_steps: int = 10_000
    dynamics = SDE
    adaptive: ClassVar[bool] = True
    order: ClassVar[float] = 2
    strong_order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 2
    certified: ClassVar[tuple[dict[str, Any], ...]] = ({"rtol": math.inf, "atol": math.inf},)

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            if not getattr(self, name) > 0:
                raise wrong_value("AdaptiveSDE", name, "be above 0", getattr(self, name),
                                  f"pass {name}=0.01")  # fmt: skip
        positive_integer("AdaptiveSDE", "max_steps", self.max_steps)

    def steps(self, dynamics: SDE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Yield the states at the times of the grid, once all samples have met all of them."""
        check_additive("AdaptiveSDE", dynamics, x, grid[0])
        p = _start(x, grid, noise)
        found, last = x.new_empty(len(grid) - 1, *x.shape), len(grid) - 1
        times, active = grid.to(x.device), torch.arange(len(x), device=x.device)
        tries = 0
        while len(active):
            if tries == self.max_steps:
                raise too_many("AdaptiveSDE", tries, p.t[active])
            # All rows draw at every try: a sample's k-th draw is that of its k-th try.
            z, tries = noise.normal(x), tries + 1
            kept = self._try(dynamics, p, active, z)
            here = kept[p.t[kept] == times[p.met[kept] + 1]]
            found[p.met[here], here] = p.x[here]
            p.met[here] += 1
            active = active[p.met[active] < last]
        yield from found

    def _try(self, sde: SDE, p: _Progress, i: Tensor, z: Tensor) -> Tensor:
        """Try one step of the samples ``i`` and return those whose error is small enough."""
        x, t = p.x[i], p.t[i]
        s, dw = p.split(i, z[i])
        if len(i) < len(p.t) and isinstance(sde, ReverseSDE):
            sde = sde.rows(i)
        x1, x2 = _pair(sde, x, t, s, dw)
        delta = (self.rtol * torch.maximum(x.abs(), x1.abs())).clamp(min=self.atol)
        error = rms((x1 - x2) / delta.nan_to_num(nan=math.inf))  # nan is ∞·0
        good = error <= 1  # false for NaN
        factor = (_THETA * error.clamp(min=1e-10) ** -_R).clamp(0.2, 5.0)
        h = (s - t).abs() * torch.where(error.isfinite(), factor, 0.2)
        # A step cut short by the end of its piece says nothing against the longer one.
        p.h[i] = torch.where(good, torch.maximum(h, p.h[i] * factor.clamp(max=1)), h)
        check_steps("AdaptiveSDE", "drift", p.h[i], t, 1e-14)
        kept = i[good]
        p.accept(kept, x2[good])
        return kept


def _start(x: Tensor, grid: Tensor, noise: Noise) -> _Progress:
    """Return all samples at the grid's start, with the increments over its steps ahead."""
    rows = torch.ones(len(x), dtype=torch.float64, device=x.device)
    dw = [noise.increment(x, t, s) for t, s in pairwise(grid)]
    count = torch.zeros_like(rows, dtype=torch.int64)
    ends = grid[1:].flip(0).to(x.device)[:, None] * rows
    h = float((grid[1] - grid[0]).abs()) * rows  # a rejection costs two evaluations and no more
    return _Progress(
        x, float(grid[0]) * rows, h, count, count + len(dw) - 1, ends, torch.stack(dw[::-1])
    )


def _pair(sde: SDE, x: Tensor, t: Tensor, s: Tensor, dw: Tensor) -> tuple[Tensor, Tensor]:
    """Return x' and x'' at s."""
    dt = expand(s - t, x)
    x1 = x + dt * sde.drift(x, t) + sde.diffusion(x, t) * dw
    x2 = x + dt * sde.drift(x1, s) + sde.diffusion(x1, s) * dw
    return x1, 0.5 * (x1 + x2)
