"""DEIS, PNDM, EDM's Heun, Midpoint and DDIM: against other programs, integrals and each other."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    ODE,
    SDE,
    VESDE,
    VPSDE,
    CosineBeta,
    DiscreteBeta,
    Gaussian,
    GaussianMixture,
    OneStep,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    SubVPSDE,
    integrate,
    linear_betas,
    uniform,
)
from sde_diffusion.diagnostics.orders import ode_convergence
from sde_diffusion.grids import karras
from sde_diffusion.solvers import AdamsBashforth, Ancestral, Euler, Heun, RungeKutta4, TorchDiffEq
from sde_diffusion.solvers._shared.weights_in_rho import VARIABLES
from sde_diffusion.solvers.ddim import DDIM
from sde_diffusion.solvers.deis import DEIS
from sde_diffusion.solvers.edm_heun import EDMHeun
from sde_diffusion.solvers.ipndm import IPNDM
from sde_diffusion.solvers.midpoint import Midpoint
from sde_diffusion.solvers.plms import PLMS
from sde_diffusion.solvers.published.deis import DEISPublished
from sde_diffusion.solvers.published.ipndm import IPNDMPublished
from sde_diffusion.solvers.published.plms import PLMSPublished

SMOOTH = [VPSDE(), VPSDE(CosineBeta()), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]
FAMILY = [*SMOOTH, VPSDE(DiscreteBeta(linear_betas(100, 1e-3, 0.2)))]
every_sde = pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: repr(sde)[:24])
X = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=torch.float64)


def mixture(sde):
    means = torch.tensor([[1.0, 0.0], [-0.5, 0.5]])
    return GaussianMixture([1, 2], means, stds=[0.4, 0.3]).diffused(sde)


def solve(solver, sde, grid, x=X, score=None):
    return integrate(ProbabilityFlow(sde, score or mixture(sde)), solver, x, grid)


def rho(sde, t):
    return sde.sigma(t) / sde.alpha(t)


def equal_in_rho(sde, n, start, end):
    """Return n equal steps in ρ."""
    first, last = rho(sde, torch.tensor([start, end], dtype=torch.float64)).tolist()
    grid = sde.time(-torch.linspace(first, last, n + 1, dtype=torch.float64).log())
    grid[0], grid[-1] = start, end
    return grid


# --- special cases ---------------------------------------------------------------------------


@every_sde
@pytest.mark.parametrize(
    "solver",
    [
        DDIM(),
        IPNDM(1),
        IPNDMPublished(0),
        *(DEIS(1, u) for u in VARIABLES),
        *(DEISPublished(0, u) for u in VARIABLES),
    ],
    ids=repr,
)
@pytest.mark.parametrize("end", [0.1, 0.0])
def test_order_one_is_the_ddim(sde, solver, end) -> None:
    grid = uniform(6, 0.8, end)
    ddim = integrate(ReverseSDE(sde, mixture(sde)), Ancestral(eta=0.0), X, grid).x
    found = solve(solver, sde, grid)
    assert torch.allclose(found.x, ddim, rtol=1e-11, atol=1e-12)
    assert found.nfe == 6


class InRho(ODE):
    """dy/dρ = eps(α y, t(ρ)), the flow in y = x/α: ρ is its time."""

    horizon = math.inf

    def __init__(self, sde) -> None:
        self.sde = sde
        self.model = mixture(sde)

    def velocity(self, x, t):
        time = self.sde.time(-t.log())
        return self.model.eps(self.sde.alpha(time) * x, time)


class Kutta(OneStep[ODE]):
    """Kutta's third-order method, by its tableau."""

    dynamics = ODE
    order = 3

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        h = s - t
        k1 = dynamics.velocity(x, t)
        k2 = dynamics.velocity(x + h * k1 / 2, t + h / 2)
        k3 = dynamics.velocity(x + h * (2 * k2 - k1), s)
        return x + h * (k1 + 4 * k2 + k3) / 6


