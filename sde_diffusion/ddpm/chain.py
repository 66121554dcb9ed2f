"""The discrete DDPM as the Markov chain of any linear SDE on a grid of times.

With `VPSDE(DiscreteBeta(betas))` on the lattice k/N this is the model of Ho et al.; on a part of
the lattice it is the respaced one. x_k is the state at the k-th time, counted from the data up:

    q(x_k|x_{k−1}) = N(√(1−β_k) x_{k−1}, β_k I),   q(x_k|x0) = N(√ᾱ_k x0, (1−ᾱ_k) I)

for VP, and a x_{k−1}, b² in place of √(1−β_k), β_k for any linear SDE (`LinearSDE.kernel`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import expand
from sde_diffusion.grids import check_grid
from sde_diffusion.lattices import lattice
from sde_diffusion.schedules import DiscreteBeta
from sde_diffusion.sde import VPSDE, LinearSDE


class Gap(NamedTuple):
    """The largest differences of two SDEs' alpha, sigma and λ over the times of a chain."""

    alpha: float
    sigma: float
    lambda_: float


@final
@dataclass(frozen=True, eq=False)
class Chain:
    """The chain x_0 → x_1 → … → x_N of a linear SDE at the times of a falling grid that ends at 0.

    Tables of the steps are (N,), step k at index k − 1; ``k`` is an integer or one per sample.
    r_k = 1 − SNR_k/SNR_{k−1} = b²/sigma_k² is the share of the noise in x_k that step k adds.

    Errors: ValueError for a grid that rises, leaves [0, horizon] or does not end at 0.
    Source: Ho et al. 2020, equations 2, 4, 6 and 7; in alpha, sigma and SNR: Kingma et al. 2021.

    >>> chain = Chain.ddpm(torch.tensor([0.1, 0.2], dtype=torch.float64))
    >>> [round(b, 12) for b in chain.betas.tolist()], round(chain.alpha_bars[1].item(), 12)
    ([0.1, 0.2], 0.72)
    """

    sde: LinearSDE
    grid: Tensor
    times: Tensor = field(init=False, repr=False)  # 0 = t_0 < … < t_N, (N + 1,)
    alpha: Tensor = field(init=False, repr=False)  # (N + 1,)
    sigma: Tensor = field(init=False, repr=False)  # (N + 1,)
    share: Tensor = field(init=False, repr=False)  # r_1 … r_N

    __repr__ = shown

    def __post_init__(self) -> None:
        if not isinstance(self.sde, LinearSDE):
            raise wrong_type(
                "Chain",
                "sde",
                "be a LinearSDE",
                type(self.sde).__name__,
                "pass for example VPSDE()",
            )
        check_grid(self.grid, self.sde.latest)
        if float(self.grid[-1]) != 0:
            raise wrong_value(
                "Chain",
                "grid",
                "fall to 0, where the data are",
                f"{float(self.grid[0]):.4g} … {float(self.grid[-1]):.4g}",
                "pass for example lattice(1000)",
            )
        times = self.grid.flip(0)
        lambda_ = self.sde.lambda_(times).detach()
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "alpha", self.sde.alpha(times).detach())
        object.__setattr__(self, "sigma", self.sde.sigma(times).detach())
        object.__setattr__(self, "share", -torch.expm1(2 * lambda_.diff()))

    @classmethod
    def ddpm(cls, betas: Tensor) -> Self:
        """Return the DDPM of β_1 … β_N; ``chain.betas`` leads back, from any VP-SDE."""
        return cls(VPSDE(DiscreteBeta(betas)), lattice(len(betas)))

    def __len__(self) -> int:
        return len(self.share)

    @property
    def alpha_bars(self) -> Tensor:
        """ᾱ_k = alpha_k² for k = 1 … N."""
        return self.alpha[1:].square()

    @property
    def betas(self) -> Tensor:
        """β_k, the variance b² of x_k given x_{k−1}; between any two times of a respaced grid."""
        return self.sigma[1:].square() * self.share

    @property
    def posterior_variances(self) -> Tensor:
        """β̃_k = (1−ᾱ_{k−1})/(1−ᾱ_k) β_k, the variance of x_{k−1} given x_k and x0; β̃_1 = 0."""
        return self.sigma[:-1].square() * self.share

    @property
    def data_weights(self) -> Tensor:
        """The factor √ᾱ_{k−1} β_k/(1−ᾱ_k) = alpha_{k−1} r_k of x0 in the posterior mean."""
        return self.alpha[:-1] * self.share

    def step(self, x: Tensor, k: int | Tensor, z: Tensor) -> Tensor:
        """Return x_k = √(1−β_k) x_{k−1} + √β_k z of x = x_{k−1}."""
        a = self.alpha[k] / self.alpha[_before(k)]
        return expand(a, x) * x + expand(self.betas[_before(k)].sqrt(), x) * z

    def perturb(self, x0: Tensor, k: int | Tensor, eps: Tensor) -> Tensor:
        """Return x_k = √ᾱ_k x0 + √(1−ᾱ_k) eps."""
        return expand(self.alpha[k], x0) * x0 + expand(self.sigma[k], x0) * eps

    def posterior(self, x: Tensor, x0: Tensor, k: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of x_{k−1} given x = x_k and x0.

        √ᾱ_{k−1} β_k/(1−ᾱ_k) x0 + √(1−β_k) (1−ᾱ_{k−1})/(1−ᾱ_k) x_k, and β̃_k.
        """
        i = _before(k)
        keep = self.alpha[k] / self.alpha[i] * (self.sigma[i] / self.sigma[k]).square()
        mean = expand(self.data_weights[i], x) * x0 + expand(keep, x) * x
        return mean, self.posterior_variances[i]

    def posterior_mean(self, x: Tensor, eps: Tensor, k: int | Tensor) -> Tensor:
        """Return the same mean by the noise in x_k: (x_k − β_k/√(1−ᾱ_k) eps)/√(1−β_k).

        Source: Ho et al. 2020, equation 11.
        """
        i = _before(k)
        noise = self.share[i] * self.sigma[k]
        return expand(self.alpha[i] / self.alpha[k], x) * (x - expand(noise, x) * eps)

    def gap(self, sde: LinearSDE) -> Gap:
        """Return how far ``sde`` is from this chain at its times t_1 … t_N."""
        t = self.times[1:]
        return Gap(
            *(
                float((own(t) - other(t)).abs().max())
                for own, other in (
                    (self.sde.alpha, sde.alpha),
                    (self.sde.sigma, sde.sigma),
                    (self.sde.lambda_, sde.lambda_),
                )
            )
        )


def _before(k: int | Tensor) -> int | Tensor:
    """Return k − 1, refusing a k below 1, which would be read from a table's end."""
    if int(torch.as_tensor(k).min()) < 1:
        raise wrong_value("Chain", "k", "count steps from 1", k, "pass k = 1 … N")
    return k - 1
