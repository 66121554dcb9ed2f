"""The configuration of a checkpoint: SDEs and networks as JSON, checked before they are built.

Only the classes in the tables below are ever built from a file, with arguments of the types that
their signatures name and of sizes that the weights in the file bear out.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from sde_diffusion._check import one_of, shown, wrong_type, wrong_value
from sde_diffusion.checkpoints.fingerprint import description
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.matrix_sde import CriticallyDampedLangevin
from sde_diffusion.models.score import COUPLINGS, PREDICTIONS, VARIANCES
from sde_diffusion.nets import MLP, DiT, UNet
from sde_diffusion.nets._layers import shapes_alone
from sde_diffusion.schedules import CosineBeta, DiscreteBeta, LinearBeta
from sde_diffusion.sde import EDMSDE, VESDE, VPSDE, RectifiedFlow, SubVPSDE

NETWORKS: Final[Mapping[str, Any]] = {c.__name__: c for c in (MLP, UNet, DiT)}
_SDES: Final[Mapping[str, type]] = {
    c.__name__: c
    for c in (VPSDE, SubVPSDE, VESDE, EDMSDE, RectifiedFlow, CriticallyDampedLangevin)
}
_BETAS: Final = {c.__name__: c for c in (LinearBeta, CosineBeta, DiscreteBeta)}
_SETTINGS: Final[Mapping[str, type]] = {**_SDES, **_BETAS}
_LARGEST: Final = 1e30  # a number of an SDE or of a scaling
_MOST_ELEMENTS: Final = 2**24  # of a sample
_LEAST_TENSORS: Final = 6  # of a residual layer or block
_WHAT: Final = "configuration"
_REMEDY: Final = "save the model again with save_model"
# What a configuration that builds no model raises, of the classes it names too.
UNBUILT: Final = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
Shapes = Mapping[str, tuple[int, ...]]


class OwnClassError(ValueError):
    """A class that is not in the tables: the caller must pass the object, by argument and name."""


def encode(value: object) -> object:
    """Return an SDE or schedule as JSON: its class and arguments, or attributes if it is another.

    Those of a class of one's own are not read back; they tell what a run was made with.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        return value.tolist()
    if _SETTINGS.get(kind.__name__) is kind and dataclasses.is_dataclass(value):
        arguments = {f.name: vars(value)[f.name] for f in dataclasses.fields(value) if f.init}
        return {"class": kind.__name__} | {k: encode(v) for k, v in arguments.items()}
    if isinstance(value, (int, float, str)):
        return value
    own = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    return own | {k: v for k, v in description(value).items() if k != "class"}


def sde_of(description: Any) -> Any:  # noqa: ANN401  (JSON in, a class of the tables out)
    """Return the SDE that `encode` was given, of a description that `check` has seen."""
    if isinstance(description, list):
        return torch.tensor(description, dtype=torch.float64)
    if not isinstance(description, dict):
        return description
    name = description["class"]
    if name not in _SETTINGS:
        raise OwnClassError("sde", name)
    arguments = {key: sde_of(value) for key, value in description.items() if key != "class"}
    return _SETTINGS[name](**arguments)


def network_of(description: Mapping[str, Any], known: Mapping[str, Any] = NETWORKS) -> nn.Module:
    """Return the network of a description that `check` has seen, on the meta device.

    ``known`` are the classes that are built, by name.
    """
    name = description["class"]
    if name not in known:
        raise OwnClassError("network", name)
    with shapes_alone():
        made: nn.Module = known[name](**description["config"])
    return made


