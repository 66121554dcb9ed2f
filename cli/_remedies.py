"""Remedies as they are typed: the library says `pass clip=1.0`, a command wants `--clip 1.0`."""

from __future__ import annotations

import re
from typing import Final

import click

from sde_diffusion.cli import menu
from sde_diffusion.cli._solvers import exported

_REMEDY: Final = re.compile(r"; (pass(?: for example)?) (\w+)=(\([^)]*\)|'[^']*'|\S+)$")
_NETWORKS: Final = ("UNet", "DiT", "MLP", "ConvolutionalAutoencoder")


def as_typed(message: str, command: click.Command | None) -> str:
    """Return the message with its last words as they are typed after this command.

    An argument that is no option is one of a solver, as in ``--solver unipc:p=3``, or of the
    network, as in ``--network heads=1``; other messages stay as they are.
    """
    options = set() if command is None else {str(param.name) for param in command.params}
    if "keep_finite" in options:
        message = message.replace(" sample_finite keeps", " --keep-finite keeps")
    found = _REMEDY.search(message)
    if found is None or command is None:
        return message
    verb, name, value = found.groups()
    value = ",".join(part.strip() for part in value.strip("()'").split(",") if part.strip())
    what = message.partition(":")[0]
    own = {made: name for name, made in exported().items() if name in menu.SOLVER_NAMES}
    if what in own and options & {"solver", "solvers"}:
        typed = f"--solver {own[what]}:{name}={value}"
    elif name in options:
        typed = f"--{name.replace('_', '-')} {value}"
    elif what in _NETWORKS and "network" in options:
        typed = f"--network {name}={value}"
    else:
        return message
    return f"{message[: found.start()]}; {verb} {typed}"
