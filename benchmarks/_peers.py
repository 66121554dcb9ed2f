"""Samplers of other programs on the exact grid of ours, each where it is installed.

The adapters are those of `sde_diffusion.exchange`. One runs a whole solve: ``run(eps, x)`` calls
the predictor ``eps(x, t)`` and returns the end state. Those that draw do it from PyTorch's global
generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from _common import peer
from torch import Tensor

from sde_diffusion import LinearSDE
from sde_diffusion.exchange.azula_peer import AzulaPeer
from sde_diffusion.exchange.diffusers_peer import DiffusersPeer
from sde_diffusion.exchange.peers import Eps, FunctionPeer, Run


@dataclass(frozen=True)
class Peer:
    """Another program's sampler: how many evaluations n steps take, and how to make a run.

    ``make(sde, grid)`` needs the modules to be importable, see `absent`.
    """

    module: str
    evaluations: Callable[[int], int]
    make: Callable[[LinearSDE, Tensor], Run]
    draws: bool = False

    def absent(self) -> str | None:
        """Return why the peer cannot run, None if it can."""
        found = peer(self.module)
        return found if isinstance(found, str) else None

    def steps(self, budget: int) -> int:
        """Return the most steps within a budget of evaluations."""
        return max(n for n in range(1, budget + 1) if self.evaluations(n) <= budget)


def _raw_ddim(sde: LinearSDE, grid: Tensor) -> Run:
    """Return the DDIM as a bare loop on numbers computed ahead: the least a solver can cost."""
    shrink, factor, _ = _coefficients(sde, grid, eta=0.0)
    times = grid.unbind()

    def run(eps: Eps, x: Tensor) -> Tensor:
        x = x.clone()
        for t, a, b in zip(times, shrink, factor, strict=False):
            found = eps(x, t)
            x.mul_(a).add_(found, alpha=b)
        return x

    return run


def _raw_ancestral(sde: LinearSDE, grid: Tensor) -> Run:
    """Return the DDPM as a bare loop: the least that a solver that draws can cost."""
    shrink, factor, spread = _coefficients(sde, grid, eta=1.0)
    times = grid.unbind()

    def run(eps: Eps, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x = x.clone()
        z = torch.empty_like(x)
        for t, a, b, c in zip(times, shrink, factor, spread, strict=False):
            found = eps(x, t)
            x.mul_(a).add_(found, alpha=b)
            x.add_(z.normal_(generator=generator), alpha=c)
        return x

    return run


def _coefficients(sde: LinearSDE, grid: Tensor, eta: float) -> tuple[list[float], ...]:
    """Return the factors of x, eps and z of the ancestral step, step by step."""
    rows = []
    for t, s in pairwise(grid):
        (_, b2) = sde.kernel(s, t)
        shrink = sde.alpha(s) / sde.alpha(t)
        c2 = eta**2 * b2 * (sde.sigma(s) / sde.sigma(t)) ** 2
        factor = (sde.sigma(s) ** 2 - c2).clamp(min=0).sqrt() - shrink * sde.sigma(t)
        rows.append((float(shrink), float(factor), float(c2.sqrt())))
    return tuple(map(list, zip(*rows, strict=True)))


def _one(n: int) -> int:
    return n


def _of_diffusers(
    name: str,
    evaluations: Callable[[int], int] = _one,
    *,
    draws: bool = False,
    **settings: Any,  # noqa: ANN401
) -> Peer:
    def make(sde: LinearSDE, grid: Tensor) -> Run:
        return DiffusersPeer(name, settings).make(sde, grid)

    return Peer("diffusers", evaluations, make, draws)


def _of_azula(
    name: str,
    evaluations: Callable[[int], int] = _one,
    **settings: Any,  # noqa: ANN401
) -> Peer:
    def make(sde: LinearSDE, grid: Tensor) -> Run:
        return AzulaPeer(name, settings).make(sde, grid)

    return Peer("azula.sample", evaluations, make, draws=name == "DDPMSampler")


def _of_k_diffusion(name: str, evaluations: Callable[[int], int] = _one) -> Peer:
    def make(sde: LinearSDE, grid: Tensor) -> Run:
        return FunctionPeer(vars(peer("k_diffusion.sampling"))[name]).make(sde, grid)

    return Peer("k_diffusion.sampling", evaluations, make)


# Without the lower orders at the end of a solve, which are made for an end at σ = 0.
_FULL: Final[Mapping[str, Any]] = {"lower_order_final": False}
RAW: Final[Mapping[str, Peer]] = {
    "bare loop, DDIM": Peer("torch", _one, _raw_ddim),
    "bare loop, DDPM": Peer("torch", _one, _raw_ancestral, draws=True),
}
PEERS: Final[Mapping[str, Peer]] = {
    "diffusers DDIM": _of_diffusers("DDIMScheduler"),
    "diffusers Heun": _of_diffusers("HeunDiscreteScheduler", lambda n: 2 * n - 1),
    "diffusers DPM++2M": _of_diffusers("DPMSolverMultistepScheduler"),
    "diffusers DPM++3M": _of_diffusers("DPMSolverMultistepScheduler", solver_order=3),
    "diffusers UniPC2": _of_diffusers("UniPCMultistepScheduler"),
    "diffusers UniPC3": _of_diffusers("UniPCMultistepScheduler", solver_order=3),
    "diffusers UniPC3 full": _of_diffusers("UniPCMultistepScheduler", solver_order=3, **_FULL),
    **{
        f"diffusers DEIS{k}{name}": _of_diffusers(
            "DEISMultistepScheduler", solver_order=k, **settings
        )
        for k in (2, 3)
        for name, settings in (("", {}), (" full", _FULL))
    },
    "diffusers DDPM": _of_diffusers("DDPMScheduler", draws=True),
    "diffusers SDE-DPM++2M": _of_diffusers(
        "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", draws=True
    ),
    "k-diffusion Euler": _of_k_diffusion("sample_euler"),
    "k-diffusion DPM++2M": _of_k_diffusion("sample_dpmpp_2m"),
    "azula Euler": _of_azula("EulerSampler"),
    "azula Heun": _of_azula("HeunSampler", lambda n: 2 * n),
    **{
        f"azula {kind}{order}": _of_azula(f"{kind}Sampler", order=order)
        for kind in ("xEAB", "zAB", "vAB", "zEAB")
        for order in (3, 4)
    },
    "azula REAB2": _of_azula("REABSampler", order=2),
    "azula DDPM": _of_azula("DDPMSampler"),
}
# For what their steps cost only: their results are those of others, or of another method.
TIMED: Final[Mapping[str, Peer]] = {
    "azula DDIM": _of_azula("DDIMSampler"),
    "azula Ito": _of_azula("ItoSampler"),
    "diffusers SASolver": _of_diffusers("SASolverScheduler", draws=True),
}
