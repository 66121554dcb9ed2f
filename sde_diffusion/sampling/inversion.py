"""The inverse of a sampler: the latents from which its own steps end at given data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import an_object, diverged, positive_integer, positive_number
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state, rms
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.grids import Grid, times_of
from sde_diffusion.integration import integrate
from sde_diffusion.sampling.sampler_map import SamplerMap
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver

_LOW: Final = 64  # the largest dimension in which Newton's method is the default
_HALVINGS: Final = 30


class Iteration(ABC):
    """A way to solve F(z) = x for z."""

    iterations: int

    @abstractmethod
    def improved(self, map_: SamplerMap, x: Tensor, z: Tensor, end: Tensor) -> Tensor:
        """Return a z with a smaller residual.

        Arguments:
            map_: the sampler F for the samples in question.
            x: their data; (B, *event).
            z: their latents so far; (B, *event).
            end: F(z), known already; (B, *event).
        """


@final
@dataclass(frozen=True)
class Newton(Iteration):
    """Damped Newton: z + τ J⁻¹(x − F(z)), τ = 1, ½, … until the residual falls.

    Each iteration takes the Jacobian of the whole solve, D columns: for low dimensions.

    >>> Newton().iterations
    50
    """

    iterations: int = 50

    def __post_init__(self) -> None:
        positive_integer("Newton", "iterations", self.iterations)

    def improved(self, map_: SamplerMap, x: Tensor, z: Tensor, end: Tensor) -> Tensor:
        j = map_.jacobian(z)[1]
        gap = (x - end).flatten(1).double()
        # No inverse, no step: the residual stays and is reported.
        way = torch.linalg.solve_ex(j, gap)[0].nan_to_num(0, 0, 0).reshape(z.shape).to(z.dtype)
        best = z
        least = rms(x - end)
        left = torch.arange(len(z), device=z.device)
        for halvings in range(_HALVINGS):
            trial = z[left] + 0.5**halvings * way[left]
            residual = rms(x[left] - map_.rows(left)(trial))
            better = residual < (1 - 0.25 * 0.5**halvings) * least[left]
            best = best.index_copy(0, left[better], trial[better])
            left = left[~better]
            if not len(left):
                break
        return best


@final
@dataclass(frozen=True)
class FixedPoint(Iteration):
    """Fixed point: z + G(x) − G(F(z)), G the same steps taken backwards.

    Two solves an iteration, in any number of dimensions. The error is multiplied by
    I − (∂G/∂x) J each time, which is small for small steps; for coarse ones it may not converge.

    >>> FixedPoint().iterations
    100
    """

    iterations: int = 100

    def __post_init__(self) -> None:
        positive_integer("FixedPoint", "iterations", self.iterations)

    def improved(self, map_: SamplerMap, x: Tensor, z: Tensor, end: Tensor) -> Tensor:
        return z + _backwards(map_, x) - _backwards(map_, end)


def _backwards(map_: SamplerMap, x: Tensor) -> Tensor:
    """Return the end of the solver's steps along the reversed grid."""
    times = times_of(map_.grid)
    sde = map_.flow.sde
    if isinstance(sde, LinearSDE) and float(sde.sigma(times[-1])) == 0:
        times = times[:-1]  # no score there
    if len(times) < 2:
        return x
    with torch.no_grad():
        return integrate(map_.flow, map_.solver, x, times.flip(0)).x


@final
@dataclass(frozen=True)
class Inverse:
    """Latents whose samples are the given data, with the residual.

    Arguments:
        latent: z; (B, *event).
        residual: the root mean square of F(z) − x, float64; (B,).
        iterations: how many each sample took, int64; (B,).
        nfe: evaluations of the score in all, each of the samples that were not done yet.
    """

    latent: Tensor
    residual: Tensor
    iterations: Tensor
    nfe: int

    __repr__ = shown


def sampler_inverse(
    x: Tensor,
    flow: ProbabilityFlow,
    solver: Solver[Any],
    grid: Grid,
    *,
    method: Iteration | None = None,
    tolerance: float | None = None,
) -> Inverse:
    """Return the latents z = F⁻¹(x) from which the sampler's own steps end at ``x``.

    The iteration starts at the solver's own steps back along the grid, the result of `encode`.
    Where F is not one-to-one the result is one z of several.

    Arguments:
        x: the data, scaled; (B, *event).
        flow: the probability-flow ODE of the model.
        solver: of ODEs, with fixed steps.
        grid: the times of the sampler, falling from noise to data; (steps + 1,).
        method: None for `Newton` up to 64 dimensions and `FixedPoint` above.
        tolerance: largest residual, over max(1, rms x); None for 1e-10 in float64, else 1e-5.

    Shapes: result's latent (B, *event).
    Errors: those of `SamplerMap`; FloatingPointError, naming sample and residual, where the
    iteration ends before.

    >>> from sde_diffusion import Gaussian, VPSDE, uniform
    >>> from sde_diffusion.sampling.encoding import decode
    >>> from sde_diffusion.solvers import DDIM
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> x, flow = torch.ones(1, 1, dtype=torch.float64), ProbabilityFlow(VPSDE(), model)
    >>> found = sampler_inverse(x, flow, DDIM(), uniform(5))
    >>> round(decode(found.latent, flow, DDIM(), uniform(5)).x.item(), 9)
    1.0
    """
    check_state("sampler_inverse", x)
    map_ = SamplerMap("sampler_inverse", flow, solver, grid)
    if tolerance is None:
        tolerance = 1e-10 if x.dtype == torch.float64 else 1e-5
    positive_number("sampler_inverse", "tolerance", tolerance)
    if method is None:
        method = Newton() if x[0].numel() <= _LOW else FixedPoint()
    an_object("sampler_inverse", "method", method, Iteration, "pass for example Newton()")
    before = flow.score.counter.here
    x = x.detach()
    z = _backwards(map_, x)
    bound = tolerance * rms(x).clamp(min=1)
    residual = torch.full_like(bound, torch.inf)
    iterations = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    active = torch.arange(len(x), device=x.device)
    for _ in range(method.iterations + 1):
        part = map_.rows(active)
        end = part(z[active])
        residual[active] = rms(end - x[active])
        left = residual[active] > bound[active]
        end = end[left]
        active = active[left]
        if not len(active):
            return Inverse(z, residual, iterations, flow.score.counter.here - before)
        z = z.index_copy(0, active, method.improved(map_.rows(active), x[active], z[active], end))
        iterations[active] += 1
    i = int(active[0])
    got = f"a residual of {float(residual[i]):.3g} for sample {i} after {method.iterations}"
    raise diverged(
        "sampler_inverse",
        "x",
        "be reached from a latent that the iteration finds",
        got + " iterations",
        "use more steps, another method, or a larger tolerance",
    )
