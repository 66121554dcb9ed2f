"""The bound of a discrete DDPM, −log p(x0) ≤ L_T + L_{N−1} + … + L_1 + L_0, term by term."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sde_diffusion._check import an_object, wrong_value
from sde_diffusion._progress import bar
from sde_diffusion._seeds import Purpose, check_seed, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import flat_sum
from sde_diffusion.coefficients import Levels
from sde_diffusion.counting import CountedScore
from sde_diffusion.data.checks import check_levels
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.ddpm.variances import (
    ForwardVariance,
    PosteriorVariance,
    Variance,
    column,
    counted,
    predicted,
)
from sde_diffusion.likelihood.continuous_bound import prior_kl
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
from sde_diffusion.scores import ScoreLike


@final
@dataclass(frozen=True, eq=False)
class StepTable:
    """L_0, L_1 … L_{N−1} (step k is L_{k−1}) over the samples and draws that fell on each.

    Tables of several batches add up.

    Arguments:
        number: how many samples and draws fell on each step; (N,), float64.
        total: the sum of their terms; (N,), float64, nats.
        squares: the sum of the squares of their terms; (N,), float64, nats².
        dimension: the dimensions D of a sample.
    """

    number: Tensor
    total: Tensor
    squares: Tensor
    dimension: int

    def __add__(self, other: StepTable) -> StepTable:
        return StepTable(
            self.number + other.number,
            self.total + other.total,
            self.squares + other.squares,
            self.dimension,
        )

    @property
    def nats(self) -> Tensor:
        """The mean of each step, NaN where there is none."""
        return self.total / self.number

    @property
    def bits_per_dim(self) -> Tensor:
        """The mean of each step in bits per dimension."""
        return self.nats / (self.dimension * math.log(2))

    @property
    def standard_error(self) -> Tensor:
        """The standard error of `nats` over samples and draws, NaN below two."""
        spread = (self.squares / self.number - self.nats.square()).clamp(min=0)
        return torch.where(self.number > 1, (spread / (self.number - 1)).sqrt(), math.nan)


@final
@dataclass(frozen=True)
class DiscreteBound:
    """Lower bounds on the log-likelihoods of a batch under a DDPM.

    `terms` are "prior" L_T, "diffusion" Σ L_{k−1} over k ≥ 2 and "reconstruction" L_0; they sum
    to −nats.

    Arguments:
        nats: the lower bound on log p(x); (B,), float64, nats.
        bits_per_dim: −nats/(D ln 2), plus the offset of dequantized levels; (B,), float64.
        standard_error: the standard error of nats over the draws; (B,), float64, nats.
        terms: the parts of −log p(x) by name; (B,) each, float64, nats.
        nfe: evaluations of the model, each of the whole batch.
        per_step: every L_{k−1} over the samples and draws of the batch.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    terms: Mapping[str, Tensor]
    nfe: int
    per_step: StepTable

    __repr__ = shown


def step_bound(
    x0: Tensor,
    x0_hat: Tensor,
    x: Tensor,
    chain: Chain,
    k: Tensor,
    variance: Variance,
    decoder: Decoder,
) -> Tensor:
    """Return L_{k−1} = KL(q(x_{k−1}|x_k, x0) ‖ p_θ(x_{k−1}|x_k)), and L_0 = −log p_θ(x0|x_1).

    p_θ is N(μ̃(x_k, x̂0), σ_k²), so that L_{k−1} is the sum over the dimensions of a sample of
    ½(q − log(1 + q)) + (alpha_{k−1} r_k)² (x0 − x̂0)²/(2σ_k²), q = β̃_k/σ_k² − 1.

    Arguments:
        x0: the data, scaled; (B, *event).
        x0_hat: x̂0, the model's estimate of x0 from x_k; (B, *event).
        x: the state x_k; (B, *event).
        chain: the chain that q is of.
        k: the step of each sample, from 1; (B,).
        variance: the model's σ_k².
        decoder: the distribution of x0 given its mean and variance, for k = 1.

    Shapes: result (B,), float64, nats.
    Source: Ho et al. 2020, equation 8, whose constant is the term in q.
    """
    v = variance.at(chain, x, k)
    last = (k == 1).to(x.device)
    if bool((k == 1).all()):
        return -decoder.log_prob(x0, x0_hat.double(), v)
    # β̃_1 = 0 would leave an infinity, and NaN in its gradient, where the step is not asked for.
    q = PosteriorVariance().at(chain, x, k) / v - 1
    pull = column(chain.data_weights[k - 1], x).square() / (2 * v)
    square = (x0.double() - x0_hat.double()).square()
    kl = flat_sum(0.5 * (q - q.log1p()) + pull * square)
    if not bool((k == 1).any()):
        return kl
    return torch.where(last, -decoder.log_prob(x0, x0_hat.double(), v), kl)


