"""SDE-DPM-Solver++, SA-Solver, ER-SDE-Solver and SEEDS against laws, twins and other programs."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from scipy.integrate import solve_ivp

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    CosineBeta,
    GaussianMixture,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    SubVPSDE,
    integrate,
    log_snr,
    quadratic,
)
from sde_diffusion.coefficients import Coefficients
from sde_diffusion.diagnostics.orders import strong_convergence, weak_convergence
from sde_diffusion.dynamics import ODE
from sde_diffusion.forms import converted
from sde_diffusion.noise import Noise
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solvers.ancestral import Ancestral
from sde_diffusion.solvers.dormand_prince import DormandPrince
from sde_diffusion.solvers.dpm_solver import DPMSolver
from sde_diffusion.solvers.dpm_solver_pp import DPMSolverPP, DPMSolverPPSinglestep
from sde_diffusion.solvers.er_sde import ERSDE
from sde_diffusion.solvers.published.dpm_solver_pp import DPMSolverPPPublished
from sde_diffusion.solvers.published.sde_dpm_solver_pp import SDEDPMSolverPPPublished
from sde_diffusion.solvers.published.unipc import UniPCPublished
from sde_diffusion.solvers.sa_solver import SASolver
from sde_diffusion.solvers.sde_dpm_solver_pp import SDEDPMSolverPP
from sde_diffusion.solvers.seeds import SEEDS

SDE = VPSDE()
SDES = [SDE, VPSDE(CosineBeta()), SubVPSDE(), EDMSDE(), RectifiedFlow()]
name = repr


def mixture(sde=SDE):
    means = torch.tensor([[-0.8, 0.3], [0.7, 0.1]])
    return GaussianMixture([0.4, 0.6], means, stds=[0.5, 0.3]).diffused(sde)


def draws(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, 2, generator=generator, dtype=torch.float64)


class Tape(Noise):
    """Plays the given draws one after another."""

    def __init__(self, z) -> None:
        self.z = iter(z)

    def normal(self, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return next(self.z)


def solved(solver, grid, tau=1.0, sde=SDE):
    dynamics = ReverseSDE(sde, mixture(sde), tau)
    return integrate(dynamics, solver, draws(1)[0], grid, noise=Tape(draws(3 * len(grid), 1))).x


def flowed(solver, grid, sde=SDE):
    return integrate(ProbabilityFlow(sde, mixture(sde)), solver, draws(1)[0], grid).x


def close(a, b, atol=1e-12) -> bool:
    return torch.allclose(a, b, rtol=0, atol=atol)


# Special cases: the flow at τ = 0, the DDPM at τ = 1.


@pytest.mark.parametrize(
    ("ours", "twin"),
    [
        *((SDEDPMSolverPP(n), DPMSolverPP(order=n)) for n in (1, 2, 3)),
        (SDEDPMSolverPPPublished(2), DPMSolverPPPublished(2)),
        *((SASolver(p, p + 1), UniPCPublished(p, "vary_coeff")) for p in (1, 2, 3)),
        *((SEEDS(n, "x0"), DPMSolverPPSinglestep(order=n)) for n in (1, 2, 3)),
        *((SEEDS(n, "eps"), DPMSolver(order=n)) for n in (1, 2, 3)),
    ],
    ids=name,
)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_without_noise_it_is_its_deterministic_twin(ours, twin, sde) -> None:
    start, end = sde.time(torch.tensor([-2.0, 2.0], dtype=torch.float64)).tolist()
    grid = quadratic(9, start, end)
    assert close(solved(ours, grid, 0.0, sde), flowed(twin, grid, sde), 1e-11)


@pytest.mark.parametrize("phi", [lambda u: u, lambda u: 3 * u], ids=["u", "3u"])
def test_er_sde_without_noise_is_the_ddim_and_draws_nothing(phi) -> None:
    grid = quadratic(9)
    dynamics = ReverseSDE(SDE, mixture())
    found = integrate(dynamics, ERSDE(1, phi), draws(1)[0], grid).x  # noise=None refuses a draw
    assert close(found, solved(Ancestral(eta=0.0), grid))


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "solver",
    [SDEDPMSolverPP(1), SASolver(1, 0), SEEDS(1), ERSDE(1, lambda u: u * u)],
    ids=lambda s: type(s).__name__,
)
def test_order_1_of_the_reverse_sde_is_the_ancestral_step(solver, sde) -> None:
    start, end = sde.time(torch.tensor([-2.0, 2.0], dtype=torch.float64)).tolist()
    grid = quadratic(9, start, end)
    assert close(solved(solver, grid, 1.0, sde), solved(Ancestral(), grid, 1.0, sde))


@pytest.mark.parametrize("tau", [0.4, 1.0, 1.7])
def test_they_are_one_family(tau) -> None:
    grid = log_snr(SDE, 7)
    for n in (1, 2):
        assert close(solved(SDEDPMSolverPP(n), grid, tau), solved(SASolver(n, 0), grid, tau))
    power = ERSDE(1, lambda u: u ** (1 + tau**2))
    assert close(solved(power, grid), solved(SDEDPMSolverPP(1), grid, tau))
    at = [Coefficients(SDE).level(t) for t in grid]
    ours = SDEDPMSolverPP(3).predictor(at, 4, tau)
    adams = SASolver(3, 0).predictor(at, 4, tau)
    assert ours.b == pytest.approx(adams.b, rel=1e-10)


# Exact steps: predictions that are polynomials, a point mass.


class Polynomial(ScoreLike):
    """A score whose x0 is a polynomial in λ or in u = σ/α, whatever x is."""

    def __init__(self, sde, degree: int, in_u: bool) -> None:
        self.sde = sde
        self.degree = degree
        self.in_u = in_u

    def place(self, t: torch.Tensor) -> torch.Tensor:
        known = self.sde.lambda_(t)
        return (-known).exp() if self.in_u else known

    def denoise(self, x, t):
        return ((self.place(t) - 0.3) ** self.degree).expand_as(x)

    def predict(self, form, x, t, at):
        return converted(form, "x0", self.denoise(x, t), x, at)

    def __call__(self, x, t):
        a = self.sde.alpha(t)
        s = self.sde.sigma(t)
        return (a * self.denoise(x, t) - x) / s**2


class Drift(ODE):
    """The reverse SDE without its noise, which keeps its mean where the drift is linear in x."""

    def __init__(self, sde: ReverseSDE) -> None:
        self.sde = sde

    def velocity(self, x, t):
        return self.sde.drift(x, t)


class Zeros(Noise):
    def normal(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("sde", [SDE, SubVPSDE()], ids=name)
@pytest.mark.parametrize(
    ("solver", "degree"),
    [(SDEDPMSolverPP(2), 1), (SDEDPMSolverPP(3), 2), (SASolver(4, 0), 3), (SASolver(3, 4), 3)],
    ids=name,
)
def test_a_polynomial_in_lambda_is_integrated_exactly(solver, degree, sde, tau) -> None:
    """The last step, given what the polynomial was at the last nodes; corrected, if it is."""
    model = Polynomial(sde, degree, in_u=False)
    grid = log_snr(sde, 9, 0.9, 0.1)
    at = [Coefficients(sde).level(t) for t in grid]
    corrected = solver.corrector(at, 9, tau)
    step = corrected or solver.predictor(at, 8, tau)
    x = torch.full((1, 1), 0.7, dtype=torch.float64)
    known = grid.flip(0) if corrected else grid.flip(0)[1:]
    values = [model.denoise(x, t) for t in known[: len(step.b)]]
    end = x * step.a + sum(b * m for b, m in zip(step.b, values, strict=True))
    drift = Drift(ReverseSDE(sde, model, tau))
    assert close(end, integrate(drift, DormandPrince(1e-11, 1e-11), x, grid[-2:]).x, 1e-9)


@pytest.mark.parametrize("phi", [lambda u: u * u, ERSDE().phi], ids=["u²", "5"])
@pytest.mark.parametrize("memory", [1, 2, 3])
def test_er_sde_integrates_a_polynomial_in_u_exactly(memory, phi) -> None:
    """y' = (φ'/φ)(y − x0) in u = σ/α, by another program."""
    grid = log_snr(SDE, 9, 0.9, 0.1)
    model = Polynomial(SDE, memory - 1, in_u=True)
    dynamics = ReverseSDE(SDE, model)
    *_, x, end = ERSDE(memory, phi).steps(dynamics, torch.ones(1, 1).double(), grid, Zeros())
    (u_t, u_s) = (SDE.sigma(grid) / SDE.alpha(grid))[-2:].tolist()
    a = SDE.alpha(grid)[-2:]

    def slope(u, y):
        rate = (math.log(phi(u * (1 + 1e-5))) - math.log(phi(u * (1 - 1e-5)))) / (2e-5 * u)
        return rate * (y - (u - 0.3) ** (memory - 1))

    found = solve_ivp(slope, (u_t, u_s), [float(x / a[0])], rtol=1e-11, atol=1e-12).y[0, -1]
    assert float(end / a[1]) == pytest.approx(found, abs=1e-8)


class Unit(Noise):
    """Unit vectors for draws: draw j is 1 in row 2 + j and 0 in the others."""

    def __init__(self) -> None:
        self.j = 2

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.zeros_like(x)
        z[self.j], self.j = 1, self.j + 1
        return z


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    ("solver", "tau"),
    [
        *((ERSDE(n, phi), 1.0) for n, phi in ((3, ERSDE().phi), (2, lambda u: u**2.5))),
        *(
            (solver, tau)
            for tau in (0.5, 1.0, 3.0)
            for solver in (
                SDEDPMSolverPP(3),
                SDEDPMSolverPPPublished(3),
                SASolver(),
                SASolver(4, 4),
                SEEDS(1),
                SEEDS(2),
                SEEDS(3),
            )
        ),
    ],
    ids=lambda v: repr(v).partition(", phi")[0],
)
def test_one_point_of_data_leaves_no_error_however_few_the_steps(solver, tau, sde) -> None:
    start, end = sde.time(torch.tensor([-3.0, 2.5], dtype=torch.float64))
    dynamics = ReverseSDE(sde, Polynomial(sde, 0, in_u=False), tau)
    for n in (1, 4):
        x = torch.zeros(20, 1, dtype=torch.float64)
        x[1] = 1
        grid = quadratic(n, float(start), float(end))
        y = integrate(dynamics, solver, x, grid, noise=Unit()).x[:, 0]
        shift = y[0]
        factor = y[1] - y[0]
        variance = (factor * sde.sigma(start)) ** 2 + (y[2:] - shift).square().sum()
        assert float(factor * sde.alpha(start) + shift) == pytest.approx(float(sde.alpha(end)))
        assert float(variance) == pytest.approx(float(sde.sigma(end)) ** 2, rel=1e-10)


def test_the_last_step_to_no_noise_is_the_mean_of_the_data() -> None:
    grid = torch.tensor([0.5, 0.0], dtype=torch.float64)
    x = draws(1)[0]
    expected = mixture().denoise(x, grid[0])
    for solver in (SDEDPMSolverPP(), SASolver(), ERSDE(), SEEDS(3), SEEDS(2, "eps")):
        dynamics = ReverseSDE(SDE, mixture())
        assert close(integrate(dynamics, solver, x, grid).x, expected)
        assert dynamics.nfe == 1


# Other programs, on the same grid with the same normals.


class Kept(torch.Tensor):
    """A tensor that stays float64 where diffusers rounds it to float32."""

    def to(self, *_: object, **__: object) -> torch.Tensor:
        return self


def scheduler_on(grid, kind, **settings):
    """Return a diffusers scheduler whose training lattice is the grid itself, in float64."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    n = len(grid) - 1
    alphas = SDE.alpha(grid.flip(0)).square()
    ratios = torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of them
        found = getattr(diffusers, kind)(
            n + 1, trained_betas=(1 - ratios).numpy(), timestep_spacing="leading", **settings
        )
        found.alphas_cumprod = alphas
        found.set_timesteps(n)
    found.sigmas = ((1 - alphas) / alphas).sqrt().flip(0)
    return found


