"""`sde-diffusion compare`: solvers at equal numbers of counted evaluations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion._check import wrong_value
from sde_diffusion.cli import _common, menu, report

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sde_diffusion.compare import Comparison, Problem

EXAMPLES: Final = """\b
Examples:
  sde-diffusion compare
  sde-diffusion compare --model ring --solver heun --solver euler --nfe 10 --nfe 100
  sde-diffusion compare --model runs/mine --data images/ --replicates 10 --grid log-snr
"""
_MODELS: Final = ("digits", "ring")
_SOLVERS: Final = (
    "euler-maruyama", "ancestral", "predictor-corrector", "sde-dpm-solver-pp", "er-sde", "ddim",
    "heun", "dpm-solver-pp", "angular-adams", "dormand-prince",
)  # fmt: skip
_BUDGETS: Final = (5, 10, 20, 50)
_REPLICATES: Final = 4
_CLOSED_FORM_SAMPLES, _NETWORK_SAMPLES = 512, 32
_HELD_OUT: Final = 4  # draws of a closed form per sample, a quarter for the noise floor


@click.command(epilog=EXAMPLES)
@click.option("--model", "models", multiple=True, default=_MODELS, show_default=True,
              help="digits, mnist, ring, ring:SDE, a checkpoint, or package.module:attr; "
                   "repeatable.")
@click.option("--data", default=None,
              help="Held-out data of the one --model; its own test data if not given.")
@click.option("--solver", "solvers", multiple=True, default=_SOLVERS,
              help=f"{', '.join(menu.SOLVER_NAMES)}, or package.module:attr; repeatable. "
                   f"{', '.join(_SOLVERS)} if not given.")
@click.option("--nfe", "budgets", multiple=True, type=click.IntRange(min=1), default=_BUDGETS,
              show_default=True, help="Most evaluations of a solve; repeatable.")
@click.option("--samples", type=click.IntRange(min=2), default=None,
              help=f"Samples of a replicate; {_NETWORK_SAMPLES} if not given, "
                   f"{_CLOSED_FORM_SAMPLES} for a closed form.")
@click.option("--replicates", type=click.IntRange(min=2), default=_REPLICATES, show_default=True,
              help="How many sets of samples; the confidence intervals are over these.")
@click.option("--grid", default="auto", show_default=True,
              help=f"Spacing of the times: {', '.join(menu.GRID_NAMES)}, or package.module:attr.")
@click.option("--tolerance", type=float, default=1e-3, show_default=True,
              help="rtol = atol of solvers that choose their steps.")
@_common.denoise_option
@_common.common_options(out="compare-results")
def command(
    models: tuple[str, ...], data: str | None, solvers: tuple[str, ...],
    budgets: tuple[int, ...], samples: int | None, replicates: int, grid: str,
    tolerance: float, denoise: bool, seed: int, device: str, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Compare solvers at equal numbers of counted evaluations.

    All solvers start from the same noise. Those that draw nothing on the way are measured against
    the probability flow solved accurately, and all against held-out data, beside the distance of
    data to data. Writes table.txt, results.json, error_vs_nfe.png and samples-MODEL.png.
    """
    if data is not None and len(models) > 1:
        raise wrong_value("--data", "data", "belong to one model", f"{len(models)} models",
                          "pass one --model with it")  # fmt: skip
    for option, names in (("--model", models), ("--solver", solvers)):
        if len(set(names)) < len(names):
            got = ", ".join(names)
            raise wrong_value(option, "name", "be given once", got, "drop the repeats")
    made = {name: _solver(name, tolerance) for name in solvers}
    where = _common.resolve_device(device)
    problems = [_problem(name, data, samples, grid, denoise, seed, where) for name in models]
    folder = _common.output_folder(out)
    found = [_compare(*problem, made, budgets, replicates, seed) for problem in problems]
    text = "\n\n".join(map(report.comparison_text, found))
    files = _write(folder, found, text)
    result = {
        "grid": grid, "denoise": denoise, "budgets": list(budgets), "device": str(where),
        "solvers": {name: repr(solver) for name, solver in made.items()},
        "comparisons": [c.to_json() for c in found], "files": [str(file) for file in files],
    }  # fmt: skip
    report.write_json(folder / "results.json", result)
    lines = [text, "", *(f"wrote {file}" for file in files)]
    _common.show(result, lines, as_json=as_json)


