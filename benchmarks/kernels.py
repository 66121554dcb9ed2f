"""Kernels, waits and copies of a step, by solver, counted on the tests' pretend CUDA device.

A kernel is an operator that launches at least one. Counted is what a step adds to a solve with a
network of one kernel, which is taken off: its evaluations, the solver's own arithmetic, the look
for states that are not finite. A wait is the host's, for the device; a copy is from or to it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from _common import options, parsed, table, write
from torch import Tensor, nn

from sde_diffusion import (
    VPSDE,
    CounterNoise,
    Noise,
    PerSampleNoise,
    ScoreModel,
    WhiteNoise,
    integrate,
    uniform,
)
from sde_diffusion.integration import dynamics_for
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import TorchDiffEq, TorchDiffEqAdjoint, catalogue

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from pretend_device import Log, pretend_cuda

_SHAPE = (16, 3, 32, 32)
_KINDS = ("kernel", "sync", "h2d", "d2h", "fp64")
_QUICK = ("DDIM()", "EulerMaruyama()", "DormandPrince(rtol=inf, atol=inf)")


class Half(nn.Module):
    """A network of one kernel."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        """Return x/2."""
        return 0.5 * x


def solved(solver: Solver[Any], steps: int, noise: Noise, log: Log) -> tuple[dict[str, int], int]:
    """Return what a solve did, by kind, and its evaluations."""
    model = ScoreModel(Half(), VPSDE()).eval()
    x = torch.full(_SHAPE, 0.3, device="cuda")
    dynamics = dynamics_for(solver, model.sde, model)
    since = len(log.events)
    with torch.no_grad():
        found = integrate(dynamics, solver, x, uniform(steps, 0.9, 0.1), noise=noise)
    counts = log.counts(since)
    return {kind: counts[kind] for kind in _KINDS}, found.nfe


def by_step(solver: Solver[Any], noise: Noise, steps: int) -> dict[str, float]:
    """Return the counts that a step adds, without the network's kernels."""
    with pretend_cuda() as log:
        solved(solver, steps, noise, log)  # generators are made
        few, few_nfe = solved(solver, steps, noise, log)
        many, many_nfe = solved(solver, 2 * steps, noise, log)
    found = {kind: (many[kind] - few[kind]) / steps for kind in _KINDS}
    nfe = (many_nfe - few_nfe) / steps
    return {"nfe": nfe, **found, "kernel": found["kernel"] - nfe}


def main() -> None:
    """Count, print the table and write the JSON."""
    chosen = parsed(options(__doc__))
    steps = 4 if chosen.quick else 8
    rows = {}
    for name, solver in catalogue.instances().items():
        if isinstance(solver, TorchDiffEq | TorchDiffEqAdjoint):
            continue  # another program's steps
        if chosen.quick and name not in _QUICK:
            continue
        noises = {
            "white": WhiteNoise(0),
            "own": PerSampleNoise(range(_SHAPE[0])),
            "counters": CounterNoise(0, range(_SHAPE[0])),
            "counters, 8 ahead": CounterNoise(0, range(_SHAPE[0]), ahead=8),
        }
        for kind, noise in noises.items():
            row = by_step(solver, noise, steps)
            if kind == "white" or row != rows[f"{name} white"]:
                rows[f"{name} {kind}"] = row
    header = ["solver and noise", "NFE", "kernels", "waits", "copies in", "copies out", "float64"]
    cells = [[name, *(f"{value:.3g}" for value in row.values())] for name, row in rows.items()]
    table(f"A step at {_SHAPE}, VP, eps", header, cells)
    write(chosen.out, rows=rows)


if __name__ == "__main__":
    main()
