"""The conditions of a network go with their samples wherever a batch is split."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    VPSDE,
    ClassLabels,
    Conditioned,
    Dataset,
    DataSpec,
    Guided,
    RectifiedFlow,
    ScoreLike,
    ScoreModel,
    StaticThreshold,
    guided,
    linear_betas,
    sample,
)
from sde_diffusion.evaluation import EvaluationSettings, Evaluator
from sde_diffusion.parallel.ranks import Ranks
from sde_diffusion.sampling.shared import draw
from sde_diffusion.solvers import DDIM, AdaptiveSDE, AngularAdams, DormandPrince, EulerMaruyama

N = 3
MEANS = torch.linspace(-1, 1, 2 * N).reshape(N, 2).double()
STDS = torch.linspace(0.3, 0.9, N).double()
LABELS = torch.tensor([0, 2, 1])


class Exact(nn.Module):
    """eps of data N(mean, std²), or of N(mean + label, std²), a mean and a std for each sample."""

    def __init__(self, levels: Callable[[Tensor], tuple[Tensor, Tensor]], flow: bool) -> None:
        super().__init__()
        self.levels = levels
        self.flow = flow

    def forward(self, x, c, labels=None, *, mean, std):
        a, s = (level.to(x.dtype)[:, None] for level in self.levels(c.double()))
        mean = mean.to(x.dtype) + (0 if labels is None else labels[:, None])
        std = std.to(x.dtype)[:, None]
        r = (x - a * mean) / (a**2 * std**2 + s**2)
        x0 = mean + a * std**2 * r
        return s * r - x0 if self.flow else s * r


def network(sde, time=lambda c: c, *, flow: bool = False) -> Conditioned:
    exact = Exact(lambda c: (sde.alpha(time(c)), sde.sigma(time(c))), flow)
    return Conditioned(exact, {"mean": MEANS, "std": STDS})


def chain(labels: ClassLabels | None = None) -> ScoreModel:
    sde = ScoreModel.from_timesteps(nn.Identity(), linear_betas(10)).sde
    inner = network(sde, lambda k: (k + 1) / 10)
    return ScoreModel.from_timesteps(inner, linear_betas(10), labels=labels).eval()


PLAIN = ScoreModel(network(VPSDE()), VPSDE()).eval()
MODELS: dict[str, ScoreLike] = {
    "plain": PLAIN,
    "labelled": PLAIN.given(LABELS),
    "timesteps": chain(),
    "timesteps with labels": chain(ClassLabels(3, null=0)).given(LABELS),
    "velocity": ScoreModel.from_velocity(network(RectifiedFlow(), flow=True)).eval(),
    "guided": Guided(PLAIN.given(LABELS), PLAIN, 0.5),
    "guided in one call": guided(PLAIN, LABELS, 0.5),
    "thresholded": StaticThreshold(PLAIN, -2.0, 2.0),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
SOLVERS = (
    DDIM(),
    DormandPrince(0.1, 0.1),
    AngularAdams(),
    EulerMaruyama(),
    AdaptiveSDE(0.5, 0.5),
)


def of(model: ScoreLike, *samples: int) -> ScoreLike:
    return model.rows(torch.tensor(samples))


@every_model
def test_a_sample_is_the_same_alone_and_in_its_batch(model: ScoreLike) -> None:
    for solver in SOLVERS if model is PLAIN else SOLVERS[:2]:
        settings = {"steps": 4, "seed": 3, "dtype": torch.float64}
        whole = sample(model, solver, (N, 2), **settings).x
        for i in range(N):
            alone = sample(of(model, i), solver, (1, 2), first=i, **settings).x
            assert torch.equal(alone[0], whole[i]), (solver, i)


@every_model
def test_rows_are_those_of_the_closed_form(model: ScoreLike) -> None:
    x = torch.linspace(-2, 2, 6).reshape(3, 2).double()
    t = torch.tensor(0.3, dtype=torch.float64)
    index = [2, 0, 2]
    sde = model.linear_sde()
    a, s = sde.alpha(t), sde.sigma(t)

    def score(shift: Tensor) -> Tensor:
        mean = MEANS[index] + shift[:, None]
        return -(x - a * mean) / (a**2 * STDS[index, None] ** 2 + s**2)

    name = next(name for name, one in MODELS.items() if one is model)
    shift = LABELS[index].double()
    expected = score(shift if "labels" in name or name == "labelled" else 0 * shift)
    if name == "guided":
        expected = 1.5 * score(shift) - 0.5 * score(0 * shift)
    elif name == "guided in one call":  # the label of none is −1
        expected = 1.5 * score(shift) - 0.5 * score(0 * shift - 1)
    assert torch.allclose(of(model, *index)(x, t), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["plain", "guided in one call"])
def test_bounds_of_a_data_set_do_not_depend_on_its_batches(name: str) -> None:
    model = MODELS[name]
    x = (MEANS + STDS[:, None] * torch.tensor([[0.3, -1.1]])).float()
    dataset = Dataset(DataSpec("points", (2,), None), x, None)
    found = []
    for size in (1, 2):
        settings = EvaluationSettings(
            ("flow", "elbo", "vlb"), divergence="exact", times=4, batch_size=size, steps=6
        )
        evaluator = Evaluator(model, dataset, DormandPrince(1e-3, 1e-3), settings)
        batches = [evaluator.batch(indices).values for indices in evaluator.batches()]
        columns = {key: [v for batch in batches for v in batch[key]] for key in batches[0]}
        found.append(columns)
    assert found[0] == found[1]
    if name == "plain":
        exact = torch.distributions.Normal(MEANS, STDS[:, None]).log_prob(x).sum(1)
        assert found[0]["flow_nats"] == pytest.approx(exact.tolist(), abs=3e-2)


def test_draws_in_batches_are_the_samples_of_the_whole(tmp_path) -> None:
    grid = torch.linspace(1, 1e-3, 5, dtype=torch.float64)
    parts = []
    for size in (2, N):
        with Ranks(tmp_path, 0, 1) as ranks:

            def given(first: int, count: int) -> ScoreLike:
                return PLAIN.rows(torch.arange(first, first + count))

            parts.append(draw(given, DDIM(), N, size, ranks, event=(2,), grid=grid, seed=1).x)
    whole = sample(PLAIN, DDIM(), (N, 2), grid=grid, seed=1).x
    assert torch.equal(parts[0], whole)
    assert torch.equal(parts[1], whole)


def test_another_number_of_samples_is_refused_by_name() -> None:
    x = torch.zeros(2, 2)
    t = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"Conditioned: x must have 3 samples.* model.rows"):
        PLAIN(x, t)
    with pytest.raises(ValueError, match=r"be of the 3 samples .*got sample 3"):
        of(PLAIN, 3)
    with pytest.raises(ValueError, match=r"be of the 3 samples .*got sample 7"):
        of(ScoreModel(nn.Identity(), VPSDE()).given(LABELS), 7)
    with pytest.raises(ValueError, match=r"tensors must be one or more.* got rows \[2, 3\]"):
        Conditioned(nn.Identity(), {"y": torch.zeros(3, 2), "z": torch.zeros(2)})
    with pytest.raises(TypeError, match="one row for each sample, got a 0-d tensor"):
        Conditioned(nn.Identity(), {"y": torch.tensor(1.0)})


def test_rows_share_the_weights_and_follow_the_model_to_its_dtype() -> None:
    part = of(MODELS["timesteps"], 1, 2)
    inner = part.network.network
    assert inner.network is MODELS["timesteps"].network.network.network
    assert torch.equal(inner.tensors["mean"], MEANS[[1, 2]])
    assert MODELS["timesteps"].network.network.count == N
    assert part.in_double().network.network.tensors["std"].dtype == torch.float64
