"""`sde-diffusion likelihood`: three bounds, files, runs that go on, processes that share one."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from sde_diffusion import MLP, VPSDE, Dataset, DataSpec, GaussianMixture, ScoreModel, save_model
from sde_diffusion.cli.main import main
from sde_diffusion.evaluation.run import evaluate
from sde_diffusion.evaluation.settings import EvaluationSettings
from sde_diffusion.solvers import DormandPrince

pytestmark = pytest.mark.filterwarnings("error")

N = 22
# A ring whose score counts its calls, and can be slow or stop.
MODULE = """
import os
import time

from sde_diffusion import DataSpec, GaussianMixture, ScoreLike, VPSDE


class Watched(ScoreLike):
    data = DataSpec("ring", (2,), None)

    def __init__(self):
        self.sde = VPSDE()
        self.oracle = GaussianMixture.ring(8)

    def __call__(self, x, t):
        global calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        time.sleep(float(os.environ.get("SLOW", "0")))
        return self.oracle.diffused(self.sde)(x, t)

    @property
    def device(self):
        return self.oracle.device


calls, last = 0, 0
model = Watched()


class Narrow(Watched):
    def __call__(self, x, t):
        return super().__call__(x, t)[:, :1]


narrow = Narrow()


class Torn(Watched):
    def __call__(self, x, t):
        outside = x.abs().amax(1, keepdim=True) > 6
        return super().__call__(x, t).masked_fill(outside, float("nan"))


class Void(Watched):
    def __call__(self, x, t):
        return super().__call__(x, t) * float("nan")


