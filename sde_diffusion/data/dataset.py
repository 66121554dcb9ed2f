"""Data sets with their grey levels and their scaling.

The likelihood of images has a meaning only where the scale of the pixels is known, so every data
set has a `DataSpec`: integer data of L levels become x = 2(k + u)/L − 1 with u in [0, 1), real
data stay as they are, unless another `Scaling` is asked for.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion.data.readers import (
    check_reading,
    checked,
    kind_of,
    part_held_out,
    read_file,
    read_folder,
)
from sde_diffusion.data.rows import SPLITS, ReadingOptions, Rows, refusal
from sde_diffusion.data.spec import DataSpec, check_span, is_integer

_DIGITS_TRAIN: Final = 1437
_CHUNK: Final = 4096  # rows
_NUMPY: Final = {torch.uint8: np.uint8, torch.int32: np.int32, torch.float32: np.float32}
_ACCEPTED: Final = (
    "be 'digits', an IDX image file (.gz or not), a .npy or .npz file, a CIFAR-10 .bin file, a "
    ".wav file, or a folder of MNIST files, CIFAR-10 batches, sounds, pictures or classes of "
    "pictures"
)


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in memory, with their labels where they have any.

    Arguments:
        spec: what a sample is.
        values: (N, *spec.shape), integers for ``spec.levels``, else float32.
        labels: (N,), integers from 0; None where there are none.
        classes: the names of the classes, by number; None where they have none.
        notes: a line for everything that was converted in reading.
        conditions: what else is known of each sample, by the name by which a network takes it:
            ``text``, bytes and −1 behind the end, or ``vector``, ``image`` and ``context`` of
            floats, NaN for what is not known; (N, …) each.

    Errors: ValueError where shape, dtype or values do not fit the specification.

    >>> data = Dataset(DataSpec("pixels", (1,), 2), torch.tensor([[0], [1], [1]]), None)
    >>> len(data), data.centred().flatten().tolist()
    (3, [-0.5, 0.5, 0.5])
    """

    spec: DataSpec
    values: Tensor
    labels: Tensor | None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    __repr__ = shown

    def __post_init__(self) -> None:
        values = self.values
        name = self.spec.name
        levels = self.spec.levels
        if tuple(values.shape[1:]) != self.spec.shape:
            raise wrong_value(
                "Dataset",
                f"values of {name!r}",
                f"have shape (N, {', '.join(map(str, self.spec.shape))})",
                tuple(values.shape),
                "reshape them or the spec",
            )
        if not (values.dtype == torch.float32 if levels is None else is_integer(values)):
            rule = "be float32" if levels is None else f"be integers for {levels} levels"
            raise wrong_value(
                "Dataset",
                f"values of {name!r}",
                rule,
                values.dtype,
                f"pass values.to({self.spec.storage})",
            )
        check_span("Dataset", f"values of {name!r}", values, levels)
        labels = self.labels
        if labels is not None and (labels.shape != values.shape[:1] or not is_integer(labels)):
            rule = f"be {len(values)} integers"
            raise wrong_value(
                "Dataset",
                f"labels of {name!r}",
                rule,
                f"{labels.dtype} of shape {tuple(labels.shape)}",
                "pass one class number a row, or None",
            )
        if labels is not None and labels.numel() and int(labels.min()) < 0:
            raise wrong_value(
                "Dataset",
                f"labels of {name!r}",
                "be 0 or more",
                int(labels.min()),
                "number the classes from 0",
            )
        names = self.classes
        if names is not None and labels is not None and int(labels.max()) >= len(names):
            raise wrong_value(
                "Dataset",
                f"labels of {name!r}",
                f"be below the {len(names)} names of classes",
                int(labels.max()),
                "name all classes",
            )
        for key, rows in self.conditions.items():
            if len(rows) != len(values):
                rule = f"have {len(values)} rows, one a sample"
                remedy = "pass one for each, or leave it out"
                raise wrong_value("Dataset", f"{key} of {name!r}", rule, len(rows), remedy)

    @property
    def given(self) -> dict[str, Tensor]:
        """Labels and other conditions, by name, where there are any."""
        labels = {} if self.labels is None else {"labels": self.labels}
        return labels | dict(self.conditions)

    def part(self, rows: slice) -> Self:
        """Return the data set of some rows, with what belongs to them."""
        return replace(
            self,
            values=self.values[rows],
            labels=None if self.labels is None else self.labels[rows],
            conditions={name: held[rows] for name, held in self.conditions.items()},
        )

    def for_network(self, classes: int | None, names: Iterable[str]) -> Self:
        """Return the data set with what a network takes of its conditions, and nothing else.

        Arguments:
            classes: of the network, None or 0 for none.
            names: of the conditions beside labels that it takes.
        """
        kept = {name: self.conditions[name] for name in names}
        if classes:
            return replace(self, conditions=kept)
        return replace(self, labels=None, classes=None, conditions=kept)

    def __len__(self) -> int:
        return len(self.values)

    def centred(self) -> Tensor:
        """Return all rows at the centres of their bins, float32."""
        return self._centred(self.values)

    def dequantized(self, generator: torch.Generator) -> Tensor:
        """Return all rows, each value spread uniformly over its bin, float32."""
        # In parts: the coefficients are float64, eight times the memory of 8-bit pixels.
        parts = torch.split(self.values, _CHUNK)
        return torch.cat([self._spread(part, generator) for part in parts])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of every dimension of the scaled data.

        Levels are taken at the centres of their bins.

        Shapes: both spec.shape, float64.
        """
        origin = self._centred(self.values[:1]).double()  # near the rows: squares do not cancel
        sums = torch.zeros(2, *self.spec.shape, dtype=torch.float64, device=self.values.device)
        for part in torch.split(self.values, _CHUNK):
            x = self._centred(part).double() - origin
            sums += torch.stack([x.sum(0), x.square().sum(0)])
        shift, square = sums / len(self)
        return origin[0] + shift, (square - shift**2).clamp(min=0).sqrt()

    def batch(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return the rows of ``index``, each value spread uniformly over its bin, float32."""
        return self._spread(self.values[index], generator)

    def _centred(self, k: Tensor) -> Tensor:
        levels = self.spec.levels
        if levels is None:
            return self.spec.encode(k, 0.5)
        centres = self.spec.encode(torch.arange(levels, device=k.device), 0.5)
        return centres[k.long()]

    def _spread(self, k: Tensor, generator: torch.Generator) -> Tensor:
        if not isinstance(generator, torch.Generator):
            raise wrong_type(
                "Dataset",
                "generator",
                "be a torch.Generator",
                generator,
                "pass torch.Generator().manual_seed(0)",
            )
        if self.spec.levels is None:
            return self.spec.encode(k, 0.5)
        u = torch.rand(k.shape, generator=generator, device=generator.device)
        return self.spec.encode(k, u.to(k.device))


