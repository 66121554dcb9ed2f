"""Relative L2 error of the predicted noise of a 1-D, a 2-D and a 3-D U-Net on one mixture.

Run it as `python benchmarks/signals.py`; it takes two to four minutes on one core. Four Gaussians
in eight dimensions are given as series (1, 8), images (1, 2, 4) and volumes (1, 2, 2, 2) to
networks of one width, from the same draws and for as many steps; the exact noise is known. It
fails where an error is more than a fifth above the least.
"""

from __future__ import annotations

import sys
import time
from math import prod
from typing import Final

import torch
from _common import options, parsed, table, write
from torch import Tensor

from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, UNet, denoising_loss

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


def trained(means: Tensor, shape: tuple[int, ...], steps: int) -> ScoreModel:
    """Return a U-Net of the shape, fitted to the mixture."""
    net = UNet(1, 24, (1, 2), 1, (0, 1), 4, time_scale=30.0, dims=len(shape) - 1)
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
    for shape in SHAPES:
        began = time.perf_counter()
        model = trained(means, shape, steps)
        seconds = time.perf_counter() - began
        size = sum(p.numel() for p in model.parameters())
        rows.append((shape, size, error(model, means, shape), seconds))
    header = ["samples", "weights", "relative error of eps", "seconds"]
    shown = [(s, f"{n:,}", f"{e:.4f}", f"{seconds:.0f}") for s, n, e, seconds in rows]
    table(f"U-Nets of width 24, {steps} steps of 128", header, shown)
    errors = [row[2] for row in rows]
    write(chosen.out, steps=steps, errors=dict(zip(map(str, SHAPES), errors, strict=True)))
    if not chosen.quick and max(errors) > _WIDEST * min(errors):
        sys.exit("an error is more than a fifth above the least")


if __name__ == "__main__":
    main()
