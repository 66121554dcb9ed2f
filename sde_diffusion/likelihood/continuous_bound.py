"""Variational bounds on log p(x0): decoders of the last step and the bound in continuous time.

A model that draws x_T from the prior π, follows its reverse SDE down to t_min and draws x0 from a
decoder there has, with λ = log(alpha/sigma) and both forms of `weighting.likelihood`,

    −log p(x0) ≤ KL(q(x_T|x0) ‖ π) + ½ ∫ (g²/sigma²) E‖eps − eps_θ‖² dt + E[−log p(x0|x_{t_min})]
               = prior             + ∫ E‖eps − eps_θ‖² dλ                + reconstruction.

The middle term is −½ ∫ SNR'(t) E‖x0 − x̂0‖² dt as well, so the schedule matters by its ends alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sde_diffusion._check import an_object
from sde_diffusion._progress import bar
from sde_diffusion._seeds import Purpose, check_seed, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state, flat_sum
from sde_diffusion.coefficients import Coefficients, Level
from sde_diffusion.counting import Counter
from sde_diffusion.data.checks import check_levels
from sde_diffusion.likelihood.decoders import Decoder
from sde_diffusion.likelihood.estimates import (
    Control,
    Pairs,
    check_decoder,
    check_draws,
    check_model,
    squares,
    totals,
    uniforms,
)
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.scores import ScoreLike, first_time
from sde_diffusion.sde import LinearSDE
from sde_diffusion.time_distributions import LikelihoodTimes, log_snr_range


def prior_kl(x0: Tensor, sde: LinearSDE) -> Tensor:
    """Return KL(q(x_T|x0) ‖ π) at the horizon T, π = `sde.prior()`: DDPM's L_T.

    Shapes: x0 (B, *event); result (B,), float64, nats.
    """
    end = _level(sde, sde.horizon)
    std = sde.prior().std
    excess = (end.sigma / std) ** 2 - 1  # of the variance: ½(excess − log(1 + excess)) a dimension
    spread = x0[0].numel() * (excess - math.log1p(excess))
    return 0.5 * ((end.alpha / std) ** 2 * flat_sum(x0.double().square()) + spread)


@final
@dataclass(frozen=True)
class Bound:
    """Lower bounds on the log-likelihoods of a batch, with their parts and errors.

    `terms` are "prior", "diffusion" and "reconstruction"; they sum to −nats.

    Arguments:
        nats: the lower bound on log p(x); (B,), float64, nats.
        bits_per_dim: −nats/(D ln 2), plus the offset of dequantized levels; (B,), float64.
        standard_error: the standard error of nats over the draws; (B,), float64, nats.
        terms: the parts of −log p(x) by name; (B,) each, float64, nats.
        nfe: evaluations of the model, each of the whole batch.
        t_min: the time of the decoder, in [0, 1].
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    terms: Mapping[str, Tensor]
    nfe: int
    t_min: float

    __repr__ = shown


