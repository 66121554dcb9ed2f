"""Linear SDEs whose coefficients are matrices: dx = F(t) x dt + G(t) dw on the parts of a state.

x_t | x_0 ~ N(Φ(t) x_0, Σ(t)) with Φ' = F Φ, Φ(0) = I and Σ' = F Σ + Σ Fᵀ + G Gᵀ. The matrices are
n × n and act on n equal parts of the state's second dimension, as `BlockMatrix` does: Φ ⊗ I on all
elements. The data are the first ``data_parts`` of them; the others, such as velocities, start as
N(0, Σ(0)).

Source: Särkkä & Solin 2019 (Applied Stochastic Differential Equations), chapter 6.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._block_matrix import BlockMatrix, factor, parts_of, product
from sde_diffusion._check import Reason, diverged, positive_number, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state, check_times, flat_sum
from sde_diffusion.noise import Noise
from sde_diffusion.schedules import Beta, LinearBeta
from sde_diffusion.sde import SDE, check_beta

# Of a matrix, row by row: they compare and print as they are.
Entries: TypeAlias = tuple[tuple[float, ...], ...]
_TERMS: Final = 20  # of a Taylor series at a norm of ½, whose last is 1e-18
_TOLERANCE: Final = 1e-13  # relative, of the moments of a general F(t)


@final
class PartsNormal:
    """The distribution N(0, Σ ⊗ I) of states in n parts, the prior of a matrix-linear SDE.

    >>> import torch
    >>> PartsNormal(torch.eye(2)).log_prob(torch.zeros(1, 2)).item()
    -1.8378770351409912
    """

    __repr__ = shown

    def __init__(self, covariance: Tensor) -> None:
        self.covariance = covariance
        self._factor = factor(covariance)

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
            shape: that of the draws, (B, n·C, *rest).
            dtype: that of the draws, floating-point.
            device: where the draws are made.
        """
        z = noise.normal(torch.empty(tuple(shape), dtype=dtype, device=device))
        return BlockMatrix(self._factor) * z

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log N(x; 0, Σ ⊗ I), in float32 at least.

        Shapes: (B, n·C, *rest) → (B,). Units: nats.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.linalg.inv(self._factor)
        each = x[0].numel() // len(inverse)
        constant = math.log(2 * math.pi) * x[0].numel()
        constant += 2 * each * float(self._factor.diagonal().log().sum())
        return -0.5 * (flat_sum((BlockMatrix(inverse) * x) ** 2) + constant)


