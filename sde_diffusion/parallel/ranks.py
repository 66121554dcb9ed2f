"""Processes that share a run through files, so that none waits forever for another.

Every process keeps a file ``rank-R.json`` in one folder and renews it every second. Process 0
writes into its own what all of them are to do, and the others read it there. A process that waits
for another looks for its signs of life, and none waits during the work.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, final

from sde_diffusion._check import Reason, wrong_value

_BEAT: Final = 1.0  # seconds between two signs of life
_SILENCE: Final = 30.0  # seconds without one after which a process counts as gone
_START: Final = 120.0  # seconds for all processes to appear
_PATIENCE: Final = 5.0  # seconds of waiting after which it is said what is waited for
_LOOK: Final = 0.1
_ENVIRONMENT: Final = {"RANK": "0", "WORLD_SIZE": "1"}


def place() -> tuple[int, int]:
    """Return this process's rank and the number of processes, as torchrun sets them.

    Errors: ValueError unless RANK is one of 0 … WORLD_SIZE − 1; for a WORLD_SIZE that an earlier
    program has left in the environment, for the others would be waited for in vain.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" not in os.environ:
        got = f"WORLD_SIZE={os.environ['WORLD_SIZE']} alone"
        rule = "stand beside RANK, as torchrun sets both"
        raise wrong_value("ranks", "WORLD_SIZE", rule, got, "unset WORLD_SIZE, or use torchrun")
    rank, world = (os.environ.get(name, usual) for name, usual in _ENVIRONMENT.items())
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        got = f"RANK={rank}, WORLD_SIZE={world}"
        raise wrong_value("ranks", "RANK", "be one of 0 … WORLD_SIZE − 1", got, "use torchrun")
    return int(rank), int(world)


