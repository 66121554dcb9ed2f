"""Names for the content of models and data, so that two runs can tell whether theirs are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


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


def _parts(value: object, above: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the content as bytes; an object inside itself counts once."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    yield kind.encode()
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
