"""The state of a training run and the one step that advances it."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import wrong_value
from sde_diffusion.averages import Averages
from sde_diffusion.checkpoint import configuration_of
from sde_diffusion.data import Dataset
from sde_diffusion.noise import PerSampleNoise, mix
from sde_diffusion.objectives import Batch, Objective, objective_of
from sde_diffusion.runs import RunFolder
from sde_diffusion.score import ScoreModel

if TYPE_CHECKING:
    from sde_diffusion.training import TrainingConfig

# The purposes of a seed, so that no two draws share a stream.
_DRAWS, _DROPOUT, _ORDER, _LOSS = 1, 2, 3, 16


@dataclass(frozen=True)
class Progress:
    """What one optimizer step did; steps count from 1.

    Units: loss per data dimension; seconds since the run began, pauses excluded.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate of step 1 … steps: warm-up min(1, step/warmup), then the schedule."""
    rate = config.learning_rate * min(1.0, step / max(1, config.warmup))
    if config.schedule == "cosine":
        part = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * part))
    return rate


@final
class Trainer:
    """The state of a run between two steps."""

    def __init__(
        self, model: ScoreModel, dataset: Dataset, config: TrainingConfig,
        objective: Objective | None = None,
    ) -> None:  # fmt: skip
        model.data = dataset.spec if model.data is None else model.data
        self.model, self.dataset, self.config = model, dataset, config
        self.objective = objective_of(config) if objective is None else objective
        self.objective.check(model)
        self.averages = Averages(model, config)
        self.optimizer = torch.optim.AdamW(
            self._trained(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.seconds, self.losses = 0, 0.0, list[float]()
        self.labelled = bool(classes_of(model))
        # Everything that decides the weights, as JSON reads it back (tuples become lists).
        self.configuration: dict[str, Any] = json.loads(json.dumps(configuration_of(model) | {
            "training": dataclasses.asdict(config), "dataset": _fingerprint(dataset),
        }))  # fmt: skip

    def _trained(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.objective.parameters()]

    def advance(self) -> Progress:
        """Take one step.

        Errors: FloatingPointError for a loss or gradient that is not finite; the weights stay.
        """
        began, step = time.perf_counter(), self.step + 1
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(step)
        self._check_finite("loss", loss, step)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._trained(), self.config.clip)
        self._check_finite("gradient norm", norm, step)
        rate = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.averages.update(self.model, step)
        self.step = step
        self.seconds += time.perf_counter() - began
        self.losses.append(loss.item())
        return Progress(step, loss.item(), norm.item(), rate, self.seconds)

    def _loss(self, step: int) -> Tensor:
        config, device = self.config, self.model.device
        # Drawn on the CPU, so that every device sees the same batches, times and noise.
        generator = torch.Generator().manual_seed(mix(config.seed, _DRAWS, step))
        rows = batch_rows(len(self.dataset), config.batch_size, config.seed, step)
        x0 = self.dataset.batch(rows, generator).to(dtype=_dtype(self.model))
        drawn = self.objective.draw(self.model.sde, len(rows), generator)
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        eps = self.objective.pair(x0, eps)
        noise = PerSampleNoise.numbered(mix(config.seed, _LOSS, step), 0, len(rows))
        batch = Batch(x0.to(device), drawn.t, eps.to(device), noise)
        model = self.model
        if self.labelled and self.dataset.labels is not None:
            kept = torch.rand(len(rows), generator=generator) >= config.label_dropout
            model = model.given(torch.where(kept, self.dataset.labels[rows].long(), -1))
        # Dropout draws from the global generators: seeded here, put back afterwards.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(mix(config.seed, _DROPOUT, step))
            losses: Tensor = self.objective(model, batch)
        self.objective.spacing.observe(drawn.u, losses.detach())
        return torch.mean(drawn.weight.to(losses) * losses)

    def _check_finite(self, name: str, value: Tensor, step: int) -> None:
        if not bool(torch.isfinite(value)):
            remedy = "lower learning_rate or clip; the last checkpoint is kept"
            rule = f"be finite at step {step}"
            raise FloatingPointError(str(wrong_value("train", name, rule, value.item(), remedy)))

    def line(self, progress: Progress) -> dict[str, Any]:
        """Return a line of metrics: its loss is the mean since the line before."""
        mean = math.fsum(self.losses) / len(self.losses)
        self.losses.clear()
        return dataclasses.asdict(progress) | {"loss": mean}

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint of this step."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "losses": list(self.losses),
            "configuration": json.dumps(self.configuration),
            "network": self.model.network.state_dict(),
            "averages": self.averages.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        folder.save(state, self.averages.main, self.configuration | {"step": self.step})

    def restore(self, state: dict[str, Any]) -> None:
        """Become the run that was saved.

        Errors: ValueError where its weights are those of another network.
        """
        try:
            self.model.network.load_state_dict(state["network"])
            self.averages.load_state_dict(state["averages"])
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            got, remedy = str(error).replace("\n", " "), "start a new run in another folder"
            raise wrong_value("train", "model", "fit the weights of the run that is resumed", got,
                              remedy) from error  # fmt: skip
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]

    def finish(self) -> None:
        """Give the averaged weights to the caller's model."""
        self.model.network.load_state_dict(self.averages.main.network.state_dict())
        self.model.eval()


def batch_rows(rows: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Return the rows of step 1, 2, …: a stretch of the endless row of shuffled epochs.

    Shapes: (batch_size,), int64.
    """
    first = (step - 1) * batch_size
    places = torch.arange(first, first + batch_size)
    epochs = range(first // rows, (first + batch_size - 1) // rows + 1)
    order = torch.cat([_order(rows, seed, epoch) for epoch in epochs])
    return order[places - epochs[0] * rows]


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(mix(seed, _ORDER, epoch))
    return torch.randperm(rows, generator=generator)


def _dtype(model: ScoreModel) -> torch.dtype:
    return next(model.parameters()).dtype


def classes_of(model: ScoreModel) -> object:
    """Return the number of classes of the model's network, None where it has none."""
    config = getattr(model.network, "config", None)
    return config.get("classes") if isinstance(config, dict) else None


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    values = dataset.values.cpu().contiguous()
    return {
        "name": dataset.spec.name,
        "rows": len(dataset),
        "crc32": zlib.crc32(values.numpy().data),
    }