@final
class Ranks:
    """One of ``world`` processes that meet in ``folder``; alone where ``world`` is 1.

    As a context it shows signs of life; at the end it tells the others how it ended.

    Arguments:
        folder: where they meet, one that all of them see.
        rank: the number of this one, from 0.
        world: how many they are.
        told: called with one line where the others are waited for longer than five seconds.

    >>> with Ranks("nowhere", 0, 1) as ranks:
    ...     ranks.agree(lambda: {"share": 3})
    {'share': 3}
    """

    def __init__(
        self,
        folder: str | Path,
        rank: int,
        world: int,
        told: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.folder = Path(folder)
        self.rank = rank
        self.world = world
        self._told = told
        self._body: dict[str, Any] = {
            "name": uuid.uuid4().hex,
            "host": platform.node(),
            "pid": os.getpid(),
            "state": "waiting",
            "beat": 0,
        }
        self._seen: dict[int, tuple[object, float]] = {}  # the last sign of each, and its time
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Self:
        if self.world > 1:
            if self.rank:
                with self._waiting():
                    self._wait_for_run()
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.rank == 0:  # left by an earlier launch; the living write theirs again
                for file in self.folder.glob("rank-*.json"):
                    file.unlink(missing_ok=True)
            self._write()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        state = "done" if kind is None else "stopped" if stopped else "failed"
        self.tell(state=state, error=str(error or ""))
        self._stop.set()
        if self.world > 1:
            self._thread.join()
        if self.rank == 0:  # what a killed process has left too
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self._agreed() is None:
            self._file(self.rank).unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()

    def agree(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what process 0 makes, in all of them.

        Errors: ChildProcessError where one of them does not appear.
        """
        if self.rank == 0:
            made = make()
            if self.world > 1:
                with self._waiting():
                    names = {str(rank): self._awaited(rank) for rank in self._others()}
                self.tell(state="working", agreed={"names": names, "made": made})
            return made
        with self._waiting():
            while (agreed := self._agreed()) is None:
                self._fresh(0, self._read(0), _START)
                time.sleep(_LOOK)
        self.tell(state="working")
        return agreed

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Say what is waited for, once it takes long: the others may never have been started."""
        line = (
            f"process {self.rank} of WORLD_SIZE={self.world} waits for the others; where there "
            "are none, unset RANK and WORLD_SIZE"
        )
        timer = threading.Timer(_PATIENCE, self._told, [line])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def tell(self, **values: object) -> None:
        """Write something about this process where the others can read it."""
        if self.world > 1:
            self._body |= values
            self._write()

    def told(self, name: str) -> int:
        """Return the sum of the values that the other processes have written under a name."""
        bodies = (self._read(rank) for rank in self._others())
        return sum(int(body.get(name, 0)) for body in bodies if body)

    def check(self) -> None:
        """Raise an error, in process 0, where another one has ended early.

        Errors: ChildProcessError that names it.
        """
        if self.rank == 0:
            for rank in self._others():
                self._check(rank)

    def wait(self, watch: Callable[[], object]) -> None:
        """Wait, in process 0, until all others are done, calling ``watch`` again and again.

        Errors: those of `check`.
        """
        while self.rank == 0 and any(self._state(rank) != "done" for rank in self._others()):
            self.check()
            watch()
            time.sleep(_LOOK)

    def culprit(self, seconds: float = 3.0) -> str:
        """Return which other process has ended by itself, "" if none is found.

        For process 0 when it is stopped from outside, as torchrun does with all when one ends.
        """
        end = time.monotonic() + seconds
        while self.rank == 0 and self.world > 1 and time.monotonic() < end:
            if lost := self.lost():
                return next(iter(lost.values()))
            time.sleep(_LOOK)
        return ""

    def lost(self, silence: float | None = None) -> dict[int, str]:
        """Return the other processes that have ended by themselves and early, and how, by rank."""
        found = dict[int, str]()
        for rank in self._others():
            try:
                if self._state(rank) not in ("stopped", "done"):
                    self._check(rank, silence)
            except ChildProcessError as error:
                found[rank] = str(error)
        return found

    def is_over(self) -> bool:
        """Return whether process 0 has ended, and said how: it takes the folder along."""
        return self._read(0) is None

    def _wait_for_run(self) -> None:
        """Leave it to process 0 to make the folder of the run, which it removes if it is empty."""
        end = time.monotonic() + _START
        while not self.folder.parent.exists():
            if time.monotonic() > end:
                raise _gone(0, f"no sign of life in {_START:.0f} s")
            time.sleep(_LOOK)

    def _others(self) -> list[int]:
        return [rank for rank in range(self.world) if rank != self.rank]

    def _check(self, rank: int, silence: float | None = None) -> None:
        body = self._read(rank)
        if body is not None and is_dead(body):
            time.sleep(_LOOK)  # it may have said how it ended since
            body = self._read(rank)
            if body is not None and body["state"] not in ("done", "failed", "stopped"):
                raise _gone(rank, f"no sign of life from process {body['pid']}")
        if body is not None and body["state"] in ("failed", "stopped"):
            raise _gone(rank, body["error"] or body["state"])
        if body is None or body["state"] != "done":
            self._fresh(rank, body, _SILENCE if silence is None else silence)

    def _awaited(self, rank: int) -> str:
        """Return the name of a process once it has appeared."""
        while (body := self._read(rank)) is None:
            self._fresh(rank, None, _START)
            time.sleep(_LOOK)
        return str(body["name"])

    def _agreed(self) -> dict[str, Any] | None:
        """Return what process 0 made for this very process, not for an earlier launch."""
        agreed = (self._read(0) or {}).get("agreed") or {"names": {}}
        mine = agreed["names"].get(str(self.rank)) == self._body["name"]
        found: dict[str, Any] | None = agreed["made"] if mine else None
        return found

    def _state(self, rank: int) -> str:
        return str((self._read(rank) or {}).get("state", ""))

    def _fresh(self, rank: int, body: Mapping[str, Any] | None, limit: float) -> None:
        """Refuse a process whose file has not changed for too long, by this process's clock."""
        now = time.monotonic()
        sign = body and (body["name"], body["beat"])
        last, since = self._seen.setdefault(rank, (None, now))
        if sign is not None and sign != last:
            self._seen[rank] = (sign, now)
        elif now - since > limit:
            raise _gone(rank, f"no sign of life in {limit:.0f} s")

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            body: dict[str, Any] = json.loads(self._file(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return body

    def _live(self) -> None:
        while not self._stop.wait(_BEAT):
            self._write()

    def _write(self) -> None:
        """Replace the file; a folder that is gone is process 0's way to say that it is over."""
        with self._lock, suppress(OSError):
            self._body["beat"] += 1
            file = self._file(self.rank)
            temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self._body), encoding="utf-8")
            temporary.replace(file)


def is_dead(body: Mapping[str, Any]) -> bool:
    """Return whether the process was on this machine and is no more."""
    if body["host"] != platform.node() or os.name == "nt":
        return False
    try:
        os.kill(int(body["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _gone(rank: int, got: str) -> ChildProcessError:
    text = wrong_value(
        "ranks", f"rank {rank}", "finish its share", Reason(got), "what is done is kept"
    )
    return ChildProcessError(str(text))


def share_of(pending: Sequence[int], rank: int, world: int) -> set[int]:
    """Return the neighbouring batches of one of several processes.

    >>> [sorted(share_of([0, 64, 128, 320, 384], rank, 2)) for rank in range(2)]
    [[0, 64], [128, 320, 384]]
    """
    n = len(pending)
    return set(pending[rank * n // world : (rank + 1) * n // world])
