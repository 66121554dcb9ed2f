"""Normals by counting: Philox4x32-10 in plain tensor operations, one stream for each sample.

Every normal is a function of (seed, sample, draw, place) alone, computed for the whole batch at
once: the number of kernels does not grow with the batch. It has the same bits on every machine
with IEEE arithmetic, a GPU included. For that it is made of integer operations and of +, −, ×, ÷
and √ in float64, each a kernel of its own, which IEEE 754 rounds in one way; the last bits of
log, cos and sin are each library's own. (A compiler that contracts a × b + c to one rounding, as
torch.compile may on a GPU, makes other last bits: leave the noise outside what you compile.)
"""

from __future__ import annotations

from collections.abc import Iterable
from math import factorial, log, pi
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion._seeds import check_seed
from sde_diffusion.noise import Noise

_WORD: Final = 0xFFFFFFFF
_ROUNDS: Final = 10
_FACTORS: Final = (0xD2511F53, 0xCD9E8D57)  # of words 0 and 2
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)  # added to the key's words from round to round

_EXPONENT: Final = 52  # the bits of a float64 below its exponent
_ROOT_HALF: Final = 0x3FE6A09E667F3BCD  # the bits of √½
_ATANH: Final = [2 / (2 * j + 1) for j in range(8)]  # 2 atanh(s)/s by powers of s²
_SINE: Final = [(-1) ** j / factorial(2 * j + 1) for j in range(9)]  # sin(a)/a by powers of a²
_HALF_TURN: Final = 1 << 32  # in the units of an angle, π/2³²


def round_keys(key: int) -> Tensor:
    """Return the two words of a 64-bit key in every round of Philox: (10, 2, 1, 1), int64."""
    low, high = _WEYL
    rounds = [((key + i * low) & _WORD, ((key >> 32) + i * high) & _WORD) for i in range(_ROUNDS)]
    return torch.tensor(rounds)[..., None, None]


