"""`sde-diffusion likelihood`: bits per dimension of a data set, sample by sample."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion._check import wrong_value
from sde_diffusion.cli import _common, menu

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.data import Dataset
    from sde_diffusion.likelihood import Divergence, LogLikelihood

EXAMPLES: Final = """\b
Examples:
  sde-diffusion likelihood --limit 100
  sde-diffusion likelihood --model ring --data points.npy --divergence exact
"""
_END: Final = 1e-5  # the time at which the flow starts from the data
_DEQUANTIZATION: Final = 7  # a purpose of the seed, apart from the probes'


@dataclass(frozen=True)
class Row:
    """The likelihood of one sample; the error is the probes', in nats."""

    index: int
    nats: float
    bits_per_dim: float
    standard_error: float


@click.command(epilog=EXAMPLES)
@_common.model_option
@_common.data_options
@click.option("--split", type=click.Choice(["train", "test", "all"]), default=None,
              help="Part of the data; test if not given, all of a file.")
@_common.solver_option("dormand-prince", menu.ODE_SOLVER_NAMES)
@_common.grid_options
@click.option("--divergence", type=click.Choice(["hutchinson", "exact"]), default="hutchinson",
              show_default=True, help="By random probes, or one product for every dimension.")
@_common.count_option("--probes", default=2, help="Hutchinson's probes for each sample.")
@_common.count_option("--batch-size", default=64, help="Samples computed at once.")
@_common.common_options(out="likelihood")
def command(
    model_name: str, data: str, levels: int | None, limit: int | None, split: str | None,
    solver: str, steps: int | None, grid: str, tolerance: float | None, divergence: str,
    probes: int, batch_size: int, seed: int, device: str, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Evaluate bits per dimension of a data set.

    Solves the probability flow of every sample and writes likelihood.csv with a line for each.
    Integer data gets uniform noise first; that noise and the probes of sample i depend on --seed
    and i alone, not on --batch-size.
    """
    from sde_diffusion import load_data

    where = _common.resolve_device(device)
    made = _ode_solver(solver, tolerance)
    model = menu.model(model_name, where)
    times = menu.times(grid, model.sde, made, steps, _END).flip(0)
    split = split or ("all" if Path(data).is_file() else "test")
    dataset = load_data(data, split, limit, levels=levels)
    _check_fits(dataset, model)
    folder = _common.output_folder(out)
    estimator = _estimator(divergence, probes, seed)
    began = time.perf_counter()
    with _common.progress(len(dataset), "sample") as bar:
        rows, nfe = _evaluate(model, made, times, dataset, batch_size, seed, estimator, bar.update)
    result = summary(rows, math.prod(dataset.spec.shape)) | {
        "model": model_name, "data": data, "split": split, "solver": solver,
        "divergence": divergence, "probes": probes if divergence == "hutchinson" else None,
        "seed": seed, "device": str(model.device), "nfe": nfe,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip
    file = _write(folder / "likelihood.csv", rows)
    _common.show({**result, "files": [str(file)]}, _lines(result, file), as_json=as_json)


def _ode_solver(name: str, tolerance: float | None) -> Any:  # noqa: ANN401
    from sde_diffusion import ODE

    made = menu.solver(name, tolerance)
    if not issubclass(made.dynamics, ODE):
        rule = "be a solver of ODEs, for the probability flow"
        remedy = f"choose one of {', '.join(menu.ODE_SOLVER_NAMES)}"
        raise wrong_value("likelihood", "--solver", rule, name, remedy)
    return made


def _check_fits(dataset: Dataset, model: Any) -> None:  # noqa: ANN401
    """Refuse data of another shape or scaling than the model's: its likelihood means nothing."""
    shape, got = menu.event_shape(model), tuple(dataset.spec.shape)
    if got != shape:
        raise wrong_value("--data", "data", f"have samples of the model's shape {shape}", got,
                          "name the data it was trained on")  # fmt: skip
    spec = getattr(model, "data", None)
    if spec is not None and spec.levels != dataset.spec.levels:
        rule = f"have the model's {spec.levels or 'no'} grey levels"
        remedy = f"pass --levels {spec.levels}" if spec.levels else "use data of real numbers"
        raise wrong_value("--data", "data", rule, dataset.spec.levels or "real numbers", remedy)


def _estimator(divergence: str, probes: int, seed: int) -> Callable[[int], Divergence]:
    """Return the divergence of the batch that starts at a sample."""
    from sde_diffusion import Exact, Hutchinson

    if divergence == "exact":
        return lambda first: Exact()  # noqa: ARG005
    return lambda first: Hutchinson(probes, seed, first)


def _evaluate(
    model: Any,  # noqa: ANN401
    solver: Any,  # noqa: ANN401
    grid: Tensor,
    dataset: Dataset,
    batch_size: int,
    seed: int,
    estimator: Callable[[int], Divergence],
    tick: Callable[[int], object],
) -> tuple[list[Row], int]:
    """Return a row for every sample, and the nfe of the batch that needed most."""
    from sde_diffusion import ProbabilityFlow, log_prob

    rows, nfe, levels = list[Row](), 0, dataset.spec.levels
    for first in range(0, len(dataset), batch_size):
        indices = range(first, min(first + batch_size, len(dataset)))
        x = _dequantized(dataset, indices, seed).to(model.device)
        found = log_prob(
            x, ProbabilityFlow(model.sde, model), solver, grid=grid,
            divergence=estimator(first), levels=levels,
        )  # fmt: skip
        rows += _rows(indices, found)
        nfe = max(nfe, found.nfe)
        tick(len(indices))
    return rows, nfe


def _dequantized(dataset: Dataset, indices: range, seed: int) -> Tensor:
    """Return the samples, with uniform noise of their own where the data has levels."""
    import torch

    from sde_diffusion.noise import mix

    if dataset.spec.levels is None:
        return dataset.values[indices.start : indices.stop]
    shape, noise = tuple(dataset.spec.shape), []
    for i in indices:
        generator = torch.Generator().manual_seed(mix(seed, _DEQUANTIZATION, i))
        noise.append(torch.rand(shape, generator=generator))
    return dataset.spec.encode(dataset.values[indices.start : indices.stop], torch.stack(noise))


def _rows(indices: range, found: LogLikelihood) -> list[Row]:
    columns = (found.nats, found.bits_per_dim, found.standard_error)
    numbers = zip(*(column.tolist() for column in columns), strict=True)
    return [Row(i, *three) for i, three in zip(indices, numbers, strict=True)]


def summary(rows: list[Row], dimension: int) -> dict[str, object]:
    """Return the mean bits per dimension with its standard errors.

    ``standard_error`` is over the samples, s/√N; ``probe_error`` is the part of it that more
    probes would remove, √(Σ e_i²)/N.
    """
    n, nan = len(rows), math.nan
    bits = [row.bits_per_dim for row in rows]
    mean = math.fsum(bits) / n
    spread = math.fsum((b - mean) ** 2 for b in bits) / (n - 1) if n > 1 else nan
    probe = math.sqrt(math.fsum(row.standard_error**2 for row in rows)) / n
    return {
        "samples": n,
        "bits_per_dim": mean,
        "standard_error": math.sqrt(spread / n),
        "probe_error": probe / (dimension * math.log(2)),
        "nats": math.fsum(row.nats for row in rows) / n,
    }


def _lines(result: dict[str, Any], file: Path) -> list[str]:
    error, probe = result["standard_error"], result["probe_error"]
    spread = "one sample has no spread" if math.isnan(error) else f"± {error:.4f} over the samples"
    part = "unknown with one probe" if math.isnan(probe) else f"± {probe:.4f}"
    return [
        f"{result['bits_per_dim']:.4f} bits/dim ({spread}; the probes' part {part})",
        f"{result['samples']} samples of {result['data']} under {result['model']}, "
        f"{result['nfe']} network evaluations each, {result['seconds']:.1f} s",
        f"wrote {file}",
    ]


def _write(path: Path, rows: list[Row]) -> Path:
    from sde_diffusion.checkpoint import write_atomically

    def save(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["index", "nats", "bits_per_dim", "standard_error"])
            writer.writerows([r.index, r.nats, r.bits_per_dim, r.standard_error] for r in rows)

    write_atomically(path, save)
    return path
