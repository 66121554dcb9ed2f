"""Angular Adams and its SDE: against transcriptions by hand, exact identities, neighbours."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sde_diffusion import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineBeta,
    Gaussian,
    GaussianMixture,
    LinearSDE,
    Noise,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    SubVPSDE,
    WhiteNoise,
    integrate,
    karras,
    log_snr,
    quadratic,
    uniform,
)
from sde_diffusion.diagnostics.metrics import rms_distance
from sde_diffusion.diagnostics.orders import ode_convergence, weak_convergence
from sde_diffusion.grids import angular
from sde_diffusion.solvers import DormandPrince, Heun
from sde_diffusion.solvers.angular_adams import AngularAdams
from sde_diffusion.solvers.angular_sde import AngularSDE
from sde_diffusion.solvers.dpm_solver_pp import DPMSolverPP

SDES = [VPSDE(), VPSDE(CosineBeta()), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: repr(sde)[:24])
every_order = pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
X = torch.tensor([[0.3, -0.2], [1.0, 0.5], [-0.7, 0.1]], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [-0.5, 0.5]], dtype=torch.float64)


def mixture(sde, d=1.0):
    return GaussianMixture([1, 2], MEANS / d, stds=[0.4 / d, 0.3 / d]).diffused(sde)


def solve(solver, sde, grid, x=X, score=None, callback=None):
    return integrate(
        ProbabilityFlow(sde, score or mixture(sde)), solver, x, grid, callback=callback
    )


def angles(sde, grid, d=1.0):
    return torch.atan2(sde.sigma(grid) / d, sde.alpha(grid)).tolist()


# --- a transcription by hand -----------------------------------------------------------------


def weight(j, nodes, start, end, kernel=lambda phi: 1.0):  # noqa: ARG005
    """Return ∫ kernel(φ) ℓ_j(ψ(φ)) dφ from start to end, the nodes being angles."""
    psi = [math.log(math.tan(phi / 2)) for phi in nodes]

    def lagrange(phi):
        at = math.log(math.tan(phi / 2))
        found = kernel(phi)
        for k, other in enumerate(psi):
            if k != j:
                found *= (at - other) / (psi[j] - other)
        return found

    return quad(lagrange, start, end, epsabs=1e-15, epsrel=1e-13)[0]


def values(step, order, *, corrects):
    """Return how many values a step |Δψ| stands, as the method's rule has it."""
    limits = [1.25, 1.0, 6 / 11, 0.3] if corrects else [1.0, 6 / 11, 0.3]
    found = 1
    for limit in limits:
        if step <= limit:
            found += 1
    return min(found, order if corrects else max(order - 1, 1))


def by_hand(sde, grid, order, d, seen):
    """Return the end of the method in y and φ; note in ``seen`` how many values steps had."""
    model = mixture(sde)
    at = angles(sde, grid, d)

    def radius(t):  # √(α² + σ²/σ_d²)
        return torch.hypot(sde.alpha(t), sde.sigma(t) / d)

    def velocity(y, phi):
        t = sde.time(torch.tensor(-math.log(d * math.tan(phi)), dtype=torch.float64))
        x = d * radius(t) * y
        return math.cos(phi) * model.eps(x, t) - math.sin(phi) * model.denoise(x, t) / d

    def psi(phi):
        return math.log(math.tan(phi / 2))

    starts = 0 if math.cos(at[0]) < 0.1 else {4: 1, 5: 2}.get(order, 0)
    y = X / (d * radius(grid[0]))
    before = None
    history = []
    for i, (t, s) in enumerate(pairwise(at)):
        v = velocity(y, t)
        history.insert(0, v)
        if before is not None:
            many = min(values(abs(psi(t) - psi(at[i - 1])), order, corrects=True), i + 1)
            seen.add(("corrector", many))
            if many > 1:
                nodes = at[i + 1 - many : i + 1][::-1]
                y = before
                for j in range(many):
                    y = y + weight(j, nodes, at[i - 1], t) * history[j]
        before = None
        if s == 0:
            y = math.cos(t) * y - math.sin(t) * v
        elif i < starts:
            seen.add(("start", i))
            h = s - t
            middle = (s + t) / 2
            two = velocity(y + h / 2 * v, middle)
            three = velocity(y + h / 2 * two, middle)
            four = velocity(y + h * three, s)
            y = y + h / 6 * (v + 2 * two + 2 * three + four)
        else:
            many = min(values(abs(psi(s) - psi(t)), order, corrects=False), i + 1)
            seen.add(("predictor", many))
            nodes = at[i + 1 - many : i + 1][::-1]
            before = y
            for j in range(many):
                y = y + weight(j, nodes, t, s) * history[j]
    return d * y * radius(grid[-1])


