"""What a network that cannot be called as it was is told: its arguments, its precision."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from sde_diffusion._check import Reason, wrong_type

MORE: Final = (
    "pass labels=ClassLabels(…) where it takes classes, Conditioned(network, {name: tensor}) "
    "where it takes more, or a module of your own whose forward(x, t) calls it"
)
_METHODS: Final = {  # of a module, that give it another precision
    torch.float16: "half",
    torch.bfloat16: "bfloat16",
    torch.float32: "float",
    torch.float64: "double",
}


def check_failed(what: str, network: nn.Module, x: Tensor, error: Exception) -> None:
    """Refuse a network that failed at (x, t) for its arguments or for its precision.

    Arguments:
        what: the model that called it.
        network: the network.
        x: the states that it was called with.
        error: what the call raised, of whatever cause.
    """
    if isinstance(error, TypeError):
        check_call(what, network, ("x", "t"), MORE, error)
    else:
        check_precision(what, network, x, error)


def check_call(
    what: str, network: nn.Module, words: Sequence[str], remedy: str, error: TypeError
) -> None:
    """Refuse a network whose ``forward`` does not take what it was called with.

    Arguments:
        what: the wrapper that called it.
        network: the network.
        words: what it was called with: "x" and "t" by place, "y=" by name.
        remedy: what to pass instead.
        error: what the call raised, of whatever cause.
    """
    named = {word[:-1]: None for word in words if word.endswith("=")}
    placed = [None for word in words if not word.endswith("=")]
    try:
        inspect.signature(network.forward).bind(*placed, **named)
    except TypeError as unbound:
        kind = type(network).__name__
        rule = f"take ({', '.join(words)}) in its forward"
        got = Reason(f"{kind}: {unbound}")
        raise wrong_type(what, "network", rule, got, remedy) from error
    except ValueError:  # a forward that tells no signature
        return


def check_precision(what: str, network: nn.Module, x: Tensor, error: Exception) -> None:
    """Refuse weights of another precision than the states, where torch's error is of types.

    Arguments:
        what: the model that called it.
        network: the network.
        x: the states that it was called with.
        error: what the call raised, of whatever cause.
    """
    if "type" not in str(error):
        return
    held = (*network.parameters(), *network.buffers())
    kinds = {tensor.dtype for tensor in held if tensor.is_floating_point()}
    others = sorted(map(str, kinds - {x.dtype}))
    if others:
        rule = f"have weights and conditions of the states' {x.dtype}"
        remedy = f"call model.{_METHODS[x.dtype]}()"
        if len(kinds) == 1:  # states may follow
            remedy += f", or pass dtype={others[0]} to sample, and such states elsewhere"
        raise wrong_type(what, "network", rule, ", ".join(others), remedy) from error
    least = torch.promote_types(x.dtype, torch.float32)
    if kinds and least != x.dtype:
        rule = f"take times of {least} beside states of {x.dtype}"
        remedy = "write t.to(x.dtype) in its forward, or call model.float() for float32 states"
        raise wrong_type(what, "network", rule, Reason(error), remedy) from error
