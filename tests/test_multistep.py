"""The loop of multistep methods, against the same method written out by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    GaussianMixture,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    SubVPSDE,
    WhiteNoise,
    integrate,
    uniform,
)
from sde_diffusion.multistep import Multistep, Step
from sde_diffusion.solvers import Ancestral
from sde_diffusion.solvers._shared.weights import integrals

FAMILY = [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]


class InAngle(Multistep[ProbabilityFlow]):
    """dy/dφ = v/radius: Adams–Bashforth 2, each step corrected by the trapezoid rule (P-E-C)."""

    dynamics: ClassVar[type] = ProbabilityFlow
    form: ClassVar[str] = "v"
    memory: ClassVar[int] = 2

    def predictor(self, at, i, noise_scale):  # noqa: ARG002
        return self.weighed(at, i, i + 1, [i, i - 1][: i + 1])

    def corrector(self, at, i, noise_scale):  # noqa: ARG002
        return self.weighed(at, i - 1, i, [i, i - 1])

    def weighed(self, at, t, s, nodes):
        weights = integrals([at[n].angle for n in nodes], at[t].angle, at[s].angle)
        b = [at[s].radius * w / at[n].radius for n, w in zip(nodes, weights, strict=True)]
        return Step(at[s].radius / at[t].radius, b)


class Posterior(Multistep[ReverseSDE]):
    """The ancestral step as a multistep method of one prediction."""

    dynamics: ClassVar[type] = ReverseSDE
    form: ClassVar[str] = "x0"
    memory: ClassVar[int] = 1

    def predictor(self, at, i, noise_scale):
        h = at[i + 1].lambda_ - at[i].lambda_
        shrink = at[i + 1].sigma / at[i].sigma * math.exp(-(noise_scale**2) * h)
        spread = at[i + 1].sigma * math.sqrt(-math.expm1(-2 * noise_scale**2 * h))
        b = -at[i + 1].alpha * math.expm1(-(1 + noise_scale**2) * h)
        return Step(shrink, [b], spread)


def mixture(sde):
    means = torch.tensor([[1.0, 0.0], [-0.5, 0.5]])
    return GaussianMixture([1, 2], means, stds=[0.4, 0.3]).diffused(sde)


@pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
def test_predict_evaluate_correct_is_the_loop_written_out(sde) -> None:
    model = mixture(sde)
    grid = uniform(6, 0.8, 0.1)
    x = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=torch.float64)
    found = integrate(ProbabilityFlow(sde, model), InAngle(), x, grid)

    def v(y, t):
        r = torch.hypot(sde.alpha(t), sde.sigma(t))
        return (sde.alpha(t) * model.eps(r * y, t) - sde.sigma(t) * model.denoise(r * y, t)) / r

    phi = torch.atan2(sde.sigma(grid), sde.alpha(grid))
    before = x / torch.hypot(sde.alpha(grid[0]), sde.sigma(grid[0]))
    slopes = [v(before, grid[0])]
    y = before + (phi[1] - phi[0]) * slopes[0]
    for i, (a, b) in enumerate(pairwise(phi[1:]), start=1):
        slopes.append(v(y, grid[i]))
        before = before + (a - phi[i - 1]) * (slopes[-1] + slopes[-2]) / 2
        r = (b - a) / (a - phi[i - 1])
        y = before + (b - a) * ((1 + r / 2) * slopes[-1] - r / 2 * slopes[-2])
    end = y * torch.hypot(sde.alpha(grid[-1]), sde.sigma(grid[-1]))
    assert torch.allclose(found.x, end, rtol=1e-11, atol=1e-12)
    assert found.nfe == found.steps == 6


@pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
def test_draws_enter_as_they_do_in_the_one_step_method(sde) -> None:
    model = mixture(sde)
    grid = uniform(5, 0.8, 0.1)
    x = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=torch.float64)
    reverse = ReverseSDE(sde, model)
    found = integrate(reverse, Posterior(), x, grid, noise=WhiteNoise(3)).x
    expected = integrate(reverse, Ancestral(), x, grid, noise=WhiteNoise(3)).x
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-12)
    still = integrate(ReverseSDE(sde, model, 0.0), Posterior(), x, grid).x  # draws nothing
    ddim = integrate(reverse, Ancestral(eta=0.0), x, grid).x
    assert torch.allclose(still, ddim, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("solver", [InAngle(), Posterior()], ids=lambda s: type(s).__name__)
def test_the_last_step_to_no_noise_is_the_denoised_state(solver, n) -> None:
    sde = VPSDE()
    model = mixture(sde)
    states: list[torch.Tensor] = []
    grid = uniform(n, 0.8, 0.0)
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    kind = ReverseSDE if isinstance(solver, Posterior) else ProbabilityFlow
    dynamics = kind(sde, model)
    found = integrate(
        dynamics,
        solver,
        x,
        grid,
        noise=WhiteNoise(0),
        callback=lambda k, t, y: states.append(y),  # noqa: ARG005
    )
    if n == 1:
        assert torch.allclose(found.x, model.denoise(x, grid[0]), rtol=1e-12)
    assert found.nfe == n
    if isinstance(solver, Posterior):  # no correction comes between
        before = [x, *states][-2]
        assert torch.allclose(found.x, model.denoise(before, grid[-2]), rtol=1e-12)
