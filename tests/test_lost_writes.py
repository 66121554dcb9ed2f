"""A disk that fills, a folder that turns read-only, a kill at any write: what is lost is said."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from sde_diffusion import MLP, VPSDE, Dataset, DataSpec, ScoreModel, TrainingConfig, load, train
from sde_diffusion.cli.main import main

CONFIG = TrainingConfig(
    steps=4,
    batch_size=4,
    checkpoint_every=2,
    log_every=1,
    ema_half_lives=(3.0,),
    ema_widths=(0.1,),
    snapshot_every=2,
)


class Writes:
    """Counts what a process does to the files of a folder, and lets one of it fail or be fatal.

    An audit hook sees every opening, renaming and making of a folder before it happens.
    """

    def __init__(self) -> None:
        self.folder: str | None = None
        self.fatal = -1
        self.error: int | None = None
        self.seen = 0
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or event not in ("open", "os.rename", "os.mkdir"):
            return
        path = str(arguments[0])
        reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if reads or not path.startswith(self.folder):
            return
        self.seen += 1
        if self.seen > self.fatal >= 0 and self.error is not None:  # and all that come after it
            raise OSError(self.error, os.strerror(self.error), path)
        if self.seen - 1 == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def failing(self, folder: Path, fatal: int, error: int | None) -> Iterator[None]:
        """Fail at the write of this number, from 0, and at all later ones; None for a kill."""
        self.folder, self.fatal, self.error, self.seen = str(folder), fatal, error, 0
        try:
            yield
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def writes() -> Writes:
    return Writes()


def run(out: Path, *, resume: bool = False) -> None:
    values = torch.linspace(-1, 1, 16).reshape(8, 2)
    data = Dataset(DataSpec("points", (2,), None), values, None)
    model = ScoreModel(MLP(2, width=8), VPSDE())
    for _ in train(model, data, CONFIG, out=out, resume=resume):
        pass


def weights(out: Path) -> dict[str, Tensor]:
    return dict(load(out).network.state_dict())


def ends_alike(whole: Path, out: Path) -> None:
    """Go on with a run, or start it again where nothing was saved, to the same weights."""
    run(out, resume=(out / "state.pt").exists())
    found = weights(out)
    assert all(torch.equal(found[name], value) for name, value in weights(whole).items())
    names = [sorted(str(p.relative_to(r)) for p in r.rglob("*")) for r in (whole, out)]
    assert names[0] == names[1]  # and nothing temporary, and no lock


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_training_loses_what_came_after_the_last_checkpoint_and_says_so(
    tmp_path: Path, writes: Writes, number: int
) -> None:
    whole = tmp_path / "whole"
    with writes.failing(whole, -1, None):
        run(whole)
    assert writes.seen > 40
    mend = "make room" if number == errno.ENOSPC else "make it writable"
    said = set()
    for k in range(0, writes.seen, 1 if number == errno.ENOSPC else 7):
        out = tmp_path / str(k)
        with (
            pytest.raises(OSError, match="train: out must") as caught,
            writes.failing(out, k, number),
        ):
            run(out)
        message = str(caught.value)
        state = out / "state.pt"
        if state.exists():
            step = torch.load(state, weights_only=True)["step"]
            assert f"the checkpoint of step {step} is whole: {mend} and resume" in message
            said.add(step)
        elif "there is no checkpoint yet" in message:
            assert f"{mend} and start again" in message
        else:
            assert "be a folder that can be written" in message
        ends_alike(whole, out)
    assert {0, 2} <= said


KILLS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from forks import ended, start
from test_lost_writes import Writes, ends_alike, run

folder, writes = Path({folder!r}), Writes()
count = folder / "count"

def whole():
    with writes.failing(folder / "whole", -1, None):
        run(folder / "whole")
    count.write_text(str(writes.seen))

def killed(k):
    with writes.failing(folder / str(k), k, None):
        run(folder / str(k))

ended(start(whole))
number = int(count.read_text())
for k in range(number):
    ended(start(lambda: killed(k)), killed=True)
    ended(start(lambda: ends_alike(folder / "whole", folder / str(k))))
print(number)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a killed process is forked")
def test_a_run_killed_at_any_of_its_writes_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    script = KILLS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    program = [sys.executable, "-c", script]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 50


def command(*words: object) -> tuple[int, str]:
    ended = CliRunner().invoke(main, list(map(str, words)))
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended.exit_code, ended.output


def test_samples_that_cannot_be_written_are_said_to_be_lost(
    tmp_path: Path, writes: Writes
) -> None:
    words = ["sample", "--model", "ring", "--steps", 2, "-n", 3, "--solver", "heun", "--out"]
    with writes.failing(tmp_path / "whole", -1, None):
        assert command(*words, tmp_path / "whole")[0] == 0
    messages = []
    for k in range(writes.seen):
        with writes.failing(tmp_path / str(k), k, errno.ENOSPC):
            code, output = command(*words, tmp_path / str(k))
        # A picture that cannot be written is a line beside the samples.
        assert code == (0 if "no picture" in output else 2)
        messages.append(output.strip())
    assert all("\n" not in message for message in messages if "no picture" not in message)
    first = [m for m in messages if "the 3 samples are lost: make room and draw them again" in m]
    then = [m for m in messages if "no picture" in m and "No space left on device" in m]
    early = [m for m in messages if "be a folder that can be written" in m]
    assert min(map(len, (first, then, early))) > 0
    assert len(first) + len(then) + len(early) == len(messages)


@pytest.mark.slow
def test_evaluations_that_cannot_be_written_are_kept_as_far_as_they_came(
    tmp_path: Path, writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", np.linspace(-2, 2, 12).reshape(6, 2))
    words = ["likelihood", "--model", "ring", "--data", "points.npy", "--batch-size", 2]
    words += ["--bound", "elbo", "--times", 4, "--out"]
    with writes.failing(tmp_path / "whole", -1, None):
        assert command(*words, tmp_path / "whole")[0] == 0
    whole = (tmp_path / "whole" / "likelihood.csv").read_text()
    said = set()
    for k in range(writes.seen):
        out = tmp_path / str(k)
        with writes.failing(out, k, errno.ENOSPC):
            code, output = command(*words, out)
        assert code == 2
        assert "\n" not in output.strip()
        resumes = "make room and go on with --resume" in output
        said.add(output.partition("; ")[2].partition(" samples")[0] if resumes else "none")
        assert command(*words, out, *(["--resume"] if resumes else []))[0] == 0
        assert (out / "likelihood.csv").read_text() == whole
    assert said == {"none", "2", "4", "all 6"}


def test_orders_that_cannot_be_written_are_printed(tmp_path: Path, writes: Writes) -> None:
    words = ["verify", "--solver", "euler", "--sde", "vp", "--out", tmp_path / "orders"]
    (tmp_path / "orders").mkdir()
    with writes.failing(tmp_path / "orders" / ".table", 0, errno.ENOSPC):
        code, output = command(*words)
    assert code == 2
    assert "| `Euler()` |" in output or "| `euler` |" in output
    assert "what is printed above is all that is kept: make room and run it again" in output


def test_the_half_of_a_line_that_a_full_disk_took_is_no_line(tmp_path: Path) -> None:
    run(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 5, "lo')
    longer = replace(CONFIG, steps=5)
    values = torch.linspace(-1, 1, 16).reshape(8, 2)
    data = Dataset(DataSpec("points", (2,), None), values, None)
    model = ScoreModel(MLP(2, width=8), VPSDE())
    for _ in train(model, data, longer, out=tmp_path / "run", resume=True):
        pass
    assert metrics.read_text().startswith(whole)
    assert len(metrics.read_text().splitlines()) == 5
