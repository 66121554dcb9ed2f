"""Damaged and hostile files are refused by name, with what to do, before anything is made."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    ScoreModel,
    TrainingConfig,
    describe,
    load,
    load_data,
    reconstruct_average,
    save_model,
    train,
)
from sde_diffusion._check import Reason, wrong_value
from sde_diffusion._files import json_object
from sde_diffusion.cli import _likelihood_job, _train_file, menu
from sde_diffusion.cli.train import command as train_command
from sde_diffusion.training.folder import _read_state
from sde_diffusion.training.trainer import Trainer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="memory has no limit to set there")


@pytest.fixture(scope="module")
def fuzz(root: Path) -> Iterator[ModuleType]:
    """The script tests/fuzz.py, which holds a table of all formats."""
    sys.path.insert(0, str(root / "tests"))
    yield importlib.import_module("fuzz")
    sys.path.remove(str(root / "tests"))


@pytest.fixture
def mutations(fuzz: ModuleType) -> ModuleType:  # noqa: ARG001  (which finds it)
    """The module tests/mutations.py, which damages files."""
    return importlib.import_module("mutations")


def names_of(fuzz: ModuleType) -> list[str]:
    needed = {"sdz": "constriction", "diffusers": "diffusers", "diffusers weights": "diffusers"}
    missing = {name for name, by in needed.items() if importlib.util.find_spec(by) is None}
    return [name for name in fuzz.FORMATS if name not in missing]


def test_hostile_files_are_read_or_refused(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in names_of(fuzz):
        (tmp_path / name).mkdir()
        found = fuzz.tried(name, 12, tmp_path / name)
        assert found["tried"] == 12
        assert [how for how in found if fuzz.WRONG in how] == []


@pytest.mark.slow
def test_more_hostile_files_are_read_or_refused(root: Path, fuzz: ModuleType) -> None:
    """Of each format as many as SDE_DIFFUSION_FUZZ says, for example 100000."""
    number = os.environ.get("SDE_DIFFUSION_FUZZ", "100")
    program = [sys.executable, str(root / "tests" / "fuzz.py"), number, *names_of(fuzz)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        ((name, found),) = json.loads(line).items()
        assert found["tried"] == int(number)
        # It would find nothing where all are read, or none.
        assert 0 < found.get("read", 0) < int(number), name


# --- pictures ---


@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1])
def test_the_length_of_a_chunk_asks_for_no_memory(
    fuzz: ModuleType, tmp_path: Path, length: int
) -> None:
    """All pixels are there, and a header that promises gigabytes after them is not believed."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    path = tmp_path / "1.png"
    whole = path.read_bytes()
    place = whole.index(b"IDAT")
    path.write_bytes(whole[: place - 4] + struct.pack(">I", length) + whole[place:])
    with fuzz.a_gigabyte_more():
        found = load_data(tmp_path, "all")
    assert np.array_equal(found.values.numpy(), pixels[:, None])


@pytest.mark.parametrize("content", [b"", b"no picture at all"])
def test_what_is_no_picture_says_which_are_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    known = "got none of PNG, JPEG, BMP, WEBP, TIFF, GIF; save it again as .png"
    with pytest.raises(ValueError, match=f"a.png must be a whole image, {known}"):
        load_data(tmp_path, "all")


# --- checkpoints ---


