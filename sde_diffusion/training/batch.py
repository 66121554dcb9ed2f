"""What a training step draws for its whole batch, and the losses of a part of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from sde_diffusion._seeds import Purpose, mix
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.noise import Noise, PerSampleNoise
from sde_diffusion.objectives.base import Batch, Drawn, Objective
from sde_diffusion.training.precision import autocast

if TYPE_CHECKING:
    from sde_diffusion.training.config import TrainingConfig


@final
@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The batch of a step, of which every process draws all and computes its parts.

    It is drawn on the CPU, so that every device sees the same data, times and noise.

    Shapes: x0, eps (B, *event); labels (B,), −1 where dropped.
    """

    drawn: Drawn
    x0: Tensor
    eps: Tensor
    labels: Tensor | None
    seed: int
    step: int

    @classmethod
    def draw(
        cls,
        objective: Objective,
        model: LearnedScore,
        dataset: Dataset,
        rows: Tensor,
        config: TrainingConfig,
        step: int,
    ) -> GlobalBatch:
        """Return the batch of the rows; labels only where the data have them."""
        generator = torch.Generator().manual_seed(mix(config.seed, Purpose.BATCH, step))
        dtype = next(model.parameters()).dtype
        x0 = dataset.batch(rows, generator).to(dtype=dtype)
        sde: Any = model.sde  # of the kind that the objective's law takes: it has been checked
        drawn = objective.draw(sde, len(rows), generator)
        eps = torch.randn(x0.shape, generator=generator, dtype=dtype)
        eps = objective.pair(x0, eps)
        labels = None
        if dataset.labels is not None:
            kept = torch.rand(len(rows), generator=generator) >= config.label_dropout
            labels = torch.where(kept, dataset.labels[rows].long(), -1)
        return cls(drawn, x0, eps, labels, config.seed, step)

    def losses(self, module: nn.Module, part: int, count: int, device: torch.device) -> Tensor:
        """Return what the module, a `Losses`, gives for one of ``count`` equal parts."""
        size = len(self.x0) // count
        rows = slice(part * size, (part + 1) * size)
        noise = _OnDemand(mix(self.seed, Purpose.LOSS, self.step), rows.start, size)
        x0 = self.x0[rows].to(device)
        eps = self.eps[rows].to(device)
        labels = None if self.labels is None else self.labels[rows]
        # Dropout draws from the global generators: seeded here, put back afterwards.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(mix(self.seed, Purpose.DROPOUT, self.step, part))
            losses: Tensor = module(Batch(x0, self.drawn.t[rows], eps, noise), labels)
        return losses


@final
class _OnDemand(Noise):
    """`PerSampleNoise.numbered`, made when it is asked: few losses draw, every stream costs."""

    def __init__(self, seed: int, first: int, count: int) -> None:
        self.seed = seed
        self.first = first
        self.count = count

    def normal(self, x: Tensor) -> Tensor:
        return self._noise.normal(x)

    @cached_property
    def _noise(self) -> PerSampleNoise:
        return PerSampleNoise.numbered(self.seed, self.first, self.count)


@final
class Losses(nn.Module):
    """The losses of a part of a batch: what DistributedDataParallel takes for the network."""

    def __init__(self, model: LearnedScore, objective: Objective, precision: str) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.precision = precision

    def forward(self, batch: Batch, labels: Tensor | None) -> Tensor:
        """Return the loss of every sample, in float32 at least."""
        model = self.model if labels is None else self.model.given(labels)
        with autocast(self.precision, model.device):
            losses: Tensor = self.objective(model, batch)
        return losses.to(torch.promote_types(losses.dtype, torch.float32))
