"""Data sets that know their grey levels and their scaling.

A likelihood of images is only a number when the scale of the pixels is known, so every data set
carries a `DataSpec`: integer data of L levels becomes x = 2(k + u)/L − 1 with u in [0, 1), real
data stays as it is, unless another `Scaling` is asked for.
"""

from __future__ import annotations

import importlib.resources
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion._readers import SPLITS, Rows, checked, read_file, read_folder
from sde_diffusion.scaling import Affine, Scaling, scaling_from_json

_MOST_LEVELS: Final = 2**16
_BLUR: Final = 1 / 8  # of the thinnest bin: the most that float32 may round by
_DIGITS_TRAIN: Final = 1437
_CHUNK: Final = 4096  # rows
_NUMPY: Final = {torch.uint8: np.uint8, torch.int32: np.int32, torch.float32: np.float32}
_ACCEPTED: Final = (
    "be 'digits', an IDX image file (.gz or not), a .npy or .npz file, a CIFAR-10 .bin file, or a "
    "folder of MNIST files, CIFAR-10 batches or images"
)


@final
@dataclass(frozen=True)
class DataSpec:
    """The shape of a sample, the grey levels behind its numbers and their scaling.

    x = scaling(k + u) for the integer k in 0 … levels − 1 and u in [0, 1); u = ½ is the centre of
    the bin. ``levels`` is None for real data, which is x = scaling(k). ``scaling`` not given is
    `Affine`(−1, 1) of levels, x = 2(k + u)/levels − 1, and of real data none, `Affine`(0, 1).

    Errors: TypeError or ValueError for a wrong name, shape, number of levels or scaling.

    >>> spec = DataSpec("digits", (1, 8, 8), 17)
    >>> x = spec.encode(torch.tensor([0, 8, 16]), 0.5)
    >>> [round(value, 4) for value in x.tolist()], spec.decode(x).tolist()
    ([-0.9412, 0.0, 0.9412], [0, 8, 16])
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None
    scaling: Scaling = None  # type: ignore[assignment]  # never None once made

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise wrong_type("DataSpec", "name", "be a string", self.name, "pass name='digits'")
        if not _is_shape(self.shape):
            raise wrong_value("DataSpec", "shape", "be a tuple of positive integers", self.shape,
                              "pass for example shape=(1, 28, 28)")  # fmt: skip
        if self.levels is not None and not _is_size(self.levels, 2, _MOST_LEVELS):
            rule = f"be None or an integer from 2 to {_MOST_LEVELS}"
            raise wrong_value("DataSpec", "levels", rule, self.levels,
                              "pass levels=256 for 8-bit images, None for real data")  # fmt: skip
        if self.scaling is None:
            object.__setattr__(self, "scaling", _natural(self.levels))
        self._check_scaling()

    def _check_scaling(self) -> None:
        if not isinstance(self.scaling, Scaling):
            raise wrong_type("DataSpec", "scaling", "be a Scaling", self.scaling,
                             "pass for example Affine(-1, 1)")  # fmt: skip
        if self.levels is None and not isinstance(self.scaling, Affine):
            raise wrong_value("DataSpec", "scaling", "be affine for real data", self.scaling,
                              "pass levels, or for example Affine(-1, 1)")  # fmt: skip
        blur = self.scaling.rounding * self.scaling.slope(self.levels or 1)
        if self.levels is not None and blur > _BLUR:
            rule = f"have bins that float32 can tell apart for {self.levels} levels"
            raise wrong_value("DataSpec", "scaling", rule, self.scaling,
                              "pass a range around 0")  # fmt: skip

    @property
    def storage(self) -> torch.dtype:
        """The dtype in which a data set keeps its values."""
        if self.levels is None:
            return torch.float32
        return torch.uint8 if self.levels <= 256 else torch.int32

    @property
    def offset_bits(self) -> float:
        """What an affine scaling adds to bits per dimension: log2(levels/(high − low)).

        7 for 256 levels on [−1, 1], 0 for real data as it is.
        Errors: ValueError for another scaling, where it is another number for every sample.
        """
        if not isinstance(self.scaling, Affine):
            raise wrong_value("DataSpec.offset_bits", "scaling", "be affine", self.scaling,
                              "use log_volume(x), of every sample")  # fmt: skip
        return math.log2(self.scaling.slope(self.levels or 1))

    def log_volume(self, x: Tensor) -> Tensor:
        """Return Σ log|dx/d(k + u)| of every sample, in nats: log p(k + u) = log p(x) + this.

        With p(k + u) the density in units of levels, −log p(k + u)/(D ln 2) is in bits per
        dimension, whatever the scaling. Real data: the density in its own units.

        Shapes: x (B, *event), scaled → (B,), float64.
        """
        return self.scaling.log_det(x, self.levels or 1)

    def encode(self, k: Tensor, u: Tensor | float) -> Tensor:
        """Return x = scaling(k + u), which `decode` takes back to k whatever u is.

        Shapes: k and u broadcast. float64 for a float64 u, else float32. Real data: scaling(k),
        in k's dtype.
        Errors: ValueError for a k outside 0 … levels − 1 or a u outside [0, 1).
        """
        if self.levels is None:
            return self.scaling.forward(k).to(k.dtype)
        if not _is_integer(k):
            raise wrong_type("DataSpec.encode", "k", "be an integer tensor", k.dtype,
                             "pass the levels, not x")  # fmt: skip
        _check_span("DataSpec.encode", "k", k, self.levels)
        noise = torch.as_tensor(u, dtype=torch.float64, device=k.device)
        if noise.numel() and not (float(noise.min()) >= 0 and float(noise.max()) < 1):
            raise wrong_value("DataSpec.encode", "u", "be in [0, 1)", _span(noise),
                              "pass 0.5 or torch.rand(k.shape, generator=generator)")  # fmt: skip
        double = isinstance(u, Tensor) and u.dtype == torch.float64
        dtype = torch.float64 if double else torch.float32
        x = self.scaling.forward(k.double() + noise, self.levels).to(dtype)
        # Rounding may push x over the edge of its bin (u = 1 − 2⁻²⁴ does), into the next level.
        centre = self.scaling.forward(k.double() + 0.5, self.levels)
        inward = (x.double() + self.scaling.rounding * (centre - x).sign()).to(dtype)
        return torch.where(self.decode(x) == k, x, inward)

    def decode(self, x: Tensor) -> Tensor:
        """Return the level of x, clamped to 0 … levels − 1; real data: its own units.

        Errors: ValueError for NaN, which has no level.
        """
        if self.levels is None:
            return self.scaling.inverse(x).to(x.dtype)
        if bool(x.isnan().any()):
            raise wrong_value("DataSpec.decode", "x", "be numbers", "nan",
                              "look for the step that diverged")  # fmt: skip
        k = self.scaling.inverse(x, self.levels).floor()
        return k.clamp(0, self.levels - 1).to(self.storage)

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values, without a scaling that is not to be stated."""
        values = {"name": self.name, "shape": list(self.shape), "levels": self.levels}
        if self.scaling == _natural(self.levels):
            return values
        return values | {"scaling": self.scaling.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the specification that `to_json` wrote.

        Errors: ValueError for missing or unknown entries.
        """
        if set(values) - {"scaling"} != {"name", "shape", "levels"}:
            raise wrong_value("DataSpec.from_json", "values", "hold name, shape and levels",
                              sorted(values), "pass what to_json returned")  # fmt: skip
        name, shape, levels = values["name"], tuple(values["shape"]), values["levels"]
        scaling = values.get("scaling")
        return cls(name, shape, levels, *([] if scaling is None else [scaling_from_json(scaling)]))


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in memory, with their labels where they have any.

    Shapes: values (N, *spec.shape), integers for ``spec.levels``, else float32; labels (N,),
    integers from 0.
    Errors: ValueError where shape, dtype or values do not fit the specification.

    >>> data = Dataset(DataSpec("pixels", (1,), 2), torch.tensor([[0], [1], [1]]), None)
    >>> len(data), data.centred().flatten().tolist()
    (3, [-0.5, 0.5, 0.5])
    """

    spec: DataSpec
    values: Tensor
    labels: Tensor | None

    def __post_init__(self) -> None:
        values, name, levels = self.values, self.spec.name, self.spec.levels
        if tuple(values.shape[1:]) != self.spec.shape:
            raise wrong_value("Dataset", f"values of {name!r}",
                              f"have shape (N, {', '.join(map(str, self.spec.shape))})",
                              tuple(values.shape), "reshape them or the spec")  # fmt: skip
        if not (values.dtype == torch.float32 if levels is None else _is_integer(values)):
            rule = "be float32" if levels is None else f"be integers for {levels} levels"
            raise wrong_value("Dataset", f"values of {name!r}", rule, values.dtype,
                              f"pass values.to({self.spec.storage})")  # fmt: skip
        _check_span("Dataset", f"values of {name!r}", values, levels)
        labels = self.labels
        if labels is not None and (labels.shape != values.shape[:1] or not _is_integer(labels)):
            rule = f"be {len(values)} integers"
            raise wrong_value("Dataset", f"labels of {name!r}", rule,
                              f"{labels.dtype} of shape {tuple(labels.shape)}",
                              "pass one class number a row, or None")  # fmt: skip
        if labels is not None and labels.numel() and int(labels.min()) < 0:
            raise wrong_value("Dataset", f"labels of {name!r}", "be 0 or more",
                              int(labels.min()), "number the classes from 0")  # fmt: skip

    def __len__(self) -> int:
        return len(self.values)

    def centred(self) -> Tensor:
        """Return all rows at the centres of their bins, float32."""
        levels = self.spec.levels
        if levels is None:
            return self.spec.encode(self.values, 0.5)
        centres = self.spec.encode(torch.arange(levels, device=self.values.device), 0.5)
        return centres[self.values.long()]

    def dequantized(self, generator: torch.Generator) -> Tensor:
        """Return all rows, each value spread uniformly over its bin, float32."""
        # In parts: the coefficients are float64, eight times the memory of 8-bit pixels.
        parts = torch.split(self.values, _CHUNK)
        return torch.cat([self._spread(part, generator) for part in parts])

    def batch(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return the rows of ``index``, each value spread uniformly over its bin, float32."""
        return self._spread(self.values[index], generator)

    def _spread(self, k: Tensor, generator: torch.Generator) -> Tensor:
        if not isinstance(generator, torch.Generator):
            raise wrong_type("Dataset", "generator", "be a torch.Generator", generator,
                             "pass torch.Generator().manual_seed(0)")  # fmt: skip
        if self.spec.levels is None:
            return self.spec.encode(k, 0.5)
        u = torch.rand(k.shape, generator=generator, device=generator.device)
        return self.spec.encode(k, u.to(k.device))


def load_data(
    source: str | Path, split: str = "train", limit: int | None = None, *,
    levels: int | None = None,
) -> Dataset:  # fmt: skip
    """Return the data set of a name or path, its first ``limit`` rows where given.

    ``source`` is "digits" (1797 images of 8×8, 17 levels) or the path of an IDX image file (.gz
    or not), a .npy or .npz file, a CIFAR-10 .bin file, or a folder of MNIST files, of CIFAR-10
    batches or of images. ``split`` is "train", "test" or "all". A file, or a folder of images
    without the subfolders train and test, has no test part.

    Integers have ``levels`` levels, 256 unless given; floats are used as they are. Arrays are
    (N, D), (N, H, W), (N, C, H, W), or, for uint8, (N, H, W, C) with 1, 3 or 4 channels where
    axis 1 cannot be the channels. Samples are channels-first; (N, H, W) becomes (N, 1, H, W).

    Errors: FileNotFoundError; ValueError that names the file and what is wrong with it.

    >>> data = load_data("digits", "test")
    >>> len(data), data.spec
    (360, DataSpec(name='digits', shape=(1, 8, 8), levels=17, scaling=Affine(low=-1, high=1)))
    """
    if split not in SPLITS:
        raise wrong_value("load_data", "split", "be train, test or all", split,
                          "pass split='train'")  # fmt: skip
    if limit is not None:
        positive_integer("load_data", "limit", limit)
    if source == "digits":
        return _dataset(Path(source), _digits(split), limit, 17 if levels is None else levels)
    path = Path(source)
    if path.is_dir():
        return _dataset(path, read_folder(path, split, limit), limit, levels)
    error = wrong_value("load_data", "source", _ACCEPTED, repr(str(source)), "check the spelling")
    if not path.exists():
        raise FileNotFoundError(str(error))
    rows = read_file(path, split)
    if rows is None:
        raise error
    return _dataset(path, rows, limit, levels)


def _digits(split: str) -> Rows:
    file = importlib.resources.files("sde_diffusion").joinpath("assets", "digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        part = {"train": slice(_DIGITS_TRAIN), "test": slice(_DIGITS_TRAIN, None)}.get(
            split, slice(None)
        )
        return arrays["images"][part], arrays["labels"][part]


def _dataset(path: Path, rows: Rows, limit: int | None, levels: int | None) -> Dataset:
    """Return the rows in the house's layout and dtypes.

    Errors: ValueError that names the file for what no data set may hold.
    """
    values, classes = checked(path, rows)
    values = values[:limit]
    if values.dtype.kind == "f":
        if levels is not None:
            raise wrong_value("load_data", "levels", "be left out for floats", levels,
                              f"save {path} as integers")  # fmt: skip
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
            values = values.astype(np.float32)
    else:
        levels = 256 if levels is None else levels
    name = path.absolute().name
    spec = DataSpec(name.split(".")[0] or name, values.shape[1:], levels)
    _check_span("load_data", str(path), values, levels)
    # A copy: the bytes of a file are read-only, and a limit must not keep the other rows alive.
    copy = torch.from_numpy(values.astype(_NUMPY[spec.storage], order="C"))
    labels = None if classes is None else torch.from_numpy(classes[:limit].astype(np.int64))
    return Dataset(spec, copy, labels)


def _check_span(
    what: str, argument: str, values: Tensor | NDArray[Any], levels: int | None
) -> None:
    """Refuse levels outside 0 … levels − 1, and real numbers that are not finite."""
    if 0 in values.shape:
        return
    low, high = values.min().item(), values.max().item()
    if levels is None and not (math.isfinite(low) and math.isfinite(high)):
        raise wrong_value(what, argument, "hold finite numbers", _span(values),
                          "remove the rows that are not")  # fmt: skip
    if levels is not None and not (low >= 0 and high < levels):
        raise wrong_value(what, argument, f"hold integers from 0 to {levels - 1}", _span(values),
                          f"pass levels={max(high, 1) + 1}" if low >= 0 else "shift them to 0")


def _span(values: Tensor | NDArray[Any]) -> str:
    return f"{values.min().item()} … {values.max().item()}"


def _natural(levels: int | None) -> Affine:
    return Affine(0, 1) if levels is None else Affine(-1, 1)


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_size, value))


def _is_size(value: object, least: int = 1, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
