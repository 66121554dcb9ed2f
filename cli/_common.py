"""What the commands share: options, errors as lines, results, output files."""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import click

from sde_diffusion._check import wrong_value
from sde_diffusion.cli import menu

if TYPE_CHECKING:
    import torch

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

# What a user can put right. Anything else is a bug: one of ours keeps its traceback.
_USER_ERRORS: Final = (ValueError, TypeError, OSError, FloatingPointError)
# How torch's allocators say, in a RuntimeError, that there is not so much memory.
_NO_MEMORY: Final = (
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "numel: integer multiplication overflow",
)
_HOW: Final = "all of it with --traceback"


class Failure(click.ClickException):
    """An error of the user's input, shown as one line."""

    exit_code = 2


class Interrupted(click.ClickException):
    """Ctrl-C, shown as one line."""

    exit_code = 130  # 128 + SIGINT, as shells have it

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.format_message(), file=file, err=True)


@contextmanager
def errors_as_lines(
    *, show_traceback: bool = False, typed: Callable[[str], str] = str
) -> Iterator[None]:
    """Turn the library's errors into one line and exit code 2.

    ``typed`` writes a remedy as the command line takes it.
    """
    try:
        yield
    except BrokenPipeError:  # `… | head`: click ends quietly
        raise
    except KeyboardInterrupt as interrupt:
        raise Interrupted(str(interrupt) or "Interrupted.") from interrupt
    except click.ClickException:
        raise
    except Exception as error:
        message = None if show_traceback else _message(error, typed)
        if message is None:
            raise
        raise Failure(message) from error


def _message(error: Exception, typed: Callable[[str], str]) -> str | None:
    """Return an error as one line, its remedy as it is typed; None for a bug of ours."""
    place = _own_place(error)
    at = f" (at {place}; {_HOW})" if place else ""
    if isinstance(error, _USER_ERRORS):
        return f"{typed(one_line(error))}{at}"
    if _is_out_of_memory(error):
        remedy = "pass a smaller --batch-size, width or number of steps"
        return f"out of memory{_asked_for(str(error))}; {remedy}{at}"
    return f"{type(error).__name__}: {one_line(error)}{at}" if place else None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)


def _asked_for(text: str) -> str:
    """Return how much memory an allocator was asked for, where it says so."""
    exact = re.search(r"([0-9]+) bytes", text)
    if exact is not None:
        return f", {int(exact[1]) / 1e9:,.1f} GB were asked for"
    about = re.search(r"[0-9.]+ [KMGTPE]iB", text)
    return "" if about is None else f", {about[0]} were asked for"


def _own_place(error: Exception | None) -> str:
    """Return where an error was last in code that is the user's own; else ""."""
    place = ""
    while error is not None and not place:
        for frame, line in traceback.walk_tb(error.__traceback__):
            module = str(frame.f_globals.get("__name__")).partition(".")[0]
            file = frame.f_code.co_filename
            ours = module == __name__.partition(".")[0] or module in sys.stdlib_module_names
            if not ours and "site-packages" not in file and not file.startswith("<"):
                place = f"{file}:{line}"
        # Not an interrupt, which comes wherever the program just is.
        error = error.__cause__ if isinstance(error.__cause__, Exception) else None
    return place


def one_line(error: BaseException) -> str:
    """Return the message of an error without its line breaks."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def count_option(
    *names: str, default: int | None, help: str, least: int = 1
) -> Callable[[FunctionT], FunctionT]:
    """Return an option that takes an integer.

    Arguments:
        names: its flags, as click takes them.
        default: its value where it is not given.
        help: its line in the help.
        least: the least value that is accepted.
    """
    return click.option(
        *names,
        type=click.IntRange(min=least),
        metavar="N",
        default=default,
        help=help,
        show_default=default is not None,
    )


def common_options(
    *, out: str | None, out_help: str = "Folder for the results."
) -> Callable[[FunctionT], FunctionT]:
    """Return the options of every command that computes: --seed, --device, --out, --json."""
    options = [
        count_option("--seed", default=0, least=0, help="Seed of every random draw."),
        device_option,
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=out,
            show_default=out is not None,
            help=out_help,
        ),
        json_option,
    ]
    return lambda function: _with(options, function)


def device_option(function: FunctionT) -> FunctionT:
    """Add --device."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto (the GPU if there is one), cpu, cuda or cuda:1.",
    )(function)


