"""Variational bounds on log p(x0): decoders of the last step and the bound in continuous time.

A model that draws x_T from the prior π, follows its reverse SDE down to t_min and draws x0 from a
decoder there has, with λ = log(alpha/sigma) and both forms of `weighting.likelihood`,

    −log p(x0) ≤ KL(q(x_T|x0) ‖ π) + ½ ∫ (g²/sigma²) E‖eps − eps_θ‖² dt + E[−log p(x0|x_{t_min})]
               = prior             + ∫ E‖eps − eps_θ‖² dλ                + reconstruction.

The middle term is −½ ∫ SNR'(t) E‖x0 − x̂0‖² dt as well, so the schedule matters by its ends alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import diverged, positive_integer, wrong_type, wrong_value
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion._tensors import check_state, flat_sum
from sde_diffusion.coefficients import Coefficients, Level
from sde_diffusion.counting import CountedScore
from sde_diffusion.data.checks import check_dequantized
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.dynamics import check_coupling
from sde_diffusion.integration import check_evaluation
from sde_diffusion.models.protocols import NoisePredictor
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sde import LinearSDE
from sde_diffusion.time_distributions import LikelihoodTimes, log_snr_range

_TILE: Final = 16  # levels compared with every number at once


class Decoder(ABC):
    """The law of the data given a mean and a variance for each of its numbers."""

    control: ClassVar[float]  # the share of ½(x0 − mean)²/variance in −log p

    def check(self, what: str, x0: Tensor) -> None:  # noqa: B027  (a density takes any data)
        """Refuse data that this law does not describe."""

    @abstractmethod
    def log_prob(self, x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Return log p(x0), summed over the numbers of a sample.

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
    """A law on the values that integer data take, each number on its own."""

    control = 0.0

    def __init__(self, centres: Tensor) -> None:
        """Keep the values, ascending: (L,)."""
        what = type(self).__name__
        if centres.ndim != 1 or len(centres) < 2 or not bool((centres.diff() > 0).all()):
            raise wrong_value(what, "centres", "be two or more rising numbers",
                              tuple(centres.shape), "pass bin_centres(256)")  # fmt: skip
        self.centres = centres.detach().to("cpu", torch.float64)
        self.edges = 0.5 * (self.centres[1:] + self.centres[:-1])

    def check(self, what: str, x0: Tensor) -> None:
        off = (x0.double() - self.centres.to(x0.device)[self._index(x0)]).abs().max()
        if not float(off) <= 0.01 * float(self.centres.diff().min()):
            raise wrong_value(what, "x", f"lie on the {len(self.centres)} levels of the decoder",
                              f"a value {float(off):.3g} beside them",
                              "pass dataset.centred(), not dequantized data")  # fmt: skip

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
        # In tiles: all levels of all numbers would be hundreds of times the batch.
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
        k, std, last = self._index(x0), variance.sqrt(), len(self.edges)
        edges = self.edges.to(x0.device)
        low, high = ((edges[i.clamp(0, last - 1)] - mean) / std for i in (k - 1, k))
        # Beyond 40 deviations Φ is 0; an edge at infinity would leave NaN in the gradient.
        low = torch.where(k == 0, high.clamp(max=0) - 40, low)
        high = torch.where(k == last, low.clamp(min=0) + 40, high)
        # Mirrored into the lower tail, where the difference of two Φ keeps its digits.
        right = low + high > 0
        low, high = torch.where(right, -high, low), torch.where(right, -low, high)
        below, above = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
        return flat_sum(above + torch.log1p(-torch.exp(below - above)))


def bin_centres(levels: int) -> Tensor:
    """Return (2k + 1)/levels − 1 for k = 0 … levels − 1: where `DataSpec` puts integer data.

    >>> bin_centres(4).tolist()
    [-0.75, -0.25, 0.25, 0.75]
    """
    positive_integer("bin_centres", "levels", levels, least=2)
    return (2 * torch.arange(levels, dtype=torch.float64) + 1) / levels - 1


def prior_kl(x0: Tensor, sde: LinearSDE) -> Tensor:
    """Return KL(q(x_T|x0) ‖ π) at the horizon T, π = `sde.prior()`: DDPM's L_T.

    Shapes: (B, *event) → (B,), float64. Units: nats.
    """
    end, std = _level(sde, sde.horizon), sde.prior().std
    excess = (end.sigma / std) ** 2 - 1  # of the variance; ½(excess − log(1 + excess)) a number
    spread = x0[0].numel() * (excess - math.log1p(excess))
    return 0.5 * ((end.alpha / std) ** 2 * flat_sum(x0.double().square()) + spread)


@final
@dataclass(frozen=True)
class Bound:
    """Lower bounds on the log-likelihoods of a batch, with their parts and errors.

    Shapes: all tensors (B,), float64. Units: `nats` of log-likelihood, which `terms`, of −log p,
    sum to with the sign turned; `standard_error` (nats) is that of the mean over draws, and
    `bits_per_dim` = −nats/(D ln 2) + offset.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    terms: Mapping[str, Tensor]
    nfe: int
    t_min: float


