"""Restart: a solver of the probability-flow ODE that now and then goes back to more noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion.dynamics import ProbabilityFlow, ReverseSDE, linear
from sde_diffusion.grids import karras
from sde_diffusion.noise import Noise
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver
from sde_diffusion.solvers._shared.checks import backward, own_noise
from sde_diffusion.solvers.edm_heun import EDMHeun


class RestartInterval(NamedTuple):
    """An interval of restarts, which users write as a plain tuple.

    Arguments:
        s_min: ρ = σ/α at t_min, above 0.
        s_max: ρ at t_max, above s_min.
        repeats: K, how often the solver goes back.
        steps: n, the steps of the way down; None takes the grid's own times.
    """

    s_min: float
    s_max: float
    repeats: int = 1
    steps: int | None = None


Intervals: TypeAlias = Sequence[tuple[float, float, int] | tuple[float, float, int, int]]


def ways_down(
    sde: LinearSDE, grid: Tensor, intervals: Intervals
) -> dict[int, list[tuple[Tensor, int]]]:
    """Return the ways down to each place of the grid where there are restarts, and their K."""
    lambda_ = sde.lambda_(grid)
    plan = dict[int, list[tuple[Tensor, int]]]()
    for s_min, s_max, repeats, steps in (RestartInterval(*i) for i in intervals):
        ends = -torch.tensor([s_min, s_max], dtype=torch.float64).log()
        low, high = (lambda_ - ends[:, None]).abs().argmin(1).tolist()
        way = grid[high : low + 1]
        if steps is not None:
            top = min(float(sde.time(ends[1])), sde.horizon)
            rises = float(grid[low]) < top
            way = karras(sde, steps, start=top, end=float(grid[low])) if rises else grid[:1]
        if low > 0 and repeats and len(way) > 1:
            plan.setdefault(low, []).append((way, repeats))
    return plan


@final
@dataclass(frozen=True)
class Restart(Solver[ReverseSDE]):
    """Restart sampling: an ODE solver, taken back K times from t_min to t_max by fresh noise.

    At t_min: x_{t_max} = a x_{t_min} + b z by the SDE's own kernel, which carries p_{t_min} to
    p_{t_max} exactly and makes earlier errors smaller; then ``solver`` down to t_min again.

    An interval is (s_min, s_max, K) in ρ = σ/α, or (s_min, s_max, K, n). t_min is the time of the
    grid nearest s_min in log ρ. With n, t_max is the time of s_max and the way down the Karras
    grid of n steps; without, t_max too is the nearest time of the grid and the way down is the
    grid's. So an interval that the grid does not resolve, or does not reach, is left out.

    Order: weak, that of ``solver``; 0 with an n, whose steps do not shrink. NFE: the solver's
    over the grid and over every way down.
    Errors: TypeError for a solver of other equations, or an SDE that is not linear;
    ValueError for an interval that does not rise, a grid that runs forward, or dynamics with a
    noise_scale.
    Source: Xu et al. 2023, algorithm 1 (with an n).

    >>> import torch
    >>> from sde_diffusion import EDMSDE, Gaussian, log_snr, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(EDMSDE(sigma_max=8.0))
    >>> grid = log_snr(model.sde, 4, end=2**-4)  # ρ = 8, 4, 2, 1, ½: once more 4, 2, 1
    >>> sample(model, Restart(intervals=[(1.0, 4.0, 1)]), (4, 2), grid=grid).nfe
    12
    """

    solver: Solver[Any] = field(default_factory=EDMHeun)
    intervals: Intervals = ((0.1, 0.4, 1), (0.4, 1.6, 1))
    dynamics = ReverseSDE
    certified: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"intervals": ((0.9, 1.2, 2),)},
        {"intervals": ((0.9, 1.2, 2, 3),)},
    )

    def __post_init__(self) -> None:
        known = isinstance(self.solver, Solver)
        if not known or not issubclass(ProbabilityFlow, self.solver.dynamics):
            raise wrong_type(
                "Restart",
                "solver",
                "be a solver of the probability-flow ODE",
                (self.solver if isinstance(self.solver, type) else type(self.solver)).__name__,
                "pass for example EDMHeun()",
            )
        for interval in self.intervals:
            s_min, s_max, repeats, steps = RestartInterval(*interval)
            if not 0 < s_min < s_max < math.inf:
                raise wrong_value(
                    "Restart",
                    "intervals",
                    "have 0 < s_min < s_max",
                    interval,
                    "pass for example (0.1, 0.4, 1)",
                )
            positive_integer("Restart", "intervals[2]", repeats, least=0)
            positive_integer("Restart", "intervals[3]", 1 if steps is None else steps)

    @property
    def order(self) -> float:
        """The weak order."""
        own = any(i.repeats and i.steps for i in (RestartInterval(*i) for i in self.intervals))
        return 0 if own else self.solver.order

    def steps(
        self, dynamics: ReverseSDE, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the states of all steps along the grid, after the restarts there."""
        sde = linear("Restart", dynamics).sde
        own_noise("Restart", dynamics.noise_scale, "set the noise by Restart(intervals=…)")
        backward("Restart", grid[0], grid[-1])
        flow = dynamics.flow()
        plan = ways_down(sde, grid, self.intervals)
        start = 0
        for i in sorted(plan):
            y = x
            for j, x in enumerate(self.solver.steps(flow, y, grid[start : i + 1], noise)):
                if start + j + 1 < i:
                    yield x
            for way, repeats in plan[i]:
                a, b2 = (float(c) for c in sde.kernel(way[-1], way[0]))
                for _ in range(repeats):
                    x = (x * a).add_(noise.normal(x), alpha=math.sqrt(b2))
                    *_, x = self.solver.steps(flow, x, way, noise)
            yield x
            start = i
        if start < len(grid) - 1:
            yield from self.solver.steps(flow, x, grid[start:], noise)
