"""The options of `sde-diffusion train`: a flag for every setting of `TrainingConfig` and more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from sde_diffusion.cli import _common, menu
from sde_diffusion.training.config import CHOICES, TrainingConfig

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

PREDICTIONS: Final = ("eps", "x0", "v", "score", "flow", "edm")

# The help is in this order, under these headings.
SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "Data": {
        "scale": "Scale of real data: by their mean and standard deviation, with [A, B] as "
        "[−1, 1], or as they are; auto standardizes what the SDE's prior does not cover.",
    },
    "Objective": {
        "objective": "What is minimised; hybrid learns the variance of the chain's steps too.",
        "weighting": "Weight of each time in the loss.",
        "times": "Distribution of the times; that of the weighting if not given.",
        "spacing": "How the times of a batch are drawn together.",
        "coupling": "Which noise is paired with which sample.",
        "uncertainty": "learned: learn a weight for every time together with the network.",
        "chain_steps": "Steps of the chain of vlb, hybrid and exact.",
        "t_min": "Smallest time.",
        "label_dropout": "With --conditional: share of the samples trained without them.",
    },
    "Steps": {
        "steps": "Optimizer steps in all.",
        "batch_size": "Samples a step.",
        "learning_rate": "Learning rate of AdamW, after the warm-up.",
        "weight_decay": "Weight decay of AdamW.",
        "warmup": "Steps over which the learning rate rises.",
        "schedule": "Course of the learning rate after the warm-up.",
        "clip": "Largest norm of the gradient; longer ones are clipped to it.",
    },
    "Speed and memory": {
        "precision": "Precision of the network's computations; weights and averages stay float32.",
        "accumulate": "Parts of a batch, computed one after the other to save memory.",
        "channels_last": "Keep images with their channels last in memory.",
        "compile": "Compile the network with torch.compile.",
    },
    "Averages of the weights": {
        "ema_decay": "Decay of the exponential moving average that is kept as the model.",
        "ema_half_lives": "More averages, by half-lives in steps, as ema-STEPS.safetensors.",
        "ema_widths": "Power-function averages by relative width, to reconstruct others later.",
        "snapshot_every": "Steps between snapshots of --ema-widths; only the last one if 0.",
    },
    "Evaluation": {
        "evaluate_every": "Steps between evaluations on held-out data; none if 0.",
        "patience": "Evaluations without a better bound before the run ends; no limit if 0.",
    },
    "Run": {
        "checkpoint_every": "Steps between checkpoints.",
        "log_every": "Steps between lines of metrics.jsonl.",
        "seed": "Seed of every random draw.",
    },
}
# Samples come out in the units of the data here, so that scaling them needs no decision.
_DEFAULTS: Final = {"scale": "auto"}
MODEL_OPTIONS: Final = (
    "sde",
    "prediction",
    "sigma_data",
    "variance",
    "width",
    "dropout",
    "network",
    "conditional",
    "autoencoder",
    "latents",
)
_OTHERS: Final[Mapping[str, Sequence[str]]] = {
    "Objective": ("kl_weight",),
    "Data": ("data", "levels", "limit", "mode", "size", "frames", "layout", "length"),
    "Model": MODEL_OPTIONS,
    "Evaluation": ("held_out",),
    "Run": ("out", "resume", "config", "log", "device", "as_json"),
}
# What most runs set, under the first heading; the rest is advanced.
_BASIC: Final = (
    *("data", "out", "steps", "batch_size", "learning_rate", "sde", "prediction", "width"),
    *("conditional", "evaluate_every", "resume", "config", "seed", "device", "as_json"),
)
_HEADINGS: Final = (
    "Data",
    "Model",
    "Objective",
    "Steps",
    "Speed and memory",
    "Averages of the weights",
    "Evaluation",
    "Run",
)


def numbers(ctx: click.Context, param: click.Parameter, value: Any) -> tuple[float, ...]:  # noqa: ANN401
    """Return the numbers of a text as in 0.05,0.1, or of the list of a configuration file."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError, OverflowError) as error:
        message = f"{value!r} is not numbers with commas between them."
        raise click.BadParameter(message, ctx=ctx, param=param) from error


def assignments(
    ctx: click.Context, param: click.Parameter, value: tuple[Any, ...]
) -> tuple[tuple[str, Any], ...]:
    """Return names and values of texts as in blocks=3, or of a table of a configuration file."""
    return tuple(
        _assignment(ctx, param, one) if isinstance(one, str) else (one[0], one[1]) for one in value
    )


def _assignment(ctx: click.Context, param: click.Parameter, words: str) -> tuple[str, Any]:
    """Return the name and the value: as in TOML, numbers with commas, or plain text."""
    import tomllib

    name, _, text = (part.strip() for part in words.partition("="))
    if not text:
        message = f"{words!r} is not NAME=VALUE."
        raise click.BadParameter(message, ctx=ctx, param=param)
    try:
        return name, tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        pass
    try:
        return name, tomllib.loads(f"value = [{text.strip('()')}]")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return name, text