class MatrixLinearSDE(SDE, ABC):
    """An SDE dx = F(t) x dt + G(t) dw whose matrices act on the n equal parts of a state.

    A subclass gives ``drift_matrix`` and ``diffusion_matrix``. Φ and Σ then come by an ODE solver,
    with errors of some 1e-12 on [0, horizon] and no gradients; ``moments`` may be overridden by
    closed forms. For matrices that change by a factor alone take `OrnsteinUhlenbeck`, and
    `CriticallyDampedLangevin` for the pair of position and velocity.

    Where parts are no data, set ``data_parts`` and ``start_covariance``.

    >>> class Turned(MatrixLinearSDE):  # a damped rotation whose speed grows with t
    ...     def drift_matrix(self, t):
    ...         f = torch.tensor([[-2.0, -1.0], [1.0, -2.0]]).double()
    ...         return f * (1 + t[..., None, None])
    ...     def diffusion_matrix(self, t):
    ...         return torch.eye(2).double().expand(*t.shape, 2, 2)
    >>> mean, covariance = Turned().moments(torch.tensor(1.0, dtype=torch.float64))
    >>> round(float(torch.linalg.det(mean)), 9), round(math.exp(-6), 9)
    (0.002478752, 0.002478752)
    """

    cutoff: float = 1e-3  # t_ε, the time at which sampling ends by default

    @abstractmethod
    def drift_matrix(self, t: Tensor) -> Tensor:
        """Return F(t), float64.

        Shapes: t () or (B,); result (n, n) or (B, n, n).
        """

    @abstractmethod
    def diffusion_matrix(self, t: Tensor) -> Tensor:
        """Return G(t), float64; only G Gᵀ matters to the distribution of x_t.

        Shapes: t () or (B,); result (n, n) or (B, n, n).
        """

    @property
    def data_parts(self) -> int:
        """The number of first parts that are data: all n unless a subclass says otherwise."""
        return self.parts

    @property
    def start_covariance(self) -> Tensor:
        """Σ(0), 0 in the rows of the data; (n, n), float64."""
        return torch.zeros(self.parts, self.parts, dtype=torch.float64)

    @property
    def parts(self) -> int:
        """The number n of parts of a state."""
        return self.drift_matrix(torch.zeros((), dtype=torch.float64)).shape[-1]

    @cached_property
    def driven(self) -> int:
        """The first part that noise drives: the score of those before it is asked for nowhere."""
        times = torch.linspace(0, self.horizon, 9, dtype=torch.float64)
        every = self.diffusion_matrix(times).expand(len(times), self.parts, self.parts)
        there = every.abs().amax((0, 2)) > 0
        return int(there.nonzero()[0, 0])

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return Φ(t) and Σ(t) of x_t | x_0 ~ N(Φ x_0, Σ).

        Shapes: t () or (B,); results (n, n) or (B, n, n), float64.
        """
        n = self.parts
        found = torch.from_numpy(self._solved(t.detach().cpu().double().numpy()))
        both = found.movedim(0, -1).reshape(*t.shape, 2, n, n).to(t.device)
        mean = both[..., 0, :, :]
        start = product(product(mean, self.start_covariance.to(mean)), mean.mT)
        return mean, both[..., 1, :, :] + start

    @cached_property
    def _solved(self) -> Any:  # noqa: ANN401  (scipy's function of times)
        """Return t ↦ (Φ, Σ) as 2n² numbers, Σ from 0 on."""
        from scipy.integrate import solve_ivp

        n = self.parts
        start = np.concatenate([np.eye(n).ravel(), np.zeros(n * n)])

        def slope(t: float, y: Any) -> Any:  # noqa: ANN401  (arrays of scipy)
            time = torch.tensor(t, dtype=torch.float64)
            f, g = (m(time).detach().numpy() for m in (self.drift_matrix, self.diffusion_matrix))
            mean, covariance = y.reshape(2, n, n)
            half = f @ covariance
            return np.concatenate([(f @ mean).ravel(), (half + half.T + g @ g.T).ravel()])

        ends = (0.0, self.horizon)
        found = solve_ivp(
            slope, ends, start, "DOP853", dense_output=True, rtol=_TOLERANCE, atol=1e-15
        )
        if not found.success or not np.isfinite(found.y).all():
            raise diverged(
                type(self).__name__,
                "drift_matrix, diffusion_matrix",
                f"have finite moments up to {self.horizon:g}",
                Reason(f"none beyond t = {found.t[-1]:.3g}"),
                "set an earlier horizon",
            )
        return found.sol

    def mean_matrix(self, t: Tensor) -> Tensor:
        """Return Φ(t) of E[x_t | x_0] = Φ(t) x_0; (n, n) or (B, n, n)."""
        return self.moments(t)[0]

    def covariance(self, t: Tensor) -> Tensor:
        """Return Σ(t) of x_t given the data; (n, n) or (B, n, n)."""
        return self.moments(t)[1]

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return BlockMatrix(self.drift_matrix(t)) * x

    def diffusion(self, x: Tensor, t: Tensor) -> BlockMatrix:  # noqa: ARG002  (G has no x)
        return BlockMatrix(self.diffusion_matrix(t))

    def noise_divergence(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002  (G has no x)
        return torch.zeros((), dtype=x.dtype, device=x.device)

    def start(self, x0: Tensor) -> Tensor:
        """Return the mean of the state at 0: the data, and 0 in the parts that are no data.

        Shapes: (B, p·C, *rest) → (B, n·C, *rest), p being ``data_parts``.
        """
        check_state(type(self).__name__, x0, "x0")
        each = parts_of(type(self).__name__, x0, self.data_parts)[0]
        return torch.cat([x0, *[torch.zeros_like(each)] * (self.parts - self.data_parts)], 1)

    def data_part(self, x: Tensor) -> Tensor:
        """Return the data in states.

        Shapes: (B, n·C, *rest) → (B, p·C, *rest), p being ``data_parts``.
        """
        check_state(type(self).__name__, x)
        return torch.cat(parts_of(type(self).__name__, x, self.parts)[: self.data_parts], 1)

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = Φ x_0 + L eps with L Lᵀ = Σ, L lower triangular.

        Shapes: x0 (B, p·C, *rest); t () or (B,); eps and result (B, n·C, *rest).
        """
        start = self.start(x0)
        check_times("perturb", t)
        if eps.shape != start.shape:
            rule = f"have the shape {tuple(start.shape)} of a state"
            remedy = "draw it with torch.randn_like(sde.start(x0))"
            raise wrong_value("perturb", "eps", rule, tuple(eps.shape), remedy)
        mean, covariance = self.moments(t)
        return BlockMatrix(mean) * start + BlockMatrix(factor(covariance)) * eps

    def score_matrix(self, t: Tensor) -> BlockMatrix:
        """Return −L⁻ᵀ, which takes eps to the score −Σ⁻¹(x_t − Φ x_0), in the driven parts.

        The rows and columns of the parts before ``driven`` are 0. For a pair (x, v) with noise in
        v alone it is −1/L_vv there, the ℓ_t of Dockhorn et al.

        Errors: ValueError at times where Σ is singular, such as 0 without a Σ(0).
        """
        n = self.parts
        lower = factor(self.moments(t)[1])
        k = self.driven
        inner = lower[..., k:, k:]
        if t.device.type == "cpu" and not bool((inner.diagonal(dim1=-2, dim2=-1) > 0).all()):
            what = type(self).__name__
            least = f"a singular one at t = {float(t.min()):.4g}"
            raise wrong_value(what, "covariance(t)", "be regular", least, "take a later t")
        one = torch.eye(n - k, dtype=lower.dtype, device=lower.device)
        found = torch.zeros_like(lower)
        found[..., k:, k:] = -torch.linalg.solve_triangular(inner.mT, one, upper=True)
        return BlockMatrix(found)

    def prior(self) -> PartsNormal:
        """Return the distribution from which sampling starts, N(0, Σ(horizon))."""
        return PartsNormal(self.covariance(torch.tensor(self.horizon, dtype=torch.float64)))


