"""Students: the map of whole steps, its sampler, its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    MLP,
    VPSDE,
    DataSpec,
    FewStepModel,
    FewSteps,
    GaussianMixture,
    PerSampleNoise,
    ProbabilityFlow,
    RectifiedFlow,
    Renoised,
    UNet,
    equal_angles,
    first_fold,
    load,
    sample,
    sampler_log_prob,
    save_model,
)
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solvers import DDIM, Heun

SDES = (VPSDE(), RectifiedFlow(), EDMSDE())


def scalar(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with random weights where they are 0 at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return network.eval()


def student(sde: LinearSDE, prediction: str = "v", **settings: int) -> FewStepModel:
    network = shaken(MLP(2, width=16, times=2, **settings))
    return FewStepModel(network, sde, prediction).eval()


def states(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


class FlowOfGaussian(nn.Module):
    """The v of whole steps of N(0, std²) data, from which the flow map x_s = (R_s/R_t) x_t is.

    R² = alpha² std² + sigma², the variance at a time.
    """

    def __init__(self, sde: LinearSDE, std: float, error: float = 0.0) -> None:
        super().__init__()
        self.config = {"times": 2}
        self.sde = sde
        self.std = std
        self.error = nn.Parameter(torch.tensor(error, dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        (a_t, s_t, r_t), (a_s, s_s, r_s) = map(self.levels, c.double().unbind(1))
        total = a_t**2 + s_t**2
        p = (a_s * a_t + s_s * s_t) / total
        q = (s_s * a_t - a_s * s_t) / total
        still = q.abs() < 1e-9  # v = alpha eps − sigma x0 of the time itself
        local = a_t * s_t * (1 - self.std**2) / r_t**2
        v = torch.where(still, local, (r_s / r_t - p) / torch.where(still, 1.0, q))
        return (v + self.error)[:, None] * x

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return alpha, sigma, (alpha**2 * self.std**2 + sigma**2).sqrt()


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("prediction", ["v", "x0", "flow", "edm"])
def test_a_step_of_no_length_changes_no_bit(sde: LinearSDE, prediction: str) -> None:
    model = student(sde, prediction)
    x = states(64)
    for t in (scalar(sde.cutoff), torch.linspace(sde.cutoff, sde.horizon, 64).double()):
        assert torch.equal(model.jump(x, t, t), x)


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_steps_of_a_score_are_ddims(sde: LinearSDE) -> None:
    model = GaussianMixture.ring(8).diffused(sde)
    grid = equal_angles(sde, 4)
    ours, theirs = (
        sample(model, solver, (16, 2), grid=grid, dtype=torch.float64)
        for solver in (FewSteps(), DDIM())
    )
    assert torch.allclose(ours.x, theirs.x, rtol=0, atol=1e-9)
    assert ours.nfe == theirs.nfe == 4


@pytest.mark.parametrize("sde", [VPSDE(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exact_map_gives_the_flow_in_any_number_of_steps(sde: LinearSDE, steps: int) -> None:
    model = FewStepModel(FlowOfGaussian(sde, 0.5), sde).eval()
    found = sample(model, FewSteps(), (32, 2), steps=steps, dtype=torch.float64)
    first, last = (
        (sde.alpha(t) ** 2 / 4 + sde.sigma(t) ** 2).sqrt()
        for t in (scalar(sde.horizon), scalar(sde.cutoff))
    )
    noise = PerSampleNoise.numbered(0, 0, 32)
    start = sde.prior().sample(noise, (32, 2), dtype=torch.float64, device=torch.device("cpu"))
    assert found.nfe == steps
    assert torch.allclose(found.x, last / first * start, rtol=1e-5, atol=0)
    wrong = FewStepModel(FlowOfGaussian(sde, 0.5, error=0.01), sde).eval()
    other = sample(wrong, FewSteps(), (32, 2), steps=steps, dtype=torch.float64).x
    assert not torch.allclose(other, found.x, rtol=1e-3, atol=0)


def test_renoised_has_the_variances_of_algorithm_1() -> None:
    sde = VPSDE()
    model = FewStepModel(FlowOfGaussian(sde, 0.5), sde).eval()
    x = sample(model, Renoised(), (400, 100), steps=2, dtype=torch.float64).x
    end = scalar(sde.cutoff)
    exact = float(sde.alpha(end) ** 2 / 4 + sde.sigma(end) ** 2)
    # Of n normal numbers the variance has the relative standard error √(2/n).
    assert abs(float(x.var()) / exact - 1) < 4 * (2 / 40_000) ** 0.5
    one = [sample(model, solver, (8, 1), steps=1).x for solver in (Renoised(), FewSteps())]
    assert torch.equal(*one)


@pytest.mark.parametrize("solver", [FewSteps(), Renoised()], ids=repr)
def test_a_sample_has_its_own_seed_and_no_batch(solver: FewSteps | Renoised) -> None:
    model = student(VPSDE()).double()
    whole = sample(model, solver, (6, 2), steps=4, seed=3, dtype=torch.float64).x
    parts = [
        sample(model, solver, (2, 2), steps=4, seed=3, first=i, dtype=torch.float64).x
        for i in (0, 2, 4)
    ]
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["v", "edm"])
def test_a_file_gives_the_same_student(tmp_path: Path, prediction: str) -> None:
    model = student(VPSDE(), prediction, classes=3)
    model.data = DataSpec("points", (2,), None)
    save_model(tmp_path / "student.safetensors", model)
    found = load(tmp_path / "student.safetensors")
    assert isinstance(found, FewStepModel)
    labels = torch.tensor([0, 1, 2, -1])
    t, s = torch.tensor([1.0, 0.9, 0.5, 0.2]).double(), scalar(0.1)
    x = states(4)
    assert torch.equal(found.given(labels).jump(x, t, s), model.given(labels).jump(x, t, s))
    assert found.data == model.data
    assert not torch.equal(found.jump(x, t, s), model.jump(x, t, scalar(0.2)))


def test_each_row_has_its_own_times_and_labels() -> None:
    model = student(VPSDE(), classes=3).double()
    labels = torch.tensor([0, 1, 2])
    x, t, s = (
        states(3).double(),
        torch.tensor([1.0, 0.7, 0.4]).double(),
        torch.tensor([0.5, 0.1, 0.01]).double(),
    )
    whole = model.given(labels).jump(x, t, s)
    for i in range(3):
        row = torch.tensor([i])
        alone = model.given(labels).rows(row).jump(x[row], t[i], s[i])
        assert torch.allclose(alone, whole[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: MLP(2, width=16, seed=1, times=n),
        lambda n: UNet(1, 8, (1,), 1, (), 1, seed=1, times=n),
    ],
)
def test_a_network_of_two_times_starts_as_that_of_one(make) -> None:  # type: ignore[no-untyped-def]
    one, two = shaken(make(1)), make(2).eval()
    two.load_state_dict(one.state_dict(), strict=False)
    shape = (3, 2) if isinstance(one, MLP) else (3, 1, 4, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    c = torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(two(x, torch.stack([c, 1 - c], 1)), one(x, c))
    with pytest.raises(ValueError, match=r"c must have shape \(3, 2\)"):
        two(x, c)


def test_a_student_is_no_score() -> None:
    model = student(VPSDE())
    with pytest.raises(TypeError, match="sample it with FewSteps"):
        sample(model, Heun(), (2, 2), steps=2)
    with pytest.raises(TypeError, match="sample it with FewSteps"):
        ProbabilityFlow(model.sde, model).velocity(states(2), scalar(0.5))
    with pytest.raises(ValueError, match="prediction must be one of v, x0, flow, edm"):
        FewStepModel(MLP(2), VPSDE(), "eps")


def test_grids_of_half_the_steps_are_within() -> None:
    for sde in SDES:
        fine, coarse = equal_angles(sde, 4), equal_angles(sde, 2)
        assert torch.allclose(fine[::2], coarse, rtol=1e-9, atol=0)
        angle = torch.atan(sde.sigma(fine) / sde.alpha(fine))
        assert torch.allclose(angle.diff(), (angle[-1] - angle[0]) / 4, rtol=1e-6, atol=0)


def test_the_density_of_an_exact_student_is_the_gaussians_and_a_fold_is_refused() -> None:
    sde = VPSDE()
    model = FewStepModel(FlowOfGaussian(sde, 0.5), sde).eval()
    z = states(16).double()
    first, last = (
        (sde.alpha(t) ** 2 / 4 + sde.sigma(t) ** 2).sqrt()
        for t in (scalar(sde.horizon), scalar(sde.cutoff))
    )
    for steps in (1, 2):
        grid = equal_angles(sde, steps)
        found = sampler_log_prob(z, ProbabilityFlow(sde, model), FewSteps(), grid)
        volume = -2 * torch.log(last / first)
        assert torch.allclose(found.terms["volume"], volume.expand(16), rtol=0, atol=1e-9)
        assert torch.allclose(found.x, last / first * z, rtol=0, atol=1e-9)
        assert found.nfe == steps
    # v of the wrong size turns x over in one dimension: det < 0 for an odd number of them.
    wrong = FewStepModel(FlowOfGaussian(sde, 0.5, error=2.0), sde).eval()
    flow, grid = ProbabilityFlow(sde, wrong), equal_angles(sde, 1)
    assert bool((first_fold(z[:, :1], flow, FewSteps(), grid) == 1).all())
    with pytest.raises(ValueError, match="got 16 of 16 samples where it folds"):
        sampler_log_prob(z[:, :1], flow, FewSteps(), grid)
