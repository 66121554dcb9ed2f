"""The log-likelihoods of one batch of a data set: by the flow and by both variational bounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import an_object, kind_of, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion.data.checks import scaled_for
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.evaluation.bounds import (
    BatchBound,
    BoundEvaluation,
    ContinuousEvaluation,
    DiscreteEvaluation,
    FlowEvaluation,
    LatentEvaluation,
)
from sde_diffusion.evaluation.chains import chain_times, decided_chain
from sde_diffusion.evaluation.failures import separated
from sde_diffusion.evaluation.sample_log import EvaluatedBatch
from sde_diffusion.evaluation.settings import EvaluationSettings
from sde_diffusion.grids import check_grid
from sde_diffusion.latents.latent_model import LatentModel, observed
from sde_diffusion.likelihood.decoders import GaussianDecoder
from sde_diffusion.likelihood.dequantization import (
    Dequantizer,
    TruncatedNormal,
    Uniform,
    discrete_log_prob,
)
from sde_diffusion.likelihood.divergence import Divergence, Exact, Hutchinson, HutchPlusPlus
from sde_diffusion.likelihood.fastest_mode import fastest
from sde_diffusion.likelihood.flow import frozen
from sde_diffusion.likelihood.flow_variables import Angle, LogSNR, Time
from sde_diffusion.priors import check_noise
from sde_diffusion.scores import ScoreLike, first_time
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver, check_solver

_FEW: Final = 16  # dimensions or samples that cost little
# Of the truncated normal, in bins: the edges, which a smooth model hardly covers, are drawn less.
_WIDTH: Final = 0.4
VARIABLES: Final = {"angle": Angle, "time": Time, "log-snr": LogSNR}


@final
class Evaluator:
    """Log-likelihoods of any samples of one data set under one model, by their indices.

    Sample i depends on the seed and on i alone, for networks up to the rounding of their batches.
    For integers it is a lower bound of log P(k), for real data a log-density in their own units.
    The data are scaled as those that the model was trained on.

    Arguments:
        model: a score model or oracle, with its score, .eps and .denoise.
        dataset: the data, integers or real numbers.
        solver: a solver of ODEs, for the flow.
        settings: what is computed and how precisely; by default `EvaluationSettings()`.
        grid: rising times of the flow's solve; by default t_min and the horizon, if adaptive.

    Errors: those of `log_prob`, `elbo` and `vlb`; ValueError for data of another shape, levels or
    scaling than the model's.

    >>> from sde_diffusion import Dataset, DataSpec, Gaussian, VPSDE
    >>> from sde_diffusion.solvers import DormandPrince
    >>> data = Dataset(DataSpec("zeros", (1,), None), torch.zeros(8, 1), None)
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> found = Evaluator(model, data, DormandPrince()).batch(range(2, 4))
    >>> [round(nats, 3) for nats in found.values["flow_nats"]]
    [-0.919, -0.919]
    """

    __repr__ = shown

    def __init__(
        self,
        model: ScoreLike,
        dataset: Dataset,
        solver: Solver[Any],
        settings: EvaluationSettings | None = None,
        grid: Tensor | None = None,
    ) -> None:
        settings = EvaluationSettings() if settings is None else settings
        _check(model, dataset, solver, settings)
        if grid is not None:
            check_grid(grid, model.sde.horizon)
        if settings.tolerance is not None:
            solver = _with_tolerance(solver, settings.tolerance)
        check_noise("evaluate", model.sde)
        self.model = model
        _check_decoder(model, settings)
        self.dataset = scaled_for(observed(model), dataset)
        self.solver = solver
        self.t_min = first_time(model, settings.t_min)
        settings = replace(settings, t_min=self.t_min)
        self.settings = decided_chain(settings, model, self._states)
        self.dimension = math.prod(dataset.spec.shape)
        ends = torch.tensor([self.t_min, model.sde.horizon], dtype=torch.float64)
        self.grid = ends if grid is None and solver.adaptive else grid

    def changed(self, **settings: Any) -> Evaluator:  # noqa: ANN401
        """Return the evaluator with other settings; another t_min moves a grid's start there."""
        chosen = replace(self.settings, **settings)
        grid = self.grid
        if grid is not None and "t_min" in settings:
            start = torch.tensor([settings["t_min"]], dtype=torch.float64)
            grid = torch.cat([start, grid[grid > start]])
        return Evaluator(self.model, self.dataset, self.solver, chosen, grid)

    def halved(self) -> Evaluator:
        """Return the evaluator with two steps for each of its grid."""
        if self.grid is None:
            return self
        middle = 0.5 * (self.grid[:-1] + self.grid[1:])
        grid = torch.stack([self.grid[:-1], middle], 1).flatten()
        grid = torch.cat([grid, self.grid[-1:]])
        return Evaluator(self.model, self.dataset, self.solver, self.settings, grid)

    def batches(self) -> list[range]:
        """Return the indices of the samples of every batch."""
        n = len(self.dataset)
        size = self.settings.batch_size
        return [range(first, min(first + size, n)) for first in range(0, n, size)]

    def batch(self, indices: range) -> EvaluatedBatch:
        """Return what is found of a batch: of each bound its nats, their error, and its terms.

        A sample without a finite likelihood is NaN, and `EvaluatedBatch.failures` says why.
        """
        began = time.perf_counter()
        values = dict[str, list[float]]()
        sums = dict[str, list[float]]()
        nfe = dict[str, int]()
        failures = dict[str, str]()
        for name in self.settings.bounds:
            found, wrong = separated(partial(self._found, name), indices)
            failures |= {str(i): f"{name}: {why}" for i, why in wrong.items()}
            columns = {"nats": found.nats, "standard_error": found.error, **found.terms}
            values |= {f"{name}_{key}": _numbers(column) for key, column in columns.items()}
            sums |= {f"{name}_{key}": _numbers(row) for key, row in found.sums.items()}
            nfe[name] = found.nfe
        seconds = time.perf_counter() - began
        return EvaluatedBatch(indices.start, len(indices), values, sums, nfe, seconds, failures)

    def decided(self) -> tuple[Evaluator, str]:
        """Return the evaluator with the faster mode in place of "auto", and why it is that.

        To be measured once for a whole run: the modes' results differ by rounding.
        """
        settings = self.settings
        if settings.mode != "auto" or "flow" not in settings.bounds:
            return self, f"{settings.mode} mode as asked"
        mode = "reverse"
        why = "reverse mode, in which the memory for all dimensions is bounded"
        if settings.divergence != "exact" or self.dimension <= _FEW:
            few = self.batches()[0][:_FEW]
            flow = ProbabilityFlow(self.model.sde, self.model_of(few))
            x = self.inputs(few)
            t = torch.tensor(0.5 * flow.horizon, dtype=torch.float64)
            with frozen(self.model):
                found, why = fastest(self.divergence(0), lambda x: flow.velocity(x, t), x)
            if isinstance(found, (Exact, Hutchinson)):
                mode = found.mode
        decided = replace(settings, mode=mode)
        return Evaluator(self.model, self.dataset, self.solver, decided, self.grid), why

    def inputs(self, indices: range) -> Tensor:
        """Return the samples as the model takes them, integers with a draw of their noise."""
        spec = self.dataset.spec
        rows = self.dataset.values[indices.start : indices.stop]
        if spec.levels is None or self.settings.dequantization == "none":
            return self._encoded(spec.encode(rows, 0.5))
        u, _ = next(self.dequantizer().draws(rows, 1, indices.start))
        return self._encoded(spec.encode(rows, u))

    @property
    def _states(self) -> DataSpec:
        """What the score's states are: the data, or real latents of them."""
        return self.model.data if isinstance(self.model, LatentModel) else self.dataset.spec

    @torch.no_grad()
    def _encoded(self, x: Tensor) -> Tensor:
        """Return the score's states of scaled data."""
        x = self.to_model(x)
        return self.model.encode(x) if isinstance(self.model, LatentModel) else x

    def model_of(self, indices: range) -> ScoreLike:
        """Return the model of these samples, with their conditions where it has some for each."""
        return self.model.rows(torch.tensor(indices))

    def chain(self) -> Tensor:
        """Return the times of the vlb, see `chain_times`."""
        return chain_times(self.settings, self.model, self._states)

    def _evaluation(self, bound: str, model: ScoreLike) -> BoundEvaluation:
        """Return the evaluation of "flow", "elbo" or "vlb" under the model of a batch."""
        found = self._of_states(bound, model)
        if not isinstance(model, LatentModel):
            return found
        return LatentEvaluation(model, found, self.settings.seed)

    def _of_states(self, bound: str, model: ScoreLike) -> BoundEvaluation:
        if bound == "flow":
            variable = VARIABLES[self.settings.variable]
            return FlowEvaluation(model, self.solver, self.grid, variable, self.divergence)
        if bound == "elbo":
            return ContinuousEvaluation(model, self.settings)
        return DiscreteEvaluation(model, self.chain(), self.settings)

    def _found(self, bound: str, indices: range) -> BatchBound:
        """Return one bound of the log-density of real data or the log-probability of integers."""
        spec = self.dataset.spec
        first = indices.start
        rows = self.dataset.values[first : indices.stop]
        evaluation = self._evaluation(bound, self.model_of(indices))
        if spec.levels is None:
            x = spec.encode(rows, 0.5)
            found = evaluation.of(self.to_model(x), first, GaussianDecoder())
            return found.moved(spec.log_volume(x))
        if self.settings.dequantization == "none":
            decoder = evaluation.level_decoder(spec.encode(torch.arange(spec.levels), 0.5))
            return evaluation.of(self.to_model(spec.encode(rows, 0.5)), first, decoder)
        return self._dequantized(lambda x: evaluation.of(x, first, GaussianDecoder()), rows, first)

    def _dequantized(
        self, density: Callable[[Tensor], BatchBound], rows: Tensor, first: int
    ) -> BatchBound:
        """Return a bound of the log-probability of integers from draws of their noise.

        The probes of all draws are the same, and so their errors add up by the draws' weights.
        """
        draws = self.settings.draws
        spec = self.dataset.spec
        parts = list[BatchBound]()

        def log_p(x: Tensor, first: int) -> Tensor:  # noqa: ARG001  (density knows it)
            parts.append(density(self.to_model(x)))
            return parts[-1].nats

        found = discrete_log_prob(rows, spec, log_p, self.dequantizer(), draws=draws, first=first)
        log_w = found.log_weights
        parts = [p.moved(w - p.nats.to(w)) for w, p in zip(log_w, parts, strict=True)]
        error = _sum(w * p.error for w, p in zip(log_w.softmax(0), parts, strict=True))
        if draws > 1:
            error = torch.hypot(error, found.standard_error)
        terms = {name: _sum(part.terms[name] for part in parts) / draws for name in parts[0].terms}
        sums = {name: _sum(part.sums[name] for part in parts) for name in parts[0].sums}
        return BatchBound(found.nats, error, terms, sum(part.nfe for part in parts), sums)

    def divergence(self, first: int) -> Divergence:
        """Return the divergence for a batch that begins with sample ``first``."""
        settings = self.settings
        mode: Any = "reverse" if settings.mode == "auto" else settings.mode
        if settings.divergence == "exact":
            return Exact(mode=mode)
        if settings.divergence == "hutch++":
            return HutchPlusPlus(probes=settings.probes, seed=settings.seed, first=first)
        return Hutchinson(settings.probes, settings.seed, first, mode=mode)

    def dequantizer(self) -> Dequantizer:
        """Return the noise of integer data."""
        settings = self.settings
        if settings.dequantization == "uniform":
            return Uniform(settings.seed)
        return TruncatedNormal(_WIDTH, settings.seed)

    def to_model(self, x: Tensor) -> Tensor:
        """Return x where and as the model computes: float32, or the dtype of its parameters."""
        like = next(self.model.parameters(), torch.zeros(()))
        return x.to(self.model.device, like.dtype)


