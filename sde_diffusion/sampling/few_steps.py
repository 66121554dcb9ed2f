"""The steps of a student, which `sample` takes in the place of a solver's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

import torch
from torch import Tensor

from sde_diffusion.coefficients import kernel
from sde_diffusion.dynamics import ProbabilityFlow, ReverseSDE, linear
from sde_diffusion.grids import sampling_ends
from sde_diffusion.noise import Noise
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import OneStep, Solver


def equal_angles(
    sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
) -> Tensor:
    """Return times equally spaced in φ = atan(sigma/alpha): those of 2n steps hold those of n.

    Arguments:
        sde: whose angle it is.
        steps: how many.
        start: the first time; the SDE's horizon if not given.
        end: the last time; the SDE's cutoff if not given.

    Shapes: result (steps + 1,), float64.

    >>> from sde_diffusion import RectifiedFlow  # tan φ = t/(1 − t)
    >>> [round(t, 3) for t in equal_angles(RectifiedFlow(), 2).tolist()]
    [0.999, 0.5, 0.001]
    """
    start, end = sampling_ends("equal_angles", sde, steps, start, end)
    ends = torch.tensor([start, end], dtype=torch.float64)
    first, last = torch.atan(torch.exp(-sde.lambda_(ends))).tolist()
    inner = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:-1]
    phi = first + (last - first) * inner
    return torch.cat([ends[:1], sde.time(-phi.tan().log()), ends[1:]])


@final
@dataclass(frozen=True)
class FewSteps(OneStep[ProbabilityFlow]):
    """The student's own steps x_s = f(x_t, t → s), from noise to data; of a score DDIM's.

    Deterministic: sample i has the noise that every solver gives it, and where the student is
    exact the end point of the flow.

    Order: 1, of a score. NFE: 1 a step.

    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, FewSteps(), (4, 2), steps=2).nfe
    2
    """

    dynamics = ProbabilityFlow
    order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 1

    def grid(
        self, sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
    ) -> Tensor:
        return equal_angles(sde, steps, start, end)

    def step(
        self,
        dynamics: ProbabilityFlow,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,  # noqa: ARG002
    ) -> Tensor:
        return dynamics.score.jump(x, t, s)


@final
@dataclass(frozen=True)
class Renoised(Solver[ReverseSDE]):
    """Steps of a consistency model: to the last time, and by fresh noise back to the next one.

    x_ε = f(x_t, t → ε), then x_s = (alpha_s/alpha_ε) x_ε + b z with b² the variance of x_s | x_ε.
    One step is that of `FewSteps`. It asks for the map to the last time alone.

    NFE: 1 a step.
    Source: Song et al. 2023 (Consistency models), algorithm 1.

    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, Renoised(), (4, 2), steps=4).nfe
    4
    """

    dynamics = ReverseSDE
    evaluations: ClassVar[int] = 1

    def grid(
        self, sde: LinearSDE, steps: int, start: float | None = None, end: float | None = None
    ) -> Tensor:
        return equal_angles(sde, steps, start, end)

    def steps(
        self, dynamics: ReverseSDE, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        known = linear("Renoised", dynamics)
        end = grid[-1]
        for t, s in pairwise(grid):
            x = dynamics.score.jump(x, t, end)
            if s != end:
                a, b2 = kernel(known.level(end), known.level(s))
                x = a * x + b2**0.5 * noise.normal(x)
            yield x
