"""Networks that were made for another program, called as ours: network(x, t), labels −1 for none.

Each convention of time is a class: the index k of a DDPM, the noise sigma/alpha of a denoiser, or
any function of t. What the output means is the `ScoreModel`'s ``prediction``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import (
    Reason,
    a_function,
    kind_of,
    positive_integer,
    positive_number,
    wrong_type,
    wrong_value,
)
from sde_diffusion._tensors import expand
from sde_diffusion.models.calls import MORE, check_call
from sde_diffusion.models.conditioned import Enclosing, around, rows_of
from sde_diffusion.scores import tensor_in
from sde_diffusion.sde import LinearSDE

NULL: Final = "pass null= the label that means none to it, to ClassLabels or for a folder to load"
_NEAR: Final = 1e-3  # of an index: float32 has t = k/N to 6e-8, which is 6e-5 of 1000


@final
@dataclass(frozen=True)
class ClassLabels:
    """How a network takes class labels.

    Arguments:
        count: the number of classes, without the null class.
        null: the label that means none to the network; None if it knows no such label.
        keyword: the argument's name in the network's ``forward``; None if it is the third.

    Errors: TypeError or ValueError for numbers that are none of a class.

    >>> ClassLabels(1000, null=1000, keyword="y").null
    1000
    """

    count: int
    null: int | None = None
    keyword: str | None = None

    def __post_init__(self) -> None:
        positive_integer("ClassLabels", "count", self.count)
        if self.null is not None:
            positive_integer("ClassLabels", "null", self.null, least=0)
        if self.keyword is not None and not isinstance(self.keyword, str):
            remedy = "pass the name of the network's argument, such as keyword='y'"
            raise wrong_type("ClassLabels", "keyword", "be a name", self.keyword, remedy)

    def call(self, network: nn.Module, x: Tensor, c: Tensor, labels: Tensor | None) -> object:
        """Return network(x, c, labels), with the network's own label for none.

        Arguments:
            network: the network itself.
            x: what it takes for the state, (B, *event).
            c: what it takes for the time, (B,).
            labels: one a sample, −1 for none; (B,), or None for none at all.
        """
        if labels is None:
            labels = torch.full((len(x),), -1, device=x.device)
        if self.null is not None:
            labels = torch.where(labels < 0, self.null, labels)
        elif bool((labels < 0).any()):
            raise wrong_value(
                "ClassLabels",
                "labels",
                f"be classes 0 … {self.count - 1}, of a network without a null class",
                "the label -1, for none",
                f"call model.given(labels), or {NULL}",
            )
        try:
            if self.keyword is None:
                return network(x, c, labels)
            return network(x, c, **{self.keyword: labels})
        except TypeError as error:
            words = ("x", "t", "labels" if self.keyword is None else f"{self.keyword}=")
            remedy = "pass ClassLabels(…, keyword=…) with the name of its argument"
            check_call("ClassLabels", network, words, remedy, error)
            raise
        except IndexError as error:
            if "out of range" not in str(error):  # of a table of classes
                raise
            rule = "be rows of the network's table of classes"
            got = Reason(f"{int(labels.min())} … {int(labels.max())}: {error}")
            remedy = "pass ClassLabels(count, null) of that table"
            raise wrong_value("ClassLabels", "labels", rule, got, remedy) from error


class Wrapped(Enclosing, ABC):
    """A network of another convention, called as ours.

    Arguments:
        network: the other network, called as network(x, c) or with labels.
        labels: how it takes class labels; None for one that takes none.
    """

    def __init__(self, network: nn.Module, labels: ClassLabels | None = None) -> None:
        super().__init__()
        what = type(self).__name__
        if not isinstance(network, nn.Module):
            raise wrong_type(
                what,
                "network",
                "be a torch.nn.Module",
                type(network).__name__,
                "wrap your function in a Module",
            )
        if labels is not None and not isinstance(labels, ClassLabels):
            raise wrong_type(
                what, "labels", "be ClassLabels or None", labels, "pass ClassLabels(1000)"
            )
        self.network = network
        self.labels = labels

    @property
    def config(self) -> dict[str, int | None]:
        """The number of classes, where a `ScoreModel` looks for it."""
        return {"classes": None if self.labels is None else self.labels.count}

    def rows(self, index: Tensor) -> Self:
        made: Self = around(self, rows_of(self.network, index))
        return made

    @abstractmethod
    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network takes for the state x and for the time t."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> object:
        """Return the network's output at the state x and the time t of the SDE.

        Shapes: x (B, *event), t (B,), labels (B,) or None.
        """
        y, c = self.inputs(x, t)
        try:
            if self.labels is not None:
                return self.outputs(self.labels.call(self.network, y, c, labels))
            return self.outputs(self.network(y, c))
        except TypeError as error:
            if self.labels is None:
                check_call("ScoreModel", self.network, ("x", "t"), MORE, error)
            raise
        except (RuntimeError, IndexError) as error:
            _check_index(c, error)
            raise

    def outputs(self, output: object) -> object:
        """Return the output in the sign that the prediction has here."""
        return output


def _check_index(c: Tensor, error: Exception) -> None:
    """Refuse fractions for a network that looks its time up in a table, as torch's error says."""
    if c.is_floating_point() and "long" in str(error).lower():
        rule = "be torch.long for a network that looks its timesteps up"
        remedy = "pass dtype=torch.long to from_timesteps"
        raise wrong_type("ScoreModel", "dtype", rule, str(c.dtype), remedy) from error


