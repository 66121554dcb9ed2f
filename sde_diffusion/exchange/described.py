"""Solvers as JSON: their class by its public name, and their arguments."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from typing import Any, Final

from sde_diffusion._check import Reason, wrong_type
from sde_diffusion.solver import Solver

# The rooms with solvers and their parts, which the core does not import.
_ROOMS: Final = frozenset(f"{__name__.partition('.')[0]}.{room}" for room in ("solvers", "ddpm"))


def described(value: object) -> object:
    """Return a solver, or an argument of one, as JSON.

    A class of the package is written by the name that its room exports, with its arguments, as in
    ``{"class": "sde_diffusion.solvers.AngularAdams", "order": 5, "sigma_data": 1.0}``. Of a class
    of one's own the name alone is written, which `solver_from` does not take.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no infinity
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    kind = type(value)
    name = ".".join([*kind.__module__.split(".")[:2], kind.__qualname__])
    if not dataclasses.is_dataclass(value) or _class_of(name) is not kind:
        return {"class": f"{kind.__module__}.{kind.__qualname__}"}
    arguments = {
        field.name: described(vars(value)[field.name])
        for field in dataclasses.fields(value)
        if field.init and not _usual_function(field, vars(value)[field.name])
    }
    return {"class": name, **arguments}


def _usual_function(field: dataclasses.Field[Any], value: object) -> bool:
    """Return whether it is the function that the class has anyway, which JSON cannot hold."""
    return callable(value) and value is field.default


def solver_from(value: object) -> Solver[Any]:
    """Return the solver that `described` was given: a class that the package exports, no other.

    Errors: TypeError for anything else; those of the class for other arguments.
    """
    try:
        found = _made(value)
    except (TypeError, ValueError) as error:
        raise _refused(Reason(error)) from error
    if not isinstance(found, Solver):
        raise _refused(value)
    return found


def _refused(got: object) -> TypeError:
    return wrong_type(
        "SolverScheduler",
        "solver",
        "be a solver object, or one of the package's in a configuration",
        got,
        "pass solver=AngularAdams(), also to from_config and from_pretrained",
    )


def _made(value: object) -> Any:  # noqa: ANN401  (an argument of a solver)
    if isinstance(value, Mapping):
        kind = _class_of(value.get("class"))
        if kind is None:
            message = f"{value.get('class')!r}, which is no class of the package"
            raise TypeError(message)
        return kind(**{key: _made(item) for key, item in value.items() if key != "class"})
    if isinstance(value, list):
        return tuple(_made(item) for item in value)
    if value in ("inf", "-inf", "nan"):
        return float(str(value))
    return value


def _class_of(name: object) -> type[Any] | None:
    """Return the dataclass that a room of the package exports by that name, None if none does."""
    package, _, kind = str(name).rpartition(".")
    if package not in _ROOMS:
        return None
    # The stub of the room names all that may be made of a file.
    room = importlib.import_module(package)
    found = getattr(room, kind) if kind in room.__all__ else None  # of a configuration
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None
