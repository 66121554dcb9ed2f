"""Objectives: what is minimised does not depend on the times drawn, and what they refuse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    GaussianMixture,
    LinearSDE,
    RectifiedFlow,
    ReverseSDE,
    ScoreModel,
    SubVPSDE,
    TrainingConfig,
    load,
    train,
)
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.objectives.coupling import COUPLINGS, OptimalTransport
from sde_diffusion.objectives.denoising import Denoising, Explicit
from sde_diffusion.objectives.discrete_bound import Hybrid, Vlb
from sde_diffusion.objectives.score_matching import Implicit, Sliced
from sde_diffusion.objectives.spacings import SPACINGS, LossAware, Stratified
from sde_diffusion.objectives.uncertainty import Uncertainty
from sde_diffusion.objectives.weighting import EDM, WEIGHTINGS, likelihood, perceptual
from sde_diffusion.scores import ScoreLike
from sde_diffusion.time_distributions import TIMES, LatticeTimes, UniformTimes
from sde_diffusion.training.config import CHOICES
from sde_diffusion.training.objective_by_name import objective_of
from sde_diffusion.training.trainer import Trainer

T_MIN = 3e-3
CONTINUOUS = [name for name in WEIGHTINGS if name != "exact"]
BOUNDS = ("likelihood", "vdm")  # for which normal distributions of times are refused


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(x0: Tensor, t: Tensor, eps: Tensor) -> Batch:
    return Batch(x0, t, eps, PerSampleNoise.numbered(0, 0, len(x0)))


class Least(ScoreLike):
    """A model whose error is ‖eps − eps_θ‖² = alpha²/(alpha² + 4 sigma²), by a smooth eps_θ(t)."""

    sde: LinearSDE

    def __init__(self, sde: LinearSDE) -> None:
        self.sde = sde

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.eps(x, t) / self.sde.sigma(t)[:, None]

    def error(self, t: Tensor) -> Tensor:
        a = self.sde.alpha(t)
        s = self.sde.sigma(t)
        return a**2 / (a**2 + 4 * s**2)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return -self.error(t).sqrt()[:, None]

    def losses(self, objective: Objective, t: Tensor) -> Tensor:
        x0 = torch.zeros(len(t), 1, dtype=torch.float64)
        return objective(self, batch_of(x0, t, torch.zeros_like(x0)))


def ends(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of ∫₀¹ du that are dense at both ends: the trapezium rule in logit u."""
    y = torch.linspace(-36, 36, n, dtype=torch.float64)
    u = torch.sigmoid(y)
    return u, u * torch.sigmoid(-y) * (y[1] - y[0])


@pytest.mark.parametrize("weighting", CONTINUOUS)
@pytest.mark.parametrize("sde", [VPSDE(), RectifiedFlow(), EDMSDE(80.0)], ids=str)
def test_what_is_minimised_does_not_depend_on_the_distribution_of_times(
    sde: LinearSDE, weighting: str
):
    model = Least(sde)
    (u, du) = ends(8001)
    config = TrainingConfig(weighting=weighting, t_min=T_MIN)
    own = objective_of(config)
    # By the distribution and the weight alone, over t.
    own_times, weight = WEIGHTINGS[weighting](T_MIN, 0)
    t = own_times.time(sde, u, T_MIN)
    stated = du @ (weight(sde, t) * model.error(t))
    assert torch.isclose(du @ model.losses(own, t), stated, rtol=1e-9)
    for times in TIMES:
        if weighting in BOUNDS and times in ("log-normal", "logit-normal"):
            continue
        objective = objective_of(TrainingConfig(weighting=weighting, t_min=T_MIN, times=times))
        t = objective.distribution.time(sde, u, T_MIN)
        assert objective.distribution == TIMES[times]
        assert torch.isclose(du @ model.losses(objective, t), stated, rtol=5e-5)


