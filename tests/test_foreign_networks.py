"""Networks of other programs' conventions give the score that a closed form gives.

Each network here is written in its own program's letters, with numpy's cumulative products and no
SDE of ours: E[x0 | x_t] of a mixture of two normals at alpha and sigma.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sde_diffusion
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
from sde_diffusion.models.conventions import ConventionCheck, Reading

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


class ExactClasses(nn.Module):
    """The exact eps of the chain at data N(y, .3²), for the labels y of 0 and 1."""

    def forward(self, x: Tensor, k: Tensor, y: Tensor) -> Tensor:
        at = torch.cumprod(1 - BETAS, 0)[k.round().long()][:, None].to(x)
        mean, noise = at.sqrt() * y[:, None].to(x), 1 - at
        return noise.sqrt() * (x - mean) / (at * 0.3**2 + noise)


def test_the_convention_of_a_network_without_a_null_class_is_checked_at_given_labels() -> None:
    model = ScoreModel.from_timesteps(ExactClasses(), BETAS, labels=ClassLabels(2))
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (500,), generator=generator)
    x = y[:, None] + 0.3 * torch.randn(500, 2, generator=generator)
    assert check_convention(model.given(y), x).fits
    wrong = ScoreModel.from_timesteps(ExactClasses(), BETAS, "v", labels=ClassLabels(2))
    assert check_convention(wrong.given(y), x).best.name == 'prediction "eps"'


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


def test_a_reading_beyond_a_networks_table_is_left_out() -> None:
    """A table of 100 steps has none for the index 1000 k/N."""
    betas = linear_betas(100, 1e-3, 0.2)
    bar = torch.cumprod(1 - betas, 0)

    class Table(nn.Module):
        def forward(self, x: Tensor, k: Tensor) -> Tensor:
            alpha = bar[k].sqrt()
            return predicted("eps", x, alpha, (1 - alpha**2).sqrt())

    model = ScoreModel.from_timesteps(Table(), betas, dtype=torch.long)
    found = check_convention(model, DATA)
    assert found.fits, str(found)
    names = [reading.name for reading in found.readings]
    assert "1000 k/N for the index" not in names
    assert 'prediction "v"' in names


class Rescaled(nn.Module):
    """A chain's network that counts as if there were ``count`` steps, or from another one."""

    def __init__(self, call: Callable[[Tensor], Tensor], **settings: Any) -> None:
        super().__init__()
        self.network = Chain(BETAS, **settings)
        self.call = call

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return self.network(x, self.call(k.double()))


def negated(network: nn.Module) -> nn.Module:
    return Turned(network, lambda net, x, k: -net(x, k))


def turned_round(network: nn.Module) -> nn.Module:
    return Turned(network, lambda net, x, k: net(x, N - 1 - k))


# Network, the arguments it is given, the data, the name of what is wrong.
MISTAKES: dict[str, tuple[nn.Module, dict[str, Any], Tensor, str]] = {
    "eps": (Chain(BETAS), {"prediction": "v"}, DATA, 'prediction "eps"'),
    "v": (Chain(BETAS, "v"), {}, DATA, 'prediction "v"'),
    "x0": (Chain(BETAS, "x0"), {}, DATA, 'prediction "x0"'),
    "score": (Chain(BETAS, "score"), {}, DATA, 'prediction "score"'),
    "sign": (negated(Chain(BETAS)), {}, DATA, "the other sign"),
    "turned": (turned_round(Chain(BETAS)), {}, DATA, "time from noise to data"),
    "from 1": (Rescaled(lambda k: k - 1, spread=0.004), {}, NARROW, "index k + 1 for k"),
    "from -1": (Rescaled(lambda k: k + 1, spread=0.004), {}, NARROW, "index k - 1 for k"),
    "of t": (Rescaled(lambda k: N * k - 1), {}, DATA, "t for the index"),
    "[0, 1]": (Chain(BETAS), {}, 2 * DATA - 1, "data in [0, 1], not [-1, 1]"),
    "[-1, 1]": (Chain(BETAS), {}, 0.5 * (DATA + 1), "data in [-1, 1], not [0, 1]"),
    "0 … 255": (Chain(BETAS), {}, DATA / 127.5 - 1, "data in 0 … 255"),
    "not 0 … 255": (Chain(BETAS), {}, 127.5 * (DATA + 1), "data in [-1, 1], not 0 … 255"),
}


