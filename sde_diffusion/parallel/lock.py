"""One run at a time in a folder: a run keeps a file there whose name says which process it is.

A name is made whole or not at all, is that of one process only, and can so be deleted by whoever
finds the process dead. Each run first makes its own file and then looks for others: of two, one
at least sees the other.
"""

from __future__ import annotations

import os
import platform
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, final
from urllib.parse import quote, unquote

from sde_diffusion._check import Reason, wrong_value
from sde_diffusion.parallel.ranks import is_dead, place

_PREFIX: Final = ".lock"
_PATIENCE: Final = 1.0  # seconds in which one that started at the same moment gives way
_LOOK: Final = 0.05


class _Holder(NamedTuple):
    """What a file's name says: the folder, and a process's launch by torchrun, number and host."""

    file: Path
    folder: str  # its number on the disk, which a copy has not
    launch: str
    pid: int
    birth: str
    host: str

    @classmethod
    def of(cls, file: Path) -> _Holder | None:
        """Return what the name of a file says, None for one of another form."""
        parts = file.name.split("~")
        if len(parts) != 6 or not parts[3].isdecimal():
            return None
        _, number, launch, pid, birth, host = map(unquote, parts)
        return cls(file, number, launch, int(pid), birth, host)

    @classmethod
    def here(cls, folder: Path) -> _Holder:
        """Return this process."""
        launch = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        pid = os.getpid()
        words = (str(_number(folder)), launch, str(pid), _birth(pid), platform.node())
        name = "~".join((_PREFIX, *(quote(word, safe="") for word in words)))
        return cls(folder / name, words[0], launch, pid, *words[3:])

    @property
    def ended(self) -> bool:
        """Whether it ran on this machine and is no more, or elsewhere and the folder is a copy.

        Its number may be another process's by now.
        """
        if self.folder != str(_number(self.file.parent)):
            return True
        if is_dead({"host": self.host, "pid": self.pid}):
            return True
        return self.host == platform.node() and self.birth not in ("", _birth(self.pid))


@final
class RunLock:
    """A folder that one run has to itself, as a context; of torchrun's processes the first holds.

    The folder is made if need be, and goes with the lock if nothing was written into it.

    Arguments:
        what: the function or command that runs, as errors name it.
        folder: where it writes.

    Errors: FileExistsError that names the process in whose run the folder is; OSError for a folder
    that cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, RunLock("train", folder):
    ...     RunLock("sample", folder).__enter__()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileExistsError: sample: out must be a folder in which nothing runs, got process ...
    """

    def __init__(self, what: str, folder: str | Path) -> None:
        self.what = what
        self.folder = Path(folder)
        self._held: weakref.finalize[..., RunLock] | None = None

    def __enter__(self) -> Self:
        if place()[0]:
            if any(_others(self.folder)):  # the first process says so
                raise SystemExit(1)
            return self
        made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        own = _Holder.here(self.folder)
        try:
            os.close(os.open(own.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            raise self._taken(own) from None
        # Also where the lock is forgotten, and when the interpreter ends.
        self._held = weakref.finalize(self, _release, own.file, made, os.getpid())
        self._settle(own)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the folder to others; a second time does nothing."""
        if self._held is not None:
            self._held()

    @property
    def held(self) -> bool:
        """Whether this process holds the folder."""
        return self._held is not None and self._held.alive

    def check(self) -> None:
        """Refuse a folder in which another run is; nothing is written.

        Errors: FileExistsError that names its process.
        """
        for other in _others(self.folder):
            raise self._taken(other)

    def _settle(self, own: _Holder) -> None:
        """Stay if no other is there; of those that came together the least name stays."""
        end = time.monotonic() + _PATIENCE
        while others := list(_others(self.folder)):
            first = min(others)
            if first.file.name < own.file.name or time.monotonic() > end:
                self.close()
                raise self._taken(first)
            time.sleep(_LOOK)

    def _taken(self, other: _Holder) -> FileExistsError:
        try:
            began = datetime.fromtimestamp(other.file.stat().st_mtime)
            since = f" since {began.isoformat(' ', 'seconds')}"
        except FileNotFoundError:  # it has just ended
            since = ""
        got = Reason(f"process {other.pid} on {other.host} at work there{since}")
        remedy = "wait for its end, or pass another folder"
        if (other.host, other.pid) == (platform.node(), os.getpid()):
            remedy = "close the iterator of that run, which is of this process"
        if other.host != platform.node() or os.name == "nt":
            remedy = f"{remedy}; if it has ended, delete {other.file}"
        rule = "be a folder in which nothing runs"
        return FileExistsError(str(wrong_value(self.what, "out", rule, got, remedy)))


def _others(folder: Path) -> Iterator[_Holder]:
    """Yield the other runs of a folder, and delete what the dead have left."""
    own = _Holder.here(folder)
    for file in sorted(folder.glob(f"{_PREFIX}~*")):
        other = _Holder.of(file)
        if other is None or file.name == own.file.name:
            continue
        if other.ended:
            with suppress(OSError):
                file.unlink()
        elif other.launch == ":" or other.launch != own.launch:
            yield other


def _release(file: Path, made: Sequence[Path], pid: int) -> None:
    if os.getpid() != pid:  # a copy of the process that holds it
        return
    file.unlink(missing_ok=True)
    with suppress(OSError):
        for folder in made:
            folder.rmdir()


def _number(folder: Path) -> int:
    return folder.stat().st_ino if folder.is_dir() else 0


def _birth(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; "" where the system does not say.

    One that has ended and is not yet buried by its parent has none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *numbers = fields.rpartition(")")[2].split()
    return "none" if state == "Z" else numbers[18]
