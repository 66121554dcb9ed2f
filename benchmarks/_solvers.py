"""The solvers that the scripts measure, by the name their tables show: all that follow a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sde_diffusion import VPSDE, uniform
from sde_diffusion.sampling.costs import cost
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import TorchDiffEq, catalogue

_ALL: Final[Mapping[str, Solver[Any]]] = {
    catalogue.text(solver).removesuffix("()"): solver
    for solver in catalogue.instances().values()
    if not getattr(solver, "adaptive", False)
}
_DRAWS: Final = {name: cost(s, VPSDE(), uniform(4)).draws > 0 for name, s in _ALL.items()}
TORCHDIFFEQ: Final = {name: s for name, s in _ALL.items() if isinstance(s, TorchDiffEq)}
STOCHASTIC: Final = {name: s for name, s in _ALL.items() if _DRAWS[name]}
# They draw nothing: their end points are compared with the flow's.
DETERMINISTIC: Final = {
    name: s for name, s in _ALL.items() if not _DRAWS[name] and name not in TORCHDIFFEQ
}
