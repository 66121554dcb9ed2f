"""Samplers of other programs in our tables: they end where the same method of ours ends."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    DiscreteBeta,
    GaussianMixture,
    PerSampleNoise,
    ReverseSDE,
    SubVPSDE,
    integrate,
    linear_betas,
    log_snr,
    sample,
)
from sde_diffusion.cli import menu
from sde_diffusion.cli.main import main
from sde_diffusion.diagnostics import observed_order
from sde_diffusion.solvers import DDIM, Ancestral, EDMHeun

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("azula.sample", reason="azula is not installed")
from sde_diffusion.exchange import FunctionPeer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SDES = [SubVPSDE(), EDMSDE(), VPSDE(DiscreteBeta(linear_betas(1000)))]


def euler(denoiser, y, sigmas):
    """k-diffusion's way to write a sampler."""
    for sigma, lower in pairwise(sigmas):
        y = y + (lower - sigma) * (y - denoiser(y, sigma * torch.ones(len(y)))) / sigma
    return y


def midpoint(denoiser, y, sigmas):
    """The midpoint rule in σ, which evaluates between the times of the grid."""
    for sigma, lower in pairwise(sigmas):
        middle = 0.5 * (sigma + lower)
        half = y + (middle - sigma) * (y - denoiser(y, sigma)) / sigma
        y = y + (lower - sigma) * (half - denoiser(half, middle)) / middle
    return y


def half(denoiser, y, sigmas):
    """A sampler that takes the denoiser's sigma for half of it."""
    return euler(lambda y, sigma: denoiser(y, 0.5 * sigma), y, sigmas)


def uneven(denoiser, y, sigmas):
    return euler(denoiser, y, sigmas) + torch.rand(y.shape)


def other_shape(denoiser, y, sigmas):
    return euler(denoiser, y, sigmas) + torch.randn(len(y), 1)


def solved(solver, sde, steps=7):
    model = GaussianMixture.ring(8).diffused(sde)
    noise = PerSampleNoise.numbered(5, 0, 3)
    x = sde.prior().sample(PerSampleNoise.numbered(1, 0, 3), (3, 2), dtype=torch.float64)
    grid = log_snr(sde, steps)
    found = integrate(ReverseSDE(sde, model), solver, x, grid, noise=noise)
    return found.x, found.nfe


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("peer", "ours"),
    [
        ("diffusers:DDIMScheduler", Ancestral(eta=0.0)),
        ("diffusers:EulerDiscreteScheduler", Ancestral(eta=0.0)),
        ("diffusers:EDMEulerScheduler", Ancestral(eta=0.0)),
        ("diffusers:EDMEulerScheduler:prediction_type=v_prediction", Ancestral(eta=0.0)),
        ("diffusers:FlowMatchEulerDiscreteScheduler", Ancestral(eta=0.0)),
        ("diffusers:DDPMScheduler", Ancestral()),
        ("azula:EulerSampler", Ancestral(eta=0.0)),
        ("azula:DDIMSampler:eta=1.0", Ancestral()),
        ("azula:DDPMSampler", Ancestral()),
    ],
)
def test_a_peer_ends_where_the_same_method_of_ours_ends(peer, ours, sde) -> None:
    """Those that draw have the same noise, so that the ends are equal, not only their laws."""
    before = torch.get_rng_state()
    expected, evaluations = solved(ours, sde)
    found, counted = solved(menu.peer(peer), sde)
    assert float((found - expected).abs().max()) < 1e-6
    assert counted == evaluations == 7
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()])
def test_functions_and_heuns_steps_are_those_of_ours(sde) -> None:
    model = GaussianMixture.ring(8).diffused(sde)
    grid = log_snr(sde, 6)
    for peer, ours, nfe in (
        (FunctionPeer(euler), DDIM(), 6),
        (menu.peer("azula:HeunSampler"), EDMHeun(), 12),
    ):
        found = sample(model, peer, (3, 2), grid=grid, dtype=torch.float64)
        expected = sample(model, ours, (3, 2), grid=grid, dtype=torch.float64)
        assert float((found.x - expected.x).abs().max()) < 1e-6
        assert found.nfe == expected.nfe == nfe


