"""UniPC: exponential predictor-correctors of the probability flow in data form."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ProbabilityFlow, linear
from sde_diffusion.solvers._exponential import latest, own_grid, singlestep, through
from sde_diffusion.solvers.dpm_solver_pp import half_difference

# B(h) of the steps with one difference, whose weight the paper sets to ½ instead of solving for.
WIDTHS: Final[Mapping[str, Callable[[float], float] | None]] = {
    "bh1": lambda h: h,
    "bh2": lambda h: -math.expm1(-h),
    "vary_coeff": None,
}


@dataclass(frozen=True)
class _UniPC(Multistep[ProbabilityFlow], ABC):
    """The predictor UniP-p and the corrector UniC-p."""

    p: int = 3
    variant: str = "bh2"
    dynamics = ProbabilityFlow
    grid = own_grid
    form: ClassVar[str] = "x0"

    def __post_init__(self) -> None:
        what = type(self).__name__
        if self.p not in (1, 2, 3, 4):
            raise wrong_value(what, "p", "be 1, 2, 3 or 4", self.p, "pass p=3")
        if self.variant not in WIDTHS:
            rule = f"be one of {', '.join(WIDTHS)}"
            raise wrong_value(what, "variant", rule, self.variant, "pass 'bh2'")

    @property
    def memory(self) -> int:
        """The largest number of predictions that a step combines."""
        return self.p + 1

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        return self._step(latest(at, i, self.p), at[i], at[i + 1])

    def corrector(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        return self._step([at[i], *latest(at, i - 1, self.p)], at[i - 1], at[i])

    def _step(self, nodes: Sequence[Level], t: Level, s: Level) -> Step:
        """Return the step from t to s by the predictions at ``nodes``, of which t is one."""
        width = WIDTHS[self.variant]
        if len(nodes) != 2 or width is None:
            return through("x0", nodes, t, s)
        place = nodes.index(t)
        weights = half_difference(t, s, nodes[1 - place], width(s.lambda_ - t.lambda_))
        return Step(s.sigma / t.sigma, weights[::-1] if place else weights)


@final
@dataclass(frozen=True)
class UniPC(_UniPC):
    """UniPC-p: UniP-p predicts, and the prediction at the end of the step corrects it by UniC-p.

    Both are x_s = (σ_s/σ_t) x_t + α_s (1 − e^{−h}) m_t + α_s B(h) Σ_k a_k (m_k − m_t)/r_k with
    r_k = (λ_k − λ_t)/h: UniP-p over the p − 1 predictions before t, UniC-p over these and the one
    at s. The a_k make the step exact where x0 is a polynomial in λ, so that B(h) cancels. Only
    where there is one difference a_1 = ½, and B(h) = h for the variant "bh1", 1 − e^{−h} for
    "bh2"; "vary_coeff" is exact there too.

    So UniP-1 is the DDIM, UniP-2 with bh2 the published DPM-Solver++ 2M, UniP-3 the step of
    `DPMSolverPP(order=3)`. For p = 3 the first step is a singlestep of order 3, for p = 4 the
    first two are of order 4: the published start would leave order 3 (`UniPCPublished`).

    Order: p + 1, UniC-p's. NFE: 1 a step, and 2 more in all for p = 3, 8 more for p = 4.
    Errors: ValueError for another p or variant, TypeError for an SDE that is not linear.
    Source: Zhao et al. 2023 (UniPC), section 3, appendix for "vary_coeff"; the singlestep of
    order 4 is ours.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> UniPC(p=3).order, sample(model, UniPC(p=3), (4, 2), steps=5).nfe
    (4, 7)
    """

    certified: ClassVar[tuple[dict[str, Any], ...]] = (
        *({"p": p, "variant": variant} for p in (1, 2) for variant in WIDTHS),
        {"p": 3},
        {"p": 4},
    )

    @property
    def order(self) -> int:
        """The order of the end state."""
        return self.p + 1

    def starters(self, at: Sequence[Level]) -> int:  # noqa: ARG002
        """Return the number of first steps that are singlestep ones."""
        return max(self.p - 2, 0)

    def start(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        m: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        known = linear("UniPC", dynamics)
        return singlestep("x0", self.p, known, dynamics.score, x, m, t, s)


@final
@dataclass(frozen=True)
class UniPCPublished(_UniPC):
    """UniPC-p as published: `UniPC`, but step i of the first p is UniPC-i.

    Order: 2 for p = 1, else 3: the first step, once corrected, has an error O(h³), though one so
    small that for p = 3 and 4 the order p + 1 is seen first. NFE: 1 a step.
    Errors: ValueError for another p or variant, TypeError for an SDE that is not linear.
    Source: Zhao et al. 2023 (UniPC), algorithm 1 and their code, without the lower orders at the
    end of the grid.

    >>> UniPCPublished(p=4).order
    3
    """

    certified: ClassVar[tuple[dict[str, Any], ...]] = ({"p": 1}, {"p": 2})

    @property
    def order(self) -> int:
        """The order of the end state."""
        return min(self.p + 1, 3)
