"""VPSDE(DiscreteBeta(betas)) with Ancestral on the lattice is the DDPM; there is no other code."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import solve_ivp

from sde_diffusion import (
    VESDE,
    VPSDE,
    DiscreteBeta,
    GaussianMixture,
    LinearBeta,
    ReverseSDE,
    SubVPSDE,
    cosine_betas,
    integrate,
    lattice,
    linear_betas,
)
from sde_diffusion.noise import Noise
from sde_diffusion.solvers import Ancestral, EulerMaruyama, ReverseDiffusion

N = 1000


class Tape(Noise):
    """Plays the given draws one after another."""

    def __init__(self, draws: torch.Tensor) -> None:
        self.draws = iter(draws)

    def normal(self, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return next(self.draws)


def draws(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        n, 4, 1, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def exact(betas: torch.Tensor):
    means = torch.randn(5, 1, 2, 3, generator=torch.Generator().manual_seed(3))
    return GaussianMixture(torch.ones(5), means, stds=[0.3] * 5).diffused(
        VPSDE(DiscreteBeta(betas))
    )


def eps_model(model, x: torch.Tensor, k: int, n: int = N) -> torch.Tensor:
    """Return ε_θ(x_k, k) as a discrete-time program sees it."""
    return model.eps(x, torch.tensor(k / n, dtype=torch.float64))


def algorithm_2(betas: torch.Tensor, model, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return Ho et al. 2020, Algorithm 2, line by line, with σ_k² = β̃_k."""
    alphas = 1 - betas
    alpha_bar = torch.cumprod(alphas, 0)
    n = len(betas)
    for k in range(n, 0, -1):
        a = alphas[k - 1]
        ab = alpha_bar[k - 1]
        b = betas[k - 1]
        before = alpha_bar[k - 2] if k > 1 else torch.tensor(1.0, dtype=torch.float64)
        sigma = ((1 - before) / (1 - ab) * b).sqrt()
        noise = z[n - k] if k > 1 else torch.zeros_like(x)
        x = (x - b / (1 - ab).sqrt() * eps_model(model, x, k, n)) / a.sqrt() + sigma * noise
    return x


@pytest.mark.parametrize("betas", [linear_betas(N), cosine_betas(N)], ids=["linear", "cosine"])
def test_ancestral_on_the_lattice_is_algorithm_2(betas) -> None:
    model = exact(betas)
    z = draws(N + 1)
    dynamics = ReverseSDE(model.sde, model)
    ours = integrate(dynamics, Ancestral(), z[N], lattice(N), noise=Tape(z)).x
    assert torch.allclose(ours, algorithm_2(betas, model, z[N], z), rtol=0, atol=1e-10)
    assert dynamics.nfe == N


def test_ancestral_is_diffusers_ddpm(monkeypatch) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDPMScheduler(
        N, beta_start=1e-4, beta_end=0.02, clip_sample=False, variance_type="fixed_small"
    )
    # The library keeps its table in float32; the comparison is of the formulas, so it gets ours.
    betas = linear_betas(N)
    scheduler.betas = betas
    scheduler.alphas = 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    model = exact(betas)
    z = draws(N + 1)
    x = z[N]
    tape = Tape(z)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: tape.normal(x)
    )
    for k in range(N - 1, -1, -1):  # their k counts from 0
        x = scheduler.step(eps_model(model, x, k + 1), k, x).prev_sample
    ours = integrate(ReverseSDE(model.sde, model), Ancestral(), z[N], lattice(N), noise=Tape(z)).x
    assert torch.allclose(ours, x, rtol=0, atol=1e-9)


def test_ancestral_at_eta_0_is_diffusers_50_step_ddim() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDIMScheduler(
        N, beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True
    )
    betas = linear_betas(N)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(50)
    model = exact(betas)
    x = draws(1)[0]
    theirs = x
    for k in scheduler.timesteps.tolist():
        theirs = scheduler.step(eps_model(model, theirs, k + 1), k, theirs).prev_sample
    # Their timesteps 980, 960, …, 0 are the lattice indices 981, 961, …, 1, and then the data.
    grid = torch.tensor([*[k + 1 for k in scheduler.timesteps.tolist()], 0]).double() / N
    dynamics = ReverseSDE(model.sde, model)
    ours = integrate(dynamics, Ancestral(eta=0.0), x, grid).x
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)
    assert dynamics.nfe == 50


