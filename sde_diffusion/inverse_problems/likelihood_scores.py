"""Approximations of the likelihood score ∇ log p(y | x_t), by the moments of x0 given x_t.

With x̂0 = E[x0 | x_t] and a guess V of Cov[x0 | x_t], p(y | x_t) is taken to be
N(y; A x̂0, S), S = sigma_y² I + A V Aᵀ. Its score, S as it is, is

    ∇ log p(y | x_t) ≈ Jᵀ Aᵀ S⁻¹ (y − A x̂0),   J = ∂x̂0/∂x_t.

The methods differ in V alone. The exact covariance is V = (sigma²/alpha) J (Tweedie), which moment
matching takes; and even then p(y | x_t) is a Gaussian only for Gaussian data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import expand, flat_sum
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.forms import Number
from sde_diffusion.inverse_problems.measurement import Measurement
from sde_diffusion.inverse_problems.operators import LinearOperator, conjugate_gradients
from sde_diffusion.scores import ScoreLike


class Guess(NamedTuple):
    """What is known of y at (x, t).

    Arguments:
        x0: E[x0 | x_t]; (B, *event).
        gradient: an approximation of ∇ log p(y | x_t); (B, *event).
        log_likelihood: of log p(y | x_t), up to a number that is one for all x; (B,), float64.
    """

    x0: Tensor
    gradient: Tensor
    log_likelihood: Tensor

    def __repr__(self) -> str:
        return shown(self)


class LikelihoodScore(ABC):
    """An approximation of ∇ log p(y | x_t)."""

    __repr__ = shown

    @abstractmethod
    def __call__(
        self, model: ScoreLike, x: Tensor, t: Tensor, at: Level | Levels, measurement: Measurement
    ) -> Guess:
        """Return x̂0, the gradient and the log-likelihood, of one evaluation of the model.

        Arguments:
            model: the score of the data without y.
            x: the states; (B, *event).
            t: their time; () or (B,).
            at: alpha and sigma at t.
            measurement: what was measured.
        """


@final
class _Denoised:
    """x̂0 with its graph in x_t, the residual y − A(x̂0) and A'(x̂0)."""

    def __init__(
        self, model: ScoreLike, x: Tensor, t: Tensor, at: Level | Levels, measurement: Measurement
    ) -> None:
        self._x = x.detach().requires_grad_()
        with torch.enable_grad():
            self._x0 = model.predict("x0", self._x, t, at)
        self.x0 = self._x0.detach()
        self.residual = measurement.residual(self.x0)
        self.operator: LinearOperator = measurement.operator.linearised(self.x0)

    def pulled(self, u: Tensor) -> Tensor:
        """Return Jᵀ Aᵀ u, by one vector-Jacobian product."""
        (found,) = torch.autograd.grad(
            self._x0, self._x, self.operator.adjoint(u), retain_graph=True
        )
        return found

    def pushed(self, u: Tensor, gamma: Number) -> Tensor:
        """Return A V Aᵀ u with V = gamma J, gamma = sigma²/alpha; J is symmetric for a score."""
        pulled = self.pulled(u)
        return self.operator(beside(gamma, pulled) * pulled)


def beside(c: Number, x: Tensor) -> Number:
    """Return a coefficient in a form that multiplies rows of x."""
    return expand(c, x) if isinstance(c, Tensor) else c


def tweedie(at: Level | Levels) -> Number:
    """Return sigma²/alpha, by which J becomes Cov[x0 | x_t]."""
    if isinstance(at, Level) and at.alpha == 0:
        raise wrong_value(
            "LikelihoodScore",
            "t",
            "have alpha above 0: in pure noise nothing is known of x0",
            "alpha = 0",
            "start the grid at sde.horizon or before",
        )
    return at.sigma * at.sigma / at.alpha


