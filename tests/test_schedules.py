"""The schedules' published constants, and their integrals and inverses against each other."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, strategies as st

import sde_diffusion
from sde_diffusion import VPSDE, CosineBeta, DiscreteBeta, LinearBeta, cosine_betas, linear_betas
from sde_diffusion.schedules import (
    Beta,
    betas_of,
    scaled_linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)
from sde_diffusion.sde import derivative

SCHEDULES = [
    LinearBeta(),
    LinearBeta(1.0, 1.0),
    CosineBeta(),
    DiscreteBeta(linear_betas(1000)),
    DiscreteBeta(cosine_betas(50)),
]


def time(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_integral_is_the_integral_of_beta(schedule) -> None:
    # Lattice-aligned midpoints: the rule is exact for the piecewise-constant schedules.
    n = 200_000
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    by_quadrature = torch.cumsum(schedule.beta(t), 0) / n
    at = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert torch.allclose(schedule.integral(at), by_quadrature, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(t=st.floats(1e-6, 1.0))
def test_inverse_undoes_integral(schedule, t: float) -> None:
    assert schedule.inverse(schedule.integral(time(t))).item() == pytest.approx(t, abs=1e-12)


@pytest.mark.parametrize("schedule", [LinearBeta(), CosineBeta()], ids=repr)
def test_beta_is_the_derivative_of_integral(schedule) -> None:
    t = torch.linspace(1e-4, 0.9999, 999, dtype=torch.float64)
    assert torch.allclose(derivative(schedule.integral, t), schedule.beta(t), rtol=1e-8)


# A value of each constructor argument, and another.
VALUES = {
    "low": (0.1, 0.2),
    "high": (20.0, 10.0),
    "s": (0.008, 0.01),
    "max_beta": (6907.0, 1000.0),
    "betas": ([0.1, 0.2, 0.3], [0.1, 0.2, 0.30000001]),
}


def made(kind: type[Beta], *, other: str = "") -> Beta:
    """Return a new schedule; the argument ``other`` has its other value."""
    names = [field.name for field in fields(kind) if field.init]
    values = {name: VALUES[name][name == other] for name in names}
    return kind(**{k: time(*v) if isinstance(v, list) else v for k, v in values.items()})


def exported_schedules() -> list[type[Beta]]:
    found = (getattr(sde_diffusion, name) for name in sde_diffusion.__all__)
    kinds = (kind for kind in found if isinstance(kind, type) and issubclass(kind, Beta))
    return [kind for kind in kinds if not inspect.isabstract(kind)]


def test_every_schedule_is_equal_and_hashed_by_value() -> None:
    kinds = exported_schedules()
    assert {LinearBeta, CosineBeta, DiscreteBeta} <= set(kinds)
    known = {made(kind): kind for kind in kinds}
    for kind in kinds:
        assert made(kind) == made(kind)
        assert hash(made(kind)) == hash(made(kind))
        assert known[made(kind)] is kind
        for field in fields(kind):
            if field.init:
                assert made(kind) != made(kind, other=field.name)
                assert made(kind, other=field.name) not in known
        assert made(kind).__eq__(0.1) is NotImplemented


def test_betas_are_compared_as_float64_and_by_their_length() -> None:
    betas = linear_betas(10)
    assert DiscreteBeta(betas.float()) == DiscreteBeta(betas.float().double())
    assert DiscreteBeta(betas) != DiscreteBeta(betas[:9])
    assert DiscreteBeta(betas[:1]) != DiscreteBeta(betas[:1].repeat(2))


def test_a_schedule_does_not_change_with_the_tensor_it_was_made_of() -> None:
    betas = linear_betas(10)
    schedule = DiscreteBeta(betas)
    betas[0] = 0.5
    assert schedule == DiscreteBeta(linear_betas(10))
    assert hash(schedule) == hash(DiscreteBeta(linear_betas(10)))


def test_linear_ddpm_constants() -> None:
    # ᾱ_1000 = 4.0358e-5 and L_T = 2.9e-5 bits/dim at x0 = ±1 for betas 1e-4 … .02.
    alpha_bar = float(torch.exp(-DiscreteBeta(linear_betas(1000)).integral(time(1.0))))
    assert alpha_bar == pytest.approx(4.0358e-5, rel=1e-4)
    kl = 0.5 * ((1 - alpha_bar) + alpha_bar - 1 - math.log(1 - alpha_bar)) / math.log(2)
    assert kl == pytest.approx(2.9e-5, rel=0.01)


def test_cosine_ddpm_constants() -> None:
    betas = cosine_betas(1000)
    assert betas[0].item() == pytest.approx(4.128e-5, rel=1e-3)
    assert int((betas == 0.999).sum()) == 1
    alpha_bar = float(torch.prod(1 - betas))
    assert alpha_bar == pytest.approx(2.43e-9, rel=2e-3)


def test_discrete_alpha_bar_is_the_product_of_one_minus_beta() -> None:
    betas = linear_betas(1000)
    lattice = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha = VPSDE(DiscreteBeta(betas)).alpha(lattice)
    assert torch.allclose(alpha**2, torch.cumprod(1 - betas, 0), rtol=1e-13)


def test_discrete_beta_at_a_lattice_time_is_that_of_the_step_below() -> None:
    """β(k/N) = −N log(1 − β_k): backward steps from k/N cross the cell ((k−1)/N, k/N]."""
    betas = linear_betas(1000)
    lattice = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(DiscreteBeta(betas).beta(lattice), -1000 * torch.log1p(-betas))


def test_linear_betas_tend_to_the_linear_sde_at_rate_one_over_n() -> None:
    # beta_k = (.1 + 19.9 k/N)/N, the discretisation of β(t): B differs by O(1/N).
    def gap(n: int) -> float:
        k = torch.arange(1, n + 1, dtype=torch.float64)
        schedule = DiscreteBeta((0.1 + 19.9 * k / n) / n)
        return abs(float(schedule.integral(time(1.0)) - LinearBeta().integral(time(1.0))))

    assert math.log2(gap(1000) / gap(2000)) == pytest.approx(1, abs=0.01)


def test_cosine_integral_keeps_its_digits_near_zero() -> None:
    """B ≈ β(0) t: the difference of logarithms would be 8 % off at 1e-5 in float32."""
    t = torch.tensor(1e-5)
    exact = float(CosineBeta().beta(torch.tensor(0.5e-5, dtype=torch.float64))) * 1e-5
    assert float(CosineBeta().integral(t)) == pytest.approx(exact, rel=1e-5)


def test_whole_times_may_be_integers() -> None:
    schedule = DiscreteBeta(linear_betas(100))
    assert float(schedule.integral(torch.tensor(1))) == float(schedule.integral(time(1.0)))


def test_continuous_cosine_follows_the_published_alpha_bar() -> None:
    t = torch.linspace(0, 0.999, 300, dtype=torch.float64)
    f = torch.cos(math.pi / 2 * (t + 0.008) / 1.008) ** 2
    assert torch.allclose(torch.exp(-CosineBeta().integral(t)), f / f[0], rtol=1e-10)


def test_scaled_linear_betas_have_equally_spaced_roots() -> None:
    betas = scaled_linear_betas(1000)
    assert betas[[0, -1]].tolist() == pytest.approx([0.00085, 0.012], rel=1e-12)
    assert torch.allclose(betas.sqrt().diff(), betas.sqrt().diff()[:1], rtol=1e-9)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3.0, 3.0, 1.0), (-2.0, 3.0, 0.7)])
def test_sigmoid_betas_are_those_of_the_published_alpha_bar(start, end, tau) -> None:
    """Jabri et al.'s algorithm in Python: (s(end) − s(u))/(s(end) − s(start)), u at t."""

    def s(y: float) -> float:
        return 1 / (1 + math.exp(-y / tau))

    betas = sigmoid_betas(100, start, end, tau)
    bars = torch.cumprod(1 - betas, 0).tolist()
    for k in range(1, 100):  # the last is clipped
        expected = (s(end) - s(k / 100 * (end - start) + start)) / (s(end) - s(start))
        assert bars[k - 1] == pytest.approx(expected, rel=1e-10)
    assert betas[-1].item() == 0.999