@every_order
def test_a_transcription_by_hand_ends_at_the_same_state(order) -> None:
    seen = set()
    for sde, d in itertools.product((VPSDE(), VESDE(0.01, 50.0)), (1.0, 0.4)):
        solver = AngularAdams(order, d)
        middle = float(sde.time(torch.tensor(-1.0, dtype=torch.float64)))
        late = float(sde.time(torch.tensor(2.0, dtype=torch.float64)))
        grids = [
            solver.grid(sde, 4),
            solver.grid(sde, 14),
            uniform(8, middle, 0.0),
            uniform(12, middle, late),
        ]
        for grid in grids:
            found = solve(solver, sde, grid).x
            exact = by_hand(sde, grid, order, d, seen)
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-11)
    wanted = {("predictor", p) for p in range(1, max(order, 2))}
    wanted |= {("corrector", p) for p in range(1, order + 1)}
    wanted |= {("start", i) for i in range(max(order - 3, 0))}
    assert seen == wanted  # every branch of the rule was there


@every_order
def test_the_rule_holds_on_either_side_of_its_limits(order) -> None:
    sde = VPSDE()
    steps = [0.2] * 4
    for limit in (0.3, 6 / 11, 1.0, 1.25):
        steps += [limit - 1e-4, limit + 1e-4]
    psi = -0.1 - torch.tensor([0.0, *steps, 0.2], dtype=torch.float64).cumsum(0)
    grid = sde.time(psi.sinh().neg().log())  # α/σ = cot φ = −sinh ψ
    found = solve(AngularAdams(order), sde, grid).x
    exact = by_hand(sde, grid, order, 1.0, set())
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-11)


# --- sigma_data ------------------------------------------------------------------------------


class Rescaled(LinearSDE):
    """The schedule (α, σ/d) of another SDE: what x/d obeys."""

    def __init__(self, sde, d) -> None:
        self.sde = sde
        self.d = d
        self.horizon = sde.horizon
        self.cutoff = sde.cutoff

    def alpha(self, t):
        return self.sde.alpha(t)

    def sigma(self, t):
        return self.sde.sigma(t) / self.d


@every_sde
@pytest.mark.parametrize("d", [0.3, 2.5])
def test_sigma_data_is_the_rescaled_problem(sde, d) -> None:
    other = Rescaled(sde, d)
    solver = AngularAdams(sigma_data=d)
    one = AngularAdams()
    torch.testing.assert_close(solver.grid(sde, 7), one.grid(other, 7), rtol=1e-12, atol=1e-14)
    grids = [solver.grid(sde, 7), uniform(9, 0.6, 0.05), uniform(5, 0.5, 0.0)]
    for grid in grids:
        theirs = d * solve(one, other, grid, X / d, mixture(other, d)).x
        torch.testing.assert_close(solve(solver, sde, grid).x, theirs, rtol=0, atol=1e-11)


# --- exact identities ------------------------------------------------------------------------


