"""Samples of a model in batches, shared among several processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion._files import write_arrays, writing
from sde_diffusion._shown import shown
from sde_diffusion.grids import Grid
from sde_diffusion.noise import NoiseOfRun, PerSampleNoise
from sde_diffusion.parallel.ranks import Ranks, share_of
from sde_diffusion.sampling.finite import sample_finite
from sde_diffusion.sampling.generate import sample
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver


@final
@dataclass(frozen=True)
class Draws:
    """Samples on the CPU, and what they cost: of several processes the one that needed most.

    Arguments:
        x: the samples, by number; (n, *event), float32.
        number: their numbers, 0 … N − 1 unless some diverged; (n,), int64.
        failures: why each of the others is missing, by its number.
        nfe: the evaluations of the score of one batch, the largest of all batches.
        seconds: the time of all solves of one process.
    """

    x: Tensor
    number: Tensor
    failures: Mapping[int, str]
    nfe: int
    seconds: float

    __repr__ = shown


def draw(
    given: Callable[[int, int], ScoreLike],
    solver: Solver[Any],
    number: int,
    batch_size: int,
    ranks: Ranks,
    *,
    event: Sequence[int],
    grid: Grid,
    seed: int = 0,
    noise: NoiseOfRun = PerSampleNoise.of_run,
    keep_finite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Draws | None:
    """Return, in process 0, the samples that all processes have drawn; None in the others.

    Sample i depends on ``seed`` and i alone, as in `sample`. Every process computes whole batches:
    so the rounding of a network, which may depend on who is in a batch, is that of one process.
    The others leave their samples in files in the folder of ``ranks``, and process 0 waits until
    they have left the context of ``ranks``, in which all must have agreed before (`Ranks.agree`).
    Draw once in each.

    Arguments:
        given: the model of samples first … first + count − 1, called as given(first, count).
        solver: any solver; its ``dynamics`` are those of `sample`.
        number: how many samples, over all processes.
        batch_size: samples of one solve; the last batch may be smaller.
        ranks: the processes, as a context that has been entered; one process is enough.
        event: the shape of one sample.
        grid: the times of every solve, falling.
        seed: of the prior and of the solver's noise.
        noise: what draws, as in `sample`.
        keep_finite: whether samples that diverge are left out, as by `sample_finite`.
        progress: called after each batch with the samples that all processes have done.

    Shapes: result (number, *event).
    Errors: those of `sample`; ChildProcessError, in process 0, where another one ended early.

    >>> from sde_diffusion import Gaussian, VPSDE, uniform
    >>> from sde_diffusion.solvers import Heun
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> with Ranks("nowhere", 0, 1) as ranks:
    ...     found = draw(lambda *_: model, Heun(), 5, 2, ranks, event=(2,), grid=uniform(4))
    >>> tuple(found.x.shape), found.nfe
    ((5, 2), 8)
    """
    positive_integer("draw", "number", number)
    positive_integer("draw", "batch_size", batch_size)
    done = 0

    def tick(count: int = 0) -> None:
        nonlocal done
        done += count
        ranks.tell(done=done)
        ranks.check()
        if progress is not None:
            progress(done + ranks.told("done"))

    parts = [_nothing(event)]
    for first in sorted(share_of(range(0, number, batch_size), ranks.rank, ranks.world)):
        count = min(batch_size, number - first)
        drawer = _finite if keep_finite else _every
        chosen = {"grid": grid, "seed": seed, "first": first, "noise": noise}
        parts.append(drawer(given(first, count), solver, (count, *event), chosen))
        tick(count)
    seconds = sum(part.seconds for part in parts)
    own = replace(_joined(parts), seconds=seconds)
    if ranks.rank:
        _leave(own, ranks)
        return None
    ranks.wait(tick)
    tick()  # what the others did after the last look
    return _joined([own, *(_left(ranks, rank) for rank in range(1, ranks.world))])


def _nothing(event: Sequence[int]) -> Draws:
    return Draws(torch.empty(0, *event), torch.arange(0), {}, 0, 0.0)


def _every(
    model: ScoreLike, solver: Solver[Any], shape: Sequence[int], chosen: Mapping[str, Any]
) -> Draws:
    found = sample(model, solver, shape, **chosen)
    number = chosen["first"] + torch.arange(shape[0])
    return Draws(found.x.float().cpu(), number, {}, found.nfe, found.seconds)


def _finite(
    model: ScoreLike, solver: Solver[Any], shape: Sequence[int], chosen: Mapping[str, Any]
) -> Draws:
    found = sample_finite(model, solver, shape, **chosen)
    x = found.x.float().cpu()
    return Draws(x, found.number, found.failures, found.nfe, found.seconds)


def _leave(draws: Draws, ranks: Ranks) -> None:
    """Write a share where process 0 finds it, in the folder that it removes at the end."""
    cost = {"nfe": draws.nfe, "seconds": draws.seconds}
    told = {"number": draws.number.numpy(), "failures": json.dumps(dict(draws.failures))}
    lost = f"the {len(draws.x)} samples of process {ranks.rank} are lost"
    with writing("draw", ranks.folder, lost, "start again"):
        write_arrays(_part(ranks, ranks.rank), {"x": draws.x.numpy()} | told | cost)


def _left(ranks: Ranks, rank: int) -> Draws:
    with np.load(_part(ranks, rank), allow_pickle=False) as file:
        failures = {int(i): why for i, why in json.loads(str(file["failures"])).items()}
        x, number = (torch.from_numpy(file[name]) for name in ("x", "number"))
        return Draws(x, number, failures, int(file["nfe"]), float(file["seconds"]))


def _part(ranks: Ranks, rank: int) -> Path:
    return ranks.folder / f"samples-{rank}.npz"


def _joined(parts: Sequence[Draws]) -> Draws:
    """Return the samples of all parts by number; the most evaluations and seconds of one."""
    number, order = torch.cat([part.number for part in parts]).sort()
    failures = {i: why for part in parts for i, why in part.failures.items()}
    return Draws(
        torch.cat([part.x for part in parts])[order],
        number,
        dict(sorted(failures.items())),
        max(part.nfe for part in parts),
        max(part.seconds for part in parts),
    )