def vlb(
    x: Tensor,
    model: ScoreLike,
    grid: Tensor,
    *,
    variance: Variance | None = None,
    decoder: Decoder | None = None,
    draws: int | None = None,
    seed: int = 0,
    first: int = 0,
    levels: int | None = None,
    progress: bool = False,
) -> DiscreteBound:
    """Return the DDPM's bound L_T + Σ L_{k−1} + L_0 on log p(x) of every sample.

    Without ``draws`` every step is evaluated, at two independent noises. Of ``draws`` two go to
    L_0 and the rest to random k, two in each of equal strata of λ, so that p_k ∝ λ_{k−1} − λ_k;
    the differences of the two give the standard error, as in `elbo`.

    Arguments:
        x: the data, scaled; (B, *event).
        model: a score model or oracle, with .sde and .denoise.
        grid: falling times of the chain, as lattice(1000) or a part of it; (N + 1,), in [0, 1].
        variance: σ_k²; by default what the model has learned, or else `ForwardVariance`.
        decoder: p(x0|x_1); by default N(x̂0(x_1), σ_1²), for integers a `BinDecoder`.
        draws: draws of (k, eps) for each sample; even, at least 4; all steps by default.
        seed: the seed of eps and k.
        first: the index of the first sample in its data set: sample i draws by first + i.
        levels: of dequantized integers, whose offset log2(levels/2) bits_per_dim then has.
        progress: show a bar of the evaluations that are done.

    NFE: 2N, or ``draws``, of B rows each; twice that with a `LearnedVariance` that is given.
    Errors: as `elbo`, and ValueError for a grid that does not fall to 0.
    Source: Ho et al. 2020, equation 5; Nichol & Dhariwal 2021, section 3.3.

    >>> from sde_diffusion import VPSDE, Gaussian, lattice
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> bound = vlb(torch.zeros(1, 1, dtype=torch.float64), model, lattice(50))
    >>> abs(bound.nats.item() + 0.918939) < 4 * bound.standard_error.item()
    True
    """
    check_model("vlb", x, model)
    check_seed("vlb", seed)
    if variance is not None:
        an_object("vlb", "variance", variance, Variance, "pass for example PosteriorVariance()")
    check_levels("vlb", model.data, levels)
    decoder = check_decoder("vlb", x, decoder, levels)
    sde = model.linear_sde()
    chain = Chain(sde, grid)
    if draws is not None:
        check_draws("vlb", draws, least=4)
        if len(chain) == 1:
            raise wrong_value(
                "vlb", "draws", "be left out for a chain of one step", draws, "drop it"
            )
    score = CountedScore(model)
    variance = counted(score, variance)
    noise = PerSampleNoise.numbered(mix(seed, Purpose.VLB), first, len(x))
    # The weight of ‖eps − eps_θ‖² in L_{k−1}, which its control variate ‖eps‖² − D has as well.
    pull = (chain.data_weights * chain.sigma[1:] / chain.alpha[1:]).square()
    pull[chain.alpha[1:] < 1e-6 * chain.sigma[1:]] = 0  # in pure noise eps says nothing of L
    about = variance or (PosteriorVariance() if score.variance == "learned" else ForwardVariance())
    pull = pull / (2 * about.table(chain))
    pull[0] *= decoder.control
    tally = _Tally(len(chain), x[0].numel())

    def draw(k: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        eps = noise.normal(x)
        # x_k = √ᾱ_k x0 + √(1−ᾱ_k) eps
        x_k = chain.perturb(x, k, eps)
        t = chain.times[k]
        at = Levels(sde.alpha(t), sde.sigma(t))
        # x̂0 = (x_k − √(1−ᾱ_k) eps_θ)/√ᾱ_k, and σ_k²
        x0_hat, step_variance = predicted(score, x_k, t, at, variance)
        # L_{k−1} = KL(q(x_{k−1}|x_k, x0) ‖ p_θ(x_{k−1}|x_k)), L_0 = −log p_θ(x0|x_1)
        value = step_bound(x, x0_hat, x_k, chain, k, step_variance, decoder)
        snr = (chain.alpha[k] / chain.sigma[k]).square().to(x.device)
        excess = squares(eps) - x[0].numel()
        # less its control variate, c (‖eps‖² − D) with the same weight and mean 0
        return value - c * pull.to(x.device)[k - 1] * excess, snr * squares(x - x0_hat)

    evaluations = 2 * len(chain) if draws is None else draws
    with torch.no_grad(), bar(evaluations, "evaluation", shown=progress) as done:
        control = Control(x)
        pairs = Pairs(2, x)
        for ks, weights in _steps(chain, draws, noise, x):
            (one, e1), (other, e2) = (draw(k, control.c) for k in ks)
            tally.add(ks, (one, other))
            row = 1 if int(ks[0][0]) == 1 else 0
            halves = x.new_zeros(2, 2, len(x), dtype=torch.float64)
            # Σ_k L_{k−1} ≈ Σ_strata ½ (L_{k−1}/p_k + L_{k'−1}/p_{k'})/strata
            halves[:, row] = torch.stack([one, other]) * weights.to(x.device)
            pairs.add(*halves)
            control.see(e1, e2)
            done.update(2)
        # −log p(x0) ≤ L_T + Σ L_{k−1} + L_0
        terms = {
            "prior": prior_kl(x, sde),
            "diffusion": pairs.total[0],
            "reconstruction": pairs.total[1],
        }
    nats, bits = totals("vlb", terms, x, levels)
    return DiscreteBound(nats, bits, pairs.standard_error, terms, score.calls, tally.table())


def _steps(
    chain: Chain, draws: int | None, noise: PerSampleNoise, x: Tensor
) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Yield two k of each stratum, (B,), and the weights of their terms in the sum, (2, B)."""
    n = len(chain)
    half = torch.full((2, len(x)), 0.5, dtype=torch.float64)
    for k in range(1, n + 1 if draws is None else 2):
        ks = torch.full((len(x),), k)
        yield (ks, ks), half
    if draws is None:
        return
    strata = draws // 2 - 1
    widths = -torch.log1p(-chain.share[1:])  # 2(λ_{k−1} − λ_k) for k = 2 … N
    widths[widths.isinf()] = 1.0  # λ is −∞ in pure noise, and any width will do
    p = widths / widths.sum()
    edges = p.cumsum(0)[:-1]
    for stratum in range(strata):
        one, other = (
            torch.searchsorted(edges, (stratum + uniforms(noise, x)) / strata) for _ in range(2)
        )
        yield (one + 2, other + 2), 0.5 / (strata * p[torch.stack([one, other])])


class _Tally:
    """The sums of a `StepTable` as they grow."""

    def __init__(self, n: int, dimension: int) -> None:
        self._sums = torch.zeros(3, n, dtype=torch.float64)
        self._dimension = dimension

    def add(self, ks: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> None:
        """Add the terms of two draws; those of one sample at one k count once, by their mean."""
        (k1, k2) = ks
        (one, other) = (value.cpu() for value in values)
        same = k1 == k2
        one = torch.where(same, 0.5 * (one + other), one)
        for k, value in ((k1, one), (k2[~same], other[~same])):
            rows = torch.stack([torch.ones_like(value), value, value.square()])
            self._sums.index_add_(1, k - 1, rows)

    def table(self) -> StepTable:
        """Return the sums so far."""
        number, total, square = self._sums
        return StepTable(number, total, square, self._dimension)
