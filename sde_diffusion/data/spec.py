"""What data are: a shape, a number of grey levels and a scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion.data.scaling import Affine, Scaling, scaling_from_json

_MOST_LEVELS: Final = 2**16
_LARGEST: Final = np.finfo(np.float32).max
_BLUR: Final = 1 / 8  # the largest rounding error in float32, as a share of the thinnest bin


@final
@dataclass(frozen=True, init=False)
class DataSpec:
    """The shape of a sample, the number of its grey levels and their scaling.

    x = scaling(k + u) for the integer k in 0 … levels − 1 and u in [0, 1); u = ½ is the centre of
    the bin. Real data k are x = scaling(k).

    Arguments:
        name: what the data are called.
        shape: the shape of a sample, channels first.
        levels: the number of grey levels; None for real data.
        scaling: the map to x; if None `Affine`(−1, 1), x = 2(k + u)/levels − 1, and for real data
            `Affine`(0, 1), which leaves them as they are.
        rate: samples a second of sounds; None for other data.

    Errors: TypeError or ValueError for a wrong name, shape, number of levels, scaling or rate.

    >>> spec = DataSpec("digits", (1, 8, 8), 17)
    >>> x = spec.encode(torch.tensor([0, 8, 16]), 0.5)
    >>> [round(value, 4) for value in x.tolist()], spec.decode(x).tolist()
    ([-0.9412, 0.0, 0.9412], [0, 8, 16])
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None
    scaling: Scaling
    rate: int | None = None

    __repr__ = shown

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        levels: int | None,
        scaling: Scaling | None = None,
        rate: int | None = None,
    ) -> None:
        known = _natural(levels) if scaling is None else scaling
        # Into the dictionary itself: assignment to a field of a frozen class is refused.
        vars(self).update(name=name, shape=shape, levels=levels, scaling=known)
        if rate is not None:  # left out of what has none, so that its fingerprint stays
            vars(self).update(rate=rate)
        self._check()

    def _check(self) -> None:
        if not isinstance(self.name, str):
            raise wrong_type("DataSpec", "name", "be a string", self.name, "pass name='digits'")
        if not _is_shape(self.shape):
            raise wrong_value(
                "DataSpec",
                "shape",
                "be a tuple of positive integers",
                self.shape,
                "pass for example shape=(1, 28, 28)",
            )
        if self.levels is not None and not _is_size(self.levels, 2, _MOST_LEVELS):
            rule = f"be None or an integer from 2 to {_MOST_LEVELS}"
            raise wrong_value(
                "DataSpec",
                "levels",
                rule,
                self.levels,
                "pass levels=256 for 8-bit images, None for real data",
            )
        if self.rate is not None:
            positive_integer("DataSpec", "rate", self.rate)
        self._check_scaling()

    def _check_scaling(self) -> None:
        if not isinstance(self.scaling, Scaling):
            raise wrong_type(
                "DataSpec",
                "scaling",
                "be a Scaling",
                self.scaling,
                "pass for example Affine(-1, 1)",
            )
        if self.levels is None and not isinstance(self.scaling, Affine):
            raise wrong_value(
                "DataSpec",
                "scaling",
                "be affine for real data",
                self.scaling,
                "pass levels, or for example Affine(-1, 1)",
            )
        blur = self.scaling.rounding * self.scaling.slope(self.levels or 1)
        if self.levels is not None and blur > _BLUR:
            rule = f"have bins that float32 can tell apart for {self.levels} levels"
            raise wrong_value("DataSpec", "scaling", rule, self.scaling, "pass a range around 0")

    @property
    def storage(self) -> torch.dtype:
        """The dtype in which a data set keeps its values."""
        if self.levels is None:
            return torch.float32
        return torch.uint8 if self.levels <= 256 else torch.int32

    @property
    def is_natural(self) -> bool:
        """Whether the scaling is the one that is taken where none is given."""
        return self.scaling == _natural(self.levels)

    @property
    def offset_bits(self) -> float:
        """What an affine scaling adds to bits per dimension: log2(levels/(high − low)).

        7 for 256 levels on [−1, 1], 0 for real data that is not scaled.

        Errors: ValueError for another scaling, for which it differs between samples.
        """
        if not isinstance(self.scaling, Affine):
            raise wrong_value(
                "DataSpec.offset_bits",
                "scaling",
                "be affine",
                self.scaling,
                "use log_volume(x), of every sample",
            )
        return math.log2(self.scaling.slope(self.levels or 1))

    def log_volume(self, x: Tensor) -> Tensor:
        """Return Σ log|dx/d(k + u)| of every sample, in nats: log p(k + u) = log p(x) + this.

        With p(k + u) the density in units of levels, −log p(k + u)/(D ln 2) is in bits per
        dimension, whatever the scaling. Real data: the density in its own units.

        Shapes: x (B, *event), scaled → (B,), float64.
        """
        return self.scaling.log_det(x, self.levels or 1)

    def encode(self, k: Tensor, u: Tensor | float) -> Tensor:
        """Return x = scaling(k + u), which `decode` takes back to k for every u.

        Shapes: k and u broadcast. float64 for a float64 u, else float32. Real data: scaling(k),
        in k's dtype.
        Errors: ValueError for a k outside 0 … levels − 1 or a u outside [0, 1).
        """
        if self.levels is None:
            return self.scaling.forward(k).to(k.dtype)
        if not is_integer(k):
            raise wrong_type(
                "DataSpec.encode", "k", "be an integer tensor", k.dtype, "pass the levels, not x"
            )
        check_span("DataSpec.encode", "k", k, self.levels)
        noise = torch.as_tensor(u, dtype=torch.float64, device=k.device)
        if noise.numel() and not (float(noise.min()) >= 0 and float(noise.max()) < 1):
            raise wrong_value(
                "DataSpec.encode",
                "u",
                "be in [0, 1)",
                _span(noise),
                "pass 0.5 or torch.rand(k.shape, generator=generator)",
            )
        double = isinstance(u, Tensor) and u.dtype == torch.float64
        dtype = torch.float64 if double else torch.float32
        x = self.scaling.forward(k.double() + noise, self.levels).to(dtype)
        # Rounding may push x over the edge of its bin (u = 1 − 2⁻²⁴ does), into the next level.
        centre = self.scaling.forward(k.double() + 0.5, self.levels)
        inward = (x.double() + self.scaling.rounding * (centre - x).sign()).to(dtype)
        return torch.where(self.decode(x) == k, x, inward)

    def decode(self, x: Tensor) -> Tensor:
        """Return the level of x, clamped to 0 … levels − 1; real data in its own units.

        Errors: ValueError for NaN, which has no level.
        """
        if self.levels is None:
            return self.scaling.inverse(x).to(x.dtype)
        if bool(x.isnan().any()):
            raise wrong_value(
                "DataSpec.decode", "x", "be numbers", "nan", "look for the step that diverged"
            )
        k = self.scaling.inverse(x, self.levels).floor()
        return k.clamp(0, self.levels - 1).to(self.storage)

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values; a default scaling and no rate are left out."""
        values: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "levels": self.levels,
        }
        if not self.is_natural:
            values["scaling"] = self.scaling.to_json()
        return values if self.rate is None else values | {"rate": self.rate}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the specification that `to_json` wrote.

        Errors: ValueError for missing or unknown entries.
        """
        if set(values) - {"scaling", "rate"} != {"name", "shape", "levels"}:
            raise wrong_value(
                "DataSpec.from_json",
                "values",
                "hold name, shape and levels",
                sorted(values),
                "pass what to_json returned",
            )
        name = values["name"]
        shape = tuple(values["shape"])
        levels = values["levels"]
        scaling = values.get("scaling")
        known = None if scaling is None else scaling_from_json(scaling)
        return cls(name, shape, levels, known, values.get("rate"))


