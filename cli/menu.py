"""The menu: the only table of names, of solvers, SDEs, grids and models.

A solver may have arguments, as in dpm-solver-pp:order=3. Besides its names the menu takes
``package.module:attr`` for objects of your own, looked for in the current folder too; a class or a
function without arguments is called.
"""

from __future__ import annotations

import ast
import importlib
import importlib.resources
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from click.shell_completion import CompletionItem

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion.cli._objects import imported, own
from sde_diffusion.cli._solvers import exported, of_any_ode, solver_class, solver_with

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sde_diffusion.matrix_sde import MatrixLinearSDE
    from sde_diffusion.sde import LinearSDE

# The module is handed in, so that reading the menu does not import it.
_SDES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "vp": lambda c: c.VPSDE(),
    "vp-cosine": lambda c: c.VPSDE(c.CosineBeta()),
    "ddpm": lambda c: c.VPSDE(c.DiscreteBeta(c.linear_betas(1000))),
    "sub-vp": lambda c: c.SubVPSDE(),
    "ve": lambda c: c.VESDE(),
    "edm": lambda c: c.EDMSDE(),
    "rectified-flow": lambda c: c.RectifiedFlow(),
}
_GRIDS: Final[Mapping[str, Callable[[Any, LinearSDE, int, float, float], Tensor]]] = {
    "uniform": lambda c, _, steps, start, end: c.uniform(steps, start, end),
    "quadratic": lambda c, _, steps, start, end: c.quadratic(steps, start, end),
    "log-snr": lambda c, sde, steps, start, end: c.log_snr(sde, steps, start, end),
    "karras": lambda c, sde, steps, start, end: c.karras(sde, steps, start=start, end=end),
    "angular": lambda c, sde, steps, start, end: c.angular(sde, steps, start, end),
    "cosine": lambda c, sde, steps, start, end: c.cosine(sde, steps, start, end),
    "sigmoid": lambda c, sde, steps, start, end: c.sigmoid(sde, steps, start=start, end=end),
}
_AUTO: Final = "auto"  # the solver's own
_RING: Final = "ring"  # ring or ring:SDE, eight Gaussians whose score is known in closed form
_DECODED: Final = 64  # samples that are decoded together
_DIFFUSERS: Final = "diffusers"  # diffusers:FOLDER, saved by one of its pipelines


def _shipped() -> list[str]:
    """Return the names of the shipped models, without loading torch."""
    folder = Path(str(importlib.resources.files("sde_diffusion.pretrained")))
    return sorted(path.stem for path in folder.glob("*.safetensors"))


SOLVER_NAMES: Final = tuple(exported())
# The steps of students, which are no solvers of equations.
_OF_STUDENTS: Final = ("few-steps", "renoised")
ODE_SOLVER_NAMES: Final = tuple(sorted(of_any_ode().intersection(SOLVER_NAMES)))
# What `compare` compares if none is named.
COMPARED: Final = (
    "euler-maruyama",
    "ancestral",
    "predictor-corrector",
    "sde-dpm-solver-pp",
    "er-sde",
    "ddim",
    "heun",
    "dpm-solver-pp",
    "angular-adams",
    "dormand-prince",
)
SDE_NAMES: Final = tuple(_SDES)
GRID_NAMES: Final = (_AUTO, *_GRIDS)


MODEL_NAMES: Final = (*_shipped(), _RING, *(f"{_RING}:{name}" for name in _SDES))


def completing(
    names: Sequence[str], *, files: bool = False
) -> Callable[[Any, Any, str], list[CompletionItem]]:
    """Return how a shell completes an option: by these names, and by files where they fit too."""

    def complete(_context: Any, _option: Any, begun: str) -> list[CompletionItem]:  # noqa: ANN401
        found = [CompletionItem(name) for name in names if name.startswith(begun)]
        return [*found, CompletionItem(begun, type="file")] if files else found

    return complete


def solver(name: str, tolerance: float | None = None) -> Any:  # noqa: ANN401  (any Solver)
    """Return the solver of that name, with rtol = atol = ``tolerance`` if it adapts its steps.

    Errors: ValueError for an unknown name or a tolerance that the solver has no use for;
    TypeError for an object of your own that is no solver, or other arguments than the solver's.
    """
    kind, colon, arguments = name.partition(":")
    if name in _OF_STUDENTS:
        sampling = importlib.import_module("sde_diffusion.sampling")
        made = sampling.FewSteps() if name == "few-steps" else sampling.Renoised()
    elif kind not in SOLVER_NAMES:
        made = own("--solver", name, SOLVER_NAMES, _is_solver, "a solver")
    else:
        made = solver_with(kind, arguments) if colon else solver_class(kind)()
    if tolerance is None:
        return made
    settings = {field.name for field in fields(made)} if is_dataclass(made) else set()
    if not is_adaptive(made) or not settings >= {"rtol", "atol"}:
        rule = "be left out for a solver with fixed steps"
        raise wrong_value(
            "--tolerance",
            "tolerance",
            rule,
            f"{tolerance} for {name}",
            "use --steps, or --solver dormand-prince",
        )
    return replace(made, rtol=tolerance, atol=tolerance)


