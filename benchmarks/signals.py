"""Relative L2 error of the predicted noise of U-Nets and transformers on one mixture.

Run it as `python benchmarks/signals.py`; it takes four to eight minutes on one core. Four
Gaussians in eight dimensions are given as series (1, 8), images (1, 2, 4) and volumes (1, 2, 2, 2)
to U-Nets of one width, and to transformers of as many weights, from the same draws and for as many
steps; the exact noise is known. It fails where the error of a U-Net is more than a fifth above
that of another.
"""

from __future__ import annotations

import sys
import time
from math import prod
from typing import Final

import torch
from _common import options, parsed, table, write
from torch import Tensor, nn

from sde_diffusion import VPSDE, DiT, GaussianMixture, ScoreModel, UNet, denoising_loss

SHAPES: Final = ((1, 8), (1, 2, 4), (1, 2, 2, 2))
_STD: Final = 0.3
_FIRST: Final = 0.02  # time
_RATE: Final = 3e-3
_WIDEST: Final = 1.2  # ratio of two errors


def generator(seed: int) -> torch.Generator:
    """Return a generator of a seed."""
    return torch.Generator().manual_seed(seed)


def drawn(means: Tensor, rows: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return data, times and noise: (rows, 8), (rows,), (rows, 8)."""
    which = torch.randint(len(means), (rows,), generator=draws)
    x0 = means[which] + _STD * torch.randn(rows, means.shape[1], generator=draws)
    u = torch.rand(rows, generator=draws, dtype=torch.float64)
    t = _FIRST + (1 - _FIRST) * (u + torch.arange(rows)) / rows
    return x0, t, torch.randn(x0.shape, generator=draws)


def unet(shape: tuple[int, ...]) -> nn.Module:
    """Return a U-Net for the shape."""
    return UNet(1, 24, (1, 2), 1, (0, 1), 4, time_scale=30.0, dims=len(shape) - 1)


def dit(shape: tuple[int, ...]) -> nn.Module:
    """Return a transformer of as nearly as many weights as the U-Net of the shape."""
    patch = (1,) * (len(shape) - 1)
    many = weights(unet(shape))
    built = (DiT(1, patch, width, 4, 4, time_scale=30.0) for width in range(16, 129, 8))
    return min(built, key=lambda net: abs(weights(net) - many))


def weights(net: nn.Module) -> int:
    """Return the number of weights."""
    return sum(p.numel() for p in net.parameters())


def trained(net: nn.Module, means: Tensor, shape: tuple[int, ...], steps: int) -> ScoreModel:
    """Return the model of a network, fitted to the mixture."""
    model = ScoreModel(net, VPSDE())
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE, betas=(0.9, 0.99))
    draws = generator(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        x0, t, eps = drawn(means, 128, draws)
        optimizer.zero_grad()
        loss = denoising_loss(model, x0.reshape(-1, *shape), t, eps.reshape(-1, *shape))
        loss.mean().backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def error(model: ScoreModel, means: Tensor, shape: tuple[int, ...]) -> float:
    """Return √(E|eps_model − eps_exact|²/E|eps_exact|²) over times and the diffused mixture."""
    weights = torch.ones(len(means)) / len(means)
    exact = GaussianMixture(weights, means, stds=[_STD] * len(means)).diffused(model.sde)
    x0, t, eps = drawn(means, 2048, generator(2))
    x = model.sde.perturb(x0, t, eps)
    wanted = exact.eps(x.double(), t)
    found = model.eps(x.float().reshape(-1, *shape), t).flatten(1)
    return float(((found - wanted).square().sum() / wanted.square().sum()).sqrt())


def main() -> None:
    """Print the errors, and fail where one is larger than another."""
    chosen = parsed(options(__doc__))
    steps = 2 if chosen.quick else 300
    means = torch.randn(4, prod(SHAPES[0]), generator=generator(0))
    rows = []
    for build in (unet, dit):
        for shape in SHAPES:
            began = time.perf_counter()
            model = trained(build(shape), means, shape, steps)
            seconds = time.perf_counter() - began
            name = type(model.network).__name__
            rows.append((name, shape, weights(model), error(model, means, shape), seconds))
    header = ["network", "samples", "weights", "relative error of eps", "seconds"]
    shown = [(k, s, f"{n:,}", f"{e:.4f}", f"{seconds:.0f}") for k, s, n, e, seconds in rows]
    table(f"{steps} steps of 128", header, shown)
    errors = {f"{name} {shape}": found for name, shape, _, found, _ in rows}
    write(chosen.out, steps=steps, errors=errors)
    of_unets = [found for name, *_, found, _ in rows if name == "UNet"]
    if not chosen.quick and max(of_unets) > _WIDEST * min(of_unets):
        sys.exit("the error of a U-Net is more than a fifth above another's")


if __name__ == "__main__":
    main()
