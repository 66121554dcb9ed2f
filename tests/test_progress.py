"""A bar is shown to who asks for it, counts what is done, and changes no result."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    Denoised,
    EvaluationSettings,
    GaussianMixture,
    ScoreModel,
    TrainingConfig,
    evaluate,
    load,
    sample,
    train,
    uniform,
)
from sde_diffusion.solvers import DormandPrince, Heun

RING = GaussianMixture.ring(8).diffused(VPSDE())
DATA = Dataset(DataSpec("points", (2,), None), torch.linspace(-1, 1, 20).reshape(10, 2), None)


def last(error: str) -> tuple[int, int]:
    """What the bar says at its end: units done and in all."""
    found = re.findall(r"(\d+)/(\d+)", error)[-1]
    return int(found[0]), int(found[1])


@pytest.mark.parametrize(("grid", "steps"), [(uniform(7), 7), (Denoised(uniform(7)), 8)])
def test_a_bar_of_samples_counts_steps(grid, steps, capsys) -> None:
    seen: list[int] = []
    quiet = sample(RING, Heun(), (3, 2), grid=grid).x
    assert capsys.readouterr().err == ""
    found = sample(
        RING, Heun(), (3, 2), grid=grid, progress=True, callback=lambda k, *_: seen.append(k)
    ).x
    assert last(capsys.readouterr().err) == (steps, steps)
    assert seen == list(range(1, steps + 1))
    assert torch.equal(found, quiet)


def test_a_bar_of_an_evaluation_counts_samples(capsys) -> None:
    settings = EvaluationSettings(batch_size=4)
    quiet = evaluate(RING, DATA, DormandPrince(1e-2, 1e-2), settings)
    assert capsys.readouterr().err == ""
    found = evaluate(RING, DATA, DormandPrince(1e-2, 1e-2), settings, progress=True)
    assert last(capsys.readouterr().err) == (10, 10)
    assert torch.equal(found.nats("flow"), quiet.nats("flow"))


def test_a_bar_of_training_counts_steps_and_a_break_saves_as_ever(tmp_path: Path, capsys) -> None:
    def run(**options: object) -> list[float]:
        model = ScoreModel(MLP(2, width=8), VPSDE())
        config = TrainingConfig(steps=5, batch_size=4)
        losses = []
        for step in train(model, DATA, config, **options):  # type: ignore[arg-type]
            losses.append(step.loss)
            if step.step == 3 and "out" in options:
                break
        return losses

    quiet = run()
    assert capsys.readouterr().err == ""
    assert run(progress=True) == quiet
    assert last(capsys.readouterr().err) == (5, 5)
    assert run(progress=True, out=tmp_path / "run") == quiet[:3]
    model = load(tmp_path / "run")
    assert model.data == DATA.spec
    assert run(progress=True, out=tmp_path / "run", resume=True) == quiet[3:]
