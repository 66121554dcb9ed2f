"""The density of the sampler itself: of what N deterministic steps make of the prior.

N steps of a solver of the flow along a fixed grid are a map F from the latent z to x. Where it is
one-to-one, log p_F(F(z)) = log π(z) − log|det ∂F/∂z|, whatever the number of steps: a density,
whose integral is 1, of the points that `sample` draws. A sum of traces Σ dt ∇·v along N steps is
one in the limit of many steps only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from torch import Tensor

from sde_diffusion._check import an_object, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.grids import Grid, times_of
from sde_diffusion.likelihood.flow import Density, check_prior, prior_of
from sde_diffusion.likelihood.log_det import ArnoldiLogDet, ExactLogDet, LogDet
from sde_diffusion.sampling.sampler_map import SamplerMap
from sde_diffusion.solver import Solver

_EXACT: Final = 256  # the largest dimension in which the determinant is exact by default


@final
@dataclass(frozen=True)
class SamplerDensity:
    """Samples x = F(z) with the logarithm of the sampler's own density at them.

    `terms` holds "prior" = log π(z) and "volume" = −log|det ∂F/∂z|; they sum to `nats`.

    Arguments:
        x: the samples F(z); (B, *event).
        nats: log p_F(x); (B,), float64, nats.
        bits_per_dim: −nats/(D ln 2); (B,), float64.
        standard_error: of the mean over probes; 0 for `ExactLogDet`, NaN for one; (B,), nats.
        remainder: what the last product of `ArnoldiLogDet` moved nats by; (B,), nats.
        terms: the parts of log p_F(x) by name; (B,) each, float64, nats.
        nfe: evaluations of the score.
    """

    x: Tensor
    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    remainder: Tensor
    terms: Mapping[str, Tensor]
    nfe: int

    __repr__ = shown


def sampler_log_prob(
    z: Tensor,
    flow: ProbabilityFlow,
    solver: Solver[Any],
    grid: Grid,
    *,
    log_det: LogDet | None = None,
    prior: Density | None = None,
) -> SamplerDensity:
    """Return x = F(z) and log p_F(x) = log π(z) − log|det ∂F/∂z| of every sample.

    For a given x take z from `sampler_inverse`. The result has no graph.

    Where the map folds, several latents have one x, and its density is a sum over them: such
    samples are refused. What is looked at is the Jacobian at z. So the check is local: where it
    finds nothing, a far latent may still end at the same x (in one dimension `check_injective`
    looks at a whole interval). And it is strict: a map that turns an axis over everywhere, as
    coarse steps do for Gaussian data, is one-to-one and yet refused.

    Arguments:
        z: latents, draws of the prior; (B, *event).
        flow: the probability-flow ODE of a score.
        solver: a solver of ODEs with fixed steps.
        grid: falling times of the sampler's steps; (steps + 1,), in [0, 1].
        log_det: how log|det ∂F/∂z| is found; `ExactLogDet` up to D = 256, else `ArnoldiLogDet`.
        prior: the distribution of z; by default the SDE's own prior.

    Errors: those of `SamplerMap` and `SamplerMap.product`; ValueError, naming sample and step,
    where the map folds; FloatingPointError for divergence.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, uniform
    >>> from sde_diffusion.solvers import DDIM
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> z, flow = torch.zeros(1, 1, dtype=torch.float64), ProbabilityFlow(VPSDE(), model)
    >>> round(sampler_log_prob(z, flow, DDIM(), uniform(1000)).nats.item(), 2)
    -0.92
    """
    check_state("sampler_log_prob", z)
    map_ = SamplerMap("sampler_log_prob", flow, solver, grid)
    log_det = _given("sampler_log_prob", log_det, z)
    prior = prior_of("sampler_log_prob", flow) if prior is None else prior
    check_prior("sampler_log_prob", prior)
    before = flow.score.counter.here
    found = log_det.evaluate(map_, z)
    _check_folds(found.fold, times_of(grid))
    at_prior = prior.log_prob(z.detach().double())
    volume = -found.columns.mean(1)
    nats = at_prior + volume
    return SamplerDensity(
        found.x,
        nats,
        -nats / (z[0].numel() * math.log(2)),
        log_det.error(found.columns),
        found.remainder,
        {"prior": at_prior, "volume": volume},
        flow.score.counter.here - before,
    )


def first_fold(
    z: Tensor,
    flow: ProbabilityFlow,
    solver: Solver[Any],
    grid: Grid,
    *,
    log_det: LogDet | None = None,
) -> Tensor:
    """Return the step, from 1, at which the sampler's map folds at each latent; 0 for none.

    Arguments:
        z: latents; (B, *event).
        flow: the probability-flow ODE of a score.
        solver: a solver of ODEs with fixed steps.
        grid: falling times of the sampler's steps; (steps + 1,), in [0, 1].
        log_det: what looks for folds, see `ExactLogDet` and `ArnoldiLogDet`.

    Shapes: result (B,), int64.
    """
    check_state("first_fold", z)
    map_ = SamplerMap("first_fold", flow, solver, grid)
    return _given("first_fold", log_det, z).evaluate(map_, z).fold


def check_injective(z: Tensor, flow: ProbabilityFlow, solver: Solver[Any], grid: Grid) -> None:
    """Refuse a map of one dimension that does not rise all over the latents ``z``.

    It rises at every one of them and from each to the next; what happens between two is not seen,
    so give enough of them over an interval.

    Arguments:
        z: rising latents; (M, 1).
        flow: the probability-flow ODE of a score.
        solver: a solver of ODEs with fixed steps.
        grid: falling times of the sampler's steps; (steps + 1,), in [0, 1].

    Errors: ValueError naming the latent near which it folds, or for another shape.
    """
    check_state("check_injective", z)
    if z[0].numel() != 1 or len(z) < 2 or not bool((z.flatten().diff() > 0).all()):
        raise wrong_value(
            "check_injective",
            "z",
            "be rising latents of one number each",
            f"shape {tuple(z.shape)}",
            "pass for example torch.linspace(-6, 6, 1001)[:, None]",
        )
    x, j = SamplerMap("check_injective", flow, solver, grid).jacobian(z)
    wrong = j.flatten() <= 0
    wrong[1:] |= x.flatten().diff() <= 0
    if bool(wrong.any()):
        where = float(z[int(wrong.nonzero()[0])])
        raise wrong_value(
            "check_injective",
            "grid",
            "make a map that rises everywhere",
            f"a fold near z = {where:.4g}",
            "use more steps, or another solver",
        )


def _given(what: str, log_det: LogDet | None, z: Tensor) -> LogDet:
    """Return the way to find log|det J|, `ExactLogDet` of few dimensions if none is given."""
    if log_det is None:
        return ExactLogDet() if z[0].numel() <= _EXACT else ArnoldiLogDet()
    an_object(what, "log_det", log_det, LogDet, "pass for example ExactLogDet()")
    return log_det


def _check_folds(fold: Tensor, times: Tensor) -> None:
    folded = fold.nonzero()[:, 0].tolist()
    if folded:
        step = int(fold[folded[0]])
        t = float(times[step]) if step < len(times) else 0.0
        raise wrong_value(
            "sampler_log_prob",
            "z",
            "lie where the sampler's map is one-to-one",
            f"{len(folded)} of {len(fold)} samples where it folds, the first sample {folded[0]}"
            f" at step {step} (t = {t:.4g})",
            "use more steps or another solver, or leave out what first_fold finds",
        )
