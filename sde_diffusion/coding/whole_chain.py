"""The chain of a model in whole numbers: what its states, means and variances are to a coder.

The state x_k is a whole number of cells δ_k. Of all that follows from the model's SDE and levels
only whole numbers are used, whose checksum a file keeps: what a decoder computes is what the
encoder did, or is refused.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Final, final

import numpy as np

from sde_diffusion.coding.normals import FINE, PARTS, Floats, Integers, LevelNormals, Normals
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.ddpm.level_times import level_centres

_CELLS: Final = 0.75  # cells to a standard deviation: see `normals`
_SHIFT: Final = 20  # means are made with so many bits below a part
_WIDE: Final = 32  # standard deviations of the prior on either side


@final
class WholeChain:
    """q(x_k|x_{k−1}), p(x_{k−1}|x_k), p(x_0|x_1) and the prior of a chain, on cells.

    q(x_1|x_0) has the mean alpha_1 x_0, of a level. p(x_{k−1}|x_k) has the variance β̃_k and the
    mean keep_k x_k + pull_k x̂0 of `Chain.posterior`; p(x_0|x_1) is that of `LevelDecoder` with
    the variance β_1. x̂0 enters as the whole number nearest to scales[k − 1] x̂0, that of parts of a
    cell which it moves the mean by.

    Arguments:
        chain: the chain.
        spec: the data, of levels.
    """

    def __init__(self, chain: Chain, spec: DataSpec) -> None:
        alpha = chain.alpha.numpy()
        backward = chain.posterior_variances.sqrt().numpy()  # of x_{k−1}, at k − 1
        forward = chain.betas.sqrt().numpy()  # of x_k, at k − 1
        centres = level_centres(spec).numpy()
        finer = np.append(np.minimum(forward[:-1], backward[1:]), forward[-1])
        cells = finer / _CELLS  # δ_1 … δ_N
        ratio = alpha[1:] / alpha[:-1]
        keep = ratio[1:] * (chain.sigma[1:-1] / chain.sigma[2:]).square().numpy()
        decoder = forward[0] / _CELLS
        self.steps = len(chain)
        self.cells: Floats = cells
        self.scales: Floats = PARTS * np.append(
            1 / decoder, chain.data_weights[1:].numpy() / cells[:-1]
        )
        self._starts = _whole(alpha[1] * centres * PARTS / cells[0])
        self._onwards = _whole(ratio[1:] * cells[:-1] / cells[1:] * PARTS * 2**_SHIFT)
        self._keeps = _whole(keep * cells[1:] / cells[:-1] * PARTS * 2**_SHIFT)
        self._forward = _whole(forward / cells * PARTS * FINE)
        self._backward = _whole(backward[1:] / cells[:-1] * PARTS * FINE)
        self._end = _whole(chain.sde.prior().std / cells[-1:] * PARTS * FINE)
        self._centres = _whole(centres * PARTS / decoder * FINE)
        self.levels = LevelNormals(self._centres, int(_CELLS * PARTS * FINE))
        self._normals = lru_cache(maxsize=None)(Normals.of)

    @property
    def checksum(self) -> int:
        """CRC-32 of all whole numbers that the code is made of."""
        kinds = (self._starts, self._onwards, self._keeps, self._forward, self._backward)
        whole = np.concatenate([*kinds, self._end, self._centres])
        return zlib.crc32(whole.astype("<i8").tobytes())

    def prior(self) -> Normals:
        """Return p(x_N), around 0."""
        return self._normals(int(self._end[0]), _WIDE)

    def forward(self, k: int) -> Normals:
        """Return q(x_k|x_{k−1})."""
        return self._normals(int(self._forward[k - 1]))

    def forward_mean(self, before: Integers, k: int) -> Integers:
        """Return its mean in parts of x_k's cells, of x_{k−1} in its own; of a level for k = 1."""
        return self._starts[before] if k == 1 else _product(before, self._onwards[k - 2])

    def backward(self, k: int) -> Normals:
        """Return p(x_{k−1}|x_k), for k from 2."""
        return self._normals(int(self._backward[k - 2]))

    def backward_mean(self, state: Integers, x0_hat: Integers, k: int) -> Integers:
        """Return its mean in parts of x_{k−1}'s cells, of x_k and of x̂0 times its scale."""
        return _product(state, self._keeps[k - 2]) + x0_hat

    def nearer(self, before: Integers, state: Integers, k: int) -> Integers:
        """Return the whole x̂0 whose mean is at x_{k−1}, for one that is out of reach."""
        return before * PARTS - _product(state, self._keeps[k - 2])

    def lent(self, dimension: int) -> float:
        """Return about how many bits a sample borrows: those of drawing x_1 and x_2."""
        drawn = self._forward[:2] / (PARTS * FINE)
        return dimension * float(np.log2(drawn * np.sqrt(2 * np.pi * np.e)).sum())


def _whole(numbers: Floats) -> Integers:
    found: Integers = np.rint(numbers).astype(np.int64)
    return found


def _product(cells: Integers, factor: np.int64) -> Integers:
    found: Integers = (cells * factor + (1 << (_SHIFT - 1))) >> _SHIFT
    return found
