"""A small matrix that acts on the parts of a state: (x, v) of a Langevin equation, for one."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sde_diffusion._check import an_object, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import expand


@final
class BlockMatrix:
    """A matrix M that acts on the n equal parts into which a state's second dimension falls.

    (M x)_i = Σ_j M_ij x_j with x = (x_1, …, x_n), M ⊗ I on all elements. What an `SDE.diffusion`
    returns where a matrix mixes the noise: it must not depend on x.

    Shapes: matrix (n, n), or (B, n, n) for one a sample; x (B, n·C, *rest).
    Errors: TypeError for what is no tensor; ValueError for another shape, and at a product for a
    second dimension that n does not divide.

    >>> turn = BlockMatrix(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    >>> (turn * torch.tensor([[3.0, 4.0, 5.0, 6.0]])).tolist()  # (x, v) with two numbers each
    [[-5.0, -6.0, 3.0, 4.0]]
    """

    __repr__ = shown

    def __init__(self, matrix: Tensor) -> None:
        remedy = "pass for example torch.eye(2)"
        an_object("BlockMatrix", "matrix", matrix, Tensor, remedy)
        if matrix.ndim not in (2, 3) or matrix.shape[-1] != matrix.shape[-2]:
            rule = "have the shape (n, n) or (B, n, n)"
            raise wrong_value("BlockMatrix", "matrix", rule, tuple(matrix.shape), remedy)
        self.matrix = matrix

    def __mul__(self, x: Tensor) -> Tensor:
        """Return M x, in x's shape and dtype."""
        m = self.matrix
        parts = parts_of("BlockMatrix", x, m.shape[-1])
        if m.ndim == 2 and m.device.type == "cpu" and not m.requires_grad:
            return torch.cat([_row(row, parts) for row in m.tolist()], 1)
        return torch.cat([_mixed(m[..., i, :], parts, x) for i in range(len(parts))], 1)

    def __rmul__(self, c: float) -> BlockMatrix:
        """Return c M."""
        return BlockMatrix(c * self.matrix)

    def gram(self) -> BlockMatrix:
        """Return M Mᵀ."""
        return BlockMatrix(product(self.matrix, self.matrix.mT))


def parts_of(what: str, x: Tensor, n: int) -> tuple[Tensor, ...]:
    """Return the n equal parts of a state's second dimension."""
    if x.shape[1] % n:
        raise wrong_value(
            what,
            "x",
            f"have a second dimension of {n} equal parts",
            tuple(x.shape),
            "put the parts behind one another, as torch.cat([x, v], 1)",
        )
    return x.chunk(n, 1)


def _row(row: list[float], parts: tuple[Tensor, ...]) -> Tensor:
    """Return Σ_j M_ij x_j, without what is multiplied by 0."""
    there = [(c, part) for c, part in zip(row, parts, strict=True) if c]
    if not there:
        return torch.zeros_like(parts[0])
    found = there[0][1] * there[0][0]
    for c, part in there[1:]:
        found.add_(part, alpha=c)
    return found


def _mixed(row: Tensor, parts: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """Return Σ_j M_ij x_j, with one row for all samples (n,) or one each (B, n)."""
    found = torch.zeros_like(parts[0])
    for j, part in enumerate(parts):
        found = found + expand(row[..., j], x) * part
    return found


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b for small matrices, in an order of sums that no batch changes.

    Shapes: a, b (…, n, n); result (…, n, n).
    """
    found = a[..., :, :1] * b[..., :1, :]
    for k in range(1, a.shape[-1]):
        found = found + a[..., :, k : k + 1] * b[..., k : k + 1, :]
    return found


def factor(covariance: Tensor) -> Tensor:
    """Return the lower triangular L with L Lᵀ = C, with a column 0 where a pivot is 0.

    Shapes: (…, n, n) → (…, n, n), positive semidefinite.
    """
    n = covariance.shape[-1]
    rows = [[torch.zeros_like(covariance[..., 0, 0])] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, n):
            rest = covariance[..., i, j]
            for k in range(j):
                rest = rest - rows[i][k] * rows[j][k]
            if i == j:
                rows[j][j] = rest.clamp(min=0).sqrt()
            else:
                pivot = rows[j][j]
                rows[i][j] = torch.where(pivot > 0, rest / pivot, torch.zeros_like(rest))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
