"""Pictures of samples: points, lines, images in tiles, or clips in strips."""

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
    from matplotlib.figure import Figure

    from sde_diffusion.data.spec import DataSpec

_TILES: Final = 16  # images in one cell of the picture of all solvers
_POINTS: Final = 1000
_CLIPS: Final = 8  # strips below one another
_FRAMES: Final = 12  # of a strip
_SERIES: Final = 16  # more lines hide one another
_LONGEST: Final = 3.0  # the ratio of two ranges from which axes of one scale would hide the short


def sample_picture(
    x: Tensor, path: str | Path | None = None, data: DataSpec | None = None
) -> Figure:
    """Return a picture of samples.

    Images are tiles; of 2, 5 or more channels each is a grey tile, and so are 4 of real data,
    which otherwise are RGBA. They have values in [−1, 1], but real data with a scaling are
    stretched between their extremes. Clips and volumes are strips of some frames. Series are lines
    in a panel for each channel. Of vectors the first two coordinates are points, a single one a
    histogram; vectors and series are in the units of the data.

    Arguments:
        x: samples as the model gives them.
        path: the file to write, as PNG; none if not given.
        data: what they are, where that is known.

    Shapes: x (B, C, H, W); (B, C, D, H, W); (B, C, L); (B, D).
    Errors: ValueError for other shapes.
    """
    values = x.detach().cpu().float()
    _check(values)
    real = data is not None and data.levels is None
    if values.ndim >= 4:
        figure = new_figure(5.0, 5.0)
        values = as_grey(values, data)
        axes = figure.subplots()
        _draw_images(axes, values, rgba=not real)
        axes.axis("off")
        return save_figure(figure, path)
    if data is not None and real:
        values = data.decode(values)
    if values.ndim == 3:
        return save_figure(_series_figure(values), path)
    figure = new_figure(5.0, 5.0)
    _draw_vectors(figure.subplots(), values)
    return save_figure(figure, path)


def draw_cell(axes: Axes, x: Tensor | None, like: Tensor, title: str, below: str) -> None:
    """Draw the samples of one cell, or nothing where there are none.

    Arguments:
        axes: the cell.
        x: samples, as for `sample_picture`; (B, *event).
        like: data that decide the limits of both axes for points; (N, *event).
        title: above the cell.
        below: a line below it.
    """
    if x is None:
        return
    axes.axis("on")
    values = x.detach().cpu().float()
    _check(values)
    if values.ndim >= 4:
        _draw_images(axes, values[:_TILES], rgba=True)
    elif values.ndim == 3:
        axes.plot(values[:_TILES, 0].T.numpy(), linewidth=0.6)
    else:
        _draw_vectors(axes, values)
        _limit(axes, like.detach().cpu().float())
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(below, fontsize=8, labelpad=2)
    axes.set_ylabel("")


def tiles(x: Tensor, columns: int | None = None) -> Tensor:
    """Return images as one, nearly square, with a gap of one pixel; [−1, 1] becomes [0, 1].

    Arguments:
        x: grey, RGB or RGBA images.
        columns: images beside one another.

    Shapes: (B, H, W) or (B, 1, 3 or 4, H, W) → (rows·(H+1) − 1, columns·(W+1) − 1[, 3 or 4]).
    Errors: ValueError for another shape.

    >>> tiles(torch.ones(3, 1, 2, 2)).shape
    torch.Size([5, 5])
    """
    images = x[:, None] if x.ndim == 3 else x
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise wrong_value(
            "tiles",
            "x",
            "hold images (B, 1, 3 or 4, H, W)",
            tuple(x.shape),
            "pass x.flatten(0, 1), a grey image for each channel",
        )
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    rows = math.ceil(count / columns)
    # The gaps are white, so that dark images stay apart.
    cells = torch.ones(rows * columns, channels, height + 1, width + 1)
    cells[:count, :, :height, :width] = (0.5 * images + 0.5).clamp(0, 1)
    cells = cells.reshape(rows, columns, channels, height + 1, width + 1)
    whole = cells.permute(0, 3, 1, 4, 2).reshape(rows * (height + 1), columns * (width + 1), -1)
    return whole[:-1, :-1].squeeze(-1)


