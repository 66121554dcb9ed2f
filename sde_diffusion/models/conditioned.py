"""Conditions of a network, filled in: they follow the rows of a batch that is split."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import kind_of, wrong_type, wrong_value
from sde_diffusion._shown import Size, as_call
from sde_diffusion.models.calls import check_call
from sde_diffusion.nets.conditions import ConditionalNetwork, nothing


class Enclosing(nn.Module, ABC):
    """A network around another one, which it calls in its own way."""

    network: nn.Module

    @property
    def t_min(self) -> float | None:
        """The first time that the network was made for, None where that is not known."""
        return self.network.t_min if isinstance(self.network, Enclosing) else None

    @abstractmethod
    def rows(self, index: Tensor) -> Enclosing:
        """Return the network of the samples ``index`` of the batch, or itself if it is alike."""


def rows_of(network: nn.Module, index: Tensor) -> nn.Module:
    """Return the network of the samples ``index`` of the batch, sharing its weights."""
    return network.rows(index) if isinstance(network, Enclosing) else network


def around(outer: Enclosing, network: nn.Module) -> Any:  # noqa: ANN401  (outer's class)
    """Return a copy of ``outer`` whose network is another one, sharing all else."""
    if network is outer.network:
        return outer
    made = copy.copy(outer)
    made._modules = outer._modules | {"network": network}
    return made


def _taken(what: str, held: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``index`` of what is held for each sample."""
    if int(index.max()) >= len(held):
        raise wrong_value(
            what,
            "rows",
            f"be of the {len(held)} samples whose conditions there are",
            f"sample {int(index.max())}",
            "give one condition for each sample of the data, or pass "
            f"--limit {len(held)}, to sample -n {len(held)}",
        )
    return held[index.to(held.device)]