def _solver(name: str, tolerance: float) -> Any:  # noqa: ANN401
    """Return the solver of that name, with the tolerance if it has one."""
    made = menu.solver(name)
    own = ":" in name and not name.startswith("torchdiffeq:")
    return menu.solver(name, tolerance) if menu.is_adaptive(made) and not own else made


def _problem(
    name: str,
    data: str | None,
    samples: int | None,
    grid: str,
    denoise: bool,
    seed: int,
    device: torch.device,
) -> tuple[Problem, int]:
    """Return what to compare on, and the samples of a replicate."""
    import torch

    from sde_diffusion.compare import Problem
    from sde_diffusion.grids import Denoised

    model = menu.model(name, device)
    # Without a rule every solver has its own grid.
    rule = None if grid == "auto" else partial(menu.grid, grid, model.sde)
    oracle = getattr(model, "oracle", None)
    generator = torch.Generator().manual_seed(seed)
    if oracle is None or data is not None:
        count = _NETWORK_SAMPLES if samples is None else samples
        held_out = _held_out(model, data, generator)
    else:
        count = _CLOSED_FORM_SAMPLES if samples is None else samples
        held_out = oracle.sample(_HELD_OUT * count, generator)
    dtype = torch.float32 if oracle is None else torch.float64
    last = Denoised if denoise else None
    return Problem(name, model, held_out.to(device), rule, dtype, last), count


def _held_out(
    model: Any,  # noqa: ANN401
    data: str | None,
    generator: torch.Generator,
) -> Tensor:
    """Return the test data, of the model's own set if no other is named."""
    from sde_diffusion.data import load_data

    spec = getattr(model, "data", None)
    name = data if data is not None else getattr(spec, "name", None)
    if name is None:
        raise wrong_value("--data", "data", "be given for a model that names none", "none",
                          "pass for example --data digits")  # fmt: skip
    if data is None and name != "digits" and not Path(name).exists():
        raise wrong_value("--data", "data", f"be given for a model of {name!r}", "none",
                          "pass the path of that data set")  # fmt: skip
    split = "all" if Path(name).is_file() else "test"  # a file has no parts
    values = load_data(name, split).dequantized(generator)
    event = menu.event_shape(model)
    if tuple(values.shape[1:]) != event:
        raise wrong_value("--data", "data", f"have the shape {event} of the model's",
                          tuple(values.shape[1:]), "pass the data it was trained on")  # fmt: skip
    return values


def _compare(
    problem: Problem,
    samples: int,
    solvers: Mapping[str, Any],
    budgets: Sequence[int],
    replicates: int,
    seed: int,
) -> Comparison:
    from sde_diffusion.compare import compare
    from sde_diffusion.solvers import AdamsBashforth, RungeKutta4

    # A network's flow is not smooth enough for more than one evaluation a step to pay.
    cheap = hasattr(problem.model, "oracle")
    reference = RungeKutta4() if cheap else AdamsBashforth(order=4)
    reference_steps = 200 if cheap else 128
    with _common.progress(0, "solve") as bar:
        bar.set_description(problem.name)

        def progress(_done: int, total: int) -> None:
            bar.total = total
            bar.update()

        return compare(
            problem, solvers, budgets, reference=reference, reference_steps=reference_steps,
            samples=samples, replicates=replicates, seed=seed, progress=progress,
        )  # fmt: skip


def _write(folder: Path, comparisons: Sequence[Comparison], text: str) -> list[Path]:
    from sde_diffusion.pictures import error_picture, solver_picture

    table, errors = folder / "table.txt", folder / "error_vs_nfe.png"
    report.write_text(table, text)
    error_picture(comparisons, errors)
    pictures = []
    for comparison in comparisons:
        name = re.sub(r"[^\w.-]+", "-", comparison.problem).strip("-")
        pictures.append(folder / f"samples-{name}.png")
        solver_picture(comparison, pictures[-1])
    return [table, folder / "results.json", errors, *pictures]
