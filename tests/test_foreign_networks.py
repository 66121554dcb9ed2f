"""Networks of other programs' conventions give the score that a closed form gives.

Each network here is written in its own program's letters, with numpy's cumulative products and no
SDE of ours: E[x0 | x_t] of a mixture of two normals at alpha and sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    ClassLabels,
    DiscreteBeta,
    GaussianMixture,
    RectifiedFlow,
    ScoreModel,
    check_convention,
    cosine_betas,
    linear_betas,
    load,
)

D: Final = 3
N: Final = 1000
MEANS = torch.tensor([[-0.6, 0.2, 0.5], [0.7, -0.4, 0.1]], dtype=torch.float64)
SPREAD: Final = 0.3
MIXTURE = GaussianMixture([0.5, 0.5], MEANS, stds=[SPREAD] * 2)
BETAS = linear_betas(N)
LATTICE = torch.arange(1, N + 1, dtype=torch.float64) / N


def posterior(x: Tensor, alpha: Tensor, sigma: Tensor, spread: float = SPREAD) -> Tensor:
    """E[x0 | x = alpha x0 + sigma eps], alpha and sigma of shape (B,)."""
    a = alpha[:, None].to(x.dtype)
    s2 = sigma[:, None].to(x.dtype) ** 2
    total = a**2 * spread**2 + s2
    means = MEANS.to(x.dtype)
    square = ((x[:, None] - a[:, None] * means) ** 2).sum(2)
    share = torch.softmax(-0.5 * square / total, 1)
    each = (s2[:, None] * means + a[:, None] * spread**2 * x[:, None]) / total[:, None]
    return (share[:, :, None] * each).sum(1)


def predicted(
    kind: str, x: Tensor, alpha: Tensor, sigma: Tensor, spread: float = SPREAD
) -> Tensor:
    a = alpha[:, None].to(x.dtype)
    s = sigma[:, None].to(x.dtype)
    x0 = posterior(x, alpha, sigma, spread)
    eps = (x - a * x0) / s
    return {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps / s}[kind]


class Chain(nn.Module):
    """A DDPM's network: net(x, k) with k from 0, alpha-bar by a cumulative product."""

    def __init__(
        self, betas: Tensor, kind: str = "eps", slip: int = 0, spread: float = SPREAD
    ) -> None:
        super().__init__()
        self.bar = torch.from_numpy(np.cumprod(1 - betas.numpy()))
        self.kind = kind
        self.slip = slip
        self.spread = spread

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        low = (k.double() + self.slip).clamp(0, N - 1)
        # Between two indices, the logarithm of alpha-bar goes in a straight line.
        below = low.floor().long()
        above = (below + 1).clamp(max=N - 1)
        logs = torch.lerp(self.bar.log()[below], self.bar.log()[above], low - below)
        alpha = (0.5 * logs).exp()
        return predicted(self.kind, x, alpha, (-logs.expm1()).sqrt(), self.spread)


