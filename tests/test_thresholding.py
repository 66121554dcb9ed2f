"""Thresholds clip the predicted data, sample by sample, and change nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    GaussianMixture,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    ScoreModel,
    SubVPSDE,
    integrate,
    sample,
    uniform,
)
from sde_diffusion.integration import dynamics_for
from sde_diffusion.models.thresholding import DynamicThreshold, StaticThreshold
from sde_diffusion.solvers import AdamsBashforth, Ancestral, DormandPrince

T = torch.tensor(0.4, dtype=torch.float64)
EVENT = (3, 4, 5)


def exact(sde=None, scale: float = 1.0):
    means = scale * torch.randn(4, *EVENT, generator=torch.Generator().manual_seed(3))
    data = GaussianMixture(torch.ones(4), means, stds=[0.5] * 4)
    return data.diffused(VPSDE() if sde is None else sde)


def states(n: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *EVENT, generator=generator, dtype=torch.float64)


def thresholds(model):
    return [StaticThreshold(model), DynamicThreshold(model, quantile=0.9)]


class Labels(torch.nn.Module):
    """A class-conditional network that predicts its label as eps."""

    def forward(self, x: torch.Tensor, c: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (torch.zeros_like(x) + labels.reshape(-1, *(1 for _ in EVENT))) * (1 + 0 * c[0])


def test_an_inactive_threshold_changes_nothing() -> None:
    model = exact()
    x = states()
    far = float(model.denoise(x, T).abs().max()) * 1.5
    for threshold in (
        StaticThreshold(model, -far, far),
        DynamicThreshold(model, 1.0, limit=far),
        DynamicThreshold(model, 0.5, limit=far),
    ):
        assert torch.equal(threshold.denoise(x, T), model.denoise(x, T))
        assert torch.allclose(threshold.eps(x, T), model.eps(x, T), rtol=0, atol=1e-13)
        assert torch.allclose(threshold.score(x, T), model.score(x, T), rtol=0, atol=1e-13)


def test_static_is_the_clipped_prediction() -> None:
    model = exact()
    x = states()
    x0 = model.denoise(x, T)
    assert bool((x0 > 0.7).any())
    assert bool((x0 < -0.2).any())
    expected = torch.from_numpy(np.clip(x0.numpy(), -0.2, 0.7))
    assert torch.equal(StaticThreshold(model, -0.2, 0.7).denoise(x, T), expected)


@pytest.mark.parametrize("quantile", [0.003, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("limit", [1.0, 0.3])
def test_dynamic_is_imagens_rule_with_numpys_quantile(quantile, limit) -> None:
    model = exact(scale=2.0)
    x = states()
    found = DynamicThreshold(model, quantile, limit).denoise(x, T)
    for x0, ours in zip(model.denoise(x, T).numpy(), found.numpy(), strict=True):
        s = max(np.quantile(np.abs(x0), quantile), limit)
        assert np.allclose(ours, np.clip(x0, -s, s) / s * limit, rtol=1e-13, atol=0)
        assert np.abs(ours).max() <= limit
        assert (np.abs(ours) == limit).any() == (np.abs(x0) > s).any() or quantile == 1


def test_one_number_a_sample_is_its_own_quantile() -> None:
    data = GaussianMixture(torch.ones(1), torch.full((1, 1), 5.0), stds=[0.1]).diffused(VPSDE())
    x = torch.full((3, 1), 2.0, dtype=torch.float64)
    found = DynamicThreshold(data).denoise(x, T)
    assert torch.allclose(found, torch.ones(3, 1).double(), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "sde", [VPSDE(), SubVPSDE(), EDMSDE(), RectifiedFlow()], ids=lambda sde: type(sde).__name__
)
def test_score_and_eps_belong_to_the_clipped_prediction(sde) -> None:
    """x = alpha x̂0 + sigma eps and score = −eps/sigma, with one time or one a sample."""
    x = states()
    for t in (T, torch.linspace(0.1, 0.9, len(x), dtype=torch.float64)):
        for model in thresholds(exact(sde, scale=3.0)):
            shape = (-1, 1, 1, 1) if t.ndim else ()
            alpha, sigma = sde.alpha(t).reshape(shape), sde.sigma(t).reshape(shape)
            x0 = model.denoise(x, t)
            eps = model.eps(x, t)
            assert torch.allclose(alpha * x0 + sigma * eps, x, rtol=0, atol=1e-12)
            assert torch.allclose(model(x, t), -eps / sigma, rtol=1e-13)
            assert float(x0.abs().max()) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_precisions_are_those_of_float64_rounded(dtype) -> None:
    x = states()
    for model in thresholds(exact(scale=3.0)):
        low, high = model.denoise(x.to(dtype), T), model.denoise(x.to(dtype).double(), T)
        assert low.dtype == dtype
        assert torch.allclose(low.double(), high, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    x = states()
    x[0] *= 100
    for model in thresholds(exact(scale=3.0)):
        whole = model.score(x, T)
        parts = torch.cat([model.score(part, T) for part in x.split([1, 3, 2])])
        assert torch.equal(whole, parts)


def test_labels_follow_their_samples_and_training_mode_shows() -> None:
    network = ScoreModel(Labels(), VPSDE()).given(torch.arange(6))
    x = states()
    index = torch.tensor([4, 1])
    for model in thresholds(network):
        assert torch.equal(model.rows(index).score(x[index], T), model.score(x, T)[index])
        assert type(model.rows(index)) is type(model)
        assert model.in_training()
    for model in thresholds(exact()):
        assert model.rows(index) is model
        assert not model.in_training()
        assert model.device == torch.device("cpu")


@pytest.mark.parametrize("solver", [Ancestral(0.0), AdamsBashforth(2), DormandPrince(1e-4, 1e-4)])
def test_a_solver_ends_inside_the_limits_after_a_tweedie_step(solver) -> None:
    """The data lie around ±3, outside the limits: without a threshold the samples do."""
    inner = exact(scale=3.0)
    grid = uniform(10)
    free = sample(inner, solver, (6, *EVENT), grid=grid, dtype=torch.float64).x
    assert float(free.abs().max()) > 2
    for model in thresholds(inner):
        x = integrate(dynamics_for(solver, model.sde, model), solver, states(), grid).x
        assert float(x.abs().max()) < 1.2
        assert float(model.denoise(x, grid[-1]).abs().max()) <= 1


def test_a_threshold_does_not_hide_that_its_models_eps_is_no_score() -> None:
    for coupling in ("independent", "optimal-transport"):
        for model in thresholds(ScoreModel(Labels(), VPSDE(), coupling=coupling)):
            for score in (model, StaticThreshold(model), ProbabilityFlow(model.sde, model).score):
                if coupling == "independent":
                    ReverseSDE(model.sde, score)
                    continue
                with pytest.raises(ValueError, match="score must have coupling='independent'"):
                    ReverseSDE(model.sde, score)
    for model in thresholds(exact()):
        assert model.coupling == "independent"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: StaticThreshold(len), TypeError, "StaticThreshold: model must be a s"),
        (lambda: DynamicThreshold(VPSDE()), TypeError, "got VPSDE; pass a ScoreModel"),
        (lambda: StaticThreshold(exact(), 1.0, -1.0), ValueError, "low < high, got 1.0, -1.0"),
        (lambda: StaticThreshold(exact(), float("nan")), ValueError, "satisfy low < high"),
        (lambda: DynamicThreshold(exact(), 0.0), ValueError, r"quantile must lie in \(0, 1\]"),
        (lambda: DynamicThreshold(exact(), 99.5), ValueError, "got 99.5; pass .995"),
        (lambda: DynamicThreshold(exact(), limit=0.0), ValueError, "limit must be finite and ab"),
    ],
)
def test_bad_thresholds_are_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
