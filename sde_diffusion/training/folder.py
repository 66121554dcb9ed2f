"""The folder of a training run: the averaged model, the state to resume from, the metrics."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from sde_diffusion._check import Reason, positive_integer, shown, wrong_type, wrong_value
from sde_diffusion._files import json_object, write_atomically, writing
from sde_diffusion.checkpoints.checkpoint import Saveable, save_model
from sde_diffusion.checkpoints.fingerprint import IN_USE, fingerprint
from sde_diffusion.parallel.lock import RunLock
from sde_diffusion.training.averages import SNAPSHOTS
from sde_diffusion.training.config import OF_OBJECTIVE, TrainingConfig

SAMPLES: Final = "samples"
_ELSEWHERE: Final = "start a new run in another folder"
_FROM_MODEL: Final = "load its model, and train that in another folder"
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
    """The files of one run, which has the folder to itself until it is closed.

    A checkpoint is ``model.safetensors`` and ``state.pt``. ``metrics.jsonl`` has a line for every
    ``log_every`` steps and for every evaluation. ``manifest.json``, ``best.safetensors``, the
    other averages and their snapshots are further files. All but the metrics are replaced
    atomically. Lines of metrics are appended; those after the state's step are dropped on
    resumption, as their steps are taken again.

    Arguments:
        path: the folder.
        resume: go on with the run there.
        lock: that of the folder, where the run has it already.

    Errors: OSError where the folder cannot be written; FileExistsError for the folder of a run
    that is at work, and for a fresh run in that of an earlier one; FileNotFoundError for resuming
    where there is none.

    >>> import tempfile
    >>> RunFolder(tempfile.mkdtemp(), resume=False).state.name
    'state.pt'
    """

    def __init__(self, path: str | Path, *, resume: bool, lock: RunLock | None = None) -> None:
        self.path = Path(path)
        self.model = self.path / "model.safetensors"
        self.state = self.path / "state.pt"
        self.metrics = self.path / "metrics.jsonl"
        self.manifest = self.path / "manifest.json"
        self.best = self.path / "best.safetensors"
        self.lock = RunLock("train", self.path) if lock is None else lock
        self.lock.check()
        self.kept: int | None = None  # the step of the checkpoint that is there
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
            if not self.lock.held:
                self.lock.__enter__()
            for folder in ("", SNAPSHOTS, SAMPLES):
                for stale in (self.path / folder).glob(".*.*.tmp"):  # left by a killed process
                    stale.unlink()
            probe = self.path / f".{self.state.name}.0.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            self.lock.close()
            if error.errno is None:  # the lock's, which says it all
                raise
            text = wrong_value(
                "train",
                "out",
                "be a folder that can be written",
                str(self.path),
                "pass another folder",
            )
            message = f"{text} ({error.strerror})"
            raise OSError(message) from error

    def writing(self) -> AbstractContextManager[None]:
        """Return a context that turns an error of writing into one that says how to go on.

        Errors: OSError.
        """
        if self.kept is None:
            return writing("train", self.path, "there is no checkpoint yet", "start again")
        kept = f"the checkpoint of step {self.kept} is whole"
        return writing("train", self.path, kept, "resume")

    def close(self) -> None:
        """Leave the folder to other runs."""
        self.lock.close()

    def save(self, state: dict[str, Any], model: Saveable, extra: dict[str, Any]) -> None:
        """Write the averaged model, then the state, each atomically."""
        with self.writing():
            save_model(self.model, model, extra)
            # To memory first: torch.save reports a full disk as a RuntimeError of its own.
            buffer = io.BytesIO()
            torch.save(state | {"checksum": fingerprint(state)}, buffer)
            write_atomically(self.state, lambda file: file.write_bytes(buffer.getbuffer()))
        self.kept = state["step"]

    def load(self, configuration: dict[str, Any], steps: int) -> dict[str, Any]:
        """Return the saved state.

        Errors: ValueError, by name, where it or the metrics are damaged, or where the run was made
        with another configuration, or by a version that kept less of its state.
        """
        state, saved = _read_state(self.state)
        missing = {"averages", "objective", "notes", "scaler"} - state.keys()
        if missing:
            raise wrong_value(
                "train",
                str(self.state),
                "be the state of a run of this version",
                f"one without {', '.join(sorted(missing))}",
                _FROM_MODEL,
            )
        _check_same(_completed(saved, configuration), configuration, state["step"], steps)
        read_metrics(self.metrics)
        self.kept = state["step"]
        return state

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        with self.writing(), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate(self, step: int) -> None:
        """Drop the lines of metrics after ``step``, a half-written last one included."""
        if self.metrics.is_file():
            lines = read_metrics(self.metrics) if step else []
            kept = [line for line in lines if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            with self.writing():
                write_atomically(
                    self.metrics, lambda file: file.write_text(text, encoding="utf-8")
                )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, but for a half-written last one; none without a file.

    Errors: ValueError that names the line that is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    found = list[dict[str, Any]]()
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            continue
        try:
            values = json_object(line)
            positive_integer("metrics", "step", values["step"], least=0)
        except (KeyError, TypeError, ValueError) as error:
            raise wrong_value(
                "train",
                f"line {number} of {path}",
                "be a JSON object with a step",
                line.decode(errors="backslashreplace"),
                "delete the line, or the file, and resume",
            ) from error
        found.append(values)
    return found


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a state holds, and the configuration in it, once its checksums are right.

    That of the whole content is missing from files of version 0.1; those of the parts are not.
    """
    with path.open("rb"):  # an error of reading is none of its content
        pass
    try:
        with zipfile.ZipFile(path) as file:
            _check_sum(file.testzip() is None)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checksum = state.pop("checksum", None)
        _check_sum(checksum in (None, fingerprint(state)))
        configuration = json_object(state["configuration"])
        _check_progress(state)
    # A damaged file makes torch and zipfile raise about ten kinds, IndexError among them.
    except Exception as error:
        got = Reason(f"{type(error).__name__}: {error}")
        rule = "be the state of a run"
        raise wrong_value("train", str(path), rule, got, _FROM_MODEL) from error
    return state, configuration


