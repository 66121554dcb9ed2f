"""Hostile and damaged files, thousands of them: `python tests/fuzz.py 100000` tries as many.

Every file is a copy of a good one with a few bytes, or a few values in its JSON, exchanged. What
reads it may only load it or refuse it: with a ValueError, a TypeError or an OSError, in one
printable line, within two seconds of the processor's time and a gigabyte of memory. It prints how
many files ended how, as JSON, and exits 1 where one ended otherwise.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    DirectScore,
    DiscreteBeta,
    Logit,
    ScoreModel,
    TrainingConfig,
    UNet,
    describe,
    linear_betas,
    load,
    load_direct,
    save_model,
    train,
)
from sde_diffusion.cli import _likelihood_job, info
from sde_diffusion.likelihood.learned_dequantization import Variational

_SECONDS = 2.0
_BYTES = 2**30
_LINE = 1500  # characters of the longest message: a path, a rule and a reason
_REFUSALS = (ValueError, TypeError, OSError)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 20_000, 100_000, 2**31, 2**62, 2**63, 10**400, -(2**40),
    0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "", "x", "os.system", 5000 * "y",
    "\x1b[2J\x07", "\u202e\ud800", [], {}, [0], [[]], [1, "a"], [1e308, 0.5], 1000 * [1],
    {"class": "VPSDE"}, {"class": "os.system"}, {"class": 7}, {"class": "Affine", "low": 10**400},
)  # fmt: skip


WRONG = "WRONG"


class SlowError(Exception):
    """A file took too long."""


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


def outcome(read: Callable[[], object]) -> str:
    """Return how reading a file ends, of the ways that are allowed."""
    try:
        with bounded():
            read()
    except _REFUSALS as error:
        text = str(error)
        if text.isprintable() and len(text) <= _LINE:
            return type(error).__name__
        return f"{WRONG}: {text[:_LINE]!a}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "site-packages" not in f.filename][-1]
        return f"{WRONG}: {error!r:.200} at {ours.filename}:{ours.lineno}"
    return "read"


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return the bytes with one to three faults, as a disk or a cable makes them."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data))
        # Near an end lies what describes the rest.
        at = chance.choice((at, min(at % 4000, len(data) - 1), max(0, len(data) - 1 - at % 200)))
        size = chance.randint(1, 300)
        fault = chance.randrange(5)
        if fault == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif fault == 1:
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif fault == 2:
            data[at : at + size] = chance.randbytes(len(data[at : at + size]))
        elif fault == 3:
            data[at:at] = chance.randbytes(size)
        else:
            del data[at : at + chance.choice((size, len(data)))]
        data = data or bytearray(b"\0")
    return bytes(data)


def exchanged(tree: Any, chance: random.Random) -> Any:
    """Return JSON with one to three of its values, or names, exchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            break
        parent, key = chance.choice(places)
        action = chance.randrange(8)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            parent[chance.choice(("", "x", "a\x1b[2Jb", 3000 * "k"))] = parent.pop(key)
        elif action == 2:
            parent[key] = copy.deepcopy(chance.choice(places)[0])
        else:
            parent[key] = copy.deepcopy(chance.choice(_VALUES))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def nested(text: str, chance: random.Random) -> str:
    """Return the JSON, now and then with one value nested very deeply."""
    if chance.randrange(20):
        return text
    depth = chance.choice((60, 70, 900, 5000, 100_000))
    return text.replace(": 1", ": " + depth * "[" + depth * "]", 1)


def hostile_checkpoint(content: bytes, chance: random.Random) -> bytes:
    """Return a checkpoint with faults in its bytes, its configuration or its table of tensors."""
    kind = chance.randrange(4)
    if kind == 0:
        return damaged(content, chance)
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    if kind == 1:
        metadata = header.pop("__metadata__")
        header = exchanged(header, chance) | {"__metadata__": metadata}
    else:
        configuration = exchanged(json.loads(header["__metadata__"]["sde_diffusion"]), chance)
        text = nested(json.dumps(configuration), chance)
        header["__metadata__"] = {"sde_diffusion": text}
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + content[8 + size :]


def good_checkpoints(folder: Path) -> list[Path]:
    """Write checkpoints of every kind of network, SDE and scaling that a file describes."""
    paths = [folder / f"{i}.safetensors" for i in range(4)]
    points = DataSpec("points", (2,), 17)
    images = DataSpec("images", (1, 8, 8), 17, Logit(0.05))
    betas = VPSDE(DiscreteBeta(linear_betas(20)))
    unet = UNet(1, width=4, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, classes=3)
    save_model(paths[0], ScoreModel(MLP(2, width=8), betas, "v", data=points), {"step": 3})
    save_model(paths[1], ScoreModel(unet, VPSDE(), data=images), {"training": {"steps": 1}})
    save_model(paths[2], DirectScore(MLP(2, width=8, embedding="sinusoidal"), VPSDE()))
    Variational(DataSpec("points", (2,), 17), couplings=2, width=4).save(paths[3])
    return paths


def read_checkpoint(path: Path) -> None:
    """Read a checkpoint in every way that there is."""
    found = []
    for read in (describe, load, load_direct, Variational.load, show):
        try:
            found.append(read(path))
        except _REFUSALS as error:
            last = error
    if not found:
        raise last


