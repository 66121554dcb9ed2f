"""What an evaluation of a network costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the floating-point operations of one call on one sample, 2 a multiplication.

    Those of matrix products, convolutions and attention are counted, of which nearly all consist.
    The network is called once, as network(x, c), on zeros.

    Shapes: shape that of a sample, without the batch.

    >>> from sde_diffusion.nets import MLP
    >>> flops(MLP(2, width=16, depth=1), (2,))
    2688
    """
    like = next(network.parameters())
    x = torch.zeros(1, *shape, device=like.device, dtype=like.dtype)
    counter = _Counter()
    with torch.no_grad(), counter:
        network(x, x.new_zeros(1))
    return 2 * counter.products


@final
class _Counter(TorchFunctionMode):
    """Counts the multiplications that go into sums."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            self.products += _PRODUCTS[func](args[0], args[1], out)
        return out


def _of_weights(_: Tensor, weight: Tensor, out: Tensor) -> int:
    return out.numel() * weight[0].numel()


def _of_rows(left: Tensor, _: Tensor, out: Tensor) -> int:
    return out.numel() * left.shape[-1]


def _of_attention(q: Tensor, k: Tensor, _: Tensor) -> int:
    return 2 * q.numel() * k.shape[-2]  # q kᵀ, and the weights times v


# (first argument, second, result) -> multiplications
_PRODUCTS: Final[Mapping[Any, Callable[[Tensor, Tensor, Tensor], int]]] = {
    F.linear: _of_weights,
    F.conv1d: _of_weights,
    F.conv2d: _of_weights,
    F.conv3d: _of_weights,
    torch.matmul: _of_rows,
    Tensor.matmul: _of_rows,
    Tensor.__matmul__: _of_rows,
    F.scaled_dot_product_attention: _of_attention,
}
