"""One-step exponential integrators of the probability-flow ODE in λ, with stages of any number."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

import torch
from torch import Tensor

from sde_diffusion.coefficients import Coefficients
from sde_diffusion.counting import CountedScore
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.multistep import Step, from_noise
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep
from sde_diffusion.solvers._shared.checks import choice
from sde_diffusion.solvers._shared.exponential import ORDERS, InLambda, through

StagePlan: TypeAlias = tuple[tuple[float, tuple[int, ...]], ...]
# Place i: the r of stage i between λ_t and λ_s, and the earlier predictions through which the
# polynomial goes that leads there from λ_t. A node at ⅔ of the way makes the linear polynomial
# as good as a quadratic one, the nodes 0, ½, 1 the quadratic as good as a cubic.
_PLANS: Final[dict[int, StagePlan]] = {
    1: ((1, (0,)),),
    2: ((1 / 2, (0,)), (1, (1,))),
    3: ((1 / 3, (0,)), (2 / 3, (0, 1)), (1, (0, 2))),
    4: ((1 / 6, (0,)), (1 / 3, (1,)), (1 / 2, (0, 2)), (1, (0, 2, 3)), (1, (0, 3, 4))),
}  # fmt: skip


def singlestep(
    form: str,
    order: int,
    known: Coefficients,
    score: CountedScore,
    x: Tensor,
    m: Tensor,
    t: Tensor,
    s: Tensor,
) -> Tensor:
    """Return the state at s, by order − 1 evaluations more.

    Arguments:
        form: "eps" or "x0", the form of the predictions.
        order: that of the step, 1 … 4, a key of the table above.
        known: the coefficients of the SDE.
        score: the score, evaluated between t and s.
        x: the state at t, (B, *event).
        m: the prediction at (x, t), (B, *event).
        t: the time of the state, ().
        s: the time to which the step goes, ().
    """
    at = known.level(t)
    to = known.level(s)
    levels = [at]
    found = [m]
    *stages, (_, last) = _PLANS[order]
    for r, nodes in stages:
        u = known.time(at.lambda_ + r * (to.lambda_ - at.lambda_))
        level = known.level(u)
        y = _stepped(x, through(form, [levels[j] for j in nodes], at, level), found, nodes)
        levels.append(level)
        found.append(score.predict(form, y, u, level))
    return _stepped(x, through(form, [levels[j] for j in last], at, to), found, last)


def _stepped(x: Tensor, step: Step, found: Sequence[Tensor], nodes: Sequence[int]) -> Tensor:
    x = x * step.a
    for weight, j in zip(step.b, nodes, strict=True):
        x = torch.add(x, found[j], alpha=weight)
    return x


@dataclass(frozen=True)
class Singlestep(InLambda, OneStep[ProbabilityFlow], ABC):
    """A one-step exponential integrator: ``order`` predictions of one form, all within the step.

    A step to σ_s = 0 is x_s = α_s E[x0 | x_t], as no polynomial reaches λ = ∞.
    """

    order: int = 3
    dynamics = ProbabilityFlow
    form: ClassVar[str]
    certified: ClassVar[tuple[dict[str, Any], ...]] = ORDERS

    def __post_init__(self) -> None:
        choice(type(self).__name__, "order", (1, 2, 3), self.order)

    @property
    def evaluations(self) -> int:
        """Evaluations a step."""
        return self.order

    def step(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,
    ) -> Tensor:
        known = linear(type(self).__name__, dynamics)
        score = dynamics.score
        if known.level(t).pure_noise:
            return from_noise(dynamics, x, t, s, noise)
        if known.level(s).sigma == 0:
            return score.predict("x0", x, t, known.level(t)) * known.level(s).alpha
        m = score.predict(self.form, x, t, known.level(t))
        return singlestep(self.form, self.order, known, score, x, m, t, s)
