"""A model says from which time on it was trained, and nothing asks it below that by default."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    MLP,
    VPSDE,
    ClassLabels,
    Conditioned,
    Dataset,
    DataSpec,
    Gaussian,
    Guided,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreLike,
    ScoreModel,
    StaticThreshold,
    elbo,
    linear_betas,
    log_prob,
    sample,
    uniform,
)
from sde_diffusion.cli.main import main
from sde_diffusion.evaluation import EvaluationSettings, Evaluator
from sde_diffusion.sampling.encoding import decode, encode
from sde_diffusion.solvers import DDIM, AngularAdams, DormandPrince, RungeKutta4

N = 20
BETAS = linear_betas(N, 0.05, 0.4)
STD = 0.5
DATA = Gaussian(torch.zeros(2), STD**2 * torch.eye(2))
X = torch.tensor([[0.3, -0.4], [1.0, 0.2]], dtype=torch.float64)


class Eps(nn.Module):
    """E[eps | x] of N(0, std²) at the state k + 1 of the chain: of no use below k = 0."""

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        sde = ScoreModel.from_timesteps(self, BETAS).sde
        t = (k.double() + 1) / N
        a, s = (f(t).to(x.dtype)[:, None] for f in (sde.alpha, sde.sigma))
        return s * x / (a**2 * STD**2 + s**2)


class Denoiser(nn.Module):
    """E[x0 | x0 + s eps = y] of N(0, std²), trained down to ``least``: NaN below."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, y: Tensor, s: Tensor) -> Tensor:
        found = y * (STD**2 / (STD**2 + s**2))[:, None].to(y.dtype)
        return torch.where(s[:, None] < self.least * (1 - 1e-5), math.nan, found)


CHAIN = ScoreModel.from_timesteps(Eps().eval(), BETAS)
DENOISERS = {
    "edm": ScoreModel.from_denoiser(Denoiser(0.05).eval(), sigma_min=0.05),
    "vp": ScoreModel.from_denoiser(Denoiser(0.05).eval(), VPSDE(), sigma_min=0.05),
}
WRAPPED = {"chain": CHAIN, **DENOISERS}
every_denoiser = pytest.mark.parametrize("model", DENOISERS.values(), ids=DENOISERS)
every_wrapped = pytest.mark.parametrize("model", WRAPPED.values(), ids=WRAPPED)


def time(t: float | None) -> Tensor:
    assert t is not None
    return torch.tensor(t, dtype=torch.float64)


@every_wrapped
def test_the_first_time_is_that_of_the_first_step_or_of_the_least_noise(model: ScoreModel) -> None:
    t = time(model.t_min)
    if model is CHAIN:
        first = (1 - BETAS[0]).sqrt()
        assert float(model.sde.alpha(t)) == pytest.approx(float(first), rel=1e-12)
    else:
        assert float(model.sde.sigma(t) / model.sde.alpha(t)) == pytest.approx(0.05, rel=1e-9)


@every_wrapped
def test_log_prob_begins_there_and_is_the_density_there(model: ScoreModel) -> None:
    exact = DATA.diffused(model.sde)
    flow = ProbabilityFlow(model.sde, model)
    solver = DormandPrince(1e-3, 1e-3)
    found = log_prob(X, flow, solver).nats
    expected = exact.log_prob(X, time(model.t_min))
    prior = model.sde.prior()  # the only difference: what the prior knows of x_1
    horizon = time(model.sde.horizon)
    z = exact.flow(X, time(model.t_min), horizon)
    expected = expected + prior.log_prob(z) - exact.log_prob(z, horizon)
    assert torch.allclose(found, expected, atol=1e-2)
    # A grid that is given still wins, and finds what no training reached.
    early = torch.tensor([1e-5, model.sde.horizon], dtype=torch.float64)
    if model is CHAIN:
        wrong = log_prob(X, flow, solver, grid=early).nats
        assert float((wrong - found).abs().max()) > 0.03
    else:
        with pytest.raises(FloatingPointError):
            log_prob(X, flow, DormandPrince(), grid=early)


def ended(model: ScoreLike, solver: object, n: int, steps: int) -> tuple[Tensor, float]:
    """The samples of the default grid, and its last time."""
    times = list[float]()

    def note(step: int, t: Tensor, x: Tensor) -> None:  # noqa: ARG001
        times.append(float(t))

    return sample(model, solver, (n, 2), steps=steps, callback=note).x, times[-1]


@every_wrapped
def test_samples_end_there(model: ScoreModel) -> None:
    x, last = ended(model, AngularAdams(), 2000, 20)
    assert last == model.t_min
    t = time(last)
    std = (model.sde.alpha(t) ** 2 * STD**2 + model.sde.sigma(t) ** 2).sqrt()
    assert float(x.std()) == pytest.approx(float(std), rel=0.05)
    assert ended(model, DDIM(), 1, 3)[1] == model.t_min


