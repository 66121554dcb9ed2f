"""Reading a checkpoint: its configuration, the shapes of its tensors, and then the tensors.

Nothing is unpickled, and nothing is made for a tensor before its shape is that of the network's.
The configuration carries checksums of itself and of the tensors; version 0.1 wrote none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sde_diffusion._check import Reason, positive_integer, shown, wrong_value
from sde_diffusion._files import json_object
from sde_diffusion.checkpoints.fingerprint import fingerprint

FORMAT: Final = 2
KEY: Final = "sde_diffusion"
_SUMS: Final = "checksums"
_COPY: Final = "copy or download it again"
_AGAIN: Final = "save it again with save_model"
_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def content(configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a file that holds a configuration, of JSON values, and tensors.

    Errors: TypeError or ValueError where it holds other values.
    """
    plain = json.loads(json.dumps(configuration, allow_nan=False))
    sums = {"configuration": fingerprint(plain), "weights": _fingerprint(tensors)}
    # One entry: the format has them in no order, and equal files would differ in their bytes.
    return save(dict(tensors), {KEY: json.dumps(plain | {_SUMS: sums})})


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    return fingerprint(dict(sorted(tensors.items())))  # a file has them in another order


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration of a file, and its tensors without their values, on "meta".

    Errors: ValueError for a file that is damaged, foreign or newer than this version.
    """
    with _opened(path) as file:
        metadata = file.metadata()
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        kinds = {name: part.get_dtype() for name, part in parts.items()}
        shapes = {name: part.get_shape() for name, part in parts.items()}
    configuration, _ = _configuration(metadata, path)
    version = configuration["format"]
    if version > FORMAT:
        raise wrong_value(
            "load",
            str(path),
            f"have a format of at most {FORMAT}",
            version,
            "install a newer sde_diffusion",
        )
    for name, kind in kinds.items():
        if kind not in _DTYPES:
            rule = f"be one of {', '.join(_DTYPES)}"
            raise wrong_value("load", f"the dtype of {_of(name, path)}", rule, kind, _AGAIN)
    tensors = {
        name: torch.empty(shape, dtype=_DTYPES[kinds[name]], device="meta")
        for name, shape in shapes.items()
    }
    return configuration, tensors


def _configuration(
    metadata: Mapping[str, str] | None, path: Path
) -> tuple[dict[str, Any], str | None]:
    """Return the configuration in a file's metadata, and the checksum of its tensors, if any."""
    try:
        found = json_object((metadata or {})[KEY])
        sums = found.pop(_SUMS, {})
        own = sums.get("configuration")
        of_tensors: str | None = sums.get("weights")
        positive_integer("configuration", "format", found["format"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        rule = "carry the configuration that save_model writes"
        got = "none that can be read"
        remedy = "save it with save_model, or take its weights alone with read_weights(path)"
        raise wrong_value("load", str(path), rule, got, remedy) from error
    _check_sum("the configuration", path, own, fingerprint(found))
    return found, of_tensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        rule = "be a whole .safetensors file"
        raise wrong_value("load", str(path), rule, Reason(error), _COPY) from error


def _check_sum(part: str, path: Path, saved: str | None, found: str) -> None:
    """Refuse a part of a file that was damaged since it was written."""
    if saved not in (None, found):
        rule = f"have the checksum {shown(saved)} that was written with it"
        raise wrong_value("load", f"{part} of {path}", rule, found, _COPY)


def parts_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with the prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, prefix: str = "") -> None:
    """Read the weights of a file into the network, in the precision in which they were saved.

    Arguments:
        network: on a device, or on "meta", from where it comes to the CPU.
        tensors: what `read` returned.
        path: the file.
        prefix: of the names of the network's weights there, where others stand beside them.

    Errors: ValueError for weights of other names, shapes or kinds of numbers, or that are damaged;
    the network then stays as it is.
    """
    tensors = parts_of(tensors, prefix)
    check_weights(network, tensors, path)
    found = parts_of(values(path), prefix)
    if any(tensor.is_meta for tensor in network.state_dict().values()):
        network.to_empty(device="cpu")
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in tensors:
            tensor.data = tensor.data.to(tensors[name].dtype)
    network.load_state_dict(found)


def check_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights of other names, shapes or kinds of numbers than the network's.

    Errors: ValueError that names the first one.
    """
    own = network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        have = _kind(own.get(name))
        got = _kind(tensors.get(name))
        if have != got:
            rule = f"match the network's {have}"
            remedy = "pass the network that was saved"
            raise wrong_value("load", _of(name, path), rule, got, remedy)


def values(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that `read` has seen, with their values.

    Errors: ValueError where they are not those that were written.
    """
    with _opened(path) as file:
        _, saved = _configuration(file.metadata(), path)
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if saved is not None:
        _check_sum("the weights", path, saved, _fingerprint(found))
    return found


def _of(name: str, path: Path) -> str:
    return f"{shown(name)} of {path}"


def _kind(tensor: Tensor | None) -> str:
    """Return the shape, and of numbers that are no floating-point ones their dtype."""
    if tensor is None:
        return "no such weight"
    shape = str(tuple(tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} of {tensor.dtype}"
