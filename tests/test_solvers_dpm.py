"""DPM-Solver, DPM-Solver++ and UniPC: equal to other programs, to their papers, to one another."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    GaussianMixture,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    integrate,
    quadratic,
    uniform,
)
from sde_diffusion.coefficients import Coefficients
from sde_diffusion.diagnostics.orders import ends, ode_convergence
from sde_diffusion.grids import log_snr
from sde_diffusion.solvers import Ancestral
from sde_diffusion.solvers.adaptive_dpm_solver import AdaptiveDPMSolver
from sde_diffusion.solvers.dpm_solver import DPMSolver, DPMSolverMultistep
from sde_diffusion.solvers.dpm_solver_pp import DPMSolverPP, DPMSolverPPSinglestep
from sde_diffusion.solvers.published.dpm_solver_pp import DPMSolverPPPublished
from sde_diffusion.solvers.published.unipc import UniPCPublished
from sde_diffusion.solvers.unipc import UniPC

SDE = VPSDE()
ALL = [
    cls(**settings)
    for cls in (
        DPMSolver,
        DPMSolverMultistep,
        DPMSolverPP,
        DPMSolverPPSinglestep,
        DPMSolverPPPublished,
        UniPC,
        UniPCPublished,
        AdaptiveDPMSolver,
    )
    for settings in cls.certified
]
every_solver = pytest.mark.parametrize("solver", ALL, ids=repr)


def exact(sde=SDE):
    means = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return GaussianMixture(torch.ones(5), means, stds=[0.3] * 5).diffused(sde)


def state(rows: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, generator=generator, dtype=torch.float64)


def solved(solver, grid, x=None, sde=SDE) -> torch.Tensor:
    flow = ProbabilityFlow(sde, exact(sde))
    return integrate(flow, solver, state() if x is None else x, grid).x


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-9) -> bool:
    return torch.allclose(a, b, rtol=0, atol=atol)


# Equal to diffusers, whose training lattice is made the grid itself.


class _Kept(torch.Tensor):
    """A state that stays float64 where diffusers' multistep code rounds it to float32."""

    def to(self, *_: object, **__: object) -> torch.Tensor:
        return self


