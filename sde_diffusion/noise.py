"""Every random draw of every solver: white noise and per-sample noise (`brownian` has the path).

A solver asks for `unit(x, t, s)`, the increment W_s − W_t divided by √|s − t|, for
`area(x, t, s)`, the increment and its time integral, or for `normal(x)`, a draw that belongs to no
interval of time (a corrector's).

Normals are drawn in float32, whatever the state's dtype, and converted: so one seed is one noise
in every dtype. A generator's float64 draws are other numbers than its float32 ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion._check import a_function, an_object, positive_integer, wrong_type, wrong_value
from sde_diffusion._seeds import check_seed, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import expand

_DRAWN: Final = (torch.float32, torch.float64)


def _check_draw_dtype(what: str, draw_dtype: object) -> None:
    if draw_dtype not in _DRAWN:
        raise wrong_value(
            what,
            "draw_dtype",
            "be torch.float32 or torch.float64",
            draw_dtype,
            "drop it: the normals are converted to the state's dtype",
        )


def _generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(int(seed))


class Noise(ABC):
    """The source of a solver's randomness."""

    __repr__ = shown

    @abstractmethod
    def normal(self, x: Tensor) -> Tensor:
        """Return fresh standard normals in the shape, dtype and device of ``x``."""

    def unit(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:  # noqa: ARG002  (white noise)
        """Return (W_s − W_t)/√|s − t|, standard normal and independent over disjoint steps."""
        return self.normal(x)

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return W_s − W_t, normal with variance |s − t|."""
        return self.unit(x, t, s) * expand((s - t).abs().sqrt(), x)

    def area(self, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return dw = W_s − W_t and I = ∫_t^s (W_u − W_t) du = dt (½ dw + H), dt = s − t signed.

        H, normal with variance |dt|/12, is independent of dw and has no direction. The integral
        has one: so Taylor schemes read the same forward and backward in time, with
        ∫_t^s (u − t) dW_u = dt dw − I.

        Source: Kloeden and Platen 1992, section 10.4 (I is their ΔZ); Foster et al. 2020 (H).
        """
        dw = self.increment(x, t, s)
        h = expand(((s - t).abs() / 12).sqrt(), x) * self.normal(x)
        return dw, expand(s - t, x) * (0.5 * dw + h)


@final
class WhiteNoise(Noise):
    """One stream of independent normals for the whole batch.

    The fastest source. A sample's draws depend on its place in the batch; use `PerSampleNoise`
    where they must not.

    Drawn in float32 for states of every dtype; ``draw_dtype=torch.float64`` draws other numbers,
    resolved to 2⁻⁵³ and not 2⁻²⁴.

    >>> import torch
    >>> x = torch.zeros(2, 3)
    >>> bool((WhiteNoise(0).normal(x) == WhiteNoise(0).normal(x)).all())
    True
    """

    def __init__(self, seed: int, *, draw_dtype: torch.dtype = torch.float32) -> None:
        check_seed("WhiteNoise", seed)
        _check_draw_dtype("WhiteNoise", draw_dtype)
        self.seed = seed
        self.draw_dtype = draw_dtype
        self._generators: dict[torch.device, torch.Generator] = {}

    def normal(self, x: Tensor) -> Tensor:
        if x.device not in self._generators:
            self._generators[x.device] = _generator(mix(self.seed), x.device)
        generator = self._generators[x.device]
        z = torch.randn(x.shape, generator=generator, dtype=self.draw_dtype, device=x.device)
        return z.to(x.dtype)


@final
class PerSampleNoise(Noise):
    """One stream of normals per sample, so that a batch may be split in any way, bit for bit.

    They are drawn in float32 or in ``draw_dtype``, as those of `WhiteNoise`.

    >>> import torch
    >>> both = PerSampleNoise([7, 8]).normal(torch.zeros(2, 3))
    >>> alone = PerSampleNoise([8]).normal(torch.zeros(1, 3))
    >>> bool((both[1:] == alone).all())
    True
    """

    def __init__(self, seeds: Iterable[int], *, draw_dtype: torch.dtype = torch.float32) -> None:
        _check_draw_dtype("PerSampleNoise", draw_dtype)
        self.draw_dtype = draw_dtype
        self.seeds = list(seeds)
        for seed in self.seeds:
            check_seed("PerSampleNoise", seed)
            if seed >= 2**32:  # PyTorch's CPU generator would drop the rest
                raise wrong_value(
                    "PerSampleNoise",
                    "seeds",
                    "be below 2**32",
                    seed,
                    "use PerSampleNoise.numbered(seed, first, count)",
                )
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    @classmethod
    def numbered(
        cls, seed: int, first: int, count: int, *, draw_dtype: torch.dtype = torch.float32
    ) -> PerSampleNoise:
        """Return the noise of samples first … first + count − 1 of the run ``seed``.

        Samples of one run never share a stream: their 32-bit seeds differ by odd multiples.

        Arguments:
            seed: of the run, an integer in [0, 2⁶⁴).
            first: the number of the batch's first sample.
            count: the number of samples, B.
            draw_dtype: in which the normals are drawn, float32 or float64.
        """
        positive_integer("PerSampleNoise", "first", first, least=0)
        return cls.of_run(seed, range(first, first + count), draw_dtype=draw_dtype)

    @classmethod
    def of_run(
        cls, seed: int, samples: Iterable[int], *, draw_dtype: torch.dtype = torch.float32
    ) -> PerSampleNoise:
        """Return the noise of the samples of these numbers of the run ``seed``, as `numbered`."""
        check_seed("PerSampleNoise", seed)
        base = mix(seed)
        seeds = ((base + 2654435761 * i) & 0xFFFFFFFF for i in samples)
        return cls(seeds, draw_dtype=draw_dtype)

    def normal(self, x: Tensor) -> Tensor:
        if len(self.seeds) != x.shape[0]:
            raise wrong_value(
                "PerSampleNoise",
                "x",
                f"have one row for each of the {len(self.seeds)} seeds",
                tuple(x.shape),
                "pass as many seeds as there are samples",
            )
        if x.device not in self._generators:
            self._generators[x.device] = [_generator(seed, x.device) for seed in self.seeds]
        z = torch.empty(x.shape, dtype=self.draw_dtype, device=x.device)
        for row, generator in zip(z, self._generators[x.device], strict=True):
            row.normal_(generator=generator)
        return z.to(x.dtype)


@final
class NoNoise(Noise):
    """The noise of a solve that must not draw any: it says what to pass instead."""

    def normal(self, x: Tensor) -> Tensor:  # noqa: ARG002  (the protocol's signature)
        raise wrong_type(
            "integrate",
            "noise",
            "be given for a solver that draws",
            "none",
            "pass noise=WhiteNoise(seed) or PerSampleNoise(seeds)",
        )


def given_noise(what: str, noise: Noise | None) -> Noise:
    """Return the noise, refusing what is none; that of a solve without any draws nothing."""
    if noise is None:
        return NoNoise()
    an_object(what, "noise", noise, Noise, "pass for example PerSampleNoise(range(len(x)))")
    return noise


# What makes the noise of samples of a run: (seed, numbers of the samples) → noise.
NoiseOfRun: TypeAlias = Callable[[int, Sequence[int]], Noise]


def noise_of_run(what: str, make: NoiseOfRun, seed: int, samples: Sequence[int]) -> Noise:
    """Return the noise that ``make`` makes of a run, refusing what makes none.

    Arguments:
        what: the function that draws, for the error.
        make: what makes it.
        seed: of the run.
        samples: the numbers of its samples.
    """
    remedy = "pass noise=CounterNoise"
    a_function(what, "noise", make, "noise(seed, samples)", remedy)
    positive_integer(what, "first", samples[0], least=0)
    made = make(seed, samples)
    an_object(what, "noise(seed, samples)", made, Noise, remedy)
    return made
