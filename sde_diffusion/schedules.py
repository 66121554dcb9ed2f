"""Noise schedules β(t) of the variance-preserving family, each with its integral and inverse.

B(t) = ∫₀ᵗ β(τ) dτ decides everything: alpha(t) = e^{−B/2}, sigma²(t) = 1 − e^{−B}.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import number, positive_integer, wrong_type, wrong_value
from sde_diffusion._shown import shown

_NO_SIGNAL: Final = 1e-20  # of ᾱ: published chains end above 1e-10, or at 0 in their last step
_ALL_SIGNAL: Final = 0.99  # of ᾱ_N: the linear chain has that after 3 steps


class Beta(ABC):
    """A noise schedule β(t) > 0 on t in [0, 1]."""

    horizon: float = 1.0  # the last time at which β is finite

    __repr__ = shown

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """Return β(t), in t's shape."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """Return B(t) = ∫₀ᵗ β(τ) dτ, in t's shape."""

    @abstractmethod
    def inverse(self, integral: Tensor) -> Tensor:
        """Return the time t at which B(t) equals ``integral``."""


@final
@dataclass(frozen=True)
class LinearBeta(Beta):
    """Linear schedule β(t) = low + (high − low) t.

    Errors: ValueError unless 0 < low ≤ high, both finite.
    Source: Ho et al. 2020 (as betas), Song et al. 2021, appendix C.

    >>> import torch
    >>> round(LinearBeta(0.1, 20.0).integral(torch.tensor(1.0, dtype=torch.float64)).item(), 9)
    10.05
    """

    low: float = 0.1
    high: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise wrong_value(
                "LinearBeta",
                "low, high",
                "satisfy 0 < low <= high",
                f"{self.low}, {self.high}",
                "pass for example LinearBeta(0.1, 20.0)",
            )

    def beta(self, t: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * t

    def integral(self, t: Tensor) -> Tensor:
        return t * (self.low + 0.5 * (self.high - self.low) * t)

    def inverse(self, integral: Tensor) -> Tensor:
        # The rationalised root 2B/(low + √(low² + 2(high−low)B)) does not cancel at small B.
        slope = self.high - self.low
        return 2 * integral / (self.low + torch.sqrt(self.low**2 + 2 * slope * integral))


@final
@dataclass(frozen=True)
class CosineBeta(Beta):
    """Cosine schedule ᾱ(t) = f(t)/f(0), f(t) = cos²(π/2 · (t+s)/(1+s)), with β(t) ≤ max_beta.

    The bare schedule has β(1) = ∞. The default limit is the rate −1000·log(1 − .999) of the one
    clipped β_k of the discrete schedule with 1000 steps.

    Errors: ValueError for s ≤ 0 or a limit below β(0).
    Source: Nichol & Dhariwal 2021, equation 17.

    >>> import torch
    >>> round(CosineBeta().integral(torch.tensor(0.5, dtype=torch.float64)).item(), 4)
    0.7055
    """

    s: float = 0.008
    max_beta: float = 6907.755278982137

    def __post_init__(self) -> None:
        if not 0 < self.s < math.inf:
            raise wrong_value("CosineBeta", "s", "be above 0", self.s, "pass s=0.008")
        if not self._rate(0.0) < self.max_beta < math.inf:
            rule = f"be finite and above beta(0) = {self._rate(0.0):.4g}"
            raise wrong_value("CosineBeta", "max_beta", rule, self.max_beta, "leave it out")

    def _rate(self, t: float) -> float:
        return math.pi / (1 + self.s) * math.tan(math.pi / 2 * (t + self.s) / (1 + self.s))

    @property
    def _limit(self) -> float:
        """The time from which β is constant."""
        angle = math.atan(self.max_beta * (1 + self.s) / math.pi)
        return angle * 2 / math.pi * (1 + self.s) - self.s

    def _log_f(self, t: Tensor) -> Tensor:
        return 2 * torch.log(torch.cos(math.pi / 2 * (t + self.s) / (1 + self.s)))

    def beta(self, t: Tensor) -> Tensor:
        angle = math.pi / 2 * (t.clamp(max=self._limit) + self.s) / (1 + self.s)
        return math.pi / (1 + self.s) * torch.tan(angle)

    def integral(self, t: Tensor) -> Tensor:
        smooth = t.clamp(max=self._limit)
        # −2 log(cos(a+δ)/cos a), a the angle at 0: log f(0) − log f(t) would cancel near 0.
        a = math.pi / 2 * self.s / (1 + self.s)
        delta = math.pi / 2 * smooth / (1 + self.s)
        fall = 2 * torch.sin(delta / 2) ** 2 + math.tan(a) * torch.sin(delta)
        return -2 * torch.log1p(-fall) + self.max_beta * (t - smooth)

    def inverse(self, integral: Tensor) -> Tensor:
        zero = integral.new_zeros(())
        limit = integral.new_tensor(self._limit)
        most = self._log_f(zero) - self._log_f(limit)
        log_f = self._log_f(zero) - integral.clamp(max=most)
        t = torch.acos(torch.exp(0.5 * log_f)) * 2 / math.pi * (1 + self.s) - self.s
        return t + (integral - integral.clamp(max=most)) / self.max_beta


@final
@dataclass(frozen=True, eq=False)
class DiscreteBeta(Beta):
    """Piecewise-constant schedule β(t) = −N log(1 − β_k) on ((k−1)/N, k/N].

    It makes the VP-SDE *equal* to the DDPM of these betas at the lattice times t = k/N:
    e^{−B(k/N)} = ∏_{j≤k} (1 − β_j) = ᾱ_k. β jumps there, which costs solvers of high order and
    adaptive steps their accuracy between lattice times: `Ancestral` on the lattice is exact in t,
    and `LinearBeta` is the smooth limit for the rest.

    The last β_N may be 1, zero terminal SNR: x_1 is pure noise. In that cell √ᾱ falls to 0 along
    a line instead, so that β is infinite at t = 1 alone, and `horizon` is a thousandth of the cell
    before.

    Schedules of equal betas are equal, and hash alike.

    Shapes: betas (N,), β_1 … β_N.
    Errors: TypeError unless a tensor; ValueError unless every β_k lies in (0, 1), β_N in (0, 1],
    and for the alphas or ᾱ of a chain in place of its betas.
    Source: Ho et al. 2020 for betas; the embedding is exact by construction.

    >>> import torch
    >>> schedule = DiscreteBeta(torch.tensor([0.5, 0.5], dtype=torch.float64))
    >>> torch.exp(-schedule.integral(torch.tensor(1.0, dtype=torch.float64))).item()
    0.25
    """

    betas: Tensor
    knots: Tensor = field(init=False, repr=False)  # B at the lattice times, (N + 1,)

    __repr__ = shown

    def __post_init__(self) -> None:
        if not isinstance(self.betas, Tensor):
            got = type(self.betas).__name__
            raise wrong_type(
                "DiscreteBeta",
                "betas",
                "be a torch.Tensor",
                got,
                "pass linear_betas(1000) or torch.tensor(betas)",
            )
        betas = self.betas.detach().to("cpu", torch.float64, copy=True)  # the hash is of these
        if betas.ndim != 1 or betas.numel() == 0:
            raise wrong_value(
                "DiscreteBeta",
                "betas",
                "be one non-empty row of numbers",
                tuple(betas.shape),
                "pass linear_betas(1000)",
            )
        bad = ~((betas > 0) & (betas < 1))
        bad[-1] &= betas[-1] != 1
        if bool(bad.any()):
            k = int(bad.nonzero()[0]) + 1
            raise wrong_value(
                "DiscreteBeta",
                f"betas (at k = {k})",
                "lie in (0, 1), but for a last one of 1",
                float(betas[k - 1]),
                "clip them, for example at .999",
            )
        _check_chain(betas)
        object.__setattr__(self, "betas", betas)
        knots = torch.cat([betas.new_zeros(1), torch.cumsum(-torch.log1p(-betas), 0)])
        object.__setattr__(self, "knots", knots)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DiscreteBeta):
            return NotImplemented
        return torch.equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(tuple(self.betas.tolist()))

    @property
    def horizon(self) -> float:  # type: ignore[override]  # depends on the last beta
        return 1.0 if float(self.betas[-1]) < 1 else 1 - 1e-3 / len(self.betas)

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return B at both ends of the cell of t, on t's device, and t's part of the cell."""
        knots = self.knots.to(t.device)
        n = len(self.betas)
        # The tolerance keeps k/N, rounded up by one ulp, in its own cell ((k−1)/N, k/N].
        cell = (torch.ceil(t * n - 1e-9).long() - 1).clamp(0, n - 1)
        return knots[cell], knots[cell + 1], t * n - cell

    def beta(self, t: Tensor) -> Tensor:
        t = t if t.is_floating_point() else t.double()
        low, high, part = self._cell(t)
        # Where √ᾱ falls along a line to 0, B = B_{N−1} − 2 log(1 − part).
        pace = torch.where(high.isinf(), 2 / (1 - part), high - low)
        return (len(self.betas) * pace).to(t.dtype)

    def integral(self, t: Tensor) -> Tensor:
        t = t if t.is_floating_point() else t.double()
        low, high, part = self._cell(t)
        open_ = high.isinf()
        line = torch.lerp(low, torch.where(open_, low, high), part.to(low.dtype))
        # What is not asked for must be finite too, or its gradient is NaN times 0.
        fall = -2 * torch.log1p(-torch.where(open_, part, torch.zeros_like(part)))
        return torch.where(open_, low + fall, line).to(t.dtype)

    def inverse(self, integral: Tensor) -> Tensor:
        knots = self.knots.to(integral.device)
        n = len(self.betas)
        cell = (torch.searchsorted(knots, integral.to(knots.dtype)) - 1).clamp(0, n - 1)
        rise = integral - knots[cell]
        high = knots[cell + 1]
        part = torch.where(high.isinf(), -torch.expm1(-0.5 * rise), rise / (high - knots[cell]))
        return ((cell + part) / n).to(integral.dtype)


