"""Laws of the linear family, checked for every SDE in one loop, and a user's own SDEs."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, strategies as st

import sde_diffusion
from sde_diffusion import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineBeta,
    DiscreteBeta,
    LinearBeta,
    LinearSDE,
    RectifiedFlow,
    SubVPSDE,
    linear_betas,
    log_snr,
)
from sde_diffusion.noise import WhiteNoise

FAMILY = [
    VPSDE(),
    VPSDE(CosineBeta()),
    VPSDE(DiscreteBeta(linear_betas(1000))),
    SubVPSDE(),
    VESDE(),
    EDMSDE(),
    RectifiedFlow(),
]
IDS = ["vp", "vp-cosine", "ddpm", "sub-vp", "ve", "edm", "rectified-flow"]
every_sde = pytest.mark.parametrize("sde", FAMILY, ids=IDS)
unit = st.floats(0.02, 0.98)


def time(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


# A value of each constructor argument, made anew, and others.
VALUES = {
    "beta": (
        lambda: DiscreteBeta(linear_betas(10)),
        lambda: DiscreteBeta(linear_betas(11)),
        lambda: DiscreteBeta(linear_betas(10, last=0.03)),
        lambda: CosineBeta(),
        lambda: LinearBeta(0.2),
        lambda: LinearBeta(),
    ),
    "sigma_min": (lambda: 0.01, lambda: 0.02),
    "sigma_max": (lambda: 50.0, lambda: 80.0),
}


def made(kind: type[LinearSDE], *, other: str = "", place: int = 1) -> LinearSDE:
    """Return a new SDE; the argument ``other`` has another value, the one in that place."""
    names = [field.name for field in fields(kind) if field.init]
    return kind(**{name: VALUES[name][place * (name == other)]() for name in names})


def exported_sdes() -> list[type[LinearSDE]]:
    found = (getattr(sde_diffusion, name) for name in sde_diffusion.__all__)
    kinds = (kind for kind in found if isinstance(kind, type) and issubclass(kind, LinearSDE))
    return [kind for kind in kinds if not inspect.isabstract(kind)]


def test_every_linear_sde_is_equal_and_hashed_by_value() -> None:
    kinds = exported_sdes()
    assert {type(sde) for sde in FAMILY} == set(kinds)
    known = {made(kind): kind for kind in kinds}
    for kind in kinds:
        assert made(kind) == made(kind)
        assert hash(made(kind)) == hash(made(kind))
        assert known[made(kind)] is kind
        for field in fields(kind):
            for place in range(1, len(VALUES[field.name])):
                different = made(kind, other=field.name, place=place)
                assert made(kind) != different
                assert different not in known


@every_sde
def test_closed_forms_agree_with_automatic_differentiation(sde) -> None:
    # Off the lattice of the discrete schedule, whose beta jumps there.
    t = torch.linspace(0.01, sde.horizon - 0.001, 487, dtype=torch.float64)
    assert torch.allclose(LinearSDE.rate(sde, t), sde.rate(t), rtol=1e-7, atol=1e-12)
    assert torch.allclose(LinearSDE.g(sde, t), sde.g(t), rtol=1e-7, atol=1e-12)


@every_sde
@given(u=unit)
def test_time_inverts_lambda(sde, u: float) -> None:
    t = time(sde.cutoff + u * (sde.horizon - sde.cutoff))
    assert float(sde.time(sde.lambda_(t))) == pytest.approx(float(t), abs=1e-10)
    assert float(LinearSDE.time(sde, sde.lambda_(t))) == pytest.approx(float(t), abs=1e-10)
    assert float(LinearSDE.lambda_(sde, t)) == pytest.approx(float(sde.lambda_(t)), abs=1e-9)


@every_sde
@given(u=unit, v=unit)
def test_kernels_compose(sde, u: float, v: float) -> None:
    """x_t|x_0 is x_t|x_s after x_s|x_0: a σ_s and b add up to σ_t, α_t = a α_s."""
    s, t = sorted((u * sde.horizon, v * sde.horizon))
    a, b2 = sde.kernel(time(s), time(t))
    assert float(a * sde.alpha(time(s))) == pytest.approx(float(sde.alpha(time(t))), rel=1e-12)
    total = a**2 * sde.sigma(time(s)) ** 2 + b2
    assert float(total) == pytest.approx(float(sde.sigma(time(t)) ** 2), rel=1e-10)


@every_sde
def test_kernel_of_a_short_step_is_g_squared_dt(sde) -> None:
    t = time(0.4)
    dt = 1e-7
    a, b2 = sde.kernel(t - dt, t)
    assert float(b2 / dt) == pytest.approx(float(sde.g(t) ** 2), rel=1e-5)
    assert float((a - 1) / dt) == pytest.approx(float(sde.rate(t)), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("sde", FAMILY[:3], ids=IDS[:3])
def test_variance_is_preserved(sde) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14)


def test_sigma_keeps_its_digits_at_small_times_in_float32() -> None:
    t = torch.tensor(1e-5, dtype=torch.float32)
    exact = math.sqrt(-math.expm1(-(0.1e-5 + 0.5 * 19.9e-10)))
    assert float(VPSDE().sigma(t)) == pytest.approx(exact, rel=1e-6)  # 1 − exp(−B): 6e-3 off


def test_table_of_song_and_karras() -> None:
    """Spot values computed by hand from the published formulas."""
    t = time(0.5)
    b = 0.1 * 0.5 + 0.5 * 19.9 * 0.25
    assert float(SubVPSDE().sigma(t)) == pytest.approx(1 - math.exp(-b), rel=1e-14)
    assert float(SubVPSDE().g(t) ** 2) == pytest.approx(10.05 * (1 - math.exp(-2 * b)), rel=1e-14)
    ve = VESDE(0.01, 50.0)
    assert float(ve.sigma(t) ** 2) == pytest.approx(1e-4 * (5000.0 - 1), rel=1e-12)
    assert float(ve.g(t) ** 2) == pytest.approx(1e-4 * 5000 * 2 * math.log(5000), rel=1e-12)
    assert float(EDMSDE(80.0).g(t) ** 2) == pytest.approx(2 * 0.5 * 80**2, rel=1e-14)


@every_sde
def test_perturb_has_the_marginal_moments(sde) -> None:
    x0 = torch.tensor([[1.5, -0.5]], dtype=torch.float64).expand(200_000, 2)
    eps = WhiteNoise(0).normal(x0)
    t = time(0.5 * sde.horizon)
    mean, std = sde.marginal(x0[:1], t)
    x = sde.perturb(x0, t, eps)
    assert torch.allclose(x.mean(0), mean[0], atol=5 * float(std) / 200_000**0.5)
    assert float((x - mean).std()) == pytest.approx(float(std), rel=5 / 400_000**0.5)


@every_sde
def test_prior_is_normal(sde) -> None:
    prior = sde.prior()
    x = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    by_torch = torch.distributions.Normal(time(0.0), time(prior.std)).log_prob(x).sum(1)
    assert torch.allclose(prior.log_prob(x), by_torch, rtol=1e-12)
    # The prior's spread is that of x at the horizon, up to what alpha keeps of the data.
    sigma = float(sde.sigma(time(sde.horizon)))
    assert prior.std == pytest.approx(sigma, rel=2e-3)


class Alone(LinearSDE):
    """A user's SDE from alpha and sigma alone: the straight interpolant, α = 1 − t, σ = t."""

    horizon = 0.999

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


