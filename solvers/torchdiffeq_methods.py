"""Every method of torchdiffeq as a solver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.dynamics import ODE
from sde_diffusion.noise import Noise
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

    Errors: ValueError for an unknown method, a tolerance that is not positive, or an Adams method
    on a grid that is not uniform, where torchdiffeq's coefficients would be wrong;
    FloatingPointError where an adaptive method finds no step small enough.
    Source: Chen 2018, torchdiffeq.

    >>> TorchDiffEq("dopri8").order
    8
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    options: Mapping[str, Any] = field(default_factory=dict)
    dynamics = ODE
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

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in (*ADAPTIVE, "scipy_solver")

    @property
    def order(self) -> float:
        """The order of the method (not a number for scipy_solver)."""
        return ORDERS[self.method]

    def steps(self, dynamics: ODE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield the states at the times of the grid, once torchdiffeq has found them all."""
        from torchdiffeq import odeint  # imports scipy, which takes its time

        options = {**DEFAULTS.get(self.method, {}), **self.options}
        settings = {"rtol": self.rtol, "atol": self.atol, "method": self.method}
        yield from states(odeint, Module(dynamics), x, grid, settings, options)
