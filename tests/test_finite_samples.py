"""Samples that diverge cost no others: those are what they would be alone, bit for bit."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from sde_diffusion import (
    ODE,
    VPSDE,
    DataSpec,
    DivergedError,
    GaussianMixture,
    Noise,
    OneStep,
    ScoreLike,
    sample,
    sample_finite,
    uniform,
)
from sde_diffusion.cli.main import main
from sde_diffusion.parallel.ranks import Ranks
from sde_diffusion.sampling.shared import draw
from sde_diffusion.solvers import Ancestral, DormandPrince, Heun

EXACT = GaussianMixture.ring(8).diffused(VPSDE())
FINE, COARSE = uniform(130), uniform(3)


class Holed(ScoreLike):
    """The exact score, which is lost where a state is far to the right, but not right away."""

    def __init__(self) -> None:
        self.sde = EXACT.sde
        self.data = DataSpec("ring", (2,), None)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        score = EXACT(x, t)
        lost = (x[:, :1] > 0.3) & (t.reshape(-1, 1) < 0.9)
        return torch.where(lost, torch.nan, score)


class Blind(OneStep[ODE]):
    """Euler's method, which does not say whose velocity was lost."""

    dynamics = ODE

    def step(self, dynamics: ODE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002
        x = x + (s - t) * dynamics.velocity(x, t)
        if not bool(x.isfinite().all()):
            message = "lost"
            raise FloatingPointError(message)
        return x


def alone(solver: Any, grid: Any, count: int) -> tuple[dict[int, Tensor], dict[int, str]]:
    """Every sample in a batch of its own: its end, or why there is none."""
    ends: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    for i in range(count):
        try:
            ends[i] = sample(Holed(), solver, (1, 2), grid=grid, seed=4, first=i).x[0]
        except FloatingPointError as error:
            errors[i] = str(error)
    return ends, errors


@pytest.mark.parametrize(
    ("solver", "grid"),
    [
        (Heun(), FINE),  # looks for divergence twice on the way
        (Heun(), COARSE),
        (Ancestral(), FINE),
        (DormandPrince(1e-4, 1e-4), COARSE),  # gives up where its steps become too small
        (Blind(), COARSE),
    ],
    ids=["heun", "heun of few steps", "ancestral", "dormand-prince", "blind"],
)
def test_the_others_are_kept_as_they_are_alone(solver: Any, grid: Any) -> None:
    count = 12
    ends, errors = alone(solver, grid, count)
    assert len(ends) > 0
    assert len(errors) > 1
    found = sample_finite(Holed(), solver, (count, 2), grid=grid, seed=4)
    assert found.number.tolist() == list(ends)
    assert list(found.failures) == list(errors)
    assert torch.equal(found.x, torch.stack([*ends.values()]))
    for i, why in found.failures.items():  # the cause that its own solve names
        told = errors.values() if "the first of" in why else [errors[i]]
        numbers = re.findall(r"[\d.e-]+\d", why.partition(" in the first")[0])
        assert any(all(number in error for number in numbers) for error in told), (i, why)


def test_what_stays_finite_is_what_the_whole_score_gives() -> None:
    found = sample_finite(Holed(), Heun(), (40, 2), grid=FINE, seed=1, first=7)
    exact = sample(EXACT, Heun(), (40, 2), grid=FINE, seed=1, first=7)
    assert 0 < len(found.failures) < 40
    assert torch.equal(found.x, exact.x[found.number - 7])
    whole = sample_finite(EXACT, Heun(), (40, 2), grid=FINE, seed=1, first=7)
    assert torch.equal(whole.x, exact.x)
    assert whole.nfe == exact.nfe
    assert whole.failures == {}


def test_an_error_carries_the_samples_and_says_how_to_keep_the_others() -> None:
    with pytest.raises(DivergedError, match=r"; sample_finite keeps the others$") as caught:
        sample(Holed(), Heun(), (12, 2), grid=COARSE, seed=4)
    _, errors = alone(Heun(), COARSE, 12)
    assert caught.value.ill.nonzero()[:, 0].tolist() == list(errors)
    assert caught.value.why.partition(" in the first")[0] in str(caught.value)


def test_none_that_is_finite_is_no_sample() -> None:
    class Lost(Holed):
        def __call__(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
            return torch.full_like(x, torch.nan)

    found = sample_finite(Lost(), Heun(), (3, 2), steps=4)
    assert found.x.shape == (0, 2)
    assert sorted(found.failures) == [0, 1, 2]


def test_several_processes_leave_out_what_one_leaves_out(tmp_path: Path) -> None:
    def share(rank: int) -> Any:
        with Ranks(tmp_path / "ranks", rank, 2) as ranks:
            ranks.agree(dict)
            return draw(
                lambda *_: Holed(),
                Heun(),
                22,
                4,
                ranks,
                event=(2,),
                grid=COARSE,
                seed=4,
                keep_finite=True,
            )

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(share, rank) for rank in range(2)]
        found, _ = (job.result(timeout=60) for job in jobs)
    whole = sample_finite(Holed(), Heun(), (22, 2), grid=COARSE, seed=4)
    assert torch.equal(found.x, whole.x)
    assert torch.equal(found.number, whole.number)
    assert found.failures.keys() == whole.failures.keys()


def test_the_command_line_keeps_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["sample", "--model", f"{Holed.__module__}:Holed", "--solver", "heun", "-n", "12"]
    words += ["--grid", "uniform", "--steps", "3", "--seed", "4", "--out", "out"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "; --keep-finite keeps the others" in refused.stderr.replace("use more steps, or", "")
    assert not Path("out/samples.npz").exists()
    kept = CliRunner().invoke(main, [*words, "--keep-finite", "--json"])
    assert kept.exit_code == 0, kept.output
    found = sample_finite(Holed(), Heun(), (12, 2), grid=COARSE, seed=4)
    result = json.loads(kept.stdout)
    assert result["failures"] == {str(i): why for i, why in found.failures.items()}
    assert result["number"] == len(found.x)
    with np.load("out/samples.npz") as file:
        assert np.array_equal(file["x"], found.x.numpy())
        assert np.array_equal(file["number"], found.number.numpy())
    shown = CliRunner().invoke(main, [*words, "--keep-finite"]).stdout.splitlines()
    names = ", ".join(map(str, found.failures))
    assert f"{len(found.failures)} samples diverged and left out: {names}" in shown
    assert sum(line.startswith(f"sample {next(iter(found.failures))}: NaN") for line in shown) == 1
