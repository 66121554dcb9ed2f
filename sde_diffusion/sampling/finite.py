"""Samples of a model where some diverge: the others, and why each of those is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion._progress import bar
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_dtype
from sde_diffusion._watch import DivergedError
from sde_diffusion.grids import Grid
from sde_diffusion.integration import Solution, integrate
from sde_diffusion.noise import NoiseOfRun, PerSampleNoise, noise_of_run
from sde_diffusion.sampling.generate import begun, checked_grid
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver


@final
@dataclass(frozen=True, eq=False)
class FiniteSamples:
    """The samples of a draw that did not diverge.

    Arguments:
        x: those samples, in their order; (n, *event), n ≤ B.
        number: their numbers, from that of the first sample; (n,), int64 on the CPU.
        failures: why each other sample is missing, by its number.
        nfe: evaluations of the score, the most that a sample took.
        seconds: of all solves.

    >>> found = FiniteSamples(torch.ones(1, 2), torch.tensor([1]), {0: "NaN at step 3"}, 5, 0.1)
    >>> len(found.x), found.failures[0]
    (1, 'NaN at step 3')
    """

    x: Tensor
    number: Tensor
    failures: Mapping[int, str]
    nfe: int
    seconds: float

    __repr__ = shown


def sample_finite(
    model: ScoreLike,
    solver: Solver[Any],
    shape: Sequence[int],
    *,
    steps: int | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    first: int = 0,
    noise: NoiseOfRun = PerSampleNoise.of_run,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> FiniteSamples:
    """Return what `sample` returns, but without the samples that diverge, where it raises.

    The others are those that `sample` would draw: each depends on ``seed`` and its number alone.
    A solve ends with the first samples that diverge; the rest of its batch is then solved again.

    Arguments:
        model: the score model or exact score, with a LinearSDE, in evaluation mode.
        solver: any solver.
        shape: (B, *event), of the samples.
        steps: along the `recommended` grid of the solver; 20 if there is no grid either.
        grid: the times instead, falling from noise to data; (steps + 1,).
        seed: of the prior and of the solver's noise.
        first: the number of the first sample.
        noise: what draws, as in `sample`.
        dtype: of the states.
        progress: show a bar of the samples that are solved or have diverged.

    Errors: those of `sample`, but for FloatingPointError.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.solvers import Heun
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample_finite(model, Heun(), (3, 2), steps=5).number
    tensor([0, 1, 2])
    """
    times = checked_grid("sample_finite", model, solver, shape, steps, grid)
    check_dtype("sample_finite", dtype)
    count, *event = shape
    positive_integer("sample_finite", "first", first, least=0)
    noise_of_run("sample_finite", noise, seed, range(first, first + count))
    batches = [torch.arange(count)]
    rows: list[Tensor] = []
    solved: list[Solution] = []
    failures: dict[int, str] = {}
    with bar(count, "sample", shown=progress) as done:
        while batches:
            index = batches.pop()
            drawn = noise(seed, [first + i for i in index.tolist()])
            size = (len(index), *event)
            try:
                with torch.no_grad():
                    x, dynamics = begun(model.rows(index), solver, drawn, size, times, dtype)
                    solution = integrate(dynamics, solver, x, times, noise=drawn)
            except FloatingPointError as error:
                ill, why = _blamed(error, len(index))
                failures |= {first + int(i): why for i in index[ill]}
                left = index[~ill]
                # Without one to blame it is in one of the halves.
                parts = 1 if bool(ill.any()) else 2
                batches += [part for part in left.chunk(parts) if len(part)]
            else:
                rows.append(index)
                solved.append(solution)
            done.update(sum(map(len, rows)) + len(failures) - done.n)
    nothing = torch.empty(0, *event, dtype=dtype, device=model.device)
    numbers, order = torch.cat([torch.arange(0), *rows]).sort()
    ends = torch.cat([nothing, *(solution.x for solution in solved)])
    return FiniteSamples(
        ends[order.to(ends.device)],
        first + numbers,
        dict(sorted(failures.items())),
        max((solution.nfe for solution in solved), default=0),
        sum(solution.seconds for solution in solved),
    )


def _blamed(error: FloatingPointError, count: int) -> tuple[Tensor, str]:
    """Return which samples of a batch made it diverge, none where that is unknown, and why."""
    alone = torch.ones(count, dtype=torch.bool) if count == 1 else torch.zeros(count).bool()
    if isinstance(error, DivergedError):
        ill = error.ill.cpu()
        return (ill if bool(ill.any()) else alone), error.why
    return alone, str(error)
