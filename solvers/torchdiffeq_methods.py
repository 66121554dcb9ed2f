"""Every method of torchdiffeq as a solver."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, final

from torch import Tensor

from sde_diffusion._check import diverged, wrong_value
from sde_diffusion.noise import Noise
from sde_diffusion.reverse import ODE

# The orders of the methods; scipy_solver has that of the scipy method it is given.
ORDERS: Final[Mapping[str, float]] = {
    "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4,
    "implicit_adams": 4, "fixed_adams": 4, "adaptive_heun": 2, "fehlberg2": 2, "bosh3": 3,
    "dopri5": 5, "dopri8": 8, "scipy_solver": float("nan"),
}  # fmt: skip
_ADAPTIVE: Final = ("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8")
# torchdiffeq's Adams methods climb to order 12 by default, where they are unstable and their
# Runge–Kutta start is too coarse; these give Adams–Bashforth 4 and Adams–Moulton 4.
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "explicit_adams": {"max_order": 5},
    "implicit_adams": {"max_order": 4},
    "fixed_adams": {"max_order": 4},
    "scipy_solver": {"solver": "LSODA"},
}


@final
@dataclass(frozen=True)
class TorchDiffEq:
    """A method of torchdiffeq by its name there; fixed-step methods step along the grid.

    Adaptive methods share one step size over the batch, so a sample depends on its batch-mates
    within the tolerance; `DormandPrince` does not.

    Order: the method's with default options, in `order`. NFE: counted, as everywhere.
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
        {"method": method} for method in ORDERS if method not in (*_ADAPTIVE, "scipy_solver")
    )

    def __post_init__(self) -> None:
        if self.method not in ORDERS:
            raise wrong_value("TorchDiffEq", "method", f"be one of {', '.join(ORDERS)}",
                              self.method, "pass 'dopri5'")  # fmt: skip
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not value > 0:
                raise wrong_value("TorchDiffEq", name, "be above 0", value, f"pass {name}=1e-5")

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in (*_ADAPTIVE, "scipy_solver")

    @property
    def order(self) -> float:
        """The order of the method (not a number for scipy_solver)."""
        return ORDERS[self.method]

    def steps(self, dynamics: ODE, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield the states at the times of the grid, once torchdiffeq has found them all."""
        from torchdiffeq import odeint  # imports scipy, which takes its time

        if "adams" in self.method:
            _check_uniform(self.method, grid)
        options = {**_DEFAULTS.get(self.method, {}), **self.options}
        if self.method in _ADAPTIVE:
            # Left alone they step past the end and interpolate back: to t < 0, where sigma is not
            # defined, and with an error that no tolerance sees.
            options = {"step_t": grid[1:], **options}
        try:
            with warnings.catch_warnings():
                # An implicit method that did not converge only warns that it may be wrong.
                warnings.filterwarnings("error", "Functional iteration did not converge")
                states = odeint(
                    lambda t, y: dynamics.velocity(y, t), x, grid.to(x.device),
                    rtol=self.rtol, atol=self.atol, method=self.method, options=options,
                )  # fmt: skip
        except (AssertionError, UserWarning) as error:  # steps without end, or no convergence
            remedy = "use more steps, move the ends of the grid, or raise rtol and atol"
            rule = "be finite and smooth"
            raise diverged("TorchDiffEq", "velocity", rule, str(error), remedy) from error
        yield from states[1:]


def _check_uniform(method: str, grid: Tensor) -> None:
    dt = grid.diff()
    if float(dt.max() - dt.min()) > 1e-9 * float(dt.abs().max()):
        got = f"steps from {float(dt.abs().min()):.3g} to {float(dt.abs().max()):.3g}"
        raise wrong_value("TorchDiffEq", "grid", f"be uniform for {method}", got,
                          "use AdamsBashforth, which takes any grid")  # fmt: skip
