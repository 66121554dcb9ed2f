"""Arrays of pictures, series and volumes are read as what they are, with a note of a guess."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sde_diffusion import load_data


def ramp(*shape: int) -> NDArray[np.uint8]:
    return (np.arange(np.prod(shape)) * 7 % 251).astype(np.uint8).reshape(shape)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"^load_data: .* must .*, got .*; ") as caught:
        load_data(path, **options)
    return str(caught.value).replace(str(path), "PATH")


PICTURES, SERIES, VOLUMES = "pictures", "series", "volumes"
# The shape of a sample, where its channels are (None: it has none), and what the note says.
SHAPES: list[tuple[tuple[int, ...], int | None, str]] = [
    ((7,), 0, ""),
    ((28, 28), None, ""),
    ((12, 20), None, ""),
    ((3, 28, 28), 0, ""),
    ((16, 8, 8), 0, PICTURES),  # latents, or pictures of 8 channels on their side
    ((3, 32, 3), 0, PICTURES),
    ((16, 20, 16, 17), 0, VOLUMES),
    ((3, 8, 16, 3), 0, VOLUMES),
    ((1, 28, 20), 0, ""),
    ((28, 28, 1), 2, PICTURES),
    ((16, 16, 3), 2, PICTURES),  # not 16 channels of 16×3
    ((20, 32, 3), 2, PICTURES),
    ((4, 4, 3), 2, PICTURES),
    ((32, 32, 2), 2, PICTURES),
    ((2, 200), 0, SERIES),
    ((12, 1000), 0, SERIES),
    ((1000, 3), 1, SERIES),
    ((1, 16, 16, 16), 0, ""),
    ((3, 8, 16, 16), 0, ""),
    ((16, 16, 16, 2), 3, VOLUMES),
]


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8", ">i4"])
@pytest.mark.parametrize(("shape", "channels", "note"), SHAPES, ids=str)
def test_an_array_is_read_as_what_it_is(
    tmp_path: Path, shape: tuple[int, ...], channels: int | None, note: str, dtype: str
) -> None:
    stored = ramp(3, *shape).astype(dtype)
    np.save(tmp_path / "a.npy", stored)
    data = load_data(tmp_path / "a.npy")
    expected = stored[:, None] if channels is None else np.moveaxis(stored, 1 + channels, 1)
    assert data.spec.shape == expected.shape[1:]
    assert np.array_equal(data.values.numpy(), expected)
    assert len(data.notes) == bool(note)
    assert all(f"a.npy: {stored.shape} is read as {note}" in said for said in data.notes)


@pytest.mark.parametrize("shape", [(8, 8, 16), (9, 7, 6), (16, 3, 64, 64), (16, 16, 16, 8)])
def test_channels_that_cannot_be_told_are_asked_for(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", ramp(2, *shape))
    first, last = ("chw", "hwc") if len(shape) == 3 else ("cdhw", "dhwc")
    text = refusal(tmp_path / "a.npy")
    assert f"which axis holds the channels, got (N, {', '.join(map(str, shape))}); " in text
    assert f"pass --layout {first} if it is the first (layout='{first}' in Python)" in text
    assert load_data(tmp_path / "a.npy", layout=first).spec.shape == shape
    assert load_data(tmp_path / "a.npy", layout=last).spec.shape == (shape[-1], *shape[:-1])


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((32, 256), "hw", (1, 32, 256)),
        ((28, 28), "cl", (28, 28)),
        ((28, 20), "lc", (20, 28)),
        ((3, 4, 3), "hwc", (3, 3, 4)),
        ((5, 6, 7, 8), "dhwc", (8, 5, 6, 7)),
    ],
)
def test_a_layout_that_is_named_counts(
    tmp_path: Path, shape: tuple[int, ...], layout: str, expected: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", ramp(2, *shape))
    data = load_data(tmp_path / "a.npy", layout=layout)
    assert data.spec.shape == expected
    assert data.notes == ()


def test_a_layout_of_another_number_of_axes_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(2, 4, 4))
    assert "PATH must have samples of the 3 axes of layout hwc, got shape (2, 4, 4)" in refusal(
        tmp_path / "a.npy", layout="hwc"
    )
    np.save(tmp_path / "a.npy", ramp(2, 2, 2, 2, 2, 2))
    assert "PATH must have samples of 1 to 4 axes, got shape (N, 2, 2, 2, 2, 2)" in refusal(
        tmp_path / "a.npy"
    )


def test_the_place_of_the_first_number_that_is_none_is_that_in_the_file(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 4, 3), np.float32)
    values[1, 2, 3, 0] = np.nan
    values[2, 0, 0, 1] = np.inf
    np.save(tmp_path / "a.npy", values)
    text = refusal(tmp_path / "a.npy")
    assert "got 2 of 144 that are not, the first nan at [1, 2, 3, 0]; remove their rows" in text
    remedy = text.rpartition("rows: ")[2]
    np.save(tmp_path / "a.npy", eval(remedy, {"np": np, "array": values}))
    assert len(load_data(tmp_path / "a.npy")) == 1


# --- names of arrays --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_a_npz_file_with_parts(tmp_path: Path, names: tuple[str, ...]) -> None:
    parts = (ramp(3, 4, 4), np.array([2, 0, 1]), ramp(2, 4, 4) + 1, np.array([[1], [0]]))
    named: dict[str, Any] = dict(zip(names, parts, strict=True))
    file = tmp_path / "a.npz"
    np.savez(file, **named)
    for split, values, labels in (
        ("train", parts[0], [2, 0, 1]),
        ("test", parts[2], [1, 0]),
    ):
        data = load_data(file, split)
        assert np.array_equal(data.values[:, 0].numpy(), values)
        assert data.labels is not None
        assert data.labels.tolist() == labels
    both = load_data(file, "all")
    assert len(both) == 5
    assert both.labels is not None
    assert both.labels.tolist() == [2, 0, 1, 1, 0]
    del named[names[2]]
    np.savez(file, **named)
    assert "which has no test part" in refusal(file, split="test")


@pytest.mark.parametrize("labels", [np.array([1, 0, 2]), np.array([[1], [0], [2]])])
def test_unnamed_arrays_and_labels_in_a_column(tmp_path: Path, labels: NDArray[Any]) -> None:
    np.savez(tmp_path / "a.npz", ramp(3, 5), labels)
    data = load_data(tmp_path / "a.npz")
    assert np.array_equal(data.values.numpy(), ramp(3, 5))
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 2]


def test_labels_of_one_number_a_class_are_refused_with_what_makes_them_labels(
    tmp_path: Path,
) -> None:
    labels = np.eye(3, dtype=int)[[1, 0, 2, 2]]
    np.savez(tmp_path / "a.npz", x=ramp(4, 5), y=labels)
    text = refusal(tmp_path / "a.npz")
    assert text.endswith("save labels.argmax(1)")
    np.savez(tmp_path / "a.npz", x=ramp(4, 5), y=labels.argmax(1))
    data = load_data(tmp_path / "a.npz")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 2, 2]


def test_only_the_arrays_that_are_needed_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ramp(2, 3), notes=np.array([{}], object), y=np.array([0, 1]))
    assert load_data(tmp_path / "a.npz").values.tolist() == ramp(2, 3).tolist()


# --- pickles and archives ---------------------------------------------------------------------


def test_the_python_batches_of_cifar_are_named_with_a_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({b"data": b"", b"labels": []}))
    for path in (folder, folder / "data_batch_1"):
        text = refusal(path)
        assert "data_batch_1 must hold numbers alone, got a Python pickle" in text.replace(
            "PATH", "data_batch_1"
        )
        assert "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html" in text
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1]))
    assert "a Python pickle, which can run code and is not read; save its" in refusal(
        tmp_path / "a.pkl"
    )
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(b"cifar"))
    assert "PATH must be unpacked, got an archive; unpack it" in refusal(
        tmp_path / "cifar-10-binary.tar.gz"
    )
