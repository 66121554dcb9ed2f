"""The error ledger, against errors that are known because they were made on purpose."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    DiscreteLogLikelihood,
    Exact,
    GaussianMixture,
    Hutchinson,
    Ledger,
    LinearBeta,
    ProbabilityFlow,
    RectifiedFlow,
    angular,
    audit,
    fit_gaussian,
    importance_weighted,
    log_prob,
)
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solvers import DormandPrince, Heun

D = 4


def mixture() -> GaussianMixture:
    means = torch.randn(3, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture([1, 2, 1], means, stds=[0.3, 0.5, 0.4])


class Mixtures(ScoreLike):
    """The score of another mixture of three in every row of the batch.

    Shapes: weights (B, 3), means (B, 3, D), stds (B, 3).
    """

    def __init__(self, sde, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        self.sde = sde
        self.parts = (weights, means, stds)

    def rows(self, index: Tensor) -> Mixtures:
        return Mixtures(self.sde, *(part[index] for part in self.parts))

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        weights, means, stds = self.parts
        a, s = (c.expand(len(x))[:, None] for c in (alpha, sigma))
        variance = a**2 * stds**2 + s**2
        r = (x[:, None] - a[:, :, None] * means).square().sum(2)
        d = x.shape[1]
        log_p = -0.5 * (r / variance + d * (2 * math.pi * variance).log())
        return (log_p + weights.log()).logsumexp(1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        weights, means, stds = self.parts
        alpha, sigma = (c.expand(len(x))[:, None] for c in (self.sde.alpha(t), self.sde.sigma(t)))
        variance = alpha**2 * stds**2 + sigma**2
        from_mean = alpha[:, :, None] * means - x[:, None]
        log_p = -0.5 * (from_mean.square().sum(2) / variance + x.shape[1] * variance.log())
        share = (log_p + weights.log()).softmax(1)
        return (from_mean * (share / variance)[:, :, None]).sum(1)


class MatchedGaussians:
    """The distribution of x_1 of every row's mixture, taken to be the Gaussian of its moments."""

    def __init__(self, model: Mixtures) -> None:
        weights, means, stds = model.parts
        t = torch.tensor(model.sde.horizon, dtype=torch.float64)
        alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
        self.mean = alpha * (weights[:, :, None] * means).sum(1)
        second = weights[:, :, None, None] * means[:, :, :, None] * means[:, :, None, :]
        centre = (weights[:, :, None] * means).sum(1)
        covariance = second.sum(1) - centre[:, :, None] * centre[:, None, :]
        spread = (weights * stds**2).sum(1)[:, None, None] * torch.eye(means.shape[2])
        identity = torch.eye(means.shape[2], dtype=torch.float64)
        self.covariance = alpha**2 * (covariance + spread) + sigma**2 * identity

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.distributions.MultivariateNormal(self.mean, self.covariance).log_prob(x)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedFlow()], ids=["vp", "edm", "flow"])
def test_intervals_cover_the_truth_in_95_of_100_random_mixtures(sde) -> None:
    """1000 mixtures of four dimensions, four samples and four probes each, a loose tolerance."""
    number = 1000
    samples = 4
    g = torch.Generator().manual_seed(1)
    weights = torch.rand(number, 3, generator=g, dtype=torch.float64) + 0.1
    weights = weights / weights.sum(1, keepdim=True)
    means = 0.7 * torch.randn(number, 3, D, generator=g, dtype=torch.float64)
    stds = 0.2 + 0.5 * torch.rand(number, 3, generator=g, dtype=torch.float64)
    parts = [part.repeat_interleave(samples, 0) for part in (weights, means, stds)]
    model = Mixtures(sde, *parts)
    kind = torch.multinomial(parts[0], 1, generator=g)[:, 0]
    rows = torch.arange(number * samples)
    z = torch.randn(number * samples, D, generator=g, dtype=torch.float64)
    x = parts[1][rows, kind] + parts[2][rows, kind][:, None] * z
    one = torch.ones((), dtype=torch.float64)
    truth = model.log_prob(x, one, 0 * one)

    ledger = audit(
        x,
        ProbabilityFlow(sde, model),
        DormandPrince(1e-3, 1e-3),
        end=MatchedGaussians(model),
        divergence=Hutchinson(4, seed=2),
    )
    covered = 0
    widths = []
    errors = []
    for k in range(number):
        part = slice(k * samples, (k + 1) * samples)
        lines = [
            dataclasses.replace(line, shift=line.shift[part], error=line.error[part])
            for line in ledger.lines
        ]
        own = Ledger(ledger.nats[part], D, tuple(lines), 3, 0)
        errors.append(own.corrected - float(truth[part].mean()))
        widths.append(own.half_width())
        covered += abs(errors[-1]) <= widths[-1]
    assert covered >= 950
    # An interval that says nothing would cover everything: these are of the errors' size.
    error = math.sqrt(sum(e * e for e in errors) / number)
    assert sum(widths) / number < 4 * error


