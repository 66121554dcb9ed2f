"""The log-likelihood of samples under a score model of their latents.

With q(z|x), p(x|z) and the score model's density p(z),

    log p(x) ≥ E_q[log p(x|z) + log p(z) − log q(z|x)],

and log p(x) = log p(z) + log|det ∂z/∂x| where the autoencoder is invertible.

Source: Kingma & Welling 2014, equation 3; Vahdat et al. 2021 (LSGM), equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion._check import a_function, an_object, positive_integer, wrong_value
from sde_diffusion._seeds import Purpose, check_seed, mix
from sde_diffusion._shown import shown
from sde_diffusion.latents.latent_model import LatentModel
from sde_diffusion.likelihood.continuous_bound import Bound
from sde_diffusion.likelihood.flow import LogLikelihood
from sde_diffusion.noise import PerSampleNoise

_WHAT: Final = "latent_log_prob"
# What `log_prob` or `elbo` find of latents, the first of which is sample ``first``.
LatentLogDensity: TypeAlias = Callable[[Tensor, int], LogLikelihood | Bound]


@final
@dataclass(frozen=True)
class LatentLogLikelihood:
    """Lower bounds on the log-likelihoods of a batch, or these themselves where that is exact.

    `standard_error` is that of the mean over the draws of z, with the error of log p(z) of each
    draw, whose probes are the same; NaN for one draw of what is no exact autoencoder.
    `terms` are "latent" = E log p(z) and, of a Gaussian autoencoder, "decoder" = E log p(x|z) and
    "encoder" = −E log q(z|x), of an invertible one "log_det"; they sum to `nats`.

    Arguments:
        nats: log p(x) or a lower bound of it; (B,), float64, nats.
        bits_per_dim: −nats/(D ln 2) with the D dimensions of x, plus log2(levels/2) for levels
            scaled to [−1, 1]; (B,).
        standard_error: of nats; (B,), float64, nats.
        tolerance_error: the solver's part, as in `LogLikelihood`; NaN where none is known; (B,).
        terms: the parts of nats by name; (B,) each, float64, nats.
        nfe: evaluations of the score, of all draws.
        exact: whether nats is log p(x) itself but for the errors.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    tolerance_error: Tensor
    terms: Mapping[str, Tensor]
    nfe: int
    exact: bool

    __repr__ = shown


def latent_log_prob(
    x: Tensor,
    model: LatentModel,
    log_p: LatentLogDensity,
    *,
    draws: int = 4,
    seed: int = 0,
    first: int = 0,
    levels: int | None = None,
) -> LatentLogLikelihood:
    """Return a lower bound on log p(x) of every sample, and log p(x) of an exact autoencoder.

    Arguments:
        x: the samples, scaled, of levels dequantized; (B, *event).
        model: the score model of latents with its autoencoder.
        log_p: called as log_p(z, first), returns what `log_prob` or `elbo` found of latents.
        draws: of z for each sample; an exact autoencoder draws none, and is evaluated once.
        seed: of the draws.
        first: the index of the first sample in its data set.
        levels: of dequantized integers, whose offset log2(levels/2) bits_per_dim then has.

    NFE: that of log_p, ``draws`` times.
    Errors: TypeError for other objects, ValueError for samples of another shape or latents in
    their place, and for a model in training mode.

    >>> from sde_diffusion import Gaussian, LinearAutoencoder, ProbabilityFlow, VPSDE, log_prob
    >>> from sde_diffusion.solvers import DormandPrince
    >>> score = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> model = LatentModel(LinearAutoencoder(0.5 * torch.eye(1)), score)
    >>> flow = ProbabilityFlow(model.sde, model)
    >>> x = torch.zeros(1, 1, dtype=torch.float64)
    >>> found = latent_log_prob(x, model, lambda z, first: log_prob(z, flow, DormandPrince()))
    >>> round(found.nats.item(), 6)  # of N(0, 4)
    -1.612086
    """
    _check(model, log_p, draws)
    check_seed(_WHAT, seed)
    model.autoencoder.check_data(x)
    noise = PerSampleNoise.numbered(mix(seed, Purpose.LATENTS), first, len(x))
    number = 1 if model.autoencoder.exact else draws
    found = [_one(x, model, log_p, noise, first) for _ in range(number)]
    terms = {
        name: torch.stack([one.terms[name] for one in found]).mean(0) for name in found[0].terms
    }
    each = torch.stack([sum(one.terms.values(), torch.zeros(())) for one in found])
    nats = each.mean(0)
    between = torch.zeros_like(nats)
    if not model.autoencoder.exact:  # NaN of one draw: nothing is known of its error
        between = each.std(0, correction=1) / math.sqrt(number) if number > 1 else nats * math.nan
    # The probes of all draws are the same, and their errors add up.
    within = torch.stack([one.error for one in found]).mean(0)
    offset = 0.0 if levels is None else math.log2(levels / 2)
    return LatentLogLikelihood(
        nats,
        -nats / (x[0].numel() * math.log(2)) + offset,
        torch.hypot(between, within),
        torch.stack([one.tolerance for one in found]).mean(0),
        terms,
        sum(one.nfe for one in found),
        model.autoencoder.exact,
    )


@dataclass(frozen=True)
class _Draw:
    """What one draw of z gives: its terms, and the errors of log p(z)."""

    terms: Mapping[str, Tensor]
    error: Tensor
    tolerance: Tensor
    nfe: int


def _one(
    x: Tensor, model: LatentModel, log_p: LatentLogDensity, noise: PerSampleNoise, first: int
) -> _Draw:
    with torch.no_grad():
        z, terms = model.autoencoder.draw(x, noise)
    found = log_p(z, first)
    an_object(_WHAT, "log_p", found, (LogLikelihood, Bound), "return what log_prob or elbo found")
    unknown = torch.full_like(found.nats, math.nan)
    lost = found.tolerance_error if isinstance(found, LogLikelihood) else unknown
    return _Draw(
        {"latent": found.nats.double(), **terms},
        found.standard_error.double(),
        lost.double(),
        found.nfe,
    )


def _check(model: object, log_p: object, draws: int) -> None:
    an_object(_WHAT, "model", model, LatentModel, "pass LatentModel(autoencoder, score)")
    form = "(z, first) -> LogLikelihood"
    remedy = (
        "pass lambda z, first: log_prob(z, ProbabilityFlow(model.sde, model), DormandPrince())"
    )
    a_function(_WHAT, "log_p", log_p, form, remedy)
    positive_integer(_WHAT, "draws", draws)
    if isinstance(model, LatentModel) and model.in_training():
        remedy = "call model.eval() first"
        raise wrong_value(_WHAT, "model", "be in evaluation mode", "training", remedy)
