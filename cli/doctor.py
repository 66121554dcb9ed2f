"""`sde-diffusion doctor`: the machine, its versions, and checks of what it computes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion.cli import _common

if TYPE_CHECKING:
    import torch

    from sde_diffusion.evaluation.selfcheck import Check

EXAMPLES: Final = """\b
Examples:
  sde-diffusion doctor
  sde-diffusion doctor --device cpu --json
"""
_WIDTH: Final = 100
_NEEDED: Final = ("torch", "numpy", "scipy", "torchdiffeq", "safetensors", "sde-diffusion")
_OPTIONAL: Final = ("matplotlib", "pillow", "diffusers", "azula", "torchsde", "tensorboard")
_TF32: Final = (
    "TF32 rounds the factors of products to 11 bits. An adaptive solver takes that for error of "
    "its steps, and may take more of them. To switch it off: "
    "torch.backends.cuda.matmul.allow_tf32 = False; torch.backends.cudnn.allow_tf32 = False"
)


@click.command(epilog=EXAMPLES)
@_common.device_option
@_common.json_option
@click.pass_context
def command(ctx: click.Context, device: str, as_json: bool) -> None:
    """Check this machine; print what a bug report needs.

    In about ten seconds it checks orders of solvers, steps and a likelihood, training, samples in
    batches of other sizes, and noise. Each check prints its figure, its bound and, where it fails,
    what to do. The exit code is 1 where one fails.
    """
    place = _common.resolve_device(device)
    facts = _facts(place)
    begin = time.perf_counter()
    raises = bool(ctx.find_root().params.get("traceback"))
    checks = list(_checked(_jobs(place), raises=raises))
    seconds = round(time.perf_counter() - begin, 1)
    rows = [asdict(check) | {"passed": check.passed} for check in checks]
    failed = sum(not check.passed for check in checks)
    end = f"{failed} of {len(checks)} checks FAIL" if failed else f"{len(checks)} checks pass"
    lines = [*_fact_lines(facts), ""]
    lines += [line for check in checks for line in _lines(check)]
    lines += ["", f"{end}, {seconds} s"]
    result = {**facts, "checks": rows, "passed": not failed, "seconds": seconds}
    _common.show(result, lines, as_json=as_json)
    if failed:
        ctx.exit(1)


def _jobs(device: torch.device) -> Mapping[str, Callable[[], Check]]:
    """Return the checks of the device by name."""
    import torch

    from sde_diffusion.checkpoints.checkpoint import load
    from sde_diffusion.evaluation import selfcheck, selfcheck_draws as draws
    from sde_diffusion.models.exact import Gaussian, GaussianMixture
    from sde_diffusion.models.score import ScoreModel
    from sde_diffusion.nets.mlp import MLP
    from sde_diffusion.noise import PerSampleNoise
    from sde_diffusion.objectives.denoising import denoising_loss
    from sde_diffusion.sde import VPSDE
    from sde_diffusion.solvers.dormand_prince import DormandPrince
    from sde_diffusion.solvers.euler_maruyama import EulerMaruyama
    from sde_diffusion.solvers.heun import Heun

    sde = VPSDE()
    spread = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]])
    gaussian = Gaussian(torch.tensor([0.3, -0.2, 0.1]), spread).diffused(sde)
    ring = GaussianMixture.ring(8).diffused(sde).to(device)
    precise = DormandPrince(1e-8, 1e-8)
    digits = load("digits")
    tiny = ScoreModel(MLP(2, width=16, depth=2), sde)
    noise = partial(PerSampleNoise.numbered, 0, 0, 512)
    alone = "its rows are computed apart, bit for bit"
    return {
        "order of Heun": lambda: selfcheck.order(Heun(), sde),
        "order of EulerMaruyama": lambda: selfcheck.order(EulerMaruyama(), sde),
        "steps": lambda: selfcheck.steps(Heun(), digits, device),
        "likelihood": lambda: selfcheck.likelihood(precise, gaussian, gaussian, device),
        "training": lambda: selfcheck.training(tiny, denoising_loss, device),
        "the loss": lambda: selfcheck.descent(tiny, denoising_loss, device),
        "batch of an exact score": lambda: draws.parts(EulerMaruyama(), ring, (2,), 0, alone),
        "batch of a network": lambda: draws.network_parts(EulerMaruyama(), digits, device),
        "stored normals": lambda: draws.stored_normals(noise),
        "normals drawn twice": lambda: draws.repeated_normals(noise, device),
        "moments of normals": lambda: draws.moments(noise, device),
    }


def _checked(jobs: Mapping[str, Callable[[], Check]], *, raises: bool) -> Iterator[Check]:
    """Yield the checks; one that raises an error fails, and the others are made all the same."""
    from sde_diffusion.evaluation.selfcheck import Check

    for name, job in jobs.items():
        try:
            yield job()
        except Exception as error:
            if raises:
                raise
            kind = type(error).__name__
            remedy = "type sde-diffusion --traceback doctor to see where, and report it"
            yield Check(name, f"it raised {kind}", float("nan"), 0.0, "none is raised", remedy)


def _facts(device: torch.device) -> dict[str, Any]:
    """Return what is known of the machine, without names of people or places."""
    import torch

    from sde_diffusion.evaluation.selfcheck import allows_tf32

    is_gpu = device.type == "cuda"
    return {
        "device": _gpu(device) if is_gpu else {"type": "cpu", "name": _cpu()},
        "precision": {
            "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
            "float32 matmul": torch.get_float32_matmul_precision(),
            "TF32 matmul": _on(torch.backends.cuda.matmul.allow_tf32),
            "TF32 cuDNN": _on(torch.backends.cudnn.allow_tf32),
        },
        "threads": {
            "cores": os.cpu_count(),
            "torch": torch.get_num_threads(),
            "between operators": torch.get_num_interop_threads(),
        },
        "versions": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            **{name: _version(name) for name in (*_NEEDED, *_OPTIONAL)},
            "CUDA": torch.version.cuda or "not in this build of torch",
        },
        "note": _TF32 if is_gpu and allows_tf32() else None,
    }


def _cpu() -> str:
    import torch

    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _gpu(device: torch.device) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": found.name,
        "GiB": round(found.total_memory / 2**30, 1),
        "capability": f"{found.major}.{found.minor}",
        "cuDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _on(value: bool) -> str:
    return "on" if value else "off"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _fact_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return a paragraph for each group of facts."""
    lines = []
    for name, values in facts.items():
        if isinstance(values, Mapping):
            text = ", ".join(f"{key} {value}" for key, value in values.items())
            lines += _wrapped(f"{name:<10} {text}", indent=11)
    return lines + (_wrapped(f"{'note':<10} {facts['note']}", indent=11) if facts["note"] else [])


def _lines(check: Check) -> list[str]:
    """Return a check as text: its figure and bound, and what to do where it fails."""
    verdict = "pass" if check.passed else "FAIL"
    first = f"{verdict}  {check.name}: {check.found:.2g}, at most {check.bound:.2g}"
    lines = _wrapped(first) + _wrapped(f"      {check.measures}; bound: {check.because}")
    return lines if check.passed else lines + _wrapped(f"      do: {check.remedy}")


def _wrapped(text: str, indent: int = 6) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)