def philox(even: Tensor, odd: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the words 0 and 2, and 1 and 3, of Philox4x32-10 at counters of four words.

    A round takes (x₀, x₁, x₂, x₃) to (hi(M₁x₂) ⊕ x₁ ⊕ k₀, lo(M₁x₂), hi(M₀x₀) ⊕ x₃ ⊕ k₁, lo(M₀x₀)),
    the upper and lower 32 bits of products of 64, which int64 keeps.

    Shapes: even, odd, results (2, B, n), int64 in [0, 2³²); keys (10, 2, 1, 1).
    Source: Salmon, Moraes, Dror and Shaw 2011, section 3.3 and table 2.
    """
    factors = torch.full_like(keys[0], _FACTORS[0])
    factors[1:].fill_(_FACTORS[1])
    for key in keys:
        product = (even * factors).flip(0)
        even = ((product >> 32) ^ odd ^ key) & _WORD
        odd = product  # its upper bits fall with the mask
    return even, odd & _WORD


def _polynomial(coefficients: list[float], y: Tensor) -> Tensor:
    """Return Σ cⱼ yʲ by Horner's rule, a product and a sum at a time."""
    total = y * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        total.add_(c).mul_(y)
    return total.add_(coefficients[0])


def _radius(word: Tensor) -> Tensor:
    """Return √(−2 ln u) at u = (2 word + 1)/2³³.

    2 word + 1 = 2ᵏ m with m in [√½, √2), by its bits; ln m = 2 atanh(s), s = (m − 1)/(m + 1).
    """
    bits = (2 * word + 1).double().view(torch.int64)
    power = (bits - _ROOT_HALF) >> _EXPONENT  # k, from the exponent of √½ up
    m = (bits - (power << _EXPONENT)).view(torch.float64)
    s = (m - 1) / (m + 1)
    log_m = _polynomial(_ATANH, s * s) * s
    return (((33 - power).double() * log(2)) - log_m).mul_(2).sqrt_()


def _sine(angle: Tensor) -> Tensor:
    """Return sin(π angle/2³²), of an integer of any size.

    A wave of triangles, exact in integers, takes the angle to [−π/2, π/2], where Taylor's series
    has a small relative error however small the sine.
    """
    turned = (angle + _HALF_TURN // 2) & (2 * _HALF_TURN - 1)
    folded = (turned - _HALF_TURN).abs_() - _HALF_TURN // 2
    a = folded.double().mul_(-pi / _HALF_TURN)
    return _polynomial(_SINE, a * a).mul_(a)


def box_muller(even: Tensor, odd: Tensor) -> Tensor:
    """Return √(−2 ln u) cos 2πv and √(−2 ln u) sin 2πv, rounded from float64 to float32.

    u and v are (2 word + 1)/2³³ of words in [0, 2³²), so |z| is at most 6.77.

    Shapes: even (words of u), odd (of v) any; result (2, *), cosine first.
    Source: Box and Muller 1958.
    """
    angle = 2 * odd + 1
    both = _sine(torch.stack((angle + _HALF_TURN // 2, angle)))
    return both.mul_(_radius(even)).float()


@final
class CounterNoise(Noise):
    """One stream of normals for each sample, in a number of kernels that no batch changes.

    Draw d of sample i of a run is Philox4x32-10 of the counter (block, d, i) under the key
    ``seed``, four normals a block by `box_muller`: rows do not depend on the batch, and a GPU
    draws the bits that a CPU draws. They are drawn in float32 and converted to the state's dtype.
    ``sample(..., noise=CounterNoise)`` draws the prior and every step by it.

    A draw is some 130 kernels, shared by the ``ahead`` draws that are computed together, at that
    many times the memory; none of this changes a bit. `PerSampleNoise` launches one for each
    sample (`python benchmarks/kernels.py`). On a CPU, where launches are cheap, a draw takes
    9 times as long as one of `PerSampleNoise` for 16 × 3 × 32 × 32 states, .8 times for 400 × 2
    (`python benchmarks/noise.py`).

    Arguments:
        seed: of the run, an integer in [0, 2⁶⁴).
        samples: the numbers of the batch's samples in the run, below 2⁶³.
        ahead: how many draws are computed at once; 8 for a solver that draws at each step on a
            GPU.

    >>> import torch
    >>> both = CounterNoise(0, [7, 8]).normal(torch.zeros(2, 3))
    >>> alone = CounterNoise(0, [8]).normal(torch.zeros(1, 3))
    >>> bool((both[1:] == alone).all())
    True
    """

    def __init__(self, seed: int, samples: Iterable[int], *, ahead: int = 1) -> None:
        check_seed("CounterNoise", seed)
        positive_integer("CounterNoise", "ahead", ahead)
        self.seed = seed
        self.samples = list(samples)
        for sample in self.samples:
            positive_integer("CounterNoise", "samples", sample, least=0)
            if sample >= 2**63:
                remedy = "pass smaller numbers"
                raise wrong_value("CounterNoise", "samples", "be below 2**63", sample, remedy)
        self.ahead = ahead
        self._drawn = 0
        self._waiting: list[Tensor] = []  # draws from this one on, (B, 4 blocks) each
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def normal(self, x: Tensor) -> Tensor:
        if len(self.samples) != x.shape[0]:
            raise wrong_value(
                "CounterNoise",
                "x",
                f"have one row for each of the {len(self.samples)} samples",
                tuple(x.shape),
                "pass as many samples as the state has rows",
            )
        size = x[0].numel()
        blocks = (size + 3) // 4
        ready = self._waiting
        if not ready or ready[0].device != x.device or ready[0].shape[1] != 4 * blocks:
            even, odd = self._counters(x, blocks)
            z = box_muller(*philox(even, odd, self._tables[x.device][1]))
            rows = z.permute(2, 3, 1, 0).reshape(self.ahead, len(x), 4 * blocks)
            self._waiting = list(rows)
        self._drawn += 1
        return self._waiting.pop(0)[:, :size].reshape(x.shape).to(x.dtype)

    def _counters(self, x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        """Return the counters (block, draw, sample's low word, its high word) of the next draws.

        Shapes: (2, ahead × B, blocks), of words 0 and 2, and of 1 and 3.
        """
        if x.device not in self._tables:
            samples = torch.tensor(self.samples)[:, None]
            words = torch.stack((samples & _WORD, samples >> 32)).to(x.device, non_blocking=True)
            keys = round_keys(self.seed).to(x.device, non_blocking=True)
            self._tables[x.device] = (words, keys)
        low, high = self._tables[x.device][0].repeat(1, self.ahead, 1)
        draws = torch.arange(self._drawn, self._drawn + self.ahead, device=x.device)
        block = torch.arange(blocks, device=x.device).expand(len(low), blocks)
        draw = draws[:, None].expand(-1, len(x)).reshape(-1, 1)
        return torch.stack((block, low.expand_as(block))), torch.stack((draw, high))
