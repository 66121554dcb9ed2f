"""What to install where another program is missing."""

from __future__ import annotations

import importlib
from typing import Any, Final

from sde_diffusion._check import Reason, wrong_value

# Of what asks for more than is used here: torchvision would change torch's build.
_LINES: Final = {
    "azula": "pip install --no-deps azula einops",
    "constriction": "pip install 'sde_diffusion[coding]'",
}


def program(module: str, name: str) -> Any:  # noqa: ANN401  (a module without types)
    """Return a module of another program.

    Errors: ValueError that says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(name, error) from error


def missing(name: str, error: ImportError) -> ValueError:
    """Return the error for a program that cannot be imported, with what to type."""
    return wrong_value(
        "sde_diffusion",
        f"the package {name}",
        "be installed",
        Reason(error),
        f"type {_LINES.get(name, f'pip install {name}')}",
    )
