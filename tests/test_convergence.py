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
    GaussianMixture,
    OneStep,
    RectifiedFlow,
    ReverseSDE,
    SubVPSDE,
    integrate,
    uniform,
)
from sde_diffusion.coefficients import Coefficients, Levels
from sde_diffusion.diagnostics.convergence import Convergence, OrderMeasurement
from sde_diffusion.diagnostics.orders import (
    certify,
    ends,
    ode_convergence,
    weak_convergence,
)
from sde_diffusion.diagnostics.problems import (
    BOTH,
    LINE,
    GaussianLine,
    MixtureAndGaussian,
    MixtureLine,
)
from sde_diffusion.dynamics import ODE
from sde_diffusion.grids import karras, log_snr
from sde_diffusion.solvers import (
    AdamsBashforth,
    Ancestral,
    DormandPrince,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta4,
    SongLangevin,
    TorchDiffEq,
    catalogue,
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
INSTANCES = catalogue.instances()


def name(solver: object) -> str:
    return repr(solver).replace("order=", "")


@every_sde
@pytest.mark.parametrize("solver", INSTANCES.values(), ids=INSTANCES)
def test_every_order_is_the_declared_one(sde, solver) -> None:
    found = certify(solver, sde)
    shown = [(m.kind, m.problem, m.declared, m.convergence.slopes) for m in found.measurements]
    assert found.passed, shown
    assert math.isnan(solver.evaluations) or found.evaluations == solver.evaluations


# --- the instrument ---


class Tilted(OneStep[ODE]):
    """Heun's method with weights ½ + d and ½ − d: consistent, and first order unless d is 0."""

    dynamics = ODE
    order = 2

    def __init__(self, d: float, wrong: float = 0.0) -> None:
        self.d = d
        self.wrong = wrong

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        k1 = dynamics.velocity(x, t)
        k2 = dynamics.velocity(x + (s - t) * k1, s)
        return x + (s - t) * ((0.5 + self.d) * k1 + (0.5 - self.d + self.wrong) * k2)


class Loud(OneStep[ReverseSDE]):
    """Euler–Maruyama with a noise that is too loud, or drawn apart from the path."""

    dynamics = ReverseSDE
    order = 1
    strong_order = 1

    def __init__(self, factor: float = 1.0, *, apart: bool = False) -> None:
        self.factor = factor
        self.apart = apart

    def step(self, dynamics, x, t, s, noise):
        z = noise.normal(x) if self.apart else noise.unit(x, t, s)
        dw = self.factor * (t - s).sqrt() * z
        return x + dynamics.drift(x, t) * (s - t) + dynamics.diffusion(x, t) * dw


def test_a_wrong_coefficient_is_found() -> None:
    assert certify(Tilted(0.0), VPSDE()).passed
    for wrong, order in ((Tilted(0.1), 1), (Tilted(0.0, 1e-3), 0)):
        for m in certify(wrong, VPSDE()).measurements:
            assert not m.passed
            assert m.observed == pytest.approx(order, abs=0.3)


def test_a_wrong_noise_is_found() -> None:
    assert certify(Loud(), VPSDE()).passed
    loud = certify(Loud(1.05), VPSDE()).measurements[0]
    assert loud.observed == pytest.approx(0, abs=0.15)
    assert not loud.passed
    weak, strong = certify(Loud(apart=True), VPSDE()).measurements
    assert weak.passed  # the law is right, the path is not
    assert strong.observed == pytest.approx(0, abs=0.15)


def test_what_is_drawn_between_the_times_of_the_grid_is_of_the_same_path() -> None:
    """Two half steps of noise: off the grid, and the strong order must not notice."""

    class Halves(OneStep[ReverseSDE]):
        dynamics = ReverseSDE
        order = 1
        strong_order = 1

        def step(self, dynamics, x, t, s, noise):
            m = 0.3 * t + 0.7 * s
            dw = noise.increment(x, t, m) + noise.increment(x, m, s)
            return x + dynamics.drift(x, t) * (s - t) + dynamics.diffusion(x, t) * dw

    assert certify(Halves(), VPSDE()).passed


@pytest.mark.parametrize("kind", [GaussianLine, MixtureLine, MixtureAndGaussian])
@every_sde
def test_the_fast_scores_are_the_oracles(sde, kind) -> None:
    fast = kind(sde)
    oracle = kind.oracle.diffused(sde)
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(7, *kind.oracle.event, generator=generator, dtype=torch.float64)
    for t in sde.time(torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)):
        assert torch.allclose(fast(x, t), oracle(x, t), atol=1e-12)
        assert torch.allclose(fast(x, t.expand(7)), oracle(x, t), atol=1e-12)
        for form in ("eps", "x0", "v"):
            exact = oracle.predict(form, x, t, Coefficients(sde).level(t))
            for at in (Coefficients(sde).level(t), Levels(sde.alpha(t), sde.sigma(t))):
                assert torch.allclose(fast.predict(form, x, t, at), exact, atol=1e-12)