def narrow(number: int, samples: int, std: float) -> tuple[Mixtures, Tensor]:
    """Random mixtures of three narrow modes in the plane, each in ``samples`` rows, and samples.

    The modes' standard deviations are ``std``, twice and five times it.
    """
    g = torch.Generator().manual_seed(6)
    weights = torch.rand(number, 3, generator=g, dtype=torch.float64) + 0.1
    weights = weights / weights.sum(1, keepdim=True)
    means = 0.7 * torch.randn(number, 3, 2, generator=g, dtype=torch.float64)
    stds = std * torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).expand(number, 3)
    parts = [part.repeat_interleave(samples, 0) for part in (weights, means, stds)]
    kind = torch.multinomial(parts[0], 1, generator=g)[:, 0]
    rows = torch.arange(number * samples)
    z = torch.randn(number * samples, 2, generator=g, dtype=torch.float64)
    x = parts[1][rows, kind] + parts[2][rows, kind][:, None] * z
    return Mixtures(VPSDE(), *parts), x


@pytest.mark.parametrize(
    ("solver", "std"),
    [*((DormandPrince(1e-3, 1e-3), std) for std in (1e-3, 1e-4, 1e-5, 1e-6)), (Heun(), 1e-5)],
)
def test_intervals_cover_the_truth_of_data_narrower_than_sigma_at_the_start(solver, std) -> None:
    """sigma(t_ε) is 1e-3: there the modes look as wide as that, and log p is too low by far."""
    number = 20
    samples = 2
    model, x = narrow(number, samples, std)
    one = torch.ones((), dtype=torch.float64)
    truth = model.log_prob(x, one, 0 * one)
    found = audit(
        x,
        ProbabilityFlow(model.sde, model),
        solver,
        grid=None if solver.adaptive else angular(VPSDE(), 60, end=1e-5).flip(0),
        divergence=Exact(),
        end=MatchedGaussians(model),
    )
    covered = 0
    for k in range(number):
        part = slice(k * samples, (k + 1) * samples)
        lines = [
            dataclasses.replace(line, shift=line.shift[part], error=line.error[part])
            for line in found.lines
        ]
        own = Ledger(found.nats[part], 2, tuple(lines), 0, 0)
        covered += abs(own.corrected - float(truth[part].mean())) <= own.half_width()
    assert covered >= 0.95 * number
    # An interval that says nothing would cover everything.
    assert found.half_width() < 0.3


def test_a_shift_that_does_not_fall_is_as_large_an_error() -> None:
    """Modes of no width have no density: every hundredth of t adds ln 100 nats, without end."""
    model, x = narrow(2, 1, 1e-12)
    found = audit(
        x, ProbabilityFlow(model.sde, model), DormandPrince(1e-3, 1e-3), divergence=Exact()
    )
    line = found.line("truncation")
    # sigma² falls by 100 each time: 2 · ½ ln 100 nats of two dimensions, five times over.
    assert line.shift.tolist() == pytest.approx([5 * math.log(100)] * 2, rel=0.01)
    assert line.error.tolist() == pytest.approx([math.log(100)] * 2, rel=0.01)
    assert "has not begun to fall" in line.how


def shifts(ledger: Ledger) -> dict[str, float]:
    return {line.name: float(line.shift.mean()) for line in ledger.lines}


class Biased:
    """A score that is wrong by a constant."""

    def __init__(self, score, bias: float) -> None:
        self.score = score
        self.bias = bias

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.score(x, t) + self.bias


START = 1e-5


