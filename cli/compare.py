"""`sde-diffusion compare`: solvers at equal numbers of counted evaluations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion._check import wrong_value
from sde_diffusion._files import writing
from sde_diffusion.cli import _common, menu, report

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sde_diffusion.cli._comparison_log import ComparisonLog
    from sde_diffusion.data.spec import DataSpec
    from sde_diffusion.diagnostics.comparison import Comparison, Problem, Student
    from sde_diffusion.diagnostics.convergence import Convergence, Kind

EXAMPLES: Final = """\b
Examples:
  sde-diffusion compare
  sde-diffusion compare --model ring --solver heun --solver euler --nfe 10 --nfe 100
  sde-diffusion compare --model mnist
  sde-diffusion compare --model mnist --data path/to/mnist --samples 128 --reference-steps 32
  sde-diffusion compare --model runs/mine --data images/ --replicates 10 --grid log-snr
  sde-diffusion compare --model runs/a --model runs/b --data images/ --solver angular-adams
  sde-diffusion compare --model ring --student runs/ring-1 --student runs/consistent:renoised
  sde-diffusion compare --peer diffusers:DPMSolverMultistepScheduler --peer azula:HeunSampler
"""
_MODELS: Final = ("digits", "ring")
_BUDGETS: Final = (5, 10, 20, 50)
_STUDENT_STEPS: Final = (1, 2, 4)
_RENOISED: Final = ":renoised"  # after the name of a student
_REPLICATES: Final = 4
_CLOSED_FORM_SAMPLES = 512
_NETWORK_SAMPLES = 32
_IMAGE_SAMPLES = 16
_LIKELIHOODS: Final = 16  # held-out samples whose log-likelihood is compared
_FIXED_STEPS: Final = 25  # of Heun's method, as an adaptive solver follows the rounding
_IMAGE: Final = 256  # dimensions above which networks are slow
_HELD_OUT: Final = 4  # draws of a closed form or flow per sample, a quarter for the noise floor
# The ODE of a network is not smooth enough for more than one evaluation a step to pay.
_CLOSED_FORM_STEPS = 200
_NETWORK_STEPS = 128


@dataclass(frozen=True)
class _Task:
    """What to compare on, the samples of a replicate, and the reference solver with its steps."""

    problem: Problem
    samples: int
    reference: Any
    reference_steps: int


@click.command(epilog=EXAMPLES)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=_MODELS,
    show_default=True,
    shell_complete=menu.completing(menu.MODEL_NAMES, files=True),
    help="digits, mnist, ring, ring:SDE, a checkpoint, diffusers:FOLDER, or "
    "package.module:attr; repeatable.",
)
@click.option(
    "--data",
    default=None,
    help="Held-out data of all --model, which then stand in one table with their differences; "
    "a model's own test data if not given. Where there are none, distances are to samples of its "
    "probability-flow ODE from other noise.",
)
@_common.split_option
@_common.reading_options
@click.option(
    "--solver",
    "solvers",
    multiple=True,
    default=menu.COMPARED,
    shell_complete=menu.completing(menu.SOLVER_NAMES),
    help="A name of `sde-diffusion solvers`, or package.module:attr; repeatable. "
    f"{', '.join(menu.COMPARED)} if not given.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    help="Another program's sampler in the same table, from the same noise on the same grid: "
    "diffusers:NAME, azula:NAME, both with settings as in azula:xEABSampler:order=3, or "
    "package.module:attr of a function (denoiser, y, sigmas) as k-diffusion has them; "
    "repeatable. Its order is measured.",
)
@click.option(
    "--student",
    "students",
    multiple=True,
    help="A student of --model, by `sde-diffusion distil`, in the same table from the same noise: "
    "a checkpoint or run folder, with :renoised for the steps of consistency models; repeatable.",
)
@click.option(
    "--student-steps",
    multiple=True,
    type=click.IntRange(min=1),
    default=_STUDENT_STEPS,
    show_default=True,
    help="Steps of each --student; repeatable.",
)
@click.option(
    "--nfe",
    "budgets",
    multiple=True,
    type=click.IntRange(min=1),
    default=_BUDGETS,
    show_default=True,
    help="Most evaluations of the score in a solve; repeatable.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=2),
    default=None,
    help=f"Samples of a replicate; {_NETWORK_SAMPLES} if not given, {_IMAGE_SAMPLES} "
    f"of more than {_IMAGE} dimensions, {_CLOSED_FORM_SAMPLES} for a closed form.",
)
@click.option(
    "--replicates",
    type=click.IntRange(min=2),
    default=_REPLICATES,
    show_default=True,
    help="How many sets of samples; the confidence intervals are over these.",
)
@click.option(
    "--grid",
    default="auto",
    show_default=True,
    help=f"Spacing of the times: {', '.join(menu.GRID_NAMES)}, or package.module:attr.",
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-3,
    show_default=True,
    help="rtol = atol of adaptive solvers.",
)
@click.option(
    "--reference-steps",
    type=click.IntRange(min=2),
    default=None,
    help="Steps of the probability-flow ODE that errors are measured against; "
    f"{_NETWORK_STEPS} if not given, {_CLOSED_FORM_STEPS} for a closed form.",
)
@click.option(
    "--precision",
    type=click.Choice(["bfloat16", "float16"]),
    default=None,
    help="Say also what the network in this precision costs: the distance of samples, and of "
    "log-likelihoods of 16 held-out data, to those in float32. States are float32.",
)
@_common.denoise_option
@_common.common_options(out="compare-results")
def command(
    models: tuple[str, ...],
    data: str | None,
    split: str | None,
    size: int | None,
    frames: str,
    layout: str | None,
    length: int | None,
    solvers: tuple[str, ...],
    peers: tuple[str, ...],
    students: tuple[str, ...],
    student_steps: tuple[int, ...],
    budgets: tuple[int, ...],
    samples: int | None,
    replicates: int,
    grid: str,
    tolerance: float,
    reference_steps: int | None,
    precision: str | None,
    denoise: bool,
    seed: int,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Compare solvers at equal numbers of counted evaluations.

    All solvers start from the same noise. Deterministic ones are compared with an accurate
    solution of the probability-flow ODE, and all with held-out data, beside the distance of data
    to data: sliced W2, MMD^2, and the Frechet distance in 32 principal components. Several
    models on one --data are compared with the first one, replicate by replicate, from the same
    noise. Writes table.txt, results.json, error_vs_nfe.png and samples-MODEL.png. Rows that are
    done are kept when it is stopped; the same command then goes on.
    """
    from sde_diffusion.diagnostics.model_comparison import differences

    for option, names in (
        ("--model", models),
        ("--solver", solvers),
        ("--peer", peers),
        ("--student", students),
    ):
        if len(set(names)) < len(names):
            got = ", ".join(names)
            raise wrong_value(option, "name", "be given once", got, "drop the repeats")
    others = {name: menu.peer(name) for name in peers}
    made = {name: _solver(name, tolerance) for name in solvers} | others
    where = _common.resolve_device(device)
    reading = {"split": split, "size": size, "frames": frames, "layout": layout}
    reading["length"] = length
    pupils = {name: _student(name, student_steps, where) for name in students}
    tasks = [
        _task(name, data, reading, samples, grid, denoise, reference_steps, seed, where)
        for name in models
    ]
    if data is not None:
        tasks = _in_units_of_first(tasks)
    if precision is not None:
        _check_learned(tasks)
    folder = _common.output_folder(out)
    with _kept_in(folder) as log:
        found = [_compare(task, made, budgets, replicates, seed, log, pupils) for task in tasks]
    orders = [_orders(task, others) for task in tasks]
    together = data is not None and len(found) > 1
    apart = differences(found) if together else []
    text = "\n\n".join(map(report.comparison_text, found, orders))
    if together:
        text = report.models_text(found, apart)
    rounding = [_rounding(task, made, budgets, replicates, seed, precision) for task in tasks]
    text = "\n\n".join([text, *(report.rounding_text(each) for each in rounding if each)])
    result = {
        "grid": grid,
        "denoise": denoise,
        "rounding": [each for each in rounding if each],
        "budgets": list(budgets),
        "device": str(where),
        "solvers": {name: repr(solver) for name, solver in made.items()},
        "comparisons": [c.to_json() for c in found],
        "differences": [difference.to_json() for difference in apart],
        "measured_orders": [_orders_as_json(order) for order in orders],
    }
    with (
        _common.shown_if_unwritten(result, [text], as_json=as_json),
        writing("compare", folder, "what is printed above is all that is kept", "run it again"),
    ):
        files, missing = _write(folder, found, text)
        written = {**result, "files": [str(file) for file in files], "no_pictures": missing}
        report.write_json(folder / "results.json", written)
    log.remove()
    lines = [text, "", *(f"wrote {file}" for file in files), *missing]
    _common.show(written, lines, as_json=as_json)


