"""Averages of the weights: their closed forms, and any width made after the run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from torch import Tensor, nn

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    ScoreModel,
    TrainingConfig,
    describe,
    load,
    train,
)
from sde_diffusion.training.averages import Averages, ema_decay, gamma_of, update_average
from sde_diffusion.training.config import WIDEST
from sde_diffusion.training.post_hoc import Profile, fit, reconstruct_average

CONFIG = TrainingConfig(steps=40, batch_size=8, learning_rate=0.01, warmup=0, checkpoint_every=100)
WIDTHS = (0.03, 0.05, 0.1, 0.15, 0.2, 0.25)


def points() -> Dataset:
    values = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    return Dataset(DataSpec("points", (2,), None), values, None)


def fresh() -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1), VPSDE())


def vector(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().double()


def weights_of_steps(config: TrainingConfig) -> Tensor:
    """Every weight after every step: (steps, n), float64."""
    model = fresh()
    last = fresh()
    found = []
    for _ in train(model, points(), replace(config, steps=config.steps + 1)):
        found.append(vector(model))
    for _ in train(last, points(), replace(config, ema_decay=0.0)):
        pass
    assert torch.equal(found[-2], vector(last))  # an average of no memory is the last weights
    return torch.stack(found[:-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averages of all kinds."""
    out = tmp_path_factory.mktemp("averages") / "run"
    config = replace(CONFIG, ema_half_lives=(2.0, 7.5), ema_widths=(0.1, 0.2), snapshot_every=8)
    for _ in train(fresh(), points(), config, out=out):
        pass
    return out


@pytest.fixture(scope="module")
def weights() -> Tensor:
    return weights_of_steps(CONFIG)


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.999])
def test_all_tensors_at_once_move_as_each_alone_bit_for_bit(decay: float):
    mean = fresh()
    module = fresh()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
        alone = [
            m.lerp(v, 1 - decay)
            for m, v in zip(mean.parameters(), module.parameters(), strict=True)
        ]
    update_average(mean, module, decay)
    assert all(torch.equal(m, a) for m, a in zip(mean.parameters(), alone, strict=True))


@pytest.mark.parametrize("half_life", [2.0, 7.5])
def test_averages_of_several_half_lives_lie_beside_the_model(
    folder: Path, weights: Tensor, half_life: float
):
    expected = vector(fresh())
    for step, value in enumerate(weights, start=1):
        decay = ema_decay(2 ** (-1 / half_life), step)
        expected = decay * expected + (1 - decay) * value
    path = folder / f"ema-{half_life:g}.safetensors"
    assert torch.allclose(vector(load(path)), expected, rtol=0, atol=1e-6)
    assert describe(path)["half_life"] == half_life


def test_an_average_forgets_one_half_in_its_half_life():
    model = fresh().double()
    average = Averages(model, replace(CONFIG, ema_half_lives=(20.0,)))
    with torch.no_grad():
        for mean, value in zip(
            average.half_lives[20.0].parameters(), model.parameters(), strict=True
        ):
            mean.fill_(1.0)
            value.fill_(0.0)
    for step in range(1000, 1020):  # long after the ramp
        average.update(model, step)
    assert vector(average.half_lives[20.0]).sub(0.5).abs().max() < 1e-12


@pytest.mark.parametrize("width", WIDTHS)
def test_gamma_gives_its_profile_the_relative_width(width: float):
    gamma = gamma_of(width)
    mean, square = (quad(lambda t, n=n: t**n * (gamma + 1) * t**gamma, 0, 1)[0] for n in (1, 2))
    assert math.sqrt(square - mean**2) == pytest.approx(width, rel=1e-6)
    assert gamma > 0
    assert gamma_of(WIDEST) == pytest.approx(0, abs=1e-12)


def shares(steps: int, gamma: float) -> NDArray[np.float64]:
    """What the weights of each step count for: the profile's integral over that step."""
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    found: NDArray[np.float64] = np.diff(edges)
    return found


@pytest.mark.parametrize("width", [0.1, 0.2])
def test_a_power_average_is_its_profile_over_the_steps(
    folder: Path, weights: Tensor, width: float
):
    for step in (8, 24, 40):
        expected = torch.from_numpy(shares(step, gamma_of(width))) @ weights[:step]
        path = folder / "snapshots" / f"{step:08}-{width:g}.safetensors"
        assert torch.allclose(vector(load(path)), expected, rtol=0, atol=1e-6)
        assert (describe(path)["step"], describe(path)["width"]) == (step, width)
    assert len(list((folder / "snapshots").iterdir())) == 2 * 5