@pytest.mark.parametrize("sde", [VPSDE(), RectifiedFlow()], ids=str)
def test_what_is_minimised_is_what_was_published(sde: LinearSDE):
    t = torch.linspace(0.01, 0.99, 30, dtype=torch.float64)
    a = sde.alpha(t)
    s = sde.sigma(t)
    g2 = sde.g(t) ** 2
    level = (s / a).log()
    speed = g2 / (2 * s**2)
    snr = (a / s) ** 2
    velocity = (g2 / (2 * s)) ** 2
    logit = (t / (1 - t)).log()
    published = {
        "perceptual": torch.ones_like(t),
        "likelihood": g2 / s**2,
        "vdm": 0.5 * g2 / s**2,
        "min-snr": torch.minimum(snr, torch.tensor(5.0)) / snr,
        "p2": 1 / (1 + snr),
        "edm": torch.exp(-0.5 * ((level + 1.2) / 1.2) ** 2) * speed * (s**2 / a**2 + 0.25),
        "flow-matching": velocity,
        "sd3": torch.exp(-0.5 * logit**2) / (t * (1 - t)) * velocity,
    }
    assert sorted(published) == sorted(CONTINUOUS)
    for name, integrand in published.items():
        own_times, weight = WEIGHTINGS[name](T_MIN, 0)
        found = own_times.density(sde, t, T_MIN) * weight(sde, t)
        if name == "vdm":  # in nats, so not up to a constant
            assert torch.allclose(found, integrand, rtol=1e-9)
        assert torch.allclose(found / found[9], integrand / integrand[9], rtol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("times", [None, *TIMES])
def test_every_weighting_and_spacing_is_unbiased_under_every_distribution(
    times: str | None, spacing: str
):
    sde = VPSDE()
    n = 20_000
    (u, du) = ends(4001)
    model = Least(sde)
    for weighting in CONTINUOUS:
        if weighting in BOUNDS and times in ("log-normal", "logit-normal"):
            continue
        config = TrainingConfig(weighting=weighting, t_min=0.03, times=times, spacing=spacing)
        objective = objective_of(config)
        if isinstance(objective.spacing, LossAware):
            places = (torch.arange(1000) + 0.5).double() / 1000
            t = objective.distribution.time(sde, places, 0.03)
            objective.spacing.observe(places, model.losses(objective, t))
            assert objective.spacing.probabilities().std() > 0 or weighting == "vdm"
        t, _, weight = objective.draw(sde, n, seeded(3))
        found = weight * model.losses(objective, t)
        own_times, weigh = WEIGHTINGS[weighting](0.03, 0)
        own = own_times.time(sde, u, 0.03)
        expected = du @ (weigh(sde, own) * model.error(own))
        error = 5 * found.std() / math.sqrt(n)
        assert abs(found.mean() - expected) < error + 1e-9 * expected
        assert error < 0.5 * expected


def test_the_exact_weighting_looks_at_the_steps_of_its_chain():
    objective = objective_of(TrainingConfig(weighting="exact", chain_steps=50))
    assert objective.distribution == LatticeTimes(50)
    t = objective.draw(VPSDE(), 50, seeded()).t
    assert torch.allclose(t, torch.arange(1, 51).double() / 50, rtol=1e-15)


def test_the_loss_aware_parts_of_a_chain_are_its_steps():
    for settings, bins in (({"weighting": "exact"}, 60), ({"objective": "vlb"}, 60), ({}, 100)):
        config = TrainingConfig(spacing="loss-aware", chain_steps=60, **settings)
        spacing = objective_of(config).spacing
        assert isinstance(spacing, LossAware)
        assert len(spacing.seen) == bins


def test_edm_takes_its_width_from_the_model():
    objective = objective_of(TrainingConfig(weighting="edm"))
    model = ScoreModel(MLP(2), VPSDE(), "edm", sigma_data=1.7)
    objective.check(model)
    assert isinstance(objective, Denoising)
    assert objective.weighting == EDM()
    objective.adopt(model)
    assert objective.weighting == EDM(1.7)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), EDMSDE(3.0), RectifiedFlow()], ids=str)
