"""A fitted grid is better on draws it was not fitted to, and the best where all can be tried."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    Gaussian,
    GaussianMixture,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    integrate,
    karras,
    load,
    log_snr,
    quadratic,
)
from sde_diffusion.diagnostics.metrics import rms_distance
from sde_diffusion.grids import check_grid, cosine
from sde_diffusion.integration import dynamics_for
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sampling.costs import steps_within
from sde_diffusion.sampling.grid_fitting import _Calibration, _equal_parts, flow, optimised
from sde_diffusion.solvers import (
    AdamsBashforth,
    Ancestral,
    DormandPrince,
    EulerMaruyama,
    Heun,
)

DDIM = Ancestral(eta=0.0)
SOLVERS = {"ddim": DDIM, "ab2": AdamsBashforth(2), "ab3": AdamsBashforth(3), "heun": Heun()}


def correlated(dimension: int = 6) -> GaussianMixture:
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(3, dimension, generator=generator, dtype=torch.float64)
    z = torch.randn(3, dimension, dimension, generator=generator, dtype=torch.float64)
    bases, _ = torch.linalg.qr(z)
    covariances = bases * torch.logspace(-2.5, -0.5, dimension, dtype=torch.float64) @ bases.mT
    return GaussianMixture(torch.ones(3), means, 0.5 * (covariances + covariances.mT))


PROBLEMS = {"ring": lambda: GaussianMixture.ring(8), "correlated": correlated}


def latents(model, n: int, event, seed: int = 12345) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, *event, generator=generator, dtype=torch.float64)
    return model.sde.prior().std * z


def distance(model, solver, grid, x, truth) -> float:
    with torch.no_grad():
        return rms_distance(
            integrate(dynamics_for(solver, model.sde, model), solver, x, grid).x, truth
        )


def held_out(model, solver, budget: int, x, truth, calibration) -> tuple[float, float, float]:
    """The errors on the fitted grid, on Karras', and on the log-SNR one, within the budget."""
    steps = steps_within("", solver, model.sde, lambda n: log_snr(model.sde, n), budget)
    fitted = optimised(model, solver, steps, shape=calibration, dtype=x.dtype)
    return tuple(
        distance(model, solver, grid, x, truth)
        for grid in (fitted, karras(model.sde, steps), log_snr(model.sde, steps))
    )


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request):
    """An exact score, draws that no grid was fitted to, and where a tight solve carries them."""
    model = PROBLEMS[request.param]().diffused(VPSDE())
    x = latents(model, 1024, model.oracle.event)
    tight = DormandPrince(1e-7, 1e-7)
    return model, x, integrate(ProbabilityFlow(model.sde, model), tight, x, karras(model.sde, 1)).x


@pytest.mark.parametrize("budget", [6, 8, 10])
@pytest.mark.parametrize("name", SOLVERS)
def test_held_out_error_is_below_karras_and_log_snr(problem, name, budget) -> None:
    model, x, truth = problem
    # Samples that end at another mode decide, and are few: a small batch has too few of them.
    shape = (1024, *model.oracle.event)
    fitted, *known = held_out(model, SOLVERS[name], budget, x, truth, shape)
    assert fitted < min(known)


# Half a minute for a solver; `benchmarks/grids.py` measures them all.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ab3"])
def test_held_out_error_is_below_karras_and_log_snr_on_the_digits_model(name) -> None:
    model = load("digits")
    x = latents(model, 64, (1, 8, 8)).float()
    with torch.no_grad():
        tight = DormandPrince(1e-4, 1e-4)
        truth = integrate(ProbabilityFlow(model.sde, model), tight, x, karras(model.sde, 1)).x
    fitted, *known = held_out(model, SOLVERS[name], 6, x, truth, (48, 1, 8, 8))
    assert fitted < min(known)


@pytest.mark.parametrize(
    "sde",
    [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow()],
    ids=lambda sde: type(sde).__name__,
)
def test_the_only_inner_time_is_the_best_of_a_scan(sde) -> None:
    model = Gaussian(torch.ones(2), torch.diag(torch.tensor([1.0, 0.03]))).diffused(sde)
    shape = (64, 2)
    grid = optimised(model, DDIM, 2, shape=shape, seed=3, dtype=torch.float64)
    check_grid(grid, sde.horizon)
    assert (float(grid[0]), float(grid[-1])) == (sde.horizon, sde.cutoff)
    fit = calibration(model, DDIM, shape, seed=3)
    scan = [fit.error(torch.stack([grid[0], t, grid[-1]])) for t in log_snr(sde, 200)[1:-1]]
    assert fit.error(grid) < 1.02 * min(scan)
    assert max(scan) > 3 * min(scan)  # it matters


def calibration(model, solver, shape, seed: int = 0) -> _Calibration:
    noise = PerSampleNoise.numbered(seed, 0, shape[0])
    x = model.sde.prior().sample(noise, shape, dtype=torch.float64)
    return _Calibration(model, solver, x, model.sde.horizon, model.sde.cutoff)


