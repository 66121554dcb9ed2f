"""`sde-diffusion sample`: classes, guidance, and several processes that draw the same samples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sde_diffusion.checkpoints.checkpoint import load, save_model
from sde_diffusion.cli.main import main
from sde_diffusion.counter_noise import CounterNoise
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.matrix_sde import CriticallyDampedLangevin
from sde_diffusion.models.exact import Gaussian, GaussianMixture, MatrixExactScore
from sde_diffusion.models.guidance import guided
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.nets import MLP
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sampling.generate import sample
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers import AngularAdams, EulerMaruyama, Heun


def run(*arguments: object) -> dict[str, Any]:
    words = [str(a) for a in ("sample", *arguments, "--device", "cpu", "--json")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["sample", *(str(a) for a in arguments)])
    assert result.exit_code == 2, result.output
    return result.output


def arrays(folder: Path) -> dict[str, Any]:
    with np.load(folder / "samples.npz", allow_pickle=False) as file:
        return dict(file)


def langevin() -> MatrixExactScore:
    """A correlated Gaussian in the plane, with velocities."""
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    return Gaussian(torch.tensor([1.0, -0.5]), covariance).diffused(CriticallyDampedLangevin())


def test_positions_of_a_langevin_equation_are_the_samples(tmp_path: Path) -> None:
    """Of exact scores: their moments are the oracle's, up to the scatter of 400 draws."""
    name = f"{Path(__file__).stem}:langevin"
    sys.modules[Path(__file__).stem] = sys.modules[__name__]
    found = run("--model", name, "--solver", "heun", "--steps", 40, "-n", 400, "--out", tmp_path)
    saved = arrays(tmp_path)
    model = langevin()
    expected = sample(model, Heun(), (400, 4), steps=40)
    assert np.array_equal(saved["states"], expected.x.numpy())
    assert np.array_equal(saved["x"], model.sde.data_part(expected.x).numpy())
    assert found["nfe"] == 80
    error = np.cov(saved["x"].T) - [[0.5, 0.3], [0.3, 0.4]]
    assert np.abs(error).max() < 4 * np.sqrt(2 / 400) * 0.5 + 0.01
    assert np.abs(saved["x"].mean(0) - [1.0, -0.5]).max() < 4 * np.sqrt(0.5 / 400) + 0.01