def states(b: int, seed: int = 0) -> Tensor:
    return torch.randn(b, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(sde: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return MIXTURE.diffused(sde).score


@pytest.mark.parametrize("betas", [BETAS, cosine_betas(N)], ids=["linear", "cosine"])
@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
def test_a_network_of_timesteps_is_exact_on_the_lattice_and_between(betas, kind) -> None:
    model = ScoreModel.from_timesteps(Chain(betas, kind), betas, kind)
    times = torch.cat([LATTICE[::50], LATTICE[:3], LATTICE[10:200:7] + 0.37 / N])
    x = states(len(times))
    expected = exact(VPSDE(DiscreteBeta(betas)))(x, times)
    assert torch.allclose(model.score(x, times), expected, rtol=1e-8, atol=1e-8)
    # In float32 t = i/N is rounded; the index handed on is still i − 1.
    single = model.score(x.float(), times)
    assert torch.allclose(single.double(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_timestep_reaches_the_network_in_every_dtype(dtype) -> None:
    seen = []

    class Seen(nn.Module):
        def forward(self, x: Tensor, k: Tensor) -> Tensor:
            seen.append(k)
            return x

    x = torch.zeros(N, 1, dtype=dtype)
    for index_dtype in (torch.float32, torch.long):
        model = ScoreModel.from_timesteps(Seen(), BETAS, dtype=index_dtype)
        model.eps(x, LATTICE)
        assert seen[-1].tolist() == list(range(N))


@pytest.mark.parametrize("slip", [-1, 1])
def test_an_index_that_is_off_by_one_is_seen(slip) -> None:
    """The planted mistake moves the score by more than what the tests above allow."""
    model = ScoreModel.from_timesteps(Chain(BETAS, "eps", slip), BETAS)
    times = LATTICE[:200:10]
    x = states(len(times))
    expected = exact(VPSDE(DiscreteBeta(BETAS)))(x, times)
    assert (model.score(x, times) / expected - 1).abs().max() > 1e-2


def respaced(count: int) -> tuple[Tensor, Tensor]:
    """Return the betas and the map of a chain respaced as improved-diffusion and ADM do it."""
    kept = torch.from_numpy(np.linspace(0, N - 1, count).round())
    bar = torch.from_numpy(np.cumprod(1 - BETAS.numpy()))[kept.long()]
    return 1 - bar / torch.cat([torch.ones(1), bar[:-1]]), kept


@pytest.mark.parametrize("index_dtype", [torch.float32, torch.long])
def test_a_respaced_chain_calls_its_network_with_the_map(index_dtype) -> None:
    betas, kept = respaced(50)
    model = ScoreModel.from_timesteps(Chain(BETAS), betas, timesteps=kept, dtype=index_dtype)
    x = states(50)
    bar = torch.from_numpy(np.cumprod(1 - BETAS.numpy()))[kept.long()]
    sigma = (1 - bar).sqrt()
    expected = predicted("score", x, bar.sqrt(), sigma)
    times = torch.arange(1, 51, dtype=torch.float64) / 50
    assert torch.allclose(model.score(x, times), expected, rtol=1e-8, atol=1e-8)
    unmapped = ScoreModel.from_timesteps(Chain(BETAS), betas, dtype=index_dtype)
    assert not torch.allclose(unmapped.score(x, times), expected, rtol=1e-2, atol=1e-2)


def test_between_the_timesteps_of_a_map_they_go_in_straight_lines() -> None:
    class Seen(nn.Module):
        def forward(self, x: Tensor, k: Tensor) -> Tensor:  # noqa: ARG002
            return k[:, None]

    betas, kept = respaced(4)
    assert kept.tolist() == [0, 333, 666, 999]
    model = ScoreModel.from_timesteps(Seen(), betas, timesteps=kept)
    times = torch.tensor([0.1, 0.25, 0.375, 0.5, 0.9, 1.0], dtype=torch.float64)
    x = torch.zeros(6, 1, dtype=torch.float64)
    expected = torch.tensor([0, 0, 166.5, 333, 865.8, 999], dtype=torch.float64)
    assert torch.allclose(model.eps(x, times)[:, 0], expected, rtol=1e-12)


def test_betas_that_are_no_row_are_refused_by_name() -> None:
    for wrong in (torch.tensor(0.1), torch.zeros(0), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="betas must be one non-empty row of numbers"):
            ScoreModel.from_timesteps(Chain(BETAS), wrong)


def test_timesteps_of_another_chain_are_refused() -> None:
    for wrong in (torch.arange(3.0), torch.tensor([0.0, 2.0, 1.0, 3.0]), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match="timesteps must be 4 rising numbers, one for each"):
            ScoreModel.from_timesteps(Chain(BETAS), linear_betas(4), timesteps=wrong)
    with pytest.raises(TypeError, match="timesteps must be a tensor, got list"):
        ScoreModel.from_timesteps(Chain(BETAS), linear_betas(2), timesteps=[0, 1])  # type: ignore[arg-type]


def test_a_denoiser_is_exact_under_its_own_sde_and_under_vp() -> None:
    class Denoiser(nn.Module):
        def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
            return posterior(y, torch.ones_like(sigma), sigma)

    times = torch.linspace(0.05, 1, 9, dtype=torch.float64)
    x = states(9)
    for model, sde in (
        (ScoreModel.from_denoiser(Denoiser()), EDMSDE()),
        (ScoreModel.from_denoiser(Denoiser(), VPSDE()), VPSDE()),
    ):
        assert model.sde == sde
        assert torch.allclose(model.score(x, times), exact(sde)(x, times), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("noise_at", "scale"), [(1, 1.0), (1, 1000.0), (0, 1.0)])
def test_a_velocity_is_exact_whichever_end_its_data_stand_at(noise_at, scale) -> None:
    class Velocity(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            tau = c / scale
            alpha, sigma = (1 - tau, tau) if noise_at == 1 else (tau, 1 - tau)
            x0 = posterior(x, alpha, sigma)
            eps = (x - alpha[:, None] * x0) / sigma[:, None]
            return eps - x0 if noise_at == 1 else x0 - eps

    model = ScoreModel.from_velocity(Velocity(), noise_at=noise_at, scale=scale)
    times = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    x = states(9)
    expected = exact(RectifiedFlow())(x, times)
    assert torch.allclose(model.score(x, times), expected, rtol=1e-8, atol=1e-8)
    assert torch.allclose(
        model.velocity(x, times), MIXTURE.diffused(RectifiedFlow()).velocity(x, times), rtol=1e-8
    )


def test_a_score_of_its_own_time_is_called_at_it() -> None:
    sde = EDMSDE(50.0)

    class Score(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return predicted("score", x, torch.ones_like(sigma), sigma)

    model = ScoreModel.from_score(Score(), sde, sde.sigma)
    times = torch.linspace(0.001, 1, 9, dtype=torch.float64)
    x = states(9)
    assert torch.allclose(model.score(x, times), exact(sde)(x, times), rtol=1e-9)


class Classes(nn.Module):
    """Returns its labels, in the shape of x."""

    def forward(self, x: Tensor, k: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y[:, None].to(x.dtype).expand(x.shape)


def test_labels_reach_the_network_and_none_is_its_own_null_class() -> None:
    t = torch.tensor(0.5, dtype=torch.float64)
    x = torch.zeros(3, D)
    for labels in (ClassLabels(10, null=10), ClassLabels(10, null=10, keyword="y")):
        model = ScoreModel.from_timesteps(Classes(), BETAS, labels=labels)
        assert model.classes == 10
        assert model.eps(x, t)[:, 0].tolist() == [10, 10, 10]
        assert model.given(torch.tensor([4, -1, 0])).eps(x, t)[:, 0].tolist() == [4, 10, 0]


def test_labels_of_no_class_are_refused_by_number() -> None:
    model = load("digits")
    for wrong in (10, -2, torch.tensor([0, 10])):
        with pytest.raises(ValueError, match=r"labels must be classes 0 … 9, or -1 for none, got"):
            model.given(wrong)
    t = torch.tensor(0.5, dtype=torch.float64)
    x = torch.ones(2, 1, 8, 8)
    none = model.given(torch.tensor([-1, 9])).eps(x, t)
    assert torch.allclose(none[:1], model.eps(x, t)[:1], atol=1e-5)


def test_a_network_without_a_null_class_refuses_to_be_called_without_labels() -> None:
    model = ScoreModel.from_timesteps(Classes(), BETAS, labels=ClassLabels(10))
    t = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"labels must be classes 0 … 9.*call model\.given"):
        model.eps(torch.zeros(2, D), t)
    assert model.given(3).eps(torch.zeros(2, D), t).unique().tolist() == [3]


# --- check_convention ---

DATA = MIXTURE.sample(400, torch.Generator().manual_seed(1))
# An index shows where data are thinner than the noise of the first steps, as images are.
NARROW = GaussianMixture([0.5, 0.5], MEANS, stds=[0.004] * 2).sample(
    400, torch.Generator().manual_seed(2)
)


def chain(
    kind: str = "eps", slip: int = 0, read: str | None = None, spread: float = SPREAD
) -> ScoreModel:
    return ScoreModel.from_timesteps(Chain(BETAS, kind, slip, spread), BETAS, read or kind)


class Turned(nn.Module):
    """Another network with something about it changed."""

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return self.call(self.network, x, k)


def turned(call: Callable[..., Tensor]) -> ScoreModel:
    return ScoreModel.from_timesteps(Turned(Chain(BETAS), call), BETAS)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
def test_a_right_convention_fits(kind) -> None:
    found = check_convention(chain(kind), DATA)
    assert found.fits, str(found)


MISTAKES = {
    'prediction "eps"': (chain("eps", read="v"), DATA),
    'prediction "v"': (chain("v", read="eps"), DATA),
    'prediction "x0"': (chain("x0", read="eps"), DATA),
    "the other sign": (turned(lambda net, x, k: -net(x, k)), DATA),
    "time from noise to data": (turned(lambda net, x, k: net(x, N - 2 - k)), DATA),
    "index k + 1 for k": (chain(slip=-1, spread=0.004), NARROW),
    "index k - 1 for k": (chain(slip=1, spread=0.004), NARROW),
    "t for the index": (turned(lambda net, x, k: net(x, N * k - 1)), DATA),
    "data in [0, 1], not [-1, 1]": (chain(), 2 * DATA - 1),
    "data in [-1, 1], not [0, 1]": (chain(), 0.5 * (DATA + 1)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_called_by_its_name(name) -> None:
    model, data = MISTAKES[name]
    found = check_convention(model, data)
    assert not found.fits
    assert found.best.name == name, str(found)


@pytest.mark.parametrize("noise_at", [0, 1])
def test_a_velocity_of_the_other_end_is_called_by_its_name(noise_at) -> None:
    """Exact for N(0, I/4): noise is at t = 1, or the time and the sign are turned."""

    class Velocity(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            t = (t if noise_at else 1 - t)[:, None]
            v = (t - (1 - t) / 4) / (t**2 + (1 - t) ** 2 / 4) * x
            return v if noise_at else -v

    data = 0.5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    assert check_convention(ScoreModel.from_velocity(Velocity(), noise_at=noise_at), data).fits
    found = check_convention(ScoreModel.from_velocity(Velocity(), noise_at=1 - noise_at), data)
    assert found.best.name == "noise at the other end of time"


def test_data_of_another_kind_fit_no_reading() -> None:
    found = check_convention(chain(), 5 + 3 * DATA)
    assert not found.fits
    assert found.best.name == "as given" or not str(found).endswith("fits.")


def test_on_gaussian_data_the_exact_network_is_the_linear_prediction() -> None:

    class Normal(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            v = 0.25
            return x * (v / (v + sigma**2))[:, None]

    data = 0.5 * states(20000, 7)
    found = check_convention(ScoreModel.from_denoiser(Normal()), data, times=(0.002, 0.01))
    for error in found.readings[0].mean:
        assert error == pytest.approx(1, rel=0.02)