torn, void = Torn(), Void()
"""
FAST = ("--tolerance", "1e-3", "--batch-size", "4", "--mode", "reverse")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["likelihood", *map(str, arguments)])


def run(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)  # no traceback
    return result.stderr.strip().split("\n")[-1]


def arrays(folder: Path) -> dict[str, Any]:
    with np.load(folder / "likelihood.npz", allow_pickle=False) as file:
        return dict(file)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def same_results(one: Path, other: Path) -> bool:
    files = ("likelihood.csv", "likelihood.npz")
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with points, as the current one."""
    x = GaussianMixture.ring(8).sample(N, torch.Generator().manual_seed(1))
    np.save(tmp_path / "points.npy", x.float().numpy())
    (tmp_path / "watched.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def watched(here: Path) -> Iterator[ModuleType]:
    import importlib

    assert here == Path.cwd()
    yield importlib.import_module("watched")
    del sys.modules["watched"]


# --- numbers and files ---


def test_three_bounds_are_those_of_the_library(here: Path) -> None:
    found = run(
        "--model",
        "ring",
        "--data",
        "points.npy",
        "--bound",
        "all",
        "--times",
        8,
        "--vlb-steps",
        4,
        "--seed",
        3,
        "--out",
        "out",
        *FAST,
    )
    values = torch.from_numpy(np.load("points.npy"))
    data = Dataset(DataSpec("points", (2,), None), values, None)
    settings = EvaluationSettings(
        ("flow", "elbo", "vlb"),
        tolerance=1e-3,
        mode="reverse",
        times=8,
        steps=4,
        batch_size=4,
        seed=3,
    )
    expected = evaluate(GaussianMixture.ring(8).diffused(VPSDE()), data, DormandPrince(), settings)
    saved = arrays(here / "out")
    assert saved["index"].tolist() == list(range(N))
    for key, column in expected.values.items():
        name = key.replace("standard_error", "nats_error")
        assert np.array_equal(saved[name], column.numpy()), key
    rows = table(here / "out" / "likelihood.csv")
    for bound in expected.bounds:
        summary = expected.summary(bound)
        assert found["bounds"][bound]["bits_per_dim"] == summary.bits_per_dim
        assert found["bounds"][bound]["nats_error"] == summary.nats_error
        bits = [float(row[f"{bound}_bits_per_dim"]) for row in rows]
        assert bits == expected.bits_per_dim(bound).tolist()
    assert found["bits_per_dim"] == found["bounds"]["flow"]["bits_per_dim"]
    assert found["probe_error"] == found["bounds"]["flow"]["estimator_error"]


@pytest.mark.parametrize("noise", ["uniform", "none"])
def test_the_table_of_the_terms_adds_up_to_the_vlb(here: Path, noise: str) -> None:
    np.save("levels.npy", np.random.default_rng(0).integers(0, 5, (6, 2), np.uint8))
    found = run(
        "--model",
        "ring",
        "--data",
        "levels.npy",
        "--levels",
        5,
        "--bound",
        "vlb",
        "--times",
        8,
        "--vlb-steps",
        4,
        "--dequantization",
        noise,
        "--out",
        "out",
        *FAST,
    )
    terms = table(here / "out" / "vlb_terms.csv")
    assert [row["term"] for row in terms] == ["L_0", "L_1", "L_2", "L_3", "L_T"]
    assert [row["step"] for row in terms] == ["1", "2", "3", "4", "4"]
    times = [float(row["t"]) for row in terms]
    assert times[:-1] == sorted(set(times[:-1]))
    assert times[-2:] == [1.0, 1.0]
    assert {float(row["number"]) for row in terms} == {6.0}
    total = sum(float(row["bits_per_dim"]) for row in terms)
    assert total == pytest.approx(found["bits_per_dim"], abs=1e-5)
    assert found["steps"] == 4
    for row in terms:  # the data have two dimensions
        for value in ("", "_error"):
            bits = float(row[f"nats{value}"]) / (2 * math.log(2))
            assert float(row[f"bits_per_dim{value}"]) == pytest.approx(bits, nan_ok=True), value


@pytest.mark.usefixtures("here")
def test_the_lines_say_what_the_numbers_are() -> None:
    options = [
        "--model",
        "ring",
        "--data",
        "points.npy",
        "--bound",
        "all",
        "--times",
        4,
        "--vlb-steps",
        5,
        "--limit",
        6,
        *FAST,
    ]
    found = run(*options, "--out", "out")
    text = invoke(*options, "--out", "again").stdout
    for bound, numbers in found["bounds"].items():
        line = next(line for line in text.splitlines() if line.startswith(bound))
        bits = f"{numbers['bits_per_dim']:.4f}".replace("-", "−")
        assert f"{bits} ± {numbers['standard_error']:.4f} bits/dim" in line
        assert f"(± {numbers['estimator_error']:.4f})" in line
        nats = f"{numbers['nats']:.2f}".replace("-", "−")
        assert f"{nats} ± {numbers['nats_error']:.2f} nats" in line
    assert "flow: the probability-flow ODE by dormand-prince, hutchinson with 2 probes" in text
    assert "a DDPM of 5 steps" in text
    assert "to again" in text
    one = invoke(
        "--model",
        "ring",
        "--data",
        "points.npy",
        "--limit",
        1,
        "--probes",
        1,
        "--out",
        "one",
        *FAST,
    ).stdout
    assert "one sample has no standard error" in one
    assert "(unknown with one probe)" in one


@pytest.mark.usefixtures("here")
def test_chain_variance_and_decoder_are_those_asked_for() -> None:
    values = np.random.default_rng(0).integers(0, 5, (6, 2), np.uint8)
    np.save("levels.npy", values)
    options = ["--model", "ring", "--data", "levels.npy", "--levels", 5, "--bound", "vlb"]
    options += ["--times", 8, "--vlb-steps", 4, "--dequantization", "none", "--out", "out"]
    data = Dataset(DataSpec("levels", (2,), 5), torch.from_numpy(values), None)
    model = GaussianMixture.ring(8).diffused(VPSDE())
    found = set[float]()
    for chain, variance, decoder in (
        ("log-snr", "posterior", "levels"),
        ("lattice", "posterior", "levels"),
        ("log-snr", "forward", "levels"),
        ("log-snr", "posterior", "bins"),
    ):
        chosen = ["--chain", chain, "--variance", variance, "--decoder", decoder]
        bits = run(*options, *chosen)["bits_per_dim"]
        settings = EvaluationSettings(
            ("vlb",),
            dequantization="none",
            times=8,
            steps=4,
            chain=chain,
            variance=variance,
            decoder=decoder,
        )
        expected = evaluate(model, data, DormandPrince(), settings).summary("vlb")
        assert bits == pytest.approx(expected.bits_per_dim, abs=1e-9)
        found.add(bits)
    assert len(found) == 4
    assert "--chain" in refused("--resume", "--out", "out", "--chain", "lattice")
    text = invoke("--resume", "--out", "out").stdout
    assert "a DDPM of 4 steps equal in log-SNR, posterior variance, decoder of bins" in text


def test_the_picture_has_a_panel_for_the_terms(here: Path) -> None:
    from PIL import Image

    widths = []
    for bound in ("flow", "vlb"):
        run(
            "--model",
            "ring",
            "--data",
            "points.npy",
            "--bound",
            bound,
            "--times",
            4,
            "--out",
            bound,
            *FAST,
        )
        with Image.open(here / bound / "likelihood.png") as picture:
            picture.load()
            widths.append(picture.size[0])
            assert len(set(picture.convert("L").tobytes())) > 10
    assert widths[1] > 1.5 * widths[0]


def test_the_manifest_says_how_the_numbers_came_about(here: Path) -> None:
    found = run("--model", "ring", "--data", "points.npy", "--out", "out", "--tolerance", 1e-2)
    manifest = manifest_of(here / "out")
    assert manifest["result"] == found
    assert manifest["options"]["--tolerance"] == 1e-2
    assert manifest["settings"]["mode"] in {"forward", "reverse"}
    assert " ms" in manifest["mode"]
    assert manifest["data"]["rows"] == N
    [session] = manifest["sessions"]
    assert session["versions"]["torch"] == str(torch.__version__)
    assert (session["processes"], session["done"]) == (1, 0)
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        "likelihood.csv",
        "likelihood.npz",
        "likelihood.png",
        "manifest.json",
    ]


