"""A bound on the log-likelihood of data that are a part of a state, such as positions."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._block_matrix import BlockMatrix, factor
from sde_diffusion._check import an_object, positive_integer, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state
from sde_diffusion.dynamics import ProbabilityFlow, check_flow
from sde_diffusion.grids import check_grid
from sde_diffusion.likelihood.flow import log_prob
from sde_diffusion.matrix_sde import MatrixLinearSDE, PartsNormal
from sde_diffusion.noise import Noise
from sde_diffusion.scores import first_time
from sde_diffusion.solver import Solver


@final
class HiddenPartsBound:
    """A bound on log p(x) with its standard error over draws of the hidden parts, in nats.

    Shapes: both (B,).

    >>> HiddenPartsBound(torch.tensor([-0.92]), torch.tensor([0.01]))
    HiddenPartsBound(nats=[-0.92], standard_error=[0.01])
    """

    __repr__ = shown

    def __init__(self, nats: Tensor, standard_error: Tensor) -> None:
        self.nats = nats
        self.standard_error = standard_error


def hidden_parts_bound(
    x: Tensor,
    flow: ProbabilityFlow,
    solver: Solver[Any],
    noise: Noise,
    *,
    draws: int = 4,
    grid: Tensor | None = None,
    **settings: Any,  # noqa: ANN401  (those of log_prob)
) -> HiddenPartsBound:
    """Return log p(x) ≥ E[log p(x, v)] + H(v) over v ~ N(0, Σ_vv), by `log_prob` of states (x, v).

    Σ_vv is that of the hidden parts at the first time. It is log p(x) itself where the score is
    exact and that time 0, at which v is independent of x.

    Arguments:
        x: the data, scaled; (B, p·C, *rest).
        flow: the probability flow of a matrix-linear SDE with parts that are no data.
        solver: a solver of ODEs.
        noise: where v is drawn.
        draws: of v for each x; the standard error needs two.
        grid: that of `log_prob`.
        settings: of `log_prob`, such as ``divergence``.

    Errors: those of `log_prob`; TypeError for the flow of another SDE, ValueError for an SDE whose
    parts are all data.
    Source: Dockhorn, Vahdat & Kreis 2022, who bound the likelihood of CLD so.

    >>> from sde_diffusion import CriticallyDampedLangevin, Exact, Gaussian, WhiteNoise
    >>> from sde_diffusion.solvers import DormandPrince
    >>> model = Gaussian(torch.zeros(1), torch.ones(1, 1)).diffused(CriticallyDampedLangevin())
    >>> flow, x = ProbabilityFlow(model.sde, model), torch.zeros(1, 1, dtype=torch.float64)
    >>> settings = {"draws": 2, "divergence": Exact()}
    >>> found = hidden_parts_bound(x, flow, DormandPrince(), WhiteNoise(0), **settings)
    >>> round(found.nats.item(), 2)  # −½ log 2π
    -0.92
    """
    check_state("hidden_parts_bound", x)
    if grid is not None:
        check_grid(grid)
    check_flow("hidden_parts_bound", flow)
    an_object("hidden_parts_bound", "noise", noise, Noise, "pass for example WhiteNoise(0)")
    positive_integer("hidden_parts_bound", "draws", draws)
    hidden = _hidden(flow, first_time(flow.score) if grid is None else float(grid[0]))
    sde: Any = flow.sde
    nats = []
    for _ in range(draws):
        z = noise.normal(sde.start(x)[:, x.shape[1] :])
        v = BlockMatrix(factor(hidden.covariance)) * z
        joint = log_prob(torch.cat([x, v], 1), flow, solver, grid=grid, **settings).nats
        nats.append(joint - hidden.log_prob(v))
    every = torch.stack(nats)
    error = every.std(0) / draws**0.5 if draws > 1 else torch.full_like(every[0], torch.nan)
    return HiddenPartsBound(every.mean(0), error)


def _hidden(flow: ProbabilityFlow, start: float) -> PartsNormal:
    """Return the distribution of the parts that are no data, at the first time."""
    sde = flow.sde
    if not isinstance(sde, MatrixLinearSDE):
        rule = "be of a MatrixLinearSDE"
        remedy = "call log_prob, which needs no hidden parts"
        raise wrong_type("hidden_parts_bound", "flow", rule, type(sde).__name__, remedy)
    p = sde.data_parts
    if p == sde.parts:
        rule = "have parts that are no data"
        remedy = "call log_prob, which is that of the whole state"
        raise wrong_value("hidden_parts_bound", "flow", rule, type(sde).__name__, remedy)
    return PartsNormal(sde.covariance(torch.tensor(start, dtype=torch.float64))[p:, p:])