def remedied(
    network: nn.Module, make: Callable[..., ScoreModel], given: dict[str, Any], remedy: str
) -> ScoreModel:
    """Return the model after what a remedy says is typed."""
    names = {"torch": torch, "net": network, **vars(sde_diffusion)}
    if remedy.startswith("a module of "):
        written = compile(remedy.removeprefix("a module of "), "remedy", "eval")
        wrapped = Turned(
            network,
            lambda net, x, c: eval(written, {"net": net, "x": x, "k": c, "t": c, "sigma": c}),
        )
        return make(wrapped, **given)
    if remedy.startswith("from_score("):
        found: ScoreModel = eval(f"ScoreModel.{remedy}", names | given)
        return found
    return make(network, **given | eval(f"dict({remedy})", names | given))


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_called_by_its_name_and_its_remedy_fits(name: str) -> None:
    network, given, data, called = MISTAKES[name]

    def made(network: nn.Module, **given: Any) -> ScoreModel:
        return ScoreModel.from_timesteps(network, BETAS, **given)

    found = check_convention(made(network, **given), data)
    assert not found.fits
    assert found.best.name == called, str(found)
    assert str(found).endswith(f"this does better: {called}: {found.best.remedy}.")
    scaling = re.fullmatch(r"DataSpec\(…, scaling=(.*)\)", found.best.remedy)
    if scaling is None:
        right = remedied(network, made, given, found.best.remedy)
    else:  # from where the data are now to where they should be
        right = made(network, **given)
        low, high = (float(side) for side in re.findall(r"-?\d+", scaling[1]))
        ranges = {"[0, 1]": (0.0, 1.0), "0 … 255": (0.0, 255.0)}
        old = ranges.get(called.partition("not ")[2], (-1.0, 1.0))
        data = low + (high - low) * (data - old[0]) / (old[1] - old[0])
    assert check_convention(right, data).fits, str(check_convention(right, data))


KEPT: Final = torch.arange(0, N, 20, dtype=torch.float64)