def test_the_ledger_is_printed_and_its_interval_holds_the_truth(here: Path) -> None:
    """The ring's log-density is known; --error chooses what --ledger then confirms."""
    x = torch.from_numpy(np.load(here / "points.npy"))
    truth = -float(GaussianMixture.ring(8).log_prob(x.double()).mean()) / (2 * math.log(2))
    for options in (["--ledger", 8, "--probes", 4, "--tolerance", 1e-3], ["--error", 0.1]):
        done = invoke("--model", "ring", "--data", "points.npy", *options, "--out", "out")
        assert done.exit_code == 0
        manifest = manifest_of(here / "out")
        ledger = manifest["ledger"]
        flow = manifest["result"]["bits_per_dim"]
        assert abs(flow + ledger["shift"] - truth) <= ledger["error"]
        for line in ledger["lines"]:
            assert f"  {line['name']}" in done.output
        text = done.output.replace("−", "-")
        assert f"flow by the ledger: {flow + ledger['shift']:.4f} ±" in text
    tolerance, probes = (manifest["settings"][name] for name in ("tolerance", "probes"))
    assert f"--error chose tolerance {tolerance:g}, {probes} probes" in text
    sizes = [
        abs(line["shift"]) + line["error"]
        for line in ledger["lines"]
        if line["name"] not in ("offset", "probes")
    ]
    assert sum(sizes) < 0.1
    message = refused("--model", "ring", "--data", "points.npy", "--ledger", 1, "--limit", 1)
    assert "ledger: samples must be two or more that differ: their moments are fitted" in message
    message = refused("--model", "ring", "--data", "points.npy", "--error", 0.1, "--probes", 3)
    assert "--probes must be left to --error, got 3; drop one" in message