@every_sde
@every_order
@pytest.mark.parametrize("d", [1.0, 0.5, 3.0])
def test_data_as_wide_as_sigma_data_keeps_its_y(sde, order, d) -> None:
    model = Gaussian(torch.zeros(2), d**2 * torch.eye(2)).diffused(sde)
    for grid in (uniform(4, 0.8, 0.02), AngularAdams(sigma_data=d).grid(sde, 6)):
        first, *_, last = torch.hypot(sde.alpha(grid), sde.sigma(grid) / d).tolist()
        end = solve(AngularAdams(order, d), sde, grid, score=model).x
        torch.testing.assert_close(end, X * (last / first), rtol=1e-11, atol=0)


@every_sde
@every_order
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_a_constant_v_turns_by_the_angle(sde, order, steps) -> None:
    c = torch.tensor([0.7, -1.2], dtype=torch.float64)

    def score(x, t):
        a = sde.alpha(t)
        s = sde.sigma(t)
        return -(s * x / torch.hypot(a, s) + a * c) / (torch.hypot(a, s) * s)

    grid = uniform(steps, 0.7, 0.1)
    radius = torch.hypot(sde.alpha(grid), sde.sigma(grid)).tolist()
    phi = angles(sde, grid)
    exact = radius[-1] * (X / radius[0] + c * (phi[-1] - phi[0]))
    found = solve(AngularAdams(order), sde, grid, score=score).x
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


@every_order
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 5.0)], ids=["VP", "VE"])
def test_forth_and_back_is_the_identity_to_the_order(sde, order) -> None:
    solver = AngularAdams(order)
    errors = []
    for steps in (120, 240):
        grid = uniform(steps, 0.15, 0.6)
        there = solve(solver, sde, grid).x
        assert rms_distance(there, X) > 0.1
        errors.append(rms_distance(solve(solver, sde, grid.flip(0), there).x, X))
    assert errors[1] < (3e-3, 3e-5, 1e-6, 2e-8, 3e-9)[order - 1]
    assert math.log2(errors[0] / errors[1]) > order - 0.3


@every_sde
def test_a_batch_may_be_split(sde) -> None:
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for d in (1.0, 0.5):
        solver = AngularAdams(sigma_data=d)
        for grid in (solver.grid(sde, 9), uniform(9, 0.6, 0.0)):
            whole = solve(solver, sde, grid, x).x
            parts = [solve(solver, sde, grid, part).x for part in x.split([1, 4, 2])]
            assert torch.equal(whole, torch.cat(parts))


# --- the last step, the evaluations, the grid ------------------------------------------------


@every_sde
@pytest.mark.parametrize("d", [1.0, 0.5])
def test_the_step_to_no_noise_is_the_posterior_mean(sde, d) -> None:
    for order, steps in [*((p, 1) for p in (1, 2, 3, 4, 5)), *((1, n) for n in range(2, 7))]:
        grid = uniform(steps, 0.8, 0.0)
        states = [X]
        found = solve(
            AngularAdams(order, d),
            sde,
            grid,
            callback=lambda *now, seen=states: seen.append(now[2]),
        )
        tweedie = sde.alpha(grid[-1]) * mixture(sde).denoise(states[-2], grid[-2])
        torch.testing.assert_close(found.x, tweedie, rtol=0, atol=1e-11)


@every_order
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("d", [1.0, 0.5])
def test_only_a_start_away_from_noise_costs_more(order, steps, d) -> None:
    solver = AngularAdams(order, d)
    starts = min({4: 1, 5: 2}.get(order, 0), steps)
    for sde in (*SDES[:3], VESDE(), EDMSDE(), RectifiedFlow()):
        # λ at which cos φ = .1: the grid starts a little on one side of it, or on the other.
        edge = math.log(0.1 / math.sqrt(1 - 0.1**2) / d)
        noisy, clear = sde.time(torch.tensor([edge - 0.01, edge + 0.01], dtype=torch.float64))
        for start, more in ((sde.horizon, 0), (float(noisy), 0), (float(clear), 3 * starts)):
            model = mixture(sde)
            times = []

            def score(x, t, model=model, times=times):
                times.append(float(t))
                return model(x, t)

            grid = solver.grid(sde, steps, start)
            assert solve(solver, sde, grid, score=score).nfe == len(times) == steps + more
            assert more or times == grid[:-1].tolist()