def check(found: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse a configuration from which no model can be built, before anything is.

    Arguments:
        found: the configuration.
        shapes: those of the tensors in the file, by name.

    Errors: TypeError or ValueError that names the first entry that is wrong.
    """
    for name in ("network", "sde", "prediction", "data"):
        if name not in found:
            raise wrong_value(_WHAT, name, "be there", "nothing", _REMEDY)
    check_network(found["network"], shapes)
    _check_settings("sde", found["sde"])
    one_of(_WHAT, "prediction", found["prediction"], PREDICTIONS)
    one_of(_WHAT, "variance", found.get("variance", "fixed"), VARIANCES)
    one_of(_WHAT, "coupling", found.get("coupling", "independent"), COUPLINGS)
    if "sigma_data" in found:
        _check_number("sigma_data", found["sigma_data"])
    if found["data"] is not None:
        check_data(found["data"])


def _check_class(name: str, description: object) -> None:
    kind = description.get("class") if isinstance(description, dict) else None
    if not isinstance(kind, str):
        raise wrong_type(_WHAT, name, "be an object with a class", description, _REMEDY)


def _check_settings(name: str, description: Any) -> None:  # noqa: ANN401  (JSON)
    """Refuse an SDE or a schedule of a class in the tables with arguments of another kind."""
    _check_class(name, description)
    kind = _SETTINGS.get(description["class"])
    if kind is None:  # of a class of one's own, which is not built from the file
        return
    known = {field.name: str(field.type) for field in dataclasses.fields(kind) if field.init}
    for key, value in description.items():
        if key == "class":
            continue
        one_of(_WHAT, f"an argument of {name}", key, known or ["left out"])
        _ARGUMENTS[known[key]](f"{name}.{key}", value)


def _check_betas(name: str, values: object) -> None:
    if not isinstance(values, list) or not values:
        raise wrong_type(_WHAT, name, "be a list of numbers", values, _REMEDY)
    for value in values:
        _check_number(name, value)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(_WHAT, name, "be a number", value, _REMEDY)
    if not -_LARGEST <= value <= _LARGEST:
        raise wrong_value(_WHAT, name, f"be within ±{_LARGEST:g}", value, _REMEDY)


def check_integer(name: str, value: object, most: int) -> None:
    """Refuse what is no integer of 0 … most."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(_WHAT, name, "be an integer", value, _REMEDY)
    if not 0 <= value <= most:
        raise wrong_value(_WHAT, name, f"lie in 0 … {most}", value, _REMEDY)


def check_network(
    description: Any,  # noqa: ANN401  (JSON)
    shapes: Shapes,
    classes: Mapping[str, Any] = NETWORKS,
) -> None:
    """Refuse arguments of other types, and sizes for which the file has too few weights.

    Those of a class of one's own are not looked at: it is not built from the file.

    Arguments:
        description: of the network.
        shapes: those of its tensors in the file, by name.
        classes: that are built from a file, by name.
    """
    _check_class("network", description)
    if description["class"] not in classes:
        return
    config = description.get("config")
    if not isinstance(config, dict):
        raise wrong_type(_WHAT, "network.config", "be an object", config, _REMEDY)
    known = inspect.signature(classes[description["class"]]).parameters
    most = sum(map(math.prod, shapes.values()))
    for key, value in config.items():
        one_of(_WHAT, "an argument of network.config", key, known)
        kind, _, optional = str(known[key].annotation).partition(" | ")
        if value is not None or not optional:
            _check_argument(f"network.config.{key}", kind, value, most)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in config:
            raise wrong_value(_WHAT, f"network.config.{key}", "be there", "nothing", _REMEDY)
    levels = len(config.get("multipliers", (1,)))
    layers = config.get("depth", 0) + config.get("blocks", 0) * levels
    if layers * _LEAST_TENSORS > len(shapes):
        rule = f"have no more layers than {len(shapes)} tensors can make"
        raise wrong_value(_WHAT, "network.config", rule, layers, _REMEDY)


def _check_argument(name: str, kind: str, value: object, most: int) -> None:
    if kind == "int":
        check_integer(name, value, 2**63 - 1 if name.endswith(".seed") else most)
    elif kind == "float":
        _check_number(name, value)
    elif kind == "str":
        if not isinstance(value, str):
            raise wrong_type(_WHAT, name, "be a word", value, _REMEDY)
    elif not isinstance(value, list):
        raise wrong_type(_WHAT, name, "be a list of integers", value, _REMEDY)
    else:
        for item in value:
            check_integer(name, item, most)


def check_data(values: object, most: int = _MOST_ELEMENTS) -> None:
    """Refuse what describes no data, or samples of more than ``most`` elements."""
    if not isinstance(values, dict) or not isinstance(values.get("shape"), list):
        raise wrong_type(_WHAT, "data", "be an object with a shape", values, _REMEDY)
    for size in values["shape"]:
        check_integer("data.shape", size, most)
    if math.prod(values["shape"]) > most:
        rule = f"have at most {most} elements"
        raise wrong_value(_WHAT, "data.shape", rule, values["shape"], _REMEDY)
    scaling = values.get("scaling")
    if scaling is not None:
        _check_class("data.scaling", scaling)
        for key, value in scaling.items():
            if key != "class":
                _check_number(f"data.scaling.{shown(key)}", value)
    DataSpec.from_json(values)


# The types of the arguments of SDEs and schedules, as their fields name them.
_ARGUMENTS: Final[Mapping[str, Callable[[str, Any], None]]] = {
    "float": _check_number,
    "Beta": _check_settings,
    "Tensor": _check_betas,
}
