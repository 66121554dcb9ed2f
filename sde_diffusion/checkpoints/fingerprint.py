"""Names for the content of models and data, so that two runs can tell whether theirs are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn

# The modules in which version 0.1 had the classes that a model or a data set is made of. A class
# goes by the name of its first home wherever it lives now, so that runs go on across versions;
# another class of this package goes by its own name alone.
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


def fingerprint(value: object) -> str:
    """Return a hash of everything in an object: numbers, tensors, weights, objects inside it.

    Functions count by their name. The device does not count.

    >>> fingerprint(torch.ones(2)) == fingerprint(torch.ones(2)) != fingerprint(torch.ones(3))
    True
    """
    digest = hashlib.sha256()
    for part in _parts(value, ()):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def _stable_name(kind: type) -> str:
    """Return the name of a class, the same wherever this package keeps it."""
    package, *_ = kind.__module__.partition(".")
    if package != __name__.partition(".")[0]:
        return f"{kind.__module__}.{kind.__qualname__}"
    home = _FIRST_HOME.get(kind.__qualname__)
    return ".".join(filter(None, (package, home, kind.__qualname__)))


def _parts(value: object, above: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the content as bytes; an object inside itself counts once."""
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
    elif isinstance(value, type) or (callable(value) and not hasattr(value, "__dict__")):
        yield getattr(value, "__qualname__", "").encode()
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
        yield "__qualname__", getattr(value, "__qualname__", "")  # of a function
        kept = dict(getattr(value, "__dict__", {}))
        if isinstance(value, nn.Module):  # of torch's own, what the computation depends on
            usual = nn.Module().__dict__.keys() - {"_parameters", "_buffers", "_modules"}
            kept = {name: part for name, part in kept.items() if name not in usual}
        yield from sorted(kept.items())
