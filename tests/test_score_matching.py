"""Implicit and sliced score matching have the explicit loss's gradient, and need no kernel."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    Dataset,
    DataSpec,
    DirectScore,
    GaussianMixture,
    HeldOutBound,
    LinearBeta,
    LossByLevel,
    Monitor,
    PerSampleNoise,
    RectifiedFlow,
    ReverseSDE,
    ScoreModel,
    SubVPSDE,
    TrainingConfig,
    describe,
    integrate,
    load,
    load_direct,
    polynomial,
    sample,
    save_model,
    train,
    uniform,
)
from sde_diffusion.cli.main import main
from sde_diffusion.noise import Noise
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.objectives.denoising import denoising_loss
from sde_diffusion.objectives.score_matching import (
    Implicit,
    Paths,
    Sliced,
    implicit_loss,
    sliced_loss,
)
from sde_diffusion.objectives.spacings import Stratified
from sde_diffusion.solvers import DDIM, EulerMaruyama
from sde_diffusion.time_distributions import UniformTimes
from sde_diffusion.training.objective_by_name import objective_of

T = torch.tensor(0.5, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def network(d: int, seed: int = 0) -> MLP:
    """An MLP in float64 whose output is not 0."""
    net = MLP(d, width=8, depth=2).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return net


class Given(Noise):
    """The normals that it is given."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def normal(self, x: Tensor) -> Tensor:
        return self.z.to(x).expand_as(x)


def test_of_an_affine_score_it_is_a_square_and_a_trace() -> None:
    a = randn(3, 3)
    b = randn(3, seed=1)
    x = randn(5, 3, seed=2)
    found = implicit_loss(lambda x, _: x @ a.T + b, x, T)
    expected = 0.5 * (x @ a.T + b).square().sum(1) + a.trace()
    assert torch.allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 2, 2)], ids=["rows", "images"])
def test_sliced_averages_to_implicit_over_all_signs(shape) -> None:
    net = network(math.prod(shape[1:]))
    x = randn(*shape)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return net(x.flatten(1), t.expand(len(x))).reshape(x.shape)

    values = [
        sliced_loss(score, x, T, Given(torch.tensor(z).reshape(1, *shape[1:])))
        for z in itertools.product((-1.0, 1.0), repeat=math.prod(shape[1:]))
    ]
    assert float(torch.stack(values).detach().std(0).min()) > 1e-3  # probes matter
    mean = torch.stack(values).mean(0)
    assert torch.allclose(mean, implicit_loss(score, x, T), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("law", ["implicit", "sliced"])
def test_its_gradient_is_that_of_explicit_score_matching(law) -> None:
    """∫ p (½s² + s′) dx and ½ ∫ p (s − ∇log p)² dx, by a rule exact to rounding, in 1-D."""
    data = GaussianMixture([1, 2], torch.tensor([[-1.0], [0.8]]), stds=[0.5, 0.4])
    exact = data.diffused(VPSDE())
    net = network(1)
    x = torch.linspace(-9, 9, 1500, dtype=torch.float64)[:, None]
    p = exact.log_prob(x, T).exp() * (x[1, 0] - x[0, 0])

    def score(x: Tensor, t: Tensor) -> Tensor:
        return net(x, t.expand(len(x)))

    if law == "implicit":
        losses = implicit_loss(score, x, T)
    else:  # in one dimension any sign is exact
        losses = sliced_loss(score, x, T, Given(randn(1500, 1)))
    explicit = 0.5 * (score(x, T) - exact(x, T)).square()[:, 0]
    constant = 0.5 * (p * exact(x, T).square()[:, 0]).sum()
    assert torch.allclose((p * losses).sum() + constant, (p * explicit).sum(), rtol=1e-11)
    parameters = list(net.parameters())
    ours = torch.autograd.grad((p * losses).sum(), parameters)
    theirs = torch.autograd.grad((p * explicit).sum(), parameters)
    assert max(float(g.abs().max()) for g in theirs) > 0.01
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-11)


