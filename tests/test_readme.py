"""The README's first commands and its table are those of the program."""

from __future__ import annotations

import re

import pytest

from sde_diffusion.cli.verify import markdown
from sde_diffusion.diagnostics.convergence import TOLERANCE, declared
from sde_diffusion.solvers import catalogue


@pytest.fixture(scope="module")
def readme(root) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)


def test_the_first_block_is_the_two_commands(readme) -> None:
    assert blocks(readme, "sh")[0].splitlines() == [
        "pip install -c constraints.txt -e . && sde-diffusion compare",
        "pip install -c constraints.txt -e '.[test]' && pytest -n 2 --dist worksteal",
    ]


@pytest.fixture(scope="module")
def pasted(root) -> str:
    """What `sde-diffusion verify` printed when the documentation was written."""
    return (root / "docs" / "orders.md").read_text(encoding="utf-8")


def rows(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^\| `(.+?)` \| (.*) \|$", text, re.MULTILINE)


def test_the_readmes_table_is_a_part_of_that(readme, pasted) -> None:
    table = readme[readme.index("## Solvers") : readme.index("## Three ways")]
    assert markdown([]).splitlines()[0] in table
    assert markdown([]).splitlines()[0] in pasted
    assert len(rows(table)) >= 20
    assert set(rows(table)) <= set(rows(pasted))


def test_the_table_is_of_the_solvers_there_are(pasted) -> None:
    """A new solver, or another set of instances, asks for the table once more."""
    assert [name for name, _ in rows(pasted)] == list(catalogue.instances())
    left_out = ", ".join(f"`{name}`" for name in catalogue.unmeasured())
    assert f"Not measured, for the reasons in their documentation: {left_out}." in pasted


def test_the_table_says_what_the_code_declares(pasted) -> None:
    found = catalogue.instances()
    for name, cells in rows(pasted):
        solver = found[name]
        _, order, observed, strong, *_, verdict = cells.split(" | ")
        assert float(order) == declared(solver), name
        for value in map(float, observed.split(" – ")):
            assert value == pytest.approx(float(order), abs=TOLERANCE + 0.005), name
        if strong != "–":
            assert float(strong.partition(":")[0]) == solver.strong_order, name
        assert verdict == "pass", name
