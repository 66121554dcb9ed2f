"""Objects of your own on the command line, as ``package.module:attr``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from sde_diffusion._check import Reason, wrong_type, wrong_value

_OWN: Final = "package.module:attr"


def own(
    option: str, name: str, names: Iterable[str], fits: Callable[[Any], bool], kind: str
) -> Any:  # noqa: ANN401
    """Return the object that ``package.module:attr`` names, or the one it makes if called.

    Arguments:
        option: the flag, for the errors.
        name: what stands after it.
        names: the menu's own names, to suggest one.
        fits: whether an object is of the kind that is needed.
        kind: that kind in words, for the errors.

    Errors: those of `imported`; TypeError for an object of another kind.
    """
    made = imported(option, name, names)
    if isinstance(made, type) or (callable(made) and not fits(made)):
        made = _called(option, name, made)
    if not fits(made):
        raise wrong_type(
            option,
            name,
            f"be {kind}",
            type(made).__name__,
            f"name an object, a class or a function that gives {kind}",
        )
    return made


def _called(option: str, name: str, function: Callable[[], Any]) -> Any:  # noqa: ANN401
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise wrong_type(
            option,
            name,
            "need no arguments",
            Reason(error),
            "give them defaults, or name an object",
        ) from error
    return function()


def imported(option: str, name: str, names: Iterable[str]) -> Any:  # noqa: ANN401
    """Return what stands at ``package.module:attr``.

    Errors: ValueError for another form (with the menu's names), module or attribute.
    """
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise _unknown(option, name, names)
    path, _, attribute = name.partition(":")
    found: Any = _module(option, path, names)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)  # the user names the attribute on the command line
        except AttributeError as error:
            inside = vars(found) if isinstance(found, (ModuleType, type)) else {}
            public = [
                known
                for known, value in inside.items()
                if not known.startswith("_") and not isinstance(value, ModuleType)
            ]
            raise wrong_value(
                option,
                name,
                f"name something in {path}",
                f"no {part!r} there",
                _near(part, public) or "check the spelling",
            ) from error
    return found


def _module(option: str, path: str, names: Iterable[str]) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:  # an installed program does not look there by itself
        sys.path.insert(0, here)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f"{error.name}.")):
            rule = f"name a module, or be {_named(option, names)}"
            raise wrong_value(
                option, "module", rule, path, "check the spelling and the current folder"
            ) from error
        raise _broken(option, path, error) from error
    except Exception as error:
        raise _broken(option, path, error) from error


def _broken(option: str, path: str, error: Exception) -> ValueError:
    got = Reason(f"{type(error).__name__}: {error}")
    return wrong_value(
        option, path, "import without an error", got, "see where with SDE_DIFFUSION_TRACEBACK=1"
    )


def _unknown(option: str, name: str, names: Iterable[str]) -> ValueError:
    names = list(names)
    rule = f"be {_named(option, names)}, or {_OWN}"
    near = _near(name, names) or f"pass for example {option} {names[0]}"
    return wrong_value(option, "name", rule, repr(name), near)


def _named(option: str, names: Iterable[str]) -> str:
    """Return which names a flag takes; those of solvers are too many for a line."""
    known = "a name of `sde-diffusion solvers`"
    return known if option == "--solver" else f"one of {', '.join(names)}"


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), list(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""
