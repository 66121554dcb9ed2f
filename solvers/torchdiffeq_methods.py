"""Every method of torchdiffeq as a solver."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion.dynamics import ODE
from sde_diffusion.grids import uniform
from sde_diffusion.noise import Noise
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver
from sde_diffusion.solvers._shared.checks import above_zero
from sde_diffusion.solvers._shared.torchdiffeq import ADAPTIVE, DEFAULTS, ORDERS, Module, states


@final
@dataclass(frozen=True)
class TorchDiffEq(Solver[ODE]):
    """A method of torchdiffeq by its name there; fixed-step methods step along the grid.

    Adaptive methods share one step size over the batch, so that, within the tolerance, a sample
    depends on the others in its batch; with `DormandPrince` it does not.

    Order: the method's with default options, in `order`. NFE: counted, as everywhere.

    Arguments:
        method: torchdiffeq's name of it.
        rtol: the tolerance relative to the state, above 0; only adaptive methods read it.
        atol: the absolute tolerance, above 0, in the units of x; likewise.
        options: torchdiffeq's options of the method, by name; these go before our defaults.
        max_steps: the most steps of an adaptive method between two times of the grid; of
            scipy_solver six times as many evaluations.

    Errors: ValueError for an unknown method, a tolerance that is not positive, or an Adams method
    on a grid that is not uniform, where torchdiffeq's coefficients would be wrong;
    FloatingPointError where an adaptive method finds no step small enough, or takes too many.
    Source: Chen 2018, torchdiffeq.

    >>> TorchDiffEq("dopri8").order
    8
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    options: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 1_000
    dynamics = ODE
    waits: ClassVar[bool] = True
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"method": method} for method in ORDERS if method not in (*ADAPTIVE, "scipy_solver")
    )

    def __post_init__(self) -> None:
        if self.method not in ORDERS:
            raise wrong_value(
                "TorchDiffEq",
                "method",
                f"be one of {', '.join(ORDERS)}",
                self.method,
                "pass 'dopri5'",
            )
        above_zero("TorchDiffEq", "1e-5", rtol=self.rtol, atol=self.atol)
        positive_integer("TorchDiffEq", "max_steps", self.max_steps)

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in (*ADAPTIVE, "scipy_solver")

    def grid(
        self, sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
    ) -> Tensor | None:
        """Return a uniform grid for an Adams method, which refuses another."""
        if "adams" not in self.method:
            return None
        return uniform(
            steps, sde.horizon if start is None else start, sde.cutoff if end is None else end
        )

    @property
    def order(self) -> float:
        """The order of the method (not a number for scipy_solver)."""
        return ORDERS[self.method]

    def steps(self, dynamics: ODE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield the states at the times of the grid, once torchdiffeq has found them all."""
        from torchdiffeq import odeint  # imports scipy, which takes its time

        bound = {"max_num_steps": self.max_steps} if self.method in ADAPTIVE else {}
        options = {**DEFAULTS.get(self.method, {}), **bound, **self.options}
        settings = {"rtol": self.rtol, "atol": self.atol, "method": self.method}
        most = math.inf
        if self.method == "scipy_solver":  # which has no bound of its own
            most = 6 * self.max_steps * (len(grid) - 1)
        yield from states(odeint, Module(dynamics, most), x, grid, settings, options)
