"""Networks in half precision: what is rounded, and what it costs against float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from sde_diffusion import (
    VPSDE,
    Gaussian,
    Hutchinson,
    ScoreModel,
    WhiteNoise,
    load,
    load_data,
    sample,
    uniform,
)
from sde_diffusion.cli.main import main
from sde_diffusion.diagnostics import Problem
from sde_diffusion.evaluation import likelihood_rounding, rounding_errors
from sde_diffusion.models import in_precision
from sde_diffusion.models.rounded import HALF
from sde_diffusion.solvers import DDIM, AngularAdams, Heun

every_half = pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])


class Halving(nn.Module):
    """x/2, which no binary format rounds; the time must come in full precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.float32
        return x * self.weight


@every_half
def test_states_are_rounded_on_their_way_into_the_network_alone(dtype: torch.dtype) -> None:
    model = ScoreModel(Halving(), VPSDE()).eval()
    half = in_precision(model, dtype)
    x = WhiteNoise(0).normal(torch.zeros(50, 3))
    t = torch.tensor(0.3)
    assert torch.equal(half.eps(x, t), x.to(dtype).float() / 2)
    assert not torch.equal(half.eps(x, t), model.eps(x, t))
    assert half.eps(x, t).dtype == torch.float32
    assert model.network.weight.dtype == torch.float32  # its own weights are as they were


@every_half
def test_classes_and_their_rows_are_kept(dtype: torch.dtype) -> None:
    labels = torch.tensor([3, 7, -1])
    half = in_precision(load("digits").given(labels), dtype)
    x = WhiteNoise(0).normal(torch.zeros(3, 1, 8, 8))
    t = torch.tensor(0.4)
    together = half(x, t)
    for i in range(3):
        alone = half.rows(torch.tensor([i]))(x[i : i + 1], t)
        assert (alone - together[i : i + 1]).abs().max() < 0.05
    swapped = in_precision(load("digits").given(labels.flip(0)), dtype)(x, t)
    assert (swapped - together).abs().max() > 0.05


def test_the_error_of_samples_and_likelihoods_is_that_of_the_formats_bits() -> None:
    """bfloat16 has 8 bits of precision and float16 11: eight times the error."""
    model = load("digits")
    data = load_data("digits", "test", limit=6).dequantized(torch.Generator().manual_seed(0))
    problem = Problem("digits", model, data)
    solvers = {"ddim": DDIM(), "angular": AngularAdams()}
    eighths, sixteenths = (
        rounding_errors(problem, solvers, (6,), dtype, samples=12, replicates=2) for dtype in HALF
    )
    for coarse, fine in zip(eighths, sixteenths, strict=True):
        assert 3 < coarse.error.mean / fine.error.mean < 20
        assert coarse.nfe == fine.nfe == (6, 6)
        assert 2**-11 < coarse.error.mean < 2**-6
    (change, size), (_, less) = (
        likelihood_rounding(
            model, dtype, data, Heun(), divergence=Hutchinson(probes=1), grid=uniform(8).flip(0)
        )
        for dtype in HALF
    )
    assert abs(change.mean) <= size.mean
    assert 1.5 < size.mean / less.mean < 40


def test_what_has_no_network_and_other_precisions_are_refused() -> None:
    exact = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    with pytest.raises(
        TypeError, match=r"in_precision: model must be .*LearnedScore.*, got Exact"
    ):
        in_precision(exact, torch.bfloat16)
    with pytest.raises(ValueError, match=r"dtype must be torch.bfloat16 or torch.float16, got "):
        in_precision(ScoreModel(Halving(), VPSDE()), torch.float64)


def test_the_command_says_what_the_precision_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = "compare --solver ddim --nfe 3 --samples 4 --replicates 2 --reference-steps 4"
    words = [*asked.split(), "--precision", "bfloat16"]
    done = CliRunner().invoke(main, [*words, "--model", "digits"])
    assert done.exit_code == 0, done.output
    assert "digits with its network in bfloat16, states in float32" in done.output
    assert "log-likelihood of 16 held-out samples of 64 dimensions, nats: change " in done.output
    assert max(map(len, done.output.splitlines())) <= 100
    written = json.loads(Path("compare-results/results.json").read_text(encoding="utf-8"))
    ((row,),) = [each["rows"] for each in written["rounding"]]
    model = load("digits")
    both = [
        sample(each, DDIM(), (8, 1, 8, 8), steps=3).x.split(4)
        for each in (model, in_precision(model, torch.bfloat16))
    ]
    apart = [float((a - b).square().mean().sqrt()) for a, b in zip(*both, strict=True)]
    assert row["error"]["mean"] == pytest.approx(sum(apart) / 2, rel=1e-4)
    ring = CliRunner().invoke(main, [*words, "--model", "ring"])
    assert ring.exit_code == 2
    assert "--precision: model must go with models of a network, got ring; pass" in ring.output