@contextmanager
def _kept_in(folder: Path) -> Iterator[ComparisonLog]:
    """Keep rows that are done, say what was taken of an earlier run, and what an interrupt leaves.

    Errors: KeyboardInterrupt that says how far it came.
    """
    from sde_diffusion.cli._comparison_log import ComparisonLog
    from sde_diffusion.cli._together import terminations

    log = ComparisonLog(folder)
    kept = "the rows before it are kept"
    try:
        with terminations(), writing("compare", folder, kept, "run it again"):
            yield log
    except KeyboardInterrupt as interrupt:
        kept = f"{len(log.rows)} rows are kept in {log.file}"
        message = f"Interrupted; {kept}, and the same command goes on from there."
        raise KeyboardInterrupt(message) from interrupt
    if log.taken:
        _common.tell([f"{log.taken} rows are of a run that was stopped, in {log.file}"])


def _in_units_of_first(tasks: Sequence[_Task]) -> list[_Task]:
    """Return the tasks with the data of the first, and samples in its scaling, so that all agree.

    Errors: ValueError for models of data of other shapes.
    """
    first = tasks[0].problem
    data = menu.observed(first.model)
    found = [tasks[0]]
    for task in tasks[1:]:
        own = menu.observed(task.problem.model)
        problem = replace(task.problem, data=first.data)
        if data is not None and own is not None and own.scaling != data.scaling:
            problem = replace(problem, units=partial(_rescaled, own, data, problem.in_units))
        found.append(replace(task, problem=problem))
    return found


