"""The command line does what the library does, and says so in files that other programs read."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import sde_diffusion
from sde_diffusion import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CosineBeta,
    DiscreteBeta,
    GaussianMixture,
    Hutchinson,
    LinearBeta,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    angular,
    cosine,
    describe,
    karras,
    linear_betas,
    load,
    load_data,
    log_prob,
    log_snr,
    quadratic,
    recommended,
    sample,
    save_model,
    sigmoid,
    uniform,
)
from sde_diffusion.cli import menu
from sde_diffusion.cli._common import _message, note
from sde_diffusion.cli.main import main
from sde_diffusion.cli.report import comparison_text
from sde_diffusion.likelihood.dequantization import Uniform
from sde_diffusion.nets.cost import flops
from sde_diffusion.solvers import (
    DDIM,
    AdamsBashforth,
    Ancestral,
    AngularAdams,
    DormandPrince,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta4,
    TorchDiffEq,
)

COMMANDS = ("train", "sample", "likelihood", "compare", "verify", "solvers", "info", "doctor")
TINY = ["--width", "8", "--batch-size", "16", "--warmup", "2", "--device", "cpu"]


def run(*arguments: object) -> Result:
    """Run the command line in this process; any failure fails the test, with its message."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def result_of(*arguments: object) -> dict[str, Any]:
    """The JSON on standard output, which must hold nothing else and no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    printed = run(*arguments, "--json").stdout
    found: dict[str, Any] = json.loads(printed, parse_constant=refuse)
    return found


def arrays(folder: Path) -> dict[str, Any]:
    with np.load(folder / "samples.npz", allow_pickle=False) as file:
        return dict(file)


def lines_of(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of four steps on the digits, with classes."""
    out = tmp_path_factory.mktemp("cli") / "run"
    run("train", "--data", "digits", "--steps", 4, "--conditional", "--out", out, *TINY)
    return out


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draws of the ring as a .npy file."""
    path = tmp_path_factory.mktemp("points") / "points.npy"
    x = GaussianMixture.ring(8).sample(7, torch.Generator().manual_seed(1))
    np.save(path, x.float().numpy())
    return path


# --- help ---


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([c, "-h"] for c in COMMANDS)])
def test_help_is_answered_without_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from sde_diffusion.cli.main import main
main({arguments}, standalone_mode=False)
print(sorted({{"torch", "numpy", "scipy", "matplotlib"}} & sys.modules.keys()))
"""
    assert python(code).splitlines()[-1] == "[]"