def show(path: Path) -> None:
    """Show a checkpoint as `info` does, whose lines must not move the cursor."""
    lines = info._lines("name", info._configuration(str(path)))
    if not all(map(str.isprintable, lines)):
        message = f"lines that are not printable: {lines!a}"
        raise RuntimeError(message)


def points() -> Dataset:
    """Return a small data set."""
    values = torch.linspace(-1, 1, 16).reshape(8, 2)
    return Dataset(DataSpec("points", (2,), None), values, None)


def trained(folder: Path, *, resume: bool) -> None:
    """Take two steps of a run, or go on with one."""
    config = TrainingConfig(steps=2, batch_size=4, log_every=1, ema_half_lives=(2.0,))
    model = ScoreModel(MLP(2, width=8), VPSDE())
    for _ in train(model, points(), config, out=folder, resume=resume):
        pass


def hostile_state(content: bytes, chance: random.Random) -> bytes:
    """Return a state with faults in its bytes, or with other values and no checksum."""
    if chance.randrange(2):
        return damaged(content, chance)
    path = Path(tempfile.mkdtemp()) / "state.pt"
    path.write_bytes(content)
    state = torch.load(path, weights_only=True)
    state.pop("checksum", None)
    plain = {k: v for k, v in state.items() if isinstance(v, (int, float, list, dict, str))}
    torch.save(state | exchanged(plain, chance), path)
    changed = path.read_bytes()
    shutil.rmtree(path.parent)
    return changed


def hostile_json(content: bytes, chance: random.Random) -> bytes:
    """Return a file of JSON, or of lines of JSON, with faults in its bytes or its values."""
    if chance.randrange(2):
        return damaged(content, chance)
    if content.count(b"{") > 1 and b"\n{" in content:
        lines = content.splitlines(keepends=True)
        at = chance.randrange(len(lines))
        if lines[at].strip():
            lines[at] = json.dumps(exchanged(json.loads(lines[at]), chance)).encode() + b"\n"
        return b"".join(lines)
    return nested(json.dumps(exchanged(json.loads(content), chance)), chance).encode()


def resume_likelihood(folder: Path) -> None:
    """Go on with a run of `likelihood` as far as its first batch."""
    where = torch.device("cpu")
    _likelihood_job.prepared({}, set(), folder, where, resume=True)


class Runs:
    """A folder of a run of `train` and one of `likelihood`, of which one file at a time is bad."""

    def __init__(self, folder: Path, evaluation: Path) -> None:
        self.train = folder / "train"
        trained(self.train, resume=False)
        shutil.copytree(evaluation, folder / "files")
        os.chdir(folder / "files")  # where the names in the manifest lead to
        self.likelihood = folder / "files" / "evaluation"
        unfinished = self.likelihood / "unfinished"
        self.files = {
            self.train / "state.pt": hostile_state,
            self.train / "manifest.json": hostile_json,
            self.train / "metrics.jsonl": hostile_json,
            unfinished / "manifest.json": hostile_json,
            unfinished / "batches-0.jsonl": hostile_json,
        }
        trained(self.train, resume=True)
        self.good = {file: file.read_bytes() for file in self.files}
        self.read(unfinished / "batches-0.jsonl", random.Random(0))

    def read(self, file: Path, chance: random.Random) -> str:
        """Return how a run goes on with one bad file; the good one is put back."""
        file.write_bytes(self.files[file](self.good[file], chance))
        try:
            if file.is_relative_to(self.likelihood):
                return outcome(lambda: resume_likelihood(self.likelihood))
            return outcome(lambda: trained(self.train, resume=True))
        finally:
            for name, content in self.good.items():
                name.write_bytes(content)


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


def tried(number: int, seed: int, files: Path, folder: Path) -> dict[str, int]:
    """Return how many files ended how, three quarters of them checkpoints.

    Arguments:
        number: how many are tried.
        seed: of all that is exchanged.
        files: the folder of a run of `likelihood` and its model.
        folder: an empty one, for the files.
    """
    found: Counter[str] = Counter()
    chance = random.Random(seed)
    good = good_checkpoints(folder)
    for path in good:  # what is imported on the way counts for none of the files
        read_checkpoint(path)
    contents = [path.read_bytes() for path in good]
    runs = Runs(folder, files)
    bad = folder / "bad.safetensors"
    names = list(runs.files)
    with a_gigabyte_more():
        for i in range(number):
            if i % 4:
                bad.write_bytes(hostile_checkpoint(chance.choice(contents), chance))
                found[f"checkpoint: {outcome(lambda: read_checkpoint(bad))}"] += 1
            else:
                file = names[i // 4 % len(names)]
                found[f"{file.name}: {runs.read(file, chance)}"] += 1
    return dict(sorted(found.items()))


def main(number: int = 1000, seed: int = 0) -> None:
    """Print how many files ended how."""
    torch.set_num_threads(1)
    files = Path(__file__).resolve().parent / "files_of_0_1"
    with tempfile.TemporaryDirectory() as name:
        found = tried(number, seed, files, Path(name))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    sys.exit(any(WRONG in how for how in found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
