"""What the README says is run: its code, its commands and its table."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from sde_diffusion import solvers


@pytest.fixture(scope="module")
def readme(root) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)


def test_the_first_block_is_the_two_commands(readme) -> None:
    assert blocks(readme, "sh")[0].splitlines() == [
        "pip install -c constraints.txt -e . && sde-diffusion compare",
        "pip install -c constraints.txt -e '.[test]' && pytest",
    ]


def test_python_examples_run_and_print_what_they_say(readme, capsys) -> None:
    namespace: dict[str, object] = {}
    promised: list[str] = []
    for block in blocks(readme, "python"):
        exec(compile(block, "README.md", "exec"), namespace)
        promised += re.findall(r"^print\(.*\)  # ([\w.()\[\], ]*?)(?:, against.*)?$", block, re.M)
    printed = capsys.readouterr().out
    assert len(promised) == 2
    for text in promised:
        assert text in printed


@pytest.mark.parametrize("name", sorted(set(solvers.__all__) - {"Corrector"}))
def test_the_table_holds_every_solver(readme, name) -> None:
    assert re.search(rf"^\| .*\b{name}\b.*\|$", readme, re.MULTILINE)


def test_the_tables_declared_orders_are_the_codes(readme) -> None:
    table = readme[readme.index("## Solvers") : readme.index("## Three ways")]
    rows = re.findall(r"^\| `(.+?)`[^|]*\| [^|]* \| (\d+) \|", table, re.MULTILINE)
    assert len(rows) >= 12
    for code, declared in rows:
        assert eval(code, vars(solvers)).order == int(declared), code


def test_commands_exist_with_their_options(readme) -> None:
    from sde_diffusion.cli.main import main

    commands = re.findall(r"sde-diffusion (\w+)(.*)", "\n".join(blocks(readme, "sh")))
    assert len(commands) >= 6
    for command, rest in commands:
        shown = CliRunner().invoke(main, [command, "--help"])
        assert shown.exit_code == 0, command
        for option in re.findall(r"--[\w-]+", rest):
            assert option in shown.output, f"{command} {option}"
