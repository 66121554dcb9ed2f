"""Evaluations during training: exact values, no trace in the training, and the early stop."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from scipy.integrate import quad
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    MLP,
    VPSDE,
    Affine,
    Dataset,
    DataSpec,
    Gaussian,
    RectifiedFlow,
    ScoreModel,
    TrainingConfig,
    load,
    load_data,
    train,
)
from sde_diffusion.evaluation.evaluator import Evaluator
from sde_diffusion.evaluation.results import Evaluation
from sde_diffusion.evaluation.settings import EvaluationSettings
from sde_diffusion.parallel.processes import Processes  # noqa: F401  (for the job)
from sde_diffusion.pictures.runs import _bound_curve, curves_picture
from sde_diffusion.solvers import Heun
from sde_diffusion.training.monitors import HeldOutBound, LossByLevel, SamplePicture, observe

CONFIG = TrainingConfig(
    steps=12,
    batch_size=16,
    learning_rate=0.01,
    warmup=0,
    ema_decay=0.5,
    checkpoint_every=4,
    log_every=3,
    evaluate_every=2,
    seed=5,
)


def points(rows: int = 40, seed: int = 0) -> Dataset:
    values = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
    return Dataset(DataSpec("points", (2,), None), values, None)


def fresh() -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1, dropout=0.1), VPSDE())


def lines(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def evaluations(out: Path) -> list[tuple[int, Any]]:
    return [(line["step"], line["evaluation"]) for line in lines(out) if "evaluation" in line]


def same(a: ScoreModel, b: ScoreModel) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


class Scripted:
    """A monitor whose bounds are known beforehand, by step."""

    def __init__(self, bounds: Mapping[int, float]) -> None:
        self.bounds = bounds
        self.seen = list[int]()

    def __call__(self, model: ScoreModel, step: int, folder: Path | None) -> dict[str, float]:  # noqa: ARG002
        self.seen.append(step)
        return {"bits_per_dim": self.bounds[step]}


class Clumsy:
    """A monitor that draws from the global generator."""

    def __call__(self, model: ScoreModel, step: int, folder: Path | None) -> dict[str, Any]:  # noqa: ARG002
        assert not model.training
        return {"drawn": torch.rand(3).tolist()}


@pytest.mark.parametrize(
    "sde", [VPSDE(), EDMSDE(), RectifiedFlow()], ids=lambda s: type(s).__name__
)
def test_losses_by_level_of_a_gaussian_are_exact(sde):
    """E‖eps − E[eps|x_t]‖²/D = v/(v + e^{−2λ}) for data N(0, v)."""
    v = 0.3
    bins = 4
    oracle = Gaussian(torch.zeros(4).double(), v * torch.eye(4).double())
    rows = oracle.sample(1500, torch.Generator().manual_seed(1)).float()
    monitor = LossByLevel(Dataset(DataSpec("x", (4,), None), rows, None), bins=bins, rows=1500)
    found = monitor(oracle.diffused(sde), 1, None)["loss_by_level"]
    ends = torch.tensor([sde.horizon, 1e-5], dtype=torch.float64)
    far, near = sde.lambda_(ends).clamp(-10, 10).tolist()
    width = (near - far) / bins
    for i, (middle, loss) in enumerate(zip(found["lambda"], found["loss"], strict=True)):
        low = far + i * width
        assert middle == pytest.approx(low + width / 2)
        mean = quad(lambda x: v / (v + math.exp(-2 * x)), low, low + width)[0] / width
        assert loss == pytest.approx(mean, abs=5 * 2 / math.sqrt(6000))
    assert found["loss"][0] < 0.2 < 0.8 < found["loss"][-1]


def test_the_held_out_bound_is_that_of_the_evaluation_of_a_data_set():
    model = load("digits")
    data = load_data("digits", "test", 7)
    found = HeldOutBound(data, draws=4, batch_size=3, seed=2)(model, 1, None)
    settings = EvaluationSettings(("elbo",), dequantization="none", times=4, batch_size=7, seed=2)
    evaluator = Evaluator(model, data, Heun(), settings)
    expected = Evaluation.of([evaluator.batch(range(7))], evaluator).summary("elbo")
    assert found["bits_per_dim"] == pytest.approx(expected.bits_per_dim, rel=1e-5)
    assert found["standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)
    fewer = HeldOutBound(data, draws=4, rows=5, batch_size=5, seed=2)(model, 1, None)
    assert fewer["bits_per_dim"] != pytest.approx(found["bits_per_dim"], rel=1e-4)


def test_the_held_out_bound_of_real_data_is_their_cross_entropy():
    rows = points(400)
    model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    draws = [HeldOutBound(rows, draws=n, t_min=1e-4)(model, 1, None) for n in (64, 256)]
    bits = (rows.values.double().square().sum(1) / 2 + math.log(2 * math.pi)) / (2 * math.log(2))
    scaled = DataSpec("half", (2,), None, Affine(0, 2))  # x is twice the number in the data
    half = HeldOutBound(Dataset(scaled, rows.values / 2, None), draws=64, t_min=1e-4)
    in_own_units = half(model, 1, None)["bits_per_dim"]
    assert in_own_units == pytest.approx(draws[0]["bits_per_dim"] - 1, abs=1e-9)
    few, many = (d["standard_error"] ** 2 - float(bits.var()) / 400 for d in draws)
    assert few == pytest.approx(4 * many, rel=0.4)  # what is left is that of the draws
    for found in draws:
        assert found["bits_per_dim"] == pytest.approx(float(bits.mean()), abs=4 * math.sqrt(few))


def test_evaluations_leave_no_trace_in_the_training_and_begin_alike(tmp_path: Path):
    held_out = points(10, seed=3)
    watched = fresh()
    alone = fresh()
    monitors = [LossByLevel(held_out, bins=2), HeldOutBound(held_out, draws=4), Clumsy()]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for _ in train(watched, points(), CONFIG, out=tmp_path / "watched", monitors=monitors):
        pass
    assert torch.equal(torch.get_rng_state(), before)
    for _ in train(alone, points(), CONFIG, out=tmp_path / "alone"):
        pass
    assert same(watched, alone)
    assert [line for line in lines(tmp_path / "watched") if "loss" in line] == lines(
        tmp_path / "alone"
    )
    found = evaluations(tmp_path / "watched")
    assert [step for step, _ in found] == [2, 4, 6, 8, 10, 12]
    assert len({tuple(e["drawn"]) for _, e in found}) == 1  # comparable: drawn alike
    torch.manual_seed(2)
    again = observe([Clumsy()], watched, 2, None, CONFIG.seed)
    assert again["drawn"] == found[0][1]["drawn"]
    assert len({e["bits_per_dim"] for _, e in found}) == 6


@pytest.mark.parametrize("stop", [1, 4, 5, 11])
def test_the_values_after_a_resumption_are_those_without_it(tmp_path: Path, stop: int):
    monitors = [HeldOutBound(points(10, seed=3), draws=4)]
    for _ in train(fresh(), points(), CONFIG, out=tmp_path / "whole", monitors=monitors):
        pass
    run = train(fresh(), points(), CONFIG, out=tmp_path / "cut", monitors=monitors)
    for _ in range(stop):
        next(run)
    del run  # closed, which saves this step
    for _ in train(
        fresh(), points(), CONFIG, out=tmp_path / "cut", resume=True, monitors=monitors
    ):
        pass
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for name in ("model", "best"):
        a, b = (load(tmp_path / run / f"{name}.safetensors") for run in ("cut", "whole"))
        assert same(a, b)


BOUNDS = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 10: 2.1, 12: 1.0}


def test_a_run_without_a_better_bound_ends_and_keeps_the_best(tmp_path: Path):
    out = tmp_path / "run"
    model = fresh()
    config = replace(CONFIG, patience=3)
    monitor = Scripted(BOUNDS)
    steps = [p.step for p in train(model, points(), config, out=out, monitors=[monitor])]
    assert steps == list(range(1, 11))
    assert lines(out)[-2]["best"] == {"bits_per_dim": 2.0, "step": 4, "since": 3}
    assert [line["step"] for line in lines(out) if "loss" in line] == [3, 6, 9, 10]
    assert same(model, load(out))  # as at any last step: averaged and saved
    for name, step in (("model", 10), ("best", 4)):
        ended = fresh()
        for _ in train(ended, points(), replace(CONFIG, steps=step)):
            pass
        assert same(load(out / f"{name}.safetensors"), ended)
    again = train(fresh(), points(), config, out=out, monitors=[monitor], resume=True)
    assert list(again) == []
    longer = train(
        fresh(), points(), replace(config, patience=4), out=out, monitors=[monitor], resume=True
    )
    assert [p.step for p in longer] == [11, 12]
    assert monitor.seen == [2, 4, 6, 8, 10, 12]
    assert lines(out)[-2]["best"] == {"bits_per_dim": 1.0, "step": 12, "since": 0}


@pytest.mark.parametrize("stop", [4, 5, 7, 9])
def test_a_resumed_run_has_as_little_patience_left(tmp_path: Path, stop: int):
    out = tmp_path / "run"
    config = replace(CONFIG, patience=3)
    run = train(fresh(), points(), config, out=out, monitors=[Scripted(BOUNDS)])
    for _ in range(stop):
        next(run)
    del run
    rest = train(fresh(), points(), config, out=out, monitors=[Scripted(BOUNDS)], resume=True)
    assert [p.step for p in rest] == list(range(stop + 1, 11))


JOB = """
import sys
sys.path.insert(0, {tests!r})
from test_monitors import BOUNDS, CONFIG, Processes, Scripted, fresh, points, replace, train
with Processes({out!r}) as processes:
    monitor = Scripted(BOUNDS)
    for last in train(fresh(), points(), replace(CONFIG, patience=3), out={out!r},
                      monitors=[monitor], processes=processes):
        pass
    with open({out!r} + f"-{{processes.rank}}", "w") as file:
        print(processes.rank, last.step, monitor.seen, file=file)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torchrun's signals are POSIX's")
