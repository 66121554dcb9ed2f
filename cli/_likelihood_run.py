"""The batches of `sde-diffusion likelihood`: computed, kept, and made into results at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sde_diffusion._check import diverged
from sde_diffusion._files import writing
from sde_diffusion.cli import _common
from sde_diffusion.cli._likelihood_job import log_of
from sde_diffusion.cli._together import TerminatedError, terminations

if TYPE_CHECKING:
    from sde_diffusion.cli._likelihood_job import LikelihoodJob
    from sde_diffusion.evaluation.evaluator import Evaluator
    from sde_diffusion.evaluation.sample_log import EvaluatedBatch, SampleLog
    from sde_diffusion.parallel.ranks import Ranks


def computed(job: LikelihoodJob, log: SampleLog, ranks: Ranks) -> None:
    """Compute this process's share of the job, with a progress bar in process 0.

    Errors: ChildProcessError where another process ended early, KeyboardInterrupt; both say how
    far the job has come.
    """
    try:
        with terminations():
            _compute(job, log, ranks)
    except (KeyboardInterrupt, ChildProcessError) as error:
        culprit = ranks.culprit() if isinstance(error, TerminatedError) else ""
        kept = sum(batch.count for batch in log.batches().values())
        saved = f"{kept} of {len(job.evaluator.dataset)} samples"
        if culprit or isinstance(error, ChildProcessError):
            message = f"{culprit or error}: {saved}; go on with --resume"
            raise ChildProcessError(message) from error
        message = f"Interrupted; {saved} are saved, go on with --resume."
        raise KeyboardInterrupt(message) from error
    except Exception:
        done = log.batches().values()
        if ranks.world == 1 and all(len(batch.failures) == batch.count for batch in done):
            log.remove()  # a mistake that shows at once leaves nothing behind
        raise


def _compute(job: LikelihoodJob, log: SampleLog, ranks: Ranks) -> None:
    from sde_diffusion.evaluation.run import logged

    if "result" in job.manifest:
        return
    mean = _Mean(job.evaluator, log.batches().values())
    own = 0
    left = sum(len(b) for b in job.evaluator.batches() if b.start in set(job.pending))
    total = len(job.evaluator.dataset)
    start = total - left
    with _common.progress(total, "sample", leads=ranks.rank == 0) as shown:

        def tick() -> None:
            shown.update(start + own + ranks.told("done") - shown.n)

        for batch in logged(job.evaluator, log, job.pending, ranks):
            mean.see(batch)
            mean.refuse_if_none(batch)
            own += batch.count
            shown.set_postfix_str(str(mean), refresh=False)
            tick()
        ranks.tell(state="done")
        ranks.wait(tick)


def finished(job: LikelihoodJob, out: Path) -> Mapping[str, Any]:
    """Return the manifest with the results, which are written unless they are there already."""
    from sde_diffusion.cli._likelihood_results import write_results
    from sde_diffusion.evaluation.results import Evaluation

    if "result" in job.manifest:
        return job.manifest
    log = log_of(out)
    found = Evaluation.of(log.batches().values(), job.evaluator)
    kept = f"all {len(found.index)} samples are saved in {log.folder}"
    with writing("likelihood", out, kept, "go on with --resume"):
        manifest = write_results(out, job, found)
    log.remove()
    return manifest


_MANY: Final = 64  # samples without a likelihood, after which it is not these samples' fault


class _Mean:
    """The running means of the bounds with their standard errors, as text."""

    def __init__(self, evaluator: Evaluator, batches: Iterable[EvaluatedBatch]) -> None:
        self.total = len(evaluator.dataset)
        self.failed = 0
        self.scale = evaluator.dimension * math.log(2)
        self.sums = {bound: [0.0, 0.0] for bound in evaluator.settings.bounds}
        self.counts = dict.fromkeys(self.sums, 0)
        for batch in batches:
            self.see(batch)

    def see(self, batch: EvaluatedBatch) -> None:
        for bound, sums in self.sums.items():
            nats = [value for value in batch.values[f"{bound}_nats"] if math.isfinite(value)]
            bits = [-value / self.scale for value in nats]
            sums[0] += math.fsum(bits)
            sums[1] += math.fsum(b * b for b in bits)
            self.counts[bound] += len(bits)

    def refuse_if_none(self, batch: EvaluatedBatch) -> None:
        """Refuse to go on where none of the first samples has a likelihood.

        Errors: FloatingPointError that says why the last of them has none.
        """
        self.failed += len(batch.failures)
        if self.failed >= min(_MANY, self.total) and not any(self.counts.values()):
            why = [*batch.failures.values()][-1]
            raise diverged(
                "likelihood",
                "log p",
                "be finite for some sample",
                f"none of the first {self.failed}",
                f"look at the model and the scale of the data; the last said: {why}",
            )

    def __str__(self) -> str:
        texts = []
        for bound, (first, second) in self.sums.items():
            count = max(self.counts[bound], 1)
            mean = first / count
            spread = max(second / count - mean**2, 0) / max(count - 1, 1)
            texts.append(f"{bound} {mean:.4f} ± {math.sqrt(spread):.4f}")
        return ", ".join(texts) + " bits/dim"
