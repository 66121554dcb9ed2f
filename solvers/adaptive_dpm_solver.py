"""DPM-Solver-12 and -23 with a step size for every sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Adaptive, Reached
from sde_diffusion.solvers._shared.adaptive import under_way
from sde_diffusion.solvers._shared.adaptive_dpm import DPMBatch, attempt, start
from sde_diffusion.solvers._shared.checks import above_zero, choice
from sde_diffusion.solvers._shared.step_limits import Limits, check_tolerance


@final
@dataclass(frozen=True)
class AdaptiveDPMSolver(Adaptive[ProbabilityFlow]):
    """DPM-Solver-12 (order 2) and -23 (order 3); each sample has its own times and step sizes.

    `DPMSolver` of the order makes the step and shares its predictions with a step of one order
    less. The difference of both is accepted where E = √(mean((difference/δ)²)) ≤ 1,
    δ = max(atol, rtol max(|x_low|, |x_low before|)), the mean being over the sample's own
    elements; the next step size in λ is .9 h E^{−1/order}. So no sample's result depends on its
    batch-mates, and samples that have arrived leave the batch. Every time of the grid is met
    exactly; two are enough. A step to σ_s = 0 is x_s = α_s E[x0 | x_t], without any error control:
    let another time come before it.

    Order: 2 or 3, of the step that is kept. NFE: the order, a step tried, less 1 after a rejected
    one; one batched call counts once.

    Arguments:
        order: of the step that is kept, 2 or 3.
        rtol: the tolerance relative to the state, above 0.
        atol: the absolute tolerance, above 0, in the units of x.
        h_init: the first step size in λ, above 0.
        max_steps: the most steps that may be tried between two times of the grid; a mixture takes
            200 at tolerances of 1e-5, 420 at 1e-7.

    Errors: ValueError for another order, or tolerances or h_init that are not positive; TypeError
    for an SDE that is not linear; FloatingPointError naming t and the samples where
    the steps become too small or too many.
    Source: Lu et al. 2022 (DPM-Solver), appendix C, whose tolerances are the defaults.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, AdaptiveDPMSolver(), (1, 2), steps=1, dtype=torch.float64).nfe
    31
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    max_steps: int = 1_000
    dynamics = ProbabilityFlow
    certified: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"order": p, "atol": math.inf, "h_init": math.inf} for p in (2, 3)
    )

    def __post_init__(self) -> None:
        what = "AdaptiveDPMSolver"
        choice(what, "order", (2, 3), self.order)
        above_zero(what, "0.01", rtol=self.rtol, atol=self.atol, h_init=self.h_init)
        positive_integer(what, "max_steps", self.max_steps)

    @property
    def evaluations(self) -> int:
        """Evaluations a step that is accepted at once."""
        return self.order

    def reached(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        grid: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Iterator[Reached]:
        known = linear("AdaptiveDPMSolver", dynamics)
        check_tolerance("AdaptiveDPMSolver", x, self.rtol, self.atol)
        p = self.start(x, grid[0])
        for t, s in pairwise(grid):
            if known.level(s).sigma == 0:
                x0 = dynamics.score.predict("x0", p.x, t, known.level(t))
                p.x = x0 * known.level(s).alpha
            else:
                self.advance(dynamics, p, s)
            yield Reached(p.x, None)

    def start(self, x: Tensor, t: Tensor) -> DPMBatch:
        """Return the state at t before its first step."""
        return start(x, t, self.h_init)

    def advance(self, flow: ProbabilityFlow, p: DPMBatch, end: Tensor) -> None:
        """Carry every sample of ``p`` to the time ``end``, at which sigma is above 0."""
        stop = float(end)
        limits = Limits("AdaptiveDPMSolver", "score", self.max_steps, self.order, 1e-12)
        for now in under_way(limits, p, stop):
            attempt(self.order, self.rtol, self.atol, flow, p, now, stop)