def peer(name: str) -> Any:  # noqa: ANN401  (a Peer)
    """Return another program's sampler as a solver.

    It is ``diffusers:NAME`` or ``azula:NAME`` of a class there, with settings after another colon
    as in azula:xEABSampler:order=3, or ``module:attr`` of a function (denoiser, y, sigmas).

    Errors: ValueError where the program is not installed, for an unknown name and other settings;
    TypeError for an object that is no function.
    """
    exchange = importlib.import_module("sde_diffusion.exchange")
    program, _, rest = name.partition(":")
    match program:
        case "diffusers":
            maker = exchange.DiffusersPeer
        case "azula":
            maker = exchange.AzulaPeer
        case _:
            known = ("diffusers:NAME", "azula:NAME")
            return exchange.FunctionPeer(imported("--peer", name, known))
    kind, _, settings = rest.partition(":")
    return maker(kind, _settings(settings))


def _settings(text: str) -> dict[str, object]:
    """Return the settings in a text, ``word=value`` with commas.

    Values are literals or text as it stands, since names of theirs hold hyphens, as in
    algorithm_type=sde-dpmsolver++, which those of our solvers do not.
    """
    found = dict[str, object]()
    for part in filter(None, text.split(",")):
        word, equals, value = part.partition("=")
        if not equals:
            rule = "have settings as word=value, with commas between them"
            raise wrong_value(
                "--peer", text, rule, part, "write such as azula:xEABSampler:order=3"
            )
        try:
            found[word] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[word] = value
    return found


def is_adaptive(made: object) -> bool:
    """Return whether the solver chooses its steps, so that a grid of two times is enough."""
    from sde_diffusion.solver import Solver

    return isinstance(made, Solver) and made.adaptive


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


def verified_sde(name: str) -> LinearSDE | MatrixLinearSDE:
    """Return the SDE of that name, "cld" or a matrix-linear one of your own too.

    Errors: ValueError for an unknown name, TypeError for an object of another kind.
    """
    core = importlib.import_module("sde_diffusion")
    made: LinearSDE | MatrixLinearSDE
    if name == "cld":
        made = core.CriticallyDampedLangevin()
    elif name in _SDES:
        made = sde(name)
    else:
        kinds = (core.LinearSDE, core.MatrixLinearSDE)
        rule = "a LinearSDE or a MatrixLinearSDE"
        made = own("--sde", name, (*SDE_NAMES, "cld"), lambda x: isinstance(x, kinds), rule)
    return made


def grid(
    name: str,
    sde: LinearSDE,
    steps: int,
    start: float | None = None,
    end: float | None = None,
    *,
    solver: object = None,
) -> Tensor:
    """Return the grid of that name, from the SDE's horizon to its cutoff if no ends are given.

    An object of your own is a grid, or a function (sde, steps, start, end), (sde, steps) or ()
    that returns one.

    Arguments:
        name: of the menu, or ``package.module:attr``; "auto" is the solver's own, if it has one.
        sde: whose times they are.
        steps: of the grid.
        start: the first time; None for the SDE's horizon.
        end: the last time; None for the SDE's cutoff.
        solver: for "auto".

    Shapes: result (steps + 1,), float64, unless it is one of your own.
    Errors: ValueError for an unknown name, TypeError for an object that gives no grid.
    """
    core = importlib.import_module("sde_diffusion")
    start, end = sde.horizon if start is None else start, sde.cutoff if end is None else end
    made: Tensor
    if name == _AUTO and isinstance(sde, core.MatrixLinearSDE):
        made = core.quadratic(steps, start, end)
        return made
    if name == _AUTO:
        made = core.recommended(sde, steps, start, end, solver=solver)
        return made
    if name in _GRIDS:
        return _GRIDS[name](core, sde, steps, start, end)
    from sde_diffusion.grids import check_grid

    found = imported("--grid", name, GRID_NAMES)
    if callable(found):
        found = found(*(sde, steps, start, end)[: len(inspect.signature(found).parameters)])
    check_grid(found, sde.latest)
    made = found
    return made


def times(
    name: str, sde: LinearSDE, solver: object, steps: int | None, end: float | None = None
) -> Tensor:
    """Return the grid of that name for the solver.

    Arguments:
        name: as for `grid`.
        sde: whose times they are.
        solver: that is to take the grid.
        steps: of the grid; None for 20, or for 1 if the solver is adaptive.
        end: the last time; None for the SDE's cutoff.

    Errors: those of `grid`; ValueError for one of your own with another number of steps.
    """
    usual = 1 if is_adaptive(solver) else 20
    made = grid(name, sde, usual if steps is None else steps, end=end, solver=solver)
    if steps is not None and len(made) != steps + 1:
        raise wrong_value(
            "--grid",
            name,
            f"have the {steps} steps of --steps",
            len(made) - 1,
            "leave out --steps, or name a function (sde, steps)",
        )
    return made