class _Scheduled(MatrixLinearSDE, ABC):
    """dx = β(t) F̄ x dt + √β(t) Ḡ dw: constant matrices in the time B(t) = ∫₀ᵗ β.

    Φ and Σ come by their Taylor series at B/2^m, with a norm of at most ½ there, and m doublings
    Φ(2b) = Φ(b)², Σ(2b) = Φ(b) Σ(b) Φ(b)ᵀ + Σ(b), which cancel nothing: every entry of Σ keeps its
    digits however small it is, where the block exponential of Van Loan 1978 loses them.
    """

    beta: Beta

    @abstractmethod
    def matrices(self) -> tuple[Entries, Entries]:
        """Return F̄ and Ḡ."""

    @property
    def horizon(self) -> float:  # type: ignore[override]  # depends on the schedule
        return self.beta.horizon

    def drift_matrix(self, t: Tensor) -> Tensor:
        return self._constant[0].to(t.device) * self.beta.beta(t)[..., None, None]

    def diffusion_matrix(self, t: Tensor) -> Tensor:
        return self._constant[1].to(t.device) * self.beta.beta(t)[..., None, None].sqrt()

    @cached_property
    def _constant(self) -> tuple[Tensor, Tensor]:
        f, g = (torch.tensor(m, dtype=torch.float64) for m in self.matrices())
        return f, g

    @cached_property
    def _series(self) -> tuple[int, list[Tensor], list[Tensor]]:
        """Return m and the coefficients of Φ(b) = Σ_k A_k b^k and of Σ(b)/b = Σ_k S_k b^k."""
        f, g = self._constant
        end = float(self.beta.integral(torch.tensor(self.horizon, dtype=torch.float64)))
        norm = float(torch.linalg.matrix_norm(f, 2)) * end
        doublings = max(0, math.ceil(math.log2(2 * norm))) if norm > 0 else 0
        mean = [torch.eye(len(f), dtype=torch.float64)]
        covariance = [g @ g.mT]
        for k in range(1, _TERMS):
            mean.append(f @ mean[-1] / k)
            half = f @ covariance[-1]
            covariance.append((half + half.mT) / (k + 1))
        return doublings, mean, covariance

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        doublings, mean_terms, covariance_terms = self._series
        b = self.beta.integral(t)[..., None, None].double() / 2**doublings
        mean = _horner(mean_terms, b)
        covariance = b * _horner(covariance_terms, b)
        for _ in range(doublings):
            covariance = product(product(mean, covariance), mean.mT) + covariance
            mean = product(mean, mean)
        start = self.start_covariance.to(b.device)
        return mean, covariance + product(product(mean, start), mean.mT)


def _horner(terms: Sequence[Tensor], b: Tensor) -> Tensor:
    """Return Σ_k terms_k b^k: (n, n) each and (…, 1, 1) → (…, n, n)."""
    there = [term.to(b.device) for term in terms]
    found = there[-1] + torch.zeros_like(b)
    for term in reversed(there[:-1]):
        found = term + b * found
    return found


