"""Seconds before the package answers, beside `import torch` in the same run.

Run it as `python benchmarks/import_time.py --repeats 5 --json import_time.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

# An interpreter that does nothing is the floor that no program can go below.
PROGRAMS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import sde_diffusion": ["-c", "import sde_diffusion"],
    "sde-diffusion --help": ["-m", "sde_diffusion.cli", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Return the wall-clock seconds of one fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def measure(repeats: int) -> dict[str, float]:
    """Return the median seconds of each program.

    The programs take turns, so that a machine that slows down slows all of them; one turn that
    is not counted brings the files into memory.
    """
    turns = [
        {name: seconds(program) for name, program in PROGRAMS.items()} for _ in range(repeats + 1)
    ]
    return {name: statistics.median(turn[name] for turn in turns[1:]) for name in PROGRAMS}


def main() -> None:
    """Measure, then print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each program")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    taken = measure(options.repeats)
    reference = taken["import torch"]
    print(f"{'program':<24}{'seconds':>10}{'/ import torch':>16}")
    for name, value in taken.items():
        print(f"{name:<24}{value:>10.3f}{value / reference:>16.3f}")
    ratios = {name: value / reference for name, value in taken.items()}
    report = json.dumps({"seconds": taken, "ratio_to_import_torch": ratios})
    print(report)
    if options.json is not None:
        options.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
