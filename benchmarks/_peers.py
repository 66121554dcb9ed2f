"""Samplers of other programs on the exact grid of ours, each where it is installed.

An adapter runs one whole solve: ``run(eps, x, tick)`` calls the predictor ``eps(x, i)`` with the
index i of a time of the grid, calls ``tick()`` after every step, and returns the end state. Those
that draw do it from PyTorch's global generator.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias

import torch
from _common import peer
from torch import Tensor

from sde_diffusion import VPSDE, LinearSDE

Eps: TypeAlias = Callable[[Tensor, int], Tensor]  # (x_t, index of t in the grid) -> eps
Tick: TypeAlias = Callable[[], object]
Run: TypeAlias = Callable[[Eps, Tensor, Tick], Tensor]


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


class _Kept(Tensor):
    """A state that stays float64 where diffusers rounds it to float32, whatever it came as."""

    def to(self, *_: object, **__: object) -> Tensor:
        return self


def _diffusers(name: str, sde: LinearSDE, grid: Tensor, **settings: Any) -> Run:  # noqa: ANN401
    """Return a run of a diffusers scheduler whose training lattice is the grid itself.

    Training step k is the grid's time n − k, so that n inference steps meet every time exactly
    and end at the grid's end, not at α = 1. The flow of any linear SDE is that of a VP one in
    x/√(α² + σ²), with the same eps.
    """
    alpha, sigma = sde.alpha(grid), sde.sigma(grid)
    radius = None if isinstance(sde, VPSDE) else torch.hypot(alpha, sigma)
    alphas = (alpha.square() / (alpha.square() + sigma.square())).flip(0)
    n = len(grid) - 1
    ratios = torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
    module = peer("diffusers")
    heun = name == "HeunDiscreteScheduler"
    offset = 0 if "Multistep" in name else 1  # what makes "leading" mean n, n − 1, …, 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of logarithms of what is 0 in float32, replaced below
        scheduler = getattr(module, name)(
            num_train_timesteps=n + 1,
            trained_betas=(1 - ratios).numpy(),
            timestep_spacing="leading",
            steps_offset=offset,
            **settings,
        )
    # In float64, where the betas and diffusers' own σ/α are rounded to float32.
    scheduler.alphas_cumprod = alphas
    sigmas = sigma / alpha
    if heun:  # two entries a step; it would end at σ = 0
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])

    def run(eps: Eps, x: Tensor, tick: Tick) -> Tensor:
        scheduler.set_timesteps(n)
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = sigmas
        x = x if radius is None else x / radius[0]
        # diffusers' Heun keeps x_t/α, noise of variance σ²/α² on unscaled data.
        x = x / float(alphas[-1].sqrt()) if heun else x
        x = x.as_subclass(_Kept) if x.dtype == torch.float64 else x
        for step in scheduler.timesteps:
            i = n - int(step)
            seen = scheduler.scale_model_input(x, step).as_subclass(Tensor)
            found = eps(seen if radius is None else seen * radius[i], i)
            x = scheduler.step(found, step, x).prev_sample
            tick()
        x = x.as_subclass(Tensor)
        x = x * float(alphas[0].sqrt()) if heun else x
        return x if radius is None else x * radius[-1]

    return run


def _azula(name: str, sde: LinearSDE, grid: Tensor, **settings: Any) -> Run:  # noqa: ANN401
    """Return a run of an azula sampler on the grid's times."""
    denoise = peer("azula.denoise")
    kind = getattr(peer("azula.sample"), name)
    place = {float(t): i for i, t in enumerate(grid)}

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        return sde.alpha(t), sde.sigma(t)

    def run(eps: Eps, x: Tensor, tick: Tick) -> Tensor:
        def posterior(x: Tensor, t: Tensor) -> Any:  # noqa: ANN401
            mean = (x - sde.sigma(t) * eps(x, place[float(t)])) / sde.alpha(t)
            return denoise.DiracPosterior(mean)

        class OnGrid(kind):  # type: ignore[misc,valid-type]  # chosen by name
            timesteps = grid

            def progress_bar(self, it: Any) -> Iterator[Any]:  # noqa: ANN401
                for item in it:
                    yield item
                    tick()

        posterior.schedule = schedule  # type: ignore[attr-defined]  # all a sampler asks for
        found: Tensor = OnGrid(posterior, silent=True, **settings)(x)
        return found

    return run