@final
class Labelled(Enclosing):
    """A class-conditional network with its labels filled in."""

    def __init__(self, network: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.network = network
        self.labels = labels

    def rows(self, index: Tensor) -> Labelled:
        inner = rows_of(self.network, index)
        if self.labels.ndim:
            return Labelled(inner, _taken("ScoreModel", self.labels, index))
        return self if inner is self.network else Labelled(inner, self.labels)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return network(x, c, labels)."""
        labels = self.labels.to(x.device)
        if labels.ndim and len(labels) != len(c):
            raise wrong_value(
                "ScoreModel",
                "labels",
                f"be one, or {len(c)} for this batch",
                f"{len(labels)} labels",
                "pass as many as samples",
            )
        try:
            out: Tensor = self.network(x, c, labels.expand(x.shape[0]))
        except TypeError as error:
            remedy = "pass labels=ClassLabels(…, keyword=…) to the call that makes the model"
            check_call("ScoreModel.given", self.network, ("x", "t", "labels"), remedy, error)
            raise
        return out


@final
class Conditioned(Enclosing):
    """A network whose other arguments are filled in: network(x, c, name=tensor, …).

    Row i of every tensor belongs to sample i. Where a batch is split, by a solver whose finished
    samples leave it or by an evaluation of a whole data set, the rows go with their samples. One
    row alone belongs to all samples.

    Arguments:
        network: called as network(x, c, …), or with labels as the third.
        tensors: by the name of the argument; (B, …) each, or (1, …).

    Shapes: x (B, *event), c (B,).
    Errors: TypeError for anything but a network and tensors; ValueError for tensors of different
    numbers of rows, or another number of samples.

    >>> import torch
    >>> class Shifted(nn.Module):
    ...     def forward(self, x, t, shift):
    ...         return x - shift
    >>> network = Conditioned(Shifted(), {"shift": torch.tensor([[1.0], [2.0]])})
    >>> network.rows(torch.tensor([1]))(torch.zeros(1, 1), torch.ones(1)).tolist()
    [[-2.0]]
    """

    def __init__(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise wrong_type(
                "Conditioned",
                "network",
                "be a torch.nn.Module",
                type(network).__name__,
                "wrap your function in a Module",
            )
        self.network = network
        example = "pass for example {'y': torch.zeros(len(x), 8)}"
        if not isinstance(tensors, Mapping):
            rule = "be a dictionary of tensors by the names of the network's arguments"
            raise wrong_type("Conditioned", "tensors", rule, kind_of(tensors), example)
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            if not isinstance(name, str):
                rule = "have names of arguments as its keys"
                raise wrong_type("Conditioned", "tensors", rule, kind_of(name), example)
            if not isinstance(tensor, Tensor) or tensor.ndim == 0:
                raise wrong_type(
                    "Conditioned",
                    f"tensors[{name!r}]",
                    "be a tensor with one row for each sample",
                    type(tensor).__name__ if not isinstance(tensor, Tensor) else "a 0-d tensor",
                    example,
                )
            self.register_buffer(f"given_{name}", tensor, persistent=False)
        counts = {len(tensor) for tensor in tensors.values()}
        if not counts or len(counts - {1}) > 1:
            raise wrong_value(
                "Conditioned",
                "tensors",
                "be one or more, all with one row for each sample, or for all",
                f"rows {sorted(counts)}",
                "pass as many rows of each, or one that all samples share: tensor[:1]",
            )
        self.count = max(counts)
        self.train(network.training)  # its mode, which a new module would set

    def __repr__(self) -> str:
        given = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return as_call("Conditioned", {"network": Size(self.network), "tensors": given})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is filled in, by name."""
        return {name: self.get_buffer(f"given_{name}") for name in self.names}

    def rows(self, index: Tensor) -> Self:
        inner = rows_of(self.network, index)
        taken = {
            name: held if len(held) == 1 else _taken("Conditioned", held, index)
            for name, held in self.tensors.items()
        }
        if self.count == 1 and inner is self.network:
            return self
        return Conditioned(inner, taken).train(self.training)

    def whole(self, count: int) -> dict[str, Tensor]:
        """Return what is filled in, by name, with ``count`` rows of each."""
        return {name: held.expand(count, *held.shape[1:]) for name, held in self.tensors.items()}

    def forward(self, x: Tensor, c: Tensor, *args: Tensor, **kwargs: Tensor) -> object:
        """Return network(x, c, …) with the tensors, and with labels if they are given."""
        if self.count not in (1, len(x)):
            raise wrong_value(
                "Conditioned",
                "x",
                f"have {self.count} samples, one a row of the tensors",
                f"{len(x)}",
                "pass as many, or model.rows(index) of the samples that they are",
            )
        try:
            return self.network(x, c, *args, **self.whole(len(x)), **kwargs)
        except TypeError as error:
            given = ("labels",) * len(args)
            words = ("x", "t", *given, *(f"{name}=" for name in (*self.names, *kwargs)))
            remedy = "name the arguments of its forward in the dictionary, and all of them"
            check_call("Conditioned", self.network, words, remedy, error)
            raise


def bare(network: nn.Module) -> nn.Module:
    """Return the network whose labels and other conditions are filled in."""
    while isinstance(network, (Labelled, Conditioned)):
        network = network.network
    return network


def filled(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with these conditions beside, or in place of, those that it has."""
    if isinstance(network, Labelled):
        return Labelled(filled(network.network, tensors), network.labels)
    if isinstance(network, Conditioned) and isinstance(network.network, ConditionalNetwork):
        return Conditioned(network.network, network.tensors | dict(tensors))
    return Conditioned(network, tensors)


def paired(one: nn.Module, two: nn.Module, count: int) -> nn.Module | None:
    """Return the network of a batch with the conditions of ``one`` and then those of ``two``.

    None where they are not one network with conditions of one kind. What a `ConditionalNetwork`
    has on one side alone is nothing on the other.

    Arguments:
        one: the network of the first ``count`` samples.
        two: that of the others, as many.
        count: of samples.
    """
    if one is two:
        return rows_of(one, torch.arange(count).repeat(2))
    if isinstance(one, Labelled) and isinstance(two, Labelled):
        inner = paired(one.network, two.network, count)
        if inner is None:
            return None
        return Labelled(inner, torch.cat([_labels_of(net, count) for net in (one, two)]))
    if isinstance(one, Labelled) or isinstance(two, Labelled):
        return None
    inner, other = (net.network if isinstance(net, Conditioned) else net for net in (one, two))
    sides = [net.whole(count) if isinstance(net, Conditioned) else {} for net in (one, two)]
    if isinstance(inner, ConditionalNetwork):
        sides = [_with_nothing(side, sides[0] | sides[1]) for side in sides]
    first, second = ({name: held.shape for name, held in side.items()} for side in sides)
    if inner is not other or first != second:
        return None
    both = {name: torch.cat([side[name] for side in sides]) for name in first}
    return Conditioned(rows_of(inner, torch.arange(count).repeat(2)), both)


def _with_nothing(side: dict[str, Tensor], whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the conditions of a side, with rows of nothing for those that it has not."""
    return {
        name: side.get(name, torch.full_like(held, nothing(held))) for name, held in whole.items()
    }


def _labels_of(network: Labelled, count: int) -> Tensor:
    labels = network.labels
    if labels.ndim and len(labels) != count:
        raise wrong_value(
            "Guided",
            "labels",
            f"be one, or {count} for this batch",
            f"{len(labels)} labels",
            "pass as many as samples",
        )
    return labels.expand(count)
