"""`sde-diffusion train`: a score model of a data set."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from sde_diffusion._check import wrong_value
from sde_diffusion.cli import _common, _train_latents, menu
from sde_diffusion.cli._runs import ended, follow, settings_of, write_settings
from sde_diffusion.cli._train_options import MODEL_OPTIONS, TrainCommand, train_options

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.data.dataset import Dataset
    from sde_diffusion.models.score import ScoreModel
    from sde_diffusion.parallel.processes import Processes
    from sde_diffusion.training.config import TrainingConfig
    from sde_diffusion.training.monitors import Monitor
    from sde_diffusion.training.trainer import Progress

EXAMPLES: Final = """\b
Examples:
  sde-diffusion train --steps 2000 --out runs/digits
  sde-diffusion train --out runs/digits --steps 4000 --resume
  sde-diffusion train --config runs/digits/config.toml --seed 1 --out runs/other
  sde-diffusion train --steps 20000 --evaluate-every 1000 --patience 5 --out runs/long
  sde-diffusion train --autoencoder --kl-weight 1e-3 --out runs/autoencoder
  sde-diffusion train --latents runs/autoencoder --out runs/latent
  torchrun --nproc-per-node 2 -m sde_diffusion.cli train --out runs/digits
"""
_HELD_OUT: Final = 1000


@click.command(cls=TrainCommand, epilog=EXAMPLES)
@train_options
@click.pass_context
def command(ctx: click.Context, /, **_options: Any) -> None:  # noqa: ANN401
    """Train a score model on a data set.

    Series, images, volumes and clips get a U-Net, or a transformer of kind=dit, and rows of
    numbers an MLP. The run folder holds model.safetensors, which the other commands take, state.pt
    to resume from, config.toml, a --config to repeat it with, metrics.jsonl and its picture
    curves.png, and manifest.json. Ctrl-C saves before it stops.
    """
    from sde_diffusion.parallel.processes import Processes

    options, given, folder = settings_of(
        ctx, lambda found: _default_folder(found["data"], found["sde"])
    )
    with Processes(folder, _common.note) as processes:
        result = _run(options, given, folder, processes)
    if not processes.leads:  # the first process has it all
        ctx.exit(130 if processes.interrupted else 0)
    if processes.interrupted and result["step"] < result["steps"]:
        message = f"Interrupted after step {result['step']}, which is saved; go on with --resume."
        raise KeyboardInterrupt(message)
    verb = "train --latents" if options["autoencoder"] else "sample --model"
    _common.show(result, ended(result, f"{verb} {folder}"), as_json=options["as_json"])


def _run(
    options: dict[str, Any], given: set[str], folder: Path, processes: Processes
) -> dict[str, Any]:
    from sde_diffusion import TensorBoard, TrainingConfig, train

    where = _common.resolve_device(options["device"])
    _train_latents.check_latent_options(options)
    loggers = [] if options["log"] is None else [TensorBoard(folder / options["log"])]
    config = TrainingConfig(**{f.name: options[f.name] for f in fields(TrainingConfig)})
    dataset, held_out = _data(options, config)
    if options["resume"] and not set(MODEL_OPTIONS) & given:
        model = _train_latents.load_run(folder, options)
    else:
        model = _model(options, dataset)
        if processes.leads:
            _tell_scale(dataset, model)
    if processes.leads:
        _common.tell([*dataset.notes, *_unused(dataset, model)])
    monitors = [] if held_out is None else _monitors(model, held_out, config)
    run = train(
        model.to(where),
        dataset,
        config,
        out=folder,
        resume=options["resume"],
        objective=_train_latents.objective_for(options),
        monitors=monitors,
        loggers=loggers,
        processes=processes,
    )
    if processes.leads:
        write_settings(folder, options, command)
    found = follow(cast("Generator[Progress]", run), config, folder, processes)
    return found | {
        "checkpoint": str(folder / "model.safetensors"),
        "steps": config.steps,
        "data": options["data"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(where),
    }


def _data(options: dict[str, Any], config: TrainingConfig) -> tuple[Dataset, Dataset | None]:
    """Return what is trained on, and what is held out where there are evaluations."""
    from sde_diffusion import load_data
    from sde_diffusion.data.dataset import held_out_split

    data = options["data"]
    number = options["held_out"]
    names = ("levels", "mode", "size", "frames", "layout", "length")
    how = {name: options[name] for name in names}
    dataset = load_data(data, "train", options["limit"], **how)
    if number is not None:
        if number >= len(dataset):
            raise wrong_value(
                "--held-out",
                "held_out",
                f"be below the {len(dataset)} samples",
                number,
                f"pass --held-out {max(2, len(dataset) // 10)}",
            )
        kept, held_out = dataset.part(slice(-number)), dataset.part(slice(-number, None))
        return kept, held_out if config.evaluate_every else None
    if not config.evaluate_every:
        return dataset, None
    if held_out_split(data) != "test":
        raise wrong_value(
            "--evaluate-every",
            "data",
            "have a test part",
            f"none in {data}",
            f"pass --held-out {max(2, len(dataset) // 10)}",
        )
    how["mode"] = how["mode"] or _common.mode_of(dataset.spec.shape)
    return dataset, load_data(data, "test", _HELD_OUT, **how)


def _monitors(model: Any, held_out: Dataset, config: TrainingConfig) -> list[Monitor]:  # noqa: ANN401
    """Return the loss by level, the bound, and a picture of samples.

    Of an autoencoder it is a picture alone, of samples each beside its reconstruction.
    """
    from sde_diffusion.latents.encoder_decoder import GaussianAutoencoder
    from sde_diffusion.latents.latent_model import LatentModel
    from sde_diffusion.training.monitors import HeldOutBound, LossByLevel, SamplePicture

    if isinstance(model, GaussianAutoencoder):
        return [SamplePicture(_train_latents.reconstructed(held_out))]
    held_out = _train_latents.in_latents(model, held_out)
    shape = tuple(held_out.spec.shape)
    observed = model.observed if isinstance(model, LatentModel) else None
    t_min = config.t_min
    monitors: list[Monitor] = []
    if config.coupling == "independent":  # else eps is no score
        monitors += [LossByLevel(held_out, t_min=t_min), HeldOutBound(held_out, t_min=t_min)]
    elif config.patience:
        raise wrong_value(
            "--patience",
            "coupling",
            "be independent, to have a bound",
            config.coupling,
            "drop --patience",
        )

    def draw(trained: ScoreModel | LatentModel) -> Tensor:
        import torch

        from sde_diffusion import sample
        from sde_diffusion.solvers import AngularAdams

        x = sample(trained, AngularAdams(), (64, *shape), steps=12, seed=0).x
        with torch.no_grad():
            return trained.decode(x) if isinstance(trained, LatentModel) else x

    monitors.append(SamplePicture(draw, observed))
    return monitors


def _default_folder(data: str, sde: str) -> Path:
    return Path("runs") / f"{Path(data).stem}-{sde.replace(':', '-')}"


def _model(options: dict[str, Any], dataset: Dataset) -> Any:  # noqa: ANN401
    """Return a fresh model for the data, an autoencoder of them, or a model of their latents."""
    if options["autoencoder"]:
        return _train_latents.autoencoder_for(options, dataset)
    given = _conditions(options, dataset)
    if options["latents"] is None:
        return _score(options, dataset, given)
    known = {"classes": given["classes"]}  # of what is known of samples, latents have labels
    return _train_latents.latent_model_for(
        options, dataset, lambda latents: _score(options, latents, known)
    )


def _score(options: dict[str, Any], dataset: Dataset, given: dict[str, int | None]) -> ScoreModel:
    """Return a fresh score of the data, whose network takes what is given of each sample."""
    from sde_diffusion import ScoreModel
    from sde_diffusion.cli._network import network_for
    from sde_diffusion.training.scale import scaled, spread

    shape = tuple(dataset.spec.shape)
    sde = menu.sde(options["sde"])
    seen = scaled(dataset, options["scale"], sde)
    sigma_data = options["sigma_data"]
    variance = options["variance"] or ("learned" if options["objective"] == "hybrid" else "fixed")
    settings = {
        "dropout": options["dropout"],
        **given,
        "seed": options["seed"],
    }
    if options["width"] is not None:
        settings["width"] = options["width"]
    if variance == "learned":
        settings["outputs"] = 2 * shape[0]
    elif options["objective"] == "hybrid":
        raise wrong_value(
            "--variance", "variance", "be learned for hybrid", variance, "drop --variance"
        )
    network = network_for(shape, settings, dict(options["network"]))
    return ScoreModel(
        network,
        sde,
        options["prediction"],
        sigma_data=spread(seen) if sigma_data == "auto" else sigma_data,
        data=seen.spec,
        variance=variance,
    )


def _tell_scale(dataset: Dataset, model: Any) -> None:  # noqa: ANN401
    """Say on standard error, in one line, where the data are scaled."""
    seen = menu.observed(model)
    if seen is None or seen.scaling == dataset.spec.scaling:
        return
    low, high = seen.scaling.forward(dataset.values[:0].new_tensor([0.0, 1.0])).tolist()
    mean, std = low / (low - high), 1 / (high - low)
    _common.tell(
        [
            f"data y scaled to x = (y − {mean:.5g})/{std:.5g}; sample undoes it, and likelihoods "
            "are in the units of y"
        ]
    )


def _conditions(options: dict[str, Any], dataset: Dataset) -> dict[str, int | None]:
    """Return the arguments of a network that takes what is known of the samples."""
    if not options["conditional"]:
        return {"classes": None}
    if not dataset.given:
        raise wrong_value(
            "--conditional",
            "data",
            "have labels",
            f"none in {dataset.spec.name}",
            "leave out --conditional",
        )
    classes = None
    if dataset.labels is not None:
        classes = len(dataset.classes) if dataset.classes else int(dataset.labels.max()) + 1
    # Vectors (N, size), images (N, channels, …), texts (N, bytes), tokens (N, L, size).
    axes = {"vector": 1, "image": 1, "text": 1, "context": 2}
    held = dataset.conditions
    return {"classes": classes} | {n: held[n].shape[axes[n]] for n in axes if n in held}


def _unused(dataset: Dataset, model: Any) -> list[str]:  # noqa: ANN401
    """Return a line that says so where classes or conditions are not learned."""
    name = dataset.spec.name
    plural = {"text": "texts", "vector": "vectors", "image": "images", "context": "tokens"}
    unused = [plural[key] for key in dataset.conditions if key not in model.conditions]
    if not model.classes and dataset.classes is not None:
        unused = [f"{len(dataset.classes)} classes", *unused]
    if not unused:
        return []
    return [f"{name}: its {' and '.join(unused)} are not learned; --conditional learns them"]
