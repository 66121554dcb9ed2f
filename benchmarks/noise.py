"""What a step's noise costs: independent draws, one Brownian path, and torchsde's paths.

Run it as `python benchmarks/noise.py`. A program draws the noise of every step of one solve from
noise to data, its construction included; one turn runs every program once. A path is compared
with the independent noise that makes the same promise: `WhiteNoise` for a batch drawn at once,
`PerSampleNoise` for samples that do not depend on their batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Final

import torch
from _common import Spread, interleaved, options, parsed, peer, ratio, table, write
from torch import Tensor

from sde_diffusion import BrownianPath, CounterNoise, Noise, PerSampleNoise, WhiteNoise, uniform

ACCEPTED: Final = 2.0  # × the independent noise of the same promise
OFF_GRID: Final = "BrownianPath, no grid"
TORCHSDE: Final = ("BrownianInterval", "BrownianTree")


def unit(make: Callable[[], Noise], x: Tensor, grid: Tensor) -> Callable[[], object]:
    """Return a solve's standard increments."""

    def run() -> None:
        noise = make()
        for t, s in pairwise(grid):
            noise.unit(x, t, s)

    return run


def area(make: Callable[[], Noise], x: Tensor, grid: Tensor) -> Callable[[], object]:
    """Return a solve's increments and time integrals."""

    def run() -> None:
        noise = make()
        for t, s in pairwise(grid):
            noise.area(x, t, s)

    return run


def theirs(name: str, x: Tensor, grid: Tensor) -> Callable[[], object]:
    """Return the increments of torchsde's path over the same steps."""
    torchsde = peer("torchsde")
    low, high = float(grid.min()), float(grid.max())

    def run() -> None:
        if name == "BrownianTree":
            path = torchsde.BrownianTree(t0=low, w0=torch.zeros_like(x), t1=high, entropy=0)
        else:
            path = torchsde.BrownianInterval(
                t0=low, t1=high, size=x.shape, dtype=x.dtype, entropy=0
            )
        for t, s in pairwise(grid.tolist()):
            path(s, t)

    return run


def measure(x: Tensor, steps: int, repeats: int) -> dict[str, tuple[str, list[float]]]:
    """Return each program's reference and its microseconds a step, turn by turn."""
    grid = uniform(steps)
    batch = len(x)
    white = "WhiteNoise"
    rows = "PerSampleNoise"
    programs = {
        white: (white, unit(lambda: WhiteNoise(0), x, grid)),
        "BrownianPath": (white, unit(lambda: BrownianPath(0, grid=grid), x, grid)),
        "BrownianPath, a quarter of its grid": (
            white,
            unit(lambda: BrownianPath(0, grid=uniform(4 * steps)), x, grid),
        ),
        OFF_GRID: (white, unit(lambda: BrownianPath(0), x, grid)),
        rows: (rows, unit(lambda: PerSampleNoise.numbered(0, 0, batch), x, grid)),
        "CounterNoise": (rows, unit(lambda: CounterNoise(0, range(batch)), x, grid)),
        "BrownianPath.numbered": (
            rows,
            unit(lambda: BrownianPath.numbered(0, 0, batch, grid=grid), x, grid),
        ),
        "WhiteNoise, area": ("WhiteNoise, area", area(lambda: WhiteNoise(0), x, grid)),
        "BrownianPath, area": (
            "WhiteNoise, area",
            area(lambda: BrownianPath(0, grid=grid), x, grid),
        ),
    }
    if not isinstance(peer("torchsde"), str):
        programs |= {f"torchsde {name}": (white, theirs(name, x, grid)) for name in TORCHSDE}
    taken = interleaved({name: run for name, (_, run) in programs.items()}, repeats)
    return {
        name: (programs[name][0], [s / steps * 1e6 for s in times])
        for name, times in taken.items()
    }


def part(x: Tensor, steps: int, repeats: int) -> dict[str, Any]:
    """Measure one shape and number of steps and print the table."""
    found = measure(x, steps, repeats)
    rows = [
        {
            "noise": name,
            "beside": beside,
            "microseconds": asdict(Spread.of(us)),
            "ratio": asdict(ratio(us, found[beside][1])),
        }
        for name, (beside, us) in found.items()
    ]
    shown = [
        [
            row["noise"],
            Spread(**row["microseconds"]).show(".0f"),
            row["beside"],
            Spread(**row["ratio"]).show(".2f"),
        ]
        for row in rows
    ]
    absent = peer("torchsde")
    if isinstance(absent, str):
        shown.append(["torchsde", absent, "", ""])
    table(
        f"States of {'×'.join(map(str, x.shape))}, float32, {steps} steps, {repeats} turns",
        ["noise", "µs a step", "beside", "× of that"],
        shown,
    )
    return {"shape": list(x.shape), "steps": steps, "rows": rows}


def parts(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every shape and number of steps."""
    cases = (
        [((2, 3), 4)]
        if chosen.quick
        else [((16, 3, 32, 32), 20), ((16, 3, 32, 32), 200), ((400, 2), 200)]
    )
    return [part(torch.zeros(shape), steps, chosen.repeats) for shape, steps in cases]


def main() -> None:
    """Measure, print the tables and write the JSON."""
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="turns that count")
    chosen = parsed(parser)
    if chosen.quick:
        chosen.repeats = 2
    found = parts(chosen)
    print(
        "\nmedian (least–most) over the turns; ratios are taken within a turn"
        f"\naccepted for a path along its grid: {ACCEPTED}"
    )
    write(chosen.out, accepted=ACCEPTED, parts=found)


if __name__ == "__main__":
    main()
