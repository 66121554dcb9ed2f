"""Operators A of a measurement y = A(x) + sigma_y n, with their adjoints Aᵀ."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d

from sde_diffusion._check import positive_integer, positive_number, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion.forms import Number


class Operator(ABC):
    """A differentiable map x ↦ A(x) of each sample: (B, *event) → (B, *measurement)."""

    __repr__ = shown

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return A(x), one a row."""

    def linearised(self, x: Tensor) -> LinearOperator:
        """Return the derivative of A at x, an operator on the same batch."""
        return _Derivative(self, x)


class LinearOperator(Operator, ABC):
    """A linear map, with its adjoint: ⟨A x, y⟩ = ⟨x, Aᵀ y⟩ for every sample."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ y: (B, *measurement) → (B, *event)."""

    def linearised(self, x: Tensor) -> LinearOperator:  # noqa: ARG002  (the same everywhere)
        return self

    def gram_solve(self, r: Tensor, a: Number, b: Number) -> Tensor:
        """Return (a I + b A Aᵀ)⁻¹ r for a > 0 and b ≥ 0, by conjugate gradients.

        Override it where A Aᵀ is known.
        """
        return conjugate_gradients(lambda u: a * u + b * self(self.adjoint(u)), r)

    def normal_solve(self, r: Tensor, a: Number, b: Number) -> Tensor:
        """Return (a I + b AᵀA)⁻¹ r = (r − b Aᵀ (a I + b A Aᵀ)⁻¹ A r)/a, Woodbury's identity."""
        return (r - b * self.adjoint(self.gram_solve(self(r), a, b))) / a


@final
class _Derivative(LinearOperator):
    """v ↦ A'(x) v, the derivative in u of ⟨A'(x)ᵀ u, v⟩; its adjoint by one reverse pass."""

    def __init__(self, operator: Operator, x: Tensor) -> None:
        self._operator = operator
        self._x = x.detach()  # where the derivative is taken

    def __call__(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = self._x.clone().requires_grad_()
            y = self._operator(at)
            u = torch.zeros_like(y, requires_grad=True)
            (pulled,) = torch.autograd.grad(y, at, u, create_graph=True)
            (found,) = torch.autograd.grad(pulled, u, x)
        return found

    def adjoint(self, y: Tensor) -> Tensor:
        with torch.enable_grad():
            at = self._x.clone().requires_grad_()
            (found,) = torch.autograd.grad(self._operator(at), at, y)
        return found


@final
class Matrix(LinearOperator):
    """y = M x of the flattened sample: (B, *event) → (B, m).

    Arguments:
        matrix: M; (m, D), with D the number of elements of the event.
        event: the shape of a sample; (D,) if not given.

    >>> Matrix(torch.tensor([[1.0, 2.0]]))(torch.tensor([[3.0, 4.0]])).item()
    11.0
    """

    def __init__(self, matrix: Tensor, event: tuple[int, ...] | None = None) -> None:
        if not isinstance(matrix, Tensor) or matrix.ndim != 2:
            got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise wrong_value("Matrix", "matrix", "be a tensor (m, D)", got, "pass two dimensions")
        self.event = (matrix.shape[1],) if event is None else tuple(event)
        if math.prod(self.event) != matrix.shape[1]:
            raise wrong_value(
                "Matrix",
                "event",
                f"have {matrix.shape[1]} elements, one a column",
                self.event,
                "pass the shape of a sample",
            )
        self.matrix = matrix

    def __call__(self, x: Tensor) -> Tensor:
        check_event("Matrix", x, self.event)
        return x.flatten(1) @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).reshape(-1, *self.event)


