"""Latents of data along the probability-flow ODE: encoded, decoded and interpolated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import kind_of, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state, rms
from sde_diffusion.dynamics import ProbabilityFlow, check_flow
from sde_diffusion.grids import Grid, check_grid, check_rising, times_of
from sde_diffusion.integration import Solution, check_falling, integrate, whole_way
from sde_diffusion.solver import Solver


def encode(
    x: Tensor, flow: ProbabilityFlow, solver: Solver[Any], grid: Tensor | None = None
) -> Solution:
    """Return the latents of data: the solution of the probability-flow ODE from data to prior.

    Arguments:
        x: the data, scaled; (B, *event).
        flow: the probability-flow ODE of the model.
        solver: of ODEs.
        grid: rising times, (steps + 1,); None for an adaptive solver from the model's t_min, or
            1e-5, to the horizon.

    Shapes: result's x (B, *event).
    Errors: TypeError for another flow; ValueError for a grid that falls, or none for a solver of
    fixed steps; those of `integrate`.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.solvers import DormandPrince
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> x, flow = torch.ones(1, 1, dtype=torch.float64), ProbabilityFlow(VPSDE(), model)
    >>> round(encode(x, flow, DormandPrince()).x.item(), 6)
    1.0
    """
    check_flow("encode", flow)
    grid = whole_way("encode", flow, solver) if grid is None else grid
    check_grid(grid, flow.horizon)
    check_rising("encode", grid)
    with torch.no_grad():
        return integrate(flow, solver, x, grid)


def decode(
    z: Tensor, flow: ProbabilityFlow, solver: Solver[Any], grid: Grid | None = None
) -> Solution:
    """Return the data of latents: the solution of the probability-flow ODE from prior to data.

    Arguments:
        z: the latents; (B, *event).
        flow: the probability-flow ODE of the model.
        solver: of ODEs.
        grid: falling times, (steps + 1,); None for an adaptive solver from the horizon to the
            model's t_min, or 1e-5.

    Shapes: result's x (B, *event).
    Errors: those of `encode`, for a grid that rises.
    """
    check_flow("decode", flow)
    grid = whole_way("decode", flow, solver).flip(0) if grid is None else grid
    check_grid(times_of(grid), flow.horizon)
    check_falling("decode", times_of(grid))
    with torch.no_grad():
        return integrate(flow, solver, z, grid)


@final
@dataclass(frozen=True)
class Reconstruction:
    """Data encoded and decoded again, with the error of the round trip.

    Arguments:
        latent: the latents of the data; (B, *event).
        x: the latents decoded; (B, *event).
        error: the root mean square of x less the data, float64; (B,).
        nfe: evaluations of the score, of both ways together.
    """

    latent: Tensor
    x: Tensor
    error: Tensor
    nfe: int

    __repr__ = shown


def reconstruct(
    x: Tensor, flow: ProbabilityFlow, solver: Solver[Any], grid: Tensor | None = None
) -> Reconstruction:
    """Return the round trip of data along the grid to the prior and back.

    Arguments:
        x: the data, scaled; (B, *event).
        flow: the probability-flow ODE of the model.
        solver: of ODEs.
        grid: rising times, taken backwards to decode; None as for `encode`.

    Errors: those of `encode`.
    """
    there = encode(x, flow, solver, grid)
    back = decode(there.x, flow, solver, None if grid is None else grid.flip(0))
    return Reconstruction(there.x, back.x, rms(back.x - x), there.nfe + back.nfe)


def interpolate(z0: Tensor, z1: Tensor, weights: Tensor | Sequence[float]) -> Tensor:
    """Return spherical interpolations from ``z0``, at weight 0, to ``z1``, at weight 1.

    The direction turns at a constant rate on the great circle through both, and the length is
    (1 − w)|z0| + w|z1|: typical of the prior at any of its scales, so VE and EDM need nothing
    else. Opposite latents, which many circles join, turn through the coordinate axis nearest to a
    right angle (in one dimension, which has none, they pass 0). Where one latent is zero the
    interpolation is linear.

    Shapes: z0, z1 (B, *event); weights (W,); result (W, B, *event).
    Errors: ValueError for latents of two shapes, or weights that are no row.
    Source: Shoemake 1985 (slerp).

    >>> z0, z1 = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> [round(number, 6) for number in interpolate(z0, z1, [0.5])[0, 0].tolist()]
    [1.414214, 1.414214]
    """
    check_state("interpolate", z0, "z0")
    check_state("interpolate", z1, "z1")
    if z0.shape != z1.shape:
        raise wrong_value(
            "interpolate",
            "z1",
            f"have the shape {tuple(z0.shape)} of z0",
            tuple(z1.shape),
            "expand the one that is alone",
        )
    try:
        w = torch.as_tensor(weights, dtype=torch.float64, device=z0.device)
    except (TypeError, ValueError, RuntimeError) as error:
        rule = "be one row of numbers"
        remedy = "pass for example [0.0, 0.5, 1.0]"
        raise wrong_type("interpolate", "weights", rule, kind_of(weights), remedy) from error
    if w.ndim != 1:
        raise wrong_value(
            "interpolate",
            "weights",
            "be one row of numbers",
            tuple(w.shape),
            "pass for example [0.0, 0.5, 1.0]",
        )
    w = w[:, None, None]
    flat0 = z0.flatten(1).double()
    flat1 = z1.flatten(1).double()
    length0 = _length(flat0)
    length1 = _length(flat1)
    u0 = torch.where(length0 > 0, flat0, flat1) / torch.where(length0 > 0, length0, length1)
    u1 = torch.where(length1 > 0, flat1 / length1, u0)
    # Kahan's form: acos(u0·u1) loses half the digits of small angles.
    angle = 2 * torch.atan2(_length(u1 - u0), _length(u1 + u0))
    direction = (w * angle).cos() * u0 + (w * angle).sin() * _across(u0, u1)
    found = ((1 - w) * length0 + w * length1) * direction.nan_to_num()  # NaN for 0 to 0
    return found.reshape(-1, *z0.shape).to(z0.dtype)


def _across(u: Tensor, to: Tensor) -> Tensor:
    """Return the unit vector at a right angle to ``u`` towards ``to``: (B, D).

    Where they are parallel it is towards an axis, and 0 in one dimension.
    """
    p = _rejected(to, u)
    axis = torch.nn.functional.one_hot(u.abs().argmin(1), u.shape[1]).to(u)
    p = torch.where(_length(p) > 1e-12, p, _rejected(axis, u))
    p = _rejected(p / _length(p), u)  # again: the first left rounding errors of a short p
    return (p / _length(p)).nan_to_num()


def _rejected(v: Tensor, u: Tensor) -> Tensor:
    return v - (v * u).sum(1, keepdim=True) * u


def _length(v: Tensor) -> Tensor:
    return v.square().sum(1, keepdim=True).sqrt()
