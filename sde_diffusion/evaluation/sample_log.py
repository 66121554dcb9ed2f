"""Results of a run over indexed samples, kept batch by batch so that no work is lost.

``folder`` holds manifest.json, which says what is computed, and batches-R.jsonl of every process
R with a line for each batch, on the disk before the next one starts. A line that was cut short
is no JSON, and its batch counts as not done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from sde_diffusion._check import Reason, wrong_value
from sde_diffusion._files import json_object, write_atomically


@final
@dataclass(frozen=True)
class EvaluatedBatch:
    """What was found of the samples first … first + count − 1, as floats that JSON keeps exactly.

    Arguments:
        first: the index of the first sample.
        count: the number of samples.
        values: quantities of every sample by name; count floats each.
        sums: quantities summed over the samples by name.
        nfe: evaluations of the model by bound.
        seconds: the time that the batch took; seconds.
        failures: by the index of a sample without a finite likelihood, why it has none.

    >>> EvaluatedBatch(6, 2, {"nats": [0.1, 0.2]}, {}, {"flow": 8}, 0.5).indices
    range(6, 8)
    """

    first: int
    count: int
    values: Mapping[str, list[float]]
    sums: Mapping[str, list[float]]
    nfe: Mapping[str, int]
    seconds: float
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def indices(self) -> range:
        """The indices of the samples."""
        return range(self.first, self.first + self.count)


@final
class SampleLog:
    """The batches of one run, appended by any number of processes, one file for each.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = SampleLog(folder)
    ...     log.append(EvaluatedBatch(0, 1, {"nats": [-1.5]}, {}, {}, 0.1))
    ...     log.batches()[0].values
    {'nats': [-1.5]}
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.manifest = self.folder / "manifest.json"
        self.file = self.folder / f"batches-{rank}.jsonl"

    def exists(self) -> bool:
        """Return whether there is a run."""
        return self.manifest.is_file()

    def write(self, manifest: Mapping[str, Any]) -> None:
        """Say what the run computes, atomically; the folder is made if need be."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(manifest, indent=2) + "\n"
        write_atomically(self.manifest, lambda file: file.write_text(text, encoding="utf-8"))

    def read(self) -> dict[str, Any]:
        """Return what `write` was given.

        Errors: ValueError for a file that is none of its.
        """
        return read_manifest(self.manifest)

    def append(self, batch: EvaluatedBatch) -> None:
        """Add a batch; it is on the disk when this returns."""
        # The line break before it ends what a killed process may have left unfinished.
        line = b"\n" + json.dumps(asdict(batch)).encode() + b"\n"
        with self.file.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())

    def batches(self) -> dict[int, EvaluatedBatch]:
        """Return the batches of all processes by their first sample, in order."""
        found: dict[int, EvaluatedBatch] = {}
        for file in sorted(self.folder.glob("batches-*.jsonl")):
            for line in file.read_bytes().splitlines():
                if (batch := _batch(line)) is not None:
                    found.setdefault(batch.first, batch)
        return dict(sorted(found.items()))

    def remove(self) -> None:
        """Delete the run; what a crash leaves of it counts as none."""
        self.manifest.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a manifest holds.

    Errors: ValueError for a file that is no JSON object.
    """
    try:
        return json_object(path.read_bytes())
    except ValueError as error:
        raise wrong_value(
            "SampleLog",
            str(path),
            "be the manifest of a run",
            Reason(error),
            "start again in another folder",
        ) from error


def _batch(line: bytes) -> EvaluatedBatch | None:
    """Return the batch of a line, None for a line that is cut short or damaged."""
    try:
        batch = EvaluatedBatch(**json.loads(line))
        counted = batch.first >= 0 and all(len(v) == batch.count for v in batch.values.values())
        rows = [*batch.values.values(), *batch.sums.values(), batch.nfe.values(), [batch.seconds]]
        return batch if counted and all(map(_numbers, rows)) else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _numbers(row: Iterable[object]) -> bool:
    return all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in row)
