"""Data sets: exact scaling, the shipped digits, and readers checked byte for byte."""

from __future__ import annotations

import gzip
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from PIL import Image

from sde_diffusion import MLP, VPSDE, Dataset, DataSpec, ScoreModel, load, load_data, save_model
from sde_diffusion.data.scaling import Affine, Logit, Scaling

LEVELS = (2, 3, 10, 17, 200, 255, 256, 257, 65536)
SCALINGS = [Affine(), Affine(0, 1), Affine(-300, 12.5), Logit(), Logit(1e-6)]
every_scaling = pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
LAST = math.nextafter(1, 0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp(*shape: int) -> NDArray[np.uint8]:
    """Bytes that differ from neighbour to neighbour on every axis."""
    return (np.arange(math.prod(shape)) * 7 % 251).astype(np.uint8).reshape(shape)


def idx(values: NDArray[np.uint8]) -> bytes:
    """The bytes of an IDX file, from the format's description."""
    head = bytes([0, 0, 8, values.ndim])
    return head + b"".join(struct.pack(">I", n) for n in values.shape) + values.tobytes()


# --- scaling ----------------------------------------------------------------------------------


@given(
    levels=st.sampled_from(LEVELS),
    scaling=st.sampled_from(SCALINGS),
    u=st.floats(0, LAST),
    data=st.data(),
)
def test_decoding_takes_back_what_encoding_did(
    levels: int, scaling: Scaling, u: float, data: st.DataObject
) -> None:
    k = torch.tensor([0, data.draw(st.integers(0, levels - 1)), levels - 1])
    spec = DataSpec("law", (1,), levels, scaling)
    for noise in (u, torch.tensor(u, dtype=torch.float64)):
        x = spec.encode(k, noise)
        assert spec.decode(x).tolist() == k.tolist()
        exact = scaling.forward(k.double() + u, levels)
        assert torch.allclose(x.double(), exact, rtol=0, atol=2 * scaling.rounding)


@every_scaling
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("u", [0.0, 2.0**-30, 0.5, 1 - 2.0**-24, LAST])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_level_survives_the_edges_of_its_bin(
    levels: int, u: float, dtype: torch.dtype, scaling: Scaling
) -> None:
    spec = DataSpec("law", (1,), levels, scaling)
    k = torch.arange(levels).to(spec.storage)  # uint8 must not wrap around in the formula
    noise: Any = torch.tensor(u, dtype=dtype) if dtype == torch.float64 else u
    x = spec.encode(k, noise)
    assert x.dtype == dtype
    assert torch.equal(spec.decode(x), k)


def test_the_scaling_in_numbers_worked_out_by_hand() -> None:
    spec = DataSpec("two bits", (1,), 4)
    k = torch.tensor([0, 1, 2, 3])
    assert spec.encode(k, 0.0).tolist() == [-1.0, -0.5, 0.0, 0.5]
    assert spec.encode(k, 0.5).tolist() == [-0.75, -0.25, 0.25, 0.75]
    x = torch.tensor([-7.0, -1.0, -0.5001, -0.5, 0.49, 0.99, 1.0, 7.0])
    assert spec.decode(x).tolist() == [0, 0, 0, 1, 2, 3, 3, 3]


def test_the_scaling_not_given_is_the_published_formula_bit_for_bit() -> None:
    spec = DataSpec("bytes", (1,), 256)
    k = torch.arange(256).repeat(400)
    u = torch.rand(len(k), generator=seeded())
    u[::7] = 1 - 2.0**-24
    x = (2 * (k.double() + u.double()) / 256 - 1).float()
    over = ((x.double() + 1) * 128).floor().clamp(max=255) != k
    assert bool(over.any())  # rounded into the next bin, and moved back
    expected = torch.where(over, (x.double() - 2.0**-23).float(), x)
    assert torch.equal(spec.encode(k, u), expected)
    assert DataSpec("bytes", (1,), 256, Affine(-1, 1)) == spec


def test_the_offset_is_the_bits_of_the_scaling() -> None:
    # Scaling by 2/L makes densities L/2 times higher: 7 bits for 256 levels.
    assert DataSpec("bytes", (1,), 256).offset_bits == 7.0
    assert DataSpec("digits", (1,), 17).offset_bits == pytest.approx(3.0874628, abs=1e-7)
    assert DataSpec("points", (2,), None).offset_bits == 0.0
    assert DataSpec("bytes", (1,), 256, Affine(0, 255)).offset_bits == pytest.approx(
        math.log2(256 / 255), rel=1e-12
    )
    assert DataSpec("celsius", (1,), None, Affine(32, 212)).offset_bits == -math.log2(180)


@every_scaling
def test_a_uniform_law_of_levels_has_log2_of_their_number_in_bits(scaling: Scaling) -> None:
    """The density 1/256 of y = k + u is that over dx/dy in x: 8 bits, whatever the scaling."""
    spec = DataSpec("bytes", (1, 3, 2), 256, scaling)
    y = 256 * torch.rand(5, 1, 3, 2, generator=seeded(), dtype=torch.float64)
    y.requires_grad_()
    x = scaling.forward(y, 256)
    (slope,) = torch.autograd.grad(x.sum(), y)
    nats = (1 / 256 / slope).log().flatten(1).sum(1)
    bits = -(nats + spec.log_volume(x.detach())) / (6 * math.log(2))
    assert torch.allclose(bits, torch.full((5,), 8.0).double(), rtol=1e-12)
    if isinstance(scaling, Affine):
        by_offset = -nats / (6 * math.log(2)) + spec.offset_bits
        assert torch.allclose(bits, by_offset, rtol=1e-12)


def test_real_data_is_used_as_it_is() -> None:
    spec = DataSpec("points", (2,), None)
    x = torch.tensor([[1.5, -40.0], [0.1, 1e-9]])
    data = Dataset(spec, x, None)
    for same in (spec.encode(x, 0.3), spec.decode(x), data.centred(), data.dequantized(seeded())):
        assert torch.equal(same, x)
    assert torch.equal(data.batch(torch.tensor([1, 0]), seeded()), x[[1, 0]])


def test_real_data_in_units_of_its_own() -> None:
    """Fahrenheit from Celsius: x = 32 + 180 y of y in hundreds of degrees."""
    spec = DataSpec("celsius", (1,), None, Affine(32, 212))
    data = Dataset(spec, torch.tensor([[0.0], [0.37], [1.0]]), None)
    fahrenheit = torch.tensor([[32.0], [98.6], [212.0]])
    index = torch.arange(3)
    for x in (data.centred(), data.dequantized(seeded()), data.batch(index, seeded())):
        assert torch.allclose(x, fahrenheit)
        assert x.dtype == torch.float32
    assert torch.allclose(spec.decode(fahrenheit), data.values)
    assert torch.allclose(spec.log_volume(fahrenheit), torch.full((3,), math.log(180)).double())


@pytest.mark.parametrize(
    ("levels", "scaling"),
    [
        (17, Affine()),
        (None, Affine(0, 1)),
        (17, Affine(0, 1)),
        (None, Affine()),
        (256, Logit(0.1)),
    ],
)
def test_a_specification_survives_json(levels: int | None, scaling: Scaling) -> None:
    spec = DataSpec("digits", (1, 8, 8), levels, scaling)
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    # What earlier versions wrote, and read, has no scaling.
    stated = (levels, scaling) not in [(17, Affine(-1, 1)), (None, Affine(0, 1))]
    assert ("scaling" in spec.to_json()) == stated


def test_a_checkpoint_keeps_the_scaling_and_earlier_ones_have_the_first(tmp_path: Path) -> None:
    spec = DataSpec("points", (2,), 17, Logit(0.01))
    save_model(tmp_path / "m.safetensors", ScoreModel(MLP(2, width=8), VPSDE(), data=spec))
    assert load(tmp_path / "m.safetensors").data == spec
    assert load("digits").data == DataSpec("digits", (1, 8, 8), 17, Affine(-1, 1))


# --- data sets --------------------------------------------------------------------------------


@pytest.fixture
def pixels() -> Dataset:
    values = torch.arange(5000 * 2).reshape(5000, 2) % 17
    return Dataset(DataSpec("pixels", (2,), 17), values.to(torch.uint8), None)


def test_bin_centres(pixels: Dataset) -> None:
    exact = (2 * pixels.values.double() + 1) / 17 - 1
    assert pixels.centred().dtype == torch.float32
    assert torch.equal(pixels.centred(), exact.float())


def test_dequantization_fills_the_bins_evenly(pixels: Dataset) -> None:
    x = pixels.dequantized(seeded())
    assert x.dtype == torch.float32
    assert torch.equal(pixels.spec.decode(x), pixels.values)
    u = (x.double() + 1) * 17 / 2 - pixels.values
    # The Kolmogorov statistic of 10 000 uniform numbers: above .0195 once in a thousand times.
    steps = torch.arange(1, u.numel() + 1) / u.numel()
    assert float((u.flatten().sort().values - steps).abs().max()) < 0.0195


def test_dequantization_depends_on_the_generator_alone(pixels: Dataset) -> None:
    state = torch.random.get_rng_state()
    assert torch.equal(pixels.dequantized(seeded(1)), pixels.dequantized(seeded(1)))
    assert not torch.equal(pixels.dequantized(seeded(1)), pixels.dequantized(seeded(2)))
    rows = torch.tensor([4, 4, 2])
    batch = pixels.batch(rows, seeded(3))
    assert torch.equal(batch, pixels.batch(rows, seeded(3)))
    assert torch.equal(pixels.spec.decode(batch), pixels.values[rows])
    assert not torch.equal(batch[0], batch[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_batches_come_in_the_scaling_of_the_specification(pixels: Dataset) -> None:
    data = Dataset(DataSpec("pixels", (2,), 17, Logit(0.02)), pixels.values, None)
    rows = torch.tensor([4, 0, 2])
    u = torch.rand((3, 2), generator=seeded(5))
    p = 0.02 + 0.96 * (data.values[rows] + u.double()) / 17
    assert torch.allclose(data.batch(rows, seeded(5)).double(), torch.logit(p), atol=1e-6)
    for x in (data.dequantized(seeded()), data.centred()):
        assert x.dtype == torch.float32
        assert torch.equal(data.spec.decode(x), data.values)


# --- digits -----------------------------------------------------------------------------------


def digits(split: str) -> tuple[Dataset, torch.Tensor]:
    data = load_data("digits", split)
    assert data.labels is not None
    return data, data.labels


def test_digits_are_what_the_repository_describes() -> None:
    data, labels = digits("all")
    assert len(data) == 1797
    assert data.spec == DataSpec("digits", (1, 8, 8), 17)
    assert torch.unique(data.values).tolist() == list(range(17))
    # Class sizes of the 13 writers of optdigits.tes, from the repository's optdigits.names.
    sizes = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert labels.bincount().tolist() == sizes


def test_the_splits_of_the_digits_share_no_image_and_miss_none() -> None:
    train, test, both = (
        {row.numpy().tobytes() for row in digits(split)[0].values}
        for split in ("train", "test", "all")
    )
    assert (len(train), len(test)) == (1437, 360)
    assert not train & test
    assert train | test == both


def test_the_digits_are_those_of_scikit_learn_in_the_stated_order() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    original = datasets.load_digits()
    # The rule of assets/README.md: of the rows sorted by label, every fifth is a test row.
    by_label = np.argsort(original.target, kind="stable")
    test = np.zeros(1797, bool)
    test[by_label[::5]] = True
    for split, rows in (("train", ~test), ("test", test)):
        data, labels = digits(split)
        assert np.array_equal(data.values[:, 0].numpy(), original.images[rows])
        assert np.array_equal(labels.numpy(), original.target[rows])


def test_the_first_rows_of_the_digits_hold_all_classes() -> None:
    for split in ("train", "test"):
        data = load_data("digits", split, limit=60)
        assert len(data) == 60
        assert data.labels is not None
        assert torch.unique(data.labels).tolist() == list(range(10))


# --- MNIST ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "mean", "places", "counts"),
    [
        (
            "train",
            0.1306604762738429,
            15,
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        ),
        ("test", 0.13251461, 8, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_mnist_bit_for_bit(
    mnist: Path, split: str, mean: float, places: int, counts: list[int]
) -> None:
    data = load_data(mnist, split)
    assert data.spec == DataSpec("mnist", (1, 28, 28), 256)
    assert len(data) == sum(counts)
    total = int(data.values.sum(dtype=torch.int64))
    assert total / data.values.numel() / 255 == pytest.approx(mean, rel=0, abs=10.0**-places)
    assert data.labels is not None
    assert data.labels.bincount().tolist() == counts


# --- readers ----------------------------------------------------------------------------------


def is_exactly(data: Dataset, values: NDArray[Any], labels: list[int] | None = None) -> bool:
    """Whether a data set holds these values in this layout, and these labels."""
    kept = None if data.labels is None else data.labels.tolist()
    return (
        data.spec.shape == values.shape[1:]
        and np.array_equal(data.values.numpy(), values)
        and data.values.is_contiguous()
        and kept == labels
    )


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    values = ramp(5, 4, 3)
    file = tmp_path / "letters.idx.gz"  # unpacked by content, not by name
    file.write_bytes(pack(idx(values)))
    data = load_data(file)
    assert data.spec == DataSpec("letters", (1, 4, 3), 256)
    assert is_exactly(data, values[:, None])
    assert is_exactly(load_data(str(file), "all", limit=2), values[:2, None])


@pytest.mark.parametrize("name", ["{}-{}-ubyte", "{}-{}-ubyte.gz", "{}.{}-ubyte"])
def test_a_folder_of_mnist_files(tmp_path: Path, name: str) -> None:
    parts = {"train": ramp(5, 4, 3), "t10k": ramp(2, 4, 3) + 1}
    for part, values in parts.items():
        for kind, array in (("images", values), ("labels", np.arange(len(values), dtype="u1"))):
            content = idx(array)
            file = tmp_path / name.format(f"{part}-{kind}", f"idx{array.ndim}")
            file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    train, test = (values[:, None] for values in parts.values())
    assert is_exactly(load_data(tmp_path, "train"), train, [0, 1, 2, 3, 4])
    assert is_exactly(load_data(tmp_path, "test"), test, [0, 1])
    both = np.concatenate([train, test])
    assert is_exactly(load_data(tmp_path, "all", limit=6), both[:6], [0, 1, 2, 3, 4, 0])
    images = tmp_path / name.format("t10k-images", "idx3")
    assert is_exactly(load_data(images), test, [0, 1])


def test_a_file_packed_and_unpacked_side_by_side_is_read_once(tmp_path: Path) -> None:
    values = ramp(3, 2, 2)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(values))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(values)))
    assert is_exactly(load_data(tmp_path), values[:, None])


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (ramp(4, 6), ramp(4, 6)),
        (ramp(4, 6, 5), ramp(4, 6, 5)[:, None]),
        (ramp(4, 2, 6, 5), ramp(4, 2, 6, 5)),
        (ramp(4, 6, 5, 3), ramp(4, 6, 5, 3).transpose(0, 3, 1, 2)),
        (ramp(4, 3, 6, 3), ramp(4, 3, 6, 3)),
        (ramp(4, 6, 5).astype(">i8"), ramp(4, 6, 5)[:, None]),
        (ramp(4, 6).astype("f8") / 3, (ramp(4, 6) / 3).astype("f4")),
        (ramp(4, 6, 5, 3).astype("f2"), ramp(4, 6, 5, 3).transpose(0, 3, 1, 2).astype("f4")),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}".replace(" ", ""),
)
def test_a_npy_file(tmp_path: Path, stored: NDArray[Any], read: NDArray[Any]) -> None:
    np.save(tmp_path / "a.npy", stored)
    data = load_data(tmp_path / "a.npy")
    assert is_exactly(data, read)
    assert data.spec.levels == (None if stored.dtype.kind == "f" else 256)


