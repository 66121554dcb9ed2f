"""What the scripts share: options, tables, JSON, interleaved timing and optional peers."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sde_diffusion._files import write_atomically


def options(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every script has."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny run, to see that it works")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (its own; 1 if quick)")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of the command line, with the threads set: one for a quick run."""
    found = parser.parse_args()
    if found.threads is not None or found.quick:
        torch.set_num_threads(found.threads or 1)
    return found


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table with aligned columns."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    print(f"\n{title}\n" if title else "")
    print(line(cells[0]))
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print("\n".join(line(row) for row in cells[1:]), flush=True)


def write(out: Path | None, **results: Any) -> None:  # noqa: ANN401  (JSON values)
    """Write the results and the machine they come from as JSON, if there is a file to write."""
    if out is None:
        return
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    text = json.dumps({"machine": machine} | results, indent=1)
    write_atomically(out, lambda file: file.write_text(text + "\n", encoding="utf-8"))


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements and their extremes."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of ``values``."""
        return cls(statistics.median(values), min(values), max(values))

    def show(self, form: str = ".3f") -> str:
        """Return ``median (least–most)``."""
        return f"{self.median:{form}} ({self.least:{form}}–{self.most:{form}})"


def seconds(program: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    program()
    return time.perf_counter() - start


def interleaved(
    programs: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of every program, turn by turn: A B C A B C ….

    A machine that slows down slows all of a turn, so only ratios within a turn mean anything.
    One turn that is not counted fills the caches.
    """
    turns = [{name: seconds(run) for name, run in programs.items()} for _ in range(repeats + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in programs}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Return the spread of the ratios, turn by turn."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])


def peer(module: str) -> Any:  # noqa: ANN401  (a module without types)
    """Return an optional module, or the reason why there is none, as text."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        return "not installed" if error.name == top else f"not importable: {error}"
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        return f"not importable: {reason[0] if reason else type(error).__name__}"