def test_all_processes_end_where_the_first_one_says_which_alone_evaluates(tmp_path: Path):
    out = tmp_path / "run"
    program = tmp_path / "job.py"
    program.write_text(JOB.format(tests=str(Path(__file__).parent), out=str(out)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(program),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=environment)
    found = [(tmp_path / f"run-{rank}").read_text() for rank in (0, 1)]
    assert found == ["0 10 [2, 4, 6, 8, 10]\n", "1 10 []\n"]
    assert lines(out)[-2]["best"]["since"] == 3


def test_pictures_of_samples_are_drawn_of_the_averaged_model(tmp_path: Path):
    seen = list[ScoreModel]()

    def draw(model: ScoreModel) -> Tensor:
        seen.append(model)
        return torch.zeros(4, 2)

    config = replace(CONFIG, evaluate_every=5)
    model = fresh()
    run = train(model, points(), config, out=tmp_path, monitors=[SamplePicture(draw)])
    assert len(list(run)) == 12
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "00000005.png",
        "00000010.png",
        "00000012.png",
    ]
    assert [e["picture"] for _, e in evaluations(tmp_path)][-1] == "samples/00000012.png"
    assert all(same(found, load(tmp_path)) for found in seen)
    for _ in train(fresh(), points(), config, monitors=[SamplePicture(draw)]):
        pass
    assert len(seen) == 3  # without a folder nothing is drawn


