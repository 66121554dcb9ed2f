"""Training by many processes: the same result, and an orderly end whatever ends one of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    ScoreModel,
    TrainingConfig,
    load,
    train,
)
from sde_diffusion.parallel import processes as distributed
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.training.trainer import Trainer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun's signals are POSIX's")

# All that could go wrong with a part of a batch: its dropout, labels, times, and a loss history.
CONFIG = TrainingConfig(
    steps=9,
    batch_size=24,
    warmup=2,
    learning_rate=0.01,
    seed=3,
    spacing="loss-aware",
    checkpoint_every=3,
    log_every=3,
    ema_decay=0.5,
    label_dropout=0.3,
    accumulate=2,
)


def points(rows: int = 50) -> Dataset:
    values = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    return Dataset(DataSpec("points", (2,), None), values, torch.arange(rows) % 3)


def fresh(shift: float = 0.0) -> ScoreModel:
    """The model of these tests; in other processes than the first it starts elsewhere."""
    model = ScoreModel(MLP(2, width=16, classes=3, dropout=0.2), VPSDE()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shift)
    return model


JOB = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from test_distributed import CONFIG, Processes, fresh, points, replace, torch, train
out, steps, resume, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4]
config = replace(CONFIG, steps=steps)
with Processes(out) as processes:
    model, rank = fresh(float(processes.rank)), processes.rank
    for p in train(model, points(), config, out=out, resume=resume, processes=processes):
        if moment == "fails" and p.step == 4 and rank == 1:
            raise ValueError("the disk of rank 1 is gone")
        if moment == "hangs" and p.step == 4:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)  # as in an exchange that never ends
        if moment == "waits":
            time.sleep(0.02)
        if processes.interrupted:
            break
    torch.save((p.step, model.network.state_dict()), f"{{out}}-{{rank}}.pt")
"""


@dataclass
class Job:
    """A script under torchrun."""

    process: subprocess.Popen[str]
    out: Path

    def end(self, seconds: float = 60) -> str:
        """Return what it has written on standard error, once it is over."""
        return self.process.communicate(timeout=seconds)[1]

    def pid(self, rank: int) -> int:
        pid: int = json.loads((self.out / f".ranks/rank-{rank}.json").read_text())["pid"]
        return pid

    def wait_for(self, step: int) -> None:
        """Wait until the first line of metrics of that step or a later one."""
        metrics = self.out / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.end()
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if lines and json.loads(lines[-1])["step"] >= step:
                return
            time.sleep(0.02)


