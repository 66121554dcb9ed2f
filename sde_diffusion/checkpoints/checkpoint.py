"""Checkpoints: one ``.safetensors`` file with the weights and the whole configuration as JSON.

The configuration, under the metadata key ``sde_diffusion``, is
``{format, class, network: {class, config}, sde: {class, …}, prediction, sigma_data, variance,
coupling, data, versions}`` and whatever the writer adds. The first class is "ScoreModel",
"DirectScore", "MatrixScoreModel" or "FewStepModel"; the second and third have none of sigma_data,
variance and coupling, the last has sigma_data alone; nor have files of format 1. Autoencoders and
latent models are described in `autoencoders`.
Only the classes in the tables below are ever built from a file, and nothing is unpickled: no file
can run code.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias, cast, overload

import torch
from torch import Tensor, nn

from sde_diffusion._check import (
    Reason,
    an_object,
    check_path,
    one_of,
    shown,
    wrong_type,
    wrong_value,
)
from sde_diffusion._files import write_atomically
from sde_diffusion._tensors import check_device
from sde_diffusion._version import __version__
from sde_diffusion.checkpoints.autoencoders import (
    AUTOENCODER,
    NAMES,
    SCORE,
    autoencoder_of,
    check_autoencoder,
    encode_autoencoder,
    tensors_of,
)
from sde_diffusion.checkpoints.configuration import (
    NETWORKS,
    UNBUILT,
    OwnClassError,
    Shapes,
    check,
    encode,
    network_of,
    sde_of,
)
from sde_diffusion.checkpoints.fingerprint import network_settings
from sde_diffusion.checkpoints.reading import FORMAT, content, fill, read
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.foreign.diffusers_autoencoder import load_diffusers_autoencoder
from sde_diffusion.foreign.diffusers_folder import PREFIX, load_diffusers
from sde_diffusion.latents.autoencoder import Autoencoder
from sde_diffusion.latents.encoder_decoder import EncoderDecoder
from sde_diffusion.latents.latent_model import LatentModel
from sde_diffusion.models.conventions import check_convention
from sde_diffusion.models.few_steps import FewStepModel
from sde_diffusion.models.matrix import MatrixScoreModel
from sde_diffusion.models.score import DirectScore, LearnedScore, ScoreModel
from sde_diffusion.sde import SDE, LinearSDE

_WEIGHTS: Final = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")  # of other programs
Saveable: TypeAlias = LearnedScore | Autoencoder | LatentModel
# (network, sde, data, configuration) -> model
Build: TypeAlias = Callable[[nn.Module, Any, DataSpec | None, dict[str, Any]], LearnedScore]


def save_model(
    path: str | Path, model: Saveable, extra: Mapping[str, object] | None = None
) -> None:
    """Write the model's weights and configuration to one ``.safetensors`` file, atomically.

    A `LatentModel` is one file with its autoencoder, and an autoencoder may be one alone.
    ``extra`` is added to the configuration, for example ``{"training": {…}}``.

    Errors: TypeError for anything but a learned score, an autoencoder, or a LatentModel of both;
    ValueError where ``extra`` is not JSON.
    """
    learned = isinstance(model, LatentModel) and isinstance(model.model, LearnedScore)
    if not learned and not isinstance(model, (LearnedScore, Autoencoder)):
        raise wrong_type(
            "save_model",
            "model",
            "be a ScoreModel or a DirectScore",
            type(model).__name__,
            "wrap the network: ScoreModel(network, sde)",
        )
    path = check_path("save_model", "path", path)
    configuration = configuration_of(model) | dict(extra or {})
    # Clones, because the format refuses tensors that share memory (tied weights).
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in _tensors(model).items()
    }
    try:
        whole = content(configuration, tensors)
    except (TypeError, ValueError) as error:
        raise wrong_value(
            "save_model",
            "extra",
            "hold JSON values only",
            Reason(error),
            "pass numbers, strings, lists and dicts",
        ) from error
    # Not save_file: when it is killed, a temporary file with a name of its own stays behind.
    write_atomically(path, lambda file: file.write_bytes(whole))


def _tensors(model: Saveable) -> dict[str, Tensor]:
    """Return the weights of a model by the names that they have in its file."""
    if isinstance(model, Autoencoder):
        return tensors_of(model)
    if isinstance(model, LatentModel):
        parts = {SCORE: _tensors(score_in(model)), AUTOENCODER: tensors_of(model.autoencoder)}
        return {f"{part}{name}": v for part, found in parts.items() for name, v in found.items()}
    return model.network.state_dict()


@overload
def load(
    name_or_path: str | Path,
    *,
    network: nn.Module | None = None,
    sde: LinearSDE | None = None,
    device: torch.device | str = "cpu",
    data: Tensor | None = None,
    embeddings: Tensor | None = None,
    null: int | None = None,
) -> ScoreModel: ...
@overload
def load(
    name_or_path: str | Path,
    *,
    network: nn.Module | None = None,
    sde: SDE,
    device: torch.device | str = "cpu",
    data: Tensor | None = None,
    embeddings: Tensor | None = None,
    null: int | None = None,
) -> LearnedScore: ...
def load(
    name_or_path: str | Path,
    *,
    network: nn.Module | None = None,
    sde: SDE | None = None,
    device: torch.device | str = "cpu",
    data: Tensor | None = None,
    embeddings: Tensor | None = None,
    null: int | None = None,
) -> LearnedScore:
    """Return the model of a checkpoint, in evaluation mode: a `ScoreModel` or a `DirectScore`.

    Type checkers are told of a `ScoreModel` where no other SDE is passed; `load_direct` is for a
    `DirectScore` alone. The file of a `LatentModel` gives one, of which `load_latent` tells them.

    Arguments:
        name_or_path: a file, a run folder of `train`, a shipped model, "digits" or "mnist", or
            "diffusers:FOLDER" for a folder that a pipeline of diffusers was saved to.
        network: one of a class of your own, which is not rebuilt from the file.
        sde: one of a class of your own, likewise; any SDE for a `DirectScore`.
        device: where the model is to compute.
        data: samples in the units of the model's states, on which its network must mean what the
            file says: see `check_convention`; (B, *event).
        embeddings: the condition of a conditional U-Net in a folder of diffusers, (L, E) for all
            samples or (B, L, E) for each its own.
        null: the label that means none to a U-Net with classes in such a folder.

    Errors: FileNotFoundError; ValueError for files that are damaged, foreign, newer than this
    version or of another network, and for a network that is read wrongly.

    >>> load("no-such-model")
    Traceback (most recent call last):
    FileNotFoundError: load: name_or_path must be a file, a run folder or the name of a shipped \
