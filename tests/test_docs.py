"""The guide's solvers are certified by `verify`, their mistakes are not."""

from __future__ import annotations

import ast
import re

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
    (tmp_path / "ralston.py").write_text(code, encoding="utf-8")
    right = verify("ralston:Ralston", monkeypatch, tmp_path)
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


@pytest.fixture(scope="module")
def tour(root) -> list[str]:
    text = (root / "docs" / "tour.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_core_has_thirty_lines(tour) -> None:
    core, _ = tour
    assert len([line for line in core.splitlines() if line.strip()]) <= 30


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