class Times(nn.Module):
    """eps = c x, with c by the time."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor([0.3, 0.5], dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return (self.c[0] + self.c[1] * c)[:, None] * x


@pytest.mark.parametrize("kind", [Implicit, Sliced])
@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0)], ids=repr)
def test_the_objective_has_the_value_of_denoising(sde, kind) -> None:
    """On N(0, v) and an eps that is linear in x all is squares: four points are the mean."""
    model = ScoreModel(Times(), sde)
    x0 = 0.3**0.5 * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)[:, None]
    eps = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
    for t in (1e-3, 0.2, 1.0):
        times = torch.full((4,), t, dtype=torch.float64)
        batch = Batch(x0, times, eps, PerSampleNoise(range(4)))
        ours = kind(UniformTimes(), Stratified(), 1e-5)(model, batch).mean()
        theirs = denoising_loss(model, x0, times, eps).mean()
        assert torch.allclose(ours, theirs, rtol=1e-11)
        ours, theirs = (torch.autograd.grad(loss, model.network.c)[0] for loss in (ours, theirs))
        assert torch.allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), EDMSDE(5.0)], ids=repr)
def test_the_least_value_on_a_mixture_is_what_the_score_leaves_of_the_noise(sde) -> None:
    """E‖eps − E[eps|x_t]‖² = 1 − sigma² E‖∇log p_t‖²: one by x0 and eps, the other by x alone."""
    t = 0.4 * T
    weights = (0.3, 0.7)
    means = (-0.8, 0.5)
    stds = (0.2, 0.4)
    rows = torch.tensor(means, dtype=torch.float64)[:, None]
    exact = GaussianMixture(weights, rows, stds=stds).diffused(sde)
    nodes, p = np.polynomial.hermite_e.hermegauss(60)
    z = torch.tensor(nodes)
    p = torch.tensor(p / p.sum())
    x0 = torch.cat([m + s * z for m, s in zip(means, stds, strict=True)])
    mass = torch.cat([w * p for w in weights])
    x0, eps = (v.reshape(-1, 1) for v in torch.meshgrid(x0, z, indexing="ij"))
    mean = float((mass[:, None] * p).flatten() @ denoising_loss(exact, x0, t, eps))
    width = 12 * float(sde.alpha(t) + sde.sigma(t))
    x = torch.linspace(-width, width, 20_001, dtype=torch.float64)[:, None]
    density = exact.log_prob(x, t).exp() * (x[1] - x[0])
    left = 1 - float(density @ exact.eps(x, t).square()[:, 0])
    assert mean == pytest.approx(left, abs=1e-7)
    assert 0.05 < left < 0.95


class Pulled(SDE):
    """dx = −½ b x dt + √b dw, as one who does not know its kernel has it."""

    rate = 4.0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return -0.5 * self.rate * x

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return torch.full((), self.rate**0.5, dtype=x.dtype)


GRID = polynomial(50, 2.0, 0.0, 1.0)


def test_every_sample_is_at_its_own_time_of_its_own_path() -> None:
    paths = Paths(EulerMaruyama(), GRID)
    sde = Pulled()
    x0 = randn(6, 5)
    k = torch.tensor([1, 50, 3, 7, 7, 20])
    t = GRID[k]
    found = paths.states(sde, x0, t, PerSampleNoise(range(6)))
    for i in range(6):  # alone, step by step, and only as far as its time
        x = x0[i : i + 1]
        z = PerSampleNoise([i]).normal(torch.zeros(1, 64, 5).double())
        for step in range(int(k[i])):
            dt = GRID[step + 1] - GRID[step]
            x = x - 0.5 * Pulled.rate * x * dt + (Pulled.rate * dt).sqrt() * z[:, step]
        assert torch.allclose(found[i : i + 1], x, rtol=1e-12)
    # The noise that is left does not depend on the batch either, nor so the probes.
    model = DirectScore(network(5), sde)

    def losses(rows: slice) -> Tensor:
        noise = PerSampleNoise(range(rows.start, rows.stop))
        batch = Batch(x0[rows], t[rows], x0[rows], noise)
        return Sliced(paths, Stratified(), 0.0)(model, batch)

    parts = torch.cat([losses(slice(0, 1)), losses(slice(1, 6))])
    assert torch.allclose(losses(slice(0, 6)), parts, rtol=1e-12)


def test_times_of_paths_are_those_of_the_grid_after_the_data() -> None:
    paths = Paths(EulerMaruyama(), GRID)
    u, _ = Stratified().draw(100, torch.Generator().manual_seed(0))
    assert torch.equal(paths.time(Pulled(), u, 0.0), GRID[1:].repeat_interleave(2))


def test_a_stopped_and_loaded_run_learns_the_score_of_an_sde_whose_kernel_is_not_known(
    tmp_path: Path,
) -> None:
    """Relative error below 12 % against the closed form that training does not know."""
    data = GaussianMixture([1, 2], torch.tensor([[-1.0], [1.0]]), stds=[0.5, 0.5])
    rows = data.sample(8192, torch.Generator().manual_seed(0)).float()
    paths = Paths(EulerMaruyama(), polynomial(25, 2.0, 0.0, 1.0))
    config = TrainingConfig(
        steps=300, batch_size=256, learning_rate=4e-3, ema_decay=0.98, schedule="cosine", warmup=20
    )
    dataset = Dataset(DataSpec("points", (1,), None), rows, None)
    for stop in (120, 300):
        model = DirectScore(MLP(1, width=32, depth=2, time_scale=1.0), Pulled())
        run = train(
            model,
            dataset,
            config,
            out=tmp_path,
            resume=stop == 300,
            objective=Implicit(paths, Stratified(), 0.0),
        )
        for progress in run:
            if progress.step == stop:
                break
        run.close()
    model = load_direct(tmp_path, sde=Pulled())
    assert model.data == dataset.spec
    exact = data.diffused(VPSDE(LinearBeta(Pulled.rate, Pulled.rate)))
    for t in (0.2, 0.4, 0.8):
        time = torch.tensor(t, dtype=torch.float64)
        x = exact.sample(2000, time, torch.Generator().manual_seed(1)).float()
        with torch.no_grad():
            error = (model(x, time) - exact(x, time)).square().mean().sqrt()
        assert float(error / exact(x, time).square().mean().sqrt()) < 0.12, t
    x = randn(4000, 1, seed=2).float()
    with torch.no_grad():
        solution = integrate(
            ReverseSDE(model.sde, model),
            EulerMaruyama(),
            x,
            uniform(100, 1.0, 0.01),
            noise=PerSampleNoise(range(4000)),
        )
    assert float((solution.x > 0).float().mean()) == pytest.approx(2 / 3, abs=0.05)
    assert float(solution.x.std()) == pytest.approx(float(rows.std()), rel=0.06)


def conditional() -> DirectScore:
    return DirectScore(MLP(2, width=16, classes=3, dropout=0.2), Pulled())


def labelled(rows: int = 40) -> Dataset:
    return Dataset(DataSpec("points", (2,), None), randn(rows, 2).float(), torch.arange(rows) % 3)


SLICED = Sliced(Paths(EulerMaruyama(), uniform(8, 0.0, 1.0)), Stratified(), 0.0)
CONFIG = TrainingConfig(
    steps=7,
    batch_size=12,
    learning_rate=0.01,
    warmup=0,
    ema_decay=0.5,
    checkpoint_every=2,
    accumulate=2,
    ema_half_lives=(3.0,),
)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_direct_score_with_classes_resumes_bit_for_bit(tmp_path: Path, stop: int) -> None:
    for _ in train(conditional(), labelled(), CONFIG, out=tmp_path / "whole", objective=SLICED):
        pass
    for resume in (False, True):
        for progress in train(
            conditional(),
            labelled(),
            CONFIG,
            out=tmp_path / "parts",
            resume=resume,
            objective=SLICED,
        ):
            if progress.step == stop:
                break
    for name in ("model.safetensors", "ema-3.safetensors"):
        whole, parts = (tmp_path / run / name for run in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()
    model = load_direct(tmp_path / "parts", sde=Pulled())
    x = randn(3, 2).float()
    together = model.given(torch.tensor([2, 0, 1]))
    for i, label in enumerate((2, 0, 1)):
        alone = model.given(label)(x[i : i + 1], T)
        assert torch.allclose(together(x, T)[i : i + 1], alone, rtol=1e-5)
        assert torch.allclose(together.rows(torch.tensor([i]))(x[i : i + 1], T), alone, rtol=1e-5)
    assert not torch.allclose(model.given(0)(x, T), model.given(1)(x, T), rtol=1e-3)


@pytest.mark.parametrize("sde", [VPSDE(LinearBeta(0.2, 9.0)), VESDE(0.01, 5.0)], ids=repr)
def test_commands_take_a_direct_score_of_a_linear_sde(sde, tmp_path: Path) -> None:
    """`sample --model FILE` gives the library's samples, for which Euler–Maruyama needs no eps."""
    torch.manual_seed(0)
    score = DirectScore(MLP(2, width=8), sde, data=DataSpec("points", (2,), None)).eval()
    for parameter in score.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_model(tmp_path / "own.safetensors", score)
    for name, solver in (("euler-maruyama", EulerMaruyama()), ("ddim", DDIM())):
        options = f"--solver {name} --steps 4 --grid uniform -n 3 --device cpu".split()
        options += ["--model", str(tmp_path / "own.safetensors"), "--out", str(tmp_path)]
        done = CliRunner().invoke(main, ["sample", *options])
        assert done.exit_code == 0, done.output
        grid = uniform(4, sde.horizon, sde.cutoff)
        expected = sample(score, solver, (3, 2), grid=grid).x
        with np.load(tmp_path / "samples.npz") as file:
            assert np.array_equal(file["x"], expected.numpy())


