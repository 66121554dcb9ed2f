"""What a training step draws for its whole batch, and the parts in which it is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from sde_diffusion._seeds import Purpose, mix
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.nets.conditions import nothing
from sde_diffusion.noise import Noise, PerSampleNoise
from sde_diffusion.objectives.base import Batch, Drawn, Objective, Trained

if TYPE_CHECKING:
    from sde_diffusion.training.config import TrainingConfig


@final
@dataclass(frozen=True, eq=False)
class Part:
    """One of the equal parts of a batch, on the device that computes it.

    Arguments:
        batch: its data, times and noise.
        given: labels and other conditions by name, nothing where dropped; (n, …) each.
        weight: the weights of the losses; (n,), float64.
        seed: of its dropout masks.
    """

    batch: Batch
    given: Mapping[str, Tensor]
    weight: Tensor
    seed: int

    def conditioned(self, model: Trained) -> Trained:
        """Return the model given the labels and other conditions, where there are any."""
        if not self.given or not isinstance(model, LearnedScore):
            return model
        return model.given(**self.given)

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """Seed torch's global generators, from which dropout draws, and put them back."""
        device = self.batch.x0.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield


@final
@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The batch of a step, of which every process draws all and computes its parts.

    It is drawn on the CPU, so that every device sees the same data, times and noise.

    Arguments:
        drawn: the times and their weights; (B,).
        x0: the data, scaled; (B, *event).
        eps: standard normal noise; (B, *event).
        given: labels and other conditions by name, nothing where dropped; (B, …) each.
        seed: the seed of the run.
        step: the number of the step, from 1.
    """

    drawn: Drawn
    x0: Tensor
    eps: Tensor
    given: Mapping[str, Tensor]
    seed: int
    step: int

    @classmethod
    def draw(
        cls,
        objective: Objective,
        model: Trained,
        dataset: Dataset,
        rows: Tensor,
        config: TrainingConfig,
        step: int,
    ) -> GlobalBatch:
        """Return the batch of some rows of the data.

        Arguments:
            objective: draws the times, and pairs noise with data.
            model: gives the SDE and the dtype of its weights.
            dataset: the data, with the labels and conditions that the model is to learn.
            rows: the rows of the data set; (B,).
            config: the settings of the run, of which ``seed`` and ``label_dropout`` count.
            step: the number of the step, from 1.
        """
        generator = torch.Generator().manual_seed(mix(config.seed, Purpose.BATCH, step))
        dtype = next(model.parameters()).dtype
        x0 = dataset.batch(rows, generator).to(dtype=dtype)
        # Of the kind that the distribution of times takes, as was checked.
        sde: Any = model.sde if isinstance(model, LearnedScore) else None
        drawn = objective.draw(sde, len(rows), generator)
        # Drawn in float32 as all noise, so that weights of another dtype see the same batch.
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float32)
        eps = objective.pair(x0, eps.to(x0.device, dtype))
        given = dict[str, Tensor]()
        if dataset.given:
            kept = torch.rand(len(rows), generator=generator) >= config.label_dropout
            given = {name: _kept(held[rows], kept) for name, held in dataset.given.items()}
        return cls(drawn, x0, eps, given, config.seed, step)

    def part(self, index: int, count: int, device: torch.device) -> Part:
        """Return one of ``count`` equal parts, on a device."""
        size = len(self.x0) // count
        rows = slice(index * size, (index + 1) * size)
        noise = _OnDemand(mix(self.seed, Purpose.LOSS, self.step), rows.start, size)
        x0 = self.x0[rows].to(device)
        eps = self.eps[rows].to(device)
        return Part(
            Batch(x0, self.drawn.t[rows], eps, noise),
            {name: held[rows] for name, held in self.given.items()},
            self.drawn.weight[rows],
            mix(self.seed, Purpose.DROPOUT, self.step, index),
        )


def _kept(rows: Tensor, kept: Tensor) -> Tensor:
    """Return the rows that are kept, and nothing in place of the others."""
    rows = rows if rows.is_floating_point() else rows.long()
    there = kept.to(rows.device).reshape(-1, *[1] * (rows.ndim - 1))
    return rows.where(there, nothing(rows))


@final
class _OnDemand(Noise):
    """`PerSampleNoise.numbered`, made at the first draw: few losses draw, and streams are slow."""

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
class Together(nn.Module):
    """A model and its objective as one module: what DistributedDataParallel takes."""

    def __init__(self, model: Trained, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, model: Trained, batch: Batch) -> Tensor:
        """Return the losses of the model, which may be conditioned on labels; (B,)."""
        losses: Tensor = self.objective(model, batch)
        return losses
