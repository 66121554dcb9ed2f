"""A bar is shown to who asks for it, counts what is done, and changes no result."""

from __future__ import annotations

import re
import time
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
    ProbabilityFlow,
    ScoreModel,
    TrainingConfig,
    elbo,
    evaluate,
    lattice,
    load,
    log_prob,
    sample,
    sample_finite,
    train,
    uniform,
    vlb,
)
from sde_diffusion._progress import way
from sde_diffusion.likelihood.flow_variables import Time
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


def test_a_bar_of_finite_samples_counts_them(capsys) -> None:
    quiet = sample_finite(RING, Heun(), (3, 2), steps=4).x
    assert capsys.readouterr().err == ""
    assert torch.equal(sample_finite(RING, Heun(), (3, 2), steps=4, progress=True).x, quiet)
    assert last(capsys.readouterr().err) == (3, 3)


def test_a_bar_of_an_evaluation_counts_samples(capsys) -> None:
    settings = EvaluationSettings(batch_size=4)
    quiet = evaluate(RING, DATA, DormandPrince(1e-2, 1e-2), settings)
    assert capsys.readouterr().err == ""
    found = evaluate(RING, DATA, DormandPrince(1e-2, 1e-2), settings, progress=True)
    assert last(capsys.readouterr().err) == (10, 10)
    assert torch.equal(found.nats("flow"), quiet.nats("flow"))


X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
FLOW = ProbabilityFlow(RING.sde, RING)
RISING = uniform(9, 1e-3, 1.0)


@pytest.mark.parametrize(
    ("measured", "units"),
    [
        (lambda **shown: log_prob(X, FLOW, DormandPrince(1e-3, 1e-3), **shown), 100),
        (lambda **shown: log_prob(X, FLOW, Heun(), grid=RISING, **shown), 100),
        (lambda **shown: log_prob(X, FLOW, Heun(), grid=RISING, variable=Time, **shown), 100),
        (lambda **shown: elbo(X, RING, draws=12, **shown), 12),
        (lambda **shown: vlb(X, RING, lattice(7), **shown), 14),
        (lambda **shown: vlb(X, RING, lattice(7), draws=6, **shown), 6),
    ],
    ids=["flow", "flow of steps", "flow in time", "elbo", "vlb", "vlb of draws"],
)
def test_a_bar_of_a_likelihood_counts_to_its_end(measured, units, capsys) -> None:
    quiet = measured()
    assert capsys.readouterr().err == ""
    found = measured(progress=True)
    error = capsys.readouterr().err
    assert last(error) == (units, units)
    seen = [int(n) for n in re.findall(r"(\d+)/\d+", error)]
    assert seen == sorted(seen)
    assert torch.equal(found.nats, quiet.nats)
    assert found.nfe == quiet.nfe


def test_the_way_is_that_of_the_slowest_sample(capsys) -> None:
    with way(0.5, 0.1, shown=True) as see:
        for t in ([0.5, 0.5], [0.4, 0.2], [0.1, 0.4], [0.19, 0.2]):
            see(torch.tensor(t, dtype=torch.float64))
            time.sleep(0.11)  # a bar is drawn ten times a second at most
    seen = [int(n) for n in re.findall(r"(\d+)/\d+", capsys.readouterr().err)]
    assert set(seen) <= {0, 25, 75, 100}
    assert seen == sorted(seen)


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
