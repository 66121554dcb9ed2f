"""Networks of diffusers as score models, from memory and from the folders that it saves.

A folder is data: its network and its scheduler are of the classes in two tables, its weights are
safetensors, or torch's file read without its pickle being run, and nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from sde_diffusion._check import Reason, wrong_type, wrong_value
from sde_diffusion._files import json_object
from sde_diffusion.data.scaling import Affine
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.foreign.diffusers_networks import NETWORKS, told_of
from sde_diffusion.foreign.diffusers_schedulers import SCHEDULERS, check_steps, model_of
from sde_diffusion.foreign.diffusers_sizes import TooLargeError, check_size
from sde_diffusion.foreign.installed import program
from sde_diffusion.models.score import ScoreModel

PREFIX: Final = "diffusers:"
_PARTS: Final = ("unet", "transformer")  # what a pipeline calls its network
# A variant, such as fp16, stands behind the first dot.
_WEIGHTS: Final = re.compile(
    r"diffusion_pytorch_model(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
_ENCODERS: Final = ("vae", "vqvae")  # of pipelines whose samples are latent
_WRAP: Final = "wrap it in a module of (x, k), for ScoreModel.from_timesteps"
_AS_DDIM: Final = (
    "where it is of a chain of betas, call "
    "from_diffusers(network, DDIMScheduler.from_config(scheduler.config))"
)
_REMEDY: Final = "save it with pipeline.save_pretrained(folder)"
_ALONE: Final = (
    f"{_REMEDY}, or of a network alone call "
    "from_diffusers(UNet2DModel.from_pretrained(folder), scheduler)"
)


def from_diffusers(
    network: nn.Module,
    scheduler: object,
    *,
    embeddings: Tensor | None = None,
    null: int | None = None,
    data: DataSpec | None = None,
) -> ScoreModel:
    """Return the score model of a network and a scheduler of diffusers.

    The scheduler says with which noise the network was trained, at which number it is called and
    what it predicts. How it samples is not taken over. A chain's model is exact at its timesteps,
    t = (k + 1)/N, and continuous between them.

    Arguments:
        network: a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel, in eval mode as it
            is handed in.
        scheduler: a DDPM, DDIM, DPMSolverMultistep, UniPCMultistep, EDMEuler,
            EDMDPMSolverMultistep, FlowMatchEulerDiscrete or ScoreSdeVe scheduler.
        embeddings: of the condition of a UNet2DConditionModel, (L, E) for all samples or
            (B, L, E) for each its own.
        null: the class label that means none; a DiT's own if not given, None for a U-Net without.
        data: what the samples are, where that is known.

    Errors: ValueError without diffusers, and for settings under which the numbers mean something
    else; TypeError for objects of other classes.
    """
    _check_instance("network", network, NETWORKS, _WRAP)
    _check_instance("scheduler", scheduler, SCHEDULERS, _AS_DDIM)
    return model_of(scheduler, told_of(network, embeddings, null, data))


def load_diffusers(
    folder: str | Path, *, embeddings: Tensor | None = None, null: int | None = None
) -> ScoreModel:
    """Return the score model of a folder that a pipeline of diffusers was saved to.

    Arguments:
        folder: the folder.
        embeddings: of the condition of a UNet2DConditionModel, as in `from_diffusers`.
        null: the class label that means none, likewise.

    Errors: FileNotFoundError for a folder that is not there or no pipeline's; ValueError without
    diffusers, and for a folder of other classes or one that is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        rule = f"name a folder behind {PREFIX}"
        error = wrong_value("load", "name_or_path", rule, str(folder), "check the path")
        raise FileNotFoundError(str(error))
    index = _read(folder, "model_index.json")
    part = next((name for name in _PARTS if index.get(name)), _PARTS[0])
    kind = _class_in(folder, index, part, NETWORKS, _WRAP)
    instead = (
        "where it is of a chain of betas, call "
        f"from_diffusers({kind.__name__}.from_pretrained('{folder / part}'), "
        f"DDIMScheduler.from_pretrained('{folder / 'scheduler'}'))"
    )
    scheduler_kind = _class_in(folder, index, "scheduler", SCHEDULERS, instead)
    config = _read(folder, "scheduler/scheduler_config.json")
    check_steps(config)
    settings = _read(folder, f"{part}/config.json")
    try:
        check_size(kind, settings, folder / part)
        scheduler = scheduler_kind.from_config(config)
        network = _network(kind, folder, part)
    except TooLargeError:
        raise
    # Whatever another program raises over a file that it cannot read.
    except Exception as error:
        got = Reason(f"{type(error).__name__}: {error}")
        rule = "hold a network and a scheduler as diffusers saves them"
        raise wrong_value("load", str(folder), rule, got, _REMEDY) from error
    data = _data(folder.name, network.config, scheduler_kind.__name__, index)
    return from_diffusers(network, scheduler, embeddings=embeddings, null=null, data=data)


