"""Laws of white noise, per-sample noise and the Brownian path."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sde_diffusion import (
    VPSDE,
    BrownianPath,
    Gaussian,
    Hutchinson,
    PerSampleNoise,
    WhiteNoise,
    sample,
    uniform,
)
from sde_diffusion._seeds import mix
from sde_diffusion.brownian import _Tree
from sde_diffusion.solvers import AngularAdams

IRREGULAR = torch.tensor([0.97, 0.9, 0.5, 0.49, 0.3, 0.05, 0.01], dtype=torch.float64)
GRIDS = pytest.mark.parametrize(
    "grid",
    [None, uniform(16), uniform(9, 0.0, 0.97), IRREGULAR],
    ids=["none", "falling", "rising", "irregular"],
)
PATH = BrownianPath(0)
NORMAL = Gaussian(torch.zeros(20), torch.eye(20)).diffused(VPSDE())
TIMES = [0.0, 0.01, 0.0100001, 0.04, 0.3, 0.311, 0.5, 0.6, 0.96, 0.97]


def time(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def answers(noise, x, intervals) -> torch.Tensor:
    """Return dw and I of every interval in turn, one row each."""
    found = [noise.area(x, *time(t, s)) for t, s in intervals]
    return torch.stack([part.flatten() for both in found for part in both])


def expected(intervals) -> torch.Tensor:
    """Return the covariance of `answers`: of the closed forms of W and A(t) = ∫₀ᵗ W."""
    t, s = torch.tensor(intervals, dtype=torch.float64).T
    times = torch.cat([t, s])
    u = times[:, None]
    v = times[None]
    m = torch.minimum(u, v)
    ww = m
    wa = m * v - m * m / 2  # E W_u A_v = ∫₀ᵛ min(u, r) dr
    aa = m * m * (3 * torch.maximum(u, v) - m) / 6
    joint = torch.cat([torch.cat([ww, wa], 1), torch.cat([wa.T, aa], 1)])
    n = len(t)
    one = torch.eye(len(t), dtype=torch.float64)
    none = torch.zeros(n, n, dtype=torch.float64)
    dw = torch.cat([-one, one, none, none], 1)
    area = torch.cat([-torch.diag(s - t), none, -one, one], 1)  # A_s − A_t − W_t (s − t)
    rows = torch.stack([dw, area], 1).flatten(0, 1)
    return rows @ joint @ rows.T


def white(found: torch.Tensor, law: torch.Tensor) -> bool:
    """Tell whether the rows have this covariance, within 5 standard errors of each entry."""
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(law), found, upper=False)
    n = found.shape[1]
    off = z @ z.T / n - torch.eye(len(z), dtype=z.dtype)
    return bool((off.abs() < 5 * (2 / n) ** 0.5).all() and (z.mean(1).abs() < 5 / n**0.5).all())


class Algebra(_Tree):
    """A tree whose every draw is a unit vector, so that inner products are exact covariances."""

    def __init__(self, path: BrownianPath, draws: int) -> None:
        self.known: dict[tuple[int, float], int] = {}
        x = torch.zeros(draws, 1, dtype=torch.float64)
        super().__init__(path._skeleton, x, x.dtype)

    def draw(self, purpose: int, time: float) -> torch.Tensor:
        z = torch.zeros(self.shape, dtype=self.dtype)
        z[self.known.setdefault((purpose, time), len(self.known))] = 1
        return z


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_per_sample_noise_is_bit_exact_under_any_split(dtype) -> None:
    x = torch.zeros(7, 3, 5, dtype=dtype)
    whole = PerSampleNoise.numbered(4, 0, 7)
    parts = [PerSampleNoise.numbered(4, 0, 2), PerSampleNoise.numbered(4, 2, 5)]
    for _ in range(3):
        split = torch.cat([parts[0].normal(x[:2]), parts[1].normal(x[2:])])
        assert torch.equal(whole.normal(x), split)


DRAWS = {
    "white": lambda x: WhiteNoise(3).normal(x),
    "per-sample": lambda x: PerSampleNoise.numbered(3, 0, len(x)).normal(x),
    "increment": lambda x: WhiteNoise(3).increment(x, *time(0.9, 0.65)),
    "fresh of a path": lambda x: BrownianPath.numbered(3, 0, len(x)).normal(x),
    "prior": lambda x: VPSDE().prior().sample(WhiteNoise(3), x.shape, dtype=x.dtype),
    "gaussian probes": lambda x: Hutchinson(2, law="gaussian").draw(x),
    "sign probes": lambda x: Hutchinson(2).draw(x),
    "a sample's ends": lambda x: sample(NORMAL, AngularAdams(), x.shape, steps=2, dtype=x.dtype).x,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_one_seed_is_one_noise_in_every_dtype(draw) -> None:
    """A row of 20 numbers: from 16 on a generator's float64 draws are others than its float32."""
    single = draw(torch.zeros(3, 20))
    for dtype in (torch.float64, torch.bfloat16):
        found = draw(torch.zeros(3, 20, dtype=dtype))
        assert found.dtype == dtype
        rounding = 20 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        assert torch.allclose(found.double(), single.double(), rtol=rounding, atol=rounding)