def _with(options: Sequence[Callable[[Any], Any]], function: FunctionT) -> FunctionT:
    """Return the command with the options, in their order in the help."""
    made: Any = function
    for option in reversed(options):
        made = option(made)
    wrapped: FunctionT = made
    return wrapped


def model_option(function: FunctionT) -> FunctionT:
    """Add --model, which arrives as ``model_name``."""
    return click.option(
        "--model",
        "model_name",
        default="digits",
        show_default=True,
        shell_complete=menu.completing(menu.MODEL_NAMES, files=True),
        help="digits, mnist, ring, ring:SDE, a checkpoint or run folder, diffusers:FOLDER, or "
        "package.module:attr.",
    )(function)


def data_options(function: FunctionT) -> FunctionT:
    """Add --data, --levels, --limit and those of `reading_options`."""
    options = [
        click.option(
            "--data",
            default="digits",
            show_default=True,
            help="digits, or a path: IDX, .npy, .npz, CIFAR-10, .wav, a folder of sounds, of "
            "pictures or of a folder of pictures for each class.",
        ),
        levels_option,
        limit_option(None),
    ]
    return _with(options, reading_options(function))


def levels_option(function: FunctionT) -> FunctionT:
    """Add --levels."""
    option: Callable[[FunctionT], FunctionT] = count_option(
        "--levels",
        default=None,
        least=2,
        help="Grey levels of integer data, or of floats that are whole numbers; 17 for "
        "digits, 65536 for pictures of 16 bits, 256 for other files.",
    )
    return option(function)


def limit_option(default: int | None) -> Callable[[FunctionT], FunctionT]:
    """Return --limit, with the number of samples that are used where it is not given."""
    return count_option("--limit", default=default, help="Use only the first N samples.")


def reading_options(function: FunctionT) -> FunctionT:
    """Add --size, --frames, --layout and --length, which say how files are read."""
    options = [
        count_option("--size", default=None, help="Resize pictures to N × N and crop the rest."),
        click.option(
            "--frames",
            type=click.Choice(["first", "all", "clip"]),
            default="first",
            show_default=True,
            help="Frames that are read of a GIF or another picture of several; clip makes one "
            "sample of them.",
        ),
        click.option(
            "--layout",
            type=click.Choice(["hw", "chw", "hwc", "cl", "lc", "cdhw", "dhwc"]),
            default=None,
            help="Axes of a sample of an array, c the channels; recognised if not given.",
        ),
        count_option(
            "--length",
            default=None,
            help="Cut sounds into clips of N samples; those of the model, or whole files, if not "
            "given.",
        ),
    ]
    return _with(options, function)


def split_option(function: FunctionT) -> FunctionT:
    """Add --split, the part of held-out data."""
    option = click.option(
        "--split",
        type=click.Choice(["train", "test", "all"]),
        default=None,
        help="Part of the data; if not given test, or all where there is no such part.",
    )
    return option(function)


def mode_of(shape: Sequence[int]) -> str | None:
    """Return the mode of pictures of a shape (C, H, W) or (C, D, H, W), None for another."""
    return {1: "grey", 3: "rgb", 4: "rgba"}.get(shape[0]) if len(shape) in (3, 4) else None


def tell(notes: Iterable[str]) -> None:
    """Print what was made of the data, a line each, on standard error."""
    for text in notes:
        note(text)


