"""Pictures of samples: points, or images in tiles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.pictures._panels import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TILES: Final = 16  # images in one cell of the picture of all solvers
_POINTS: Final = 1000


def sample_picture(x: Tensor, path: str | Path) -> None:
    """Write a picture of samples as PNG: images as tiles, points, or a histogram in 1 dimension.

    Images have values in [−1, 1]; of points the first two coordinates are drawn.

    Shapes: (B, H, W), (B, 1, H, W) or (B, 3, H, W); (B, D); (B, 1).
    """
    figure = new_figure(5.0, 5.0)
    _draw(figure.subplots(), x, limit=None)
    save_figure(figure, path)


def draw_cell(axes: Axes, x: Tensor | None, limit: float, title: str, below: str) -> None:
    """Draw the samples of one cell, or nothing where there are none.

    Arguments:
        axes: the cell.
        x: samples, as for `sample_picture`; (B, *event).
        limit: of both axes for points, in the units of x.
        title: above the cell.
        below: a line below it.
    """
    if x is None:
        return
    axes.axis("on")
    _draw(axes, x[:_TILES] if x.ndim > 2 else x, limit)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(below, fontsize=8, labelpad=2)


def _draw(axes: Axes, x: Tensor, limit: float | None) -> None:
    values = x.detach().cpu().float()
    if values.ndim > 2:
        axes.imshow(tiles(values).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.axis("off") if limit is None else None
    elif values.shape[1] == 1:
        axes.hist(values[:, 0].numpy(), bins=50)
    else:
        points = values[:_POINTS]
        axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=2, alpha=0.5, linewidths=0)
        axes.set_aspect("equal")
        if limit is not None:
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)


def tiles(x: Tensor) -> Tensor:
    """Return images as one, nearly square, with a gap of one pixel; [−1, 1] becomes [0, 1].

    Shapes: (B, H, W) or (B, 1 or 3, H, W) → (rows·(H+1) − 1, columns·(W+1) − 1[, 3]).
    Errors: ValueError for another shape.

    >>> tiles(torch.ones(3, 1, 2, 2)).shape
    torch.Size([5, 5])
    """
    images = x[:, None] if x.ndim == 3 else x
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise wrong_value(
            "picture",
            "x",
            "hold images (B, 1 or 3, H, W), or vectors (B, D)",
            tuple(x.shape),
            "choose what to draw",
        )
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    # The gaps are white, so that dark images stay apart.
    cells = torch.ones(rows * columns, channels, height + 1, width + 1)
    cells[:count, :, :height, :width] = (0.5 * images + 0.5).clamp(0, 1)
    cells = cells.reshape(rows, columns, channels, height + 1, width + 1)
    whole = cells.permute(0, 3, 1, 4, 2).reshape(rows * (height + 1), columns * (width + 1), -1)
    return whole[:-1, :-1].squeeze(-1)