def theirs(name: str, grid: torch.Tensor, types: tuple[str, ...] = ("",), **settings):
    """Return the end state of a diffusers scheduler, its solver_type cycling through ``types``."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    n = len(grid) - 1
    alphas = SDE.alpha(grid.flip(0)).square()
    betas = 1 - torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they deprecate the noise form, and NumPy's of them
        scheduler = getattr(diffusers, name)(n + 1, trained_betas=betas.numpy(), **settings)
        scheduler.alphas_cumprod = alphas  # float64, where the betas are rounded to float32
        scheduler.set_timesteps(n)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = ((1 - alphas) / alphas).sqrt().flip(0)
    model = exact()
    x = state().as_subclass(_Kept)
    for i in range(n):
        if types[0]:
            scheduler.register_to_config(solver_type=types[i % len(types)])
        eps = model.eps(x.as_subclass(torch.Tensor), grid[i])
        x = scheduler.step(eps, n - i, x).prev_sample.as_subclass(_Kept)
    return x.as_subclass(torch.Tensor)


LEADING = {"timestep_spacing": "leading"}
TO_THE_END = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
MULTISTEP = "DPMSolverMultistepScheduler"
SINGLESTEP = "DPMSolverSinglestepScheduler"


def test_order_1_is_diffusers_ddim() -> None:
    grid = quadratic(20)
    other = theirs("DDIMScheduler", grid, **LEADING, steps_offset=1, clip_sample=False)
    for cls in (DPMSolver, DPMSolverMultistep, DPMSolverPP, DPMSolverPPSinglestep):
        assert close(solved(cls(order=1), grid), other)


@pytest.mark.parametrize(
    ("solver", "order", "kind", "form"),
    [
        (DPMSolverPPPublished(memory=2), 2, "midpoint", "dpmsolver++"),
        (DPMSolverPPPublished(memory=3), 3, "midpoint", "dpmsolver++"),
        (DPMSolverPP(order=2), 2, "heun", "dpmsolver++"),
        (DPMSolverMultistep(order=2), 2, "heun", "dpmsolver"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("grid", [quadratic(20), log_snr(SDE, 7)], ids=["quadratic", "log-SNR"])
def test_multistep_is_diffusers(solver, order, kind, form, grid) -> None:
    other = theirs(
        MULTISTEP,
        grid,
        **LEADING,
        **TO_THE_END,
        solver_order=order,
        solver_type=kind,
        algorithm_type=form,
    )
    assert close(solved(solver, grid), other)


@pytest.mark.parametrize(
    ("order", "types"),
    # They take the stages as steps of their own; the paper's algorithm 5 is these of their types.
    [(1, ("midpoint",)), (2, ("midpoint",)), (3, ("midpoint", "heun", "midpoint"))],
)
@pytest.mark.parametrize(
    ("cls", "form"), [(DPMSolver, "dpmsolver"), (DPMSolverPPSinglestep, "dpmsolver++")]
)
def test_singlestep_is_diffusers(cls, order, types, form) -> None:
    fine = log_snr(SDE, 8 * order)  # their stages are at times of the grid
    other = theirs(SINGLESTEP, fine, types, **TO_THE_END, solver_order=order, algorithm_type=form)
    assert close(solved(cls(order=order), fine[::order]), other)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_unipc_is_diffusers(p, variant) -> None:
    grid = quadratic(20)
    other = theirs(
        "UniPCMultistepScheduler",
        grid,
        **LEADING,
        **TO_THE_END,
        solver_order=p,
        solver_type=variant,
    )
    assert close(solved(UniPCPublished(p, variant), grid), other)


# Equal to the papers' formulas, line by line.


def test_3m_has_the_whole_of_the_second_difference() -> None:
    """In the paper's letters, D₂ = 2 (D₁⁰ − D₁¹)/(r₀ + r₁); the published step has half of it."""
    at = [Coefficients(SDE).level(t) for t in torch.tensor([0.8, 0.7, 0.55, 0.3]).double()]
    (m2, m1, m0) = (2.0, -1.0, 0.5)
    (t, s) = at[2:]
    h = s.lambda_ - t.lambda_
    r1, r0 = ((b.lambda_ - a.lambda_) / h for a, b in pairwise(at[:3]))
    d10 = (m0 - m1) / r0
    d11 = (m1 - m2) / r1
    d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
    d2 = 2 * (d10 - d11) / (r0 + r1)
    e = math.exp(-h)

    def formula(part: float) -> float:
        return s.alpha * (
            -(e - 1) * m0 + ((e - 1) / h + 1) * d1 - ((e - 1 + h) / h**2 - 0.5) * part * d2
        )

    for solver, part in ((DPMSolverPP(3), 1.0), (DPMSolverPPPublished(3), 0.5)):
        step = solver.predictor(at, 2, 0.0)
        found = sum(b * m for b, m in zip(step.b, (m0, m1, m2), strict=True))
        assert found == pytest.approx(formula(part), rel=1e-12)
        assert step.a == pytest.approx(s.sigma / t.sigma, rel=1e-15)