@final
@dataclass(frozen=True, repr=False)
class DPS(LikelihoodScore):
    """Diffusion posterior sampling: a pull of fixed length against the residual's norm.

    ∇ log p(y | x_t) is taken to be −(ζ N/g²) ∇‖y − A x̂0‖. In one of N uniform steps of the reverse
    SDE it moves the state by −ζ ∇‖y − A x̂0‖, as in the paper's algorithm 1 with its step
    ζ/‖y − A x̂0‖. No probability stands behind it: sigma_y does not occur.

    Arguments:
        scale: ζ.
        steps: N, the steps of the published sampler.

    NFE: 1, and one vector-Jacobian product.
    Source: Chung et al. 2023, algorithm 1.
    """

    scale: float = 1.0
    steps: int = 1000

    def __post_init__(self) -> None:
        positive_number("DPS", "scale", self.scale)
        positive_integer("DPS", "steps", self.steps)

    def __call__(
        self, model: ScoreLike, x: Tensor, t: Tensor, at: Level | Levels, measurement: Measurement
    ) -> Guess:
        measurement.gaussian_std("DPS")
        known = _Denoised(model, x, t, at, measurement)
        norm = flat_sum(known.residual.square()).sqrt()
        direction = known.residual / norm.clamp(min=1e-30).reshape(-1, *_ones(known.residual))
        weight = self.scale * self.steps / model.linear_sde().g(t).square()
        gradient = expand(weight, x) * known.pulled(direction)
        return Guess(known.x0, gradient, -weight.to(x.device) * norm.double())


@final
@dataclass(frozen=True, repr=False)
class PlugIn(LikelihoodScore):
    """p(y | x_t) is taken to be p(y | x0 = x̂0): for any noise and any operator.

    ∇ log p(y | A(x̂0)) by automatic differentiation, the approximation that DPS begins with, and
    the twist of the twisted diffusion sampler. It is as sure of y in pure noise as at the end, so
    that alone it is far off where the noise is small: weigh it, by `sample_posterior`.

    NFE: 1, and one vector-Jacobian product.
    Source: Chung et al. 2023, theorem 1; Wu et al. 2023, whose twist it is.
    """

    def __call__(
        self, model: ScoreLike, x: Tensor, t: Tensor, at: Level | Levels, measurement: Measurement
    ) -> Guess:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            x0 = model.predict("x0", x, t, at)
            log_likelihood = measurement.log_prob(x0)
            (gradient,) = torch.autograd.grad(log_likelihood.sum(), x)
        return Guess(x0.detach(), gradient, log_likelihood.detach())


@final
@dataclass(frozen=True, repr=False)
class PiGDM(LikelihoodScore):
    """Pseudo-inverse guidance: V = r² I, r² = d² sigma²/(alpha² d² + sigma²).

    V is the covariance for data N(m, d² I), and no function of x.

    Arguments:
        data_std: d, the standard deviation of the data.

    NFE: 1, and one vector-Jacobian product.
    Source: Song et al. 2023 (pseudoinverse-guided diffusion models).
    """

    data_std: float = 1.0

    def __post_init__(self) -> None:
        positive_number("PiGDM", "data_std", self.data_std)

    def __call__(
        self, model: ScoreLike, x: Tensor, t: Tensor, at: Level | Levels, measurement: Measurement
    ) -> Guess:
        noise = measurement.gaussian_std("PiGDM") ** 2
        known = _Denoised(model, x, t, at, measurement)
        d2 = self.data_std**2
        s2 = at.sigma * at.sigma
        variance = beside(d2 * s2 / (at.alpha * at.alpha * d2 + s2), known.residual)
        u = known.operator.gram_solve(known.residual, noise, variance)
        return Guess(known.x0, known.pulled(u), _quadratic(known.residual, u))


@final
@dataclass(frozen=True, repr=False)
class TMPD(LikelihoodScore):
    """Tweedie moment projection: A V Aᵀ is replaced by the diagonal of its row sums.

    NFE: 1, and two vector-Jacobian products.
    Source: Boys et al. 2023, the diagonal form.
    """

    def __call__(
        self, model: ScoreLike, x: Tensor, t: Tensor, at: Level | Levels, measurement: Measurement
    ) -> Guess:
        noise = measurement.gaussian_std("TMPD") ** 2
        known = _Denoised(model, x, t, at, measurement)
        sums = known.pushed(torch.ones_like(known.residual), tweedie(at))
        variance = noise + sums.clamp(min=0)
        u = known.residual / variance
        log_likelihood = _quadratic(known.residual, u) - 0.5 * flat_sum(variance.double().log())
        return Guess(known.x0, known.pulled(u), log_likelihood)


