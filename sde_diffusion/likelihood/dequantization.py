"""Probabilities of integers from densities: log P(k) ≥ log p(k + u) − log q(u|k).

P(k) = ∫ p(k + u) du over the bins [0, 1)^D, so w = p(k + u)/q(u|k) with u from q(·|k) has the mean
P(k), and log w, or the log of the mean of several w, is on average at most log P(k).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_type, wrong_value
from sde_diffusion._seeds import Purpose, check_seed, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import flat_sum
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.noise import PerSampleNoise

_LAST: Final = math.nextafter(1, 0)

# The log-density in nats, (B,), of scaled x (B, *event), the first of which is sample ``first``.
LogDensity = Callable[[Tensor, int], Tensor]


class Dequantizer(ABC):
    """A distribution q(u|k) of the noise u in [0, 1)^D in the bins of the levels k.

    It is a map from standard normals, so that u can be differentiated in what the map learns.
    """

    seed: int

    __repr__ = shown

    @abstractmethod
    def transform(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return u(z; k) and log q(u|k) for standard normals z.

        Shapes: z, k and u (B, *event), log q (B,); float64. Units: nats.
        """

    def draws(self, k: Tensor, number: int = 1, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield u and log q(u|k), ``number`` times, for samples first, first + 1, …

        They depend on the seed, the sample's index and its k alone, bit for bit.
        """
        purpose = mix(self.seed, Purpose.DEQUANTIZATION)
        # In float64, as u is: of float32 normals it would keep 24 bits.
        noise = PerSampleNoise.numbered(purpose, first, len(k), draw_dtype=torch.float64)
        for _ in range(number):
            z = noise.normal(torch.empty(k.shape, dtype=torch.float64))  # one for all devices
            yield self._draw(z.to(k.device), k)

    @torch.no_grad()
    def _draw(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        # Row by row: a convolution or a vectorised loop over a batch rounds otherwise than alone.
        rows = [self.transform(z[i : i + 1], k[i : i + 1]) for i in range(len(k))]
        u, log_q = zip(*rows, strict=True)
        return torch.cat(u), torch.cat(log_q)


@final
@dataclass(frozen=True)
class Uniform(Dequantizer):
    """u uniform on the bin: log q = 0.

    Source: Theis et al. 2016, section 3.1.

    >>> [(u, log_q)] = Uniform(seed=0).draws(torch.tensor([[3, 200]]))
    >>> u.shape, log_q.tolist()
    (torch.Size([1, 2]), [0.0])
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_seed("Uniform", self.seed)

    def transform(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return in_bin(torch.special.ndtr(z)), z.new_zeros(len(k))


@final
@dataclass(frozen=True)
class TruncatedNormal(Dequantizer):
    """u normal around the centre of the bin with standard deviation ``scale``, cut at its edges.

    q(u|k) = N(u; ½, scale²)/m with m = erf(1/(√8 scale)) the mass in the bin, by the inverse of
    its distribution function: u = ½ + √2 scale erf⁻¹(m erf(z/√2)).

    With scale = sigma/alpha · dy/dx at t_ε, dy/dx = levels/2 on [−1, 1], x is the centre with the
    noise of t_ε, as a model trained on centres has seen it.

    Units: scale in levels.
    Errors: TypeError or ValueError unless 0 < scale < ∞.
    Source: Zheng et al. 2023 (i-DODE).

    >>> [(u, log_q)] = TruncatedNormal(0.1, seed=0).draws(torch.tensor([[3, 200]]))
    >>> bool(((u - 0.5).abs() < 0.5).all())
    True
    """

    scale: float
    seed: int = 0

    def __post_init__(self) -> None:
        positive_number("TruncatedNormal", "scale", self.scale)
        check_seed("TruncatedNormal", self.seed)

    def transform(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        mass = math.erf(1 / (math.sqrt(8) * self.scale))
        cut = math.sqrt(2) * (mass * (z / math.sqrt(2)).erf()).erfinv()
        constant = math.log(self.scale * mass) + 0.5 * math.log(2 * math.pi)
        return in_bin(0.5 + self.scale * cut), flat_sum(-0.5 * cut.square() - constant)


@final
@dataclass(frozen=True)
class DiscreteLogLikelihood:
    """Lower bounds of the log-probability of integer samples, with what is known of their error.

    `nats` is on average at most log P(k); `gap` estimates how far below it is, and
    `standard_error` its spread over the draws. Both are NaN for one draw. `log_weights` are
    log p(k + u) − log q(u|k); their mean is the bound of one draw.

    Arguments:
        nats: the lower bound of log P(k); (B,), float64, nats.
        bits_per_dim: −nats/(D ln 2), without an offset to add; (B,), float64.
        standard_error: the standard error of nats over the draws; (B,), float64, nats.
        gap: the estimate of E log P(k) − nats; (B,), float64, nats.
        log_weights: log p(k + u) − log q(u|k) of every draw; (draws, B), float64, nats.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    gap: Tensor
    log_weights: Tensor

    __repr__ = shown


def discrete_log_prob(
    k: Tensor,
    spec: DataSpec,
    density: LogDensity,
    dequantizer: Dequantizer,
    *,
    draws: int = 1,
    first: int = 0,
) -> DiscreteLogLikelihood:
    """Return bounds of log P(k) from ``draws`` evaluations of a density of the scaled x.

    log P(k) ≥ E log 1/K ∑_j w_j, w_j = p(x_j) |dx/d(k + u)|_j / q(u_j|k). A density that is itself
    an estimate must be given its random numbers by ``first`` alone: errors that the draws share
    pass into the bound as they are, while errors of each draw would raise it, above log P(k) too.

    Arguments:
        k: integer data; (B, *spec.shape).
        spec: what the data are: their shape, levels and scaling.
        density: log p of the scaled x, float64, and the index of its first sample; (B,), nats.
        dequantizer: the distribution q(u|k) of the noise.
        draws: evaluations of the density, each with its own u.
        first: the index of the first sample in its data set.

    Errors: TypeError or ValueError for real data, another shape and levels out of range.
    Source: Theis et al. 2016; Burda et al. 2016, equation 8; Hoogeboom et al. 2020.

    >>> def density(x, first):
    ...     return x.new_full((len(x),), -2 * math.log(2.0))  # uniform on [−1, 1]²
    >>> spec = DataSpec("pairs", (2,), 4)
    >>> found = discrete_log_prob(torch.tensor([[0, 3]]), spec, density, Uniform(), draws=2)
    >>> found.bits_per_dim.item(), found.gap.item()
    (2.0, 0.0)
    """
    positive_integer("discrete_log_prob", "draws", draws)
    if spec.levels is None:
        raise wrong_value(
            "discrete_log_prob",
            "spec",
            "have levels",
            "real numbers",
            "evaluate their density as it is",
        )
    if tuple(k.shape[1:]) != spec.shape or len(k) == 0:
        rule = f"have shape (N, {', '.join(map(str, spec.shape))})"
        raise wrong_value(
            "discrete_log_prob", "k", rule, tuple(k.shape), "pass rows of dataset.values"
        )
    log_weights = []
    for u, log_q in dequantizer.draws(k, draws, first):
        x = spec.encode(k, u)
        log_p = density(x, first)
        if log_p.shape != log_q.shape:
            raise wrong_type(
                "discrete_log_prob",
                "density",
                f"return {len(k)} numbers",
                tuple(log_p.shape),
                "sum over the event dimensions",
            )
        log_weights.append(log_p.to(log_q) + spec.log_volume(x) - log_q)
    weights = torch.stack(log_weights)
    nats, error, gap = importance_weighted(weights)
    bits = -nats / (math.prod(spec.shape) * math.log(2))
    return DiscreteLogLikelihood(nats, bits, error, gap, weights)


def importance_weighted(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return L = log 1/K ∑_j w_j, its standard error and the estimate of log E w − E L.

    By the jackknife, with L_i the value without draw i and L̄ their mean: the standard error is
    √((K − 1)/K ∑ (L_i − L̄)²), the gap (K − 1)(L − L̄) ≥ 0. For many draws the gap is
    Var(w)/(2K (E w)²). Adding it to L removes the bias of order 1/K, but then L bounds nothing.
    Where the log-weights spread by more than 1 the gap is too small: for normal ones by a tenth
    at 1 and by half at 2. Then log E w is nearer to their mean plus half their variance.

    Shapes: (K, B) → three of (B,), float64; NaN for both errors of K = 1. Units: nats.
    Source: Burda et al. 2016; Nowozin 2018 (jackknife variational inference).

    >>> log_weights = torch.tensor([[1.0], [3.0]]).log()
    >>> [round(value.item(), 4) for value in importance_weighted(log_weights)]
    [0.6931, 0.5493, 0.1438]
    """
    log_w = log_weights.double().T.contiguous()  # sums along rows round alike in any batch
    draws = log_w.shape[1]
    nats = log_w.logsumexp(1) - math.log(draws)
    if draws == 1:
        unknown = torch.full_like(nats, math.nan)
        return nats, unknown, unknown
    without = _log_sums_of_others(log_w) - math.log(draws - 1)
    mean = without.sum(1) / draws
    squares = (without - mean[:, None]).square().sum(1)
    gap = ((draws - 1) * (nats - mean)).clamp(min=0)
    return nats, ((draws - 1) / draws * squares).sqrt(), gap


def _log_sums_of_others(log_w: Tensor) -> Tensor:
    """Return log ∑_{j≠i} w_j, without the cancellation of ∑ w_j − w_i: (B, K) → (B, K)."""
    none = torch.full_like(log_w[:, :1], -math.inf)
    before = torch.cat([none, log_w.logcumsumexp(1)[:, :-1]], 1)
    after = torch.cat([none, log_w.flip(1).logcumsumexp(1)[:, :-1]], 1).flip(1)
    return torch.logaddexp(before, after)


def in_bin(u: Tensor) -> Tensor:
    """Return u where rounding has not taken it out of [0, 1), else the nearest number there."""
    return u.clamp(0, _LAST)
