"""What the commands that train share: settings, the run's folder, its steps, its last words."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion._check import wrong_value
from sde_diffusion._files import write_atomically, writing
from sde_diffusion.cli import _common, _train_file

if TYPE_CHECKING:
    from sde_diffusion.parallel.processes import Processes
    from sde_diffusion.training.config import TrainingConfig
    from sde_diffusion.training.trainer import Progress

_DRAWING: Final = 60.0  # seconds between two pictures of the curves, at least


def settings_of(
    ctx: click.Context, usual: Callable[[dict[str, Any]], Path]
) -> tuple[dict[str, Any], set[str], Path]:
    """Return all options, the names of those given, and the run's folder.

    ``usual`` names the folder, by the options, where none is given.
    """
    config = ctx.params["config"]
    file = {} if config is None else _train_file.read(config, ctx.command)
    first, _ = _train_file.merged(ctx, file, {})
    folder = usual(first) if first["out"] is None else first["out"]
    _check_folder(folder, resume=first["resume"])
    own = _own(folder, ctx.command) if first["resume"] else {}
    options, given = _train_file.merged(ctx, file, own)
    return options, given, folder


def _own(folder: Path, command: click.Command) -> dict[str, Any]:
    """Return the settings with which a run was started."""
    from sde_diffusion import describe

    kept = {k: v for k, v in describe(folder).get("training", {}).items() if v is not None}
    path = folder / _train_file.FILE
    return kept | (_train_file.read(path, command) if path.exists() else {})


def write_settings(folder: Path, options: dict[str, Any], command: click.Command) -> None:
    """Write the settings of a run beside it, as ``--config`` and ``--resume`` read them."""
    text = _train_file.text(options, command)
    then = "pass --resume" if options["resume"] else "start again"
    with writing("train", folder, "no step was taken", then):
        write_atomically(folder / _train_file.FILE, lambda f: f.write_text(text, encoding="utf-8"))


def _check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse, in the words of the command line, a folder that does not go with --resume.

    Errors: FileExistsError for a folder in which another run is, or an earlier one without
    --resume; FileNotFoundError for --resume in one without.
    """
    from sde_diffusion.parallel.lock import RunLock

    RunLock("train", folder).check()
    exists = (folder / "state.pt").exists()
    if resume and not exists:
        error = wrong_value(
            "--resume",
            "out",
            "be the folder of a run",
            str(folder),
            "leave out --resume to start one",
        )
        raise FileNotFoundError(str(error))
    if exists and not resume:
        error = wrong_value(
            "--out",
            "out",
            "be a folder without a run",
            str(folder),
            "pass --resume to go on with it, or another --out",
        )
        raise FileExistsError(str(error))


def follow(
    run: Generator[Progress], config: TrainingConfig, folder: Path, processes: Processes
) -> dict[str, Any]:
    """Take every step of the run and return where it ended, with a running mean of the loss.

    Ctrl-C ends it too, once the step is done and saved.
    """
    from sde_diffusion import describe

    step = 0
    mean = math.nan
    seconds = 0.0
    drawn = time.monotonic()
    shown = _common.progress(config.steps, "step", leads=processes.leads)
    with shown as bar, closing(run):
        for item in run:
            step = item.step
            seconds = item.seconds
            mean = item.loss if math.isnan(mean) else 0.98 * mean + 0.02 * item.loss
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            bar.update(step - bar.n)
            if processes.interrupted:
                break
            due = step % config.checkpoint_every == 0 and time.monotonic() - drawn > _DRAWING
            if due and processes.leads:
                _draw_curves(folder)
                drawn = time.monotonic()
    lines = _draw_curves(folder) if processes.leads else []
    best = [line["best"] for line in lines if "best" in line][-1:]
    return {
        "step": step or describe(folder)["step"],
        "loss": mean,
        "seconds": seconds,
        "best": best[0] if best else None,
    }


def _draw_curves(folder: Path) -> list[dict[str, Any]]:
    """Draw the metrics of the run, and return them."""
    from sde_diffusion.pictures.runs import curves_picture
    from sde_diffusion.training.folder import read_metrics

    lines = read_metrics(folder / "metrics.jsonl")
    if lines:
        with writing("train", folder, "the last checkpoint is whole", "pass --resume"):
            curves_picture(lines, folder / "curves.png")
    return lines


def ended(result: dict[str, Any], following: str) -> list[str]:
    """Return what a run says at its end."""
    best = result["best"]
    folder = Path(result["checkpoint"]).parent
    stopped = result["step"] < result["steps"]
    if math.isnan(result["loss"]):
        more = "--patience" if stopped else "--steps"
        return [
            f"{result['checkpoint']} is complete at step {result['step']}; "
            f"pass a larger {more} to go on"
        ]
    lines = [
        f"step {result['step']}: loss {result['loss']:.4f}, {result['parameters']:,} parameters, "
        f"{result['seconds']:.1f} s"
    ]
    if best is not None:
        lines.append(
            f"best bound {best['bits_per_dim']:.4f} bits/dim at step {best['step']}, "
            f"kept as {folder / 'best.safetensors'}"
        )
    if stopped:
        lines.append(f"stopped early: {best['since']} evaluations without a better one")
    return [
        *lines,
        f"wrote {result['checkpoint']}",
        f"next: sde-diffusion {following}",
    ]
