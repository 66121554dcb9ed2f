"""The state of a training run and the one step that advances it."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import time
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from sde_diffusion._check import Reason, diverged, wrong_value
from sde_diffusion.checkpoints.autoencoders import tensors_of
from sde_diffusion.checkpoints.checkpoint import configuration_of
from sde_diffusion.checkpoints.fingerprint import (
    description,
    fingerprint,
    network_settings,
    steady,
)
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.shuffling import batch_rows
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.latents.autoencoder import Autoencoder
from sde_diffusion.latents.encoder_decoder import GaussianAutoencoder
from sde_diffusion.latents.latent_model import LatentModel
from sde_diffusion.models.few_steps import FewStepModel
from sde_diffusion.models.matrix import MatrixScoreModel
from sde_diffusion.models.score import DirectScore, ScoreModel
from sde_diffusion.objectives.base import Objective, Trained
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.training.averages import Averages
from sde_diffusion.training.batch import GlobalBatch, Together
from sde_diffusion.training.config import OF_OBJECTIVE
from sde_diffusion.training.folder import RunFolder
from sde_diffusion.training.objective_by_name import objective_of
from sde_diffusion.training.precision import adamw, autocast, prepare, release, scaler_of

if TYPE_CHECKING:
    from sde_diffusion.training.config import TrainingConfig


@dataclass(frozen=True)
class Progress:
    """What one optimizer step did.

    Arguments:
        step: its number, from 1.
        loss: the mean loss of the batch, in the units of the objective.
        grad_norm: the norm of the gradient before it is clipped; infinite or NaN at a step that
            float16 skipped because its gradients overflowed.
        learning_rate: the learning rate of the step.
        seconds: the time that the run has taken so far, without pauses.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of step 1 … steps: linear warm-up, then the schedule."""
    rate = config.learning_rate * min(1.0, step / max(1, config.warmup))
    if config.schedule == "cosine":
        part = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * part))
    return rate


@final
class Trainer:
    """The state of a run between two steps.

    Each of the processes draws the whole batch and computes ``accumulate`` parts of it, one after
    the other; the sum of the gradients is that of the undivided batch to rounding. There is one
    dropout mask for each part, whichever process computes it. Statistics of the batch inside a
    network, such as BatchNorm's, are those of a part.

    Until its first step a run changes no more of the model than the memory layout and compilation
    of its network; `advance` then writes on it how it is trained.

    Arguments:
        model: what is trained, in place.
        dataset: the data.
        config: the settings.
        objective: what is minimised; the one that the settings name if None.
        processes: the processes that share the run; this one alone if None.
        around: the autoencoder of whose latents the model is the score; None for none.
        source: the data whose latents ``dataset`` are; None for the data themselves.

    Errors: ValueError where the batch cannot be divided, the objective or the precision does not
    fit the model, or torchrun's processes have not met.
    """

    def __init__(
        self,
        model: Trained,
        dataset: Dataset,
        config: TrainingConfig,
        objective: Objective | None = None,
        processes: Processes | None = None,
        around: Autoencoder | None = None,
        source: Dataset | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.dataset = _learned(dataset, model)
        self.told = _learned(dataset if source is None else source, model)
        self.processes = Processes(".") if processes is None else processes
        self._check_processes()
        self.objective = objective_of(config) if objective is None else objective
        self.named = objective is None  # by the settings, which then say it all
        self._check_objective()
        self.objective.to(model.device).spacing.to("cpu")  # where the times are drawn
        prepare(model, config)
        both = Together(model, self.objective)
        self._trained = [p for p in both.parameters() if p.requires_grad]
        # All get the first one's weights here, and its buffers before every part.
        self._losses = self.objective if self.processes.world == 1 else _distributed(both)
        self.averages = Averages(model, config, around)
        self.optimizer = adamw(self._trained, config)
        self.scaler = scaler_of(config.precision, model.device)
        self.step = 0
        self.seconds = 0.0
        self.losses = list[float]()
        self.notes: dict[str, Any] = {}  # the loop's own, plain values that the state keeps
        self.configuration = self._configuration()

    def _configuration(self) -> dict[str, Any]:
        """Return everything that decides the weights, as JSON reads it: tuples become lists.

        The model is described as its first step makes it.
        """
        whole = self.averages.whole(self.model)
        described = configuration_of(whole) | {"data": self._data().to_json()}
        if isinstance(whole, LatentModel):
            described["autoencoder"]["content"] = fingerprint(tensors_of(whole.autoencoder))
        if isinstance(self.model, ScoreModel):
            described |= {"coupling": self.objective.coupling.name}
        training = dataclasses.asdict(self.config)
        own = None
        if not self.named:
            training = {k: v for k, v in training.items() if k not in OF_OBJECTIVE}
            own = description(self._adopted_objective())
        described |= {
            "objective": own,
            "training": training,
            "dataset": _fingerprint(self.told),
        }
        found: dict[str, Any] = json.loads(json.dumps(described))
        return found

    def _adopted_objective(self) -> Objective:
        """Return a copy of the objective as the first step makes it, whoever used it before."""
        objective = copy.copy(self.objective)
        if isinstance(self.model, ScoreModel):
            objective.adopt(copy.copy(self.model))
        return objective

    def _data(self) -> DataSpec:
        return self.dataset.spec if self.model.data is None else self.model.data

    def _adopt(self) -> None:
        """Write on the model and its averages what training makes of them."""
        data = self._data()
        for model in (self.model, *self.averages.models()):
            model.data = data
            if isinstance(model, ScoreModel):
                self.objective.adopt(model)

    def _check_objective(self) -> None:
        if isinstance(self.model, ScoreModel):
            self.objective.check(self.model)
        elif isinstance(self.model, DirectScore):
            self.objective.check_direct(self.model)
        elif isinstance(self.model, MatrixScoreModel):
            self.objective.check_matrix(self.model)
        elif isinstance(self.model, FewStepModel):
            self.objective.check_few_steps(self.model)
        elif isinstance(self.model, GaussianAutoencoder):
            self.objective.check_autoencoder(self.model)

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
        """Whether this process is the one that writes and evaluates."""
        return self.processes.leads

    def agree(self, value: float) -> float:
        """Return the leading process's value, in all of them."""
        return self.processes.agree(value)

    def advance(self) -> Progress:
        """Take one optimizer step, which float16 skips where scaled gradients overflow.

        The first step writes on the model how it is trained: its coupling, and its data where it
        has none.

        Errors: FloatingPointError for a loss or gradient that is not finite, in float16 at a scale
        below 1; the weights stay.
        """
        began = time.perf_counter()
        step = self.step + 1
        if self.step == 0:
            self._adopt()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        # Draw: data x0, times t and noise eps of the whole batch.
        batch = self._draw(step)
        found = list[Tensor]()
        for index in self._parts:
            part = batch.part(index, self._count, self.model.device)
            with self._alone(index):
                # Loss: of every sample of this part at its own time.
                with part.dropout(), autocast(self.config.precision, self.model.device):
                    losses = self._losses(part.conditioned(self.model), part.batch)
                losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
                # Gradient: of the weighted mean, added to that of the parts before.
                loss = torch.mean(part.weight.to(losses) * losses) / self.config.accumulate
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            found.append(losses.detach())
        total = self._gathered(batch, found)
        # Clip: the norm of the gradient.
        norm = self._clip(step)
        # Update: the weights, by AdamW.
        rate = self._update(step)
        # Average: the weights of all steps so far.
        self.averages.update(self.model, step)
        self.step = step
        self.seconds += time.perf_counter() - began
        self.losses.append(total.item())
        return Progress(step, total.item(), norm.item(), rate, self.seconds)

    @property
    def _count(self) -> int:
        """The number of parts of a batch."""
        return self.config.accumulate * self.processes.world

    @property
    def _parts(self) -> range:
        """The parts that this process computes."""
        first = self.processes.rank * self.config.accumulate
        return range(first, first + self.config.accumulate)

    def _draw(self, step: int) -> GlobalBatch:
        config = self.config
        rows = batch_rows(len(self.dataset), config.batch_size, config.seed, step)
        return GlobalBatch.draw(self.objective, self.model, self.dataset, rows, config, step)

    def _gathered(self, batch: GlobalBatch, found: Sequence[Tensor]) -> Tensor:
        """Return the loss of the batch, of all processes; the spacing takes note of its losses."""
        losses = self.processes.gathered(torch.cat(list(found)))
        drawn = batch.drawn
        self.objective.spacing.observe(drawn.u, losses.to(drawn.u.device))
        loss = torch.mean(drawn.weight.to(losses) * losses)
        self._check_finite("loss", loss, batch.step)
        return loss

    def _clip(self, step: int) -> Tensor:
        """Return the norm of the gradient before it is clipped."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._trained, self.config.clip)
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            self._check_finite("gradient norm", norm, step)
        return norm

    def _update(self, step: int) -> float:
        """Take the optimizer's step; return its learning rate."""
        rate = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return rate

    def _alone(self, index: int) -> AbstractContextManager[None]:
        """Return a context in which gradients stay in this process, for all parts but its last.

        Those of several processes are averaged once, after the last part.
        """
        if isinstance(self._losses, DistributedDataParallel) and index != self._parts[-1]:
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
        self._measure()
        self._drop_what_runs()
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
        folder.save(
            state,
            self.averages.whole(self.averages.main),
            self.configuration | {"step": self.step},
        )
        self.processes.note(self.step)

    def _drop_what_runs(self) -> None:
        """Take out of the record what the steps have changed of a network of one's own."""
        described = self.configuration["network"]
        if "settings" in described:
            described["settings"] = steady(
                described["settings"], network_settings(self.model.network)
            )

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the run that was saved.

        Errors: ValueError where its weights are those of another network.
        """
        try:
            self.model.network.load_state_dict(state["network"])
            self.averages.load_state_dict(state["averages"])
            self.objective.load_state_dict(state["objective"])
            self._restore_moments(state["optimizer"]["state"])
            self.scaler.load_state_dict(state["scaler"])
        except (
            RuntimeError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            OverflowError,
        ) as error:
            remedy = "start a new run in another folder"
            raise wrong_value(
                "train",
                "model",
                "fit the weights of the run that is resumed",
                Reason(error),
                remedy,
            ) from error
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.losses = state["losses"]
        self.notes = state["notes"]
        if self.step > 0:
            self._adopt()
        self.processes.note(self.step)

    def _restore_moments(self, moments: dict[int, dict[str, Tensor]]) -> None:
        """Restore the optimizer's moments; its settings are those of this run.

        Errors: LookupError for moments of other weights, with the number of the first.
        """
        own = self.optimizer.state_dict()["param_groups"]
        for number, weight in enumerate(self._trained):
            shapes = {name: tuple(value.shape) for name, value in moments.get(number, {}).items()}
            shape = tuple(weight.shape)
            if shapes not in ({}, {"step": (), "exp_avg": shape, "exp_avg_sq": shape}):
                raise LookupError(number)
        self.optimizer.load_state_dict({"state": moments, "param_groups": own})

    def _measure(self) -> None:
        """Measure the scale of the latents of an autoencoder, as its average makes them."""
        main = self.averages.main
        if isinstance(main, GaussianAutoencoder):
            main.measure(self.dataset)

    def finish(self) -> None:
        """Give the averaged weights to the caller's model."""
        self._measure()
        self.model.network.load_state_dict(self.averages.main.network.state_dict())
        self.model.eval()
        release(self.model.network)