def elbo(
    x: Tensor,
    model: NoisePredictor,
    *,
    decoder: Decoder | None = None,
    draws: int = 32,
    seed: int = 0,
    first: int = 0,
    t_min: float = 1e-5,
    levels: int | None = None,
) -> Bound:
    """Return the continuous-time bound on log p(x) of every sample, from ``draws`` of (t, eps).

    Without a decoder x is real data and the bound one of its density, by N(x_t/alpha,
    sigma²/alpha²) at t_min; ``levels`` adds the offset log2(levels/2) of dequantized integers. A
    `LevelDecoder` bounds the log-probability of the integers themselves, x being bin centres.

    Times are uniform in λ, two independent draws in each of draws/2 equal strata; the differences
    of the two give the standard error without bias. c (‖eps‖² − D), of mean 0, is taken off every
    ‖eps − eps_θ‖², with c what ‖eps − eps_θ‖²/D was in the strata before. Sample i draws from
    ``seed`` and ``first`` + i alone.

    Shapes: x (B, *event).
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
    check_model("elbo", x, model, "eps")
    decoder = check_decoder("elbo", x, decoder, levels)
    check_draws("elbo", draws)
    sde, predicted = model.sde, CountedScore(model.eps)
    noise = PerSampleNoise.numbered(mix(seed, Purpose.ELBO), first, len(x))
    far, near = log_snr_range(sde, t_min)
    end = _level(sde, t_min)
    std, width = end.sigma / end.alpha, float(far - near)
    variance = torch.tensor(std**2, dtype=torch.float64, device=x.device)
    strata = draws // 2

    def draw(stratum: int, control: Control) -> tuple[Tensor, Tensor]:
        u = (stratum + uniforms(noise, x)) / strata
        t, eps = LikelihoodTimes().time(sde, u, t_min), noise.normal(x)
        error = squares(eps - predicted(sde.perturb(x, t, eps), t))
        excess = squares(eps) - x[0].numel()
        diffusion = width * (error - control.c * excess)
        left = decoder.log_prob(x, x.double() + std * eps.double(), variance)
        reconstruction = -left - 0.5 * decoder.control * excess
        return torch.stack([diffusion, reconstruction]) / draws, error

    with torch.no_grad():
        control = Control(x)
        pairs = Pairs(2, x)
        for stratum in range(strata):
            (one, e1), (other, e2) = draw(stratum, control), draw(stratum, control)
            pairs.add(one, other)
            control.see(e1, e2)
        terms = {"prior": prior_kl(x, sde), "diffusion": pairs.total[0],
                 "reconstruction": pairs.total[1]}  # fmt: skip
    nats, bits = totals("elbo", terms, x, levels)
    return Bound(nats, bits, pairs.standard_error, terms, predicted.calls, t_min)


def score_form(bound: Bound, x: Tensor, sde: LinearSDE) -> Bound:
    """Return a bound of `elbo` with its terms as in theorem 3 of Song et al.

    −log p(x0) ≤ "prior" −E log π(x_T), "score" ½ ∫ g² (E‖s_θ − ∇log q‖² − E‖∇log q‖²) dt,
    "divergence" −∫ ∇·f dt, all on [t_min, T], and "end", what the step from x_{t_min} to x0 adds:
    E[log q(x_{t_min}|x0) − log p(x0|x_{t_min})], which is −D log alpha(t_min) for a
    `GaussianDecoder`. With ∇log q = −eps/sigma, ∇·f = D dlog alpha/dt and
    g²/sigma² = −2 dλ/dt they sum to what the terms of the bound sum to.
    """
    d, start, end = x[0].numel(), _level(sde, bound.t_min), _level(sde, sde.horizon)

    def entropy(sigma: float) -> float:
        """Return that of N(·, sigma² I)."""
        return 0.5 * d * math.log(2 * math.pi * math.e * sigma**2)

    terms = {
        "prior": bound.terms["prior"] + entropy(end.sigma),
        "score": bound.terms["diffusion"] - d * (start.lambda_ - end.lambda_),
        "divergence": torch.full_like(bound.nats, -d * math.log(end.alpha / start.alpha)),
        "end": bound.terms["reconstruction"] - entropy(start.sigma),
    }
    return Bound(bound.nats, bound.bits_per_dim, bound.standard_error, terms, bound.nfe,
                 bound.t_min)  # fmt: skip


class Pairs:
    """Sums of terms over pairs of independent draws, and the error that the differences show."""

    def __init__(self, terms: int, x: Tensor) -> None:
        self.total = torch.zeros(terms, len(x), dtype=torch.float64, device=x.device)
        self._variance = torch.zeros_like(self.total[0])

    def add(self, one: Tensor, other: Tensor) -> None:
        """Add both draws of one stratum, each (terms, B) with its weight in it."""
        self.total += one + other
        self._variance += (one - other).sum(0).square()

    @property
    def standard_error(self) -> Tensor:
        """The standard error of the sum of all terms, (B,): E(y₁ − y₂)² = Var(y₁ + y₂)."""
        return self._variance.sqrt()


class Control:
    """The coefficient c of the control variate ‖eps‖² − D, for every sample.

    Near the data ‖eps − eps_θ‖² ≈ ‖eps‖², near the prior it does not depend on it; the best c
    is close to the level E‖eps − eps_θ‖²/D in between. It is read off earlier strata alone, so
    that draws and coefficient are independent: the mean stays what it is, and so does the
    standard error.
    """

    def __init__(self, x: Tensor) -> None:
        self.c = torch.ones(len(x), dtype=torch.float64, device=x.device)
        self._d = x[0].numel()

    def see(self, one: Tensor, other: Tensor) -> None:
        """Follow the level of ‖eps − eps_θ‖², (B,), in a stratum that is done."""
        self.c = 0.5 * self.c + 0.25 * (one + other) / self._d


def uniforms(noise: PerSampleNoise, x: Tensor) -> Tensor:
    """Return a number uniform on (0, 1) for each sample, (B,) float64 on the CPU."""
    normals = noise.normal(torch.empty(len(x), 1, dtype=torch.float64, device=x.device))
    u: Tensor = torch.special.ndtr(normals[:, 0])
    return u.cpu()


def squares(x: Tensor) -> Tensor:
    """Return ‖x‖² of every sample: (B, *event) → (B,), float64."""
    return flat_sum(x.double().square())


def check_model(what: str, x: Tensor, model: object, method: str) -> None:
    """Refuse what is no state, and models in training, coupled or without .sde and ``method``."""
    check_state(what, x)
    if not isinstance(getattr(model, "sde", None), LinearSDE) or not hasattr(model, method):
        raise wrong_type(what, "model", f"be a score model with .sde and .{method}",
                         type(model).__name__,
                         "pass a ScoreModel, or an oracle's .diffused(sde)")  # fmt: skip
    check_evaluation(what, model)
    check_coupling(what, "model", model)


def check_decoder(what: str, x: Tensor, decoder: Decoder | None, levels: int | None) -> Decoder:
    """Return the decoder, `GaussianDecoder` if none is given, refusing data that do not fit."""
    decoder = GaussianDecoder() if decoder is None else decoder
    decoder.check(what, x)
    if levels is not None:
        if not isinstance(decoder, GaussianDecoder):
            raise wrong_value(what, "levels", "be left out with a decoder of levels", levels,
                              "drop it: that bound needs no offset")  # fmt: skip
        check_dequantized(what, x, DataSpec("x", tuple(x.shape[1:]), levels))
    return decoder


def check_draws(what: str, draws: int, *, least: int = 2) -> None:
    """Refuse a number of draws that does not make pairs."""
    positive_integer(what, "draws", draws, least=least)
    if draws % 2:
        raise wrong_value(what, "draws", "be even: they are drawn in pairs", draws,
                          f"pass draws={draws + 1}")  # fmt: skip


def totals(
    what: str, terms: Mapping[str, Tensor], x: Tensor, levels: int | None
) -> tuple[Tensor, Tensor]:
    """Return nats and bits per dimension of the terms of −log p.

    Errors: FloatingPointError naming the term that is not finite.
    """
    for name, term in terms.items():
        if not bool(term.isfinite().all()):
            raise diverged(what, f"the {name} term", "be finite", float(term.sum()),
                           "look for NaN or huge numbers in the model's output")  # fmt: skip
    nats = -sum(terms.values(), torch.zeros(()))
    offset = 0.0 if levels is None else math.log2(levels / 2)
    return nats, -nats / (x[0].numel() * math.log(2)) + offset


def _level(sde: LinearSDE, t: float) -> Level:
    return Coefficients(sde).level(torch.tensor(t, dtype=torch.float64))