def load_data(
    source: str | Path,
    split: str = "train",
    limit: int | None = None,
    *,
    levels: int | None = None,
    mode: str | None = None,
    size: int | None = None,
    frames: str = "first",
    layout: str | None = None,
    length: int | None = None,
) -> Dataset:
    """Return the data set of a name or path.

    The source is "digits" (1797 images of 8×8, 17 levels) or the path of an IDX image file (.gz
    or not), a .npy or .npz file, a CIFAR-10 .bin file, a .wav file of 16-bit PCM or floats, or a
    folder of MNIST files, of CIFAR-10 batches, of .wav files, of pictures or of a folder of
    pictures for each class. A .npz file without x_test, any other file, a folder of sounds, or one
    of pictures without the subfolders train and test, has no test part.

    Arrays are (N, D), (N, H, W), (N, C, H, W), (N, H, W, C), series (N, C, L) or volumes
    (N, C, D, H, W). Samples are channels-first; (N, H, W) becomes (N, 1, H, W). Floats stay as
    they are; `train` scales them where it is told to. What was converted stands in the ``notes``
    of the result. Of a .npz file the arrays ``text`` (strings), ``vector``, ``image`` and
    ``context`` are conditions of its samples.

    Arguments:
        source: the name or path.
        split: "train", "test" or "all".
        limit: the number of rows that are kept, the first ones; all if None.
        levels: the number of grey levels of integers, or of floats that are whole numbers; if
            None 17 for "digits", 65536 for pictures of 16 bits and 256 for others.
        mode: of pictures: "grey", "rgb" or "rgba"; that of most of them if None.
        size: the height and width to which pictures are resized, and cropped at the centre.
        frames: of a GIF or another picture of several: "first", "all" as pictures of their own, or
            "clip" for samples (C, D, H, W), a file each.
        layout: the axes of a sample of an array: "hw", "chw", "hwc", "cl", "lc", "cdhw" or "dhwc";
            recognised by its shape if None.
        length: of clips into which sounds are cut, in samples; None for whole files.

    Errors: FileNotFoundError; ValueError that names the file and what is wrong with it.

    >>> data = load_data("digits", "test")
    >>> len(data), data.spec
    (360, DataSpec(name='digits', shape=(1, 8, 8), levels=17, scaling=Affine(low=-1, high=1)))
    """
    if split not in SPLITS:
        raise wrong_value(
            "load_data", "split", "be train, test or all", split, "pass split='train'"
        )
    if limit is not None:
        positive_integer("load_data", "limit", limit)
    reading = ReadingOptions(mode, size, frames, layout, length)
    if source == "digits":
        check_reading("digits", "numbers", reading)
        return _dataset(Path(source), _digits(split), limit, levels, layout)
    path = Path(source)
    if path.exists():
        check_reading(str(source), kind_of(path), reading)
    if path.is_dir():
        return _dataset(path, read_folder(path, split, limit, reading), limit, levels, layout)
    error = wrong_value("load_data", "source", _ACCEPTED, repr(str(source)), "check the spelling")
    if not path.exists():
        raise FileNotFoundError(str(error))
    rows = read_file(path, split, reading)
    if rows is None:
        raise error
    return _dataset(path, rows, limit, levels, layout)


