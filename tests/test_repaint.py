"""RePaint: its walk, its distribution on Gaussian data in closed form, and its bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, Gaussian, quadratic
from sde_diffusion.inverse_problems import (
    Downsample,
    Mask,
    Matrix,
    Measurement,
    exact_posterior,
    repaint,
)
from sde_diffusion.inverse_problems.inpainting import visits

SDE = VPSDE()
COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
MEAN = torch.tensor([0.2, -0.1], dtype=torch.float64)
PAIR = Gaussian(MEAN, COVARIANCE)
FIRST = Mask(torch.tensor([True, False]))


def seen(std: float) -> Measurement:
    return Measurement(FIRST, torch.tensor([[1.0]], dtype=torch.float64), std)


def published_times(t_T: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """`get_schedule_jump` of the paper's appendix, in its letters; −1 is x_0."""
    jumps = dict.fromkeys(range(0, t_T - jump_length, jump_length), jump_n_sample - 1)
    t = t_T
    ts = []
    while t >= 1:
        t = t - 1
        ts.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] = jumps[t] - 1
            for _ in range(jump_length):
                t = t + 1
                ts.append(t)
    ts.append(-1)
    return ts


@pytest.mark.parametrize(
    ("steps", "jump", "resamplings"), [(250, 10, 10), (20, 3, 4), (5, 1, 2), (6, 8, 3), (4, 2, 1)]
)
def test_the_walk_is_the_published_one(steps: int, jump: int, resamplings: int) -> None:
    places = [0]
    for i, j in visits(steps, jump, resamplings):
        assert i == places[-1]
        places += [j] if j > i else range(i - 1, j - 1, -1)  # the paper goes back one by one
    published = published_times(steps, jump, resamplings)
    assert [steps - 1 - place for place in places] == published


