"""Public names that are loaded when first used, so that the command line answers at once.

The stub ``__init__.pyi`` beside a package's ``__init__.py`` is the only list of its public names:
type checkers read it, and so does the package itself when it is imported.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

# from MODULE import NAME as NAME, or the same with several names in brackets
_IMPORT: Final = re.compile(r"^from (\S+) import (?:\(([^)]*)\)|(.+))$", re.MULTILINE)


def homes(stub: str) -> dict[str, str]:
    """Return the module of every name that a stub hands on.

    >>> homes("from a.b import C as C, d as d")
    {'C': 'a.b', 'd': 'a.b'}
    """
    found = dict[str, str]()
    for module, several, single in _IMPORT.findall(stub):
        for part in (several or single).split(","):
            name = part.strip().partition(" as ")[0]
            if name:
                found[name] = module
    return found


def exported(
    package: str, file: str
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package, made from its stub."""
    home = homes(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))

    def load(name: str) -> object:
        if name not in home:
            message = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(message)
        # No module carries the name of a public function: importing it would hide the function.
        value: object = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return load, names, sorted(home)