def test_explicit_and_denoising_objectives_have_one_gradient(sde: LinearSDE):
    data = GaussianMixture([0.3, 0.7], torch.tensor([[-0.8], [0.5]]), stds=[0.3, 0.4])
    exact = data.diffused(sde)

    class Affine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = torch.nn.Parameter(torch.tensor([0.7, -0.2], dtype=torch.float64))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
            return self.theta[0] * x + self.theta[1]

    model = ScoreModel(Affine(), sde)
    own_times = UniformTimes()
    n = 400_000
    x0 = data.sample(n, seeded())
    eps = torch.randn(n, 1, generator=seeded(1)).double()
    t = own_times.time(sde, Stratified().draw(n, seeded(2)).u, 0.1)
    batch = batch_of(x0, t[torch.randperm(n, generator=seeded(3))], eps)
    both = [
        Denoising(own_times, Stratified(), 0.1, likelihood),
        Explicit(own_times, Stratified(), 0.1, likelihood, exact),
    ]
    slopes = [
        torch.autograd.grad(each(model, batch).mean(), model.network.theta)[0] for each in both
    ]
    # What their difference varies by over the samples: 2 w ‖eps − E[eps|x_t]‖ · (x, 1).
    x_t = sde.perturb(x0, batch.t, eps)
    part = 2 * likelihood(sde, batch.t)[:, None] * (eps - exact.eps(x_t, batch.t))
    spread = torch.stack([(part * x_t).std(), part.std()]) / math.sqrt(n)
    assert torch.all((slopes[0] - slopes[1]).abs() < 4 * spread)
    assert torch.all(slopes[1].abs() > 20 * spread)


def test_explicit_refuses_the_oracle_of_another_sde():
    exact = GaussianMixture.ring(3).diffused(SubVPSDE())
    objective = Explicit(UniformTimes(), Stratified(), T_MIN, perceptual, exact)
    with pytest.raises(ValueError, match="exact must be diffused by the model's VPSDE"):
        objective.check(ScoreModel(MLP(2), VPSDE()))


@pytest.mark.parametrize("event", [(1,), (2,), (1, 2, 2)])
def test_optimal_transport_is_the_best_permutation(event: tuple[int, ...]):
    for seed in range(5):
        x0, eps = torch.randn(2, 6, *event, generator=seeded(seed))
        found = OptimalTransport().pair(x0, eps)
        costs = [
            (x0 - eps[list(order)]).square().sum() for order in itertools.permutations(range(6))
        ]
        assert torch.isclose((x0 - found).square().sum(), min(costs), rtol=1e-6)
        assert min(costs) < 0.9 * (x0 - eps).square().sum()
        # The same rows, each once.
        assert torch.equal(found.flatten(1).sort(0).values, eps.flatten(1).sort(0).values)
        assert sorted(map(tuple, found.flatten(1).tolist())) == sorted(
            map(tuple, eps.flatten(1).tolist())
        )


def test_a_coupled_batch_reaches_the_loss():
    objective = objective_of(TrainingConfig(coupling="optimal-transport"))
    x0 = torch.tensor([[0.0], [3.0]])
    eps = torch.tensor([[2.0], [1.0]])
    assert objective.pair(x0, eps).tolist() == [[1.0], [2.0]]
    assert objective_of(TrainingConfig()).pair(x0, eps) is eps


def points(n: int = 64) -> Dataset:
    values = GaussianMixture.ring(3, std=0.2).sample(n, seeded()).float()
    return Dataset(DataSpec("ring", (2,), None), values, None)


def test_training_with_a_coupling_is_written_on_the_model():
    model = ScoreModel(MLP(2, width=8), RectifiedFlow())
    settings = {"steps": 2, "batch_size": 8, "weighting": "flow-matching"}
    list(train(model, points(), TrainingConfig(coupling="optimal-transport", **settings)))
    assert model.coupling == "optimal-transport"
    with pytest.raises(ValueError, match="coupling must be that of the model"):
        train(model, points(), TrainingConfig(**settings))


def is_a_score(model: ScoreModel) -> bool:
    return model.coupling == "independent" and ReverseSDE(model.sde, model).score.calls == 0


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_writes_on_its_model_when_it_takes_the_first_step(tmp_path: Path, resumed: bool):
    settings = {"batch_size": 8, "weighting": "flow-matching", "coupling": "optimal-transport"}
    config = TrainingConfig(steps=3, **settings)
    model = ScoreModel(MLP(2, width=8), RectifiedFlow())
    out = tmp_path / "run"
    if resumed:
        first = train(ScoreModel(MLP(2, width=8), RectifiedFlow()), points(), config, out=out)
        next(first)
        first.close()
        assert load(out).coupling == "optimal-transport"
    else:
        objective_of(config).check(model)
        Trainer(model, points(), config)
    run = train(model, points(), config, out=out, resume=resumed)
    assert is_a_score(model) != resumed
    assert (model.data is None) != resumed
    next(run)
    assert model.coupling == "optimal-transport"
    assert model.data == points().spec
    with pytest.raises(ValueError, match="must have coupling='independent' to be a score"):
        ReverseSDE(model.sde, model)
    run.close()
    assert load(out).coupling == "optimal-transport"


