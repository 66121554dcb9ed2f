"""Objectives of students: 0, with gradient 0, at the flow map; equal to what their papers say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_few_steps import FlowOfGaussian, student
from torch import Tensor

from sde_diffusion import EDMSDE, VPSDE, FewStepModel, Gaussian, GaussianMixture, RectifiedFlow
from sde_diffusion.noise import WhiteNoise
from sde_diffusion.objectives import (
    Batch,
    Consistency,
    ContinuousConsistency,
    DataTrajectory,
    FlowMapRegression,
    MeanFlow,
    Objective,
    ProgressiveDistillation,
    TeacherTrajectory,
    flow_paths,
    tangent,
)
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers import DDIM, RungeKutta4

STD = 0.5
SDES = (VPSDE(), RectifiedFlow())
Make = Callable[[LinearSDE], Objective]


def teacher(sde: LinearSDE):  # type: ignore[no-untyped-def]
    return Gaussian(torch.zeros(2), STD**2 * torch.eye(2)).diffused(sde)


def exact(sde: LinearSDE, error: float = 0.0) -> FewStepModel:
    """The flow map of the Gaussian, or one with a wrong v."""
    return FewStepModel(FlowOfGaussian(sde, STD, error), sde).eval()


MAKERS: dict[str, Make] = {
    "regression": lambda sde: FlowMapRegression(
        flow_paths(teacher(sde), RungeKutta4(), (64, 2), substeps=64)
    ),
    "progressive": lambda sde: ProgressiveDistillation(exact(sde), 4),
    "consistency": lambda sde: Consistency(TeacherTrajectory(exact(sde)), sde, 16),
    "continuous": lambda sde: ContinuousConsistency(TeacherTrajectory(teacher(sde)), sde),
    "mean-flow": lambda sde: MeanFlow(TeacherTrajectory(teacher(sde)), sde, power=0.0),
}


def batch_of(objective: Objective, sde: LinearSDE, n: int = 96, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0 = STD * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    t = objective.draw(sde, n, generator).t
    eps = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return Batch(x0, t, eps, WhiteNoise(0))


def loss_and_gradient(
    objective: Objective, model: FewStepModel, batch: Batch
) -> tuple[float, float]:
    loss = objective(model, batch).mean()
    (gradient,) = torch.autograd.grad(loss, model.network.error)  # type: ignore[arg-type]
    return float(loss.detach()), float(gradient)


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("name", MAKERS)
def test_the_exact_map_is_the_optimum(name: str, sde: LinearSDE) -> None:
    objective = MAKERS[name](sde)
    batch = batch_of(objective, sde)
    # Pairs of a solver are in float32.
    small = 1e-5 if name == "regression" else 1e-9
    loss, gradient = loss_and_gradient(objective, exact(sde), batch)
    assert 0 <= loss < small**2 * 100
    assert abs(gradient) < small * 10
    for error in (0.05, -0.05):  # away from it the loss falls towards it
        loss, gradient = loss_and_gradient(objective, exact(sde, error), batch)
        assert loss > 1e-5
        assert gradient * error > 1e-3 * abs(error)


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("kind", [ContinuousConsistency, MeanFlow])
def test_data_alone_have_the_same_optimum_on_average(sde: LinearSDE, kind) -> None:  # type: ignore[no-untyped-def]
    settings = {"power": 0.0} if kind is MeanFlow else {}
    objective = kind(DataTrajectory(), sde, **settings)
    model = exact(sde)
    batch = batch_of(objective, sde, n=20_000)
    t, s = batch.t.unbind(1)
    x = sde.perturb(batch.x0, t, batch.eps)
    assert bool((t >= s).all())
    found = tangent(model, x, batch.t, DataTrajectory().velocity(model, batch, x, t))
    # The mean given x_t is 0, and so is that of its product with any function of x_t.
    for product in (found * x, found * x**3):
        mean = product.mean()
        assert abs(mean) < 4 * product.std() / product.numel() ** 0.5
    wrong = exact(sde, 0.1)
    found = tangent(wrong, x, batch.t, DataTrajectory().velocity(wrong, batch, x, t))
    product = found * x
    assert abs(product.mean()) > 10 * product.std() / product.numel() ** 0.5


@pytest.mark.parametrize("sde", [*SDES, EDMSDE()], ids=repr)
def test_the_progressive_target_is_two_ddim_steps(sde: LinearSDE) -> None:
    score = GaussianMixture.ring(8).diffused(sde)
    objective = ProgressiveDistillation(score, 4)
    batch = batch_of(objective, sde, n=8)
    x = sde.perturb(batch.x0, batch.t[:, 0], batch.eps)
    model = student(sde).double()
    found = objective.target(model, batch, x)
    for i, (t, middle, s) in enumerate(batch.t):
        a, m, b = ((sde.alpha(u), sde.sigma(u)) for u in (t, middle, s))
        row = x[i : i + 1]
        for (alpha, sigma), (after, noise), u in ((a, m, t), (m, b, middle)):
            eps = score.eps(row, u)  # Song et al. 2021 (DDIM), equation 12
            row = after * (row - sigma * eps) / alpha + noise * eps
        scale = float(row.abs().max()) + 1
        # From pure noise x0 is a difference that loses the digits of 1/alpha.
        assert torch.allclose(found[i : i + 1], row, rtol=0, atol=1e-12 * scale / float(a[0]) ** 2)
    # The x of algorithm 2: the x0 with which one step leads to the target.
    t, _, s = batch.t.unbind(1)
    (a, sa), (b, sb) = ((sde.alpha(u)[:, None], sde.sigma(u)[:, None]) for u in (t, s))
    x_tilde = (found - sb / sa * x) / (b - sb / sa * a)
    assert torch.allclose(b * x_tilde + sb * (x - a * x_tilde) / sa, found, rtol=0, atol=1e-9)
    loss = objective(model, batch)
    v = model.towards(s).predict("v", x, t, levels(sde, t))
    v_tilde = (a * x - (a**2 + sa**2) * x_tilde) / sa
    assert torch.allclose(loss, (v - v_tilde).square().mean(1), rtol=1e-6)


def levels(sde: LinearSDE, t: Tensor):  # type: ignore[no-untyped-def]
    from sde_diffusion.coefficients import Levels

    return Levels(sde.alpha(t), sde.sigma(t))


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_the_tangent_is_a_finite_difference(sde: LinearSDE) -> None:
    model = student(sde).double()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(32, 2, generator=generator, dtype=torch.float64)
    velocity = torch.randn(32, 2, generator=generator, dtype=torch.float64)
    ends = torch.stack([torch.linspace(0.1, 0.9, 32), torch.full((32,), 0.05)], 1).double()
    found = tangent(model, x, ends, velocity)
    h = 1e-6  # of a network of float32 frequencies of up to some hundreds a unit of time
    t, s = ends.unbind(1)
    with torch.no_grad():
        ahead, behind = (model.jump(x + d * velocity, t + d, s) for d in (h, -h))
    by_differences = (ahead - behind) / (2 * h)
    scale = by_differences.abs().max()
    assert torch.allclose(found, by_differences, rtol=0, atol=float(scale) * 1e-6)
    # A planted mistake: the end moved with the time.
    with torch.no_grad():
        moved = (
            model.jump(x + h * velocity, t + h, s + h) - model.jump(x - h * velocity, t - h, s - h)
        ) / (2 * h)
    assert not torch.allclose(found, moved, rtol=0, atol=float(scale) * 1e-3)


def test_the_paths_are_those_of_sample() -> None:
    from sde_diffusion import equal_angles, sample

    sde = VPSDE()
    paths = flow_paths(teacher(sde), DDIM(), (10, 2), substeps=8, seed=5, batch_size=4)
    found = sample(teacher(sde), DDIM(), (10, 2), grid=equal_angles(sde, 32), seed=5)
    assert torch.equal(paths.x[:, -1], found.x)
    assert torch.allclose(paths.t, equal_angles(sde, 4), rtol=1e-9, atol=0)


def test_every_step_of_the_paths_has_its_share() -> None:
    sde = VPSDE()
    objective = FlowMapRegression(flow_paths(teacher(sde), DDIM(), (16, 2), substeps=1))
    generator = torch.Generator().manual_seed(0)
    number = objective.draw(sde, 4800, generator).t
    ends = torch.tensor(objective.steps)[number[:, 1]]
    lengths, counts = ends.diff(dim=1).flatten().unique(return_counts=True)
    assert lengths.tolist() == [1, 2, 4]  # quarters, halves and the whole
    assert all(abs(int(count) - 1600) < 120 for count in counts)
    assert number[:, 0].bincount(minlength=16).tolist() == [300] * 16


def test_other_models_and_objectives_are_refused() -> None:
    from sde_diffusion import MLP, Dataset, DataSpec, ScoreModel, TrainingConfig, train

    data = Dataset(DataSpec("points", (2,), None), torch.randn(64, 2), None)
    config = TrainingConfig(steps=1, batch_size=8)
    with pytest.raises(TypeError, match="model must be a FewStepModel for MeanFlow"):
        train(
            ScoreModel(MLP(2), VPSDE()),
            data,
            config,
            objective=MeanFlow(DataTrajectory(), VPSDE()),
        )
    with pytest.raises(TypeError, match="objective must be one of students"):
        train(FewStepModel(MLP(2), VPSDE()), data, config)
    with pytest.raises(ValueError, match="network of two times"):
        train(
            FewStepModel(MLP(2), VPSDE()),
            data,
            config,
            objective=MeanFlow(DataTrajectory(), VPSDE()),
        )
    training = ScoreModel(MLP(2), VPSDE()).train()
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        ProgressiveDistillation(training, 4)
