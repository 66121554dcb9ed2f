"""Reverse-time SDE and probability flow of any SDE with a score.

dx = [f − ½(1+l²)(g² ∇log p_t + ∇·(g gᵀ))] dt + l g dw̄, with dt < 0. The noise scale l = 1 is the
reverse SDE, l = 0 the probability-flow ODE; all have the marginals p_t.

Source: Anderson 1982; Song et al. 2021, equations 6 and 13; the family in l: Zhang et al. 2021.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final, final

from torch import Tensor

from sde_diffusion._block_matrix import BlockMatrix
from sde_diffusion._check import real_number, wrong_type, wrong_value
from sde_diffusion._diffusion import diffusion_of, scaled_square
from sde_diffusion._shown import as_call, shown
from sde_diffusion.coefficients import Coefficients
from sde_diffusion.counting import CountedScore
from sde_diffusion.forms import turned
from sde_diffusion.scores import Score, ScoreLike
from sde_diffusion.sde import SDE, derivative


class ODE(ABC):
    """An equation dx = velocity(x,t) dt."""

    horizon: float = 1.0  # the last time at which the velocity is finite

    __repr__ = shown

    @property
    def latest(self) -> float:
        """The last time at which a solve may start: the horizon."""
        return self.horizon

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Return dx/dt, in the shape of ``x``."""

    def rows(self, index: Tensor) -> ODE:  # noqa: ARG002  (nothing here belongs to one sample)
        """Return the same equation for the samples ``index`` of the batch.

        A solver whose finished samples leave the batch asks for it. Override it where the
        equation holds something for each sample, such as labels or probes.
        """
        return self


@final
class ReverseSDE(SDE):
    """Reverse-time SDE: drift f − ½(1+l²)(g² s + ∇·(g gᵀ)), diffusion l g.

    Solved with signed dt = s − t < 0, it carries the prior to the data.

    Errors: TypeError for wrong parts; ValueError for a negative noise_scale, or a model that was
    coupled by optimal transport, whose eps is no score.

    >>> import torch
    >>> from sde_diffusion import VPSDE
    >>> reverse = ReverseSDE(VPSDE(), lambda x, t: -x)
    >>> x, t = torch.ones(1, 1), torch.tensor(0.0, dtype=torch.float64)
    >>> round(reverse.drift(x, t).item(), 6), reverse.nfe
    (0.05, 1)
    """

    def __init__(self, sde: SDE, score: Score, noise_scale: float = 1.0) -> None:
        self.score = CountedScore.of("ReverseSDE", score, sde)
        check_coupling("ReverseSDE", "score", self.score)
        remedy = "pass 1.0 for the reverse SDE"
        real_number("ReverseSDE", "noise_scale", noise_scale, remedy)
        if not 0 <= noise_scale < float("inf"):
            raise wrong_value(
                "ReverseSDE",
                "noise_scale",
                "be finite and at least 0",
                noise_scale,
                remedy,
            )
        self.sde = sde
        self.noise_scale = noise_scale
        self.horizon = sde.horizon
        self.coefficients = self.score.coefficients

    def __repr__(self) -> str:
        parts = {"sde": self.sde, "noise_scale": self.noise_scale, "nfe": self.nfe}
        return as_call(type(self).__name__, parts)

    @property
    def latest(self) -> float:
        return self.sde.latest

    @property
    def nfe(self) -> int:
        """The number of score evaluations so far."""
        return self.score.calls

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return _pushed(self, x, t, 0.5 * (1 + self.noise_scale**2))

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor | BlockMatrix:
        return self.noise_scale * diffusion_of(self.sde, x, t)

    def inside(self, x: Tensor) -> Tensor:
        return self.sde.inside(x)

    def rows(self, index: Tensor) -> ReverseSDE:
        """Return the same equation for the samples ``index`` of the batch, as `ODE.rows`."""
        part = self.score.rows(index)
        return self if part is self.score else ReverseSDE(self.sde, part, self.noise_scale)

    def flow(self) -> ProbabilityFlow:
        """Return the probability flow of the same score, its evaluations counted with these."""
        return ProbabilityFlow(self.sde, self.score)