def model(name: str | Path, device: torch.device | str = "cpu") -> Any:  # noqa: ANN401
    """Return a score model of a LinearSDE, in evaluation mode.

    Errors: those of `any_model`; TypeError for a model of a MatrixLinearSDE.
    """
    from sde_diffusion.matrix_sde import MatrixLinearSDE

    found = any_model(name, device)
    if isinstance(found.sde, MatrixLinearSDE):
        got = f"one of {type(found.sde).__name__}"
        remedy = "pass it to sde-diffusion sample, and to hidden_parts_bound for likelihoods"
        raise wrong_type("--model", str(name), "be a model of a LinearSDE here", got, remedy)
    return found


def any_model(name: str | Path, device: torch.device | str = "cpu") -> Any:  # noqa: ANN401
    """Return a score model of a LinearSDE or a MatrixLinearSDE, in evaluation mode.

    It is that of a checkpoint, of a folder of diffusers, the oracle "ring", or your own.

    Errors: those of `load`; ValueError for an unknown name, TypeError for an object that is no
    score model.
    """
    from sde_diffusion.checkpoints.checkpoint import load, shipped

    text = str(name)
    kind, _, detail = text.partition(":")
    if kind == _RING:
        core = importlib.import_module("sde_diffusion")
        return core.GaussianMixture.ring(8).to(device).diffused(sde(detail or "vp"))
    if text in shipped() or kind == _DIFFUSERS or Path(text).exists():
        return load(text, device=device)
    if os.sep in text or text.endswith((".safetensors", ".pt")):
        rule = "be a file or a run folder"
        error = wrong_value("--model", "model", rule, repr(text), "check the spelling")
        raise FileNotFoundError(str(error))
    paths = ("the path of a checkpoint or run folder", f"{_DIFFUSERS}:FOLDER")
    names = (*shipped(), _RING, f"{_RING}:SDE", *paths)
    what = "a ScoreLike, such as a ScoreModel, of a LinearSDE or a MatrixLinearSDE"
    from torch import nn

    from sde_diffusion.models.exact import ExactScore, MatrixExactScore

    made = own("--model", text, names, lambda x: isinstance(x, nn.Module) or _is_model(x), what)
    if not _is_model(made):  # a network alone, which says nothing of its noise and its time
        remedy = (
            "name a model made of it, such as model = ScoreModel.from_timesteps(net, betas, "
            "data=DataSpec(name, shape, levels))"
        )
        raise wrong_type(
            "--model", text, f"be {what}", f"the network {type(made).__name__}", remedy
        )
    if isinstance(made, nn.Module):
        return made.to(device).eval()
    return made.to(device) if isinstance(made, ExactScore | MatrixExactScore) else made


def observed(score_model: Any) -> Any:  # noqa: ANN401  (a DataSpec, or None)
    """Return what the samples of a model are, those that latents are decoded to."""
    from sde_diffusion.latents import latent_model

    return latent_model.observed(score_model)


def decoded(score_model: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """Return the samples of a model from its states: themselves, a part, or what latents mean."""
    import torch

    from sde_diffusion.latents.latent_model import LatentModel
    from sde_diffusion.matrix_sde import MatrixLinearSDE

    if isinstance(score_model.sde, MatrixLinearSDE):
        return score_model.sde.data_part(x)
    if not isinstance(score_model, LatentModel):
        return x
    like = next(score_model.parameters(), x)
    with torch.no_grad():
        parts = [
            score_model.decode(part.to(like.device)).to(x.device)
            for part in torch.split(x, _DECODED)
        ]
    return torch.cat(parts) if parts else x.new_empty(0, *score_model.observed.shape)


def sample_shape(score_model: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the shape of a sample of the model, decoded where its states are latents."""
    spec = observed(score_model)
    return event_shape(score_model) if spec is None else tuple(spec.shape)


def event_shape(score_model: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the shape of one state of the model: a sample, or the latents of one.

    Errors: ValueError for a model that does not tell.
    """
    from sde_diffusion.models.exact import ExactScore, MatrixExactScore

    if score_model.data is not None:
        return tuple(score_model.data.shape)
    if isinstance(score_model, ExactScore | MatrixExactScore):
        return tuple(score_model.oracle.event)
    raise wrong_value(
        "--model",
        "model",
        "tell the shape of its data",
        "none",
        "build it as ScoreModel(…, data=DataSpec(name, shape, levels))",
    )


def state_shape(score_model: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the shape of what a solver carries: a sample, with its velocities if it has them."""
    from sde_diffusion.matrix_sde import MatrixLinearSDE

    sde = score_model.sde
    first, *rest = event_shape(score_model)
    if isinstance(sde, MatrixLinearSDE):
        first = first * sde.parts // sde.data_parts
    return first, *rest


def _is_solver(made: object) -> bool:
    from sde_diffusion.solver import Solver

    return isinstance(made, Solver)


def _is_model(made: object) -> bool:
    from sde_diffusion.matrix_sde import MatrixLinearSDE
    from sde_diffusion.scores import ScoreLike
    from sde_diffusion.sde import LinearSDE

    return isinstance(made, ScoreLike) and isinstance(made.sde, LinearSDE | MatrixLinearSDE)