model (digits, mnist), got 'no-such-model'; check the spelling
    """
    there = check_device("load", device)
    if isinstance(name_or_path, str) and name_or_path.startswith(PREFIX):
        _check_alone(network, sde)
        folder = name_or_path.removeprefix(PREFIX)
        model: Any = load_diffusers(folder, embeddings=embeddings, null=null)
    else:
        if embeddings is not None or null is not None:
            rule = f"be left out for what is no {PREFIX}FOLDER"
            raise wrong_value("load", "embeddings, null", rule, "one of them", "drop it")
        known = (*_BUILDERS, LatentModel.__name__)
        model = _loaded("load", known, name_or_path, network, sde)
    moved: LearnedScore = model.to(there)
    if data is not None:
        _check_meaning(moved, data)
    return moved


def _check_meaning(model: object, data: Tensor) -> None:
    """Refuse a network that does not mean, on the data, what the configuration says."""
    if not isinstance(model, ScoreModel):
        got = type(model).__name__
        raise wrong_value("load", "data", "be left out for what is no ScoreModel", got, "drop it")
    found = check_convention(model, data)
    if found.fits:
        return
    best = found.best
    known = best is not found.readings[0]
    raise wrong_value(
        "load",
        "the network",
        "predict the noise in the data as its configuration says",
        Reason(
            f"smaller errors by {best.name}: {best.remedy}"
            if known
            else found.beyond or "no denoiser's errors"
        ),
        "load it without data and print check_convention(model, data)",
    )


def load_direct(
    name_or_path: str | Path,
    *,
    network: nn.Module | None = None,
    sde: SDE | None = None,
    device: torch.device | str = "cpu",
) -> DirectScore:
    """Return the `DirectScore` of a checkpoint, in evaluation mode, and nothing else.

    An SDE without a closed-form kernel is of a class of your own, and so is passed in.

    Arguments:
        name_or_path: a file, or a run folder of `train`.
        network: one of a class of your own, which is not rebuilt from the file.
        sde: one of a class of your own, likewise.
        device: where the model is to compute.

    Errors: those of `load`; ValueError for the file of a ScoreModel.
    """
    only = (DirectScore.__name__,)
    found = cast("DirectScore", _loaded("load_direct", only, name_or_path, network, sde))
    return found.to(device)


def load_latent(
    name_or_path: str | Path,
    *,
    network: nn.Module | None = None,
    sde: LinearSDE | None = None,
    autoencoder: EncoderDecoder | None = None,
    device: torch.device | str = "cpu",
) -> LatentModel:
    """Return the `LatentModel` of a checkpoint, in evaluation mode, and nothing else.

    Arguments:
        name_or_path: a file, or a run folder of `train`.
        network: the score's, of a class of your own, which is not rebuilt from the file.
        sde: one of a class of your own, likewise.
        autoencoder: its network, where that is of a class of your own, likewise.
        device: where the model is to compute.

    Errors: those of `load`; ValueError for the file of another model.
    """
    there = check_device("load_latent", device)
    only = (LatentModel.__name__,)
    found: Any = _loaded("load_latent", only, name_or_path, network, sde, autoencoder)
    model: LatentModel = found.to(there)
    return model


def load_autoencoder(
    name_or_path: str | Path,
    *,
    autoencoder: EncoderDecoder | None = None,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """Return the autoencoder of a checkpoint, in evaluation mode, that of a latent model too.

    Arguments:
        name_or_path: a file, a run folder of `train`, or "diffusers:FOLDER" for the AutoencoderKL
            that was saved there, alone or in a pipeline.
        autoencoder: its network, where that is of a class of your own.
        device: where it is to compute.

    Errors: those of `load`; ValueError for the file of a score without an autoencoder.
    """
    there = check_device("load_autoencoder", device)
    if isinstance(name_or_path, str) and name_or_path.startswith(PREFIX):
        return load_diffusers_autoencoder(name_or_path.removeprefix(PREFIX)).to(there)
    path = _locate(name_or_path)
    configuration, tensors = _described(path)
    found = configuration.get("autoencoder", configuration)
    if found.get("class") not in NAMES:
        rule = "hold an autoencoder"
        got = f"a {shown(found.get('class', ScoreModel.__name__))}"
        remedy = "call load(path) for its score"
        raise wrong_value("load_autoencoder", str(path), rule, got, remedy)
    prefix = "" if found is configuration else AUTOENCODER
    with _told("load_autoencoder", path):
        return autoencoder_of(found, tensors, path, prefix, autoencoder).to(there)


def _check_alone(network: nn.Module | None, sde: SDE | None) -> None:
    """Refuse what a folder of diffusers tells itself."""
    if network is not None or sde is not None:
        rule = f"be left out for {PREFIX}FOLDER, which tells them"
        remedy = "call from_diffusers(network, scheduler) for a network in memory"
        raise wrong_value("load", "network, sde", rule, "one of them", remedy)


def _score_model(
    network: nn.Module,
    sde: Any,  # noqa: ANN401  (the model refuses what is not linear)
    data: DataSpec | None,
    found: dict[str, Any],
) -> ScoreModel:
    return ScoreModel(
        network,
        sde,
        found["prediction"],
        sigma_data=found["sigma_data"],
        data=data,
        variance=found.get("variance", "fixed"),
        coupling=found.get("coupling", "independent"),
    )


def _direct_score(
    network: nn.Module, sde: SDE, data: DataSpec | None, _: dict[str, Any]
) -> DirectScore:
    return DirectScore(network, sde, data=data)


def _matrix_score_model(
    network: nn.Module,
    sde: Any,  # noqa: ANN401  (the model refuses another kind)
    data: DataSpec | None,
    _: dict[str, Any],
) -> MatrixScoreModel:
    return MatrixScoreModel(network, sde, data=data)


def _few_step_model(
    network: nn.Module,
    sde: Any,  # noqa: ANN401  (the model refuses what is not linear)
    data: DataSpec | None,
    found: dict[str, Any],
) -> FewStepModel:
    sigma_data = found["sigma_data"]
    return FewStepModel(network, sde, found["prediction"], sigma_data=sigma_data, data=data)


_BUILDERS: Final[Mapping[str, Build]] = {
    ScoreModel.__name__: _score_model,
    DirectScore.__name__: _direct_score,
    MatrixScoreModel.__name__: _matrix_score_model,
    FewStepModel.__name__: _few_step_model,
}


def describe(name_or_path: str | Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint without building its network or reading weights.

    Errors: those of `load`.
    """
    return _described(_locate(name_or_path))[0]