def test_the_help_of_the_group_imports_no_command() -> None:
    code = """
import sys
from sde_diffusion.cli.main import main
main(["--help"], standalone_mode=False)
print([name for name in sys.modules if name.startswith("sde_diffusion.cli.")])
"""
    loaded = python(code).splitlines()[-1]
    assert not any(f"cli.{command}" in loaded for command in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_two_examples_of_every_command_are_commands(name: str) -> None:
    shown = re.findall(r"^ +sde-diffusion (.*(?:\n {6,}.*)*)", run(name, "--help").stdout, re.M)
    assert len(shown) >= 2
    for example in shown:
        words = shlex.split(example)
        assert words[0] == name
        command = main.get_command(click.Context(main), name)
        assert command is not None
        command.make_context(name, words[1:])  # click's own parsing: unknown options fail


def test_the_help_of_every_command_begins_with_the_line_in_the_groups_help() -> None:
    overview = run("--help").stdout
    for name in COMMANDS:
        line = run(name, "--help").stdout.splitlines()[2].strip()
        assert re.search(rf"^  {name} +{re.escape(line)}$", overview, re.M)


def test_version_is_the_packages() -> None:
    assert run("--version").stdout.split()[-1] == sde_diffusion.__version__


@pytest.mark.parametrize("package", ["sde_diffusion", "sde_diffusion.cli"])
def test_python_m_and_the_installed_program_answer_alike(package: str) -> None:
    module = subprocess.run(
        [sys.executable, "-m", package, "--version"],
        check=True,
        capture_output=True,
        text=True,
    )
    script = Path(sys.executable).with_name("sde-diffusion")
    if not script.exists():
        pytest.skip("the program is not installed")
    assert subprocess.check_output([script, "--version"], text=True) == module.stdout


# --- the menu ---

SOLVERS: dict[str, Any] = {
    "euler-maruyama": EulerMaruyama(),
    "reverse-diffusion": ReverseDiffusion(),
    "ancestral": Ancestral(),
    "ddim": DDIM(),
    "ancestral:eta=0.0": Ancestral(eta=0.0),
    "predictor-corrector": PredictorCorrector(ReverseDiffusion(), Langevin()),
    "euler": Euler(),
    "heun": Heun(),
    "rk4": RungeKutta4(),
    "adams-bashforth": AdamsBashforth(),
    "dormand-prince": DormandPrince(),
    "torchdiffeq:METHOD": TorchDiffEq("midpoint"),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_are_those_of_the_named_solver(tmp_path: Path, name: str) -> None:
    found = result_of(
        "sample",
        "--model",
        "ring",
        "--solver",
        name.replace("METHOD", "midpoint"),
        "--steps",
        6,
        "-n",
        5,
        "--seed",
        3,
        "--out",
        tmp_path,
    )
    model = GaussianMixture.ring(8).diffused(VPSDE())
    expected = sample(model, SOLVERS[name], (5, 2), grid=quadratic(6), seed=3)
    assert np.array_equal(arrays(tmp_path)["x"], expected.x.numpy())
    assert found["nfe"] == expected.nfe


@pytest.mark.parametrize(
    ("name", "sde"),
    [
        ("vp", VPSDE()),
        ("vp-cosine", VPSDE(CosineBeta())),
        ("sub-vp", SubVPSDE()),
        ("ve", VESDE()),
        ("edm", EDMSDE()),
        ("rectified-flow", RectifiedFlow()),
    ],
)
def test_sdes_of_the_menu(name: str, sde: object) -> None:
    assert menu.sde(name) == sde


def test_the_ddpm_of_the_menu_has_a_thousand_linear_betas() -> None:
    t = torch.arange(1001, dtype=torch.float64) / 1000
    assert torch.equal(menu.sde("ddpm").alpha(t), VPSDE(DiscreteBeta(linear_betas(1000))).alpha(t))


def test_grids_of_the_menu_run_from_the_horizon_to_the_cutoff() -> None:
    sde = RectifiedFlow()
    expected = {
        "auto": recommended(sde, 5),
        "uniform": uniform(5, 0.999, 1e-3),
        "quadratic": quadratic(5, 0.999, 1e-3),
        "log-snr": log_snr(sde, 5),
        "karras": karras(sde, 5),
        "angular": angular(sde, 5),
        "cosine": cosine(sde, 5),
        "sigmoid": sigmoid(sde, 5),
    }
    assert tuple(expected) == menu.GRID_NAMES
    for name, grid in expected.items():
        assert torch.equal(menu.grid(name, sde, 5), grid)
    assert torch.equal(menu.grid("auto", sde, 5, solver=AngularAdams()), angular(sde, 5))


def test_objects_of_your_own_are_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_objects_a.py").write_text(
        "import torch\n"
        "from sde_diffusion import GaussianMixture, LinearBeta, VPSDE, uniform\n"
        "from sde_diffusion.solvers import Heun\n"
        "class Mine(Heun.__mro__[1]):\n"
        "    dynamics, order = Heun.dynamics, 2\n"
        "    step = Heun.step\n"
        "class Shop:\n"
        "    heun = Mine()\n"
        "def model():\n"
        "    return GaussianMixture.ring(8).diffused(VPSDE(LinearBeta(0.2, 15.0)))\n"
        "def grid(sde, steps):\n"
        "    return uniform(steps, sde.horizon, sde.cutoff)\n"
        "times = uniform(8)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    model = GaussianMixture.ring(8).diffused(VPSDE(LinearBeta(0.2, 15.0)))
    expected = sample(model, Heun(), (3, 2), grid=uniform(8))
    mine = "my_objects_a:"
    for solver, grid in [("Mine", "grid"), ("Shop.heun", "times")]:
        run(
            "sample",
            "--model",
            f"{mine}model",
            "--solver",
            f"{mine}{solver}",
            "--grid",
            f"{mine}{grid}",
            "--steps",
            8,
            "-n",
            3,
            "--out",
            tmp_path,
        )
        assert np.array_equal(arrays(tmp_path)["x"], expected.x.numpy())


# --- sample ---


@pytest.mark.parametrize("solver", ["ancestral", "predictor-corrector", "dormand-prince"])
def test_samples_do_not_depend_on_the_batch_size_and_follow_from_the_seed(
    tmp_path: Path, solver: str
) -> None:
    files = {}
    for name, batch, seed in [("a", 50, 5), ("b", 4, 5), ("c", 1, 5), ("d", 50, 6)]:
        run(
            "sample",
            "--model",
            "ring",
            "--solver",
            solver,
            "--steps",
            8,
            "-n",
            9,
            "--batch-size",
            batch,
            "--seed",
            seed,
            "--out",
            tmp_path / name,
        )
        files[name] = (tmp_path / name / "samples.npz").read_bytes()
    assert files["a"] == files["b"] == files["c"]
    assert not np.isin(arrays(tmp_path / "a")["x"], arrays(tmp_path / "d")["x"]).any()


def test_the_oracle_takes_the_sde_that_is_asked_for(tmp_path: Path) -> None:
    run("sample", "--model", "ring:ve", "--grid", "karras", "-n", 200, "--out", tmp_path)
    radius = np.linalg.norm(arrays(tmp_path)["x"], axis=1)
    assert abs(radius.mean() - 1.0) < 0.05  # the ring's own; the prior's would be 60
    expected = sample(
        GaussianMixture.ring(8).diffused(VESDE()),
        AngularAdams(),
        (200, 2),
        grid=karras(VESDE(), 20),
    )
    assert np.array_equal(arrays(tmp_path)["x"], expected.x.numpy())


def test_an_adaptive_solver_needs_one_step_of_the_grid(tmp_path: Path) -> None:
    options = ["sample", "--model", "ring", "--solver", "dormand-prince", "-n", 4, "--out"]
    loose = result_of(*options, tmp_path / "loose", "--tolerance", 1e-2)
    tight = result_of(*options, tmp_path / "tight", "--tolerance", 1e-5)
    exact = result_of(*options, tmp_path / "exact", "--tolerance", 5e-7)
    assert loose["steps"] == 1
    assert loose["nfe"] < tight["nfe"] < exact["nfe"]
    x = {name: arrays(tmp_path / name)["x"] for name in ("loose", "tight", "exact")}
    assert abs(x["tight"] - x["exact"]).max() < 1e-4 < abs(x["loose"] - x["exact"]).max()


def test_samples_of_a_checkpoint_are_the_librarys(trained: Path, tmp_path: Path) -> None:
    found = result_of(
        "sample",
        "--model",
        trained,
        "--steps",
        3,
        "-n",
        5,
        "--class",
        7,
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    model = load(trained)
    expected = sample(model.given(7), AngularAdams(), (5, 1, 8, 8), steps=3)
    assert model.data is not None
    saved = arrays(tmp_path)
    assert np.array_equal(saved["x"], expected.x.numpy())
    assert saved["levels"].dtype == np.uint8
    assert np.array_equal(saved["levels"], model.data.decode(expected.x).numpy())
    assert (saved["labels"] == 7).all()
    assert found["nfe"] == expected.nfe == 3
    assert sorted(Path(file).name for file in found["files"]) == ["samples.npz", "samples.png"]
    other = sample(model, AngularAdams(), (5, 1, 8, 8), steps=3)
    assert not torch.equal(other.x, expected.x)  # the class matters


@pytest.mark.gpu
def test_samples_on_the_gpu_do_not_depend_on_the_batch_size(trained: Path, tmp_path: Path) -> None:
    x = []
    for batch in (5, 2):
        found = result_of(
            "sample",
            "--model",
            trained,
            "--steps",
            5,
            "-n",
            5,
            "--batch-size",
            batch,
            "--device",
            "cuda",
            "--out",
            tmp_path,
        )
        assert found["device"].startswith("cuda")
        x.append(arrays(tmp_path)["x"])
    # The noise is the same bit for bit; the network's kernels round by the shape of the batch.
    assert np.abs(x[0] - x[1]).max() < 1e-2 * np.abs(x[0]).max()


def test_the_picture_is_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    run("sample", "--model", "ring", "-n", 4, "--out", tmp_path)
    with Image.open(tmp_path / "samples.png") as picture:
        picture.load()
        assert min(picture.size) > 50
        assert len(set(picture.convert("L").tobytes())) > 10  # not one flat colour


# --- likelihood ---


def test_likelihood_of_the_oracle_is_its_closed_form(points: Path, tmp_path: Path) -> None:
    found = result_of(
        "likelihood",
        "--model",
        "ring",
        "--data",
        points,
        "--divergence",
        "exact",
        "--tolerance",
        1e-6,
        "--out",
        tmp_path,
    )
    x = torch.from_numpy(np.load(points)).double()
    nats = GaussianMixture.ring(8).log_prob(x)
    rows = lines_of(tmp_path / "likelihood.csv")
    assert [row["index"] for row in rows] == list(range(7))
    assert [row["nats"] for row in rows] == pytest.approx(nats.tolist(), abs=2e-3)
    bits = [row["bits_per_dim"] for row in rows]
    assert bits == pytest.approx([-row["nats"] / (2 * math.log(2)) for row in rows])
    assert found["bits_per_dim"] == pytest.approx(statistics.fmean(bits))
    assert found["standard_error"] == pytest.approx(statistics.stdev(bits) / math.sqrt(7))
    assert found["probe_error"] == 0
    assert found["samples"] == 7


def test_likelihood_does_not_depend_on_the_batch_size(points: Path, tmp_path: Path) -> None:
    files = []
    for batch in (64, 3, 1):
        run(
            "likelihood",
            "--model",
            "ring",
            "--data",
            points,
            "--batch-size",
            batch,
            "--tolerance",
            1e-3,
            "--probes",
            3,
            "--mode",
            "reverse",
            "--out",
            tmp_path / str(batch),
        )
        files.append((tmp_path / str(batch) / "likelihood.csv").read_bytes())
    assert files[0] == files[1] == files[2]


def test_the_probes_part_of_the_error_is_that_of_the_rows(points: Path, tmp_path: Path) -> None:
    options = [
        "likelihood",
        "--model",
        "ring",
        "--data",
        points,
        "--solver",
        "heun",
        "--steps",
        30,
        "--out",
        tmp_path,
    ]
    found = result_of(*options, "--probes", 5)
    rows = lines_of(tmp_path / "likelihood.csv")
    assert list(rows[0])[1:] == ["nats", "nats_error", "bits_per_dim", "bits_per_dim_error"]
    for unit, scale in (("nats", 2 * math.log(2)), ("bits_per_dim", 1.0)):
        errors = [row[f"{unit}_error"] for row in rows]
        assert min(errors) > 0
        mean = math.sqrt(sum(error**2 for error in errors)) / 7
        assert found["probe_error"] == pytest.approx(mean / scale)
    assert result_of(*options, "--probes", 1)["probe_error"] is None  # unknown, not 0
    assert result_of(*options, "--limit", 1)["standard_error"] is None


def test_likelihood_of_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    options = [
        "likelihood",
        "--model",
        trained,
        "--solver",
        "heun",
        "--steps",
        5,
        "--probes",
        2,
        "--device",
        "cpu",
        "--out",
        tmp_path,
    ]
    found = result_of(*options, "--limit", 4, "--batch-size", 3)
    rows = lines_of(tmp_path / "likelihood.csv")
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    data = load_data("digits", "test", limit=4)
    model = load(trained)
    [(u, _)] = Uniform(seed=0).draws(data.values)
    for i, row in enumerate(rows):  # of the whole numbers: the density's, less D log(levels/2)
        density = log_prob(
            data.spec.encode(data.values, u).float()[i : i + 1],
            ProbabilityFlow(model.sde, model),
            Heun(),
            grid=recommended(model.sde, 5, end=1e-5).flip(0),
            divergence=Hutchinson(2, first=i),
        )
        nats = density.nats.item() - 64 * math.log(17 / 2)
        assert row["nats"] == pytest.approx(nats, rel=1e-4)
        assert row["bits_per_dim"] == pytest.approx(-row["nats"] / (64 * math.log(2)))
    assert found["nfe"] == 10
    run(*options, "--limit", 4, "--batch-size", 1)
    for row, again in zip(rows, lines_of(tmp_path / "likelihood.csv"), strict=True):
        assert row["nats"] == pytest.approx(again["nats"], rel=1e-4)  # same noise, same probes
    run(*options, "--limit", 2, "--seed", 1)
    other = lines_of(tmp_path / "likelihood.csv")[0]["nats"]
    assert abs(other - rows[0]["nats"]) > 1e-3


# --- info ---


def test_info_is_the_configuration_and_the_number_of_parameters(trained: Path) -> None:
    found = result_of("info", trained)
    assert found.pop("model") == str(trained)
    model = load(trained)
    assert found.pop("parameters") == sum(p.numel() for p in model.parameters())
    assert found.pop("flops") == flops(model.network, model.data.shape)
    assert found == describe(trained)


def test_info_tells_people_the_same(trained: Path) -> None:
    text = run("info", trained).stdout
    count = sum(p.numel() for p in load(trained).parameters())
    for part in (
        f"{count:,} parameters",
        "UNet",
        "VPSDE",
        "low=0.1",
        "eps",
        "digits",
        "batch_size=16",
        "step        4",
    ):
        assert part in text


def test_info_of_an_oracle_names_its_sde() -> None:
    assert "VESDE(sigma_min=0.01, sigma_max=50.0)" in run("info", "ring:ve").stdout
    assert result_of("info", "ring")["sde"]["beta"] == str(LinearBeta(0.1, 20.0))


def test_info_counts_the_parameters_of_a_network_under_an_sde_of_ones_own(tmp_path: Path) -> None:
    class Quarter(VPSDE):
        """Its class is not in the tables, while that of the network is."""

    model = ScoreModel(MLP(2, width=8), Quarter())
    save_model(tmp_path / "own.safetensors", model)
    count = sum(p.numel() for p in model.parameters())
    said = run("info", tmp_path / "own.safetensors").stdout
    assert f"network     MLP, {count:,} parameters" in said


def test_info_finds_a_network_that_is_read_as_another_prediction(tmp_path: Path) -> None:
    """The shipped model predicts v; the same weights, said to predict eps, are found out."""
    right = result_of("info", "digits", "--data", "digits", "--limit", 64)["convention"]
    assert (right["fits"], right["best"]) == (True, "as given")
    model = load("digits")
    wrong = ScoreModel(model.network, model.sde, "eps", data=model.data)
    save_model(tmp_path / "wrong.safetensors", wrong)
    options = ["info", tmp_path / "wrong.safetensors", "--data", "digits", "--limit", 64]
    found = result_of(*options)["convention"]
    assert (found["fits"], found["best"]) == (False, 'prediction "v"')
    assert found["errors"]['prediction "v"'] == pytest.approx(right["errors"]["as given"])
    said = run(*options).stdout
    told = 'The convention does not fit; this does better: prediction "v": prediction="v".'
    assert told in said


CONDITIONED = """
import torch
from torch import nn
from sde_diffusion import VPSDE, Conditioned, DataSpec, ScoreModel

class Net(nn.Module):  # eps of data from N(mean, 1/4)
    def forward(self, x, t, mean):
        a, s = VPSDE().alpha(t)[:, None], VPSDE().sigma(t)[:, None]
        return s * (x - a * mean) / (a**2 / 4 + s**2)

means = torch.tensor([[-2.0], [0.0], [2.0]]).repeat_interleave(100, 0)
data = DataSpec("points", (2,), None)
model = ScoreModel(Conditioned(Net(), {"mean": means}), VPSDE(), data=data)
"""


def test_info_takes_the_conditions_of_as_many_samples_as_it_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data of each mean fit while the conditions are their own, and 300 are there of 400."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_conditioned_model.py").write_text(CONDITIONED)
    means = np.repeat([-2.0, 0.0, 2.0, 4.0], 100)[:, None]
    np.save("x.npy", means + np.random.default_rng(0).normal(size=(400, 2)) / 2)
    options = ["info", "my_conditioned_model:model", "--data", "x.npy"]
    refused = CliRunner().invoke(main, options)
    assert refused.exit_code == 2
    said = " ".join(refused.output.split())
    assert "rows must be of the 300 samples whose conditions there are, got sample 399" in said
    assert "or pass --limit 300" in said
    for limit in (300, 250):
        found = result_of(*options, "--limit", limit)["convention"]
        assert found["fits"]
        assert found["errors"]["as given"][1] < 0.2  # the linear prediction knows no means
    assert result_of("info", "digits", "--data", "digits", "--limit", 64)["convention"]["fits"]


# --- train ---


def test_a_resumed_run_is_the_uninterrupted_one(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("train", "--steps", 2, "--conditional", "--out", out, *TINY)
    resumed = result_of("train", "--steps", 4, "--resume", "--out", out, "--device", "cpu")
    assert (out / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert (resumed["step"], resumed["steps"]) == (4, 4)
    again = run("train", "--conditional", "--resume", "--steps", 4, "--out", out, *TINY)
    assert "complete at step 4" in again.stdout


def test_the_options_of_training_reach_the_checkpoint(points: Path, tmp_path: Path) -> None:
    run(
        "train",
        "--data",
        points,
        "--steps",
        2,
        "--sde",
        "ve",
        "--prediction",
        "edm",
        "--weighting",
        "likelihood",
        "--width",
        16,
        "--batch-size",
        5,
        "--learning-rate",
        0.01,
        "--warmup",
        3,
        "--clip",
        0.5,
        "--ema-decay",
        0.9,
        "--dropout",
        0.25,
        "--seed",
        4,
        "--checkpoint-every",
        7,
        "--schedule",
        "cosine",
        "--limit",
        6,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    found = describe(tmp_path / "run")
    expected = {
        "steps": 2,
        "batch_size": 5,
        "learning_rate": 0.01,
        "warmup": 3,
        "clip": 0.5,
        "ema_decay": 0.9,
        "weighting": "likelihood",
        "seed": 4,
        "checkpoint_every": 7,
        "schedule": "cosine",
    }
    assert expected.items() <= found["training"].items()
    assert found["sde"]["class"] == "VESDE"
    assert found["prediction"] == "edm"
    assert found["network"]["class"] == "MLP"
    assert found["network"]["config"]["width"] == 16
    assert found["network"]["config"]["dropout"] == 0.25
    assert found["dataset"]["rows"] == 6


def test_the_seed_decides_the_initial_weights_too(points: Path, tmp_path: Path) -> None:
    files: list[dict[str, torch.Tensor]] = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        out = tmp_path / name
        torch.manual_seed(len(files))  # the global generator must not matter
        run(
            "train",
            "--data",
            points,
            "--steps",
            1,
            "--seed",
            seed,
            "--out",
            out,
            "--learning-rate",
            1e-30,
            *TINY,
        )
        files.append(load(out).state_dict())
    # The rate leaves weights where they began, but for those of 0, which become ±1e-30.
    same = [all(torch.allclose(files[0][k], other[k]) for k in other) for other in files[1:]]
    assert same == [True, False]


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is no signal there")
def test_ctrl_c_saves_the_step_and_says_how_to_go_on(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "sde_diffusion.cli",
        "train",
        "--data",
        str(points),
        "--steps",
        "1000000",
        "--out",
        str(out),
        *TINY,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        metrics = out / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while process.poll() is None and not (metrics.exists() and metrics.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    step = describe(out)["step"]
    assert errors == f"Interrupted after step {step}, which is saved; go on with --resume.\n"
    assert step > 1


# --- errors ---


def test_a_bug_of_ones_own_is_a_line_with_its_place_and_shows_its_traceback_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_objects_b.py").write_text("def bug():\n    return {}['no such key']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    bug = CliRunner().invoke(main, ["sample", "--model", "my_objects_b:bug"])
    place = tmp_path / "my_objects_b.py"
    line = f"Error: KeyError: 'no such key' (at {place}:2; all of it with --traceback)\n"
    assert (bug.exit_code, bug.output) == (2, line)
    mistake = ["info", "nowhere.safetensors"]
    assert CliRunner().invoke(main, mistake).exit_code == 2
    for shown in (
        CliRunner().invoke(main, ["--traceback", *mistake]),
        CliRunner().invoke(main, [*mistake, "--traceback"]),
        CliRunner(env={"SDE_DIFFUSION_TRACEBACK": "1"}).invoke(main, mistake),
    ):
        assert isinstance(shown.exception, FileNotFoundError)


def test_a_long_note_is_folded_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a-long-path/" * 12 + " and " + "words " * 20
    note(text)
    lines = capsys.readouterr().err.splitlines()
    assert " ".join(line.strip() for line in lines) == f"note: {text.strip()}"
    assert max(len(line) for line in lines if "path" not in line) <= 100


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(AttributeError) as caught:
        comparison_text(None)  # type: ignore[arg-type]
    assert caught.value.__traceback__ is not None
    # As the command line sees it: without the lines of this test.
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    assert _message(error, str) is None


@pytest.mark.parametrize(
    ("allocate", "asked"),
    [
        (lambda: torch.empty(2**55), ", 144,115,188.1 GB were asked for"),  # of four bytes each
        (lambda: torch.empty(2**60, 2**60), ""),
        (lambda: np.empty(2**57, np.uint8), ", 128. PiB were asked for"),
        (lambda: bytearray(2**60), ""),
    ],
    ids=["bytes", "numbers", "numpy", "python"],
)
def test_more_memory_than_there_is_is_one_line(allocate: Callable[[], object], asked: str) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    found = _message(caught.value, str)
    assert found is not None
    remedy = "pass a smaller --batch-size, width or number of steps"
    assert found.startswith(f"out of memory{asked}; {remedy}")
    assert "\n" not in found


def test_info_with_data_builds_the_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_counted_model.py").write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        "from sde_diffusion import VPSDE, DataSpec, ScoreModel\n"
        "class Net(nn.Module):\n"  # exact for data from N(0, 1)
        "    def forward(self, x, t):\n"
        "        return VPSDE().sigma(t)[:, None] * x\n"
        "def made():\n"
        "    with Path('calls').open('a') as file:\n"
        "        file.write('call ')\n"
        "    return ScoreModel(Net(), VPSDE(), 'v', data=DataSpec('points', (2,), None))\n"
    )
    np.save("x.npy", np.random.default_rng(0).normal(size=(500, 2)))
    found = CliRunner().invoke(main, ["info", "my_counted_model:made", "--data", "x.npy"])
    assert found.exit_code == 0, found.output
    told = 'The convention does not fit; this does better: prediction "eps": prediction="eps".'
    assert told in found.output
    assert (tmp_path / "calls").read_text() == "call "
