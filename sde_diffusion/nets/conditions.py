"""What a network is given beside the noise level and the class: vectors, images, texts, tokens.

Every condition is a tensor with a row for each sample, and every kind has a value for nothing: −1
in tensors of integers, as for labels, and NaN in those of floats. A row of nothing is what label
dropout trains and guidance is pushed away from; part of a row may be nothing too: the end of a
short text, the pixels of an image that are not known, tokens that are masked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import Reason, a_function, wrong_type, wrong_value

BYTES: Final = 256
Encoder: TypeAlias = Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # tokens and their mask


def nothing(like: Tensor) -> float:
    """Return the value that means nothing in a tensor of this dtype.

    >>> nothing(torch.zeros(1)), nothing(torch.zeros(1, dtype=torch.int64))
    (nan, -1)
    """
    return math.nan if like.is_floating_point() else -1


def bytes_of(texts: Sequence[str]) -> Tensor:
    """Return texts in UTF-8, a byte a token, −1 behind the end; (n, bytes of the longest).

    >>> bytes_of(["ab", "a"]).tolist()
    [[97, 98], [97, -1]]
    """
    coded = [text.encode() for text in texts]
    longest = max(map(len, coded), default=0)
    rows = [[*code, *[-1] * (longest - len(code))] for code in coded]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(coded), longest)


def context_of(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Return the tokens of an encoder of another program, as ``context`` takes them.

    Arguments:
        encoder: texts to their tokens (B, L, D), and which of them count, bool (B, L).
        texts: one for each sample, or one for all.

    Shapes: result (B, L, D), NaN where a token does not count.
    Errors: TypeError or ValueError for an encoder that returns something else.

    >>> import torch
    >>> letters = lambda texts: (torch.ones(1, 2, 1), torch.tensor([[True, False]]))
    >>> context_of(letters, ["a"]).tolist()
    [[[1.0], [nan]]]
    """
    a_function("context_of", "encoder", encoder, "texts -> (tokens, mask)", "pass a function")
    tokens, mask = encoder(texts)
    remedy = "return (tokens, mask) of it"
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or len(tokens) != len(texts):
        rule = f"return tokens of shape ({len(texts)}, L, D)"
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise wrong_value("context_of", "encoder", rule, got, remedy)
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape[:2]:
        rule = f"return a mask of shape {tuple(tokens.shape[:2])}"
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise wrong_value("context_of", "encoder", rule, got, remedy)
    return tokens.where(mask.bool()[:, :, None], math.nan)


@dataclass(frozen=True)
class Condition(ABC):
    """A kind of condition, and how large it is.

    Arguments:
        size: what the network was built for.
    """

    size: int

    @property
    @abstractmethod
    def example(self) -> str:
        """What may be passed, as Python."""

    @abstractmethod
    def shape(self, axes: Sequence[int | str]) -> tuple[int | str, ...]:
        """Return the shape of a row, for samples of these axes; letters stand for any size."""

    @abstractmethod
    def rows(self, value: object) -> Tensor:
        """Return the tensor of what a user passes, with one row for all samples or one each.

        Errors: TypeError or ValueError, by name, for what is none of this kind.
        """

    @final
    def check(self, what: str, name: str, value: Tensor, x: Tensor) -> None:
        """Refuse what is no tensor with one row of this kind for each sample of x.

        Arguments:
            what: the network, for the error.
            name: of the condition.
            value: the tensor.
            x: the states; (B, C, *axes).
        """
        shape = (len(x), *self.shape(x.shape[2:]))
        if not isinstance(value, Tensor):
            got = type(value).__name__
            raise wrong_type(what, name, "be a tensor", got, f"pass {name}={self.example}")
        pairs = zip(shape, value.shape, strict=False)
        if value.ndim != len(shape) or any(isinstance(n, int) and n != m for n, m in pairs):
            rule = f"have shape ({', '.join(map(str, shape))}) for this x"
            raise wrong_value(what, name, rule, tuple(value.shape), f"pass {name}={self.example}")