def shipped() -> list[str]:
    """Return the names of the models that ship with the package."""
    folder = importlib.resources.files("sde_diffusion.pretrained")
    names = (Path(entry.name) for entry in folder.iterdir())
    return sorted(name.stem for name in names if name.suffix == ".safetensors")


def configuration_of(model: Saveable) -> dict[str, Any]:
    """Return the configuration from which `load` rebuilds the model, without the weights."""
    if isinstance(model, Autoencoder):
        return {"format": FORMAT, **encode_autoencoder(model), "versions": _versions()}
    if isinstance(model, LatentModel):
        score = configuration_of(score_in(model))
        return score | {
            "class": LatentModel.__name__,
            "score": score["class"],
            "autoencoder": encode_autoencoder(model.autoencoder),
        }
    kind = type(model.network)
    network: dict[str, Any] = {"class": kind.__name__}
    if NETWORKS.get(kind.__name__) is kind:
        network["config"] = model.network.config
    else:
        network["class"] = f"{kind.__module__}.{kind.__qualname__}"
        network["settings"] = network_settings(model.network)
    own: dict[str, Any] = {}
    if isinstance(model, ScoreModel):
        own = {
            "sigma_data": model.sigma_data,
            "variance": model.variance,
            "coupling": model.coupling,
        }
    elif isinstance(model, FewStepModel):
        own = {"sigma_data": model.sigma_data}
    return {
        "format": FORMAT,
        "class": type(model).__name__,
        "network": network,
        "sde": encode(model.sde),
        "prediction": model.prediction,
        **own,
        "data": None if model.data is None else model.data.to_json(),
        "versions": _versions(),
    }


