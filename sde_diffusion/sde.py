"""Stochastic differential equations dx = drift(x,t) dt + diffusion(x,t) dw, data at t = 0.

The linear family has x_t = alpha(t) x0 + sigma(t) eps in closed form, with
rate = d log alpha/dt and g² = dσ²/dt − 2 rate σ².
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion._block_matrix import BlockMatrix
from sde_diffusion._check import positive_number, wrong_type, wrong_value
from sde_diffusion._diffusion import diffusion_of
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state, check_times, expand, flat_sum
from sde_diffusion.noise import Noise
from sde_diffusion.schedules import Beta, LinearBeta


def derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Return df/dt at each time by automatic differentiation, in t's shape.

    Where the caller records gradients and f has parameters, the slope keeps its graph to them.
    """
    learns = torch.is_grad_enabled() and f(t.detach()).requires_grad
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = t.detach().clone().requires_grad_()
        value = f(leaf)
        if not value.requires_grad:  # a constant, such as the alpha of VE
            return torch.zeros_like(t)
        slope = torch.autograd.grad(value.sum(), leaf, allow_unused=True, create_graph=learns)[0]
        return torch.zeros_like(t) if slope is None else slope


class SDE(ABC):
    """An equation dx = drift(x,t) dt + diffusion(x,t) dw."""

    horizon: float = 1.0  # the last time at which the coefficients are finite

    __repr__ = shown

    @property
    def latest(self) -> float:
        """The last time at which a solve may start: the horizon."""
        return self.horizon

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Return f(x, t), in the shape of ``x``."""

    @abstractmethod
    def diffusion(self, x: Tensor, t: Tensor) -> Tensor | BlockMatrix:
        """Return g(x, t): one number, one a sample, or one for each element.

        Where a matrix mixes the noise it is a `BlockMatrix`, which must not depend on x.
        Shapes: result (), (B,) or that of x.
        """

    def inside(self, x: Tensor) -> Tensor:
        """Return where the walls of the SDE send a state beyond them; x where there are none."""
        return x

    def noise_divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ∇·(g gᵀ), row i being ∂g_i²/∂x_i for diagonal g, by automatic differentiation.

        One backward pass per dimension where g is diagonal and depends on x; override it with
        the closed form where that is too slow.

        Shapes: x (B, *event); result () and 0 where g does not depend on x, else of x's shape.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            g = diffusion_of(self, leaf, t)
            g2 = leaf.new_zeros(()) if isinstance(g, BlockMatrix) else g**2
            if not g2.requires_grad:
                return torch.zeros((), dtype=x.dtype, device=x.device)
            if g2.ndim == 0 or g2[:1].numel() == 1:
                slope = torch.autograd.grad(g2.sum(), leaf, allow_unused=True)[0]
                return torch.zeros_like(x) if slope is None else slope
            rows = torch.broadcast_to(g2, x.shape).flatten(1)
            columns = [
                torch.autograd.grad(rows[:, i].sum(), leaf, retain_graph=True)[0].flatten(1)[:, i]
                for i in range(rows.shape[1])
            ]
        return torch.stack(columns, 1).reshape(x.shape)


@final
@dataclass(frozen=True)
class IsotropicNormal:
    """The distribution N(0, std² I), the prior of the linear family.

    >>> import torch
    >>> IsotropicNormal(1.0).log_prob(torch.zeros(1, 2)).item()
    -1.8378770351409912
    """

    std: float

    def sample(
        self,
        noise: Noise,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return draws of the distribution.

        Arguments:
            noise: the source of the normals.
            shape: that of the draws, (B, *event).
            dtype: that of the draws, floating-point.
            device: where the draws are made.
        """
        return self.std * noise.normal(torch.empty(tuple(shape), dtype=dtype, device=device))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log N(x; 0, std² I), in float32 at least.

        Shapes: (B, *event) → (B,). Units: nats.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        constant = math.log(2 * math.pi * self.std**2) * math.prod(x.shape[1:])
        return -0.5 * (flat_sum(x**2) / self.std**2 + constant)