@pytest.mark.parametrize(
    "names", [{"images": 0, "labels": 1}, {"x": 0, "y": 1}, {"anything": 0}, {"faces": 0, "y": 1}]
)
def test_a_npz_file(tmp_path: Path, names: dict[str, int]) -> None:
    arrays = (ramp(3, 2, 2), np.array([5, 0, 2], dtype="i8"))
    named: dict[str, Any] = {name: arrays[i] for name, i in names.items()}
    np.savez(tmp_path / "a.npz", **named)
    labels = [5, 0, 2] if len(names) == 2 else None
    assert is_exactly(load_data(tmp_path / "a.npz"), arrays[0][:, None], labels)


@pytest.mark.parametrize(("levels", "dtype"), [(251, torch.uint8), (60_000, torch.int32)])
def test_levels_can_be_stated(tmp_path: Path, levels: int, dtype: torch.dtype) -> None:
    values = ramp(4, 6).astype("u2") * (200 if levels > 256 else 1)
    np.save(tmp_path / "a.npy", values)
    data = load_data(tmp_path / "a.npy", levels=levels)
    assert data.spec.levels == levels
    assert data.values.dtype == dtype
    assert data.values.tolist() == values.tolist()
    assert torch.equal(data.spec.decode(data.dequantized(seeded())), data.values)