def score_in(model: LatentModel) -> LearnedScore:
    """Return the learned score of a latent model.

    Errors: TypeError for another score.
    """
    remedy = "pass LatentModel(autoencoder, ScoreModel(network, sde))"
    an_object("LatentModel", "score", model.model, LearnedScore, remedy)
    return cast("LearnedScore", model.model)


def _versions() -> dict[str, str]:
    return {"sde_diffusion": __version__, "torch": str(torch.__version__)}


def _locate(name_or_path: str | Path) -> Path:
    names = shipped()
    if isinstance(name_or_path, str) and name_or_path in names:
        folder = importlib.resources.files("sde_diffusion.pretrained")
        return Path(str(folder / f"{name_or_path}.safetensors"))
    path = check_path("load", "name_or_path", name_or_path)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        rule = f"be a file, a run folder or the name of a shipped model ({', '.join(names)})"
        error = wrong_value(
            "load", "name_or_path", rule, repr(str(name_or_path)), "check the spelling"
        )
        raise FileNotFoundError(str(error))
    if path.suffix in _WEIGHTS:
        rule = "be a checkpoint of this package"
        got = f"{path.name}, weights alone"
        remedy = (
            "read them with read_weights(path), or type sde-diffusion convert PATH "
            "net.safetensors; then weights.fill(network) and a call of "
            "docs/your_model.md, such as ScoreModel.from_timesteps(network, betas)"
        )
        raise wrong_value("load", "name_or_path", rule, got, remedy)
    return path


