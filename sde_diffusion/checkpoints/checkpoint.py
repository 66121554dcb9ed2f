"""Checkpoints: one ``.safetensors`` file with the weights and the whole configuration as JSON.

The configuration, under the metadata key ``sde_diffusion``, is
``{format, class, network: {class, config}, sde: {class, …}, prediction, sigma_data, variance,
coupling, data, versions}`` and whatever the writer adds. The first class is "ScoreModel" or
"DirectScore", which has none of sigma_data, variance and coupling; nor have files of format 1.
Only the classes in the tables below are ever built from a file, and nothing is unpickled: no file
can run code.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, cast, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion._files import write_atomically
from sde_diffusion._version import __version__
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.models.score import DirectScore, LearnedScore, ScoreModel
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.schedules import CosineBeta, DiscreteBeta, LinearBeta
from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, LinearSDE, RectifiedFlow, SubVPSDE

# (network, sde, data, configuration) -> model
Build: TypeAlias = Callable[[nn.Module, Any, DataSpec | None, dict[str, Any]], LearnedScore]
FORMAT: Final = 2
KEY: Final = "sde_diffusion"
_NETWORKS: Final = {c.__name__: c for c in (MLP, UNet)}
_SETTINGS: Final = {
    c.__name__: c
    for c in (
        VPSDE,
        SubVPSDE,
        VESDE,
        EDMSDE,
        RectifiedFlow,
        LinearBeta,
        CosineBeta,
        DiscreteBeta,
    )
}


class _OwnClassError(ValueError):
    """A class that is not in the tables: the caller must pass the object, by argument and name."""


def save_model(
    path: str | Path, model: LearnedScore, extra: Mapping[str, object] | None = None
) -> None:
    """Write the model's weights and configuration to one ``.safetensors`` file, atomically.

    ``extra`` is added to the configuration, for example ``{"training": {…}}``.

    Errors: TypeError for anything but a ScoreModel or a DirectScore; ValueError where ``extra`` is
    not JSON.
    """
    if not isinstance(model, LearnedScore):
        raise wrong_type(
            "save_model",
            "model",
            "be a ScoreModel or a DirectScore",
            type(model).__name__,
            "wrap the network: ScoreModel(network, sde)",
        )
    configuration = configuration_of(model) | dict(extra or {})
    try:
        metadata = {KEY: json.dumps(configuration, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise wrong_value(
            "save_model",
            "extra",
            "hold JSON values only",
            str(error),
            "pass numbers, strings, lists and dicts",
        ) from error
    # Clones, because the format refuses tensors that share memory (tied weights).
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.network.state_dict().items()
    }
    # Not save_file: when it is killed, a temporary file with a name of its own stays behind.
    write_atomically(path, lambda file: file.write_bytes(save(tensors, metadata)))


@overload
def load(
    name_or_path: str | Path,
    *,
    network: nn.Module | None = None,
    sde: LinearSDE | None = None,
    device: torch.device | str = "cpu",
) -> ScoreModel: ...
@overload
def load(
    name_or_path: str | Path,
    *,
    network: nn.Module | None = None,
    sde: SDE,
    device: torch.device | str = "cpu",
) -> LearnedScore: ...
def load(
    name_or_path: str | Path,
    *,
    network: nn.Module | None = None,
    sde: SDE | None = None,
    device: torch.device | str = "cpu",
) -> LearnedScore:
    """Return the model of a checkpoint, in evaluation mode: a `ScoreModel` or a `DirectScore`.

    Type checkers are told of a `ScoreModel` where no other SDE is passed; `load_direct` is for a
    `DirectScore` alone.

    Arguments:
        name_or_path: a file, a run folder of `train`, or a shipped model, "digits" or "mnist".
        network: one of a class of your own, which is not rebuilt from the file.
        sde: one of a class of your own, likewise; any SDE for a `DirectScore`.
        device: where the model is to compute.

    Errors: FileNotFoundError; ValueError for files that are damaged, foreign, newer than this
    version or of another network.

    >>> load("no-such-model")
    Traceback (most recent call last):
    FileNotFoundError: load: name_or_path must be a file, a run folder or the name of a shipped \
model (digits, mnist), got 'no-such-model'; check the spelling
    """
    return _loaded("load", tuple(_BUILDERS), name_or_path, network, sde).to(device)


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


_BUILDERS: Final[Mapping[str, Build]] = {
    ScoreModel.__name__: _score_model,
    DirectScore.__name__: _direct_score,
}


def describe(name_or_path: str | Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint without building its network or reading weights.

    Errors: those of `load`.
    """
    return read(_locate(name_or_path), weights=False)[0]


def shipped() -> list[str]:
    """Return the names of the models that ship with the package."""
    folder = importlib.resources.files("sde_diffusion.pretrained")
    names = (Path(entry.name) for entry in folder.iterdir())
    return sorted(name.stem for name in names if name.suffix == ".safetensors")


