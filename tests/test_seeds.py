"""One seed serves many streams, and no two draws share one."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    LossByLevel,
    ScoreModel,
    Uniform,
    Variational,
    lattice,
    vlb,
)
from sde_diffusion._seeds import PathPurpose, Purpose, mix
from sde_diffusion.likelihood.dequantization import Dequantizer

SEED = 7


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """What all generators made from here on begin with, as one number each."""
    seen = set[int]()

    class Recorded(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            seen.add(seed & 0xFFFFFFFF)  # what the generator of the CPU uses
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Recorded)
    return seen


def taken(begun: set[int]) -> set[int]:
    found = set(begun)
    begun.clear()
    assert found
    return found


def test_every_draw_of_one_seed_has_a_stream_of_its_own(begun: set[int]) -> None:
    model = ScoreModel(MLP(2, width=4), VPSDE()).eval()
    spec = DataSpec("levels", (2,), 4)
    k = torch.zeros(8, 2, dtype=torch.uint8)
    x = torch.zeros(8, 2)
    taken(begun)

    streams = list[set[int]]()
    vlb(x, model, lattice(10), draws=4, seed=SEED)
    streams.append(taken(begun))
    monitor = LossByLevel(Dataset(DataSpec("points", (2,), None), x, None), bins=2, seed=SEED)
    monitor(model, 1, None)
    streams.append(taken(begun))
    dequantizer: Dequantizer = Variational(spec, couplings=1, seed=SEED)
    streams.append(taken(begun))
    list(dequantizer.draws(k, 2))
    streams.append(taken(begun))
    assert len(set.union(*streams)) == sum(map(len, streams))

    list(Uniform(seed=SEED).draws(k, 2))  # dequantization is one purpose, whatever its kind
    assert taken(begun) == streams[-1]


def test_no_two_purposes_begin_alike() -> None:
    words = [(), *((count,) for count in range(50))]  # as of steps
    seeds = (0, 1, 2**40)
    begun = {mix(s, purpose, *more) for s in seeds for purpose in Purpose for more in words}
    assert len(begun) == len(seeds) * len(Purpose) * len(words)
    assert len({mix(SEED, purpose, 2**62) for purpose in PathPurpose}) == len(PathPurpose)