@final
class AtTimesteps(Wrapped):
    """A network of the DDPM's index: network(x, k), k = tN − 1 in [0, N − 1] for t in [1/N, 1].

    The chain of betas β_1 … β_N has its state x_i at t = i/N, and programs count its steps from
    0: k = i − 1. Between the times of the lattice k is a fraction, as sinusoidal embeddings take
    it; below t = 1/N, where nothing was trained, it stays 0.

    Arguments:
        network: called as network(x, k).
        steps: N, the number of betas.
        labels: how it takes class labels; None for one that takes none.
        dtype: of k at least; torch.long rounds it to the nearest index, for a network with a
            table of them.
        timesteps: what the network calls the steps 0 … N − 1, such as the map of a respaced
            chain; (N,). Between them they go in straight lines. None where it is their index.

    Shapes: x (B, *event), t (B,); k (B,).
    Errors: TypeError or ValueError for numbers that are none of timesteps.
    Source: Ho et al. 2020; Song et al. 2021, appendix B, for i = tN.

    >>> class Index(nn.Module):
    ...     def forward(self, x, k):
    ...         return k
    >>> AtTimesteps(Index(), 1000)(torch.zeros(3, 1), torch.tensor([0.001, 0.5, 1.0])).tolist()
    [0.0, 499.0, 999.0]
    """

    def __init__(
        self,
        network: nn.Module,
        steps: int,
        labels: ClassLabels | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        timesteps: Tensor | None = None,
    ) -> None:
        super().__init__(network, labels)
        positive_integer("AtTimesteps", "steps", steps)
        if not isinstance(dtype, torch.dtype):
            remedy = "pass dtype=torch.long, or leave it out"
            raise wrong_type("AtTimesteps", "dtype", "be one of torch", kind_of(dtype), remedy)
        self.steps = steps
        self.dtype = dtype
        self.timesteps = None if timesteps is None else _checked(timesteps, steps)

    @property
    def t_min(self) -> float:
        """The chain's first time, 1/N."""
        return 1 / self.steps

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        k = t.double() * self.steps - 1
        near = k.round()
        # t = i/N in float32 is not exactly an index times 1/N.
        k = torch.where((k - near).abs() < _NEAR, near, k).clamp(0, self.steps - 1)
        if not self.dtype.is_floating_point:
            return x, self._named(k.round()).round().to(self.dtype)
        return x, self._named(k).to(torch.promote_types(self.dtype, t.dtype))

    def _named(self, k: Tensor) -> Tensor:
        """Return what the network calls the index k."""
        if self.timesteps is None:
            return k
        known = self.timesteps.to(k.device)
        low = k.floor().long()
        high = (low + 1).clamp(max=self.steps - 1)
        return torch.lerp(known[low], known[high], k - low)