def _check_chain(betas: Tensor) -> None:
    """Refuse numbers in (0, 1) that are alphas, ᾱ or 1 − ᾱ, or that leave no noise at the end."""
    n = len(betas)
    bar = torch.cumprod(1 - betas, 0)
    of_bar = "with a = alphas_cumprod pass 1 - a / torch.cat([a.new_ones(1), a[:-1]])"
    if n > 2 and float(betas[0]) > 0.5 and float(betas[-1]) <= float(betas[0]):
        rule = "begin with small ones, as those of a chain"
        got = f"numbers from {float(betas[0]):.6g} to {float(betas[-1]):.6g}, as alphas or ᾱ are"
        raise wrong_value("DiscreteBeta", "betas", rule, got, f"pass 1 - alphas, or {of_bar}")
    if n > 2 and float(bar[-2]) < _NO_SIGNAL:
        k = int((bar < _NO_SIGNAL).nonzero()[0]) + 1
        rule = f"leave a signal up to the last of {n} steps, as those of a chain"
        got = f"none after step {k}, as of 1 - ᾱ"
        raise wrong_value("DiscreteBeta", "betas", rule, got, of_bar)
    if n >= 10 and float(bar[-1]) > _ALL_SIGNAL:
        rule = f"leave noise after {n} steps, as those of a chain"
        got = f"ᾱ_N = {float(bar[-1]):.6g}"
        remedy = "pass those that the network was trained with, such as linear_betas(1000)"
        raise wrong_value("DiscreteBeta", "betas", rule, got, remedy)


