"""Checks of draws: batches of other sizes, and the normals of a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from sde_diffusion.evaluation.selfcheck import (
    REPORT,
    Check,
    event_of,
    float32_there,
    largest,
    rounding,
)
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.noise import Noise
from sde_diffusion.sampling.generate import sample
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver

_PARTS: Final = (3, 5)  # of a batch of 8
# The first normals of sample 0 of seed 0, as torch's CPU generator makes them.
STORED: Final = (0.68956906, -0.99904525, -3.0742793, 0.7323872)


def parts(
    solver: Solver[Any], model: ScoreLike, event: Sequence[int], bound: float, because: str
) -> Check:
    """Return the largest difference of 8 samples drawn at once from those drawn as 3 and 5.

    Arguments:
        solver: any solver.
        model: on the device that is checked.
        event: the shape of a sample.
        bound: 0 for a score that treats every sample alone, bit for bit.
        because: where it comes from.
    """
    whole = sample(model, solver, (8, *event), steps=5).x
    first, second = _PARTS
    apart = [
        sample(model, solver, (first, *event), steps=5).x,
        sample(model, solver, (second, *event), steps=5, first=first).x,
    ]
    return Check(
        f"batch of 8 of {type(model).__name__}",
        "largest difference from the same samples drawn as 3 and 5",
        float((whole - torch.cat(apart)).abs().max()),
        bound,
        because,
        "look for what mixes samples, such as batch normalisation; in a shipped model, " + REPORT,
    )


def network_parts(solver: Solver[Any], model: ScoreModel, device: torch.device) -> Check:
    """Return `parts` of a network, whose products a library sums in an order of its own."""
    there, _ = float32_there(model, torch.empty(0), device)
    bound, roundings = rounding(device)
    because = f"{roundings}: a library sums in an order that depends on the batch's size"
    return parts(solver, there, event_of(model), bound, because)


def stored_normals(made: Callable[[], Noise]) -> Check:
    """Return the difference of the first normals on the CPU from `STORED`.

    ``made`` makes the noise of 512 samples anew: `PerSampleNoise.numbered(0, 0, 512)`.
    """
    found = made().normal(torch.zeros(512, 64))[0, : len(STORED)]
    return Check(
        "normals of a seed on the CPU",
        "largest difference from the stored ones",
        float((found - torch.tensor(STORED)).abs().max()),
        1e-6,
        "logarithms and cosines of float32 differ by a last bit between kinds of CPU",
        "samples of a seed are others than before: name the version of torch, and " + REPORT,
    )


def repeated_normals(made: Callable[[], Noise], device: torch.device) -> Check:
    """Return the difference of the normals of a seed from themselves, drawn anew."""
    one, two = (made().normal(torch.zeros(512, 64, device=device)) for _ in range(2))
    return Check(
        "normals of a seed, drawn twice",
        "largest difference on the device",
        float((one - two).abs().max()),
        0.0,
        "one seed is one noise, bit for bit",
        "seed the generator anew for every draw; in a shipped noise, " + REPORT,
    )


def moments(made: Callable[[], Noise], device: torch.device) -> Check:
    """Return the errors of mean and variance of the normals in standard errors, n^−½ and (2/n)^½.

    ``made`` makes the noise of 512 samples.
    """
    z = made().normal(torch.zeros(512, 64, device=device)).double()
    n = z.numel()
    errors = [float(z.mean()) * n**0.5, float(z.square().mean() - 1) * (n / 2) ** 0.5]
    return Check(
        "mean and variance of normals",
        f"larger error, of {n} on the device, in standard errors",
        largest([abs(error) for error in errors]),
        5.0,
        "a right generator goes beyond it once in a million seeds",
        "try --device cpu, which says whether the device is at fault; " + REPORT,
    )
