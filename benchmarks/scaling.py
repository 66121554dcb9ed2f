"""Seconds of a training step by one process, in parts, and by several, at the same global batch.

Run it as `python benchmarks/scaling.py`: it starts itself under torchrun, with a thread for each
process. The steps are those of `train` on the U-Net of `mnist_config()`, optimizer and average
included. All turns are in one job: while one process steps alone the others wait.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _common import Spread, options, parsed, ratio, seconds, table, write
from torch import distributed as dist

from sde_diffusion import VPSDE, Dataset, DataSpec, ScoreModel, TrainingConfig, UNet
from sde_diffusion.nets.unet import mnist_config
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.training.trainer import Trainer

ONE = "one process"


def started(chosen: argparse.Namespace) -> int:
    """Start this script in several processes and return how they ended."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(chosen.processes),
            __file__,
            *sys.argv[1:],
            "--folder",
            folder,
        ]
        environment = {"OMP_NUM_THREADS": str(chosen.threads or 1)} | os.environ
        return subprocess.run(command, env=environment, check=False).returncode


def alone(folder: Path) -> Processes:
    """Return a process that does not know of the others."""
    before = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
    try:
        return Processes(folder)
    finally:
        os.environ.update(before)


def stepping(chosen: argparse.Namespace, processes: Processes, accumulate: int) -> Trainer:
    """Return a run of random images whose steps cost what a real one's do."""
    images = torch.randn(256, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    config = mnist_config() | ({"width": 16} if chosen.quick else {})
    settings = TrainingConfig(batch_size=chosen.batch, accumulate=accumulate)
    data = Dataset(DataSpec("noise", (1, 28, 28), None), images, None)
    return Trainer(ScoreModel(UNet(**config), VPSDE()), data, settings, processes=processes)


def measure(chosen: argparse.Namespace, processes: Processes) -> dict[str, list[float]]:
    """Return the seconds of every way to step, turn by turn."""
    world = processes.world
    single = {ONE: 1, f"{ONE}, {world} parts": world}
    runs = {name: stepping(chosen, alone(chosen.folder), parts) for name, parts in single.items()}
    together = stepping(chosen, processes, 1)
    name = f"{world} processes"
    taken: dict[str, list[float]] = {key: [] for key in (*runs, name)}
    for _ in range(chosen.repeats + 1):
        for key, run in runs.items():
            if processes.leads:
                taken[key].append(seconds(steps(run, chosen.steps)) / chosen.steps)
        dist.barrier()
        taken[name].append(seconds(steps(together, chosen.steps)) / chosen.steps)
    return {key: values[1:] for key, values in taken.items()}  # the first turn fills the caches


def steps(run: Trainer, count: int) -> Callable[[], object]:
    """Return so many steps of a run."""
    return lambda: [run.advance() for _ in range(count)]


def show(taken: dict[str, list[float]], batch: int) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    rows = [
        {
            "program": name,
            "seconds_per_step": asdict(Spread.of(values)),
            "images_per_second": batch / Spread.of(values).median,
            "speed_up": asdict(ratio(taken[ONE], values)),
        }
        for name, values in taken.items()
    ]
    table(
        f"Training steps of {batch} images, {torch.get_num_threads()} thread a process",
        ["program", "seconds per step", "images/s", "× one process"],
        [
            [
                name,
                Spread.of(values).show(),
                f"{batch / Spread.of(values).median:.1f}",
                ratio(taken[ONE], values).show(".2f"),
            ]
            for name, values in taken.items()
        ],
    )
    return rows


def main() -> None:
    """Start the processes, or as one of them measure; the first prints and writes."""
    parser = options(__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="images of all processes together")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parsed(parser)
    if chosen.folder is None:
        sys.exit(started(chosen))
    if chosen.quick:
        chosen.batch = 4
        chosen.steps = 1
        chosen.repeats = 2
    with Processes(chosen.folder) as processes:
        taken = measure(chosen, processes)
    if processes.leads:
        rows = show(taken, chosen.batch)
        print("\nmedian (least–most) over the turns; ratios are taken within a turn")
        write(chosen.out, batch=chosen.batch, processes=processes.world, rows=rows)


if __name__ == "__main__":
    main()
