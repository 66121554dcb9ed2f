"""Log-likelihood along the probability flow.

log p_0(x_0) = log p_1(x_1) + ∫₀¹ ∇·v(x_t, t) dt along dx/dt = v (the instantaneous change of
variables), with the divergence found by one of `divergence`. State and integral are one ODE, so
every evaluation is one network call with vector-Jacobian products of that call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sde_diffusion._check import a_function, an_object, positive_integer, wrong_type, wrong_value
from sde_diffusion._progress import way
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state
from sde_diffusion.data.checks import check_dequantized, check_levels
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.dynamics import ODE, ProbabilityFlow, check_flow
from sde_diffusion.grids import check_grid, check_rising
from sde_diffusion.integration import (
    Solution,
    check_evaluation,
    integrate,
    whole_way,
)
from sde_diffusion.likelihood.divergence import Divergence, Hutchinson
from sde_diffusion.likelihood.flow_variables import Angle, FlowVariable, Time, Variable
from sde_diffusion.matrix_sde import MatrixLinearSDE
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver, check_solver


@runtime_checkable
class Density(Protocol):
    """What a prior needs."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of every sample, in nats."""


@final
class _Augmented(ODE):
    """A flow with its divergence integrals: state (B, D + columns), in float32 at least.

    The velocity is evaluated in the data's dtype; sums over the steps would lose bits in half
    precision, and nats in the hundreds all but a few.
    """

    def __init__(
        self,
        base: Variable,
        divergence: Divergence,
        z: Tensor,
        event: tuple[int, ...],
        dtype: torch.dtype,
        seen: Callable[[Tensor], object],
        *,
        keep_graph: bool,
    ) -> None:
        self.base = base
        self.divergence = divergence
        self.z = z
        self.event = event
        self.dtype = dtype
        self.seen = seen  # is told the time of every evaluation
        self.keep_graph = keep_graph
        self.horizon = base.horizon

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen(t)
        y = x[:, : math.prod(self.event)].reshape(-1, *self.event).to(self.dtype)
        velocity = partial(self.base.velocity, t=t)
        try:
            v, columns = self.divergence.evaluate(velocity, y, self.z, self.keep_graph)
        except TypeError:
            self._check_tracked()  # which says why there is no derivative
            raise
        self._check_tracked()
        return torch.cat([v.flatten(1).to(x.dtype), columns.to(x.dtype)], 1)

    def _check_tracked(self) -> None:
        """Refuse a score without a graph back to x, whose divergence would be taken for 0."""
        if not self.base.flow.score.tracked:
            raise wrong_type(
                "log_prob",
                "score",
                "be differentiable in x",
                "a detached tensor",
                "remove no_grad or detach",
            )

    def rows(self, index: Tensor) -> _Augmented:
        return _Augmented(
            self.base.rows(index),
            self.divergence,
            self.z[index],
            self.event,
            self.dtype,
            self.seen,
            keep_graph=self.keep_graph,
        )


@final
@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch with their parts and errors.

    `terms` holds "prior" = log π(x_1) and "divergence" = ∫ ∇·v dt; they sum to `nats`.
    `standard_error` does not include the solver's error. `tolerance_error` adds up the embedded
    errors of the divergence integral over an adaptive solver's steps, without the error of the
    state. The tolerance holds for the root mean square over state and integral, so it bounds bits
    per dimension rather than nats.

    All but `latent` are in float32 or, for data in float64, in float64.

    Arguments:
        nats: log p(x); (B,), nats.
        bits_per_dim: −nats/(D ln 2), plus log2(levels/2) for levels scaled to [−1, 1]; (B,).
        standard_error: of the mean over probes; 0 for `Exact`, NaN for one probe; (B,), nats.
        tolerance_error: of the divergence integral; NaN for a solver without one; (B,), nats.
        terms: the parts of log p(x) by name; (B,) each, nats.
        nfe: evaluations of the score by the solve.
        latent: x_1, where the flow takes x; (B, *event), in x's dtype.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    tolerance_error: Tensor
    terms: Mapping[str, Tensor]
    nfe: int
    latent: Tensor

    __repr__ = shown


