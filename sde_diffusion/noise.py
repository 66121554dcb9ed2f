"""Every random draw of every solver: white noise, per-sample noise, one Brownian path.

A solver asks for `unit(x, t, s)`, the increment W_s − W_t divided by √|s − t|, or for `normal(x)`,
a draw that belongs to no interval of time (a corrector's).
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion._tensors import expand

_WORD = 0xFFFFFFFFFFFFFFFF


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


def _generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(int(seed))


def _check_seed(what: str, seed: int) -> None:
    positive_integer(what, "seed", seed, least=0)
    if seed > _WORD:
        raise wrong_value(what, "seed", "be below 2**64", seed, "pass a smaller one")


class Noise(ABC):
    """The source of a solver's randomness."""

    @abstractmethod
    def normal(self, x: Tensor) -> Tensor:
        """Return fresh standard normals in the shape, dtype and device of ``x``."""

    def unit(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:  # noqa: ARG002  (white noise)
        """Return (W_s − W_t)/√|s − t|, standard normal and independent over disjoint steps."""
        return self.normal(x)

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return W_s − W_t, normal with variance |s − t|."""
        return self.unit(x, t, s) * expand((s - t).abs().sqrt(), x)


@final
class WhiteNoise(Noise):
    """One stream of independent normals for the whole batch.

    The fastest source. A sample's draws depend on its place in the batch; use `PerSampleNoise`
    where they must not.

    >>> import torch
    >>> x = torch.zeros(2, 3)
    >>> bool((WhiteNoise(0).normal(x) == WhiteNoise(0).normal(x)).all())
    True
    """

    def __init__(self, seed: int) -> None:
        _check_seed("WhiteNoise", seed)
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def normal(self, x: Tensor) -> Tensor:
        if x.device not in self._generators:
            self._generators[x.device] = _generator(mix(self.seed), x.device)
        return torch.randn(
            x.shape, generator=self._generators[x.device], dtype=x.dtype, device=x.device
        )


@final
class PerSampleNoise(Noise):
    """One stream of normals per sample, so that a batch may be split in any way, bit for bit.

    >>> import torch
    >>> both = PerSampleNoise([7, 8]).normal(torch.zeros(2, 3))
    >>> alone = PerSampleNoise([8]).normal(torch.zeros(1, 3))
    >>> bool((both[1:] == alone).all())
    True
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.seeds = list(seeds)
        for seed in self.seeds:
            _check_seed("PerSampleNoise", seed)
            if seed >= 2**32:  # PyTorch's CPU generator would drop the rest
                raise wrong_value("PerSampleNoise", "seeds", "be below 2**32", seed,
                                  "use PerSampleNoise.numbered(seed, first, count)")  # fmt: skip
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    @classmethod
    def numbered(cls, seed: int, first: int, count: int) -> PerSampleNoise:
        """Return the noise of samples first … first + count − 1 of the run ``seed``.

        Samples of one run never share a stream: their 32-bit seeds differ by odd multiples.
        """
        _check_seed("PerSampleNoise", seed)
        base = mix(seed)
        return cls((base + 2654435761 * i) & 0xFFFFFFFF for i in range(first, first + count))

    def normal(self, x: Tensor) -> Tensor:
        if len(self.seeds) != x.shape[0]:
            raise wrong_value(
                "PerSampleNoise", "x", f"have one row for each of the {len(self.seeds)} seeds",
                tuple(x.shape), "pass as many seeds as there are samples",
            )  # fmt: skip
        if x.device not in self._generators:
            self._generators[x.device] = [_generator(seed, x.device) for seed in self.seeds]
        z = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for row, generator in zip(z, self._generators[x.device], strict=True):
            row.normal_(generator=generator)
        return z


@final
class BrownianPath(Noise):
    """One Brownian path W on [0, end], the same however its times are asked for.

    W is halved by bridges: W((a+b)/2) = (W(a)+W(b))/2 + ½√(b−a)·z, each z seeded by its place in
    the tree. Below the finest of ``depth`` levels, W(t) is drawn from the exact bridge of its
    cell with a z seeded by t, so every queried value has the exact law as long as no two distinct
    times share a cell of length end·2^{−depth}. Memory: at most 4·depth nodes.

    Errors: TypeError for one time per sample, ValueError for times outside [0, end] or closer than
    a cell.
    Source: Li et al. 2020 (virtual Brownian tree), with an exact last draw.

    >>> import torch
    >>> t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    >>> path, x = BrownianPath(3), torch.zeros(1, 2, dtype=torch.float64)
    >>> whole = path.increment(x, t[0], t[2])
    >>> parts = path.increment(x, t[0], t[1]) + path.increment(x, t[1], t[2])
    >>> bool(torch.allclose(whole, parts, atol=1e-14))
    True
    """

    def __init__(self, seed: int, *, end: float = 1.0, depth: int = 32) -> None:
        _check_seed("BrownianPath", seed)
        positive_integer("BrownianPath", "depth", depth)
        self.seed, self.end, self.depth = seed, end, depth
        self._fresh = WhiteNoise(mix(seed, 1))
        self._nodes: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def normal(self, x: Tensor) -> Tensor:
        return self._fresh.normal(x)

    def unit(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if t.ndim or s.ndim:
            raise wrong_type("BrownianPath", "t", "be one time for the whole batch",
                             tuple(t.shape), "use PerSampleNoise")  # fmt: skip
        gap = float((s - t).abs())
        if gap == 0:  # no time, no increment
            return torch.zeros_like(x)
        if gap < self.end * 2.0**-self.depth:
            raise wrong_value("BrownianPath", "t, s", "be further apart than the finest cell",
                              gap, f"pass depth={self.depth + 16}")  # fmt: skip
        return ((self.at(x, float(s)) - self.at(x, float(t))) / math.sqrt(gap)).to(x.dtype)

    def at(self, x: Tensor, t: float) -> Tensor:
        """Return W(t) in the shape of ``x``, in float64 whatever the dtype of ``x``."""
        x = torch.empty(x.shape, dtype=torch.float64, device=x.device)
        u = t / self.end
        if not 0 <= u <= 1:
            rule, remedy = f"lie in [0, {self.end}]", "pass end= the largest time"
            raise wrong_value("BrownianPath", "t", rule, t, remedy)
        scale = math.sqrt(self.end)
        low, high = torch.zeros_like(x), self._node(x, 0, 0, None, None)
        a, b, index = 0.0, 1.0, 0
        for level in range(1, self.depth + 1):
            if u in (a, b):
                break
            middle = self._node(x, level, index, low, high)
            half = 0.5 * (a + b)
            if u < half:
                b, high, index = half, middle, 2 * index
            else:
                a, low, index = half, middle, 2 * index + 1
        if u in (a, b):
            return (low if u == a else high) * scale
        bits = struct.unpack("<q", struct.pack("<d", u))[0]
        z = self._draw(x, mix(self.seed, 3, bits))
        part = (u - a) / (b - a)
        std = math.sqrt(part * (1 - part) * (b - a))
        return (torch.lerp(low, high, part) + std * z) * scale

    def _draw(self, x: Tensor, seed: int) -> Tensor:
        generator = _generator(seed, x.device)
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def _node(
        self, x: Tensor, level: int, index: int, low: Tensor | None, high: Tensor | None
    ) -> Tensor:
        """Return W at the middle of cell ``index`` of ``level`` (W(1) at level 0)."""
        key = (level, index)
        node = self._nodes.pop(key, None)
        if node is None or node.shape != x.shape or node.device != x.device:
            z = self._draw(x, mix(self.seed, 2, level, index))
            middle = 0.0 if low is None or high is None else 0.5 * (low + high)
            node = z if level == 0 else middle + 0.5 * 2.0 ** (-0.5 * (level - 1)) * z
        self._nodes[key] = node
        while len(self._nodes) > 4 * self.depth:
            self._nodes.popitem(last=False)
        return node


@final
class NoNoise(Noise):
    """The noise of a solve that must not draw any: it says what to pass instead."""

    def normal(self, x: Tensor) -> Tensor:  # noqa: ARG002  (the protocol's signature)
        raise wrong_type("integrate", "noise", "be given for a solver that draws", "none",
                         "pass noise=WhiteNoise(seed) or PerSampleNoise(seeds)")  # fmt: skip