def eps_at(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return exact().eps(x, t)


def test_dpm_solver_3_is_algorithm_5() -> None:
    """Lu et al. 2022, algorithm 5 with r₁ = ⅓, r₂ = ⅔, and algorithm 4 with r₁ = ½."""
    t, s = torch.tensor([0.8, 0.3], dtype=torch.float64)
    x = state()
    h = SDE.lambda_(s) - SDE.lambda_(t)
    alpha = SDE.alpha
    sigma = SDE.sigma
    expm1 = torch.expm1
    eps = eps_at(x, t)
    s1, s2 = (SDE.time(SDE.lambda_(t) + r * h) for r in (1 / 3, 2 / 3))
    u1 = alpha(s1) / alpha(t) * x - sigma(s1) * expm1(h / 3) * eps
    d1 = eps_at(u1, s1) - eps
    slope = expm1(2 * h / 3) / (2 * h / 3) - 1
    u2 = alpha(s2) / alpha(t) * x - sigma(s2) * (expm1(2 * h / 3) * eps + 2 * slope * d1)
    d2 = eps_at(u2, s2) - eps
    third = (
        alpha(s) / alpha(t) * x
        - sigma(s) * expm1(h) * eps
        - sigma(s) / (2 / 3) * (expm1(h) / h - 1) * d2
    )
    middle = SDE.time(SDE.lambda_(t) + h / 2)
    u = alpha(middle) / alpha(t) * x - sigma(middle) * expm1(h / 2) * eps
    second = alpha(s) / alpha(t) * x - sigma(s) * expm1(h) * eps_at(u, middle)
    grid = torch.stack([t, s])
    assert close(solved(DPMSolver(order=3), grid, x), third, 1e-12)
    assert close(solved(DPMSolver(order=2), grid, x), second, 1e-12)


# Equal to one another.


@pytest.mark.parametrize("sde", [SDE, EDMSDE(), RectifiedFlow()], ids=repr)
def test_order_1_is_the_ddim_for_every_sde(sde) -> None:
    grid = log_snr(sde, 9)
    x = state() * float(sde.sigma(torch.tensor(sde.horizon)))
    ddim = integrate(ReverseSDE(sde, exact(sde)), Ancestral(eta=0.0), x, grid).x
    for cls in (DPMSolver, DPMSolverMultistep, DPMSolverPP, DPMSolverPPSinglestep):
        assert close(solved(cls(order=1), grid, x, sde), ddim, 1e-12)


def levels(n: int = 6) -> list:
    return [Coefficients(SDE).level(t) for t in quadratic(n)]


@pytest.mark.parametrize(
    ("unipc", "twin"),
    [
        (UniPC(1), DPMSolverPP(1)),
        (UniPC(2, "bh2"), DPMSolverPPPublished(2)),
        (UniPC(2, "vary_coeff"), DPMSolverPP(2)),
        (UniPC(3), DPMSolverPP(3)),
    ],
    ids=repr,
)
def test_unip_is_the_multistep_dpm_solver_pp(unipc, twin) -> None:
    """UniP-3 and the corrected 3M integrate one polynomial: equal to the last digits."""
    one, other = (solver.predictor(levels(), 4, 0.0) for solver in (unipc, twin))
    assert one.a == other.a
    assert list(one.b) == pytest.approx(list(other.b), rel=1e-12)


def test_the_variants_of_unipc_differ_only_where_there_is_one_difference() -> None:
    at = levels()
    for p in (1, 2, 3, 4):
        first, second, exactly = (UniPC(p, v) for v in ("bh1", "bh2", "vary_coeff"))
        for kind, differ in (("predictor", p == 2), ("corrector", p == 1)):
            a, b, c = (
                torch.tensor(getattr(solver, kind)(at, 5 - (kind == "predictor"), 0.0).b)
                for solver in (first, second, exactly)
            )
            for u, v in ((a, b), (a, c), (b, c)):
                assert torch.equal(u, v) is not differ


@pytest.mark.parametrize("p", [3, 4])
def test_the_published_start_of_unipc_leaves_order_3(p) -> None:
    """After the start both are one scheme, so their distance is the start's error: O(h³)."""

    def gap(n: int) -> float:
        grid = uniform(n, *ends(SDE))
        return float((solved(UniPC(p), grid) - solved(UniPCPublished(p), grid)).abs().max())

    assert math.log2(gap(64) / gap(128)) == pytest.approx(3, abs=0.1)
    assert UniPCPublished(p).order == 3


@pytest.mark.parametrize("p", [1, 2])
def test_the_published_start_of_unipc_is_enough_for_order_3(p) -> None:
    grid = quadratic(10)
    assert torch.equal(solved(UniPC(p), grid), solved(UniPCPublished(p), grid))


# What holds for all of them.


@every_solver
def test_the_flow_runs_forward_with_the_same_order(solver) -> None:
    """From data to noise, where h < 0."""
    means = torch.tensor([[-0.8], [0.7]], dtype=torch.float64)
    model = GaussianMixture([0.4, 0.6], means, stds=[0.5, 0.3]).diffused(SDE)
    x = torch.linspace(-1.2, 1.3, 17, dtype=torch.float64)[:, None]
    end, start = ends(SDE)
    there = model.flow(x, *torch.tensor([start, end], dtype=torch.float64))

    def error(n: int) -> float:
        found = integrate(ProbabilityFlow(SDE, model), solver, x, uniform(n, start, end)).x
        return float((found - there).square().mean().sqrt())

    n = 160 if solver.order == 5 else 64
    assert math.log2(error(n) / error(2 * n)) == pytest.approx(solver.order, abs=0.15)


@every_solver
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_last_step_to_sigma_0_is_the_posterior_mean(solver, steps) -> None:
    grid = uniform(steps, 1.0, 0.0)
    states = [state()]
    flow = ProbabilityFlow(SDE, exact())
    integrate(flow, solver, states[0], grid, callback=lambda _, __, x: states.append(x))
    assert close(states[-1], exact().denoise(states[-2], grid[-2]), 1e-12)


# Adaptive steps.


def appendix_c(order: int, x: torch.Tensor, t: float, s: float, tolerances: tuple[float, float]):
    """Return the end state, the accepted and the rejected steps of Lu et al. 2022, appendix C."""
    rtol, atol = tolerances
    lambda_, end = (float(SDE.lambda_(torch.tensor(u).double())) for u in (t, s))
    h = 0.05
    before = x
    counts = [0, 0]
    while end - lambda_ > 1e-12:
        h = min(h, end - lambda_)
        u = SDE.time(torch.tensor([lambda_, lambda_ + h], dtype=torch.float64))
        high = solved(DPMSolver(order), u, x)
        if order == 2:
            low = solved(DPMSolver(1), u, x)
        else:  # DPM-Solver-2 with r₁ = ⅓
            middle = SDE.time(torch.tensor(lambda_ + h / 3, dtype=torch.float64))
            eps = eps_at(x, u[0])
            slope = eps_at(solved(DPMSolver(1), torch.stack([u[0], middle]), x), middle) - eps
            low = SDE.alpha(u[1]) / SDE.alpha(u[0]) * x
            low = low - SDE.sigma(u[1]) * math.expm1(h) * (eps + 1.5 * slope)
        delta = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
        error = float(((high - low) / delta).square().mean().sqrt())
        if error <= 1:
            x = high
            before = low
            lambda_ = lambda_ + h
        counts[error > 1] += 1
        h = 0.9 * h * error ** (-1 / order)
    return x, counts[0], counts[1]


@pytest.mark.parametrize(("order", "rtol", "atol"), [(2, 0.05, 0.0078), (3, 1e-3, 1e-4)])
def test_adaptive_steps_are_those_of_appendix_c(order, rtol, atol) -> None:
    """For one sample; and a rejected step costs one evaluation less, eps(x, t) being known."""
    x = state(1)
    grid = uniform(1, 1.0, 1e-3)
    other, accepted, rejected = appendix_c(order, x, 1.0, 1e-3, (rtol, atol))
    flow = ProbabilityFlow(SDE, exact())
    solver = AdaptiveDPMSolver(order, rtol, atol)
    progress = solver.start(x, grid[0])
    solver.advance(flow, progress, grid[1])
    assert close(progress.x, other, 1e-8)  # step sizes are roots of small differences
    assert (int(progress.accepted), int(progress.rejected)) == (accepted, rejected)
    assert rejected > 0
    assert flow.nfe == order * accepted + (order - 1) * rejected


@pytest.mark.parametrize("order", [2, 3])
def test_the_adaptive_error_follows_the_tolerance(order) -> None:
    def error(tolerance: float) -> float:
        solver = AdaptiveDPMSolver(order, tolerance, tolerance)
        return ode_convergence(solver, SDE, (1,)).errors[0]

    errors = [error(10.0**-k) for k in range(2, 6)]
    assert all(a / b == pytest.approx(10, rel=0.5) for a, b in pairwise(errors))
    assert errors[0] < 0.02


@pytest.mark.parametrize("order", [2, 3])
def test_an_adaptive_sample_does_not_depend_on_its_batch(order) -> None:
    solver = AdaptiveDPMSolver(order)
    grid = uniform(2, 1.0, 1e-3)
    x = 3 * state(6)
    whole = solved(solver, grid, x)
    parts = torch.cat([solved(solver, grid, part) for part in (x[:1], x[1:4], x[4:])])
    assert torch.equal(whole, parts)


def test_finished_samples_leave_the_batch() -> None:
    """Every evaluation is one that a step of the sample itself asks for."""
    sizes = []
    model = exact()

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return model(x, t)

    flow = ProbabilityFlow(SDE, score)
    solver = AdaptiveDPMSolver(2, 1e-4, 1e-4)
    progress = solver.start(state(2), torch.tensor(1.0))
    end = torch.tensor(1e-3).double()
    solver.advance(flow, progress, end)
    tries = (progress.accepted + progress.rejected).tolist()
    assert tries[0] != tries[1]
    evaluations = 2 * progress.accepted + progress.rejected
    assert sum(sizes) == int(evaluations.sum())


def test_too_many_adaptive_steps_are_an_error() -> None:
    says = r"steps must number at most max_steps=5 .* at t = "
    with pytest.raises(FloatingPointError, match=says):
        solved(AdaptiveDPMSolver(max_steps=5), uniform(1, 1.0, 1e-3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolver(order=4), "DPMSolver: order must be 1, 2 or 3, got 4"),
        (lambda: DPMSolverPP(order=0), "DPMSolverPP: order must be 1, 2 or 3, got 0"),
        (lambda: DPMSolverPPPublished(memory=1), "memory must be 2 or 3, got 1"),
        (lambda: UniPC(p=5), "UniPC: p must be 1, 2, 3 or 4, got 5"),
        (lambda: UniPCPublished(variant="bh3"), "must be one of bh1, bh2, vary_coeff, got bh3"),
        (lambda: AdaptiveDPMSolver(order=1), "order must be 2 or 3, got 1"),
        (lambda: AdaptiveDPMSolver(rtol=0.0), "rtol must be above 0, got 0.0"),
        (lambda: AdaptiveDPMSolver(h_init=-1.0), "h_init must be above 0, got -1.0"),
    ],
)
def test_wrong_settings_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