@final
@dataclass(frozen=True, repr=False)  # the short one of every SDE: matrices may be large
class OrnsteinUhlenbeck(_Scheduled):
    """The multivariate Ornstein–Uhlenbeck process dx = β(t) F̄ x dt + √β(t) Ḡ dw of n parts.

    All parts are data. The matrices are given as rows of numbers or as tensors.

    Errors: ValueError for matrices that are not square and alike, or noise that does not reach
    every part.
    Source: Särkkä & Solin 2019, chapter 6.

    >>> import torch
    >>> pair = OrnsteinUhlenbeck(((-1.0, 0.5), (0.0, -2.0)), ((1.0, 0.3), (0.3, 1.0)))
    >>> t = torch.tensor(1.0, dtype=torch.float64)
    >>> [round(v, 6) for v in pair.mean_matrix(t).diagonal().tolist()]  # e^{−B} and e^{−2B}
    [4.3e-05, 0.0]
    """

    rate: Entries
    noise: Entries
    beta: Beta = field(default_factory=LinearBeta)

    def __post_init__(self) -> None:
        check_beta("OrnsteinUhlenbeck", self.beta)
        for name in ("rate", "noise"):
            object.__setattr__(self, name, _rows(name, vars(self)[name]))
        if len(self.rate) != len(self.noise):
            got = f"{len(self.rate)} and {len(self.noise)} rows"
            remedy = "pass two matrices of one size"
            raise wrong_value("OrnsteinUhlenbeck", "rate, noise", "be alike", got, remedy)
        last = torch.tensor(self.horizon, dtype=torch.float64)
        pivots = factor(self.covariance(last)).diagonal()
        if not bool((pivots > 1e-8 * pivots.max()).all()):
            rule = "reach every part, by itself or through rate"
            remedy = "pass for example noise=((1.0, 0.0), (0.0, 1.0))"
            raise wrong_value("OrnsteinUhlenbeck", "noise", rule, str(self.noise), remedy)

    def matrices(self) -> tuple[Entries, Entries]:
        return self.rate, self.noise


def _rows(name: str, matrix: object) -> Entries:
    """Return a square matrix as rows of numbers."""
    remedy = f"pass for example {name}=((-1.0, 0.5), (0.0, -1.0))"
    given = matrix.tolist() if isinstance(matrix, Tensor) else matrix
    try:
        found = torch.tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        rule = "be rows of numbers"
        raise wrong_type("OrnsteinUhlenbeck", name, rule, matrix, remedy) from error
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not len(found):
        rule = "be a square matrix"
        raise wrong_value("OrnsteinUhlenbeck", name, rule, tuple(found.shape), remedy)
    if not bool(found.isfinite().all()):
        raise wrong_value("OrnsteinUhlenbeck", name, "be finite", given, remedy)
    return tuple(tuple(row) for row in found.tolist())


@final
@dataclass(frozen=True)
class CriticallyDampedLangevin(_Scheduled):
    """Critically damped Langevin diffusion of a state (x, v), M = Γ²/4 being the mass.

    dx = M⁻¹ v β dt, dv = −x β dt − Γ M⁻¹ v β dt + √(2Γβ) dw, with v_0 ~ N(0, γ M I) and the
    equilibrium N(0, I) N(0, M I). States are torch.cat([x, v], 1). Noise drives v alone, so that
    the reverse needs ∇_v log p alone.

    Arguments:
        beta: the schedule β; constant at 4 if not given.
        friction: Γ, above 0.
        gamma: γ, the variance of v_0 in units of M, above 0.

    Source: Dockhorn, Vahdat & Kreis 2022, section 3; γ = .04, Γ = 1, β = 4 there.

    >>> import torch
    >>> sde = CriticallyDampedLangevin()
    >>> mean, covariance = sde.moments(torch.tensor(1.0, dtype=torch.float64))
    >>> round(float(mean[0, 0]), 6), round(9 * math.exp(-8), 6)  # (1 + 2B/Γ) e^{−2B/Γ}
    (0.003019, 0.003019)
    >>> sde.data_part(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist()
    [[1.0, 2.0]]
    """

    beta: Beta = field(default_factory=lambda: LinearBeta(4.0, 4.0))
    friction: float = 1.0
    gamma: float = 0.04

    def __post_init__(self) -> None:
        check_beta("CriticallyDampedLangevin", self.beta)
        positive_number("CriticallyDampedLangevin", "friction", self.friction)
        remedy = "pass gamma=0.04"
        positive_number("CriticallyDampedLangevin", "gamma", self.gamma, remedy)

    @property
    def mass(self) -> float:
        """M = Γ²/4, at which x comes to rest fastest without swinging."""
        return self.friction**2 / 4

    def matrices(self) -> tuple[Entries, Entries]:
        rate = ((0.0, 1 / self.mass), (-1.0, -self.friction / self.mass))
        return rate, ((0.0, 0.0), (0.0, math.sqrt(2 * self.friction)))

    @property
    def data_parts(self) -> int:
        return 1

    @property
    def start_covariance(self) -> Tensor:
        return torch.tensor([[0.0, 0.0], [0.0, self.gamma * self.mass]], dtype=torch.float64)

    def prior(self) -> PartsNormal:
        return PartsNormal(torch.tensor([[1.0, 0.0], [0.0, self.mass]], dtype=torch.float64))