def test_a_resumed_run_that_is_complete_carries_its_coupling(tmp_path: Path):
    settings = {"batch_size": 8, "weighting": "flow-matching", "coupling": "optimal-transport"}
    config = TrainingConfig(steps=1, **settings)
    out = tmp_path / "run"
    list(train(ScoreModel(MLP(2, width=8), RectifiedFlow()), points(), config, out=out))
    model = ScoreModel(MLP(2, width=8), RectifiedFlow())
    assert list(train(model, points(), config, out=out, resume=True)) == []
    assert model.coupling == "optimal-transport"


def refused_models() -> Iterator[tuple[Objective, ScoreModel]]:
    coupled = {"coupling": "optimal-transport"}
    model = ScoreModel(MLP(2), VPSDE(), "edm", sigma_data=1.7, **coupled)
    yield objective_of(TrainingConfig(weighting="edm")), model
    yield objective_of(TrainingConfig(objective="vlb")), model
    yield objective_of(TrainingConfig(objective="sliced")), model
    yield objective_of(TrainingConfig(**coupled)), ScoreModel(MLP(2, classes=3), VPSDE())
    oracle = GaussianMixture.ring(3).diffused(SubVPSDE())
    wrong = Explicit(UniformTimes(), Stratified(), T_MIN, perceptual, oracle)
    yield wrong, ScoreModel(MLP(2), VPSDE())
    learned = ScoreModel(MLP(2, outputs=4), VPSDE(), variance="learned")
    yield objective_of(TrainingConfig(weighting="edm")), learned
    yield objective_of(TrainingConfig(objective="hybrid")), ScoreModel(MLP(2), VPSDE())


def described(*modules: torch.nn.Module) -> list[dict[str, str]]:
    return [{name: repr(value) for name, value in vars(module).items()} for module in modules]


@pytest.mark.parametrize("case", range(7))
def test_a_refused_check_changes_nothing(case: int):
    objective, model = list(refused_models())[case]
    before = described(objective, model)
    with pytest.raises(ValueError, match="must"):
        objective.check(model)
    with pytest.raises(ValueError, match="must"):
        Trainer(model, points(), TrainingConfig(), objective)
    assert described(objective, model) == before


def test_a_check_that_accepts_changes_nothing_either():
    model = ScoreModel(MLP(2), VPSDE(), "edm", sigma_data=1.7)
    for settings in ({"weighting": "edm"}, {"coupling": "optimal-transport"}):
        objective = objective_of(TrainingConfig(**settings))
        before = described(objective, model)
        objective.check(model)
        assert described(objective, model) == before


def test_a_network_with_classes_is_not_coupled():
    model = ScoreModel(MLP(2, classes=3), RectifiedFlow())
    with pytest.raises(ValueError, match="coupling must be independent for a network with clas"):
        objective_of(TrainingConfig(coupling="optimal-transport")).check(model)
    objective_of(TrainingConfig()).check(model)


def test_a_variance_is_not_left_without_a_loss():
    model = ScoreModel(MLP(2, outputs=4), VPSDE(), variance="learned")
    with pytest.raises(ValueError, match="objective must be vlb or hybrid to learn a variance"):
        objective_of(TrainingConfig()).check(model)


def test_the_learned_uncertainty_becomes_the_logarithm_of_the_mean_loss():
    sde = VPSDE()
    uncertainty = Uncertainty()
    optimizer = torch.optim.Adam(uncertainty.parameters(), lr=0.02)
    t = UniformTimes().time(sde, Stratified().draw(512, seeded()).u, 1e-3)
    level = torch.sin(-sde.lambda_(t)) - 0.2 * sde.lambda_(t)
    spread = torch.tensor([0.3, 1.7]).repeat(256)  # of mean 1: ln E differs from E ln
    assert torch.equal(uncertainty(spread, sde, t), spread)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 400)
        optimizer.zero_grad()
        uncertainty(level.exp().float() * spread, sde, t).mean().backward()
        optimizer.step()
    between = uncertainty.level(sde, t)[::2] - level[::2]
    assert between.detach().square().mean().sqrt() < 0.1


