"""Hostile and damaged files, thousands of every format: `python tests/fuzz.py 100000`.

Every file is a copy of a good one with faults that `mutations` makes. What reads it may only load
it or refuse it: with a ValueError, a TypeError or an OSError, in one printable line, within two
seconds of the processor's time and a gigabyte of memory. It prints how many files of each format
ended how, as JSON, and exits 1 where one ended otherwise. `python tests/fuzz.py 100000 npy npz`
tries these formats alone, and `python tests/fuzz.py 1 npy 12345` the file of that number.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import types
import warnings
import wave
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import mutations
import numpy as np
import torch
from mutations import Mutator
from PIL import Image
from safetensors.torch import save
from torch import nn

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    DirectScore,
    DiscreteBeta,
    Gaussian,
    Logit,
    ScoreModel,
    TrainingConfig,
    UNet,
    describe,
    linear_betas,
    load,
    load_data,
    load_direct,
    read_weights,
    reconstruct_average,
    save_model,
    train,
)
from sde_diffusion.cli import _likelihood_job, _train_file, info, menu
from sde_diffusion.cli.train import command as train_command
from sde_diffusion.coding import compress, decompress, file_format
from sde_diffusion.coding.varints import varints
from sde_diffusion.likelihood.learned_dequantization import Variational

WRONG = "WRONG"
_SECONDS = 2.0
_BYTES = 2**30
_LINE = 700  # characters of the longest message: a path, a rule and a reason
_REFUSALS = (ValueError, TypeError, OSError)
_OLD = Path(__file__).resolve().parent / "files_of_0_1"


@dataclass(frozen=True)
class Format:
    """A format: good files of it, how they are damaged and how they are read.

    Arguments:
        good: their names and contents.
        damaged: returns a content with faults.
        read: reads the file of a name with another content, and leaves the good one.
    """

    good: Mapping[str, bytes]
    damaged: Mutator
    read: Callable[[str, bytes], object]


# --- how reading ends ---


class SlowError(BaseException):
    """A file took too long; no reader may take that for an error of its own."""


@contextmanager
def bounded() -> Iterator[None]:
    """Allow two seconds of the processor's time."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise SlowError

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def a_gigabyte_more() -> Iterator[None]:
    """Let the process have a gigabyte more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(read: Callable[[], object]) -> tuple[str, int]:
    """Return how reading a file ends, of the ways that are allowed, and its message's length."""
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of other programs, over what they repair
            read()
    except _REFUSALS as error:
        text = str(error)
        if not text.isprintable() or len(text) > _LINE:
            return f"{WRONG}: a line of {len(text)} characters: {text[:_LINE]!a}", len(text)
        if isinstance(error, UnicodeError):
            return f"{WRONG}: a codec's error: {text}", len(text)
        if _out_of_memory(error):
            return f"{WRONG}: out of memory: {text}", len(text)
        return type(error).__name__, len(text)
    except (Exception, SlowError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "site-packages" not in f.filename][-1]
        return f"{WRONG}: {error!r:.300} at {ours.filename}:{ours.lineno}", 0
    return "read", 0