class TrainCommand(click.Command):
    """A command with its options under headings, those of most runs first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the basic options, then the advanced ones of each heading, as sections."""
        left = {str(p.name): p.get_help_record(ctx) for p in self.get_params(ctx)}
        sections = {"Basic options": [left.pop(name) for name in _BASIC]}
        for heading in _HEADINGS:
            names = (*_OTHERS.get(heading, ()), *SETTINGS.get(heading, ()))
            kept = [left.pop(name) for name in names if name in left]
            sections[f"Advanced: {heading.lower()}"] = kept
        sections["Basic options"] += left.values()  # --help
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def train_options(function: FunctionT) -> FunctionT:
    """Add all options of the command."""
    settings = {name: text for group in SETTINGS.values() for name, text in group.items()}
    made: Any = function
    known = {field.name: field for field in fields(TrainingConfig)}
    for name, text in reversed(settings.items()):
        made = setting_option(known[name], text)(made)
    for option in reversed(_other_options()):
        made = option(made)
    wrapped: FunctionT = _common.data_options(made)
    return wrapped


def measured(ctx: click.Context, param: click.Parameter, value: Any) -> float | str:  # noqa: ANN401
    """Return "auto", or the number of a text or of a configuration file."""
    if value == "auto":
        return "auto"
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        message = f"{value!r} is neither a number nor auto."
        raise click.BadParameter(message, ctx=ctx, param=param) from error


def setting_option(field: Field[Any], text: str) -> Callable[[Any], Any]:
    """Return the option of a setting: its type and default are the field's."""
    name = f"--{field.name.replace('_', '-')}"
    default = _DEFAULTS.get(field.name, field.default)
    if field.name in CHOICES:
        return click.option(
            name,
            type=click.Choice(CHOICES[field.name]),
            default=default,
            show_default=True,
            help=text,
        )
    if isinstance(default, bool):
        return click.option(f"{name}/--no-{name[2:]}", default=default, help=text)
    if isinstance(default, int):
        least = 0 if default == 0 or field.name == "warmup" else 1
        return _common.count_option(name, default=default, least=least, help=text)
    if default == ():
        return click.option(
            name, type=click.UNPROCESSED, callback=numbers, metavar="X,Y,…", default=(), help=text
        )
    if field.name == "scale":
        metavar = "auto|standardize|A:B|none"
        return click.option(name, default=default, metavar=metavar, show_default=True, help=text)
    return click.option(name, type=float, default=default, show_default=True, help=text)


def _other_options() -> list[Callable[[Any], Any]]:
    return [
        click.option(
            "--mode",
            type=click.Choice(["grey", "rgb", "rgba"]),
            default=None,
            help="Mode of pictures; that of most of them if not given.",
        ),
        click.option(
            "--sde",
            default="vp",
            show_default=True,
            shell_complete=menu.completing(menu.SDE_NAMES),
            help=f"{', '.join(menu.SDE_NAMES)}, or package.module:attr.",
        ),
        click.option(
            "--prediction",
            type=click.Choice(PREDICTIONS),
            default="eps",
            show_default=True,
            help="What the network predicts.",
        ),
        click.option(
            "--sigma-data",
            type=click.UNPROCESSED,
            callback=measured,
            metavar="X|auto",
            default=0.5,
            show_default=True,
            help="With --prediction edm: standard deviation of the scaled data; auto measures it.",
        ),
        click.option(
            "--variance",
            type=click.Choice(["fixed", "learned"]),
            default=None,
            help="Variance of the chain's steps; learned for hybrid if not given.",
        ),
        _common.count_option(
            "--width",
            default=None,
            help="Channels of the U-Net, units of the MLP or the transformer.",
        ),
        click.option(
            "--dropout", type=float, default=0.0, show_default=True, help="Dropout in the network."
        ),
        click.option(
            "--network",
            type=click.UNPROCESSED,
            multiple=True,
            callback=assignments,
            metavar="NAME=VALUE",
            help="kind=dit for a transformer in place of the U-Net, and any other argument of the "
            "network, or of ConvolutionalAutoencoder, as in blocks=3; repeatable.",
        ),
        click.option(
            "--conditional/--unconditional",
            default=False,
            help="Learn the classes, texts and other conditions of the data too.",
        ),
        click.option(
            "--autoencoder/--no-autoencoder",
            default=False,
            help="Train an autoencoder, in whose latents --latents then trains a score.",
        ),
        click.option(
            "--kl-weight",
            type=float,
            default=None,
            metavar="X",
            help="With --autoencoder: weight of the divergence of latents from N(0, 1); 1, of the "
            "bound on the likelihood, if not given.",
        ),
        click.option(
            "--latents",
            default=None,
            metavar="PATH",
            help="Train the score of the latents of an autoencoder: its run folder or file.",
        ),
        _common.count_option(
            "--held-out",
            default=None,
            least=2,
            help="Evaluate on the last N samples and do not train on them; on the test part of "
            "the data if not given.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=None,
            help="Run folder; runs/DATA-SDE if not given.",
        ),
        click.option(
            "--resume", is_flag=True, help="Go on with the run in --out, with its settings."
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            default=None,
            metavar="FILE.toml",
            help="Settings by the names of these options; the command line takes precedence.",
        ),
        click.option(
            "--log",
            type=click.Choice(["tensorboard"]),
            default=None,
            help="Write the metrics for this program too, to a folder of its name in --out; "
            "needs pip install 'sde_diffusion[tensorboard]'.",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="auto (the GPU if there is one), cpu, cuda or cuda:1.",
        ),
        _common.json_option,
    ]