def test_the_uncertainty_is_trained_beside_the_model_and_resumes_with_it(tmp_path):
    def run(out: str, *stops: int) -> ScoreModel:
        config = TrainingConfig(
            steps=8,
            batch_size=16,
            uncertainty="learned",
            weighting="edm",
            checkpoint_every=100,
            schedule="constant",
        )
        for stop in (*stops, 8):
            model = ScoreModel(MLP(2, width=8), EDMSDE(80.0), "edm")
            resume = (tmp_path / out).exists()
            for progress in train(model, points(), config, out=tmp_path / out, resume=resume):
                if progress.step == stop:
                    break
        return model

    whole = run("whole")
    parts = run("parts", 3, 5)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    state = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)
    assert state["objective"]["uncertainty.weight"].abs().min() > 0


def test_loss_aware_training_resumes_with_its_history(tmp_path):
    def run(out: str, *stops: int) -> ScoreModel:
        config = TrainingConfig(steps=40, batch_size=256, spacing="loss-aware", warmup=0)
        for stop in (*stops, 40):
            model = ScoreModel(MLP(2, width=8), VPSDE())
            resume = (tmp_path / out).exists()
            for progress in train(model, points(), config, out=tmp_path / out, resume=resume):
                if progress.step == stop:
                    break
        return model

    whole = run("whole")
    parts = run("parts", 20)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_name_of_the_settings_has_its_part():
    assert set(CHOICES["weighting"]) == set(WEIGHTINGS)
    assert set(CHOICES["times"]) == set(TIMES)
    assert set(CHOICES["spacing"]) == set(SPACINGS)
    assert set(CHOICES["coupling"]) == set(COUPLINGS)
    found = {
        name: type(objective_of(TrainingConfig(objective=name))) for name in CHOICES["objective"]
    }
    assert found == {
        "denoising": Denoising,
        "vlb": Vlb,
        "hybrid": Hybrid,
        "sliced": Sliced,
        "implicit": Implicit,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective": "vlb", "weighting": "edm"},
            "weighting must be 'perceptual' with objective='vlb', got 'edm'; drop it",
        ),
        ({"objective": "hybrid", "times": "uniform"}, "times must be None with objective='hybri"),
        (
            {"objective": "sliced", "coupling": "optimal-transport"},
            "coupling must be 'independent' with objective='sliced', got 'optimal-transport'",
        ),
        (
            {"objective": "implicit", "coupling": "optimal-transport"},
            "coupling must be 'independent' with objective='implicit'",
        ),
        (
            {"objective": "vlb", "uncertainty": "learned"},
            "uncertainty must be 'none' with objective='vlb', got 'learned'",
        ),
        ({"weighting": "exact", "times": "log-normal"}, "times must be None with weighting='exac"),
        (
            {"weighting": "vdm", "times": "logit-normal"},
            "times must be None or 'uniform' or 'likelihood' with weighting='vdm', got 'logit-n",
        ),
        (
            {"weighting": "vdm", "coupling": "optimal-transport"},
            "coupling must be 'independent' with weighting='vdm'",
        ),
        (
            {"weighting": "likelihood", "uncertainty": "learned"},
            "uncertainty must be 'none' with weighting='likelihood'",
        ),
        (
            {"spacing": "loss-aware", "uncertainty": "learned"},
            "uncertainty must be 'none' with spacing='loss-aware'",
        ),
    ],
)
def test_settings_that_make_no_sense_together_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^TrainingConfig: {message}"):
        objective_of(TrainingConfig(**settings))


def test_every_name_stands_in_the_guide(root) -> None:
    guide = (root / "docs" / "objectives.md").read_text(encoding="utf-8")
    for name in (*WEIGHTINGS, *SPACINGS, *TIMES, "optimal-transport", "learned"):
        assert f"`{name}`" in guide or f'"{name}"' in guide
