"""The tensors of another program's file, by name, and the network that they fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

from torch import Tensor, nn

from sde_diffusion._check import an_object, wrong_value

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

        Errors: TypeError for what is no network; ValueError for tensors of other names or shapes,
        which names the first one; the network then stays as it is.
        """
        an_object("fill", "network", network, nn.Module, "build the network and pass it")
        own = network.state_dict()
        before = _before(own, self.tensors)
        start = prefix
        if start is None:  # where there is nothing else in the file
            start = before[0] if before and len(self.tensors) == len(own) else ""
        found = {
            name.removeprefix(start): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start)
        }
        for name in sorted(own.keys() | found.keys()):
            mine, theirs = (_shape(rows.get(name)) for rows in (own, found))
            if mine != theirs:
                rule = f"match the network's {mine}"
                remedy = "build the network with the arguments it was trained with"
                if prefix is None and before:  # among others
                    remedy = f"pass prefix={before[0]!r}, which takes no others"
                raise wrong_value("fill", name, rule, theirs, remedy)
        network.load_state_dict(found)
        return network


def _before(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return what stands before the network's names where all of them are in the file."""
    first = next(iter(own), "")
    starts = [name.removesuffix(first) for name in found if name.endswith(first)]
    return [start for start in starts if all(f"{start}{name}" in found for name in own)]


def _shape(tensor: Tensor | None) -> str:
    return "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
