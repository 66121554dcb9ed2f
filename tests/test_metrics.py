"""Distances against closed forms and brute force; intervals against their coverage."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from sde_diffusion.diagnostics.metrics import (
    Interval,
    Reference,
    directions,
    frechet_distance,
    median_distance,
    mmd,
    paired_interval,
    rms_distance,
    sliced_wasserstein,
)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def quantiles(n: int, mean: float, std: float) -> Tensor:
    """The n mid-quantiles of a normal: a sample without luck."""
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (mean + std * torch.special.ndtri(levels))[:, None]


def test_rms_distance_is_per_coordinate() -> None:
    x = normal(5, 2, 3, seed=0)
    assert rms_distance(x, x + 0.3) == pytest.approx(0.3, rel=1e-12)


def test_rms_distance_refuses_unpaired_samples() -> None:
    with pytest.raises(ValueError, match=r"rms_distance: y must have the shape \(2, 1\)"):
        rms_distance(torch.zeros(2, 1), torch.zeros(3, 1))


def test_directions_have_length_one_and_mean_square_one_over_d() -> None:
    theta = directions(4, 20_000, seed=1)
    assert torch.allclose(theta.norm(dim=0), torch.ones(20_000, dtype=torch.float64))
    assert torch.allclose(theta @ theta.T / 20_000, torch.eye(4).double() / 4, atol=0.01)


def test_sliced_wasserstein_of_point_masses() -> None:
    a = torch.tensor([1.0, 2.0, 2.0])
    b = torch.tensor([0.0, 0.0, 0.0])
    theta = directions(3, 64, seed=3)
    expected = ((a.double() - b.double()) @ theta).square().mean().sqrt()
    for n, m in [(4, 4), (3, 5)]:
        got = sliced_wasserstein(a.expand(n, 3), b.expand(m, 3), 64, seed=3)
        assert got == pytest.approx(float(expected), rel=1e-12)
    # E (θ·a)² = ‖a‖²/D = 3 over the whole sphere.
    many = sliced_wasserstein(a.expand(2, 3), b.expand(2, 3), 50_000)
    assert many**2 == pytest.approx(3.0, rel=0.02)


@given(st.integers(2, 9), st.integers(0, 1000))
def test_a_shift_moves_the_sliced_distance_by_its_projections(n: int, seed: int) -> None:
    x = normal(n, 2, 2, seed=seed)
    shift = normal(2, 2, seed=seed + 1)
    expected = (shift.flatten() @ directions(4, 32)).square().mean().sqrt()
    assert sliced_wasserstein(x, x + shift, 32) == pytest.approx(float(expected), rel=1e-9)


def test_sliced_wasserstein_of_one_dimensional_normals() -> None:
    x = quantiles(20_000, 1.0, 2.0)
    y = quantiles(20_000, -0.5, 0.5)
    closed_form = math.sqrt(1.5**2 + 1.5**2)
    assert sliced_wasserstein(x, y, 2) == pytest.approx(closed_form, rel=1e-4)
    fewer = quantiles(7_001, -0.5, 0.5)
    assert sliced_wasserstein(x, fewer, 2) == pytest.approx(closed_form, rel=1e-3)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 1000))
def test_unequal_sizes_are_the_repeated_samples(n: int, m: int, seed: int) -> None:
    x = normal(n, 3, seed=seed)
    y = normal(m, 3, seed=seed + 1)
    repeated = sliced_wasserstein(x.repeat(m, 1), y.repeat(n, 1), 16)
    assert sliced_wasserstein(x, y, 16) == pytest.approx(repeated, rel=1e-12)
    assert sliced_wasserstein(x, y, 16) == pytest.approx(sliced_wasserstein(y, x, 16), rel=1e-12)


def test_sliced_wasserstein_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    sliced_wasserstein(normal(4, 2, seed=0), normal(4, 2, seed=1))
    assert bool((torch.random.get_rng_state() == before).all())


def test_mmd_against_brute_force() -> None:
    x = normal(5, 1, 2, seed=0)
    y = normal(4, 1, 2, seed=1) + 1
    h = 0.8

    def kernel(a: Tensor, b: Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * h * h))

    xx = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    xy = [kernel(a, b) for a in x for b in y]
    expected = sum(xx) / 20 + sum(yy) / 12 - 2 * sum(xy) / 20
    assert mmd(x, y, h) == pytest.approx(expected, rel=1e-12)


def test_mmd_is_unbiased_for_normals() -> None:
    d = 2
    h = 1.5
    r = 1.0
    s = 0.5
    shift = 0.7

    def mean_kernel(variance: float, distance2: float) -> float:
        total = h * h + variance  # of the difference, convolved with the kernel
        return float((h * h / total) ** (d / 2) * math.exp(-distance2 / (2 * total)))

    closed_form = (
        mean_kernel(2 * r * r, 0)
        + mean_kernel(2 * s * s, 0)
        - 2 * mean_kernel(r * r + s * s, d * shift**2)
    )
    draws = [
        mmd(r * normal(40, d, seed=2 * k), s * normal(30, d, seed=2 * k + 1) + shift, h)
        for k in range(400)
    ]
    interval = paired_interval(draws, level=0.99)
    assert closed_form in interval
    assert interval.half_width < 0.04 * closed_form


def test_the_bandwidth_is_the_median_distance_of_the_reference_alone() -> None:
    y = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
    assert median_distance(y) == 2.0
    x = normal(6, 1, seed=0)
    assert mmd(x, y) == mmd(x, y, 2.0)
    assert mmd(100 * x, y) == mmd(100 * x, y, 2.0)


def test_mmd_sums_blocks_of_rows_like_one_matrix() -> None:
    x = normal(2_500, 2, seed=0)
    y = normal(30, 2, seed=1)
    gap = x[:, None] - y[None]
    within_x = torch.exp(-0.5 * torch.cdist(x, x).square()).sum() - 2_500
    within_y = torch.exp(-0.5 * torch.cdist(y, y).square()).sum() - 30
    cross = torch.exp(-0.5 * gap.square().sum(2)).mean()
    expected = within_x / (2_500 * 2_499) + within_y / (30 * 29) - 2 * cross
    assert mmd(x, y, 1.0) == pytest.approx(float(expected), abs=1e-10)


def test_mmd_of_data_far_from_the_origin_loses_nothing() -> None:
    x = normal(60, 3, seed=0)
    y = normal(50, 3, seed=1)
    assert mmd(x + 1000, y + 1000, 0.7) == pytest.approx(mmd(x, y, 0.7), abs=1e-9)


def exactly(n: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """A sample whose own mean and covariance are these."""
    z = normal(n, len(mean), seed=seed)
    z = z - z.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(z.T @ z / (n - 1)), z.T, upper=False
    )
    return (torch.linalg.cholesky(covariance) @ white).T + mean


def test_the_frechet_distance_is_that_of_the_two_gaussians() -> None:
    from scipy.linalg import sqrtm

    d = 4
    halves = [normal(d, d, seed=k) for k in (0, 1)]
    c, e = (a @ a.T + 0.1 * torch.eye(d) for a in halves)
    m = normal(d, seed=2)
    root = torch.from_numpy(sqrtm((c @ e).numpy()).real)
    expected = math.sqrt(float(m.square().sum() + (c + e - 2 * root).trace()))
    x = exactly(50, m, c, 3)
    y = exactly(70, torch.zeros(d).double(), e, 4)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x.reshape(50, 2, 2), y.reshape(70, 2, 2)) == pytest.approx(
        expected, rel=1e-9
    )
    assert frechet_distance(y, y) < 1e-6


def test_the_frechet_distance_looks_where_the_reference_varies_most() -> None:
    variances = torch.tensor([9.0, 0.01, 4.0], dtype=torch.float64)
    x = exactly(40, torch.tensor([3.0, 50.0, 4.0]).double(), variances.diag(), 0)
    y = exactly(60, torch.zeros(3).double(), variances.diag(), 1)
    assert frechet_distance(x, y, components=2) == pytest.approx(5.0, rel=1e-9)
    assert frechet_distance(x, y, components=1) == pytest.approx(3.0, rel=1e-9)
    assert frechet_distance(x, y) > 50


def test_a_reference_measures_like_the_functions() -> None:
    x = normal(30, 2, 3, seed=0)
    y = 1.3 * normal(1500, 2, 3, seed=1)
    found = Reference(y, projections=16, seed=5)
    assert found.sliced_wasserstein(x) == pytest.approx(sliced_wasserstein(x, y, 16, 5), rel=1e-12)
    assert found.mmd(x) == pytest.approx(mmd(x, y), rel=1e-9)
    assert found.frechet(x) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert found.bandwidth == median_distance(y)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: frechet_distance(torch.zeros(1, 2), torch.eye(2)), "x must hold at least 2"),
        (lambda: frechet_distance(torch.eye(2), torch.eye(2), 0), "components must be at least 1"),
        (lambda: Reference(torch.eye(2)).mmd(torch.zeros(3, 3)), "Reference: x, y must be"),
        (lambda: mmd(torch.zeros(1, 2), torch.zeros(2, 2)), "x must hold at least 2 samples"),
        (lambda: mmd(torch.zeros(2, 2), torch.zeros(2, 2)), "y must hold different rows"),
        (lambda: mmd(torch.zeros(2, 2), torch.eye(2), -1.0), "bandwidth must be finite and above"),
        (lambda: sliced_wasserstein(torch.zeros(2, 2), torch.zeros(2, 3)), "one event shape"),
        (lambda: sliced_wasserstein(torch.zeros(2, 2), torch.zeros(0, 2)), "y must hold at least"),
        (lambda: sliced_wasserstein(torch.eye(2), torch.eye(2), 0), "projections must be at"),
        (lambda: paired_interval([1.0]), "values must hold at least 2 replicates"),
        (lambda: paired_interval([1.0, 2.0], 1.0), "level must lie in"),
    ],
)
def test_wrong_input_is_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=words):
        call()


def test_the_interval_has_students_width() -> None:
    # t with 2 degrees of freedom at .975 is 4.302653 in every table; s/√n = 1/√3.
    assert paired_interval([1.0, 2.0, 3.0]).half_width == pytest.approx(4.302653 / math.sqrt(3))
    assert paired_interval([1.0, 2.0, 3.0]).mean == 2.0


@pytest.mark.parametrize(("n", "level"), [(2, 0.95), (4, 0.95), (4, 0.5)])
def test_the_interval_covers_the_mean_as_often_as_it_says(n: int, level: float) -> None:
    trials = 4000
    rows = (3.0 + 2.0 * normal(trials, n, seed=n)).tolist()
    hits = sum(3.0 in paired_interval(row, level) for row in rows)
    assert hits / trials == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / trials))


def test_an_interval_contains_its_ends_and_no_more() -> None:
    interval = Interval(1.0, 0.5)
    assert [value in interval for value in (0.4, 0.5, 1.5, 1.6)] == [False, True, True, False]