@every_sde
@pytest.mark.parametrize(
    ("solver", "classical", "steps"),
    [
        (DDIM(), Euler(), 5),
        (EDMHeun(), Heun(), 5),
        (PLMS(), RungeKutta4(), 3),
        (PLMS(), AdamsBashforth(4), 9),
        (DEIS(2, "rho"), AdamsBashforth(2), 9),
        (IPNDM(3), Heun(), 1),
        (IPNDM(4), Kutta(), 2),
    ],
    ids=repr,
)
def test_they_are_the_classical_methods_in_rho(sde, solver, classical, steps) -> None:
    grid = uniform(steps, 0.8, 0.1)
    ode = InRho(sde)
    y = X / sde.alpha(grid[0])
    expected = sde.alpha(grid[-1]) * integrate(ode, classical, y, rho(sde, grid)).x
    assert torch.allclose(solve(solver, sde, grid).x, expected, rtol=1e-9)


def test_on_edm_rho_is_t() -> None:
    sde = EDMSDE(5.0)
    grid = karras(sde, 9, 0.8, 0.1)
    for order in (2, 3, 4):
        a, b = (solve(DEIS(order, variable), sde, grid).x for variable in ("t", "rho"))
        assert torch.allclose(a, b, rtol=1e-10)
        assert not torch.allclose(a, solve(DEIS(order, "lambda"), sde, grid).x, rtol=1e-4)


@every_sde
def test_on_equal_steps_in_rho_the_published_weights_are_right(sde) -> None:
    grid = equal_in_rho(sde, 9, 0.8, 0.1)
    assert torch.allclose(solve(IPNDM(2), sde, grid).x, solve(IPNDMPublished(1), sde, grid).x)
    uneven = uniform(9, 0.8, 0.1) ** 2
    found, published = (solve(s, sde, uneven).x for s in (IPNDM(2), IPNDMPublished(1)))
    assert not torch.allclose(found, published, rtol=1e-4)


def test_midpoint_is_torchdiffeqs() -> None:
    grid = uniform(7, 0.8, 0.1)
    found, other = (solve(s, VPSDE(), grid) for s in (Midpoint(), TorchDiffEq("midpoint")))
    assert torch.allclose(found.x, other.x, rtol=1e-12)
    assert found.nfe == other.nfe == 14


@pytest.mark.parametrize("sde", SMOOTH, ids=lambda sde: repr(sde)[:24])
@pytest.mark.parametrize("solver", [DEIS(4), PLMS(), EDMHeun()], ids=repr)
def test_to_the_noise_and_back_is_the_identity(sde, solver) -> None:
    grid = uniform(60, 0.2, 0.6)
    there = solve(solver, sde, grid).x
    assert not torch.allclose(there, X, atol=0.05)
    assert torch.allclose(solve(solver, sde, grid.flip(0), there).x, X, atol=1e-3)


