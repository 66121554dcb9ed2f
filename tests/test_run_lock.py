"""Two runs in one folder: the second ends at once and names the first; the dead hold nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from sde_diffusion.cli.main import main
from sde_diffusion.parallel.lock import RunLock

HOLD = """
import sys
from sde_diffusion.parallel.lock import RunLock
try:
    with RunLock("train", sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
except FileExistsError as error:
    print(error, flush=True)
"""


def starting(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a process that holds the folder until it is told to end."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@contextmanager
def holder(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    with starting(folder, **environment) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("command", ["train", "sample", "likelihood"])
def test_the_second_run_is_one_line_that_names_the_first(tmp_path: Path, command: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "state.pt").write_bytes(b"of the first")  # it says so before it speaks of this file
    with holder(out) as first:
        before = sorted(out.iterdir())
        ended = CliRunner().invoke(main, [command, "--out", str(out)])
        assert ended.exit_code == 2
        assert ended.output.startswith(
            f"Error: {command}: out must be a folder in which nothing runs, got process "
            f"{first.pid} on {platform.node()} at work there since "
        )
        assert ended.output.count("\n") == 1
        assert sorted(out.iterdir()) == before  # and nothing of the first is touched


def test_what_a_killed_process_leaves_is_taken_over(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        process.kill()
        process.wait()
    left = list((tmp_path / "run").iterdir())
    assert len(left) == 1
    with RunLock("train", tmp_path / "run"):
        assert left[0].exists() is False
    assert list((tmp_path / "run").iterdir()) == []


def test_a_number_that_another_process_has_by_now_is_that_of_a_dead_one(tmp_path: Path) -> None:
    with RunLock("train", tmp_path / "run") as lock:
        (own,) = lock.folder.iterdir()
        parts = own.name.split("~")
    if parts[4] == "":
        pytest.skip("this system does not say when a process began")
    (tmp_path / "run").mkdir()
    number = str((tmp_path / "run").stat().st_ino)
    earlier = "~".join([parts[0], number, parts[2], str(os.getppid()), "1", *parts[5:]])
    (tmp_path / "run" / earlier).touch()
    with RunLock("train", tmp_path / "run"):
        assert not (tmp_path / "run" / earlier).exists()


def test_a_process_elsewhere_may_be_at_work_until_its_file_is_deleted(tmp_path: Path) -> None:
    number = tmp_path.stat().st_ino
    file = tmp_path / f".lock~{number}~%3A~7~99~another"
    file.touch()
    remedy = rf"process 7 on another at work .*; if it has ended, delete {file}$"
    with pytest.raises(FileExistsError, match=remedy):
        RunLock("train", tmp_path).__enter__()
    file.unlink()
    with RunLock("train", tmp_path):
        pass


def test_a_copy_of_a_folder_at_work_is_free(tmp_path: Path) -> None:
    with RunLock("train", tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        RunLock("train", tmp_path / "copy").check()
        with (
            pytest.raises(
                FileExistsError,
                match=f"got process {os.getpid()} on .*; close the iterator of that run",
            ),
            RunLock("train", tmp_path / "run"),
        ):
            pass
    RunLock("train", tmp_path / "run").check()


def test_of_those_that_start_together_one_gets_the_folder(tmp_path: Path) -> None:
    processes = [starting(tmp_path / "run") for _ in range(4)]
    try:
        said = [p.stdout.readline() for p in processes if p.stdout is not None]
        held = [p for p, line in zip(processes, said, strict=True) if line == "held\n"]
        assert len(held) == 1, said
        refused = [line for line in said if line != "held\n"]
        assert all("must be a folder in which nothing runs" in line for line in refused)
    finally:
        for process in processes:
            process.communicate("")


def test_processes_of_another_launch_by_torchrun_end_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them says why; one that went on would write over the signs of life there."""
    with holder(tmp_path, MASTER_ADDR="127.0.0.1", MASTER_PORT="1000"):
        for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", "2000")
        with pytest.raises(SystemExit), RunLock("train", tmp_path):
            pass
        monkeypatch.setenv("MASTER_PORT", "1000")
        with RunLock("train", tmp_path) as lock:
            assert not lock.held
