"""Precision and recall: exact on points counted by hand, and on modes that are missing."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion import GaussianMixture
from sde_diffusion.diagnostics import precision_recall


def test_balls_are_those_of_the_other_set_and_reach_the_kth_neighbour() -> None:
    y = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    # k = 2: radii 3, 2, 3, 9, so that the data's balls are [−3, 3], [−1, 3], [0, 6], [1, 19].
    x = torch.tensor([[-3.5], [-2.0], [4.0], [20.0]])
    # Radii of x: 7.5, 6, 7.5, 22 around −3.5, −2, 4, 20; all of y lie within the third.
    assert precision_recall(x, y, 2) == (0.5, 1.0)
    # k = 1: data's radii 1, 1, 2, 7, [−1, 1], [0, 2], [1, 5], [3, 17]: of x only 4 is inside;
    # radii of x 1.5, 1.5, 6, 16, so 0 is in [−2, 10] and 10 on its edge.
    assert precision_recall(x, y, 1) == (0.25, 1.0)
    assert precision_recall(x[:, :, None], y[:, :, None], 1) == (0.25, 1.0)


def test_missing_modes_cost_recall_alone_and_false_ones_precision_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    ring = GaussianMixture.ring(8)
    data = ring.sample(1024, generator)
    part = GaussianMixture(torch.ones(4), ring.means[:4], stds=[0.05] * 4).sample(1024, generator)
    same = precision_recall(ring.sample(1024, generator), data)
    fewer = precision_recall(part, data)
    more = precision_recall(data, part)
    assert min(same) > 0.9
    assert fewer.recall < 0.55  # half of the modes
    assert (more.precision, more.recall) == (fewer.recall, fewer.precision)


def test_wrong_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="hold more than 3 rows each"):
        precision_recall(torch.zeros(3, 1), torch.zeros(9, 1))
    with pytest.raises(ValueError, match="one event shape"):
        precision_recall(torch.zeros(5, 1), torch.zeros(5, 2))