def _out_of_memory(error: BaseException | None) -> bool:
    """Return whether a refusal hides that a file asked for more memory than there was."""
    while error is not None and error.__traceback__ is not None:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        # Python's parser calls a text of many brackets so.
        if (isinstance(error, MemoryError) and last != ast.__file__) or "allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def tried(name: str, number: int, folder: Path, first: int = 0) -> dict[str, Any]:
    """Return how many files of a format ended how.

    Arguments:
        name: of the format.
        number: how many are tried.
        folder: an empty one, for the files.
        first: the number of the first file, which is a seed.
    """
    found: Counter[str] = Counter()
    done = 0
    longest = 0
    slowest = 0.0
    os.chdir(folder)
    tested = FORMATS[name](folder)
    for file, content in tested.good.items():  # what is imported counts for none of the files
        tested.read(file, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with a_gigabyte_more():
        for i in _until_interrupted(range(first, first + number)):
            chance = random.Random(f"{name} {i}")
            file = chance.choice(list(tested.good))
            content = tested.damaged(tested.good[file], chance)
            began = time.process_time()
            how, length = outcome(partial(tested.read, file, content))
            slowest = max(slowest, time.process_time() - began)
            longest = max(longest, length)
            done = i + 1 - first
            found[f"{how} (file {i}, {file})" if how.startswith(WRONG) else how] += 1
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if slowest > _SECONDS:
        found[f"{WRONG}: {slowest:.1f} s"] += 1
    return {
        "tried": done,
        **dict(sorted(found.items())),
        "longest line": longest,
        "slowest, s": round(slowest, 3),
        "more memory, MiB": used // 1024,
    }


def _until_interrupted(numbers: range) -> Iterator[int]:
    """Yield the numbers; an interrupt ends them, and what was found is told."""
    stopped: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
    for i in numbers:
        yield i
        if stopped:
            break
    signal.signal(signal.SIGINT, before)


# --- models ---


def _in_a_file(path: Path, read: Callable[[Path], object]) -> Callable[[str, bytes], object]:
    """Return how a content is read that lies in this file while it is."""

    def of_content(_name: str, content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return of_content


def checkpoints(folder: Path) -> Format:
    """Checkpoints of every kind of network, SDE and scaling that a file describes."""
    paths = [folder / f"{i}.safetensors" for i in range(4)]
    points = DataSpec("points", (2,), 17)
    images = DataSpec("images", (1, 8, 8), 17, Logit(0.05))
    betas = VPSDE(DiscreteBeta(linear_betas(20)))
    unet = UNet(1, width=4, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, classes=3)
    save_model(paths[0], ScoreModel(MLP(2, width=8), betas, "v", data=points), {"step": 3})
    save_model(paths[1], ScoreModel(unet, VPSDE(), data=images), {"training": {"steps": 1}})
    save_model(paths[2], DirectScore(MLP(2, width=8, embedding="sinusoidal"), VPSDE()))
    Variational(DataSpec("points", (2,), 17), couplings=2, width=4).save(paths[3])
    good = {path.name: path.read_bytes() for path in paths}
    return Format(
        good, mutations.safetensors, _in_a_file(folder / "bad.safetensors", _read_checkpoint)
    )


def _read_checkpoint(path: Path) -> None:
    """Read a checkpoint in every way that there is."""
    found = []
    last: BaseException | None = None
    for read in (describe, load, load_direct, Variational.load, _show):
        try:
            found.append(read(path))
        except _REFUSALS as error:
            if _out_of_memory(error):
                raise
            last = error
    if not found and last is not None:
        raise last


def _show(path: Path) -> None:
    """Show a checkpoint as `info` does, whose lines must not move the cursor."""
    lines = info._lines("name", info._configuration(str(path))[0])
    if not all(map(str.isprintable, lines)):
        message = f"lines that are not printable: {lines!a}"
        raise RuntimeError(message)


# --- runs ---


def _points() -> Dataset:
    values = torch.linspace(-1, 1, 16).reshape(8, 2)
    return Dataset(DataSpec("points", (2,), None), values, None)


def _trained(folder: Path, *, resume: bool) -> None:
    """Take two steps of a run, or go on with one."""
    config = TrainingConfig(steps=2, batch_size=4, log_every=1, ema_half_lives=(2.0,))
    for _ in train(ScoreModel(_Small(), VPSDE()), _points(), config, out=folder, resume=resume):
        pass


class _Small(nn.Module):
    """A network of three numbers: a run of it is read in little time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.5]))
        self.slope = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.weight * x + self.slope * c.to(x.dtype).reshape(-1, 1)


def _in_a_run(names: list[str], damaged: Mutator) -> Callable[[Path], Format]:
    """Return the format of some files of a run of `train`, which goes on with them."""

    def made(folder: Path) -> Format:
        run = folder / "run"
        _trained(run, resume=False)
        _trained(run, resume=True)
        kept = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}

        def read(name: str, content: bytes) -> None:
            (run / name).write_bytes(content)
            try:
                _trained(run, resume=True)
            finally:
                for path, good in kept.items():
                    path.write_bytes(good)

        return Format({name: kept[run / name] for name in names}, damaged, read)

    return made


def _state(content: bytes, chance: random.Random) -> bytes:
    """Return a state with faults in its archive, or with other values and no checksum."""
    if chance.randrange(2):
        return mutations.archive(content, chance)
    state = torch.load(io.BytesIO(content), weights_only=True)
    state.pop("checksum", None)
    plain = {k: v for k, v in state.items() if isinstance(v, (int, float, list, dict, str))}
    stream = io.BytesIO()
    torch.save(state | mutations.exchanged(plain, chance), stream)
    return stream.getvalue()


def snapshots(folder: Path) -> Format:
    """Averages that a run kept, of which one of another width is made."""
    shutil.copytree(_OLD / "run", folder / "run")
    kept = {path.name: path.read_bytes() for path in (folder / "run" / "snapshots").iterdir()}

    def read(name: str, content: bytes) -> None:
        path = folder / "run" / "snapshots" / name
        path.write_bytes(content)
        try:
            reconstruct_average(folder / "run", 0.15)
        finally:
            path.write_bytes(kept[name])

    return Format(kept, mutations.safetensors, read)


def _settings(path: Path) -> TrainingConfig:
    options = _train_file.read(path, train_command)
    names = {field.name for field in fields(TrainingConfig)}
    return TrainingConfig(**{name: value for name, value in options.items() if name in names})


def settings(folder: Path) -> Format:
    """The settings of `train` in a file."""
    good = (_OLD / "run" / "config.toml").read_bytes() + b"\n[network]\ndepth = 3\n"
    return Format({"a.toml": good}, mutations.text, _in_a_file(folder / "a.toml", _settings))


def evaluations(folder: Path) -> Format:
    """The manifest and the batches of an unfinished `likelihood`, which goes on with them."""
    shutil.copytree(_OLD, folder, dirs_exist_ok=True)  # where the names in the manifest lead to
    unfinished = folder / "evaluation" / "unfinished"

    def resume() -> None:
        where = torch.device("cpu")
        _likelihood_job.prepared({}, set(), folder / "evaluation", where, resume=True)

    resume()
    kept = {path.name: path.read_bytes() for path in unfinished.iterdir()}

    def read(name: str, content: bytes) -> None:
        (unfinished / name).write_bytes(content)
        try:
            resume()
        finally:
            for path, good in kept.items():
                (unfinished / path).write_bytes(good)

    return Format(kept, mutations.json_text, read)


# --- data ---


_PICTURES = (".png", ".jpg", ".gif", ".tif", ".bmp", ".webp")


def _of_data(good: Callable[[], dict[str, bytes]], damaged: Mutator) -> Callable[[Path], Format]:
    """Return the format of files of data, pictures in a folder of their own."""

    def made(folder: Path) -> Format:
        def read(name: str, content: bytes) -> None:
            path = folder / name
            path.write_bytes(content)
            source = path if path.parent == folder else path.parent
            asked: dict[str, Any] = {}
            if path.suffix in _PICTURES:
                asked["frames"] = "all" if content[-1] % 2 else "first"
                asked["size"] = 5 if content[-1] % 4 > 1 else None
            try:
                load_data(source, "all", **asked)
            finally:
                path.write_bytes(files[name])

        files = good()
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return Format(files, damaged, read)

    return made


def _saved(save: Callable[..., object], *arrays: object, **named: object) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


_BYTES_OF = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
_LABELS = np.arange(5)


def _idx() -> dict[str, bytes]:
    images = b"\0\0\x08\x03" + struct.pack(">3I", *_BYTES_OF.shape) + _BYTES_OF.tobytes()
    labels = b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(range(5))
    return {"a.idx": images, "b.idx.gz": gzip.compress(images)} | {
        "m/train-images-idx3-ubyte": images,
        "m/train-labels-idx1-ubyte": labels,
        "m/t10k-images-idx3-ubyte": images,
    }


def _npy() -> dict[str, bytes]:
    arrays = (_BYTES_OF, _BYTES_OF / 7, np.asfortranarray(_BYTES_OF.astype(np.int16)))
    return {f"{i}.npy": _saved(np.save, array) for i, array in enumerate(arrays)}


def _wav() -> dict[str, bytes]:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(range(64)))
    return {"a.wav": content.getvalue()}


def _npz() -> dict[str, bytes]:
    more = {"x_train": _BYTES_OF, "y_train": _LABELS, "x_test": _BYTES_OF}
    return {
        "a.npz": _saved(np.savez, x=_BYTES_OF, y=_LABELS),
        "b.npz": _saved(np.savez_compressed, **more),
        "c.npz": _saved(np.savez, _BYTES_OF / 7, _LABELS[:, None]),
    }


def _picture(mode: str, kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    return _saved(Image.fromarray(pixels).convert(mode).save, kind, **options)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + bytes(4)


def _pngs() -> dict[str, bytes]:
    grey = Image.fromarray((np.arange(63, dtype=np.uint16) * 1000).reshape(9, 7))
    rows = np.arange(9 * 43, dtype=np.uint8).reshape(9, 43)
    rows[:, 0] %= 5  # the filter of each row
    head = struct.pack(">IIBBBBB", 7, 9, 16, 2, 0, 0, 0)
    body = gzip.zlib.compress(rows.tobytes())  # type: ignore[attr-defined]
    parts = _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    return {
        "p/a.png": _picture("RGB", "png"),
        "q/b.png": _picture("P", "png", transparency=bytes(range(9))),
        "r/c.png": _saved(lambda b: grey.save(b, "png")),
        "s/d.png": mutations.with_sums(b"\x89PNG\r\n\x1a\n" + parts),
    }


def _pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"save_all": True, "append_images": [Image.new("L", (7, 9), i) for i in (3, 5)]}
    return {
        "a/a.jpg": _picture("RGB", "jpeg", exif=exif),
        "b/b.jpg": _picture("CMYK", "jpeg", progressive=True),
        "c/c.gif": _picture("L", "gif", **more),
        "d/d.tif": _picture("RGB", "tiff"),
        "e/e.tif": _picture("L", "tiff", compression="tiff_lzw", **more),
        "f/f.bmp": _picture("RGB", "bmp"),
        "g/g.webp": _picture("RGBA", "webp"),
        "h/h.webp": _picture("RGB", "webp", **more),
    }


# --- other programs' files ---


def _network() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4, bias=False).bfloat16()})
    return nn.Sequential(nn.Conv2d(3, 4, 3), inner, nn.BatchNorm1d(4))


def edm_pickle(protocol: int) -> bytes:
    """Return a pickle as EDM writes them: a network with its source code."""
    names = ("torch_utils", "torch_utils.persistence")
    fakes = {name: types.ModuleType(name) for name in names}

    def rebuild(meta: Any) -> None:
        raise AssertionError(meta)

    rebuild.__module__ = names[1]
    rebuild.__name__ = rebuild.__qualname__ = "_reconstruct_persistent_obj"
    fakes[names[1]]._reconstruct_persistent_obj = rebuild  # type: ignore[attr-defined]

    class Net(nn.Sequential):
        def __reduce__(self) -> Any:
            state = {**super().__reduce__()[2], "_init_kwargs": {"width": 4}}
            meta = {"type": "class", "version": 6, "module_src": "pass", "class_name": "Net"}
            return rebuild, (meta | {"state": state},)

    sys.modules.update(fakes)
    try:
        return pickle.dumps({"ema": Net(_network()), "loss_fn": None}, protocol=protocol)
    finally:
        for name in names:
            del sys.modules[name]


def _torch_files() -> dict[str, bytes]:
    weights = _network().state_dict()
    old = {"_use_new_zipfile_serialization": False}
    nested = {"model": weights, "ema": {"shadow_params": list(weights.values())}, "step": 3}
    return {
        "a.pt": _saved(lambda b: torch.save(weights, b)),
        "b.pth": _saved(lambda b: torch.save(weights, b, **old)),
        "c.ckpt": _saved(lambda b: torch.save(nested, b)),
    }


def _torch_file(content: bytes, chance: random.Random) -> bytes:
    damaged = mutations.archive if content[:2] == b"PK" else mutations.damaged
    return damaged(content, chance)


def _weights(good: Callable[[], dict[str, bytes]], damaged: Mutator) -> Callable[[Path], Format]:
    def made(folder: Path) -> Format:
        def read(name: str, content: bytes) -> None:
            (folder / name).write_bytes(content)
            read_weights(folder / name, "model" if name.endswith(".ckpt") else None)

        return Format(good(), damaged, read)

    return made


def _foreign_safetensors() -> dict[str, bytes]:
    about = json.dumps({"class": "Net", "arguments": {"width": 4}})
    return {"a.safetensors": save(_network().state_dict(), {"network": about})}


def _diffusers(weights: bool) -> Callable[[Path], Format]:
    """Return the format of a folder's JSON, or of its weights."""

    def made(folder: Path) -> Format:
        import diffusers

        place = folder / "model"
        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1}
        net = diffusers.UNet2DModel(
            block_out_channels=(4,), norm_num_groups=2, add_attention=False, **shape, **blocks
        )
        diffusers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.set_verbosity(50)
        diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(20)).save_pretrained(place)
        kept = {str(path.relative_to(place)): path for path in place.rglob("*") if path.is_file()}
        good = {n: p.read_bytes() for n, p in kept.items() if (p.suffix != ".json") == weights}

        def read(name: str, content: bytes) -> None:
            before = kept[name].read_bytes()
            kept[name].write_bytes(content)
            try:
                load(f"diffusers:{place}")
            finally:
                kept[name].write_bytes(before)

        return Format(good, mutations.safetensors if weights else mutations.json_text, read)

    return made