@final
class Text(Condition):
    """A text of at most ``size`` bytes; (n, size), of bytes and −1 behind the end."""

    @property
    def example(self) -> str:
        return "'three seven'"

    def shape(self, axes: Sequence[int | str]) -> tuple[int | str, ...]:  # noqa: ARG002
        return (self.size,)

    def rows(self, value: object) -> Tensor:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts):
            self._check_lengths(texts)
            found = bytes_of(texts)
        else:
            found = _tensor("text", texts, 2, "pass a text, or a list of them")
            self._check_tokens(found)
        return torch.nn.functional.pad(found.long(), (0, self.size - found.shape[1]), value=-1)

    def _check_lengths(self, texts: Sequence[str]) -> None:
        for text in texts:
            count = len(text.encode())
            if count > self.size:
                rule = f"have at most the {self.size} bytes that the network takes"
                got = Reason(f"{count} bytes, {text[:40]!r}")
                remedy = f"shorten it, or train a network with text={count}"
                raise wrong_value("condition", "text", rule, got, remedy)

    def _check_tokens(self, tokens: Tensor) -> None:
        remedy = "pass a text, which is encoded for you"
        if tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise wrong_type("condition", "text", "hold bytes", str(tokens.dtype), remedy)
        if tokens.shape[1] > self.size:
            rule = f"have at most the {self.size} bytes that the network takes"
            got = f"{tokens.shape[1]}"
            remedy = f"shorten it, or train a network with text={tokens.shape[1]}"
            raise wrong_value("condition", "text", rule, got, remedy)
        wrong = tokens[(tokens < -1) | (tokens >= BYTES)]
        if len(wrong):
            rule = f"hold bytes 0 … {BYTES - 1}, or −1 behind the end"
            raise wrong_value("condition", "text", rule, int(wrong[0]), remedy)


@final
class Vector(Condition):
    """``size`` real numbers, of which NaN are not known; (n, size)."""

    @property
    def example(self) -> str:
        return f"torch.zeros(1, {self.size})"

    def shape(self, axes: Sequence[int | str]) -> tuple[int | str, ...]:  # noqa: ARG002
        return (self.size,)

    def rows(self, value: object) -> Tensor:
        found = _floats("vector", value, 2, f"pass vector={self.example}")
        if found.shape[1] != self.size:
            rule = f"have shape (n, {self.size})"
            remedy = f"pass vector={self.example}"
            raise wrong_value("condition", "vector", rule, tuple(found.shape), remedy)
        return found


@final
class Picture(Condition):
    """Channels beside those of the state, of which NaN are not known; (n, size, *axes)."""

    @property
    def example(self) -> str:
        return f"torch.zeros(len(x), {self.size}, *x.shape[2:])"

    def shape(self, axes: Sequence[int | str]) -> tuple[int | str, ...]:
        return (self.size, *axes)

    def rows(self, value: object) -> Tensor:
        remedy = f"pass image={self.example}"
        found = _floats("image", value, None, remedy)
        if found.ndim < 3 or found.shape[1] != self.size:
            rule = f"have shape (n, {self.size}, …)"
            raise wrong_value("condition", "image", rule, tuple(found.shape), remedy)
        return found


@final
class Context(Condition):
    """Tokens of ``size`` numbers from another encoder; (n, L, size), masked ones NaN."""

    @property
    def example(self) -> str:
        return f"torch.zeros(len(x), 1, {self.size})"

    def shape(self, axes: Sequence[int | str]) -> tuple[int | str, ...]:  # noqa: ARG002
        return ("L", self.size)

    def rows(self, value: object) -> Tensor:
        remedy = f"pass context={self.example}"
        found = _floats("context", value, 3, remedy)
        if found.shape[2] != self.size:
            rule = f"have shape (n, L, {self.size})"
            raise wrong_value("condition", "context", rule, tuple(found.shape), remedy)
        return found


KINDS: Final[Mapping[str, type[Condition]]] = {
    "vector": Vector,
    "image": Picture,
    "text": Text,
    "context": Context,
}


class ConditionalNetwork(nn.Module, ABC):
    """A network that takes conditions by name, and learns what to do without: None or nothing."""

    config: dict[str, Any]

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401  (each its own)
        """Return the output for states x, noise levels c, labels and conditions by name."""

    @property
    def conditions(self) -> dict[str, Condition]:
        """The conditions that the network takes, by name, as its ``config`` sizes them."""
        sizes = {name: self.config.get(name) for name in KINDS}
        return {name: KINDS[name](size) for name, size in sizes.items() if size}

    def check_given(self, x: Tensor, **given: Tensor | None) -> None:
        """Refuse conditions that the network does not take, or of another shape."""
        what = type(self).__name__
        known = self.conditions
        for name, value in given.items():
            if value is None:
                continue
            if name not in known:
                rule = f"be None for a network without {name}"
                remedy = f"build the network with {what}(…, {name}=8)"
                raise wrong_value(what, name, rule, name, remedy)
            known[name].check(what, name, value, x)


def _tensor(name: str, value: object, ndim: int | None, remedy: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise wrong_type("condition", name, "be a tensor", type(value).__name__, remedy)
    if ndim is not None and value.ndim != ndim:
        rule = f"have {ndim} axes, the first of them for samples"
        raise wrong_value("condition", name, rule, tuple(value.shape), remedy)
    return value


def _floats(name: str, value: object, ndim: int | None, remedy: str) -> Tensor:
    found = _tensor(name, value, ndim, remedy)
    if not found.is_floating_point():
        rule = "hold floating-point numbers"
        raise wrong_type("condition", name, rule, str(found.dtype), remedy)
    return found
