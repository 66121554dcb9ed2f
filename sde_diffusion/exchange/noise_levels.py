"""Schedulers of diffusers over noise levels and not over betas: EDM's and flow matching's."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion.exchange.peers import Eps
from sde_diffusion.sde import LinearSDE


@final
class Kept(Tensor):
    """A state that stays float64 where diffusers rounds it to float32, whatever it came as."""

    def to(self, *_: object, **__: object) -> Tensor:
        return self


def kept(y: Tensor) -> Tensor:
    """Return a state that diffusers does not round."""
    return y.as_subclass(Kept) if y.dtype == torch.float64 else y


def repeated(levels: Tensor, count: int) -> Tensor | None:
    """Return noise levels as a scheduler keeps ``count`` of them; None where it cannot be told.

    They are one each, or two where a step evaluates twice.
    """
    n = len(levels) - 1
    if count == n + 1:
        return levels
    if count == 2 * n:
        return torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    return None


@final
class LevelsRun:
    """A solve by a scheduler that keeps y = x/unit, at the noise levels of the grid.

    EDM's keep y = x/α at σ/α and take the inner network F of their preconditioning, flow
    matching's y = x/(α + σ) at σ/(α + σ) and eps − x0.

    Arguments:
        scheduler: a scheduler of diffusers with ``sigmas``.
        sde: whose eps it is.
        grid: the times, falling; (n + 1,).
        flow: whether it is one of flow matching.
    """

    def __init__(self, scheduler: Any, sde: LinearSDE, grid: Tensor, *, flow: bool) -> None:  # noqa: ANN401
        self.scheduler = scheduler
        self.grid = grid
        self.flow = flow
        self.alpha, self.sigma = sde.alpha(grid), sde.sigma(grid)
        self.unit = self.alpha + self.sigma if flow else self.alpha
        self.levels = self.sigma / self.unit
        scheduler.set_timesteps(len(grid) - 1)
        self.sigmas = repeated(self.levels, len(scheduler.sigmas))

    def __call__(self, eps: Eps, x: Tensor) -> Tensor:
        """Return the state at the grid's end."""
        n = len(self.grid) - 1
        self.scheduler.set_timesteps(n)
        self.scheduler.sigmas = self.sigmas
        steps = list(self.scheduler.timesteps)
        places = range(n) if len(steps) == n else [(j + 1) // 2 for j in range(len(steps))]
        y = kept(x / float(self.unit[0]))
        for i, step in zip(places, steps, strict=True):
            state = y.as_subclass(Tensor)
            if not self.flow:
                self.scheduler.scale_model_input(state, step)  # else EDM's complain
            found = eps(state * float(self.unit[i]), self.grid[i])
            y = kept(self.scheduler.step(self._output(state, found, i), step, y).prev_sample)
        return y.as_subclass(Tensor) * float(self.unit[-1])

    def _output(self, y: Tensor, eps: Tensor, i: int) -> Tensor:
        """Return what the scheduler takes from a network, of eps at y."""
        x0 = (y * self.unit[i] - self.sigma[i] * eps) / self.alpha[i]
        if self.flow:
            return eps - x0
        level = self.levels[i]
        # Their own preconditioning is linear in F: x0 = skip + scale F.
        skip = self.scheduler.precondition_outputs(y, torch.zeros_like(y), level)
        scale = self.scheduler.precondition_outputs(torch.zeros_like(y), torch.ones_like(y), level)
        found: Tensor = (x0 - skip) / scale
        return found