def test_float32_draws_are_those_of_the_generator() -> None:
    """So samples in float32 are what they were before float64 ones became the same."""
    x = torch.zeros(3, 20)
    generator = torch.Generator().manual_seed(mix(3))
    assert torch.equal(WhiteNoise(3).normal(x), torch.randn(3, 20, generator=generator))
    generator.manual_seed(7)
    expected = torch.randn(20, generator=generator)
    assert torch.equal(PerSampleNoise([7]).normal(x[:1])[0], expected)


def test_float64_draws_come_on_request() -> None:
    x = torch.zeros(2, 20, dtype=torch.float64)
    rows = [
        torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in (7, 8)
    ]
    found = PerSampleNoise([7, 8], draw_dtype=torch.float64).normal(x)
    assert torch.equal(found, torch.stack(rows))
    numbered = PerSampleNoise.numbered(7, 0, 2, draw_dtype=torch.float64).normal(x.float())
    assert torch.equal(
        numbered, PerSampleNoise.numbered(7, 0, 2, draw_dtype=torch.float64).normal(x).float()
    )
    generator = torch.Generator().manual_seed(mix(3))
    expected = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    assert torch.equal(WhiteNoise(3, draw_dtype=torch.float64).normal(x), expected)


def test_per_sample_seeds_never_collide_within_a_run() -> None:
    seeds = PerSampleNoise.numbered(0, 0, 100_000).seeds
    assert len(set(seeds)) == 100_000


@given(a=st.integers(0, 2**40), b=st.integers(0, 2**40))
def test_mix_separates_seeds_in_the_low_32_bits(a: int, b: int) -> None:
    assert (mix(a) == mix(b)) == (a == b)
    assert 0 <= mix(a, b) < 2**32


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    x = torch.zeros(2, 2)
    (t, s) = time(0.7, 0.3)
    for noise in (WhiteNoise(0), PerSampleNoise([0, 1]), BrownianPath(0)):
        noise.increment(x, t, s)
        noise.normal(x)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "noise",
    [WhiteNoise(1), PerSampleNoise.numbered(1, 0, 50_000), BrownianPath(1)],
    ids=["white", "per-sample", "path"],
)
def test_increments_have_variance_dt_and_are_independent(noise) -> None:
    x = torch.zeros(50_000, 1, dtype=torch.float64)
    (t, s, u) = time(0.9, 0.55, 0.13)
    first = noise.increment(x, t, s)
    second = noise.increment(x, s, u)
    error = 5 / 50_000**0.5
    assert float(first.var() / 0.35) == pytest.approx(1, abs=2**0.5 * error)
    assert float(second.var() / 0.42) == pytest.approx(1, abs=2**0.5 * error)
    assert float((first * second).mean() / (0.35 * 0.42) ** 0.5) == pytest.approx(0, abs=error)
    assert float(first.mean()) == pytest.approx(0, abs=error)