@pytest.mark.parametrize("solver", [DDIM, AdamsBashforth(2)], ids=["ddim", "ab2"])
def test_equidistribution_evens_out_the_local_errors(solver) -> None:
    model = GaussianMixture.ring(8).diffused(VPSDE())
    fit = calibration(model, solver, (256, 2))

    def unevenness(grid: torch.Tensor) -> float:
        return float(fit.local_errors(grid).log().std())

    start = quadratic(16)
    even = fit.equidistributed(start)
    assert unevenness(even) < 0.4 * unevenness(start)
    assert fit.error(even) < 0.8 * fit.error(start)


def test_local_errors_of_one_step_methods_are_their_distance_to_the_exact_step() -> None:
    """DDIM on one Gaussian, whose flow is known, from the states that DDIM itself reaches."""
    model = Gaussian(torch.zeros(2), 0.3 * torch.eye(2)).diffused(VPSDE())
    fit = calibration(model, DDIM, (32, 2))
    grid = quadratic(5)
    x = fit.x
    expected = []
    for t, s in pairwise(grid):
        y = DDIM.step(dynamics_for(DDIM, model.sde, model), x, t, s, None)
        expected.append(rms_distance(y, model.flow(x, t, s)))
        x = y
    assert fit.local_errors(grid).tolist() == pytest.approx(expected, rel=1e-3)


def test_equal_parts_hold_equal_masses() -> None:
    mass = torch.tensor([1.0, 4.0, 1.0]).double()
    widths = torch.tensor([1.0, 1.0, 2.0]).double()
    # Density 1, 4, ½: two units of mass each end at 1 + ¼, 1 + ¾ and 4.
    expected = torch.tensor([1.25, 0.5, 2.25]).double()
    assert torch.allclose(_equal_parts(mass, widths), expected, rtol=1e-14)


@pytest.mark.parametrize(
    "sde",
    [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow()],
    ids=lambda sde: type(sde).__name__,
)
def test_the_reference_flow_is_exact_of_order_4(sde) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    model = Gaussian(torch.ones(3), root @ root.T + 0.1 * torch.eye(3)).diffused(sde)
    x = latents(model, 16, (3,))
    ends = torch.tensor([sde.horizon, sde.cutoff], dtype=torch.float64)
    exact = model.flow(x, *ends)
    errors = [rms_distance(flow(model, x, cosine(sde, n)), exact) for n in (32, 64)]
    assert errors[0] < 1e-3
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.4)


def test_the_seed_and_nothing_else_chooses_the_draws() -> None:
    model = GaussianMixture.ring(3).diffused(VPSDE())
    before = torch.random.get_rng_state()
    one, same, other = (optimised(model, DDIM, 4, shape=(16, 2), seed=s) for s in (1, 1, 2))
    # Not bit for bit: a matrix product rounds by where in memory its factors lie.
    assert torch.allclose(one, same, rtol=1e-3)
    assert not torch.allclose(one, other, rtol=0.1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_step_and_other_ends() -> None:
    model = GaussianMixture.ring(3).diffused(VPSDE())
    assert optimised(model, DDIM, 1, shape=(8, 2), end=0.01).tolist() == [1.0, 0.01]
    grid = optimised(model, DDIM, 3, shape=(8, 2), start=0.9, end=0.02)
    assert (float(grid[0]), float(grid[-1])) == (0.9, 0.02)


RING = GaussianMixture.ring(3).diffused(VPSDE())


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: optimised(torch.neg, DDIM, 5, shape=(4, 2)),
            TypeError,
            "a ScoreLike of a LinearSDE",
        ),
        (
            lambda: optimised(ScoreModel(torch.nn.Identity(), VPSDE()), DDIM, 5, shape=(4, 2)),
            ValueError,
            "model.eval()",
        ),
        (lambda: optimised(RING, DDIM, 0, shape=(4, 2)), ValueError, "steps must be at least 1"),
        (lambda: optimised(RING, DDIM, 5, shape=(0, 2)), ValueError, "shape must be at least 1"),
        (
            lambda: optimised(RING, EulerMaruyama(), 5, shape=(4, 2)),
            ValueError,
            "solver must draw no noise, .* got EulerMaruyama",
        ),
        (
            lambda: optimised(RING, DormandPrince(), 5, shape=(4, 2)),
            ValueError,
            "solver must take the steps of its grid, got DormandPrince",
        ),
        (lambda: optimised(RING, Heun, 5, shape=(4, 2)), TypeError, "with its brackets"),
        (lambda: optimised(RING, DDIM, 5, shape=(4, 2), end=0.0), ValueError, "lambda is finite"),
        (
            lambda: optimised(RING, DDIM, 5, shape=(4, 2), start=0.1, end=0.5),
            ValueError,
            "run from noise to data, got 0.1, 0.5",
        ),
    ],
)
def test_bad_calls_are_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
