"""`sde-diffusion verify --posterior`: posterior samplers against exact posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sde_diffusion._files import writing
from sde_diffusion.cli import _common, report

if TYPE_CHECKING:
    from sde_diffusion.diagnostics.metrics import Interval
    from sde_diffusion.inverse_problems import PosteriorCertificate

_HEADERS: Final = ("sampler", "mean", "modes", "90 % set", "uniform", "log p(y)", "effective", "s")
_LEGEND: Final = """\
mean: RMS error of the posterior mean in posterior standard deviations; modes: total variation
distance of the weights of its components; 90 % set: share of the true x in it, {low:.2f} to
{high:.2f} in 95 of 100 tables of an exact sampler; uniform: p-value of their levels; log p(y): its
error in nats; effective: effective size a particle; s: seconds. Values are means over the problems
± 95 % intervals. Exact draws are the floor: so large are the errors of a perfect sampler.
Inpainting: of 3 of the 8 coordinates, the last two rows alone."""


def verify_posteriors(
    folder: Path, problems: int, particles: int, steps: int, *, as_json: bool
) -> None:
    """Measure, print and write the errors of the posterior samplers.

    Arguments:
        folder: for posterior.md and posterior.json.
        problems: how many measurements.
        particles: the draws of each posterior.
        steps: of the grid.
        as_json: whether JSON is printed.
    """
    from sde_diffusion.inverse_problems import certify_posteriors
    from sde_diffusion.inverse_problems.certificate import NAMES

    with _common.progress(len(NAMES), "sampler") as bar:

        def told(name: str) -> None:
            bar.set_description(name, refresh=False)
            bar.update()

        rows = certify_posteriors(problems=problems, particles=particles, steps=steps, told=told)
    low, high = rows[0].covered
    lines = [
        f"{problems} measurements of 3 numbers of a mixture of 4 in 8 dimensions; "
        f"{particles} draws each, {steps} steps",
        report.table(_HEADERS, [cells(row) for row in rows]),
        _LEGEND.format(low=low, high=high),
    ]
    result = {
        "problems": problems,
        "particles": particles,
        "steps": steps,
        "samplers": [asdict(row) for row in rows],
    }
    with (
        _common.shown_if_unwritten(result, lines, as_json=as_json),
        writing("verify", folder, "what is printed above is all that is kept", "run it again"),
    ):
        report.write_text(folder / "posterior.txt", "\n".join(lines))
        report.write_json(folder / "posterior.json", result)
    files = [folder / "posterior.txt", folder / "posterior.json"]
    lines += ["", *(f"wrote {file}" for file in files)]
    _common.show({**result, "files": [str(file) for file in files]}, lines, as_json=as_json)


def cells(row: PosteriorCertificate) -> Sequence[str]:
    """Return the row as text."""
    evidence = "–" if row.evidence_error is None else _interval(row.evidence_error)
    return (
        row.name,
        _interval(row.mean_error),
        _interval(row.mode_distance),
        f"{row.coverage:.2f}",
        f"{row.uniform:.2g}",
        evidence,
        f"{row.effective_share:.2f}",
        f"{row.seconds:.1f}",
    )


def _interval(found: Interval) -> str:
    places = 3 if abs(found.mean) + found.half_width < 10 else 0
    return f"{found.mean:.{places}f} ± {found.half_width:.{places}f}"
