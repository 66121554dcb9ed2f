"""torchdiffeq's adjoint: gradients of a solve by a second solve, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor, nn

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
from sde_diffusion.solver import Solver
from sde_diffusion.solvers._shared.checks import above_zero
from sde_diffusion.solvers._shared.torchdiffeq import ADAPTIVE, ORDERS, Module, states


@final
@dataclass(frozen=True)
class TorchDiffEqAdjoint(Solver[ODE]):
    """A method of torchdiffeq whose graph is the adjoint equation, solved backwards when needed.

    Gradients reach the first state and the ``parameters``, which are to be those of the score.
    They are those of the exact solution up to the tolerance, not those of the steps taken, and
    cost one solve more; memory does not grow with the steps.

    Order: the method's. NFE: counted, in the backward solve too.

    Arguments:
        method: torchdiffeq's name of it; not an Adams method, nor scipy_solver.
        rtol: the tolerance relative to the state, above 0; only adaptive methods read it.
        atol: the absolute tolerance, above 0, in the units of x; likewise.
        parameters: those of the score that are to receive gradients; without x's, the solve needs
            ``keep_graph=True``.
        max_steps: the most steps of an adaptive method between two times of the grid.

    Errors: ValueError for an unknown method or a tolerance that is not positive.
    Source: Chen et al. 2018, "Neural ordinary differential equations", algorithm 1.

    >>> TorchDiffEqAdjoint("dopri5").order
    5
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    parameters: tuple[nn.Parameter, ...] = ()
    max_steps: int = 1_000
    dynamics = ODE
    waits: ClassVar[bool] = True
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = ({"method": "rk4"},)

    def __post_init__(self) -> None:
        known = [name for name in ORDERS if "adams" not in name and name != "scipy_solver"]
        if self.method not in known:
            raise wrong_value(
                "TorchDiffEqAdjoint",
                "method",
                f"be one of {', '.join(known)}",
                self.method,
                "pass 'dopri5'",
            )
        above_zero("TorchDiffEqAdjoint", "1e-5", rtol=self.rtol, atol=self.atol)
        positive_integer("TorchDiffEqAdjoint", "max_steps", self.max_steps)

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in ADAPTIVE

    @property
    def order(self) -> float:
        """The order of the method."""
        return ORDERS[self.method]

    def steps(self, dynamics: ODE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield the states at the times of the grid, once torchdiffeq has found them all."""
        from torchdiffeq import odeint_adjoint  # imports scipy, which takes its time

        # Without the times of the grid the backward solve would step past them, to t < 0.
        backward = {"norm": "seminorm", "step_t": grid[:-1]} if self.adaptive else {}
        bound = {"max_num_steps": self.max_steps} if self.adaptive else {}
        settings = {
            "rtol": self.rtol,
            "atol": self.atol,
            "method": self.method,
            "adjoint_params": self.parameters,
            "adjoint_options": {**backward, **bound},
        }
        yield from states(odeint_adjoint, Module(dynamics), x, grid, settings, bound)
