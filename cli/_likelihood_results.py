"""The files and lines of `sde-diffusion likelihood`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sde_diffusion.cli import report

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.cli._likelihood_job import LikelihoodJob
    from sde_diffusion.ddpm.discrete_bound import StepTable
    from sde_diffusion.evaluation.results import Evaluation

_SHOWN: Final = 10  # indices of samples
_TABLE: Final = (
    "term",
    "step",
    "t",
    "number",
    "nats",
    "nats_error",
    "bits_per_dim",
    "bits_per_dim_error",
)


def write_results(out: Path, job: LikelihoodJob, found: Evaluation) -> dict[str, Any]:
    """Write all files into the folder, manifest.json last, and return what it holds."""
    from sde_diffusion._files import write_arrays, write_atomically
    from sde_diffusion.pictures.likelihoods import likelihood_picture

    columns = _columns(found)
    names = ["likelihood.csv", "likelihood.npz", "likelihood.png", "vlb_terms.csv"]
    rows = list(zip(*columns.values(), strict=True))
    write_atomically(out / names[0], lambda path: _write_csv(path, list(columns), rows))
    arrays = {"index": columns["index"]} | _arrays(found)
    write_arrays(out / names[1], arrays)
    title = f"{job.options['--data']} under {job.options['--model']}"
    likelihood_picture(found, title, out / names[2])
    steps = found.per_step()
    if steps is None:
        (out / names.pop()).unlink(missing_ok=True)  # of an earlier run
    else:
        table = _terms(job, found, steps)
        write_atomically(out / names[3], lambda path: _write_csv(path, _TABLE, table))
    files = [str(out / name) for name in (*names, "manifest.json")]
    manifest = {**job.manifest, "result": _result(job, found) | {"files": files}}
    report.write_json(out / "manifest.json", manifest)
    return manifest


def lines_of(manifest: Mapping[str, Any]) -> list[str]:
    """Return the result for people: a line for each bound, what they are, where the files are."""
    result = manifest["result"]
    settings = manifest["settings"]
    rows = [_cells(name, bound) for name, bound in result["bounds"].items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    n = result["samples"]
    levels = manifest["data"]["levels"]
    spread = (
        f"± is the standard error over {n} samples"
        if n > 1
        else "one sample has no standard error"
    )
    if levels is None:
        kind = "log-densities of real numbers"
    else:
        noise = settings["dequantization"].replace("none", "no")
        kind = f"log-probabilities of {levels} levels, {noise} dequantization"
    return [
        *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
        f"{spread}; in brackets the estimator's part",
        f"{result['data']} under {result['model']}: {kind}, {result['seconds']:.1f} s",
        *(_explained(name, manifest) for name in result["bounds"]),
        *_ledger_lines(manifest),
        *_failure_lines(result),
        f"wrote {', '.join(Path(file).name for file in result['files'])} "
        f"to {Path(result['files'][0]).parent}",
    ]


def _failure_lines(result: Mapping[str, Any]) -> list[str]:
    """Return how many samples have no finite likelihood, which, and why."""
    failures = result.get("failures")  # an earlier version wrote none
    if not failures:
        return []
    shown = ", ".join([*failures][:_SHOWN]) + (" …" if len(failures) > _SHOWN else "")
    index, why = next(iter(failures.items()))
    number = _count(len(failures), "sample")
    return [
        f"{number} without a finite likelihood, left out of the means: {shown}",
        f"sample {index} has none: {why}",
    ]


def _ledger_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Return a line for each source of error, and the flow's likelihood with all of them."""
    ledger = manifest.get("ledger")
    if ledger is None:
        return []
    width = max(len(line["name"]) for line in ledger["lines"])
    flow = manifest["result"]["bounds"]["flow"]["bits_per_dim"]
    settings = manifest["settings"]
    lines = [f"ledger of {_count(ledger['rows'], 'sample')}, bits/dim to add ± what is uncertain:"]
    lines += [
        f"  {line['name']:{width}}  {_signed(line['shift'])} ± {line['error']:.6f}  {line['how']}"
        for line in ledger["lines"]
    ]
    lines.append(
        f"flow by the ledger: {flow + ledger['shift']:.4f} ± {ledger['error']:.4f} "
        "bits/dim for these samples" + _left_out(ledger)
    )
    if "tuning" in manifest:
        probes = _count(settings["probes"], "probe")
        tolerance = settings["tolerance"]
        by = "more steps" if tolerance is None else f"tolerance {tolerance:g}"
        lines.append(f"--error chose {by}, {probes}, t-min {settings['t_min']:g}")
    return lines


def _left_out(ledger: Mapping[str, Any]) -> str:
    """Return what lines of the ledger are not in its sum, for they are no errors of the number."""
    names = [name for name in ("dequantization", "offset") if _has(ledger, name)]
    verb = "is" if len(names) == 1 else "are"
    return f", without {' and '.join(names)}, which {verb} part of what it is" if names else ""


def _has(ledger: Mapping[str, Any], name: str) -> bool:
    return any(line["name"] == name for line in ledger["lines"])


def _signed(value: float) -> str:
    text = f"{value:+.6f}"
    return f"{0:+.6f}" if float(text) == 0 else text.replace("-", "−")


