"""Layers whose weights come from an explicit generator, and the checks that networks share.

PyTorch's own constructors draw from the global generator; ``skip_init`` keeps them from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Final, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion.nets._norm import normalised

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
AXES: Final = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}  # of a sample, by their number
_CONVOLUTIONS: Final = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# Where new weights lie: on the CPU, where the generator is, whatever the default device.
_HOME: Final = ContextVar("home", default="cpu")


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Build networks without memory: on the meta device, where weights have no values."""
    token = _HOME.set("meta")
    try:
        yield
    finally:
        _HOME.reset(token)


def home() -> torch.device:
    """Return the device on which new weights lie: the CPU, or "meta" in `shapes_alone`."""
    return torch.device(_HOME.get())


def keep_freed_memory() -> None:
    """Have the C library keep up to 64 MB of freed memory for the process.

    By default glibc returns large blocks, and each one that a layer needs then costs a fault for
    every page: a tenth of a training step. The largest block freed so far, up to 32 MB, sets the
    limit.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")


def conv(
    inputs: int,
    outputs: int,
    generator: torch.Generator | None,
    *,
    kernel: int = 3,
    strides: Sequence[int] = (1, 1),
) -> Convolution:
    """Return a convolution whose output has the size of its input over the strides, rounded up.

    Arguments:
        inputs: channels in.
        outputs: channels out.
        generator: of the weights; None makes weights and bias 0.
        kernel: side of the kernel, in pixels; odd.
        strides: pixels of the input between two of the output, along each axis.
    """
    layer: Convolution = skip_init(  # type: ignore[no-untyped-call]
        _CONVOLUTIONS[len(strides)],
        inputs,
        outputs,
        kernel,
        stride=tuple(strides),
        padding=kernel // 2,
        device=home(),
    )
    _fill(layer.weight, layer.bias, generator)
    return layer


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: int = 0,
    strides: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """Return the convolution of x along as many axes as the weight has.

    Arguments:
        x: series, images or volumes; (B, inputs, *axes).
        weight: (outputs, inputs/groups, *kernel).
        bias: (outputs,), or None.
        padding: zeros at both ends of every axis.
        strides: pixels of the input between two of the output, along each axis or along all.
        groups: of channels, convolved apart.
    """
    along: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
    return along[weight.ndim](x, weight, bias, tuple(strides), padding, 1, groups)


def linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    """Return a linear map; a ``generator`` of None makes weights and bias 0."""
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs, device=home())  # type: ignore[no-untyped-call]
    _fill(layer.weight, layer.bias, generator)
    return layer


def vectors(rows: int, width: int, generator: torch.Generator) -> nn.Embedding:
    """Return a table of standard normal vectors."""
    weight = torch.empty(rows, width, device=home())
    if not weight.is_meta:
        nn.init.normal_(weight, generator=generator)
    # Its own constructor would draw, and on "meta" import the compiler for it: seconds.
    made: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
    return made


@final
class GroupNorm(nn.GroupNorm):
    """A group norm that is fast, and differentiates every way, in any memory layout."""

    def forward(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """Return x with mean 0 and variance 1 in every group, times the weight, plus the bias.

        Arguments:
            x: all channels, or a range of them of whole groups; (B, channels, *axes).
            weight: None for the module's own; (channels,) or (B, channels).
            bias: None for the module's own; (channels,) or (B, channels).
            first: index of the first channel of x among all.
        """
        weight = self.weight if weight is None else weight
        bias = self.bias if bias is None else bias
        if x.shape[1] < self.num_channels:
            weight, bias = (part.narrow(0, first, x.shape[1]) for part in (weight, bias))
        return normalised(x, x.shape[1] * self.num_groups // self.num_channels, weight, bias)


def group_norm(channels: int, *, affine: bool) -> GroupNorm:
    """Return a group norm: at most 32 groups, and 4 channels or more in each."""
    most = max(1, min(32, channels // 4))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return GroupNorm(groups, channels, affine=affine)


def _fill(weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
    """Draw weights of variance 1/inputs, which keep the variance of what passes through."""
    if weight.is_meta:
        return
    bound = (3 / prod(weight.shape[1:])) ** 0.5
    if generator is None:
        nn.init.zeros_(weight)
    else:
        nn.init.uniform_(weight, -bound, bound, generator=generator)
    if bias is not None:
        nn.init.zeros_(bias)


def check_dropout(what: str, dropout: float) -> None:
    """Refuse a probability outside [0, 1)."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise wrong_type(what, "dropout", "be a number", dropout, "pass dropout=0.1")
    if not 0 <= dropout < 1:
        raise wrong_value(what, "dropout", "be in [0, 1)", dropout, "pass dropout=0.1")