def _check(model: object, dataset: object, solver: object, settings: object) -> None:
    """Refuse parts of another kind."""
    if not isinstance(model, ScoreLike) or not isinstance(model.sde, LinearSDE):
        raise wrong_type(
            "evaluate",
            "model",
            "be a score model of a LinearSDE",
            kind_of(model),
            "pass a ScoreModel, or an oracle's .diffused(sde)",
        )
    an_object("evaluate", "dataset", dataset, Dataset, "pass load_data(name)")
    check_solver("evaluate", solver)
    remedy = "pass for example EvaluationSettings(probes=4)"
    an_object("evaluate", "settings", settings, EvaluationSettings, remedy)


def _check_decoder(model: ScoreLike, settings: EvaluationSettings) -> None:
    """Refuse the levels themselves for latents, whose decoder is a density."""
    if isinstance(model, LatentModel) and settings.dequantization == "none":
        rule = "be uniform or truncated-normal for a model of latents, whose decoder is a density"
        remedy = "pass dequantization='uniform'"
        raise wrong_value("evaluate", "dequantization", rule, "'none'", remedy)


def _with_tolerance(solver: Any, tolerance: float) -> Any:  # noqa: ANN401  (a solver)
    if not is_dataclass(solver) or "rtol" not in {field.name for field in fields(solver)}:
        raise wrong_value(
            "Evaluator",
            "tolerance",
            "be left out for a solver with fixed steps",
            tolerance,
            "pass a grid of more steps",
        )
    made: Any = solver
    return replace(made, rtol=tolerance, atol=tolerance)


def _numbers(column: Tensor) -> list[float]:
    found: list[float] = column.detach().double().cpu().tolist()
    return found


def _sum(tensors: Iterator[Tensor]) -> Tensor:
    total = next(tensors)
    for tensor in tensors:
        total = total + tensor
    return total
