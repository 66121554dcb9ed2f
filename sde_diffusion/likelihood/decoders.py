"""Decoders: p(data | x_t) at the smallest time, for real data and for grey levels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import flat_sum

_TILE: Final = 16  # levels compared at once with every dimension of the data


class Decoder(ABC):
    """The distribution of the data given a mean and a variance for each of its dimensions."""

    control: ClassVar[float]  # the share of ½(x0 − mean)²/variance in −log p

    __repr__ = shown

    def check(self, what: str, x0: Tensor) -> None:  # noqa: B027  (a density takes any data)
        """Refuse data outside the support of this distribution."""

    @abstractmethod
    def log_prob(self, x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Return log p(x0), summed over the dimensions of a sample.

        Shapes: x0, mean (B, *event), variance any that broadcasts; result (B,), float64.
        """


@final
@dataclass(frozen=True)
class GaussianDecoder(Decoder):
    """The density N(mean, variance), for real data.

    >>> zero, one = torch.zeros(1, 2), torch.ones(())
    >>> round(GaussianDecoder().log_prob(zero, zero, one).item(), 6)
    -1.837877
    """

    control = 1.0

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        square = (x0.double() - mean).square() / variance
        return -0.5 * flat_sum(square + (2 * math.pi * variance).log())


class _Levels(Decoder):
    """A distribution on the values that integer data take, independent over dimensions."""

    control = 0.0

    def __init__(self, centres: Tensor) -> None:
        """Keep the values, ascending: (L,)."""
        what = type(self).__name__
        if centres.ndim != 1 or len(centres) < 2 or not bool((centres.diff() > 0).all()):
            raise wrong_value(
                what,
                "centres",
                "be two or more rising numbers",
                tuple(centres.shape),
                "pass bin_centres(256)",
            )
        self.centres = centres.detach().to("cpu", torch.float64)
        self.edges = 0.5 * (self.centres[1:] + self.centres[:-1])

    def check(self, what: str, x0: Tensor) -> None:
        off = (x0.double() - self.centres.to(x0.device)[self._index(x0)]).abs().max()
        if not float(off) <= 0.01 * float(self.centres.diff().min()):
            raise wrong_value(
                what,
                "x",
                f"lie on the {len(self.centres)} levels of the decoder",
                f"a value {float(off):.3g} beside them",
                "pass dataset.centred(), not dequantized data",
            )

    def _index(self, x0: Tensor) -> Tensor:
        return torch.searchsorted(self.edges.to(x0.device), x0.double().contiguous())


@final
class LevelDecoder(_Levels):
    """The probabilities p(k) ∝ N(centre_k; mean, variance) over all levels k.

    With mean x_t/alpha and variance sigma²/alpha² it is p(k|x_t) ∝ N(x_t; alpha centre_k, sigma²).

    Shapes: centres (L,), ascending.
    Source: Kingma et al. 2021 (VDM), section 3.3.

    >>> LevelDecoder(bin_centres(2)).log_prob(-torch.ones(1, 1) / 2, torch.zeros(1, 1),
    ...                                       torch.ones(())).exp().item()
    0.5
    """

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        centres = self.centres.to(x0.device)
        spread = torch.broadcast_to(variance, x0.shape)[..., None]
        # In tiles: all levels of all dimensions would take hundreds of times the batch.
        tiles = [
            (-0.5 * (tile - mean[..., None]).square() / spread).logsumexp(-1)
            for tile in torch.split(centres, _TILE)
        ]
        total = torch.stack(tiles).logsumexp(0)
        return flat_sum(-0.5 * (centres[self._index(x0)] - mean).square() / variance - total)


@final
class BinDecoder(_Levels):
    """The mass of N(mean, variance) in the bin around each level, the two end bins open.

    Bins part halfway between levels.

    Shapes: centres (L,), ascending.
    Source: Ho et al. 2020, equation 13.

    >>> BinDecoder(bin_centres(2)).log_prob(-torch.ones(1, 1) / 2, torch.zeros(1, 1),
    ...                                     torch.ones(())).exp().item()
    0.5
    """

    def log_prob(self, x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        k = self._index(x0)
        std = variance.sqrt()
        last = len(self.edges)
        edges = self.edges.to(x0.device)
        low, high = ((edges[i.clamp(0, last - 1)] - mean) / std for i in (k - 1, k))
        # Beyond 40 deviations Φ is 0; an edge at infinity would leave NaN in the gradient.
        low = torch.where(k == 0, high.clamp(max=0) - 40, low)
        high = torch.where(k == last, low.clamp(min=0) + 40, high)
        # Mirrored into the lower tail, where the difference of two Φ keeps its digits.
        right = low + high > 0
        low, high = torch.where(right, -high, low), torch.where(right, -low, high)
        below = torch.special.log_ndtr(low)
        above = torch.special.log_ndtr(high)
        return flat_sum(above + torch.log1p(-torch.exp(below - above)))


def bin_centres(levels: int) -> Tensor:
    """Return (2k + 1)/levels − 1 for k = 0 … levels − 1: where `DataSpec` puts integer data.

    >>> bin_centres(4).tolist()
    [-0.75, -0.25, 0.25, 0.75]
    """
    positive_integer("bin_centres", "levels", levels, least=2)
    return (2 * torch.arange(levels, dtype=torch.float64) + 1) / levels - 1
