"""Children of a process that imports once: each has its own work and a time by which it must end.

A process that has computed may not fork: the threads of its arithmetic do not come along, and a
child that waits for them waits for ever. So a script that forks leaves all computing to its
children, and each child that is not done in time prints where it stands, and ends.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable

import torch
import torch._dynamo  # an optimizer imports it, which takes seconds: once, not in each child


def start(work: Callable[[], object], seconds: float = 120) -> int:
    """Fork a child that does the work, and return its process id.

    It ends with status 0, or 1 after an exception or at its time.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        faulthandler.dump_traceback_later(seconds, exit=True)
        torch.set_num_threads(1)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(child: int, *, killed: bool = False) -> None:
    """Wait for a child: it must have done its work, or have been killed if that was to be."""
    _, status = os.waitpid(child, 0)
    if killed:
        assert os.WIFSIGNALED(status), f"the child ended by itself, with wait status {status}"
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        assert os.waitstatus_to_exitcode(status) == 0