def configuration_of(model: LearnedScore) -> dict[str, Any]:
    """Return the configuration from which `load` rebuilds the model, without the weights."""
    kind = type(model.network)
    network: dict[str, Any] = {"class": kind.__name__}
    if _NETWORKS.get(kind.__name__) is kind:
        network["config"] = model.network.config
    else:
        network["class"] = f"{kind.__module__}.{kind.__qualname__}"
    own: dict[str, Any] = {}
    if isinstance(model, ScoreModel):
        own = {
            "sigma_data": model.sigma_data,
            "variance": model.variance,
            "coupling": model.coupling,
        }
    return {
        "format": FORMAT,
        "class": type(model).__name__,
        "network": network,
        "sde": _encode(model.sde),
        "prediction": model.prediction,
        **own,
        "data": None if model.data is None else model.data.to_json(),
        "versions": {"sde_diffusion": __version__, "torch": str(torch.__version__)},
    }


def _locate(name_or_path: str | Path) -> Path:
    names = shipped()
    if isinstance(name_or_path, str) and name_or_path in names:
        folder = importlib.resources.files("sde_diffusion.pretrained")
        return Path(str(folder / f"{name_or_path}.safetensors"))
    path = Path(name_or_path)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        rule = f"be a file, a run folder or the name of a shipped model ({', '.join(names)})"
        error = wrong_value(
            "load", "name_or_path", rule, repr(str(name_or_path)), "check the spelling"
        )
        raise FileNotFoundError(str(error))
    return path


def _loaded(
    what: str,
    kinds: Sequence[str],
    name_or_path: str | Path,
    network: nn.Module | None,
    sde: SDE | None,
) -> LearnedScore:
    path = _locate(name_or_path)
    configuration, tensors = read(path, weights=True)
    saved = configuration.get("class", ScoreModel.__name__)
    if saved not in kinds:
        remedy = "call load(path)" if saved in _BUILDERS else "install a newer sde_diffusion"
        rule = f"hold a {' or a '.join(kinds)}"
        raise wrong_value(what, str(path), rule, f"a {saved}", remedy)
    try:
        sde = _decode(configuration["sde"]) if sde is None else sde
        network = _network(configuration["network"]) if network is None else network
        data = configuration["data"]
        spec = None if data is None else DataSpec.from_json(data)
        model = _BUILDERS[saved](network, sde, spec, configuration)
    except _OwnClassError as error:
        argument, name = error.args
        call = f"{what}(path, {argument}=...)"
        remedy = f"call {call}; a command takes --model FILE:NAME of a function that returns it"
        raise wrong_value(
            what, argument, "be passed for a class of your own", name, remedy
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        rule = "hold a configuration that builds a model"
        raise wrong_value(what, str(path), rule, got, "save it again") from error
    fill(network, tensors, path)
    return model.eval()


def read(path: Path, *, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration of a file and its weights, or no weights unless asked for.

    Errors: ValueError for a file that is damaged, foreign or newer than this version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()} if weights else {}  # noqa: SIM118
    except SafetensorError as error:
        raise wrong_value(
            "load",
            str(path),
            "be a whole .safetensors file",
            str(error),
            "copy or download it again",
        ) from error
    try:
        configuration = json.loads(metadata[KEY])
        version = configuration["format"]
        newer = version > FORMAT
    except (KeyError, TypeError, ValueError) as error:
        rule = "carry the configuration that save_model writes"
        got = "none that can be read"
        raise wrong_value("load", str(path), rule, got, "save it with save_model") from error
    if newer:
        raise wrong_value(
            "load",
            str(path),
            f"have a format of at most {FORMAT}",
            version,
            "install a newer sde_diffusion",
        )
    return configuration, tensors


def _encode(value: object) -> object:
    """Return an SDE or schedule as JSON: its class and constructor arguments."""
    kind = type(value)
    if isinstance(value, Tensor):
        return value.tolist()
    if _SETTINGS.get(kind.__name__) is kind and dataclasses.is_dataclass(value):
        arguments = {f.name: vars(value)[f.name] for f in dataclasses.fields(value) if f.init}
        return {"class": kind.__name__} | {k: _encode(v) for k, v in arguments.items()}
    if isinstance(value, (int, float, str)):
        return value
    return {"class": f"{kind.__module__}.{kind.__qualname__}"}


def _decode(value: Any) -> Any:  # noqa: ANN401  (JSON in, a class of the tables out)
    """Return what `_encode` was given."""
    if isinstance(value, list):
        return torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, dict):
        return value
    name = value["class"]
    if name not in _SETTINGS:
        raise _OwnClassError("sde", name)
    return _SETTINGS[name](**{k: _decode(v) for k, v in value.items() if k != "class"})


def _network(description: dict[str, Any]) -> nn.Module:
    name = description["class"]
    if name not in _NETWORKS:
        raise _OwnClassError("network", name)
    return _NETWORKS[name](**description["config"])


def fill(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the weights into the network, in the precision in which they were saved."""
    own = network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        have = tuple(own[name].shape) if name in own else "no such weight"
        got = tuple(tensors[name].shape) if name in tensors else "no such weight"
        if have != got:
            raise wrong_value(
                "load",
                f"{name} of {path}",
                f"match the network's {have}",
                got,
                "pass the network that was saved",
            )
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in tensors:
            tensor.data = tensor.data.to(tensors[name].dtype)
    network.load_state_dict(tensors)
