"""A draw that several processes share is the draw of one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sde_diffusion.grids import uniform
from sde_diffusion.models.exact import ExactScore, GaussianMixture
from sde_diffusion.parallel.ranks import Ranks
from sde_diffusion.sampling.generate import sample
from sde_diffusion.sampling.shared import Draws, draw
from sde_diffusion.schedules import LinearBeta
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers import EulerMaruyama

GRID = uniform(6)
RING = GaussianMixture.ring(8)
FIRST = RING.diffused(VPSDE())
LATER = RING.diffused(VPSDE(LinearBeta(0.1, 10.0)))  # of the samples from number 12 on


def model_of(first: int, count: int) -> ExactScore:
    assert first + count <= 12 or first >= 12
    return FIRST if first < 12 else LATER


def expected() -> torch.Tensor:
    parts = [
        sample(FIRST, EulerMaruyama(), (12, 2), grid=GRID, seed=3).x,
        sample(LATER, EulerMaruyama(), (10, 2), grid=GRID, seed=3, first=12).x,
    ]
    return torch.cat(parts)


def share(folder: Path, rank: int, world: int) -> tuple[Draws | None, list[int]]:
    """What one process returns, and the progress that it was told."""
    told = list[int]()
    with Ranks(folder, rank, world) as ranks:
        ranks.agree(dict)
        found = draw(
            model_of,
            EulerMaruyama(),
            22,
            4,
            ranks,
            event=(2,),
            grid=GRID,
            seed=3,
            progress=told.append,
        )
    return found, told


def test_one_process_draws_in_batches_what_sample_draws_at_once(tmp_path: Path) -> None:
    found, told = share(tmp_path / "ranks", 0, 1)
    assert found is not None
    assert torch.equal(found.x, expected())
    assert found.nfe == 6
    assert told[-1] == 22
    assert told == sorted(told)


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_draw_the_samples_of_one_in_their_order(
    tmp_path: Path, world: int
) -> None:
    # Threads stand for processes: they meet in files alone.
    with ThreadPoolExecutor(world) as pool:
        jobs = [pool.submit(share, tmp_path / "ranks", rank, world) for rank in range(world)]
        (found, told), *others = [job.result(timeout=60) for job in jobs]
    assert found is not None
    assert torch.equal(found.x, expected())
    assert found.nfe == 6
    assert told[-1] == 22
    assert [left for left, _ in others] == [None] * (world - 1)
    assert not (tmp_path / "ranks").exists()


@pytest.mark.parametrize(("number", "batch_size"), [(0, 4), (4, 0)])
def test_counts_below_one_are_refused(tmp_path: Path, number: int, batch_size: int) -> None:
    with Ranks(tmp_path, 0, 1) as ranks, pytest.raises(ValueError, match=r"draw: .* must be"):
        draw(model_of, EulerMaruyama(), number, batch_size, ranks, event=(2,), grid=GRID)