def _class(name: str) -> Any:  # noqa: ANN401
    """Return a class of diffusers, of a name that stands in a table of ours."""
    return getattr(program("diffusers", "diffusers"), name)


def _check_instance(name: str, value: object, names: Iterable[str], remedy: str) -> None:
    """Refuse an object of a class that is not in the table."""
    kind = type(value).__name__
    known = list(names)
    if kind not in known or not isinstance(value, _class(kind)):
        rule = f"be one of diffusers' {', '.join(known)}"
        raise wrong_type("from_diffusers", name, rule, kind, remedy)


# --- the files of a folder ---


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON object of the folder."""
    path = folder / name
    if not path.is_file():
        rule = f"be that of a pipeline of diffusers, with {name}"
        error = wrong_value("load", "the folder", rule, str(folder), _ALONE)
        raise FileNotFoundError(str(error))
    try:
        return json_object(path.read_text(encoding="utf-8"))
    except ValueError as error:
        got = Reason(f"{type(error).__name__}: {error}")
        raise wrong_value("load", str(path), "hold a JSON object", got, _REMEDY) from error


def _class_in(
    folder: Path, index: Mapping[str, Any], part: str, names: Iterable[str], remedy: str
) -> Any:  # noqa: ANN401  (a class of diffusers)
    """Return the class of a part of the pipeline, which is diffusers' own and in the table."""
    known = list(names)
    match index.get(part):
        case ["diffusers", str(name)] if name in known:
            return _class(name)
    rule = f"name a class of diffusers for {part}, one of {', '.join(known)}"
    raise wrong_value("load", str(folder), rule, str(index.get(part)), remedy)


def _network(kind: Any, folder: Path, part: str) -> Any:  # noqa: ANN401
    """Return the network of the folder, refusing weights that are not all of its own."""
    safe = any((folder / part).glob("*.safetensors"))
    with torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
        network, found = kind.from_pretrained(
            folder,
            subfolder=part,
            variant=_variant(folder / part),
            local_files_only=True,
            use_safetensors=safe,  # else torch's file, which diffusers loads with weights_only
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    wrong = [name for names in found.values() for name in names]
    if wrong:
        rule = "hold the weights of its network, and no others"
        got = ", ".join(map(str, wrong))
        raise wrong_value("load", str(folder / part), rule, got, _REMEDY)
    return network


def _variant(part: Path) -> str | None:
    """Return the name of the only weights where all have one, None where some have none."""
    named = [_WEIGHTS.fullmatch(file.name) for file in part.iterdir()]
    variants = {match[1] for match in named if match is not None}
    return variants.pop() if len(variants) == 1 else None


def _data(
    name: str,
    config: Mapping[str, Any],
    scheduler: str,
    index: Mapping[str, Any],
) -> DataSpec | None:
    """Return what the samples are: pictures of 256 levels, or latents; None without a size."""
    size = config["sample_size"]
    channels = config["in_channels"]
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2:
        raise wrong_value("load", "sample_size", "be one side or two", size, _REMEDY)
    if any(index.get(encoder) for encoder in _ENCODERS) or channels not in (1, 3):
        return DataSpec(f"{PREFIX}{name}", (channels, *sides), None)
    # Their pipelines show x as it is after ScoreSdeVeScheduler, and (x + 1)/2 after the others.
    scaling = Affine(0, 1) if scheduler == "ScoreSdeVeScheduler" else Affine(-1, 1)
    return DataSpec(f"{PREFIX}{name}", (channels, *sides), 256, scaling)