@every_sde
@pytest.mark.parametrize("d", [1.0, 0.5])
def test_the_grid_is_its_formula_and_ends_where_sampling_does(sde, d) -> None:
    solver = AngularAdams(sigma_data=d)
    for n in range(1, 21):
        grid = solver.grid(sde, n)
        assert (float(grid[0]), float(grid[-1])) == (sde.horizon, sde.cutoff)
        assert len(grid) == n + 1
        assert bool((grid.diff() < 0).all())
        first, *inner, last = angles(sde, grid, d)
        u = 1 - np.arange(1, n) / n
        phi = last + (first - last) * (1 - (1 - u**2) ** (3 / 2 + 6 / n**2))
        np.testing.assert_allclose(inner, phi, rtol=0, atol=1e-9)


# --- errors ----------------------------------------------------------------------------------


def test_what_is_wrong_is_said() -> None:
    for order in (0, 6, -1):
        rule = f"AngularAdams: order must be 1, 2, 3, 4 or 5, got {order}; pass order=5"
        with pytest.raises(ValueError, match=rule):
            AngularAdams(order)
    for d in (0.0, -1.0, math.inf, math.nan):
        rule = f"AngularAdams: sigma_data must be finite and above 0, got {d}; pass sigma_data="
        with pytest.raises(ValueError, match=rule):
            AngularAdams(sigma_data=d)


class Cubic(SDE):
    def drift(self, x, t):  # noqa: ARG002
        return -(x**3)

    def diffusion(self, x, t):  # noqa: ARG002
        return torch.ones_like(x)


def test_other_sdes_are_refused() -> None:
    flow = ProbabilityFlow(Cubic(), lambda x, t: -x)  # noqa: ARG005
    with pytest.raises(TypeError, match="AngularAdams: dynamics must come from a LinearSDE, for"):
        integrate(flow, AngularAdams(), X, uniform(3))


# --- the reverse SDE -------------------------------------------------------------------------


class Given(Noise):
    """Normals in the order of a list."""

    def __init__(self, draws) -> None:
        self.draws = iter(draws)

    def normal(self, x):
        return next(self.draws).expand_as(x).clone()


def reverse(sde, grid, tau, draws, x=X, score=None):
    dynamics = ReverseSDE(sde, score or mixture(sde), tau)
    return integrate(dynamics, AngularSDE(), x, grid, noise=Given(draws))


@every_sde
def test_without_noise_it_is_the_flow_of_order_three(sde) -> None:
    for grid in (AngularSDE().grid(sde, 4), AngularSDE().grid(sde, 30), uniform(7, 0.6, 0.0)):
        found = reverse(sde, grid, 0.0, [])
        flow = solve(AngularAdams(3), sde, grid)
        torch.testing.assert_close(found.x, flow.x, rtol=0, atol=1e-12)
        assert found.nfe == len(grid) - 1
    assert torch.equal(AngularSDE().grid(sde, 7, 0.5), AngularAdams().grid(sde, 7, 0.5))


