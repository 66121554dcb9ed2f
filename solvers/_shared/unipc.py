"""The steps that UniPC and its published form share."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Level
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.solvers._shared.exponential import InLambda, half_difference, latest, through

# B(h) of the steps with one difference, whose weight the paper sets to ½ instead of solving for.
WIDTHS: Final[Mapping[str, Callable[[float], float] | None]] = {
    "bh1": lambda h: h,
    "bh2": lambda h: -math.expm1(-h),
    "vary_coeff": None,
}


@dataclass(frozen=True)
class UniPCBase(InLambda, Multistep[ProbabilityFlow], ABC):
    """The predictor UniP-p and the corrector UniC-p."""

    p: int = 3
    variant: str = "bh2"
    dynamics = ProbabilityFlow
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
