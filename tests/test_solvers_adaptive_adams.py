"""Adaptive Adams: its weights, its order, its own steps for every sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sde_diffusion import (
    ODE,
    VPSDE,
    Exact,
    Gaussian,
    GaussianMixture,
    ProbabilityFlow,
    integrate,
    log_prob,
)
from sde_diffusion.solvers import AdaptiveAdams, DormandPrince
from sde_diffusion.solvers._shared.adams_history import RATIO, adams_weights

ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_weights_are_those_of_the_textbook_on_even_steps() -> None:
    """Adams–Bashforth 1 … 5 by the known nodes, and Adams–Moulton with the new node first."""
    nodes = torch.tensor([[0.0, -1, -2, -3, -4]], dtype=torch.float64)
    bashforth = {
        1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
        5: [1901 / 720, -2774 / 720, 2616 / 720, -1274 / 720, 251 / 720],
    }  # fmt: skip
    for known, wanted in bashforth.items():
        found = adams_weights(nodes, torch.tensor([known]))[0]
        filled = torch.tensor(wanted + [0.0] * (5 - known), dtype=torch.float64)
        assert torch.allclose(found, filled, rtol=0, atol=1e-12)
    moulton = adams_weights(nodes[:, :4] + 1, torch.tensor([4]))[0]
    wanted = torch.tensor([9 / 24, 19 / 24, -5 / 24, 1 / 24], dtype=torch.float64)
    assert torch.allclose(moulton, wanted, rtol=0, atol=1e-12)


def test_weights_are_exact_for_polynomials_on_uneven_steps() -> None:
    nodes = torch.tensor([[0.0, -0.3, -1.7, -1.9], [1.0, 0.0, -2.0, -2.5]], dtype=torch.float64)
    w = adams_weights(nodes, torch.tensor([4, 3]))
    for k in range(3):
        assert torch.allclose((w * nodes**k).sum(1), torch.full((2,), 1 / (k + 1)).double())
    assert float((w[0] * nodes[0] ** 3).sum()) == pytest.approx(1 / 4)
    assert float(w[1, 3]) == 0


def test_the_part_of_the_error_is_that_of_the_textbook() -> None:
    """γ_k = ∫_0^1 s(s + 1)…(s + k − 1)/k! ds of Adams–Bashforth, over [−1, 0] Adams–Moulton's."""
    for k in range(1, 7):
        product = np.poly1d(np.poly([-float(j) for j in range(k)])).integ()
        bashforth = product(1.0) - product(0.0)
        moulton = product(0.0) - product(-1.0)
        assert float(RATIO[k - 1]) == pytest.approx(abs(moulton / bashforth), rel=1e-6)


class Oscillator(ODE):
    """x' = ω (−x_2, x_1): a turn by ω t."""

    def velocity(self, x, t):  # noqa: ARG002
        return 7.0 * torch.stack([-x[:, 1], x[:, 0]], 1)


class Counted(ODE):
    def __init__(self, ode: ODE) -> None:
        self.ode = ode
        self.calls = 0

    def velocity(self, x, t):
        self.calls += 1
        return self.ode.velocity(x, t)


def error_and_calls(order: int, tolerance: float) -> tuple[float, int]:
    ode = Counted(Oscillator())
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    end = integrate(ode, AdaptiveAdams(tolerance, tolerance, order, 10_000), x, ENDS).x
    exact = torch.tensor([[math.cos(7.0), math.sin(7.0)]], dtype=torch.float64)
    return float((end - exact).norm()), ode.calls


@pytest.mark.parametrize("order", [3, 4, 5, 6, 7])
def test_the_error_falls_with_the_evaluations_at_the_order(order: int) -> None:
    """Between tolerances a factor 1e4 apart, at orders within a half: steps change by doubling."""
    (coarse, few) = error_and_calls(order, 1e-6)
    (fine, many) = error_and_calls(order, 1e-10)
    slope = math.log(coarse / fine) / math.log(many / few)
    assert slope > order - 0.5
    assert fine < 1e-7


def mixture():
    means = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture([1, 2, 1], means, stds=[0.3, 0.5, 0.4])


def test_fewer_evaluations_than_dormand_prince_at_no_larger_error() -> None:
    data = mixture()
    model = data.diffused(VPSDE())
    x = data.sample(64, torch.Generator().manual_seed(1))

    def solved(solver):
        flow = ProbabilityFlow(model.sde, model)
        found = log_prob(
            x, flow, solver, grid=ENDS, divergence=Exact(), prior=model.marginal(ENDS[1])
        )
        return float((found.nats - data.log_prob(x)).square().mean().sqrt()), found

    rms, ours = solved(AdaptiveAdams(1e-6, 1e-6, 5))
    theirs_rms, theirs = solved(DormandPrince(1e-5, 1e-5))
    assert rms < theirs_rms
    assert ours.nfe < theirs.nfe
    # The embedded errors are of the size of the integral's own, not far below it.
    assert 0.1 * rms < float(ours.tolerance_error.mean()) < 1e3 * rms


def test_a_sample_is_the_same_alone_and_in_any_batch() -> None:
    data = mixture()
    model = data.diffused(VPSDE())
    x = data.sample(9, torch.Generator().manual_seed(1))
    flow = ProbabilityFlow(model.sde, model)
    solver = AdaptiveAdams(1e-4, 1e-4, 5)
    whole = log_prob(x, flow, solver, divergence=Exact()).nats
    for i in range(9):
        alone = log_prob(x[i : i + 1], flow, solver, divergence=Exact()).nats
        assert torch.equal(alone, whole[i : i + 1])


def test_one_evaluation_a_step_tried() -> None:
    data = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    flow = ProbabilityFlow(data.sde, data)
    x = torch.ones(1, 1, dtype=torch.float64)
    grid = torch.linspace(0, 1, 11, dtype=torch.float64)
    solver = AdaptiveAdams(math.inf, math.inf, 3)
    assert integrate(flow, solver, x, grid).nfe == 2 + 10


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AdaptiveAdams(highest=1), "highest must be 2, 3, 4, 5, 6 or 7, got 1"),
        (lambda: AdaptiveAdams(rtol=0.0), "rtol must be above 0, got 0.0"),
        (lambda: AdaptiveAdams(max_steps=0), "max_steps must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(make, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


class Jump(ODE):
    def velocity(self, x, t):
        return x / (t - 0.5).abs().clamp(min=1e-300).reshape(-1, 1) ** 2


def test_steps_without_end_are_refused() -> None:
    x = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="AdaptiveAdams"):
        integrate(Jump(), AdaptiveAdams(1e-8, 1e-8, 5, max_steps=300), x, ENDS)
