"""Latent models on the command line: trained, sampled, compared, evaluated, described."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sde_diffusion import (
    VPSDE,
    EvaluationSettings,
    Evaluator,
    Gaussian,
    LatentModel,
    LinearAutoencoder,
    load_autoencoder,
    load_data,
    load_latent,
)
from sde_diffusion.cli.main import main
from sde_diffusion.solvers import DormandPrince

SMALL = ["--width", "8", "--steps", "2", "--batch-size", "4", "--warmup", "1", "--limit", "32"]


def run(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Return a folder with the runs of an autoencoder and of a score of its latents."""
    folder = tmp_path_factory.mktemp("runs")
    one = ["--network", "multipliers=1,1", "--network", "latent=2", "--kl-weight", "0.1"]
    run("train", "--autoencoder", *SMALL, *one, "--out", folder / "ae")
    score = ["--network", "multipliers=1,1", "--network", "blocks=1", "--conditional"]
    run("train", "--latents", folder / "ae", *SMALL, *score, "--out", folder / "latent")
    return folder


def test_the_runs_hold_both_parts(runs: Path):
    autoencoder = load_autoencoder(runs / "ae")
    model = load_latent(runs / "latent")
    assert model.autoencoder.latent == autoencoder.latent == (2, 4, 4)
    for name, value in autoencoder.state_dict().items():
        assert torch.equal(value, model.autoencoder.state_dict()[name]), name
    assert model.classes == 10
    assert model.observed == load_data("digits").spec


def test_runs_go_on_with_their_own_settings(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "latent", tmp_path / "latent")
    shutil.copytree(runs / "ae", tmp_path / "ae")
    for name in ("latent", "ae"):
        found = run("train", "--out", tmp_path / name, "--resume", "--steps", "3", "--json")
        assert json.loads(found)["step"] == 3


def test_samples_are_decoded_latents(runs: Path, tmp_path: Path):
    words = ("sample", "--model", runs / "latent", "-n", 3, "--steps", 2, "--class", "7")
    run(*words, "--guidance", "1", "--out", tmp_path)
    with np.load(tmp_path / "samples.npz") as found:
        arrays = dict(found)
    assert arrays["latents"].shape == (3, 2, 4, 4)
    model = load_latent(runs / "latent")
    with torch.no_grad():
        x = model.decode(torch.from_numpy(arrays["latents"])).numpy()
    assert np.allclose(arrays["x"], x, atol=1e-6)
    assert np.array_equal(arrays["levels"], model.observed.decode(torch.from_numpy(arrays["x"])))
    assert (tmp_path / "samples.png").exists()


def test_compare_stands_beside_a_model_of_the_data(runs: Path, tmp_path: Path):
    words = ["--nfe", 2, "--samples", 4, "--replicates", 2, "--reference-steps", 2]
    both = ["--model", "digits", "--model", runs / "latent", "--data", "digits"]
    run("compare", *both, "--solver", "euler", *words, "--out", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [c["rows"][0]["nfe"] for c in found["comparisons"]] == [2, 2]
    floors = [c["floor_frechet"]["mean"] for c in found["comparisons"]]
    assert floors[0] == floors[1]  # of the same data, in the same units
    worse = found["differences"][0]["frechet"]["mean"]
    rows = [c["rows"][0]["frechet"]["mean"] for c in found["comparisons"]]
    assert worse == pytest.approx(rows[1] - rows[0])


def test_info_names_the_autoencoder(runs: Path):
    for name in ("ae", "latent"):
        assert "ConvolutionalAutoencoder" in run("info", runs / name)
    assert json.loads(run("info", runs / "ae", "--json"))["parameters"] > 1000


def test_likelihoods_are_those_of_the_data(runs: Path, tmp_path: Path):
    words = ("--limit", 2, "--tolerance", 1, "--bound", "all", "--times", 4)
    run("likelihood", "--model", runs / "latent", *words, "--out", tmp_path)
    with np.load(tmp_path / "likelihood.npz") as found:
        for bound in ("flow", "elbo", "vlb"):
            parts = [found[f"{bound}_{term}"] for term in ("latent", "decoder", "encoder")]
            volume = found[f"{bound}_volume"]
            assert np.allclose(found[f"{bound}_nats"], sum(parts) + volume), bound
            assert (found[f"{bound}_nats_error"] > 0).all()


def test_the_evaluator_of_a_linear_autoencoder_is_that_of_the_gaussian_it_makes():
    # x = W⁻¹ z with z standard normal, which VP keeps: log P(k) of dequantized digits is known.
    dataset = load_data("digits", limit=3)
    matrix = 0.5 * torch.eye(64) + 0.01 * torch.ones(64, 64)
    unit = Gaussian(torch.zeros(64), torch.eye(64)).diffused(VPSDE())
    autoencoder = LinearAutoencoder(matrix, latent=(64,), data=dataset.spec)
    model = LatentModel(autoencoder, unit)
    settings = EvaluationSettings(divergence="exact", tolerance=1e-6)
    evaluator = Evaluator(model, dataset, DormandPrince(), settings)
    found = evaluator.batch(range(3))
    u, _ = next(evaluator.dequantizer().draws(dataset.values, 1, 0))
    x = dataset.spec.encode(dataset.values, u).double().flatten(1)
    inverse = torch.linalg.inv(matrix.double())
    observed = Gaussian(torch.zeros(64).double(), inverse @ inverse.T)
    exactly = observed.log_prob(x) + dataset.spec.log_volume(x)
    assert torch.tensor(found.values["flow_nats"]).sub(exactly).abs().max() < 0.01
    assert max(found.values["flow_standard_error"]) == 0


def test_what_does_not_go_together_is_refused(runs: Path, tmp_path: Path):
    out = ("--out", tmp_path / "x")
    assert "go with --autoencoder" in refusal("train", "--kl-weight", "1", *out)
    words = ("train", "--autoencoder", *out)
    assert "--conditional" in refusal(*words, "--conditional")
    assert "--latents" in refusal(*words, "--latents", runs / "ae")
    assert "--network" in refusal(*words, "--network", "heads=2")
    assert "must hold an autoencoder" in refusal("train", "--latents", "digits", *out)
    other = tmp_path / "other.npy"
    np.save(other, np.zeros((8, 9, 9), dtype=np.uint8))
    found = refusal("train", "--latents", runs / "ae", "--data", other, "--levels", "17", *out)
    assert "(1, 8, 8)" in found
    model = ("--model", runs / "latent")
    found = refusal("likelihood", *model, "--data", other, *out)
    assert "samples of the model's shape (1, 8, 8)" in found
    found = refusal("likelihood", *model, "--dequantization", "none", "--bound", "elbo", *out)
    assert "whose decoder is a density" in found
    assert "LatentModel" in refusal("likelihood", *model, "--limit", 1, "--ledger", 1, *out)
    assert "load_autoencoder" in refusal("sample", "--model", runs / "ae", *out)