def _rescaled(own: DataSpec, to: DataSpec, made: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return what is made of x, in one scaling, in another."""
    x = made(x)
    from_levels = 1 if own.levels is None else own.levels
    to_levels = 1 if to.levels is None else to.levels
    return to.scaling.forward(own.scaling.inverse(x, from_levels), to_levels)


def _student(name: str, steps: Sequence[int], device: torch.device) -> Student:
    """Return a student of that name, with ``:renoised`` for the steps of consistency models."""
    from sde_diffusion.diagnostics.comparison import Student

    path = name.removesuffix(_RENOISED)
    solver = menu.solver("few-steps" if path == name else "renoised")
    model = menu.model(path, device)
    return Student(model, solver, sorted(set(steps)))


def _solver(name: str, tolerance: float) -> Any:  # noqa: ANN401
    """Return the solver of that name, with the tolerance if it is adaptive."""
    made = menu.solver(name)
    own = ":" in name and not name.startswith("torchdiffeq:")
    return menu.solver(name, tolerance) if menu.is_adaptive(made) and not own else made


def _orders(task: _Task, peers: Mapping[str, Any]) -> dict[str, tuple[Kind, Convergence]]:
    """Return the measured order of every peer, on the SDE of the task's model."""
    from sde_diffusion.diagnostics.orders import observed_order

    sde = task.problem.model.linear_sde()
    return {name: observed_order(peer, sde) for name, peer in peers.items()}


def _orders_as_json(orders: Mapping[str, tuple[Kind, Convergence]]) -> dict[str, object]:
    return {
        name: {"kind": kind, "steps": list(found.steps), "errors": list(found.errors)}
        for name, (kind, found) in orders.items()
    }


def _task(
    name: str,
    data: str | None,
    reading: Mapping[str, Any],
    samples: int | None,
    grid: str,
    denoise: bool,
    reference_steps: int | None,
    seed: int,
    device: torch.device,
) -> _Task:
    """Return what to compare on and how, with no data where there are none at hand."""
    import torch

    from sde_diffusion.diagnostics.comparison import Problem
    from sde_diffusion.grids import Denoised
    from sde_diffusion.latents.latent_model import LatentModel
    from sde_diffusion.models.exact import ExactScore
    from sde_diffusion.solvers import AdamsBashforth, RungeKutta4

    model = menu.model(name, device)
    # Without a rule every solver has its own grid.
    rule = None if grid == "auto" else partial(menu.grid, grid, model.sde, end=model.t_min)
    oracle = model.oracle if isinstance(model, ExactScore) else None
    event = menu.event_shape(model)
    image = math.prod(event) > _IMAGE
    steps = _NETWORK_STEPS
    usual = _IMAGE_SAMPLES if image else _NETWORK_SAMPLES
    if oracle is not None:
        steps = _CLOSED_FORM_STEPS
        usual = usual if data else _CLOSED_FORM_SAMPLES
    count = usual if samples is None else samples
    generator = torch.Generator().manual_seed(seed)
    if oracle is not None and data is None:
        held_out = oracle.sample(_HELD_OUT * count, generator)
    else:
        held_out = _held_out(model, data, reading, generator)
    problem = Problem(
        name,
        model,
        held_out.to(device),
        rule,
        torch.float64 if oracle else torch.float32,
        Denoised if denoise else None,
        units=partial(menu.decoded, model) if isinstance(model, LatentModel) else None,
        event=event,
    )
    reference = RungeKutta4() if oracle else AdamsBashforth(order=4)
    return _Task(problem, count, reference, reference_steps or steps)


def _held_out(
    model: Any,  # noqa: ANN401
    data: str | None,
    reading: Mapping[str, Any],
    generator: torch.Generator,
) -> Tensor:
    """Return the test data, of the model's own set if no other is named; none if there is none.

    They are scaled as the model's.
    """
    import torch

    from sde_diffusion.cli._held_out import data_of_model

    known = menu.observed(model)
    own = None if known is None else known.name
    name = own if data is None else data
    if name is None or (data is None and name != "digits" and not Path(name).exists()):
        return torch.empty(0, *menu.sample_shape(model))
    return data_of_model(name, model, reading).dequantized(generator)


def _compare(
    task: _Task,
    solvers: Mapping[str, Any],
    budgets: Sequence[int],
    replicates: int,
    seed: int,
    log: ComparisonLog,
    students: Mapping[str, Student],
) -> Comparison:
    from sde_diffusion.checkpoints.fingerprint import fingerprint
    from sde_diffusion.diagnostics.comparison import THE_FLOW, compare, flow_samples

    problem = task.problem
    steps = task.reference_steps
    with _common.progress(0, "solve") as bar:
        bar.set_description(problem.name, refresh=False)

        def progress(_done: int, total: int) -> None:
            bar.total = total
            bar.update()

        if not len(problem.data):
            times = problem.rule(task.reference)(steps)
            shape = (_HELD_OUT * task.samples, *problem.state)
            found = flow_samples(problem.model, task.reference, times, shape, seed)
            data = problem.in_units(found)
            problem = replace(problem, data=data, against=THE_FLOW)
        settings = (task.samples, replicates, seed, steps, repr(task.reference))
        made = {name: repr(solver) for name, solver in solvers.items()}
        return compare(
            problem,
            solvers,
            budgets,
            reference=task.reference,
            reference_steps=steps,
            samples=task.samples,
            replicates=replicates,
            seed=seed,
            progress=progress,
            kept=log.of(fingerprint((problem, settings, made, *students.values()))),
            students=students,
        )


def _check_learned(tasks: Sequence[_Task]) -> None:
    """Refuse a precision for exact scores, which have no network."""
    from sde_diffusion.models.score import LearnedScore

    for task in tasks:
        if not isinstance(task.problem.model, LearnedScore):
            name = task.problem.name
            rule = "go with models of a network"
            raise wrong_value("--precision", "model", rule, name, "pass --model digits")


def _rounding(
    task: _Task,
    solvers: Mapping[str, Any],
    budgets: Sequence[int],
    replicates: int,
    seed: int,
    precision: str | None,
) -> dict[str, Any] | None:
    """Return what a network in half precision costs, for the report and as JSON.

    Arguments:
        task: the model, and how many samples.
        solvers: by name.
        budgets: of evaluations.
        replicates: sets of samples.
        seed: of the samples.
        precision: the name of a dtype; nothing is computed for None.
    """
    import torch

    from sde_diffusion import Hutchinson
    from sde_diffusion.diagnostics.comparison import HELD_OUT
    from sde_diffusion.evaluation import likelihood_rounding, rounding_errors
    from sde_diffusion.grids import recommended, times_of
    from sde_diffusion.solvers import Heun

    if precision is None:
        return None
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    problem = task.problem
    with _common.progress(1, "comparison in " + precision):
        rows = rounding_errors(
            problem,
            solvers,
            budgets,
            dtype,
            samples=task.samples,
            replicates=replicates,
            seed=seed,
        )
        found: dict[str, Any] = {
            "problem": problem.name,
            "precision": precision,
            "rows": [asdict(row) for row in rows],
            "likelihood": None,
        }
        x = problem.data[:_LIKELIHOODS]
        if len(x) > 1 and problem.against == HELD_OUT and problem.units is None:
            probes = Hutchinson(probes=2, seed=seed)
            model: Any = problem.model
            times = recommended(model.linear_sde(), _FIXED_STEPS, end=model.t_min)
            change = likelihood_rounding(
                model, dtype, x.float(), Heun(), divergence=probes, grid=times_of(times).flip(0)
            )
            nats = dict(zip(("change", "size"), map(asdict, change), strict=True))
            found["likelihood"] = {"samples": len(x), "dimensions": x[0].numel(), **nats}
    return found


def _write(
    folder: Path, comparisons: Sequence[Comparison], text: str
) -> tuple[list[Path], list[str]]:
    """Write the table and the pictures; return the files, and why others are missing."""
    from sde_diffusion.pictures.comparisons import error_picture, solver_picture

    table = folder / "table.txt"
    report.write_text(table, text)
    pictures = {folder / "error_vs_nfe.png": partial(error_picture, comparisons)}
    for comparison in comparisons:
        name = re.sub(r"[^\w.-]+", "-", comparison.problem).strip("-")
        pictures[folder / f"samples-{name}.png"] = partial(solver_picture, comparison)
    failures = {path: _common.no_picture(draw, path) for path, draw in pictures.items()}
    drawn = [path for path, failure in failures.items() if failure is None]
    missing = [failure for failure in failures.values() if failure is not None]
    return [table, folder / "results.json", *drawn], missing