@lru_cache
def ledger_of(
    *,
    beta: float = 20.0,
    start: float = START,
    tolerance: float = 1e-7,
    bias: float = 0.0,
    levels: int = 256,
) -> Ledger:
    """Audit a mixture within [−1, 1], with one thing wrong."""
    means = torch.tensor([[0.4, -0.3], [-0.4, 0.2], [0.1, 0.3]], dtype=torch.float64)
    data = GaussianMixture([1, 2, 1], means, stds=[0.08, 0.12, 0.1])
    sde = VPSDE(LinearBeta(0.1, beta))
    model = data.diffused(sde)
    x = data.sample(20, torch.Generator().manual_seed(3)).clamp(-0.99, 0.99)
    many = data.sample(100_000, torch.Generator().manual_seed(4))
    last = torch.tensor(1.0, dtype=torch.float64)
    return audit(
        x,
        ProbabilityFlow(sde, Biased(model, bias)),
        DormandPrince(tolerance, tolerance),
        grid=torch.tensor([start, 1.0], dtype=torch.float64),
        divergence=Exact(),
        reference=model,
        end=fit_gaussian(many).diffused(sde).marginal(last),
        levels=levels,
    )


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("prior", {"beta": 6.0}),
        ("truncation", {"start": 3e-4}),
        ("tolerance", {"tolerance": 3e-2}),
        ("score", {"bias": 0.05}),
        ("offset", {"levels": 17}),
    ],
)
def test_an_error_made_on_purpose_is_found_in_its_line(line: str, wrong) -> None:
    """What is reported changes by −Δ; the line's shift changes by Δ, the others by little."""
    right = ledger_of()
    found = ledger_of(**wrong)
    if line == "offset":
        offset = {k: right.bits(v) for k, v in shifts(found).items()}
        assert offset["offset"] == pytest.approx(math.log2(17 / 2), abs=1e-12)
        return
    change = right.value - found.value
    moved = {name: value - shifts(right)[name] for name, value in shifts(found).items()}
    assert abs(change) > 5 * right.half_width()
    assert moved[line] == pytest.approx(change, rel=0.05)
    for name, value in moved.items():
        assert name == line or abs(value) < 0.05 * abs(change)


def test_a_fixed_grid_is_halved_and_a_float32_solve_is_checked_in_float64() -> None:
    """Heun's error falls fourfold; float32 shows in its own line and not in the others."""
    data = mixture()
    model = data.diffused(VPSDE())
    x = data.sample(8, torch.Generator().manual_seed(5))
    grid = angular(VPSDE(), 60).flip(0)
    found = audit(
        x.float(), ProbabilityFlow(model.sde, model), Heun(), grid=grid, divergence=Exact()
    )
    many = angular(VPSDE(), 960).flip(0)
    exact = log_prob(
        x.float().double(),
        ProbabilityFlow(model.sde, model),
        Heun(),
        grid=many,
        divergence=Exact(),
    )
    tolerance = found.line("tolerance")
    rounding = found.line("rounding")
    error = exact.nats - found.nats - rounding.shift
    # A halved step of order 2 takes away three quarters of the error.
    assert torch.allclose(tolerance.shift, 0.75 * error, rtol=0.1, atol=1e-5)
    assert bool(((tolerance.shift - error).abs() <= tolerance.error).all())
    assert 0 < float(rounding.shift.abs().max()) < 1e-3


def test_one_probe_tells_no_error_and_a_wrong_line_is_named() -> None:
    data = mixture()
    model = data.diffused(VPSDE())
    x = data.sample(2, torch.Generator().manual_seed(5))
    flow = ProbabilityFlow(model.sde, model)
    with pytest.raises(ValueError, match=r"divergence must have two probes or more.*got 1"):
        audit(x, flow, DormandPrince(1e-2, 1e-2), divergence=Hutchinson(1))
    found = audit(x, flow, DormandPrince(1e-2, 1e-2))
    assert [name for name, *_ in found.table()] == ["prior", "truncation", "tolerance", "probes"]
    with pytest.raises(ValueError, match=r"name must be one of prior, .*got 'score'"):
        found.line("score")


def test_draws_of_the_dequantization_have_a_line() -> None:
    """log-weights of two draws, 0 and ln 3: log of their mean ln 2, mean of their logs ½ ln 3."""
    data = mixture()
    model = data.diffused(VPSDE())
    x = data.sample(1, torch.Generator().manual_seed(5))
    log_w = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64)
    nats, error, gap = importance_weighted(log_w)
    discrete = DiscreteLogLikelihood(nats, -nats, error, gap, log_w)
    found = audit(
        x, ProbabilityFlow(model.sde, model), DormandPrince(1e-2, 1e-2), discrete=discrete
    )
    line = found.line("dequantization")
    assert float(line.shift) == pytest.approx(math.log(2) - 0.5 * math.log(3))
    assert float(line.error) > float(line.shift) / 2
