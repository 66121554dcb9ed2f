"""Files that version 0.1 wrote before its modules moved load, resume and continue.

They were made by its commands: a run of `train` stopped at its fourth step and the same run to its
eighth; a small U-Net with a learned variance and what it samples; a run of `likelihood` that was
killed after two batches of three, and the same run to its end.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from sde_diffusion import ForwardVariance, describe, lattice, load, sample
from sde_diffusion.checkpoints.fingerprint import fingerprint
from sde_diffusion.cli.main import main
from sde_diffusion.solvers import DDPM


@pytest.fixture
def files(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the folder in which the commands are called."""
    shutil.copytree(root / "tests" / "files_of_0_1", tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


def run(*arguments: str) -> str:
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_a_checkpoint_loads_and_samples_as_it_did(files: Path) -> None:
    assert describe("unet.safetensors")["versions"]["sde_diffusion"] == "0.1.0"
    model = load("unet.safetensors").given(3)
    found = sample(model, DDPM(), (2, 1, 8, 8), grid=lattice(20), seed=5).x
    expected = torch.from_numpy(np.load(files / "unet-samples.npy"))
    assert torch.allclose(found, expected, atol=1e-4)
    # The learned variance is in it: without it the same model samples otherwise.
    fixed = sample(model, DDPM(ForwardVariance()), (2, 1, 8, 8), grid=lattice(20), seed=5).x
    assert not torch.allclose(fixed, expected, atol=1e-2)


def test_a_training_run_resumes_and_takes_the_same_steps(files: Path) -> None:
    run("train", "--out", "run", "--steps", "8", "--resume")
    for name in ("model.safetensors", "ema-3.safetensors"):
        found = load_file(files / "run" / name)
        expected = load_file(files / "whole" / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(found[key], value, atol=1e-5), (name, key)
    lines = (files / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [2, 4, 6, 8]


def test_an_evaluation_goes_on_with_the_batches_that_are_left(files: Path) -> None:
    run("likelihood", "--resume", "--out", "evaluation")
    manifest = json.loads((files / "evaluation" / "manifest.json").read_text(encoding="utf-8"))
    assert [session["done"] for session in manifest["sessions"]] == [0, 8]

    def table(folder: str) -> list[dict[str, str]]:
        with (files / folder / "likelihood.csv").open(encoding="utf-8") as file:
            lines = [row.split(",") for row in file.read().splitlines()]
        # Of 0.1 the names alone differ; the errors in bits are of later.
        names = [name.replace("standard_error", "nats_error") for name in lines[0]]
        rows = (dict(zip(names, line, strict=True)) for line in lines[1:])
        return [{k: v for k, v in row.items() if "dim_error" not in k} for row in rows]

    found, expected = table("evaluation"), table("evaluated")
    # Two batches of four were done; the third is solved here.
    assert found[:8] == expected[:8]
    assert len(found) == len(expected) == 12
    for row, other in zip(found[8:], expected[8:], strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            # Another processor, or another number of threads, takes or refuses other steps at the
            # tolerance of these files: .32 nats of 220 were seen. The bounds take none.
            rel = 5e-3 if name.startswith("flow") else 1e-3
            moved = 0.2 if name == "flow_nats_error" else 0.0
            assert float(row[name]) == pytest.approx(float(value), rel=rel, abs=1e-3 + moved), name


def test_an_evaluation_gone_on_with_is_the_one_made_at_once(files: Path) -> None:
    command = json.loads(
        (files / "evaluation/unfinished/manifest.json").read_text(encoding="utf-8")
    )
    words = command["sessions"][0]["command"].split()[1:]
    # What 0.1 always did, and its files do not say.
    words = [*words[: words.index("--out")], "--chain", "lattice", "--variance", "learned"]
    run(*words, "--decoder", "bins", "--out", "at-once")
    run("likelihood", "--resume", "--out", "evaluation")

    def last(folder: str) -> list[str]:
        return (files / folder / "likelihood.csv").read_text(encoding="utf-8").splitlines()[9:]

    assert len(last("at-once")) == 4
    assert last("evaluation") == last("at-once")


def test_the_content_of_a_model_goes_by_the_same_name(files: Path) -> None:  # noqa: ARG001
    """Its fingerprint would tell it from the model that the evaluation began with."""
    record = json.loads(Path("evaluation/unfinished/manifest.json").read_text(encoding="utf-8"))
    assert fingerprint(load("unet.safetensors")) == record["model"]["content"]
