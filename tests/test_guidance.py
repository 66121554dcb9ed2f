"""Guidance has the score of the tilted density; its samples are not of it, until weighted."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from sde_diffusion.coefficients import Levels
from sde_diffusion.dynamics import ProbabilityFlow, ReverseSDE
from sde_diffusion.grids import angular, uniform
from sde_diffusion.integration import integrate
from sde_diffusion.lattices import lattice
from sde_diffusion.likelihood.divergence import Exact
from sde_diffusion.likelihood.flow import log_prob
from sde_diffusion.models.exact import Gaussian, GaussianMixture
from sde_diffusion.models.guidance import GuidanceInterval, Guided, guided
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.models.thresholding import StaticThreshold
from sde_diffusion.nets import MLP
from sde_diffusion.sampling.generate import sample
from sde_diffusion.sampling.tilting import Tilted, sample_tilted
from sde_diffusion.schedules import DiscreteBeta, linear_betas
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import EDMSDE, VPSDE, RectifiedFlow, SubVPSDE
from sde_diffusion.solver import OneStep
from sde_diffusion.solvers import (
    DDPM,
    SRA,
    AngularAdams,
    AngularSDE,
    DormandPrince,
    Euler,
    EulerMaruyama,
    Heun,
)

T = torch.tensor(0.4, dtype=torch.float64)
SDES = [VPSDE(), SubVPSDE(), EDMSDE(), RectifiedFlow()]


def name_of(value: object) -> str:
    return type(value).__name__


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def mixtures(sde=None):
    """A class that holds two of three overlapping parts of the data, and the data."""
    means = torch.tensor([[-1.0], [0.3], [1.0]])
    stds = [0.7, 0.6, 0.5]
    sde = VPSDE() if sde is None else sde
    everything = GaussianMixture([0.3, 0.4, 0.3], means, stds=stds).diffused(sde)
    return GaussianMixture([0.4, 0.3], means[1:], stds=stds[1:]).diffused(sde), everything


def two_gaussians(sde, variance: float = 0.3):
    """Two Gaussians of one variance, whose scores differ by the same vector everywhere."""
    c = variance * torch.eye(2)
    means = torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.1])
    return tuple(Gaussian(m, c).diffused(sde) for m in means)


class Recording(torch.nn.Module):
    """A class-conditional network that keeps what it is called with."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network = network
        self.config = network.config
        self.calls = []

    def forward(self, x, c, labels=None):
        self.calls.append(labels.tolist())
        return self.network(x, c, labels)