# --- the weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SMOOTH, ids=lambda sde: repr(sde)[:24])
@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_polynomials_in_the_variable_are_integrated_exactly(sde, variable, order) -> None:
    """With eps = u(t)^(order−1), whatever x is, every step after the start is ∫ u^(order−1) dρ."""
    quad = pytest.importorskip("scipy.integrate").quad
    grid = karras(sde, 7, 0.9, 0.05)

    def u(t):
        return {"t": t, "rho": rho(sde, t), "lambda": sde.lambda_(t)}[variable]

    def score(x, t):
        return -(u(t) ** (order - 1) / sde.sigma(t)) * torch.ones_like(x)

    states = [X]
    flow = ProbabilityFlow(sde, score)
    integrate(flow, DEIS(order, variable), X, grid, callback=lambda k, t, x: states.append(x))  # noqa: ARG005
    y = [float((x / sde.alpha(t))[0, 0]) for x, t in zip(states, grid, strict=True)]

    def slope(lambda_):
        value = torch.tensor(lambda_, dtype=torch.float64)
        return -math.exp(-lambda_) * float(u(sde.time(value))) ** (order - 1)

    for i, (a, b) in enumerate(pairwise(sde.lambda_(grid).tolist())):
        if i >= order - 1:
            exact = quad(slope, a, b, epsabs=1e-12, epsrel=1e-11)[0]
            assert y[i + 1] - y[i] == pytest.approx(exact, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("grid", [uniform(5, 1.0, 1e-5), uniform(3, 1.0, 0.0)])
def test_data_at_one_point_is_found_whatever_the_grid(variable, grid) -> None:
    """There eps is constant along the flow, and so are the sums of weights ρ_s − ρ_t."""
    sde = VPSDE()
    point = torch.tensor([0.5, -1.0], dtype=torch.float64)

    def score(x, t):
        return (sde.alpha(t) * point - x) / sde.sigma(t) ** 2

    found = solve(DEIS(4, variable), sde, grid, score=score).x
    eps = (X - sde.alpha(grid[0]) * point) / sde.sigma(grid[0])
    exact = sde.alpha(grid[-1]) * point + sde.sigma(grid[-1]) * eps
    assert torch.allclose(found, exact, atol=1e-10)


# --- orders that depend on the grid ----------------------------------------------------------


def test_published_plms_has_its_order_where_steps_are_equal_in_rho() -> None:
    sde = VPSDE()

    def grid(n, start, end):
        return equal_in_rho(sde, n, start, end)

    assert ode_convergence(PLMSPublished(), sde, (128, 256)).order == pytest.approx(2, abs=0.1)
    found = ode_convergence(PLMSPublished(), sde, (128, 256), grid=grid)
    assert found.order == pytest.approx(4, abs=0.15)
    # The DDIM step that starts it stays, whatever the grid.
    found = ode_convergence(IPNDMPublished(3), sde, (256, 512), grid=grid)
    assert found.order == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_third_prediction_gains_no_order_without_a_start(variable) -> None:
    """On EDM only beyond the step counts of the other tests: its first step is very accurate."""
    found = ode_convergence(DEISPublished(2, variable), VPSDE(), (256, 512))
    assert found.order == pytest.approx(DEISPublished(2).order, abs=0.1)


# --- the last step ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("solver", "extra"),
    [
        (DDIM(), 0),
        (DEIS(3), 1),
        (DEIS(4), 4),
        (IPNDM(4), 4),
        (IPNDMPublished(), 0),
        (PLMS(), 9),
        (PLMSPublished(), 9),
        (EDMHeun(), math.inf),
        (Midpoint(), math.inf),
    ],
    ids=repr,
)
def test_a_step_to_no_noise_is_one_evaluation_or_midpoints_two(solver, extra, n) -> None:
    sde = VPSDE()
    states = [X]
    model = mixture(sde)
    grid = uniform(n, 0.8, 0.0)
    flow = ProbabilityFlow(sde, model)
    found = integrate(flow, solver, X, grid, callback=lambda k, t, x: states.append(x))  # noqa: ARG005
    per_start = {1: 1, 4: 2, 9: 3}.get(extra, 1)
    last = 1 if isinstance(solver, Midpoint) else 0
    assert found.nfe == n + min(extra, per_start * (n - 1)) + last
    if not isinstance(solver, Midpoint):
        assert torch.allclose(found.x, model.denoise(states[-2], grid[-2]), rtol=1e-11)


# --- other programs --------------------------------------------------------------------------


def diffusers_end(name, sde, grid, every=1, **settings):
    """Return the end state of a diffusers scheduler whose training lattice is the grid itself.

    Training step k is the grid's time from its end, so that all times are met; in float64, where
    diffusers' betas are rounded to float32.
    """
    scheduler = getattr(pytest.importorskip("diffusers"), name)
    alphas = sde.alpha(grid.flip(0)).square()
    n = len(grid) - 1
    model = mixture(sde)
    offset = 0 if "Multistep" in name else every  # what makes "leading" mean n, n − 1, …, 1
    scheduler = scheduler(
        num_train_timesteps=n + 1, timestep_spacing="leading", steps_offset=offset, **settings
    )
    scheduler.set_timesteps(n // every)
    scheduler.alphas_cumprod = alphas
    sigmas = ((1 - alphas) / alphas).sqrt().flip(0)
    if name.startswith("Heun"):  # two entries a step
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.sigmas = sigmas
    scaled = name.startswith(("Heun", "Euler"))  # they keep x_t/α
    x = X / sde.alpha(grid[0]) if scaled else X
    for step in scheduler.timesteps:
        eps = model.eps(scheduler.scale_model_input(x, step), grid[n - int(step)])
        x = scheduler.step(eps, step, x).prev_sample
    return x * sde.alpha(grid[-1]) if scaled else x


# NumPy 2 warns of the conversion of tensors in diffusers.
of_diffusers = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@of_diffusers
@pytest.mark.parametrize("n", [4, 16])
@pytest.mark.parametrize(
    ("solver", "name", "end", "settings"),
    [
        (DDIM(), "EulerDiscreteScheduler", 0.05, {}),
        (DDIM(), "EulerDiscreteScheduler", 0.0, {}),
        (EDMHeun(), "HeunDiscreteScheduler", 0.0, {}),  # its last step is Euler's, to any σ
        *(
            (
                DEISPublished(k - 1, "lambda"),
                "DEISMultistepScheduler",
                0.05,
                {"solver_order": k, "lower_order_final": False},
            )
            for k in (1, 2, 3)
        ),
    ],
    ids=["Euler", "Euler to 0", "Heun to 0", "DEIS 1", "DEIS 2", "DEIS 3"],
)
def test_equal_to_diffusers(solver, name, end, settings, n) -> None:
    sde = VPSDE()
    grid = uniform(n, 0.9, end)
    other = diffusers_end(name, sde, grid, **settings)
    tolerance = 1e-6 if name.startswith("Euler") else 1e-9  # it rounds states to float32
    assert torch.allclose(solve(solver, sde, grid).x, other, rtol=tolerance, atol=tolerance)


@of_diffusers
@pytest.mark.parametrize("n", [4, 16])
def test_plms_is_diffusers_pndm(n) -> None:
    """Its lattice holds the middles of the first steps too."""
    sde = VPSDE()
    other = diffusers_end("PNDMScheduler", sde, uniform(2 * n, 0.9, 0.05), every=2)
    found = solve(PLMSPublished(), sde, uniform(n, 0.9, 0.05)).x
    assert torch.allclose(found, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 9])