@final
@dataclass(frozen=True, repr=False)
class MMPS(LikelihoodScore):
    """Moment matching posterior sampling: V = (sigma²/alpha) J, S⁻¹ by conjugate gradients.

    Its log-likelihood is that without log det S. Where V of a learned score is negative in some
    direction, as no covariance is, a sample's iterations end.

    Arguments:
        iterations: of conjugate gradients, one vector-Jacobian product each.

    NFE: 1, and iterations + 1 vector-Jacobian products.
    Source: Rozet et al. 2024 (learning diffusion priors from observations).
    """

    iterations: int = 3

    def __post_init__(self) -> None:
        positive_integer("MMPS", "iterations", self.iterations)

    def __call__(
        self, model: ScoreLike, x: Tensor, t: Tensor, at: Level | Levels, measurement: Measurement
    ) -> Guess:
        noise = measurement.gaussian_std("MMPS") ** 2
        known = _Denoised(model, x, t, at, measurement)
        gamma = tweedie(at)
        u = conjugate_gradients(
            lambda u: noise * u + known.pushed(u, gamma),
            known.residual,
            self.iterations,
            least=noise,
        )
        return Guess(known.x0, known.pulled(u), _quadratic(known.residual, u))


@final
@dataclass(frozen=True, repr=False)
class DenseMMPS(LikelihoodScore):
    """`MMPS` with the whole matrix S: exact, and with log det S in its log-likelihood.

    For measurements of few numbers: of m numbers it takes m vector-Jacobian products and solves
    an m × m system a sample.

    NFE: 1, and m + 1 vector-Jacobian products.
    Source: Rozet et al. 2024 (learning diffusion priors from observations).
    """

    def __call__(
        self, model: ScoreLike, x: Tensor, t: Tensor, at: Level | Levels, measurement: Measurement
    ) -> Guess:
        noise = measurement.gaussian_std("DenseMMPS") ** 2
        known = _Denoised(model, x, t, at, measurement)
        gamma = tweedie(at)
        r = known.residual.flatten(1)
        columns = []
        for j in range(r.shape[1]):
            unit = torch.zeros_like(r)
            unit[:, j] = 1
            columns.append(known.pushed(unit.view_as(known.residual), gamma).flatten(1))
        covariance = torch.stack(columns, 2)
        # J of a learned score is not symmetric, and its symmetric part may not be positive.
        values, basis = torch.linalg.eigh(0.5 * (covariance + covariance.mT))
        values = values.clamp(min=0) + noise
        u = (basis @ ((basis.mT @ r[:, :, None]) / values[:, :, None]))[:, :, 0]
        u = u.view_as(known.residual)
        log_likelihood = _quadratic(known.residual, u) - 0.5 * values.double().log().sum(1)
        return Guess(known.x0, known.pulled(u), log_likelihood)


@final
@dataclass(frozen=True, repr=False)
class DiffPIR(LikelihoodScore):
    """Plug-and-play restoration: x̂0 is moved to the nearest fit of y, and J is left out.

    x̂0 + V Aᵀ S⁻¹ (y − A x̂0), V = (sigma²/(alpha² λ)) I, minimises
    ‖y − A x‖²/sigma_y² + λ (alpha²/sigma²) ‖x − x̂0‖².

    Arguments:
        weight: λ.

    NFE: 1, and no vector-Jacobian product.
    Source: Zhu et al. 2023 (plug-and-play image restoration).
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        positive_number("DiffPIR", "weight", self.weight)

    def __call__(
        self, model: ScoreLike, x: Tensor, t: Tensor, at: Level | Levels, measurement: Measurement
    ) -> Guess:
        noise = measurement.gaussian_std("DiffPIR") ** 2
        gamma = tweedie(at)
        x0 = model.predict("x0", x, t, at)
        r = measurement.residual(x0)
        operator = measurement.operator.linearised(x0)
        variance = gamma / at.alpha / self.weight
        u = operator.gram_solve(r, noise, beside(variance, r))
        # x̂0 moves by gamma times the gradient.
        back = operator.adjoint(u)
        return Guess(x0, back * beside(variance / gamma, back), _quadratic(r, u))


def _quadratic(r: Tensor, u: Tensor) -> Tensor:
    """Return −½ rᵀ S⁻¹ r, one a row, float64."""
    return -0.5 * flat_sum(r.double() * u.double())


def _ones(x: Tensor) -> list[int]:
    return [1] * (x.ndim - 1)
