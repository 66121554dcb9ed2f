"""`sde-diffusion train`: a score model of a data set."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

import click
from click.core import ParameterSource

from sde_diffusion._check import wrong_value
from sde_diffusion.cli import _common, menu

if TYPE_CHECKING:
    from torch import nn

    from sde_diffusion.data import Dataset
    from sde_diffusion.score import ScoreModel
    from sde_diffusion.training import Progress, TrainingConfig

EXAMPLES: Final = """\b
Examples:
  sde-diffusion train --steps 2000 --out runs/digits
  sde-diffusion train --out runs/digits --steps 4000 --resume
"""
_MODEL_OPTIONS: Final = ("sde", "prediction", "width", "dropout", "conditional")


@click.command(epilog=EXAMPLES)
@_common.data_options
@click.option("--sde", default="vp", show_default=True,
              help=f"{', '.join(menu.SDE_NAMES)}, or package.module:attr.")
@click.option("--prediction", type=click.Choice(["eps", "x0", "v", "score", "edm"]),
              default="eps", show_default=True, help="What the network's output means.")
@click.option("--weighting", type=click.Choice(["perceptual", "likelihood", "min-snr"]),
              default="perceptual", show_default=True, help="Weight of the times in the loss.")
@_common.count_option("--width", default=None, help="Channels of the network.")
@click.option("--dropout", type=float, default=0.0, show_default=True,
              help="Dropout in the network.")
@click.option("--conditional", is_flag=True, help="Learn the classes of labelled data too.")
@click.option("--label-dropout", type=float, default=0.1, show_default=True,
              help="With --conditional: share of the samples learned without their class.")
@_common.count_option("--steps", default=10_000, help="Optimizer steps in all.")
@_common.count_option("--batch-size", default=128, help="Samples a step.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True,
              help="Of AdamW, after the warm-up.")
@_common.count_option("--warmup", default=100, least=0,
                      help="Steps over which the learning rate rises.")
@click.option("--schedule", type=click.Choice(["constant", "cosine"]), default="constant",
              show_default=True, help="Learning rate after the warm-up.")
@click.option("--clip", type=float, default=1.0, show_default=True,
              help="Largest norm of the gradient.")
@click.option("--ema-decay", type=float, default=0.999, show_default=True,
              help="Of the averaged weights, which are those that are kept.")
@_common.count_option("--checkpoint-every", default=1000, help="Steps between checkpoints.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with its settings.")
@_common.common_options(out=None, out_help="Run folder; runs/DATA-SDE if not given.")
@click.pass_context
def command(
    ctx: click.Context, /, data: str, levels: int | None, limit: int | None, resume: bool,
    device: str, out: Path | None, as_json: bool, **options: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Train a score model on a data set.

    Images get a U-Net, rows of numbers an MLP. The run folder holds model.safetensors, which the
    other commands take, state.pt to resume from, and metrics.jsonl. Ctrl-C saves before it stops.
    """
    from sde_diffusion import load, load_data, train

    where = _common.resolve_device(device)
    folder = _default_folder(data, options["sde"]) if out is None else out
    _check_folder(folder, resume=resume)
    dataset = load_data(data, "train", limit, levels=levels)
    given = {name: value for name, value in options.items() if _given(ctx, name)}
    config = _config(options, given, folder if resume else None)
    if resume and not set(_MODEL_OPTIONS) & set(given):
        model = load(folder)
    else:
        model = _model(options, dataset)
    run = train(model.to(where), dataset, config, out=folder, resume=resume)
    result = _follow(cast("Generator[Progress]", run), config.steps) | {
        "checkpoint": str(folder / "model.safetensors"), "steps": config.steps, "data": data,
        "parameters": sum(p.numel() for p in model.parameters()), "device": str(where),
    }  # fmt: skip
    _common.show(result, _lines(result), as_json=as_json)


def _default_folder(data: str, sde: str) -> Path:
    return Path("runs") / f"{Path(data).stem}-{sde.replace(':', '-')}"


