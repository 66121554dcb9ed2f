"""Schedulers of diffusers over noise levels and not over betas: EDM's and flow matching's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion.exchange.peers import Eps
from sde_diffusion.sde import LinearSDE


@final
class KeepsDouble(Tensor):
    """A state that stays float64 where diffusers rounds it to float32, whatever it came as."""

    def to(self, *_: object, **__: object) -> Tensor:
        return self


def kept(y: Tensor) -> Tensor:
    """Return a state that diffusers does not round."""
    return y.as_subclass(KeepsDouble) if y.dtype == torch.float64 else y


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


class LevelsRun(ABC):
    """A solve by a scheduler that keeps y = x/unit, at the noise levels σ/unit of the grid.

    Arguments:
        scheduler: a scheduler of diffusers with ``sigmas``.
        sde: whose eps it is.
        grid: the times, falling; (n + 1,).
    """

    def __init__(self, scheduler: Any, sde: LinearSDE, grid: Tensor) -> None:  # noqa: ANN401
        self.scheduler = scheduler
        self.grid = grid
        self.alpha = sde.alpha(grid)
        self.sigma = sde.sigma(grid)
        self.unit = self.units()
        self.levels = self.sigma / self.unit
        scheduler.set_timesteps(len(grid) - 1)
        self.sigmas = repeated(self.levels, len(scheduler.sigmas))

    @abstractmethod
    def units(self) -> Tensor:
        """Return x/y at the times of the grid."""

    @abstractmethod
    def output(self, y: Tensor, x0: Tensor, eps: Tensor, i: int) -> Tensor:
        """Return what the scheduler takes from a network, of one evaluation.

        Arguments:
            y: the state in the scheduler's unit, (B, *event).
            x0: the predicted data there, (B, *event).
            eps: the predicted noise there, (B, *event).
            i: the index of its time in the grid.
        """

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
            found = eps(state * float(self.unit[i]), self.grid[i])
            x0 = (state * self.unit[i] - self.sigma[i] * found) / self.alpha[i]
            y = kept(self.scheduler.step(self.output(state, x0, found, i), step, y).prev_sample)
        return y.as_subclass(Tensor) * float(self.unit[-1])


@final
class EDMRun(LevelsRun):
    """EDM's, which keep y = x/α at σ/α and take the inner network F of their preconditioning."""

    def units(self) -> Tensor:
        return self.alpha

    def output(self, y: Tensor, x0: Tensor, eps: Tensor, i: int) -> Tensor:  # noqa: ARG002
        self.scheduler.scale_model_input(y, self.scheduler.timesteps[i])  # else they complain
        level = self.levels[i]
        # Their own preconditioning is linear in F: x0 = skip + scale F.
        skip = self.scheduler.precondition_outputs(y, torch.zeros_like(y), level)
        scale = self.scheduler.precondition_outputs(torch.zeros_like(y), torch.ones_like(y), level)
        found: Tensor = (x0 - skip) / scale
        return found


@final
class FlowRun(LevelsRun):
    """Flow matching's, which keep y = x/(α + σ) at σ/(α + σ) and take eps − x0."""

    def units(self) -> Tensor:
        return self.alpha + self.sigma

    def output(self, y: Tensor, x0: Tensor, eps: Tensor, i: int) -> Tensor:  # noqa: ARG002
        return eps - x0