def log_prob(
    x: Tensor,
    flow: ProbabilityFlow,
    solver: Solver[Any],
    *,
    grid: Tensor | None = None,
    variable: FlowVariable | None = None,
    divergence: Divergence | None = None,
    prior: Density | None = None,
    levels: int | None = None,
    keep_graph: bool = False,
    progress: bool = False,
) -> LogLikelihood:
    """Return log p(x) of every sample by integrating the flow from the data to the prior.

    Without a grid an adaptive solver runs from the model's t_min, or 1e-5, to the horizon; a
    solver of fixed steps must be given one. By default a linear SDE's flow is solved in `Angle`,
    in which it is smoothest, and the flow of another SDE, or of a linear one with parameters that
    learn, in `Time`.

    With ``keep_graph`` the result is differentiable, in x and in whatever the score is made of:
    the graph of all steps is kept in memory. `TorchDiffEqAdjoint` keeps none and solves backwards.

    Arguments:
        x: the data, scaled; (B, *event).
        flow: the probability-flow ODE of a score.
        solver: a solver of ODEs.
        grid: rising times, whatever the variable; (steps + 1,), float64, in [0, 1].
        variable: the variable in which the flow is solved: `Angle`, `LogSNR` or `Time`.
        divergence: how ∇·v is found; by default two Hutchinson probes.
        prior: the distribution of x_1; by default the SDE's own prior.
        levels: of dequantized integers, whose offset log2(levels/2) bits_per_dim then has.
        keep_graph: whether the result is differentiable.
        progress: show a bar of the way that the slowest sample has behind it.

    Errors: TypeError for another flow, a solver of SDEs, or a score without a graph back to x;
    ValueError for a model in training mode, a fixed-step solver without a grid, and, with
    ``levels``, data outside [−1, 1] or undequantized, whose density would be unbounded.
    Source: Chen et al. 2018, theorem 1; Song et al. 2021, appendix D.2.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.solvers import DormandPrince
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> x = torch.zeros(1, 1, dtype=torch.float64)
    >>> round(log_prob(x, ProbabilityFlow(model.sde, model), DormandPrince()).nats.item(), 6)
    -0.918939
    """
    check_state("log_prob", x)
    _check_parts(flow, solver)
    if levels is not None:
        positive_integer("log_prob", "levels", levels, least=2)
        check_levels("log_prob", flow.score.data, levels)
        check_dequantized("log_prob", x, DataSpec("x", tuple(x.shape[1:]), levels))
    grid = whole_way("log_prob", flow, solver) if grid is None else grid
    check_grid(grid, flow.horizon)
    check_rising("log_prob", grid)
    divergence = Hutchinson(probes=2) if divergence is None else divergence
    an_object("log_prob", "divergence", divergence, Divergence, "pass for example Exact()")
    if prior is None:
        prior = prior_of("log_prob", flow, keep_graph=keep_graph)
    check_prior("log_prob", prior)
    if variable is not None:
        form = "(flow, times) -> Variable"
        a_function("log_prob", "variable", variable, form, "pass Angle, LogSNR or Time")
    base = (_best_variable(flow, grid) if variable is None else variable)(flow, grid)
    before = flow.score.counter.here
    event = tuple(x.shape[1:])
    times = base.grid(grid)
    with (
        nullcontext() if keep_graph else _without_graph(flow.score),
        way(float(times[0]), float(times[-1]), shown=progress) as seen,
    ):
        z = divergence.draw(x.detach())
        ode = _Augmented(base, divergence, z, event, x.dtype, seen, keep_graph=keep_graph)
        end = integrate(ode, solver, _begun(x, ode, grid), times, keep_graph=keep_graph)
        integral, lost, latent = _ended(end, ode, grid)
        at_prior = prior.log_prob(latent)
    nats = at_prior + integral.mean(1)
    offset = 0.0 if levels is None else math.log2(levels / 2)
    bits = -nats / (x[0].numel() * math.log(2)) + offset
    terms = {"prior": at_prior, "divergence": integral.mean(1)}
    error = divergence.error(integral.detach())
    nfe = flow.score.counter.here - before
    return LogLikelihood(nats, bits, error, lost, terms, nfe, latent.to(x.dtype))