def _result(job: LikelihoodJob, found: Evaluation) -> dict[str, Any]:
    """Return the means of all bounds, of the first also by themselves, and what they are of."""
    options = job.options
    settings = job.evaluator.settings
    bounds = {
        bound: {key: _known(value) for key, value in asdict(found.summary(bound)).items()}
        | {"nfe": found.nfe[bound]}
        for bound in found.bounds
    }
    first = bounds[found.bounds[0]]
    steps = found.per_step()
    return {
        **{key: first[key] for key in ("samples", "bits_per_dim", "standard_error")},
        "probe_error": first["estimator_error"],
        "nats": first["nats"],
        "bounds": bounds,
        "model": options["--model"],
        "data": options["--data"],
        "split": options["--split"],
        "solver": options["--solver"],
        "divergence": settings.divergence,
        "probes": None if settings.divergence == "exact" else settings.probes,
        "mode": settings.mode,
        "steps": None if steps is None else len(steps.number),
        "seed": settings.seed,
        "device": str(job.evaluator.model.device),
        "nfe": first["nfe"],
        "seconds": found.seconds,
        "failures": {str(index): why for index, why in found.failures.items()},
    }


def _cells(name: str, bound: Mapping[str, Any]) -> tuple[str, ...]:
    def with_error(value: float, error: float | None, digits: int) -> str:
        text = f"{value:.{digits}f}".replace("-", "−")
        return text if error is None else f"{text} ± {error:.{digits}f}"

    own = bound["estimator_error"]
    return (
        name,
        with_error(bound["bits_per_dim"], bound["standard_error"], 4) + " bits/dim",
        f"(± {own:.4f})" if own is not None else "(unknown with one probe)",
        with_error(bound["nats"], bound["nats_error"], 2) + " nats",
    )


def _explained(bound: str, manifest: Mapping[str, Any]) -> str:
    settings = manifest["settings"]
    options = manifest["options"]
    nfe = manifest["result"]["bounds"][bound]["nfe"]
    if bound == "flow":
        kind = settings["divergence"]
        by = kind if kind == "exact" else f"{kind} with {_count(settings['probes'], 'probe')}"
        how = f"the probability-flow ODE by {options['--solver']}, {by} ({manifest['mode']})"
    elif bound == "elbo":
        how = f"the evidence lower bound in continuous time from t = {settings['t_min']:g}"
    else:
        how = f"the discrete evidence lower bound of a DDPM of {_chain(manifest)}"
    return f"{bound}: {how}, {nfe} network evaluations each"


def _chain(manifest: Mapping[str, Any]) -> str:
    settings = manifest["settings"]
    kind = "of its lattice" if settings["chain"] == "lattice" else "equal in log-SNR"
    steps = f"{_count(manifest['result']['steps'], 'step')} {kind}"
    known = f"{steps}, {settings['variance']} variance"
    if manifest["data"]["levels"] is None or settings["dequantization"] != "none":
        return known
    return f"{known}, decoder of {settings['decoder']}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _columns(found: Evaluation) -> dict[str, list[Any]]:
    """Return the columns of the table of samples; with several bounds their names come first."""
    columns: dict[str, list[Any]] = {"index": found.index.tolist()}
    for bound in found.bounds:
        for name, values in _with_errors(found, bound).items():
            columns[_column(found, bound, name)] = values.tolist()
    return columns


def _with_errors(found: Evaluation, bound: str) -> dict[str, Tensor]:
    """Return both units of every sample's likelihood, each with its own error in that unit."""
    error = found.standard_error(bound)
    return {
        "nats": found.nats(bound),
        "nats_error": error,
        "bits_per_dim": found.bits_per_dim(bound),
        "bits_per_dim_error": error / (found.dimension * math.log(2)),
    }


def _arrays(found: Evaluation) -> dict[str, Any]:
    """Return everything that is known of the samples, the terms too."""
    arrays = dict[str, Any]()
    for bound in found.bounds:
        known = _with_errors(found, bound)
        arrays |= {_column(found, bound, name): values for name, values in known.items()}
        for name, values in found.values.items():
            kind, _, key = name.partition("_")
            if kind == bound and key not in ("nats", "standard_error"):
                arrays[_column(found, bound, key)] = values
    return {name: values.numpy() for name, values in arrays.items()}


def _column(found: Evaluation, bound: str, name: str) -> str:
    return name if len(found.bounds) == 1 else f"{bound}_{name}"


def _terms(job: LikelihoodJob, found: Evaluation, table: StepTable) -> list[Sequence[Any]]:
    """Return the rows of the table of the vlb: L_0, L_1 … and L_T, over samples and draws."""
    scale = table.dimension * math.log(2)
    errors = (table.standard_error, table.bits_per_dim, table.standard_error / scale)
    columns = (table.number, table.nats, *errors)
    times = job.evaluator.chain().flip(0)[1:]
    numbers = zip(times.tolist(), *(column.tolist() for column in columns), strict=True)
    rows: list[Sequence[Any]] = [(f"L_{k}", k + 1, *row) for k, row in enumerate(numbers)]
    rows[0] = ("L_0", 1, float(times[0]), *_term(found, "vlb_reconstruction"))
    return [*rows, ("L_T", len(times), float(times[-1]), *_term(found, "vlb_prior"))]


def _term(found: Evaluation, name: str) -> tuple[int, float, float, float, float]:
    """Return a term's samples and its mean in both units, each with its error in that unit."""
    number, nats, bits, error = found.term(name)
    return number, nats, error, bits, error / (found.dimension * math.log(2))


def _write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
