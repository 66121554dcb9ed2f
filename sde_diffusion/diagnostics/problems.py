"""The data on which orders are measured, and their exact scores in few operations.

A solve of a hundred steps asks the score a hundred times at one time of all rows, in which the
general score of `GaussianMixture` spends most of a certificate's time. Here alpha and sigma are
floats, and E[x0 | x_t] is written for the one problem.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.forms import converted
from sde_diffusion.models.exact import Gaussian, GaussianMixture, Oracle
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE


def tensor(*rows: object) -> Tensor:
    """Return the rows in float64, the dtype of every measurement."""
    return torch.tensor(rows, dtype=torch.float64)


_WEIGHTS: Final = (0.4, 0.6)
_MEANS: Final = (-0.8, 0.7)
_STDS: Final = (0.5, 0.3)
_MEAN: Final = tensor(0.3, -0.2, 0.1)
_COVARIANCE: Final = tensor([0.6, 0.4, -0.2], [0.4, 0.4, 0.0], [-0.2, 0.0, 0.4])
_LINE: Final = (0.3, 0.25)  # mean and variance

MIXTURE: Final = GaussianMixture(_WEIGHTS, tensor(*_MEANS)[:, None], stds=_STDS)
CORRELATED: Final = Gaussian(_MEAN, _COVARIANCE)
LINE: Final = Gaussian(tensor(_LINE[0]), tensor([_LINE[1]]))


def _both() -> GaussianMixture:
    """Return the mixture in the first coordinate and the Gaussian in the others, independent."""
    means = torch.cat([tensor(*_MEANS)[:, None], _MEAN.expand(2, 3)], 1)
    covariances = torch.zeros(2, 4, 4, dtype=torch.float64)
    covariances[:, 0, 0] = tensor(*_STDS).square()
    covariances[:, 1:, 1:] = _COVARIANCE
    return GaussianMixture(_WEIGHTS, means, covariances)


BOTH: Final = _both()


class OrderProblem(ScoreLike, ABC):
    """The exact score of an oracle's data, by `x0` where all rows are at one time.

    Where they are at times of their own it is the general score of the oracle.
    """

    sde: LinearSDE
    predicts = True
    row_by_row = True
    oracle: ClassVar[Oracle]

    def __init__(self, sde: LinearSDE) -> None:
        self.sde = sde
        self.exact = self.oracle.diffused(sde)

    @abstractmethod
    def x0(self, x: Tensor, a: float, s: float) -> Tensor:
        """Return E[x0 | x_t = x] where alpha(t) = a and sigma(t) = s."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if t.ndim:
            return self.exact(x, t)
        a = float(self.sde.alpha(t))
        s = float(self.sde.sigma(t))
        return (a * self.x0(x, a, s) - x) / s**2

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        if isinstance(at, Levels):
            return self.exact.predict(form, x, t, at)
        return converted(form, "x0", self.x0(x, at.alpha, at.sigma), x, at)


@final
class GaussianLine(OrderProblem):
    """N(.3, .5²)."""

    oracle = LINE

    def x0(self, x: Tensor, a: float, s: float) -> Tensor:
        mean, variance = _LINE
        gain = a * variance / (a**2 * variance + s**2)
        return x.mul(gain).add_(mean * (1 - a * gain))

    def moments(self, t: float) -> tuple[float, float]:
        """Return mean and standard deviation at t."""
        mean, variance = _LINE
        a, s = (float(f(tensor(t)[0])) for f in (self.sde.alpha, self.sde.sigma))
        return a * mean, math.hypot(a * variance**0.5, s)


def mixture_x0(x: Tensor, a: float, s: float) -> Tensor:
    """Return E[x0 | x_t] of `MIXTURE`: with v_k = a² sigma_k² + s² and p = p(k = 1 | x),

    x0 = D_2 + p (D_1 − D_2) with D_k = m_k + (a sigma_k²/v_k) (x − a m_k), and log p/(1 − p) is
    a quadratic in x.
    """
    (w, w2), (m, m2), (d, d2) = _WEIGHTS, _MEANS, _STDS
    v = (a * d) ** 2 + s**2
    v2 = (a * d2) ** 2 + s**2
    slope = a * d**2 / v
    slope2 = a * d2**2 / v2
    offset = m * (1 - a * slope)
    offset2 = m2 * (1 - a * slope2)
    odds = math.log(w / w2) - 0.5 * math.log(v / v2) - 0.5 * a**2 * (m**2 / v - m2**2 / v2)
    p = x.mul(0.5 / v2 - 0.5 / v).add_(a * (m / v - m2 / v2)).mul(x).add_(odds).sigmoid()
    return x.mul(slope - slope2).add_(offset - offset2).mul(p).add(x, alpha=slope2).add_(offset2)


@final
class MixtureLine(OrderProblem):
    """.4 N(−.8, .5²) + .6 N(.7, .3²)."""

    oracle = MIXTURE

    def x0(self, x: Tensor, a: float, s: float) -> Tensor:
        return mixture_x0(x, a, s)


@final
class MixtureAndGaussian(OrderProblem):
    """The mixture of `MixtureLine` in the first coordinate and N(m, C) in three more."""

    oracle = BOTH

    def __init__(self, sde: LinearSDE) -> None:
        super().__init__(sde)
        self._values, self._basis = torch.linalg.eigh(_COVARIANCE)

    def x0(self, x: Tensor, a: float, s: float) -> Tensor:
        # m + (x − a m) G with G = a C (a² C + s²)⁻¹.
        gains = a * self._values / (a**2 * self._values + s**2)
        gain = (self._basis * gains) @ self._basis.mT
        offset = _MEAN - a * (_MEAN @ gain)
        return torch.cat([mixture_x0(x[:, :1], a, s), torch.addmm(offset, x[:, 1:], gain)], 1)
