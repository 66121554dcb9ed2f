"""Rößler's strong order 1.5 for additive noise, forward or backward in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sde_diffusion._block_matrix import BlockMatrix
from sde_diffusion._check import wrong_value
from sde_diffusion._diffusion import diffusion_of, is_number
from sde_diffusion._tensors import expand, plus
from sde_diffusion.noise import Noise
from sde_diffusion.sde import SDE
from sde_diffusion.solver import OneStep


def check_additive(what: str, sde: SDE, x: Tensor, t: Tensor) -> None:
    """Refuse a diffusion that depends on x.

    Arguments:
        what: the solver that refuses.
        sde: the equation.
        x: a state at which the dependence is looked for, (B, *event).
        t: its time, ().
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        g = diffusion_of(sde, leaf, t)
        if isinstance(g, BlockMatrix) or not g.requires_grad:
            return
        if torch.autograd.grad(g.sum(), leaf, allow_unused=True)[0] is not None:
            raise wrong_value(
                what,
                "dynamics.diffusion",
                "not depend on x",
                "a g(x, t)",
                "use Milstein or EulerMaruyama",
            )


@final
@dataclass(frozen=True)
class SRA(OneStep[SDE]):
    """Stochastic Runge–Kutta step SRA1 for dx = f(x,t) dt + g(t) dw, dt = s − t of either sign.

    k1 = f(x_t, t), k2 = f(x_t + ¾ dt k1 + (3/2) g_s J, t + ¾ dt),
    x_s = x_t + dt (⅓ k1 + ⅔ k2) + g_s dw + (g_t − g_s) J,

    with dw = W_s − W_t and J = I/dt the mean of W − W_t over the step, so that neither sign of dt
    needs a case of its own. It evaluates nothing at s but g.

    Order: strong 1.5, weak 2 (2 of the state where nothing is drawn). NFE: 2 a step.
    Errors: ValueError for a diffusion that depends on x.
    Source: Rößler 2010, section 6.3 (SRA1).

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, SRA(), (4, 2), steps=10).nfe
    20
    """

    dynamics = SDE
    order: ClassVar[float] = 2
    strong_order: ClassVar[float] = 1.5
    evaluations: ClassVar[int] = 2

    def step(self, dynamics: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        dt = s - t
        g = diffusion_of(dynamics, x, t)
        g_s = diffusion_of(dynamics, x, s)
        if not is_number(g):  # which depends on no element
            check_additive("SRA", dynamics, x, t)
        dw, area = noise.area(x, t, s)
        mean = area / expand(dt, x)
        k1 = dynamics.drift(x, t)
        k2 = dynamics.drift(_moved(plus(x, k1, 0.75 * dt), 1.5 * g_s, mean), t + 0.75 * dt)
        drifted = plus(plus(x, k1, dt / 3), k2, 2 * dt / 3)
        return _moved(_moved(drifted, g_s, dw - mean), g, mean)


def _moved(x: Tensor, g: Tensor | BlockMatrix, z: Tensor) -> Tensor:
    """Return x + g z, within ``x`` where g is a number."""
    if isinstance(g, BlockMatrix) or g.ndim or g.requires_grad:
        return x + g * z
    return x.add_(z, alpha=float(g))
