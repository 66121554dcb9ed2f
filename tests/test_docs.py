"""The guide's examples are run, and `verify` certifies them."""

from __future__ import annotations

import ast
import doctest
import re
import shlex

import click
import pytest
import torch
from click.testing import CliRunner

from sde_diffusion import VPSDE, GaussianMixture, ProbabilityFlow, integrate, uniform
from sde_diffusion.cli.main import main
from sde_diffusion.solvers import DPMSolverPPPublished


@pytest.fixture(scope="module")
def blocks(root) -> list[str]:
    guide = (root / "docs" / "solvers.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)


def verify(name: str, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["verify", "--solver", name, "--sde", "vp", "--sde", "edm"]
    return CliRunner().invoke(main, arguments)


def test_the_one_step_example_is_certified_and_its_mistake_is_not(
    blocks, monkeypatch, tmp_path
) -> None:
    (code,) = [block for block in blocks if "class Ralston" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "ralston_right.py").write_text(code, encoding="utf-8")
    right = verify("ralston_right:Ralston", monkeypatch, tmp_path)
    assert right.exit_code == 0, right.output
    (tmp_path / "ralston_wrong.py").write_text(code.replace("2 / 3", "1 / 2"), encoding="utf-8")
    wrong = verify("ralston_wrong:Ralston", monkeypatch, tmp_path)
    assert wrong.exit_code == 1
    assert "not certified: ralston_wrong:Ralston" in wrong.output


def test_the_multistep_example_is_the_published_2m(blocks, monkeypatch, tmp_path) -> None:
    (code,) = [block for block in blocks if "class DPMpp2M" in block]
    space: dict[str, object] = {}
    exec(compile(code, "solvers.md", "exec"), space)
    model = GaussianMixture.ring(3).diffused(VPSDE())
    x = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    flow = ProbabilityFlow(model.sde, model)
    found = integrate(flow, space["DPMpp2M"](), x, uniform(9)).x  # type: ignore[operator]
    expected = integrate(flow, DPMSolverPPPublished(memory=2), x, uniform(9)).x
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-12)
    (tmp_path / "two_m.py").write_text(code, encoding="utf-8")
    done = verify("two_m:DPMpp2M", monkeypatch, tmp_path)
    assert done.exit_code == 0, done.output


def test_a_wrapped_sampler_of_another_program_is_certified(blocks, monkeypatch, tmp_path) -> None:
    (code,) = [block for block in blocks if "class Wrapped" in block]
    code += """

def euler(denoiser, y, sigmas):
    for s, following in zip(sigmas[:-1], sigmas[1:]):
        y = y + (following - s) * (y - denoiser(y, s)) / s
    return y


right, wrong = Wrapped(euler, order=1), Wrapped(euler, order=2)
"""
    (tmp_path / "theirs.py").write_text(code, encoding="utf-8")
    assert verify("theirs:right", monkeypatch, tmp_path).exit_code == 0
    failed = verify("theirs:wrong", monkeypatch, tmp_path)
    assert failed.exit_code == 1
    assert "not certified: theirs:wrong" in failed.output


def test_the_examples_on_the_density_of_a_sampler_print_what_they_say(root) -> None:
    page = str(root / "docs" / "sampler_density.md")
    done = doctest.testfile(page, module_relative=False, encoding="utf-8")
    assert done.failed == 0
    assert done.attempted > 30


@pytest.fixture(scope="module")
def likelihood(root) -> str:
    return (root / "docs" / "likelihood.md").read_text(encoding="utf-8")


_NUMBER = r"[-−+]?\d+\.?\d*"


def agree(printed: str, promised: str) -> bool:
    """Return whether texts differ in numbers alone, by two in the last place at most."""
    if re.sub(_NUMBER, "#", printed) != re.sub(_NUMBER, "#", promised):
        return False
    pairs = zip(re.findall(_NUMBER, printed), re.findall(_NUMBER, promised), strict=True)
    return all(
        abs(float(found) - float(said)) < 2.5 * 10.0 ** -len(said.partition(".")[2])
        for found, said in pairs
    )


def test_texts_agree_where_their_numbers_do() -> None:
    assert agree("t = -4.0, 0.013 bits", "t = -4.1, 0.011 bits")
    assert not agree("t = 4.1", "t = -4.1")
    assert not agree("0.014 bits", "0.011 bits")
    assert not agree("0.011 nats", "0.011 bits")


@pytest.mark.parametrize("number", range(6))
def test_a_script_on_likelihoods_prints_what_the_guide_says(likelihood, number, capsys) -> None:
    found = re.findall(
        r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", likelihood, re.MULTILINE | re.DOTALL
    )
    assert len(found) == 6 == likelihood.count("```python")
    code, promised = found[number]
    exec(compile(code, "likelihood.md", "exec"), {})
    assert agree(capsys.readouterr().out, promised)


def test_the_commands_on_likelihoods_are_the_command_lines(likelihood) -> None:
    """Their options and choices are checked; what they do is run elsewhere."""
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", likelihood, re.MULTILINE | re.DOTALL))
    lines = [
        re.sub(r".*(sde-diffusion|sde_diffusion\.cli) ", "", line).strip()
        for line in shell.splitlines()
    ]
    assert len(lines) >= 5
    for line in lines:
        name, *options = shlex.split(line)
        command = main.get_command(click.Context(main), name)
        assert command is not None
        command.make_context(name, options)


def test_the_script_for_many_processes_runs_alone_too(root, capsys) -> None:
    page = (root / "docs" / "distributed.md").read_text(encoding="utf-8")
    ((code, promised),) = re.findall(
        r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )
    exec(compile(code, "distributed.md", "exec"), {})
    assert capsys.readouterr().out == promised


@pytest.mark.parametrize("page", ["distributed", "guidance"])
def test_the_commands_of_a_guide_are_the_command_lines(root, page) -> None:
    """Their options and choices are checked; what they do is run elsewhere."""
    text = (root / "docs" / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"(?:sde-diffusion|sde_diffusion\.cli) (train|sample) ([^`\n]*)", text)
    assert found
    for name, options in found:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        words = [word for word in shlex.split(options) if word != "$resume"]
        command.make_context(name, words)


@pytest.fixture(scope="module")
def tour(root) -> list[str]:
    text = (root / "docs" / "tour.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_core_in_thirty_lines_is_what_the_package_does(tour, capsys) -> None:
    core, package = tour
    assert len([line for line in core.splitlines() if line.strip()]) <= 30
    space: dict[str, object] = {}
    exec(compile(core, "tour.md", "exec"), space)
    exec(compile(package, "tour.md", "exec"), space)
    promised = re.findall(r"^print\(.*\)  # (.*)$", package, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == promised
    assert len(promised) == 2


def test_the_picture_of_the_rooms_is_current(root, rooms) -> None:
    picture = (root / "docs" / "rooms.svg").read_text(encoding="utf-8")
    assert rooms.drawn(rooms.modules(root)) == picture, "renew it: python docs/rooms.py"


def test_a_new_import_between_rooms_changes_the_picture(root, rooms) -> None:
    mistake = ast.parse("from sde_diffusion.models.score import ScoreModel")
    parsed = {**rooms.modules(root), "sde_diffusion.training.mistake": mistake}
    assert rooms.drawn(parsed) == rooms.drawn(rooms.modules(root))  # an arrow that follows
    mistake = ast.parse("from sde_diffusion.nets.unet import UNet")
    parsed = {**rooms.modules(root), "sde_diffusion.integration.mistake": mistake}
    assert rooms.drawn(parsed) != rooms.drawn(rooms.modules(root))
