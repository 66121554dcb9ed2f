"""Grids are what their definitions say, own their ends, and refuse by name."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineBeta,
    DiscreteBeta,
    Gaussian,
    RectifiedFlow,
    ReverseSDE,
    SubVPSDE,
    integrate,
    karras,
    lattice,
    linear_betas,
    log_snr,
    quadratic,
    recommended,
    uniform,
)
from sde_diffusion.grids import (
    Denoised,
    check_grid,
    cosine,
    exponential,
    polynomial,
    sigmoid,
    times_of,
)
from sde_diffusion.lattices import leading, linspace, trailing
from sde_diffusion.solvers import Ancestral

FAMILY = [VPSDE(), VPSDE(CosineBeta()), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow()]
IN_T = {
    "uniform": uniform,
    "quadratic": quadratic,
    "cubic": lambda steps, start, end: polynomial(steps, 3.0, start, end),
    "root": lambda steps, start, end: polynomial(steps, 0.5, start, end),
}
BY_NOISE = {
    "log_snr": log_snr,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": lambda sde, steps, **ends: exponential(sde, steps, 2.5, **ends),
    "cosine": cosine,
    "sigmoid": sigmoid,
    "steep sigmoid": lambda sde, steps, **ends: sigmoid(sde, steps, 0.3, **ends),
    "recommended": recommended,
}


def falls(grid: torch.Tensor, start: float, end: float, steps: int) -> bool:
    """The terminal-step policy: so many steps, strictly down, from and to the ends themselves."""
    check_grid(grid, start)
    return len(grid) == steps + 1 and (float(grid[0]), float(grid[-1])) == (start, end)


@pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
def test_every_grid_falls_to_exactly_its_end_at_every_step_count(sde) -> None:
    for start, end in ((sde.horizon, sde.cutoff), (0.9, 0.07)):
        for steps in (*range(1, 21), 1000):
            for rule in IN_T.values():
                assert falls(rule(steps, start, end), start, end, steps)
            for rule in BY_NOISE.values():
                assert falls(rule(sde, steps, start=start, end=end), start, end, steps)
    for rule in BY_NOISE.values():  # the SDE's own ends
        assert falls(rule(sde, 3), sde.horizon, sde.cutoff, 3)


def test_grids_in_t_reach_0_where_asked_to() -> None:
    for steps in range(1, 21):
        for rule in IN_T.values():
            assert falls(rule(steps, 1.0, 0.0), 1.0, 0.0, steps)


@pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
def test_log_snr_steps_are_equal_in_lambda(sde) -> None:
    h = sde.lambda_(log_snr(sde, 30)).diff()
    assert torch.allclose(h, h.mean().expand(30), rtol=1e-8)


@pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
def test_spacings_by_noise_are_equal_in_their_own_variable(sde) -> None:
    def even(values: torch.Tensor) -> bool:
        return torch.allclose(values.diff(), values.diff().mean().expand(30), rtol=1e-6)

    assert even(sde.lambda_(exponential(sde, 30)))
    first, last = sde.lambda_(torch.tensor([sde.horizon, sde.cutoff], dtype=torch.float64))
    grid = exponential(sde, 30, 3.0)
    assert even(((sde.lambda_(grid) - last) / (first - last)).clamp(min=0) ** (1 / 3.0))
    grid = cosine(sde, 30)
    assert even(torch.atan2(sde.sigma(grid), sde.alpha(grid)))
    grid = sigmoid(sde, 30, 0.7)
    g = sde.alpha(grid) ** 2 / (sde.alpha(grid) ** 2 + sde.sigma(grid) ** 2)
    low, high = (torch.tensor(v / 0.7, dtype=torch.float64).sigmoid() for v in (-3.0, 3.0))
    place = low + (g - g[0]) / (g[-1] - g[0]) * (high - low)
    assert even(place.logit())


def test_cosine_levels_are_nichols_and_sigmoid_levels_are_chens() -> None:
    """Between noise levels 0 and 1 both are the published functions of u, without their clips."""
    sde = RectifiedFlow()
    n = 50  # every level between 0 and 1
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    grid = cosine(sde, n, end=1e-9)
    gamma = sde.alpha(grid) ** 2 / (sde.alpha(grid) ** 2 + sde.sigma(grid) ** 2)
    assert torch.allclose(gamma.flip(0), (u * math.pi / 2).cos() ** 2, rtol=0, atol=2e-3)
    grid = sigmoid(sde, n, end=1e-9)
    gamma = sde.alpha(grid) ** 2 / (sde.alpha(grid) ** 2 + sde.sigma(grid) ** 2)
    low, high = (torch.tensor(v, dtype=torch.float64).sigmoid() for v in (-3.0, 3.0))
    chen = (high - (6 * u - 3).sigmoid()) / (high - low)
    assert torch.allclose(gamma.flip(0), chen, rtol=0, atol=2e-6)


def test_exponential_is_k_diffusions_polyexponential() -> None:
    sde = EDMSDE(80.0)
    n = 18
    rho = 1.7
    ramp = torch.linspace(1, 0, n, dtype=torch.float64) ** rho
    theirs = torch.exp(ramp * (math.log(80) - math.log(0.002)) + math.log(0.002))
    assert torch.allclose(sde.sigma(exponential(sde, n - 1, rho)), theirs, rtol=1e-12)


def test_quadratic_is_the_polynomial_of_exponent_2() -> None:
    assert torch.equal(quadratic(7, 0.9, 0.01), polynomial(7, 2.0, 0.9, 0.01))
    assert torch.allclose(polynomial(7, 1.0), uniform(7), rtol=1e-15)


def test_karras_is_equation_5_in_edms_sigma() -> None:
    sde = EDMSDE(80.0)
    n = 18
    rho = 7
    i = torch.arange(n, dtype=torch.float64)
    # Their σ_i, i = 0 … N−1, between σ_max = 80 and σ_min = .002.
    sigma = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    assert torch.allclose(sde.sigma(karras(sde, n - 1)), sigma, rtol=1e-12)


def test_lattice_holds_whole_fractions() -> None:
    assert torch.equal(lattice(1000), torch.arange(1000, -1, -1, dtype=torch.float64) / 1000)
    sparse = lattice(1000, 7) * 1000
    assert torch.equal(sparse, sparse.round())
    assert sparse[0] == 1000
    assert sparse[-1] == 0


def scheduler(name: str, spacing: str, n: int = 1000, **settings):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    return getattr(diffusers, name)(n, timestep_spacing=spacing, **settings)


def theirs(made, steps: int) -> list[int] | None:
    """The indices k = timestep + 1 of a scheduler, or None where it has another number of them."""
    made.set_timesteps(steps)
    k = [int(t) + 1 for t in made.timesteps]
    return k if len(k) == steps else None


def indices(grid: torch.Tensor, n: int = 1000) -> list[int]:
    k = grid * n
    assert float((k - k.round()).abs().max()) < 1e-9
    return [int(i) for i in k.round()]


@pytest.mark.parametrize("n", [1000, 37])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_lattices_are_those_of_diffusers_one_step_schedulers(name, n) -> None:
    every = [*range(1, 51), *range(61, n, 97)] if n == 1000 else [*range(1, n + 1)]
    made = {spacing: scheduler(name, spacing, n) for spacing in ("trailing", "linspace")}
    made |= {offset: scheduler(name, "leading", n, steps_offset=offset) for offset in (0, 1)}
    for steps in every:
        assert indices(linspace(n, steps), n) == [*theirs(made["linspace"], steps), 0]
        assert indices(leading(n, steps), n) == [*theirs(made[0], steps), 0]
        if steps < n:
            assert indices(leading(n, steps, offset=1), n) == [*theirs(made[1], steps), 0]
        # Rounding gives their trailing spacing one more timestep, −1, at some numbers of steps.
        expected = theirs(made["trailing"], steps)
        if expected is not None:
            assert indices(trailing(n, steps), n) == [*expected, 0]
    assert sum(theirs(made["trailing"], steps) is not None for steps in every) > 0.8 * len(every)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
        "SASolverScheduler",
    ],
)
def test_lattices_are_those_of_diffusers_multistep_schedulers(name) -> None:
    for spacing, ours in (
        ("linspace", lambda steps: linspace(1000, steps, spare=1)),
        ("leading", lambda steps: leading(1000, steps, spare=1)),
        ("trailing", lambda steps: trailing(1000, steps)),
    ):
        made = scheduler(name, spacing)
        for steps in (*range(1, 21), 25, 50, 100, 333):
            assert indices(ours(steps)) == [*theirs(made, steps), 0]


@pytest.mark.parametrize("last", [0, 1])
def test_a_lattice_reproduces_the_samples_of_another_program(last) -> None:
    """Stable diffusion's DDIM: leading, offset 1, ending at the first beta's noise or at data."""
    made = scheduler(
        "DDIMScheduler", "leading", steps_offset=1, clip_sample=False, set_alpha_to_one=last == 0
    )
    betas = linear_betas(1000)
    made.alphas_cumprod = torch.cumprod(1 - betas, 0)  # in float64
    made.final_alpha_cumprod = made.alphas_cumprod[0] if last else torch.tensor(1.0).double()
    made.set_timesteps(20)
    model = Gaussian(torch.ones(2), 0.1 * torch.eye(2)).diffused(VPSDE(DiscreteBeta(betas)))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x
    for k in made.timesteps.tolist():
        eps = model.eps(y, torch.tensor((k + 1) / 1000, dtype=torch.float64))
        y = made.step(eps, k, y).prev_sample
    grid = leading(1000, 20, offset=1, last=last)
    ours = integrate(ReverseSDE(model.sde, model), Ancestral(eta=0.0), x, grid).x
    assert torch.allclose(ours, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1000, 20, 7])
def test_lattices_follow_the_terminal_step_policy_or_refuse(n) -> None:
    for steps in range(1, 21):
        for last in (0, 1):
            for make in (
                lambda s=steps, e=last: trailing(n, s, last=e),
                lambda s=steps, e=last: leading(n, s, offset=1, last=e),
                lambda s=steps, e=last: linspace(n, s, spare=1, last=e),
            ):
                try:
                    grid = make()
                except ValueError as error:
                    assert steps > n // 2, error  # noqa: PT017  (nothing is refused below)
                else:
                    check_grid(grid)
                    assert (len(grid), float(grid[-1])) == (steps + 1, last / n)
        if steps <= n:
            assert torch.equal(lattice(n, steps), trailing(n, steps))


def test_denoised_holds_a_grid_that_ends_above_0() -> None:
    times = uniform(3)
    assert times_of(Denoised(times)) is times
    assert times_of(times) is times


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: uniform(0), ValueError, "uniform: steps must be at least 1, got 0"),
        (lambda: uniform(2.5), TypeError, "steps must be an integer, got 2.5"),
        (lambda: uniform(5, 1.5), ValueError, r"two different times in \[0, 1\], got 1.5"),
        (lambda: quadratic(5, 0.5, 0.5), ValueError, "two different times"),
        (lambda: lattice(10, 11), ValueError, "at most n = 10, got 11"),
        (lambda: karras(VPSDE(), 5, rho=-1), ValueError, "rho must be finite and above 0"),
        (lambda: log_snr(VPSDE(), 5, end=0.0), ValueError, "where lambda is finite, got 0.0"),
        (lambda: log_snr(RectifiedFlow(), 5, start=1.0), ValueError, r"lie in \(0, 0.999\]"),
        (lambda: karras(5, 5), TypeError, "sde must be a LinearSDE, got int"),
        (lambda: check_grid([1.0, 0.5]), TypeError, "must be a torch.Tensor, got list"),
        (lambda: check_grid(torch.tensor([1.0, 0.5])), TypeError, "float64 on the CPU"),
        (lambda: check_grid(torch.ones(1).double()), ValueError, "at least 2 times"),
        (lambda: check_grid(torch.eye(2).double()), ValueError, "one row"),
        (
            lambda: check_grid(torch.tensor([1.0, 0.3, 0.5]).double()),
            ValueError,
            "strictly monotone and finite, got 0.3, 0.5 at places 1, 2",
        ),
        (lambda: check_grid(torch.tensor([1.0, 1.0]).double()), ValueError, "strictly monotone"),
        (
            lambda: check_grid(torch.tensor([1.0, math.nan]).double()),
            ValueError,
            "strictly monotone and finite",
        ),
        (lambda: check_grid(torch.tensor([1.0, -0.1]).double()), ValueError, "got -0.1"),
        (lambda: polynomial(5, 0.0), ValueError, "exponent must be finite and above 0"),
        (lambda: exponential(VPSDE(), 5, rho=0.0), ValueError, "rho must be finite and above 0"),
        (lambda: sigmoid(VPSDE(), 5, tau=-1.0), ValueError, "tau must be finite and above 0"),
        (lambda: cosine(VPSDE(), 5, end=0.0), ValueError, "where lambda is finite, got 0.0"),
        (lambda: sigmoid(5, 5), TypeError, r"call sigmoid\(sde, steps\)"),
        (lambda: trailing(10, 11), ValueError, "trailing: steps must be at most n = 10, got 11"),
        (lambda: linspace(10, 11), ValueError, "linspace: steps must be at most n = 10, got 11"),
        (lambda: leading(10, 11), ValueError, "leading: steps must be at most n = 10, got 11"),
        (lambda: leading(10, 10, offset=1), ValueError, "fall from at most n = 10, got 11, 10, 2"),
        (lambda: leading(10, 10, spare=1), ValueError, "got 1, 1, 1, 0 .* pass fewer steps, last"),
        (lambda: leading(10, 5, last=1), ValueError, "got 9, 7, 1, 1"),
        (lambda: linspace(10, 5, last=1), ValueError, "last must give indices that fall"),
        (lambda: trailing(10, 5, last=-1), ValueError, "last must be at least 0, got -1"),
        (lambda: leading(10, 5, offset=0.5), TypeError, "offset must be an integer, got 0.5"),
        (lambda: linspace(10, 5, spare=-1), ValueError, "spare must be at least 0"),
        (lambda: Denoised([1.0, 0.5]), TypeError, "must be a torch.Tensor, got list"),
        (lambda: Denoised(lattice(10)), ValueError, "fall to a time above 0, got 1 … 0; pass"),
        (lambda: Denoised(uniform(5).flip(0)), ValueError, "fall to a time above 0"),
        (lambda: Denoised(uniform(1, 1.0, 0.5).float()), TypeError, "float64 on the CPU"),
        (lambda: check_grid(uniform(5), 0.999), ValueError, r"lie in \[0, 0.999\], got 1"),
    ],
)
def test_bad_grids_are_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
