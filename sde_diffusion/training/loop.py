"""Training by denoising score matching, resumable bit for bit.

Every draw is a function of (seed, step) or (seed, epoch), never of the state of a generator, so a
run that is stopped and resumed takes the same steps as one that is not.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, final

from sde_diffusion._check import an_object, wrong_type, wrong_value
from sde_diffusion._progress import bar
from sde_diffusion.checkpoints.checkpoint import Saveable, save_model, score_in
from sde_diffusion.data.checks import scaled_for
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.latents.encoder_decoder import GaussianAutoencoder
from sde_diffusion.latents.latent_model import LatentModel
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.objectives.autoencoding import AutoencoderBound
from sde_diffusion.objectives.base import Objective, Trained
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.training.config import TrainingConfig
from sde_diffusion.training.folder import RunFolder
from sde_diffusion.training.loggers import Logger, check_loggers
from sde_diffusion.training.manifest import Manifest
from sde_diffusion.training.monitors import (
    BOUND,
    Monitor,
    check_monitors,
    note_best,
    observe,
    out_of_patience,
)
from sde_diffusion.training.scale import data_for
from sde_diffusion.training.trainer import Progress, Trainer


def train(
    model: Trained | LatentModel,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    objective: Objective | None = None,
    monitors: Sequence[Monitor] = (),
    loggers: Sequence[Logger] = (),
    processes: Processes | None = None,
    progress: bool = False,
) -> Iterator[Progress]:
    """Return an iterator that takes one optimizer step for every item asked of it.

    The first step writes on the model how it is trained: its coupling, and the dataset's
    specification, scaled as ``config.scale`` says, where it has no ``data``: a model that has any
    sees the dataset in the scaling of its own. After the last step it holds the averaged weights.

    With ``out``, checkpoints are written before the first step, every ``checkpoint_every`` steps,
    at the end, and when the iterator is closed between two steps (``break``). `load(out)` returns
    the averaged model of the latest one. The values of the monitors are lines of metrics.jsonl,
    and ``best.safetensors`` is the model of the best bound among them; after ``patience``
    evaluations without a better bound the run ends.

    Under torchrun all processes call this with their ``processes``; the first one alone evaluates
    and writes.

    Arguments:
        model: what is trained, in place; a `ScoreModel`, a `DirectScore`, a
            `MatrixScoreModel`, a `GaussianAutoencoder`, or a `LatentModel`, of which the score is
            trained on the latents of the data and the autoencoder stays as it is.
        dataset: the data, with labels for a network with classes.
        config: the settings.
        out: the folder of the run; without one nothing is written.
        resume: go on with the run in ``out``, rather than start one there.
        objective: what is minimised; the one that the settings name if None. A `DirectScore` takes
            one such as ``Sliced(Paths(…), Stratified(), 0.0)``, a `MatrixScoreModel`
            ``HybridScoreMatching()``; that of an autoencoder is ``AutoencoderBound()`` if None.
        monitors: called with the averaged model every ``evaluate_every`` steps and at the end.
        loggers: told what stands in metrics.jsonl, with a folder or without one.
        processes: the processes of torchrun; this one alone if None.
        progress: show a bar of the steps that are done, with the loss.

    Errors: at once TypeError, ValueError and OSError for what cannot be trained or written;
    FloatingPointError, naming the step, for a loss or gradient that is not finite.
    Source: Ho et al. 2020; Song et al. 2021.

    >>> import torch
    >>> from sde_diffusion import MLP, VPSDE, Dataset, DataSpec, ScoreModel
    >>> data = Dataset(DataSpec("points", (2,), None), torch.zeros(64, 2), None)
    >>> model = ScoreModel(MLP(2), VPSDE())
    >>> [progress.step for progress in train(model, data, TrainingConfig(steps=3))]
    [1, 2, 3]
    """
    _check_kinds(model, dataset, config)
    around, source = None, dataset
    if isinstance(model, LatentModel):
        around = model.autoencoder
        dataset = model.latents(scaled_for(around.data, dataset))
        model = score_in(model)
    if isinstance(model, GaussianAutoencoder) and objective is None:
        objective = AutoencoderBound()
    _check(model, dataset, config, objective)
    check_monitors(monitors, model)
    check_loggers(loggers)
    if monitors and not config.evaluate_every:
        raise wrong_value(
            "train", "evaluate_every", "be above 0 with monitors", 0, "pass evaluate_every=1000"
        )
    if config.patience and not monitors:
        raise wrong_value(
            "train",
            "monitors",
            "be given for patience to wait on",
            "none",
            "pass monitors=[HeldOutBound(dataset)]",
        )
    if resume and out is None:
        raise wrong_value("train", "out", "be given to resume", out, "pass out=the run's folder")
    dataset = data_for(model, dataset, config.scale)
    run = Trainer(
        model,
        dataset,
        config,
        objective,
        processes,
        around,
        None if around is None else source,
    )
    folder = None
    if out is not None and run.leads:
        folder = RunFolder(out, resume=resume, lock=run.processes.lock(Path(out)))
    try:
        loop = _Loop(run, folder, monitors, loggers if run.leads else (), resume=resume)
    except BaseException:
        if folder is not None:
            folder.close()
        raise
    found = _steps(loop)
    return _shown(found, run) if progress and run.leads else found


def _shown(steps: Generator[Progress], run: Trainer) -> Iterator[Progress]:
    """Yield the same steps, with a bar; the run is closed as its iterator is."""
    with closing(steps), bar(run.config.steps, "step", shown=True) as done:
        for step in steps:
            done.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            done.update(step.step - done.n)
            yield step


def _steps(loop: _Loop) -> Generator[Progress]:
    run = loop.run
    with closing(loop):
        ended = loop.begin()
        while not ended:
            progress = run.advance()
            ended = loop.after(progress)
            try:
                yield progress
            except GeneratorExit:
                loop.save()
                raise


@final
class _Loop:
    """What is done between the steps of a run: evaluations, files, and the decision to end."""

    def __init__(
        self,
        run: Trainer,
        folder: RunFolder | None,
        monitors: Sequence[Monitor],
        loggers: Sequence[Logger],
        *,
        resume: bool,
    ) -> None:
        self.run = run
        self.folder = folder
        self.monitors = monitors
        self.loggers = loggers
        if resume:
            run.restore(run.processes.share(self._saved_state))
        self.saved = run.step or None  # a fresh run has no checkpoint yet
        if folder is not None:
            self.manifest = Manifest(
                folder.manifest, run.configuration, run.model.device, run.processes.world
            )

    def _saved_state(self) -> dict[str, Any]:
        """Return the state that the first process reads for all."""
        if self.folder is None:
            return {}
        return self.folder.load(self.run.configuration, self.run.config.steps)

    def close(self) -> None:
        """Leave the folder to other runs."""
        try:
            for logger in self.loggers:
                logger.close()
        finally:
            if self.folder is not None:
                self.folder.close()

    def begin(self) -> bool:
        """Write the files of the start; return whether the run is complete already."""
        run = self.run
        if self.folder is not None:
            with self.folder.writing():
                self.manifest.write(run.step)
            self.folder.truncate(run.step)
            if run.step == 0:
                self.save()
        for logger in self.loggers:
            logger.begin(run.step)
        ended = run.step >= run.config.steps or out_of_patience(run.notes, run.config.patience)
        if ended:
            run.finish()
        return ended

    def after(self, progress: Progress) -> bool:
        """Evaluate, log and save what is due; return whether this step was the last one."""
        run = self.run
        config = self.run.config
        ended = run.step == config.steps
        if self.monitors and self._due(config.evaluate_every, last=ended):
            ended |= bool(run.agree(self._evaluate()))
        if self._told and self._due(config.log_every, last=ended):
            self._tell(run.line(progress))
        if self.folder is not None:
            if self._due(config.snapshot_every, last=ended):
                with self.folder.writing():
                    run.averages.snapshot(self.folder.path, self._record(), run.step)
            if self._due(config.checkpoint_every, last=ended):
                self.save()
        if ended:
            run.finish()
        return ended

    @property
    def _told(self) -> bool:
        """Whether anything is told the metrics."""
        return self.folder is not None or bool(self.loggers)

    def _tell(self, line: Mapping[str, Any]) -> None:
        """Write a line of metrics, and tell the loggers."""
        if self.folder is not None:
            self.folder.append(dict(line))
        values = {name: value for name, value in line.items() if name != "step"}
        for logger in self.loggers:
            logger.log(line["step"], values)

    def _due(self, every: int, *, last: bool) -> bool:
        return last or (every > 0 and self.run.step % every == 0)

    def _record(self) -> dict[str, object]:
        return self.run.configuration | {"step": self.run.step}

    def _whole(self) -> Saveable:
        return self.run.averages.whole(self.run.averages.main)

    def _evaluate(self) -> bool:
        """Return whether the run is to stop; the first process evaluates for all."""
        run = self.run
        config = self.run.config
        folder = self.folder
        if not run.leads:
            return False
        path = None if folder is None else folder.path
        with nullcontext() if folder is None else folder.writing():
            found = observe(self.monitors, self._whole(), run.step, path, config.seed)
        if config.patience and BOUND not in found:
            raise wrong_value(
                "train",
                "monitors",
                f"give {BOUND} for patience to wait on",
                sorted(found),
                "add a HeldOutBound",
            )
        better = note_best(run.notes, run.step, found)
        best = {"best": run.notes["best"]} if "best" in run.notes else {}
        self._tell({"step": run.step, "evaluation": found} | best)
        if folder is not None and better:
            with folder.writing():
                save_model(folder.best, self._whole(), self._record())
        return out_of_patience(run.notes, config.patience)

    def save(self) -> None:
        """Write a checkpoint of this step, if there is none yet."""
        if self.folder is not None and self.saved != self.run.step:
            with self.folder.writing():
                self.run.averages.write(self.folder.path, self._record())
                self.manifest.write(self.run.step)
            self.run.save(self.folder)
            self.saved = self.run.step


def _check_kinds(model: object, dataset: object, config: object) -> None:
    if not isinstance(model, (LearnedScore, GaussianAutoencoder, LatentModel)):
        raise wrong_type(
            "train",
            "model",
            "be a ScoreModel or a DirectScore",
            type(model).__name__,
            "pass ScoreModel(network, sde)",
        )
    for name, value, kind in (("dataset", dataset, Dataset), ("config", config, TrainingConfig)):
        if not isinstance(value, kind):
            raise wrong_type(
                "train",
                name,
                f"be a {kind.__name__}",
                type(value).__name__,
                f"pass {name}={kind.__name__}(...)",
            )


def _check(
    model: Trained, dataset: Dataset, config: TrainingConfig, objective: Objective | None
) -> None:
    if objective is not None:
        remedy = "pass TrainingConfig(objective='vlb') for one by its name"
        an_object("train", "objective", objective, Objective, remedy)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise wrong_value(
            "train", "model", "have parameters to train", "none", "call model.requires_grad_()"
        )
    if len(dataset) == 0:
        raise wrong_value("train", "dataset", "have rows", 0, "check the source of the data")
    t_min = config.t_min if objective is None else objective.t_min
    if isinstance(model, LearnedScore) and t_min >= model.sde.horizon:
        rule = f"be below the SDE's horizon {model.sde.horizon}"
        raise wrong_value("train", "t_min", rule, t_min, "pass t_min=1e-5")
    if model.classes and dataset.labels is None:
        raise wrong_value(
            "train",
            "dataset",
            "have labels for a network with classes",
            "none",
            "pass labels or a network with classes=None",
        )
    for name in model.conditions:
        if name not in dataset.conditions:
            rule = f"have a {name} for each sample, which the network takes"
            remedy = f"pass Dataset(…, conditions={{'{name}': …}}) or a network without"
            got = sorted(dataset.conditions)
            raise wrong_value("train", "dataset", rule, got, remedy)
