"""Reverse-time SDE and probability flow of any SDE with a score.

dx = [f − ½(1+l²)(g² ∇log p_t + ∇·(g gᵀ))] dt + l g dw̄, with dt < 0. The noise scale l = 1 is the
reverse SDE, l = 0 the probability-flow ODE; all have the marginals p_t.

Source: Anderson 1982; Song et al. 2021, equations 6 and 13; the family in l: Zhang et al. 2021.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion.coefficients import Coefficients
from sde_diffusion.counting import CountedScore, Score
from sde_diffusion.sde import SDE, LinearSDE


class ODE(ABC):
    """An equation dx = velocity(x,t) dt."""

    horizon: float = 1.0  # the last time at which the velocity is finite

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Return dx/dt, in the shape of ``x``."""

    def rows(self, index: Tensor) -> ODE:  # noqa: ARG002  (nothing here belongs to one sample)
        """Return the same equation for the samples ``index`` of the batch.

        A solver whose finished samples leave the batch asks for it. Override it where the
        equation holds something for each sample, such as labels or probes.
        """
        return self


def _check_parts(what: str, sde: object, score: object) -> None:
    if not isinstance(sde, SDE):
        raise wrong_type(what, "sde", "be an SDE", type(sde).__name__, "pass for example VPSDE()")
    if not callable(score):
        raise wrong_type(
            what,
            "score",
            "be a callable (x, t) -> score",
            type(score).__name__,
            "pass a ScoreModel or a function",
        )


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
        _check_parts("ReverseSDE", sde, score)
        check_coupling("ReverseSDE", "score", score)
        if not 0 <= noise_scale < float("inf"):
            raise wrong_value(
                "ReverseSDE",
                "noise_scale",
                "be finite and at least 0",
                noise_scale,
                "pass 1.0 for the reverse SDE",
            )
        self.sde = sde
        self.score = CountedScore(score, sde=sde)
        self.noise_scale = noise_scale
        self.horizon = sde.horizon
        self.coefficients = Coefficients(sde) if isinstance(sde, LinearSDE) else None

    @property
    def nfe(self) -> int:
        """The number of score evaluations so far."""
        return self.score.calls

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return _pushed(self, x, t, 0.5 * (1 + self.noise_scale**2))

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        return self.noise_scale * self.sde.diffusion(x, t)

    def rows(self, index: Tensor) -> ReverseSDE:
        """Return the same equation for the samples ``index`` of the batch, as `ODE.rows`."""
        part = self.score.rows(index)
        if part is self.score:
            return self
        found = ReverseSDE(self.sde, part, self.noise_scale)
        found.score = part
        found.coefficients = self.coefficients
        return found

    def flow(self) -> ProbabilityFlow:
        """Return the probability flow of the same score, its evaluations counted with these."""
        flow = ProbabilityFlow(self.sde, self.score.function)
        flow.score = self.score
        flow.coefficients = self.coefficients
        return flow


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

    def __init__(self, sde: SDE, score: Score) -> None:
        _check_parts("ProbabilityFlow", sde, score)
        self.sde = sde
        self.score = CountedScore(score, sde=sde)
        self.horizon = sde.horizon
        self.coefficients = Coefficients(sde) if isinstance(sde, LinearSDE) else None

    @property
    def nfe(self) -> int:
        """The number of score evaluations so far."""
        return self.score.calls

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return _pushed(self, x, t, 0.5)

    def rows(self, index: Tensor) -> ProbabilityFlow:
        part = self.score.rows(index)
        if part is self.score:
            return self
        flow = ProbabilityFlow(self.sde, part)
        flow.score = part
        flow.coefficients = self.coefficients
        return flow


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


def check_coupling(what: str, argument: str, score: object) -> None:
    """Refuse a model whose eps is no score: its data met their noise by optimal transport."""
    coupling = getattr(score, "coupling", "independent")
    if coupling != "independent":
        raise wrong_value(
            what,
            argument,
            "have coupling='independent' to be a score",
            repr(coupling),
            "use ProbabilityFlow and log_prob",
        )


def _pushed(dynamics: ReverseSDE | ProbabilityFlow, x: Tensor, t: Tensor, c: float) -> Tensor:
    """Return f − c (g² s + ∇·(g gᵀ))."""
    sde = dynamics.sde
    score = dynamics.score
    known = dynamics.coefficients
    if known is not None and known.tabulated and t.ndim == 0 and t.device.type == "cpu":
        return _pushed_along_a_grid(known, score, x, t, c)
    g = sde.diffusion(x, t)
    divergence = sde.noise_divergence(x, t)
    # c multiplies g², a number in most SDEs, before the state.
    push = (c * g * g) * score(x, t)
    if divergence.ndim:  # 0-d where g does not depend on x
        push = push + c * divergence
    return sde.drift(x, t) - push


def _pushed_along_a_grid(
    known: Coefficients, score: CountedScore, x: Tensor, t: Tensor, c: float
) -> Tensor:
    """Return rate x − c g² s, by s = −eps/sigma where the model has eps to give."""
    rate, g2 = known.slope(t)
    if score.predicts and (at := known.level(t)).sigma > 0:
        return (x * rate).add_(score.predict("eps", x, t, at), alpha=c * g2 / at.sigma)
    return (x * rate).add_(score(x, t), alpha=-c * g2)


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
