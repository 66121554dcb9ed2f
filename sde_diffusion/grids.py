"""Grids: strictly monotone 1-D float64 CPU tensors of times, and the only owner of end points.

Sampling grids run from noise (t near 1) to data (t near 0) and hold steps + 1 times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_type, wrong_value
from sde_diffusion.sde import LinearSDE


def check_grid(grid: Tensor, horizon: float = 1.0) -> None:
    """Refuse what is not a grid in [0, horizon].

    Errors: TypeError for another kind of object or dtype; ValueError for another shape, device,
    order, or a time outside.
    """
    remedy = "use uniform, quadratic, log_snr, karras or lattice"
    if not isinstance(grid, Tensor):
        raise wrong_type("grid", "grid", "be a torch.Tensor", type(grid).__name__, remedy)
    if grid.dtype != torch.float64 or grid.device.type != "cpu":
        got = f"{grid.dtype} on {grid.device}"
        raise wrong_type("grid", "grid", "be float64 on the CPU", got,
                         "convert it with grid.double().cpu()")  # fmt: skip
    if grid.ndim != 1 or len(grid) < 2:
        rule = "be one row of at least 2 times"
        raise wrong_value("grid", "grid", rule, f"shape {tuple(grid.shape)}", remedy)
    direction = -1.0 if grid[-1] < grid[0] else 1.0
    wrong = ~(grid.diff() * direction > 0)  # NaN too
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        rule = "be strictly monotone and finite"
        got = f"{grid[i]:.6g}, {grid[i + 1]:.6g} at places {i}, {i + 1}"
        raise wrong_value("grid", "grid", rule, got, "sort it and drop repeated times")
    low, high = float(grid.min()), float(grid.max())
    if not (low >= 0 and high <= horizon):
        outside = low if low < 0 else high
        raise wrong_value("grid", "grid", f"lie in [0, {horizon:g}]", outside,
                          "change its start or end")  # fmt: skip


def _check_ends(what: str, steps: int, start: float, end: float) -> None:
    positive_integer(what, "steps", steps)
    if not (0 <= end <= 1 and 0 <= start <= 1 and start != end):
        raise wrong_value(what, "start, end", "be two different times in [0, 1]",
                          f"{start}, {end}", "pass for example start=1.0, end=1e-3")  # fmt: skip


def uniform(steps: int, start: float = 1.0, end: float = 1e-3) -> Tensor:
    """Return steps + 1 equally spaced times.

    >>> uniform(2, 1.0, 0.5).tolist()
    [1.0, 0.75, 0.5]
    """
    _check_ends("uniform", steps, start, end)
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def quadratic(steps: int, start: float = 1.0, end: float = 1e-3) -> Tensor:
    """Return times whose square roots are equally spaced, dense near the data.

    Source: Song et al. 2021 (DDIM), appendix D.2.

    >>> quadratic(2, 1.0, 0.0).tolist()
    [1.0, 0.25, 0.0]
    """
    _check_ends("quadratic", steps, start, end)
    grid = torch.linspace(start**0.5, end**0.5, steps + 1, dtype=torch.float64) ** 2
    return _with_ends(grid, start, end)


def log_snr(
    sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
) -> Tensor:
    """Return times with equally spaced lambda = log(alpha/sigma).

    The ends default to the SDE's horizon and cutoff.
    Source: Lu et al. 2022 (DPM-Solver), section 3.
    """
    start, end = _ends("log_snr", sde, steps, start, end)
    first, last = sde.lambda_(torch.tensor([start, end], dtype=torch.float64))
    grid = sde.time(torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64))
    return _with_ends(grid, start, end)


def karras(
    sde: LinearSDE,
    steps: int,
    rho: float = 7.0,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """Return times with s_i^{1/ρ} equally spaced, s = sigma/alpha being EDM's noise level.

    The ends default to the SDE's horizon and cutoff.
    Source: Karras et al. 2022, equation 5.
    """
    positive_number("karras", "rho", rho)
    start, end = _ends("karras", sde, steps, start, end)
    first, last = torch.exp(-sde.lambda_(torch.tensor([start, end], dtype=torch.float64)) / rho)
    root = torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64)
    return _with_ends(sde.time(-rho * root.log()), start, end)


def recommended(
    sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
) -> Tensor:
    """Return the grid of `sample` when none is given: `quadratic`, or `karras` for VE and EDM.

    Where the data keeps its scale (alpha above ½ at the horizon) the noise explodes instead, over
    orders of magnitude that no spacing in t resolves.
    """
    start, end = _ends("recommended", sde, steps, start, end)
    if float(sde.alpha(torch.tensor(sde.horizon, dtype=torch.float64))) > 0.5:
        return karras(sde, steps, start=start, end=end)
    return quadratic(steps, start, end)


def lattice(n: int, steps: int | None = None) -> Tensor:
    """Return the times k/n of a DDPM with n betas from 1 down to 0, all or ``steps`` of them.

    With fewer steps the indices are the rounded equally spaced ones.

    >>> lattice(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    positive_integer("lattice", "n", n)
    steps = n if steps is None else steps
    positive_integer("lattice", "steps", steps)
    if steps > n:
        raise wrong_value("lattice", "steps", f"be at most n = {n}", steps, "pass fewer steps")
    return torch.linspace(n, 0, steps + 1, dtype=torch.float64).round() / n


def _ends(
    what: str, sde: LinearSDE, steps: int, start: float | None, end: float | None
) -> tuple[float, float]:
    if not isinstance(sde, LinearSDE):
        raise wrong_type(what, "sde", "be a LinearSDE", type(sde).__name__,
                         f"call {what}(sde, steps)")  # fmt: skip
    start = sde.horizon if start is None else start
    end = sde.cutoff if end is None else end
    _check_ends(what, steps, start, end)
    for t in (start, end):
        if not 0 < t <= sde.horizon:
            rule = f"lie in (0, {sde.horizon:g}], where lambda is finite"
            raise wrong_value(what, "start, end", rule, t, "pass for example end=1e-3")
    check_lambda(what, sde, start, end)
    return start, end


def check_lambda(what: str, sde: LinearSDE, *times: float) -> None:
    """Refuse times at which lambda is not finite: alpha or sigma is 0 there."""
    found = sde.lambda_(torch.tensor(times, dtype=torch.float64))
    if not bool(found.isfinite().all()):
        raise wrong_value(what, "sde", f"have finite lambda at t = {times}", found.tolist(),
                          "set its horizon a little below 1, such as .999")  # fmt: skip


def _with_ends(grid: Tensor, start: float, end: float) -> Tensor:
    """Return the grid with its ends exact, which the inverse of lambda gives up to rounding."""
    grid[0], grid[-1] = start, end
    return grid
