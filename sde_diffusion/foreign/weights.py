"""Weights that another program wrote: safetensors, torch's files, and pickles of whole networks.

Nothing of a file is executed: pickles are read by `pickle_reader`, and tensors are made here of
their bytes. EDM's pickles hold a network's source code too, which stays a text.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from sde_diffusion._check import Reason, check_path, wrong_value
from sde_diffusion._files import write_atomically
from sde_diffusion.foreign.foreign_weights import ForeignWeights, is_average
from sde_diffusion.foreign.pickle_reader import Made, PickleRefusedError
from sde_diffusion.foreign.torch_file import Tensors, is_tensor, value_of

_PERSISTENT: Final = "torch_utils.persistence._reconstruct_persistent_obj"
# What the readers of archives, of safetensors and of numbers raise for files that are none.
_DAMAGED: Final = (
    PickleRefusedError,
    SafetensorError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    ArithmeticError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_MOST_NAMED: Final = 6  # parts of a file that a message names
_DEEPEST: Final = 100  # modules inside one another
_MOST_MODULES: Final = 100_000


def read_weights(path: str | Path, part: str | None = None) -> ForeignWeights:
    """Return the tensors of another program's file, on the CPU, without executing any of it.

    Arguments:
        path: a ``.safetensors`` file, one of torch's (``.pt``, ``.pth``, ``.ckpt``, ``.bin``), or
            an EDM pickle.
        part: which entry of the file, such as "model" or "ema"; if not given the file itself, and
            "ema" of a pickle with networks. "a.b" is the entry b of the entry a.

    Errors: FileNotFoundError; ValueError for a damaged file, one that holds anything else, and
    where it has several parts.
    """
    path = check_path("read_weights", "path", path)
    data = path.read_bytes()
    try:
        if data[8:9] == b"{":  # safetensors: the length of a JSON text, and the text
            return _of_safetensors(path, data)
        value = value_of(data)
    except _DAMAGED as error:
        raise _refused(path, str(error)) from error
    try:
        return _weights(value, part, Tensors(len(data)))
    except PickleRefusedError as error:
        raise _refused(path, str(error)) from error


def convert_weights(source: str | Path, target: str | Path, part: str | None = None) -> Path:
    """Write the tensors of another program's file as ``.safetensors``, and return its path.

    The class name and the arguments, where there are any, stand in its metadata as JSON.

    Errors: as `read_weights`; ValueError for a target that does not end in ``.safetensors``.
    """
    target = check_path("convert_weights", "target", target)
    if target.suffix != ".safetensors":
        raise wrong_value(
            "convert_weights", "target", "end in .safetensors", target.name, "pass net.safetensors"
        )
    found = read_weights(source, part)
    # Copies, since safetensors takes no tensors of one storage.
    copied = torch.contiguous_format
    tensors = {name: x.clone(memory_format=copied) for name, x in found.tensors.items()}
    about = {"class": found.class_name, "arguments": found.arguments}
    text = json.dumps(about, default=lambda value: f"<{type(value).__name__}>")
    content = save(tensors, metadata={"network": text})
    write_atomically(target, lambda file: file.write_bytes(content))
    return target


def _of_safetensors(path: Path, data: bytes) -> ForeignWeights:
    tensors = load(data)
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {}).get("network", "{}"))
    return ForeignWeights(tensors, about.get("class"), about.get("arguments"))


def _refused(path: Path, got: str) -> ValueError:
    return wrong_value(
        "read_weights",
        f"the file {path.name}",
        "hold tensors in safetensors, in torch's format or in an EDM pickle",
        Reason(f"one that {got}"),
        "download it again, or save a state dict with safetensors.torch.save_file",
    )


# --- the parts of a file ---


def _weights(value: object, part: str | None, made: Tensors) -> ForeignWeights:
    for name in part.split(".") if part is not None else []:
        value = _entry(value, name)
    if part is None and not _is_network(value) and _is_network(_mapping(value).get("ema")):
        value = _mapping(value)["ema"]
    if _is_network(value):
        return _network(value, made)
    rows = dict(enumerate(value)) if isinstance(value, list) else _mapping(value)
    tensors = {str(name): made.of(entry) for name, entry in rows.items()}
    found = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if not found or len(found) < len(tensors):
        raise _no_tensors(rows, part)
    return ForeignWeights(found)


def _mapping(value: object) -> Mapping[Any, Any]:
    """Return the entries of a dictionary or of an object that was filled as one."""
    if isinstance(value, Made):
        return value.items
    return value if isinstance(value, Mapping) else {}


def _entry(value: object, name: str) -> object:
    rows = _mapping(value)
    if name not in rows:
        raise wrong_value(
            "read_weights",
            "part",
            f"be one of {_listed(rows)}",
            name,
            "pass one of these, or a path such as ema.shadow_params",
        )
    found: object = rows[name]
    return found


def _no_tensors(rows: Mapping[Any, Any], part: str | None) -> ValueError:
    here = "the file" if part is None else f"its part {part}"
    known = sorted(_parts(rows), key=lambda name: not is_average(name))
    named = [f"part='{name if part is None else f'{part}.{name}'}'" for name in known]
    remedy = "save a state dict with safetensors.torch.save_file"
    if named:
        remedy = f"pass {' or '.join(named[:_MOST_NAMED])}, which holds tensors alone"
    got = Reason(f"the entries {_listed(rows)}")
    return wrong_value("read_weights", here, "hold tensors alone", got, remedy)


def _parts(rows: Mapping[Any, Any]) -> list[str]:
    """Return the entries that hold tensors alone, and inside others the entries that do."""
    found = []
    for name, value in rows.items():
        if _holds_tensors(value):
            found.append(str(name))
        else:
            inner = _mapping(value).items()
            found += [f"{name}.{other}" for other, one in inner if _holds_tensors(one)]
    return found


def _holds_tensors(value: object) -> bool:
    """Return whether an entry is a network, or has tensors and nothing else."""
    inside = value if isinstance(value, list) else list(_mapping(value).values())
    return _is_network(value) or (bool(inside) and all(map(is_tensor, inside)))


def _listed(rows: Mapping[Any, Any]) -> str:
    shown = ", ".join(str(name)[:20] for name in list(rows)[:6])
    return shown + (", …" if len(rows) > 6 else "") if rows else "none"


# --- whole networks ---


def _state(value: object) -> Mapping[Any, Any]:
    """Return the attributes of a pickled module."""
    if not isinstance(value, Made):
        return {}
    if value.name == _PERSISTENT and value.arguments:
        return _mapping(_mapping(value.arguments[0]).get("state"))
    return _mapping(value.state)


def _is_network(value: object) -> bool:
    return "_parameters" in _state(value) and "_modules" in _state(value)


def _network(value: object, made: Tensors) -> ForeignWeights:
    state = _state(value)
    tensors: dict[str, Tensor] = {}
    for count, (prefix, module) in enumerate(_modules(value)):
        if count == _MOST_MODULES:
            message = f"has more than {_MOST_MODULES} modules"
            raise PickleRefusedError(message)
        inner = _state(module)
        passing = _elements(inner.get("_non_persistent_buffers_set"))
        for kind in ("_parameters", "_buffers"):
            for name, entry in _mapping(inner.get(kind)).items():
                tensor = None if name in passing else made.of(entry)
                if tensor is not None:
                    tensors[f"{prefix}{name}"] = tensor
    about = _mapping(value.arguments[0]) if isinstance(value, Made) and value.arguments else {}
    name = about.get("class_name")
    keywords = _mapping(state.get("_init_kwargs"))
    return ForeignWeights(tensors, name if isinstance(name, str) else None, dict(keywords))


def _elements(value: object) -> list[Any]:
    """Return the elements of a list, or of a set, which older pickles make of a list."""
    while isinstance(value, Made) and value.arguments:
        value = value.arguments[0]
    return value if isinstance(value, list) else []


def _modules(value: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Yield every module of a network with the prefix of its tensors' names."""
    if depth > _DEEPEST:
        message = f"has modules more than {_DEEPEST} deep"
        raise PickleRefusedError(message)
    yield prefix, value
    for name, child in _mapping(_state(value).get("_modules")).items():
        if child is not None:
            yield from _modules(child, f"{prefix}{name}.", depth + 1)
