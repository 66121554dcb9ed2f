"""Every prediction is the same score in other clothes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sde_diffusion import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    DirectScore,
    Gaussian,
    GaussianMixture,
    RectifiedFlow,
    ReverseSDE,
    ScoreModel,
    SubVPSDE,
    UNet,
    lattice,
    sample,
)
from sde_diffusion.coefficients import Level
from sde_diffusion.ddpm.discrete_bound import vlb
from sde_diffusion.forms import converted, edm_form, joined
from sde_diffusion.likelihood.continuous_bound import elbo
from sde_diffusion.models.score import PREDICTIONS
from sde_diffusion.solvers import Ancestral, Heun

HALF = torch.tensor(0.5, dtype=torch.float64)
FAMILY = [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]


class Oracle(nn.Module):
    """A network that knows the truth and tells it in the asked-for prediction."""

    def __init__(self, exact, prediction: str) -> None:
        super().__init__()
        self.exact = exact
        self.prediction = prediction

    def forward(self, x, c):
        sde = self.exact.sde
        t = c.double()
        if self.prediction == "edm":  # c = ¼ ln(σ/α), and the input is c_in x/α
            t = sde.time(-4 * t)
        a, s = (f(t)[:, None].to(x.dtype) for f in (sde.alpha, sde.sigma))
        if self.prediction == "edm":
            n = s / a
            d = 0.5
            total = (n**2 + d**2).sqrt()
            y = x * total
            x0 = self.exact.denoise(y * a, t)
            return (x0 - d**2 / total**2 * y) * total / (n * d)
        eps = self.exact.eps(x, t)
        x0 = self.exact.denoise(x, t)
        return {
            "eps": eps,
            "x0": x0,
            "v": a * eps - s * x0,
            "score": -eps / s,
            "flow": eps - x0,
        }[self.prediction]


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
        ours = getattr(model, method)(x, t)
        theirs = getattr(truth, method)(x, t)
        assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance), method
        assert ours.dtype == dtype


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_eps_and_x0_recompose_the_state(prediction) -> None:
    """α x0 + σ eps = x_t whatever the network says, for any output at all."""
    generator = torch.Generator().manual_seed(0)
    out, x = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    a = 0.8
    s = 1.7

    def form(name: str) -> torch.Tensor:
        if prediction == "edm":
            return joined(edm_form(name, a, s, 0.5), out, x)
        return converted(name, prediction, out, x, Level(a, s, 0.0))

    eps, x0, v = (form(name) for name in ("eps", "x0", "v"))
    assert torch.allclose(a * x0 + s * eps, x, rtol=1e-13, atol=1e-13)
    assert torch.allclose(a * eps - s * x0, v, rtol=1e-13, atol=1e-12)
    said = {"eps": eps, "x0": x0, "v": v, "score": -eps / s, "flow": eps - x0}
    if prediction in said:  # and back to what the network said
        assert torch.allclose(said[prediction], out, rtol=1e-12, atol=1e-12)


def test_the_flow_prediction_is_the_velocity_of_rectified_flow() -> None:
    class Self(nn.Module):
        def forward(self, x, c):
            return torch.sin(x) + c[:, None]

    model = ScoreModel(Self(), RectifiedFlow(), "flow")
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.01, 0.3, 0.7, 0.999], dtype=torch.float64)
    assert torch.allclose(model.velocity(x, t), torch.sin(x) + t[:, None], rtol=1e-12, atol=1e-12)


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
    t = torch.tensor(0.5, dtype=torch.float64)
    x = torch.zeros(3, 2)
    assert model.eps(x, t)[:, 0].tolist() == [3, 1, 4]
    assert model.rows(torch.tensor([2, 0])).eps(x[:2], t)[:, 0].tolist() == [4, 3]
    one = ScoreModel(Labels(), VPSDE()).given(7)
    assert one.rows(torch.tensor([0])).eps(x[:1], t)[0].tolist() == [7, 7]


class Doubled(nn.Module):
    """sin and cos of the states, one beside the other along the channels."""

    calls = 0

    def forward(self, x, c, labels=None):
        self.calls += 1
        up = 0 if labels is None else labels.to(x.dtype).reshape(-1, *(1 for _ in x.shape[1:]))
        return torch.cat([x.sin() + up, x.cos()], 1) + 0 * c.sum()


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 5, 3)], ids=["rows", "images"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_learned_variance_is_the_second_half_of_one_pass(prediction, shape) -> None:
    class Half(nn.Module):
        def forward(self, x, c):  # noqa: ARG002
            return x.sin()

    sde = SubVPSDE()
    network = Doubled()
    model = ScoreModel(network, sde, prediction, variance="learned")
    plain = ScoreModel(Half(), sde, prediction)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    for form, method in (("eps", "eps"), ("x0", "denoise")):
        network.calls = 0
        found, fraction = model.with_fraction(form, x, t)
        assert network.calls == 1
        assert torch.equal(found, getattr(model, method)(x, t))
        assert torch.equal(found, getattr(plain, method)(x, t))
        assert torch.equal(fraction, model.fraction(x, t))
    a, s = (f(t).reshape(4, *(1 for _ in shape[1:])) for f in (sde.alpha, sde.sigma))
    seen = x / a / ((s / a) ** 2 + 0.25).sqrt() if prediction == "edm" else x
    assert torch.allclose(fraction, 0.5 * (seen.cos() + 1), rtol=1e-12, atol=1e-12)


def test_classes_are_those_that_the_network_tells() -> None:
    class Own(nn.Module):
        config = "of another kind"

    for network, classes in (
        (MLP(2, classes=3), 3),
        (MLP(2), None),
        (nn.Identity(), None),
        (Own(), None),
        (UNet(1, classes=10), 10),
    ):
        assert ScoreModel(network, VPSDE()).classes == classes
        assert DirectScore(network, VPSDE()).classes == classes


def test_labels_and_rows_keep_what_the_model_is() -> None:
    model = ScoreModel(
        Doubled(), VPSDE(), "v", sigma_data=0.3, variance="learned", coupling="optimal-transport"
    )
    x = torch.zeros(3, 2)
    t = torch.tensor(0.5, dtype=torch.float64)
    for part in (model.given(torch.tensor([3, 1, 4])), model.given(0)):
        for one in (part, part.rows(torch.tensor([0, 1, 2]))):
            assert (one.variance, one.coupling) == ("learned", "optimal-transport")
            assert (one.prediction, one.sigma_data) == ("v", 0.3)
            assert one.fraction(x, t).tolist() == [[1.0, 1.0]] * 3


def test_no_stochastic_solve_and_no_bound_of_a_model_coupled_by_transport() -> None:
    """Its velocity is right, and the flow and its likelihood with it; its eps is no score."""
    kind = {"coupling": "optimal-transport"}
    model = ScoreModel(MLP(2, width=8), VPSDE(), **kind).eval()
    x = torch.zeros(1, 2)
    text = "must have coupling='independent' to be a score, got 'optimal-transport'; use Prob"
    for what, call in (
        ("ReverseSDE: score", lambda: ReverseSDE(model.sde, model)),
        ("ReverseSDE: score", lambda: sample(model, Ancestral(), (1, 2), steps=2)),
        ("elbo: model", lambda: elbo(x, model)),
        ("vlb: model", lambda: vlb(x, model, lattice(4))),
    ):
        with pytest.raises(ValueError, match=f"^{what} {text}"):
            call()
    assert sample(model, Heun(), (1, 2), steps=2).nfe == 4


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: ScoreModel(Labels(), VPSDE(), variance="both"),
            ValueError,
            "variance must be one of fixed, learned, got both",
        ),
        (
            lambda: ScoreModel(Labels(), VPSDE(), coupling="none"),
            ValueError,
            "coupling must be one of independent, optimal-transport, got none",
        ),
        (
            lambda: ScoreModel(MLP(2), VPSDE()).fraction(torch.zeros(1, 2), HALF),
            ValueError,
            "variance must be 'learned' to have a fraction, got fixed",
        ),
        (
            lambda: ScoreModel(MLP(2), VPSDE(), variance="learned").eps(torch.zeros(3, 2), HALF),
            ValueError,
            r"network must have 4 outputs for states \(3, 2\), variance=learned, got "
            r"the shape \(3, 2\); leave out variance='learned', or build it with outputs=4",
        ),
        (
            lambda: ScoreModel(MLP(2, outputs=4), VPSDE()).eps(torch.zeros(3, 2), HALF),
            ValueError,
            r"network must have 2 outputs for states \(3, 2\), variance=fixed, got "
            r"the shape \(3, 4\); pass variance='learned', or build it with outputs=2",
        ),
        (lambda: MLP(2, outputs=0), ValueError, "outputs must be at least 1, got 0"),
        (lambda: UNet(1, outputs=0), ValueError, "outputs must be at least 1, got 0"),
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