@pytest.mark.parametrize(
    ("named", "index", "right", "called"),
    [
        (LATTICE, lambda t: N * t, LATTICE - 1 / N, "index k - 1 for k"),
        (LATTICE - 1 / N, lambda t: N * t - 1, LATTICE, "index k + 1 for k"),
        (KEPT, lambda k: k - 20, KEPT + 20, "index k + 1 for k"),
        (KEPT, lambda k: k - 1, KEPT + 1, "timesteps + 1"),
        (KEPT, lambda k: k + 1, KEPT - 1, "timesteps - 1"),
    ],
    ids=["k/N", "(k + 1)/N", "one of those kept", "one of all, later", "one of all, earlier"],
)
def test_a_slip_in_a_map_is_a_step_of_that_map(named, index, right, called) -> None:
    network = Rescaled(index, spread=0.004)
    bar = torch.cumprod(1 - BETAS, 0)[:: N // len(named)]
    betas = 1 - bar / torch.cat([torch.ones(1), bar[:-1]])

    def made(network: nn.Module, timesteps: Tensor) -> ScoreModel:
        return ScoreModel.from_timesteps(network, betas, timesteps=timesteps)

    found = check_convention(made(network, named), NARROW)
    assert found.best.name == called, str(found)
    other = remedied(network, made, {"timesteps": named}, found.best.remedy)
    assert check_convention(other, NARROW).fits
    assert torch.allclose(other.network.timesteps, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [250, 4000])
def test_a_chain_that_counts_in_thousandths_is_called_by_its_name(count: int) -> None:
    betas = linear_betas(count, 0.1 / count, 20 / count)
    chain = Chain(betas)
    chain.bar = torch.cumprod(1 - betas, 0)

    class Thousandths(nn.Module):
        def forward(self, x: Tensor, k: Tensor) -> Tensor:
            alpha = chain.bar[(k * count / 1000).round().long().clamp(0, count - 1)].sqrt()
            return predicted("eps", x, alpha, (1 - alpha**2).sqrt())

    found = check_convention(ScoreModel.from_timesteps(Thousandths(), betas), DATA)
    assert found.best.name == "1000 k/N for the index", str(found)
    right = remedied(
        Thousandths(),
        lambda net, **given: ScoreModel.from_timesteps(net, betas, **given),
        {},
        found.best.remedy,
    )
    assert check_convention(right, DATA).fits


class Mixture(nn.Module):
    """The mixture's prediction at alpha and sigma, and the other way round, of its own time."""

    def __init__(
        self,
        levels: Callable[[Tensor], tuple[Tensor, Tensor]],
        kind: str = "score",
        sign: int = 1,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.kind = kind
        self.sign = sign

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        alpha, sigma = self.levels(c.double())
        if self.kind == "flow":
            x0 = posterior(x, alpha, sigma)
            a, s = (level[:, None].to(x.dtype) for level in (alpha, sigma))
            return self.sign * ((x - a * x0) / s - x0)
        return self.sign * predicted(self.kind, x, alpha, sigma)


def of_sigma(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda c: (torch.ones_like(c), change(c))


def of_vp(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda c: (VPSDE().alpha(change(c)), VPSDE().sigma(change(c)))


VELOCITY = ScoreModel.from_velocity
OTHERWISE: dict[str, tuple[Callable[..., ScoreModel], dict[str, Any], nn.Module]] = {
    "velocity of 1000 t": (VELOCITY, {}, Mixture(lambda c: (1 - c / 1000, c / 1000), "flow")),
    "velocity of t": (VELOCITY, {"scale": 1000.0}, Mixture(lambda c: (1 - c, c), "flow")),
    "velocity to data": (VELOCITY, {}, Mixture(lambda c: (c, 1 - c), "flow", -1)),
    "velocity to data, 1000": (
        VELOCITY,
        {},
        Mixture(lambda c: (c / 1000, 1 - c / 1000), "flow", -1),
    ),
    "eps of a flow": (VELOCITY, {}, Mixture(lambda c: (1 - c, c), "eps")),
    "score of 999 t": (ScoreModel.from_score, {"sde": VPSDE()}, Mixture(of_vp(lambda c: c / 999))),
    "score of sigma": (
        ScoreModel.from_score,
        {"sde": EDMSDE()},
        Mixture(of_sigma(lambda c: c)),
    ),
    "score of log sigma": (
        ScoreModel.from_score,
        {"sde": EDMSDE(), "time": EDMSDE().sigma},
        Mixture(of_sigma(torch.exp)),
    ),
    "eps of sigma": (ScoreModel.from_denoiser, {}, Mixture(of_sigma(lambda c: c), "eps")),
    "denoiser of a log": (ScoreModel.from_denoiser, {}, Mixture(of_sigma(torch.exp), "x0")),
    "denoiser of EDM's number": (
        ScoreModel.from_denoiser,
        {},
        Mixture(of_sigma(lambda c: (4 * c).exp()), "x0"),
    ),
    "bare, of 1000 t": (
        ScoreModel,
        {"sde": VPSDE(), "prediction": "eps"},
        Mixture(of_vp(lambda c: c / 1000), "eps"),
    ),
    "bare, v": (ScoreModel, {"sde": VPSDE()}, Mixture(of_vp(lambda c: c), "v")),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_the_remedy_for_each_other_network_fits(name: str) -> None:
    make, given, network = OTHERWISE[name]
    found = check_convention(make(network, **given), DATA)
    assert not found.fits, str(found)
    right = remedied(network, make, given, found.best.remedy)
    assert check_convention(right, DATA).fits, f"{found}\n{check_convention(right, DATA)}"
    if make is not ScoreModel:
        assert max(len(line) for line in str(found).splitlines()[:-1]) <= 110


def test_a_reading_that_is_better_by_chance_alone_is_told_as_unclear() -> None:
    """Its errors are smaller by three standard errors: not clear, and not hidden."""
    given = torch.linspace(0.5, 1.5, 101).expand(2, -1)
    # Differences of mean m and deviation s: m = 3 s/√101.
    difference = torch.linspace(-1, 1, 101)
    difference = difference / difference.std() + 3 / 101**0.5
    other = given - 0.1 * difference
    found = ConventionCheck(
        (0.1, 0.5),
        (Reading("as given", given), Reading('prediction "v"', other, 'prediction="v"')),
    )
    assert found.best is found.readings[0]
    assert found.gain(found.readings[1]) == pytest.approx(3, rel=1e-4)
    told = (
        'By 3.0 standard errors this does better, which is not clear (4 would be): prediction "v"'
    )
    assert told in str(found)
    assert str(found).endswith("More samples would decide, or times nearer to 0.")


@pytest.mark.parametrize(
    ("theirs", "ours"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")]
)
def test_the_spellings_of_other_programs_are_told_in_ours(theirs: str, ours: str) -> None:
    for make in (
        lambda word: ScoreModel.from_timesteps(Chain(BETAS), BETAS, word),
        lambda word: ScoreModel.from_score(Chain(BETAS), VPSDE(), prediction=word),
        lambda word: ScoreModel.from_denoiser(Chain(BETAS), prediction=word),
    ):
        with pytest.raises(ValueError, match=f"prediction must be one of eps, x0.*'{ours}'") as it:
            make(theirs)
        assert str(it.value).endswith(f"pass prediction='{ours}'")
        assert make(ours).prediction == ours


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
    assert found.best.name == "noise at the other end"
    assert found.best.remedy == f"noise_at={noise_at}"


class Dropped(nn.Module):
    """An exact network that forgets half of what it says while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Chain(BETAS)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return self.dropout(self.network(x, k))


def test_a_convention_is_checked_without_dropout_and_the_mode_is_put_back() -> None:
    network = Dropped()
    model = ScoreModel.from_timesteps(network, BETAS)
    network.network.eval()  # one module of its own mode
    before = [module.training for module in model.modules()]
    assert before.count(True) == len(before) - 1
    drawn = torch.get_rng_state()
    found = check_convention(model, DATA)
    assert torch.equal(torch.get_rng_state(), drawn)
    exact = check_convention(chain(), DATA)
    for one, other in zip(found.readings, exact.readings, strict=True):
        assert torch.equal(one.errors, other.errors), one.name
    assert [module.training for module in model.modules()] == before


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