def sde_by_hand(sde, grid, tau, z):
    """Return the end of the method, in y and φ."""
    model = mixture(sde)
    phi = angles(sde, grid)
    radius = torch.hypot(sde.alpha(grid), sde.sigma(grid))

    def step(y, i, nodes, history, limits):
        length = abs(math.log(math.tan(phi[i + 1] / 2) / math.tan(phi[i] / 2)))
        kappa = tau**2
        if (1 + kappa) * length > 0.5:
            kappa = max(0.5 / length - 1, 0.0)
        many = min(1 + sum(length <= limit for limit in limits), len(nodes))
        last = math.cos(phi[i + 1])
        c = math.cos(phi[i]) / last
        y = c**kappa * y + math.sqrt(1 - c ** (2 * kappa)) * z[i]

        def kernel(angle):
            return (1 + kappa) * (math.cos(angle) / last) ** kappa

        for j in range(many):
            y = y + weight(j, nodes[:many], phi[i], phi[i + 1], kernel) * history[j]
        return y, many

    y = X / radius[0]
    before = None
    history = []
    seen = set()
    for i in range(len(grid) - 1):
        x = radius[i] * y
        v = math.cos(phi[i]) * model.eps(x, grid[i]) - math.sin(phi[i]) * model.denoise(x, grid[i])
        history.insert(0, v)
        nodes = phi[: i + 1][::-1]
        if i:
            corrected, many = step(before, i - 1, nodes, history, [1.25, 1.0])
            y = corrected if many > 1 else y
            seen.add(("corrector", many))
        if phi[i + 1] == 0:
            return radius[-1] * (math.cos(phi[i]) * y - math.sin(phi[i]) * v), seen
        before = y
        y, many = step(y, i, nodes, history, [1.0])
        seen.add(("predictor", many))
    return radius[-1] * y, seen


@pytest.mark.parametrize("tau", [0.4, 1.0, 1.5])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 50.0)], ids=["VP", "VE"])
def test_the_sde_solver_is_its_transcription_by_hand(sde, tau) -> None:
    seen = set()
    middle = float(sde.time(torch.tensor(-1.0, dtype=torch.float64)))
    edges = [0.2, 0.2, 0.499, 0.501, 0.999, 1.001, 1.249, 1.251, 0.2]
    places = -0.1 - torch.tensor([0.0, *edges], dtype=torch.float64).cumsum(0)
    on_edges = sde.time(places.sinh().neg().log())  # α/σ = cot φ = −sinh ψ
    own = AngularSDE().grid
    for grid in (own(sde, 4), own(sde, 20), uniform(9, middle, 0.0), on_edges):
        z = torch.randn(
            len(grid), 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
        )
        exact, branches = sde_by_hand(sde, grid, tau, z)
        seen |= branches
        # κ > 0 draws and κ = 0 does not: the list is of those that draw.
        psi = [math.log(math.tan(phi / 2)) if phi else -math.inf for phi in angles(sde, grid)]
        draws = [z[i] for i, (a, b) in enumerate(pairwise(psi)) if abs(a - b) < 0.5]
        found = reverse(sde, grid, tau, draws).x
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-11)
    assert seen == {("predictor", 1), ("predictor", 2), *(("corrector", n) for n in (1, 2, 3))}


@every_sde
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_a_constant_v_has_the_mean_and_variance_of_the_reverse_sde(sde, tau) -> None:
    c = 0.7

    def score(x, t):
        a = sde.alpha(t)
        s = sde.sigma(t)
        return -(s * x / torch.hypot(a, s) + a * c) / (torch.hypot(a, s) * s)

    dynamics = ReverseSDE(sde, score, tau)
    one = torch.ones(1, 1, dtype=torch.float64)

    def slope(state, t):  # of the mean and the variance, dx = (p x + q) dt + g dw̄
        q = dynamics.drift(0 * one, t)
        p = dynamics.drift(one, t) - q
        return torch.cat([p * state[:1] + q, 2 * p * state[1:] - dynamics.diffusion(one, t) ** 2])

    ends = sde.time(torch.tensor([-0.2, 0.2], dtype=torch.float64))
    state = torch.tensor([[0.3], [0.0]], dtype=torch.float64)
    times = torch.linspace(*ends.tolist(), 101, dtype=torch.float64)
    for t, s in pairwise(times):
        h = s - t
        middle = (t + s) / 2
        first = slope(state, t)
        second = slope(state + h / 2 * first, middle)
        third = slope(state + h / 2 * second, middle)
        state = state + h / 6 * (first + 2 * second + 2 * third + slope(state + h * third, s))
    grid = torch.linspace(*ends.tolist(), 7, dtype=torch.float64)
    start = 0.3 * one
    zero = 0 * one
    mean = reverse(sde, grid, tau, [zero] * 6, start, score).x
    effects = [
        reverse(sde, grid, tau, [one if k == j else zero for k in range(6)], start, score).x - mean
        for j in range(6)
    ]
    variance = torch.stack(effects).square().sum(0)
    torch.testing.assert_close(torch.cat([mean, variance]), state, rtol=0, atol=1e-7)


