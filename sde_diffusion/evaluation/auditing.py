"""The audit of a log-likelihood: what every source of error adds, each by itself.

A source is measured by taking it away: the prior is replaced by a better distribution of x_1, t_ε
by a hundredth of it, and of that where the data are narrower than sigma there, the solver by one
of smaller error, float32 by float64, the score by a reference. The change is that line's
``shift``, the uncertainty of the change its ``error``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import an_object, wrong_value
from sde_diffusion._tensors import check_state
from sde_diffusion.dynamics import ProbabilityFlow, check_flow
from sde_diffusion.evaluation.ledger import LINES, Ledger, Line
from sde_diffusion.evaluation.truncation import truncation
from sde_diffusion.likelihood.continuous_bound import prior_kl
from sde_diffusion.likelihood.dequantization import DiscreteLogLikelihood
from sde_diffusion.likelihood.divergence import Divergence, Hutchinson
from sde_diffusion.likelihood.flow import Density, LogLikelihood, log_prob
from sde_diffusion.likelihood.flow_variables import FlowVariable
from sde_diffusion.likelihood.jacobian import Velocity
from sde_diffusion.scores import Score, first_time, score_of
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver

# A tolerance smaller by so much leaves a hundredth of the error or less, though not in proportion.
_TIGHTER: Final = 1000.0


def audit(
    x: Tensor,
    flow: ProbabilityFlow,
    solver: Solver[Any],
    *,
    grid: Tensor | None = None,
    variable: FlowVariable | None = None,
    divergence: Divergence | None = None,
    prior: Density | None = None,
    end: Density | None = None,
    reference: Score | None = None,
    levels: int | None = None,
    discrete: DiscreteLogLikelihood | None = None,
) -> Ledger:
    """Return the ledger of `log_prob` with the same arguments.

    The Gaussian of the data's mean and covariance, diffused to x_1, is nearer to the distribution
    of x_1 than the prior: `fit_gaussian(samples).diffused(sde).marginal(t)`. The error of ``end``
    is taken to be alpha/√(alpha² + sigma²) of its shift, the size of the next cumulant's part.

    Arguments:
        x: the data, scaled; (B, *event).
        flow: the probability-flow ODE of a score.
        solver: a solver of ODEs.
        grid: rising times of the solve; (steps + 1,), float64, in [0, 1].
        variable: the variable in which the flow is solved, as in `log_prob`.
        divergence: how ∇·v is found; by default four Hutchinson probes.
        prior: the distribution of x_1 that is audited; by default the SDE's own prior.
        end: a better distribution of x_1, to measure the prior by.
        reference: the exact score, where there is one, to measure the score by.
        levels: of dequantized integers, for the line "offset".
        discrete: bounds of the same rows by several draws of their dequantization.

    NFE: of the solve itself, of that in float64 where x is not, of one with a thousandth of the
    tolerance, or 1e-7 (or of two steps for each), from t_ε/100, from t_ε/10⁴ and on, down to
    t_ε/10¹⁰, as long as a hundredth moves log p by more than a nat, and with the reference.
    Errors: those of `log_prob`; ValueError for a divergence without a standard error.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.solvers import DormandPrince
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> x = torch.zeros(1, 2, dtype=torch.float64)
    >>> ledger = audit(x, ProbabilityFlow(model.sde, model), DormandPrince())
    >>> abs(ledger.corrected + 1.837877) <= ledger.half_width() + 1e-6
    True
    """
    check_state("audit", x)
    check_flow("audit", flow)
    divergence = Hutchinson(probes=4) if divergence is None else divergence
    an_object("audit", "divergence", divergence, Divergence, "pass for example Exact()")
    if end is not None:
        an_object("audit", "end", end, Density, "pass for example fit_gaussian(latents)")
    same = _SameProbes(divergence, divergence.draw(x))
    spent = list[int]()

    def solve(x: Tensor, score: Score, solver: Solver[Any], grid: Tensor | None) -> LogLikelihood:
        found = log_prob(
            x,
            ProbabilityFlow(flow.sde, score),
            solver,
            grid=grid,
            levels=levels,
            variable=variable,
            divergence=same,
            prior=prior,
        )
        spent.append(found.nfe)
        return found

    score = flow.score.function
    at = x
    lines = list[Line]()
    found = best = solve(x, score, solver, grid)
    if x.dtype != torch.float64:  # whose rounding a small tolerance would not get below
        at = x.double()
        score = score.in_double()
        best = solve(at, score, solver, grid)
        lines.append(_difference("rounding", found, best, 0.1, "by a solve in float64"))
    finer, finer_grid, left = _finer(solver, grid)
    loose = best
    best = solve(at, score, finer, finer_grid)
    lines.append(_tolerance(loose, best, left, x[0].numel()))
    if reference is not None:
        other = solve(at, score_of("audit", reference, flow.sde).in_double(), finer, finer_grid)
        lines.append(_difference("score", best, other, 0.0, "by the reference score"))
    start, last = _ends(flow, grid)
    lines.append(_prior_line(x, best, flow, prior, end, last))
    nearest = best
    if float(start) > 0:

        def solve_from(solver: Solver[Any], grid: Tensor) -> LogLikelihood:
            return solve(at, score, solver, grid)

        whole = torch.stack([start, last]) if finer_grid is None else finer_grid
        line, nearest = truncation(best, solve_from, finer, whole)
        lines.append(line)
    lines += [_probes(nearest, divergence), *_of_levels(x, levels, discrete)]
    lines.sort(key=lambda line: LINES.index(line.name))
    return Ledger(
        found.nats.double(), x[0].numel(), tuple(lines), divergence.columns - 1, sum(spent)
    )


def _difference(
    name: str, one: LogLikelihood, other: LogLikelihood, left: float, how: str
) -> Line:
    shift = other.nats.double() - one.nats.double()
    return Line(name, shift, left * shift.abs(), how)


def _tolerance(found: LogLikelihood, tight: LogLikelihood, left: float, dimension: int) -> Line:
    shift = tight.nats.double() - found.nats.double()
    embedded = float(found.tolerance_error.mean())
    how = "by a solve of smaller error"
    if not math.isnan(embedded):
        bits = embedded / (dimension * math.log(2))
        how += f"; the embedded errors of the integral add up to {bits:.1e} bits/dim"
    # What a smaller tolerance leaves is of either sign, and no less than rounding.
    floor = 1e-9 * (1 + found.nats.double().abs())
    return Line("tolerance", shift, left * shift.abs() + floor, how)


def _prior_line(
    x: Tensor,
    found: LogLikelihood,
    flow: ProbabilityFlow,
    prior: Density | None,
    end: Density | None,
    last: Tensor,
) -> Line:
    """Return log p_1(x_1) − log π(x_1) by a better distribution, or a bound of its mean."""
    zero = torch.zeros(len(found.nats), dtype=torch.float64)
    at = found.latent
    if end is not None:
        used = found.terms["prior"].double()
        shift = end.log_prob(at.double()).double() - used
        share = 0.0
        if isinstance(flow.sde, LinearSDE):
            alpha, sigma = float(flow.sde.alpha(last)), float(flow.sde.sigma(last))
            share = alpha / math.hypot(alpha, sigma)
        how = "by the distribution of x_1 given"
        return Line("prior", shift, share * shift.abs() + share**3, how)
    if not isinstance(flow.sde, LinearSDE) or prior is not None:
        return Line("prior", zero, zero, "the prior given is taken to be the distribution of x_1")
    kl = prior_kl(x, flow.sde)  # its mean is at least E log(p_1/π), so it has that ratio's size
    how = "of the size of KL(q(x_1|x_0)‖π); give end for an estimate"
    return Line("prior", zero, kl + (2 * kl).sqrt(), how, random=True)


def _probes(found: LogLikelihood, divergence: Divergence) -> Line:
    error = found.standard_error.double()
    if bool(error.isnan().any()):
        raise wrong_value(
            "audit",
            "divergence",
            "have two probes or more, to tell their error",
            f"{divergence.columns}",
            "pass Hutchinson(probes=4)",
        )
    how = f"by the spread of {divergence.columns} probes" if divergence.columns > 1 else "exact"
    return Line("probes", torch.zeros_like(error), error, how, random=True)


def _of_levels(
    x: Tensor, levels: int | None, discrete: DiscreteLogLikelihood | None
) -> list[Line]:
    zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    lines = list[Line]()
    if discrete is not None:
        lines.append(
            Line(
                "dequantization",
                discrete.gap.double(),
                discrete.standard_error.double() + 0.5 * discrete.gap.double(),
                "from the bound of the draws to log P(k), as far as the spread of "
                f"{len(discrete.log_weights)} draws tells",
            )
        )
    if levels is not None:
        offset = x[0].numel() * math.log(levels / 2)
        lines.append(Line("offset", zero - offset, zero, f"log2({levels}/2) bits/dim, exactly"))
    return lines


def _finer(solver: Any, grid: Tensor | None) -> tuple[Any, Tensor | None, float]:  # noqa: ANN401
    """Return a solver and grid of smaller error, and what part of the difference may be left."""
    if solver.adaptive:
        rtol = _smaller(solver.rtol)
        atol = _smaller(solver.atol)
        return dataclasses.replace(solver, rtol=rtol, atol=atol), grid, 0.1
    if grid is None:
        return solver, grid, 1.0
    halves = torch.stack([grid[:-1], 0.5 * (grid[:-1] + grid[1:])], 1).flatten()
    order = 1.0 if math.isnan(solver.order) else max(1.0, float(solver.order))
    return solver, torch.cat([halves, grid[-1:]]), 2 / (2**order - 1)


def _smaller(tolerance: float) -> float:
    """Return a thousandth of a tolerance, down to 1e-7, and from there on a tenth."""
    return max(tolerance / _TIGHTER, min(tolerance / 10, 1e-7), 1e-13)


def _ends(flow: ProbabilityFlow, grid: Tensor | None) -> tuple[Tensor, Tensor]:
    if grid is None:
        grid = torch.tensor([first_time(flow.score), flow.horizon], dtype=torch.float64)
    return grid[0], grid[-1]


@final
class _SameProbes(Divergence):
    """A divergence whose probes are drawn already, in any dtype."""

    def __init__(self, inner: Divergence, z: Tensor) -> None:
        self.inner = inner
        self.z = z

    @property
    def columns(self) -> int:
        return self.inner.columns

    def draw(self, x: Tensor) -> Tensor:
        return self.z.to(x.dtype)

    def evaluate(
        self, velocity: Velocity, x: Tensor, z: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        return self.inner.evaluate(velocity, x, z, create_graph)

    def error(self, integral: Tensor) -> Tensor:
        return self.inner.error(integral)

    def correction(self, z: Tensor, growth: Callable[[Tensor], Tensor]) -> Tensor | None:
        return self.inner.correction(z, growth)