def _loaded(
    what: str,
    kinds: Sequence[str],
    name_or_path: str | Path,
    network: nn.Module | None,
    sde: SDE | None,
    autoencoder: EncoderDecoder | None = None,
) -> LearnedScore | LatentModel:
    path = _locate(name_or_path)
    configuration, tensors = _described(path)
    saved = configuration.get("class", ScoreModel.__name__)
    if saved not in kinds:
        rule = f"hold a {' or a '.join(kinds)}"
        raise wrong_value(what, str(path), rule, f"a {shown(saved)}", _instead(saved))
    latent = saved == LatentModel.__name__
    kind = configuration["score"] if latent else saved
    prefix = SCORE if latent else ""
    with _told(what, path):
        sde = sde_of(configuration["sde"]) if sde is None else sde
        network = network_of(configuration["network"]) if network is None else network
        data = configuration["data"]
        spec = None if data is None else DataSpec.from_json(data)
        model = _BUILDERS[kind](network, sde, spec, configuration)
    fill(network, tensors, path, prefix)
    if not latent:
        return model.eval()
    with _told(what, path):
        found = configuration["autoencoder"]
        around = autoencoder_of(found, tensors, path, AUTOENCODER, autoencoder)
        return LatentModel(around, model).eval()


def _instead(saved: object) -> str:
    """Return what to call for a file of another class."""
    if saved in NAMES:
        return "call load_autoencoder(path)"
    known = (*_BUILDERS, LatentModel.__name__)
    return "call load(path)" if saved in known else "install a newer sde_diffusion"


@contextmanager
def _told(what: str, path: Path) -> Iterator[None]:
    """Say which object of one's own is to be passed, or that the file builds nothing."""
    try:
        yield
    except OwnClassError as error:
        argument, name = error.args
        asked = "load_latent" if argument == "autoencoder" and what == "load" else what
        call = f"{asked}(path, {argument}=...)"
        remedy = f"call {call}; a command takes --model module:function of one that returns it"
        raise wrong_value(
            what, argument, "be passed for a class of your own", name, remedy
        ) from None
    except UNBUILT as error:
        raise _unbuilt(what, path, error) from error


def _described(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration, of which a model can be built, and the tensors without values."""
    configuration, tensors = read(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    kind = configuration.get("class")
    try:
        if kind in NAMES:
            check_autoencoder(configuration, shapes)
        elif kind == LatentModel.__name__:
            one_of("configuration", "score", configuration.get("score"), _BUILDERS)
            check(configuration, _of(shapes, SCORE))
            check_autoencoder(configuration.get("autoencoder"), _of(shapes, AUTOENCODER))
        else:
            check(configuration, shapes)
    except UNBUILT as error:
        raise _unbuilt("load", path, error) from error
    return configuration, tensors


def _of(shapes: Shapes, prefix: str) -> Shapes:
    return {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}


def _unbuilt(what: str, path: Path, error: Exception) -> ValueError:
    got = Reason(f"{type(error).__name__}: {error}")
    rule = "hold a configuration that builds a model"
    return wrong_value(what, str(path), rule, got, "save it again")
