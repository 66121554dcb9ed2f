"""Grids: strictly monotone 1-D float64 CPU tensors of times; they alone set a solve's end points.

Sampling grids run from noise (t near 1) to data (t near 0) and hold steps + 1 times.

The terminal step: a grid ends exactly at its own ``end`` (a lattice at its index ``last``), and
no time is added to it, so that a solve takes exactly ``steps`` steps. The noise left at the end
stays in the samples; `Denoised` takes it out with one more evaluation. Only lattices and the
grids spaced in t may end at t = 0; the others need a finite lambda at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion._check import (
    number,
    positive_integer,
    positive_number,
    wrong_type,
    wrong_value,
)
from sde_diffusion._shown import shown
from sde_diffusion.sde import SDE, LinearSDE
from sde_diffusion.solver import Solver, check_solver


def check_grid(grid: Tensor, horizon: float = 1.0) -> None:
    """Refuse what is not a grid in [0, horizon].

    Errors: TypeError for another kind of object or dtype; ValueError for another shape, device,
    order, or a time outside.
    """
    remedy = "use uniform, quadratic, log_snr, karras or another function of grids"
    if not isinstance(grid, Tensor):
        raise wrong_type("grid", "grid", "be a torch.Tensor", type(grid).__name__, remedy)
    if grid.dtype != torch.float64 or grid.device.type != "cpu":
        got = f"{grid.dtype} on {grid.device}"
        raise wrong_type(
            "grid", "grid", "be float64 on the CPU", got, "convert it with grid.double().cpu()"
        )
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
        raise wrong_value(
            "grid", "grid", f"lie in [0, {horizon:.12g}]", outside, "change its start or end"
        )


def _check_ends(what: str, steps: int, start: float, end: float) -> None:
    positive_integer(what, "steps", steps)
    for name, t in (("start", start), ("end", end)):
        number(what, name, t, "pass for example start=1.0, end=1e-3")
    if not (0 <= end <= 1 and 0 <= start <= 1 and start != end):
        raise wrong_value(
            what,
            "start, end",
            "be two different times in [0, 1]",
            f"{start}, {end}",
            "pass for example start=1.0, end=1e-3",
        )


def uniform(steps: int, start: float = 1.0, end: float = 1e-3) -> Tensor:
    """Return steps + 1 equally spaced times.

    >>> uniform(2, 1.0, 0.5).tolist()
    [1.0, 0.75, 0.5]
    """
    _check_ends("uniform", steps, start, end)
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def polynomial(steps: int, exponent: float = 2.0, start: float = 1.0, end: float = 1e-3) -> Tensor:
    """Return times with equally spaced t^{1/p}, p being the exponent: dense near the data.

    Arguments:
        steps: the number of steps; the grid has steps + 1 times.
        exponent: p, above 0; 1 gives equally spaced times.
        start: the first time, in [0, 1].
        end: the last time, in [0, 1].

    Source: Song et al. 2021 (DDIM), appendix D.2, for p = 2; the power grids of Zhang & Chen 2023
    (DEIS).

    >>> polynomial(2, 3.0, 1.0, 0.0).tolist()
    [1.0, 0.125, 0.0]
    """
    _check_ends("polynomial", steps, start, end)
    positive_number("polynomial", "exponent", exponent)
    first, last = start ** (1 / exponent), end ** (1 / exponent)
    grid = torch.linspace(first, last, steps + 1, dtype=torch.float64) ** exponent
    return _with_ends(grid, start, end)


def quadratic(steps: int, start: float = 1.0, end: float = 1e-3) -> Tensor:
    """Return times whose square roots are equally spaced: `polynomial` with the exponent 2.

    Source: Song et al. 2021 (DDIM), appendix D.2.

    >>> quadratic(2, 1.0, 0.0).tolist()
    [1.0, 0.25, 0.0]
    """
    _check_ends("quadratic", steps, start, end)
    return polynomial(steps, 2.0, start, end)


def log_snr(
    sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
) -> Tensor:
    """Return times with equally spaced lambda = log(alpha/sigma).

    Arguments:
        sde: the SDE whose lambda is spaced.
        steps: the number of steps; the grid has steps + 1 times.
        start: the first time, in (0, horizon]; by default the SDE's horizon.
        end: the last time, in (0, horizon]; by default the SDE's cutoff.

    Source: Lu et al. 2022 (DPM-Solver), section 3.
    """
    start, end = sampling_ends("log_snr", sde, steps, start, end)
    first, last = sde.lambda_(torch.tensor([start, end], dtype=torch.float64))
    grid = sde.time(torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64))
    return _with_ends(grid, start, end)


def exponential(
    sde: LinearSDE,
    steps: int,
    rho: float = 1.0,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """Return times with log s = log s_n + (1 − i/n)^ρ log(s_0/s_n), s = sigma/alpha.

    ρ = 1 spaces s geometrically, as `log_snr` does; above 1 the grid is denser near the data.

    Arguments:
        sde: the SDE whose noise level s is spaced.
        steps: the number of steps n; the grid has n + 1 times.
        rho: the exponent ρ, above 0.
        start: the first time, in (0, horizon]; by default the SDE's horizon.
        end: the last time, in (0, horizon]; by default the SDE's cutoff.

    Source: Crowson's k-diffusion, the exponential (ρ = 1) and polyexponential schedules.
    """
    positive_number("exponential", "rho", rho)
    start, end = sampling_ends("exponential", sde, steps, start, end)
    first, last = sde.lambda_(torch.tensor([start, end], dtype=torch.float64))
    ramp = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** rho
    return _with_ends(sde.time(last + ramp * (first - last)), start, end)


def cosine(
    sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
) -> Tensor:
    """Return times at the noise levels of the cosine schedule, equal steps of atan(sigma/alpha).

    In that schedule alpha = cos(πu/2) and sigma = sin(πu/2): equal steps of u are equal angles.

    Arguments:
        sde: the SDE whose angle atan(sigma/alpha) is spaced.
        steps: the number of steps; the grid has steps + 1 times.
        start: the first time, in (0, horizon]; by default the SDE's horizon.
        end: the last time, in (0, horizon]; by default the SDE's cutoff.

    Source: Nichol & Dhariwal 2021, equation 17, without its offset.
    """
    start, end = sampling_ends("cosine", sde, steps, start, end)
    first, last = torch.exp(-sde.lambda_(torch.tensor([start, end], dtype=torch.float64))).atan()
    angle = torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64)
    return _with_ends(sde.time(-angle.tan().log()), start, end)


def sigmoid(
    sde: LinearSDE,
    steps: int,
    tau: float = 1.0,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """Return times at the noise levels of the sigmoid schedule, dense at both ends.

    γ = alpha²/(alpha² + sigma²) goes from its first to its last value as the logistic function of
    v/τ does for equal steps of v from −3 to 3.

    Arguments:
        sde: the SDE whose γ is spaced.
        steps: the number of steps; the grid has steps + 1 times.
        tau: the temperature τ, above 0; smaller values are denser at the ends.
        start: the first time, in (0, horizon]; by default the SDE's horizon.
        end: the last time, in (0, horizon]; by default the SDE's cutoff.

    Source: Jabri et al. 2022; Chen 2023 (On the importance of noise scheduling), section 2.
    """
    positive_number("sigmoid", "tau", tau)
    start, end = sampling_ends("sigmoid", sde, steps, start, end)
    v = torch.sigmoid(torch.linspace(-3, 3, steps + 1, dtype=torch.float64) / tau)
    w = (v - v[0]) / (v[-1] - v[0])
    twice = 2 * sde.lambda_(torch.tensor([start, end], dtype=torch.float64))
    # γ and 1 − γ each by itself: near the data 1 − γ would cancel.
    signal, noise = (torch.lerp(y[0], y[1], w) for y in (twice.sigmoid(), (-twice).sigmoid()))
    return _with_ends(sde.time(0.5 * (signal.log() - noise.log())), start, end)


def karras(
    sde: LinearSDE,
    steps: int,
    rho: float = 7.0,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """Return times with s_i^{1/ρ} equally spaced, s = sigma/alpha being EDM's noise level.

    Arguments:
        sde: the SDE whose noise level s is spaced.
        steps: the number of steps; the grid has steps + 1 times.
        rho: the exponent ρ, above 0; larger values are denser near the data.
        start: the first time, in (0, horizon]; by default the SDE's horizon.
        end: the last time, in (0, horizon]; by default the SDE's cutoff.

    Source: Karras et al. 2022, equation 5.
    """
    positive_number("karras", "rho", rho)
    start, end = sampling_ends("karras", sde, steps, start, end)
    first, last = torch.exp(-sde.lambda_(torch.tensor([start, end], dtype=torch.float64)) / rho)
    root = torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64)
    return _with_ends(sde.time(-rho * root.log()), start, end)


def angular(
    sde: LinearSDE,
    steps: int,
    start: float | None = None,
    end: float | None = None,
    *,
    sigma_data: float = 1.0,
) -> Tensor:
    """Return times with φ = φ_n + (φ_0 − φ_n)(1 − (1 − u²)^b), u = 1, …, 0, b = 3/2 + 6/n².

    φ = atan(sigma/(alpha sigma_data)) is the angle in which `AngularAdams` works: dense where
    there is almost only noise, so that it may start without special steps, and near the data.

    Arguments:
        sde: the SDE whose angle φ is spaced.
        steps: the number of steps n; the grid has n + 1 times.
        start: the first time, in (0, horizon]; by default the SDE's horizon.
        end: the last time, in (0, horizon]; by default the SDE's cutoff.
        sigma_data: the standard deviation of the data, in the units of x0.

    Source: this package.
    """
    positive_number("angular", "sigma_data", sigma_data)
    start, end = sampling_ends("angular", sde, steps, start, end)
    lambdas = sde.lambda_(torch.tensor([start, end], dtype=torch.float64))
    first, last = torch.atan(torch.exp(-lambdas) / sigma_data).tolist()
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    phi = last + (first - last) * (1 - (1 - u**2) ** (1.5 + 6 / steps**2))
    return _with_ends(sde.time(-(sigma_data * phi.tan()).log()), start, end)


def recommended(
    sde: LinearSDE,
    steps: int,
    start: float | None = None,
    end: float | None = None,
    *,
    solver: Solver[Any] | None = None,
) -> Tensor:
    """Return the grid of `sample` when none is given: the solver's own, if it has one.

    That is its method ``grid(sde, steps, start, end)``. For others it is `quadratic`, or `karras`
    where the data keeps its scale (alpha above ½ at the horizon) and the noise explodes instead,
    over orders of magnitude that no spacing in t resolves.

    Arguments:
        sde: the SDE of the solve.
        steps: the number of steps; the grid has steps + 1 times.
        start: the first time, in (0, horizon]; by default the SDE's horizon.
        end: the last time, in (0, horizon]; by default the SDE's cutoff.
        solver: the solver that will step along the grid, if there is one already.
    """
    start, end = sampling_ends("recommended", sde, steps, start, end)
    if solver is not None:
        check_solver("recommended", solver)
    own = None if solver is None else solver.grid(sde, steps, start, end)
    if own is not None:
        return own
    if float(sde.alpha(torch.tensor(sde.horizon, dtype=torch.float64))) > 0.5:
        return karras(sde, steps, start=start, end=end)
    return quadratic(steps, start, end)


@final
@dataclass(frozen=True, eq=False)
class Denoised:
    """The grid ``times``, then one Tweedie step x ↦ E[x0 | x_t] at its last time.

    The step takes out the noise left at the end, for one evaluation more, whatever the solver.

    Errors: those of `check_grid`; ValueError for a grid that rises, or ends at 0, where no noise
    is left.
    Source: Robbins 1956 and Efron 2011 (Tweedie's formula); Jolicoeur-Martineau et al. 2021.

    >>> float(Denoised(uniform(10)).times[-1])
    0.001
    """

    times: Tensor

    __repr__ = shown

    def __post_init__(self) -> None:
        check_grid(self.times)
        if not self.times[0] > self.times[-1] > 0:
            raise wrong_value(
                "Denoised",
                "times",
                "fall to a time above 0",
                f"{float(self.times[0]):.4g} … {float(self.times[-1]):.4g}",
                "pass for example uniform(20, 1.0, 1e-3)",
            )


Grid: TypeAlias = Tensor | Denoised


def times_of(grid: Grid) -> Tensor:
    """Return the times of a grid, with or without a last Tweedie step.

    >>> times_of(Denoised(uniform(1))).tolist()
    [1.0, 0.001]
    """
    return grid.times if isinstance(grid, Denoised) else grid


def sampling_ends(
    what: str, sde: LinearSDE, steps: int, start: float | None, end: float | None
) -> tuple[float, float]:
    """Return the ends, by default the SDE's, of a grid whose lambda must be finite.

    Arguments:
        what: the function that refuses other ends.
        sde: the SDE of the grid.
        steps: the number of steps, at least 1.
        start: the first time, in (0, horizon]; by default the SDE's horizon.
        end: the last time, in (0, horizon]; by default the SDE's cutoff.
    """
    if isinstance(sde, SDE) and not isinstance(sde, LinearSDE):
        remedy = "space the times in t, as quadratic(20, 1.0, 1e-3)"
        raise wrong_type(what, "sde", "be a LinearSDE", type(sde).__name__, remedy)
    if not isinstance(sde, LinearSDE):
        raise wrong_type(
            what, "sde", "be a LinearSDE", type(sde).__name__, f"call {what}(sde, steps)"
        )
    start = sde.horizon if start is None else start
    end = sde.cutoff if end is None else end
    _check_ends(what, steps, start, end)
    for t in (start, end):
        if not 0 < t <= sde.horizon:
            rule = f"lie in (0, {sde.horizon:.12g}], where lambda is finite"
            beyond = f"pass start={sde.horizon:.12g}"
            remedy = beyond if t > sde.horizon else "pass for example end=1e-3"
            raise wrong_value(what, "start, end", rule, t, remedy)
    check_lambda(what, sde, start, end)
    return start, end


def check_lambda(what: str, sde: LinearSDE, *times: float) -> None:
    """Refuse times at which lambda is not finite: alpha or sigma is 0 there."""
    found = sde.lambda_(torch.tensor(times, dtype=torch.float64))
    if not bool(found.isfinite().all()):
        raise wrong_value(
            what,
            "sde",
            f"have finite lambda at t = {times}",
            found.tolist(),
            "set its horizon a little below 1, such as .999",
        )


def _with_ends(grid: Tensor, start: float, end: float) -> Tensor:
    """Return the grid with its ends exact, which the inverse of lambda gives up to rounding."""
    grid[0], grid[-1] = start, end
    return grid


def check_rising(what: str, grid: Tensor) -> None:
    """Refuse a grid from the prior to the data."""
    if grid[0] > grid[-1]:
        raise wrong_value(
            what,
            "grid",
            "run from the data (t near 0) to the prior",
            f"{float(grid[0]):.4g} … {float(grid[-1]):.4g}",
            "reverse it with grid.flip(0)",
        )
