"""A learned autoencoder with Gaussian encoder and decoder: the variational one.

q(z|x) = N(μ(x), s(x)²) and p(x|z) = N(x̂(z), σ²), in latents of a unit scale: a network's own
latents h are z = (h − shift)/scale, channel by channel, with the mean and the standard deviation
that were measured on the training data.

Source: Kingma & Welling 2014; Rombach et al. 2022, section 4.3.1 (the scale of latents).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor, nn

from sde_diffusion._check import an_object, wrong_value
from sde_diffusion._shown import Size, as_call
from sde_diffusion._tensors import flat_sum
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.latents.autoencoder import Autoencoder, Encoded
from sde_diffusion.nets.conditions import Condition
from sde_diffusion.noise import Noise

_MEASURED = 4096  # samples on which the scale of latents is measured, at most
_PART = 256


class EncoderDecoder(nn.Module, ABC):
    """The network of a `GaussianAutoencoder`, with the shift and the scale of its latents h.

    A subclass calls ``super().__init__(event, latent)``.

    Arguments:
        event: the shape of a sample x.
        latent: the shape of h, channels first.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, event: tuple[int, ...], latent: tuple[int, ...]) -> None:
        super().__init__()
        self.event = event
        self.latent = latent
        self.register_buffer("shift", torch.zeros(latent[0]))
        self.register_buffer("scale", torch.ones(latent[0]))

    @abstractmethod
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and s > 0 of q(h|x); (B, *latent) each."""

    @abstractmethod
    def reconstruction(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean x̂, (B, *event), and σ > 0, which broadcasts, of p(x|h)."""


@final
class GaussianAutoencoder(Autoencoder):
    """The autoencoder of a network: q(z|x) = N(μ(x), s(x)²), p(x|z) = N(x̂(z), σ²).

    Arguments:
        network: an `EncoderDecoder`.
        data: what x is, where that is known.

    Shapes: x (B, *event), z (B, *latent).
    Errors: TypeError for another network, ValueError for data of another shape.

    >>> from sde_diffusion import ConvolutionalAutoencoder
    >>> network = ConvolutionalAutoencoder((1, 8, 8), latent=2, width=8, multipliers=(1, 1))
    >>> GaussianAutoencoder(network).latent
    (2, 4, 4)
    """

    classes = None  # it is trained without labels
    conditions: Mapping[str, Condition] = MappingProxyType({})  # nor anything else that is known

    def __init__(self, network: EncoderDecoder, data: DataSpec | None = None) -> None:
        super().__init__()
        what = "GaussianAutoencoder"
        an_object(what, "network", network, EncoderDecoder, "subclass EncoderDecoder")
        if data is not None:
            an_object(what, "data", data, DataSpec, "pass DataSpec(name, shape, levels)")
        if data is not None and data.shape != network.event:
            rule = f"have the shape {network.event} that the network encodes"
            raise wrong_value(what, "data", rule, data.shape, "build the network for these data")
        self.network = network
        self.data = data

    def __repr__(self) -> str:
        shown = {"network": Size(self.network), "latent": self.latent, "data": self.data}
        return as_call("GaussianAutoencoder", shown)

    @property
    def event(self) -> tuple[int, ...]:
        return self.network.event

    @property
    def latent(self) -> tuple[int, ...]:
        return self.network.latent

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of q(z|x)."""
        self.check_data(x)
        mean, std = self.network.posterior(x)
        scale = self._row(self.network.scale)
        return (mean - self._row(self.network.shift)) / scale, std / scale

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)[0]

    def decoder(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of p(x|z), of which the latter broadcasts."""
        self.check_latents(z)
        # h = shift + scale z
        return self.network.reconstruction(
            self._row(self.network.shift) + self._row(self.network.scale) * z
        )

    def draw(self, x: Tensor, noise: Noise) -> Encoded:
        mean, std = self.posterior(x)
        eps = noise.normal(mean)
        # z = μ + s eps
        z = mean + std * eps
        around, sigma = self.decoder(z)
        # log p(x|z) and −log q(z|x)
        decoder = normal_log_prob(x, around, sigma)
        encoder = -normal_log_prob(z, mean, std)
        return Encoded(z, {"decoder": decoder, "encoder": encoder})

    @torch.no_grad()
    def measure(self, dataset: Dataset) -> None:
        """Set shift and scale to the moments of q(h), so that z has mean 0 and deviation 1.

        They are E[μ] and √(E[μ² + s²] − E[μ]²) of every channel, over the data and all places,
        of at most 4096 samples.

        Errors: ValueError for data of another shape, and for latents that do not vary.
        """
        an_object("measure", "dataset", dataset, Dataset, "pass load_data(name)")
        x = dataset.centred()[:_MEASURED]
        self.check_data(x)
        like = self.network.scale
        sums = torch.zeros(2, self.latent[0], dtype=torch.float64)
        for part in torch.split(x, _PART):
            mean, std = (v.double() for v in self.network.posterior(part.to(like)))
            along = (0, *range(2, mean.ndim))
            square = mean.square() + std.square()
            sums += torch.stack([mean.sum(along), square.sum(along)]).cpu()
        first, second = sums / (len(x) * math.prod(self.latent[1:]))
        scale = (second - first.square()).clamp(min=0).sqrt()
        if not bool((scale > 0).all()):
            got = f"a deviation of {float(scale.min()):g} in one channel"
            rule = "give latents that vary over the data"
            raise wrong_value("measure", "the encoder", rule, got, "train it first")
        self.network.shift.copy_(first)
        self.network.scale.copy_(scale)

    def _row(self, channels: Tensor) -> Tensor:
        return channels.reshape(-1, *(1 for _ in self.latent[1:]))


def normal_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return log N(x; mean, std²) of every sample.

    Shapes: x and mean (B, *event), std broadcasts; result (B,), float64, nats.
    """
    std = std.double()
    square = ((x.double() - mean.double()) / std).square()
    return -0.5 * flat_sum(square + (2 * math.pi * std.square()).log())