def run(scheduler, grid, noisy) -> torch.Tensor:
    x = draws(1)[0]
    model = mixture()
    n = len(grid) - 1
    for i in range(n):
        eps = model.eps(x, grid[i])
        x = noisy(scheduler, i, eps, n - i, x.as_subclass(Kept)).as_subclass(torch.Tensor)
    return x


@pytest.mark.parametrize(
    ("solver", "order", "kind"),
    [
        (SDEDPMSolverPP(1), 1, "midpoint"),
        (SDEDPMSolverPP(2), 2, "heun"),
        (SDEDPMSolverPPPublished(2), 2, "midpoint"),
        (SDEDPMSolverPPPublished(3), 3, "midpoint"),
    ],
    ids=name,
)
@pytest.mark.parametrize("grid", [quadratic(20), log_snr(SDE, 7)], ids=["quadratic", "log-SNR"])
def test_sde_dpm_solver_pp_is_diffusers(solver, order, kind, grid) -> None:
    scheduler = scheduler_on(
        grid,
        "DPMSolverMultistepScheduler",
        solver_order=order,
        solver_type=kind,
        algorithm_type="sde-dpmsolver++",
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    )
    z = draws(3 * len(grid), 1)

    def noisy(scheduler, i, eps, k, x):
        return scheduler.step(eps, k, x, variance_noise=z[i].as_subclass(Kept)).prev_sample

    assert close(solved(solver, grid), run(scheduler, grid, noisy), 1e-9)


