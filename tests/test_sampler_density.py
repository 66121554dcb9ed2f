"""The sampler's own density against closed forms, quadrature and independent Jacobians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.autograd.functional import jacobian

from sde_diffusion import (
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    Denoised,
    Gaussian,
    GaussianMixture,
    PerSampleNoise,
    ProbabilityFlow,
    ReverseSDE,
    ScoreModel,
    Solver,
    integrate,
    log_prob,
    uniform,
)
from sde_diffusion._seeds import mix
from sde_diffusion.likelihood.divergence import Exact
from sde_diffusion.likelihood.flow_variables import Time
from sde_diffusion.likelihood.log_det import ArnoldiLogDet, ExactLogDet
from sde_diffusion.likelihood.sampler_density import check_injective, first_fold, sampler_log_prob
from sde_diffusion.sampling.inversion import sampler_inverse
from sde_diffusion.sampling.sampler_map import SamplerMap
from sde_diffusion.solvers import (
    DDIM,
    AngularAdams,
    DormandPrince,
    DPMSolverPP,
    EDMHeun,
    Euler,
    EulerMaruyama,
    Heun,
    RungeKutta4,
    TorchDiffEq,
)
from sde_diffusion.solvers.catalogue import instances

SOLVERS = {
    name: solver
    for name, solver in instances().items()
    if issubclass(ProbabilityFlow, solver.dynamics)
    and not solver.adaptive
    and "Adjoint" not in name  # whose derivative is another solve, in reverse mode only
}


def gaussian(d: int) -> Gaussian:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    mean = torch.randn(d, generator=generator, dtype=torch.float64)
    return Gaussian(mean, 0.4 * a @ a.mT / d + 0.3 * torch.eye(d, dtype=torch.float64))


def mixture(d: int) -> GaussianMixture:
    """Three modes that do not share their axes."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(3, d, d, generator=generator, dtype=torch.float64)
    means = torch.randn(3, d, generator=generator, dtype=torch.float64)
    return GaussianMixture([1, 2, 1.5], means, 0.3 * a @ a.mT / d + 0.1 * torch.eye(d))


def two(mean: float, std: float) -> GaussianMixture:
    return GaussianMixture([1, 1], torch.tensor([[-mean], [mean]]), stds=[std, std])


def flow_of(data, sde) -> ProbabilityFlow:
    return ProbabilityFlow(sde, data.diffused(sde))


def latents(flow, n: int, *event: int, dtype=torch.float64) -> torch.Tensor:
    return flow.sde.prior().sample(PerSampleNoise.numbered(0, 0, n), (n, *event), dtype=dtype)


def exact_prior(flow, grid):
    return flow.score.function.marginal(grid[0])


# Determinants in closed form.


@pytest.mark.parametrize("name", SOLVERS)
def test_gaussian_data_make_every_solver_affine(name) -> None:
    """F(z) = A z + b, with A's columns F(e_i) − F(0): no derivative is taken."""
    flow = flow_of(gaussian(2), VPSDE())
    solver = SOLVERS[name]
    grid = uniform(5, 1.0, 0.3)
    z = torch.cat([torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)])
    found = sampler_log_prob(z, flow, solver, grid)
    ends = integrate(flow, solver, z, grid).x
    assert torch.allclose(found.x, ends, rtol=0, atol=1e-12)
    expected = flow.sde.prior().log_prob(z) - torch.linalg.det(ends[1:] - ends[0]).log()
    # Picard's sweeps end within its tolerance, and their number depends on the state.
    assert torch.allclose(found.nats, expected, rtol=0, atol=1e-4 if "Picard" in name else 1e-9)