def test_an_sde_without_values_of_its_own_equals_itself_alone() -> None:
    mine = Alone()
    assert mine == mine
    assert mine != Alone()


def test_alpha_and_sigma_are_enough() -> None:
    mine = Alone()
    theirs = RectifiedFlow()
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mine.drift(x, t), theirs.drift(x, t), rtol=1e-10)
    assert torch.allclose(mine.diffusion(x, t), theirs.diffusion(x, t), rtol=1e-10)
    assert torch.allclose(mine.time(theirs.lambda_(t)), t, atol=1e-12)


class Rooted(LinearSDE):
    """VP again, from alpha and a sigma whose slope at 0 is infinite."""

    def alpha(self, t):
        return VPSDE().alpha(t)

    def sigma(self, t):
        return VPSDE().sigma(t)


def test_g_is_finite_where_sigma_starts_like_a_root() -> None:
    t = torch.tensor([0.0, 0.3], dtype=torch.float64)
    assert torch.allclose(Rooted().g(t), VPSDE().g(t), rtol=1e-6)


def test_coefficients_are_the_same_in_inference_mode() -> None:
    t = torch.tensor(0.5, dtype=torch.float64)
    x = torch.ones(2, 2, dtype=torch.float64)
    with torch.inference_mode():
        assert float(Alone().rate(t)) == pytest.approx(-2)
        assert float(Alone().g(t)) == pytest.approx(2**0.5)
        assert torch.allclose(Scalar().noise_divergence(x, t), 2 * x)