@final
class ProbabilityFlow(ODE):
    """Probability-flow ODE: velocity f − ½(g² s + ∇·(g gᵀ)); its solutions have the marginals p_t.

    Errors: TypeError for wrong parts.

    >>> import torch
    >>> from sde_diffusion import VPSDE
    >>> flow = ProbabilityFlow(VPSDE(), lambda x, t: -x)  # N(0, I) is stationary
    >>> x, t = torch.ones(1, 1), torch.tensor(0.5, dtype=torch.float64)
    >>> flow.velocity(x, t).item(), flow.nfe
    (0.0, 1)
    """

    noise_scale: Final = 0.0  # l of the family of equations above

    def __init__(self, sde: SDE, score: Score) -> None:
        self.score = CountedScore.of("ProbabilityFlow", score, sde)
        self.sde = sde
        self.horizon = sde.horizon
        self.coefficients = self.score.coefficients

    def __repr__(self) -> str:
        return as_call(type(self).__name__, {"sde": self.sde, "nfe": self.nfe})

    @property
    def latest(self) -> float:
        return self.sde.latest

    @property
    def nfe(self) -> int:
        """The number of score evaluations so far."""
        return self.score.calls

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return _pushed(self, x, t, 0.5)

    def rows(self, index: Tensor) -> ProbabilityFlow:
        part = self.score.rows(index)
        return self if part is self.score else ProbabilityFlow(self.sde, part)


def check_flow(what: str, flow: object) -> None:
    """Refuse anything but a probability flow."""
    if not isinstance(flow, ProbabilityFlow):
        raise wrong_type(
            what,
            "flow",
            "be a ProbabilityFlow",
            type(flow).__name__,
            "pass ProbabilityFlow(sde, score)",
        )


def check_coupling(what: str, argument: str, score: ScoreLike) -> None:
    """Refuse a model whose eps is no score: its data met their noise by optimal transport."""
    if score.coupling != "independent":
        raise wrong_value(
            what,
            argument,
            "have coupling='independent' to be a score",
            repr(score.coupling),
            "use ProbabilityFlow and log_prob",
        )


def _pushed(dynamics: ReverseSDE | ProbabilityFlow, x: Tensor, t: Tensor, c: float) -> Tensor:
    """Return f − c (g² s + ∇·(g gᵀ)); rate x − c g² s along a grid of a linear SDE."""
    sde = dynamics.sde
    score = dynamics.score
    known = dynamics.coefficients
    if known is not None and known.tabulated and t.ndim == 0 and t.device.type == "cpu":
        rate, g2 = known.slope(t)
        if math.isinf(rate):  # alpha is 0
            return _pushed_from_noise(dynamics, x, t, known)
        if score.predicts and (at := known.level(t)).sigma > 0:  # s = −eps/sigma
            return (x * rate).add_(score.predict("eps", x, t, at), alpha=c * g2 / at.sigma)
        return (x * rate).add_(score(x, t), alpha=-c * g2)
    g = diffusion_of(sde, x, t)
    divergence = sde.noise_divergence(x, t)
    # c multiplies g gᵀ, a number in most SDEs, before the state.
    push = scaled_square(c, g) * score(x, t)
    if divergence.ndim:  # 0-d where g does not depend on x
        push = push + c * divergence
    return sde.drift(x, t) - push


def _pushed_from_noise(
    dynamics: ReverseSDE | ProbabilityFlow, x: Tensor, t: Tensor, known: Coefficients
) -> Tensor:
    """Return alpha' x0 + sigma' eps, the flow's velocity, where alpha is 0 and the rate infinite.

    Arguments:
        dynamics: the equation; one with noise has no finite drift there.
        x: the state, (B, *event).
        t: its time, ().
        known: the coefficients of the SDE.
    """
    slopes = [float(derivative(f, t)) for f in (known.sde.alpha, known.sde.sigma)]
    if dynamics.noise_scale > 0 or not all(map(math.isfinite, slopes)):
        raise wrong_value(
            type(dynamics).__name__,
            "t",
            "have alpha above 0 for a finite drift",
            f"alpha = 0 at t = {float(t):.6g}",
            "start the grid at sde.horizon, or use a solver of alpha and sigma such as DDIM()",
        )
    at = known.level(t)
    return turned(x, dynamics.score.predict("v", x, t, at), at, *slopes)


def linear(what: str, dynamics: ReverseSDE | ProbabilityFlow) -> Coefficients:
    """Return the coefficients under ``dynamics``, for solvers that need alpha and sigma.

    Errors: TypeError for an SDE that is not linear.
    """
    if dynamics.coefficients is None:
        other = "EulerMaruyama" if isinstance(dynamics, ReverseSDE) else "Heun"
        raise wrong_type(
            what,
            "dynamics",
            "come from a LinearSDE, for alpha and sigma",
            type(dynamics.sde).__name__,
            f"use {other}, which needs no alpha or sigma",
        )
    return dynamics.coefficients
