"""The settings of `sde-diffusion train` as TOML: read, merged with the command line, written."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from sde_diffusion._check import Reason, shown, wrong_value

FILE: Final = "config.toml"
_NOT_SETTINGS: Final = ("config", "resume", "as_json", "help")
_NOT_WRITTEN: Final = ("out",)  # to repeat a run is not to write over it


def read(path: Path, command: click.Command) -> dict[str, Any]:
    """Return the settings of a file by the names of the options, "-" or "_" between words.

    Errors: FileNotFoundError; ValueError that names the line or the unknown name.
    """
    if not path.is_file():
        error = wrong_value("--config", "config", "be a file", str(path), "check the spelling")
        raise FileNotFoundError(str(error))
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not TOML, or not text, or nested too deeply
        raise wrong_value(
            "--config", str(path), "be a TOML file", Reason(error), "write lines like steps = 2000"
        ) from error
    known = {str(p.name) for p in command.params} - {*_NOT_SETTINGS}
    settings = {name.replace("-", "_"): value for name, value in found.items()}
    for name in settings.keys() - known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0)[0].replace("_", "-")
        raise wrong_value(
            "--config", str(path), "hold names of options", f"{name} = …", f"did you mean {close}?"
        )
    ctx = click.Context(command)
    for param in command.params:
        try:
            if param.name in settings:
                _value(ctx, param, settings[param.name])
        except click.UsageError as error:
            raise wrong_value(
                "--config",
                str(path),
                f"hold a value that --{str(param.name).replace('_', '-')} takes",
                Reason(error.format_message()),
                "write another one there",
            ) from error
    return settings


def merged(ctx: click.Context, *files: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return the values of all options, and which of them were given.

    The command line counts first, then the files in their order, then the defaults; what stands
    in the last file is not "given", being the run's own.

    Errors: click's, for values of the wrong type.
    """
    values = dict(ctx.params)
    given = set[str]()
    for param in ctx.command.params:
        name = str(param.name)
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            given.add(name)
            continue
        for file in files:
            if name in file:
                values[name] = _value(ctx, param, file[name])
                if file is not files[-1]:
                    given.add(name)
                break
    return values, given


def text(values: Mapping[str, Any], command: click.Command) -> str:
    """Return the settings as TOML, those without a value left out."""
    kept = [str(p.name) for p in command.params if p.name not in {*_NOT_SETTINGS, *_NOT_WRITTEN}]
    lines = [
        f"{name.replace('_', '-')} = {_literal(values[name])}\n"
        for name in kept
        if values[name] is not None and name != "network"
    ]
    if values.get("network"):
        lines.append("\n[network]\n")
        lines += [f"{name} = {_literal(value)}\n" for name, value in values["network"]]
    return "".join(lines)


def _value(ctx: click.Context, param: click.Parameter, value: object) -> Any:  # noqa: ANN401
    """Return what the option makes of a value of TOML; a flag is no number, 2.5 no count."""
    if isinstance(value, Mapping) != (param.name == "network"):
        raise _misplaced(ctx, param, f"{value!r} has no place here.")
    if isinstance(value, Mapping):
        return param.process_value(ctx, list(value.items()))
    flag = isinstance(param.type, click.types.BoolParamType)
    count = isinstance(param.type, click.types.IntParamType)
    if isinstance(value, bool) != flag or (count and isinstance(value, float)):
        raise _misplaced(ctx, param, f"{value!r} is of another type.")
    try:
        return param.process_value(ctx, value)
    except OverflowError as error:  # a whole number that no float holds
        raise _misplaced(ctx, param, f"{shown(value)} is too large.") from error


def _misplaced(ctx: click.Context, param: click.Parameter, message: str) -> click.BadParameter:
    return click.BadParameter(message, ctx=ctx, param=param)


def _literal(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
