"""Churn, restart, SRA, Milstein and adaptive steps: independent programs, exact laws and paths."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    SDE,
    VPSDE,
    BrownianPath,
    GaussianMixture,
    PerSampleNoise,
    ProbabilityFlow,
    ReverseSDE,
    WhiteNoise,
    integrate,
    uniform,
)
from sde_diffusion.diagnostics.orders import strong_convergence, weak_convergence
from sde_diffusion.grids import karras, log_snr
from sde_diffusion.noise import Noise
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solvers.adams_bashforth import AdamsBashforth
from sde_diffusion.solvers.adaptive_sde import AdaptiveSDE
from sde_diffusion.solvers.dormand_prince import DormandPrince
from sde_diffusion.solvers.edm_heun import EDMHeun
from sde_diffusion.solvers.edm_stochastic import EDMStochastic
from sde_diffusion.solvers.euler import Euler
from sde_diffusion.solvers.euler_maruyama import EulerMaruyama
from sde_diffusion.solvers.heun import Heun
from sde_diffusion.solvers.milstein import Milstein
from sde_diffusion.solvers.restart import Restart
from sde_diffusion.solvers.runge_kutta import RungeKutta4
from sde_diffusion.solvers.sra import SRA

MIXTURE = GaussianMixture([0.4, 0.6], torch.tensor([[-1.5], [1.5]]), stds=[0.3, 0.3])


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return WhiteNoise(seed).normal(torch.empty(shape, dtype=torch.float64))


def mixture_start(sde, t: float, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return MIXTURE.diffused(sde).sample(n, torch.tensor(t, dtype=torch.float64), generator)


# Problems with additive and with diagonal noise, two of them solved by a function of W.


class Additive(SDE):
    """dx = (b/√(1+t) − x/(2(1+t))) dt + ab/√(1+t) dw, solved by (x0 + b(t + a W))/√(1+t)."""

    a = 0.4
    b = 1.5

    def drift(self, x, t):
        t = t.reshape(-1, 1)
        return self.b / (1 + t).sqrt() - x / (2 * (1 + t))

    def diffusion(self, x, t):  # noqa: ARG002
        return self.a * self.b / (1 + t.reshape(-1, 1)).sqrt()


class Wave(Additive):
    """The same noise, and a drift that is not linear."""

    def drift(self, x, t):
        return (3 * x + t.reshape(-1, 1)).sin() - x


class Sine(SDE):
    """dx = −p² sin x cos³x dt + p cos²x dw, solved by arctan(p W + tan x0)."""

    p = 0.6

    def drift(self, x, t):  # noqa: ARG002
        return -(self.p**2) * x.sin() * x.cos() ** 3

    def diffusion(self, x, t):  # noqa: ARG002
        return self.p * x.cos() ** 2


class Growth(SDE):
    """dx = mu x dt + nu x dw, solved by x0 exp((mu − nu²/2) t + nu W)."""

    mu = 0.3
    nu = 0.7

    def drift(self, x, t):  # noqa: ARG002
        return self.mu * x

    def diffusion(self, x, t):  # noqa: ARG002
        return self.nu * x


class LogGrowth(SDE):
    """The logarithm of `Growth`."""

    def drift(self, x, t):  # noqa: ARG002
        return torch.full_like(x, Growth.mu - 0.5 * Growth.nu**2)

    def diffusion(self, x, t):  # noqa: ARG002
        return torch.full_like(x[:1], Growth.nu)


# torchsde, forward and, with r = 1 − t, backward.


class Theirs(Noise):
    """The path of a torchsde BrownianInterval in r = t, or in r = 1 − t."""

    def __init__(self, interval, *, back: bool):
        self.interval = interval
        self.back = back

    def normal(self, x):
        raise NotImplementedError

    def _ends(self, t, s):
        return (1 - t, 1 - s) if self.back else (t, s)

    def increment(self, x, t, s):  # noqa: ARG002
        return self.interval(*self._ends(t, s))

    def area(self, x, t, s):  # noqa: ARG002
        dw, area = self.interval(*self._ends(t, s), return_U=True)
        return dw, -area if self.back else area  # du = −dr


def as_torchsde(sde: SDE, noise_type: str, *, back: bool):
    class Problem(torch.nn.Module):
        sde_type = "ito"

        def f(self, r, y):
            return -sde.drift(y, 1 - r) if back else sde.drift(y, r)

        def g(self, r, y):
            g = torch.broadcast_to(sde.diffusion(y, 1 - r if back else r), y.shape)
            return torch.diag_embed(g) if noise_type == "additive" else g

    Problem.noise_type = noise_type
    return Problem()


@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("solver", "sde", "method", "noise_type"),
    [
        (SRA(), Additive(), "srk", "additive"),
        (SRA(), Wave(), "srk", "additive"),
        (Milstein(), Sine(), "milstein", "diagonal"),
        (Milstein(), Growth(), "milstein", "diagonal"),
    ],
    ids=["sra-linear", "sra-wave", "milstein-sine", "milstein-growth"],
)
def test_equal_to_torchsde_on_its_own_path(solver, sde, method, noise_type, back) -> None:
    torchsde = pytest.importorskip("torchsde")
    dynamics = ReverseSDE(sde, lambda x, t: -x * (1 + t)) if back else sde
    x = 0.5 + 0.3 * normals(7, 3)
    interval = torchsde.BrownianInterval(
        0.0, 1.0, size=(7, 3), dtype=torch.float64, entropy=5, levy_area_approximation="space-time"
    )
    problem = as_torchsde(dynamics, noise_type, back=back)
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    theirs = torchsde.sdeint(problem, x, ts, bm=interval, method=method, dt=1 / 32)[-1]
    grid = uniform(32, *((1.0, 0.0) if back else (0.0, 1.0)))
    ours = integrate(dynamics, solver, x, grid, noise=Theirs(interval, back=back)).x
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


# Orders against exact solutions.


def slope(error, n: int) -> float:
    return math.log2(error(n) / error(4 * n)) / 2


@pytest.mark.parametrize(
    ("solver", "order"), [(Milstein(), 1), (EulerMaruyama(), 0.5)], ids=["milstein", "euler"]
)
@pytest.mark.parametrize("sde", [Growth(), Sine()], ids=["growth", "sine"])
def test_strong_order_on_noise_that_depends_on_the_state(solver, order, sde) -> None:
    grid = uniform(128, 0.0, 1.0)
    x = torch.ones(1000, 1).double()
    path = BrownianPath(3, grid=grid)
    w = path.at(x, 1.0)
    exact = (
        x * ((sde.mu - 0.5 * sde.nu**2) + sde.nu * w).exp()
        if isinstance(sde, Growth)
        else (sde.p * w + x.tan()).atan()
    )

    def error(n: int) -> float:
        found = integrate(sde, solver, x, grid[:: 128 // n], noise=path).x
        return float((found - exact).square().mean().sqrt())

    assert slope(error, 32) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("solver", "order"), [(Milstein(), 1), (EulerMaruyama(), 0.5)], ids=["milstein", "euler"]
)
def test_milstein_backward_is_the_exponential_of_the_reverse_of_the_logarithm(
    solver, order
) -> None:
    """With additive noise the reverse of log x needs no Milstein: on one path they must agree."""

    def mean(t):
        return (Growth.mu - 0.5 * Growth.nu**2) * t

    def variance(t):
        return 0.1 + 0.49 * t

    def score_y(y, t):
        return -(y - mean(t)) / variance(t)

    def score(x, t):  # p(x) = q(log x)/x
        return (score_y(x.log(), t) - 1) / x

    y = 0.6 * normals(1000, 1)
    grid = uniform(512, 1, 0.1)
    path = BrownianPath(4, grid=grid)
    fine = integrate(ReverseSDE(LogGrowth(), score_y), SRA(), y, grid, noise=path)

    def error(n: int) -> float:
        reverse = ReverseSDE(Growth(), score)
        found = integrate(reverse, solver, y.exp(), grid[:: 512 // n], noise=path).x
        return float((found - fine.x.exp()).square().mean().sqrt())

    assert slope(error, 32) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=["vp", "edm"])
def test_strong_order_of_sra_where_the_score_is_not_linear(sde) -> None:
    """On a Gaussian the term of order 1.5 is 0 and the slope is 2: it takes a mixture."""
    score = MIXTURE.diffused(sde)
    found = strong_convergence(SRA(), sde, (32, 64, 128), paths=1000, score=score)
    assert math.log2(found.errors[0] / found.errors[-1]) / 2 == pytest.approx(1.5, abs=0.15)


# Twins.


def twin(solver, scale: float, noise=None):
    model = MIXTURE.diffused(VPSDE())
    dynamics = ReverseSDE(model.sde, model, noise_scale=scale)
    return integrate(dynamics, solver, normals(9, 1), uniform(12, 1, 0.01), noise=noise).x


def flow(solver) -> torch.Tensor:
    model = MIXTURE.diffused(VPSDE())
    return integrate(
        ProbabilityFlow(model.sde, model), solver, normals(9, 1), uniform(12, 1, 0.01)
    ).x


@pytest.mark.parametrize(
    ("solver", "deterministic"),
    [(Milstein(), Euler()), (AdaptiveSDE(math.inf, math.inf), Heun())],
    ids=["milstein-euler", "adaptive-heun"],
)
def test_noise_scale_0_is_the_deterministic_twin(solver, deterministic) -> None:
    found = twin(solver, 0.0, WhiteNoise(1))
    assert torch.allclose(found, flow(deterministic), rtol=1e-12, atol=0)


def test_noise_scale_0_of_sra_is_the_runge_kutta_method_with_c_three_quarters() -> None:
    model = MIXTURE.diffused(VPSDE())
    ode = ProbabilityFlow(model.sde, model)
    x = normals(9, 1)
    for t, s in pairwise(uniform(12, 1, 0.01)):
        dt = s - t
        k1 = ode.velocity(x, t)
        x = x + dt * (k1 / 3 + 2 / 3 * ode.velocity(x + 0.75 * dt * k1, t + 0.75 * dt))
    assert torch.allclose(twin(SRA(), 0.0, WhiteNoise(1)), x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("solver", [EDMHeun(), AdamsBashforth(3), DormandPrince()], ids=repr)
def test_restart_that_does_not_repeat_is_the_solver(solver) -> None:
    restart = Restart(solver, intervals=[(0.1, 0.5, 0), (0.5, 2.0, 0, 4)])
    assert torch.equal(twin(restart, 1.0), flow(solver))


def test_no_churn_is_edm_heun() -> None:
    assert torch.equal(twin(EDMStochastic(churn=0.0), 1.0), flow(EDMHeun()))
    nowhere = EDMStochastic(churn=40.0, s_min=1e9)
    assert torch.equal(twin(nowhere, 1.0), flow(EDMHeun()))


# The papers' algorithms, transcribed in EDM's variables: y = x/α and its noise level.


def heun(denoise, y, s, s_next):
    d = (y - denoise(y, s)) / s
    y_next = y + (s_next - s) * d
    if s_next == 0:
        return y_next
    return y + (s_next - s) * (0.5 * d + 0.5 * (y_next - denoise(y_next, s_next)) / s_next)


def denoiser(sde):
    model = MIXTURE.diffused(sde)

    def denoise(y, s):
        t = sde.time(torch.tensor(s, dtype=torch.float64).log().neg())
        return model.denoise(sde.alpha(t) * y, t)

    return denoise


def levels(sde, grid):
    return [float(sde.sigma(t) / sde.alpha(t)) for t in grid]


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(8.0)], ids=["vp", "edm"])
def test_churn_is_algorithm_2_of_karras_et_al(sde) -> None:
    grid = torch.cat([karras(sde, 9), torch.zeros(1).double()])
    s = levels(sde, grid)
    x = normals(6, 1) * sde.prior().std
    noise = WhiteNoise(1)
    solver = EDMStochastic(churn=3.0, s_min=0.05, s_max=50.0, s_noise=1.007)
    model = MIXTURE.diffused(sde)
    found = integrate(ReverseSDE(sde, model), solver, x, grid, noise=noise).x

    y = x / float(sde.alpha(grid[0]))
    noise = WhiteNoise(1)
    denoise = denoiser(sde)
    for i in range(10):
        gamma = min(3.0 / 10, math.sqrt(2) - 1) if 0.05 <= s[i] <= 50.0 and i > 0 else 0.0
        raised = s[i] + gamma * s[i]
        if gamma:
            y = y + (raised**2 - s[i] ** 2) ** 0.5 * 1.007 * noise.normal(y)
        y = heun(denoise, y, raised, s[i + 1])
    assert torch.allclose(found, y, rtol=1e-9, atol=0)  # alpha(0) is 1


def test_restart_with_n_is_algorithm_1_of_xu_et_al() -> None:
    sde = EDMSDE(8.0)
    grid = karras(sde, 12)
    x = 8 * normals(6, 1)
    noise = WhiteNoise(1)
    s = levels(sde, grid)
    model = MIXTURE.diffused(EDMSDE(8.0))
    solver = Restart(EDMHeun(), intervals=[(s[8], 1.0, 3, 4), (s[4], 5.0, 2, 2)])
    found = integrate(ReverseSDE(sde, model), solver, x, grid, noise=noise).x

    y = x
    noise = WhiteNoise(1)
    denoise = denoiser(sde)
    for i in range(12):
        y = heun(denoise, y, s[i], s[i + 1])
        for place, top, repeats, n in ((4, 5.0, 2, 2), (8, 1.0, 3, 4)):
            if i + 1 != place:
                continue
            way = [
                (top ** (1 / 7) + j / n * (s[place] ** (1 / 7) - top ** (1 / 7))) ** 7
                for j in range(n + 1)
            ]
            for _ in range(repeats):
                y = y + (top**2 - s[place] ** 2) ** 0.5 * noise.normal(y)
                for a, b in pairwise(way):
                    y = heun(denoise, y, a, b)
    assert torch.allclose(found, y, rtol=1e-9, atol=0)


def test_restart_without_n_repeats_the_steps_of_the_grid() -> None:
    sde = EDMSDE(8.0)
    asked = []
    grid = log_snr(sde, 6, end=2**-6)  # ρ = 8, 4, 2, 1, ½, ¼, ⅛

    def score(x, t):
        asked.append(8 * float(t))
        return -x

    solver = Restart(Euler(), intervals=[(0.55, 4.5, 2), (0.01, 0.02, 1), (0.45, 0.9, 1)])
    integrate(ReverseSDE(sde, score), solver, normals(3, 1), grid, noise=WhiteNoise(0))
    assert asked == pytest.approx([8, 4, 2, 1, 4, 2, 1, 4, 2, 1, 1, 0.5, 0.25])


def test_churn_stays_within_the_horizon_of_the_score() -> None:
    sde = VPSDE()
    asked = []
    model = MIXTURE.diffused(sde)

    def score(x, t):
        asked.append(float(t))
        return model(x, t)

    grid = uniform(100, 1.0, 0.5)
    x = normals(3, 1)
    integrate(ReverseSDE(sde, score), EDMStochastic(churn=100), x, grid, noise=WhiteNoise(0))
    assert asked[0] == max(asked) == 1.0  # the first step does not rise at all
    assert asked[2] == pytest.approx(1.0, abs=1e-12)  # the second only up to there


# The law.


@pytest.mark.parametrize(
    "solver",
    [
        Restart(RungeKutta4(), intervals=[(0.8, 1.2, 3), (0.9, 1.1, 2)]),
        Restart(DormandPrince(1e-12, 1e-12), intervals=[(0.9, 2.5, 2, 1)]),
    ],
    ids=["runge-kutta", "dormand-prince"],
)
def test_restart_of_an_exact_flow_keeps_the_law_exactly(solver) -> None:
    assert weak_convergence(solver, VPSDE(), (128,)).errors[0] < 1e-10


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Restart(RungeKutta4(), intervals=[(0.9, 1.2, 2)]), 4),
        (Restart(RungeKutta4(), intervals=[(0.9, 2.0, 2, 1)]), 0),
        (EDMStochastic(churn=10.0), 2),
        (EDMStochastic(churn=4.0, s_noise=1.01), 0),
    ],
    ids=["restart", "restart-n", "churn", "louder"],
)
def test_weak_order_is_that_of_the_flow_unless_the_law_is_not_kept(solver, order) -> None:
    found = weak_convergence(solver, VPSDE(), (16, 32) if order == 4 else (64, 128))
    assert solver.order == order
    assert found.order == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    "solver",
    [
        EDMStochastic(churn=20.0),
        Restart(EDMHeun(), intervals=[(0.3, 3.0, 2), (0.1, 0.5, 2)]),
        Restart(EDMHeun(), intervals=[(0.1, 3.0, 2, 30)]),
        SRA(),
        AdaptiveSDE(0.05, 0.01),
    ],
    ids=["churn", "restart", "restart-n", "sra", "adaptive"],
)
def test_p_t_is_carried_to_p_s_on_a_mixture(solver) -> None:
    sde = VPSDE()
    n = 5000
    model = MIXTURE.diffused(sde)
    x = mixture_start(sde, 0.6, n)
    reverse = ReverseSDE(sde, model)
    grid = uniform(60, 0.6, 0.02)
    if isinstance(solver, AdaptiveSDE):  # all of its noise but one draw is then of bridges
        grid = grid[[0, -1]]
    found = integrate(reverse, solver, x, grid, noise=WhiteNoise(6))
    law = model.marginal(torch.tensor(0.02, dtype=torch.float64))
    z = (found.x - law.means[:, 0]) / law.variances[:, 0].sqrt()
    u = (law.weights * torch.special.ndtr(z)).sum(1).sort().values
    distance = (u - torch.linspace(0, 1, n, dtype=torch.float64)).abs().max()
    assert float(distance) * n**0.5 < 1.63  # Kolmogorov's 1 % quantile


# Adaptive steps.


class Shared(Noise):
    """One normal for all elements of a sample, so that they see one Brownian motion."""

    def __init__(self, seed: int):
        self.white = WhiteNoise(seed)

    def normal(self, x):
        return self.white.normal(x[:, :1]).expand(x.shape)


class WithPath(Additive):
    """`Additive` and, beside it, W itself."""

    def drift(self, x, t):
        return super().drift(x, t) * torch.tensor([1.0, 0.0])

    def diffusion(self, x, t):
        return torch.cat([super().diffusion(x, t), torch.ones_like(t.reshape(-1, 1))], 1)


def solved_with_its_path(tolerance: float) -> tuple[float, torch.Tensor, int]:
    """Return the strong error, W at the end and the number of tries."""
    sde = WithPath()
    calls = []
    sde.a = 1.0
    sde.b = 3.0
    drift = sde.drift
    sde.drift = lambda x, t: calls.append(len(x)) or drift(x, t)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(500, 1)
    found = integrate(
        sde, AdaptiveSDE(tolerance, tolerance), x, uniform(2, 0.0, 1.0), noise=Shared(8)
    ).x
    exact = (1 + sde.b * (1 + sde.a * found[:, 1])) / 2**0.5
    return float((found[:, 0] - exact).square().mean().sqrt()), found[:, 1], len(calls) // 2


def test_adaptive_errors_follow_the_tolerance_on_the_path_of_each_solve() -> None:
    errors = [solved_with_its_path(10.0**-k)[0] for k in (1, 2, 3)]
    assert all(fine < 0.3 * coarse for coarse, fine in pairwise(errors))


def test_accepted_increments_add_up_to_the_first_draws() -> None:
    """Whatever was rejected in between."""
    noise = Shared(8)
    grid = uniform(2, 0.0, 1.0)
    x = torch.zeros(500, 2).double()
    drawn = sum(noise.increment(x, t, s)[:, 0] for t, s in pairwise(grid))
    for tolerance in (1.0, 1e-3):
        _, w, tries = solved_with_its_path(tolerance)
        assert torch.allclose(w, drawn, rtol=0, atol=1e-13)
    assert tries > 50


def test_adaptive_samples_do_not_depend_on_their_batch() -> None:
    model = MIXTURE.diffused(VPSDE())
    x = normals(5, 1)
    grid = uniform(3, 1.0, 0.01)

    def solve(rows: slice) -> list[torch.Tensor]:
        seen = []
        noise = PerSampleNoise(range(5)[rows])
        integrate(
            ReverseSDE(model.sde, model),
            AdaptiveSDE(0.1, 0.1),
            x[rows],
            grid,
            noise=noise,
            callback=lambda k, t, state: seen.append(state),  # noqa: ARG005
        )
        return seen

    whole = solve(slice(0, 5))
    for i in range(5):
        alone = solve(slice(i, i + 1))
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, whole, strict=True))


def test_adaptive_steps_ask_a_labelled_score_for_the_samples_that_are_left() -> None:
    """Each sample has a mean of its own; the others' would take it elsewhere."""

    class Labelled(ScoreLike):
        sde = EDMSDE(2.0)

        def __init__(self, means):
            self.means = means

        def __call__(self, x, t):
            variance = EDMSDE(2.0).sigma(t).reshape(-1, 1) ** 2 + 0.01
            return (self.means - x) / variance

        def rows(self, index):
            return Labelled(self.means[index])

    means = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [5.0, 5.0]], dtype=torch.float64)
    dynamics = ReverseSDE(EDMSDE(2.0), Labelled(means))
    found = integrate(
        dynamics,
        AdaptiveSDE(1e-2, 1e-2),
        means + 2 * normals(3, 2),
        uniform(1, 1.0, 0.01),
        noise=WhiteNoise(0),
    )
    assert torch.allclose(found.x, means, atol=0.5)


