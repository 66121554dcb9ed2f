"""`doctor` passes on a sound machine, and every check of it fails where a fault is planted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sde_diffusion import (
    MLP,
    ODE,
    VPSDE,
    FunctionScore,
    Gaussian,
    Noise,
    OneStep,
    PerSampleNoise,
    ScoreModel,
    WhiteNoise,
    denoising_loss,
    load,
)
from sde_diffusion.cli.main import main
from sde_diffusion.evaluation import selfcheck, selfcheck_draws as draws
from sde_diffusion.evaluation.selfcheck import Check
from sde_diffusion.solvers import DormandPrince, Euler, EulerMaruyama, Heun

CPU = torch.device("cpu")
SDE = VPSDE()
NAMES = [
    "order of Heun",
    "order of EulerMaruyama",
    "five steps of Heun",
    "log-likelihood of a Gaussian",
    "20 training steps",
    "the loss falls",
    "batch of 8 of ExactScore",
    "batch of 8 of ScoreModel",
    "normals of a seed on the CPU",
    "normals of a seed, drawn twice",
    "mean and variance of normals",
]


def doctor(*words: str, before: tuple[str, ...] = ()) -> Result:
    return CliRunner().invoke(main, [*before, "doctor", *words])


def test_every_check_passes_here_and_the_report_names_nobody() -> None:
    done = doctor("--device", "cpu")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    heads = [line for line in lines if line.startswith(("pass", "FAIL"))]
    assert [head[6:].rpartition(":")[0] for head in heads] == NAMES
    assert all(head.startswith("pass") for head in heads)
    assert max(map(len, lines)) <= 100
    assert f"torch {torch.__version__}" in " ".join(done.output.split())
    for private in (str(Path.home()), str(Path.cwd()), os.uname().nodename):
        assert private not in done.output
    assert done.output.replace("\n", "").isprintable()


def test_the_json_holds_the_same() -> None:
    done = doctor("--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["passed"] is True
    assert [check["name"] for check in found["checks"]] == NAMES
    assert all(check["passed"] and check["found"] <= check["bound"] for check in found["checks"])
    assert found["device"]["type"] == "cpu"
    assert found["versions"]["torch"] == torch.__version__
    assert found["precision"]["default dtype"] == "float32"
    assert found["threads"]["torch"] == torch.get_num_threads()


def test_it_runs_on_a_cuda_device(device: str) -> None:
    done = doctor("--device", device, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["device"]["type"] == "cuda"
    assert [check["name"] for check in found["checks"]] == NAMES


def tf32(x: object) -> object:
    """Return a float32 tensor with 11 of its 24 bits, the others rounded."""
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        return x
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class SimulatedTF32(TorchFunctionMode):
    """Products of factors in TF32 and sums in float32, as tensor cores make them."""

    PRODUCTS = (torch.conv2d, nn.functional.linear, torch.matmul, Tensor.matmul)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args = map(tf32, args) if function in self.PRODUCTS else args
        return function(*args, **(kwargs or {}))


def test_tf32_is_seen_and_bounded_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    bound, _ = selfcheck.rounding(gpu)
    exact, _ = selfcheck.rounding(CPU)
    with SimulatedTF32():
        found = selfcheck.steps(Heun(), load("digits"), CPU)
    assert not found.passed
    assert 10 * exact < found.found < bound / 2
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert selfcheck.rounding(gpu)[0] == exact


def test_a_planted_fault_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heun, "step", Euler.step)
    done = doctor("--device", "cpu")
    assert done.exit_code == 1
    assert "FAIL  order of Heun: 1" in done.output
    assert "do: reinstall the versions of constraints.txt" in done.output
    assert "pass  order of EulerMaruyama" in done.output
    assert done.output.splitlines()[-1].startswith("1 of 11 checks FAIL")


def test_a_check_that_raises_fails_and_the_others_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(*_: object) -> Tensor:
        message = "/home/somebody/kernel.cu: no kernel image"
        raise RuntimeError(message)

    monkeypatch.setattr(EulerMaruyama, "step", step)
    done = doctor("--device", "cpu")
    assert done.exit_code == 1
    assert "FAIL  order of EulerMaruyama: nan" in done.output
    assert "it raised RuntimeError" in done.output
    assert "sde-diffusion --traceback doctor" in done.output
    assert "somebody" not in done.output
    assert "pass  order of Heun" in done.output
    found = json.loads(doctor("--device", "cpu", "--json").stdout)
    assert found["passed"] is False
    assert found["checks"][1]["found"] is None  # NaN, in strict JSON
    raised = doctor("--device", "cpu", before=("--traceback",))
    assert isinstance(raised.exception, RuntimeError)
    assert "no kernel image" in str(raised.exception)


def test_the_stored_normals_are_box_and_mullers_of_the_same_stream() -> None:
    """torch makes 16 of them of 16 uniforms u: √(−2 ln(1 − u_i)) cos 2π u_{i+8}."""
    (seed,) = PerSampleNoise.numbered(0, 0, 1).seeds
    u = torch.rand(16, generator=torch.Generator().manual_seed(seed)).double()
    z = (-2 * torch.log1p(-u[:8])).sqrt() * torch.cos(2 * math.pi * u[8:])
    n = len(draws.STORED)
    assert torch.allclose(z[:n], torch.tensor(draws.STORED, dtype=torch.float64), atol=1e-6)


@final
@dataclass(frozen=True)
class EulerAsSecond(OneStep[ODE]):
    """Euler's method that declares Heun's order."""

    dynamics: ClassVar[type[ODE]] = ODE
    order: ClassVar[float] = 2

    def step(self, dynamics: ODE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002
        return x + (s - t) * dynamics.velocity(x, t)


class Rounding(nn.Module):
    """A network whose output in float32 is rounded to bfloat16, as by an automatic cast."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y = self.network(x, c)
        return y.bfloat16().to(x.dtype) if x.dtype == torch.float32 else y


