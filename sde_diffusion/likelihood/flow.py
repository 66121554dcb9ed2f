"""Log-likelihood along the probability flow.

log p_0(x_0) = log p_1(x_1) + ∫₀¹ ∇·v(x_t, t) dt along dx/dt = v (the instantaneous change of
variables), with the divergence found by one of `divergence`. State and integral are one ODE, so
every evaluation is one network call with vector-Jacobian products of that call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion._tensors import check_state
from sde_diffusion.data.checks import check_dequantized
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.dynamics import ODE, ProbabilityFlow, check_flow
from sde_diffusion.grids import check_grid, check_rising
from sde_diffusion.integration import check_evaluation, integrate, whole_way
from sde_diffusion.likelihood.divergence import Divergence, Hutchinson
from sde_diffusion.likelihood.flow_variables import Angle, Kind, Time, Variable
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver


class Density(Protocol):
    """What a prior needs."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of every sample, in nats."""


@final
class _Augmented(ODE):
    """A flow with its divergence integrals: state (B, D + columns)."""

    def __init__(
        self,
        base: Variable,
        divergence: Divergence,
        z: Tensor,
        event: tuple[int, ...],
        *,
        keep_graph: bool,
    ) -> None:
        self.base = base
        self.divergence = divergence
        self.z = z
        self.event = event
        self.keep_graph = keep_graph
        self.horizon = base.horizon

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        def velocity(y: Tensor) -> Tensor:
            v = self.base.velocity(y, t)
            if not self.base.flow.score.tracked:  # its divergence would be taken for 0
                raise wrong_type(
                    "log_prob",
                    "score",
                    "be differentiable in x",
                    "a detached tensor",
                    "remove no_grad or detach",
                )
            return v

        y = x[:, : math.prod(self.event)].reshape(-1, *self.event)
        v, columns = self.divergence.evaluate(velocity, y, self.z, create_graph=self.keep_graph)
        return torch.cat([v.flatten(1), columns.to(v.dtype)], 1)

    def rows(self, index: Tensor) -> _Augmented:
        return _Augmented(
            self.base.rows(index),
            self.divergence,
            self.z[index],
            self.event,
            keep_graph=self.keep_graph,
        )


@final
@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch with their parts and errors.

    Shapes: all (B,), `latent` (B, *event). Units: nats; bits_per_dim = −nats/(D ln 2) + the offset
    log2(levels/2) of data scaled from integer levels to [−1, 1].
    `standard_error` (nats) is that of the mean over probes: 0 for `Exact`, NaN for a single probe;
    the solver's own error is not in it. `tolerance_error` (nats) adds up the embedded errors of
    the divergence integral over an adaptive solver's steps, NaN for a solver that tells none; the
    state's error is not in it. The tolerance holds for the root mean square over state and
    integral, so it bounds bits per dimension rather than nats.
    `terms` holds "prior" = log π(x_1) and "divergence" = ∫ ∇·v dt; they sum to `nats`.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    tolerance_error: Tensor
    terms: Mapping[str, Tensor]
    nfe: int
    latent: Tensor