def test_a_finished_run_is_replaced_by_a_new_one_and_shown_again_by_resume(
    here: Path, watched: ModuleType
) -> None:
    options = ["--model", "watched:model", "--data", "points.npy", "--out", "out", *FAST]
    first = run("--bound", "flow", *options, "--limit", 9)
    (here / "out" / "vlb_terms.csv").write_text("of an earlier run")
    second = run(*options)
    assert (first["samples"], second["samples"]) == (9, N)
    assert len(table(here / "out" / "likelihood.csv")) == N
    assert not (here / "out" / "vlb_terms.csv").exists()
    before = watched.calls
    assert run("--resume", "--out", "out") == second
    assert watched.calls == before
    assert "--tolerance must be 0.001 as in the run that is resumed, got 0.1" in refused(
        "--resume", "--out", "out", "--tolerance", 0.1
    )


# --- runs that go on ---


def test_ctrl_c_keeps_every_batch_and_nothing_is_computed_twice(
    here: Path, watched: ModuleType
) -> None:
    options = ["--model", "watched:model", "--data", "points.npy", *FAST]
    run(*options, "--out", "whole")
    whole = watched.calls
    watched.calls = 0
    watched.last = whole // 2
    stopped = invoke(*options, "--out", "parts")
    assert stopped.exit_code == 130
    log = here / "parts" / "unfinished" / "batches-0.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines() if line]
    assert 1 <= len(done) < 5
    kept = sum(batch["count"] for batch in done)
    assert stopped.stderr == (
        f"Interrupted; {kept} of {N} samples are saved, go on with --resume.\n"
    )
    assert not (here / "parts" / "manifest.json").exists()
    watched.last = 0
    watched.calls = 0
    run("--resume", "--out", "parts")
    assert watched.calls == whole - sum(batch["nfe"]["flow"] for batch in done)
    assert same_results(here / "whole", here / "parts")
    assert [s["done"] for s in manifest_of(here / "parts")["sessions"]] == [0, kept]
    assert not (here / "parts" / "unfinished").exists()


def interrupted(watched: ModuleType, *arguments: object) -> None:
    watched.last = 60
    watched.calls = 0
    assert invoke(*arguments).exit_code == 130
    watched.last = 0


def test_a_run_goes_on_with_its_own_options_model_and_data_only(
    here: Path, watched: ModuleType
) -> None:
    options = ["--model", "watched:model", "--data", "points.npy", "--out", "out", *FAST]
    interrupted(watched, *options)
    before = {path.name: path.read_bytes() for path in (here / "out/unfinished").iterdir()}
    assert "out must be a folder without an unfinished run, got out; pass --resume" in refused(
        *options
    )
    assert "--probes must be 2 as in the run that is resumed, got 3; leave it out" in refused(
        *options, "--resume", "--probes", 3
    )
    assert "--model must be 'watched:model' as in the run that is resumed, got ring" in refused(
        "--resume", "--out", "out", "--model", "ring"
    )
    kept = np.load("points.npy")
    np.save("points.npy", kept + np.float32(1e-3))
    assert "data.content must be" in refused(*options, "--resume")
    np.save("points.npy", kept)
    watched.model.oracle = GaussianMixture.ring(8, std=0.2)
    assert "model.content must be" in refused(*options, "--resume")
    after = {path.name: path.read_bytes() for path in (here / "out/unfinished").iterdir()}
    assert after == before
    assert "out must be the folder of a run, got nowhere; leave out --resume" in refused(
        "--resume", "--out", "nowhere"
    )
    assert not (here / "nowhere").exists()


def test_data_that_were_moved_are_the_same_data(here: Path, watched: ModuleType) -> None:
    options = ["--model", "watched:model", *FAST]
    run(*options, "--data", "points.npy", "--out", "whole")
    interrupted(watched, *options, "--data", "points.npy", "--out", "parts")
    (here / "points.npy").rename(here / "moved.npy")
    run("--resume", "--data", "moved.npy", "--out", "parts")
    assert same_results(here / "whole", here / "parts")
    assert manifest_of(here / "parts")["options"]["--data"] == "moved.npy"