@pytest.mark.parametrize("sde", [VPSDE(LinearBeta(0.2, 9.0)), VESDE(0.01, 12.0)], ids=repr)
def test_a_loaded_direct_score_is_the_saved_one(tmp_path: Path, sde) -> None:
    """A linear SDE is rebuilt, and trained on without paths."""
    score = DirectScore(MLP(2, width=8), sde)
    plain = Implicit(UniformTimes(), Stratified(), 0.01)
    for _ in train(score, labelled(), CONFIG, out=tmp_path, objective=plain):
        pass
    found = load_direct(tmp_path)
    x = randn(4, 2).float()
    assert torch.equal(found(x, T), score(x, T))
    assert float(found(x, T).detach().abs().max()) > 0
    assert found.sde == sde
    assert not found.training
    described = describe(tmp_path)
    assert (described["class"], described["prediction"]) == ("DirectScore", "score")
    assert not {"sigma_data", "variance", "coupling"} & described.keys()
    shown = json.loads(CliRunner().invoke(main, ["info", str(tmp_path), "--json"]).stdout)
    assert shown["parameters"] == sum(p.numel() for p in score.parameters())


class Short(Pulled):
    """The same, with coefficients that end before 1."""

    horizon = 0.9


def trained_by(own: Objective | None, *monitors: Monitor, **settings: object) -> None:
    train(
        DirectScore(MLP(2), Short()),
        labelled(),
        TrainingConfig(**settings),
        objective=own,
        monitors=monitors,
    )


