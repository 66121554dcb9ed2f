"""Products with the Jacobian of a velocity, in reverse and in forward mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from sde_diffusion._check import wrong_type

_CHANGED: Final = "a tensor that the derivative needs was changed in place"

# What torch says where an operator, a user's autograd.Function or, on channels_last tensors, a
# group norm has no forward mode.
_NO_FORWARD_MODE: Final = ("forward AD", "functorch transforms", "view size is not compatible")

Velocity = Callable[[Tensor], Tensor]


@final
class Graph:
    """The velocity at x with its graph, for products with the Jacobian in reverse mode.

    Arguments:
        what: the class that asks, for the error.
        velocity: v of x at one time.
        x: the state; (B, *event).
        create_graph: whether the products have a graph themselves.
    """

    def __init__(self, what: str, velocity: Velocity, x: Tensor, create_graph: bool) -> None:
        self.what = what
        self.create_graph = create_graph
        leaf = _leaf(x, create_graph)
        with _tracking():
            self.x = leaf if leaf.requires_grad else leaf.requires_grad_()
            self.v = velocity(self.x)
        if not self.v.requires_grad:
            raise _no_derivative(what)

    def products(self, vectors: Tensor, *, last: bool = False) -> Tensor:
        """Return uᵀJ for every u: (K, B, *event) → (K, B, *event).

        They are formed together where torch can. Some of its rules cannot, such as that of a
        group norm on channels_last tensors; then one after another, which takes as long.
        """
        if len(vectors) > 1:
            with suppress(RuntimeError):  # another one comes again below
                return self._gradient(vectors, batched=True, retain=True)
        one_by_one = [
            self._gradient(u, batched=False, retain=i + 1 < len(vectors) or not last)
            for i, u in enumerate(vectors)
        ]
        return torch.stack(one_by_one)

    def _gradient(self, u: Tensor, *, batched: bool, retain: bool) -> Tensor:
        with _tracking():
            found = torch.autograd.grad(
                self.v,
                self.x,
                u,
                is_grads_batched=batched,
                retain_graph=self.create_graph or retain,
                create_graph=self.create_graph,
                allow_unused=True,
            )[0]
        if found is None:
            raise _no_derivative(self.what)
        return found


def forward_mode(
    what: str, velocity: Velocity, x: Tensor, vectors: Tensor, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """Return v and J u for every u: (B, *event), (K, B, *event).

    Arguments:
        what: the class that asks, for the error.
        velocity: v of x at one time.
        x: the state; (B, *event).
        vectors: the vectors u; (K, B, *event).
        create_graph: whether both have a graph.
    """

    def checked(x: Tensor) -> Tensor:
        v = velocity(x)
        if forward_ad.unpack_dual(v).tangent is None:  # type: ignore[no-untyped-call]
            raise _no_derivative(what)
        return v

    _load_forward_mode()
    leaf = _leaf(x, create_graph)
    with _tracking() if create_graph else torch.no_grad():

        def product(u: Tensor) -> tuple[Tensor, Tensor]:
            try:
                found = torch.func.jvp(checked, (leaf,), (u,))
            except RuntimeError as error:
                if any(words in str(error) for words in _NO_FORWARD_MODE):
                    raise _no_forward_mode(what, error) from error
                raise
            return found[0], found[1]

        if len(vectors) > 1:
            with suppress(RuntimeError):
                outs: Any = (None, 0)  # which torch's annotation does not know
                v, found = torch.vmap(product, out_dims=outs)(vectors)
                return v, found
        pairs = [product(u) for u in vectors]
        return pairs[0][0], torch.stack([found for _, found in pairs])


def _no_forward_mode(what: str, error: Exception) -> TypeError:
    return wrong_type(
        what,
        "velocity",
        "have derivatives in forward mode",
        str(error).splitlines()[0],
        "pass mode='reverse', or --mode reverse on the command line",
    )


@cache
def _load_forward_mode() -> None:
    """Let torch load its rules for forward mode, which warns of torch's own compiler."""
    one = torch.ones(())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        torch.func.jvp(torch.sin, (one,), (one,))


@contextmanager
def _tracking() -> Iterator[None]:
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


@contextmanager
def measured() -> Iterator[dict[int, int]]:
    """Yield the bytes of every storage that the graph made inside keeps, less the parameters'."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> tuple[Tensor, int]:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach(), tensor._version  # not the tensor: a cycle, never collected

    def restore(kept: tuple[Tensor, int]) -> Tensor:
        tensor, version = kept
        if tensor._version != version:  # autograd leaves this check to its hooks
            raise RuntimeError(_CHANGED)
        return tensor

    with saved_tensors_hooks(keep, restore):
        yield sizes


def _leaf(x: Tensor, create_graph: bool) -> Tensor:
    """Return x itself where its graph is asked for, and else a copy without one."""
    # Without gradients, as in the forward of an autograd.Function, x has no graph to join.
    if create_graph and x.requires_grad and torch.is_grad_enabled():
        return x
    with torch.inference_mode(mode=False):
        return x.detach().clone()


def _no_derivative(what: str) -> TypeError:
    return wrong_type(
        what, "velocity", "be differentiable in x", "a detached tensor", "remove no_grad or detach"
    )
