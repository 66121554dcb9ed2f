"""`sde-diffusion distil`: a student of a teacher, which samples in one to four evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from sde_diffusion._check import wrong_value
from sde_diffusion.cli import _common, menu
from sde_diffusion.cli._runs import ended, follow, settings_of, write_settings
from sde_diffusion.cli._train_options import SETTINGS, assignments, setting_option
from sde_diffusion.training.config import TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Generator

    from sde_diffusion.data.dataset import Dataset
    from sde_diffusion.models.few_steps import FewStepModel
    from sde_diffusion.objectives.students import StudentObjective
    from sde_diffusion.parallel.processes import Processes
    from sde_diffusion.training.trainer import Progress

EXAMPLES: Final = """\b
Examples:
  sde-diffusion distil --teacher ring --method regression --out runs/ring-1
  sde-diffusion distil --teacher digits --method progressive --student-steps 8 --out runs/eight
  sde-diffusion distil --teacher runs/eight --method progressive --student-steps 4 --out runs/four
  sde-diffusion distil --teacher digits --method consistency --out runs/consistent
  sde-diffusion sample --model runs/four --solver few-steps --steps 4
"""
_METHODS: Final = ("regression", "progressive", "consistency", "continuous", "mean-flow")
_ORACLE_ROWS: Final = 1 << 15  # drawn of a closed form, as data
# The settings of training that are a student's too.
_SETTINGS: Final = (
    *("steps", "batch_size", "learning_rate", "weight_decay", "warmup", "schedule", "clip"),
    *("precision", "accumulate", "channels_last", "compile", "ema_decay", "label_dropout"),
    *("checkpoint_every", "log_every", "seed"),
)


def _training(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of training."""
    texts = {name: text for group in SETTINGS.values() for name, text in group.items()}
    known = {field.name: field for field in fields(TrainingConfig)}
    for name in reversed(_SETTINGS):
        function = setting_option(known[name], texts[name])(function)
    return function


@click.command(epilog=EXAMPLES)
@click.option(
    "--teacher",
    default=None,
    shell_complete=menu.completing(menu.MODEL_NAMES, files=True),
    help="Whose flow is learned: digits, mnist, ring, ring:SDE, a checkpoint or run folder, also "
    "of a student for progressive, or package.module:attr.",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="regression",
    show_default=True,
    help="regression: pairs of the exact flow; progressive: one step for two of the teacher's; "
    "consistency: every state leads to one end, between levels or continuous; mean-flow: the "
    "mean velocity of a step.",
)
@click.option(
    "--trajectory",
    type=click.Choice(["teacher", "data"]),
    default="teacher",
    show_default=True,
    help="Where a state goes: along the teacher's flow, or for consistency and mean-flow along "
    "the path of the data, which makes no use of the teacher's score.",
)
@_common.count_option(
    "--student-steps", default=4, help="Most steps of the student; all of them for progressive."
)
@_common.count_option("--noise-levels", default=64, help="Levels of consistency.")
@_common.count_option(
    "--paths", default=16384, help="Paths of the flow for regression, solved once at the start."
)
@click.option(
    "--data",
    default=None,
    help="Data of the teacher, if not its own: digits, or a path. A closed form draws its own.",
)
@_common.reading_options
@click.option(
    "--network",
    type=click.UNPROCESSED,
    multiple=True,
    callback=assignments,
    metavar="NAME=VALUE",
    help="An argument of the student's network, as in width=64, which then starts afresh; "
    "repeatable. That of the teacher, with its weights, if not given.",
)
@_training
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Run folder; runs/TEACHER-METHOD if not given.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with its settings.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE.toml",
    help="Settings by the names of these options; the command line takes precedence.",
)
@_common.device_option
@_common.json_option
@click.pass_context
def command(ctx: click.Context, /, **_options: Any) -> None:  # noqa: ANN401
    """Train a student of a teacher, which samples in a few evaluations.

    The run folder is as that of `train`: model.safetensors is the student, which `sample` takes
    with --solver few-steps, or renoised after consistency, and `compare` as --student. Ctrl-C
    saves before it stops, and --resume goes on.
    """
    from sde_diffusion.parallel.processes import Processes

    options, _, folder = settings_of(ctx, _default_folder)
    if options["teacher"] is None:
        remedy = "pass for example --teacher digits"
        raise wrong_value("--teacher", "teacher", "be given", "none", remedy)
    with Processes(folder, _common.note) as processes:
        result = _run(options, folder, processes)
    if not processes.leads:
        ctx.exit(130 if processes.interrupted else 0)
    if processes.interrupted and result["step"] < result["steps"]:
        message = f"Interrupted after step {result['step']}, which is saved; go on with --resume."
        raise KeyboardInterrupt(message)
    solver = "renoised" if options["method"] in ("consistency", "continuous") else "few-steps"
    steps = options["student_steps"]
    following = f"sample --model {folder} --solver {solver} --steps {steps}"
    _common.show(result, ended(result, following), as_json=options["as_json"])