def test_steep_schedules_keep_finite_lambda() -> None:
    steep = VPSDE(LinearBeta(0.1, 2000.0))
    assert float(steep.lambda_(time(1.0))) == pytest.approx(-0.5 * 1000.05, rel=1e-12)
    assert float(steep.time(steep.lambda_(time(0.9)))) == pytest.approx(0.9, rel=1e-12)
    sub_vp = SubVPSDE(LinearBeta(0.1, 200.0))
    assert float(sub_vp.time(sub_vp.lambda_(time(0.9)))) == pytest.approx(0.9, rel=1e-9)


class Reaching(Alone):
    """Its alpha is 0 at the horizon it forgot to lower."""

    horizon = 1.0


class Diagonal(SDE):
    """A non-linear SDE whose diagonal diffusion g_i(x) mixes coordinates."""

    def drift(self, x, t):  # noqa: ARG002
        return -(x**3)

    def diffusion(self, x, t):  # noqa: ARG002
        return torch.stack([x[:, 0] * x[:, 1], 1 + x[:, 1] ** 2], 1)


class Scalar(SDE):
    def drift(self, x, t):  # noqa: ARG002
        return -x

    def diffusion(self, x, t):  # noqa: ARG002
        return (1 + (x**2).sum(1, keepdim=True)).sqrt()


def test_noise_divergence_of_state_dependent_diffusion() -> None:
    x = torch.tensor([[0.5, 2.0], [-1.0, 0.3]], dtype=torch.float64)
    # Diagonal: row i is ∂(g_i²)/∂x_i = (2 x0 x1², 4 x1 (1 + x1²)). Scalar: ∇g² = 2x.
    expected = torch.stack([2 * x[:, 0] * x[:, 1] ** 2, 4 * x[:, 1] * (1 + x[:, 1] ** 2)], 1)
    assert torch.allclose(Diagonal().noise_divergence(x, time(0.5)), expected, rtol=1e-13)
    assert torch.allclose(Scalar().noise_divergence(x, time(0.5)), 2 * x, rtol=1e-13)


@pytest.mark.parametrize("beta", [0.1, LinearBeta, linear_betas(10)], ids=type)
@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE])
def test_beta_is_a_schedule_object(kind, beta) -> None:
    with pytest.raises(TypeError, match=r"beta must be a schedule, got .*; pass LinearBeta"):
        kind(beta)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: VESDE(1.0, 0.5), "0 < sigma_min < sigma_max, got 1.0, 0.5"),
        (lambda: EDMSDE(-1.0), "sigma_max must be finite and above 0, got -1.0"),
        (lambda: EDMSDE(0.001), "be above 0.002"),
        (lambda: log_snr(Reaching(), 4), "set its horizon a little below 1"),
        (
            lambda: VPSDE().perturb(torch.zeros(2, 3), time(0.5), torch.zeros(2, 2)),
            r"eps must have the shape \(2, 3\) of x0, got \(2, 2\)",
        ),
        (
            lambda: VPSDE().perturb(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2, 3)),
            r"t must have shape \(\) or \(2,\)",
        ),
    ],
)
def test_bad_values_are_refused(make, text) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@every_sde
def test_times_of_a_batch_are_those_of_its_samples_bit_for_bit(sde) -> None:
    """Some functions of torch round a number by its place in the tensor: hypot, sigmoid, pow."""
    ends = sde.lambda_(torch.tensor([1e-3, 0.99 * sde.horizon], dtype=torch.float64))
    lambda_ = torch.linspace(float(ends[0]), float(ends[1]), 201, dtype=torch.float64)
    together = sde.time(lambda_)
    for i in range(0, 201, 3):
        alone = sde.time(lambda_[i : i + 1])
        assert torch.equal(alone, together[i : i + 1])
        for at in (sde.alpha, sde.sigma, sde.rate, sde.g, sde.lambda_):
            assert torch.equal(at(alone), at(together)[i : i + 1])
