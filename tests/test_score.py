"""Every prediction is the same score in other clothes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    Gaussian,
    GaussianMixture,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
)
from sde_diffusion.coefficients import Level
from sde_diffusion.score import PREDICTIONS, converted, edm_form, joined

FAMILY = [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]


class Oracle(nn.Module):
    """A network that knows the truth and tells it in the asked-for prediction."""

    def __init__(self, exact, prediction: str) -> None:
        super().__init__()
        self.exact, self.prediction = exact, prediction

    def forward(self, x, c):
        sde = self.exact.sde
        t = c.double()
        if self.prediction == "edm":  # c = ¼ ln(σ/α), and the input is c_in x/α
            t = sde.time(-4 * t)
        a, s = (f(t)[:, None].to(x.dtype) for f in (sde.alpha, sde.sigma))
        if self.prediction == "edm":
            n, d = s / a, 0.5
            total = (n**2 + d**2).sqrt()
            y = x * total
            x0 = self.exact.denoise(y * a, t)
            return (x0 - d**2 / total**2 * y) * total / (n * d)
        eps, x0 = self.exact.eps(x, t), self.exact.denoise(x, t)
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps / s}[self.prediction]


def exact(sde):
    means = torch.tensor([[1.0, 0.0], [-0.5, 0.5]])
    return GaussianMixture([1, 2], means, stds=[0.4, 0.3]).diffused(sde)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_the_exact_score(prediction, sde, dtype, tolerance) -> None:
    truth = exact(sde)
    model = ScoreModel(Oracle(truth, prediction), sde, prediction)
    t = torch.linspace(0.2, 0.8, 7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = (sde.sigma(t) + 1)[:, None] * torch.randn(7, 2, generator=generator, dtype=torch.float64)
    x = x.to(dtype)
    for method in ("score", "eps", "denoise", "velocity", "__call__"):
        ours, theirs = getattr(model, method)(x, t), getattr(truth, method)(x, t)
        assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance), method
        assert ours.dtype == dtype


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_eps_and_x0_recompose_the_state(prediction) -> None:
    """α x0 + σ eps = x_t whatever the network says, for any output at all."""
    generator = torch.Generator().manual_seed(0)
    out, x = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    a, s = 0.8, 1.7

    def form(name: str) -> torch.Tensor:
        if prediction == "edm":
            return joined(edm_form(name, a, s, 0.5), out, x)
        return converted(name, prediction, out, x, Level(a, s, 0.0))

    eps, x0, v = (form(name) for name in ("eps", "x0", "v"))
    assert torch.allclose(a * x0 + s * eps, x, rtol=1e-13, atol=1e-13)
    assert torch.allclose(a * eps - s * x0, v, rtol=1e-13, atol=1e-12)


def test_optimal_edm_network_on_matching_normal_data_is_zero() -> None:
    """On N(0, σ_data²) the preconditioning alone is the exact denoiser."""

    class Zero(nn.Module):
        def forward(self, x, c):  # noqa: ARG002
            return torch.zeros_like(x)

    for sde in FAMILY:
        model = ScoreModel(Zero(), sde, "edm", sigma_data=0.5)
        truth = Gaussian(torch.zeros(3), 0.25 * torch.eye(3)).diffused(sde)
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        t = torch.tensor(0.4, dtype=torch.float64)
        assert torch.allclose(model.denoise(x, t), truth.denoise(x, t), rtol=1e-10, atol=1e-13)


class Labels(nn.Module):
    def forward(self, x, c, labels):  # noqa: ARG002
        return labels.to(x.dtype)[:, None].expand_as(x)


def test_labels_reach_the_network_row_by_row() -> None:
    model = ScoreModel(Labels(), VPSDE()).given(torch.tensor([3, 1, 4]))
    t, x = torch.tensor(0.5, dtype=torch.float64), torch.zeros(3, 2)
    assert model.eps(x, t)[:, 0].tolist() == [3, 1, 4]
    assert model.rows(torch.tensor([2, 0])).eps(x[:2], t)[:, 0].tolist() == [4, 3]
    one = ScoreModel(Labels(), VPSDE()).given(7)
    assert one.rows(torch.tensor([0])).eps(x[:1], t)[0].tolist() == [7, 7]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: ScoreModel(len, VPSDE()), TypeError, "network must be a torch.nn.Module"),
        (lambda: ScoreModel(Labels(), 3), TypeError, "sde must be a LinearSDE, got int"),
        (lambda: ScoreModel(Labels(), VPSDE(), "noise"), ValueError, "one of eps, x0, v, score"),
        (
            lambda: ScoreModel(Labels(), VPSDE(), sigma_data=0.0),
            ValueError,
            "sigma_data must be finite and above 0",
        ),
        (
            lambda: ScoreModel(Labels(), VPSDE()).given(1).eps(torch.zeros(2, 2).long(), None),
            TypeError,
            "x must have a floating-point dtype, got torch.int64",
        ),
        (
            lambda: ScoreModel(Labels(), VPSDE()).given(1).eps(torch.zeros(2), None),
            ValueError,
            r"shape \(B, \*event\)",
        ),
    ],
)
def test_bad_models_are_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
