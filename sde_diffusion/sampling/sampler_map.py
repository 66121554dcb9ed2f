"""The map from latents to samples that a deterministic solver makes, and its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import diverged, wrong_type, wrong_value
from sde_diffusion._forward_mode import dual, dual_level, parts
from sde_diffusion.dynamics import ProbabilityFlow, check_flow
from sde_diffusion.grids import Denoised, Grid, check_grid, times_of
from sde_diffusion.integration import check_falling, integrate
from sde_diffusion.solver import OneStep, Solver, check_solver

_STATES: Final = 1024  # solved at once, or the columns of one sample if they are more

Seen = Callable[[Tensor, int, Tensor], object]  # (samples, step from 1, their matrices)


@final
class SamplerMap:
    """The map F of a solver along a grid, with products of its Jacobian.

    Products are taken in forward mode, which keeps no graph of the solve and differentiates
    every solver of the ODE; the columns of one sample's Jacobian are rows of one batch.

    Arguments:
        what: the function that asks, for the errors.
        flow: the probability-flow ODE of the model.
        solver: of ODEs, with fixed steps.
        grid: the times, falling from noise to data; (steps + 1,).

    Errors: TypeError for another flow; ValueError for a solver that chooses its steps by the
    state, or a grid from data to noise; those of `integrate`.

    >>> from sde_diffusion import Gaussian, VPSDE, uniform
    >>> from sde_diffusion.solvers import DDIM
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> map_ = SamplerMap("example", ProbabilityFlow(VPSDE(), model), DDIM(), uniform(10))
    >>> x, j = map_.jacobian(torch.tensor([[2.0]]))  # linear, for Gaussian data
    >>> torch.allclose(x, 2 * j[0].float())
    True
    """

    def __init__(self, what: str, flow: ProbabilityFlow, solver: Solver[Any], grid: Grid) -> None:
        check_flow(what, flow)
        check_solver(what, solver)
        if solver.adaptive:
            raise wrong_value(
                what,
                "solver",
                "have fixed steps",
                type(solver).__name__,
                "pass for example DDIM(), or take log_prob",
            )
        check_grid(times_of(grid), flow.horizon)
        check_falling(what, times_of(grid))
        self.what = what
        self.flow = flow
        self.solver = solver
        self.grid = grid

    @property
    def steps(self) -> int:
        """The number of steps, the last of a `Denoised` grid included."""
        return len(times_of(self.grid)) - 1 + isinstance(self.grid, Denoised)

    def rows(self, index: Tensor) -> SamplerMap:
        """Return the map for the samples ``index`` of the batch, as `ODE.rows`."""
        return SamplerMap(self.what, self.flow.rows(index), self.solver, self.grid)

    @property
    def composed(self) -> bool:
        """Whether F is a composition of maps of single steps, as no multistep method is."""
        return isinstance(self.solver, OneStep) and type(self.solver).steps is OneStep.steps

    def pieces(self) -> list[SamplerMap]:
        """Return the maps that F is composed of: those of the steps, or itself alone."""
        if not self.composed:
            return [self]
        grids: list[Grid] = [torch.stack(ends) for ends in pairwise(times_of(self.grid))]
        if isinstance(self.grid, Denoised):
            grids[-1] = Denoised(times_of(grids[-1]))
        return [SamplerMap(self.what, self.flow, self.solver, grid) for grid in grids]

    def __call__(self, z: Tensor) -> Tensor:
        """Return F(z)."""
        with torch.no_grad():
            return integrate(self.flow, self.solver, z, self.grid).x

    def product(
        self, z: Tensor, u: Tensor, seen: Callable[[int, Tensor], object] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return F(z) and J u; ``seen`` is shown every step k and its J_k u, J_k = ∂x_k/∂z.

        Errors: TypeError for a score or a solver without a derivative in x in forward mode;
        FloatingPointError where it is not finite.
        """

        def show(k: int, t: Tensor, x: Tensor) -> None:  # noqa: ARG001  (a Callback)
            tangent = parts(x)[1]
            if not bool(torch.isfinite(tangent).all()):
                raise diverged(
                    self.what,
                    "∂x/∂z",
                    "stay finite",
                    f"NaN or infinity at step {k}",
                    "use more steps, or move the ends of the grid",
                )
            if seen is not None:
                seen(k, tangent)

        with torch.inference_mode(mode=False), torch.no_grad(), dual_level():
            moving = dual(z, u)
            try:
                end = integrate(self.flow, self.solver, moving, self.grid, callback=show).x
            except NotImplementedError as error:
                raise self._opaque(str(error).splitlines()[0]) from error
            if not self.flow.score.tracked:  # its part of J would be missing
                raise self._opaque(got="a detached tensor")
            return parts(end)

    def jacobian(self, z: Tensor, seen: Seen | None = None) -> tuple[Tensor, Tensor]:
        """Return F(z) and J; ``seen`` is shown every J_k.

        Shapes: z (B, *event); x the same, J (B, D, D) in float64.
        """
        d = z[0].numel()
        parts = []
        for index in torch.split(torch.arange(len(z)), max(1, _STATES // d)):
            b = len(index)
            basis = torch.eye(d, dtype=z.dtype, device=z.device).repeat(b, 1)

            def matrices(columns: Tensor, b: int = b) -> Tensor:
                return columns.reshape(b, d, d).mT.double()

            def show(k: int, columns: Tensor, index: Tensor = index) -> None:
                if seen is not None:
                    seen(index, k, matrices(columns, len(index)))

            each = index.repeat_interleave(d)
            x, columns = self.rows(each).product(z[each], basis.reshape(-1, *z.shape[1:]), show)
            parts.append((x[::d], matrices(columns)))
        states, jacobians = zip(*parts, strict=True)
        return torch.cat(states), torch.cat(jacobians)

    def _opaque(self, got: str) -> TypeError:
        rule = "be differentiable in x, in forward mode"
        return wrong_type(
            self.what,
            "score and solver",
            rule,
            got,
            "remove detach or NumPy; attention needs SDPBackend.MATH",
        )