@pytest.mark.parametrize(
    ("name", "kind", "order"),
    [
        ("diffusers:DDIMScheduler", "ode", 1),
        ("diffusers:DPMSolverMultistepScheduler", "ode", 2),
        ("diffusers:HeunDiscreteScheduler", "ode", 2),
        ("diffusers:FlowMatchHeunDiscreteScheduler", "ode", 2),
        ("diffusers:EDMDPMSolverMultistepScheduler", "ode", 2),
        ("diffusers:EulerAncestralDiscreteScheduler", "weak", 1),
        ("diffusers:DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++", "weak", 2),
        ("azula:HeunSampler", "ode", 2),
        ("azula:REABSampler", "ode", 1),  # which is said to be of order 2
        ("azula:DDIMSampler", "ode", 1),  # it draws and multiplies by 0
    ],
)
def test_the_order_of_a_peer_is_measured(name, kind, order) -> None:
    found, errors = observed_order(menu.peer(name), VPSDE(), (16, 32))
    assert found == kind
    assert abs(errors.order - order) < 0.15


def test_a_function_may_evaluate_between_the_times_and_a_wrong_one_is_told_by_its_order() -> None:
    for function, order in ((midpoint, 2), (half, 0)):
        _, errors = observed_order(FunctionPeer(function), VPSDE(), (16, 32))
        assert abs(errors.order - order) < 0.15


def test_compare_has_the_peer_in_its_table_from_the_same_noise(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def euler(denoiser, y, sigmas):\n"
        "    for s, r in zip(sigmas, sigmas[1:]):\n"
        "        y = y + (r - s) * (y - denoiser(y, s)) / s\n"
        "    return y\n"
    )
    names = ["diffusers:DDIMScheduler", "mine:euler"]
    words = ["compare", "--model", "ring", "--solver", "ddim", "--nfe", "6", "--samples", "4"]
    words += ["--reference-steps", "20", "--replicates", "2", "--json", "--out", "out"]
    for name in names:
        words += ["--peer", name]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["solver"]: row for row in found["comparisons"][0]["rows"]}
    assert set(rows) == {"ddim", *names}
    for name in names:
        assert rows[name]["nfe"] == rows[name]["steps"] == 6
        for column in ("error", "sliced_wasserstein", "frechet"):
            assert abs(rows[name][column]["mean"] - rows["ddim"][column]["mean"]) < 1e-6
    orders = found["measured_orders"][0]
    assert {name: order["kind"] for name, order in orders.items()} == dict.fromkeys(names, "ode")
    text = (tmp_path / "out" / "table.txt").read_text()
    for name in names:
        assert f"{name}: measured order 1.00, of 32 and 64 steps" in text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("diffusers:DPMSolverMultistep", "did you mean DPMSolverMultistepScheduler?"),
        ("diffusers:DDIMScheduler:order=2", "take settings of num_train_timesteps"),
        ("diffusers:ScoreSdeVeScheduler", "take trained_betas, or be one of EDMEulerScheduler"),
        ("diffusers:DDIMInverseScheduler", "evaluate at the times of the grid"),
        ("diffusers:KDPM2DiscreteScheduler", "evaluate at the times of the grid"),
        ("diffusers:LCMScheduler", "take all 7 steps of its lattice"),
        ("diffusers:CogVideoXDPMScheduler", "step by (model_output, timestep, sample)"),
        ("diffusers:DDIMScheduler:3", "have settings as word=value"),
        ("azula:Euler", "be followed by one of DDPMSampler"),
        ("azula:EulerSampler:order=2", "settings must be those of the sampler"),
        ("euler", "must be one of diffusers:NAME, azula:NAME, or package.module:attr"),
        (f"{__name__}:SDES", "function must be a function (denoiser, y, sigmas)"),
    ],
)
def test_what_is_no_peer_is_refused_in_a_sentence(name, says, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    with pytest.raises((TypeError, ValueError)) as refused:
        solved(menu.peer(name), VPSDE())
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("function", "got"), [(uneven, "rand"), (other_shape, r"\(1, 1\)")])
def test_draws_that_cannot_be_ours_are_refused(function, got) -> None:
    with pytest.raises(ValueError, match=f"draws must be normals of the states' shape .*{got}"):
        solved(FunctionPeer(function), VPSDE())


def test_without_the_program_a_sentence_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "azula.sample", None)
    done = CliRunner().invoke(main, ["compare", "--peer", "azula:EulerSampler"])
    assert done.exit_code != 0
    assert "sde_diffusion: the package azula must be installed, got" in done.output
    assert "type pip install --no-deps azula einops" in done.output
