"""`sde-diffusion train`: every setting as a flag and in a file, evaluations, the early stop."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, strategies as st
from PIL import Image
from safetensors.torch import load_file

from sde_diffusion import (
    MLP,
    VPSDE,
    ScoreModel,
    TrainingConfig,
    describe,
    load,
    load_data,
    train,
)
from sde_diffusion.cli import _train_file
from sde_diffusion.cli._train_options import PREDICTIONS
from sde_diffusion.cli.main import main
from sde_diffusion.cli.train import command
from sde_diffusion.models.score import PREDICTIONS as KNOWN
from sde_diffusion.objectives.coupling import COUPLINGS
from sde_diffusion.objectives.spacings import SPACINGS
from sde_diffusion.objectives.weighting import WEIGHTINGS
from sde_diffusion.time_distributions import TIMES
from sde_diffusion.training.config import CHOICES
from sde_diffusion.training.monitors import HeldOutBound

TINY = ["--width", "8", "--batch-size", "8", "--warmup", "0", "--device", "cpu"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def run(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one = weights(a)
    other = weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def evaluations(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["evaluation"] for line in found if "evaluation" in line]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of numbers as a file, which has no test part."""
    path = tmp_path_factory.mktemp("points") / "points.npy"
    np.save(path, np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32))
    return path


def test_every_setting_is_a_flag_with_its_default_and_its_help() -> None:
    parsed = command.make_context("train", []).params
    for field in fields(TrainingConfig):
        # Only the command undoes a scaling by itself.
        default = "auto" if field.name == "scale" else field.default
        assert parsed[field.name] == default, field.name
    shown = invoke("--help").stdout
    for param in command.params:
        assert isinstance(param, click.Option)
        assert param.help
        assert len(re.findall(rf"^  (-\w, )?{param.opts[0]}\b(?!-)", shown, re.MULTILINE)) == 1
    headings = ("Basic options:", "--sde", "Advanced: data:", "Advanced: averages of the weights:")
    places = [shown.index(heading) for heading in headings]
    assert places == sorted(places)


def test_the_names_to_choose_from_are_those_of_the_library() -> None:
    assert PREDICTIONS == KNOWN
    for name, table in [
        ("weighting", WEIGHTINGS),
        ("times", TIMES),
        ("spacing", SPACINGS),
        ("coupling", COUPLINGS),
    ]:
        assert CHOICES[name] == tuple(table), name