@pytest.mark.parametrize("sde", [VESDE(0.01, 5.0), EDMSDE(5.0)], ids=["ve", "edm"])
@pytest.mark.parametrize("log_det", [ExactLogDet(), ArnoldiLogDet(probes=2)], ids=["ex", "arn"])
def test_other_priors_an_image_shape_and_a_last_tweedie_step(sde, log_det) -> None:
    """N(m, v I) is F(z) = c z + b in every coordinate, however J is probed."""
    data = Gaussian(torch.full((1, 2, 2), 0.5), 0.3 * torch.eye(4))
    flow = flow_of(data, sde)
    grid = Denoised(uniform(6, 1.0, 0.05))
    z = latents(flow, 3, 1, 2, 2)
    found = sampler_log_prob(z, flow, EDMHeun(), grid, log_det=log_det)
    assert torch.allclose(found.x, integrate(flow, EDMHeun(), z, grid).x, rtol=1e-12)
    slope = (found.x[1] - found.x[0]) / (z[1] - z[0])
    assert torch.allclose(slope, slope.flatten()[0], rtol=1e-9)
    expected = flow.sde.prior().log_prob(z) - 4 * slope.flatten()[0].log()
    assert torch.allclose(found.nats, expected, rtol=1e-10)
    assert torch.allclose(found.terms["prior"] + found.terms["volume"], found.nats)
    assert torch.allclose(found.bits_per_dim, -found.nats / (4 * math.log(2)))


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("solver", [Heun(), DPMSolverPP(order=3)], ids=["heun", "2m"])
def test_a_network_against_its_reverse_mode_jacobian(solver, labelled) -> None:
    network = MLP(3, width=16, depth=1, classes=4 if labelled else None, seed=1)
    with torch.no_grad():  # a new network predicts almost nothing
        for p in network.parameters():
            p.mul_(1.5)
    model = ScoreModel(network.double(), VPSDE()).eval()
    labels = torch.tensor([0, 3])
    made = [model.given(label) for label in labels] if labelled else [model, model]
    flow = ProbabilityFlow(model.sde, model.given(labels) if labelled else model)
    z = latents(flow, 2, 3)
    grid = uniform(4, 1.0, 0.05)
    found = sampler_log_prob(z, flow, solver, grid)
    for i in range(2):
        alone = ProbabilityFlow(model.sde, made[i])
        j = jacobian(lambda z, f=alone: integrate(f, solver, z[None], grid).x[0], z[i])
        expected = flow.sde.prior().log_prob(z[i : i + 1])[0] - torch.linalg.slogdet(j)[1]
        assert float(found.nats[i]) == pytest.approx(float(expected), abs=1e-10)


# The integral of the density.


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        (Euler(), 2),
        (DDIM(), 5),
        (Heun(), 3),
        (EDMHeun(), 20),
        (AngularAdams(), 5),
        (DPMSolverPP(order=2), 2),
        (RungeKutta4(), 8),
    ],
    ids=str,
)
def test_the_mass_in_one_dimension_is_one(solver, steps) -> None:
    """∫ p_F dx over equal steps in x, whose latents Newton's method finds."""
    flow = flow_of(two(1.0, 0.5), VPSDE())
    grid = uniform(steps)
    z = torch.linspace(-9, 9, 201, dtype=torch.float64)[:, None]
    check_injective(z, flow, solver, grid)
    low, high = SamplerMap("test", flow, solver, grid)(z[[0, -1]]).flatten()
    x = torch.linspace(float(low), float(high), 400, dtype=torch.float64)[:, None]
    inverse = sampler_inverse(x, flow, solver, grid)
    density = sampler_log_prob(inverse.latent, flow, solver, grid).nats.exp()
    assert float(density.sum() * (x[1] - x[0])) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("solver", [DDIM(), AngularAdams(order=3)], ids=["ddim", "adams"])