@pytest.mark.parametrize("tau", [0.4, 1.0])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 2), (3, 3), (4, 4), (3, 1)])
def test_sa_solver_is_diffusers(p, q, tau, monkeypatch) -> None:
    """Without their change to the weights of two points, on which the claim does not rest."""
    grid = quadratic(12)
    scheduler = scheduler_on(
        grid,
        "SASolverScheduler",
        predictor_order=p,
        corrector_order=q,
        lower_order_final=False,
        tau_func=lambda _: torch.tensor(tau, dtype=torch.float64),
    )
    weights = scheduler.get_coefficients_fn

    def plain(order, start, end, *rest):
        found = weights(order, start, end, *rest)
        h = end - start
        k = 1 + tau**2
        if order == 2:  # what they are about to add, taken away
            gap = (rest[0][0] - rest[0][1]).abs()
            much = torch.exp(k * end) * (h**2 / 2 - (h * k - 1 + torch.exp(-k * h)) / k**2) / gap
            found = [found[0] - much, found[1] + much]
        return found

    scheduler.get_coefficients_fn = plain
    tape = Tape(draws(3 * len(grid), 1))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_sasolver.randn_tensor", lambda *_, **__: tape.normal(None)
    )

    def noisy(scheduler, i, eps, k, x):  # noqa: ARG001
        return scheduler.step(eps, k, x).prev_sample

    other = run(scheduler, grid, noisy)
    assert close(solved(SASolver(p, q), grid, tau), other, 1e-9)


