"""The bound that trains an autoencoder, with a weight on its divergence from the prior."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import an_object, number, wrong_type, wrong_value
from sde_diffusion._tensors import check_state, flat_sum
from sde_diffusion.latents.encoder_decoder import GaussianAutoencoder, normal_log_prob
from sde_diffusion.models.matrix import MatrixScoreModel
from sde_diffusion.models.score import DirectScore, ScoreModel
from sde_diffusion.objectives.base import Batch, Drawn, Objective
from sde_diffusion.objectives.spacings import Stratified
from sde_diffusion.time_distributions import UniformTimes


def autoencoder_loss(
    model: GaussianAutoencoder, x: Tensor, eps: Tensor, beta: float = 1.0
) -> Tensor:
    """Return (−log p(x|h) + β KL(q(h|x) ‖ N(0, I)))/D at h = μ(x) + s(x) eps, in nats.

    KL(N(μ, s²) ‖ N(0, 1)) = ½ (μ² + s² − 1 − log s²), summed over the latents h of the network.
    With β = 1 its mean is minus the bound on log p(x) of a standard normal h.

    Arguments:
        model: the autoencoder.
        x: the data, scaled; (B, *event).
        eps: standard normal noise; (B, *latent).
        beta: β, the weight of the divergence; at least 0.

    Shapes: result (B,), of D elements of x.
    Source: Kingma & Welling 2014, equation 10; Higgins et al. 2017 (β).

    >>> from sde_diffusion import ConvolutionalAutoencoder
    >>> network = ConvolutionalAutoencoder((1, 4, 4), width=8, multipliers=(1, 1))
    >>> x = torch.zeros(1, 1, 4, 4)
    >>> loss = autoencoder_loss(GaussianAutoencoder(network), x, torch.zeros(1, 4, 2, 2))
    >>> loss.shape
    torch.Size([1])
    """
    remedy = "pass GaussianAutoencoder(network)"
    an_object("autoencoder_loss", "model", model, GaussianAutoencoder, remedy)
    check_state("autoencoder_loss", eps, "eps")
    number("autoencoder_loss", "beta", beta, "pass beta=1.0")
    model.check_data(x)
    if eps.shape != (len(x), *model.latent):
        rule = f"have the shape {(len(x), *model.latent)} of the latents"
        got = tuple(eps.shape)
        raise wrong_value("autoencoder_loss", "eps", rule, got, "draw it with torch.randn")
    mean, std = model.network.posterior(x)
    around, sigma = model.network.reconstruction(mean + std * eps)
    kl = 0.5 * flat_sum(
        mean.double().square() + std.double().square() - 1 - 2 * std.double().log()
    )
    return (beta * kl - normal_log_prob(x, around, sigma)) / x[0].numel()


@final
class AutoencoderBound(Objective):
    """The mean of `autoencoder_loss`, which trains a `GaussianAutoencoder`; it has no times.

    Arguments:
        beta: β, the weight of the divergence; at least 0.

    >>> AutoencoderBound(1e-3).beta
    0.001
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__(UniformTimes(), Stratified(), 0.0)
        number("AutoencoderBound", "beta", beta, "pass beta=1.0")
        if beta < 0:
            raise wrong_value("AutoencoderBound", "beta", "be at least 0", beta, "pass beta=1.0")
        self.beta = beta

    def check(self, model: ScoreModel) -> None:
        self._refuse(model)

    def check_direct(self, model: DirectScore) -> None:
        self._refuse(model)

    def check_matrix(self, model: MatrixScoreModel) -> None:
        self._refuse(model)

    def check_autoencoder(self, model: GaussianAutoencoder) -> None:
        """Accept every one."""

    def _refuse(self, model: object) -> None:
        rule = "be a GaussianAutoencoder for AutoencoderBound"
        remedy = "leave it out"
        raise wrong_type("train", "model", rule, type(model).__name__, remedy)

    def draw(self, sde: Any, n: int, generator: torch.Generator) -> Drawn:  # noqa: ANN401, ARG002
        """Return no times, and weights of 1."""
        none = torch.zeros(n, dtype=torch.float64)
        return Drawn(none, none, torch.ones(n, dtype=torch.float64))

    def forward(self, model: Any, batch: Batch) -> Tensor:  # noqa: ANN401  (as was checked)
        x = batch.x0
        eps = batch.noise.normal(x.new_empty(len(x), *model.latent))
        return autoencoder_loss(model, x, eps, self.beta)
