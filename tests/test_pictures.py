"""Pictures: tiles pixel by pixel, and files that a PNG reader opens."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axis import Axis
from torch import Tensor

from sde_diffusion import Affine, DataSpec, pictures
from sde_diffusion.diagnostics.comparison import Comparison, ComparisonRow
from sde_diffusion.diagnostics.convergence import Convergence
from sde_diffusion.diagnostics.metrics import Interval
from sde_diffusion.pictures._panels import log_ticks, new_figure
from sde_diffusion.pictures.comparisons import error_picture
from sde_diffusion.pictures.orders import order_picture
from sde_diffusion.pictures.runs import curves_picture
from sde_diffusion.pictures.samples import draw_cell, sample_picture, tiles


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(shape, generator=generator) - 1


def numpy(image: Any) -> Tensor:
    """The pixels of an image on axes."""
    return torch.tensor(image.get_array().data)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_image_is_where_it_belongs(channels: int) -> None:
    x = images(5, channels, 4, 2)
    whole = tiles(x).reshape(2 * 5 - 1, 3 * 3 - 1, channels)
    for i, image in enumerate(x):
        top = 5 * (i // 3)
        left = 3 * (i % 3)
        tile = whole[top : top + 4, left : left + 2]
        assert torch.allclose(tile, 0.5 * image.permute(1, 2, 0) + 0.5)
    assert bool((whole[4] == 1).all())  # a gap
    assert bool((whole[5:, 6:] == 1).all())  # no sixth image


def test_values_outside_are_clipped_and_the_channel_may_be_left_out() -> None:
    x = torch.tensor([[[-3.0, 3.0]]])
    assert tiles(x).tolist() == [[0.0, 1.0]]
    assert torch.equal(tiles(images(4, 3, 3)), tiles(images(4, 1, 3, 3)))


def test_channels_that_no_picture_has_stand_side_by_side_in_grey() -> None:
    x = images(5, 2, 4, 3)
    (axes,) = sample_picture(x).axes
    (shown,) = (numpy(image) for image in axes.images)
    assert shown.ndim == 2  # grey
    pairs = 2  # of each row: 5 samples of 2 channels, about a square
    for i, sample in enumerate(x):
        for c, channel in enumerate(sample):
            top = 5 * (i // pairs)
            left = 4 * (2 * (i % pairs) + c)
            tile = shown[top : top + 4, left : left + 3]
            assert torch.allclose(tile, 0.5 * channel + 0.5)


def test_four_channels_are_rgba_unless_the_data_are_real() -> None:
    x = images(4, 4, 3, 3)
    (axes,) = sample_picture(x).axes
    assert torch.equal(numpy(axes.images[0]), tiles(x))
    assert tiles(x).shape == (7, 7, 4)
    levels = DataSpec("icons", (4, 3, 3), 256)
    assert torch.equal(numpy(sample_picture(x, data=levels).axes[0].images[0]), tiles(x))
    real = DataSpec("latents", (4, 3, 3), None)
    grey = numpy(sample_picture(x, data=real).axes[0].images[0])
    assert torch.equal(grey, tiles(x.flatten(0, 1), 4))


def test_real_images_with_a_scaling_are_stretched() -> None:
    x = 40 * images(3, 1, 4, 4) + 7
    scaled = DataSpec("counts", (1, 4, 4), None, Affine(-9, 3))
    shown = numpy(sample_picture(x, data=scaled).axes[0].images[0])
    stretched = (x - x.min()) / (x.max() - x.min())
    assert torch.allclose(shown[:4, :4], stretched[0, 0], atol=1e-6)
    flat = torch.full((2, 1, 2, 2), 5.0)
    assert bool((numpy(sample_picture(flat, data=scaled).axes[0].images[0])[:2, :2] == 0.5).all())


def test_clips_are_strips_of_their_frames() -> None:
    x = images(10, 3, 23, 4, 2)
    shown = numpy(sample_picture(x).axes[0].images[0])
    assert shown.shape == (8 * 5 - 1, 12 * 3 - 1, 3)  # 8 clips, 12 frames of each
    for row, clip in enumerate(x[:8]):
        for column in range(12):
            frame = clip[:, 2 * column]  # every other one, from the first to the last
            tile = shown[5 * row : 5 * row + 4, 3 * column : 3 * column + 2]
            assert torch.allclose(tile, 0.5 * frame.permute(1, 2, 0) + 0.5)


def test_channels_of_clips_that_no_picture_has_are_strips_of_their_own() -> None:
    x = images(2, 2, 3, 4, 2)
    shown = numpy(sample_picture(x).axes[0].images[0])
    for row, channel in enumerate(x.flatten(0, 1)):
        for column, frame in enumerate(channel):
            tile = shown[5 * row : 5 * row + 4, 3 * column : 3 * column + 2]
            assert torch.allclose(tile, 0.5 * frame + 0.5)


def test_series_are_lines_in_the_units_of_the_data() -> None:
    x = images(5, 2, 30)
    spec = DataSpec("waves", (2, 30), None, Affine(-2, -1))  # y = x + 2
    panels = sample_picture(x, data=spec).axes
    assert [axes.get_ylabel() for axes in panels] == ["channel 0", "channel 1"]
    for channel, axes in enumerate(panels):
        assert len(axes.lines) == 5
        for line, series in zip(axes.lines, x[:, channel], strict=True):
            assert torch.allclose(torch.tensor(line.get_ydata()), series + 2)


def test_vectors_are_points_in_the_units_of_the_data() -> None:
    x = images(50, 4)
    spec = DataSpec("rows", (4,), None, Affine(-2, -1))
    (axes,) = sample_picture(x, data=spec).axes
    shown = torch.from_numpy(axes.collections[0].get_offsets().data)
    assert torch.allclose(shown.float(), x[:, :2] + 2)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("coordinate 0", "coordinate 1")


@pytest.mark.parametrize(
    ("factor", "aspect"), [(1.0, 1.0), (2.5, 1.0), (5.0, "auto"), (1e-3, "auto"), (0.0, "auto")]
)
def test_points_of_unequal_scales_have_unequal_axes(factor: float, aspect: object) -> None:
    x = images(2000, 2) * torch.tensor([1.0, factor]) + torch.tensor([3.0, -100.0])
    (axes,) = sample_picture(x).axes
    assert axes.get_aspect() == aspect
    cell = new_figure(2, 2).subplots()
    draw_cell(cell, x[:50], x, "", "")
    assert cell.get_aspect() == aspect
    # Both coordinates fill the cell: 1/1.3 of it, or of one of its sides where they are equal.
    sides = [cell.get_xlim(), cell.get_ylim()]
    filled = [
        float(column.max() - column.min()) / (high - low)
        for column, (low, high) in zip(x.T, sides, strict=True)
    ]
    assert max(filled) == pytest.approx(1 / 1.3, rel=1e-2)
    if aspect == "auto" and factor:
        assert min(filled) == pytest.approx(1 / 1.3, rel=1e-2)


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    rule = (
        r"picture: x must hold images \(B, C, H, W\), clips .*\), series .*\) or vectors \(B, D\)"
    )
    for shape in [(4, 1, 2, 3, 3, 3), (4,), (0, 2)]:
        with pytest.raises(ValueError, match=rule):
            sample_picture(images(*shape), tmp_path / "samples.png")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"tiles: x must hold .*; pass x.flatten\(0, 1\)"):
        tiles(images(4, 2, 3, 3))
    tiles(images(4, 2, 3, 3).flatten(0, 1))  # the remedy


@pytest.mark.parametrize(
    "shape",
    [(6, 1, 4, 4), (6, 2, 4, 4), (6, 3, 4, 4), (6, 4, 4, 4), (6, 4, 4), (6, 2), (6, 5), (6, 1)],
)
def test_all_kinds_of_samples_become_a_picture(tmp_path: Path, shape: tuple[int, ...]) -> None:
    from PIL import Image

    path = tmp_path / "samples.png"
    figure = sample_picture(images(*shape), path)
    with Image.open(path) as picture:
        picture.load()
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 2  # something was drawn
    assert all(axes.has_data() for axes in figure.axes)
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]


# --- logarithmic axes ---------------------------------------------------------------------------


def labels_in_view(axis: Axis) -> list[tuple[float, str]]:
    """The places and the texts of all labels that a reader sees."""
    axis.get_figure().draw_without_rendering()
    low, high = sorted(axis.get_view_interval())
    found = []
    for minor in (False, True):
        places = axis.get_ticklocs(minor=minor)
        texts = [label.get_text() for label in axis.get_ticklabels(minor=minor)]
        found += [(p, t) for p, t in zip(places, texts, strict=True) if low <= p <= high and t]
    return found


def number(label: str) -> float:
    """The number of a label, also of one like $\\mathdefault{10^{-3}}$."""
    plain = label.replace("−", "-")
    found = re.fullmatch(r"\$\\mathdefault\{10\^\{(.+)\}\}\$", plain)
    return 10 ** float(found[1]) if found else float(plain)


def check_labels(axis: Axis) -> None:
    """At least three labels, at most twelve, each once and each at its own number."""
    found = labels_in_view(axis)
    assert 3 <= len(found) <= 12, found
    assert len({text for _, text in found}) == len(found)
    for place, text in found:
        assert number(text) == pytest.approx(place, rel=1e-6)


SPANS = [
    (1, 1.05),
    (1.2, 1.9),
    (2.1, 9.5),
    (0.5, 7),
    (3, 290),
    (1.5e-5, 3e-5),
    (1.0001, 1.0002),
    (0.07, 30),
    (1e-6, 10),
]


@pytest.mark.parametrize("span", SPANS)
def test_a_logarithmic_axis_of_any_span_has_labels(span: tuple[float, float]) -> None:
    axes = new_figure(4, 3).subplots()
    axes.set_yscale("log")
    axes.plot([1, 2], span)
    log_ticks(axes.yaxis)
    check_labels(axes.yaxis)


def line(step: int, **values: float) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3} | values


def comparison(rows: list[ComparisonRow]) -> Comparison:
    floor = Interval(3.0, 0.5)
    return Comparison(
        "ring",
        8,
        4,
        0,
        "reference",
        100,
        1e-3,
        "data",
        floor,
        floor,
        floor,
        tuple(rows),
        images(8, 2),
    )


@pytest.mark.parametrize("factor", [1.3, 4.0, 11.0, 1e4])
def test_all_logarithmic_pictures_have_labels(factor: float) -> None:
    ends = torch.linspace(0, math.log(factor), 9).exp().tolist()
    losses = {"lambda": list(range(9)), "loss": [0.013 * end for end in ends]}
    lines = [line(i, loss=end) for i, end in enumerate(ends)]
    lines.append({"step": 9, "evaluation": {"loss_by_level": losses}})
    figures = [curves_picture(lines)]
    errors = [Interval(3.3 * end, 0.1) for end in ends]
    rows = [
        ComparisonRow("heun", 5, 10 * (i + 1), 1.0, error, error) for i, error in enumerate(errors)
    ]
    for some in (rows, rows[:1]):
        figures.append(error_picture([comparison(some)]))
    found = Convergence((10, 20, 40), (7e-3 * factor, 7e-3 * factor**0.5, 7e-3))
    figures.append(order_picture({("ODE", 1.0): {"heun": found}}, "vp"))
    logarithmic = 0
    for figure in figures:
        for axes in figure.axes:
            if axes.get_yscale() == "log":
                check_labels(axes.yaxis)
                logarithmic += 1
    assert logarithmic >= 6


def test_a_picture_is_returned_and_written_only_where_there_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a notebook shows is what the file holds."""
    monkeypatch.chdir(tmp_path)
    lines = [
        {"step": 1, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1},
        {"step": 2, "loss": 1.0, "grad_norm": 3.0, "learning_rate": 0.2},
    ]
    figure = curves_picture(lines)
    assert list(tmp_path.iterdir()) == []
    drawn = [axes.lines[0].get_ydata().tolist() for axes in figure.axes]
    assert drawn == [[2.0, 1.0], [1.0, 3.0], [0.1, 0.2]]
    curves_picture(lines, "curves.png")
    with (tmp_path / "again.png").open("wb") as file:
        figure.savefig(file, format="png", dpi=150)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "curves.png").read_bytes()


def test_every_picture_of_the_package_gives_its_figure() -> None:
    names = [name for name in pictures.__all__ if name.endswith("_picture")]
    assert len(names) == 6
    for name in names:
        found = inspect.signature(getattr(pictures, name))
        assert found.return_annotation == "Figure", name
        assert found.parameters["path"].default is None, name