def linear_betas(n: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Return β_1 … β_n, equally spaced from ``first`` to ``last``.

    Source: Ho et al. 2020, section 4 (1e-4 to .02 for n = 1000).
    """
    positive_integer("linear_betas", "n", n)
    return torch.linspace(first, last, n, dtype=torch.float64)


def scaled_linear_betas(n: int, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Return β_1 … β_n with equally spaced square roots.

    Source: Rombach et al. 2022 (latent diffusion), in its program.
    """
    return linear_betas(n, math.sqrt(first), math.sqrt(last)).square()


def betas_of(alpha_bar: Callable[[Tensor], Tensor], n: int, clip: float = 0.999) -> Tensor:
    """Return β_k = min(1 − ᾱ(k/n)/ᾱ((k−1)/n), clip) of a falling ᾱ(t) on [0, 1].

    >>> betas_of(lambda t: 1 - t, 2).tolist()
    [0.5, 0.999]
    """
    positive_integer("betas_of", "n", n)
    f = alpha_bar(torch.arange(n + 1, dtype=torch.float64) / n)
    return (1 - f[1:] / f[:-1]).clamp(max=clip)


def cosine_betas(n: int, s: float = 0.008, clip: float = 0.999) -> Tensor:
    """Return the betas of ᾱ(t) ∝ cos²(π/2 · (t+s)/(1+s)).

    Source: Nichol & Dhariwal 2021, equation 17.
    """
    return betas_of(lambda t: torch.cos(math.pi / 2 * (t + s) / (1 + s)) ** 2, n, clip)


def sigmoid_betas(
    n: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, clip: float = 0.999
) -> Tensor:
    """Return the betas of ᾱ(t), a falling sigmoid of (start + (end − start) t)/τ from 1 to 0.

    Arguments:
        n: the number of betas N.
        start: the argument of the sigmoid at t = 0, before the division by τ.
        end: that at t = 1.
        tau: the temperature τ, above 0.
        clip: the largest β_k, below 1.

    Source: Jabri et al. 2023, algorithm 1; Chen 2023.
    """

    def alpha_bar(t: Tensor) -> Tensor:
        u = torch.sigmoid(
            torch.cat([t, t.new_tensor([0.0, 1.0])]) * (end - start) / tau + start / tau
        )
        return (u[-1] - u[:-2]) / (u[-1] - u[-2])

    return betas_of(alpha_bar, n, clip)


def zero_terminal_snr(betas: Tensor, terminal: float = 0.0) -> Tensor:
    """Return the betas of √ᾱ shifted and scaled so that √ᾱ_N = ``terminal`` and ᾱ_1 stays.

    At 0, as published, β_N is 1 and x_N pure noise, from which eps says nothing of x0: a model of
    them predicts v or x0.

    Shapes: betas (N,). Errors: ValueError unless 0 ≤ terminal < √ᾱ_1 and N > 1.
    Source: Lin et al. 2024 (Common diffusion noise schedules), algorithm 1.

    >>> zero_terminal_snr(linear_betas(1000))[-1].item()
    1.0
    """
    number("zero_terminal_snr", "terminal", terminal, "pass 0.0 or 1e-3")
    root = torch.cumprod(1 - DiscreteBeta(betas).betas, 0).sqrt()
    if not (0 <= terminal < float(root[0]) and len(root) > 1):
        rule = f"be at least 0 and below √ᾱ_1 = {float(root[0]):.4g}, with two betas or more"
        raise wrong_value("zero_terminal_snr", "terminal", rule, terminal, "pass 0.0 or 1e-3")
    first, last = root[0], root[-1]
    moved = first + (root - first) / (first - last) * (first - terminal)
    return 1 - (moved / torch.cat([moved.new_ones(1), moved[:-1]])).square()
