"""What torchdiffeq's methods are: their orders, the options and grids they need, and a solve."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import Reason, diverged, wrong_value
from sde_diffusion.dynamics import ODE
from sde_diffusion.solvers._shared.step_limits import check_tolerance

# The orders of the methods; scipy_solver has that of the scipy method it is given.
ORDERS: Final[Mapping[str, float]] = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": 4,
    "implicit_adams": 4,
    "fixed_adams": 4,
    "adaptive_heun": 2,
    "fehlberg2": 2,
    "bosh3": 3,
    "dopri5": 5,
    "dopri8": 8,
    "scipy_solver": float("nan"),
}
ADAPTIVE: Final = ("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8")
# torchdiffeq's Adams methods climb to order 12 by default, where they are unstable and their
# Runge–Kutta start is too coarse; these give Adams–Bashforth 4 and Adams–Moulton 4.
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "explicit_adams": {"max_order": 5},
    "implicit_adams": {"max_order": 4},
    "fixed_adams": {"max_order": 4},
    "scipy_solver": {"solver": "LSODA"},
}


def check_uniform(method: str, grid: Tensor) -> None:
    """Refuse a grid on which the coefficients of an Adams method would be wrong."""
    dt = grid.diff()
    if float(dt.max() - dt.min()) > 1e-9 * float(dt.abs().max()):
        got = f"steps from {float(dt.abs().min()):.3g} to {float(dt.abs().max()):.3g}"
        raise wrong_value(
            "TorchDiffEq",
            "grid",
            f"be uniform for {method}",
            got,
            "use AdamsBashforth, which takes any grid",
        )


@final
class Module(nn.Module):
    """An ODE as the module that torchdiffeq's functions ask for, which counts its evaluations.

    Arguments:
        ode: the equation.
        most: the most evaluations; torchdiffeq itself bounds the steps of its own methods.
    """

    def __init__(self, ode: ODE, most: float = math.inf) -> None:
        super().__init__()
        self.ode = ode
        self.most = most
        self.calls = 0
        # Of the last evaluations, about those of a step, on their device: to read one waits.
        self.times: deque[Tensor] = deque([torch.tensor(math.nan)], maxlen=7)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt."""
        if self.calls >= self.most:
            rule = f"take at most {self.most:g} evaluations"
            raise self.stopped(rule)
        self.calls += 1
        self.times.append(t.detach())
        return self.ode.velocity(y, t)

    def stopped(self, rule: str) -> FloatingPointError:
        """Return the error of steps that do not end."""
        times = [float(t) for t in self.times]
        return diverged(
            "TorchDiffEq",
            "steps",
            rule,
            f"more at t = {times[-1]:.6g}, in steps of about {max(times) - min(times):.3g}, "
            f"after {self.calls} evaluations",
            "raise rtol and atol, or max_steps where the score is smooth, or use fixed steps",
        )


def states(
    odeint: Callable[..., Tensor],
    ode: Module,
    x: Tensor,
    grid: Tensor,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Tensor:
    """Return the states at grid[1], grid[2], …, (steps, B, *event).

    Arguments:
        odeint: torchdiffeq's function, with or without the adjoint.
        ode: the equation.
        x: the states at grid[0], (B, *event).
        grid: the times of the solve, (steps + 1,).
        settings: the other arguments of ``odeint``, the method's name among them.
        options: the method's own options.
    """
    method = settings["method"]
    if "adams" in method:
        check_uniform(method, grid)
    if method in (*ADAPTIVE, "scipy_solver"):
        check_tolerance("TorchDiffEq", x, settings["rtol"], settings["atol"])
    if method in ADAPTIVE:
        # Left alone they step past the end and interpolate back: to t < 0, where sigma is not
        # defined, and with an error that no tolerance sees.
        options = {"step_t": grid[1:], **options}
    try:
        with warnings.catch_warnings():
            # An implicit method that did not converge only warns that it may be wrong.
            warnings.filterwarnings("error", "Functional iteration did not converge")
            return odeint(ode, x, grid.to(x.device), options=dict(options), **settings)[1:]
    except (AssertionError, UserWarning) as error:  # steps without end, or no convergence
        if "max_num_steps" in str(error):
            most = options["max_num_steps"]
            rule = f"number at most max_steps={most} between two times of the grid"
            raise ode.stopped(rule) from error
        remedy = "use more steps, move the ends of the grid, or raise rtol and atol"
        rule = "be finite and smooth"
        got = Reason(f"{error} at t = {float(ode.times[-1]):.6g} after {ode.calls} evaluations")
        raise diverged("TorchDiffEq", "velocity", rule, got, remedy) from error
