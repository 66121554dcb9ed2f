"""UniPC: exponential predictor-correctors of the probability-flow ODE in data form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.noise import Noise
from sde_diffusion.solvers._shared.singlestep import singlestep
from sde_diffusion.solvers._shared.unipc import WIDTHS, UniPCBase


@final
@dataclass(frozen=True)
class UniPC(UniPCBase):
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
