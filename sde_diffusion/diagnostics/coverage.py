"""What of the data samples miss, and what of them is none of the data: precision and recall."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value


class Coverage(NamedTuple):
    """The share of samples near data, and of data near samples, in [0, 1].

    >>> Coverage(1.0, 0.5).recall
    0.5
    """

    precision: float
    recall: float


def precision_recall(x: Tensor, y: Tensor, neighbours: int = 3) -> Coverage:
    """Return the precision and recall of samples x with respect to data y.

    Precision is the share of x that lies, for some y_j, within the distance of y_j to its k-th
    nearest neighbour among y; recall the same with x and y exchanged. Take as many x as y: both
    depend on the numbers.

    Shapes: x (n, *event), y (m, *event), each of more than k rows.
    Errors: ValueError for different event shapes or too few rows.
    Source: Kynkäänniemi et al. 2019, equations 1 and 2.

    >>> y = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    >>> precision_recall(torch.tensor([[0.5], [0.6], [9.0]]), y, neighbours=1)
    Coverage(precision=0.6666666666666666, recall=0.75)
    """
    positive_integer("precision_recall", "neighbours", neighbours)
    if x.shape[1:] != y.shape[1:] or x.ndim < 2:
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        rule = "be (n, *event) and (m, *event) with one event shape"
        raise wrong_value("precision_recall", "x, y", rule, got, "reshape one")
    least = min(len(x), len(y))
    if least <= neighbours:
        rule = f"hold more than {neighbours} rows each, the neighbours"
        raise wrong_value("precision_recall", "x, y", rule, least, "draw more")
    u, v = (rows.detach().double().flatten(1) for rows in (x, y))
    return Coverage(_within(u, v, neighbours), _within(v, u, neighbours))


def _within(u: Tensor, v: Tensor, neighbours: int) -> float:
    """Return the share of u in the balls around v that reach their k-th nearest neighbour."""
    radius = torch.cdist(v, v).kthvalue(neighbours + 1, 1).values  # the first is the point itself
    return float((torch.cdist(u, v) <= radius).any(1).double().mean())