@every_sde
@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("steps", [5, 30])
def test_normal_data_keep_their_law_at_any_step(sde, tau, steps) -> None:
    model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(sde)
    grid = AngularSDE().grid(sde, steps)
    first, *_, last = torch.hypot(sde.alpha(grid), sde.sigma(grid)).tolist()
    psi = [math.log(math.tan(phi / 2)) for phi in angles(sde, grid)]
    n = sum(abs(a - b) < 0.5 for a, b in pairwise(psi))
    x = torch.zeros(n + 1, 1, dtype=torch.float64)
    x[0] = first
    probes = torch.eye(n + 1, dtype=torch.float64)[1:, :, None]
    end = reverse(sde, grid, tau, list(probes), x, model).x
    assert abs(float(end.square().sum().sqrt()) / last - 1) < 1e-11


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_weak_order_holds_at_other_noise_scales(tau) -> None:
    found = weak_convergence(AngularSDE(), VPSDE(), (512, 1024), noise_scale=tau)
    assert abs(found.order - 2) < 0.2


def test_other_sdes_are_refused_with_noise_too() -> None:
    dynamics = ReverseSDE(Cubic(), lambda x, t: -x)  # noqa: ARG005
    with pytest.raises(TypeError, match="AngularSDE: dynamics must come from a LinearSDE, for"):
        integrate(dynamics, AngularSDE(), X, uniform(3), noise=WhiteNoise(0))


# --- its own grid, and the neighbours --------------------------------------------------------


@every_order
def test_the_order_holds_on_its_own_grid_too(order) -> None:
    sde = VPSDE()
    found = ode_convergence(
        AngularAdams(order),
        sde,
        (128, 256),
        grid=lambda n, start, end: angular(sde, n, start, end),
    )
    assert abs(found.order - order) < 0.2


def correlated(dimension=64, modes=4):
    """Return the second problem of the quality benchmark: eigenvalues from .3 to .003."""
    generator = torch.Generator().manual_seed(0)
    means = 0.7 * torch.randn(modes, dimension, generator=generator, dtype=torch.float64)
    z = torch.randn(modes, dimension, dimension, generator=generator, dtype=torch.float64)
    bases, _ = torch.linalg.qr(z)
    covariances = bases * (0.3 * torch.logspace(-2, 0, dimension, dtype=torch.float64)) @ bases.mT
    return GaussianMixture(torch.ones(modes), means, 0.5 * (covariances + covariances.mT))


@pytest.mark.parametrize(
    ("data", "margin"), [(GaussianMixture.ring(8), 1.5), (correlated(), 3.0)], ids=["ring", "64-d"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_few_evaluations_go_further_than_those_of_others_on_any_grid(data, margin, seed) -> None:
    sde = VPSDE()
    solver = AngularAdams()
    model = data.diffused(sde)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, *data.event, dtype=torch.float64, generator=generator)
    exact = solve(DormandPrince(1e-8, 1e-8), sde, uniform(1, 1.0, 1e-3), x, model).x
    for nfe in (10, 20):
        own = solve(solver, sde, solver.grid(sde, nfe), x, model)
        assert own.nfe == nfe
        rules = (
            lambda n: uniform(n, 1.0, 1e-3),
            lambda n: quadratic(n, 1.0, 1e-3),
            lambda n: log_snr(sde, n),
            lambda n: karras(sde, n),
        )
        for rule, (other, calls) in itertools.product(rules, ((Heun(), 2), (DPMSolverPP(2), 1))):
            theirs = solve(other, sde, rule(nfe // calls), x, model)
            assert theirs.nfe == nfe
            assert rms_distance(own.x, exact) < rms_distance(theirs.x, exact) / margin
