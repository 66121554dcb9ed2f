"""Log-likelihood along the probability flow.

log p_0(x_0) = log p_1(x_1) + ∫₀¹ ∇·v(x_t, t) dt along dx/dt = v (the instantaneous change of
variables), with the divergence exact or by Hutchinson's estimator ∇·v ≈ zᵀ(∂v/∂x)z. State and
integral are one ODE, so every evaluation is one network call with vector-Jacobian products of
that call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion._tensors import check_state
from sde_diffusion.integration import Solver, check_evaluation, integrate
from sde_diffusion.noise import PerSampleNoise, mix
from sde_diffusion.reverse import ODE, ProbabilityFlow
from sde_diffusion.sde import LinearSDE


class Density(Protocol):
    """What a prior needs."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of every sample, in nats."""


class Divergence(ABC):
    """A way to find ∇·v from one call of v: one or more columns whose mean is the divergence."""

    @abstractmethod
    def probes(self, x: Tensor) -> Tensor:
        """Return the vectors z to multiply the Jacobian with, (B, columns, *event)."""

    @abstractmethod
    def columns(self, v: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Return the estimates of ∇·v, (B, columns), from v with its graph back to ``x``."""

    @abstractmethod
    def error(self, integral: Tensor) -> Tensor:
        """Return the standard error of the mean over columns, (B, columns) → (B,)."""


@final
@dataclass(frozen=True)
class Exact(Divergence):
    """The exact divergence: D vector-Jacobian products, ``chunk`` of them at a time.

    >>> Exact().chunk
    64
    """

    chunk: int = 64

    def __post_init__(self) -> None:
        positive_integer("Exact", "chunk", self.chunk)

    def probes(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], 1, *x.shape[1:])

    def columns(self, v: Tensor, x: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002  (none needed)
        d, trace = v[0].numel(), v.new_zeros(v.shape[0])
        basis = torch.eye(d, dtype=v.dtype, device=v.device)
        for rows in torch.split(basis, self.chunk):
            vectors = rows[:, None].expand(-1, v.shape[0], -1).reshape(-1, *v.shape)
            product = torch.autograd.grad(v, x, vectors, is_grads_batched=True, retain_graph=True)
            trace = trace + (product[0] * vectors).flatten(2).sum((0, 2))
        return trace[:, None]

    def error(self, integral: Tensor) -> Tensor:
        return integral.new_zeros(len(integral))


@final
@dataclass(frozen=True)
class Hutchinson(Divergence):
    """Hutchinson's estimator with Rademacher probes z ∈ {−1, 1}^D, fixed along the trajectory.

    Sample i draws its probes from ``seed`` and ``first`` + i alone. Exact on diagonal Jacobians.

    Source: Hutchinson 1989; Grathwohl et al. 2019 (FFJORD).

    >>> Hutchinson(probes=4).probes(torch.zeros(2, 3)).abs().sum().item()
    24.0
    """

    number: int
    seed: int
    first: int

    def __init__(self, probes: int = 1, seed: int = 0, first: int = 0) -> None:
        positive_integer("Hutchinson", "probes", probes)
        positive_integer("Hutchinson", "seed", seed, least=0)
        object.__setattr__(self, "number", probes)
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "first", first)

    def probes(self, x: Tensor) -> Tensor:
        noise = PerSampleNoise.numbered(mix(self.seed, 5), self.first, x.shape[0])
        shape = (x.shape[0], self.number, *x.shape[1:])
        normals = noise.normal(torch.empty(shape, dtype=x.dtype, device=x.device))
        return torch.where(normals < 0, -torch.ones_like(normals), torch.ones_like(normals))

    def columns(self, v: Tensor, x: Tensor, z: Tensor) -> Tensor:
        if self.number == 1:
            product = torch.autograd.grad(v, x, z[:, 0])[0][:, None]
        else:
            vectors = z.transpose(0, 1)
            batched = torch.autograd.grad(v, x, vectors, is_grads_batched=True)[0]
            product = batched.transpose(0, 1)
        return (product * z).flatten(2).sum(2)

    def error(self, integral: Tensor) -> Tensor:
        if self.number == 1:  # one probe says nothing of its own error
            return integral.new_full((len(integral),), math.nan)
        # Summed by hand: torch's std of one row rounds otherwise than that of many.
        squares = (integral - integral.mean(1, keepdim=True)).square().sum(1)
        return (squares / (self.number * (self.number - 1))).sqrt()


@final
class _Augmented(ODE):
    """The flow with its divergence integrals: state (B, D + columns)."""

    def __init__(
        self, flow: ProbabilityFlow, divergence: Divergence, z: Tensor, event: tuple[int, ...]
    ) -> None:
        self.flow, self.divergence, self.z, self.event = flow, divergence, z, event
        self.horizon = flow.horizon

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        d = math.prod(self.event)
        with torch.inference_mode(mode=False), torch.enable_grad():
            leaf = x[:, :d].detach().reshape(-1, *self.event).clone().requires_grad_()
            v = self.flow.velocity(leaf, t)
            if not self.flow.score.tracked:  # its divergence would be taken for 0
                raise wrong_type("log_prob", "score", "be differentiable in x",
                                 "a detached tensor", "remove no_grad or detach")  # fmt: skip
            columns = self.divergence.columns(v, leaf, self.z)
        return torch.cat([v.detach().flatten(1), columns.detach()], 1)

    def rows(self, index: Tensor) -> _Augmented:
        return _Augmented(self.flow.rows(index), self.divergence, self.z[index], self.event)


@final
@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch with their parts and errors.

    Shapes: all (B,), `latent` (B, *event). Units: nats; bits_per_dim = −nats/(D ln 2) + the offset
    log2(levels/2) of data scaled from integer levels to [−1, 1].
    `standard_error` (nats) is that of the mean over probes: 0 for `Exact`, NaN for a single probe;
    the solver's own error is not in it. An adaptive solver's tolerance holds for the root mean
    square over state and integral, so it bounds bits per dimension rather than nats.
    `terms` holds "prior" = log π(x_1) and "divergence" = ∫ ∇·v dt; they sum to `nats`.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    terms: Mapping[str, Tensor]
    nfe: int
    latent: Tensor


def log_prob(
    x: Tensor,
    flow: ProbabilityFlow,
    solver: Solver[Any],
    *,
    grid: Tensor | None = None,
    divergence: Divergence | None = None,
    prior: Density | None = None,
    levels: int | None = None,
) -> LogLikelihood:
    """Return log p(x) of every sample by integrating the flow from the data to the prior.

    Without a grid an adaptive solver runs from t = 1e-5 to the horizon; one of fixed steps must be
    given its grid. Not given, the divergence is by two Hutchinson probes, the prior the SDE's own.
    The result has no graph: it is not differentiable.

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
    _check_dequantized(x, levels)
    grid = _whole_way(flow, solver) if grid is None else grid
    _check_ascending(grid)
    divergence = Hutchinson(probes=2) if divergence is None else divergence
    prior = _prior(flow) if prior is None else prior
    z = divergence.probes(x)
    state = torch.cat([x.flatten(1), x.new_zeros(z.shape[:2])], 1)
    before = flow.nfe
    with torch.no_grad(), frozen(flow.score.function):
        end = integrate(_Augmented(flow, divergence, z, tuple(x.shape[1:])), solver, state, grid)
        d = x[0].numel()
        latent = end.x[:, :d].reshape(x.shape)
        at_prior, integral = prior.log_prob(latent), end.x[:, d:]
    nats = at_prior + integral.mean(1)
    offset = 0.0 if levels is None else math.log2(levels / 2)
    bits = -nats / (d * math.log(2)) + offset
    terms = {"prior": at_prior, "divergence": integral.mean(1)}
    error = divergence.error(integral)
    return LogLikelihood(nats, bits, error, terms, flow.nfe - before, latent)


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


def _check_parts(flow: object, solver: object) -> None:
    if not isinstance(flow, ProbabilityFlow):
        raise wrong_type("log_prob", "flow", "be a ProbabilityFlow", type(flow).__name__,
                         "pass ProbabilityFlow(sde, score)")  # fmt: skip
    kind = getattr(solver, "dynamics", ODE)
    if isinstance(kind, type) and not issubclass(kind, ODE):
        raise wrong_type("log_prob", "solver", "solve ODEs", type(solver).__name__,
                         "pass for example DormandPrince()")  # fmt: skip
    check_evaluation("log_prob", flow.score.function)


def _whole_way(flow: ProbabilityFlow, solver: object) -> Tensor:
    if not getattr(solver, "adaptive", False):
        raise wrong_value("log_prob", "grid", "be given for a solver with fixed steps", "none",
                          "pass for example uniform(100, 1e-5, 1.0)")  # fmt: skip
    return torch.tensor([1e-5, flow.horizon], dtype=torch.float64)


def _prior(flow: ProbabilityFlow) -> Density:
    if not isinstance(flow.sde, LinearSDE):
        raise wrong_value("log_prob", "prior", "be given for an SDE that is not linear", "none",
                          "pass an object with log_prob(x)")  # fmt: skip
    return flow.sde.prior()


def _check_ascending(grid: object) -> None:
    if isinstance(grid, Tensor) and grid.ndim == 1 and len(grid) > 1 and grid[0] > grid[-1]:
        raise wrong_value("log_prob", "grid", "run from the data (t near 0) to the prior",
                          f"{float(grid[0]):.4g} … {float(grid[-1]):.4g}",
                          "reverse it with grid.flip(0)")  # fmt: skip


def _check_dequantized(x: Tensor, levels: int | None) -> None:
    """Refuse data that sits on the grey levels themselves: bin centres or edges."""
    if levels is None:
        return
    positive_integer("log_prob", "levels", levels, least=2)
    if float(x.abs().max()) > 1:
        raise wrong_value("log_prob", "x", "lie in [−1, 1], as levels are scaled",
                          f"{float(x.min()):.4g} … {float(x.max()):.4g}",
                          "scale it with dataset.spec.encode")  # fmt: skip
    # Twice the level, so that centres and edges are integers, and k of x = 2k/(levels − 1) − 1.
    for scale in (levels, (levels - 1) / 2):
        place = (x.double() + 1) * scale
        _refuse_lattice(place, levels)


def _refuse_lattice(place: Tensor, levels: int) -> None:
    rows = ((place - place.round()).abs() < 1e-3).flatten(1).all(1)
    # A row of few numbers may lie on levels by chance; all rows of a batch will not.
    few = place[0].numel() < 8
    if bool(rows.all() if few else rows.any()):
        raise wrong_value("log_prob", "x", "be dequantized", f"values on the {levels} levels only",
                          "add uniform noise: dataset.dequantized(generator)")  # fmt: skip
