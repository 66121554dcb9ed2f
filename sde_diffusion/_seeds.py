"""Seeds: one seed serves many streams of random numbers, one for each purpose."""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final

from sde_diffusion._check import positive_integer, wrong_value

_WORD: Final = 0xFFFFFFFFFFFFFFFF


@unique
class Purpose(IntEnum):
    """What a stream of a seed is for, ``mix(seed, purpose, …)``: no two draws share one."""

    BATCH = 1  # rows and times of a training step
    DROPOUT = 2
    ORDER = 3  # of the rows in an epoch
    PROBES = 5  # of a divergence
    ELBO = 11
    VLB = 12
    DEQUANTIZATION = 13
    LOG_DET = 14
    ANALYTIC_VARIANCE = 15
    LOSS = 16  # noise of a training step
    LOSS_BY_LEVEL = 17
    LOSS_BY_LEVEL_DATA = 18
    MONITOR = 19  # what a monitor draws from the global generator
    DEQUANTIZER_WEIGHTS = 20
    DEQUANTIZER_FIT = 21
    CONVENTION = 25  # noise on data, to see whether a network's convention fits
    FLOW_SAMPLES = 0x07E6  # a comparison's samples of the model itself
    SPLIT = 0x5EED  # of a comparison's samples, for an interval
    RESAMPLING = 0x5A3B1E
    POSTERIOR_RESAMPLING = 40
    MEASUREMENT = 41  # the noise of a measurement
    LATENTS = 60  # draws of z given x


@unique
class PathPurpose(IntEnum):
    """What a stream of a Brownian path is for.

    It is followed by the 64 bits of a time, which no counter that follows a `Purpose` reaches.
    """

    FRESH = 1  # normals that belong to no interval of time
    INCREMENT = 2
    AREA = 3


def mix(*words: int) -> int:
    """Return a well-mixed 32-bit number of the given integers (splitmix64 finaliser, chained).

    The CPU generator of PyTorch uses the low 32 bits of its seed only, so seeds that should
    differ must differ there.
    """
    h = 0
    for word in words:
        h = (h + int(word) + 0x9E3779B97F4A7C15) & _WORD
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & _WORD
        h ^= h >> 31
    return h & 0xFFFFFFFF


def check_seed(what: str, seed: int) -> None:
    """Refuse what is not an integer in [0, 2⁶⁴)."""
    positive_integer(what, "seed", seed, least=0)
    if seed > _WORD:
        raise wrong_value(what, "seed", "be below 2**64", seed, "pass a smaller one")
