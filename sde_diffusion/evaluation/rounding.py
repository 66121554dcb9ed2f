"""What a network in half precision costs: errors of samples and likelihoods against float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import an_object, positive_integer
from sde_diffusion._shown import shown
from sde_diffusion.diagnostics.comparison import Problem
from sde_diffusion.diagnostics.metrics import Interval, paired_interval, rms_distance
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.likelihood.divergence import Divergence
from sde_diffusion.likelihood.flow import log_prob
from sde_diffusion.models.rounded import in_precision
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.sampling.costs import plan
from sde_diffusion.sampling.generate import sample
from sde_diffusion.solver import Solver


@final
@dataclass(frozen=True)
class RoundingError:
    """How far samples of a network in half precision are from those in float32.

    Arguments:
        solver: its name.
        steps: of the solve; None where the solver chooses them.
        nfe: evaluations of the network in half precision, and in float32.
        error: RMS distance of the samples from the same noise; over the replicates.
    """

    solver: str
    steps: int | None
    nfe: tuple[int, int]
    error: Interval

    __repr__ = shown


def rounding_errors(
    problem: Problem,
    solvers: Mapping[str, Solver[Any]],
    budgets: Sequence[int],
    dtype: torch.dtype,
    *,
    samples: int = 64,
    replicates: int = 3,
    seed: int = 0,
) -> list[RoundingError]:
    """Return the distance of samples by ``in_precision(model, dtype)`` to the model's own.

    States are float32 and coefficients float64 in both; every solver takes its steps of `compare`.

    Arguments:
        problem: the model, a learned score, and the rule of the grids.
        solvers: the solvers by name.
        budgets: the most evaluations of the score in a solve.
        dtype: torch.bfloat16 or torch.float16.
        samples: of one replicate.
        replicates: disjoint sets of samples, at least 2.
        seed: of the prior draws and the solvers' noise.

    Errors: those of `in_precision` and `compare`.
    """
    an_object("rounding_errors", "problem", problem, Problem, "pass Problem(name, model, data)")
    positive_integer("rounding_errors", "replicates", replicates, least=2)
    model: Any = problem.model
    rounded = in_precision(model, dtype)
    sde = model.linear_sde()
    found = []
    for name, solver in solvers.items():
        rule = problem.rule(solver)
        for steps in plan(name, solver, sde, rule, budgets):
            grid = rule(1 if steps is None else steps)
            shape = (samples * replicates, *problem.state)
            half, full = (
                sample(each, solver, shape, grid=grid, seed=seed, dtype=problem.dtype)
                for each in (rounded, model)
            )
            pairs = zip(*(torch.split(each.x, samples) for each in (half, full)), strict=True)
            error = paired_interval([rms_distance(one, other) for one, other in pairs])
            found.append(RoundingError(name, steps, (half.nfe, full.nfe), error))
    return found


def likelihood_rounding(
    model: LearnedScore,
    dtype: torch.dtype,
    x: Tensor,
    solver: Solver[Any],
    *,
    divergence: Divergence | None = None,
    grid: Tensor | None = None,
) -> tuple[Interval, Interval]:
    """Return the mean change of log p(x) by half precision, and its mean size, in nats.

    Arguments:
        model: the model in float32.
        dtype: torch.bfloat16 or torch.float16.
        x: the data, scaled; (B, *event), two samples or more.
        solver: a solver of ODEs, best of fixed steps: an adaptive one takes the rounding for its
            error, and many more steps.
        divergence: that of `log_prob`; its probes are the same for both.
        grid: that of `log_prob`.
    """
    half, full = (
        log_prob(x, ProbabilityFlow(each.sde, each), solver, divergence=divergence, grid=grid).nats
        for each in (in_precision(model, dtype), model)
    )
    change = (half - full).tolist()
    return paired_interval(change), paired_interval([abs(each) for each in change])
