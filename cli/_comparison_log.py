"""Rows of a comparison that is at work, kept so that one that is stopped goes on where it was.

``unfinished/rows.jsonl`` in the folder of the results has a line for each row, on the disk before
the next one starts, and beside it the samples of that row for the pictures. A row counts for
another comparison only if all that decides it is the same: the ``key``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.diagnostics.comparison import ComparisonRow

UNFINISHED = "unfinished"


@final
class ComparisonLog:
    """The rows of all problems in one folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out / UNFINISHED
        self.file = self.folder / "rows.jsonl"
        self.taken = 0  # rows that were not computed again
        self.rows = dict(self._read())

    def _read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the rows by what they are of; a line that was cut short is none."""
        for line in self.file.read_bytes().splitlines() if self.file.is_file() else []:
            try:
                found = json.loads(line)
                yield found["of"], found
            except (ValueError, TypeError, KeyError, RecursionError):
                continue

    def of(self, task: str) -> _TaskRows:
        """Return the rows of one problem, by a fingerprint of all that decides them."""
        return _TaskRows(self, task)

    def add(self, of: str, row: ComparisonRow) -> None:
        """Keep a row; it is on the disk when this returns."""
        from sde_diffusion._files import write_arrays

        self.folder.mkdir(parents=True, exist_ok=True)
        samples = None
        if row.samples is not None:
            samples = f"{len(self.rows)}-{of}.npz"
            write_arrays(self.folder / samples, {"x": row.samples.numpy()})
        found = {"of": of, "row": row.to_json(), "samples": samples}
        self.rows[of] = found
        # The line break before it ends what a killed process may have left unfinished.
        with self.file.open("ab", buffering=0) as file:
            file.write(b"\n" + json.dumps(found).encode() + b"\n")
            os.fsync(file.fileno())

    def samples(self, name: str | None) -> Tensor | None:
        """Return the samples of a row, None where there are none."""
        import numpy as np
        import torch

        if name is None or not (self.folder / name).is_file():
            return None
        with np.load(self.folder / name, allow_pickle=False) as file:
            return torch.from_numpy(file["x"])

    def remove(self) -> None:
        """Delete the rows once all of them are in the results."""
        shutil.rmtree(self.folder, ignore_errors=True)


@final
class _TaskRows:
    """The rows of one problem: `sde_diffusion.diagnostics.Kept`."""

    def __init__(self, log: ComparisonLog, task: str) -> None:
        self.log = log
        self.task = task

    def find(self, solver: str, steps: int | None) -> ComparisonRow | None:
        from sde_diffusion.diagnostics.comparison import ComparisonRow

        found = self.log.rows.get(self._of(solver, steps))
        if found is None:
            return None
        self.log.taken += 1
        return ComparisonRow.from_json(found["row"], self.log.samples(found["samples"]))

    def keep(self, row: ComparisonRow) -> None:
        self.log.add(self._of(row.solver, row.steps), row)

    def _of(self, solver: str, steps: int | None) -> str:
        from sde_diffusion.checkpoints.fingerprint import fingerprint

        return fingerprint((self.task, solver, steps))
