"""Laws of white noise, per-sample noise and the Brownian path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde_diffusion import BrownianPath, PerSampleNoise, WhiteNoise
from sde_diffusion.noise import mix


def time(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_per_sample_noise_is_bit_exact_under_any_split(dtype) -> None:
    x = torch.zeros(7, 3, 5, dtype=dtype)
    whole = PerSampleNoise.numbered(4, 0, 7)
    parts = [PerSampleNoise.numbered(4, 0, 2), PerSampleNoise.numbered(4, 2, 5)]
    for _ in range(3):
        split = torch.cat([parts[0].normal(x[:2]), parts[1].normal(x[2:])])
        assert torch.equal(whole.normal(x), split)


def test_per_sample_seeds_never_collide_within_a_run() -> None:
    seeds = PerSampleNoise.numbered(0, 0, 100_000).seeds
    assert len(set(seeds)) == 100_000


@given(a=st.integers(0, 2**40), b=st.integers(0, 2**40))
def test_mix_separates_seeds_in_the_low_32_bits(a: int, b: int) -> None:
    assert (mix(a) == mix(b)) == (a == b)
    assert 0 <= mix(a, b) < 2**32


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    x, (t, s) = torch.zeros(2, 2), time(0.7, 0.3)
    for noise in (WhiteNoise(0), PerSampleNoise([0, 1]), BrownianPath(0)):
        noise.increment(x, t, s)
        noise.normal(x)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "noise", [WhiteNoise(1), PerSampleNoise.numbered(1, 0, 50_000), BrownianPath(1)],
    ids=["white", "per-sample", "path"],
)  # fmt: skip
def test_increments_have_variance_dt_and_are_independent(noise) -> None:
    x, (t, s, u) = torch.zeros(50_000, 1, dtype=torch.float64), time(0.9, 0.55, 0.13)
    first, second = noise.increment(x, t, s), noise.increment(x, s, u)
    error = 5 / 50_000**0.5
    assert float(first.var() / 0.35) == pytest.approx(1, abs=2**0.5 * error)
    assert float(second.var() / 0.42) == pytest.approx(1, abs=2**0.5 * error)
    assert float((first * second).mean() / (0.35 * 0.42) ** 0.5) == pytest.approx(0, abs=error)
    assert float(first.mean()) == pytest.approx(0, abs=error)


@given(
    times=st.lists(st.integers(0, 2**30), min_size=3, max_size=3, unique=True),
    seed=st.integers(0, 9),
)
def test_increments_of_one_path_add_up(times: list[int], seed: int) -> None:
    path, x = BrownianPath(seed), torch.zeros(2, 3, dtype=torch.float64)
    a, b, c = time(*(t / 2**30 for t in times))
    parts = path.increment(x, a, b) + path.increment(x, b, c)
    assert torch.allclose(path.increment(x, a, c), parts, rtol=0, atol=1e-13)
    assert torch.equal(path.increment(x, a, b), -path.increment(x, b, a))


def test_no_time_is_no_increment() -> None:
    t, x = time(0.3)[0], torch.ones(2, 1)
    assert torch.equal(BrownianPath(0).increment(x, t, t), torch.zeros(2, 1))


def test_numpy_integers_are_seeds_too() -> None:
    x = torch.zeros(2, 3)
    one, other = (PerSampleNoise.numbered(seed, 0, 2) for seed in (7, np.int64(7)))
    assert torch.equal(one.normal(x), other.normal(x))
    assert torch.equal(WhiteNoise(np.int64(7)).normal(x), WhiteNoise(7).normal(x))


def test_seeds_that_differ_above_32_bits_differ() -> None:
    x = torch.zeros(2, 3)
    assert not torch.equal(WhiteNoise(0).normal(x), WhiteNoise(2**32).normal(x))


def test_a_path_is_one_path_in_every_dtype() -> None:
    path, (t, s) = BrownianPath(4), time(0.7, 0.2)
    double = path.increment(torch.zeros(5, 2, dtype=torch.float64), t, s)
    for dtype in (torch.float32, torch.bfloat16):
        found = path.increment(torch.zeros(5, 2, dtype=dtype), t, s)
        assert found.dtype == dtype
        assert torch.allclose(found.double(), double, rtol=2 * torch.finfo(dtype).eps)


def test_a_path_does_not_depend_on_the_order_of_the_questions() -> None:
    x, times = torch.zeros(3, dtype=torch.float64)[:, None], [0.111, 0.9, 0.25, 0.5, 0.7501, 1.0]
    forward, backward = BrownianPath(5), BrownianPath(5)
    one = {t: forward.at(x, t) for t in times}
    other = {t: backward.at(x, t) for t in reversed(times)}
    assert all(torch.equal(one[t], other[t]) for t in times)


@pytest.mark.parametrize("t", [0.3, 0.625, 0.93])
def test_a_shallow_tree_still_gives_the_exact_law(t: float) -> None:
    """Below its finest level the path is bridged, not interpolated: Var W(t) = t."""
    x = torch.zeros(50_000, 1, dtype=torch.float64)
    found = BrownianPath(2, depth=2).at(x, t)
    assert float(found.var()) == pytest.approx(t, rel=5 * (2 / 50_000) ** 0.5)


def test_a_long_path_has_the_variance_of_its_time() -> None:
    x, (t, s) = torch.zeros(50_000, 1, dtype=torch.float64), time(3.0, 0.5)
    increment = BrownianPath(0, end=4.0).increment(x, t, s)
    assert float(increment.var()) == pytest.approx(2.5, rel=5 * (2 / 50_000) ** 0.5)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: WhiteNoise(-1), ValueError, "seed must be at least 0, got -1"),
        (lambda: WhiteNoise("a"), TypeError, "seed must be an integer, got a"),
        (
            lambda: PerSampleNoise([1, 2]).normal(torch.zeros(3, 1)),
            ValueError,
            "one row for each of the 2 seeds",
        ),
        (
            lambda: BrownianPath(0).increment(torch.zeros(2, 1), *time(0.5, 0.5 + 1e-12)),
            ValueError,
            "further apart than the finest cell",
        ),
        (lambda: PerSampleNoise([2**32]), ValueError, r"seeds must be below 2\*\*32"),
        (lambda: PerSampleNoise([1.5]), TypeError, "seed must be an integer, got 1.5"),
        (lambda: WhiteNoise(2**64), ValueError, r"seed must be below 2\*\*64"),
        (
            lambda: BrownianPath(0).increment(torch.zeros(2, 1), *time(0.5, 1.5)),
            ValueError,
            r"lie in \[0, 1.0\], got 1.5",
        ),
        (
            lambda: BrownianPath(0).increment(torch.zeros(2, 1), torch.ones(2), torch.zeros(2)),
            TypeError,
            "one time for the whole batch",
        ),
    ],
)
def test_bad_noise_is_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