def test_the_mass_in_two_dimensions_is_one(solver) -> None:
    flow = flow_of(mixture(2), VPSDE())
    grid = uniform(6)
    line = torch.linspace(-4.5, 4.5, 46, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    z = sampler_inverse(x, flow, solver, grid, tolerance=1e-8).latent
    density = sampler_log_prob(z, flow, solver, grid).nats.exp()
    assert float(density.sum() * (line[1] - line[0]) ** 2) == pytest.approx(1.0, abs=1e-4)


def test_a_sum_of_few_traces_has_another_mass() -> None:
    """Two Euler steps from x to z with exp(Σ dt ∇·v): no map's determinant, and no density."""
    flow = flow_of(two(1.0, 0.1), VPSDE())
    grid = uniform(2, 1e-3, 1.0)
    x = torch.linspace(-30, 30, 6001, dtype=torch.float64)[:, None]
    summed = log_prob(x, flow, Euler(), grid=grid, divergence=Exact(), variable=Time)
    mass = float(summed.nats.exp().sum() * (x[1] - x[0]))
    assert mass == pytest.approx(9.53, abs=0.01)


# In the limit of many steps it is the flow's.


@pytest.mark.parametrize(
    ("solver", "sde"),
    [
        (Euler(), VPSDE()),
        (Heun(), VPSDE()),
        (DPMSolverPP(order=2), EDMSDE(5.0)),
        (DPMSolverPP(order=3), EDMSDE(5.0)),
        (AngularAdams(order=3), EDMSDE(5.0)),
    ],
    ids=lambda o: str(o) if hasattr(o, "order") else type(o).__name__,
)
def test_the_density_converges_at_the_solver_s_order(solver, sde) -> None:
    flow = flow_of(mixture(2), sde)
    z = latents(flow, 8, 2)
    errors = []
    for steps in (40, 80):
        grid = uniform(steps, 1.0, 0.3)
        found = sampler_log_prob(z, flow, solver, grid, prior=exact_prior(flow, grid))
        exact = flow.score.function.log_prob(found.x, grid[-1])
        errors.append(float((found.nats - exact).abs().mean()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.2)


# Folds.


class Swinging(SDE):
    """dx = √2 dw: with the score c sin(x) an Euler step of −h makes x + c h sin(x)."""

    def drift(self, x, t):  # noqa: ARG002
        return 0 * x

    def diffusion(self, x, t):  # noqa: ARG002
        return torch.full((), math.sqrt(2), dtype=torch.float64)


class Whole(Solver):
    """A solver that is not known to be one-step."""

    dynamics = ProbabilityFlow

    def __init__(self, solver) -> None:
        self.solver = solver

    def steps(self, dynamics, x, grid, noise):
        return self.solver.steps(dynamics, x, grid, noise)


NORMAL = VPSDE().prior()


def swings(c: float) -> ProbabilityFlow:
    return ProbabilityFlow(Swinging(), lambda x, t: c * torch.sin(x))  # noqa: ARG005


@pytest.mark.parametrize("log_det", [ExactLogDet(), ArnoldiLogDet(probes=1)], ids=["ex", "arn"])
def test_a_fold_is_found_where_it_is(log_det) -> None:
    """∂F/∂z = 1 + 2 cos z in every coordinate, below 0 from 2π/3 on."""
    grid = uniform(1, 1.0, 0.5)
    line = torch.linspace(-3.1, 3.1, 63, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    found = first_fold(z, swings(4.0), Euler(), grid, log_det=log_det)
    # Where both coordinates have turned, the determinant is positive again.
    expected = (z.abs() > 2 * math.pi / 3).any(1)
    assert torch.equal(found, expected.long())
    assert bool(((1 + 2 * z.cos()).prod(1)[expected] > 0).any())


def test_a_fold_that_a_later_step_turns_back_is_found() -> None:
    """Two steps of a velocity −a x, each of slope 1 − a h = −1: the whole map is the identity."""
    flow = ProbabilityFlow(Swinging(), lambda x, t: -4 * x)  # noqa: ARG005
    z = torch.tensor([[0.3], [-1.0]], dtype=torch.float64)
    grid = uniform(2, 1.0, 0.0)
    assert torch.allclose(integrate(flow, Euler(), z, grid).x, z)
    assert first_fold(z, flow, Euler(), grid).tolist() == [1, 1]
    # Of a solver that is not known to be one-step, the whole map is what folds or does not.
    assert first_fold(z, flow, Whole(Euler()), grid).tolist() == [0, 0]


def test_steps_that_turn_by_right_angles_do_not_fold() -> None:
    """Two of them make −1, whose eigenvalues alone would not tell it from two folds."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    flow = ProbabilityFlow(Swinging(), lambda x, t: 2 * (x @ turn.T - x))  # noqa: ARG005
    z = torch.tensor([[0.3, 1.0]], dtype=torch.float64)
    grid = uniform(2, 1.0, 0.0)
    assert torch.allclose(integrate(flow, Euler(), z, grid).x, -z)
    assert first_fold(z, flow, Euler(), grid).tolist() == [0]
    assert first_fold(z, flow, Whole(Euler()), grid).tolist() == [2]


@pytest.mark.parametrize("points", [[0.0, 2.5, 6.28], [2.0, 4.5]], ids=["slope", "value"])
def test_one_dimension_is_looked_at_by_slopes_and_values(points) -> None:
    """F = z + 2 sin z rises over the first points, and its slope is positive at the second."""
    z = torch.tensor(points, dtype=torch.float64)[:, None]
    grid = uniform(1, 1.0, 0.5)
    with pytest.raises(ValueError, match=f"a fold near z = {points[1]:g}"):
        check_injective(z, swings(4.0), Euler(), grid)
    check_injective(z, swings(1.9), Euler(), grid)


def test_one_dimension_is_looked_at_whole() -> None:
    z = torch.linspace(-6, 6, 601, dtype=torch.float64)[:, None]
    flow = flow_of(two(1.0, 0.3), VPSDE())
    check_injective(z, flow, AngularAdams(), uniform(8))
    with pytest.raises(ValueError, match=r"rises everywhere, got a fold near z = -\d"):
        check_injective(z, flow, DPMSolverPP(order=2), uniform(8))


def test_the_points_of_a_map_that_falls_fold() -> None:
    """The share of latents found is that on which the map, its derivative apart, falls."""
    flow = flow_of(two(1.0, 0.3), VPSDE())
    solver = DPMSolverPP(order=2)
    grid = uniform(8)
    z = torch.linspace(-4, 4, 2001, dtype=torch.float64)[:, None]
    falls = SamplerMap("test", flow, solver, grid)(z).flatten().diff() < 0
    folds = first_fold(z, flow, solver, grid) > 0
    assert int(falls.sum()) > 300
    assert int((falls != folds[1:]).sum()) <= 4  # one at each end of an interval


def test_what_folds_is_refused_and_the_rest_is_not() -> None:
    flow = swings(4.0)
    grid = uniform(1, 1.0, 0.5)
    z = torch.tensor([[0.5], [1.0], [2.5]], dtype=torch.float64)
    text = (
        r"got 1 of 3 samples where it folds, the first sample 2 at step 1 \(t = 0.5\); use"
        " more steps or another solver, or leave out what first_fold finds"
    )
    with pytest.raises(ValueError, match=text):
        sampler_log_prob(z, flow, Euler(), grid, prior=NORMAL)
    good = z[first_fold(z, flow, Euler(), grid) == 0]
    found = sampler_log_prob(good, flow, Euler(), grid, prior=NORMAL)
    expected = NORMAL.log_prob(good) - (1 + 2 * good.cos()).log().flatten()
    assert torch.allclose(found.nats, expected, rtol=1e-12)


# The estimate by probes.


def golub_kahan(f, z, probes, count: int) -> torch.Tensor:
    """½ zᵀ log(JᵀJ) z by Lanczos' bidiagonalisation of J, products in reverse mode: (P,)."""
    leaf = z.clone().requires_grad_()
    x = f(leaf)
    weights = torch.zeros_like(x, requires_grad=True)
    (pulled,) = torch.autograd.grad(x, leaf, weights, create_graph=True)

    def up(v):
        return torch.autograd.grad(pulled, weights, v, retain_graph=True)[0]

    def down(v):
        return torch.autograd.grad(x, leaf, v, retain_graph=True)[0]

    found = []
    for probe in probes:
        v = probe[None] / probe.norm()
        left = []
        right = []
        b = torch.zeros(count, count, dtype=torch.float64)
        for k in range(count):
            right.append(v)
            u = up(v)
            for q in left * 2:
                u = u - (u * q).sum() * q
            b[k, k] = u.norm()
            left.append(u / u.norm())
            if k + 1 < count:
                v = down(left[-1])
                for q in right * 2:
                    v = v - (v * q).sum() * q
                b[k, k + 1] = v.norm()
                v = v / v.norm()
        _, s, vh = torch.linalg.svd(b)
        found.append((vh[:, 0] ** 2 * s.log()).sum() * probe.norm() ** 2)
    return torch.stack(found)


def signs(seed: int, b: int, k: int, d: int) -> torch.Tensor:
    noise = PerSampleNoise.numbered(mix(seed, 14), 0, b)
    return torch.where(noise.normal(torch.empty(b, k, d)) < 0, -1.0, 1.0).double()


@pytest.mark.parametrize("solver", [DDIM(), AngularAdams()], ids=["product", "whole"])
def test_a_full_krylov_space_gives_the_quadratic_form_of_log_j(solver) -> None:
    """zᵀ(log J)z by scipy's matrix logarithm, per probe; one step of DDIM, five of Adams."""
    flow = flow_of(mixture(4), VPSDE())
    grid = uniform(1, 0.8, 0.02) if isinstance(solver, DDIM) else uniform(5, 1.0, 0.1)
    map_ = SamplerMap("test", flow, solver, grid)
    z = latents(flow, 2, 4)
    found = ArnoldiLogDet(probes=3, products=4, seed=5).evaluate(map_, z)
    x, j = map_.jacobian(z)
    logs = torch.from_numpy(np.stack([scipy.linalg.logm(m) for m in j.numpy()]))
    probes = signs(5, 2, 3, 4)
    assert torch.allclose(found.columns, ((probes @ logs.mT) * probes).sum(2), atol=1e-9)
    assert torch.equal(found.x, x)
    # With fewer products, what the last one changed bounds what the rest would.
    short = ArnoldiLogDet(probes=3, products=3, seed=5).evaluate(map_, z)
    truncated = (short.columns - found.columns).mean(1).abs()
    assert bool((truncated < short.remainder).all())
    assert float(truncated.min()) > 1e-12


@pytest.mark.parametrize("solver", [Heun(), DPMSolverPP(order=2)], ids=["product", "whole"])
def test_probes_agree_with_the_determinant_and_with_lanczos(solver) -> None:
    flow = flow_of(mixture(12), VPSDE())
    grid = uniform(8, 1.0, 0.05)
    z = latents(flow, 16, 12)
    exact = sampler_log_prob(z, flow, solver, grid)
    log_det = ArnoldiLogDet(probes=32, products=10, seed=3)
    found = sampler_log_prob(z, flow, solver, grid, log_det=log_det)
    assert float(found.remainder.max()) < 1e-3
    score = (found.nats - exact.nats) / found.standard_error
    # 16 studentised errors: mean 0 ± 1/4, mean square 1, within five deviations.
    assert abs(float(score.mean())) < 5 / 4
    assert 0.2 < float(score.square().mean()) < 1 + 5 * (2 / 16) ** 0.5
    if isinstance(solver, DPMSolverPP):
        lanczos = golub_kahan(
            lambda z: integrate(flow, solver, z, grid).x, z[:1], signs(3, 1, 32, 12)[0, :16], 12
        )
        gap = float(lanczos.mean()) + float(exact.terms["volume"][0])
        assert abs(gap) < 5 * float(lanczos.std()) / math.sqrt(16)


def test_independent_probes_of_the_steps_vary_less() -> None:
    flow = flow_of(mixture(12), VPSDE())
    grid = uniform(8, 1.0, 0.05)
    z = latents(flow, 8, 12)
    map_ = SamplerMap("test", flow, DDIM(), grid)
    whole = SamplerMap("test", flow, Whole(DDIM()), grid)
    errors = [ArnoldiLogDet(16).evaluate(m, z).columns.std(1).mean() for m in (map_, whole)]
    assert float(errors[0]) < 0.7 * float(errors[1])


def test_the_exact_determinant_ends_at_256_dimensions() -> None:
    for d, exact in ((256, True), (257, False)):
        flow = flow_of(GaussianMixture([1], torch.zeros(1, d), stds=[0.5]), VPSDE())
        found = sampler_log_prob(latents(flow, 1, d), flow, DDIM(), uniform(2))
        slope = float(found.x[0, 0] / latents(flow, 1, d)[0, 0])
        assert float(found.terms["volume"]) == pytest.approx(-d * math.log(slope), rel=1e-9)
        assert found.nfe == (2 if exact else 2 * 8)


# What the house promises everywhere.


@pytest.mark.parametrize("log_det", [ExactLogDet(), ArnoldiLogDet(probes=3, products=2)])
@pytest.mark.parametrize("solver", [Heun(), AngularAdams()], ids=["heun", "adams"])
def test_a_value_is_the_same_alone_and_in_a_batch_bit_for_bit(solver, log_det) -> None:
    flow = flow_of(mixture(3), VPSDE())
    grid = uniform(5, 1.0, 0.1)
    z = latents(flow, 7, 3)
    together = sampler_log_prob(z, flow, solver, grid, log_det=log_det)
    for i in range(7):
        own = ArnoldiLogDet(3, 2, first=i) if isinstance(log_det, ArnoldiLogDet) else log_det
        alone = sampler_log_prob(z[i : i + 1], flow, solver, grid, log_det=own)
        for name in ("x", "nats", "standard_error", "remainder"):
            assert torch.equal(getattr(alone, name), getattr(together, name)[i : i + 1]), name


def test_evaluations_are_counted_and_big_batches_are_split() -> None:
    flow = flow_of(mixture(2), VPSDE())
    grid = uniform(3, 1.0, 0.3)
    few = sampler_log_prob(latents(flow, 512, 2), flow, Heun(), grid)
    many = sampler_log_prob(latents(flow, 513, 2), flow, Heun(), grid)
    assert (few.nfe, many.nfe) == (6, 12)
    assert torch.equal(few.nats, many.nats[:512])
    probed = sampler_log_prob(latents(flow, 2, 2), flow, Heun(), grid, log_det=ArnoldiLogDet())
    assert probed.nfe == 12  # two products, as there are two dimensions, of two evaluations


def test_inference_mode_and_single_precision_change_nothing() -> None:
    flow = flow_of(mixture(2), VPSDE())
    grid = uniform(5, 1.0, 0.1)
    z = latents(flow, 4, 2)
    outside = sampler_log_prob(z, flow, DDIM(), grid)
    with torch.inference_mode():
        inside = sampler_log_prob(z.clone(), flow, DDIM(), grid)
    assert torch.equal(outside.nats, inside.nats)
    single = sampler_log_prob(z.float(), flow, DDIM(), grid)
    assert single.x.dtype == torch.float32
    assert torch.allclose(single.nats, outside.nats, atol=1e-5)


class NoForwardMode(torch.autograd.Function):
    """An operation with a derivative in reverse mode only."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return -x

    @staticmethod
    def backward(context, g):  # noqa: ARG004
        return -g


FLOW = flow_of(gaussian(2), VPSDE())
Z = torch.zeros(1, 2, dtype=torch.float64)
GRID = uniform(4)


def ask(z=Z, flow=FLOW, solver=DDIM(), grid=GRID, **rest):  # noqa: B008
    return sampler_log_prob(z, flow, solver, grid, **rest)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: ask(flow=ReverseSDE(VPSDE(), FLOW.score.function)),
            TypeError,
            "flow must be a ProbabilityFlow, got ReverseSDE",
        ),
        (
            lambda: ask(solver=DormandPrince()),
            ValueError,
            "solver must have fixed steps, got DormandPrince; pass for example DDIM",
        ),
        (lambda: ask(solver=TorchDiffEq("dopri5")), ValueError, "solver must have fixed steps"),
        (lambda: ask(solver=EulerMaruyama()), TypeError, "dynamics must be of the kind SDE"),
        (lambda: ask(grid=GRID.flip(0)), ValueError, r"run from noise \(t near 1\) to data"),
        (lambda: ask(grid=[1.0, 0.5]), TypeError, "grid must be a torch.Tensor, got list"),
        (lambda: ask(z=Z.long()), TypeError, "floating-point dtype"),
        (
            lambda: ask(flow=ProbabilityFlow(VPSDE(), lambda x, t: -x.detach())),  # noqa: ARG005
            TypeError,
            "score and solver must be differentiable in x, in forward mode, got a detached tensor",
        ),
        (
            lambda: ask(flow=ProbabilityFlow(VPSDE(), lambda x, t: NoForwardMode.apply(x))),  # noqa: ARG005
            TypeError,
            "in forward mode, got You must implement the jvp function",
        ),
        (
            lambda: ask(flow=swings(0.1), solver=Euler()),
            ValueError,
            "prior must be given for an SDE that is not linear",
        ),
        (
            lambda: check_injective(Z, FLOW, DDIM(), GRID),
            ValueError,
            r"z must be rising latents of one number each, got shape \(1, 2\)",
        ),
        (lambda: ArnoldiLogDet(probes=0), ValueError, "probes must be at least 1, got 0"),
        (lambda: ArnoldiLogDet(products=0), ValueError, "products must be at least 1, got 0"),
        (lambda: ArnoldiLogDet(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (
            lambda: ask(flow=ProbabilityFlow(VPSDE(), lambda x, t: x * math.inf)),  # noqa: ARG005
            FloatingPointError,
            "NaN or infinity at step 1",
        ),
        (
            lambda: ask(flow=ProbabilityFlow(VPSDE(), lambda x, t: x.abs().sqrt())),  # noqa: ARG005
            FloatingPointError,
            "∂x/∂z must stay finite, got NaN or infinity at step 1",
        ),
    ],
)
def test_mistakes_end_in_one_clear_sentence(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