def _check_sum(right: bool) -> None:
    if not right:
        message = "its checksum is another"
        raise ValueError(message)


def _check_progress(state: Mapping[str, Any]) -> None:
    """Refuse other kinds of values than a run writes, which later steps would stumble over."""
    positive_integer("state", "step", state["step"], least=0)
    best = state.get("notes", {}).get("best", {})
    for number in (state["seconds"], *state["losses"], *best.values()):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise wrong_type("state", "seconds, losses and best", "be numbers", number, "resume")


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"training.seed": …} for {"training": {"seed": …}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _completed(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return an earlier version's record with the settings that it did not know yet.

    One without "objective" is of version 0.1, which kept neither an objective of one's own nor the
    attributes of an SDE of one's own: those of now are taken for it.
    """
    if "objective" not in saved:
        unknown = {"objective": now["objective"], "sde": _filled(saved["sde"], now["sde"])}
        training = {k: v for k, v in saved["training"].items() if k in now["training"]}
        saved = saved | unknown | {"training": training}
    network = now["network"] | saved["network"]
    if "config" in saved["network"] and "config" in now["network"]:
        network["config"] = now["network"]["config"] | saved["network"]["config"]
    if "settings" in saved["network"] and "settings" in now["network"]:
        network["settings"] = _without_use(network["settings"], now["network"]["settings"])
    usual = json.loads(json.dumps(asdict(TrainingConfig())))
    if saved["objective"] is not None:
        usual = {k: v for k, v in usual.items() if k not in OF_OBJECTIVE}
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


def _without_use(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a network, with those of now for what changes in use."""
    varying = [name for name, value in saved.items() if value == IN_USE]
    fixed = {name: value for name, value in saved.items() if value != IN_USE}
    return fixed | {name: now[name] for name in varying if name in now}


def _filled(saved: Any, now: Any) -> Any:  # noqa: ANN401  (JSON)
    """Return a description with the entries that only another one of the same class has."""
    if not (isinstance(saved, dict) and isinstance(now, dict)):
        return saved
    if saved.get("class") != now.get("class"):
        return saved
    return now | {key: _filled(value, now.get(key)) for key, value in saved.items()}


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
        if name.startswith("objective"):
            return "pass the objective that the run was started with"
        if name.startswith("network.settings"):
            return "pass the network that the run was started with"
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
            rule = f"be {shown(repr(have[name]))}" if name in have else "be left out"
            rule = f"{rule} as in the run that is resumed"
            raise wrong_value(what, shown(name), rule, got.get(name), remedy(name))