@pytest.mark.parametrize(
    ("config", "monitors", "message"),
    [
        ({"evaluate_every": 0}, [Clumsy()], "evaluate_every must be above 0 with monitors"),
        ({"patience": 2}, [], "monitors must be given for patience to wait on"),
        ({"patience": 2}, [Clumsy()], r"monitors must give bits_per_dim .* got \['drawn'\]"),
    ],
)
def test_monitors_and_settings_that_do_not_go_together_are_refused(config, monitors, message):
    with pytest.raises(ValueError, match=message):
        list(train(fresh(), points(), replace(CONFIG, **config), monitors=monitors))


def test_monitors_refuse_too_little_data():
    with pytest.raises(ValueError, match="HeldOutBound: dataset must have at least 2 rows, got 1"):
        HeldOutBound(points(1))
    with pytest.raises(ValueError, match="LossByLevel: dataset must have at least 1 rows, got 0"):
        LossByLevel(points(0))
    with pytest.raises(ValueError, match="draws must be even"):
        HeldOutBound(points(4), draws=3)


def test_the_curves_of_a_run_are_its_metrics(tmp_path: Path):
    axes = Figure().subplots()
    bounds = [
        (10, {"bits_per_dim": 3.0, "standard_error": 0.1}),
        (20, {"bits_per_dim": 2.5, "standard_error": 0.2}),
        (30, {"bits_per_dim": 2.75, "standard_error": 0.3}),
    ]
    _bound_curve(axes, bounds)
    curve, *_, best = axes.lines
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([10, 20, 30], [3.0, 2.5, 2.75])
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([20], [2.5])
    (bars,) = axes.collections
    heights = [float(path.vertices[1, 1] - path.vertices[0, 1]) for path in bars.get_paths()]
    assert heights == pytest.approx([0.2, 0.4, 0.6])
    # A step that overflowed has no gradient norm, and a run may have no evaluations.
    steps = [
        {"step": s, "loss": 1 / s, "grad_norm": None if s == 2 else 1.0, "learning_rate": 0.1}
        for s in (1, 2, 3)
    ]
    sizes = []
    for extra in ([], [{"step": 3, "evaluation": e} for _, e in bounds]):
        curves_picture([*steps, *extra], tmp_path / "curves.png")
        sizes.append(int.from_bytes((tmp_path / "curves.png").read_bytes()[20:24], "big"))
    assert sizes[1] == 2 * sizes[0]  # a second row, for the bound
