"""Every exported solver has the order it declares, on every SDE, measured against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineBeta,
    Gaussian,
    RectifiedFlow,
    ReverseSDE,
    SubVPSDE,
    integrate,
    solvers,
    uniform,
)
from sde_diffusion.grids import log_snr
from sde_diffusion.integration import dynamics_for
from sde_diffusion.orders import (
    ends,
    ode_convergence,
    strong_convergence,
    weak_convergence,
)
from sde_diffusion.reverse import ODE
from sde_diffusion.solvers import (
    AdamsBashforth,
    Ancestral,
    AnnealedLangevin,
    DormandPrince,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta4,
    SongLangevin,
    TorchDiffEq,
)

FAMILY = {
    "vp": VPSDE(),
    "vp-cosine": VPSDE(CosineBeta()),
    "sub-vp": SubVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "rectified-flow": RectifiedFlow(),
}
every_sde = pytest.mark.parametrize("sde", FAMILY.values(), ids=FAMILY)
DOUBLINGS = (16, 32, 64, 128, 256, 512)
FEW = (5, 10, 20, 40, 80)  # a fifth-order method is at rounding beyond

ODE_SOLVERS = [
    (Euler(), DOUBLINGS),
    (Heun(), DOUBLINGS),
    (RungeKutta4(), DOUBLINGS),
    *((AdamsBashforth(order), DOUBLINGS) for order in (1, 2, 3, 4)),
    (DormandPrince(math.inf, math.inf), FEW),  # no error is too large: one step per grid step
    (Ancestral(eta=0.0), DOUBLINGS),
    *(
        (TorchDiffEq(method), DOUBLINGS)
        for method in ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams",
                       "implicit_adams", "fixed_adams")
    ),
]  # fmt: skip
SDE_SOLVERS = [
    EulerMaruyama(),
    ReverseDiffusion(),
    Ancestral(),
    Ancestral(eta=0.5),
    PredictorCorrector(ReverseDiffusion(), Langevin()),
    PredictorCorrector(Ancestral(), AnnealedLangevin(count=2)),
]
# A batch statistic makes the step depend on more than the sample: measured apart, below.
MEASURED_APART = {"SongLangevin"}


def name(solver: object) -> str:
    return repr(solver).replace("order=", "")


def test_every_exported_solver_is_measured() -> None:
    measured = {type(s).__name__ for s, _ in ODE_SOLVERS} | {type(s).__name__ for s in SDE_SOLVERS}
    parts = {type(s.corrector).__name__ for s in SDE_SOLVERS if isinstance(s, PredictorCorrector)}
    assert measured | parts | MEASURED_APART == set(solvers.__all__) - {"Corrector"}


@every_sde
@pytest.mark.parametrize(("solver", "steps"), ODE_SOLVERS, ids=lambda v: name(v))
def test_ode_order(sde, solver, steps) -> None:
    assert ode_convergence(solver, sde, steps).order == pytest.approx(solver.order, abs=0.15)


@every_sde
@pytest.mark.parametrize("solver", SDE_SOLVERS, ids=name)
def test_weak_order(sde, solver) -> None:
    found = weak_convergence(solver, sde, (64, 128, 256, 512, 1024))
    assert found.order == pytest.approx(solver.order, abs=0.15)


@every_sde
@pytest.mark.parametrize("solver", SDE_SOLVERS[:4], ids=name)
def test_strong_order_on_one_brownian_path(sde, solver) -> None:
    found = strong_convergence(solver, sde, (16, 32, 64, 128), paths=2000)
    overall = math.log2(found.errors[0] / found.errors[-1]) / 3
    assert overall == pytest.approx(solver.strong_order, abs=0.15)


@pytest.mark.parametrize("noise_scale", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("solver", [EulerMaruyama(), ReverseDiffusion()], ids=name)
def test_weak_order_at_any_noise_scale(solver, noise_scale) -> None:
    """All members of the family share p_t; a wrong drift factor ½(1+l²) would leave order 0."""
    found = weak_convergence(solver, VPSDE(), (64, 128, 256, 512), noise_scale=noise_scale)
    assert found.order == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("method", "order"), [("adaptive_heun", 2), ("fehlberg2", 2), ("bosh3", 3), ("dopri5", 5)]
)
@every_sde
def test_order_of_torchdiffeqs_adaptive_methods_at_constant_steps(sde, method, order) -> None:
    start, end = ends(sde)

    def error(n: int) -> float:
        options = {"first_step": (start - end) / n * (1 + 1e-9), "ifactor": 1.0, "dfactor": 1.0}
        solver = TorchDiffEq(method, rtol=1e9, atol=1e9, options=options)
        return ode_convergence(solver, sde, (1,)).errors[0]

    n = 16 if order == 5 else 64
    assert math.log2(error(n) / error(2 * n)) == pytest.approx(order, abs=0.3)
    assert TorchDiffEq(method).order == order


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "adaptive_heun", "scipy_solver"])
def test_adaptive_errors_follow_the_tolerance(method) -> None:
    def error(tolerance: float) -> float:
        return ode_convergence(TorchDiffEq(method, tolerance, tolerance), VPSDE(), (1,)).errors[0]

    coarse, fine = error(1e-4), error(1e-8)
    assert fine < 1e-6
    assert fine < 0.1 * coarse


def test_dormand_prince_error_follows_the_tolerance() -> None:
    def error(tolerance: float) -> float:
        return ode_convergence(DormandPrince(tolerance, tolerance), VPSDE(), (1,)).errors[0]

    errors = [error(10.0**-k) for k in range(3, 12)]
    assert all(e < 10 * 10.0**-k for k, e in zip(range(3, 12), errors, strict=True))
    assert all(a > b for a, b in zip(errors, errors[2:], strict=False))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_adams_keeps_its_order_on_a_grid_that_is_not_uniform(order) -> None:
    sde, data = VPSDE(), Gaussian(torch.tensor([0.3]), torch.tensor([[0.25]]))
    model, (start, end) = data.diffused(sde), ends(sde)
    x = torch.tensor([[0.8], [-1.0]], dtype=torch.float64)
    exact = model.flow(x, *torch.tensor([start, end], dtype=torch.float64))

    def error(n: int) -> float:
        flow = dynamics_for(Heun(), sde, model)
        grid = log_snr(sde, n, start, end)
        return float((integrate(flow, AdamsBashforth(order), x, grid).x - exact).abs().max())

    assert math.log2(error(256) / error(512)) == pytest.approx(order, abs=0.15)


def test_corrector_bias_falls_with_the_square_of_snr() -> None:
    """Order 0 in the steps: what remains at many steps is the Langevin step's own bias."""

    def bias(snr: float) -> float:
        solver = PredictorCorrector(ReverseDiffusion(), Langevin(snr))
        return weak_convergence(solver, VPSDE(), (4096,)).errors[0]

    # O(snr²) over O(1/4096): the predictor's own error is a few per cent of it.
    assert math.log2(bias(0.4) / bias(0.2)) == pytest.approx(2, abs=0.25)


