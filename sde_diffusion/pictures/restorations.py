"""Pictures of posteriors: truth, measurement, mean, standard deviation and draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from sde_diffusion.pictures._panels import new_figure, save_figure
from sde_diffusion.pictures.samples import tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sde_diffusion.inverse_problems import Measurement, PosteriorSamples

_MOST: Final = 12  # rows


def restoration_picture(
    found: PosteriorSamples, truth: Tensor, measured: Measurement, path: str | Path | None = None
) -> Figure:
    """Return a picture with a row for each measured image, at most 12.

    The measurement is drawn as Aᵀ y in [−1, 1], where y itself is no image of this size; the
    standard deviation from 0 (black) to the largest (white), which its title says.

    Arguments:
        found: the draws; x (Q, P, C, H, W).
        truth: what was measured; (Q, C, H, W).
        measured: the measurements.
        path: the file to write, as PNG; none if not given.
    """
    rows = min(len(truth), _MOST)
    std = found.std[:rows]
    largest = max(float(std.max()), 1e-12)
    draws = found.resampled()[:rows]
    columns = [
        ("truth", truth[:rows]),
        ("measured", _seen(measured, truth)[:rows]),
        ("mean", found.mean[:rows]),
        (f"std, white {largest:.2g}", 2 * std / largest - 1),
        *((f"draw {k + 1}", draws[:, k]) for k in range(min(2, draws.shape[1]))),
    ]
    figure = new_figure(1.35 * len(columns), 1.2 * rows + 0.4)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, (title, images) in zip(panels, columns, strict=True):
        shown = tiles(images.detach().cpu().float(), columns=1)
        axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    return save_figure(figure, path)


def _seen(measured: Measurement, truth: Tensor) -> Tensor:
    """Return y as images: themselves, enlarged, or where they were measured, else mid-grey."""
    from sde_diffusion.inverse_problems import Mask

    y = measured.y.to(truth)
    if isinstance(measured.operator, Mask):
        return measured.operator.adjoint(y)
    if y.ndim == truth.ndim and y.shape[-1] and not truth.shape[-1] % y.shape[-1]:
        larger = torch.nn.functional.interpolate(y, truth.shape[2:])
        return larger.expand(truth.shape)
    return torch.zeros_like(truth)