def _check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse, in the words of the command line, a folder that does not go with --resume."""
    exists = (folder / "state.pt").exists()
    if resume and not exists:
        error = wrong_value("--resume", "out", "be the folder of a run", str(folder),
                            "leave out --resume to start one")  # fmt: skip
        raise FileNotFoundError(str(error))
    if exists and not resume:
        error = wrong_value("--out", "out", "be a folder without a run", str(folder),
                            "pass --resume to go on with it, or another --out")  # fmt: skip
        raise FileExistsError(str(error))


def _given(ctx: click.Context, name: str) -> bool:
    """Return whether the option stands on the command line."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _config(
    options: dict[str, Any], given: dict[str, Any], resumed: Path | None
) -> TrainingConfig:
    """Return the settings: of the command line, or of the run that is resumed where not given."""
    from sde_diffusion import TrainingConfig, describe

    known = {field.name for field in fields(TrainingConfig)}
    settings = options if resumed is None else describe(resumed).get("training", {}) | given
    return TrainingConfig(**{name: settings[name] for name in settings.keys() & known})


def _model(options: dict[str, Any], dataset: Dataset) -> ScoreModel:
    """Return a fresh model for the data: a U-Net for images, an MLP for rows of numbers."""
    from sde_diffusion import ScoreModel

    settings = {
        "dropout": options["dropout"], "classes": _classes(options, dataset),
        "seed": options["seed"],
    }  # fmt: skip
    if options["width"] is not None:
        settings["width"] = options["width"]
    network = _network(tuple(dataset.spec.shape), settings)
    return ScoreModel(network, menu.sde(options["sde"]), options["prediction"], data=dataset.spec)


def _network(shape: tuple[int, ...], settings: dict[str, Any]) -> nn.Module:
    from sde_diffusion.nets import MLP, UNet
    from sde_diffusion.nets.unet import digits_config, mnist_config

    if len(shape) == 1:
        return MLP(shape[0], **settings)
    if len(shape) != 3:
        raise wrong_value("train", "--data", "hold images (C, H, W) or rows of numbers", shape,
                          "train a network of your own in Python")  # fmt: skip
    small = max(shape[1:]) <= 16
    config = (digits_config() if small else mnist_config()) | {"channels": shape[0]} | settings
    if config["width"] % 2:  # the four heads of attention share twice the width
        raise wrong_value("--width", "width", "be even for images", config["width"],
                          "pass for example --width 32")  # fmt: skip
    return UNet(**config)


def _classes(options: dict[str, Any], dataset: Dataset) -> int | None:
    if not options["conditional"]:
        return None
    if dataset.labels is None:
        raise wrong_value("--conditional", "data", "have labels", f"none in {dataset.spec.name}",
                          "leave out --conditional")  # fmt: skip
    return int(dataset.labels.max()) + 1


def _follow(run: Generator[Progress], total: int) -> dict[str, Any]:
    """Take every step of the run and return where it ended, with a running mean of the loss.

    Errors: KeyboardInterrupt after Ctrl-C, once the step is done and saved.
    """
    step, mean, seconds = total, math.nan, 0.0
    with _common.progress(total, "step") as bar, _interrupts() as seen, closing(run):
        for item in run:
            step, seconds = item.step, item.seconds
            mean = item.loss if math.isnan(mean) else 0.98 * mean + 0.02 * item.loss
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            bar.update(step - bar.n)
            if seen:
                break
    if seen and step < total:
        message = f"Interrupted after step {step}, which is saved; go on with --resume."
        raise KeyboardInterrupt(message)
    return {"step": step, "loss": mean, "seconds": seconds}


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C, so that a step is never cut in two; a second one stops at once."""
    seen = list[int]()

    def note(number: int, _frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield seen  # only the main thread hears signals
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(result: dict[str, Any]) -> list[str]:
    if math.isnan(result["loss"]):
        return [f"{result['checkpoint']} is complete at step {result['step']}; "
                "pass a larger --steps to go on"]  # fmt: skip
    return [
        f"step {result['step']}: loss {result['loss']:.4f}, {result['parameters']:,} parameters, "
        f"{result['seconds']:.1f} s",
        f"wrote {result['checkpoint']}",
        f"next: sde-diffusion sample --model {Path(result['checkpoint']).parent}",
    ]
