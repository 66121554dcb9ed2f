"""The times of a chain whose last steps find levels: equal steps of λ down to where they part."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from sde_diffusion.data.spec import DataSpec
from sde_diffusion.grids import log_snr
from sde_diffusion.lattices import lattice
from sde_diffusion.schedules import DiscreteBeta
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import SDE, VPSDE, LinearSDE

# sigma/alpha at t_1 over the distance of levels. Measured on digits and MNIST, where it is best
# to within .01 bits/dim (docs/likelihood.md).
OF_LEVELS: Final = 0.4


def level_times(model: ScoreLike, spec: DataSpec, steps: int) -> Tensor:
    """Return the falling times of the chain of so many steps for the levels of ``spec``.

    They are equal steps of λ = log(alpha/sigma) from the horizon to t_1 and a last one to 0; of a
    model with a `DiscreteBeta` its own lattice, on whose times alone it may have been trained.

    Shapes: result (steps + 1,), float64.
    """
    sde = model.linear_sde()
    betas = own_betas(sde)
    if betas:
        return lattice(betas, steps)
    first = max(time_of_levels(sde, spec, OF_LEVELS), model.t_min or 0.0)
    return log_snr_chain(sde, steps, first)


def log_snr_chain(sde: LinearSDE, steps: int, first: float) -> Tensor:
    """Return times with equal steps of λ from the horizon to ``first``, and a last one to 0."""
    rest = log_snr(sde, steps - 1, end=first)
    return torch.cat([rest, torch.zeros(1, dtype=torch.float64)])


def time_of_levels(sde: LinearSDE, spec: DataSpec, share: float) -> float:
    """Return when sigma/alpha is a share of the least distance between the levels of ``spec``."""
    noise = share * float(level_centres(spec).diff().min())
    return float(sde.time(torch.tensor(-math.log(noise), dtype=torch.float64)))


def level_centres(spec: DataSpec) -> Tensor:
    """Return where the levels of ``spec`` are, scaled: (L,), float64."""
    return spec.encode(torch.arange(spec.levels or 1), torch.tensor(0.5, dtype=torch.float64))


def own_betas(sde: SDE) -> int:
    """Return the number of betas of a DDPM's SDE, 0 for another."""
    if isinstance(sde, VPSDE) and isinstance(sde.beta, DiscreteBeta):
        return len(sde.beta.betas)
    return 0