def held_out_split(source: str | Path) -> str:
    """Return the split to evaluate on: "test" where the source has one, else all that it has.

    Errors: ValueError for a damaged .npz file.
    """
    return "test" if source == "digits" else part_held_out(Path(source))


def _digits(split: str) -> Rows:
    file = importlib.resources.files("sde_diffusion").joinpath("assets", "digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        part = {"train": slice(_DIGITS_TRAIN), "test": slice(_DIGITS_TRAIN, None)}.get(
            split, slice(None)
        )
        return Rows(arrays["images"][part], arrays["labels"][part], layout="hw", levels=17)


def _dataset(
    path: Path, rows: Rows, limit: int | None, levels: int | None, layout: str | None
) -> Dataset:
    """Return the rows as a data set, in the layout and the dtype of its specification.

    Errors: ValueError that names the file for what no data set may hold.
    """
    rows = checked(path, rows, limit, layout)
    values = rows.values
    if values.dtype.kind == "f":
        values = values.astype(np.float32) if levels is None else _whole(path, values, levels)
    elif levels is None:
        levels = 256 if rows.levels is None else rows.levels
    name = path.absolute().name
    spec = DataSpec(name.split(".")[0] or name, values.shape[1:], levels, rate=rows.rate)
    if levels is not None:
        check_span("load_data", str(path), values, levels)
    # A copy: the bytes of a file are read-only, and a limit must not keep the other rows alive.
    copy = torch.from_numpy(values.astype(_NUMPY[spec.storage], order="C"))
    labels = None if rows.labels is None else torch.from_numpy(rows.labels.astype("i8"))
    # Of their own memory too: numpy's arrays of a file may be read-only.
    given = {name: torch.from_numpy(np.array(held)) for name, held in rows.conditions.items()}
    return Dataset(spec, copy, labels, rows.classes, rows.notes, given)


def _whole(path: Path, values: NDArray[Any], levels: int) -> NDArray[Any]:
    """Return floats that are whole numbers as integers.

    Errors: ValueError that names the first that is not whole.
    """
    whole: NDArray[Any] = np.rint(values)
    if not np.array_equal(whole, values):
        raise refusal(
            path,
            f"hold whole numbers for {levels} levels",
            f"{values[whole != values][0]}",
            "leave out levels (--levels) for real numbers",
        )
    check_span("load_data", str(path), whole, levels)
    return whole.astype(np.int64)
