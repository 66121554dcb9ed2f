"""The processes that train one model: those of torchrun, or this one alone.

They meet by torchrun's own rendezvous, over gloo on CPUs and nccl on GPUs. Each also shows signs
of life in the run's folder and watches those of the others: a process that waits for one that has
ended can find that out in no other way.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self, final

import torch
from torch import Tensor, distributed as dist

from sde_diffusion._shown import shown
from sde_diffusion.parallel.lock import RunLock
from sde_diffusion.parallel.ranks import Ranks, place

_LOOK: Final = 0.5  # seconds between two looks at the others
_GRACE: Final = 5.0  # seconds for a process to end by itself once another one has ended
_SUSPECT: Final = 5.0  # seconds of silence that are enough once an exchange has failed
_SEARCH: Final = 8.0  # seconds to find out which process ended first
# The longest step, or evaluation by one while the others wait. Processes that have ended are found
# sooner, by their missing signs of life.
_LIMIT: Final = timedelta(days=1)
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@final
class Processes:
    """The processes of torchrun that train one model together, or this process alone.

    As a context it lets them meet, gives each its GPU, and takes Ctrl-C and SIGTERM as requests
    to stop after the step: `interrupted` is then true, in all processes after the same step. Each
    must see ``folder``. A second Ctrl-C stops a process that is alone at once.

    When one of them ends early the context ends in the others, within a minute: with an error in
    the lowest that is left, silently in the rest.

    Arguments:
        folder: of the run.
        told: called with one line where the others are waited for long.

    Errors: ChildProcessError that names the process that ended early and the step that is saved.

    >>> with Processes("nowhere") as processes:
    ...     processes.world, processes.leads, processes.agree(3.0)
    (1, True, 3.0)
    """

    __repr__ = shown

    def __init__(self, folder: str | Path, told: Callable[[str], object] = lambda _: None) -> None:
        self.folder = Path(folder)
        self.rank, self.world = place()
        self._lock = RunLock("train", self.folder)
        self._ranks = Ranks(self.folder / ".ranks", self.rank, self.world, told)
        self._saved = 0
        self._asked = False
        self._agreed = False
        self._over = threading.Event()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self.world > 1:
            self._lock.__enter__()
            self._ranks.__enter__()
            try:
                self._meet()
            except BaseException:
                self._ranks.__exit__(*sys.exc_info())
                self._lock.close()
                raise
            threading.Thread(target=self._watch, daemon=True).start()
        if threading.current_thread() is threading.main_thread():  # other threads get no signals
            self._handlers = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        cause = self._cause(error) if self.world > 1 and error is not None else None
        if self.world > 1:
            # A process that ends because of another says "stopped": it is not the cause.
            self._ranks.__exit__(KeyboardInterrupt if cause else kind, error, trace)
            self._lock.close()
        if self.world > 1 and error is None:  # else it could wait for a process that has ended
            dist.destroy_process_group()
        if cause is not None:  # the signals that torchrun sends now must not hide it
            raise cause from error
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and messages: the first, or the only one."""
        return self.rank == 0

    @property
    def interrupted(self) -> bool:
        """Whether a signal has asked to stop; the same in all processes after a step."""
        return self._asked if self.world == 1 else self._agreed

    def lock(self, folder: Path) -> RunLock:
        """Return the lock of a run's folder: held already where the processes meet there."""
        return self._lock if folder == self.folder else RunLock("train", folder)

    def note(self, step: int) -> None:
        """Let the others know that ``step`` is saved."""
        self._saved = step
        self._ranks.tell(saved=step)

    def agree(self, value: float) -> float:
        """Return the first process's value, in all of them."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def share(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what the first process makes, tensors and plain values, in all of them."""
        made = make() if self.leads else {}
        if self.world == 1:
            return made
        buffer = io.BytesIO()
        if self.leads:
            torch.save(made, buffer)
        size = int(self.agree(len(buffer.getbuffer())))
        sent = bytearray(buffer.getbuffer()) if self.leads else bytearray(size)
        dist.broadcast(torch.frombuffer(sent, dtype=torch.uint8), 0)
        if self.leads:
            return made
        found: dict[str, Any] = torch.load(io.BytesIO(sent), weights_only=True)
        return found

    def gathered(self, losses: Tensor) -> Tensor:
        """Return the losses of all processes, by rank; they agree on `interrupted` with it.

        Shapes: (n,) → (world n,).
        """
        if self.world == 1:
            return losses
        sent = torch.cat([losses, losses.new_tensor([self._asked])])
        found = [torch.empty_like(sent) for _ in range(self.world)]
        dist.all_gather(found, sent)
        rows = torch.stack(found)
        self._agreed = bool(rows[:, -1].any())
        return rows[:, :-1].flatten()

    def _meet(self) -> None:
        self._ranks.agree(dict)  # all are here, and see the folder
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        gpus = torch.cuda.device_count()
        if local < gpus:
            torch.cuda.set_device(local)
        # nccl would abort a process whose exchange has failed before its error is shown.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        both = gpus and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if both else "gloo", timeout=_LIMIT)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self._asked and self.world == 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def _watch(self) -> None:
        """End this process where another has ended, for which it would wait forever."""
        while not self._over.wait(_LOOK):
            lost = self._ranks.lost()
            if lost and not self._over.wait(_GRACE):
                if self._speaks(lost):
                    sys.stderr.write(f"Error: {self._message(lost)}\n")
                    sys.stderr.flush()
                os._exit(1)

    def _cause(self, error: BaseException) -> BaseException | None:
        """Return what to end with where the error is a consequence of another process's end."""
        broken = isinstance(error, RuntimeError)  # as exchanges with the dead are
        if self.leads and not broken:
            return None
        end = time.monotonic() + _SEARCH
        while time.monotonic() < end:
            if not self.leads and self._ranks.is_over():
                return SystemExit(1)  # the first process has said why
            lost = self._ranks.lost(_SUSPECT) if broken else {}
            if lost and not self._speaks(lost):
                return SystemExit(1)
            if lost:
                return ChildProcessError(self._message(lost))
            time.sleep(0.1)
        return None

    def _speaks(self, lost: dict[int, str]) -> bool:
        return all(rank in lost for rank in range(self.rank))

    def _message(self, lost: dict[int, str]) -> str:
        step = self._saved if self.leads else self._ranks.told("saved")
        return f"{next(iter(lost.values()))}: resume {self.folder} from step {step}"
