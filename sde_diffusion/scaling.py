"""From grey levels to the numbers of a model and back, and the refusals of data off that scale.

A level k in 0 … L − 1 with noise u in [0, 1) is the point y = k + u of [0, L]. A scaling takes it
to x, one number at a time, and knows log|dx/dy|: densities in levels and in x differ by it. Real
data is a point y of its own units, with L = 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion._tensors import check_state, flat_sum

if TYPE_CHECKING:
    from sde_diffusion.data import DataSpec

_ULP: Final = 2.0**-23  # twice the rounding of float32 below 1
_ON_A_LEVEL: Final = 1e-3
_FEWEST: Final = 4  # so many numbers lie on levels by chance once in 10⁸ times


class Scaling(ABC):
    """A monotone map of every number of a sample, from y in [0, L] to x.

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
        """More than float32 rounds any x of the range by."""
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
        for name in ("low", "high"):
            _check_finite("Affine", name, getattr(self, name))
        if not self.low < self.high:
            raise wrong_value("Affine", "high", f"be above low={self.low}", self.high,
                              "pass low=-1, high=1")  # fmt: skip

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
    """x = log p − log(1 − p) with p = margin + (1 − 2 margin) y/L, so that x has no walls.

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
            raise wrong_value("Logit", "margin", "be above 0 and below 0.5", self.margin,
                              "pass margin=0.05")  # fmt: skip

    def forward(self, y: Tensor, levels: int = 1) -> Tensor:
        y, width = y.double(), (1 - 2 * self.margin) / levels
        # 1 − p from the other end: near p = 1 the difference would lose the margin's digits.
        return (self.margin + width * y).log() - (self.margin + width * (levels - y)).log()

    def inverse(self, x: Tensor, levels: int = 1) -> Tensor:
        return (x.double().sigmoid() - self.margin) * (levels / (1 - 2 * self.margin))

    def log_det(self, x: Tensor, levels: int = 1) -> Tensor:
        # dx/dy = (1 − 2 margin)/L / (p(1 − p)). Unlike softplus, logsigmoid rounds a number in
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
        raise wrong_value("DataSpec.from_json", "scaling", f"be one of {', '.join(_KINDS)}", name,
                          "build the DataSpec yourself for a scaling of your own")  # fmt: skip
    return _KINDS[name](**arguments)


def check_dequantized(what: str, x: Tensor, spec: DataSpec) -> None:
    """Refuse x that is not the scaled data of ``spec``, or that sits on its grey levels.

    The density of undequantized integers is unbounded. A row counts as undequantized where all
    its numbers are edges or centres of bins, or k of the scaling that takes L − 1 to the end; rows
    of less than 8 numbers only where all of the batch are, for a few may be so by chance.

    Errors: ValueError for another shape, numbers that are not finite or outside the range of the
    scaling, and undequantized rows.
    """
    check_state(what, x)
    if tuple(x.shape[1:]) != spec.shape:
        raise wrong_value(what, "x", f"have the data's shape {spec.shape}", tuple(x.shape[1:]),
                          "reshape it")  # fmt: skip
    span = f"{float(x.min()):.4g} … {float(x.max()):.4g}"
    if not bool(torch.isfinite(x).all()):
        raise wrong_value(what, "x", "be finite", span, "remove the rows that are not")
    if spec.levels is None:
        return
    scaling, levels = spec.scaling, spec.levels
    low, high = scaling.forward(torch.tensor([0.0, 1.0])).tolist()
    if not low - scaling.rounding <= float(x.min()) <= float(x.max()) <= high + scaling.rounding:
        raise wrong_value(what, "x", f"lie in [{_short(low)}, {_short(high)}], as levels are "
                          "scaled", span, "scale it with dataset.spec.encode")  # fmt: skip
    near = max(_ON_A_LEVEL, scaling.rounding * scaling.slope(levels))
    y = scaling.inverse(x, levels)
    # Twice y, so that edges and centres are integers.
    for place in (2 * y, y * (levels - 1) / levels):
        rows = ((place - place.round()).abs() < near).flatten(1).all(1)
        few = x[0].numel() < 8
        if bool(rows.all()) and x.numel() >= _FEWEST if few else bool(rows.any()):
            raise wrong_value(what, "x", "be dequantized", f"values on the {levels} levels only",
                              "add uniform noise: dataset.dequantized(generator)")  # fmt: skip


def check_fits(model_spec: DataSpec | None, spec: DataSpec) -> None:
    """Refuse data of another shape, levels or scaling than the model was trained on.

    Its likelihood would mean nothing. A model that knows nothing of its data fits any.

    Errors: ValueError.
    """
    if model_spec is None:
        return
    remedy = "name the data it was trained on"
    if spec.shape != model_spec.shape:
        raise wrong_value("data", "samples", f"have the model's shape {model_spec.shape}",
                          spec.shape, remedy)  # fmt: skip
    if spec.levels != model_spec.levels:
        known = model_spec.levels
        remedy = f"pass --levels {known}" if known else "use data of real numbers"
        raise wrong_value("data", "samples", f"have the model's {known or 'no'} grey levels",
                          spec.levels or "real numbers", remedy)  # fmt: skip
    if spec.scaling != model_spec.scaling:
        raise wrong_value("data", "samples", f"have the model's scaling {model_spec.scaling}",
                          spec.scaling, "scale them as for training")  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _check_finite(what: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(what, name, "be a number", value, "pass an int or a float")
    if not math.isfinite(value):
        raise wrong_value(what, name, "be finite", value, "pass another number")
