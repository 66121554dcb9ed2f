"""The probability flow in the variables in which it may be solved: time, log-SNR or angle.

With y = x/r, r = √(alpha² + sigma²) and the angle φ = atan(sigma/alpha), the marginals are
y = cos φ x0 + sin φ eps, and along the flow dy/dφ = cos φ eps − sin φ x0 = v/r. In any other
variable u that follows φ, dy/du = (v/r) dφ/du.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Protocol, Self, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_type
from sde_diffusion._tensors import expand
from sde_diffusion.coefficients import Levels
from sde_diffusion.dynamics import ODE, ProbabilityFlow, check_flow
from sde_diffusion.grids import check_grid
from sde_diffusion.sde import LinearSDE


class Variable(ODE, ABC):
    """A flow solved in u instead of t, its state y = x/scale."""

    flow: ProbabilityFlow

    def rows(self, index: Tensor) -> Self:
        """Return the same equation for the samples ``index`` of the batch."""
        flow = self.flow.rows(index)
        if flow is self.flow:
            return self
        part = copy.copy(self)
        part.flow = flow
        return part

    @abstractmethod
    def grid(self, times: Tensor) -> Tensor:
        """Return u at the times of a grid, rising with them, float64."""

    @abstractmethod
    def scale(self, t: Tensor) -> Tensor:
        """Return x/y at the times t, in their shape."""


class FlowVariable(Protocol):
    """A class of variables: called with a flow and the times of a solve, it makes one."""

    def __call__(self, flow: ProbabilityFlow, times: Tensor) -> Variable:
        """Return the flow in this variable."""


@final
class Time(Variable):
    """The flow as it is: u = t and y = x.

    >>> from sde_diffusion import VPSDE
    >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    >>> Time(ProbabilityFlow(VPSDE(), lambda x, t: -x), times).grid(times).tolist()
    [0.0, 1.0]
    """

    def __init__(self, flow: ProbabilityFlow, times: Tensor) -> None:
        check_flow("Time", flow)
        check_grid(times, flow.horizon)
        self.flow = flow
        self.horizon = flow.horizon

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return self.flow.velocity(x, t)

    def grid(self, times: Tensor) -> Tensor:
        return times

    def scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class _Turning(Variable, ABC):
    """A variable u that follows the angle φ: the state is y = x/r, and dy/du = (v/r) dφ/du."""

    sde: LinearSDE

    @abstractmethod
    def place(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the time at u, and dφ/du; None where it is 1."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        time, pace = self.place(t)
        time = time.clamp(max=self.sde.horizon)  # which rounding may pass
        at = Levels(self.sde.alpha(time), self.sde.sigma(time))
        r = expand(at.radius, x)
        score = self.flow.score
        if score.predicts:
            turned = score.predict("v", x * r, time, at) / r
        else:
            # v/r = −(sigma/alpha)(y + r s), which is finite at t = 0 too.
            turned = expand(-at.sigma / at.alpha, x) * (x + r * score(x * r, time))
        return turned if pace is None else expand(pace, x) * turned

    def scale(self, t: Tensor) -> Tensor:
        return Levels(self.sde.alpha(t), self.sde.sigma(t)).radius


@final
class Angle(_Turning):
    """u = φ = atan(sigma/alpha): the flow turns x0 into eps at a steady pace.

    Errors: TypeError for an SDE that is not linear.

    >>> from sde_diffusion import VPSDE
    >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    >>> u = Angle(ProbabilityFlow(VPSDE(), lambda x, t: -x), times).grid(times)
    >>> [round(value, 6) for value in u.tolist()]
    [0.0, 1.564225]
    """

    def __init__(self, flow: ProbabilityFlow, times: Tensor) -> None:
        check_flow("Angle", flow)
        check_grid(times, flow.horizon)
        self.flow = flow
        self.sde = _linear("Angle", flow)
        self.horizon = 0.5 * torch.pi

    def place(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.sde.time(-u.tan().log()), None

    def grid(self, times: Tensor) -> Tensor:
        return torch.atan2(self.sde.sigma(times), self.sde.alpha(times))


@final
class LogSNR(_Turning):
    """u = lambda(first time) − lambda: the flow at a steady pace of the log-SNR.

    Errors: TypeError for an SDE that is not linear.

    >>> from sde_diffusion import EDMSDE
    >>> times = torch.tensor([0.1, 1.0], dtype=torch.float64)
    >>> u = LogSNR(ProbabilityFlow(EDMSDE(), lambda x, t: -x), times).grid(times)
    >>> [round(value, 6) for value in u.tolist()]  # sigma grows tenfold
    [0.0, 2.302585]
    """

    def __init__(self, flow: ProbabilityFlow, times: Tensor) -> None:
        check_flow("LogSNR", flow)
        check_grid(times, flow.horizon)
        self.flow = flow
        self.sde = _linear("LogSNR", flow)
        ends = self.sde.lambda_(times[[0, -1]])
        self.first = ends[0]
        self.horizon = float(ends[0] - ends[1])

    def place(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        lambda_ = self.first - u
        pace = 1 / (lambda_.exp() + (-lambda_).exp())  # dφ/du = sin φ cos φ
        return self.sde.time(lambda_), pace

    def grid(self, times: Tensor) -> Tensor:
        return self.first - self.sde.lambda_(times)


def _linear(what: str, flow: ProbabilityFlow) -> LinearSDE:
    if not isinstance(flow.sde, LinearSDE):
        raise wrong_type(
            what,
            "flow",
            "come from a LinearSDE, for alpha and sigma",
            type(flow.sde).__name__,
            "use Time",
        )
    return flow.sde
