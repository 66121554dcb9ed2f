"""The menu: the only table of names, of solvers, SDEs, grids and models.

Besides its names it takes ``package.module:attr`` for objects of your own, looked for in the
current folder too; a class or a function without arguments is called.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sde_diffusion._check import wrong_value
from sde_diffusion.cli._objects import imported, own

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sde_diffusion.sde import LinearSDE

# The modules are handed in, so that reading the menu imports none of them.
_SOLVERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "euler-maruyama": lambda s: s.EulerMaruyama(),
    "reverse-diffusion": lambda s: s.ReverseDiffusion(),
    "ancestral": lambda s: s.Ancestral(),
    "ddim": lambda s: s.Ancestral(eta=0.0),
    "predictor-corrector": lambda s: s.PredictorCorrector(s.ReverseDiffusion(), s.Langevin()),
    "euler": lambda s: s.Euler(),
    "heun": lambda s: s.Heun(),
    "rk4": lambda s: s.RungeKutta4(),
    "adams-bashforth": lambda s: s.AdamsBashforth(),
    "dormand-prince": lambda s: s.DormandPrince(),
}
_TORCHDIFFEQ: Final = "torchdiffeq:"  # torchdiffeq:METHOD
_SDES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "vp": lambda c: c.VPSDE(),
    "vp-cosine": lambda c: c.VPSDE(c.CosineBeta()),
    "ddpm": lambda c: c.VPSDE(c.DiscreteBeta(c.linear_betas(1000))),
    "sub-vp": lambda c: c.SubVPSDE(),
    "ve": lambda c: c.VESDE(),
    "edm": lambda c: c.EDMSDE(),
    "rectified-flow": lambda c: c.RectifiedFlow(),
}
_GRIDS: Final[Mapping[str, Callable[[Any, LinearSDE, int, float], Tensor]]] = {
    "auto": lambda c, sde, steps, end: c.recommended(sde, steps, end=end),
    "uniform": lambda c, sde, steps, end: c.uniform(steps, sde.horizon, end),
    "quadratic": lambda c, sde, steps, end: c.quadratic(steps, sde.horizon, end),
    "log-snr": lambda c, sde, steps, end: c.log_snr(sde, steps, end=end),
    "karras": lambda c, sde, steps, end: c.karras(sde, steps, end=end),
}
_RING: Final = "ring"  # ring or ring:SDE, eight Gaussians whose score is known in closed form

SOLVER_NAMES: Final = (*_SOLVERS, f"{_TORCHDIFFEQ}METHOD")
ODE_SOLVER_NAMES: Final = SOLVER_NAMES[SOLVER_NAMES.index("euler") :]
SDE_NAMES: Final = tuple(_SDES)
GRID_NAMES: Final = tuple(_GRIDS)


def solver(name: str, tolerance: float | None = None) -> Any:  # noqa: ANN401  (any Solver)
    """Return the solver of that name, with rtol = atol = ``tolerance`` if it adapts its steps.

    Errors: ValueError for an unknown name or a tolerance that the solver has no use for;
    TypeError for an object of your own that is no solver.
    """
    solvers = importlib.import_module("sde_diffusion.solvers")
    if name.startswith(_TORCHDIFFEQ):
        made = solvers.TorchDiffEq(name.removeprefix(_TORCHDIFFEQ))
    elif name in _SOLVERS:
        made = _SOLVERS[name](solvers)
    else:
        made = own("--solver", name, SOLVER_NAMES, _is_solver, "a solver")
    if tolerance is None:
        return made
    if not is_adaptive(made) or type(made) not in (solvers.DormandPrince, solvers.TorchDiffEq):
        rule = "be left out for a solver with fixed steps"
        raise wrong_value("--tolerance", "tolerance", rule, f"{tolerance} for {name}",
                          "use --steps, or --solver dormand-prince")  # fmt: skip
    if isinstance(made, solvers.TorchDiffEq):
        return solvers.TorchDiffEq(made.method, tolerance, tolerance)
    return solvers.DormandPrince(tolerance, tolerance)


def is_adaptive(made: object) -> bool:
    """Return whether the solver chooses its steps, so that a grid of two times is enough."""
    return bool(getattr(made, "adaptive", False))


def sde(name: str) -> LinearSDE:
    """Return the SDE of that name, with its usual constants.

    Errors: ValueError for an unknown name, TypeError for an object that is no LinearSDE.
    """
    core = importlib.import_module("sde_diffusion")
    made: LinearSDE
    if name in _SDES:
        made = _SDES[name](core)
    else:
        kind = core.LinearSDE
        made = own("--sde", name, SDE_NAMES, lambda x: isinstance(x, kind), "a LinearSDE")
    return made


def grid(name: str, sde: LinearSDE, steps: int, end: float | None = None) -> Tensor:
    """Return the grid of that name from the SDE's horizon to ``end``, its cutoff if not given.

    An object of your own is a grid, or a function (sde, steps) or () that returns one.

    Errors: ValueError for an unknown name, TypeError for an object that gives no grid.
    """
    core = importlib.import_module("sde_diffusion")
    if name in _GRIDS:
        return _GRIDS[name](core, sde, steps, sde.cutoff if end is None else end)
    from sde_diffusion.grids import check_grid

    made = imported("--grid", name, GRID_NAMES)
    if callable(made):
        takes = len(inspect.signature(made).parameters)
        made = made(sde, steps) if takes == 2 else made()
    check_grid(made, sde.horizon)
    own: Tensor = made
    return own


def times(
    name: str, sde: LinearSDE, solver: object, steps: int | None, end: float | None = None
) -> Tensor:
    """Return the grid of that name for the solver: 20 steps, or 1 where it finds its own.

    Errors: those of `grid`; ValueError for one of your own with another number of steps.
    """
    usual = 1 if is_adaptive(solver) else 20
    made = grid(name, sde, usual if steps is None else steps, end)
    if steps is not None and len(made) != steps + 1:
        raise wrong_value("--grid", name, f"have the {steps} steps of --steps", len(made) - 1,
                          "leave out --steps, or name a function (sde, steps)")  # fmt: skip
    return made


def model(name: str | Path, device: torch.device | str = "cpu") -> Any:  # noqa: ANN401
    """Return a score model in evaluation mode: of a checkpoint, the oracle "ring", or your own.

    Errors: those of `load`; ValueError for an unknown name, TypeError for an object that is no
    score model.
    """
    from sde_diffusion.checkpoint import load, shipped

    text = str(name)
    kind, _, detail = text.partition(":")
    if kind == _RING:
        core = importlib.import_module("sde_diffusion")
        return core.GaussianMixture.ring(8).diffused(sde(detail or "vp"))
    if text in shipped() or Path(text).exists():
        return load(text, device=device)
    if os.sep in text or text.endswith((".safetensors", ".pt")):
        rule = "be a file or a run folder"
        error = wrong_value("--model", "model", rule, repr(text), "check the spelling")
        raise FileNotFoundError(str(error))
    names = (*shipped(), _RING, f"{_RING}:SDE", "the path of a checkpoint or run folder")
    what = "a score model, with .device and a LinearSDE as .sde"
    made = own("--model", text, names, _is_model, what)
    return made.to(device).eval() if hasattr(made, "parameters") else made


def event_shape(score_model: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the shape of one sample of the model.

    Errors: ValueError for a model that does not tell.
    """
    data = getattr(score_model, "data", None)
    if data is not None:
        return tuple(data.shape)
    oracle = getattr(score_model, "oracle", None)
    if oracle is not None:
        return tuple(oracle.event)
    raise wrong_value("--model", "model", "tell the shape of its data", "none",
                      "build it as ScoreModel(…, data=DataSpec(name, shape, levels))")  # fmt: skip


def _is_solver(made: object) -> bool:
    return hasattr(made, "steps") and isinstance(getattr(made, "dynamics", None), type)


def _is_model(made: object) -> bool:
    from sde_diffusion.sde import LinearSDE

    known = isinstance(getattr(made, "sde", None), LinearSDE) and hasattr(made, "device")
    return callable(made) and known
