"""Evaluating a data set batch by batch, with every finished batch kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from sde_diffusion._files import writing
from sde_diffusion._progress import bar
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.evaluation.evaluator import Evaluator
from sde_diffusion.evaluation.results import Evaluation
from sde_diffusion.evaluation.sample_log import EvaluatedBatch, SampleLog
from sde_diffusion.evaluation.settings import EvaluationSettings
from sde_diffusion.parallel.ranks import Ranks, share_of
from sde_diffusion.priors import check_units
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver


def evaluate(
    model: ScoreLike,
    dataset: Dataset,
    solver: Solver[Any],
    settings: EvaluationSettings | None = None,
    *,
    grid: Tensor | None = None,
    progress: bool = False,
) -> Evaluation:
    """Return log-likelihoods of all samples, by up to three bounds, as ``settings`` say.

    Arguments:
        model: a score model or oracle, with its score, .eps and .denoise.
        dataset: the data, integers or real numbers.
        solver: a solver of ODEs, for the flow.
        settings: what is computed and how precisely; by default `EvaluationSettings()`.
        grid: rising times of the flow's solve; by default t_min and the horizon, if adaptive.
        progress: show a bar of the samples that are done.

    Errors: those of `log_prob`, `elbo` and `vlb`; ValueError for data that the prior does not
    cover: `prior_mismatch`.

    >>> import torch
    >>> from sde_diffusion import DataSpec, Gaussian, VPSDE
    >>> from sde_diffusion.solvers import DormandPrince
    >>> data = Dataset(DataSpec("zeros", (1,), None), torch.zeros(8, 1), None)
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> found = evaluate(model, data, DormandPrince(), EvaluationSettings(("flow", "elbo")))
    >>> flow, elbo = map(found.summary, found.bounds)
    >>> round(flow.nats, 3), abs(flow.bits_per_dim - elbo.bits_per_dim) < 3 * elbo.standard_error
    (-0.919, True)
    """
    evaluator = Evaluator(model, dataset, solver, settings, grid)
    check_units("evaluate", "dataset", model.sde, evaluator.dataset)
    evaluator, _ = evaluator.decided()

    def batches() -> Iterator[EvaluatedBatch]:
        with bar(len(dataset), "sample", shown=progress) as done:
            for indices in evaluator.batches():
                batch = evaluator.batch(indices)
                done.update(batch.count)
                yield batch

    return Evaluation.of(batches(), evaluator)


def logged(
    evaluator: Evaluator, log: SampleLog, pending: Sequence[int], ranks: Ranks
) -> Iterator[EvaluatedBatch]:
    """Yield this process's share of the batches that begin at ``pending``, each once in the log.

    Arguments:
        evaluator: what evaluates a batch.
        log: where every finished batch is written.
        pending: the first indices of the batches that are not in the log.
        ranks: this process among those of the run.

    Errors: ChildProcessError, in process 0, where another process has ended early; OSError that
    says how many samples are saved where a batch cannot be.
    """
    share = share_of(pending, ranks.rank, ranks.world)
    done = 0
    before = sum(batch.count for batch in log.batches().values())
    for indices in evaluator.batches():
        if indices.start in share:
            batch = evaluator.batch(indices)
            kept = before + done
            then = "go on with --resume" if kept else "start again"
            with writing("likelihood", log.folder, f"{kept} samples are saved", then):
                log.append(batch)
            done += batch.count
            ranks.tell(done=done)
            yield batch
            ranks.check()