def check_span(
    what: str, argument: str, values: Tensor | NDArray[Any], levels: int | None
) -> None:
    """Refuse levels outside 0 … levels − 1, and real data that are not finite.

    Arguments:
        what: the function that refuses, as errors name it.
        argument: the argument that holds the values, as errors name it.
        values: the data, of any shape.
        levels: the number of grey levels; None for real data.

    Errors: ValueError that names the span of the values.
    """
    if 0 in values.shape:
        return
    if levels is None:
        _check_finite(what, argument, values)
        return
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high < levels):
        raise wrong_value(
            what,
            argument,
            f"hold integers from 0 to {levels - 1}",
            _span(values),
            _enough(values, high) if low >= 0 else "shift them to 0",
        )


def _check_finite(what: str, argument: str, values: Tensor | NDArray[Any]) -> None:
    array = values.numpy(force=True) if isinstance(values, Tensor) else values
    # Not isfinite: what float32 cannot hold is infinite there.
    wrong = ~(np.abs(array) <= _LARGEST)
    if not wrong.any():
        return
    place = [int(axis[0]) for axis in wrong.nonzero()]
    first = array[tuple(place)].item()
    remove = "remove their rows: array[np.isfinite(array).reshape(len(array), -1).all(1)]"
    raise wrong_value(
        what,
        argument,
        "hold finite numbers, in float32's range",
        f"{wrong.sum()} of {wrong.size} that are not, the first {first} at {place}",
        "divide all by a constant" if math.isfinite(first) else remove,
    )


def _enough(values: Tensor | NDArray[Any], high: float) -> str:
    """Return what to do about levels above the last: uint16 tells 65536, whatever a file holds."""
    levels = _MOST_LEVELS if str(values.dtype).endswith("uint16") else max(int(high), 1) + 1
    return f"pass levels={levels}, on the command line --levels {levels}"


def _span(values: Tensor | NDArray[Any]) -> str:
    return f"{values.min().item()} … {values.max().item()}"


def _natural(levels: int | None) -> Affine:
    return Affine(0, 1) if levels is None else Affine(-1, 1)


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_size, value))


def _is_size(value: object, least: int = 1, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_integer(values: Tensor) -> bool:
    """Return whether the dtype is one of integers."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
