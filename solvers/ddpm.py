"""Sampling of a DDPM with any variance of its steps: β, β̃, learned or analytic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import an_object
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.ddpm.variances import Variance, counted, predicted, reverse_step
from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver
from sde_diffusion.solvers._shared.checks import backward, own_noise


@final
@dataclass(frozen=True)
class DDPM(Solver[ReverseSDE]):
    """DDPM step x_{k−1} = μ̃(x_k, x̂0) + σ_k z of the chain at the times of the grid.

    ``variance`` is σ_k²; if not given it is what the model has learned, had in the same pass, or
    else β_k. With β̃_k it is `Ancestral`. A step to t = 0 draws nothing and ends at x̂0. Tables of
    an `AnalyticVariance` are of one chain: that of the times of the grid and 0.

    Order: weak 1. NFE: 1 a step, and 1 more with a `LearnedVariance` that is given.
    Errors: ValueError for a grid that runs forward, or dynamics with a noise_scale; TypeError for
    an SDE that is not linear.
    Source: Ho et al. 2020, equation 7 (μ̃, β̃) and algorithm 2; Nichol & Dhariwal 2021, equation 15
    (learned variances); Bao et al. 2022 (analytic ones).

    >>> from sde_diffusion import DiscreteBeta, Gaussian, VPSDE, lattice, linear_betas, sample
    >>> ddpm = VPSDE(DiscreteBeta(linear_betas(1000)))
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(ddpm)
    >>> sample(model, DDPM(), (4, 2), grid=lattice(1000, 50)).nfe
    50
    """

    variance: Variance | None = None
    dynamics = ReverseSDE
    order: ClassVar[float] = 1
    strong_order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.variance is not None:
            an_object("DDPM", "variance", self.variance, Variance, "pass PosteriorVariance()")

    def steps(
        self, dynamics: ReverseSDE, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states at grid[1], grid[2], …, given ``x`` at grid[0]."""
        known = linear("DDPM", dynamics)
        score = dynamics.score
        own_noise("DDPM", dynamics.noise_scale, "set the noise by variance: DDPM(variance)")
        backward("DDPM", grid[0], grid[-1])
        variance = counted(score, self.variance)
        chain = Chain(known.sde, torch.cat([grid[grid > 0], grid.new_zeros(1)]))
        for i, (t, s) in enumerate(pairwise(grid)):
            x0_hat, sigma2 = predicted(score, x, t, known.level(t), variance)
            x = reverse_step(x, x0_hat, chain, len(chain) - i, sigma2, noise.unit(x, t, s))
            yield x
