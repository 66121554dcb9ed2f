"""The solvers that the scripts measure, by the name their tables show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from sde_diffusion.integration import Solver
from sde_diffusion.solvers import (
    AdamsBashforth,
    Ancestral,
    AnnealedLangevin,
    DormandPrince,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta4,
    TorchDiffEq,
)

# They draw nothing: their end points are compared with the flow's.
DETERMINISTIC: Final[Mapping[str, Solver[Any]]] = {
    "Euler": Euler(),
    "Heun": Heun(),
    "RungeKutta4": RungeKutta4(),
    **{f"AdamsBashforth({order})": AdamsBashforth(order) for order in (1, 2, 3, 4)},
    "Ancestral(eta=0)": Ancestral(eta=0.0),
}
STOCHASTIC: Final[Mapping[str, Solver[Any]]] = {
    "EulerMaruyama": EulerMaruyama(),
    "ReverseDiffusion": ReverseDiffusion(),
    "Ancestral": Ancestral(),
    "Ancestral(eta=0.5)": Ancestral(eta=0.5),
    "PredictorCorrector(ReverseDiffusion, Langevin)": PredictorCorrector(
        ReverseDiffusion(), Langevin()
    ),
    "PredictorCorrector(Ancestral, AnnealedLangevin(count=2))": PredictorCorrector(
        Ancestral(), AnnealedLangevin(count=2)
    ),
}
# With infinite tolerances no error is too large: one step of its tableau a step of the grid.
ONE_STEP_A_GRID_STEP: Final = DormandPrince(math.inf, math.inf)
TORCHDIFFEQ: Final[Mapping[str, Solver[Any]]] = {
    f"TorchDiffEq({method!r})": TorchDiffEq(method)
    for method in ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams",
                   "implicit_adams", "fixed_adams")
}  # fmt: skip