def test_cifar_batches(tmp_path: Path) -> None:
    parts = {"data_batch_1": 3, "data_batch_2": 2, "test_batch": 1}
    pictures = {name: ramp(n, 3, 32, 32) + i for i, (name, n) in enumerate(parts.items())}
    for name, values in pictures.items():
        records = [bytes([9 - i]) + row.tobytes() for i, row in enumerate(values)]
        (tmp_path / f"{name}.bin").write_bytes(b"".join(records))
    (tmp_path / "readme.html").write_text("not data")
    train = np.concatenate([pictures["data_batch_1"], pictures["data_batch_2"]])
    assert is_exactly(load_data(tmp_path, "train"), train, [9, 8, 7, 9, 8])
    assert is_exactly(load_data(tmp_path, "test"), pictures["test_batch"], [9])
    file = tmp_path / "data_batch_2.bin"
    data = load_data(file)
    assert is_exactly(data, pictures["data_batch_2"], [9, 8])
    assert data.spec == DataSpec("data_batch_2", (3, 32, 32), 256)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_folder_of_images(tmp_path: Path, channels: int) -> None:
    values = ramp(3, channels, 5, 4)
    for name, row in zip(("c.PNG", "a.png", "b.bmp"), values, strict=True):
        pixels = row[0] if channels == 1 else row.transpose(1, 2, 0)
        # Bitmaps lose the alpha channel, so those with one are written as .webp.
        file = tmp_path / (name if channels < 4 else name.replace("bmp", "webp"))
        # Both settings are of .webp, whose default changes the pixels.
        Image.fromarray(pixels).save(file, lossless=True, exact=True)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_bytes(b"left by an archive")
    assert is_exactly(load_data(tmp_path), values[[1, 2, 0]])
    assert is_exactly(load_data(tmp_path, limit=1), values[[1]])