def test_what_needs_alpha_and_sigma_refuses_a_langevin_equation_by_name(tmp_path: Path) -> None:
    name = f"{Path(__file__).stem}:langevin"
    sys.modules[Path(__file__).stem] = sys.modules[__name__]
    points = tmp_path / "points.npy"
    np.save(points, np.zeros((3, 2), np.float32))
    said = refused("--model", name, "--solver", "ddim", "--out", tmp_path / "out")
    assert "CriticallyDampedLangevin" in said
    words = ["likelihood", "--model", name, "--data", str(points), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "be a model of a LinearSDE here, got one of CriticallyDampedLangevin; " in done.output
    assert "hidden_parts_bound" in done.output


def test_samples_take_turns_in_classes_and_are_the_librarys(tmp_path: Path) -> None:
    found = run(
        "--class",
        "3,7-9",
        "--guidance",
        0.5,
        "-n",
        6,
        "--solver",
        "heun",
        "--steps",
        3,
        "--out",
        tmp_path,
    )
    labels = torch.tensor([3, 7, 8, 9, 3, 7])
    model = guided(load("digits"), labels, 0.5)
    expected = sample(model, Heun(), (6, 1, 8, 8), steps=3)
    saved = arrays(tmp_path)
    assert np.array_equal(saved["x"], expected.x.numpy())
    assert saved["labels"].tolist() == labels.tolist()
    assert saved["guidance"] == 0.5
    assert found["nfe"] == expected.nfe == 6
    assert (found["class"], found["guidance"], found["processes"]) == ("3,7-9", 0.5, 1)


def test_noise_is_chosen_by_name_and_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    options = ["--model", "ring", "--solver", "euler-maruyama", "--steps", 3, "-n", 5]
    found = run(*options, "--noise", "counters", "--batch-size", 2, "--out", tmp_path / "counters")
    again = [*options, "--noise", "counters", "--keep-finite", "--out", tmp_path / "finite"]
    assert (found["noise"], run(*again)["noise"]) == ("counters", "counters")
    run(*options, "--out", tmp_path / "plain")
    model = GaussianMixture.ring(8).diffused(VPSDE())
    for name, noise in {"counters": CounterNoise, "plain": PerSampleNoise.of_run}.items():
        expected = sample(model, EulerMaruyama(), (5, 2), steps=3, noise=noise).x
        assert np.allclose(arrays(tmp_path / name)["x"], expected.numpy(), atol=1e-5)
    counters, finite = (arrays(tmp_path / name)["x"] for name in ("counters", "finite"))
    assert np.array_equal(counters, finite)


def test_the_class_and_guidance_belong_to_the_number_of_a_sample(tmp_path: Path) -> None:
    options = ["--class", "0-4", "--guidance", 1, "-n", 7, "--steps", 3, "--out"]
    run(*options, tmp_path / "whole")
    run(*options, tmp_path / "parts", "--batch-size", 3)
    whole = arrays(tmp_path / "whole")
    parts = arrays(tmp_path / "parts")
    assert np.allclose(whole["x"], parts["x"], rtol=0, atol=1e-4)  # a network's rounding
    assert whole["labels"].tolist() == parts["labels"].tolist() == [0, 1, 2, 3, 4, 0, 1]
    plain = sample(load("digits").given(4), AngularAdams(), (7, 1, 8, 8), steps=3).x[4]
    assert not np.allclose(whole["x"][4], plain.numpy(), rtol=0, atol=0.05)


def test_no_guidance_and_no_class_leave_no_trace_in_the_arrays(tmp_path: Path) -> None:
    run("--class", 7, "-n", 2, "--steps", 2, "--out", tmp_path / "class")
    assert set(arrays(tmp_path / "class")) == {"x", "levels", "labels"}
    run("-n", 2, "--steps", 2, "--out", tmp_path / "plain")
    assert set(arrays(tmp_path / "plain")) == {"x", "levels"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--guidance", 2], "guidance must go with a class to guide to, got 2.0; add for example"),
        (["--class", "7-11"], "class must be of 0 … 9, such as 7 or 0-2 or 1,2, got 7-11"),
        (["--class", "9-7"], "class must be of 0 … 9"),
        (["--class", "seven"], "got seven"),
        (["--class", "-1"], "got -1"),
        (["--class", ""], "class must be of 0 … 9"),
        (["--class", 7, "--guidance", "nan"], "weight must be finite, got nan"),
        (["--class", 7, "--guidance", "much"], "'much' is not a valid float"),
        (["--class", 0, "--model", "ring"], "model without classes, got 0"),
        (
            ["--class", 1, "--guidance", 1, "--model", "always.safetensors"],
            "be left out for a model that was trained without label dropout, got 1.0; train with",
        ),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ScoreModel(MLP(2, width=8, classes=3), VPSDE(), data=DataSpec("points", (2,), None))
    save_model("always.safetensors", model, {"training": {"label_dropout": 0.0}})
    assert says in refused(*options, "--out", "out")
    assert not Path("out").exists()


# --- pictures ---

SHAPES = """
from sde_diffusion import DataSpec, ScoreLike, VPSDE

class Normal(ScoreLike):  # N(0, 1) in every dimension, which VP keeps
    sde = VPSDE()

    def __init__(self, *shape):
        self.data = DataSpec("normal", shape, None)

    def __call__(self, x, t):
        return -x

class Levels(Normal):
    def __init__(self, *shape):
        self.data = DataSpec("levels", shape, 256)

grey, planes, rgb, icons, latents = (
    Normal(1, 8, 8), Normal(2, 8, 8), Levels(3, 8, 8), Levels(4, 8, 8), Normal(4, 8, 8)
)
series, numbers, points, rows = Normal(2, 50), Normal(1), Normal(2), Normal(7)
film, hypercubes = Normal(3, 5, 4, 4), Normal(1, 2, 2, 4, 4)
"""


@pytest.mark.parametrize(
    "name",
    [
        *("grey", "planes", "rgb", "icons", "latents", "series", "numbers"),
        *("points", "rows", "film", "hypercubes"),
    ],
)
def test_samples_of_any_shape_are_written_and_drawn_where_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "shapes_of_samples.py").write_text(SHAPES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("samples").mkdir()
    Path("samples/samples.png").write_bytes(b"of another model")
    words = ["--model", f"shapes_of_samples:{name}", "-n", 40, "--steps", 3]
    found = run(*words)
    x = arrays(tmp_path / "samples")["x"]
    # The exact flow of N(0, 1) under VP stands still: these are the draws of the prior.
    assert len(x) == 40
    assert abs(x.mean()) < 5 / x.size**0.5
    assert abs(x.std() - 1) < 5 / (2 * x.size) ** 0.5
    png = Path("samples/samples.png")
    if name != "hypercubes":
        assert png.read_bytes().startswith(b"\x89PNG")
        assert found["no_picture"] is None
        moving = [str(png.with_suffix(".gif"))] if name == "film" else []
        assert found["files"] == [str(png), str(png.with_suffix(".npz")), *moving]
        return
    why = (
        f"no picture {png}: picture: x must hold images (B, C, H, W), clips (B, C, D, H, W), "
        "series (B, C, L) or vectors (B, D), got (40, 1, 2, 2, 4, 4); choose what to draw"
    )
    assert found["no_picture"] == why
    assert found["files"] == [str(png.with_suffix(".npz"))]
    assert not png.exists()  # nor that of another model
    lines = CliRunner().invoke(main, ["sample", *map(str, words)]).stdout.splitlines()
    assert lines[-1] == why


# --- several processes ---

# The ring, at leisure: a process can be killed on the way.
MODULE = """
import os, time
from sde_diffusion import DataSpec, GaussianMixture, ScoreLike, VPSDE

class Slow(ScoreLike):
    data = DataSpec("ring", (2,), None)

    def __init__(self):
        self.model = GaussianMixture.ring(8).diffused(VPSDE())
        self.sde = self.model.sde

    def __call__(self, x, t):
        time.sleep(float(os.environ.get("SLOW", "0")))
        return self.model(x, t)

model = Slow()
"""
OPTIONS = [
    "--model",
    "slow:model",
    "-n",
    "50",
    "--batch-size",
    "4",
    "--solver",
    "euler-maruyama",
    "--steps",
    "30",
    "--device",
    "cpu",
]


def torchrun(*arguments: object, **more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "sde_diffusion.cli",
        "sample",
        *map(str, arguments),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | {"OMP_NUM_THREADS": "1"} | more,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the slow model, as the current one."""
    (tmp_path / "slow.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is no signal there")
def test_two_processes_draw_the_samples_of_one_and_a_killed_one_ends_both(here: Path) -> None:
    run(*OPTIONS, "--out", "alone")
    with torchrun(*OPTIONS, "--out", "killed", SLOW="0.05") as job:
        try:
            file = here / "killed/.ranks/rank-1.json"

            def works() -> bool:
                return file.exists() and json.loads(file.read_text() or "{}").get("done", 0) > 0

            wait_for(lambda: works() or job.poll() is not None)
            pid = json.loads(file.read_text())["pid"]
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            printed, errors = job.communicate(timeout=60)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    assert time.monotonic() - killed < 60
    assert job.returncode != 0
    assert printed == ""
    [line] = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert line == (
        "Error: ranks: rank 1 must finish its share, got no sign of life from process "
        f"{pid}; nothing is written, start again"
    )
    assert not (here / "killed").exists()
    with torchrun(*OPTIONS, "--out", "killed", "--json") as job:
        printed, errors = job.communicate(timeout=90)
    assert job.returncode == 0, errors
    assert json.loads(printed)["processes"] == 2
    assert (here / "killed/samples.npz").read_bytes() == (here / "alone/samples.npz").read_bytes()
    assert sorted(p.name for p in (here / "killed").iterdir()) == ["samples.npz", "samples.png"]
