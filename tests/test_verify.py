"""`sde-diffusion verify` certifies right solvers and finds wrong ones, by its exit code too."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from sde_diffusion import (
    MLP,
    VPSDE,
    CosineBeta,
    DataSpec,
    GaussianMixture,
    ScoreLike,
    ScoreModel,
    save_model,
)
from sde_diffusion.cli.main import main
from sde_diffusion.cli.verify import OrderRow, markdown
from sde_diffusion.diagnostics.convergence import Convergence
from sde_diffusion.diagnostics.model_orders import model_convergence
from sde_diffusion.diagnostics.orders import certify
from sde_diffusion.solvers import AdamsBashforth, Ancestral, Heun, RungeKutta4, catalogue

OWN = '''
import torch
from sde_diffusion import ODE, OneStep, ProbabilityFlow, ReverseSDE, Solver
from sde_diffusion.dynamics import linear
from sde_diffusion.solvers import Heun


class Ralston(OneStep[ODE]):
    dynamics, order, third = ODE, 2, 2 / 3

    def step(self, dynamics, x, t, s, noise):
        k1 = dynamics.velocity(x, t)
        k2 = dynamics.velocity(x + self.third * (s - t) * k1, t + self.third * (s - t))
        return x + (s - t) * (0.25 * k1 + 0.75 * k2)


misread = Ralston()
misread.third = 0.6
boastful = Ralston()
boastful.order = 3


class Peer(Solver):
    """A sampler of another library, wrapped: DDIM as a loop over alphas and sigmas."""

    dynamics, order = ProbabilityFlow, 1

    def steps(self, dynamics, x, grid, noise):
        alphas, sigmas = dynamics.sde.alpha(grid), dynamics.sde.sigma(grid)
        for i in range(len(grid) - 1):
            eps = -sigmas[i] * dynamics.score(x, grid[i])
            x0 = (x - sigmas[i] * eps) / alphas[i]
            x = alphas[i + 1] * x0 + sigmas[i + 1] * eps
            yield x


class Loud(OneStep[ReverseSDE]):
    """Euler–Maruyama, its noise a hundredth too loud."""

    dynamics, order = ReverseSDE, 1

    def step(self, dynamics, x, t, s, noise):
        dw = 1.01 * noise.increment(x, t, s)
        return x + dynamics.drift(x, t) * (s - t) + dynamics.diffusion(x, t) * dw


class Own(Ralston):
    order, adaptive = float('nan'), True


class Wild(Ralston):
    def step(self, dynamics, x, t, s, noise):
        return x / 0


class Silent(OneStep[ODE]):
    dynamics, step = ODE, Heun.step


def squares(sde, steps, start, end):
    return torch.linspace(start**0.5, end**0.5, steps + 1, dtype=torch.float64) ** 2
'''


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_solvers.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path


def verify(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["verify", *arguments])


def table(text: str) -> dict[str, list[str]]:
    rows = re.findall(r"^\| `(.+?)` \| (.*) \|$", text, re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in rows}


def test_a_right_solver_is_certified(at_home: Path) -> None:
    ended = verify("--solver", "heun", "--solver", "ancestral:1.0", "--sde", "vp")
    assert ended.exit_code == 0, ended.output
    rows = table(ended.stdout)
    assert rows == table((at_home / "verify-results" / "table.md").read_text(encoding="utf-8"))
    heun = rows["Heun()"]
    ancestral = rows["Ancestral()"]
    assert heun[:2] == ["any ODE", "2"]
    assert float(heun[2]) == pytest.approx(2, abs=0.15)
    assert heun[3:5] == ["–", "2"]
    assert ancestral[:2] == ["reverse SDE", "1"]
    assert re.fullmatch(r"1: (0\.\d\d|1\.\d\d)", ancestral[3])
    assert heun[-1] == ancestral[-1] == "pass"


def test_the_json_has_every_error_behind_an_order(at_home: Path) -> None:
    printed = json.loads(verify("--solver", "heun", "--sde", "edm", "--json").stdout)
    saved = json.loads((at_home / "verify-results" / "verify.json").read_text(encoding="utf-8"))
    assert printed == saved | {"files": printed["files"]}
    (row,) = saved["solvers"]
    measured = row["certificates"]["edm"]["measurements"]
    from sde_diffusion import EDMSDE

    expected = certify(Heun(), EDMSDE())
    assert row["verdict"] == "pass"
    for found, m in zip(measured, expected.measurements, strict=True):
        assert (found["kind"], found["problem"]) == (m.kind, m.problem)
        assert found["errors"] == pytest.approx(m.convergence.errors)
        assert found["steps"] == list(m.convergence.steps)
        assert (found["observed"], found["constant"]) == pytest.approx((m.observed, m.constant))


def test_the_picture_shows_every_curve(at_home: Path) -> None:
    heights = []
    for solvers in (["heun"], ["heun", "dormand-prince", "ancestral:1.0"]):
        options = [word for name in solvers for word in ("--solver", name)]
        assert verify(*options, "--sde", "vp").exit_code == 0
        with Image.open(at_home / "verify-results" / "orders.png") as picture:
            picture.load()
            heights.append(picture.size[1])
    # A panel for each kind and order, in rows of two: ode 2, and ode 2 and 5, weak 1, strong 1.
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.05)


@pytest.mark.parametrize("grid", ["log-snr", "karras", "quadratic", "my_solvers:squares"])
def test_orders_hold_on_any_smooth_family_of_grids(at_home: Path, grid: str) -> None:  # noqa: ARG001
    names = ("--solver", "heun", "--solver", "adams-bashforth")
    ended = verify(*names, "--sde", "ve", "--grid", grid)
    assert ended.exit_code == 0, ended.output
    assert {row[-1] for row in table(ended.stdout).values()} == {"pass"}


def test_a_solver_of_your_own_and_a_wrapped_peer_are_certified(at_home: Path) -> None:  # noqa: ARG001
    ended = verify("--solver", "my_solvers:Ralston", "--solver", "my_solvers:Peer", "--sde", "edm")
    assert ended.exit_code == 0, ended.output
    assert {row[-1] for row in table(ended.stdout).values()} == {"pass"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("misread", r"ode order 1\.0\d on the mixture, declared 2"),
        ("boastful", r"ode order 2\.0\d on the correlated Gaussian, declared 3"),
        ("Loud", r"weak order -?0\.\d\d on the Gaussian, declared 1"),
        ("Wild", r"x must stay finite"),
    ],
)
def test_a_wrong_coefficient_ends_with_exit_code_1(at_home: Path, name: str, says: str) -> None:  # noqa: ARG001
    ended = verify("--solver", f"my_solvers:{name}", "--solver", "heun", "--sde", "vp")
    assert ended.exit_code == 1
    assert ended.stderr.strip() == f"Error: not certified: my_solvers:{name}"
    assert re.search(rf"^my_solvers:{name} on vp: .*{says}", ended.stdout, re.MULTILINE)
    rows = table(ended.stdout)
    assert rows[f"my_solvers:{name}"][-1] == "FAIL"
    assert rows["Heun()"][-1] == "pass"


def test_a_refusal_fails_the_solver_that_was_named(at_home: Path) -> None:  # noqa: ARG001
    ended = verify("--solver", "torchdiffeq:explicit_adams", "--sde", "vp", "--grid", "log-snr")
    assert ended.exit_code == 1
    assert table(ended.stdout)["TorchDiffEq(method='explicit_adams')"][-1] == "refused"
    assert "grid must be uniform for explicit_adams" in ended.stdout


def test_a_tolerance_is_no_order(at_home: Path) -> None:  # noqa: ARG001
    ended = verify("--solver", "my_solvers:Own", "--sde", "vp")
    assert ended.exit_code == 0, ended.output
    assert table(ended.stdout)["my_solvers:Own"] == ["any ODE", *["–"] * 5, "by tolerance"]
    silent = verify("--solver", "my_solvers:Silent", "--sde", "vp")
    assert silent.exit_code == 1
    assert "order must be a number, got nan; declare it on the class" in silent.stdout


def test_a_name_stands_for_all_variants_of_a_class(at_home: Path) -> None:  # noqa: ARG001
    ended = verify("--solver", "adams-bashforth", "--sde", "rectified-flow")
    assert list(table(ended.stdout)) == list(catalogue.instances_of(AdamsBashforth))


def test_a_row_is_the_spread_over_the_sdes() -> None:
    row = OrderRow("Ancestral()", Ancestral())
    found = certify(Ancestral(), VPSDE())
    row.certificates = {"vp": found, "again": found}
    (cells,) = table(markdown([row])).values()
    assert "–" not in cells[2]  # the same order twice is one number
    assert len(cells) == 7


def test_langevin_is_certified_and_solvers_of_alpha_refuse_it_by_name(at_home: Path) -> None:  # noqa: ARG001
    ended = verify("--sde", "cld", "--solver", "heun", "--solver", "ddim")
    rows = table(ended.stdout)
    assert rows["Heun()"][-1] == "pass"
    assert float(rows["Heun()"][2]) == pytest.approx(2, abs=0.15)
    assert rows["DDIM()"][-1] == "refused"
    assert "dynamics must come from a LinearSDE, for alpha and sigma" in ended.stdout
    assert ended.exit_code == 1
    spaced = verify("--sde", "cld", "--solver", "heun", "--grid", "log-snr")
    assert "sde must be a LinearSDE, got CriticallyDampedLangevin" in spaced.stdout


# --- a model of one's own ---


class Kinked(ScoreLike):
    """A score whose flow dx/dt = −½ β (1 + ½ |x|) of VP goes through the kink at 0."""

    sde = VPSDE()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return 1 + 0.5 * x.abs() - x


def test_orders_on_a_models_flow_are_those_of_its_solver_where_it_is_smooth() -> None:
    smooth = GaussianMixture.ring(3).diffused(VPSDE())
    fourth = model_convergence(RungeKutta4(), smooth, (8, 2), (32, 64))
    assert fourth.order == pytest.approx(4, abs=0.15)
    # A step across a kink of the velocity has an error of dt², whatever the solver.
    kinked = model_convergence(RungeKutta4(), Kinked(), (64, 2), (32, 64, 128))
    assert kinked.overall == pytest.approx(2, abs=0.5)
    with pytest.raises(TypeError, match=r"solver must solve the .*; pass for example Heun\(\)"):
        model_convergence(Ancestral(), smooth, (8, 2))


def test_a_models_own_sde_and_flow_are_looked_at(at_home: Path) -> None:
    torch.manual_seed(0)
    network = MLP(2, width=8)
    nn.init.normal_(network.head.weight, std=0.5)
    spec = DataSpec("points", (2,), None)
    save_model("m.safetensors", ScoreModel(network, VPSDE(CosineBeta()), data=spec))
    both = ("--solver", "heun", "--solver", "ancestral:1.0")
    ended = verify("--model", "m.safetensors", *both, "--json")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert found["sdes"] == ["m.safetensors"]
    certificate = found["solvers"][0]["certificates"]["m.safetensors"]
    cosine = certify(Heun(), VPSDE(CosineBeta()))
    for row, m in zip(certificate["measurements"], cosine.measurements, strict=True):
        assert row["errors"] == pytest.approx(m.convergence.errors)
    (name, row), *others = found["on the flow"].items()
    assert (name, others) == ("Heun()", [])  # the other solves the reverse SDE
    slopes = Convergence(tuple(row["steps"]), tuple(row["errors"])).slopes
    assert slopes[-1] == pytest.approx(2, abs=0.15)
    table = (at_home / "verify-results" / "table.md").read_text(encoding="utf-8")
    assert f"| `Heun()` | {', '.join(f'{slope:.2f}' for slope in slopes)} |" in table


def test_a_model_brings_its_sde(at_home: Path) -> None:  # noqa: ARG001
    both = verify("--model", "ring", "--sde", "vp")
    assert both.exit_code == 2
    assert "--sde must not be given with --model, whose SDE it is, got vp; drop one" in both.stderr
    fixed = verify("--model", "ring", "--posterior")
    assert fixed.exit_code == 2
    assert "--model must not be given with --posterior" in fixed.stderr
