"""The diffusion of a user's SDE, in a form that multiplies the states, or refused."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion._block_matrix import BlockMatrix
from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion._tensors import expand


class Diffusing(Protocol):
    """An SDE, as far as its diffusion g(x, t) goes."""

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor | BlockMatrix:
        """Return g(x, t)."""


def diffusion_of(sde: Diffusing, x: Tensor, t: Tensor) -> Tensor | BlockMatrix:
    """Return g(x, t): one number, one a sample or one for each element of x, in x's dtype.

    A (B,) tensor is one number a sample, also where x has B dimensions. There, and where a matrix
    has the shape of x, g is asked once more for the first sample alone: what does not get shorter
    was not meant for the samples.

    A `BlockMatrix` is returned as it is.

    Shapes: x (B, *event); t () or (B,); result (), (B, 1, …, 1) or that of x.
    Errors: TypeError for what is no tensor, ValueError for another shape.
    """
    g = sde.diffusion(x, t)
    if isinstance(g, BlockMatrix):
        return g
    if not isinstance(g, Tensor):
        raise wrong_type(
            type(sde).__name__,
            "diffusion(x, t)",
            "be a tensor",
            type(g).__name__,
            "return for example torch.full_like(t, 0.5)",
        )
    if g.ndim == 0:
        return g
    if g.shape != (len(x),) and not _fits(g, x):
        raise _wrong_shape(sde, tuple(g.shape), x)
    if len(x) > 1 and _doubtful(g, x):
        alone = sde.diffusion(x[:1], t[:1] if t.ndim else t)
        if isinstance(alone, BlockMatrix) or alone.shape[:1] != (1,):
            got = alone.matrix if isinstance(alone, BlockMatrix) else alone
            raise _wrong_shape(sde, f"{tuple(got.shape)} for the first sample alone", x)
    return expand(g, x) if g.shape == (len(x),) else g.to(x.dtype)


def scaled_square(c: float, g: Tensor | BlockMatrix) -> Tensor | BlockMatrix:
    """Return c g gᵀ, which multiplies a score."""
    return c * g.gram() if isinstance(g, BlockMatrix) else c * g * g


def is_number(g: Tensor | BlockMatrix) -> bool:
    """Return whether g is one number for all elements."""
    return isinstance(g, Tensor) and g.ndim == 0


def _fits(g: Tensor, x: Tensor) -> bool:
    """Return whether g has x's dimensions, each of x's size or 1."""
    return g.ndim == x.ndim and all(n in (1, m) for n, m in zip(g.shape, x.shape, strict=True))


def _doubtful(g: Tensor, x: Tensor) -> bool:
    """Return whether what is shaped like samples could be shaped like dimensions of one sample."""
    if g.ndim == 1:
        return len(x) in x.shape[1:]
    return g.shape == x.shape == torch.Size((len(x), len(x)))


def _wrong_shape(sde: Diffusing, got: object, x: Tensor) -> ValueError:
    return wrong_value(
        type(sde).__name__,
        "diffusion(x, t)",
        f"have the shape (), ({len(x)},) or that of x, {tuple(x.shape)}",
        got,
        "return g.expand_as(x) where each dimension has its own noise, "
        "BlockMatrix(g) where a matrix mixes the noise",
    )