def log_prob(
    x: Tensor,
    flow: ProbabilityFlow,
    solver: Solver[Any],
    *,
    grid: Tensor | None = None,
    variable: Kind | None = None,
    divergence: Divergence | None = None,
    prior: Density | None = None,
    levels: int | None = None,
    keep_graph: bool = False,
) -> LogLikelihood:
    """Return log p(x) of every sample by integrating the flow from the data to the prior.

    Without a grid an adaptive solver runs from t = 1e-5 to the horizon; one of fixed steps must be
    given its grid, of times whatever the variable. Not given, the divergence is by two Hutchinson
    probes, the prior the SDE's own, and the variable `Angle`, in which a linear SDE's flow is
    smoothest (`Time` for other SDEs, and for a linear one with parameters that learn).

    With ``keep_graph`` the result is differentiable, in x and in whatever the score is made of:
    the graph of all steps is kept in memory. `TorchDiffEqAdjoint` keeps none and solves backwards.

    Shapes: x (B, *event); grid ascending.
    Units: nats and bits per dimension, see `LogLikelihood`.
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
        check_dequantized("log_prob", x, DataSpec("x", tuple(x.shape[1:]), levels))
    grid = whole_way("log_prob", flow, solver) if grid is None else grid
    check_grid(grid, flow.horizon)
    check_rising("log_prob", grid)
    divergence = Hutchinson(probes=2) if divergence is None else divergence
    prior = prior_of("log_prob", flow, keep_graph=keep_graph) if prior is None else prior
    base = (_best_variable(flow, grid) if variable is None else variable)(flow, grid)
    before = flow.nfe
    with nullcontext() if keep_graph else _without_graph(flow.score.function):
        at_prior, integral, lost, latent = _solved(
            x, base, solver, grid, divergence, prior, keep_graph=keep_graph
        )
    nats = at_prior + integral.mean(1)
    offset = 0.0 if levels is None else math.log2(levels / 2)
    bits = -nats / (x[0].numel() * math.log(2)) + offset
    terms = {"prior": at_prior, "divergence": integral.mean(1)}
    error = divergence.error(integral.detach())
    return LogLikelihood(nats, bits, error, lost, terms, flow.nfe - before, latent)


def _solved(
    x: Tensor,
    base: Variable,
    solver: Solver[Any],
    grid: Tensor,
    divergence: Divergence,
    prior: Density,
    *,
    keep_graph: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log π(x_1), the integrals of ∇·v by column, their embedded error, and x_1."""
    z = divergence.probes(x.detach())
    d = x[0].numel()
    ends = grid[[0, -1]]
    ode = _Augmented(base, divergence, z, tuple(x.shape[1:]), keep_graph=keep_graph)
    first, last = base.scale(ends)
    y = (x / first.to(x.dtype)).flatten(1)
    state = torch.cat([y, y.new_zeros(len(x), divergence.columns)], 1)
    end = integrate(ode, solver, state, base.grid(grid))
    latent = end.x[:, :d].reshape(x.shape) * last.to(x.dtype)
    # ∇·v of x where the solve has that of y = x/scale.
    integral = end.x[:, d:] + d * float((last / first).log())
    excess = divergence.correction(z, lambda variances: _growth(base, ends, variances))
    if excess is not None:
        integral = integral - excess.to(integral.dtype)
    unknown = integral.new_full((len(x),), math.nan)
    lost = unknown if end.lost is None else end.lost[:, d:].mean(1)
    return prior.log_prob(latent), integral, lost, latent


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


def _best_variable(flow: ProbabilityFlow, grid: Tensor) -> Kind:
    """Return the default: an angle is a number on a grid, which drops the SDE's parameters."""
    sde = flow.sde
    steady = isinstance(sde, LinearSDE) and not sde.alpha(grid[:1]).requires_grad
    return Angle if steady else Time


@contextmanager
def _without_graph(score: object) -> Iterator[None]:
    with torch.no_grad(), frozen(score):
        yield


@contextmanager
def frozen(score: object) -> Iterator[None]:
    """Keep a module's parameters out of the graph; their gradients would cost a tenth more."""
    parameters = list(score.parameters()) if isinstance(score, nn.Module) else []
    active = [p for p in parameters if p.requires_grad]
    for p in active:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in active:
            p.requires_grad_(True)


def _check_parts(flow: ProbabilityFlow, solver: object) -> None:
    check_flow("log_prob", flow)
    kind = getattr(solver, "dynamics", ODE)
    if isinstance(kind, type) and not issubclass(kind, ODE):
        raise wrong_type(
            "log_prob",
            "solver",
            "solve ODEs",
            type(solver).__name__,
            "pass for example DormandPrince()",
        )
    check_evaluation("log_prob", flow.score.function)


def prior_of(what: str, flow: ProbabilityFlow, *, keep_graph: bool = False) -> Density:
    """Return the SDE's own prior."""
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