def test_ipndm_is_diffusers(n) -> None:
    """That program is written for networks of v = alpha eps − sigma x0 in VP."""
    scheduler = pytest.importorskip("diffusers").IPNDMScheduler()
    sde = VPSDE()
    model = mixture(sde)
    grid = uniform(n, 0.9, 0.05)
    x = X
    scheduler.set_timesteps(n)
    scheduler.timesteps = grid[:-1]
    scheduler.alphas = sde.alpha(grid)
    scheduler.betas = sde.sigma(grid)
    for t in scheduler.timesteps:
        v = sde.alpha(t) * model.eps(x, t) - sde.sigma(t) * model.denoise(x, t)
        x = scheduler.step(v, t, x).prev_sample
    assert torch.allclose(solve(IPNDMPublished(3), sde, grid).x, x, rtol=1e-9, atol=1e-9)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DEIS(5), "DEIS: order must be 1, 2, 3 or 4, got 5; pass order=4"),
        (lambda: DEIS(variable="s"), "DEIS: variable must be t, rho or lambda, got s; pass"),
        (lambda: DEISPublished(4), "DEISPublished: degree must be 0, 1, 2 or 3, got 4"),
        (lambda: IPNDM(0), "IPNDM: order must be 1, 2, 3 or 4, got 0; pass order=4"),
        (lambda: IPNDMPublished(-1), "IPNDMPublished: degree must be 0, 1, 2 or 3, got -1"),
    ],
)
def test_impossible_settings_are_refused(make, text) -> None:
    with pytest.raises(ValueError, match=text):
        make()


class Square(SDE):
    """An SDE without alpha and sigma."""

    def drift(self, x, t):  # noqa: ARG002
        return -(x**3)

    def diffusion(self, x, t):  # noqa: ARG002
        return torch.ones_like(x)


@pytest.mark.parametrize(
    "solver",
    [DEIS(), DEISPublished(), IPNDM(), IPNDMPublished(), PLMS(), EDMHeun(), DDIM()],
    ids=lambda s: type(s).__name__,
)
def test_an_sde_that_is_not_linear_is_refused_by_name(solver) -> None:
    rule = f"{type(solver).__name__}: dynamics must come from a LinearSDE"
    with pytest.raises(TypeError, match=rule):
        integrate(ProbabilityFlow(Square(), lambda x, t: -x), solver, X, uniform(3))  # noqa: ARG005


def test_gaussian_data_in_float32_reach_their_mean() -> None:
    """At 12 steps, in single precision, as a user would call it."""
    sde = VPSDE()
    data = Gaussian(torch.tensor([1.0, -1.0]), 0.04 * torch.eye(2))
    model = data.diffused(sde)
    grid = karras(sde, 24)
    x = torch.zeros(1, 2)
    exact = model.flow(x.double(), grid[0], grid[-1])
    for solver in (DEIS(), IPNDM(3), PLMS()):
        assert torch.allclose(solve(solver, sde, grid, x, model).x.double(), exact, atol=2e-3)
