"""What takes data x to latents z and back, with what it adds to a log-likelihood.

With an encoder q(z|x), a decoder p(x|z) and a density p(z) of the latents,

    log p(x) ≥ E_q[log p(x|z) + log p(z) − log q(z|x)]        (Kingma & Welling 2014, equation 3)

and for an invertible z = f(x), log p(x) = log p(f(x)) + log|det ∂f/∂x|.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion._check import an_object, wrong_value
from sde_diffusion._tensors import check_state
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.noise import Noise

_AT_ONCE: Final = 256  # samples encoded together


class Encoded(NamedTuple):
    """A latent z of every sample, and what it adds to log p(z) for a bound of log p(x).

    Shapes: z (B, *latent); terms (B,) each, float64, nats.
    """

    z: Tensor
    terms: Mapping[str, Tensor]


class Autoencoder(nn.Module, ABC):
    """A map from data x, scaled, to latents z of a unit scale, and back.

    Shapes: x (B, *event), z (B, *latent).
    """

    data: DataSpec | None = None  # what x is, where that is known
    exact = False  # whether log p(z) and the terms of `draw` add up to log p(x) itself

    @property
    @abstractmethod
    def event(self) -> tuple[int, ...]:
        """The shape of a sample x."""

    @property
    @abstractmethod
    def latent(self) -> tuple[int, ...]:
        """The shape of a latent z."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z|x)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x|z)."""

    @abstractmethod
    def draw(self, x: Tensor, noise: Noise) -> Encoded:
        """Return a draw of q(z|x), and log p(x|z) − log q(z|x) in terms by name."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        found = next(iter((*self.parameters(), *self.buffers())), None)
        return torch.device("cpu") if found is None else found.device

    def latents(self, dataset: Dataset) -> Dataset:
        """Return the means of q(z|x) of a data set, as real data, with its labels.

        Levels are taken at the centres of their bins.

        Errors: ValueError for data of another shape.
        """
        an_object("latents", "dataset", dataset, Dataset, "pass load_data(name)")
        self.check_data(x := dataset.centred())
        like = next(self.parameters(), torch.zeros(()))
        with torch.no_grad():
            parts = [
                self.encode(part.to(self.device, like.dtype)).float().cpu()
                for part in torch.split(x, _AT_ONCE)
            ]
        spec = DataSpec(dataset.spec.name, self.latent, None)
        return replace(dataset, spec=spec, values=torch.cat(parts), notes=())

    def check_data(self, x: Tensor) -> None:
        """Refuse what is no batch of samples of the shape that it encodes."""
        what = type(self).__name__
        check_state(what, x)
        if tuple(x.shape[1:]) != self.event:
            remedy = "pass samples of the data that it was made for"
            got = tuple(x.shape)
            if tuple(x.shape[1:]) == self.latent:
                remedy = "pass samples, not latents"
            raise wrong_value(what, "x", f"have shape (B, {_row(self.event)})", got, remedy)

    def check_latents(self, z: Tensor) -> None:
        """Refuse what is no batch of latents."""
        what = type(self).__name__
        check_state(what, z, "z")
        if tuple(z.shape[1:]) != self.latent:
            remedy = "pass latents of this autoencoder"
            if tuple(z.shape[1:]) == self.event:
                remedy = "pass encode(x), not samples"
            got = tuple(z.shape)
            raise wrong_value(what, "z", f"have shape (B, {_row(self.latent)})", got, remedy)


def _row(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