@contextlib.contextmanager
def torchrun(
    out: Path, steps: int, *, resume: bool = False, moment: str = "", processes: int = 2
) -> Iterator[Job]:
    program = out.parent / "job.py"
    program.write_text(JOB.format(tests=str(Path(__file__).parent)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        str(program),
        str(out),
        str(steps),
        "1" if resume else "0",
        moment,
    ]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            yield Job(process, out)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ended(out: Path, rank: int) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the step after which a rank ended, and its weights."""
    found: tuple[int, dict[str, torch.Tensor]] = torch.load(f"{out}-{rank}.pt", weights_only=True)
    return found


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def alone(out: Path, steps: int, **settings: int) -> dict[str, torch.Tensor]:
    model = fresh()
    for _ in train(model, points(), replace(CONFIG, steps=steps, **settings), out=out):
        pass
    weights: dict[str, torch.Tensor] = model.network.state_dict()
    return weights


def history(out: Path) -> dict[str, torch.Tensor]:
    """Return what the times have learned of the losses, by level."""
    found: dict[str, torch.Tensor] = torch.load(out / "state.pt", weights_only=True)["objective"]
    return found


def test_two_processes_train_as_one_does_and_either_goes_on_with_the_other(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with torchrun(out, 6) as job:
        errors = job.end()
    assert job.process.returncode == 0, errors
    first = ended(out, 0)[1]
    second = ended(out, 1)[1]
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Four parts, whoever computes them: the masks of dropout are the same.
    assert farthest(first, alone(tmp_path / "parts", 6, accumulate=4)) < 1e-12
    assert farthest(history(out), history(tmp_path / "parts")) < 1e-12
    assert farthest(first, alone(tmp_path / "undivided", 6, accumulate=1)) > 1e-6
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "state.pt",
    ]
    whole = alone(tmp_path / "whole", 9, accumulate=4)
    resumed = fresh(1.0)
    config = replace(CONFIG, accumulate=4)
    for _ in train(resumed, points(), config, out=out, resume=True):
        pass
    assert farthest(resumed.network.state_dict(), whole) < 1e-12
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9]


@pytest.mark.slow
def test_two_processes_go_on_as_if_nothing_had_stopped_them(tmp_path: Path) -> None:
    """Bit for bit: a sum of two numbers does not depend on their order."""
    for steps, resume in ((4, False), (9, True)):
        with torchrun(tmp_path / "cut", steps, resume=resume) as job:
            errors = job.end()
        assert job.process.returncode == 0, errors
    with torchrun(tmp_path / "whole", 9) as job:
        job.end()
    cut = ended(tmp_path / "cut", 0)[1]
    whole = ended(tmp_path / "whole", 1)[1]
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def check_dead(job: Job, errors: str, rank: int, got: str) -> None:
    """Assert that the job has ended as it should where a rank is gone."""
    assert job.process.returncode != 0
    [line] = [line for line in errors.splitlines() if f"rank {rank} must finish its share" in line]
    step = torch.load(job.out / "state.pt", weights_only=True)["step"]
    assert f"got {got}" in line
    head, _, told = line.rpartition(" from step ")
    assert head.endswith(f"what is done is kept: resume {job.out}")
    assert step - int(told) in (0, CONFIG.checkpoint_every)  # killed before it could tell
    assert load(job.out).data == points().spec


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_job_and_is_named(tmp_path: Path, rank: int) -> None:
    with torchrun(tmp_path / "run", 100_000, moment="waits") as job:
        job.wait_for(9)
        pid = job.pid(rank)
        os.kill(pid, signal.SIGKILL)
        errors = job.end(60)
    check_dead(job, errors, rank, f"no sign of life from process {pid}")
    assert torch.load(job.out / "state.pt", weights_only=True)["step"] >= 6


@pytest.mark.slow
def test_a_process_that_hangs_as_another_is_killed_ends_with_the_message(tmp_path: Path) -> None:
    with torchrun(tmp_path / "run", 100, moment="hangs") as job:
        errors = job.end(60)
    check_dead(job, errors, 1, "no sign of life from process")
    assert "Error: ranks: rank 1 must" in errors


@pytest.mark.slow
def test_a_rank_that_fails_says_why_and_the_first_one_names_it(tmp_path: Path) -> None:
    with torchrun(tmp_path / "run", 100, moment="fails") as job:
        errors = job.end(60)
    check_dead(job, errors, 1, "the disk of rank 1 is gone")
    assert "ValueError: the disk of rank 1 is gone" in errors


@pytest.mark.slow
def test_all_stop_after_the_same_step_when_one_is_asked_to(tmp_path: Path) -> None:
    with torchrun(tmp_path / "run", 100_000, moment="waits", processes=3) as job:
        job.wait_for(3)
        os.kill(job.pid(2), signal.SIGTERM)
        errors = job.end(60)
    assert job.process.returncode == 0, errors
    steps = {ended(job.out, rank)[0] for rank in range(3)}
    assert steps == {torch.load(job.out / "state.pt", weights_only=True)["step"]}
    assert 3 <= steps.pop() < 100_000


# --- one process ---


def test_signals_are_a_wish_to_stop_and_a_second_ctrl_c_an_order(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Processes(tmp_path) as processes:
        assert not processes.interrupted
        os.kill(os.getpid(), signal.SIGTERM)
        assert processes.interrupted
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat themselves
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert before == {number: signal.getsignal(number) for number in before}
    assert list(tmp_path.iterdir()) == []


def test_processes_of_torchrun_that_have_not_met_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    says = r"processes must have met, as torchrun has started several, .*with Processes\(out\)"
    with pytest.raises(ValueError, match=says):
        Trainer(fresh(), points(), CONFIG)
    with pytest.raises(ValueError, match=r"accumulate × processes = 10, got 24; pass .*=20"):
        Trainer(fresh(), points(), replace(CONFIG, accumulate=5))


def signs(folder: Path, rank: int, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "name": str(rank),
        "host": "elsewhere",
        "pid": 1,
        "state": "working",
        "beat": 0,
        "error": "",
    } | values
    (folder / f"rank-{rank}.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("rank", "states", "says"),
    [
        (0, {1: {}, 2: {"state": "failed", "error": "full disk"}}, "rank 2 must .* full disk"),
        (1, {0: {}, 2: {"state": "failed", "error": "full disk"}}, None),  # rank 0 says it
        (1, {2: {}}, None),  # rank 0 is over, and has said why
        (0, {1: {"state": "stopped"}, 2: {"state": "done"}}, ""),  # an error of its own
        (
            2,
            {0: {"state": "failed", "error": "x"}, 1: {"state": "failed", "error": "y"}},
            "rank 0 must .* x; .*from step 0",
        ),
    ],
)
def test_the_lowest_process_that_is_left_tells_what_has_ended_another(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    states: dict[int, dict[str, object]],
    says: str | None,
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(distributed, "_SEARCH", 0.3)
    for other, values in states.items():
        signs(tmp_path / ".ranks", other, **values)
    cause = Processes(tmp_path)._cause(RuntimeError("Connection reset by peer"))
    if says:
        assert isinstance(cause, ChildProcessError)
        assert re.search(says, str(cause))
    elif says is None:
        assert isinstance(cause, SystemExit)
        assert cause.code == 1
    else:
        assert cause is None


def test_a_victim_does_not_say_that_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the others would blame it: it has lost its connections as they have."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    processes = Processes(tmp_path)
    folder = tmp_path / ".ranks"
    with contextlib.ExitStack() as stack:
        stack.callback(processes._ranks.__exit__, None, None, None)
        processes._ranks.__enter__()
        name = json.loads((folder / "rank-1.json").read_text())["name"]
        signs(folder, 0, agreed={"names": {"1": name}, "made": {}})
        signs(folder, 2, state="failed", error="full disk")
        with pytest.raises(SystemExit):
            processes.__exit__(RuntimeError, RuntimeError("Connection reset by peer"), None)
        assert json.loads((folder / "rank-1.json").read_text())["state"] == "stopped"


@pytest.mark.slow
def test_images_are_trained_on_without_a_warning(tmp_path: Path) -> None:
    """The gradients of 1×1 convolutions come in other strides than their weights'."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 28, 28), generator=generator, dtype=torch.uint8)
    np.save(tmp_path / "images.npy", images.numpy())
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "sde_diffusion.cli",
            "train",
            "--data",
            str(tmp_path / "images.npy"),
            "--steps",
            "1",
            "--batch-size",
            "32",
            "--width",
            "24",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "run"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