def check_seed(what: str, seed: int) -> None:
    """Refuse a seed that is not an integer of at least 0."""
    positive_integer(what, "seed", seed, least=0)


def check_input(what: str, x: Tensor, event: tuple[int | str, ...], weight: Tensor) -> None:
    """Refuse a state that is not (B, *event), or not of the weights' dtype.

    Arguments:
        what: the network, for the error.
        x: the state.
        event: its sizes; a letter stands for any size of at least 1.
        weight: a parameter of the network, for its dtype.
    """
    if not isinstance(x, Tensor):
        raise wrong_type(
            what, "x", "be a torch.Tensor", type(x).__name__, "use torch.as_tensor(x)"
        )
    sizes = zip(event, x.shape[1:], strict=False)
    fits = all(n >= 1 if isinstance(size, str) else n == size for size, n in sizes)
    if x.ndim != len(event) + 1 or not fits:
        rule = f"have shape (B, {', '.join(map(str, event))})"
        remedy = "reshape it, or build the network for this data"
        raise wrong_value(what, "x", rule, tuple(x.shape), remedy)
    if x.dtype == weight.dtype:
        return
    # Under autocast the layers convert, so any floating-point input goes.
    if not (torch.is_autocast_enabled(x.device.type) and x.is_floating_point()):
        raise wrong_type(
            what,
            "x",
            f"have the weights' dtype {weight.dtype}",
            str(x.dtype),
            f"convert it with x.to({weight.dtype}), or the network with .to({x.dtype})",
        )


def check_condition(
    what: str,
    x: Tensor,
    c: Tensor,
    labels: Tensor | None,
    classes: int | None,
    times: int = 1,
) -> None:
    """Refuse a conditioning that is not one number, and at most one known class, per sample.

    Arguments:
        what: the network, for the error.
        x: the state, for its batch size; (B, *event).
        c: the noise level; (B,), or (B, 2) for a network of two times.
        labels: classes of the samples, int64, −1 for no class; (B,), or None for no classes.
        classes: how many the network knows; None for a network without.
        times: how many numbers the network takes for each sample, 1 or 2.
    """
    batch = (x.shape[0],)
    shape = batch if times == 1 else (*batch, times)
    if not isinstance(c, Tensor) or not c.is_floating_point():
        got = str(c.dtype) if isinstance(c, Tensor) else type(c).__name__
        raise wrong_type(
            what, "c", "be a floating-point tensor", got, "pass one number per sample"
        )
    if c.shape != shape:
        remedy = "pass one number per sample, for example c.expand(len(x))"
        if times == 2:
            remedy = "pass the two times of a step, or build the network with times=1"
        raise wrong_value(what, "c", f"have shape {shape} for this x", tuple(c.shape), remedy)
    if labels is not None:
        _check_labels(what, labels, batch, classes)


def _check_labels(what: str, labels: Tensor, batch: tuple[int, ...], classes: int | None) -> None:
    if classes is None:
        raise wrong_value(
            what,
            "labels",
            "be None for a network without classes",
            "labels",
            f"build the network with {what}(…, classes=10)",
        )
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = str(labels.dtype) if isinstance(labels, Tensor) else type(labels).__name__
        raise wrong_type(what, "labels", "be an int64 tensor", got, "convert with labels.long()")
    if labels.shape != batch:
        rule = f"have shape {batch} for this x"
        remedy = "pass one label per sample, −1 for none"
        raise wrong_value(what, "labels", rule, tuple(labels.shape), remedy)
    # Only on the CPU: reading them would wait for a GPU, whose table lookup refuses them itself.
    if labels.device.type == "cpu" and not bool(((labels >= -1) & (labels < classes)).all()):
        low, high = int(labels.min()), int(labels.max())
        rule = f"lie in 0 … {classes - 1}, or be −1 for no class"
        raise wrong_value(
            what, "labels", rule, f"values from {low} to {high}", "map the labels to 0, 1, …"
        )
