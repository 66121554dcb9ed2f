"""Maps from grey levels, or from real data, to the values that a model sees, and back.

A level k in 0 … L − 1 with noise u in [0, 1) is the point y = k + u of [0, L]. A scaling takes it
to x, elementwise, with its log|dx/dy|, by which log densities in levels and in x differ. Real data
is a point y in its own units, with L = 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion._tensors import flat_sum

_ULP: Final = 2.0**-23  # twice the rounding of float32 below 1


class Scaling(ABC):
    """A monotone map of every element of a sample, from y in [0, L] to x.

    Shapes: y and x of any shape, (B, *event) for `log_det`; results in float64.
    """

    @abstractmethod
    def forward(self, y: Tensor, levels: int = 1) -> Tensor:
        """Return x of y = k + u."""

    @abstractmethod
    def inverse(self, x: Tensor, levels: int = 1) -> Tensor:
        """Return y = k + u of x."""

    @abstractmethod
    def log_det(self, x: Tensor, levels: int = 1) -> Tensor:
        """Return Σ log|dx/dy| at x for every sample, in nats."""

    @abstractmethod
    def slope(self, levels: int = 1) -> float:
        """Return the largest dy/dx: the levels in a unit of x where they are densest."""

    @property
    def rounding(self) -> float:
        """An upper bound of the rounding error of any x of the range in float32."""
        ends = self.forward(torch.tensor([0.0, 1.0], dtype=torch.float64))
        return _ULP * float(ends.abs().max())

    def to_json(self) -> dict[str, Any]:
        """Return the class and its arguments as JSON values."""
        return {"class": type(self).__name__, **vars(self)}


@final
@dataclass(frozen=True)
class Affine(Scaling):
    """x = low + (high − low) y/L.

    Errors: TypeError or ValueError unless low < high, both finite.

    >>> Affine(0, 1).forward(torch.tensor([0, 8.5, 17]), 17).tolist()
    [0.0, 0.5, 1.0]
    """

    low: float = -1
    high: float = 1

    def __post_init__(self) -> None:
        _check_finite("Affine", "low", self.low)
        _check_finite("Affine", "high", self.high)
        if not self.low < self.high:
            raise wrong_value(
                "Affine", "high", f"be above low={self.low}", self.high, "pass low=-1, high=1"
            )

    def forward(self, y: Tensor, levels: int = 1) -> Tensor:
        return (self.high - self.low) * y.double() / levels + self.low

    def inverse(self, x: Tensor, levels: int = 1) -> Tensor:
        return (x.double() - self.low) * self.slope(levels)

    def log_det(self, x: Tensor, levels: int = 1) -> Tensor:
        nats = -x[0].numel() * math.log(self.slope(levels))
        return torch.full((len(x),), nats, dtype=torch.float64, device=x.device)

    def slope(self, levels: int = 1) -> float:
        return levels / (self.high - self.low)


@final
@dataclass(frozen=True)
class Logit(Scaling):
    """x = log p − log(1 − p) with p = margin + (1 − 2 margin) y/L, whose ends a logit spreads.

    Errors: TypeError or ValueError for a margin outside (0, ½).
    Source: Dinh et al. 2017, section 4.1; Papamakarios et al. 2017 (two-sided, as here).

    >>> x = Logit(0.05).forward(torch.tensor([0.0, 128, 256]), 256)
    >>> [round(value, 4) for value in x.tolist()]
    [-2.9444, 0.0, 2.9444]
    """

    margin: float = 0.05

    def __post_init__(self) -> None:
        _check_finite("Logit", "margin", self.margin)
        if not 0 < self.margin < 0.5:
            raise wrong_value(
                "Logit", "margin", "be above 0 and below 0.5", self.margin, "pass margin=0.05"
            )

    def forward(self, y: Tensor, levels: int = 1) -> Tensor:
        y = y.double()
        width = (1 - 2 * self.margin) / levels
        # 1 − p from the other end: near p = 1 the difference would lose the margin's digits.
        return (self.margin + width * y).log() - (self.margin + width * (levels - y)).log()

    def inverse(self, x: Tensor, levels: int = 1) -> Tensor:
        return (x.double().sigmoid() - self.margin) * (levels / (1 - 2 * self.margin))

    def log_det(self, x: Tensor, levels: int = 1) -> Tensor:
        # dx/dy = (1 − 2 margin)/L / (p(1 − p)). Unlike softplus, logsigmoid rounds an element in
        # the same way wherever it stands in the batch.
        x = x.double()
        log_scale = math.log((1 - 2 * self.margin) / levels)
        return flat_sum(log_scale - F.logsigmoid(x) - F.logsigmoid(-x))

    def slope(self, levels: int = 1) -> float:
        return levels / (4 * (1 - 2 * self.margin))


_KINDS: Final[dict[str, type[Affine | Logit]]] = {c.__name__: c for c in (Affine, Logit)}


def scaling_from_json(values: dict[str, Any]) -> Scaling:
    """Return the scaling that `Scaling.to_json` wrote.

    Errors: ValueError for a class that is not of this module; TypeError for other arguments.
    """
    arguments = dict(values)
    name = arguments.pop("class", None)
    if name not in _KINDS:
        raise wrong_value(
            "scaling_from_json",
            "scaling",
            f"be one of {', '.join(_KINDS)}",
            name,
            "make an object of your own class of scalings",
        )
    return _KINDS[name](**arguments)


def _check_finite(what: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(what, name, "be a number", value, "pass an int or a float")
    if not math.isfinite(value):
        raise wrong_value(what, name, "be finite", value, "pass another number")
