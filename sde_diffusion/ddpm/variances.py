"""Variances of a chain's reverse steps: β, β̃, learned and analytic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from sde_diffusion._check import a_function, an_object, wrong_value
from sde_diffusion._seeds import Purpose, check_seed, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import moved
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.counting import CountedScore
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.likelihood.estimates import check_model, squares
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.scores import ScoreLike


def column(c: Tensor, x: Tensor) -> Tensor:
    """Return float64 coefficients in a shape that multiplies the state x, on its device.

    A 0-d coefficient stays what it is, as for `expand`.
    """
    return moved(c, x.device, c.dtype).reshape(-1, *(1 for _ in x.shape[1:])) if c.ndim else c


class Variance(ABC):
    """The model's variance σ_k² of x_{k−1} given x_k."""

    @abstractmethod
    def table(self, chain: Chain) -> Tensor:
        """Return σ_1² … σ_N², or what they are about where they depend on the state."""

    def at(self, chain: Chain, x: Tensor, k: int | Tensor) -> Tensor:
        """Return σ_k² at x = x_k in float64, in a shape that multiplies x.

        Shapes: x (B, *event), k (B,), or one number for all.
        """
        return column(self.table(chain)[k - 1], x)


@final
@dataclass(frozen=True)
class ForwardVariance(Variance):
    """σ_k² = β_k, which is optimal for x0 ~ N(0, I), and near smooth data of any distribution.

    >>> round(ForwardVariance().table(Chain.ddpm(torch.tensor([0.5])))[0].item(), 12)
    0.5
    """

    def table(self, chain: Chain) -> Tensor:
        return chain.betas


@final
@dataclass(frozen=True)
class PosteriorVariance(Variance):
    """σ_k² = β̃_k, which is optimal for known x0; for k = 1, where that is 0, σ_1² = β_1.

    On a smooth density it costs the bound ½γ = .289 nats a dimension in the limit of many steps,
    γ being Euler's constant: near the data x0 is not known, and β_k/β̃_k is k/(k − 1).

    >>> round(PosteriorVariance().table(Chain.ddpm(torch.tensor([0.5, 0.5])))[1].item(), 12)
    0.333333333333
    """

    def table(self, chain: Chain) -> Tensor:
        return torch.cat([chain.betas[:1], chain.posterior_variances[1:]])


@final
@dataclass(frozen=True)
class LearnedVariance(Variance):
    """σ_k² = exp(v log β_k + (1−v) log β̃_k), v = v(x_k, t) in [0, 1] for every dimension.

    v = (output + 1)/2 for a network's output in [−1, 1].

    Source: Nichol & Dhariwal 2021, equation 15.

    >>> half = LearnedVariance(lambda x, t: torch.full_like(x, 0.5))
    >>> x, k = torch.zeros(1, 1), torch.tensor([2])
    >>> round(half.at(Chain.ddpm(torch.tensor([0.5, 0.5])), x, k).item() ** 2, 9)
    0.166666667
    """

    v: Callable[[Tensor, Tensor], Tensor]

    __repr__ = shown

    def __post_init__(self) -> None:
        a_function("LearnedVariance", "v", self.v, "(x, t) -> v", "pass model.fraction")

    def table(self, chain: Chain) -> Tensor:
        return PosteriorVariance().table(chain)

    def at(self, chain: Chain, x: Tensor, k: int | Tensor) -> Tensor:
        v = self.v(x, chain.times[k]).double()
        low = _beside(PosteriorVariance().at(chain, x, k).log(), v)
        high = _beside(ForwardVariance().at(chain, x, k).log(), v)
        return torch.lerp(low, high, v).exp()


def _beside(c: Tensor, v: Tensor) -> Tensor:
    """Return a 0-d coefficient on v's device, by a fill, which does not wait."""
    return c if c.ndim else v.new_full((), float(c))