def _distributed(both: Together) -> DistributedDataParallel:
    """Return the module with gradients that are the mean over all processes."""
    for weight in both.parameters():
        if weight.requires_grad and set(weight.shape[2:]) == {1}:
            # Its gradient may come with the other strides of the same memory, which DDP warns of.
            hook = partial(_restrided, weight.stride())
            weight.register_hook(hook)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(both, gradient_as_bucket_view=True)


def _restrided(stride: Sequence[int], gradient: Tensor) -> Tensor:
    return gradient.contiguous().as_strided(gradient.shape, stride)


def _learned(dataset: Dataset, model: Trained) -> Dataset:
    """Return the data set with what the model takes of its conditions, and nothing else."""
    return dataset.for_network(model.classes, model.conditions)


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Return what tells the data from others, with the names of classes that are learned."""
    found: dict[str, Any] = {
        "name": dataset.spec.name,
        "rows": len(dataset),
        "crc32": _crc32(dataset.values),
    }
    if dataset.labels is not None:
        found["labels_crc32"] = _crc32(dataset.labels.long())
    if dataset.conditions:
        crcs = {name: _crc32(held) for name, held in sorted(dataset.conditions.items())}
        found["conditions_crc32"] = crcs
    if dataset.classes is not None:
        found["classes"] = list(dataset.classes)
    return found


def _crc32(values: Tensor) -> int:
    return zlib.crc32(values.cpu().contiguous().numpy().data)
