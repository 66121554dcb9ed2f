"""The ledger of an evaluation by its first samples, and settings that reach a given error."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_value
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.evaluation.auditing import audit
from sde_diffusion.evaluation.evaluator import VARIABLES, Evaluator
from sde_diffusion.evaluation.ledger import Ledger, Line
from sde_diffusion.latents.latent_model import LatentModel
from sde_diffusion.likelihood.dequantization import DiscreteLogLikelihood, discrete_log_prob
from sde_diffusion.likelihood.flow import log_prob
from sde_diffusion.models.exact import fit_gaussian

_NO_ERRORS: Final = ("offset", "dequantization")  # a constant, and the gap of a bound
_FIT: Final = 4096  # rows for the Gaussian of the data
_DRAWS: Final = 4  # of the dequantization, to see how far they spread
_MOST_PROBES: Final = 256
_LEAST_TOLERANCE: Final = 1e-8
_LEAST_TIME: Final = 1e-7
_ROUNDS: Final = 10


def audited(evaluator: Evaluator, rows: int = 4) -> Ledger:
    """Return the ledger of the flow's log-likelihoods of the first ``rows`` samples.

    The distribution of x_1 is audited against the Gaussian of the data's mean and covariance, and
    the dequantization by four draws or as many as the settings have: the line "dequantization" is
    the gap between the bound and log P(k).

    Errors: those of `audit`; ValueError for settings without the flow.
    """
    positive_integer("audited", "rows", rows)
    if isinstance(evaluator.model, LatentModel):
        rule = "be a score of the data, for which the ledger has a line for every error"
        remedy = "audit its score on the latents of the data"
        raise wrong_value("audited", "model", rule, "a LatentModel", remedy)
    if "flow" not in evaluator.settings.bounds:
        bounds = ", ".join(evaluator.settings.bounds)
        raise wrong_value(
            "audited",
            "settings",
            "have the flow among the bounds",
            bounds,
            "pass the bound flow or all",
        )
    settings = evaluator.settings
    if settings.divergence != "exact" and settings.probes < 2:
        evaluator = evaluator.changed(probes=2)
    spec = evaluator.dataset.spec
    batch = range(min(rows, len(evaluator.dataset)))
    model = evaluator.model_of(batch)
    x = evaluator.inputs(batch)
    sde = model.linear_sde()
    last = torch.tensor(sde.horizon, dtype=torch.float64)
    found = audit(
        x,
        ProbabilityFlow(sde, model),
        evaluator.solver,
        grid=evaluator.grid,
        variable=VARIABLES[settings.variable],
        divergence=evaluator.divergence(0),
        end=fit_gaussian(_many(evaluator)).diffused(sde).marginal(last),
        discrete=None if spec.levels is None else _spread(evaluator, batch),
    )
    volume = spec.log_volume(x.cpu()).double()
    name = "real numbers" if spec.levels is None else f"{spec.levels} levels"
    offset = Line("offset", volume, torch.zeros_like(volume), f"the scaling of {name}, exactly")
    return dataclasses.replace(found, lines=(*found.lines, offset))


@final
@dataclass(frozen=True)
class Tuned:
    """An evaluator that reaches an error, and the ledgers that led there, the last its own."""

    evaluator: Evaluator
    ledgers: tuple[Ledger, ...]


def tuned(evaluator: Evaluator, error: float, rows: int = 4) -> Tuned:
    """Return the evaluator at the cheapest settings whose ledger adds up to ``error``.

    Begins at a tolerance of 1e-3 and two probes and, until the lines of the first ``rows`` samples
    add up to the error, does what lowers the largest of them: a tenth of the tolerance (or twice
    the steps), as many probes as their line needs, a tenth of t_min. The error does not include
    the standard error of the mean over samples, nor the gap of the dequantization's bound.

    Units: error in bits per dimension, of the mean over the data set.
    Errors: ValueError where a line that no work can lower is above the error.
    """
    positive_number("tuned", "error", error)
    adaptive = evaluator.solver.adaptive
    start: dict[str, float | int] = {"tolerance": 1e-3} if adaptive else {}
    if evaluator.settings.divergence != "exact":
        start["probes"] = 2
    evaluator = evaluator.changed(**start)
    ledgers = list[Ledger]()
    for _ in range(_ROUNDS):
        ledgers.append(audited(evaluator, rows))
        sizes = sizes_of(ledgers[-1], len(evaluator.dataset))
        if math.fsum(sizes.values()) <= error:
            return Tuned(evaluator, tuple(ledgers))
        worst = max(sizes, key=lambda name: sizes[name])
        better = _improved(evaluator, worst, sizes[worst], error)
        if better is None:
            break
        evaluator = better
    text = ", ".join(f"{name} {size:.2g}" for name, size in sizes.items())
    raise wrong_value(
        "tuned",
        "error",
        f"be above {sizes[worst]:.2g}, which {worst} leaves here",
        error,
        f"raise it; the lines are {text} bits/dim",
    )


def summary(ledger: Ledger, samples: int) -> dict[str, Any]:
    """Return the ledger as JSON values, for a mean over so many samples.

    ``shift`` is the sum of all shifts that correct the mean, and ``error`` what is left: two
    standard errors of the random lines and the sum of the others.

    Units: bits per dimension.
    """
    lines = [
        {"name": name, "shift": shift, "error": error, "how": how}
        for name, shift, error, how in ledger.table()
    ]
    lasting = [line for line in ledger.lines if line.name not in _NO_ERRORS]
    squares = (float(line.error.square().mean()) for line in lasting if line.random)
    nats = 2 * math.sqrt(math.fsum(squares) / samples)
    nats += math.fsum(line.mean_error for line in lasting if not line.random)
    shift = math.fsum(float(line.shift.mean()) for line in lasting)
    return {
        "rows": len(ledger.nats),
        "lines": lines,
        "shift": ledger.bits(shift),
        "error": abs(ledger.bits(nats)),
        "nfe": ledger.nfe,
    }


def sizes_of(ledger: Ledger, samples: int) -> dict[str, float]:
    """Return what each line adds to the error of a mean over so many samples, in bits/dim.

    Random errors of independent samples, at two standard errors, fall with their number.
    """
    sizes = {}
    for line in ledger.lines:
        if line.name in _NO_ERRORS:
            continue
        if line.random:
            nats = 2 * float(line.error.square().mean().sqrt()) / math.sqrt(samples)
        else:
            nats = abs(float(line.shift.mean())) + float(line.error.mean())
        sizes[line.name] = abs(ledger.bits(nats))
    return sizes


def _improved(evaluator: Evaluator, line: str, size: float, error: float) -> Evaluator | None:
    """Return the evaluator with more work spent on a line; None where work does not help."""
    settings = evaluator.settings
    if line == "tolerance":
        if not evaluator.solver.adaptive:
            return evaluator.halved()
        smaller = (settings.tolerance or 1e-3) / 10
        return evaluator.changed(tolerance=smaller) if smaller >= _LEAST_TOLERANCE else None
    if line == "probes" and settings.probes < _MOST_PROBES:
        needed = math.ceil(settings.probes * (size / (0.4 * error)) ** 2)
        return evaluator.changed(probes=min(max(needed, settings.probes + 1), _MOST_PROBES))
    least = evaluator.model.t_min or _LEAST_TIME  # below its own a model says nothing
    if line == "truncation" and evaluator.t_min / 10 >= least:
        return evaluator.changed(t_min=evaluator.t_min / 10)
    return None


def _many(evaluator: Evaluator) -> Tensor:
    """Return rows of the data as the model takes them, float64: those whose moments are fitted."""
    spec = evaluator.dataset.spec
    rows = evaluator.dataset.values[:_FIT]
    x = spec.encode(rows, 0.5)
    if bool((x == x[:1]).all()):
        raise wrong_value(
            "ledger",
            "samples",
            "be two or more that differ: their moments are fitted",
            f"{len(x)} that are alike",
            "evaluate more of them, or none of --ledger and --error",
        )
    return x.double().to(evaluator.model.device)


def _spread(evaluator: Evaluator, batch: range) -> DiscreteLogLikelihood:
    """Return what draws of the dequantization say of the gap between their bound and log P(k).

    The gap of one draw is half the variance of its log-weight, where that is normal; of several
    the jackknife's.
    """
    settings = evaluator.settings
    model = evaluator.model_of(batch)
    flow = ProbabilityFlow(model.linear_sde(), model)
    spec = evaluator.dataset.spec
    rows = evaluator.dataset.values[batch.start : batch.stop]

    def density(x: Tensor, first: int) -> Tensor:
        found = log_prob(
            evaluator.to_model(x),
            flow,
            evaluator.solver,
            grid=evaluator.grid,
            variable=VARIABLES[settings.variable],
            divergence=evaluator.divergence(first),
        )
        return found.nats.cpu()

    draws = max(settings.draws, _DRAWS)
    found = discrete_log_prob(rows, spec, density, evaluator.dequantizer(), draws=draws)
    if settings.draws > 1:
        return found
    half = 0.5 * found.log_weights.var(0)
    return dataclasses.replace(found, gap=half, standard_error=half * (2 / (draws - 1)) ** 0.5)