# --- words of the command line ---


def solvers(_folder: Path) -> Format:
    """Solvers with arguments, as they are typed."""
    names = {name: name.encode() for name in menu.SOLVER_NAMES}
    typed = (b"unipc:p=3", b"dpm-solver-pp:order=3", b"torchdiffeq:explicit_adams", b"rk4")

    def damaged(content: bytes, chance: random.Random) -> bytes:
        more = chance.choice((b"p=3", b"1", b"order=2,", b"(1, 2)", b"x='a'", b"rtol=1e-3"))
        kind, _, words = content.partition(b":")
        words = mutations.text(words or more, chance)
        return kind + chance.choice((b":", b":", b":", b"")) + words

    def read(_name: str, content: bytes) -> None:
        menu.solver(content.decode(errors="surrogateescape"))

    good = names | {str(i): words for i, words in enumerate(typed)}
    return Format(good, damaged, read)


# --- compressed files ---


def compressed(folder: Path) -> Format:
    """Files of `compress`, damaged or with a head, a shape or a code that fits its checksum."""
    del folder
    model = Gaussian(torch.zeros(2), 0.1 * torch.eye(2)).diffused(VPSDE())
    told = ScoreModel(MLP(2, width=8), VPSDE(), data=DataSpec("pairs", (2,), 8)).eval()
    pairs = Dataset(told.data, torch.tensor([[3, 4], [5, 2], [4, 4]]), None)
    silent = ScoreModel(MLP(2, width=8), VPSDE()).eval()
    models = {"oracle.sdz": model, "network.sdz": told, "blocks.sdz": silent}
    good = {
        name: compress(one, pairs, steps=3, block_size=1 if name == "blocks.sdz" else 4)
        for name, one in models.items()
    }
    return Format(good, _sdz, lambda name, content: decompress(models[name], content))


