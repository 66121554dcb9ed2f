"""A network that cannot be called as it was says why, and what it says to type works."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    VPSDE,
    ClassLabels,
    Conditioned,
    CriticallyDampedLangevin,
    DirectScore,
    Exact,
    Guided,
    Hutchinson,
    MatrixScoreModel,
    ProbabilityFlow,
    ScoreModel,
    check_convention,
    guided,
    linear_betas,
    log_prob,
    sample,
)
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.solvers import AngularAdams, DormandPrince

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor(0.5, dtype=torch.float64)


class Net(nn.Module):
    """Weights that the state meets, and classes."""

    words = ""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 2)
        self.classes = nn.Embedding(4, 2)

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:  # noqa: ARG002
        h = self.linear(x)
        return h if y is None else h + self.classes(y)


MODELS: dict[str, Callable[[nn.Module], LearnedScore]] = {
    "timesteps": lambda net: ScoreModel.from_timesteps(net, linear_betas(1000)),
    "denoiser": ScoreModel.from_denoiser,
    "velocity": ScoreModel.from_velocity,
    "score": lambda net: ScoreModel.from_score(net, VPSDE()),
    "bare": lambda net: ScoreModel(net, VPSDE()),
    "labelled": lambda net: ScoreModel.from_timesteps(
        net, linear_betas(1000), labels=ClassLabels(3, null=3)
    ).given(2),
    "direct": lambda net: DirectScore(net, VPSDE()),
    "matrix": lambda net: MatrixScoreModel(net, CriticallyDampedLangevin()),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_weights_of_another_precision_say_what_to_type(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name](Net().to(dtype).eval())
    with pytest.raises(TypeError, match=r"the states' torch\.float32, got ") as refused:
        model(X, T)
    told = str(refused.value)
    assert told.endswith(
        f"got {dtype}; call model.float(), or pass dtype={dtype} to sample, and such states "
        "elsewhere"
    )
    assert model(X.to(dtype), T).dtype == dtype
    model.float()
    rounded = MODELS[name](Net().to(dtype).float().eval())
    assert torch.equal(model(X, T), rounded(X, T))
    with pytest.raises(TypeError, match=r"got torch\.float32; call model\.double\(\)"):
        model(X.double(), T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_told_of_wherever_a_model_goes(dtype: torch.dtype) -> None:
    labels = ClassLabels(3, null=3)
    half = ScoreModel.from_timesteps(Net().to(dtype).eval(), linear_betas(9), labels=labels)
    flow = ProbabilityFlow(half.sde, half)
    for use in (
        lambda: sample(half, AngularAdams(), (4, 2), steps=2),
        lambda: sample(guided(half, 1), AngularAdams(), (4, 2), steps=2),
        lambda: check_convention(half, X),
        lambda: log_prob(X, flow, DormandPrince()),
    ):
        with pytest.raises(TypeError, match=rf"got {dtype}; call model\.float\(\)"):
            use()
    ends = sample(half, AngularAdams(), (4, 2), steps=2, dtype=dtype).x
    wide = sample(half.float(), AngularAdams(), (4, 2), steps=2).x
    assert ends.dtype == dtype
    assert torch.allclose(ends.float(), wide, rtol=0.05, atol=0.05)


def test_networks_that_mix_precisions_by_themselves_are_left_alone() -> None:
    """As ADM's: a torso of half precision, whose input and output are float32."""

    class Mixed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.linear.half()
            self.last = nn.Linear(2, 2)

        def forward(self, x: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
            return self.last(super().forward(x.half(), c).to(x.dtype))

    net = Mixed().eval()
    assert torch.equal(ScoreModel(net, VPSDE()).eps(X, T), net(X, T))


def test_conditions_of_another_precision_say_what_to_type() -> None:
    class Adds(Net):
        def forward(self, x: Tensor, c: Tensor, *, text: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG002
            return self.linear(x) + self.linear(text)

    rows = X.flip(0)
    model = ScoreModel(Conditioned(Adds(), {"text": rows.double()}), VPSDE()).eval()
    with pytest.raises(TypeError, match=r"got torch\.float64; call model\.float\(\)$"):
        model.eps(X, T)
    assert torch.equal(model.float().eps(X, T), Adds()(X, T, text=rows))


def test_times_keep_float32_and_a_network_of_less_says_what_to_write() -> None:
    class Embeds(Net):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
            return self.linear(x) + self.linear(c[:, None].expand(x.shape))

    class Casts(Embeds):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, c.to(x.dtype))

    with pytest.raises(TypeError, match=r"times of torch\.float32 .* write t\.to\(x\.dtype\)"):
        ScoreModel(Embeds().bfloat16(), VPSDE()).eps(X.bfloat16(), T)
    found = ScoreModel(Casts().bfloat16(), VPSDE()).eps(X.bfloat16(), T)
    exact = ScoreModel(Embeds().bfloat16().float(), VPSDE()).eps(X.bfloat16().float(), T)
    assert torch.allclose(found.float(), exact, rtol=0.02, atol=0.02)


class Twice(nn.Module):
    """eps = x/2, and what may be 2v − 1 of a learned variance."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat([0.5 * x, x.tanh()], 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda net, **given: ScoreModel.from_timesteps(net, linear_betas(9), **given),
        lambda net, **given: ScoreModel(net, VPSDE(), **given),
    ],
    ids=["timesteps", "bare"],
)
def test_a_forgotten_learned_variance_is_called_by_its_argument(make) -> None:
    with pytest.raises(ValueError, match=r"got the shape \(4, 4\); pass variance=") as refused:
        sample(make(Twice()).eval(), AngularAdams(), (4, 2), steps=2)
    typed = re.search(r"variance='\w+'", str(refused.value).rpartition("; ")[2])
    right = make(Twice(), **eval(f"dict({typed[0]})"))
    assert torch.equal(right.eps(X, T), 0.5 * X)
    assert torch.allclose(right.fraction(X, T), 0.5 * (X.tanh() + 1))


@pytest.mark.parametrize(
    "make",
    [
        ScoreModel.from_denoiser,
        ScoreModel.from_velocity,
        lambda net: ScoreModel.from_score(net, VPSDE()),
        lambda net: ScoreModel.from_timesteps(net, linear_betas(9)),
    ],
    ids=["denoiser", "velocity", "score", "timesteps"],
)
def test_channels_that_no_convention_has_are_left_out_by_a_module(make) -> None:
    with pytest.raises(ValueError, match=r" a module of net\(x, t\)\[:, :2\]") as refused:
        make(Twice())(X, T)
    typed = re.search(r"net\(x, t\)\[.*?\]", str(refused.value))[0]

    class Half(Twice):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return eval(typed, {"net": super().forward, "x": x, "t": t})

    class Once(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
            return 0.5 * x

    assert torch.equal(make(Half())(X, T), make(Once())(X, T))


def test_a_variance_that_is_not_learned_is_left_out() -> None:
    model = ScoreModel(Net(), VPSDE(), variance="learned")
    with pytest.raises(ValueError, match=r"; leave out variance='learned', or build it"):
        model(X, T)
    assert torch.equal(ScoreModel(Net(), VPSDE()).eps(X, T), Net()(X, T))


# --- labels of a network that knows none for none ---


def test_guidance_without_a_null_class_is_refused_before_anything_is_drawn() -> None:
    def made(null: int | None) -> ScoreModel:
        labels = ClassLabels(3, null=null)
        return ScoreModel.from_timesteps(Net().eval(), linear_betas(9), labels=labels)

    model = made(None)
    with pytest.raises(ValueError, match=r"guided: model must know a label for none.*pass null="):
        guided(model, 1)
    with pytest.raises(ValueError, match=r"guided: model must know a label for none"):
        guided(model.given(2), 1)
    words = r"{} must have labels, .*got none; pass model\.given\(labels\), or pass null="
    with pytest.raises(ValueError, match=words.format("unconditional")):
        Guided(model.given(1), model)
    with pytest.raises(ValueError, match=words.format("conditional")):
        Guided(model, model.given(1))
    for labels in (-1, torch.tensor([0, -1, 2, 1]), 3):
        with pytest.raises(ValueError, match="must be classes 0 … 2, of a network without"):
            model.given(labels)
    # What the remedies say: the null class, or two models.
    c, u = model.given(1).eps(X, T), Net()(X, T, torch.full((4,), 3))
    assert torch.allclose(guided(made(3), 1, 2.0).eps(X, T), 3 * c - 2 * u, atol=1e-6)
    other = model.given(torch.tensor([0, 2, 1, 0]))
    mixed = Guided(model.given(1), other, 2.0)
    assert torch.allclose(mixed.eps(X, T), 3 * c - 2 * other.eps(X, T), atol=1e-6)


def test_other_errors_of_a_network_are_its_own() -> None:
    class Broken(Net):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG002
            raise RuntimeError(self.words)

    for words, net in (("of its own", Broken().half()), ("a wrong type", Broken())):
        net.words = words
        with pytest.raises(RuntimeError, match=f"^{words}$"):
            ScoreModel(net, VPSDE()).eps(X, T)


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson()])
def test_a_likelihood_says_what_a_wrong_signature_is(divergence: Exact | Hutchinson) -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor, c: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
            return x

    model = ScoreModel(Three(), VPSDE()).eval()
    flow = ProbabilityFlow(model.sde, model)
    with pytest.raises(TypeError, match=r"network must take \(x, t\) in its forward, got Three"):
        log_prob(X, flow, DormandPrince(), divergence=divergence)