def test_ddim_noise_at_eta_1_is_the_ancestral_one_between_any_lattice_times() -> None:
    """η²β̃ of DDIM, equation 16: σ² = η² (1−ᾱ_s)/(1−ᾱ_t) (1 − ᾱ_t/ᾱ_s)."""
    betas = linear_betas(N)
    alpha_bar = torch.cumprod(1 - betas, 0)
    model = exact(betas)
    x = draws(1)[0]
    t, s = torch.tensor([0.8, 0.3], dtype=torch.float64)
    dynamics = ReverseSDE(model.sde, model)
    loud, still = (
        Ancestral(eta=0.7).step(dynamics, x, t, s, Tape(torch.tensor([z]))) for z in (1.0, 0.0)
    )
    a_t = alpha_bar[799]
    a_s = alpha_bar[299]
    expected = 0.7 * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()
    assert torch.allclose(loud - still, expected.expand_as(x), rtol=1e-10)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0)], ids=repr)
def test_ddim_at_eta_0_is_the_exponential_euler_step_of_the_flow(sde) -> None:
    """It solves dx/dt = rate x + ½ (g²/sigma) eps, eps held where it was, exactly."""
    data = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [0.7]]), stds=[0.3, 0.5])
    model = data.diffused(sde)
    x = torch.tensor([[0.4]], dtype=torch.float64)
    t, s = torch.tensor([0.8, 0.3], dtype=torch.float64)
    eps = float(model.eps(x, t))

    def velocity(time: float, y):
        at = torch.tensor(time, dtype=torch.float64)
        return float(sde.rate(at)) * y + 0.5 * float(sde.g(at) ** 2 / sde.sigma(at)) * eps

    exact = solve_ivp(velocity, (float(t), float(s)), [float(x)], rtol=1e-11, atol=1e-12).y[0, -1]
    step = Ancestral(eta=0.0).step(ReverseSDE(sde, model), x, t, s, Tape(torch.zeros(0)))
    assert float(step) == pytest.approx(exact, rel=1e-8)


def test_reverse_diffusion_on_the_lattice_is_songs() -> None:
    """Song et al. 2021, algorithm 3: x = (2 − √(1−β)) x + β s + √β z."""
    betas = linear_betas(N)
    model = exact(betas)
    x = draws(1)[0]
    k = 700
    t, s = torch.tensor([k / N, (k - 1) / N], dtype=torch.float64)
    z = draws(1, seed=5)[0]
    ours = ReverseDiffusion().step(ReverseSDE(model.sde, model), x, t, s, Tape(z[None]))
    b = betas[k - 1]
    theirs = (2 - (1 - b).sqrt()) * x + b * model.score(x, t) + b.sqrt() * z
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_ancestral_and_euler_maruyama_meet_in_the_continuous_limit() -> None:
    """One lattice step of size 1/N and one Euler–Maruyama step differ by O(1/N²) in the mean."""

    def gap(n: int) -> float:
        means = torch.randn(5, 1, 2, 3, generator=torch.Generator().manual_seed(3))
        model = GaussianMixture(torch.ones(5), means, stds=[0.3] * 5).diffused(VPSDE(LinearBeta()))
        dynamics = ReverseSDE(model.sde, model)
        x = draws(1)[0]
        t = torch.tensor(0.5, dtype=torch.float64)
        s = t - 1 / n
        one, other = (
            solver.step(dynamics, x, t, s, Tape(torch.zeros(1)))
            for solver in (Ancestral(), EulerMaruyama())
        )
        return float((one - other).abs().max())

    assert gap(500) / gap(1000) == pytest.approx(4, rel=0.05)
