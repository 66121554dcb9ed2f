"""Patches of a sample as tokens, and back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion._check import wrong_type, wrong_value


def grid_of(axes: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Return the number of patches along each axis, the last of which may stand out."""
    return tuple(-(-n // p) for n, p in zip(axes, patch, strict=True))


def tokens_of(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Return the patches as rows, channels first in each; zeros fill the last of an axis.

    Shapes: x (B, C, *axes); result (B, N, C · ∏ patch), the last axis of the grid first.

    >>> tokens_of(torch.arange(6.0).reshape(1, 1, 2, 3), (1, 2)).tolist()
    [[[0.0, 1.0], [2.0, 0.0], [3.0, 4.0], [5.0, 0.0]]]
    """
    grid = grid_of(x.shape[2:], patch)
    missing = [n * p - size for n, p, size in zip(grid, patch, x.shape[2:], strict=True)]
    x = F.pad(x, [part for m in reversed(missing) for part in (0, m)])
    sides = [size for pair in zip(grid, patch, strict=True) for size in pair]
    x = x.reshape(*x.shape[:2], *sides)
    of_grid = range(2, 2 + 2 * len(patch), 2)
    of_patch = range(3, 3 + 2 * len(patch), 2)
    return x.permute(0, *of_grid, 1, *of_patch).reshape(x.shape[0], prod(grid), -1)


def samples_of(tokens: Tensor, patch: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Return the samples whose patches are the tokens, without what stands out.

    Shapes: tokens (B, N, C · ∏ patch); result (B, C, *axes).

    >>> x = torch.arange(30.0).reshape(1, 2, 3, 5)
    >>> torch.equal(samples_of(tokens_of(x, (2, 2)), (2, 2), (3, 5)), x)
    True
    """
    grid = grid_of(axes, patch)
    x = tokens.reshape(len(tokens), *grid, -1, *patch)
    dims = len(patch)
    pairs = [place for i in range(dims) for place in (1 + i, 2 + dims + i)]
    whole = [n * p for n, p in zip(grid, patch, strict=True)]
    x = x.permute(0, 1 + dims, *pairs).reshape(len(tokens), -1, *whole)
    for axis, size in enumerate(axes):
        x = x.narrow(2 + axis, 0, size)
    return x.contiguous()


def inside(x: Tensor, sizes: Tensor) -> Tensor:
    """Return where each sample is, of a batch of samples that fill their first places.

    Shapes: x (B, C, *axes); sizes (B, axes), integers; result (B, 1, *axes), bool.
    Errors: TypeError or ValueError for sizes that are none of samples in x.
    """
    axes = x.shape[2:]
    example = f"pass for example torch.full((len(x), {len(axes)}), {axes[0]})"
    if not isinstance(sizes, Tensor) or sizes.is_floating_point() or sizes.dtype == torch.bool:
        got = str(sizes.dtype) if isinstance(sizes, Tensor) else type(sizes).__name__
        raise wrong_type("DiT", "sizes", "be a tensor of integers", got, example)
    if sizes.shape != (len(x), len(axes)):
        rule = f"have shape {(len(x), len(axes))} for this x"
        raise wrong_value("DiT", "sizes", rule, tuple(sizes.shape), example)
    most = torch.tensor(axes, device=sizes.device)
    if sizes.device.type == "cpu" and not bool(((sizes >= 1) & (sizes <= most)).all()):
        rule = f"lie in 1 … {tuple(axes)}"
        got = f"values from {int(sizes.min())} to {int(sizes.max())}"
        raise wrong_value("DiT", "sizes", rule, got, example)
    there = torch.ones(len(x), 1, *axes, dtype=torch.bool, device=x.device)
    for axis, size in enumerate(axes):
        ends = sizes[:, axis].to(x.device).reshape(-1, *[1] * (1 + len(axes)))
        places = torch.arange(size, device=x.device)
        there = there & (places.reshape(-1, *[1] * (len(axes) - 1 - axis)) < ends)
    return there