# Refusals.


class Mixed(SDE):
    """A diffusion of the norm of x: scalar noise with Lévy areas."""

    def drift(self, x, t):  # noqa: ARG002
        return -x

    def diffusion(self, x, t):  # noqa: ARG002
        return 1 + x.square().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("run", "error", "text"),
    [
        (lambda: forward(SRA(), Growth()), ValueError, "SRA: .* must not depend on x"),
        (lambda: forward(AdaptiveSDE(), Growth()), ValueError, "AdaptiveSDE: .* not depend on x"),
        (lambda: forward(Milstein(), Mixed()), ValueError, "must be elementwise, g_i of x_i"),
        (
            lambda: forward(AdaptiveSDE(1e-6, 1e-6, 5), Wave()),
            FloatingPointError,
            "at most max_steps=5",
        ),
        (lambda: AdaptiveSDE(rtol=0.0), ValueError, "rtol must be above 0, got 0.0"),
        (lambda: twin(EDMStochastic(), 0.5), ValueError, "noise_scale must be 1, .*churn"),
        (lambda: twin(Restart(), 0.5), ValueError, "noise_scale must be 1, .*intervals"),
        (lambda: EDMStochastic(churn=-1.0), ValueError, "churn must be finite and at least 0"),
        (lambda: EDMStochastic(s_noise=0.0), ValueError, "s_noise must be above 0"),
        (lambda: Restart(SRA()), TypeError, "be a solver of the probability-flow ODE, got SRA"),
        (lambda: Restart(Heun), TypeError, "be a solver of the probability-flow ODE, got Heun"),
        (lambda: Restart(intervals=[(2.0, 1.0, 1)]), ValueError, "have 0 < s_min < s_max"),
        (lambda: Restart(intervals=[(1.0, 2.0, 1, 0)]), ValueError, r"intervals\[3\] must be at"),
    ],
)
def test_what_a_solver_cannot_do_is_refused(run, error, text) -> None:
    with pytest.raises(error, match=text):
        run()


def forward(solver, sde) -> torch.Tensor:
    x = 1 + 0.1 * normals(3, 2)
    return integrate(sde, solver, x, uniform(4, 0.0, 1.0), noise=WhiteNoise(0)).x
