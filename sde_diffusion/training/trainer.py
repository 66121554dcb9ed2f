"""The state of a training run and the one step that advances it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from sde_diffusion._check import diverged, wrong_value
from sde_diffusion.checkpoints.checkpoint import configuration_of
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.shuffling import batch_rows
from sde_diffusion.models.score import DirectScore, LearnedScore, ScoreModel
from sde_diffusion.objectives.base import Objective
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.training.averages import Averages
from sde_diffusion.training.batch import GlobalBatch, Losses
from sde_diffusion.training.folder import RunFolder
from sde_diffusion.training.objective_by_name import objective_of
from sde_diffusion.training.precision import adamw, prepare, release, scaler_of

if TYPE_CHECKING:
    from sde_diffusion.training.loop import TrainingConfig


@dataclass(frozen=True)
class Progress:
    """What one optimizer step did; steps count from 1.

    ``grad_norm`` is not finite at a step that float16 skipped because its gradients overflowed.

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
    """The state of a run between two steps.

    Each of the processes draws the whole batch and computes its ``accumulate`` parts of it, one
    after the other; their gradients are those of the undivided batch to rounding. Dropout masks
    follow the number of parts, whoever computes them. Statistics of the batch inside a network,
    such as BatchNorm's, are those of a part.

    Errors: ValueError where the batch cannot be divided, the objective or the precision does not
    fit the model, or torchrun's processes have not met.
    """

    def __init__(
        self,
        model: LearnedScore,
        dataset: Dataset,
        config: TrainingConfig,
        objective: Objective | None = None,
        processes: Processes | None = None,
    ) -> None:
        model.data = dataset.spec if model.data is None else model.data
        self.model = model
        self.config = config
        self.dataset = dataset if model.classes else replace(dataset, labels=None)
        self.processes = Processes(".") if processes is None else processes
        self._check_processes()
        self.objective = objective_of(config) if objective is None else objective
        self._check_objective()
        self.objective.to(model.device).spacing.to("cpu")  # where the times are drawn
        prepare(model, config)
        own = Losses(model, self.objective, config.precision)
        # All get the first one's weights here, and its buffers before every part.
        self._losses = own if self.processes.world == 1 else _distributed(own)
        self.averages = Averages(model, config)
        self._trained = [p for p in self._losses.parameters() if p.requires_grad]
        self.optimizer = adamw(self._trained, config)
        self.scaler = scaler_of(config.precision, model.device)
        self.step = 0
        self.seconds = 0.0
        self.losses = list[float]()
        self.notes: dict[str, Any] = {}  # the loop's own, plain values that the state keeps
        # Everything that decides the weights, as JSON reads it back (tuples become lists).
        self.configuration: dict[str, Any] = json.loads(
            json.dumps(
                configuration_of(model)
                | {
                    "training": dataclasses.asdict(config),
                    "dataset": _fingerprint(dataset),
                }
            )
        )

    def _check_objective(self) -> None:
        if isinstance(self.model, ScoreModel):
            self.objective.check(self.model)
        elif isinstance(self.model, DirectScore):
            self.objective.check_direct(self.model)

    def _check_processes(self) -> None:
        world = self.processes.world
        size = self.config.batch_size
        device = self.model.device
        parts = self.config.accumulate * world
        if size % parts:
            rule = f"be a multiple of accumulate × processes = {parts}"
            raise wrong_value(
                "train",
                "batch_size",
                rule,
                size,
                f"pass batch_size={parts * max(1, size // parts)}",
            )
        if world > 1 and not dist.is_initialized():
            rule = "have met"
            remedy = "pass processes=p within `with Processes(out) as p`"
            raise wrong_value(
                "train", "processes", f"{rule}, as torchrun has started several", "none", remedy
            )
        local = os.environ.get("LOCAL_RANK", "0")
        if world > 1 and device.type == "cuda" and str(device.index) != local:
            raise wrong_value(
                "train",
                "model",
                f"be on cuda:{local}, this process's own GPU",
                str(device),
                "start no more processes than GPUs, and move it to "
                "'cuda' within `with Processes(out)`",
            )

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes, evaluates and tells."""
        return self.processes.leads

    def agree(self, value: float) -> float:
        """Return the leading process's value, in all of them."""
        return self.processes.agree(value)

    def advance(self) -> Progress:
        """Take one step; float16 skips it where gradients overflow, until nothing is left to try.

        Errors: FloatingPointError for a loss or gradient that is not finite; the weights stay.
        """
        began = time.perf_counter()
        step = self.step + 1
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(step)
        self._check_finite("loss", loss, step)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._trained, self.config.clip)
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            self._check_finite("gradient norm", norm, step)
        rate = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.averages.update(self.model, step)
        self.step = step
        self.seconds += time.perf_counter() - began
        self.losses.append(loss.item())
        return Progress(step, loss.item(), norm.item(), rate, self.seconds)

    def _backward(self, step: int) -> Tensor:
        """Add up the gradients of this process's parts of the batch; return the batch's loss."""
        config = self.config
        processes = self.processes
        device = self.model.device
        rows = batch_rows(len(self.dataset), config.batch_size, config.seed, step)
        batch = GlobalBatch.draw(self.objective, self.model, self.dataset, rows, config, step)
        count = config.accumulate * processes.world
        weights = batch.drawn.weight.reshape(count, -1)
        first = processes.rank * config.accumulate
        parts = range(first, first + config.accumulate)
        found = list[Tensor]()
        for part in parts:
            # Those of several processes are averaged once, after the last part.
            with self._alone() if part < parts[-1] else nullcontext():
                losses = batch.losses(self._losses, part, count, device)
                loss = torch.mean(weights[part].to(losses) * losses) / config.accumulate
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            found.append(losses.detach())
        losses = processes.gathered(torch.cat(found))
        drawn = batch.drawn
        self.objective.spacing.observe(drawn.u, losses.to(drawn.u.device))
        return torch.mean(drawn.weight.to(losses) * losses)

    def _alone(self) -> AbstractContextManager[None]:
        """Return a context in which gradients stay in this process."""
        if isinstance(self._losses, DistributedDataParallel):
            return self._losses.no_sync()
        return nullcontext()

    def _check_finite(self, name: str, value: Tensor, step: int) -> None:
        if not bool(torch.isfinite(value)):
            half = self.config.precision == "float16"
            remedy = "pass precision='bfloat16'" if half else "lower learning_rate or clip"
            raise diverged(
                "train",
                name,
                f"be finite at step {step}",
                value.item(),
                f"{remedy}; the last checkpoint is kept",
            )

    def line(self, progress: Progress) -> dict[str, Any]:
        """Return a line of metrics: its loss is the mean since the line before."""
        mean = math.fsum(self.losses) / len(self.losses)
        self.losses.clear()
        norm = progress.grad_norm if math.isfinite(progress.grad_norm) else None  # JSON has no inf
        return dataclasses.asdict(progress) | {"loss": mean, "grad_norm": norm}

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint of this step."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "losses": list(self.losses),
            "notes": self.notes,
            "configuration": json.dumps(self.configuration),
            "network": self.model.network.state_dict(),
            "averages": self.averages.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        folder.save(state, self.averages.main, self.configuration | {"step": self.step})
        self.processes.note(self.step)

    def restore(self, state: dict[str, Any]) -> None:
        """Become the run that was saved.

        Errors: ValueError where its weights are those of another network.
        """
        try:
            self.model.network.load_state_dict(state["network"])
            self.averages.load_state_dict(state["averages"])
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError) as error:
            got = str(error).replace("\n", " ")
            remedy = "start a new run in another folder"
            raise wrong_value(
                "train", "model", "fit the weights of the run that is resumed", got, remedy
            ) from error
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.losses = state["losses"]
        self.notes = state["notes"]
        self.processes.note(self.step)

    def finish(self) -> None:
        """Give the averaged weights to the caller's model."""
        self.model.network.load_state_dict(self.averages.main.network.state_dict())
        self.model.eval()
        release(self.model.network)


def _distributed(losses: Losses) -> DistributedDataParallel:
    """Return the losses with gradients that are the mean over all processes."""
    for weight in losses.parameters():
        if weight.requires_grad and weight.ndim == 4 and weight.shape[2:] == (1, 1):
            # Its gradient may come with the other strides of the same memory, which DDP warns of.
            hook = partial(_restrided, weight.stride())
            weight.register_hook(hook)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(losses, gradient_as_bucket_view=True)


def _restrided(stride: Sequence[int], gradient: Tensor) -> Tensor:
    return gradient.contiguous().as_strided(gradient.shape, stride)


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    values = dataset.values.cpu().contiguous()
    return {
        "name": dataset.spec.name,
        "rows": len(dataset),
        "crc32": zlib.crc32(values.numpy().data),
    }