@given(
    times=st.lists(st.integers(0, 2**22), min_size=3, max_size=3, unique=True),
    seed=st.integers(0, 9),
)
def test_increments_of_one_path_add_up(times: list[int], seed: int) -> None:
    path = BrownianPath(seed)
    x = torch.zeros(2, 3, dtype=torch.float64)
    a, b, c = time(*(t / 2**22 for t in times))
    parts = path.increment(x, a, b) + path.increment(x, b, c)
    assert torch.allclose(path.increment(x, a, c), parts, rtol=0, atol=1e-13)
    assert torch.equal(path.increment(x, a, b), -path.increment(x, b, a))


def test_no_time_is_no_increment() -> None:
    t = time(0.3)[0]
    x = torch.ones(2, 1)
    assert torch.equal(BrownianPath(0).increment(x, t, t), torch.zeros(2, 1))


def test_numpy_integers_are_seeds_too() -> None:
    x = torch.zeros(2, 3)
    one, other = (PerSampleNoise.numbered(seed, 0, 2) for seed in (7, np.int64(7)))
    assert torch.equal(one.normal(x), other.normal(x))
    assert torch.equal(WhiteNoise(np.int64(7)).normal(x), WhiteNoise(7).normal(x))


def test_seeds_that_differ_above_32_bits_differ() -> None:
    x = torch.zeros(2, 3)
    assert not torch.equal(WhiteNoise(0).normal(x), WhiteNoise(2**32).normal(x))


@GRIDS
def test_a_path_is_one_path_in_every_dtype(grid) -> None:
    path = BrownianPath(4, grid=grid)
    double = torch.zeros(50, 2, dtype=torch.float64)
    for t, s in pairwise([0.97, 0.5, 0.49, 0.3, 0.2]):
        exact = BrownianPath(4, grid=grid).area(double, *time(t, s))
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            found = path.area(torch.zeros(50, 2, dtype=dtype), *time(t, s))
            for one, other, power in zip(found, exact, (0.5, 1.5), strict=True):
                assert one.dtype == dtype
                rounding = 10 * torch.finfo(dtype).eps * abs(t - s) ** power
                assert torch.allclose(one.double(), other, rtol=0, atol=rounding)


@GRIDS
@given(data=st.data())
def test_a_path_has_exactly_the_law_of_w_and_its_integral(grid, data) -> None:
    """By algebra: to 1e-12 in every covariance, for unequal splits, on the grid and off it."""
    grid_times = [] if grid is None else grid.tolist()
    a_time = st.sampled_from(grid_times or [0.0]) | st.integers(0, 970).map(lambda k: k / 1000)
    intervals = data.draw(st.lists(st.tuples(a_time, a_time), min_size=1, max_size=4))
    path = BrownianPath(0, grid=grid, depth=14)
    path._tree = Algebra(path, 300)
    found = answers(path, torch.zeros(300, 1, dtype=torch.float64), intervals)
    assert torch.allclose(found @ found.T, expected(intervals), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "make",
    [BrownianPath, lambda seed, **given: BrownianPath.numbered(seed, 0, 400, **given)],
    ids=["batch", "numbered"],
)
@GRIDS
def test_a_path_has_that_law_with_its_own_draws_too(make, grid) -> None:
    path = make(1, grid=grid, depth=10)
    x = torch.zeros(400, 100, dtype=torch.float64)
    intervals = [(0.97, 0.6), (0.6, 0.5), (0.5, 0.3), (0.1, 0.3), (0.1, 0.05), (0.05, 0.0)]
    assert white(answers(path, x, intervals), expected(intervals))


@pytest.mark.parametrize(
    "noise", [WhiteNoise(3), PerSampleNoise.numbered(3, 0, 400)], ids=["white", "per-sample"]
)
def test_independent_noise_has_the_law_of_the_area(noise) -> None:
    intervals = [(0.9, 0.55), (0.55, 0.1), (0.3, 0.8)]
    found = answers(noise, torch.zeros(400, 100, dtype=torch.float64), intervals)
    law = torch.block_diag(*(expected([interval]) for interval in intervals))
    assert white(found, law)


