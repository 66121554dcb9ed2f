"""The command group. Commands are imported when they are used, so `--help` answers at once."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Final

import click

import sde_diffusion
from sde_diffusion.cli._common import errors_as_lines

# name -> (module, what it does); the help of the group must not import the modules.
_COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "train": ("sde_diffusion.cli.train", "Train a score model on a data set."),
    "distil": (
        "sde_diffusion.cli.distil",
        "Train a student of a model, which samples in one to four evaluations.",
    ),
    "sample": ("sde_diffusion.cli.sample", "Draw samples of a model with any solver."),
    "likelihood": ("sde_diffusion.cli.likelihood", "Evaluate bits per dimension of a data set."),
    "compare": (
        "sde_diffusion.cli.compare",
        "Compare solvers at equal numbers of counted evaluations.",
    ),
    "verify": (
        "sde_diffusion.cli.verify",
        "Measure the order of solvers against closed forms.",
    ),
    "restore": (
        "sde_diffusion.cli.restore",
        "Draw from the posterior of measured data.",
    ),
    "compress": (
        "sde_diffusion.cli.compress",
        "Compress data to a model's bound, without loss.",
    ),
    "decompress": ("sde_diffusion.cli.decompress", "Write what was compressed as .npy."),
    "solvers": ("sde_diffusion.cli.solvers", "List the solvers, their orders and evaluations."),
    "info": ("sde_diffusion.cli.info", "Show what is in a checkpoint."),
    "doctor": ("sde_diffusion.cli.doctor", "Check this machine; print what a bug report needs."),
    "convert": ("sde_diffusion.cli.convert", "Write another program's weights as .safetensors."),
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own, each as ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], list(_COMMANDS), n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"choose {', '.join(_COMMANDS)}."
            ctx.fail(f"No such command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--traceback" in args:  # after the command too
            args = ["--traceback", *(word for word in args if word != "--traceback")]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        def typed(message: str) -> str:
            from sde_diffusion.cli._remedies import as_typed

            name = ctx.invoked_subcommand
            return as_typed(message, None if name is None else self.get_command(ctx, name))

        with errors_as_lines(show_traceback=bool(ctx.params.get("traceback")), typed=typed):
            return super().invoke(ctx)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try `sde-diffusion sample`, then `sde-diffusion sample --help` for its options. A "
    "shell completes the names of commands, options, solvers, SDEs and models after "
    'eval "$(_SDE_DIFFUSION_COMPLETE=bash_source sde-diffusion)" in bash, zsh_source in zsh, or '
    "_SDE_DIFFUSION_COMPLETE=fish_source sde-diffusion | source in fish.",
)
@click.version_option(sde_diffusion.__version__, prog_name="sde-diffusion")
@click.option(
    "--traceback",
    is_flag=True,
    envvar="SDE_DIFFUSION_TRACEBACK",
    help="Show where an error came from (also SDE_DIFFUSION_TRACEBACK=1).",
)
def main(traceback: bool) -> None:
    """Score-based generative models with SDEs: train, sample, evaluate, compare, verify."""
