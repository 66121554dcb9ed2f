"""Solvers by name on the command line: `DPMSolverPP(order=3)` is ``dpm-solver-pp:order=3``."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any, Final

from sde_diffusion import solvers
from sde_diffusion._check import Reason, shown, wrong_type, wrong_value

_PARTS: Final = ("Corrector", "Langevin", "AnnealedLangevin", "SongLangevin")  # no solvers
# Words that the capitals of a class name do not tell apart, and shorter ones.
_WORDS: Final = {
    "UniPC": "Unipc",
    "ERSDE": "ErSde",
    "SDEDPM": "SdeDpm",
    "TorchDiffEq": "Torchdiffeq",
    "RungeKutta": "Rk",
}


def spelled(name: str) -> str:
    """Return the name of a class as the command line has it.

    >>> [spelled(name) for name in ("EulerMaruyama", "DPMSolverPPPublished", "UniPC")]
    ['euler-maruyama', 'dpm-solver-pp-published', 'unipc']
    """
    for word, spelling in _WORDS.items():
        name = name.replace(word, spelling)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def exported() -> dict[str, str]:
    """Return the classes of all exported solvers, by their names here.

    Their list is read without loading them, since help must not wait for torch.
    """
    names = (name for name in solvers.__all__ if name not in _PARTS)
    return {spelled(name): name for name in sorted(names, key=spelled)}


def of_any_ode() -> set[str]:
    """Return the names of solvers of any ODE, those of classes whose ``dynamics`` are ODE."""
    folder = Path(str(solvers.__file__)).parent
    sources = (path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    parts = re.split(r"^class ", "\n".join(sources), flags=re.MULTILINE)
    ours = (part for part in parts if "\n    dynamics = ODE\n" in part)
    return {spelled(re.split(r"\W", part)[0]) for part in ours}


def solver_class(name: str) -> type[Any]:
    """Return the class of that name here."""
    # The package loads its names when they are asked for, so its vars() do not hold them yet.
    found: type[Any] = getattr(solvers, exported()[name])
    return found


def solver_with(name: str, arguments: str) -> Any:  # noqa: ANN401  (any Solver)
    """Return a solver with the arguments in a text: ``value`` or ``name=value``, with commas.

    Values are literals, or bare words for text.

    Errors: TypeError for a text that holds no arguments of the solver; ValueError for others.
    """
    kind = solver_class(name)
    positional, named = _values(name, arguments)
    try:
        return kind(*positional, **named)
    except TypeError as error:
        known = ", ".join(inspect.signature(kind).parameters) or "none"
        raise wrong_type(
            "--solver",
            shown(arguments),
            f"be arguments of {name} ({known})",
            Reason(error),
            f"write --solver {_example(name)}",
        ) from error


def _example(name: str) -> str:
    """Return the solver with its first number or word, or alone where it has none."""
    for parameter in inspect.signature(solver_class(name)).parameters.values():
        if isinstance(parameter.default, (int, float, str)):
            return f"{name}:{parameter.name}={parameter.default}"
    return name


def _values(name: str, arguments: str) -> tuple[list[object], dict[str, object]]:
    try:
        call: Any = ast.parse(f"f({arguments or repr('')})", mode="eval").body
        named = {str(word.arg): _value(word.value) for word in call.keywords}
        return [_value(node) for node in call.args], named
    # AttributeError: not one call; the others: nested too deeply.
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise wrong_value(
            "--solver",
            shown(arguments),
            "hold numbers, words or literals",
            "others",
            f"write --solver {_example(name)}",
        ) from error


def _value(node: ast.expr) -> object:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