@final
@dataclass(frozen=True, eq=False)
class AnalyticVariance(Variance):
    """The best σ_k² for all dimensions and states: β̃_k + (alpha_{k−1} r_k)² E Var[x0|x_k].

    By the score, E Var[x0|x_k] = (sigma/alpha)² (1 − power), power = sigma² E‖∇log q‖²/D, which is
    E‖eps_θ‖²/D. Exact where the score is and the posterior's variances are equal, as on N(0, v I).

    Shapes: power (N,), in [0, 1] at t_1 … t_N.
    Source: Bao et al. 2022 (Analytic-DPM), theorem 1.

    >>> chain = Chain.ddpm(torch.tensor([0.5]))
    >>> AnalyticVariance(torch.zeros(1)).table(chain).tolist()  # x1 says nothing of x0
    [1.0]
    """

    power: Tensor

    __repr__ = shown

    @classmethod
    def estimated(cls, model: ScoreLike, x0: Tensor, chain: Chain, *, seed: int = 0) -> Self:
        """Return the variances by E‖eps_θ‖² over data x0, with one noise a sample for every k.

        Arguments:
            model: a score model or oracle, with .sde and .eps.
            x0: data that the mean is over, scaled; (B, *event).
            chain: the chain of N steps whose variances they are.
            seed: the seed of the noise.

        NFE: N.
        """
        check_model("AnalyticVariance", x0, model)
        an_object(
            "AnalyticVariance", "chain", chain, Chain, "pass Chain(model.sde, lattice(1000))"
        )
        check_seed("AnalyticVariance", seed)
        noise = PerSampleNoise.numbered(mix(seed, Purpose.ANALYTIC_VARIANCE), 0, len(x0))
        with torch.no_grad():
            rows = [
                squares(model.eps(chain.perturb(x0, k, noise.normal(x0)), chain.times[k])).mean()
                for k in range(1, len(chain) + 1)
            ]
        return cls(torch.stack(rows).cpu() / x0[0].numel())

    def table(self, chain: Chain) -> Tensor:
        if self.power.shape != chain.share.shape:
            raise wrong_value(
                "AnalyticVariance",
                "power",
                f"have {len(chain)} numbers",
                tuple(self.power.shape),
                "estimate it on this chain",
            )
        if bool((chain.alpha == 0).any()):
            raise wrong_value(
                "AnalyticVariance",
                "chain",
                "have alpha above 0, as eps tells nothing of x0 in pure noise",
                "alpha = 0 at its last time",
                "use ForwardVariance() or PosteriorVariance()",
            )
        spread = (chain.sigma[1:] / chain.alpha[1:]).square() * (1 - self.power.double())
        # An imperfect score may have a power above 1.
        return chain.posterior_variances + chain.data_weights.square() * spread.clamp(min=0)


def predicted(
    score: CountedScore, x: Tensor, t: Tensor, at: Level | Levels, variance: Variance | None
) -> tuple[Tensor, Variance]:
    """Return x̂0 = E[x0 | x_t] and the variance of a step.

    Arguments:
        score: the score, counted.
        x: the state x_t; (B, *event).
        t: its time; () or (B,), in [0, 1].
        at: alpha and sigma at t.
        variance: the variance; None for that of the model, by the same evaluation, or else β_k.
    """
    if variance is None and score.variance == "learned":
        x0_hat, v = score.with_fraction("x0", x, t)
        return x0_hat, LearnedVariance(lambda x, t: v)  # noqa: ARG005
    return score.predict("x0", x, t, at), ForwardVariance() if variance is None else variance


def counted(score: CountedScore, variance: Variance | None) -> Variance | None:
    """Return the variance, whose own evaluations, if it has any, count with the score's."""
    if isinstance(variance, LearnedVariance):
        return LearnedVariance(score.counter.counting(variance.v))
    return variance


def reverse_step(
    x: Tensor, x0_hat: Tensor, chain: Chain, k: int | Tensor, variance: Variance, z: Tensor
) -> Tensor:
    """Return a draw of p_θ(x_{k−1}|x_k) = N(μ̃(x_k, x̂0), σ_k²): Ho et al.'s algorithm 2.

    The last step, k = 1, adds no noise and is x̂0.

    Arguments:
        x: the state x_k; (B, *event).
        x0_hat: x̂0, the model's estimate of x0 from x_k; (B, *event).
        chain: the chain of the steps.
        k: the step of each sample, from 1, (B,); or that of all.
        variance: the model's σ_k².
        z: standard normals; (B, *event).
    """
    mean, _ = chain.posterior(x, x0_hat, k)
    std = variance.at(chain, x, k).sqrt() * column(torch.as_tensor(k > 1).double(), x)
    return mean + std.to(x.dtype) * z