def _checked(timesteps: object, steps: int) -> Tensor:
    """Return the timesteps in float64."""
    if not isinstance(timesteps, Tensor):
        got = type(timesteps).__name__
        raise wrong_type(
            "AtTimesteps", "timesteps", "be a tensor", got, "pass torch.tensor(timesteps)"
        )
    if timesteps.shape != (steps,) or not bool((timesteps.diff() > 0).all()):
        rule = f"be {steps} rising numbers, one for each of the betas"
        raise wrong_value(
            "AtTimesteps",
            "timesteps",
            rule,
            f"{timesteps.flatten().tolist()[:4]} … of shape {tuple(timesteps.shape)}",
            "pass the map of the same chain, or leave it out",
        )
    return timesteps.detach().double()


def _check_time(time: object) -> None:
    """Refuse what is no function of t, or gives no time for each sample."""
    remedy = "pass for example time=lambda t: 999 * t"
    a_function("from_score", "time", time, "of t", remedy)
    found = time(torch.full((1,), 0.5, dtype=torch.float64)) if callable(time) else None
    if not isinstance(found, Tensor) or found.shape != (1,):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else kind_of(found)
        rule = "give a tensor with one number for each t"
        raise wrong_type("from_score", "time", rule, got, remedy)


def time_of_noise(sde: LinearSDE, s: float) -> float:
    """Return the time at which sigma/alpha is s, which is above 0."""
    return float(sde.time(torch.tensor(-math.log(s), dtype=torch.float64)))


@final
class AtNoise(Wrapped):
    """A denoiser E[x0 | y] = network(y, s) of y = x/alpha = x0 + s eps, s = sigma/alpha.

    Arguments:
        network: called as network(y, s).
        sde: the noise of the model.
        labels: how it takes class labels; None for one that takes none.
        sigma_min: the least s that it was trained for.

    Shapes: x (B, *event), t (B,); s (B,).
    Source: Karras et al. 2022, equation 1 and section 5.

    >>> class Level(nn.Module):
    ...     def forward(self, y, s):
    ...         return s
    >>> from sde_diffusion import EDMSDE
    >>> AtNoise(Level(), EDMSDE(80.0))(torch.zeros(1, 1), torch.tensor([0.5])).tolist()
    [40.0]
    """

    def __init__(
        self,
        network: nn.Module,
        sde: LinearSDE,
        labels: ClassLabels | None = None,
        *,
        sigma_min: float = 0.002,
    ) -> None:
        super().__init__(network, labels)
        positive_number("AtNoise", "sigma_min", sigma_min, "pass sigma_min=0.002")
        self.sde = sde
        self.sigma_min = sigma_min

    @property
    def t_min(self) -> float:
        """The time at which s is sigma_min."""
        return time_of_noise(self.sde, self.sigma_min)

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.sde.alpha(t.double())
        sigma = self.sde.sigma(t.double())
        return x / expand(alpha, x), (sigma / alpha).to(t.dtype)


@final
class AtTime(Wrapped):
    """A network of its own time: network(x, time(t)), such as 999t or the noise sigma(t).

    Arguments:
        network: called as network(x, c).
        time: c of the SDE's t, elementwise in float64; (B,) to (B,).
        labels: how it takes class labels; None for one that takes none.
        sign: −1 for a velocity that points from noise to data, else 1.
        t_min: the first time that it was trained for; None where that is not known.

    Shapes: x (B, *event), t (B,).
    """

    def __init__(
        self,
        network: nn.Module,
        time: Callable[[Tensor], Tensor],
        labels: ClassLabels | None = None,
        *,
        sign: int = 1,
        t_min: float | None = None,
    ) -> None:
        super().__init__(network, labels)
        _check_time(time)
        self.time = time
        self.sign = sign
        self.first = t_min

    @property
    def t_min(self) -> float | None:
        return super().t_min if self.first is None else self.first

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.time(t.double()).to(t.dtype)

    def outputs(self, output: object) -> object:
        found = tensor_in(output)
        return self.sign * found if isinstance(found, Tensor) else found
