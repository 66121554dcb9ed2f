"""Exponential integrators of the probability flow in λ = log(alpha/sigma).

In noise form x_s = (α_s/α_t) x_t − σ_s ∫ e^{λ_s−λ} eps dλ, in data form
x_s = (σ_s/σ_t) x_t + α_s ∫ e^{λ−λ_s} x0 dλ. A method replaces the prediction by a polynomial in λ
through values that it knows, and integrates that exactly.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.coefficients import Coefficients, Level
from sde_diffusion.grids import log_snr
from sde_diffusion.integration import OneStep
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import CountedScore, ProbabilityFlow, linear
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers._weights import integrals

Rows: TypeAlias = tuple[tuple[float, tuple[int, ...]], ...]

ORDERS: Final = tuple({"order": p} for p in (1, 2, 3))
# Row i: the place r of stage i between λ_t and λ_s, and the earlier predictions through which the
# polynomial goes that leads there from λ_t. A node at ⅔ of the way makes the linear polynomial
# as good as a quadratic one, the nodes 0, ½, 1 the quadratic as good as a cubic.
_ROWS: Final[dict[int, Rows]] = {
    1: ((1, (0,)),),
    2: ((1 / 2, (0,)), (1, (1,))),
    3: ((1 / 3, (0,)), (2 / 3, (0, 1)), (1, (0, 2))),
    4: ((1 / 6, (0,)), (1 / 3, (1,)), (1 / 2, (0, 2)), (1, (0, 2, 3)), (1, (0, 3, 4))),
}  # fmt: skip


def through(form: str, nodes: Sequence[Level], t: Level, s: Level) -> Step:
    """Return the step from t to s of the polynomial through the predictions at ``nodes``."""
    if form == "eps":
        sign, scale, a = -1, -s.sigma, s.alpha / t.alpha
    else:
        sign, scale, a = 1, s.alpha, s.sigma / t.sigma
    places = [node.lambda_ for node in nodes]
    return Step(a, integrals(
        places, t.lambda_, s.lambda_, lambda u: scale * np.exp(sign * (u - s.lambda_))
    ))  # fmt: skip


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
    """Return the state at s of a step of the given order; m is the prediction at t."""
    at, to = known.level(t), known.level(s)
    levels, found = [at], [m]
    *stages, (_, last) = _ROWS[order]
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


def own_grid(
    self: object,  # noqa: ARG001  (a method of the solvers below)
    sde: LinearSDE,
    steps: int,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """Return the grid that suits polynomials in λ, `log_snr`."""
    return log_snr(sde, steps, start, end)


def _check_order(solver: object, order: int) -> None:
    if order not in (1, 2, 3):
        what = type(solver).__name__
        raise wrong_value(what, "order", "be 1, 2 or 3", order, "pass order=3")


@dataclass(frozen=True)
class Singlestep(OneStep[ProbabilityFlow], ABC):
    """A one-step exponential integrator: ``order`` predictions of one form, all within the step.

    A step to σ_s = 0 is x_s = α_s E[x0 | x_t], as no polynomial reaches λ = ∞.
    """

    order: int = 3  # type: ignore[misc]  # an instance's own
    dynamics = ProbabilityFlow
    grid = own_grid
    form: ClassVar[str]
    certified: ClassVar[tuple[dict[str, Any], ...]] = ORDERS

    def __post_init__(self) -> None:
        _check_order(self, self.order)

    @property
    def evaluations(self) -> int:
        """Network calls a step."""
        return self.order

    def step(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        known, score = linear(type(self).__name__, dynamics), dynamics.score
        if known.level(s).sigma == 0:
            return score.predict("x0", x, t, known.level(t)) * known.level(s).alpha
        m = score.predict(self.form, x, t, known.level(t))
        return singlestep(self.form, self.order, known, score, x, m, t, s)


@dataclass(frozen=True)
class Adams(Multistep[ProbabilityFlow], ABC):
    """A multistep exponential integrator: the polynomial through the last ``order`` predictions.

    The first step of order 3 is a two-stage one: a first-order step would leave order 2.
    """

    order: int = 3
    dynamics = ProbabilityFlow
    grid = own_grid
    certified: ClassVar[tuple[dict[str, Any], ...]] = ORDERS

    def __post_init__(self) -> None:
        _check_order(self, self.order)

    @property
    def memory(self) -> int:
        """The largest number of predictions that a step combines."""
        return self.order

    def starters(self, at: Sequence[Level]) -> int:  # noqa: ARG002
        """Return the number of first steps that are singlestep ones."""
        return self.order // 3

    def predictor(self, at: Sequence[Level], i: int, noise_scale: float) -> Step:  # noqa: ARG002
        return through(self.form, latest(at, i, self.order), at[i], at[i + 1])

    def start(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        m: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        known = linear(type(self).__name__, dynamics)
        return singlestep(self.form, self.order - 1, known, dynamics.score, x, m, t, s)


def latest(at: Sequence[Level], i: int, count: int) -> Sequence[Level]:
    """Return at[i], at[i−1], …, as many as ``count`` or as there are."""
    return at[max(i + 1 - count, 0) : i + 1][::-1]
