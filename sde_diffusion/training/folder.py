"""The folder of a training run: the averaged model, the state to resume from, the metrics."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from sde_diffusion._check import wrong_value
from sde_diffusion._files import write_atomically
from sde_diffusion.checkpoints.checkpoint import save_model
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.training.averages import SNAPSHOTS
from sde_diffusion.training.config import TrainingConfig

SAMPLES: Final = "samples"
_ELSEWHERE: Final = "start a new run in another folder"
# Settings that may differ between a run and its resumption: they do not change what is computed.
_FREE: Final = (
    "format",
    "versions",
    "data.name",  # the content decides, not what its file is called
    "dataset.name",
    "training.checkpoint_every",
    "training.log_every",
    "training.snapshot_every",
    "training.evaluate_every",
    "training.patience",
    "training.accumulate",
    "training.channels_last",
    "training.compile",
    "training.scale",  # what it makes of the data stands in data.scaling
)


class RunFolder:
    """The files of one run.

    A checkpoint is ``model.safetensors`` and ``state.pt``. ``metrics.jsonl`` has a line for every
    ``log_every`` steps and for every evaluation. ``manifest.json``, ``best.safetensors``, the
    other averages and their snapshots are further files. All but the metrics are replaced
    atomically. Lines of metrics are appended; those after the state's step are dropped on
    resumption, as their steps are taken again.

    Errors: OSError where the folder cannot be written; FileExistsError for a fresh run in the
    folder of an earlier one, FileNotFoundError for resuming where there is none.

    >>> import tempfile
    >>> RunFolder(tempfile.mkdtemp(), resume=False).state.name
    'state.pt'
    """

    def __init__(self, path: str | Path, *, resume: bool) -> None:
        self.path = Path(path)
        self.model = self.path / "model.safetensors"
        self.state = self.path / "state.pt"
        self.metrics = self.path / "metrics.jsonl"
        self.manifest = self.path / "manifest.json"
        self.best = self.path / "best.safetensors"
        if resume and not self.state.is_file():
            error = wrong_value(
                "train",
                "out",
                "hold a state.pt to resume from",
                str(path),
                "pass resume=False to start a run",
            )
            raise FileNotFoundError(str(error))
        if not resume and self.state.exists():
            error = wrong_value(
                "train",
                "out",
                "be a folder without a run",
                str(path),
                "pass resume=True to go on, or another folder",
            )
            raise FileExistsError(str(error))
        self._prepare()

    def _prepare(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in ("", SNAPSHOTS, SAMPLES):
                for stale in (self.path / folder).glob(".*.*.tmp"):  # left by a killed process
                    stale.unlink()
            probe = self.path / f".{self.state.name}.0.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            text = wrong_value(
                "train",
                "out",
                "be a folder that can be written",
                str(self.path),
                "pass another folder",
            )
            message = f"{text} ({error.strerror})"
            raise OSError(message) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an error of writing, as on a full disk, into one that says how to go on.

        Errors: OSError.
        """
        try:
            yield
        except OSError as error:
            text = wrong_value(
                "train",
                "out",
                "take the files of the run",
                f"{error.strerror or error} in {self.path}",
                "the last checkpoint is whole: make room and resume",
            )
            raise OSError(str(text)) from error

    def save(self, state: dict[str, Any], model: LearnedScore, extra: dict[str, Any]) -> None:
        """Write the averaged model, then the state, each atomically."""
        with self.writing():
            save_model(self.model, model, extra)
            # To memory first: torch.save reports a full disk as a RuntimeError of its own.
            buffer = io.BytesIO()
            torch.save(state, buffer)
            write_atomically(self.state, lambda file: file.write_bytes(buffer.getbuffer()))

    def load(self, configuration: dict[str, Any], steps: int) -> dict[str, Any]:
        """Return the saved state and drop the metrics after it.

        Errors: ValueError, by name, where the run was made with another configuration, or by a
        version that kept less of its state.
        """
        try:
            state: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True)
            saved = json.loads(state["configuration"])
        except (RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
            rule = "be the state of a run"
            got = type(error).__name__
            remedy = "start again in another folder"
            raise wrong_value("train", str(self.state), rule, got, remedy) from error
        missing = {"averages", "objective", "notes", "scaler"} - state.keys()
        if missing:
            raise wrong_value(
                "train",
                str(self.state),
                "be the state of a run of this version",
                f"one without {', '.join(sorted(missing))}",
                "load its model, and train that in another folder",
            )
        _check_same(_completed(saved, configuration), configuration, state["step"], steps)
        self.truncate(state["step"])
        return state

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        with self.writing(), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate(self, step: int) -> None:
        """Drop the lines of metrics after ``step``, a half-written last one included."""
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = "".join(line for line in whole if json.loads(line)["step"] <= step)
            write_atomically(self.metrics, lambda file: file.write_text(kept, encoding="utf-8"))


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"training.seed": …} for {"training": {"seed": …}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _completed(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return an earlier version's record with the settings that it did not know yet."""
    network = now["network"] | saved["network"]
    if "config" in saved["network"] and "config" in now["network"]:
        network["config"] = now["network"]["config"] | saved["network"]["config"]
    usual = json.loads(json.dumps(asdict(TrainingConfig())))
    plain = {"class": "ScoreModel", "variance": "fixed", "coupling": "independent"}
    first = {} if "class" in saved else plain
    return (
        first
        | saved
        | {
            "network": network,
            "training": usual | saved["training"],
            "dataset": now["dataset"] | saved["dataset"],
        }
    )


def _check_same(
    saved: dict[str, Any], configuration: dict[str, Any], step: int, steps: int
) -> None:
    free = [*_FREE]
    if configuration["training"]["schedule"] == "constant" and steps >= step:
        free.append("training.steps")  # a constant rate does not know where it ends

    def bound(values: dict[str, Any]) -> dict[str, Any]:
        flat = flattened(values)
        return {k: v for k, v in flat.items() if not k.startswith(tuple(free))}

    def remedy(name: str) -> str:
        same = name.startswith("dataset.")
        return "pass the same data, limit and levels" if same else _ELSEWHERE

    check_same("train", bound(saved), bound(configuration), remedy)


def check_same(
    what: str, saved: Mapping[str, Any], now: Mapping[str, Any], remedy: Callable[[str], str]
) -> None:
    """Refuse to resume a run that was started with other settings.

    Arguments:
        what: the function that refuses, as errors name it.
        saved: the settings of the run, nested by name.
        now: those with which it is to be resumed.
        remedy: what to do about a setting, by its name.

    Errors: ValueError that names the first difference.
    """
    have = flattened(dict(saved))
    got = flattened(dict(now))
    for name in sorted(have.keys() | got.keys()):
        if have.get(name) != got.get(name):
            rule = f"be {have.get(name)!r} as in the run that is resumed"
            raise wrong_value(what, name, rule, got.get(name), remedy(name))