def test_the_settings_of_a_run_repeat_it(points: Path, tmp_path: Path) -> None:
    flags = [
        "--data",
        points,
        "--steps",
        3,
        "--sde",
        "edm",
        "--prediction",
        "edm",
        "--width",
        8,
        "--network",
        "depth=1",
        "--network",
        "embedding=sinusoidal",
        "--batch-size",
        6,
        "--learning-rate",
        0.02,
        "--weight-decay",
        0.1,
        "--schedule",
        "cosine",
        "--clip",
        2,
        "--ema-decay",
        0.5,
        "--weighting",
        "edm",
        "--times",
        "uniform",
        "--t-min",
        0.01,
        "--spacing",
        "antithetic",
        "--uncertainty",
        "learned",
        "--accumulate",
        2,
        "--ema-half-lives",
        "2,3.5",
        "--ema-widths",
        "0.1",
        "--snapshot-every",
        2,
        "--seed",
        3,
        "--evaluate-every",
        2,
        "--held-out",
        10,
        "--log-every",
        1,
        "--device",
        "cpu",
    ]
    run(*flags, "--out", tmp_path / "one")
    run("--config", tmp_path / "one" / "config.toml", "--out", tmp_path / "two")
    assert same(tmp_path / "one", tmp_path / "two")
    for name in ("config.toml", "ema-3.5.safetensors", "snapshots/00000002-0.1.safetensors"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two
    assert evaluations(tmp_path / "one") == evaluations(tmp_path / "two")
    made = describe(tmp_path / "one")
    assert made["training"] == describe(tmp_path / "two")["training"]
    assert made["training"]["ema_half_lives"] == [2.0, 3.5]
    assert made["training"]["t_min"] == 0.01
    assert made["network"]["config"]["depth"] == 1
    assert made["network"]["config"]["embedding"] == "sinusoidal"
    assert made["dataset"]["rows"] == 30
    assert {p.name for p in (tmp_path / "one").iterdir()} == {
        "best.safetensors",
        "config.toml",
        "curves.png",
        "ema-2.safetensors",
        "ema-3.5.safetensors",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "samples",
        "snapshots",
        "state.pt",
    }


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(
    points: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        f"data = {json.dumps(str(points))}\nsteps = 2\nbatch-size = 5\nlearning_rate = 1\n"
        f'conditional = false\nwidth = 8\ndevice = "cpu"\nout = "{tmp_path / "named"}"\n'
        "[network]\ndepth = 2\n"
    )
    run("--config", file, "--batch-size", 7, "--network", "depth=1")
    made = describe(tmp_path / "named")
    settings = made["training"]
    assert (settings["steps"], settings["batch_size"], settings["clip"]) == (2, 7, 1.0)
    assert settings["learning_rate"] == 1.0
    assert made["network"]["config"]["depth"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", "must hold names of options, got step = …; did you mean steps?"),
        ("ema-halflives = [3.0]", "got ema_halflives = …; did you mean ema-half-lives?"),
        ("resume = true", "must hold names of options, got resume = …"),
        ("steps = 2.5", "Invalid value for '--steps': 2.5 is of another type"),
        ("steps = true", "Invalid value for '--steps': True is of another type"),
        ("steps = 0", "Invalid value for '--steps': 0 is not in the range"),
        ("compile = 1", "Invalid value for '--compile': 1 is of another type"),
        ('schedule = "cosin"', "'cosin' is not one of 'constant', 'cosine'"),
        ("ema-widths = [0.9]", "ema_widths must be at most 0.2886"),
        ('ema-widths = "a"', "'a' is not numbers with commas between them"),
        ("[steps]\nx = 1", "Invalid value for '--steps': {'x': 1} has no place here"),
        ("network = 3", "Invalid value for '--network': 3 has no place here"),
        ("[network]\ndepht = 3", "network must be one of depth, embedding, time_scale, got depht"),
        ("steps 3", "must be a TOML file"),
    ],
)
def test_mistakes_in_a_file_are_refused_by_name(
    points: Path, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    short = [] if "steps" in text else ["--steps", 1]
    found = refused("--config", file, "--data", points, *short, "--out", tmp_path / "run")
    assert message in found
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "--config: config must be a file" in refused("--config", tmp_path / "none.toml")


NAMES = [str(p.name) for p in command.params if p.name not in ("network", "out")]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.lists(st.floats(allow_nan=False, allow_infinity=False)),
)


@given(st.fixed_dictionaries({name: VALUES for name in NAMES}))
def test_settings_come_back_from_toml_as_they_were(values: dict[str, Any]) -> None:
    text = _train_file.text(values | {"network": (("a", 1), ("b", "x"))}, command)
    found = {k.replace("-", "_"): v for k, v in tomllib.loads(text).items()}
    assert found.pop("network") == {"a": 1, "b": "x"}
    left_out = {"config", "resume", "as_json"}
    assert found == {k: v for k, v in values.items() if v is not None and k not in left_out}


