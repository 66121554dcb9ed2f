"""A noise-conditional residual MLP for rows of numbers."""

from __future__ import annotations

from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion._check import positive_integer
from sde_diffusion._shown import as_call
from sde_diffusion.nets._layers import (
    check_condition,
    check_dropout,
    check_input,
    check_seed,
    home,
    linear,
)
from sde_diffusion.nets.conditions import ConditionalNetwork
from sde_diffusion.nets.embedding import Conditioning, resolve
from sde_diffusion.nets.given import VectorEmbedding, asked

_DEEPEST: Final = 1000  # layers; minutes would pass before memory ran out on far more


@final
class Layer(nn.Module):
    """y = x + W drop(silu(V silu(x) + U e)), with W = 0 at first.

    Shapes: x (B, width); e (B, width); result (B, width).
    """

    def __init__(self, width: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.dropout = dropout
        self.inner = linear(width, width, generator)
        self.condition = linear(width, width, generator)
        self.outer = linear(width, width, None)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return the layer's output for the conditioning vectors e."""
        h = F.silu(self.inner(F.silu(x)) + self.condition(e))
        added: Tensor = self.outer(F.dropout(h, self.dropout, self.training))
        return x + added


@final
class MLP(ConditionalNetwork):
    """A residual MLP for points in ``dimension`` dimensions, called like the U-Net.

    Every layer is conditioned on the noise level and on class labels. The output is 0 at first.
    ``config`` holds all arguments, as that of `UNet`.

    Arguments:
        dimension: the number of dimensions of x.
        width: units of a layer.
        depth: residual layers.
        embedding: of c, "sinusoidal" or "fourier".
        time_scale: largest frequency in radians, or std of frequencies in cycles; None: 1000, 16.
        classes: how many; None for a network without labels.
        dropout: probability in [0, 1).
        seed: of the weights.
        outputs: the number of dimensions of the result; None for ``dimension``.
        vector: the size of a vector that each sample is given; None for none.
        times: how many times c holds: 1, or 2 for that of the state and that of a step's end.

    Shapes: x (B, dimension); c (B,), or (B, 2) for two times; labels (B,) int64;
    vector (B, size), NaN for what is not known; result (B, outputs), by default like x.
    Units: c is the time t in [0, 1], or ¼ ln sigma.
    Errors: ValueError and TypeError for arguments, shapes, dtypes and labels that do not fit.

    >>> net = MLP(2, width=16)
    >>> net(torch.ones(3, 2), torch.rand(3, generator=torch.Generator())).abs().max().item()
    0.0
    """

    def __init__(
        self,
        dimension: int,
        width: int = 128,
        depth: int = 3,
        embedding: str = "fourier",
        time_scale: float | None = None,
        classes: int | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        outputs: int | None = None,
        vector: int | None = None,
        times: int = 1,
    ) -> None:
        super().__init__()
        positive_integer("MLP", "dimension", dimension)
        positive_integer("MLP", "width", width)
        positive_integer("MLP", "depth", depth, most=_DEEPEST)
        outputs = dimension if outputs is None else outputs
        positive_integer("MLP", "outputs", outputs)
        check_dropout("MLP", dropout)
        check_seed("MLP", seed)
        positive_integer("MLP", "times", times, most=2)
        scale = resolve("MLP", embedding, time_scale, classes)
        self.config: dict[str, Any] = {
            "dimension": dimension,
            "width": width,
            "depth": depth,
            "embedding": embedding,
            "time_scale": scale,
            "classes": classes,
            "dropout": dropout,
            "seed": seed,
            "outputs": outputs,
        } | asked("MLP", {"vector": vector})
        if times == 2:  # left out of those of one time, which keep their fingerprints
            self.config["times"] = times
        generator = torch.Generator().manual_seed(seed)
        with home():
            self.condition = Conditioning(
                width, width, embedding, scale, classes, generator, times
            )
            self.stem = linear(dimension, width, generator)
            layers = (Layer(width, dropout, generator) for _ in range(depth))
            self.layers = nn.ModuleList(layers)
            self.head = linear(width, outputs, None)
            if vector is not None:
                self.vector = VectorEmbedding(vector, width, generator)

    def __repr__(self) -> str:
        return as_call(type(self).__name__, self.config)

    def forward(
        self, x: Tensor, c: Tensor, labels: Tensor | None = None, *, vector: Tensor | None = None
    ) -> Tensor:
        """Return the network's output for the points x at the noise levels c."""
        check_input("MLP", x, (self.config["dimension"],), self.stem.weight)
        times = self.config.get("times", 1)
        check_condition("MLP", x, c, labels, self.config["classes"], times)
        self.check_given(x, vector=vector)
        added = self.vector(vector) if "vector" in self.config else None
        e = self.condition(c, labels, added)
        h = self.stem(x)
        for layer in self.layers:
            h = layer(h, e)
        out: Tensor = self.head(F.silu(h))
        return out