def test_what_was_measured_is_not_measured_again(
    watched: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sde_diffusion import Hutchinson

    def chosen(divergence: Hutchinson, *_rest: object) -> tuple[Hutchinson, str]:
        return Hutchinson(divergence.probes, divergence.seed, mode="forward"), "by this test"

    monkeypatch.setattr("sde_diffusion.evaluation.evaluator.fastest", chosen)
    options = [
        "--model",
        "watched:model",
        "--data",
        "points.npy",
        "--batch-size",
        2,
        "--limit",
        5,
        "--tolerance",
        1e-2,
    ]
    interrupted(watched, *options, "--out", "out")
    monkeypatch.setattr("sde_diffusion.evaluation.evaluator.fastest", None)
    assert run("--resume", "--out", "out")["mode"] == "forward"
    run(*options, "--mode", "forward", "--out", "whole")
    assert same_results(Path("out"), Path("whole"))
    assert manifest_of(Path("out"))["mode"] == "by this test"


def test_a_mistake_that_shows_at_the_first_batch_leaves_nothing(here: Path) -> None:
    message = refused(
        "--model", "watched:narrow", "--data", "points.npy", "--bound", "vlb", "--out", "out"
    )
    assert "Narrow: result must have the shape (22, 2) of x, got (22, 1)" in message
    assert not (here / "out").exists()


@pytest.mark.parametrize("bound", ["flow", "elbo", "vlb"])
def test_samples_without_a_likelihood_are_named_and_the_others_kept(
    here: Path, bound: str
) -> None:
    x = np.load("points.npy")[:9]
    x[[3, 7]] = 12  # far out, and yet of a scale that the prior covers
    np.save("some.npy", x)
    options = ["--data", "some.npy", "--bound", bound, "--times", 8, *FAST]
    whole = invoke("--model", "watched:model", *options, "--out", "whole")
    assert whole.exit_code == 0
    found = invoke("--model", "watched:torn", *options, "--out", "out")
    assert found.exit_code == 1
    assert "2 samples without a finite likelihood, left out of the means: 3, 7" in found.stdout
    assert f"sample 3 has none: {bound}: " in found.stdout
    rows, expected = (table(here / name / "likelihood.csv") for name in ("out", "whole"))
    good = [i for i in range(9) if i not in (3, 7)]
    assert [rows[i] for i in good] == [expected[i] for i in good]
    assert {rows[i]["nats"] for i in (3, 7)} == {"nan"}
    result = manifest_of(here / "out")["result"]
    bits = [float(expected[i]["bits_per_dim"]) for i in good]
    assert result["bits_per_dim"] == pytest.approx(sum(bits) / 7, abs=1e-12)
    assert (result["samples"], sorted(result["failures"])) == (7, ["3", "7"])
    again = invoke("--resume", "--out", "out")
    assert (again.exit_code, again.stdout) == (1, found.stdout)


def test_a_model_without_any_likelihood_is_refused_and_leaves_nothing(here: Path) -> None:
    options = ["--model", "watched:void", "--data", "points.npy", "--out", "out", *FAST]
    message = refused(*options)
    assert f"log p must be finite for some sample, got none of the first {N};" in message
    assert not (here / "out").exists()


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--bound", "vlb", "--times", 2],
            "must be at least 4, got 2; pass for example --times 4",
        ),
        (["--times", 3], "times must be even: they are drawn in pairs, got 3; pass 4"),
        (["--dequantization", "none"], "be some for the flow, a density, got none"),
        (["--t-min", 0], "t_min must be finite and above 0, got 0.0; pass 1e-5"),
        (["--t-min", 2], "t_min must be below 1, where the data have become noise, got 2.0;"),
        (["--tolerance", 0], "tolerance must be finite and above 0, got 0.0; pass 1e-5"),
        (["--seed", 2**70], f"seed must be below 2**64, got {2**70}; pass a smaller one"),
        (["--solver", "ddim"], "likelihood: --solver must be a solver of any ODE"),
        (["--solver", "ancestral"], "choose one of adams-bashforth, adaptive-adams, dormand-pr"),
        (["--bound", "iwae"], "'iwae' is not one of 'flow', 'elbo', 'vlb', 'all'"),
        (["--divergence", "trace"], "'trace' is not one of 'hutchinson', 'hutch++', 'exact'"),
        (["--draws", 0], "0 is not in the range"),
        (["--solver", "heun", "--tolerance", 1e-3], "be left out for a solver with fixed steps"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    here: Path, options: list[object], says: str
) -> None:
    message = refused("--model", "ring", "--data", "points.npy", "--out", "out", *options)
    assert says in message
    assert not (here / "out").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (["--times", 3], ["--times", 4]),
        (["--dequantization", "none"], ["--dequantization", "uniform"]),
        (["--dequantization", "none"], ["--dequantization", "none", "--bound", "elbo"]),
        (["--t-min", 0], ["--t-min", "1e-5"]),
        (["--t-min", 2], ["--t-min", "1e-5"]),
        (["--tolerance", 0], ["--tolerance", "1e-5"]),
        (["--seed", 2**70], ["--seed", 2**64 - 1]),
        (["--solver", "heun", "--tolerance", "1e-3"], ["--solver", "heun", "--steps", 9]),
        (["--error", 0.5, "--probes", 3], ["--probes", 3]),
        (["--error", 0.5, "--probes", 3], ["--error", 0.5]),
        *(
            (["--solver", "ddim"], ["--solver", name, *(["--steps", 9] if steps else [])])
            for name, steps in (("adaptive-adams", False), ("adams-bashforth", True))
        ),
    ],
)
def test_what_an_error_says_to_do_works(wrong: list[object], right: list[object]) -> None:
    options = ["--model", "ring", "--data", "points.npy", "--limit", 3, "--mode", "reverse"]
    refused(*options, "--out", "out", *wrong)
    assert run(*options, "--out", "out", *right)["samples"] == 3


