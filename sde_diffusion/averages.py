"""Exponential moving averages of the weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from sde_diffusion.score import ScoreModel

if TYPE_CHECKING:
    from sde_diffusion.training import TrainingConfig


def ema_decay(config: TrainingConfig, step: int) -> float:
    """Return the decay min(ema_decay, (1 + k)/(10 + k)) after k earlier steps.

    The ramp keeps the random initial weights from weighing on the average for 1/(1 − decay) steps.
    """
    return min(config.ema_decay, step / (9 + step))


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the average: decay · average + (1 − decay) · weights; buffers are copied."""
    for mean, value in zip(average.parameters(), module.parameters(), strict=True):
        mean.lerp_(value.to(mean.dtype), 1 - decay)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)


@final
class Averages:
    """The averages of a run's weights; ``main`` is the one that is kept as the model."""

    def __init__(self, model: ScoreModel, config: TrainingConfig) -> None:
        self.config = config
        self.main = _averaged(model)

    def update(self, model: ScoreModel, step: int) -> None:
        """Take the weights after ``step`` into the averages."""
        update_average(self.main, model, ema_decay(self.config, step))

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"main": self.main.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the averages that were saved."""
        self.main.network.load_state_dict(state["main"])


def _averaged(model: ScoreModel) -> ScoreModel:
    """Return a copy of the model to hold the average, in float32 at least.

    In bfloat16 a step of the average, (1 − decay) of a difference, would round to nothing.
    """
    average = copy.deepcopy(model).requires_grad_(requires_grad=False)
    for parameter in average.parameters():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return average.eval()