def test_betas_of_an_alpha_bar_give_it_back() -> None:
    betas = betas_of(lambda t: torch.exp(-3 * t**2), 50)
    t = torch.arange(1, 51, dtype=torch.float64) / 50
    assert torch.allclose(torch.cumprod(1 - betas, 0), torch.exp(-3 * t**2), rtol=1e-12)


def test_zero_terminal_snr_is_that_of_lin_et_al() -> None:
    """Algorithm 1: √ᾱ − √ᾱ_N, scaled back to the first; and what a small terminal leaves."""
    betas = scaled_linear_betas(1000)
    root = torch.cumprod(1 - betas, 0).sqrt()
    shifted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bar = shifted**2
    alphas = torch.cat([bar[:1], bar[1:] / bar[:-1]])
    assert torch.allclose(zero_terminal_snr(betas), 1 - alphas, rtol=1e-9)
    assert zero_terminal_snr(betas)[-1].item() == 1
    near = DiscreteBeta(zero_terminal_snr(betas, 1e-3))
    assert float(VPSDE(near).alpha(time(1.0))) == pytest.approx(1e-3, rel=1e-9)
    assert float(VPSDE(near).alpha(time(0.001))) == pytest.approx(float(root[0]), rel=1e-12)


def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

    betas = linear_betas(1000)
    assert torch.allclose(zero_terminal_snr(betas), rescale_zero_terminal_snr(betas), rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: LinearBeta(2.0, 1.0), ValueError, r"0 < low <= high, got 2.0, 1.0"),
        (lambda: LinearBeta(-1.0, 1.0), ValueError, r"0 < low <= high"),
        (lambda: CosineBeta(s=0.0), ValueError, r"s must be above 0, got 0.0"),
        (lambda: CosineBeta(max_beta=0.001), ValueError, r"above beta\(0\)"),
        (lambda: DiscreteBeta([0.1]), TypeError, r"betas must be a torch.Tensor, got list"),
        (lambda: DiscreteBeta(torch.ones(2, 2) / 2), ValueError, r"one non-empty row"),
        (lambda: DiscreteBeta(time(0.1, 1.1)), ValueError, r"k = 2\) must .* of 1, got 1.1"),
        (lambda: DiscreteBeta(time(1.0, 0.1)), ValueError, r"k = 1\) must .* of 1, got 1.0"),
        (lambda: linear_betas(0), ValueError, r"n must be at least 1, got 0"),
        (lambda: betas_of(torch.cos, 0), ValueError, r"n must be at least 1, got 0"),
        (lambda: zero_terminal_snr(linear_betas(9), 1.0), ValueError, r"terminal must be at leas"),
    ],
)
def test_bad_schedules_are_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()


