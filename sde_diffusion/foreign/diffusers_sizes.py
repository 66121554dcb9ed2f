"""The sizes in a folder's configuration, held against its weights before anything is built.

A configuration is a text that anybody can write: widths of a million would fill the memory before
the first weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from sde_diffusion._check import Reason, wrong_value

_ENDINGS: Final = (".safetensors", ".bin")
_REMEDY: Final = "save it with pipeline.save_pretrained(folder)"
_LEAST: Final = 2**16  # what any setting may be, such as a number of timesteps
_LAYERS: Final = ("layers_per_block", "num_layers", "transformer_layers_per_block")
_LEAST_BYTES: Final = 64  # of a tensor in a file, with its name
_MOST_ELEMENTS: Final = 2**24  # of a sample
_MOST_POSITIONS: Final = 2**26  # of the table of positions of a transformer, which no file holds


def check_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration with a number that the weights beside it do not bear out.

    Arguments:
        folder: with the weights.
        config: the network's configuration.

    Errors: ValueError that names the setting.
    """
    size = _bytes(folder)
    for name, number in _numbers(config):
        most = size // _LEAST_BYTES if name in _LAYERS else max(size, _LEAST)
        if abs(number) > most:
            raise _refused(folder, size, f"{name} = {number}")
    _check_samples(folder, size, config)


def check_built(kind: Any, folder: Path, config: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Refuse a configuration whose network has more weights than there are bytes of them.

    Arguments:
        kind: the network's class, of diffusers.
        folder: with the weights.
        config: the network's configuration, which `check_settings` has seen.

    Errors: ValueError that names the number of weights; those of the class.
    """
    size = _bytes(folder)
    with torch.device("meta"):
        made = kind.from_config(config)
    weights = sum(tensor.numel() for tensor in made.state_dict().values())
    if weights > size:
        raise _refused(folder, size, f"{weights} weights")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in _ENDINGS)


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield every number with the name of its setting."""
    for name, value in config.items():
        rows = list(value) if isinstance(value, (list, tuple)) else [value]
        while rows:
            item = rows.pop()
            if isinstance(item, (list, tuple)):
                rows.extend(item)
            elif isinstance(item, (int, float)):
                yield name, item


def _check_samples(folder: Path, size: int, config: Mapping[str, Any]) -> None:
    """Refuse samples of too many elements, and tables of their positions that are too large."""
    given = config.get("sample_size")
    sides = [side for side in (given if isinstance(given, list) else [given, given]) if side]
    if not all(isinstance(side, int) for side in sides):
        return  # refused by its name where it is read
    heads = [config.get(name) for name in ("num_attention_heads", "attention_head_dim")]
    width = math.prod(number for number in heads if isinstance(number, int))
    area = math.prod(sides)
    if area > _MOST_ELEMENTS or area * width > _MOST_POSITIONS:
        raise _refused(folder, size, f"sample_size = {given}")


def _refused(folder: Path, size: int, got: str) -> ValueError:
    rule = f"describe a network of the {size} bytes of weights beside it"
    return wrong_value("load", str(folder / "config.json"), rule, Reason(got), _REMEDY)
