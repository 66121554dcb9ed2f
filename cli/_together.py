"""Commands that several processes share, as torchrun starts them: devices and signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_diffusion.cli import _common

if TYPE_CHECKING:
    import torch


@contextmanager
def alone_in(what: str, out: Path) -> Iterator[None]:
    """Have a folder for this run alone, made before any time is spent on what goes into it.

    Errors: FileExistsError that names the process of another run there; OSError where it cannot be
    made or written.
    """
    from sde_diffusion.parallel.lock import RunLock

    lock = RunLock(what, out)
    try:
        lock.__enter__()
    except OSError as error:
        if error.errno is None:  # it names the other run
            raise
        raise _common.unwritable(out, error) from error
    with closing(lock):
        yield


class TerminatedError(KeyboardInterrupt):
    """Stopped from outside, as by torchrun when another process has ended."""


def device_of(name: str, world: int) -> torch.device:
    """Return the device; of several processes on a machine with GPUs each has its own."""
    where = _common.resolve_device(name)
    if world == 1 or where.type != "cuda" or where.index is not None:
        return where
    import torch

    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def terminations() -> Iterator[None]:
    """Take SIGTERM as a reason to stop in good order, like Ctrl-C."""

    def stop(_number: int, _frame: object) -> None:
        raise TerminatedError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