def _k_diffusion(name: str, sde: LinearSDE, grid: Tensor, **settings: Any) -> Run:  # noqa: ANN401
    """Return a run of a k-diffusion sampler, which works on x_t/α with noise σ/α."""
    sampler = getattr(peer("k_diffusion.sampling"), name)
    alpha = sde.alpha(grid)
    sigmas = sde.sigma(grid) / alpha

    def run(eps: Eps, x: Tensor, tick: Tick) -> Tensor:
        calls = itertools.count()  # the samplers below call once a step, in the grid's order

        def denoiser(y: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG001
            i = next(calls)
            return y - sigmas[i] * eps(alpha[i] * y, i)

        found = sampler(
            denoiser, x / alpha[0], sigmas, disable=True, callback=lambda _: tick(), **settings
        )
        return found * alpha[-1]  # type: ignore[no-any-return]

    return run


def _raw_ddim(sde: LinearSDE, grid: Tensor) -> Run:
    """Return the DDIM as a bare loop on numbers computed ahead: the least a solver can cost."""
    shrink, factor, _ = _coefficients(sde, grid, eta=0.0)

    def run(eps: Eps, x: Tensor, tick: Tick) -> Tensor:
        x = x.clone()
        for i, (a, b) in enumerate(zip(shrink, factor, strict=True)):
            found = eps(x, i)
            x.mul_(a).add_(found, alpha=b)
            tick()
        return x

    return run


def _raw_ancestral(sde: LinearSDE, grid: Tensor) -> Run:
    """Return the DDPM as a bare loop: the least that a solver that draws can cost."""
    shrink, factor, spread = _coefficients(sde, grid, eta=1.0)

    def run(eps: Eps, x: Tensor, tick: Tick) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x = x.clone()
        z = torch.empty_like(x)
        for i, (a, b, c) in enumerate(zip(shrink, factor, spread, strict=True)):
            found = eps(x, i)
            x.mul_(a).add_(found, alpha=b)
            x.add_(z.normal_(generator=generator), alpha=c)
            tick()
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
    settings |= {"clip_sample": False} if name.startswith("DD") else {}
    make = functools.partial(_diffusers, name, **settings)
    return Peer("diffusers", evaluations, make, draws)


def _of_azula(
    name: str,
    evaluations: Callable[[int], int] = _one,
    **settings: Any,  # noqa: ANN401
) -> Peer:
    make = functools.partial(_azula, name, **settings)
    return Peer("azula.sample", evaluations, make, draws=name == "DDPMSampler")


def _of_k_diffusion(name: str, evaluations: Callable[[int], int] = _one) -> Peer:
    return Peer("k_diffusion.sampling", evaluations, functools.partial(_k_diffusion, name))


_TO_THE_END: Final[Mapping[str, Any]] = {"final_sigmas_type": "sigma_min"}  # not to σ = 0
# Without the lower orders at the end of a solve, which are made for an end at σ = 0.
_FULL: Final[Mapping[str, Any]] = {"lower_order_final": False}
RAW: Final[Mapping[str, Peer]] = {
    "bare loop, DDIM": Peer("torch", _one, _raw_ddim),
    "bare loop, DDPM": Peer("torch", _one, _raw_ancestral, draws=True),
}
PEERS: Final[Mapping[str, Peer]] = {
    "diffusers DDIM": _of_diffusers("DDIMScheduler"),
    "diffusers Heun": _of_diffusers("HeunDiscreteScheduler", lambda n: 2 * n - 1),
    "diffusers DPM++2M": _of_diffusers("DPMSolverMultistepScheduler", **_TO_THE_END),
    "diffusers DPM++3M": _of_diffusers(
        "DPMSolverMultistepScheduler", solver_order=3, **_TO_THE_END
    ),
    "diffusers UniPC2": _of_diffusers("UniPCMultistepScheduler", **_TO_THE_END),
    "diffusers UniPC3": _of_diffusers("UniPCMultistepScheduler", solver_order=3, **_TO_THE_END),
    "diffusers UniPC3 full": _of_diffusers(
        "UniPCMultistepScheduler", solver_order=3, **_TO_THE_END, **_FULL
    ),
    **{
        f"diffusers DEIS{k}{name}": _of_diffusers(
            "DEISMultistepScheduler", solver_order=k, **settings
        )
        for k in (2, 3)
        for name, settings in (("", {}), (" full", _FULL))
    },
    "diffusers DDPM": _of_diffusers("DDPMScheduler", draws=True),
    "diffusers SDE-DPM++2M": _of_diffusers(
        "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", draws=True, **_TO_THE_END
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
