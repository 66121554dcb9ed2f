"""EDM's stochastic sampler: raise the noise a little, then one Heun step down."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import kernel
from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver
from sde_diffusion.solvers._shared.checks import at_least_zero, backward, own_noise
from sde_diffusion.solvers.edm_heun import ddim_form, ddim_step, heun_in_rho


@final
@dataclass(frozen=True)
class EDMStochastic(Solver[ReverseSDE]):
    """EDM's sampler with churn, for any linear SDE, in y = x/α and ρ = σ/α.

    From ρ_t it rises to ρ̂ = ρ_t (1 + γ) by fresh noise, ŷ = y_t + √(ρ̂² − ρ_t²) S_noise z, which
    keeps the distribution, and goes from there to ρ_s by the step of `EDMHeun`. In a solve of N
    steps γ = min(S_churn/N, √2 − 1) where S_min ≤ ρ_t ≤ S_max, else 0; no rise goes beyond the
    horizon.

    Order: weak 2 once γ falls like 1/N; 0 unless S_noise is 1, which alone keeps the distribution.
    NFE: 2 a step, 1 for a step to σ_s = 0.

    Arguments:
        churn: S_churn, at least 0, which sets the noise added in a solve; 0 is the ODE solver.
        s_min: the lowest ρ at which noise is added.
        s_max: the highest ρ at which noise is added.
        s_noise: S_noise, above 0, the factor of the standard deviation of the noise added.

    Errors: ValueError for a negative churn, an S_noise that is not positive, a grid that runs
    forward, or dynamics with a noise_scale, which is what churn is; TypeError for an SDE that is
    not linear.
    Source: Karras et al. 2022, algorithm 2.

    >>> import torch
    >>> from sde_diffusion import EDMSDE, Gaussian, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(EDMSDE())
    >>> sample(model, EDMStochastic(churn=40), (4, 2), steps=10).nfe
    20
    """

    churn: float = 4.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    dynamics = ReverseSDE
    evaluations: ClassVar[int] = 2
    certified: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"churn": 0.0}, {"s_max": 1.0})

    def __post_init__(self) -> None:
        at_least_zero("EDMStochastic", "churn", self.churn, "pass 0.0 for the ODE")
        if not self.s_noise > 0:
            raise wrong_value(
                "EDMStochastic",
                "s_noise",
                "be above 0",
                self.s_noise,
                "pass 1.0, which keeps the distribution",
            )

    @property
    def order(self) -> float:
        """The weak order."""
        return 2 if self.s_noise == 1 or self.churn == 0 else 0

    def steps(
        self, dynamics: ReverseSDE, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid."""
        known = linear("EDMStochastic", dynamics)
        score = dynamics.score
        own_noise("EDMStochastic", dynamics.noise_scale, "set the noise by EDMStochastic(churn=…)")
        backward("EDMStochastic", grid[0], grid[-1])
        end = torch.tensor(known.sde.horizon, dtype=torch.float64)
        low = known.level(end).lambda_
        gamma = min(self.churn / (len(grid) - 1), math.sqrt(2) - 1)
        for t, s in pairwise(grid):
            at = known.level(t)
            to = known.level(s)
            lambda_ = max(at.lambda_ - math.log1p(gamma), low)
            rho = math.exp(-at.lambda_)
            if self.s_min <= rho <= self.s_max and lambda_ < at.lambda_:
                u = known.time(lambda_).clamp(max=end)
                up = known.level(u)
                a, b2 = kernel(at, up)
                x = x * a
                x.add_(noise.unit(x, t, s), alpha=self.s_noise * math.sqrt(b2))
                t = u
                at = up
            if to.sigma == 0 or at.pure_noise:
                form = ddim_form(score, at)
                x = ddim_step(form, x, score.predict(form, x, t, at), at, to)
            else:
                x = heun_in_rho(known, score, x, score.predict("eps", x, t, at), t, s)
            yield x
