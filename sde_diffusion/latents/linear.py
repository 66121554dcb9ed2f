"""An invertible linear autoencoder, for which nothing is a bound."""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor

from sde_diffusion._check import check_shape, wrong_value
from sde_diffusion._shown import as_call
from sde_diffusion._tensors import check_state
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.latents.autoencoder import Autoencoder, Encoded
from sde_diffusion.noise import Noise

_WHAT = "LinearAutoencoder"


@final
class LinearAutoencoder(Autoencoder):
    """z = W (x − b) with an invertible W, so that log p(x) = log p(z) + log|det W|.

    Arguments:
        matrix: W, invertible; (D, D).
        offset: b; (D,), 0 if not given.
        event: the shape of x, of D elements; (D,) if not given.
        latent: the shape of z, of D elements; that of x if not given.
        data: what x is, where that is known.

    Shapes: x (B, *event), z (B, *latent).
    Errors: ValueError for a matrix that is not square or not invertible, and for other shapes.

    >>> halves = LinearAutoencoder(0.5 * torch.eye(2))
    >>> halves.encode(torch.ones(1, 2)).tolist(), halves.decode(torch.ones(1, 2)).tolist()
    ([[0.5, 0.5]], [[2.0, 2.0]])
    """

    matrix: Tensor
    offset: Tensor
    exact = True

    def __init__(
        self,
        matrix: Tensor,
        offset: Tensor | None = None,
        *,
        event: tuple[int, ...] | None = None,
        latent: tuple[int, ...] | None = None,
        data: DataSpec | None = None,
    ) -> None:
        super().__init__()
        _check_matrix(matrix)
        d = len(matrix)
        known = (d,) if data is None else data.shape
        self._event = tuple(known if event is None else event)
        self._latent = self._event if latent is None else tuple(latent)
        offset = matrix.new_zeros(d) if offset is None else offset
        _check_sizes(d, self._event, self._latent, offset, data)
        self.data = data
        self.register_buffer("matrix", matrix.detach().clone())
        self.register_buffer("offset", offset.detach().to(matrix).clone())
        self.log_det = float(torch.linalg.slogdet(matrix.detach().double()).logabsdet)

    @classmethod
    def principal(cls, x: Tensor, *, data: DataSpec | None = None) -> Self:
        """Return z = Λ^{−½} Uᵀ (x − mean), the whitened principal components of samples.

        UΛUᵀ is their covariance, so that z has mean 0 and covariance I over them.

        Shapes: x (N, *event), N above the number of dimensions.
        Errors: ValueError for samples that do not span all dimensions.

        >>> x = torch.tensor([[0.0, 1.0], [0.0, 5.0], [2.0, 1.0], [2.0, 5.0]])
        >>> z = LinearAutoencoder.principal(x).encode(x)
        >>> bool((z.T @ z / len(z) - torch.eye(2)).abs().max() < 1e-6)
        True
        """
        check_state("LinearAutoencoder.principal", x)
        flat = x.detach().flatten(1).double()
        mean = flat.mean(0)
        covariance = (flat - mean).T @ (flat - mean) / len(flat)
        values, vectors = torch.linalg.eigh(covariance)
        least = float(values.min())
        if not least > 1e-12 * float(values.max()):
            rule = "vary in every direction"
            remedy = "add dequantization noise, or pass more of them"
            got = f"a variance of {least:.3g} in one"
            raise wrong_value("LinearAutoencoder.principal", "x", rule, got, remedy)
        matrix = values.rsqrt()[:, None] * vectors.T
        event = tuple(x.shape[1:])
        return cls(matrix.to(x.dtype), mean.to(x.dtype), event=event, data=data)

    def __repr__(self) -> str:
        shown = {"matrix": self.matrix, "event": self._event, "latent": self._latent}
        return as_call(_WHAT, shown)

    @property
    def event(self) -> tuple[int, ...]:
        return self._event

    @property
    def latent(self) -> tuple[int, ...]:
        return self._latent

    def encode(self, x: Tensor) -> Tensor:
        self.check_data(x)
        # z = W (x − b)
        z = (x.flatten(1).double() - self.offset.double()) @ self.matrix.double().T
        return z.reshape(len(x), *self._latent).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        self.check_latents(z)
        # x = W⁻¹ z + b
        solved: Tensor = torch.linalg.solve(self.matrix.double(), z.flatten(1).double().T).T
        x = solved + self.offset.double()
        return x.reshape(len(z), *self._event).to(z.dtype)

    def draw(self, x: Tensor, noise: Noise) -> Encoded:  # noqa: ARG002  (nothing is drawn)
        volume = torch.full((len(x),), self.log_det, dtype=torch.float64, device=x.device)
        return Encoded(self.encode(x), {"log_det": volume})


def _check_matrix(matrix: Tensor) -> None:
    rule = "be an invertible matrix (D, D) of floating point"
    square = isinstance(matrix, Tensor) and matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or not matrix.is_floating_point():
        got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
        raise wrong_value(_WHAT, "matrix", rule, got, "pass for example torch.eye(2)")
    if not math.isfinite(float(torch.linalg.cond(matrix.detach().double()))):
        raise wrong_value(_WHAT, "matrix", rule, "a singular one", "pass for example torch.eye(2)")


def _check_sizes(
    d: int,
    event: tuple[int, ...],
    latent: tuple[int, ...],
    offset: Tensor,
    data: DataSpec | None,
) -> None:
    for name, shape in (("event", event), ("latent", latent)):
        check_shape(_WHAT, shape)
        if math.prod(shape) != d:
            rule = f"have the {d} elements of the matrix"
            raise wrong_value(_WHAT, name, rule, shape, f"pass {name}=({d},)")
    if tuple(offset.shape) != (d,):
        rule = f"have shape ({d},)"
        raise wrong_value(
            _WHAT, "offset", rule, tuple(offset.shape), "pass one number a dimension"
        )
    if data is not None and data.shape != event:
        rule = f"have the shape {event} of x"
        raise wrong_value(_WHAT, "data", rule, data.shape, f"pass event={data.shape}")
