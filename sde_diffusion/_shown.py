"""What an object looks like in a session: its class, its settings, and its tensors in short.

A class says ``__repr__ = shown``. No tensor is printed whole, since a batch of images would fill
the screen, and no address, which says nothing.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor, nn

_LONGEST: Final = 400  # characters of a whole object
_PART: Final = 120  # of one of its values
_ITEMS: Final = 4  # of a list


def shown(thing: object) -> str:
    """Return ``Class(name=value, …)`` of the public attributes, in at most 400 characters.

    Settings at their defaults are left out where all of them would be longer.

    >>> import torch
    >>> @dataclasses.dataclass
    ... class Found:
    ...     x: torch.Tensor
    ...     nfe: int
    ...     __repr__ = shown
    >>> Found(torch.ones(64, 1, 8, 8), 10)
    Found(x=(64, 1, 8, 8) of mean 1, nfe=10)
    """
    values = _public(thing)
    whole = as_call(type(thing).__name__, values)
    if not whole.endswith("…)") or not dataclasses.is_dataclass(thing):
        return whole
    usual = {field.name: field.default for field in dataclasses.fields(thing)}
    return as_call(type(thing).__name__, {k: v for k, v in values.items() if usual[k] is not v})


def as_call(name: str, values: Mapping[str, object]) -> str:
    """Return ``name(key=value, …)`` in at most 400 characters."""
    inner = ", ".join(f"{key}={brief(value)}" for key, value in values.items())
    return f"{name}({_clipped(inner, _LONGEST - len(name) - 2)})"


class Size:
    """A network by its class and the number of its parameters."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __repr__(self) -> str:
        number = sum(parameter.numel() for parameter in self.network.parameters())
        return f"{type(self.network).__name__} of {number:,} parameters"


def brief(value: object) -> str:
    """Return a value in short: a tensor by its shape and mean, a function by its name.

    >>> import torch
    >>> brief(torch.zeros(3, 2)), brief(sorted), brief([1.0, 2.0]), brief(0.123456789)
    ('(3, 2) of mean 0', 'sorted', '[1.0, 2.0]', '0.123457')
    """
    from torch import Tensor, nn

    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, float):
        return f"{value:.6g}" if len(repr(value)) > 8 else repr(value)
    if isinstance(value, Mapping):
        return _joined("{}", [f"{key}: {brief(item)}" for key, item in value.items()])
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return _joined("[]" if isinstance(value, list) else "()", [brief(one) for one in value])
    if isinstance(value, nn.Module) and "\n" in repr(value):
        return repr(Size(value))
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)):
        return value.__qualname__.rpartition(".<locals>.")[2]
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else _clipped(text, _PART)


def _public(thing: object) -> dict[str, object]:
    from torch import nn

    if isinstance(thing, tuple):  # a named one
        return dict(zip(type(thing).__annotations__, thing, strict=True))
    if dataclasses.is_dataclass(thing):
        kept = vars(thing)
        fields = (f for f in dataclasses.fields(thing) if f.repr and f.name in kept)
        return {f.name: kept[f.name] for f in fields}
    values = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
    if isinstance(thing, nn.Module):
        values.pop("training")
        values |= {**dict(thing.named_parameters(recurse=False)), **dict(thing.named_children())}
    return values


def _tensor(x: Tensor) -> str:
    if 0 < x.numel() <= _ITEMS and x.ndim < 2:
        return brief(x.detach().tolist())
    if x.numel() == 0:
        return f"{tuple(x.shape)}"
    return f"{tuple(x.shape)} of mean {float(x.detach().double().mean()):.4g}"


def _joined(brackets: str, items: list[str]) -> str:
    more = [f"… {len(items)} in all"] if len(items) > _ITEMS + 1 else []
    kept = items[:_ITEMS] if more else items
    comma = "," if brackets == "()" and len(items) == 1 else ""
    return f"{brackets[0]}{', '.join(kept + more)}{comma}{brackets[1]}"


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