class Mixing(nn.Module):
    """A network that subtracts the mean of its batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y = self.network(x, c)
        return y - 0.01 * y.mean(0, keepdim=True)


@final
class Wide(Noise):
    """Normals of a standard deviation of 1.05."""

    def normal(self, x: Tensor) -> Tensor:
        return 1.05 * WhiteNoise(0).normal(x)


SHARED = WhiteNoise(0)
GAUSSIAN = Gaussian(torch.tensor([0.3]), torch.tensor([[0.5]])).diffused(SDE)
OFF = FunctionScore(lambda x, t: 1.01 * GAUSSIAN(x, t), SDE)
TOGETHER = FunctionScore(lambda x, t: GAUSSIAN(x, t) - 0.01 * x.mean(0), SDE)


def digits(around: Callable[[nn.Module], nn.Module]) -> ScoreModel:
    model = load("digits")
    return ScoreModel(around(model.network), model.sde, model.prediction, data=model.data).eval()


def small(around: Callable[[nn.Module], nn.Module]) -> ScoreModel:
    return ScoreModel(around(MLP(2, width=16, depth=2)), SDE)


def constant(model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """The loss with a gradient of 0."""
    found = denoising_loss(model, x0, t, eps)
    return found.detach() + 0 * found


PLANTED: dict[str, tuple[Callable[[], Check], str]] = {
    "a wrong order": (lambda: selfcheck.order(EulerAsSecond(), SDE), "reinstall"),
    "half precision": (lambda: selfcheck.steps(Heun(), digits(Rounding), CPU), "switch TF32"),
    "a score that is off": (
        lambda: selfcheck.likelihood(DormandPrince(1e-8, 1e-8), GAUSSIAN, OFF, CPU),
        "reinstall",
    ),
    "half precision in training": (
        lambda: selfcheck.training(small(Rounding), denoising_loss, CPU),
        "switch TF32",
    ),
    "a gradient of 0": (
        lambda: selfcheck.descent(ScoreModel(MLP(2, width=16, depth=2), SDE), constant, CPU),
        "--device cpu",
    ),
    "a score that mixes its batch": (
        lambda: draws.parts(EulerMaruyama(), TOGETHER, (1,), 0.0, "exact"),
        "batch normalisation",
    ),
    "a network that mixes its batch": (
        lambda: draws.network_parts(EulerMaruyama(), digits(Mixing), CPU),
        "batch normalisation",
    ),
    "another seed": (lambda: draws.stored_normals(lambda: WhiteNoise(1)), "version of torch"),
    "a generator that goes on": (
        lambda: draws.repeated_normals(lambda: SHARED, CPU),
        "seed the generator anew",
    ),
    "normals too wide": (lambda: draws.moments(Wide, CPU), "report it"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_fails_its_check(fault: str) -> None:
    check, remedy = PLANTED[fault]
    found = check()
    assert not found.passed
    assert found.found >= 2 * found.bound
    assert remedy in found.remedy


def test_not_a_number_fails() -> None:
    assert not Check("x", "x", math.nan, 1.0, "x", "x").passed
    assert math.isnan(selfcheck.largest([0.0, math.nan]))
