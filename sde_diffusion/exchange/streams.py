"""The noise of a solver in a pipeline: a stream for each sample, of the pipeline's generators."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from sde_diffusion.noise import PerSampleNoise

Generators: TypeAlias = "torch.Generator | list[torch.Generator] | None"


def noise_for(x: Tensor, seed: int, generator: Generators) -> PerSampleNoise:
    """Return a stream of normals for each sample of a batch that a solve starts from.

    Where its two halves are equal they have the same noise: so a pipeline guides, which doubles
    the batch and puts the first half over the second after every step.

    Arguments:
        x: the start; (B, *event).
        seed: of the streams without a generator.
        generator: of their seeds, or one for each sample; None for none.
    """
    halves = _halves(x)
    count = len(x) // halves
    if generator is None:
        return PerSampleNoise(PerSampleNoise.numbered(seed, 0, count).seeds * halves)
    several = generator if isinstance(generator, list) else [generator]
    shape = (count // len(several),)
    draws = [torch.randint(2**32, shape, generator=g, device=g.device) for g in several]
    seeds: list[int] = torch.cat(draws).tolist()
    return PerSampleNoise(seeds * halves)


def _halves(x: Tensor) -> int:
    """Return 2 where the halves of a batch are equal, else 1."""
    first, second = x[: len(x) // 2], x[len(x) // 2 :]
    return 2 if len(first) and first.shape == second.shape and torch.equal(first, second) else 1
