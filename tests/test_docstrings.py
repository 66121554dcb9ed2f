"""Every public function of more than three parameters says what each of them is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator

import pytest

import sde_diffusion
from sde_diffusion import solvers

MOST = 3  # parameters that a name and a formula explain
MODULES = sorted(
    name
    for package in (sde_diffusion, solvers)
    for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if "._" not in name and not name.startswith("sde_diffusion.cli")
)


def parameters(function: Callable[..., object]) -> list[str]:
    known = inspect.signature(function).parameters
    return [name for name in known if name not in {"self", "cls"}]


def documented(text: str | None) -> list[str]:
    """The names that the section `Arguments:` of a docstring describes, one a line."""
    found = re.search(r"^Arguments:\n((?:    .*\n?)+)", inspect.cleandoc(text or ""), re.MULTILINE)
    if found is None:
        return []
    return [name for line in found[1].splitlines() if (name := described(line))]


def described(line: str) -> str:
    match = re.match(r"    (\w+): \S", line)
    return match[1] if match else ""


def callables(module: str) -> Iterator[tuple[str, list[str], str | None]]:
    """The public callables that a module defines: name, parameters and docstring."""
    for name, value in vars(importlib.import_module(module)).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module:
            continue
        if inspect.isfunction(value):
            yield name, parameters(value), value.__doc__
        elif inspect.isclass(value):
            if not issubclass(value, tuple | BaseException):
                yield name, parameters(value.__init__), value.__doc__
            yield from methods(value)


def methods(kind: type) -> Iterator[tuple[str, list[str], str | None]]:
    for name, value in vars(kind).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        # What a base class documents holds for its subclasses.
        said = any(name in vars(base) for base in kind.__mro__[1:])
        if inspect.isfunction(function) and not name.startswith("_") and not said:
            yield f"{kind.__name__}.{name}", parameters(function), function.__doc__


@pytest.mark.parametrize("module", MODULES)
def test_every_argument_of_many_is_described(module: str) -> None:
    if module.startswith("sde_diffusion.exchange."):
        pytest.importorskip("diffusers", reason="diffusers is not installed")
    wrong = [
        f"{name}{tuple(given)}: described are {documented(text)}"
        for name, given, text in callables(module)
        if len(given) > MOST and documented(text) != given
    ]
    assert wrong == []


def test_a_missing_line_is_found() -> None:
    text = """Return it.

    Arguments:
        a: the first, in nats.
        b: the second; a pair
            of numbers.
        d: the last.

    Errors: none.
    """
    assert documented(text) == ["a", "b", "d"]
    assert documented("Return it.") == []
