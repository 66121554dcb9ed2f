"""Pictures: tiles pixel by pixel, and files that a PNG reader opens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sde_diffusion.pictures.samples import sample_picture, tiles


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(shape, generator=generator) - 1


@pytest.mark.parametrize("channels", [1, 3])
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


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"picture: x must hold images \(B, 1 or 3, H, W\)"):
        sample_picture(images(4, 2, 3, 3), tmp_path / "samples.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(6, 1, 4, 4), (6, 3, 4, 4), (6, 4, 4), (6, 2), (6, 5), (6, 1)])
def test_all_kinds_of_samples_become_a_picture(tmp_path: Path, shape: tuple[int, ...]) -> None:
    from PIL import Image

    path = tmp_path / "samples.png"
    sample_picture(images(*shape), path)
    with Image.open(path) as picture:
        picture.load()
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 2  # something was drawn
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]
