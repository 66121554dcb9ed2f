"""`sde-diffusion restore`: draws of the posterior of measured data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion._files import writing
from sde_diffusion.cli import _common, _operators, menu, report

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.inverse_problems import Measurement, PosteriorSamples

EXAMPLES: Final = """\b
Examples:
  sde-diffusion restore --operator inpaint:left
  sde-diffusion restore --operator downsample:2 --noise 0.1 --draws 64 --weighted
  sde-diffusion restore --model mnist --data path/to/mnist --operator downsample:4 --limit 64
"""
_LEVELS: Final = (0.5, 0.8, 0.9)
_ENOUGH: Final = 16  # draws


@click.command(epilog=EXAMPLES)
@_common.model_option
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="What is measured and then restored: digits, or a path as `likelihood` takes it.",
)
@_common.reading_options
@_common.split_option
@click.option(
    "--operator",
    required=True,
    metavar="NAME",
    help=f"How it is measured: {_operators.OPERATORS}. A half or the box is hidden; of a SHARE "
    "of random pixels all is kept.",
)
@click.option(
    "--noise",
    "noise_name",
    default="0.05",
    show_default=True,
    metavar="NOISE",
    help=f"The noise: {_operators.NOISES}, in the units of the model, whose pixels go from −1 to "
    "1; of PEAK photons a unit of brightness, which is the pixel + 1. All but the first go with "
    "--method plug-in.",
)
@click.option(
    "--method",
    default="mmps",
    show_default=True,
    help=f"The likelihood score or sampler: {', '.join(_operators.METHODS)}; with a setting as in "
    "mmps:5. repaint:R, of masks alone, walks every stretch R times.",
)
@click.option(
    "--weighted",
    is_flag=True,
    help="Weigh and resample the draws as particles: exact in the limit of many, and log p(y).",
)
@_common.count_option("--limit", default=8, help="How many samples of the data.")
@_common.count_option("--draws", default=16, help="Draws of each posterior.")
@_common.count_option("--steps", default=50, help="Steps of the samplers.")
@_common.count_option("--batch-size", default=128, help="Draws computed at once, about.")
@_common.common_options(out="restored")
def command(
    model_name: str,
    data: str,
    size: int | None,
    frames: str,
    layout: str | None,
    length: int | None,
    split: str | None,
    operator: str,
    noise_name: str,
    method: str,
    weighted: bool,
    limit: int,
    draws: int,
    steps: int,
    batch_size: int,
    seed: int,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Measure held-out data, and draw from the posterior of what was measured.

    A new run replaces the results in --out when it is done.

    Writes restored.npz (truth, the measurement y, the posterior's mean, std and samples with their
    weights, in the units of the model), restored.json and, of images, restored.png with a column
    for each: truth, measurement, mean, standard deviation and two draws. What the draws are worth
    is in the table: the share of true values in their central intervals, beside that of as many
    exact draws.
    """
    import torch

    from sde_diffusion.cli._held_out import data_of_model
    from sde_diffusion.cli._together import alone_in
    from sde_diffusion.inverse_problems import Measurement

    with alone_in("restore", out):
        model = menu.model(model_name, _common.resolve_device(device))
        event = menu.event_shape(model)
        made = _operators.operator(operator, event)
        noise = _operators.noise(noise_name, method)
        sampler = _operators.sampler(method, made, weighted=weighted)
        reading = {"size": size, "frames": frames, "layout": layout, "split": split}
        reading["length"] = length
        dataset = data_of_model(data, model, reading)
        folder = _common.output_folder(out)
        truth = dataset.dequantized(torch.Generator().manual_seed(seed))[:limit]
        measured = Measurement.drawn(made, truth, noise, seed=seed)
        found = _restored(
            model,
            measured,
            event,
            partial(sampler, draws=draws, steps=steps, seed=seed),
            max(batch_size // draws, 1),
            weighted=weighted,
        )
        result = {
            "model": model_name,
            "operator": operator,
            "noise": noise_name,
            "method": method,
            "weighted": weighted,
            "samples": len(truth),
            "draws": draws,
            "steps": steps,
            "seed": seed,
            **_errors(found, truth, measured, weighted=weighted),
        }
        lines = _lines(result)
        with (
            _common.shown_if_unwritten(result, lines, as_json=as_json),
            writing(
                "restore", folder, "what is printed above is all that is kept", "run it again"
            ),
        ):
            files = _write(folder, found, truth, measured, result)
        lines += ["", *(f"wrote {file}" for file in files)]
        _common.show({**result, "files": [str(file) for file in files]}, lines, as_json=as_json)


def _restored(
    model: Any,  # noqa: ANN401  (a score model)
    measured: Measurement,
    event: tuple[int, ...],
    sampler: Callable[..., PosteriorSamples],
    each: int,
    *,
    weighted: bool,
) -> PosteriorSamples:
    """Return the draws of all measurements, computed in parts; of one weight unless weighted.

    Arguments:
        model: the score model.
        measured: what was measured, one row a posterior.
        event: the shape of a sample.
        sampler: what draws from the posteriors of some of them.
        each: measurements at once.
        weighted: whether the weights count.
    """
    import torch

    from sde_diffusion.inverse_problems import PosteriorSamples

    count = len(measured.y)
    parts = []
    with _common.progress(count, "measurement") as bar:
        for first in range(0, count, each):
            index = torch.arange(first, min(first + each, count))
            parts.append(sampler(model, measured.rows(index), event, first=first))
            bar.update(len(index))
    log_weights = torch.cat([part.log_weights for part in parts])
    return PosteriorSamples(
        torch.cat([part.x for part in parts]).cpu(),
        (log_weights if weighted else torch.zeros_like(log_weights)).cpu(),
        torch.cat([part.log_evidence for part in parts]).cpu(),
        parts[0].nfe,
        torch.cat([part.resamplings for part in parts]),
    )


def _errors(
    found: PosteriorSamples, truth: Tensor, measured: Measurement, *, weighted: bool
) -> dict[str, Any]:
    """Return what the draws are worth.

    Arguments:
        found: the draws.
        truth: what was measured; (Q, *event).
        measured: the measurements.
        weighted: whether there is an evidence to tell.
    """
    from sde_diffusion.diagnostics import paired_interval

    away = (found.levels(truth.double()) - 0.5).abs()
    shares = {level: (2 * away <= level).double().flatten(1).mean(1) for level in _LEVELS}
    error = (found.mean - truth).square().flatten(1).mean(1).sqrt()
    of_mean = measured.y - measured.noise.expected(measured.operator(found.mean))
    residual = of_mean.flatten(1).square().mean(1).sqrt()
    several = len(truth) > 1
    return {
        "nfe": found.nfe,
        "rms_error_of_mean": float(error.mean()),
        "rms_residual_of_mean": float(residual.mean()),
        "mean_std": float(found.std.mean()),
        "effective_size": float(found.effective_size.mean()),
        "log_evidence": found.log_evidence.tolist() if weighted else None,
        "coverage": [
            {
                "level": level,
                "share": float(share.mean()),
                "exact": _of_exact_draws(found.x.shape[1], level),
                "half_width": paired_interval(share.tolist()).half_width if several else None,
            }
            for level, share in shares.items()
        ],
    }


def _of_exact_draws(count: int, level: float) -> float:
    """Return the coverage by so many exact draws, among which a true value has any rank alike."""
    inside = sum(abs(2 * rank / count - 1) <= level for rank in range(count + 1))
    return inside / (count + 1)


def _lines(result: Mapping[str, Any]) -> list[str]:
    """Return the result for people."""
    rows = [
        (
            f"{row['level']:.0%}",
            f"{row['share']:.1%}"
            + ("" if row["half_width"] is None else f" ± {row['half_width']:.1%}"),
            f"{row['exact']:.1%}",
        )
        for row in result["coverage"]
    ]
    seen = f"{result['operator']} with noise {result['noise']}"
    away = f"{result['rms_error_of_mean']:.3f}"
    lines = [
        f"samples of the data: {result['samples']}, through {seen}",
        f"draws of each posterior: {result['draws']}, by {result['method']} in {result['nfe']} "
        "evaluations each",
        f"RMS distance of the mean to the truth {away}, of its measurement to y "
        f"{result['rms_residual_of_mean']:.3f}; standard deviation {result['mean_std']:.3f}",
    ]
    if result["weighted"]:
        mean = sum(result["log_evidence"]) / result["samples"]
        lines.append(
            f"effective size {result['effective_size']:.1f} of {result['draws']}; log p(y) "
            f"{mean:.1f} nats on average"
        )
    table = report.table(("interval", "true values in it", "by exact draws"), rows)
    legend = f"the last column is what {result['draws']} draws of the very posterior would show"
    if result["draws"] < _ENOUGH:
        legend += f"; so few cannot tell these intervals apart, --draws {_ENOUGH} can"
    return [*lines, table, legend]


def _write(
    folder: Path,
    found: PosteriorSamples,
    truth: Tensor,
    measured: Measurement,
    result: Mapping[str, Any],
) -> list[Path]:
    """Write arrays, numbers and, of images, the picture; return the files.

    Arguments:
        folder: where they go.
        found: the draws.
        truth: what was measured.
        measured: the measurements.
        result: the numbers.
    """
    from sde_diffusion._files import write_arrays
    from sde_diffusion.pictures.restorations import restoration_picture

    arrays = {
        "truth": truth,
        "y": measured.y,
        "mean": found.mean,
        "std": found.std,
        "x": found.x,
        "weights": found.weights,
    }
    files = [folder / "restored.npz", folder / "restored.json"]
    picture = folder / "restored.png"
    picture.unlink(missing_ok=True)  # of an earlier run
    write_arrays(files[0], {name: value.cpu().numpy() for name, value in arrays.items()})
    report.write_json(files[1], result)
    if truth.ndim == 4 and truth.shape[1] in (1, 3):
        files.append(picture)
        restoration_picture(found, truth, measured, picture)
    return files