class LinearSDE(SDE):
    """An SDE with drift rate(t)·x and diffusion g(t), known by alpha and sigma alone.

    A subclass gives `alpha` and `sigma`; everything else follows by automatic differentiation
    and bisection, and may be overridden by closed forms; gradients to parameters of the SDE need
    rate and g in closed form. SNR = alpha²/sigma² must decrease. Where alpha reaches 0 at t = 1,
    set `horizon` a little below, such as .999; a grid may still start at 1.
    """

    cutoff: float = 1e-3  # t_ε, the time at which sampling ends by default

    @property
    def latest(self) -> float:
        """The last time at which a solve may start: 1 if x_1 is pure noise, else the horizon."""
        end = torch.ones((), dtype=torch.float64)
        return 1.0 if self.horizon < 1 and float(self.alpha(end)) == 0 else self.horizon

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the factor of x0 in x_t, in t's shape."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the standard deviation of x_t given x0, in t's shape."""

    def rate(self, t: Tensor) -> Tensor:
        """Return d log alpha/dt, in t's shape."""
        return derivative(lambda u: self.alpha(u).log(), t)

    def g(self, t: Tensor) -> Tensor:
        """Return √(dσ²/dt − 2 rate σ²), in t's shape."""
        # At 0 the slope of a sigma like √t is infinite, though that of its square is not.
        variance_rate = derivative(lambda u: self.sigma(u) ** 2, t.clamp(min=1e-12))
        return (variance_rate - 2 * self.rate(t) * self.sigma(t) ** 2).sqrt()

    def lambda_(self, t: Tensor) -> Tensor:
        """Return log(alpha/sigma), half the log-SNR, in t's shape."""
        return self.alpha(t).log() - self.sigma(t).log()

    def time(self, lambda_: Tensor) -> Tensor:
        """Return the t at which `lambda_` takes the given value, by bisection in [0, horizon]."""
        low = torch.zeros_like(lambda_)
        high = torch.full_like(lambda_, self.horizon)
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = self.lambda_(middle) > lambda_
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return 0.5 * (low + high)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        check_times("drift", t)
        return expand(self.rate(t), x) * x

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        check_times("diffusion", t)
        return expand(self.g(t), x)

    def noise_divergence(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002  (g has no x)
        return torch.zeros((), dtype=x.dtype, device=x.device)

    def marginal(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean alpha·x0 and the standard deviation sigma of x_t given x0."""
        check_times("marginal", t)
        return expand(self.alpha(t), x0) * x0, expand(self.sigma(t), x0)

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = alpha x0 + sigma eps.

        Shapes: x0, eps (B, *event); t () or (B,).
        """
        check_state("perturb", x0)
        if eps.shape != x0.shape:
            raise wrong_value(
                "perturb",
                "eps",
                f"have the shape {tuple(x0.shape)} of x0",
                tuple(eps.shape),
                "draw it with torch.randn_like",
            )
        mean, std = self.marginal(x0, t)
        return mean + std * eps

    def kernel(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b²) of x_t | x_s ~ N(a x_s, b² I) for s ≤ t: a = α_t/α_s, b² = σ_t² − a²σ_s².

        Evaluated as b² = −σ_t² expm1(2(λ_t − λ_s)), which does not cancel for close times.
        """
        b2 = -(self.sigma(t) ** 2) * torch.expm1(2 * (self.lambda_(t) - self.lambda_(s)))
        return self.alpha(t) / self.alpha(s), b2

    def prior(self) -> IsotropicNormal:
        """Return the distribution from which sampling starts, N(0, sigma(horizon)²)."""
        return IsotropicNormal(float(self.sigma(torch.tensor(self.horizon, dtype=torch.float64))))


def check_beta(what: str, beta: object) -> None:
    """Refuse what is no schedule."""
    if not isinstance(beta, Beta):
        got = beta.__name__ if isinstance(beta, type) else type(beta).__name__
        raise wrong_type(
            what,
            "beta",
            "be a schedule",
            got,
            "pass LinearBeta(), CosineBeta() or DiscreteBeta(betas)",
        )


@final
@dataclass(frozen=True)
class VPSDE(LinearSDE):
    """Variance-preserving SDE dx = −½β(t)x dt + √β(t) dw: alpha = e^{−B/2}, sigma² = 1 − e^{−B}.

    With `DiscreteBeta` it is the DDPM of those betas.

    Source: Song et al. 2021, equation 11.

    >>> import torch
    >>> t = torch.tensor(0.5, dtype=torch.float64)
    >>> round(float(VPSDE().alpha(t) ** 2 + VPSDE().sigma(t) ** 2), 12)
    1.0
    """

    beta: Beta = field(default_factory=LinearBeta)

    def __post_init__(self) -> None:
        check_beta(type(self).__name__, self.beta)

    @property
    def horizon(self) -> float:  # type: ignore[override]  # depends on the schedule
        return self.beta.horizon

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.beta.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        # 1 − exp(−B) would be 0.6 % wrong at t = 1e-5 in float32.
        return (-torch.expm1(-self.beta.integral(t))).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.beta(t)

    def g(self, t: Tensor) -> Tensor:
        return self.beta.beta(t).sqrt()

    def lambda_(self, t: Tensor) -> Tensor:
        b = self.beta.integral(t)
        return -0.5 * (b + torch.expm1(-b).neg().log())  # log(expm1(B)) would overflow

    def time(self, lambda_: Tensor) -> Tensor:
        # log(1 + e^{−2λ}). Unlike logaddexp, logsigmoid rounds a number alike in any batch.
        return self.beta.inverse(-F.logsigmoid(2 * lambda_))

    def prior(self) -> IsotropicNormal:
        return IsotropicNormal(1.0)


@final
@dataclass(frozen=True)
class SubVPSDE(LinearSDE):
    """Sub-VP SDE dx = −½βx dt + √(β(1 − e^{−2B})) dw: alpha = e^{−B/2}, sigma = 1 − e^{−B}.

    Source: Song et al. 2021, equation 12.

    >>> import torch
    >>> t = torch.tensor(0.5, dtype=torch.float64)
    >>> bool(SubVPSDE().sigma(t) < VPSDE().sigma(t))
    True
    """

    beta: Beta = field(default_factory=LinearBeta)

    def __post_init__(self) -> None:
        check_beta(type(self).__name__, self.beta)

    @property
    def horizon(self) -> float:  # type: ignore[override]  # depends on the schedule
        return self.beta.horizon

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.beta.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.beta.integral(t))

    def rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.beta(t)

    def g(self, t: Tensor) -> Tensor:
        return (-self.beta.beta(t) * torch.expm1(-2 * self.beta.integral(t))).sqrt()

    def time(self, lambda_: Tensor) -> Tensor:
        # u = e^{−B/2} solves u/(1−u²) = e^λ =: r, and 1 − u² = 2/(1 + √(1+4r²)).
        # For small r that cancels, and B = −2 log u with u = 2r/(1 + √(1+4r²)) does not.
        root = torch.sqrt(1 + 4 * torch.exp(2 * lambda_))
        small = 2 * (torch.log1p(root) - math.log(2) - lambda_)
        return self.beta.inverse(torch.where(lambda_ < 0, small, -torch.log1p(-2 / (1 + root))))

    def prior(self) -> IsotropicNormal:
        return IsotropicNormal(1.0)


@final
@dataclass(frozen=True)
class VESDE(LinearSDE):
    """Variance-exploding SDE: alpha = 1, sigma² = σ_min²(r^{2t} − 1), r = σ_max/σ_min.

    The kernel's variance has the t = 0 term subtracted, so that x_0 is the data itself.

    Errors: ValueError unless 0 < sigma_min < sigma_max.
    Source: Song et al. 2021, equation 9 and appendix C.

    >>> round(VESDE(0.01, 50.0).prior().std, 6)
    49.999999
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    cutoff = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            got = f"{self.sigma_min}, {self.sigma_max}"
            raise wrong_value(
                "VESDE",
                "sigma_min, sigma_max",
                "satisfy 0 < sigma_min < sigma_max",
                got,
                "pass for example VESDE(0.01, 50.0)",
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.expm1(2 * self._log_ratio * t).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._log_ratio * t) * math.sqrt(2 * self._log_ratio)

    def time(self, lambda_: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-2 * lambda_) / self.sigma_min**2) / (2 * self._log_ratio)


@final
@dataclass(frozen=True)
class EDMSDE(LinearSDE):
    """EDM's SDE dx = √(2t) T dw: alpha = 1, sigma = tT with T = sigma_max.

    Karras et al. use sigma itself as time; here t = sigma/T, so that t stays in [0, 1].

    Errors: ValueError unless sigma_max is finite and above .002, where sampling ends.
    Source: Karras et al. 2022, section 2.

    >>> import torch
    >>> EDMSDE(80.0).sigma(torch.tensor(0.5)).item()
    40.0
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        positive_number("EDMSDE", "sigma_max", self.sigma_max)
        if self.sigma_max <= 0.002:
            rule = "be above 0.002, the noise at which sampling ends"
            raise wrong_value("EDMSDE", "sigma_max", rule, self.sigma_max, "pass sigma_max=80.0")

    @property
    def cutoff(self) -> float:  # type: ignore[override]  # depends on sigma_max
        return 0.002 / self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t * self.sigma_max

    def rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        return (2 * t).sqrt() * self.sigma_max

    def time(self, lambda_: Tensor) -> Tensor:
        return torch.exp(-lambda_) / self.sigma_max


@final
@dataclass(frozen=True)
class RectifiedFlow(LinearSDE):
    """The straight interpolant x_t = (1 − t) x0 + t eps as an SDE: rate −1/(1−t), g² = 2t/(1−t).

    Its coefficients are infinite at t = 1, so grids start at the horizon .999, where alpha = .001,
    if they are not asked to start at 1: the flow's velocity eps − x0 is finite there.

    Source: Liu et al. 2022, equation 1; Albergo & Vanden-Eijnden 2022.

    >>> import torch
    >>> RectifiedFlow().alpha(torch.tensor(0.25)).item()
    0.75
    """

    horizon = 0.999

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rate(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def g(self, t: Tensor) -> Tensor:
        return (2 * t / (1 - t)).sqrt()

    def time(self, lambda_: Tensor) -> Tensor:
        return 1 / (1 + lambda_.exp())  # sigmoid(−λ), which rounds otherwise in a batch