@final
class Mask(LinearOperator):
    """Inpainting: y holds the elements of x where ``kept`` is true: (B, *event) → (B, m).

    >>> kept = torch.tensor([True, False, True])
    >>> Mask(kept)(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    [[1.0, 3.0]]
    """

    def __init__(self, kept: Tensor) -> None:
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool or not bool(kept.any()):
            got = str(kept.dtype) if isinstance(kept, Tensor) else type(kept).__name__
            if isinstance(kept, Tensor) and kept.dtype == torch.bool:
                got = "none that is true"
            raise wrong_type(
                "Mask",
                "kept",
                "be a tensor of booleans of a sample's shape, some of them true",
                got,
                "pass for example torch.arange(28) < 14, expanded to the event",
            )
        self.kept = kept

    def __call__(self, x: Tensor) -> Tensor:
        check_event("Mask", x, tuple(self.kept.shape))
        return x[:, self.kept.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.kept.shape)
        x[:, self.kept.to(y.device)] = y
        return x

    def gram_solve(self, r: Tensor, a: Number, b: Number) -> Tensor:
        return r / (a + b)  # A Aᵀ = I


@final
class Downsample(LinearOperator):
    """Means of blocks of f × f pixels: (B, C, H, W) → (B, C, H/f, W/f).

    >>> Downsample(2)(torch.arange(4.0).reshape(1, 1, 2, 2)).item()
    1.5
    """

    def __init__(self, factor: int) -> None:
        positive_integer("Downsample", "factor", factor)
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise wrong_value(
                "Downsample",
                "x",
                f"be images (B, C, H, W) with sides that are multiples of {self.factor}",
                tuple(x.shape),
                "choose a factor of both sides",
            )
        return avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        f = self.factor
        return y.repeat_interleave(f, 2).repeat_interleave(f, 3) / f**2

    def gram_solve(self, r: Tensor, a: Number, b: Number) -> Tensor:
        return r / (a + b / self.factor**2)  # A Aᵀ = I/f²


@final
class Blur(LinearOperator):
    """The convolution of every channel with one kernel, zeros outside: y of x's shape.

    >>> image = torch.zeros(1, 1, 3, 3)
    >>> image[0, 0, 1, 1] = 1
    >>> bool((Blur(torch.ones(3, 3) / 9)(image) == 1 / 9).all())
    True
    """

    def __init__(self, kernel: Tensor) -> None:
        odd = isinstance(kernel, Tensor) and kernel.ndim == 2 and all(n % 2 for n in kernel.shape)
        if not odd:
            got = tuple(kernel.shape) if isinstance(kernel, Tensor) else type(kernel).__name__
            raise wrong_value(
                "Blur",
                "kernel",
                "be a tensor with two odd sides",
                got,
                "use Blur.gaussian(std), or pad the kernel",
            )
        self.kernel = kernel

    @classmethod
    def gaussian(cls, std: float) -> Blur:
        """Return the blur by a Gaussian of the standard deviation ``std`` in pixels, cut at 3."""
        positive_number("Blur", "std", std, "pass for example 1.5")
        reach = math.ceil(3 * std)
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        line = (-0.5 * (at / std) ** 2).exp()
        line = line / line.sum()
        return cls(torch.outer(line, line))

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise wrong_value(
                "Blur", "x", "be images (B, C, H, W)", tuple(x.shape), "add the missing dimension"
            )
        # A correlation with the kernel turned round is the convolution.
        return conv2d(self._flat(x), self._kernel(x).flip(2, 3), padding=self._margin).view_as(x)

    def adjoint(self, y: Tensor) -> Tensor:
        turned = self._kernel(y).flip(2, 3)
        return conv_transpose2d(self._flat(y), turned, padding=self._margin).view_as(y)

    @property
    def _margin(self) -> tuple[int, int]:
        return self.kernel.shape[0] // 2, self.kernel.shape[1] // 2

    def _kernel(self, x: Tensor) -> Tensor:
        return self.kernel.to(x)[None, None]

    @staticmethod
    def _flat(x: Tensor) -> Tensor:
        return x.reshape(-1, 1, *x.shape[2:])


