"""Every benchmark still runs, in its quick form, and writes what it printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPTS = (
    "dit",
    "few_steps",
    "grids",
    "kernels",
    "latents",
    "likelihood",
    "noise",
    "objectives",
    "overhead",
    "quality",
    "scaling",
    "signals",
    "training",
)


def test_every_script_is_run_here(root) -> None:
    found = {path.stem for path in (root / "benchmarks").glob("[!_]*.py")}
    assert found - {"import_time"} == set(SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_runs_and_writes_json(root, tmp_path, name) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / f"{name}.py"), "--quick", "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text(encoding="utf-8"))
    assert "|" in done.stdout
