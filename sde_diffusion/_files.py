"""Files that are whole or absent: nobody, at no moment, finds a part of one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sde_diffusion._check import Reason, wrong_value

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST: Final = 2**24  # characters of a JSON text that is read
_DEEPEST: Final = 64  # lists and objects inside one another


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


@contextmanager
def writing(what: str, folder: Path, kept: str, then: str) -> Iterator[None]:
    """Turn an error of writing, as on a full disk, into one that says what it has cost.

    Arguments:
        what: the function or command that writes.
        folder: where.
        kept: what is lost, and what is whole.
        then: what to do once files can be written there again.

    Errors: OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # one that says it all
            raise
        got = Reason(f"{error.strerror} in {folder}")
        mend = "make room" if error.errno in _FULL else "make it writable"
        text = wrong_value(what, "out", "take the files", got, f"{kept}: {mend} and {then}")
        raise OSError(str(text)) from error


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as an ``.npz`` file, whole or not at all."""
    import numpy as np

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # savez would add .npz to the temporary file's name
            np.savez(file, **arrays)

    write_atomically(path, save)


def json_object(text: str | bytes) -> dict[str, Any]:
    """Return the object that a JSON text holds, whoever wrote it.

    Errors: ValueError for a text that holds none, is longer than 16 MiB or nested 64 times.
    """
    if len(text) > _LONGEST:
        message = f"a text of {len(text)} characters"
        raise ValueError(message)
    try:
        found = json.loads(text)
    except RecursionError as error:
        message = "lists and objects that are nested too deeply"
        raise ValueError(message) from error
    if not isinstance(found, dict):
        message = f"a {type(found).__name__}"
        raise ValueError(message)  # noqa: TRY004  (the text is wrong, not its type)
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        inside = (part.values() if isinstance(part, dict) else part for part in level)
        level = [x for parts in inside for x in parts if isinstance(x, (dict, list))]
        if not level:
            return found
    message = "lists and objects that are nested too deeply"
    raise ValueError(message)