def test_what_an_error_says_to_do_about_data_works(here: Path) -> None:
    """16-bit data have 65536 levels, even if none of the file is so high; floats have none."""
    spec = DataSpec("grey", (2,), 17)
    save_model(here / "grey.safetensors", ScoreModel(MLP(2, width=8), VPSDE(), data=spec))
    values = np.random.default_rng(0).integers(0, 17, (4, 2))
    np.save("wide.npy", 200 * values.astype(np.uint16))
    np.save("floats.npy", values.astype(np.float32))
    np.save("reals.npy", values / 16)
    np.save("bytes.npy", values.astype(np.uint8))
    vlb = ["--bound", "vlb", "--times", 4]
    wide = ["--model", "ring", "--data", "wide.npy", "--out", "out", *vlb]
    assert "pass levels=65536, on the command line --levels 65536" in refused(*wide)
    assert run(*wide, "--levels", 65536)["samples"] == 4
    grey = ["--model", "grey.safetensors", "--out", "out", *vlb]
    assert "save whole numbers from 0 to 16" in refused(*grey, "--data", "reals.npy")
    assert "pass --levels 17" in refused(*grey, "--data", "bytes.npy", "--levels", 256)
    means = [
        run(*grey, "--data", f"{name}.npy", *more, "--out", f"{name}{len(more)}")["bounds"]
        for name, more in (("bytes", ["--levels", 17]), ("bytes", []), ("floats", []))
    ]
    assert means[0] == means[1] == means[2]  # whole numbers are the model's levels


def test_data_of_other_levels_or_shape_than_the_models_are_refused(here: Path) -> None:
    for name, spec in (("grey", DataSpec("grey", (2,), 17)), ("real", DataSpec("r", (2,), None))):
        save_model(here / f"{name}.safetensors", ScoreModel(MLP(2, width=8), VPSDE(), data=spec))
    np.save("levels.npy", np.full((4, 2), 3, np.uint8))
    np.save("above.npy", np.full((4, 2), 17, np.uint8))
    np.save("wide.npy", np.zeros((4, 3), np.float32))
    for arguments, says in (
        (["grey", "above.npy"], "have the model's 17 grey levels, got 256; pass --levels 17"),
        (["grey", "points.npy"], "have the model's 17 grey levels, got real numbers"),
        (["real", "levels.npy"], "have the model's no grey levels"),
        (["real", "wide.npy"], "have samples of the model's shape (2,), got (3,)"),
        (["grey", "above.npy", "--levels", 17], "above.npy must hold integers from 0 to 16"),
    ):
        model, data, *rest = arguments
        message = refused("--model", f"{model}.safetensors", "--data", data, *rest, "--out", "out")
        assert says in message
        assert not (here / "out").exists()


