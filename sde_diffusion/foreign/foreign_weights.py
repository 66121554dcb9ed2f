"""The tensors of another program's file, by name, and the network that they fill."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

from torch import Tensor, nn

from sde_diffusion._check import an_object, kind_of, wrong_type, wrong_value

_AVERAGE: Final = re.compile(r"(?<![a-z])(ema|swa)(?![a-z])|averag|shadow")
NetworkT = TypeVar("NetworkT", bound=nn.Module)


@final
@dataclass(frozen=True)
class ForeignWeights:
    """The tensors of a file by name, and where it tells them the network's class and arguments.

    ``class_name`` and ``arguments`` are what an EDM pickle says its network was made with; the
    class itself is the user's to bring.

    >>> import torch
    >>> ForeignWeights({"weight": torch.ones(3, 2), "bias": torch.ones(3)})
    ForeignWeights(2 tensors, 9 numbers)
    """

    tensors: dict[str, Tensor]
    class_name: str | None = None
    arguments: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        of = "" if self.class_name is None else f" of {self.class_name[:80]}"
        return f"ForeignWeights({len(self.tensors)} tensors, {numbers} numbers{of})"

    def fill(self, network: NetworkT, prefix: str | None = None) -> NetworkT:
        """Read the tensors into a network, in its own precision, and return it.

        What stands before every name of the file and of none of the network is left out, such as
        the "module." of DataParallel or the "_orig_mod." of torch.compile. With ``prefix`` only
        the tensors are taken whose names begin with it.

        Errors: TypeError for what is no network and for a prefix that is no text; ValueError for
        tensors of other names or shapes, which names the first one, and every prefix whose
        tensors are the network's; it then stays as it is.
        """
        an_object("fill", "network", network, nn.Module, "build the network and pass it")
        if not isinstance(prefix, str | None):
            remedy = "leave it out, or pass for example prefix='model.'"
            raise wrong_type("fill", "prefix", "be a text", kind_of(prefix), remedy)
        own = network.state_dict()
        start = prefix
        if start is None:  # where there is nothing else in the file
            whole = len(self.tensors) == len(own)
            start = next((one for one in _starts(own, self.tensors) if whole), "")
        found = _under(start, self.tensors)
        for name in sorted(own.keys() | found.keys()):
            mine, theirs = (_shape(rows.get(name)) for rows in (own, found))
            if mine != theirs:
                rule = f"match the network's {mine}"
                raise wrong_value("fill", name, rule, theirs, _remedy(own, self.tensors))
        network.load_state_dict(found)
        return network


def _starts(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return what stands before the network's names where all of them are in the file."""
    first = next(iter(own), None)
    if first is None:
        return []
    starts = [name.removesuffix(first) for name in found if name.endswith(first)]
    return [start for start in starts if all(f"{start}{name}" in found for name in own)]


def _under(start: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``start``, by what follows."""
    return {name.removeprefix(start): x for name, x in found.items() if name.startswith(start)}


def _remedy(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return what to write for a file with other tensors than the network's."""
    starts = sorted(_starts(own, found), key=lambda start: not is_average(start))
    fitting = [
        start
        for start in starts
        if all(found[f"{start}{name}"].shape == tensor.shape for name, tensor in own.items())
    ]
    whole = [start for start in fitting if len(_under(start, found)) == len(own)]
    if whole:
        words = [f"prefix={start!r}" + is_average(start) * " (averages)" for start in whole]
        return f"pass {' or '.join(words)}, which takes no others"
    build = "build the network with the arguments it was trained with"
    if not fitting:
        return build
    named = f"{fitting[0]!r} + n" if fitting[0] else "n"
    return (
        f"{build}, or leave out the others: ForeignWeights({{n: weights.tensors[{named}] "
        "for n in net.state_dict()}).fill(net)"
    )


def is_average(name: str) -> bool:
    """Return whether a name is one that programs give to averaged weights."""
    return _AVERAGE.search(name.lower()) is not None


def _shape(tensor: Tensor | None) -> str:
    return "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
