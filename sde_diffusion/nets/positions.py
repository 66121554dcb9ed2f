"""Places of patches as vectors: sines of their coordinates, or rotations of queries and keys.

Both are functions of coordinates, so that a network takes any grid of patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

_LONGEST: Final = 1e4  # wavelength, in units of the shortest


def coordinates(grid: Sequence[int], like: Tensor) -> Tensor:
    """Return the indices of all places of a grid along each axis, the last axis first.

    They have the dtype of ``like``, at least float32.

    >>> coordinates((2, 2), torch.ones(1)).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    ranges = [torch.arange(n, dtype=dtype, device=like.device) for n in grid]
    return torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1).flatten(0, -2)


def sinusoids(at: Tensor, width: int) -> Tensor:
    """Return cos(ω_k a) for all k and then sin(ω_k a), ω_k = 10⁴^(−k/pairs), axis after axis.

    Every axis has pairs = width // (2 axes); what is left over is 0.

    Shapes: at (N, axes); result (N, width).
    Source: Vaswani et al. 2017; Peebles & Xie 2023.

    >>> sinusoids(torch.tensor([[0.0, math.pi]]), 5).round().tolist()
    [[1.0, 0.0, -1.0, -0.0, 0.0]]
    """
    phases = at[:, :, None] * _frequencies(width // (2 * at.shape[1]), at)
    waves = torch.cat([phases.cos(), phases.sin()], dim=2).flatten(1)
    return torch.nn.functional.pad(waves, (0, width - waves.shape[1]))


def angles(at: Tensor, size: int) -> Tensor:
    """Return the angles by which `rotated` turns the pairs of a vector of an even size.

    Every axis has size // (2 axes) pairs, of the frequencies of `sinusoids`; the rest stay.

    Shapes: at (N, axes); result (N, size/2).
    Source: Su et al. 2021, equation 15.
    """
    phases = at[:, :, None] * _frequencies(size // (2 * at.shape[1]), at)
    return torch.nn.functional.pad(phases.flatten(1), (0, size // 2 - phases[0].numel()))


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Return x with its pairs (x_i, x_{i + d/2}) turned, so that q·k depends on differences.

    Shapes: x (B, heads, N, d); turn (N, d/2); result like x.

    >>> rotated(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[math.pi / 2]])).round().tolist()
    [[[[-0.0, 1.0]]]]
    """
    cos, sin = turn.cos().to(x.dtype), turn.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _frequencies(pairs: int, at: Tensor) -> Tensor:
    k = torch.arange(pairs, dtype=at.dtype, device=at.device)
    return torch.exp(k * (-math.log(_LONGEST) / max(pairs, 1)))
