"""Runge–Kutta steps of the probability-flow ODE, dy/dρ = eps in y = x/α and ρ = σ/α."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sde_diffusion.coefficients import Coefficients, Level
from sde_diffusion.counting import CountedScore
from sde_diffusion.dynamics import ProbabilityFlow, linear
from sde_diffusion.forms import turned
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep


def euler_in_rho(x: Tensor, eps: Tensor, at: Level, to: Level) -> Tensor:
    """Return x_s = α_s (x_t/α_t + (ρ_s − ρ_t) eps), the DDIM step.

    Arguments:
        x: the state x_t, (B, *event).
        eps: eps(x_t, t) or an average of several predictions of it, (B, *event).
        at: the coefficients at t.
        to: the coefficients at s.
    """
    a = to.alpha / at.alpha
    return (x * a).add_(eps, alpha=to.sigma - a * at.sigma)


def ddim_form(score: CountedScore, at: Level) -> str:
    """Return the prediction by which a DDIM step is taken: v where the step by eps cancels.

    That is where σ > α. Of a score that is made of eps the x0 in v cancels as much, and v would
    only cost more.
    """
    of_eps = score.prediction in ("eps", "score")
    return "v" if at.sigma > at.alpha and (at.pure_noise or not of_eps) else "eps"


def ddim_step(form: str, x: Tensor, m: Tensor, at: Level, to: Level) -> Tensor:
    """Return the DDIM step by a prediction.

    Arguments:
        form: what the prediction is of, see `ddim_form`.
        x: the state x_t, (B, *event).
        m: v or eps at (x_t, t), (B, *event).
        at: the coefficients at t.
        to: those at the time to go to.
    """
    if form == "v":
        return turned(x, m, at, to.alpha, to.sigma)
    return euler_in_rho(x, m, at, to)


def middle_in_rho(known: Coefficients, t: Tensor, s: Tensor) -> Tensor:
    """Return the time at which ρ is halfway between its values at t and s."""
    at = known.level(t)
    to = known.level(s)
    return known.time(math.log(2) - math.log(at.sigma / at.alpha + to.sigma / to.alpha))


def heun_in_rho(
    known: Coefficients, score: CountedScore, x: Tensor, eps: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """Return the Heun step in ρ from t to s, by one evaluation more.

    Arguments:
        known: the coefficients of the SDE.
        score: the score, evaluated at s.
        x: the state at t, (B, *event).
        eps: eps(x, t), (B, *event).
        t: the time of the state, ().
        s: the time to which the step goes, ().
    """
    at = known.level(t)
    to = known.level(s)
    end = score.predict("eps", euler_in_rho(x, eps, at, to), s, to)
    return euler_in_rho(x, end.add(eps).mul_(0.5), at, to)


def kutta_in_rho(
    known: Coefficients, score: CountedScore, x: Tensor, eps: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """Return Kutta's third-order step in ρ from t to s, by two evaluations more.

    Arguments:
        known: the coefficients of the SDE.
        score: the score, which is evaluated twice.
        x: the state at t, (B, *event).
        eps: the prediction at (x, t), (B, *event).
        t: the time of x, ().
        s: the time to go to, ().
    """
    at = known.level(t)
    to = known.level(s)
    u = middle_in_rho(known, t, s)
    between = known.level(u)
    middle = score.predict("eps", euler_in_rho(x, eps, at, between), u, between)
    beyond = euler_in_rho(x, torch.add(2 * middle, eps, alpha=-1), at, to)
    end = score.predict("eps", beyond, s, to)
    return euler_in_rho(x, end.add(eps).add_(middle, alpha=4).div_(6), at, to)


@final
@dataclass(frozen=True)
class EDMHeun(OneStep[ProbabilityFlow]):
    """EDM's deterministic sampler: Heun's step for dy/dρ = eps, with y = x/α and ρ = σ/α.

    ŷ = y_t + (ρ_s − ρ_t) eps_t, y_s = y_t + ½(ρ_s − ρ_t)(eps_t + eps(α_s ŷ, s)). A step to σ_s = 0
    is the Euler step, which ends at E[x0 | x_t], and so is one from pure noise, ρ_t = ∞.

    Order: 2. NFE: 2 a step, 1 for a step to σ_s = 0: 2N − 1 for all N.
    Errors: TypeError for an SDE that is not linear.
    Source: Karras et al. 2022, algorithm 1 with their σ(t) = t, s(t) = 1.

    >>> import torch
    >>> from sde_diffusion import EDMSDE, Gaussian, sample, uniform
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(EDMSDE())
    >>> sample(model, EDMHeun(), (4, 2), grid=uniform(10, 1.0, 0.0)).nfe
    19
    """

    dynamics = ProbabilityFlow
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2

    def step(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        known = linear("EDMHeun", dynamics)
        at = known.level(t)
        to = known.level(s)
        if to.sigma == 0 or at.pure_noise:
            form = ddim_form(dynamics.score, at)
            return ddim_step(form, x, dynamics.score.predict(form, x, t, at), at, to)
        eps = dynamics.score.predict("eps", x, t, at)
        return heun_in_rho(known, dynamics.score, x, eps, t, s)