def _default_folder(options: dict[str, Any]) -> Path:
    name = str(options["teacher"]).replace(":", "-")
    return Path("runs") / f"{Path(name).stem}-{options['method']}"


def _run(options: dict[str, Any], folder: Path, processes: Processes) -> dict[str, Any]:
    from sde_diffusion import train

    where = _common.resolve_device(options["device"])
    config = TrainingConfig(**{name: options[name] for name in _SETTINGS})
    student, dataset, objective = _prepared(options, where)
    run = train(
        student.to(where),
        dataset,
        config,
        out=folder,
        resume=options["resume"],
        objective=objective,
        processes=processes,
    )
    if processes.leads:
        write_settings(folder, options, command)
    found = follow(cast("Generator[Progress]", run), config, folder, processes)
    return found | {
        "checkpoint": str(folder / "model.safetensors"),
        "steps": config.steps,
        "teacher": options["teacher"],
        "method": options["method"],
        "parameters": sum(p.numel() for p in student.parameters()),
        "device": str(where),
    }


def _prepared(
    options: dict[str, Any],
    device: Any,  # noqa: ANN401
) -> tuple[FewStepModel, Dataset, StudentObjective]:
    """Return the untrained student, its data and its objective."""
    from sde_diffusion.solvers import AngularAdams, Heun
    from sde_diffusion.training.distillation import Distillation, student_of

    plan = Distillation(
        options["method"],
        options["trajectory"],
        options["student_steps"],
        options["noise_levels"],
        options["paths"],
        options["seed"],
    )
    teacher = menu.model(options["teacher"], device)
    dataset = _data(options, teacher)
    student = student_of(teacher, dataset.spec, **dict(options["network"]))
    return student, dataset, plan.objective(teacher, student, AngularAdams(), Heun())


def _data(options: dict[str, Any], teacher: Any) -> Dataset:  # noqa: ANN401
    """Return the data of the teacher, scaled as it sees them; a closed form's own draws."""
    import torch

    from sde_diffusion.cli._held_out import data_of_model
    from sde_diffusion.data.dataset import Dataset
    from sde_diffusion.data.spec import DataSpec
    from sde_diffusion.models.exact import ExactScore

    name = options["data"]
    if name is None and isinstance(teacher, ExactScore):
        oracle = teacher.oracle.to("cpu")
        rows = oracle.sample(_ORACLE_ROWS, torch.Generator().manual_seed(options["seed"]))
        return Dataset(DataSpec(options["teacher"], oracle.event, None), rows.float(), None)
    if name is None and teacher.data is not None:
        told = teacher.data.name
        name = told if told == "digits" or Path(told).exists() else None
    if name is None:
        rule = "be given for a teacher whose own are not at hand"
        raise wrong_value("--data", "data", rule, "none", "pass --data with its training data")
    reading = {key: options[key] for key in ("size", "frames", "layout", "length")}
    return data_of_model(name, teacher, reading | {"split": "train"})
