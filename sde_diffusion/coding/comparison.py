"""What other coders make of the same levels, and what the discrete bound says of the model's."""

from __future__ import annotations

import io
import lzma
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.coding.counts import seen_before
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.ddpm.discrete_bound import DiscreteBound, vlb
from sde_diffusion.ddpm.level_times import level_centres, level_times
from sde_diffusion.ddpm.variances import PosteriorVariance
from sde_diffusion.likelihood.decoders import LevelDecoder
from sde_diffusion.scores import ScoreLike


def other_sizes(data: Dataset) -> Mapping[str, float]:
    """Return bytes by name: PNG, LZMA and one adaptive histogram for each pixel.

    PNG is one picture of all samples, one below another: less than of each its own. A histogram
    gives level v of a pixel (n_v + 1/L)/(n + 1) after n samples, n_v of them v: its decoder sees
    the same, and no table has to be sent.

    >>> import torch
    >>> from sde_diffusion import DataSpec
    >>> data = Dataset(DataSpec("bits", (1,), 2), torch.zeros(3, 1, dtype=torch.uint8), None)
    >>> round(2 ** (-8 * other_sizes(data)["histograms"]), 6)  # ½ · ¾ · ⅚
    0.3125
    """
    values = data.values.numpy()
    levels = data.spec.levels or 1
    found = {}
    if values.ndim == 4 and values.shape[1] in (1, 3) and levels <= 256:
        found["PNG"] = float(_png(values))
    raw = values.astype("u1" if levels <= 256 else "<u2").tobytes()
    found["LZMA"] = float(len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)))
    found["histograms"] = _histograms(values.reshape(len(values), -1), levels) / 8
    return found


def discrete_bound(
    model: ScoreLike, data: Dataset, steps: int, *, draws: int | None = None, seed: int = 0
) -> DiscreteBound:
    """Return `vlb` of the chain that `compress` codes with.

    Arguments:
        model: the score model.
        data: levels, scaled as the model's.
        steps: of the chain.
        draws: of `vlb`; all steps if None.
        seed: of `vlb`.
    """
    return vlb(
        data.centred().to(model.device),
        model,
        level_times(model, data.spec, steps),
        variance=PosteriorVariance(),
        decoder=LevelDecoder(level_centres(data.spec)),
        draws=draws,
        seed=seed,
    )


def _png(values: NDArray[np.integer]) -> int:
    from PIL import Image

    strip = np.moveaxis(values, 1, -1).reshape(-1, values.shape[3], values.shape[1])
    if strip.shape[2] == 1:
        strip = strip[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(strip.astype(np.uint8)).save(file, "png", optimize=True)
    return len(file.getvalue())


def _histograms(values: NDArray[np.integer], levels: int) -> float:
    """Return the bits of (N, D), sample after sample."""
    count, dimension = values.shape
    after = dimension * np.log2(np.arange(1, count + 1)).sum()
    return float(after - np.log2(seen_before(values) + 1 / levels).sum())
