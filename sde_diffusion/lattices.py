"""Lattices: the times k/N of a chain of N steps, and the choices of other programs among them."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value


def lattice(n: int, steps: int | None = None) -> Tensor:
    """Return the times k/n of a DDPM with n betas from 1 down to 0, all or ``steps`` of them.

    With fewer steps the indices are equally spaced and rounded, those of `trailing`.

    >>> lattice(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    positive_integer("lattice", "n", n)
    return trailing(n, n if steps is None else steps)


def trailing(n: int, steps: int, *, last: int = 0) -> Tensor:
    """Return the lattice of diffusers' ``timestep_spacing="trailing"``, from k = n down.

    The lattices of other libraries are times k/n of a DDPM with n betas, `DiscreteBeta(betas)`;
    their timesteps are k − 1, and they step to alpha = 1 after the last (k = 0) or to the first
    beta's noise: pass ``last=1`` for ``set_alpha_to_one=False`` or
    ``final_sigmas_type="sigma_min"``.

    Errors: ValueError where two indices are equal or one is outside the lattice.
    Source: Lin et al. 2024 (Common diffusion noise schedules), table 2.

    >>> (trailing(1000, 4) * 1000).tolist()
    [1000.0, 750.0, 500.0, 250.0, 0.0]
    """
    _check_lattice("trailing", n, steps)
    # The increment as their floating-point range has it: it decides which halves round up.
    k = (n + torch.arange(steps, dtype=torch.float64) * ((n - n / steps) - n)).round()
    return _on_lattice("trailing", k, n, last)


def leading(n: int, steps: int, *, offset: int = 0, spare: int = 0, last: int = 0) -> Tensor:
    """Return the lattice of diffusers' ``timestep_spacing="leading"``: it starts below k = n.

    k = offset + 1 + i ⌊n/(steps + spare)⌋. Its errors are those of `trailing`.

    Arguments:
        n: the number of betas N of the chain.
        steps: the number of steps; the grid has steps + 1 times.
        offset: their steps_offset, an integer of at least 0.
        spare: lowest indices left out: 0 as DDPM and DDIM, 1 as DPM-Solver, DEIS, UniPC and SA.
        last: the index at which the grid ends, 0 or as `trailing` says.

    Source: Lin et al. 2024, table 2.

    >>> (leading(1000, 4, offset=1) * 1000).tolist()
    [752.0, 502.0, 252.0, 2.0, 0.0]
    """
    _check_lattice("leading", n, steps)
    positive_integer("leading", "offset", offset, least=0)
    positive_integer("leading", "spare", spare, least=0)
    i = torch.arange(steps + spare, dtype=torch.float64).flip(0)[:steps]
    return _on_lattice("leading", offset + 1 + i * (n // (steps + spare)), n, last)


def linspace(n: int, steps: int, *, spare: int = 0, last: int = 0) -> Tensor:
    """Return the lattice of diffusers' ``timestep_spacing="linspace"``, from k = n to k = 1.

    The indices are steps + spare equally spaced ones, rounded, without the ``spare`` lowest. Its
    errors are those of `trailing`.

    Arguments:
        n: the number of betas N of the chain.
        steps: the number of steps; the grid has steps + 1 times.
        spare: lowest indices left out: 0 as DDPM and DDIM, 1 as DPM-Solver, DEIS, UniPC and SA.
        last: the index at which the grid ends, 0 or as `trailing` says.

    Source: Lin et al. 2024, table 2.

    >>> (linspace(1000, 4) * 1000).tolist()
    [1000.0, 667.0, 334.0, 1.0, 0.0]
    """
    _check_lattice("linspace", n, steps)
    positive_integer("linspace", "spare", spare, least=0)
    i = torch.arange(steps + spare, dtype=torch.float64).flip(0)[:steps]
    step = (n - 1) / max(steps + spare - 1, 1)  # of a single timestep, which is their 0, none
    return _on_lattice("linspace", 1 + (i * step).round(), n, last)


def _check_lattice(what: str, n: int, steps: int) -> None:
    positive_integer(what, "n", n)
    positive_integer(what, "steps", steps)
    if steps > n:
        raise wrong_value(what, "steps", f"be at most n = {n}", steps, "pass fewer steps")


def _on_lattice(what: str, k: Tensor, n: int, last: int) -> Tensor:
    """Return the times of the indices k and then ``last``, all different and on the lattice."""
    positive_integer(what, "last", last, least=0)
    k = torch.cat([k, torch.tensor([last], dtype=torch.float64)])
    if k[0] > n or not bool((k.diff() < 0).all()):
        got = ", ".join(f"{float(i):g}" for i in torch.cat([k[:2], k[-2:]]))
        raise wrong_value(
            what,
            "steps, last",
            f"give indices that fall from at most n = {n}",
            f"{got} (the first two and the last two)",
            "pass fewer steps, last=0, or for leading a smaller offset",
        )
    return k / n
