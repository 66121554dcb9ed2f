"""Grids are what their definitions say, own their ends, and refuse by name."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    RectifiedFlow,
    SubVPSDE,
    karras,
    lattice,
    log_snr,
    quadratic,
    uniform,
)
from sde_diffusion.grids import check_grid

FAMILY = [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow()]


@pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_every_grid_is_strictly_falling_with_exact_ends(sde, steps) -> None:
    for grid in (
        uniform(steps, sde.horizon, sde.cutoff),
        quadratic(steps, sde.horizon, sde.cutoff),
        log_snr(sde, steps),
        karras(sde, steps),
    ):
        check_grid(grid, sde.horizon)
        assert len(grid) == steps + 1
        assert bool((grid.diff() < 0).all())
        assert (float(grid[0]), float(grid[-1])) == (sde.horizon, sde.cutoff)


@pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
def test_log_snr_steps_are_equal_in_lambda(sde) -> None:
    h = sde.lambda_(log_snr(sde, 30)).diff()
    assert torch.allclose(h, h.mean().expand(30), rtol=1e-8)


def test_karras_is_equation_5_in_edms_sigma() -> None:
    sde, n, rho = EDMSDE(80.0), 18, 7
    i = torch.arange(n, dtype=torch.float64)
    # Their σ_i, i = 0 … N−1, between σ_max = 80 and σ_min = .002.
    sigma = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    assert torch.allclose(sde.sigma(karras(sde, n - 1)), sigma, rtol=1e-12)


def test_lattice_holds_whole_fractions() -> None:
    assert torch.equal(lattice(1000), torch.arange(1000, -1, -1, dtype=torch.float64) / 1000)
    sparse = lattice(1000, 7) * 1000
    assert torch.equal(sparse, sparse.round())
    assert sparse[0] == 1000
    assert sparse[-1] == 0


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: uniform(0), ValueError, "uniform: steps must be at least 1, got 0"),
        (lambda: uniform(2.5), TypeError, "steps must be an integer, got 2.5"),
        (lambda: uniform(5, 1.5), ValueError, r"two different times in \[0, 1\], got 1.5"),
        (lambda: quadratic(5, 0.5, 0.5), ValueError, "two different times"),
        (lambda: lattice(10, 11), ValueError, "at most n = 10, got 11"),
        (lambda: karras(VPSDE(), 5, rho=-1), ValueError, "rho must be finite and above 0"),
        (lambda: log_snr(VPSDE(), 5, end=0.0), ValueError, "where lambda is finite, got 0.0"),
        (lambda: log_snr(RectifiedFlow(), 5, start=1.0), ValueError, r"lie in \(0, 0.999\]"),
        (lambda: karras(5, 5), TypeError, "sde must be a LinearSDE, got int"),
        (lambda: check_grid([1.0, 0.5]), TypeError, "must be a torch.Tensor, got list"),
        (lambda: check_grid(torch.tensor([1.0, 0.5])), TypeError, "float64 on the CPU"),
        (lambda: check_grid(torch.ones(1).double()), ValueError, "at least 2 times"),
        (lambda: check_grid(torch.eye(2).double()), ValueError, "one row"),
        (
            lambda: check_grid(torch.tensor([1.0, 0.3, 0.5]).double()),
            ValueError,
            "strictly monotone and finite, got 0.3, 0.5 at places 1, 2",
        ),
        (lambda: check_grid(torch.tensor([1.0, 1.0]).double()), ValueError, "strictly monotone"),
        (
            lambda: check_grid(torch.tensor([1.0, math.nan]).double()),
            ValueError,
            "strictly monotone and finite",
        ),
        (lambda: check_grid(torch.tensor([1.0, -0.1]).double()), ValueError, "got -0.1"),
        (lambda: check_grid(uniform(5), 0.999), ValueError, r"lie in \[0, 0.999\], got 1"),
    ],
)
def test_bad_grids_are_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
