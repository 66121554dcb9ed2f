"""What to install where another program is missing."""

from __future__ import annotations

import importlib
from typing import Any

from sde_diffusion._check import Reason


def program(module: str, name: str) -> Any:  # noqa: ANN401  (a module without types)
    """Return the module of another program, which is imported only here.

    Errors: ImportError that says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(name, error) from error


def missing(name: str, error: ImportError) -> ImportError:
    """Return the error of a program that cannot be imported, with what to type."""
    message = (
        f"{name}: it must be installed to be exchanged with, got {Reason(error)}; "
        f"type pip install {name}"
    )
    return ImportError(message)