@every_denoiser
def test_latents_are_of_the_state_there(model: ScoreModel) -> None:
    flow = ProbabilityFlow(model.sde, model)
    exact = DATA.diffused(model.sde)
    solver = DormandPrince(1e-5, 1e-5)
    latent = encode(X, flow, solver).x
    expected = exact.flow(X, time(model.t_min), time(model.sde.horizon))
    assert torch.allclose(latent, expected, rtol=1e-3)
    assert torch.allclose(decode(latent, flow, solver).x, X, atol=1e-3)


@every_denoiser
def test_bounds_begin_there(model: ScoreModel) -> None:
    # NaN below; the decoder N(x_t/alpha, s²) is the density's blur by the least noise.
    begin = elbo(X, model, draws=20)
    assert begin.t_min == model.t_min
    assert torch.equal(begin.nats, elbo(X, model, draws=20, t_min=model.t_min).nats)
    with pytest.raises(FloatingPointError):
        elbo(X, model, draws=20, t_min=1e-5)
    dataset = Dataset(DataSpec("points", (2,), None), X.float(), None)
    settings = EvaluationSettings(("flow", "elbo", "vlb"), times=4, steps=5, chain="log-snr")
    evaluator = Evaluator(model, dataset, DormandPrince(0.1, 0.1), settings)
    assert evaluator.settings.to_json()["t_min"] == model.t_min
    assert evaluator.batch(range(2)).failures == {}
    asked = Evaluator(model, dataset, DormandPrince(), EvaluationSettings(t_min=0.01))
    assert asked.settings.t_min == 0.01


def test_what_is_made_of_a_model_begins_where_it_does() -> None:
    labelled = ScoreModel.from_timesteps(Eps(), BETAS, labels=ClassLabels(2))
    model = DENOISERS["vp"]
    assert labelled.given(1).t_min == 1 / N
    assert StaticThreshold(model).t_min == model.t_min
    own = ScoreModel(MLP(2), VPSDE())
    assert Guided(own, model).t_min == model.t_min
    inner = Conditioned(Eps(), {"y": torch.zeros(2, 1)})
    assert ScoreModel.from_timesteps(inner, BETAS).t_min == 1 / N
    assert ScoreModel.from_denoiser(Denoiser(0)).t_min == pytest.approx(EDMSDE().cutoff, rel=1e-12)


def test_models_of_this_package_keep_the_ends_that_they_have() -> None:
    models: tuple[ScoreLike, ...] = (
        ScoreModel(MLP(2), VPSDE()).eval(),
        DATA.diffused(RectifiedFlow()),
        DATA.diffused(CHAIN.sde),
    )
    for model in models:
        assert model.t_min is None
        assert ended(model, DDIM(), 1, 2)[1] == model.linear_sde().cutoff
        flow = ProbabilityFlow(model.sde, model)
        grid = torch.tensor([1e-5, model.sde.horizon], dtype=torch.float64)
        solver = DormandPrince(0.1, 0.1)
        assert torch.equal(
            encode(X.float(), flow, solver).x, encode(X.float(), flow, solver, grid).x
        )


def test_a_solver_of_fixed_steps_is_told_a_grid_that_works() -> None:
    flow = ProbabilityFlow(CHAIN.sde, CHAIN)
    with pytest.raises(ValueError, match=r"pass for example uniform\(100, 0.05, 1\)"):
        log_prob(X, flow, RungeKutta4())
    found = log_prob(X, flow, RungeKutta4(), grid=uniform(19, 0.05, 1)).nats
    assert torch.allclose(found, log_prob(X, flow, DormandPrince(1e-4, 1e-4)).nats, atol=2e-2)


def test_the_command_line_takes_it_from_the_model(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    np.save("points.npy", X.float().numpy())
    (tmp_path / "a_denoiser.py").write_text(
        "import torch\nfrom sde_diffusion import ScoreModel, EDMSDE, DataSpec\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, y, s):\n"
        "        found = y / (1 + 4 * s[:, None] ** 2)\n"
        "        return torch.where(s[:, None] < .0499, float('nan'), found)\n"
        "model = ScoreModel.from_denoiser(\n"
        "    Net().eval(), sigma_min=.05, data=DataSpec('points', (2,), None)\n)\n",
        encoding="utf-8",
    )
    for line in (
        "sample --model a_denoiser:model -n 4 --out s --steps 5",
        "likelihood --model a_denoiser:model --data points.npy --out l --bound elbo --times 4",
    ):
        found = CliRunner().invoke(main, line.split())
        assert found.exit_code == 0, found.output
    settings = json.loads((tmp_path / "l" / "manifest.json").read_text("utf-8"))["settings"]
    assert settings["t_min"] == pytest.approx(0.05 / 80, rel=1e-12)