def checkpoint(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Return a checkpoint with another configuration."""
    path = folder / "m.safetensors"
    data = DataSpec("points", (2,), 17)
    save_model(path, ScoreModel(MLP(2, width=8), VPSDE(), data=data))
    configuration = describe(path)
    change(configuration)
    save_file(load_file(path), path, metadata={"sde_diffusion": json.dumps(configuration)})
    return path


def config(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda found: found["network"]["config"].update(values)


def beta(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda found: found["sde"]["beta"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (config(width=2**31), r"network\.config\.width must lie in 0 … 838, got 2147483648"),
        (config(depth=200), r"network\.config must have no more layers than 27 tensors can make"),
        (config(width=0), "width must be at least 1, got 0"),
        (config(width=True), r"network\.config\.width must be an integer, got True"),
        (
            config(width=16),
            r"condition\.inner\.bias of .* match the network's \(16,\), got \(8,\)",
        ),
        (config(seed=2**70), r"network\.config\.seed must lie in 0 … 9223372036854775807"),
        (config(time_scale=[1.0]), r"network\.config\.time_scale must be a number"),
        (config(command="true"), r"an argument of network\.config must be one of dimension"),
        (beta(low=[0.1, 0.2]), r"sde\.beta\.low must be a number"),
        (beta(high=1e300), r"sde\.beta\.high must be within ±1e\+30"),
        (lambda c: c.update(sigma_data=float("nan")), "sigma_data must be within"),
        (
            lambda c: c["data"].update(shape=[2**31, 2**31]),
            r"data\.shape must lie in 0 … 16777216",
        ),
        (
            lambda c: c["data"].update(shape=[4096, 8192]),
            r"data\.shape must have at most 16777216",
        ),
        (
            lambda c: c["data"].update(scaling={"class": "Affine", "low": 0, "high": 10**400}),
            r"data\.scaling\.high must be within",
        ),
        (lambda c: c.pop("data"), "data must be there, got nothing"),
    ],
)
def test_a_configuration_is_checked_before_anything_is_built(
    fuzz: ModuleType, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = checkpoint(tmp_path, change)
    for read in (load,) if re.search("the network|at least", message) else (load, describe):
        with (
            fuzz.a_gigabyte_more(),
            pytest.raises(ValueError, match=message) as caught,
        ):
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("depth", [70, 990, 100_000])
def test_json_that_is_nested_deeply_is_no_configuration(tmp_path: Path, depth: int) -> None:
    path = checkpoint(tmp_path, lambda _: None)
    nested = "[" * depth + "]" * depth
    text = json.dumps(describe(path) | {"x": 1}).replace('"x": 1', f'"x": {nested}')
    save_file(load_file(path), path, metadata={"sde_diffusion": text})
    with pytest.raises(ValueError, match="must carry the configuration that save_model writes"):
        describe(path)
    with pytest.raises(ValueError, match="nested too deeply"):
        json_object(text)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = checkpoint(tmp_path, lambda _: None)
    text = {"sde_diffusion": json.dumps(describe(path))}
    save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path, metadata=text)
    with pytest.raises(ValueError, match=rf"match the network's \(8,\), got \(8,\) of {dtype}"):
        load(path)


def test_a_message_shows_eighty_printable_characters_of_a_value() -> None:
    for got in ("x" * 5000, ["y"] * 5000, 10**5000):
        text = str(wrong_value("f", "a", "be short", got, "cut it"))
        shown = text.removeprefix("f: a must be short, got ").removesuffix("; cut it")
        assert len(shown) <= 80
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert "got a list too large to show;" in str(wrong_value("f", "a", "be flat", nested, "cut"))
    text = str(wrong_value("f", "a\x1b[2J", "be plain\n", "\u202e\ud800b\x07", "do"))
    assert text == r"f: a\x1b[2J must be plain\n, got \u202e\ud800b\x07; do"
    # The message of another error is no value, and its lines become one.
    reason = Reason("first\nsecond " + "w" * 100)
    assert "got first second " + "w" * 100 in str(wrong_value("f", "a", "be", reason, "do"))


# --- the files of a run ---


def points() -> Dataset:
    values = torch.linspace(-1, 1, 16).reshape(8, 2)
    return Dataset(DataSpec("points", (2,), None), values, None)


CONFIG = TrainingConfig(steps=3, batch_size=4, log_every=1)


def run(out: Path, *, resume: bool) -> None:
    for _ in train(ScoreModel(MLP(2, width=8), VPSDE()), points(), CONFIG, out=out, resume=resume):
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(out, resume=False)
    return out


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


@pytest.mark.parametrize("version", ["0.1", "now"])
def test_no_damage_of_a_state_goes_unnoticed(
    fuzz: ModuleType, root: Path, whole: Path, tmp_path: Path, version: str
) -> None:
    """Whatever is read in spite of a damage is what was written."""
    source = whole if version == "now" else root / "tests" / "files_of_0_1" / "run"
    content = (source / "state.pt").read_bytes()
    good = _read_state(source / "state.pt")
    path = tmp_path / "state.pt"
    chance = random.Random(0)
    refused = 0
    for _ in range(250):
        path.write_bytes(fuzz.mutations.damaged(content, chance))
        try:
            found = _read_state(path)
        except ValueError as error:
            refused += 1
            message = str(error)
            assert message.startswith(f"train: {path} must be the state of a run, got ")
            assert message.endswith("; load its model, and train that in another folder")
        else:
            assert same(found, good)
    assert refused > 200


def test_a_state_with_another_number_than_its_checksum_has_is_refused(
    whole: Path, tmp_path: Path
) -> None:
    state = torch.load(whole / "state.pt", weights_only=True)
    state["step"] = 2
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="its checksum is another"):
        _read_state(tmp_path / "state.pt")
    del state["checksum"]  # as version 0.1 wrote it
    torch.save(state, tmp_path / "state.pt")
    assert _read_state(tmp_path / "state.pt")[0]["step"] == 2


def test_no_damage_of_a_checkpoint_goes_unnoticed(
    mutations: ModuleType, whole: Path, tmp_path: Path
) -> None:
    """Whatever is loaded in spite of a damage is what was saved."""
    content = (whole / "model.safetensors").read_bytes()
    good = load(whole)
    path = tmp_path / "m.safetensors"
    chance = random.Random(0)
    refused = 0
    for _ in range(250):
        path.write_bytes(mutations.damaged(content, chance))
        try:
            found = load(path)
        except ValueError as error:
            refused += 1
            message = str(error)
            assert f"{path} must " in message
        else:
            assert describe(path) == describe(whole)
            assert same(found.state_dict(), good.state_dict())
    assert refused > 200


@pytest.mark.parametrize(
    "change",
    [
        lambda moments: moments.pop("exp_avg_sq"),
        lambda moments: moments.update(exp_avg=torch.zeros(2, 2)),
        lambda moments: moments.update(step=3),
    ],
)
def test_moments_that_are_not_the_optimizers_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    shutil.copytree(Path(__file__).parent / "files_of_0_1" / "run", tmp_path / "run")
    path = tmp_path / "run" / "state.pt"
    state = torch.load(path, weights_only=True)
    state.pop("checksum", None)
    change(state["optimizer"]["state"][0])
    torch.save(state, path)
    model = load(tmp_path / "run")
    data = Dataset(DataSpec("points", (2,), None), torch.zeros(8, 2), None)
    with pytest.raises(ValueError, match="must fit the weights of the run that is resumed"):
        Trainer(model, data, TrainingConfig()).restore(state)


@pytest.mark.parametrize(("key", "value"), [("step", 2**1100), ("width", 1e-300)])
def test_an_average_of_no_length_or_of_all_times_is_refused(
    tmp_path: Path, key: str, value: float
) -> None:
    shutil.copytree(Path(__file__).parent / "files_of_0_1" / "run", tmp_path / "run")
    path = min((tmp_path / "run" / "snapshots").iterdir())
    configuration = describe(path) | {key: value}
    save_file(load_file(path), path, metadata={"sde_diffusion": json.dumps(configuration)})
    with pytest.raises(ValueError, match=f"{key}.* must be at (most|least)"):
        reconstruct_average(tmp_path / "run", 0.15)


def test_a_checksum_of_any_size_is_told_in_a_short_line(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, ScoreModel(MLP(2, width=8), VPSDE()))
    configuration = describe(path) | {"checksums": {"configuration": [7] * 1000}}
    save_file(load_file(path), path, metadata={"sde_diffusion": json.dumps(configuration)})
    with pytest.raises(ValueError, match=r"must have the checksum \[7, 7") as told:
        load(path)
    assert len(str(told.value)) < 500


def test_another_weight_or_setting_than_the_checksums_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, ScoreModel(MLP(2, width=8), VPSDE()))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit of the last weight
    network = MLP(2, width=8, seed=5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"the weights of .* must have the checksum .*; copy or"):
        load(path, network=network)
    assert same(network.state_dict(), before)
    path.write_bytes(whole.replace(b'high\\": 20.0', b'high\\": 21.0'))
    for reader in (describe, load):
        with pytest.raises(ValueError, match=r"the configuration of .* must have the checksum"):
            reader(path)
    path.write_bytes(whole)
    save_file(load_file(path), path, metadata={"sde_diffusion": json.dumps(describe(path))})
    load(path)  # without checksums, as version 0.1 wrote it


def delete_line(path: Path, message: str) -> None:
    number = re.search(r"line (\d+) of", message)
    assert number is not None
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[int(number[1]) - 1]
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("name", "old", "new", "message", "mend"),
    [
        ("metrics.jsonl", b'"step": 2', b'"step": ?', "delete the line, or the file", delete_line),
        ("metrics.jsonl", b'"step": 2', b'"stop": 2', "delete the line, or the file", delete_line),
        ("metrics.jsonl", b'"step": 2', b"\xff\xfe\x00", "delete the line", delete_line),
        ("manifest.json", b'"sessions"', b'"sess\x00ons"', "delete it, and resume", None),
        ("manifest.json", b"[", b"{", "delete it, and resume", None),
    ],
)
def test_a_damaged_record_is_named_and_the_remedy_works(
    whole: Path,
    tmp_path: Path,
    name: str,
    old: bytes,
    new: bytes,
    message: str,
    mend: Callable[[Path, str], None] | None,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    path = out / name
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        run(out, resume=True)
    assert message in str(caught.value)
    assert path.read_bytes() == before
    if mend is None:
        path.unlink()
    else:
        mend(path, str(caught.value))
    run(out, resume=True)


# --- what is typed, and settings ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "learning-rate = " + 400 * "9",
            "hold a value that --learning-rate takes, got .* too lar",
        ),
        ("ema-half-lives = [" + 400 * "9" + "]", "hold a value that --ema-half-lives takes, got "),
        ("steps = " + 5000 * "[", "be a TOML file, got "),
    ],
)
def test_settings_that_no_number_holds_are_refused_by_the_file(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        _train_file.read(path, train_command)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("words", [5000 * "-" + "1", 5000 * "{", 5000 * "(", 5000 * "\x1b"])
def test_a_solver_of_any_words_is_refused_in_a_short_line(words: str) -> None:
    with pytest.raises(ValueError, match="write --solver unipc:p=3") as caught:
        menu.solver(f"unipc:{words}")
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="must be a name of `sde-diffusion solvers`") as caught:
        menu.solver(words)
    assert len(str(caught.value)) < 300


def test_a_number_has_nothing_to_name_in_it() -> None:
    with pytest.raises(ValueError, match=r"math:pi\.x must name something in math, got no 'x'"):
        menu.solver("math:pi.x")


def test_a_message_shows_a_long_name_by_its_ends() -> None:
    text = str(wrong_value("f", "a" + 5000 * "\x1b" + "z", "be short", 1, "cut it"))
    assert re.fullmatch(r"f: a\\x1b.* … .*\\x1bz must be short, got 1; cut it", text)
    assert len(text) < 450


def test_a_manifest_whose_data_have_no_name_goes_on(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    """Data are known by what they hold; their name may change, and be missing."""
    shutil.copytree(root / "tests" / "files_of_0_1", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "evaluation"
    path = out / "unfinished" / "manifest.json"
    where = torch.device("cpu")
    pending = _likelihood_job.prepared({}, set(), out, where, resume=True).pending
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["data"]["name"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert _likelihood_job.prepared({}, set(), out, where, resume=True).pending == pending
