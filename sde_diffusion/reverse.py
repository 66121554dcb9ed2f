"""Reverse-time SDE and probability flow of any SDE with a score.

dx = [f − ½(1+l²)(g² ∇log p_t + ∇·(g gᵀ))] dt + l g dw̄, with dt < 0. The noise scale l = 1 is the
reverse SDE, l = 0 the probability-flow ODE; all have the marginals p_t.

Source: Anderson 1982; Song et al. 2021, equations 6 and 13; the family in l: Zhang et al. 2021.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias, final

from torch import Tensor
from torch.autograd import forward_ad

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion.coefficients import Coefficients, Level, Levels
from sde_diffusion.score import converted
from sde_diffusion.sde import SDE, LinearSDE

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]


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


class CountedScore:
    """A score that counts its evaluations where they happen.

    >>> import torch
    >>> score, x = CountedScore(lambda x, t: -x), torch.ones(1, 2)
    >>> _ = score(x, torch.tensor(1.0)), score(x, torch.tensor(0.5))
    >>> score.calls
    2
    """

    def __init__(
        self, score: Score, counter: list[int] | None = None, sde: SDE | None = None
    ) -> None:
        self.function = score
        self.tracked = False  # whether the last score came with a derivative in x
        self._counter = [0] if counter is None else counter
        self._sde = sde
        # Forms of a model trained for another SDE mean other things; its score does not.
        known = getattr(score, "sde", None) is sde and sde is not None
        self._predict = getattr(score, "predict", None) if known else None
        self._denoise = getattr(score, "denoise", None) if known else None
        learned = known and getattr(score, "variance", "fixed") == "learned"
        self._with_fraction = getattr(score, "with_fraction", None) if learned else None

    @property
    def calls(self) -> int:
        """The number of evaluations so far."""
        return self._counter[0]

    @property
    def coupling(self) -> str:
        """How data met noise in the model's training."""
        return str(getattr(self.function, "coupling", "independent"))

    @property
    def predicts(self) -> bool:
        """Whether the score is made of eps, x0 or v, which are then had without a division."""
        return self._predict is not None

    @property
    def learns(self) -> bool:
        """Whether the model has learned a variance, which `with_fraction` tells."""
        return self._with_fraction is not None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score at (x, t), counted."""
        self._counter[0] += 1
        score = self.function(x, t)
        self.tracked = _differentiable(score)
        return score

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        """Return eps, x0 or v = alpha eps − sigma x0 at (x, t), counted.

        ``at`` is the level at t, in numbers or tensors, and the forms are those of `FORMS`.
        """
        self._counter[0] += 1
        if self._predict is not None:
            found: Tensor = self._predict(form, x, t, at)
        elif self._denoise is not None:
            found = converted(form, "x0", self._denoise(x, t), x, at)
        else:
            found = converted(form, "score", self.function(x, t), x, at)
        self.tracked = _differentiable(found)
        return found

    def with_fraction(self, form: str, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `ScoreModel.with_fraction` does, counted: eps, x0 or v and the fraction."""
        if self._with_fraction is None:
            raise wrong_value("CountedScore", "score", "be a model with a learned variance",
                              type(self.function).__name__, "ask for predict")  # fmt: skip
        self._counter[0] += 1
        found: tuple[Tensor, Tensor] = self._with_fraction(form, x, t)
        self.tracked = _differentiable(found[0])
        return found

    def beside(self, function: Score) -> CountedScore:
        """Return another function, counted together with this one."""
        return CountedScore(function, self._counter, self._sde)

    def rows(self, index: Tensor) -> CountedScore:
        """Return the score of the samples ``index``, counted together with this one."""
        part = getattr(self.function, "rows", None)
        return self if part is None else self.beside(part(index))


def _differentiable(score: Tensor) -> bool:
    """Return whether the score has a graph, or a tangent in forward mode."""
    if score.requires_grad:
        return True
    return forward_ad.unpack_dual(score).tangent is not None  # type: ignore[no-untyped-call]


def _check_parts(what: str, sde: object, score: object) -> None:
    if not isinstance(sde, SDE):
        raise wrong_type(what, "sde", "be an SDE", type(sde).__name__, "pass for example VPSDE()")
    if not callable(score):
        raise wrong_type(what, "score", "be a callable (x, t) -> score", type(score).__name__,
                         "pass a ScoreModel or a function")  # fmt: skip


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
            raise wrong_value("ReverseSDE", "noise_scale", "be finite and at least 0",
                              noise_scale, "pass 1.0 for the reverse SDE")  # fmt: skip
        self.sde, self.score, self.noise_scale = sde, CountedScore(score, sde=sde), noise_scale
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
        found.score, found.coefficients = part, self.coefficients
        return found

    def flow(self) -> ProbabilityFlow:
        """Return the probability flow of the same score, its evaluations counted with these."""
        flow = ProbabilityFlow(self.sde, self.score.function)
        flow.score, flow.coefficients = self.score, self.coefficients
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
        self.sde, self.score = sde, CountedScore(score, sde=sde)
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
        flow.score, flow.coefficients = part, self.coefficients
        return flow


def check_flow(what: str, flow: object) -> None:
    """Refuse anything but a probability flow."""
    if not isinstance(flow, ProbabilityFlow):
        raise wrong_type(what, "flow", "be a ProbabilityFlow", type(flow).__name__,
                         "pass ProbabilityFlow(sde, score)")  # fmt: skip


def check_coupling(what: str, argument: str, score: object) -> None:
    """Refuse a model whose eps is no score: its data met their noise by optimal transport."""
    coupling = getattr(score, "coupling", "independent")
    if coupling != "independent":
        raise wrong_value(what, argument, "have coupling='independent' to be a score",
                          repr(coupling), "use ProbabilityFlow and log_prob")  # fmt: skip


def _pushed(dynamics: ReverseSDE | ProbabilityFlow, x: Tensor, t: Tensor, c: float) -> Tensor:
    """Return f − c (g² s + ∇·(g gᵀ))."""
    sde, score, known = dynamics.sde, dynamics.score, dynamics.coefficients
    if known is not None and known.tabulated and t.ndim == 0 and t.device.type == "cpu":
        return _pushed_along_a_grid(known, score, x, t, c)
    g, divergence = sde.diffusion(x, t), sde.noise_divergence(x, t)
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
            what, "dynamics", "come from a LinearSDE, for alpha and sigma",
            type(dynamics.sde).__name__, f"use {other}, which needs no alpha or sigma",
        )  # fmt: skip
    return dynamics.coefficients