@every_sde
def test_the_moments_of_the_line_are_the_oracles(sde) -> None:
    t = torch.tensor(ends(sde)[0], dtype=torch.float64)
    marginal = LINE.diffused(sde).marginal(t)
    assert GaussianLine(sde).moments(float(t)) == pytest.approx(
        (marginal.means.item(), marginal.variances.item() ** 0.5)
    )


@every_sde
def test_both_problems_of_the_flow_are_one_mixture(sde) -> None:
    """The density is the product, so the exact flow of each part is its own."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixture = GaussianMixture([0.4, 0.6], torch.tensor([[-0.8], [0.7]]).double(), stds=[0.5, 0.3])
    parts = mixture.log_prob(x[:, :1]) + Gaussian(*_gaussian(BOTH)).log_prob(x[:, 1:])
    assert torch.allclose(BOTH.log_prob(x), parts, atol=1e-6)
    found = ode_convergence(DormandPrince(1e-11, 1e-11), sde, (1,)).errors[0]
    assert found < 1e-8


def _gaussian(both: GaussianMixture) -> tuple[torch.Tensor, torch.Tensor]:
    basis = both.bases[0]
    return both.means[0, 1:], (basis @ both.variances[0].diag() @ basis.mT)[1:, 1:]


def test_a_constant_predicts_the_error() -> None:
    m = certify(RungeKutta4(), VPSDE()).measurements[0]
    n = m.convergence.steps[-1]
    assert m.constant * n**-4.0 == pytest.approx(m.convergence.errors[-1])
    again = certify(Heun(), VPSDE()).measurements[0]
    assert again.constant == pytest.approx(again.convergence.constant(2))


def test_rounding_is_no_order() -> None:
    found = Convergence((8, 16, 32, 64), (1e-9, 1e-12, 1e-15, 2e-15))
    assert found.order == pytest.approx(math.log2(1e3))
    assert math.isnan(Convergence((8, 16), (1e-9, 1e-15)).order)
    assert not OrderMeasurement("ode", "mixture", 3, Convergence((8, 16), (0.0, 0.0))).passed


def test_more_than_the_declared_order_is_right_on_a_linear_problem_only() -> None:
    third = Convergence((8, 16), (1.0, 0.125))
    assert OrderMeasurement("ode", "correlated Gaussian", 2, third, least=True).passed
    assert not OrderMeasurement("ode", "mixture", 2, third).passed
    assert not OrderMeasurement("ode", "correlated Gaussian", 4, third, least=True).passed


@pytest.mark.parametrize("rule", [log_snr, karras])
@pytest.mark.parametrize(
    "solver", [Heun(), *map(AdamsBashforth, (2, 3, 4)), Ancestral()], ids=name
)
def test_orders_hold_on_other_families_of_grids(solver, rule) -> None:
    sde = EDMSDE()

    def grid(n, start, end):
        return rule(sde, n, start=start, end=end)

    assert certify(solver, sde, grid=grid).passed


def test_a_solver_must_declare_its_order_and_a_rule_must_keep_its_ends() -> None:
    class Silent(OneStep[ODE]):
        dynamics = ODE
        step = Heun.step

    with pytest.raises(TypeError, match="Silent: order must be a number, got nan; declare it"):
        certify(Silent(), VPSDE())
    with pytest.raises(TypeError, match="got a tolerance instead; declare"):
        certify(TorchDiffEq("scipy_solver"), VPSDE())
    with pytest.raises(ValueError, match=r"have 8 steps from .*, got 9 steps from 1 to 0.001"):
        certify(Heun(), VPSDE(), grid=lambda *_: uniform(9))


# --- what the measurement of all solvers leaves out ---


@pytest.mark.parametrize("noise_scale", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("solver", [EulerMaruyama(), ReverseDiffusion()], ids=name)
def test_weak_order_at_any_noise_scale(solver, noise_scale) -> None:
    """All members of the family share p_t; a wrong drift factor ½(1+l²) would leave order 0."""
    found = weak_convergence(solver, VPSDE(), (64, 128), noise_scale=noise_scale)
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
        # At 1e-8 a method of order 2 takes more than the 1000 steps of the default.
        solver = TorchDiffEq(method, tolerance, tolerance, max_steps=10_000)
        return ode_convergence(solver, VPSDE(), (1,)).errors[0]

    coarse = error(1e-4)
    fine = error(1e-8)
    assert fine < 1e-6
    assert fine < 0.1 * coarse


def test_dormand_prince_error_follows_the_tolerance() -> None:
    def error(tolerance: float) -> float:
        return ode_convergence(DormandPrince(tolerance, tolerance), VPSDE(), (1,)).errors[0]

    errors = [error(10.0**-k) for k in range(3, 12)]
    assert all(e < 10 * 10.0**-k for k, e in zip(range(3, 12), errors, strict=True))
    assert all(a > b for a, b in zip(errors, errors[2:], strict=False))


def test_corrector_bias_falls_with_the_square_of_snr() -> None:
    """Order 0 in the steps: what remains at many steps is the Langevin step's own bias."""

    def bias(snr: float) -> float:
        solver = PredictorCorrector(ReverseDiffusion(), Langevin(snr))
        return weak_convergence(solver, VPSDE(), (512,)).errors[0]

    # O(snr²) over O(1/512): the predictor's own error is a few per cent of it.
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