@pytest.mark.parametrize(
    ("refused", "error", "text"),
    [
        (
            lambda: trained_by(None),
            TypeError,
            "train: objective must be Implicit or Sliced for a DirectScore, got Denoising",
        ),
        (
            lambda: trained_by(objective_of(TrainingConfig(objective="vlb"))),
            TypeError,
            "Implicit or Sliced for a DirectScore, got Vlb",
        ),
        (
            lambda: trained_by(None, objective="sliced"),
            TypeError,
            "Sliced: law must be Paths where sde is not linear, got UniformTimes",
        ),
        (
            lambda: trained_by(SLICED),
            ValueError,
            r"Paths: grid must end at the SDE's horizon 0\.9 at most, got 1",
        ),
        (
            lambda: trained_by(Sliced(UniformTimes(), Stratified(), 0.95)),
            ValueError,
            r"t_min must be below the SDE's horizon 0\.9, got 0\.95",
        ),
        (
            lambda: trained_by(SLICED, LossByLevel(labelled()), evaluate_every=2),
            TypeError,
            "monitors must do without alpha and sigma, .* has not, got LossByLevel",
        ),
        (
            lambda: trained_by(SLICED, HeldOutBound(labelled()), evaluate_every=2),
            TypeError,
            "which a DirectScore has not, got HeldOutBound",
        ),
    ],
)
def test_what_a_direct_score_cannot_be_trained_with_is_refused_at_once(
    refused, error, text
) -> None:
    with pytest.raises(error, match=text):
        refused()