def elbo(
    x: Tensor,
    model: ScoreLike,
    *,
    decoder: Decoder | None = None,
    draws: int = 32,
    seed: int = 0,
    first: int = 0,
    t_min: float | None = None,
    levels: int | None = None,
    progress: bool = False,
) -> Bound:
    """Return the evidence lower bound in continuous time on log p(x) of every sample.

    Without a decoder x is real data and the bound is one of its density. A `LevelDecoder` bounds
    the log-probability of the integers themselves, x being the centres of their bins.

    Times are uniform in λ, two independent draws in each of draws/2 equal strata; the differences
    of the two give the standard error without bias. c (‖eps‖² − D), of mean 0, is subtracted from
    every ‖eps − eps_θ‖² as a control variate, with c the mean of ‖eps − eps_θ‖²/D in the strata
    before. Sample i draws from ``seed`` and ``first`` + i alone.

    Arguments:
        x: the data, scaled; (B, *event).
        model: a score model or oracle, with .sde and .eps.
        decoder: p(x|x_t) at t_min; by default N(x_t/alpha, sigma²/alpha²).
        draws: draws of (t, eps) for each sample; even, at least 2.
        seed: the seed of t and eps.
        first: the index of the first sample in its data set.
        t_min: the time of the decoder, at which the diffusion term begins; in (0, 1). None for
            the model's own, or 1e-5.
        levels: of dequantized integers, whose offset log2(levels/2) bits_per_dim then has.
        progress: show a bar of the evaluations that are done.

    NFE: ``draws``, of B rows each.
    Errors: ValueError for an odd number of draws, a model in training mode, data that the decoder
    does not describe; FloatingPointError for a result that is not finite.
    Source: Song et al. 2021, "Maximum likelihood training", theorem 3; Kingma et al. 2021 (VDM).

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> bound = elbo(torch.zeros(1, 1, dtype=torch.float64), model, draws=2000)
    >>> abs(bound.nats.item() + 0.918939) < 4 * bound.standard_error.item() + 1e-5
    True
    """
    check_model("elbo", x, model)
    check_levels("elbo", model.data, levels)
    decoder = check_decoder("elbo", x, decoder, levels)
    check_draws("elbo", draws)
    check_seed("elbo", seed)
    sde = model.linear_sde()
    t_min = first_time(model, t_min)
    counter = Counter()
    predicted = counter.counting(model.eps)
    noise = PerSampleNoise.numbered(mix(seed, Purpose.ELBO), first, len(x))
    far, near = log_snr_range(sde, t_min)
    end = _level(sde, t_min)
    std = end.sigma / end.alpha
    width = float(far - near)
    variance = torch.tensor(std**2, dtype=torch.float64, device=x.device)
    strata = draws // 2

    def draw(stratum: int, control: Control) -> tuple[Tensor, Tensor]:
        u = (stratum + uniforms(noise, x)) / strata
        # t with λ(t) uniform in the stratum, x_t = alpha x0 + sigma eps
        t = LikelihoodTimes().time(sde, u, t_min)
        eps = noise.normal(x)
        # ‖eps − eps_θ(x_t, t)‖²
        error = squares(eps - predicted(sde.perturb(x, t, eps), t))
        excess = squares(eps) - x[0].numel()
        # ∫ E‖eps − eps_θ‖² dλ, less c (‖eps‖² − D) of mean 0
        diffusion = width * (error - control.c * excess)
        # −log p(x0|x_t) at t_min, where x_t/alpha = x0 + (sigma/alpha) eps
        left = decoder.log_prob(x, x.double() + std * eps.double(), variance)
        reconstruction = -left - 0.5 * decoder.control * excess
        return torch.stack([diffusion, reconstruction]) / draws, error

    with torch.no_grad(), bar(draws, "evaluation", shown=progress) as done:
        control = Control(x)
        pairs = Pairs(2, x)
        for stratum in range(strata):
            (one, e1) = draw(stratum, control)
            (other, e2) = draw(stratum, control)
            pairs.add(one, other)
            control.see(e1, e2)
            done.update(2)
        # −log p(x0) ≤ KL(q(x_T|x0) ‖ π) + diffusion + reconstruction
        terms = {
            "prior": prior_kl(x, sde),
            "diffusion": pairs.total[0],
            "reconstruction": pairs.total[1],
        }
    nats, bits = totals("elbo", terms, x, levels)
    return Bound(nats, bits, pairs.standard_error, terms, counter.calls, t_min)


def score_form(bound: Bound, x: Tensor, sde: LinearSDE) -> Bound:
    """Return a bound of `elbo` with its terms as in theorem 3 of Song et al.

    −log p(x0) ≤ "prior" −E log π(x_T), "score" ½ ∫ g² (E‖s_θ − ∇log q‖² − E‖∇log q‖²) dt,
    "divergence" −∫ ∇·f dt, all on [t_min, T], and "end", what the step from x_{t_min} to x0 adds:
    E[log q(x_{t_min}|x0) − log p(x0|x_{t_min})], which is −D log alpha(t_min) for a
    `GaussianDecoder`. With ∇log q = −eps/sigma, ∇·f = D dlog alpha/dt and
    g²/sigma² = −2 dλ/dt they sum to what the terms of the bound sum to.
    """
    an_object("score_form", "bound", bound, Bound, "pass what elbo(x, model) returned")
    check_state("score_form", x)
    an_object("score_form", "sde", sde, LinearSDE, "pass model.sde")
    d = x[0].numel()
    start = _level(sde, bound.t_min)
    end = _level(sde, sde.horizon)

    def entropy(sigma: float) -> float:
        """Return that of N(·, sigma² I)."""
        return 0.5 * d * math.log(2 * math.pi * math.e * sigma**2)

    terms = {
        "prior": bound.terms["prior"] + entropy(end.sigma),
        "score": bound.terms["diffusion"] - d * (start.lambda_ - end.lambda_),
        "divergence": torch.full_like(bound.nats, -d * math.log(end.alpha / start.alpha)),
        "end": bound.terms["reconstruction"] - entropy(start.sigma),
    }
    return Bound(
        bound.nats, bound.bits_per_dim, bound.standard_error, terms, bound.nfe, bound.t_min
    )


def _level(sde: LinearSDE, t: float) -> Level:
    return Coefficients(sde).level(torch.tensor(t, dtype=torch.float64))