@final
class Grey(LinearOperator):
    """The mean of the channels, for colourisation: (B, C, *sides) → (B, 1, *sides).

    >>> Grey(3)(torch.tensor([[[1.0], [2.0], [6.0]]])).item()
    3.0
    """

    def __init__(self, channels: int = 3) -> None:
        positive_integer("Grey", "channels", channels)
        self.channels = channels

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or x.shape[1] != self.channels:
            raise wrong_value(
                "Grey",
                "x",
                f"have shape (B, {self.channels}, *sides)",
                tuple(x.shape),
                "pass the number of channels: Grey(C)",
            )
        return x.mean(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.expand(-1, self.channels, *y.shape[2:]) / self.channels

    def gram_solve(self, r: Tensor, a: Number, b: Number) -> Tensor:
        return r / (a + b / self.channels)  # A Aᵀ = I/C


@final
class Nonlinear(Operator):
    """Any differentiable function of a batch, each row of its own; gradients by autograd.

    >>> Nonlinear(lambda x: x.square())(torch.tensor([[3.0]])).item()
    9.0
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        if not callable(function):
            raise wrong_type(
                "Nonlinear",
                "function",
                "be a callable x -> A(x)",
                type(function).__name__,
                "pass a function of a batch",
            )
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        found = self.function(x)
        if not isinstance(found, Tensor) or found.shape[:1] != x.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise wrong_value(
                "Nonlinear",
                "result",
                f"be a tensor with one row for each of {len(x)} samples",
                got,
                "keep the first dimension",
            )
        return found


@final
class Magnitudes(Operator):
    """Phase retrieval: |DFT of x| over the last two sides, padded to twice their size.

    >>> Magnitudes()(torch.ones(1, 1, 2, 2)).shape
    torch.Size([1, 1, 4, 4])
    """

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise wrong_value(
                "Magnitudes",
                "x",
                "be images (B, C, H, W)",
                tuple(x.shape),
                "add the missing dimension",
            )
        sides = (2 * x.shape[2], 2 * x.shape[3])
        found: Tensor = torch.fft.fft2(x, s=sides, norm="ortho").abs()
        return found


def check_event(what: str, x: Tensor, event: tuple[int, ...]) -> None:
    """Refuse samples of another shape than the operator is of."""
    if tuple(x.shape[1:]) != event:
        raise wrong_value(
            what,
            "x",
            f"have the event shape {event}",
            tuple(x.shape[1:]),
            "make the operator for samples of this shape",
        )


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    r: Tensor,
    iterations: int | None = None,
    *,
    least: float = 0.0,
) -> Tensor:
    """Return the u with S u = r of every row, S = ``apply`` symmetric with S ≥ ``least`` I.

    A row stays as it is once its residual is rounding, or where S is less than it should be in
    some direction, so that it does not depend on the other rows.

    Arguments:
        apply: u ↦ S u, each row of its own.
        r: the right-hand side; (B, *measurement).
        iterations: how many; as many as a row has elements if not given, which is exact.
        least: the least eigenvalue that S can have.

    Source: Hestenes and Stiefel 1952.
    """
    u = torch.zeros_like(r)
    left = r.clone()
    p = r.clone()
    square = _dot(left, left)
    rounding = square * (4 * torch.finfo(r.dtype).eps) ** 2
    going = square > rounding
    for _ in range(math.prod(r.shape[1:]) if iterations is None else iterations):
        if not bool(going.any()):
            break
        sp = apply(p)
        curvature = _dot(p, sp)
        # Half of it, since rounding alone may take a curvature below the least one.
        going = going & (curvature > 0.5 * least * _dot(p, p)) & (curvature > 0)
        step = torch.where(going, square / curvature, torch.zeros_like(square))
        u = u + step * p
        left = left - step * sp
        after = _dot(left, left)
        p = left + torch.where(going, after / square, torch.zeros_like(square)) * p
        square = torch.where(going, after, square)
        going = going & (square > rounding)
    return u


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """Return the inner product of every row, in a shape that multiplies rows."""
    return (u * v).flatten(1).sum(1).reshape(-1, *[1] * (u.ndim - 1))