# --- numbers that are no betas ---

CHAINS = {
    "linear": linear_betas(1000),
    "scaled linear": scaled_linear_betas(1000),
    "cosine": cosine_betas(1000),
    "sigmoid": sigmoid_betas(1000),
    "cosine of 4": cosine_betas(4),
    "sigmoid of 10": sigmoid_betas(10),
    "constant": torch.full((1000,), 0.01, dtype=torch.float64),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_alphas_of_a_chain_are_refused_and_the_remedy_gives_its_betas(name: str) -> None:
    betas = CHAINS[name]
    alphas = 1 - betas
    a = torch.cumprod(alphas, 0)
    for wrong in (alphas, a, a.sqrt()):
        with pytest.raises(ValueError, match="betas must begin with small ones") as refused:
            DiscreteBeta(wrong)
        said = str(refused.value).partition("; ")[2]
        assert said.startswith("pass 1 - alphas, or with a = alphas_cumprod pass ")
        for part, remedied in (("pass 1 - alphas", 1 - alphas), ("pass 1 - a / torch.cat", None)):
            assert part in said
            if remedied is None:  # typed as it stands
                remedied = eval(said.rpartition("pass ")[2], {"a": a, "torch": torch})
            assert torch.allclose(DiscreteBeta(remedied).betas, betas, rtol=1e-6, atol=1e-12)


def test_noise_levels_and_chains_that_end_in_data_are_refused() -> None:
    a = torch.cumprod(1 - linear_betas(1000), 0)
    with pytest.raises(ValueError, match=r"leave a signal up to the last of 1000 steps.*1 - ᾱ; "):
        DiscreteBeta(1 - a)
    with pytest.raises(ValueError, match=r"leave noise after 1000.* ᾱ_N = 0\.99; pass"):
        DiscreteBeta(linear_betas(1000) / 1000)  # e^{-10.05/1000}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 10, 50])
@pytest.mark.parametrize(
    "family", [linear_betas, scaled_linear_betas, cosine_betas, sigmoid_betas]
)
def test_short_respaced_and_zero_terminal_chains_are_chains(family, n: int) -> None:
    betas = family(n)
    assert len(DiscreteBeta(betas).betas) == n
    if n > 1:
        assert DiscreteBeta(zero_terminal_snr(betas)).betas[-1] == 1
    # Every third, fourth … step of a long chain, the last kept, as in "trailing".
    bar = torch.cumprod(1 - family(1000), 0)[999 % (1000 // n) :: 1000 // n]
    respaced = 1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])
    assert torch.equal(DiscreteBeta(respaced).betas, respaced)
