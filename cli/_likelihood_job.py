"""What a run of `sde-diffusion likelihood` computes: its options, model, data and manifest.

The batches are kept in ``out/unfinished`` until all are done.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sde_diffusion._check import Reason, shown, wrong_value
from sde_diffusion._files import writing
from sde_diffusion.cli import _common, menu

if TYPE_CHECKING:
    import torch

    from sde_diffusion.data.dataset import Dataset
    from sde_diffusion.evaluation.evaluator import Evaluator
    from sde_diffusion.evaluation.sample_log import SampleLog
    from sde_diffusion.evaluation.settings import EvaluationSettings
    from sde_diffusion.parallel.ranks import Ranks

_ALL: Final = "all"
# What a manifest holds in order to go on.
_PARTS: Final = {"options": dict, "settings": dict, "model": dict, "data": dict, "sessions": list}


@dataclass(frozen=True)
class LikelihoodJob:
    """What a run computes.

    Arguments:
        options: of the command line, by flag.
        evaluator: computes the likelihoods of a batch.
        manifest: what manifest.json holds so far; empty but in process 0.
        pending: the index of the first sample of every batch that is left.
    """

    options: Mapping[str, Any]
    evaluator: Evaluator
    manifest: Mapping[str, Any]
    pending: list[int]

    def shared(self) -> dict[str, Any]:
        """Return what other processes need in order to take part, as JSON."""
        return {
            "options": dict(self.options),
            "settings": self.evaluator.settings.to_json(),
            "pending": self.pending,
        }


def log_of(out: Path, rank: int = 0) -> SampleLog:
    """Return the log of the unfinished run in a folder."""
    from sde_diffusion.evaluation.sample_log import SampleLog

    return SampleLog(out / "unfinished", rank)


def prepared(
    options: Mapping[str, Any], given: set[str], out: Path, where: torch.device, *, resume: bool
) -> LikelihoodJob:
    """Return the job of the options, or of the run that is resumed, with its manifest written.

    Arguments:
        options: of the command line, by flag, defaults included.
        given: the flags that stand on the command line.
        out: the folder of the run.
        where: the device.
        resume: whether the run in the folder goes on.

    Errors: FileExistsError or FileNotFoundError for a folder that does not go with --resume;
    ValueError for another run's options, model or data.
    """
    log = log_of(out)
    _check_folder(out, log, resume=resume)
    if resume:
        manifest = _saved(out, log)
        if "--data" in given:  # its content decides, not where it lies
            moved = {"--data": options["--data"]}
            manifest = {**manifest, "options": {**manifest["options"], **moved}}
        evaluator = _resumed({flag: options[flag] for flag in given}, manifest, where)
    else:
        evaluator, why = evaluator_of(options, where).decided()
        evaluator, ledger = _audited(evaluator, options, given)
        settings = evaluator.settings.to_json()
        manifest = {
            "options": dict(options),
            "settings": settings,
            "mode": why,
            **ledger,
            **_content(evaluator, options),
            "sessions": [],
        }
        _common.output_folder(out)
        log.remove()  # what a crash may have left without a manifest
    done = log.batches()
    pending = [batch.start for batch in evaluator.batches() if batch.start not in done]
    if "result" in manifest:
        return LikelihoodJob(manifest["options"], evaluator, manifest, [])
    session = _session(evaluator, sum(batch.count for batch in done.values()))
    manifest = {**manifest, "sessions": [*manifest["sessions"], session]}
    kept = f"{sum(batch.count for batch in done.values())} samples are saved"
    with writing("likelihood", out, kept, "go on with --resume" if resume else "start again"):
        log.write(manifest)
    return LikelihoodJob(manifest["options"], evaluator, manifest, pending)


def _audited(
    evaluator: Evaluator, options: Mapping[str, Any], given: set[str]
) -> tuple[Evaluator, dict[str, Any]]:
    """Return the evaluator, tuned if --error asks for it, and its ledger for the manifest.

    Errors: ValueError where --error stands beside what it decides.
    """
    error = options["--error"]
    rows = options["--ledger"]
    samples = len(evaluator.dataset)
    if error is None and rows is None:
        return evaluator, {}
    from sde_diffusion.evaluation import tuning

    rows = 4 if rows is None else rows
    if error is None:
        return evaluator, {"ledger": tuning.summary(tuning.audited(evaluator, rows), samples)}
    for flag in ("--tolerance", "--probes", "--t-min"):
        if flag in given:
            raise wrong_value("--error", flag, "be left to --error", options[flag], "drop one")
    found = tuning.tuned(evaluator, error, rows)
    ledgers = [tuning.summary(ledger, samples) for ledger in found.ledgers]
    return found.evaluator, {"ledger": ledgers[-1], "tuning": ledgers[:-1]}


def _resumed(given: Mapping[str, Any], saved: Mapping[str, Any], where: torch.device) -> Evaluator:
    """Return the evaluator of a run, whose options, model and data must be those of now."""
    from sde_diffusion.training.folder import check_same

    known = {flag: saved["options"].get(flag) for flag in given}
    elsewhere = "leave it out, or start a new run in another --out"
    check_same("--resume", known, given, lambda _: elsewhere)
    try:
        evaluator = evaluator_of(saved["options"], where, saved["settings"])
    except (KeyError, AttributeError, ArithmeticError) as error:
        raise wrong_value(
            "--resume",
            "manifest.json",
            "hold the options of a run",
            Reason(f"{type(error).__name__}: {error}"),
            "start a new run in another --out",
        ) from error
    content = _content(evaluator, saved["options"])
    before = {part: dict(saved[part]) for part in content}
    for record in (before, content):
        record["data"].pop("name", None)
    check_same("--resume", before, content, _same_part)
    return evaluator


def _same_part(name: str) -> str:
    return f"go on with the {name.partition('.')[0]} that the run was started with"


def agreed(
    ranks: Ranks, prepare: Callable[[], LikelihoodJob], where: torch.device
) -> LikelihoodJob:
    """Return the job, which process 0 prepares and the others follow."""
    own = list[LikelihoodJob]()

    def make() -> dict[str, Any]:
        own.append(prepare())
        return own[0].shared()

    shared = ranks.agree(make)
    if own:
        return own[0]
    evaluator = evaluator_of(shared["options"], where, shared["settings"])
    return LikelihoodJob(shared["options"], evaluator, {}, shared["pending"])


def evaluator_of(
    options: Mapping[str, Any], where: torch.device, settings: Mapping[str, Any] | None = None
) -> Evaluator:
    """Return what computes the likelihoods, by ``settings`` where they are decided already.

    Errors: ValueError or TypeError for options, data or a model that do not go together.
    """
    from sde_diffusion.evaluation.evaluator import Evaluator
    from sde_diffusion.evaluation.settings import EvaluationSettings
    from sde_diffusion.scores import first_time

    chosen = _settings(options) if settings is None else EvaluationSettings.from_json(settings)
    solver = _ode_solver(options["--solver"], chosen.tolerance)
    model = menu.model(options["--model"], where)
    start = first_time(model, chosen.t_min)
    times = menu.times(options["--grid"], model.sde, solver, options["--steps"], start)
    dataset = _dataset(options, model)
    return Evaluator(model, dataset, solver, chosen, times.flip(0))


def _check_folder(out: Path, log: SampleLog, *, resume: bool) -> None:
    """Refuse, in the words of the command line, a folder that does not go with --resume."""
    if resume and not (log.exists() or (out / "manifest.json").is_file()):
        error = wrong_value(
            "--resume",
            "out",
            "be the folder of a run",
            str(out),
            "leave out --resume to start one",
        )
        raise FileNotFoundError(str(error))
    if log.exists() and not resume:
        error = wrong_value(
            "--out",
            "out",
            "be a folder without an unfinished run",
            str(out),
            "pass --resume to go on with it, or another --out",
        )
        raise FileExistsError(str(error))


def _saved(out: Path, log: SampleLog) -> dict[str, Any]:
    """Return the manifest of the run in a folder, of this version or an earlier one."""
    from sde_diffusion.evaluation.sample_log import read_manifest
    from sde_diffusion.evaluation.settings import BEFORE

    path = log.manifest if log.exists() else out / "manifest.json"
    saved = read_manifest(path)
    for part, kind in _PARTS.items():
        if not isinstance(saved.get(part), kind):
            raise wrong_value(
                "--resume",
                str(path),
                "be the manifest of a run of this command",
                f"{part}: {shown(saved.get(part))}",
                f"delete {path.parent}, and start again",
            )
    before = {f"--{name}": value for name, value in BEFORE.items()}
    return saved | {"options": before | saved["options"], "settings": BEFORE | saved["settings"]}


def _settings(options: Mapping[str, Any]) -> EvaluationSettings:
    from sde_diffusion.evaluation.settings import BOUNDS, EvaluationSettings

    bound = options["--bound"]
    return EvaluationSettings(
        bounds=BOUNDS if bound == _ALL else (bound,),
        tolerance=options["--tolerance"],
        t_min=options["--t-min"],
        variable=options["--variable"],
        divergence=options["--divergence"],
        probes=options["--probes"],
        mode=options["--mode"],
        dequantization=options["--dequantization"],
        draws=options["--draws"],
        times=options["--times"],
        steps=options["--vlb-steps"],
        chain=options["--chain"],
        variance=options["--variance"],
        decoder=options["--decoder"],
        batch_size=options["--batch-size"],
        seed=options["--seed"],
    )


def _ode_solver(name: str, tolerance: float | None) -> Any:  # noqa: ANN401
    from sde_diffusion import ODE

    made = menu.solver(name, tolerance)
    if not issubclass(ODE, made.dynamics):
        rule = "be a solver of any ODE, for the flow and its divergence together"
        remedy = f"choose one of {', '.join(menu.ODE_SOLVER_NAMES)}"
        raise wrong_value("likelihood", "--solver", rule, name, remedy)
    return made


def _dataset(options: Mapping[str, Any], model: Any) -> Dataset:  # noqa: ANN401
    """Return the data, scaled as for the model.

    Errors: ValueError for data of another shape or levels, whose likelihood would mean nothing, or
    on another scale than the prior covers.
    """
    from sde_diffusion.cli._held_out import read_for, scaled_like

    # Runs of version 0.1 know none of these.
    usual = {"size": None, "frames": "first", "layout": None, "length": None}
    reading = {name: options.get(f"--{name}", value) for name, value in usual.items()}
    reading |= {name: options[f"--{name}"] for name in ("split", "limit", "levels")}
    return scaled_like(model, read_for(options["--data"], model, reading))


def _content(evaluator: Evaluator, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells the model and the data from others."""
    from sde_diffusion.checkpoints.fingerprint import fingerprint

    data = evaluator.dataset
    return {
        "model": {"name": options["--model"], "content": fingerprint(evaluator.model)},
        "data": {**data.spec.to_json(), "rows": len(data), "content": fingerprint(data.values)},
    }


def _session(evaluator: Evaluator, done: int) -> dict[str, Any]:
    """Return the command, machine and versions of this session, which a resumed run may change."""
    import numpy as np
    import torch

    import sde_diffusion
    from sde_diffusion.parallel.ranks import place

    return {
        "command": shlex.join(["sde-diffusion", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "done": done,
        "host": platform.node(),
        "processes": place()[1],
        "device": str(evaluator.model.device),
        "versions": {
            "sde_diffusion": sde_diffusion.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