def _check(values: Tensor) -> None:
    if not 2 <= values.ndim <= 5 or not values.numel():
        raise wrong_value(
            "picture",
            "x",
            "hold images (B, C, H, W), clips (B, C, D, H, W), series (B, C, L) or vectors (B, D)",
            tuple(values.shape),
            "choose what to draw",
        )


def as_grey(values: Tensor, data: DataSpec | None) -> Tensor:
    """Return samples as pictures show them, −1 to 1: real data with a scaling by their extremes.

    Arguments:
        values: as the model gives them.
        data: what they are, where that is known.
    """
    if data is None or data.levels is not None or data.is_natural:
        return values
    low, high = values.aminmax()
    return 2 * (values - low) / (high - low) - 1 if high > low else torch.zeros_like(values)


def _draw_images(axes: Axes, values: Tensor, *, rgba: bool) -> None:
    """Draw images as tiles, and clips as strips; the channels that no picture has apart."""
    count, channels = values.shape[:2]
    pictured = channels in ((1, 3, 4) if rgba else (1, 3))
    columns = None
    if values.ndim == 5:
        values, columns = _frames(values[:_CLIPS], pictured=pictured)
    elif not pictured:
        values = values.flatten(0, 1)
        columns = channels * max(1, round(math.sqrt(count / channels)))
    shown = tiles(values, columns).numpy()
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _frames(clips: Tensor, *, pictured: bool) -> tuple[Tensor, int]:
    """Return some frames of every clip as images, and how many: of every channel if need be."""
    number = min(clips.shape[2], _FRAMES)
    at = torch.linspace(0, clips.shape[2] - 1, number).round().long()
    shown = clips[:, :, at] if pictured else clips[:, :, at].flatten(0, 1)[:, None]
    return shown.movedim(2, 1).flatten(0, 1), number


def _series_figure(values: Tensor) -> Figure:
    channels = values.shape[1]
    figure = new_figure(7.0, min(1.0 + 1.6 * channels, 40.0))
    panels = figure.subplots(channels, 1, squeeze=False, sharex=True)[:, 0]
    for channel, axes in enumerate(panels):
        axes.plot(values[:_SERIES, channel].T.numpy(), linewidth=0.8)
        axes.set_ylabel(f"channel {channel}" if channels > 1 else "")
    panels[-1].set_xlabel("place")
    return figure


def _draw_vectors(axes: Axes, values: Tensor) -> None:
    if values.shape[1] == 1:
        axes.hist(values[:, 0].numpy(), bins=50)
        return
    points = values[:_POINTS]
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=2, alpha=0.5, linewidths=0)
    if values.shape[1] > 2:
        axes.set_xlabel("coordinate 0")
        axes.set_ylabel("coordinate 1")
    _set_aspect(axes, points)


def _set_aspect(axes: Axes, points: Tensor) -> None:
    """Give both axes one scale, unless that would hide the extent of one of them."""
    one, other = (float(side.max() - side.min()) for side in points[:, :2].T)
    alike = max(one, other) <= _LONGEST * min(one, other)
    axes.set_aspect("equal" if alike else "auto")


def _limit(axes: Axes, like: Tensor) -> None:
    """Set the limits to those of the data, with a margin: equal where their ranges are alike."""
    if like.shape[1] < 2:
        return
    low, high = like[:, :2].amin(0), like[:, :2].amax(0)
    half = 0.65 * (high - low)
    _set_aspect(axes, like)
    if axes.get_aspect() == 1:
        half = half.max().expand(2)
    middle = 0.5 * (low + high)
    half = torch.where(half > 0, half, torch.ones_like(half))
    axes.set_xlim(float(middle[0] - half[0]), float(middle[0] + half[0]))
    axes.set_ylim(float(middle[1] - half[1]), float(middle[1] + half[1]))
