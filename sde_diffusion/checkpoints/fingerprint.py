"""What objects of any class hold, by which two runs tell whether theirs are equal."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

# The modules in which version 0.1 had the classes that a model or a data set is made of. Wherever
# such a class is now, its name is hashed with that module, so that runs can be resumed across
# versions; of other classes of this package the name is hashed without a module.
_FIRST_HOME: Final = {
    "ScoreModel": "score", "DirectScore": "score", "Labelled": "score",
    "Gaussian": "oracles", "GaussianMixture": "oracles", "ExactScore": "oracles",
    "Guided": "guidance", "GuidanceInterval": "guidance",
    "StaticThreshold": "thresholding", "DynamicThreshold": "thresholding",
    "DataSpec": "data", "Affine": "scaling", "Logit": "scaling",
    **dict.fromkeys(("VPSDE", "SubVPSDE", "VESDE", "EDMSDE", "RectifiedFlow"), "sde"),
    **dict.fromkeys(("LinearBeta", "CosineBeta", "DiscreteBeta"), "schedules"),
    **dict.fromkeys(("GroupNorm",), "nets._layers"),
    **dict.fromkeys(("_GroupNorm",), "nets._norm"),
    **dict.fromkeys(("ResidualBlock", "Attention",), "nets.blocks"),
    **dict.fromkeys(("Sinusoidal", "GaussianFourier", "Conditioning",), "nets.embedding"),
    **dict.fromkeys(("Layer", "MLP",), "nets.mlp"),
    **dict.fromkeys(("Stage", "UNet",), "nets.unet"),
}  # fmt: skip


IN_USE: Final = "changes in use"  # in place of a setting that the running of a network changes


def fingerprint(value: object) -> str:
    """Return a hash of everything in an object: numbers, tensors, weights, objects inside it.

    Of functions it is that of their name. The device of a tensor makes no difference.

    >>> fingerprint(torch.ones(2)) == fingerprint(torch.ones(2)) != fingerprint(torch.ones(3))
    True
    """
    digest = hashlib.sha256()
    for part in _parts(value, ()):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def description(value: object, above: tuple[int, ...] = ()) -> Any:  # noqa: ANN401  (JSON)
    """Return the class of an object and its settings, and so on down, as JSON.

    Of tensors it is their shape and a hash, of functions their name, of what has no attributes its
    repr. What a module learns or notes in training, its parameters and buffers, is no setting.

    Arguments:
        value: the object.
        above: the ids of those that it is in; of an object inside itself the class alone is left.

    >>> from sde_diffusion import LinearBeta
    >>> description(LinearBeta(0.1, 20.0))
    {'class': 'sde_diffusion.schedules.LinearBeta', 'high': 20.0, 'low': 0.1}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)  # JSON has no infinity
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "content": fingerprint(value)}
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "content": fingerprint(value.tobytes())}
    if _qualified_name(value):
        return f"{value.__module__}.{_qualified_name(value)}"
    named = {"class": _stable_name(type(value))}
    if id(value) in above:
        return named
    inside = (*above, id(value))
    if isinstance(value, (list, tuple)):
        return [description(item, inside) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if _attributes(value) is None and not isinstance(value, (Mapping, torch.device)):
        text = repr(value)
        return named if " at 0x" in text else text
    return named | {name: description(part, inside) for name, part in _settings(value)}


def network_settings(network: nn.Module) -> dict[str, Any]:
    """Return what was chosen of every module of a network, by its name there, as JSON.

    It tells two networks of one class apart whose weights have the same names and shapes. A buffer
    that no checkpoint keeps is a setting, since only the network's constructor can make it.

    >>> network_settings(nn.Sequential(nn.Dropout(0.25)))["0.p"]
    0.25
    """
    found: dict[str, Any] = {}
    for path, module in network.named_modules():
        start = f"{path}." if path else ""
        found[f"{start}class"] = _stable_name(type(module))
        kept = module.state_dict(keep_vars=True)
        chosen = [pair for pair in _settings(module) if not isinstance(pair[1], nn.Module)]
        chosen += [pair for pair in module.named_buffers(recurse=False) if pair[0] not in kept]
        found |= {f"{start}{name}": description(part) for name, part in chosen}
    return found


def steady(settings: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a network as they were, `IN_USE` for what is something else by now.

    Counters and tables that a network fills in as it runs are none of its settings.

    >>> steady({"p": 0.5, "calls": 0}, {"p": 0.5, "calls": 8, "table": 1})
    {'p': 0.5, 'calls': 'changes in use', 'table': 'changes in use'}
    """
    changed = {
        name for name in settings.keys() | now.keys() if settings.get(name) != now.get(name)
    }
    return {**settings, **dict.fromkeys(sorted(changed), IN_USE)}


def _settings(value: object) -> Iterator[tuple[str, object]]:
    """Yield what was chosen of an object, by name; what follows from it is left out."""
    if isinstance(value, Mapping):
        yield from ((str(name), part) for name, part in value.items())
        return
    if isinstance(value, partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    derived = set[str]()
    if isinstance(value, nn.Module):
        derived |= nn.Module().__dict__.keys() | {"_compiled_call_impl"}
        yield from value.named_children()
    if dataclasses.is_dataclass(value):
        derived |= {field.name for field in dataclasses.fields(value) if not field.init}
    for kind in type(value).__mro__:
        derived |= {name for name, part in vars(kind).items() if isinstance(part, cached_property)}
    kept = _attributes(value) or {}
    yield from ((name, kept[name]) for name in sorted(kept.keys() - derived))


def _stable_name(kind: type) -> str:
    """Return the name of a class, which does not depend on its module in this package."""
    package, *_ = kind.__module__.partition(".")
    if package != __name__.partition(".")[0]:
        return f"{kind.__module__}.{kind.__qualname__}"
    home = _FIRST_HOME.get(kind.__qualname__)
    return ".".join(filter(None, (package, home, kind.__qualname__)))


def _parts(value: object, above: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the content as bytes; of an object inside itself the name of its class alone."""
    yield _stable_name(type(value)).encode()
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
        yield repr(value).encode()
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, torch.device) or id(value) in above:
        return
    elif isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        yield f"{plain.dtype} {tuple(plain.shape)}".encode()
        yield plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    elif isinstance(value, type) or (callable(value) and _attributes(value) is None):
        yield _qualified_name(value).encode()
    else:
        for name, part in _items(value):
            yield name.encode()
            yield from _parts(part, (*above, id(value)))


def _items(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((repr(key), part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(i), part) for i, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield "", sorted(map(repr, value))
    else:
        if isinstance(value, partial):
            yield "partial", (value.func, value.args, value.keywords)
        yield "__qualname__", _qualified_name(value)
        kept = dict(_attributes(value) or {})
        if isinstance(value, nn.Module):  # of torch's own, what the computation depends on
            usual = nn.Module().__dict__.keys() - {"_parameters", "_buffers", "_modules"}
            usual = usual | {"_compiled_call_impl"}  # how it is computed, not what
            kept = {name: part for name, part in kept.items() if name not in usual}
        yield from sorted(kept.items())


def _attributes(value: object) -> dict[str, Any] | None:
    """Return the attributes of an object, None where it has no room for any."""
    try:
        return vars(value)
    except TypeError:
        return None


def _qualified_name(value: object) -> str:
    # Any object may come here, and only functions and classes have a qualified name.
    name: str = getattr(value, "__qualname__", "")
    return name
