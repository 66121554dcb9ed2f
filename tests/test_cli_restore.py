"""`restore` and `verify --posterior`: what they print and write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from sde_diffusion import load, load_data
from sde_diffusion.cli import _operators
from sde_diffusion.cli.main import main
from sde_diffusion.cli.restore import _of_exact_draws
from sde_diffusion.inverse_problems import MMPS, Measurement, repaint, sample_posterior

SMALL = ["--limit", "3", "--draws", "4", "--steps", "6"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def arrays_in(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "restored.npz") as file:
        return dict(file)


def test_it_writes_what_sample_posterior_draws(here: Path) -> None:
    done = run("restore", "--operator", "inpaint:left", "--weighted", *SMALL, "--json")
    assert done.exit_code == 0, done.output
    arrays = arrays_in(here / "restored")
    truth = load_data("digits", "test").dequantized(torch.Generator().manual_seed(0))[:3]
    assert np.array_equal(arrays["truth"], truth.numpy())
    operator = _operators.operator("inpaint:left", (1, 8, 8))
    seen = Measurement.drawn(operator, truth, 0.05)
    found = sample_posterior(load("digits"), seen, (1, 8, 8), MMPS(3), particles=4, steps=6)
    assert np.array_equal(arrays["y"], seen.y.numpy())
    assert np.allclose(arrays["x"], found.x.numpy(), atol=1e-5)
    assert np.allclose(arrays["weights"], found.weights.numpy(), atol=1e-5)
    result = json.loads(done.stdout)
    assert result["nfe"] == 6
    assert result["log_evidence"] == pytest.approx(found.log_evidence.tolist(), rel=1e-3)
    error = (found.mean - truth).square().flatten(1).mean(1).sqrt().mean()
    assert result["rms_error_of_mean"] == pytest.approx(float(error), rel=1e-3)
    below = (found.x < truth[:, None]).double() + 0.5 * (found.x == truth[:, None]).double()
    levels = (found.weights.reshape(3, 4, 1, 1, 1) * below).sum(1)
    for row in result["coverage"]:
        low, high = 0.5 - row["level"] / 2, 0.5 + row["level"] / 2
        share = ((levels >= low) & (levels <= high)).double().mean()
        assert row["share"] == pytest.approx(float(share), abs=0.02)
    assert (here / "restored" / "restored.png").stat().st_size > 1000


def test_results_do_not_depend_on_the_batch_size(here: Path) -> None:
    for size in ("4", "100"):
        words = ["--batch-size", size, "--out", size, "--operator", "downsample:2"]
        assert run("restore", *words, *SMALL).exit_code == 0
    small, large = (arrays_in(here / size) for size in ("4", "100"))
    for name in ("y", "x", "mean"):
        assert np.allclose(small[name], large[name], atol=1e-4), name


def test_draws_without_weights_count_alike_and_meet_no_others(here: Path) -> None:
    done = run("restore", "--operator", "blur:.8", *SMALL)
    assert done.exit_code == 0, done.output
    assert "log p(y)" not in done.output
    arrays = arrays_in(here / "restored")
    assert np.array_equal(arrays["weights"], np.full((3, 4), 0.25))
    seen = Measurement(
        _operators.operator("blur:.8", (1, 8, 8)), torch.from_numpy(arrays["y"]), 0.05
    )
    alone = sample_posterior(
        load("digits"), seen, (1, 8, 8), MMPS(3), particles=4, steps=6, resample_below=0.0
    )
    assert np.allclose(arrays["x"], alone.x.numpy(), atol=1e-5)
    assert int(alone.resamplings.sum()) == 0


def test_no_picture_of_an_earlier_run_stays(here: Path) -> None:
    """A run of points beside results of images, whose arrays and numbers it replaces."""
    assert run("restore", "--operator", "inpaint:left", *SMALL).exit_code == 0
    assert (here / "restored" / "restored.png").exists()
    np.save("points.npy", np.zeros((3, 2), np.float32))
    words = ["--model", "ring", "--data", "points.npy", "--operator", "inpaint:.5", *SMALL]
    done = run("restore", *words, "--method", "pigdm")
    assert done.exit_code == 0, done.output
    assert arrays_in(here / "restored")["x"].shape == (3, 4, 2)
    assert not (here / "restored" / "restored.png").exists()


def test_repaint_replaces_the_known_pixels(here: Path) -> None:
    done = run("restore", "--operator", "inpaint:left", "--method", "repaint:2", *SMALL, "--json")
    assert done.exit_code == 0, done.output
    arrays = arrays_in(here / "restored")
    seen = Measurement(
        _operators.operator("inpaint:left", (1, 8, 8)), torch.from_numpy(arrays["y"]), 0.05
    )
    settings = {"draws": 4, "steps": 6, "resamplings": 2}
    alone = repaint(load("digits"), seen, (1, 8, 8), **settings)
    assert np.allclose(arrays["x"], alone.x.numpy(), atol=1e-5)
    assert json.loads(done.stdout)["log_evidence"] is None


def test_the_coverage_of_exact_draws_is_that_of_ranks() -> None:
    """Of 9 draws a true value has one of 10 ranks; 4 … 5 of 9 below it are within the middle."""
    assert _of_exact_draws(9, 0.2) == pytest.approx(2 / 10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 10, generator=generator)
    below = (x[:, 1:] < x[:, :1]).double().mean(1)
    share = ((2 * (below - 0.5).abs()) <= 0.8).double().mean()
    assert _of_exact_draws(9, 0.8) == pytest.approx(float(share), abs=0.03)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("inpaint:left", 32),
        ("inpaint:right", 32),
        ("inpaint:top", 32),
        ("inpaint:bottom", 32),
        ("inpaint:box", 16),
        ("inpaint:.25", 48),
    ],
)
def test_masks_hide_what_their_names_say(name: str, hidden: int) -> None:
    kept = _operators.operator(name, (1, 8, 8)).kept
    assert int((~kept).sum()) == hidden
    if name == "inpaint:left":
        assert not bool(kept[..., :4].any())
    if name == "inpaint:right":
        assert not bool(kept[..., 4:].any())
    if name == "inpaint:top":
        assert not bool(kept[..., :4, :].any())
    if name == "inpaint:bottom":
        assert not bool(kept[..., 4:, :].any())


def test_channels_of_a_pixel_are_kept_together() -> None:
    kept = _operators.operator("inpaint:.5", (3, 4, 4)).kept
    assert torch.equal(kept[0], kept[1])
    assert int(kept[0].sum()) == 8


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--operator", "sharpen"], "operator must be one of inpaint:left"),
        (["--operator", "impaint:left"], "got impaint:left; did you mean inpaint?"),
        (["--operator", "inpaint:2"], "inpaint must be a share between 0 and 1, got 2.0"),
        (["--operator", "inpaint:middle"], "inpaint must be left, right, top, bottom, box or"),
        (["--operator", "downsample:3"], "be a factor of both sides 8 × 8: 2, 4, 8, got 3"),
        (
            ["--operator", "blur:abc"],
            "blur must be a standard deviation in pixels",
        ),
        (
            ["--operator", "grey"],
            "images of several channels, got grey for samples",
        ),
        (
            ["--operator", "inpaint:left", "--model", "ring"],
            "be a share for samples that are no",
        ),
        (
            ["--operator", "blur:1", "--model", "ring"],
            "go with images (C, H, W), got samples",
        ),
        (["--operator", "blur:1", "--method", "magic"], "method must be one of mmps, dense-mmps"),
        (["--operator", "blur:1", "--method", "mmps:0"], "method must be one of mmps, dense-mmps"),
        (["--operator", "blur:1", "--method", "tmpd:3"], "method must be one of mmps, dense-mmps"),
        (
            ["--operator", "blur:1", "--method", "repaint"],
            "method must go with --operator inpaint:…, whose pixels can be replaced, got repaint",
        ),
        (
            ["--operator", "inpaint:left", "--method", "repaint", "--weighted"],
            "method must go without --weighted: its draws have no weights, got repaint; drop",
        ),
        (
            ["--operator", "inpaint:left", "--method", "repaint:0"],
            "method must be one of mmps, dense-mmps",
        ),
        (
            ["--operator", "blur:1", "--noise", "0"],
            "noise must be a standard deviation, laplace:SCALE or poisson:PEAK, above 0, got 0;",
        ),
        (["--operator", "blur:1", "--noise", "salt:.1"], "above 0, got salt:.1; pass for example"),
        (
            ["--operator", "blur:1", "--noise", "poisson:30"],
            "be Gaussian for --method mmps, got poisson:30; pass --method plug-in, and --weighted",
        ),
        (["--operator", "blur:1", "--data", "nothing"], "nothing"),
    ],
)
def test_wrong_words_end_in_one_line(words: list[str], says: str, here: Path) -> None:
    done = run("restore", *words, *SMALL)
    assert done.exit_code == 2
    assert says in done.output
    assert not (here / "restored").exists()


def test_other_noise_is_drawn_and_weighed(here: Path) -> None:
    """Photon counts are whole numbers, and the evidence is that of counts."""
    noise = ["--noise", "poisson:20", "--method", "plug-in", "--weighted"]
    done = run("restore", "--operator", "inpaint:left", *noise, *SMALL)
    assert done.exit_code == 0, done.output
    assert "through inpaint:left with noise poisson:20" in done.output
    with np.load(here / "restored/restored.npz") as arrays:
        counts = arrays["y"]
    assert (counts == counts.round()).all()
    assert counts.min() >= 0
    assert counts.max() > 20  # of a white pixel 40 are expected
    written = json.loads((here / "restored/restored.json").read_text())
    assert max(written["log_evidence"]) < 0  # a probability, not a density


def test_verify_posterior_prints_and_writes_its_table(here: Path) -> None:
    done = run("verify", "--posterior", "--problems", "3", "--particles", "8", "--steps", "5")
    assert done.exit_code == 0, done.output
    for name in ("exact draws", "particles, DenseMMPS", "TMPD", "DPS", "DiffPIR"):
        assert f"\n{name} " in done.output
    assert max(map(len, done.output.splitlines())) <= 100
    written = json.loads((here / "verify-results/posterior.json").read_text())
    rows = {row["name"]: row for row in written["samplers"]}
    assert rows["exact draws"]["evidence_error"] is None
    assert f"{rows['TMPD']['mean_error']['mean']:.3f}" in done.output


def test_verify_posterior_refuses_what_it_does_not_look_at(here: Path) -> None:
    done = run("verify", "--posterior", "--solver", "heun", "--grid", "karras")
    assert done.exit_code == 2
    assert "--solver, --grid must not be given with --posterior" in done.output
    assert not (here / "verify-results").exists()