def propagated(grid: Tensor, std: float, jump: int, resamplings: int) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of RePaint's x_0, every step of which is affine for `PAIR`.

    In DDPM's letters with alpha_bar: x0 = E[x_0|x_t], the posterior q(x_{t−1}|x_t, x0), the known
    pixel from q(x_{t−1}|y), and q(x_t|x_{t−1}) back into noise.
    """
    bar = SDE.alpha(grid).square().tolist()
    m = torch.zeros(2, dtype=torch.float64)
    c = torch.eye(2, dtype=torch.float64)
    one = torch.eye(2, dtype=torch.float64)
    told = sum(1 - a - a * std**2 > 0 for a in bar) - 1
    for i, j in visits(len(grid) - 1, jump, resamplings, told):
        if j < i:
            keep = bar[j] / bar[i]
            m = keep**0.5 * m
            c = keep * c + (1 - keep) * one
            continue
        gain = (
            bar[i] ** 0.5 * COVARIANCE @ torch.linalg.inv(bar[i] * COVARIANCE + (1 - bar[i]) * one)
        )
        keep = bar[i] / bar[j]
        of_x0 = bar[j] ** 0.5 * (1 - keep) / (1 - bar[i])
        of_x = keep**0.5 * (1 - bar[j]) / (1 - bar[i])
        a = of_x0 * gain + of_x * one
        m = a @ m + of_x0 * (MEAN - gain @ (bar[i] ** 0.5 * MEAN))
        c = a @ c @ a.T + (1 - bar[j]) / (1 - bar[i]) * (1 - keep) * one
        variance = 1 - bar[j] - bar[j] * std**2
        if variance > 0:
            m = torch.stack([torch.tensor(bar[j] ** 0.5, dtype=torch.float64), m[1]])
            c = torch.tensor([[variance, 0.0], [0.0, float(c[1, 1])]], dtype=torch.float64)
    return m / bar[-1] ** 0.5, c / bar[-1]


@pytest.mark.parametrize(
    ("std", "jump", "resamplings"), [(1e-3, 10, 1), (1e-3, 3, 4), (0.3, 2, 3)]
)
def test_draws_of_gaussian_data_have_the_distribution_in_closed_form(
    std: float, jump: int, resamplings: int
) -> None:
    grid = quadratic(20)
    n = 20_000
    found = repaint(
        PAIR.diffused(SDE),
        seen(std),
        (2,),
        draws=n,
        jump=jump,
        resamplings=resamplings,
        grid=grid,
        dtype=torch.float64,
    )
    mean, covariance = propagated(grid, std, jump, resamplings)
    x = found.x[0]
    error = covariance.diagonal().sqrt() / n**0.5
    assert bool(((x.mean(0) - mean).abs() < 4.5 * error).all())
    got = torch.cov(x.T)
    scale = covariance.diagonal().sqrt().outer(covariance.diagonal().sqrt())
    assert bool(((got - covariance).abs() < 4.5 * (2 / n) ** 0.5 * scale).all())
    told = sum(float(SDE.sigma(t)) > float(SDE.alpha(t)) * std for t in grid) - 1
    assert found.nfe == sum(j > i for i, j in visits(20, jump, resamplings, told))


def test_walks_to_and_fro_do_not_forget_what_was_measured() -> None:
    """Below the level of sigma_y nothing holds known pixels: the walk goes on without returns."""
    exact = exact_posterior(PAIR, seen(0.3))[0]
    found = repaint(PAIR.diffused(SDE), seen(0.3), (2,), draws=2000, steps=60, jump=2)
    assert float(found.mean[0, 0]) == pytest.approx(float(exact.means[0, 0]), abs=0.05)


def test_more_resamplings_take_the_bias_down_but_not_away() -> None:
    exact = float(exact_posterior(PAIR, seen(0.01))[0].means[0, 1])
    errors = []
    for resamplings in (1, 3, 9):
        found = repaint(
            PAIR.diffused(SDE), seen(0.01), (2,), draws=8000, steps=30, resamplings=resamplings
        )
        errors.append(exact - float(found.mean[0, 1]))
    assert errors[0] > 1.5 * errors[1] > 2.2 * errors[2]
    assert errors[2] > 3 * 0.6 / 8000**0.5  # three standard errors: it is there


def test_a_hidden_pixel_that_knows_nothing_of_the_others_is_exact() -> None:
    """With independent pixels the hidden one is a draw of the prior, the known one of y."""
    alone = Gaussian(torch.tensor([0.3, -0.5]), torch.tensor([0.5, 0.7]).diag())
    found = repaint(
        alone.diffused(SDE),
        Measurement(FIRST, torch.tensor([[1.0]]), 0.01),
        (2,),
        draws=5000,
        steps=100,
        resamplings=2,
    )
    assert float(found.mean[0, 0]) == pytest.approx(1, abs=2e-3)
    assert float(found.mean[0, 1]) == pytest.approx(-0.5, abs=4.5 * (0.7 / 5000) ** 0.5)
    assert float(found.std[0, 1]) ** 2 == pytest.approx(
        0.7, rel=0.1
    )  # β̃ is first-order in the steps


def test_a_measurement_is_sampled_as_it_would_be_alone() -> None:
    model = PAIR.diffused(SDE)
    many = Measurement(FIRST, torch.tensor([[0.1], [1.5], [-2.0]]), 0.1)
    settings = {"draws": 5, "steps": 8, "jump": 2, "resamplings": 2, "seed": 4}
    whole = repaint(model, many, (2,), **settings)
    for q in range(3):
        one = repaint(model, many.rows(torch.tensor([q])), (2,), first=q, **settings)
        assert torch.equal(whole.x[q], one.x[0])
    assert bool(whole.log_evidence.isnan().all())
    assert torch.allclose(whole.weights, torch.full((3, 5), 0.2).double())


def test_other_operators_and_bad_settings_are_refused_by_name() -> None:
    model = PAIR.diffused(SDE)
    linear = Measurement(Matrix(torch.ones(1, 2)), torch.tensor([[1.0]]), 0.1)
    cases = [
        (
            lambda: repaint(model, linear, (2,)),
            "measurement.operator must be a Mask, whose pixels can be replaced, got Matrix; call",
        ),
        (
            lambda: repaint(model, Measurement(Downsample(2), torch.zeros(1, 1, 1, 1), 1.0), (2,)),
            "got Downsample",
        ),
        (lambda: repaint(model, seen(0.1), (2,), draws=0), "draws must be at least 1"),
        (lambda: repaint(model, seen(0.1), (2,), jump=0), "jump must be at least 1"),
        (lambda: repaint(model, seen(0.1), (2,), resamplings=0), "resamplings must be at least"),
        (lambda: repaint(len, seen(0.1), (2,)), "model must be a score model"),
    ]
    for call, text in cases:
        with pytest.raises((TypeError, ValueError), match=text):
            call()
