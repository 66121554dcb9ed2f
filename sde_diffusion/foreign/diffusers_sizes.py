"""The size that a network's configuration asks for, against that of its weights' files.

A configuration of a few bytes can ask for a network of any size. It is built without memory first,
and given up as soon as it has more numbers, or more tensors, than the files can hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sde_diffusion._check import wrong_value


class TooLargeError(ValueError):
    """A configuration of a larger network than its files can hold."""


_REMEDY: Final = "save it with pipeline.save_pretrained(folder)"
_WEIGHTS: Final = (".safetensors", ".bin")
_LEAST_TENSOR: Final = 50  # bytes that a file needs to name one
# The sides of a sample: a transformer has an embedding for each patch of it.
_MOST_SIDE: Final = 4096
_MOST_SIDE_OF_PATCHES: Final = 1024


def check_size(kind: Any, config: Mapping[str, Any], part: Path) -> None:  # noqa: ANN401
    """Refuse a configuration of a larger network than its weights' files can hold.

    Arguments:
        kind: the network's class, of diffusers.
        config: its configuration.
        part: the folder of its weights.

    Errors: TooLargeError, a ValueError; and whatever the class raises over such a configuration.
    """
    most = _MOST_SIDE_OF_PATCHES if "Transformer" in kind.__name__ else _MOST_SIDE
    _check_sides(config.get("sample_size"), most, part)
    files = [file for file in part.iterdir() if file.suffix in _WEIGHTS]
    if not files:  # then diffusers says so, and builds nothing
        return
    with _at_most(sum(file.stat().st_size for file in files), part), torch.device("meta"):
        kind.from_config(config)


def _check_sides(size: Any, most: int, part: Path) -> None:  # noqa: ANN401  (JSON)
    for side in size if isinstance(size, list) else [size]:
        if isinstance(side, int) and side > most:  # what is no number is refused where it is read
            raise _too_large(part, f"have a sample_size of at most {most}", side)


@contextmanager
def _at_most(size: int, part: Path) -> Iterator[None]:
    """Refuse in this thread, as they are made, more parameters than fit into ``size`` bytes."""
    here = get_ident()
    made = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        if parameter is None or get_ident() != here:
            return
        made += max(parameter.numel(), _LEAST_TENSOR)
        if made > size:
            rule = f"ask for no larger a network than its {size} bytes of weights can fill"
            raise _too_large(part, rule, f"{made} numbers or more")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _too_large(part: Path, rule: str, got: object) -> TooLargeError:
    return TooLargeError(str(wrong_value("load", str(part), rule, got, _REMEDY)))
