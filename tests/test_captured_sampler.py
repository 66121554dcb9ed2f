"""A recorded solve returns what `sample` does, whatever the seed and the first number."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    CounterNoise,
    Denoised,
    DivergedError,
    GaussianMixture,
    ScoreModel,
    load,
    sample,
    uniform,
)
from sde_diffusion.sampling import CapturedSampler
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import (
    DDIM,
    SRA,
    AdaptiveSDE,
    Ancestral,
    AngularAdams,
    DormandPrince,
    EulerMaruyama,
    Langevin,
    Picard,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    TorchDiffEq,
)

RING = GaussianMixture.ring(8).diffused(VPSDE())
SOLVERS: list[Solver[Any]] = [
    AngularAdams(),
    DDIM(),
    EulerMaruyama(),
    Ancestral(),
    SRA(),  # which asks for an interval's area
    Restart(),
    PredictorCorrector(predictor=ReverseDiffusion(), corrector=Langevin()),
]


@pytest.mark.parametrize("noise", [None, CounterNoise], ids=["per sample", "counters"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_call_is_sample_with_its_seed(solver: Solver[Any], noise: Any) -> None:
    kind = {} if noise is None else {"noise": noise}
    sampler = CapturedSampler(RING, solver, (5, 2), steps=6, **kind)
    for seed, first in ((3, 0), (4, 0), (4, 7), (3, 0)):
        found = sampler(seed=seed, first=first)
        wanted = sample(RING, solver, (5, 2), steps=6, seed=seed, first=first, **kind)
        assert torch.equal(found.x, wanted.x)
        assert (found.nfe, found.steps) == (wanted.nfe, wanted.steps)


def test_networks_denoised_ends_and_other_dtypes() -> None:
    digits = load("digits")
    grid = Denoised(uniform(4, end=0.01))
    sampler = CapturedSampler(digits, EulerMaruyama(), (3, 1, 8, 8), grid=grid)
    doubles = partial(sample, digits.in_double(), Ancestral(), (2, 1, 8, 8), dtype=torch.float64)
    twice = CapturedSampler(
        digits.in_double(), Ancestral(), (2, 1, 8, 8), steps=3, dtype=torch.float64
    )
    for seed in (0, 1):
        wanted = sample(digits, EulerMaruyama(), (3, 1, 8, 8), grid=grid, seed=seed)
        found = sampler(seed=seed)
        assert torch.equal(found.x, wanted.x)
        assert (found.nfe, found.steps) == (wanted.nfe, wanted.steps) == (5, 5)
        assert torch.equal(twice(seed=seed).x, doubles(steps=3, seed=seed).x)


def test_what_was_returned_is_not_drawn_over() -> None:
    sampler = CapturedSampler(RING, EulerMaruyama(), (4, 2), steps=5)
    before = [sampler(seed=seed).x for seed in (0, 1)]
    kept = [x.clone() for x in before]
    sampler(seed=2)
    assert all(map(torch.equal, before, kept))


@pytest.mark.parametrize(
    "solver", [DormandPrince(), AdaptiveSDE(), TorchDiffEq("rk4"), Picard()], ids=repr
)
def test_solvers_that_look_at_states_are_refused_by_name(solver: Solver[Any]) -> None:
    name = type(solver).__name__
    says = f"solver must be one that looks at no state on the host, got {name}; call sample"
    with pytest.raises(TypeError, match=says):
        CapturedSampler(RING, solver, (4, 2))


def test_what_sample_refuses_is_refused() -> None:
    training = ScoreModel(MLP(2, width=8), VPSDE())
    with pytest.raises(ValueError, match="in evaluation mode, got training mode"):
        CapturedSampler(training, DDIM(), (4, 2))
    with pytest.raises(ValueError, match="not be given together"):
        CapturedSampler(RING, DDIM(), (4, 2), steps=3, grid=uniform(3))


def test_samples_that_diverge_are_counted() -> None:
    class Broken(MLP):
        def forward(self, x, t):
            return torch.where(x[:, :1] > 0, torch.nan, super().forward(x, t))

    model = ScoreModel(Broken(2, width=8), VPSDE()).eval()
    sampler = CapturedSampler(model, DDIM(), (6, 2), steps=3)
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"NaN or infinity in \d of 6 samples") as caught:
            sampler(seed=0)
        assert bool(caught.value.ill.any())