def note(text: str) -> None:
    """Print what was done or is waited for, on standard error, in lines of 100 columns at most."""
    lines = textwrap.wrap(
        f"note: {text}",
        100,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    click.echo("\n".join(lines), err=True)


def solver_option(
    default: str, names: Sequence[str] = menu.SOLVER_NAMES
) -> Callable[[FunctionT], FunctionT]:
    """Return --solver, of all solvers or of those of any ODE."""
    which = "A name" if names == menu.SOLVER_NAMES else "A name that solves any ODE,"
    return click.option(
        "--solver",
        default=default,
        show_default=True,
        shell_complete=menu.completing(names),
        help=f"{which} of `sde-diffusion solvers`, or package.module:attr; with arguments as in "
        "unipc:p=3.",
    )


def grid_options(function: FunctionT) -> FunctionT:
    """Add --steps, --grid and --tolerance."""
    names = ", ".join(menu.GRID_NAMES)
    options = [
        count_option(
            "--steps",
            default=None,
            help="Steps along the grid; 20 if not given, 1 for an adaptive solver.",
        ),
        click.option(
            "--grid",
            default="auto",
            show_default=True,
            help=f"Spacing of the times: {names}, or package.module:attr.",
        ),
        click.option(
            "--tolerance",
            type=float,
            default=None,
            help="rtol = atol of an adaptive solver; 1e-5 if not given.",
        ),
    ]
    return _with(options, function)


def denoise_option(function: FunctionT) -> FunctionT:
    """Add --denoise."""
    return click.option(
        "--denoise",
        is_flag=True,
        help="Take one more evaluation of the score at the end of the grid, for the mean of x0 "
        "given x there (Tweedie).",
    )(function)


def json_option(function: FunctionT) -> FunctionT:
    """Add --json, which arrives as ``as_json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
    )(function)


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the GPU if there is one.

    Errors: ValueError for another name or a GPU that is not there.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    kind, _, number = name.partition(":")
    if name == "cpu" or (kind == "cuda" and (number.isdecimal() or name == "cuda")):
        if kind == "cpu" or int(number or 0) < gpus:
            return torch.device(name)
        found = "no GPU here" if gpus == 0 else f"{gpus} GPU here, numbered from 0"
        raise wrong_value(
            "--device", "device", "be there", f"{name} with {found}", "pass --device auto or cpu"
        )
    raise wrong_value(
        "--device", "device", "be auto, cpu, cuda or cuda:NUMBER", name, "pass --device auto"
    )


def output_folder(path: Path) -> Path:
    """Return the folder, made if need be, before any time is spent on what goes into it.

    Errors: OSError where it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def check_output_file(path: Path) -> None:
    """Refuse a file that cannot be written, before any time is spent on what goes into it.

    Errors: OSError where its folder cannot be made or written, or where it is a folder itself.
    """
    if path.is_dir():
        rule = "name a file"
        error = wrong_value("--out", "out", rule, f"the folder {path}", "add a file's name")
        raise IsADirectoryError(str(error))
    output_folder(path.parent)


def no_picture(draw: Callable[[Path], object], path: Path) -> str | None:
    """Draw a picture; return why there is none, None where there is: results never wait for one.

    The file of an earlier picture does not stay.
    """
    try:
        draw(path)
    except Exception as error:
        path.unlink(missing_ok=True)
        return f"no picture {path}: {one_line(error)}"
    return None


def unwritable(path: Path, error: OSError) -> OSError:
    """Return the error of a folder for results that cannot be made or written."""
    text = wrong_value(
        "--out", "out", "be a folder that can be written", str(path), "pass another folder"
    )
    return OSError(f"{text} ({error.strerror})")


@contextmanager
def shown_if_unwritten(
    result: Mapping[str, object], lines: list[str], *, as_json: bool
) -> Iterator[None]:
    """Print the result where its files cannot be written, so that no work is lost."""
    try:
        yield
    except OSError:
        show(result, lines, as_json=as_json)
        raise


def show(result: Mapping[str, object], lines: list[str], *, as_json: bool) -> None:
    """Print the result: lines for people, or one JSON object."""
    if as_json:
        click.echo(json.dumps(_plain(result), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(lines))


def _plain(value: object) -> object:
    """Return the value as strict JSON, in which "not a number" is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


class _Lines:
    """Standard error for a bar that is no bar: every state of it becomes a line."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            click.echo(line, err=True)

    def flush(self) -> None:
        """Nothing is kept back."""


def progress(total: int, unit: str, *, leads: bool = True, every: float = 60.0) -> Any:  # noqa: ANN401  (no types)
    """Return a progress bar on standard error; where that is no terminal, a line every minute.

    Arguments:
        total: how many units there are.
        unit: what is counted.
        leads: whether this process is the one of several that shows it.
        every: seconds between two lines.
    """
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=total, unit=unit, file=sys.stderr, disable=not leads, dynamic_ncols=True)
    return tqdm(
        total=total,
        disable=not leads,
        file=_Lines(),
        leave=False,
        delay=every,
        mininterval=every,
        miniters=1,
        bar_format=f"{{desc}}{{n_fmt}} of {{total_fmt}} {unit}s, {{elapsed}} so far{{postfix}}",
    )