def _sdz(content: bytes, chance: random.Random) -> bytes:
    if chance.randrange(2):
        return mutations.damaged(content, chance)
    head, blocks = file_format.parsed(content)
    if chance.randrange(2):
        blocks = [
            (chance.choice([n, n, 1, 60_000]), mutations.damaged(code, chance))
            for n, code in blocks
        ]
        return file_format.joined(head, blocks)
    numbers = [len(head.shape), *head.shape, head.levels, head.samples, head.steps]
    if chance.randrange(2):
        shape = chance.choice([[2**24], [2**12, 2**12], [60_000], [1, 2], [3000]])
        numbers = [len(shape), *shape, chance.choice([8, 2**16]), head.samples, head.steps]
    else:
        place = chance.randrange(len(numbers))
        numbers[place] = chance.choice([0, 1, numbers[place], numbers[place] + 1, 2**16, 2**62])
    chain = struct.pack("<I", head.chain)
    packed = content[:12] + varints(*numbers) + chain
    packed += struct.pack("<I", zlib.crc32(packed))
    return packed + content[len(head.to_bytes()) :]


FORMATS: Mapping[str, Callable[[Path], Format]] = {
    "checkpoint": checkpoints,
    "snapshot": snapshots,
    "state": _in_a_run(["state.pt"], _state),
    "run": _in_a_run(["manifest.json", "metrics.jsonl"], mutations.json_text),
    "settings": settings,
    "evaluation": evaluations,
    "idx": _of_data(_idx, mutations.packed),
    "npy": _of_data(_npy, mutations.damaged),
    "npz": _of_data(_npz, mutations.archive),
    "wav": _of_data(_wav, mutations.damaged),
    "cifar": _of_data(lambda: {"a.bin": bytes(2 * 3073)}, mutations.damaged),
    "png": _of_data(_pngs, mutations.png),
    "pictures": _of_data(_pictures, mutations.damaged),
    "torch": _weights(_torch_files, _torch_file),
    "edm": _weights(lambda: {f"{i}.pkl": edm_pickle(i) for i in (2, 4)}, mutations.damaged),
    "safetensors": _weights(_foreign_safetensors, mutations.safetensors),
    "diffusers": _diffusers(False),
    "diffusers weights": _diffusers(True),
    "solver": solvers,
    "sdz": compressed,
}


def main(number: int = 1000, *words: str) -> None:
    """Print how many files ended how, of all formats or of those named, from a number on."""
    torch.set_num_threads(1)
    first = next((int(word) for word in words if word.isdecimal()), 0)
    wrong = False
    for name in [word for word in words if not word.isdecimal()] or FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            found = tried(name, number, Path(folder), first)
            os.chdir("/")
        sys.stdout.write(json.dumps({name: found}) + "\n")
        sys.stdout.flush()
        wrong |= any(WRONG in how for how in found)
    sys.exit(wrong)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