def test_paths_beyond_the_horizon_are_refused_for_every_model() -> None:
    sde = RectifiedFlow()
    with pytest.raises(ValueError, match=rf"end at the SDE's horizon {sde.horizon} at most"):
        SLICED.check(ScoreModel(MLP(2), sde))


def test_load_opens_every_kind_of_file_and_load_direct_one(tmp_path: Path) -> None:
    score = DirectScore(MLP(2), Pulled())
    run = train(score, labelled(), CONFIG, out=tmp_path, objective=SLICED)
    next(run)
    run.close()
    found = load(tmp_path, sde=Pulled())
    x = randn(3, 2).float()
    assert isinstance(found, DirectScore)
    assert isinstance(load("digits"), ScoreModel)
    assert torch.equal(found(x, T), load_direct(tmp_path, sde=Pulled())(x, T))
    with pytest.raises(
        ValueError, match=r"^load: sde must be passed .*Pulled; call load\(path, sde="
    ):
        load(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"^load_direct: .* hold a DirectScore, got a ScoreModel; "
        r"call load\(path",
    ):
        load_direct("digits")
    with pytest.raises(
        ValueError,
        match=r"^load_direct: sde must be passed .*Pulled; call "
        r"load_direct\(path, sde=",
    ):
        load_direct(tmp_path)
    with pytest.raises(ValueError, match=r"class must be 'DirectScore' as in the run"):
        train(ScoreModel(MLP(2), VPSDE()), labelled(), CONFIG, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: DirectScore(len, VPSDE()), TypeError, "network must be a torch.nn.Module"),
        (lambda: DirectScore(MLP(2), 3), TypeError, "sde must be an SDE, got int"),
        (lambda: Paths(EulerMaruyama(), uniform(5, 0.1, 1.0)), ValueError, "rise from 0"),
        (lambda: Paths(EulerMaruyama(), uniform(5, 1.0, 0.0)), ValueError, "rise from 0"),
        (
            lambda: implicit_loss(lambda x, t: x.detach(), randn(2, 2), T),  # noqa: ARG005
            TypeError,
            "differentiable in x",
        ),
        (
            lambda: Implicit(UniformTimes(), Stratified(), 0.0)(
                DirectScore(MLP(2), Pulled()), Batch(randn(1, 2), T[None], randn(1, 2), Given(T))
            ),
            TypeError,
            "Implicit: law must be Paths where sde is not linear, got UniformTimes",
        ),
    ],
)
def test_refusals(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