def test_a_folder_of_images_with_parts(tmp_path: Path) -> None:
    values = ramp(2, 1, 5, 4)
    for part, row in zip(("train", "test"), values, strict=True):
        (tmp_path / part).mkdir()
        Image.fromarray(row[0]).save(tmp_path / part / "a.png")
    assert is_exactly(load_data(tmp_path, "train"), values[:1])
    assert is_exactly(load_data(tmp_path, "test"), values[1:])
    assert is_exactly(load_data(tmp_path, "all"), values)


# --- refusals ---------------------------------------------------------------------------------


def refusal(source: object, *, split: str = "all", **options: Any) -> str:
    """The text with which `load_data` refuses, after the path."""
    with pytest.raises(ValueError, match=r"^load_data: .* must .*, got .*; ") as caught:
        load_data(source, split, **options)  # type: ignore[arg-type]
    return str(caught.value).replace(str(source), "PATH")


@pytest.mark.parametrize("source", ["mnst", "no/such/file.npy"])
def test_what_is_not_there_is_answered_with_what_is_accepted(source: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_data(source)
    assert str(caught.value) == (
        "load_data: source must be 'digits', an IDX image file (.gz or not), a .npy or .npz file, "
        "a CIFAR-10 .bin file, a .wav file, or a folder of MNIST files, CIFAR-10 batches, sounds, "
        f"pictures or classes of pictures, got {source!r}; check the spelling"
    )


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1,2")
    assert "source must be 'digits', an IDX" in refusal(tmp_path / "a.txt")


def test_an_unknown_split() -> None:
    assert refusal("digits", split="valid") == (
        "load_data: split must be train, test or all, got valid; pass split='train'"
    )


def test_a_file_has_no_test_part(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(2, 3))
    assert "split must be train or all for PATH, which has no test part, got test" in refusal(
        tmp_path / "a.npy", split="test"
    )
    Image.fromarray(ramp(2, 3)).save(tmp_path / "a.png")
    assert "which has no test part" in refusal(tmp_path, split="test")


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one(limit: int) -> None:
    assert f"limit must be at least 1, got {limit}" in refusal("digits", limit=limit)


WHOLE = idx(ramp(5, 4, 3))
NUMBERS: dict[str, tuple[bytes, str]] = {
    "labels.idx": (
        idx(ramp(5)),
        "PATH must start with the IDX magic number 0x00000803 of images, got 0x00000801; "
        "pass the file of images",
    ),
    "empty.idx": (b"", "magic number 0x00000803 of images, got 0x;"),
    "head.idx": (WHOLE[:9], "PATH must be 16 bytes long by its header, got 9 bytes;"),
    "cut.idx": (WHOLE[:-1], "PATH must be 76 bytes long by its header, got 75 bytes;"),
    "long.idx": (
        WHOLE + b"!",
        "PATH must be 76 bytes long by its header, got more than 76 bytes;",
    ),
    "none.idx": (idx(ramp(0, 4, 3)), "PATH must hold at least one sample"),
    "cut.gz": (gzip.compress(WHOLE)[:-9], "PATH must be a whole gzip file, got Compressed file"),
    "bad.gz": (gzip.compress(WHOLE)[:-8] + bytes(8), "PATH must be a whole gzip file, got CRC"),
    "cut.bin": (bytes(3072), "PATH must hold whole CIFAR-10 records of 3073 bytes, got 3072"),
    "bad.bin": (
        b"\x0a" + bytes(3072),
        "PATH must start each CIFAR-10 record with a label from 0 to 9, got 10;",
    ),
    "empty.bin": (b"", "PATH must hold at least one sample"),
    "cut.wav": (b"RIFF", "PATH must be a whole WAV file of 16-bit PCM or floats, got"),
    "empty.wav": (b"", "PATH must be a whole WAV file of 16-bit PCM or floats, got"),
    "empty.npy": (b"", "PATH must be a whole .npy or .npz file of numbers"),
    "text.npy": (b"1 2 3 4 5 6 7 8", "PATH must be a whole .npy or .npz file of numbers"),
    # Damage in the header is read as Python source by numpy, which raises whatever that gives.
    "head.npy": (b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((((", "PATH must be a whole .npy"),
    "cut.npz": (b"PK\x03\x04" + bytes(40), "PATH must be a whole .npy or .npz file of numbers"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_damaged_file(tmp_path: Path, name: str) -> None:
    content, text = NUMBERS[name]
    (tmp_path / name).write_bytes(content)
    assert text in refusal(tmp_path / name)


@pytest.mark.parametrize("bytes_missing", [1, 40, 150])
def test_an_array_cut_short(tmp_path: Path, bytes_missing: int) -> None:
    for file in (tmp_path / "a.npy", tmp_path / "a.npz"):
        (np.save if file.suffix == ".npy" else np.savez_compressed)(file, ramp(8, 25))
        file.write_bytes(file.read_bytes()[:-bytes_missing])
        assert "PATH must be a whole .npy or .npz file of numbers" in refusal(file)


ARRAYS: dict[str, tuple[Any, str]] = {
    "complex": (np.ones((2, 3), "c16"), "PATH must hold integers or floats, got dtype complex128"),
    "text": (np.array([["a", "b"]]), "PATH must hold integers or floats, got dtype <U1"),
    "booleans": (np.ones((2, 3), bool), "PATH must hold integers or floats, got dtype bool"),
    "objects": (
        np.array([[{}, 1]], object),
        "PATH must hold integers or floats, got dtype object",
    ),
    "no rows": (np.ones((0, 3)), "PATH must hold at least one sample, got shape (0, 3)"),
    "no columns": (np.ones((3, 0)), "PATH must hold at least one sample, got shape (3, 0)"),
    "single numbers": (
        np.ones(3),
        "PATH must hold an array (N, …) of at least two axes, got (3,); save array.reshape(N, -1)",
    ),
    "nan": (
        np.array([[1, np.nan]]),
        "PATH must hold finite numbers, in float32's range, got 1 of 2 that are not, the first "
        "nan at [0, 1]; remove their rows: "
        "array[np.isfinite(array).reshape(len(array), -1).all(1)]",
    ),
    "infinite": (np.array([[1, -np.inf]]), "got 1 of 2 that are not, the first -inf at [0, 1]"),
    "beyond float32": (
        np.array([[1, 1e300]]),
        "the first 1e+300 at [0, 1]; divide all by a constant",
    ),
    "negative": (np.array([[3, -1]]), "PATH must hold integers from 0 to 255, got -1 … 3"),
    "300 levels": (
        np.array([[0, 299]]),
        "PATH must hold integers from 0 to 255, got 0 … 299; pass levels=300",
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_something_else(tmp_path: Path, name: str) -> None:
    array, text = ARRAYS[name]
    np.save(tmp_path / "a.npy", array)
    assert text in refusal(tmp_path / "a.npy")


def test_values_above_the_stated_levels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 15], [16, 17]]))
    text = refusal(tmp_path / "a.npy", levels=17)
    assert "PATH must hold integers from 0 to 16, got 0 … 17; pass levels=18" in text


def test_levels_of_floats(tmp_path: Path) -> None:
    """Whole numbers are integers, whatever their dtype."""
    values = ramp(4, 6).astype("f8")
    np.save(tmp_path / "a.npy", values)
    assert is_exactly(load_data(tmp_path / "a.npy", levels=256), ramp(4, 6))
    assert load_data(tmp_path / "a.npy", levels=256).spec.levels == 256
    assert "from 0 to 16, got 0.0 … " in refusal(tmp_path / "a.npy", levels=17)
    values[1, 2] += 0.25
    np.save(tmp_path / "a.npy", values)
    text = (
        "PATH must hold whole numbers for 256 levels, got 56.25; leave out levels (--levels) for"
    )
    assert text in refusal(tmp_path / "a.npy", levels=256)


def test_a_npz_file_with_the_wrong_arrays(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, faces=ramp(2, 3), places=ramp(2, 3))
    assert "named images, x or x_train, or one array only, got ['faces', 'places']" in refusal(
        file
    )
    for labels in (np.arange(3), np.ones(2), np.ones((2, 2), int)):
        np.savez(file, x=ramp(2, 3), y=labels)
        assert "PATH must hold one integer label for each of 2 rows" in refusal(file, limit=1)


def test_labels_of_another_length_beside_the_images(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(ramp(5, 4, 3)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(ramp(4)))
    assert "one integer label for each of 5 rows" in refusal(tmp_path, split="train")


def test_a_folder_without_the_files_of_a_split(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(ramp(5, 4, 3)))
    for split in ("test", "all"):
        with pytest.raises(FileNotFoundError, match="must hold the test files, got none that"):
            load_data(tmp_path, split)


def test_a_folder_without_data(tmp_path: Path) -> None:
    text = (
        "PATH must hold MNIST files, CIFAR-10 batches or "
        ".png/.jpg/.jpeg/.bmp/.webp/.tif/.tiff/.gif, got none"
    )
    assert text in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("not data")
    assert text in refusal(tmp_path)
    (tmp_path / "train").mkdir()
    assert "PATH/test must hold MNIST files" in refusal(tmp_path, split="test")


def test_images_of_two_sizes(tmp_path: Path) -> None:
    Image.fromarray(ramp(4, 5)).save(tmp_path / "a.png")
    Image.fromarray(ramp(5, 4)).save(tmp_path / "b.png")
    assert refusal(tmp_path) == (
        "load_data: PATH/b.png must have the size 5 × 4 of a.png, got 4 × 5; "
        "pass --size 4 (size=4 in Python) to resize and crop all of them"
    )


def test_images_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(ramp(40, 50)).save(file)
    file.write_bytes(file.read_bytes()[:60])
    assert "PATH/a.png must be a whole image, got" in refusal(tmp_path)
    file.write_bytes(b"GIF89")
    assert "PATH/a.png must be a whole image, got none of PNG, JPEG, BMP" in refusal(tmp_path)


SPEC = DataSpec("pixels", (1,), 4)
CALLS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: DataSpec(3, (1,), 4), TypeError, "DataSpec: name must be a string, got 3"),  # type: ignore[arg-type]
    (lambda: DataSpec("a", (), 4), ValueError, "DataSpec: shape must be a tuple of positive"),
    (lambda: DataSpec("a", (0,), 4), ValueError, "DataSpec: shape must be a tuple of positive"),
    (lambda: DataSpec("a", (1,), 1), ValueError, "DataSpec: levels must be None or an integer"),
    (lambda: DataSpec("a", (1,), True), ValueError, "DataSpec: levels must be None or an integer"),
    (lambda: DataSpec("a", (1,), 2**17), ValueError, "integer from 2 to 65536, got 131072"),
    (
        lambda: DataSpec("a", (1,), 4, (-1, 1)),
        TypeError,  # type: ignore[arg-type]
        "DataSpec: scaling must be a Scaling, got (-1, 1); pass for example Affine(-1, 1)",
    ),
    (
        lambda: DataSpec("a", (1,), None, Logit()),
        ValueError,
        "scaling must be affine for real data, got Logit(margin=0.05); pass levels, or for",
    ),
    (
        lambda: DataSpec("a", (1,), 65536, Affine(1000, 1001)),
        ValueError,
        "scaling must have bins that float32 can tell apart for 65536 levels, got Affine(low=1000",
    ),
    (
        lambda: DataSpec("a", (1,), 4, Logit()).offset_bits,
        ValueError,
        "DataSpec.offset_bits: scaling must be affine, got Logit(margin=0.05); use log_volume(x)",
    ),
    (
        lambda: DataSpec.from_json({"name": "a", "scaling": None}),
        ValueError,
        "hold name, shape and levels",
    ),
    (lambda: DataSpec.from_json({"name": "a"}), ValueError, "hold name, shape and levels"),
    (lambda: SPEC.encode(torch.tensor([4]), 0.5), ValueError, "k must hold integers from 0 to 3"),
    (lambda: SPEC.encode(torch.tensor([-1]), 0.5), ValueError, "got -1 … -1; shift them to 0"),
    (lambda: SPEC.encode(torch.tensor([0.2]), 0.5), TypeError, "k must be an integer tensor"),
    (lambda: SPEC.encode(torch.tensor([0]), 1.0), ValueError, r"u must be in [0, 1), got 1.0"),
    (lambda: SPEC.encode(torch.tensor([0]), -0.1), ValueError, r"u must be in [0, 1), got -0.1"),
    (lambda: SPEC.encode(torch.tensor([0]), math.nan), ValueError, r"in [0, 1), got nan"),
    (lambda: SPEC.decode(torch.tensor([math.nan])), ValueError, "x must be numbers, got nan"),
    (
        lambda: Dataset(SPEC, torch.zeros(2, 3).byte(), None),
        ValueError,
        "Dataset: values of 'pixels' must have shape (N, 1), got (2, 3)",
    ),
    (
        lambda: Dataset(SPEC, torch.zeros(2, 1), None),
        ValueError,
        "values of 'pixels' must be integers for 4 levels, got torch.float32; pass values.to",
    ),
    (lambda: Dataset(SPEC, torch.tensor([[4]]), None), ValueError, "hold integers from 0 to 3"),
    (
        lambda: Dataset(SPEC, torch.tensor([[1]]), torch.tensor([0, 1])),
        ValueError,
        "labels of 'pixels' must be 1 integers, got torch.int64 of shape (2,)",
    ),
    (
        lambda: Dataset(SPEC, torch.tensor([[1]]), torch.tensor([-1])),
        ValueError,
        "labels of 'pixels' must be 0 or more, got -1; number the classes from 0",
    ),
    (
        lambda: Dataset(DataSpec("p", (1,), None), torch.tensor([[math.nan]]), None),
        ValueError,
        "values of 'p' must hold finite numbers, in float32's range, got 1 of 1 that are not",
    ),
    (
        lambda: Dataset(DataSpec("p", (1,), None), torch.ones(1, 1).double(), None),
        ValueError,
        "values of 'p' must be float32, got torch.float64",
    ),
    (
        lambda: Dataset(SPEC, torch.tensor([[1]]), None).dequantized(0),  # type: ignore[arg-type]
        TypeError,
        "generator must be a torch.Generator, got 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), CALLS, ids=[text for *_, text in CALLS])
def test_a_wrong_argument(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
