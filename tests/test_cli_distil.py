"""`sde-diffusion distil`: students by every method, resumed and killed as runs of `train`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    FewStepModel,
    FewSteps,
    GaussianMixture,
    ScoreModel,
    TrainingConfig,
    load,
    sample,
    save_model,
    train,
)
from sde_diffusion.cli.distil import _METHODS
from sde_diffusion.cli.main import main
from sde_diffusion.diagnostics import rms_distance
from sde_diffusion.solvers import AngularAdams, Heun
from sde_diffusion.training.distillation import METHODS, Distillation, student_of

TINY = ["--batch-size", "16", "--warmup", "0", "--device", "cpu", "--network", "width=8"]
SMALL = [*TINY, "--paths", "32", "--student-steps", "2", "--noise-levels", "8"]


def distil(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["distil", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["distil", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_methods_are_those_of_the_library() -> None:
    assert _METHODS == METHODS


@pytest.mark.parametrize("method", ["regression", "continuous"])
def test_a_resumed_run_takes_the_steps_of_one_at_once(method: str, tmp_path: Path) -> None:
    start = ["--teacher", "ring", "--method", method, *SMALL]
    said = distil(*start, "--steps", 6, "--out", tmp_path / "whole")
    assert "next: sde-diffusion sample" in said
    distil(*start, "--steps", 3, "--out", tmp_path / "parts")
    distil("--out", tmp_path / "parts", "--resume", "--steps", 6)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert isinstance(load(tmp_path / "whole"), FewStepModel)
    solver = "renoised" if method == "continuous" else "few-steps"
    drawn = ["sample", "--model", str(tmp_path / "whole"), "--solver", solver, "--steps", "2"]
    shown = CliRunner().invoke(main, [*drawn, "-n", "4", "--out", str(tmp_path / "drawn")])
    assert "2 network evaluations" in shown.output


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is no signal there")
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    start = ["--teacher", "ring", "--method", "progressive", *SMALL]
    program = [sys.executable, "-m", "sde_diffusion.cli", "distil", *start]
    program += [
        "--steps",
        "100000",
        "--checkpoint-every",
        "5",
        "--log-every",
        "5",
        "--out",
        str(tmp_path / "killed"),
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, **quiet) as process:  # type: ignore[call-overload]
        while process.poll() is None and not has_logged(tmp_path / "killed"):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    state = torch.load(tmp_path / "killed" / "state.pt", weights_only=True)
    done = state["step"] + 7
    distil(*start, "--steps", done, "--out", tmp_path / "other")
    distil("--out", tmp_path / "killed", "--resume", "--steps", done)
    assert same(weights(tmp_path / "other"), weights(tmp_path / "killed"))


def has_logged(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    return metrics.is_file() and bool(metrics.read_bytes())


def test_mistakes_are_refused_by_name(tmp_path: Path) -> None:
    assert "--teacher: teacher must be given, got none; pass for example --teacher digits" in (
        refused("--out", tmp_path / "a")
    )
    start = ["--teacher", "ring", *SMALL, "--steps", 2]
    said = refused(*start, "--trajectory", "data", "--out", tmp_path / "b")
    assert "trajectory must be 'teacher' for regression, got 'data'" in said
    said = refused("--teacher", "no-such", "--out", tmp_path / "c")
    assert "--model: name must" in said or "must be" in said
    distil(*start, "--out", tmp_path / "d")
    assert "pass --resume to go on with it" in refused(*start, "--out", tmp_path / "d")
    said = refused("--teacher", "ring:ve", "--resume", "--out", tmp_path / "d", "--steps", 4)
    assert "ve" in said.lower()
    assert not (tmp_path / "a").exists()


def test_a_run_goes_on_with_its_own_teacher_alone(tmp_path: Path) -> None:
    for seed in (0, 1):
        network = MLP(2, width=8)
        with torch.no_grad():
            network.head.bias += 0.1 * seed
        teacher = ScoreModel(network, VPSDE(), "v", data=DataSpec("ring", (2,), None))
        save_model(tmp_path / f"{seed}.safetensors", teacher)
    data = tmp_path / "x.npy"
    import numpy as np

    np.save(data, np.random.default_rng(0).normal(size=(64, 2)).astype("float32"))
    start = ["--method", "progressive", *SMALL, "--data", data, "--out", tmp_path / "run"]
    distil("--teacher", tmp_path / "0.safetensors", *start, "--steps", 2)
    again = ["--teacher", tmp_path / "1.safetensors", "--resume", "--out", tmp_path / "run"]
    assert "weights" in refused(*again, "--steps", 4)


def test_a_student_starts_as_its_teacher_where_that_tells_x0() -> None:
    spec = DataSpec("points", (2,), None)
    network = MLP(2, width=8)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    t, s = torch.tensor([0.9, 0.5], dtype=torch.float64)
    for prediction, starts in (("v", True), ("x0", True), ("flow", True), ("eps", False)):
        teacher = ScoreModel(network, VPSDE(), prediction).eval()
        student = student_of(teacher, spec).eval()
        assert torch.equal(student.jump(x, t, s), teacher.jump(x, t, s)) == starts
        assert student.prediction == (prediction if starts else "v")
    assert student_of(teacher, spec, width=16).network.config["width"] == 16


def test_a_method_has_its_own_settings() -> None:
    with pytest.raises(ValueError, match="method must be one of regression, progressive"):
        Distillation("magic")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Distillation("progressive", steps=0)


# Mean flow along a teacher's trajectory came back to its start in every run: docs/few_steps.md.
WAYS = [(method, "teacher") for method in METHODS if method != "mean-flow"]
WAYS += [("consistency", "data"), ("continuous", "data"), ("mean-flow", "data")]


@pytest.mark.parametrize(("method", "trajectory"), WAYS)
def test_every_method_brings_the_student_nearer_to_the_flow(method: str, trajectory: str) -> None:
    oracle = GaussianMixture.ring(8)
    teacher = oracle.diffused(VPSDE())
    spec = DataSpec("ring", (2,), None)
    rows = oracle.sample(512, torch.Generator().manual_seed(0)).float()
    ends = sample(teacher, AngularAdams(), (256, 2), steps=20).x
    student = student_of(teacher, spec, width=32).eval()
    plan = Distillation(method, trajectory, steps=1, levels=8, paths=256)
    objective = plan.objective(teacher, student, AngularAdams(), Heun())
    before = rms_distance(sample(student, FewSteps(), (256, 2), steps=1).x, ends)
    config = TrainingConfig(steps=60, batch_size=64, learning_rate=5e-3, warmup=0)
    for _ in train(student, Dataset(spec, rows, None), config, objective=objective):
        pass
    after = rms_distance(sample(student, FewSteps(), (256, 2), steps=1).x, ends)
    assert after < 0.8 * before