def network_model(prediction: str = "eps", *, recording: bool = False) -> ScoreModel:
    network = MLP(3, width=16, classes=4, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # its head is 0 at first
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    network = Recording(network) if recording else network
    return ScoreModel(network.double(), VPSDE(), prediction).eval()


# --- the guided score ---


@pytest.mark.parametrize("sde", SDES, ids=name_of)
@pytest.mark.parametrize("w", [1.5, -0.4])
def test_the_guided_score_is_the_gradient_of_the_tilted_log_density(sde, w) -> None:
    conditional, everything = mixtures(sde)
    model = Guided(conditional, everything, w)
    for t in (T, torch.linspace(0.2, 0.9, 5, dtype=torch.float64)):
        x = states(5, 1).requires_grad_()
        log_q = (1 + w) * conditional.log_prob(x, t) - w * everything.log_prob(x, t)
        (gradient,) = torch.autograd.grad(log_q.sum(), x)
        assert torch.allclose(model(x.detach(), t), gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", SDES, ids=name_of)
def test_all_forms_are_of_one_prediction(sde) -> None:
    """x = alpha x0 + sigma eps, and the flow's velocity is rate x − ½ g² s."""
    model = Guided(*mixtures(sde), 2.0)
    x = states(5, 1)
    for t in (T, torch.linspace(0.2, 0.9, 5, dtype=torch.float64)):
        column = (-1, 1) if t.ndim else ()
        alpha, sigma, rate, g = (
            f(t).reshape(column) for f in (sde.alpha, sde.sigma, sde.rate, sde.g)
        )
        assert torch.allclose(alpha * model.denoise(x, t) + sigma * model.eps(x, t), x, rtol=1e-12)
        score = -model.eps(x, t) / sigma
        assert torch.allclose(model.score(x, t), score, rtol=1e-12)
        assert torch.allclose(model.velocity(x, t), rate * x - 0.5 * g**2 * score, rtol=1e-10)


@pytest.mark.parametrize(
    "solver",
    [EulerMaruyama(), Heun(), AngularAdams(), AngularSDE(), DormandPrince(1e-4, 1e-4)],
    ids=name_of,
)
@pytest.mark.parametrize("kind", ["oracles", "network"])
def test_weights_0_and_minus_1_are_the_two_models_bit_for_bit(solver, kind) -> None:
    if kind == "oracles":
        parts = mixtures()
        shape = (6, 1)
        make = lambda w: Guided(*parts, w)  # noqa: E731
    else:
        model = network_model()
        shape = (6, 3)
        labels = torch.tensor([0, 1, 2, 3, 0, 1])
        parts = model.given(labels), model.given(-1)
        make = lambda w: guided(model, labels, w)  # noqa: E731
    steps = 1 if isinstance(solver, DormandPrince) else 8
    for w, part in zip((0.0, -1.0), parts, strict=True):
        expected = sample(part, solver, shape, steps=steps, dtype=torch.float64)
        found = sample(make(w), solver, shape, steps=steps, dtype=torch.float64)
        assert torch.equal(found.x, expected.x)
        assert found.nfe == expected.nfe
    other = sample(make(1.0), solver, shape, steps=steps, dtype=torch.float64)
    assert not torch.allclose(other.x, expected.x)


@pytest.mark.parametrize("prediction", ["eps", "v", "edm"])
def test_one_network_is_called_once_on_both_conditions(prediction) -> None:
    model = network_model(prediction, recording=True)
    labels = torch.tensor([2, 0, 3])
    x = states(3, 3)
    times = torch.linspace(0.2, 0.9, 3, dtype=torch.float64)
    calls = model.network.calls
    for t in (T, times):
        for form in ("eps", "x0", "v"):
            at = Levels(model.sde.alpha(t), model.sde.sigma(t))
            c, u = (model.given(k).predict(form, x, t, at) for k in (labels, -1))
            calls.clear()
            found = guided(model, labels, 1.5).predict(form, x, t, at)
            assert calls == [[2, 0, 3, -1, -1, -1]]
            assert torch.allclose(found, 2.5 * c - 1.5 * u, rtol=1e-10, atol=1e-10)
    calls.clear()
    solution = sample(guided(model, 1, 1.5), Heun(), (2, 3), steps=5, dtype=torch.float64)
    assert calls == [[1, 1, -1, -1]] * 10
    assert solution.nfe == 10


def test_two_networks_are_both_called() -> None:
    """The bad version of a model as the unconditional one, as in autoguidance."""
    model = network_model()
    x = states(4, 3)
    bad = copy.deepcopy(model)
    with torch.no_grad():
        for p in bad.parameters():
            p.mul_(0.8)
    found = Guided(model.given(2), bad.given(2), 3.0).eps(x, T)
    expected = 4 * model.given(2).eps(x, T) - 3 * bad.given(2).eps(x, T)
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(found, model.given(2).eps(x, T))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = Guided(*mixtures(), 1.7)
    for solver in (EulerMaruyama(), AngularAdams(), DormandPrince(1e-4, 1e-4)):
        steps = 1 if isinstance(solver, DormandPrince) else 10
        whole = sample(model, solver, (7, 1), steps=steps, seed=4, dtype=torch.float64).x
        parts = [
            sample(model, solver, (n, 1), steps=steps, seed=4, first=i, dtype=torch.float64).x
            for i, n in ((0, 2), (2, 4), (6, 1))
        ]
        assert torch.equal(whole, torch.cat(parts))


def test_labels_follow_their_samples_out_of_a_batch() -> None:
    """An adaptive solver drops finished samples; each must keep the class it was given."""
    model = network_model("edm")
    labels = torch.tensor([3, 0, 2, 1, 1])
    tight = DormandPrince(1e-5, 1e-5)
    together = sample(guided(model, labels, 2.0), tight, (5, 3), steps=1, dtype=torch.float64)
    for i, label in enumerate(labels.tolist()):
        alone = sample(
            guided(model, label, 2.0), tight, (1, 3), steps=1, first=i, dtype=torch.float64
        )
        assert torch.allclose(together.x[i], alone.x[0], rtol=0, atol=1e-5)
    part = guided(model, labels, 2.0).rows(torch.tensor([2, 0]))
    x = states(5, 3)
    whole = guided(model, labels, 2.0).eps(x, T)
    assert torch.allclose(part.eps(x[[2, 0]], T), whole[[2, 0]], rtol=1e-12)
    one = guided(model, 1, 2.0)
    assert one.rows(torch.tensor([0])) is one


def test_the_weight_may_depend_on_the_time() -> None:
    parts = mixtures()
    x = states(3, 1)
    model = Guided(*parts, lambda t: 4 * t)
    times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = model.eps(x, times)
    for i, t in enumerate(times):
        alone = Guided(*parts, 4 * float(t)).eps(x[i : i + 1], t)
        assert torch.allclose(together[i : i + 1], alone, rtol=1e-12)
        assert torch.allclose(model.eps(x[i : i + 1], t), alone, rtol=1e-12)


def test_the_interval_is_of_noise_levels_and_costs_one_row_outside() -> None:
    sde = VPSDE()
    w = GuidanceInterval(sde, 1.3, low=0.5, high=2.0)
    ratios = torch.tensor([0.4999, 0.5001, 1.9999, 2.0001], dtype=torch.float64)
    assert w(sde.time(-ratios.log())).tolist() == [0.0, 1.3, 1.3, 0.0]
    model = network_model(recording=True)
    calls = model.network.calls
    grid = uniform(10)
    sample(guided(model, 1, w), Heun(), (2, 3), grid=grid, dtype=torch.float64)
    s = sde.sigma(grid) / sde.alpha(grid)
    inside = ((s > 0.5) & (s <= 2.0)).tolist()
    stages = [k for pair in pairwise(inside) for k in pair]
    assert 2 < sum(stages) < 18
    assert [len(labels) for labels in calls] == [4 if k else 2 for k in stages]


class Fractions(torch.nn.Module):
    """eps and the variance's fraction (its output ×2 − 1), both of the label and of x."""

    config: ClassVar = {"classes": 2}

    def forward(self, x, c, labels):  # noqa: ARG002
        y = labels[:, None].to(x)
        return torch.cat([0.3 * x - 0.1 * y, torch.tanh(x + y)], 1)


def test_guided_steps_have_the_conditional_models_learned_variance() -> None:
    sde = VPSDE(DiscreteBeta(linear_betas(50)))
    model = ScoreModel(Fractions(), sde, variance="learned").eval()
    chain = lattice(50)
    drawn = {
        name: sample(one, DDPM(), (5, 2), grid=chain, seed=1).x
        for name, one in (("given", model.given(1)), ("guided", guided(model, 1, 0.0)))
    }
    assert torch.equal(drawn["given"], drawn["guided"])
    x = states(5, 2).float()
    t = torch.tensor(0.3, dtype=torch.float64)
    for weight in (0.7, lambda t: 0.7 + 0 * t):
        for one in (guided(model, 1, weight), Guided(model.given(1), model.given(-1), weight)):
            found, fraction = one.with_fraction("eps", x, t)
            assert torch.equal(fraction, model.given(1).fraction(x, t))
            assert torch.allclose(found, one.eps(x, t))
    labels = torch.tensor([0, 1, 1, 0, 1])
    fraction = guided(model, labels, 0.7).with_fraction("x0", x, t)[1]
    assert torch.equal(fraction, model.given(labels).fraction(x, t))


def test_a_guided_model_is_thresholded_and_refused_in_training() -> None:
    model = guided(network_model(), 1, 50.0)
    x = 3 * states(4, 3)
    assert model.denoise(x, T).abs().max().item() > 1
    assert StaticThreshold(model).denoise(x, T).abs().max().item() == 1
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        sample(guided(network_model().train(), 1), Heun(), (2, 3))


@pytest.mark.parametrize("coupled", [0, 1, 2])
def test_guidance_does_not_hide_that_a_models_eps_is_no_score(coupled) -> None:
    """Of the first model, of the second or, as a control, of none."""
    models = [ScoreModel(MLP(2, width=4), VPSDE()) for _ in range(3)]
    models[coupled].coupling = "optimal-transport"
    for score in (
        Guided(*models[:2]),
        StaticThreshold(Guided(*models[:2])),
        Guided(*map(StaticThreshold, models[:2])),
    ):
        if coupled == 2:
            ReverseSDE(score.sde, score)
            continue
        with pytest.raises(ValueError, match="score must have coupling='independent'"):
            ReverseSDE(score.sde, score)


def test_likelihoods_are_of_the_guided_flow() -> None:
    """Gaussians of one variance: guidance moves the mean and does no more."""
    sde = VPSDE()
    one, everything = two_gaussians(sde)
    x = states(4, 2)
    w = 1.5
    flow = ProbabilityFlow(sde, Guided(one, everything, w))
    found = log_prob(
        x, flow, DormandPrince(1e-8, 1e-8), grid=uniform(1, 0.0, 1.0), divergence=Exact()
    )
    mean = torch.tensor([(1 + w) * 1.0 - w * 0.2, -(1 + w) * 0.5 - w * 0.1])
    moved = Gaussian(mean, 0.3 * torch.eye(2)).diffused(sde)
    expected = log_prob(
        x,
        ProbabilityFlow(sde, moved),
        DormandPrince(1e-8, 1e-8),
        grid=uniform(1, 0.0, 1.0),
        divergence=Exact(),
    )
    assert torch.allclose(found.nats, expected.nats, rtol=0, atol=1e-6)


# --- what it samples ---


@pytest.mark.parametrize("sde", SDES, ids=name_of)
@pytest.mark.parametrize(
    ("solver", "noise_scale"), [(EulerMaruyama(), 1.0), (SRA(), 0.4), (Heun(), 1.0)]
)
def test_between_gaussians_of_one_variance_the_weights_are_known_exactly(
    sde, solver, noise_scale
) -> None:
    """‖s_c − s_0‖ does not depend on x there: all weights are one number, ∫ p_c^γ p_0^{1−γ}."""
    w = 1.5
    grid = angular(sde, 400)
    model = Guided(*two_gaussians(sde), w)
    found = sample_tilted(
        model, solver, (5, 2), grid=grid, noise_scale=noise_scale, dtype=torch.float64
    )
    alpha2 = sde.alpha(grid) ** 2
    total = 0.3 * sde.alpha(grid) ** 2 + sde.sigma(grid) ** 2
    gap2 = 0.8**2 + 0.6**2
    log_mass = 0.5 * (1 + w) * w * alpha2 * gap2 / total
    expected = float(log_mass[-1] - log_mass[0])
    assert found.log_mass == pytest.approx(expected, rel=1e-4)
    assert found.effective_size == pytest.approx(5, rel=1e-9)
    # Its end points are the solver's own.
    if not isinstance(solver, SRA):
        plain = sample(model, solver, (5, 2), grid=grid, dtype=torch.float64)
        assert torch.allclose(found.x, plain.x, rtol=1e-8, atol=1e-8)


def test_what_guidance_samples_between_centred_gaussians_in_closed_form() -> None:
    """With w = 1, p_c = N(0, ½) and p_0 = N(0, 1): q is N(0, ⅓), the flow's law N(0, ¼).

    In u = alpha² the guided flow is d ln x = −½ du/(1 − u/2), so x ∝ 1 − u/2; the variance V of
    the reverse SDE obeys dV/du = ((3 − 4/(1 − u/2)) V + 1)/u, which ends in 7/24.
    """
    sde = VPSDE()
    half, one = (Gaussian(torch.zeros(1), v * torch.eye(1)).diffused(sde) for v in (0.5, 1.0))
    model = Guided(half, one, 1.0)
    grid = uniform(1, 1.0, 1e-5)
    found = sample(model, DormandPrince(1e-8, 1e-8), (3, 1), grid=grid, dtype=torch.float64).x
    start = sample(model, Heun(), (3, 1), grid=uniform(1, 1.0, 1 - 1e-12), dtype=torch.float64).x
    u = sde.alpha(grid) ** 2
    expected = start * (1 - u[1] / 2) / (1 - u[0] / 2)
    assert torch.allclose(found, expected, rtol=1e-6, atol=0)
    assert float(expected[0] / start[0]) == pytest.approx(math.sqrt(1 / 4), rel=1e-3)
    noisy = sample(model, SRA(), (4000, 1), grid=angular(sde, 40), dtype=torch.float64).x
    assert float(noisy.var()) == pytest.approx(7 / 24, abs=3.5 * 7 / 24 * math.sqrt(2 / 4000))
    assert 7 / 24 + 3.5 * 7 / 24 * math.sqrt(2 / 4000) < 1 / 3


def log_tilted(conditional, everything, w: float, t: torch.Tensor, points: torch.Tensor):
    """log p_c^{1+w} p_0^{−w} at some points."""
    return (1 + w) * conditional.log_prob(points, t) - w * everything.log_prob(points, t)


@pytest.mark.parametrize(
    ("w", "solver", "noise_scale"),
    [
        (1.0, SRA(), 1.0),
        (1.0, SRA(), 1.5),
        (1.0, SRA(), 0.5),
        (1.0, Heun(), 1.0),
        (-0.5, SRA(), 1.0),
    ],
)
def test_guidance_misses_the_tilted_density_and_the_weights_mend_it(
    w, solver, noise_scale
) -> None:
    conditional, everything = mixtures()
    grid = angular(VPSDE(), 40)
    n = 3000
    line = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    q = log_tilted(conditional, everything, w, grid[-1], line)
    mass = float(q.logsumexp(0) + (line[1, 0] - line[0, 0]).log())
    model = Guided(conditional, everything, w)
    found = sample_tilted(
        model, solver, (n, 1), grid=grid, noise_scale=noise_scale, dtype=torch.float64
    )
    plain = torch.full((n,), 1 / n, dtype=torch.float64)
    weights = found.weights
    for f in (torch.clone, torch.square, torch.cos):
        exact = float(q.softmax(0) @ f(line[:, 0]))
        values = f(found.x[:, 0])
        errors = {}
        for kind, v in (("plain", plain), ("weighted", weights)):
            mean = v @ values
            spread = float((v.square() @ (values - mean).square()).sqrt())
            errors[kind] = float(mean) - exact, spread
        assert abs(errors["weighted"][0]) < 3.5 * errors["weighted"][1]
        if f is torch.clone:  # of the mean; plain guidance moves too far
            assert errors["plain"][0] * math.copysign(1, w) > 3.5 * errors["plain"][1]
    spread = float((weights * n).std()) / math.sqrt(n)
    assert abs(found.log_mass - mass) < 3.5 * spread + 0.002
    assert 0.2 * n < found.effective_size < n


def test_resampling_multiplies_the_heavy_ones_in_the_plane() -> None:
    means = torch.tensor([[-0.8, 0.0], [0.8, 0.2], [0.2, 0.9]])
    stds = [0.8, 0.6, 0.7]
    sde = VPSDE()
    w = 1.5
    everything = GaussianMixture([0.4, 0.3, 0.3], means, stds=stds).diffused(sde)
    conditional = GaussianMixture([0.3, 0.3], means[1:], stds=stds[1:]).diffused(sde)
    grid = angular(sde, 40)
    n = 3000
    axis = torch.linspace(-4, 4, 201, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    q = log_tilted(conditional, everything, w, grid[-1], plane)
    mass = float(q.logsumexp(0) + 2 * (axis[1] - axis[0]).log())
    exact = q.softmax(0) @ plane
    model = Guided(conditional, everything, w)
    ends = {
        share: sample_tilted(
            model, SRA(), (n, 2), grid=grid, resample_below=share, dtype=torch.float64
        )
        for share in (0.0, 0.98)
    }
    plain = {share: float((found.x.mean(0) - exact).norm()) for share, found in ends.items()}
    assert plain[0.98] < 0.03 < 0.1 < plain[0.0]
    for share, found in ends.items():
        assert (found.resamplings > 0) == (share > 0)
        assert float((found.weights @ found.x - exact).norm()) < 0.04
        assert abs(found.log_mass - mass) < 0.05
        even = found.resampled(seed=1)
        assert float((even.mean(0) - exact).norm()) < 0.04
    assert ends[0.98].effective_size > ends[0.0].effective_size


def test_evaluations_are_counted_where_they_happen() -> None:
    seen = []

    class Counted(ScoreLike):
        sde = VPSDE()

        def __init__(self, inner) -> None:
            self.inner = inner

        def __call__(self, x, t):
            seen.append(t)
            return self.inner(x, t)

        def eps(self, x, t):
            seen.append(t)
            return self.inner.eps(x, t)

        def denoise(self, x, t):
            seen.append(t)
            return self.inner.denoise(x, t)

    model = Guided(*map(Counted, mixtures()), 1.0)
    for solver, nfe in ((EulerMaruyama(), 13), (Heun(), 25)):
        seen.clear()
        found = sample_tilted(model, solver, (3, 1), steps=12)
        assert found.nfe == nfe
        assert len(seen) == 2 * nfe


def test_systematic_resampling_keeps_every_share_to_within_one() -> None:
    w = torch.tensor([0.05, 0.5, 0.2, 0.25], dtype=torch.float64).repeat(25) / 25
    found = Tilted(torch.arange(100.0)[:, None], w.log(), 0.0, 0, 0).resampled(seed=3)
    counts = torch.bincount(found.long()[:, 0], minlength=100)
    assert int(counts.sum()) == 100
    assert bool(((counts - 100 * w).abs() < 1).all())
    assert found.equal(Tilted(torch.arange(100.0)[:, None], w.log(), 0.0, 0, 0).resampled(seed=3))


def test_weighted_samples_follow_from_the_seed_and_stay_apart_without_resampling() -> None:
    model = Guided(*mixtures(), 1.0)
    whole = sample_tilted(model, EulerMaruyama(), (6, 1), steps=10, seed=2)
    again = sample_tilted(model, EulerMaruyama(), (3, 1), steps=10, seed=2)
    assert torch.equal(whole.x[:3], again.x)
    assert torch.equal(whole.log_weights[:3], again.log_weights)


def test_the_noise_scale_is_that_of_the_reverse_sde() -> None:
    """Without noise, Euler–Maruyama is Euler's method on the flow."""
    model = Guided(*mixtures(), 1.0)
    grid = angular(VPSDE(), 12)
    quiet = sample_tilted(
        model, EulerMaruyama(), (4, 1), grid=grid, noise_scale=0.0, dtype=torch.float64
    )
    flow = sample_tilted(model, Euler(), (4, 1), grid=grid, dtype=torch.float64)
    assert torch.allclose(quiet.x, flow.x, rtol=1e-10, atol=1e-10)
    assert torch.allclose(quiet.log_weights, flow.log_weights, rtol=1e-9, atol=1e-9)


class Jump(OneStep):
    """A step to nowhere."""

    dynamics = EulerMaruyama.dynamics
    order = 1

    def step(self, dynamics, x, t, s, noise):  # noqa: ARG002
        return x * math.inf


PAIR = mixtures()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Guided(len, PAIR[1]), TypeError, "conditional must be a score model, got b"),
        (lambda: Guided(PAIR[0], VPSDE()), TypeError, "unconditional must be a score model"),
        (lambda: Guided(PAIR[0], mixtures(SubVPSDE())[1]), ValueError, "have one SDE, got VPSDE"),
        (lambda: Guided(*PAIR, math.nan), ValueError, "weight must be finite, got nan"),
        (lambda: Guided(*PAIR, True), TypeError, "weight must be a number, or a function of t"),
        (lambda: GuidanceInterval(VPSDE(), 1.0, 2.0, 1.0), ValueError, "satisfy 0 <= low < high"),
        (lambda: guided(PAIR[0], 1), TypeError, "model must be a ScoreModel, got ExactScore"),
        (lambda: guided(ScoreModel(MLP(2, width=8), VPSDE()), 1), ValueError, "have classes"),
        (
            lambda: guided(network_model(), torch.tensor([1, 2])).eps(states(3, 3), T),
            ValueError,
            "labels must be one, or 3 for this batch, got 2 labels",
        ),
        (lambda: sample_tilted(PAIR[0], Heun(), (2, 1)), TypeError, "guided must be a Guided"),
        (
            lambda: sample_tilted(Guided(*PAIR), AngularAdams(), (2, 1)),
            TypeError,
            "solver must be a one-step solver, got AngularAdams",
        ),
        (
            lambda: sample_tilted(Guided(*PAIR, lambda t: t), Heun(), (2, 1)),
            ValueError,
            "guided.weight must be one number for all t",
        ),
        (
            lambda: sample_tilted(Guided(*PAIR), Heun(), (2, 1), resample_below=2.0),
            ValueError,
            r"resample_below must lie in \[0, 1\], got 2.0",
        ),
        (
            lambda: sample_tilted(
                guided(network_model(), torch.tensor([1, 2])), Heun(), (2, 3), resample_below=0.5
            ),
            ValueError,
            "have their own labels",
        ),
        (
            lambda: sample_tilted(Guided(*PAIR), Heun(), (2, 1), steps=3, grid=uniform(3)),
            ValueError,
            "not be given together",
        ),
        (
            lambda: sample_tilted(Guided(*PAIR), Jump(), (2, 1), steps=3),
            FloatingPointError,
            "log_weights must stay finite, got NaN or infinity at step 1",
        ),
    ],
)
def test_wrong_input_is_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()


def test_a_coupled_model_shows_in_its_guided_form() -> None:
    model = Guided(*PAIR)
    assert model.coupling == "independent"
    assert integrate(ProbabilityFlow(VPSDE(), model), Heun(), states(2, 1), uniform(2)).nfe == 4
    coupled = ScoreModel(MLP(1, width=8, classes=2), VPSDE(), coupling="optimal-transport").eval()
    with pytest.raises(ValueError, match="coupling"):
        sample(guided(coupled, 0), EulerMaruyama(), (2, 1), steps=2)
    assert sample(guided(coupled, 0), Heun(), (2, 1), steps=2).nfe == 4