def test_the_models_scaling_is_taken(here: Path) -> None:
    from sde_diffusion.data.scaling import Logit

    spec = DataSpec("grey", (2,), 17, Logit(0.1))
    model = ScoreModel(MLP(2, width=8), VPSDE(), data=spec)
    save_model(here / "logit.safetensors", model)
    k = torch.tensor([[3, 16], [0, 8]], dtype=torch.uint8)
    np.save("levels.npy", k.numpy())
    found = run(
        "--model",
        "logit.safetensors",
        "--data",
        "levels.npy",
        "--levels",
        17,
        "--out",
        "out",
        *FAST,
    )
    settings = EvaluationSettings(tolerance=1e-3, mode="reverse")
    expected = evaluate(model.eval(), Dataset(spec, k, None), DormandPrince(), settings)
    assert found["nats"] == pytest.approx(expected.summary("flow").nats, abs=1e-4)
    volume = arrays(here / "out")["volume"]
    assert volume[0] != volume[1]


# --- several processes ---


def environment(**more: str) -> dict[str, str]:
    return dict(os.environ) | {"OMP_NUM_THREADS": "1"} | more


def torchrun(*arguments: object, **more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "sde_diffusion.cli",
        "likelihood",
        *map(str, arguments),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def filled(path: Path, lines: int) -> bool:
    return path.exists() and path.read_bytes().count(b"}\n") >= lines


needs_signals = pytest.mark.skipif(os.name == "nt", reason="kill -9 is no signal there")


@needs_signals
def test_a_killed_run_goes_on_to_the_same_results(here: Path) -> None:
    options = ["--model", "watched:model", "--data", "points.npy", *FAST]
    run(*options, "--out", "whole")
    program = [sys.executable, "-m", "sde_diffusion.cli", "likelihood", *options]
    slow = environment(SLOW="0.01")
    with subprocess.Popen([*program, "--out", "killed"], env=slow) as process:
        log = here / "killed" / "unfinished" / "batches-0.jsonl"
        wait_for(lambda: filled(log, 2) or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
    kept = log.read_bytes()
    log.write_bytes(kept + kept[: len(kept) // 3])  # a batch that was being written
    run("--resume", "--out", "killed")
    assert same_results(here / "whole", here / "killed")


@needs_signals
def test_processes_share_a_run_and_when_one_is_killed_the_rest_is_kept(here: Path) -> None:
    options = ["--model", "watched:model", "--data", "points.npy", *FAST]
    run(*options, "--out", "whole")
    out = here / "shared"
    with torchrun(*options, "--out", out, SLOW="0.02") as job:
        try:
            log = out / "unfinished" / "batches-1.jsonl"
            wait_for(lambda: filled(log, 1) or job.poll() is not None)
            pid = json.loads((out / ".ranks/rank-1.json").read_text())["pid"]
            os.kill(pid, signal.SIGKILL)
            _, errors = job.communicate(timeout=60)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode != 0
    [line] = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert f"rank 1 must finish its share, got no sign of life from process {pid}" in line
    assert line.endswith(f" of {N} samples; go on with --resume")
    assert filled(log, 1)
    with torchrun("--resume", "--out", out, "--json") as job:  # two processes take up the rest
        printed, errors = job.communicate(timeout=90)
    assert job.returncode == 0, errors
    assert json.loads(printed)["samples"] == N
    assert same_results(here / "whole", out)
    sessions = manifest_of(out)["sessions"]
    assert [session["processes"] for session in sessions] == [2, 2]
    assert 0 < sessions[1]["done"] < N
    assert sorted(path.name for path in out.iterdir()) == [
        "likelihood.csv",
        "likelihood.npz",
        "likelihood.png",
        "manifest.json",
    ]
