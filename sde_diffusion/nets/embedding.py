"""Embeddings of the noise conditioning c and of class labels."""

from __future__ import annotations

import math
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion._check import positive_integer, positive_number, wrong_value
from sde_diffusion.nets._layers import linear, vectors

# The scale of an embedding where the user gives none: a thousand steps of DDPM; Song's Fourier.
TIME_SCALES: Final = {"sinusoidal": 1000.0, "fourier": 16.0}


@final
class Sinusoidal(nn.Module):
    """The sinusoidal embedding: √2 cos(ω_k c) and √2 sin(ω_k c), ω_k = scale · 10⁴^(−k/pairs).

    The frequencies are spaced evenly in their logarithm, from ``scale`` down to about
    ``scale``/10⁴, for k = 0 … pairs − 1.

    Shapes: c (B,); result (B, 2 pairs), the cosines first.
    Units: ``scale`` in radians per unit of c.
    Source: Vaswani et al. 2017; Ho et al. 2020.

    >>> Sinusoidal(1, scale=math.pi)(torch.tensor([0.0, 1.0])).round(decimals=3).tolist()
    [[1.4140000343322754, 0.0], [-1.4140000343322754, -0.0]]
    """

    def __init__(self, pairs: int, scale: float) -> None:
        super().__init__()
        self.pairs = pairs
        self.scale = scale

    def forward(self, c: Tensor) -> Tensor:
        """Return the embedding of every c."""
        # Not a buffer: .bfloat16() would round it, and phases of ω c ~ 1000 with it.
        k = torch.arange(self.pairs, device=c.device, dtype=c.dtype)
        return _waves(c, self.scale * torch.exp(k * (-math.log(1e4) / self.pairs)))


@final
class GaussianFourier(nn.Module):
    """Gaussian Fourier features: √2 cos(2π f_k c) and √2 sin(2π f_k c), f_k ~ N(0, scale²).

    Their mean product φ(a)·φ(b)/(2 pairs) tends to exp(−(2π scale)² (a − b)²/2) as pairs grow.

    Shapes: c (B,); result (B, 2 pairs), the cosines first.
    Units: ``scale`` in cycles per unit of c.
    Source: Rahimi & Recht 2007; Tancik et al. 2020; Song et al. 2021.

    >>> features = GaussianFourier(500, 1.0, torch.Generator().manual_seed(0))
    >>> bool((features(torch.tensor([0.3])).square().mean() - 1).abs() < 1e-6)
    True
    """

    frequencies: Tensor

    def __init__(self, pairs: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        drawn = scale * torch.randn(pairs, generator=generator, device=generator.device)
        # Rounded here, so that a later .bfloat16() of the network leaves them as they are.
        self.register_buffer("frequencies", drawn.bfloat16().float())

    def forward(self, c: Tensor) -> Tensor:
        """Return the embedding of every c."""
        return _waves(c, 2 * math.pi * self.frequencies.to(c.dtype))


@final
class Conditioning(nn.Module):
    """The vector that every block is conditioned on: an MLP of c's embedding plus a class vector.

    The class table has a row more than there are classes: row 0, for the label −1 and for no
    labels at all, is the null class that label dropout trains.

    Arguments:
        features: size of the embedding of c, rounded up to even.
        width: size of the result.
        embedding: "sinusoidal" or "fourier".
        time_scale: ``scale`` of the embedding, in its units.
        classes: how many; None for no class table.
        generator: of the weights and of Fourier frequencies.
        times: how many c has, 1 or 2; the second's weights are 0 at first.

    Shapes: c (B,), or (B, 2) of two times; labels (B,) or None; added (B, width), (width,) or
    None, what else is added; result (B, width), after a SiLU.
    """

    def __init__(
        self,
        features: int,
        width: int,
        embedding: str,
        time_scale: float,
        classes: int | None,
        generator: torch.Generator,
        times: int = 1,
    ) -> None:
        super().__init__()
        pairs = (features + 1) // 2
        self.waves: nn.Module = (
            Sinusoidal(pairs, time_scale)
            if embedding == "sinusoidal"
            else GaussianFourier(pairs, time_scale, generator)
        )
        self.inner = linear(2 * pairs, width, generator)
        self.outer = linear(width, width, generator)
        self.classes = None if classes is None else vectors(classes + 1, width, generator)
        if times == 2:
            self.until = linear(2 * pairs, width, None)

    def forward(self, c: Tensor, labels: Tensor | None, added: Tensor | None = None) -> Tensor:
        """Return the conditioning vector of every sample."""
        first = c if c.ndim == 1 else c[:, 0]
        h: Tensor = self.outer(F.silu(self.inner(self._embedded(first))))
        if c.ndim == 2:
            h = h + self.until(self._embedded(c[:, 1]))
        if self.classes is not None:
            rows = torch.zeros_like(first, dtype=torch.int64) if labels is None else labels + 1
            h = h + self.classes(rows)
        return F.silu(h if added is None else h + added)

    def _embedded(self, c: Tensor) -> Tensor:
        # Phases in at least float32: a bfloat16 phase of 1000 is off by whole periods.
        waves: Tensor = self.waves(c.to(torch.promote_types(c.dtype, torch.float32)))
        return waves.to(self.inner.weight.dtype)


def resolve(what: str, embedding: str, time_scale: float | None, classes: int | None) -> float:
    """Return the time scale, after a check of all three settings.

    Arguments:
        what: the network, for the error.
        embedding: "sinusoidal" or "fourier".
        time_scale: positive; None for the embedding's default.
        classes: a positive number of classes, or None.
    """
    if embedding not in TIME_SCALES:
        rule = f"be one of {', '.join(TIME_SCALES)}"
        raise wrong_value(what, "embedding", rule, embedding, "pass embedding='sinusoidal'")
    if classes is not None:
        positive_integer(what, "classes", classes)
    if time_scale is None:
        return TIME_SCALES[embedding]
    positive_number(what, "time_scale", time_scale)
    return float(time_scale)


def _waves(c: Tensor, frequencies: Tensor) -> Tensor:
    phases = torch.outer(c, frequencies)
    return math.sqrt(2) * torch.cat([phases.cos(), phases.sin()], dim=1)