def test_a_resumed_run_keeps_its_settings_and_takes_new_ones(points: Path, tmp_path: Path) -> None:
    common = [
        "--data",
        points,
        "--held-out",
        10,
        "--network",
        "depth=1",
        "--evaluate-every",
        2,
        *TINY,
    ]
    run(*common, "--steps", 6, "--out", tmp_path / "whole")
    run(*common, "--steps", 3, "--out", tmp_path / "cut")
    run("--resume", "--steps", 6, "--out", tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")
    files = [(tmp_path / name / "config.toml").read_text() for name in ("whole", "cut")]
    assert files[0] == files[1]
    sessions = json.loads((tmp_path / "cut" / "manifest.json").read_text())["sessions"]
    assert [s["step"] for s in sessions] == [3, 6]
    found = refused("--resume", "--out", tmp_path / "cut", "--batch-size", 4)
    assert "training.batch_size must be 8 as in the run that is resumed, got 4" in found


def test_a_run_without_a_better_bound_stops_and_says_so(points: Path, tmp_path: Path) -> None:
    flags = [
        "--data",
        points,
        "--held-out",
        10,
        "--steps",
        40,
        "--evaluate-every",
        1,
        "--patience",
        2,
        *TINY,
    ]
    # At such a rate every step is worse than the one before.
    text = run(*flags, "--learning-rate", 3, "--ema-decay", 0, "--out", tmp_path / "run")
    step = describe(tmp_path / "run")["step"]
    assert step < 40
    assert f"step {step}: loss" in text
    assert "stopped early: 2 evaluations without a better one" in text
    best = describe(tmp_path / "run" / "best.safetensors")["step"]
    assert best == step - 2
    assert f"bits/dim at step {best}, kept as" in text
    again = run("--resume", "--out", tmp_path / "run")
    assert f"is complete at step {step}; pass a larger --patience to go on" in again
    longer = json.loads(run("--resume", "--patience", 3, "--json", "--out", tmp_path / "run"))
    assert longer["step"] > step
    assert longer["best"]["bits_per_dim"] == min(
        e["bits_per_dim"] for e in evaluations(tmp_path / "run")
    )


def test_a_run_that_was_left_before_its_first_line_is_complete_in_words(
    points: Path, tmp_path: Path
) -> None:
    """One that trained in Python, without curves or settings of the command line."""
    model = ScoreModel(MLP(2, width=8), VPSDE())
    config = TrainingConfig(steps=3, batch_size=8, log_every=50)
    for progress in train(model, load_data(points), config, out=tmp_path / "run"):
        if progress.step == 2:
            break
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    text = run("--data", points, "--resume", "--out", tmp_path / "run", "--device", "cpu")
    assert "step 3: loss" in text
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = run("--data", points, "--resume", "--out", tmp_path / "run", "--device", "cpu")
    assert "is complete at step 3; pass a larger --steps" in again


def test_data_that_were_renamed_are_the_same_data(points: Path, tmp_path: Path) -> None:
    """Their content decides: of other content of the same name nothing is resumed."""
    labels = np.arange(40) % 2
    first = tmp_path / "first.npz"
    np.savez(first, x=np.load(points), y=labels)
    common = ["--conditional", *TINY]
    run("--data", first, "--steps", 4, *common, "--out", tmp_path / "whole")
    run("--data", first, "--steps", 2, *common, "--out", tmp_path / "run")
    resume = ["--resume", "--steps", 4, "--out", tmp_path / "run"]
    moved = tmp_path / "moved.npz"
    np.savez(moved, x=np.load(points), y=1 - labels)
    assert "dataset.labels_crc32 must be" in refused("--data", moved, *resume)
    np.savez(moved, x=np.load(points) + 1, y=labels)
    assert "dataset.crc32 must be" in refused("--data", moved, *resume)
    first.replace(moved)
    # Another width is refused; the same one makes a fresh model, which knows the data's new name.
    run("--data", moved, "--width", 8, *resume)
    assert same(tmp_path / "whole", tmp_path / "run")


def test_rows_held_out_are_the_last_ones_and_not_trained_on(points: Path, tmp_path: Path) -> None:
    run("--data", points, "--held-out", 15, "--steps", 1, *TINY, "--out", tmp_path / "run")
    fewer = tmp_path / "fewer.npy"
    np.save(fewer, np.load(points)[:-15])
    run("--data", fewer, "--steps", 1, *TINY, "--out", tmp_path / "fewer")
    crc = [describe(tmp_path / name)["dataset"]["crc32"] for name in ("run", "fewer")]
    assert crc[0] == crc[1]
    short = ["--data", points, "--steps", 1, "--out", tmp_path / "none"]
    found = refused(*short, "--evaluate-every", 1)
    assert "data must have a test part" in found
    assert found.endswith("pass --held-out 4")
    found = refused(*short, "--held-out", 40)
    assert "--held-out: held_out must be below the 40 samples, got 40" in found


def test_data_with_a_test_part_are_evaluated_on_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = tmp_path / "images"
    for split, number in (("train", 7), ("test", 3)):
        (data / split).mkdir(parents=True)
        for i in range(number):
            Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(data / split / f"{i}.png")
    run("--data", data, "--steps", 1, "--evaluate-every", 1, *TINY, "--out", tmp_path / "run")
    (found,) = evaluations(tmp_path / "run")
    assert describe(tmp_path / "run")["dataset"]["rows"] == 7
    expected = HeldOutBound(load_data(data, "test"))(load(tmp_path / "run"), 1, None)
    assert found["bits_per_dim"] == expected["bits_per_dim"]
    assert (tmp_path / "run" / found["picture"]).stat().st_size > 0


@pytest.mark.parametrize(
    ("flags", "coupled"),
    [
        (["--objective", "hybrid"], False),
        (["--objective", "vlb", "--variance", "learned"], False),
        (["--objective", "sliced"], False),
        (["--objective", "implicit", "--sde", "ve"], False),
        (["--sde", "rectified-flow", "--prediction", "v", "--weighting", "flow-matching"], False),
        (
            [
                "--sde",
                "rectified-flow",
                "--prediction",
                "v",
                "--weighting",
                "flow-matching",
                "--coupling",
                "optimal-transport",
            ],
            True,
        ),
    ],
)
def test_objectives_are_trained_and_evaluated(
    points: Path, tmp_path: Path, flags: list[str], coupled: bool
) -> None:
    """All but pictures are left out where eps is no score."""
    run(
        "--data",
        points,
        "--held-out",
        4,
        "--steps",
        2,
        "--evaluate-every",
        2,
        "--chain-steps",
        20,
        *flags,
        *TINY,
        "--out",
        tmp_path / "run",
    )
    made = describe(tmp_path / "run")
    (found,) = evaluations(tmp_path / "run")
    learned = "hybrid" in flags or "learned" in flags
    assert made["variance"] == ("learned" if learned else "fixed")
    assert made["coupling"] == ("optimal-transport" if coupled else "independent")
    assert found.keys() - {"bits_per_dim", "standard_error", "loss_by_level"} == {"picture"}
    assert len(found) == (1 if coupled else 4)
    if coupled:
        assert "coupling must be independent, to have a bound" in refused(
            "--data",
            points,
            "--held-out",
            4,
            "--evaluate-every",
            2,
            "--patience",
            1,
            *flags,
            *TINY,
            "--out",
            tmp_path / "patient",
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("layers=3", "--network: network must be one of depth, embedding, time_scale, got layers"),
        ("width=3", "--network: network must be one of depth"),
        ("depth", "'depth' is not NAME=VALUE"),
        ("depth=none", "depth must be an integer, got none"),
    ],
)
def test_arguments_of_the_network_are_refused_by_name(
    points: Path, tmp_path: Path, words: str, message: str
) -> None:
    found = refused("--data", points, "--network", words, "--steps", 1, "--out", tmp_path / "run")
    assert message in found


def test_images_take_any_argument_of_the_unet(tmp_path: Path) -> None:
    run(
        "--limit",
        9,
        "--steps",
        1,
        "--network",
        "multipliers=[1,1,1]",
        "--network",
        "blocks=1",
        "--network",
        "attention=[]",
        *TINY,
        "--out",
        tmp_path / "run",
    )
    config = describe(tmp_path / "run")["network"]["config"]
    assert (config["multipliers"], config["blocks"], config["attention"]) == ([1, 1, 1], 1, [])