def scalar_run(steps: int) -> NDArray[np.float64]:
    """A weight that drifts and jitters, at every step."""
    jitter = np.random.default_rng(0).standard_normal(steps)
    found: NDArray[np.float64] = 3 + np.cumsum(jitter) / math.sqrt(steps) + 0.3 * jitter
    return found


def kept_directly(theta: NDArray[np.float64], profile: Profile) -> float:
    """The average by its own recursion β_k = (1 − 1/k)^{γ+1}."""
    mean = 0.0
    for k, value in enumerate(theta[: profile.step], start=1):
        beta = (1 - 1 / k) ** (gamma_of(profile.width) + 1)
        mean = beta * mean + (1 - beta) * value
    return mean


def test_the_average_of_any_width_is_made_of_those_kept():
    steps = 2560
    theta = scalar_run(2560)
    kept = [Profile(step, w) for step in range(40, steps + 1, 40) for w in (0.05, 0.1)]
    values = np.array([kept_directly(theta, profile) for profile in kept])
    for width, tolerance in (
        (0.03, 1e-3),
        (0.07, 1e-4),
        (0.15, 1e-4),
        (0.2, 1e-3),
        (0.05, 1e-10),
        (0.1, 1e-10),
    ):
        wanted = Profile(steps, width)
        made = fit(kept, wanted).coefficients @ values
        assert abs(made - kept_directly(theta, wanted)) < tolerance, width
    # The tolerances tell the averages apart.
    assert abs(kept_directly(theta, Profile(steps, 0.15)) - theta[-1]) > 0.05
    assert (
        abs(kept_directly(theta, Profile(steps, 0.15)) - kept_directly(theta, Profile(steps, 0.1)))
        > 0.01
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_error_of_a_fit_is_that_of_the_profiles(width: float):
    kept = [Profile(step, w) for step in (25, 50, 75, 100) for w in (0.1, 0.2)]
    wanted = Profile(100, width)
    found = fit(kept, wanted)

    def profile(p: Profile, t: float) -> float:
        gamma = gamma_of(p.width)
        return (gamma + 1) * t**gamma / p.step ** (gamma + 1) if t <= p.step else 0.0

    def rest(t: float) -> float:
        made = sum(c * profile(p, t) for c, p in zip(found.coefficients, kept, strict=True))
        return float(made - profile(wanted, t)) ** 2

    stretches = [(0, 25), (25, 50), (50, 75), (75, 100)]
    square = sum(quad(rest, *ends, epsabs=1e-14)[0] for ends in stretches)
    whole = quad(lambda t: profile(wanted, t) ** 2, 0, 100)[0]
    assert found.error == pytest.approx(math.sqrt(square / whole), abs=1e-5)
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-10)  # weights that rest stay
    # Moved by a little, in any direction that keeps the sum, the fit is no better.
    for i in range(1, len(kept)):
        for step in (1e-3, -1e-3):
            found.coefficients[[0, i]] += (step, -step)
            assert sum(quad(rest, *ends, epsabs=1e-14)[0] for ends in stretches) > square - 1e-12
            found.coefficients[[0, i]] -= (step, -step)


def test_a_model_is_reconstructed_of_a_run(folder: Path, weights: Tensor):
    assert torch.equal(
        vector(reconstruct_average(folder, 0.2)),
        vector(load(folder / "snapshots" / "00000040-0.2.safetensors")),
    )
    made = vector(reconstruct_average(folder, 0.14))
    expected = torch.from_numpy(shares(40, gamma_of(0.14))) @ weights
    nearest = min(
        (vector(load(p)) for p in (folder / "snapshots").glob("00000040-*")),
        key=lambda v: float((v - expected).norm()),
    )
    assert (made - expected).norm() < 0.05 * (nearest - expected).norm()


def test_what_cannot_be_reconstructed_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"width must be a width that 10 snapshots of 0\.1, 0\.2"):
        reconstruct_average(folder, 0.01)
    with pytest.raises(ValueError, match=r"width must be at most 0\.288"):
        reconstruct_average(folder, 0.3)
    with pytest.raises(FileNotFoundError, match="folder must hold snapshots"):
        reconstruct_average(tmp_path, 0.1)
