"""Samples of a model in batches, shared among several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion._files import write_arrays, writing
from sde_diffusion.grids import Grid
from sde_diffusion.parallel.ranks import Ranks, share_of
from sde_diffusion.sampling.generate import sample
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver


@final
@dataclass(frozen=True)
class Draws:
    """Samples on the CPU, and what they cost: of several processes the one that needed most.

    ``nfe`` are the evaluations of the score of one batch, the largest of all batches; ``seconds``
    the time of all solves of one process.

    Shapes: x (N, *event), float32.
    """

    x: Tensor
    nfe: int
    seconds: float


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

    parts = [torch.empty(0, *event)]
    nfe = 0
    seconds = 0.0
    for first in sorted(share_of(range(0, number, batch_size), ranks.rank, ranks.world)):
        count = min(batch_size, number - first)
        model = given(first, count)
        solution = sample(model, solver, (count, *event), grid=grid, seed=seed, first=first)
        parts.append(solution.x.float().cpu())
        nfe = max(nfe, solution.nfe)
        seconds = seconds + solution.seconds
        tick(count)
    own = Draws(torch.cat(parts), nfe, seconds)
    if ranks.rank:
        _leave(own, ranks)
        return None
    ranks.wait(tick)
    tick()  # what the others did after the last look
    return _joined([own, *(_left(ranks, rank) for rank in range(1, ranks.world))])


def _leave(draws: Draws, ranks: Ranks) -> None:
    """Write a share where process 0 finds it, in the folder that it removes at the end."""
    cost = {"nfe": draws.nfe, "seconds": draws.seconds}
    lost = f"the {len(draws.x)} samples of process {ranks.rank} are lost"
    with writing("draw", ranks.folder, lost, "start again"):
        write_arrays(_part(ranks, ranks.rank), {"x": draws.x.numpy()} | cost)


def _left(ranks: Ranks, rank: int) -> Draws:
    with np.load(_part(ranks, rank), allow_pickle=False) as file:
        return Draws(torch.from_numpy(file["x"]), int(file["nfe"]), float(file["seconds"]))


def _part(ranks: Ranks, rank: int) -> Path:
    return ranks.folder / f"samples-{rank}.npz"


def _joined(parts: Sequence[Draws]) -> Draws:
    x = torch.cat([part.x for part in parts])
    return Draws(x, max(part.nfe for part in parts), max(part.seconds for part in parts))
