"""Conditions of a network, filled in: they follow the rows of a batch that is split."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self, final

from torch import Tensor, nn

from sde_diffusion._check import kind_of, wrong_type, wrong_value
from sde_diffusion._shown import Size, as_call
from sde_diffusion.models.calls import check_call


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
        if labels.ndim and labels.shape != c.shape:
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
    samples leave it or by an evaluation of a whole data set, the rows go with their samples. What
    is the same for all samples is expanded: ``text.expand(len(x), -1, -1)``.

    Arguments:
        network: called as network(x, c, …), or with labels as the third.
        tensors: by the name of the argument; (B, …) each.

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
        if len(counts) != 1:
            raise wrong_value(
                "Conditioned",
                "tensors",
                "be one or more, all with one row for each sample",
                f"rows {sorted(counts)}",
                "expand what all samples share: tensor.expand(len(x), -1)",
            )
        self.count = counts.pop()
        self.train(network.training)  # its mode, which a new module would set

    def __repr__(self) -> str:
        given = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return as_call("Conditioned", {"network": Size(self.network), "tensors": given})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is filled in, by name."""
        return {name: self.get_buffer(f"given_{name}") for name in self.names}

    def rows(self, index: Tensor) -> Self:
        taken = {name: _taken("Conditioned", held, index) for name, held in self.tensors.items()}
        made = Conditioned(rows_of(self.network, index), taken)
        return made.train(self.training)

    def forward(self, x: Tensor, c: Tensor, *args: Tensor, **kwargs: Tensor) -> object:
        """Return network(x, c, …) with the tensors, and with labels if they are given."""
        if len(x) != self.count:
            raise wrong_value(
                "Conditioned",
                "x",
                f"have {self.count} samples, one a row of the tensors",
                f"{len(x)}",
                "pass as many, or model.rows(index) of the samples that they are",
            )
        try:
            return self.network(x, c, *args, **self.tensors, **kwargs)
        except TypeError as error:
            given = ("labels",) * len(args)
            words = ("x", "t", *given, *(f"{name}=" for name in (*self.names, *kwargs)))
            remedy = "name the arguments of its forward in the dictionary, and all of them"
            check_call("Conditioned", self.network, words, remedy, error)
            raise