# Orders that the certified instances do not show.


@pytest.mark.parametrize("tau", [0.5, 1.5])
@pytest.mark.parametrize(
    "solver",
    [
        SDEDPMSolverPP(1),
        SDEDPMSolverPP(2),
        SDEDPMSolverPPPublished(2),
        SASolver(1, 1),
        SASolver(),
        SASolver(2, 2),
        SEEDS(2),
        SEEDS(3),
        SEEDS(2, "eps"),
    ],
    ids=name,
)
def test_weak_order_at_any_noise_scale(solver, tau) -> None:
    found = weak_convergence(solver, SDE, (128, 256), noise_scale=tau)
    assert found.order == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize(
    "solver",
    [*(ERSDE(n, lambda u: u**1.5) for n in (1, 2)), ERSDE(3, lambda u: u * u), ERSDE(3)],
    ids=lambda s: f"{s.memory}",
)
def test_weak_order_with_any_noise_function(solver) -> None:
    found = weak_convergence(solver, SDE, (256, 512))
    assert found.order == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("solver", [SDEDPMSolverPP(3), SASolver(2, 3), SASolver(3, 3)], ids=name)
def test_three_predictions_leave_a_small_error_of_weak_order_2(solver) -> None:
    """Below that of two: the order shows where the steps are too many for the third to matter."""
    fine = weak_convergence(solver, SDE, (1024, 2048))
    assert fine.order == pytest.approx(2, abs=0.15)
    assert fine.errors[0] < 0.2 * weak_convergence(SDEDPMSolverPP(2), SDE, (1024,)).errors[0]


@pytest.mark.parametrize("solver", [SDEDPMSolverPP(3), SASolver(2, 3), ERSDE(3)], ids=name)
def test_strong_order_1_on_one_brownian_path(solver) -> None:
    found = strong_convergence(solver, SDE, (64, 128, 256), paths=1000)
    assert found.overall == pytest.approx(1, abs=0.15)


# What is refused.


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SDEDPMSolverPP(4), "SDEDPMSolverPP: memory must be 1, 2 or 3, got 4"),
        (lambda: SDEDPMSolverPPPublished(1), "memory must be 2 or 3, got 1"),
        (lambda: SASolver(0), "SASolver: predictor_points must be one of 1, …, 4, got 0"),
        (lambda: SASolver(2, 5), "SASolver: corrector_points must be one of 0, …, 4, got 5"),
        (lambda: ERSDE(0), "ERSDE: memory must be 1, 2 or 3, got 0"),
        (lambda: SEEDS(4), "SEEDS: stages must be 1, 2 or 3, got 4"),
        (lambda: SEEDS(form="v"), "SEEDS: form must be eps or x0, got v"),
        (lambda: solved(ERSDE(), quadratic(3), 0.5), "dynamics.noise_scale must be 1, got 0.5"),
        (
            lambda: solved(ERSDE(phi=math.sqrt), quadratic(3)),
            r"ERSDE: phi must be positive, and phi\(u\)/u not fall as u grows",
        ),
    ],
)
def test_it_refuses(make, text) -> None:
    with pytest.raises(ValueError, match=text):
        make()
