"""Solvers are listed once, shells complete names, and long runs say where they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sde_diffusion.cli import _common, menu
from sde_diffusion.cli._solvers import solver_class
from sde_diffusion.cli.main import main
from sde_diffusion.cli.train import command as train
from sde_diffusion.solvers import catalogue


def out(*words: str) -> str:
    done = CliRunner().invoke(main, list(words), terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_solver_is_listed_with_what_was_measured_of_it(root: Path) -> None:
    """Order, equation and evaluations are those of docs/orders.md, where it has the instance."""
    page = (root / "docs" / "orders.md").read_text(encoding="utf-8")
    rows = {row["solver"]: row for row in json.loads(out("solvers", "--json"))["solvers"]}
    assert list(rows) == list(menu.SOLVER_NAMES)
    known = set(re.findall(r"^\| `(.+?)` \|", page, re.M))
    compared = 0
    for name, row in rows.items():
        made = solver_class(name)()
        for text in {repr(made), catalogue.text(made)} & known:
            cells = re.search(rf"^\| `{re.escape(text)}` \| (.*) \|$", page, re.M)
            assert cells is not None
            solves, order, _, _, evaluations, *_ = cells[1].split(" | ")
            assert row["solves"] == solves
            assert float(order) == row["order"]
            if row["evaluations"] is not None and "–" not in evaluations:
                assert float(evaluations) == pytest.approx(row["evaluations"], rel=0.1)
            compared += 1
    assert compared >= 12
    text = out("solvers")
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"^heun +2 +2 +any ODE", text, re.M)


@pytest.mark.parametrize("name", ["sample", "likelihood", "compare", "verify"])
def test_the_names_stand_in_one_help_only(name: str) -> None:
    text = " ".join(out(name, "--help").split())
    assert "of `sde-diffusion solvers`" in text
    assert "dpm-solver-pp-singlestep" not in text


def test_the_help_of_training_begins_with_what_most_runs_set() -> None:
    basic, *advanced = re.split(r"^Advanced: .*$", out("train", "--help"), flags=re.M)
    assert len(advanced) == 8
    for option in ("--data", "--out", "--steps", "--batch-size", "--resume", "--help"):
        assert re.search(rf"^  .*{option}\b", basic, re.M), option
    shown = basic + "".join(advanced)
    for param in train.params:
        flag = next(name for name in param.opts if name.startswith("--"))
        assert len(re.findall(rf"^  (?:-\w, )?{flag}(?![\w-])", shown, re.M)) == 1, flag
        assert (flag in basic) != any(re.search(rf"^  {flag}(?![\w-])", a, re.M) for a in advanced)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("sample --solver dpm-solver-pp-s", {"dpm-solver-pp-singlestep"}),
        ("likelihood --solver ru", set()),
        ("likelihood --solver rk", {"rk4"}),
        ("sample --model ring:e", {"ring:edm"}),
        ("info mn", {"mnist"}),
        ("train --sde vp", {"vp", "vp-cosine"}),
        ("sol", {"solvers"}),
        ("train --weighting min", {"min-snr"}),
    ],
)
def test_a_shell_completes_names(typed: str, expected: set[str]) -> None:
    words = ["sde-diffusion", *typed.split()]
    settings = {
        "_SDE_DIFFUSION_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "from sde_diffusion.cli.main import main; main(prog_name='sde-diffusion')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.split(",", 1) for line in done.stdout.splitlines() if line]
    assert {word for kind, word in found if kind == "plain"} == expected
    assert any(kind == "file" for kind, _ in found) == ("--model" in typed or "info" in typed)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_help_says_how_a_shell_is_told(shell: str) -> None:
    assert f"{shell}_source" in out("--help")
    kind = click.shell_completion.get_completion_class(shell)
    assert kind is not None


def test_without_a_terminal_there_is_a_line_now_and_then(capsys) -> None:
    with _common.progress(3, "step", every=0.0) as bar:
        for _ in range(3):
            bar.set_postfix(loss="0.5", refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"3 of 3 steps, \d\d:\d\d so far, loss=0.5", lines[-1])
    assert [line[0] for line in lines] == sorted(line[0] for line in lines)
    with _common.progress(3, "step", every=0.0, leads=False) as bar:
        bar.update()
    with _common.progress(3, "step") as bar:  # done within the first minute
        bar.update(3)
    assert capsys.readouterr().err == ""