@GRIDS
@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_a_path_does_not_depend_on_the_order_or_kind_of_the_questions(grid, seed) -> None:
    x = torch.zeros(3, 5)
    draw = random.Random(seed)
    questions = [(kind, *draw.sample(TIMES, 2)) for kind in ("unit", "increment", "area") * 4]

    def asked(order) -> dict[tuple[str, float, float], torch.Tensor]:
        path = BrownianPath(5, grid=grid)
        found = {(k, t, s): getattr(path, k)(x, *time(t, s)) for k, t, s in order}
        return {q: torch.stack(z) if isinstance(z, tuple) else z for q, z in found.items()}

    one = asked(questions)
    other = asked(draw.sample(questions, len(questions)))
    assert all(torch.equal(one[q], other[q]) for q in questions)


def test_a_change_of_an_answer_in_place_does_not_change_the_path() -> None:
    path = BrownianPath(5, grid=uniform(4, 1.0, 0.0))
    x = torch.zeros(2, 3)
    (t, s) = time(0.5, 1)
    for ask in (path.unit, path.increment, lambda *a: path.area(*a)[0]):
        first = ask(x, t, s)
        kept = first.clone()
        first.zero_()
        assert torch.equal(ask(x, t, s), kept)


@GRIDS
@given(times=st.permutations(TIMES).map(lambda times: times[:3]))
def test_areas_of_one_path_add_up_and_turn_round(grid, times) -> None:
    path = BrownianPath(8, grid=grid)
    x = torch.zeros(9, 2).double()
    (t, s, r) = time(*times)
    (dw, area), (dw2, area2), (dw3, area3) = (
        path.area(x, *interval) for interval in ((t, s), (s, r), (t, r))
    )
    assert torch.allclose(dw + dw2, dw3, rtol=0, atol=1e-14)
    assert torch.allclose(area + area2 + dw * (r - s), area3, rtol=0, atol=1e-14)
    assert torch.allclose(path.area(x, s, t)[1], dw * (s - t) - area, rtol=0, atol=1e-14)
    assert torch.allclose(path.increment(x, t, s), dw, rtol=0, atol=1e-14)
    assert torch.allclose(path.unit(x, t, s) * (s - t).abs().sqrt(), dw, rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", [20, 64, 200])
@pytest.mark.parametrize("flip", [(), (0,)], ids=["falling", "rising"])
def test_a_solve_along_the_grid_draws_once_a_step(steps, flip) -> None:
    """And once more a step for areas; the memory is logarithmic in the steps."""
    grid = uniform(steps).flip(flip)
    x = torch.zeros(2, 3)
    for kind, most in (("unit", steps + 1), ("area", 2 * steps + 1)):
        path = BrownianPath(0, grid=grid)
        for t, s in pairwise(grid):
            getattr(path, kind)(x, t, s)
        assert path.draws <= most
        assert len(path._tree.splits) <= 3 * (steps + 2).bit_length()


def test_coarser_solves_draw_once_a_step_too() -> None:
    for steps, every in ((256, 8), (80, 4), (96, 32)):
        path = BrownianPath(0, grid=uniform(steps))
        x = torch.zeros(2, 3)
        for t, s in pairwise(uniform(steps // every)):
            path.unit(x, t, s)
        assert path.draws <= steps // every + 1


@pytest.mark.parametrize("turn", [list, reversed], ids=["rising", "falling"])
def test_the_last_time_is_not_drawn_again_off_the_grid(turn) -> None:
    """A solve draws no more than its times do when each is asked for once."""
    path = BrownianPath(0)
    x = torch.zeros(2, 3)
    numbers = sorted(random.Random(1).sample(range(10**6), 40))
    times = time(*(t / 10**6 for t in turn(numbers)))
    for t, s in pairwise(times):
        path.unit(x, t, s)
    new = BrownianPath(0)
    for t in times:
        new.at(x, float(t))
    assert path.draws <= new.draws
    assert len(path._tree.splits) <= 3 * (24 + 2)


def test_a_time_of_the_grid_is_found_in_spite_of_rounding() -> None:
    path = BrownianPath(0, grid=uniform(10, 1.0, 0.0))
    x = torch.zeros(2, 3)
    t = 0.1 + 0.2
    assert t != 0.3
    assert torch.equal(path.increment(x, *time(1.0, t)), path.increment(x, *time(1.0, 0.3)))
    assert path.draws < 10


@GRIDS
def test_numbered_paths_are_bit_exact_under_any_split(grid) -> None:
    x = torch.zeros(7, 3, 5)
    whole = BrownianPath.numbered(4, 0, 7, grid=grid)
    parts = [BrownianPath.numbered(4, 0, 2, grid=grid), BrownianPath.numbered(4, 2, 5, grid=grid)]
    for t, s in pairwise(reversed(TIMES)):
        for ask in ("unit", "increment"):
            split = [
                getattr(part, ask)(y, *time(t, s))
                for part, y in zip(parts, (x[:2], x[2:]), strict=True)
            ]
            assert torch.equal(getattr(whole, ask)(x, *time(t, s)), torch.cat(split))
    split = torch.cat([parts[0].normal(x[:2]), parts[1].normal(x[2:])])
    assert torch.equal(whole.normal(x), split)


@GRIDS
def test_every_numbered_sample_may_ask_at_its_own_times(grid) -> None:
    """What it is told is what its path says to the batch that asks at one time."""
    x = torch.zeros(4, 3)
    t = torch.tensor([0.97, 0.5, 0.3, 0.3], dtype=torch.float64)
    s = torch.tensor([0.3, 0.6, 0.2999, 0.3], dtype=torch.float64)
    batch, own = (BrownianPath.numbered(4, 10, 4, grid=grid) for _ in range(2))
    dw, area = own.area(x, t, s)
    for i in range(4):
        one, other = batch.area(x, t[i], s[i])
        assert torch.equal(dw[i], one[i])
        assert torch.equal(area[i], other[i])
        assert torch.equal(own.unit(x, t, s)[i], batch.unit(x, t[i], s[i])[i])
    assert torch.equal(own.increment(x, t[0], s)[1], batch.increment(x, t[0], s[1])[1])


@pytest.mark.parametrize("t", [0.3, 0.625, 0.93])
def test_a_shallow_tree_still_gives_the_exact_law(t: float) -> None:
    """Below its finest level the path is bridged, not interpolated: Var W(t) = t."""
    x = torch.zeros(50_000, 1, dtype=torch.float64)
    found = BrownianPath(2, depth=2).at(x, t)
    assert float(found.var()) == pytest.approx(t, rel=5 * (2 / 50_000) ** 0.5)


def test_a_long_path_has_the_variance_of_its_time() -> None:
    x = torch.zeros(50_000, 1, dtype=torch.float64)
    (t, s) = time(3.0, 0.5)
    increment = BrownianPath(0, end=4.0).increment(x, t, s)
    assert float(increment.var()) == pytest.approx(2.5, rel=5 * (2 / 50_000) ** 0.5)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: WhiteNoise(-1), ValueError, "seed must be at least 0, got -1"),
        (lambda: WhiteNoise("a"), TypeError, "seed must be an integer, got a"),
        (
            lambda: WhiteNoise(0, draw_dtype=torch.bfloat16),
            ValueError,
            "draw_dtype must be torch.float32 or torch.float64, got torch.bfloat16; drop it",
        ),
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
        (
            lambda: [PATH.at(torch.zeros(2, 1), t) for t in (0.3, 0.3 + 1e-10)],
            ValueError,
            "apart than the finest cell",
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
            lambda: BrownianPath(0, grid=IRREGULAR).increment(torch.zeros(2, 1), *time(0.5, 0.98)),
            ValueError,
            r"lie in \[0, 0.97\], got 0.98",
        ),
        (lambda: BrownianPath(0, grid=IRREGULAR, end=1.0), ValueError, "not be given together"),
        (lambda: BrownianPath(0, grid=IRREGULAR[[0, 2, 1]]), ValueError, "strictly monotone"),
        (lambda: BrownianPath(0, end=-1.0), ValueError, "end must be finite and above 0"),
        (
            lambda: BrownianPath.numbered(0, 0, 3).increment(torch.zeros(2, 1), *time(0.5, 0.9)),
            ValueError,
            "one row for each of the 3 samples",
        ),
        (
            lambda: BrownianPath.numbered(0, 0, 2).area(
                torch.zeros(2, 1), torch.full((3,), 0.5), torch.ones(())
            ),
            ValueError,
            r"have shape \(\) or \(2,\)",
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
