"""Training by denoising score matching, resumable bit for bit.

Every draw follows from (seed, step) or (seed, epoch), never from the state of a generator, so a
run that is stopped and resumed takes the same steps as one that is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from sde_diffusion._check import (
    one_of,
    positive_integer,
    positive_number,
    wrong_type,
    wrong_value,
)
from sde_diffusion.data import Dataset
from sde_diffusion.objectives import Objective
from sde_diffusion.runs import RunFolder
from sde_diffusion.score import ScoreModel
from sde_diffusion.trainer import Progress, Trainer, classes_of
from sde_diffusion.weighting import WEIGHTINGS

__all__ = ["Progress", "TrainingConfig", "train"]

_CHOICES: Final = {"schedule": ("constant", "cosine"), "weighting": tuple(WEIGHTINGS)}


@final
@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training run.

    ``warmup`` steps of linear warm-up lead to ``learning_rate``; ``schedule`` keeps it there
    ("constant") or lets it fall to 0 at the last step ("cosine"). ``clip`` is the largest norm of
    the gradient. ``weighting`` is "perceptual", "likelihood" (times drawn by importance) or
    "min-snr". Times lie in [t_min, horizon]. ``label_dropout`` is the share of labels replaced
    by −1, "no class", in training a network with classes.

    Errors: TypeError or ValueError for a setting out of range, by name.

    >>> TrainingConfig(steps=100).batch_size
    128
    >>> TrainingConfig(steps=0)
    Traceback (most recent call last):
    ValueError: TrainingConfig: steps must be at least 1, got 0; pass for example steps=20
    """

    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 100
    schedule: str = "constant"
    clip: float = 1.0
    ema_decay: float = 0.999
    weighting: str = "perceptual"
    t_min: float = 1e-5
    label_dropout: float = 0.1
    seed: int = 0
    checkpoint_every: int = 1000
    log_every: int = 50

    def __post_init__(self) -> None:
        what = "TrainingConfig"
        for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
            positive_integer(what, name, getattr(self, name))
        for name in ("warmup", "seed"):
            positive_integer(what, name, getattr(self, name), least=0)
        for name in ("learning_rate", "clip", "t_min"):
            positive_number(what, name, getattr(self, name))
        for name, usual in (("ema_decay", 0.999), ("label_dropout", 0.1)):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise wrong_value(what, name, "lie in [0, 1)", share, f"pass {name}={usual}")
        if not 0 <= self.weight_decay < math.inf:
            raise wrong_value(what, "weight_decay", "be finite and at least 0",
                              self.weight_decay, "pass weight_decay=0.0")  # fmt: skip
        for name, choices in _CHOICES.items():
            one_of(what, name, getattr(self, name), choices)


def train(
    model: ScoreModel,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    objective: Objective | None = None,
) -> Iterator[Progress]:
    """Return an iterator that takes one optimizer step for every item asked of it.

    After its last step ``model`` holds the averaged weights; a model without ``data`` gets the
    dataset's. With ``out``, checkpoints are written before the first step, every
    ``checkpoint_every`` steps, at the end, and when the iterator is closed between two steps
    (``break``); `load(out)` returns the averaged model of the latest.

    Errors: at once TypeError, ValueError and OSError for what cannot be trained or written;
    FloatingPointError, naming the step, for a loss or gradient that is not finite.
    Source: Ho et al. 2020; Song et al. 2021.

    >>> import torch
    >>> from sde_diffusion import MLP, VPSDE, Dataset, DataSpec
    >>> data = Dataset(DataSpec("points", (2,), None), torch.zeros(64, 2), None)
    >>> model = ScoreModel(MLP(2), VPSDE())
    >>> [progress.step for progress in train(model, data, TrainingConfig(steps=3))]
    [1, 2, 3]
    """
    _check(model, dataset, config)
    run = Trainer(model, dataset, config, objective)
    folder = None if out is None else RunFolder(out, resume=resume)
    if folder is not None and resume:
        run.restore(folder.load(run.configuration, config.steps))
    elif resume:
        raise wrong_value("train", "out", "be given to resume", out, "pass out=the run's folder")
    return _steps(run, folder)


def _steps(run: Trainer, folder: RunFolder | None) -> Iterator[Progress]:
    config = run.config
    if folder is not None and run.step == 0:
        folder.truncate(0)
        run.save(folder)
    saved = run.step
    if run.step >= config.steps:
        run.finish()
    while run.step < config.steps:
        progress = run.advance()
        if folder is not None:
            if run.step % config.log_every == 0 or run.step == config.steps:
                folder.append(run.line(progress))
            if run.step % config.checkpoint_every == 0 or run.step == config.steps:
                run.save(folder)
                saved = run.step
        if run.step == config.steps:
            run.finish()
        try:
            yield progress
        except GeneratorExit:
            if folder is not None and saved < run.step:
                run.save(folder)
            raise


def _check(model: ScoreModel, dataset: Dataset, config: TrainingConfig) -> None:
    for name, value, kind in (("model", model, ScoreModel), ("dataset", dataset, Dataset),
                              ("config", config, TrainingConfig)):  # fmt: skip
        if not isinstance(value, kind):
            raise wrong_type("train", name, f"be a {kind.__name__}", type(value).__name__,
                             f"pass {name}={kind.__name__}(...)")  # fmt: skip
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise wrong_value("train", "model", "have parameters to train", "none",
                          "call model.requires_grad_()")  # fmt: skip
    if len(dataset) == 0:
        raise wrong_value("train", "dataset", "have rows", 0, "check the source of the data")
    if config.t_min >= model.sde.horizon:
        rule = f"be below the SDE's horizon {model.sde.horizon}"
        raise wrong_value("train", "t_min", rule, config.t_min, "pass t_min=1e-5")
    if classes_of(model) and dataset.labels is None:
        raise wrong_value("train", "dataset", "have labels for a network with classes", "none",
                          "pass labels or a network with classes=None")  # fmt: skip
