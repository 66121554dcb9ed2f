"""The manifest of a run: what was run, with which versions, where, when and for how long."""

from __future__ import annotations

import json
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from sde_diffusion._check import Reason, wrong_value
from sde_diffusion._files import json_object, write_atomically
from sde_diffusion._version import __version__


@final
class Manifest:
    """``manifest.json`` of a run: its configuration, and a record of every time it was started.

    Nothing in it names the machine or its user, unless an argument of the command line does.

    Arguments:
        path: the file.
        configuration: that of the run.
        device: where the model computes.
        processes: the number of processes that share the run.

    Errors: ValueError for a file of that name that is no manifest.
    """

    def __init__(
        self, path: Path, configuration: dict[str, Any], device: torch.device, processes: int
    ) -> None:
        self.path = path
        self._began = time.perf_counter()
        self._all: dict[str, Any] = configuration | {"sessions": _earlier(path)}
        self._session: dict[str, Any] = {
            "command": [*_program(), *sys.argv[1:]],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "sde_diffusion": __version__,
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "processes": processes,
        }
        self._all["sessions"].append(self._session)

    def write(self, step: int) -> None:
        """Write the manifest as of this step."""
        self._session.setdefault("first_step", step)
        self._session |= {"step": step, "seconds": round(time.perf_counter() - self._began, 3)}
        text = json.dumps(self._all, indent=2)
        write_atomically(self.path, lambda file: file.write_text(text, encoding="utf-8"))


def _program() -> list[str]:
    """Return how the program was called, without the folders in which it lies."""
    spec = vars(sys.modules["__main__"]).get("__spec__")  # of python -m
    return [Path(sys.argv[0]).name] if spec is None else ["python", "-m", str(spec.parent)]


def _earlier(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        sessions = json_object(path.read_bytes())["sessions"]
        return [dict(session) for session in sessions]
    except (KeyError, TypeError, ValueError) as error:
        raise wrong_value(
            "train",
            str(path),
            "be the manifest of a run",
            Reason(f"{type(error).__name__}: {error}"),
            "delete it, and resume without the record of the starts before",
        ) from error
