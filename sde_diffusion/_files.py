"""Files that are whole or absent: nobody, at no moment, finds a part of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path`` with ``write``, then move it there in one step.

    A reader, or a crash at any moment, finds the old file or the new one, never a part of one.

    Errors: OSError that names the folder where it is missing or not writable.
    """
    path = Path(path)
    # The process number keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Opened here first: not every writer reports a missing folder as an OSError.
        temporary.open("wb").close()
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut after the move could leave an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as an ``.npz`` file, whole or not at all."""
    import numpy as np

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # savez would add .npz to the temporary file's name
            np.savez(file, **arrays)

    write_atomically(path, save)