def test_song_langevin_has_the_same_fixed_point() -> None:
    """On N(0, I) in many dimensions ‖z‖/‖score‖ → σ = 1 and Song's rule is ours, snr by snr."""
    sde = VPSDE()
    dynamics = ReverseSDE(sde, lambda x, t: -x)  # noqa: ARG005
    t, s = torch.tensor([0.9, 0.89], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    score, z = torch.randn(2, 64, 4096, generator=generator, dtype=torch.float64)
    a, _ = sde.kernel(s, t)
    delta = SongLangevin(snr=0.1).size(dynamics, score, z, t, s)
    # A norm of 4096 normals is √4096 within 1/√8192.
    assert float(delta) == pytest.approx(2 * float(a) ** 2 * 0.1**2, rel=1e-2)


class Oscillator(ODE):
    """x'' = −x as a plane rotation: a user's own ODE, forward in time."""

    def velocity(self, x, t):  # noqa: ARG002
        return torch.stack([x[:, 1], -x[:, 0]], 1)


@pytest.mark.parametrize("solver", [Heun(), RungeKutta4(), AdamsBashforth(4), DormandPrince()])
def test_solvers_run_forward_in_time_too(solver) -> None:
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = integrate(Oscillator(), solver, x, uniform(400, 0.0, 1.0)).x
    assert found[0].tolist() == pytest.approx([math.cos(1), -math.sin(1)], abs=1e-5)