def _begun(x: Tensor, ode: _Augmented, grid: Tensor) -> Tensor:
    """Return the state at the first time: y = x/scale, and the integrals, 0."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    y = (x / ode.base.scale(grid[[0, -1]])[0].to(x.dtype)).flatten(1)
    return torch.cat([y, y.new_zeros(len(x), ode.divergence.columns)], 1)


def _ended(end: Solution, ode: _Augmented, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the integrals of ∇·v by column, their embedded error, and x_1."""
    ends = grid[[0, -1]]
    first, last = ode.base.scale(ends)
    d = math.prod(ode.event)
    latent = end.x[:, :d].reshape(-1, *ode.event) * last.to(end.x.dtype)
    # ∇·v of x where the solve has that of y = x/scale.
    integral = end.x[:, d:] + d * float((last / first).log())
    excess = ode.divergence.correction(ode.z, lambda variances: _growth(ode.base, ends, variances))
    if excess is not None:
        integral = integral - excess.to(integral.dtype)
    unknown = integral.new_full((len(end.x),), math.nan)
    lost = unknown if end.lost is None else end.lost[:, d:].mean(1)
    return integral, lost, latent


def _growth(base: Variable, ends: Tensor, variances: Tensor) -> Tensor:
    """Return log of how much y's deviation grows, for data of these variances.

    Shapes: (D,) → (D,), float64.
    """
    sde = base.flow.sde
    if not isinstance(sde, LinearSDE):
        raise wrong_type(
            "log_prob",
            "divergence",
            "have no control variate for this SDE",
            type(sde).__name__,
            "pass Hutchinson() without control",
        )
    first, last = (
        (sde.alpha(t) ** 2 * variances + sde.sigma(t) ** 2).sqrt() / base.scale(t) for t in ends
    )
    return (last / first).log()


def _best_variable(flow: ProbabilityFlow, grid: Tensor) -> FlowVariable:
    """Return the default; `Angle` would lose the graph to parameters of the SDE."""
    sde = flow.sde
    steady = isinstance(sde, LinearSDE) and not sde.alpha(grid[:1]).requires_grad
    return Angle if steady else Time


@contextmanager
def _without_graph(score: ScoreLike) -> Iterator[None]:
    with torch.no_grad(), frozen(score):
        yield


@contextmanager
def frozen(score: ScoreLike) -> Iterator[None]:
    """Keep a module's parameters out of the graph; their gradients would cost a tenth more."""
    active = [p for p in score.parameters() if p.requires_grad]
    for p in active:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in active:
            p.requires_grad_(True)


def _check_parts(flow: ProbabilityFlow, solver: Solver[Any]) -> None:
    check_flow("log_prob", flow)
    check_solver("log_prob", solver)
    if not issubclass(ODE, solver.dynamics):  # the flow and its divergence together are any ODE
        raise wrong_type(
            "log_prob",
            "solver",
            "be one of any ODE",
            f"{type(solver).__name__}, one of {solver.dynamics.__name__}",
            "pass for example DormandPrince()",
        )
    check_evaluation("log_prob", flow.score)


def check_prior(what: str, prior: object) -> None:
    """Refuse what has no density."""
    remedy = "drop it for the SDE's own, or pass an object with log_prob(x)"
    an_object(what, "prior", prior, Density, remedy)


def prior_of(what: str, flow: ProbabilityFlow, *, keep_graph: bool = False) -> Density:
    """Return the SDE's own prior."""
    if isinstance(flow.sde, MatrixLinearSDE):
        return flow.sde.prior()
    if not isinstance(flow.sde, LinearSDE):
        raise wrong_value(
            what,
            "prior",
            "be given for an SDE that is not linear",
            "none",
            "pass an object with log_prob(x)",
        )
    if keep_graph and flow.sde.sigma(torch.ones((), dtype=torch.float64)).requires_grad:
        raise wrong_value(
            what,
            "prior",
            "be given for an SDE that learns",
            "none",
            "pass one that keeps the graph to sigma",
        )
    with torch.no_grad():
        return flow.sde.prior()
