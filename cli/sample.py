"""`sde-diffusion sample`: draws of a model, as a picture and as arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion._check import Reason, diverged, wrong_value
from sde_diffusion._files import writing
from sde_diffusion.cli import _common, menu

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from sde_diffusion.data.spec import DataSpec
    from sde_diffusion.grids import Grid
    from sde_diffusion.noise import NoiseOfRun
    from sde_diffusion.parallel.ranks import Ranks
    from sde_diffusion.sampling.shared import Draws

EXAMPLES: Final = """\b
Examples:
  sde-diffusion sample --steps 10
  sde-diffusion sample --model mnist --class 0-9 --guidance 0.5 -n 100
  sde-diffusion sample --solver heun --steps 18 --grid karras --denoise
  sde-diffusion sample --model runs/digits-vp --solver ancestral --steps 200 -n 100
  torchrun --nproc-per-node 2 -m sde_diffusion.cli sample -n 1000
"""
_SHOWN: Final = 10  # numbers of samples that diverged
_NOISES: Final = ("per-sample", "counters")


@dataclass(frozen=True)
class SamplingJob:
    """What is drawn.

    Arguments:
        model: the score model, with classes where there are labels.
        solver: any solver.
        grid: the times, falling.
        number: how many samples.
        batch_size: samples computed at once.
        seed: of the prior and of the solver's noise.
        noise: what draws them.
        labels: the class of each sample, int64; (number,), or None for no classes.
        guidance: weight of classifier-free guidance; None for none.
        texts: of the samples, in turns; none for no text.
        negative: the text to be guided away from; None for no text.
        keep_finite: whether samples that diverge are left out.
    """

    model: Any
    solver: Any
    grid: Grid
    number: int
    batch_size: int
    seed: int
    noise: NoiseOfRun
    labels: Tensor | None
    guidance: float | None
    texts: tuple[str, ...]
    negative: str | None
    keep_finite: bool

    def given(self, first: int, count: int) -> Any:  # noqa: ANN401  (a score model)
        """Return the model of samples first … first + count − 1."""
        import torch

        model = self.model.rows(torch.arange(first, first + count))
        if self.labels is None and not self.texts:
            return model
        labels = None if self.labels is None else self.labels[first : first + count]
        texts = [
            self.texts[i % len(self.texts)] for i in range(first, first + count) if self.texts
        ]
        given = {"text": texts} if texts else {}
        if self.guidance is None:
            return model.given(labels, **given)
        from sde_diffusion.latents.latent_model import LatentModel
        from sde_diffusion.models.guidance import Guided, guided

        score: Any = model.model if isinstance(model, LatentModel) else model
        if self.negative is None:
            return guided(score, labels, self.guidance, **given)
        away = score.given(labels, text=self.negative)
        return Guided(score.given(labels, **given), away, self.guidance)


@click.command(epilog=EXAMPLES)
@_common.model_option
@_common.solver_option("angular-adams")
@_common.grid_options
@_common.denoise_option
@_common.count_option("--number", "-n", default=64, help="How many samples.")
@_common.count_option("--batch-size", default=32, help="Samples computed at once.")
@click.option(
    "--class",
    "classes",
    default=None,
    metavar="N",
    help="Class of the samples, for a model trained with --conditional: 7 or cat, or 0-9 or "
    "1,4,7 or cat,dog to take turns.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="What the samples are to show, for a model trained on texts; several take turns.",
)
@click.option(
    "--negative",
    default=None,
    metavar="TEXT",
    help="With --text and --guidance: what they are to be guided away from, in place of all data.",
)
@click.option(
    "--guidance",
    type=float,
    default=None,
    metavar="W",
    help="Weight of classifier-free guidance, (1+W) eps of the class − W eps of all data; the "
    "network evaluates two rows for each sample.",
)
@click.option(
    "--noise",
    type=click.Choice(_NOISES),
    default="per-sample",
    show_default=True,
    help="How normals are drawn, each sample's alone. A generator for each sample, or counters: "
    "the same bits on every device, few kernels on a GPU, slower on a CPU.",
)
@click.option(
    "--keep-finite",
    is_flag=True,
    help="Leave out samples that diverge, and say which and why, rather than end with them.",
)
@_common.common_options(out="samples")
def command(
    model_name: str,
    solver: str,
    steps: int | None,
    grid: str,
    tolerance: float | None,
    denoise: bool,
    number: int,
    batch_size: int,
    classes: str | None,
    texts: tuple[str, ...],
    negative: str | None,
    guidance: float | None,
    noise: str,
    keep_finite: bool,
    seed: int,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Draw samples of a model with any solver.

    Writes samples.npz, with the samples as `x` (and as whole `levels` where the data has them),
    their `labels` and the `guidance`, and samples.png, a picture; of sounds samples.wav too, in
    which they follow one another, and of clips samples.gif. Where some were left out the
    `number` of each is there too. Real data are in their own
    units. Sample i depends on --seed and i
    alone, not on --batch-size nor on the number of processes; torchrun shares the batches among
    several. Samples of a model of latents are decoded, and their `latents` are written too; of a
    model of positions with velocities the positions are `x`, beside the whole `states`.
    """
    from sde_diffusion.cli._together import alone_in, device_of
    from sde_diffusion.counter_noise import CounterNoise
    from sde_diffusion.grids import Denoised, times_of
    from sde_diffusion.noise import PerSampleNoise
    from sde_diffusion.parallel.ranks import Ranks, place

    rank, world = place()
    where = device_of(device, world)
    last = Denoised if denoise else times_of

    def prepared() -> SamplingJob:
        made = menu.solver(solver, tolerance)
        model = menu.any_model(model_name, where)
        times = last(menu.times(grid, model.sde, made, steps, model.t_min))
        _check_texts(model, texts, negative, guidance)
        labels = _labels(model_name, model, classes, guidance, number, told=bool(texts))
        job = SamplingJob(
            model,
            made,
            times,
            number,
            batch_size,
            seed,
            CounterNoise if noise == "counters" else PerSampleNoise.of_run,
            labels,
            guidance,
            texts,
            negative,
            keep_finite,
        )
        job.given(0, number)  # refuses a weight that is no number
        return job

    with alone_in("sample", out), Ranks(out / ".ranks", rank, world, _common.note) as ranks:
        job = _agreed(ranks, prepared, out)
        draws = _shared(job, ranks)
        if rank or draws is None:
            return
        _check_any(draws)
        _common.tell(_units(job, draws))
        files, failure = _write(out, job, draws)
    result = {
        "model": model_name,
        "solver": solver,
        "steps": len(times_of(job.grid)) - 1,
        "grid": grid,
        "denoise": denoise,
        "class": classes,
        "text": list(texts),
        "negative": negative,
        "guidance": guidance,
        "noise": noise,
        "number": len(draws.x),
        "failures": {str(i): why for i, why in draws.failures.items()},
        "seed": seed,
        "processes": world,
        "device": str(job.model.device),
        "nfe": draws.nfe,
        "seconds": draws.seconds,
        "files": [str(file) for file in files],
        "no_picture": failure,
    }
    what = model_name if classes is None else f"{model_name}, class {classes}"
    what += f", {', '.join(texts)}" if texts else ""
    rows = ""
    if guidance is not None:
        what = f"{what} with guidance {guidance:g}"
        rows = " of two rows"
    lines = [
        f"{len(draws.x)} samples of {what}, by {solver}: {draws.nfe} network evaluations "
        f"each{rows}, {draws.seconds:.1f} s",
        *_failure_lines(draws),
        *(f"wrote {file}" for file in files),
        *([] if failure is None else [failure]),
    ]
    _common.show(result, lines, as_json=as_json)


def _check_any(draws: Draws) -> None:
    """Refuse a draw in which all samples diverged."""
    if not len(draws.x):
        why = Reason(f"none of {len(draws.failures)}: {next(iter(draws.failures.values()))}")
        remedy = "pass more --steps, or another --solver"
        raise diverged("sample", "x", "stay finite for some sample", why, remedy)


def _units(job: SamplingJob, draws: Draws) -> list[str]:
    """Return what the size of the samples says of the network, whatever it predicts."""
    from sde_diffusion.grids import times_of
    from sde_diffusion.priors import too_large
    from sde_diffusion.sde import LinearSDE

    sde = job.model.sde
    if not isinstance(sde, LinearSDE) or float(times_of(job.grid)[0]) > sde.horizon:
        return []
    found = too_large(sde, draws.x)
    if found is None:
        return []
    return [
        f"samples of this size do not meet the prior of {type(sde).__name__}, by {found} nats a "
        "dimension: the steps are too few, or the network is hardly trained, means something else "
        "(sde-diffusion info MODEL --data DATA says what), or is of data in other units"
    ]


def _failure_lines(draws: Draws) -> list[str]:
    """Return how many samples diverged, which, and why the first did."""
    if not draws.failures:
        return []
    shown = ", ".join(map(str, [*draws.failures][:_SHOWN]))
    more = ", …" if len(draws.failures) > _SHOWN else ""
    index, why = next(iter(draws.failures.items()))
    count = len(draws.failures)
    noun = "sample" if count == 1 else "samples"
    return [
        f"{count} {noun} diverged and left out: {shown}{more}",
        f"sample {index}: {why}",
    ]


def _agreed(ranks: Ranks, prepare: Callable[[], SamplingJob], out: Path) -> SamplingJob:
    """Return the job once process 0 has found nothing wrong with it or with the folder."""
    own = list[SamplingJob]()

    def make() -> dict[str, Any]:
        own.append(prepare())
        _common.output_folder(out)
        return {}

    ranks.agree(make)
    return own[0] if own else prepare()


def _shared(job: SamplingJob, ranks: Ranks) -> Draws | None:
    """Return, in process 0, what all have drawn, with a progress bar there.

    Errors: ChildProcessError where another process ended early, KeyboardInterrupt.
    """
    from sde_diffusion.cli._together import TerminatedError, terminations
    from sde_diffusion.sampling.shared import draw

    try:
        bar = _common.progress(job.number, "sample", leads=ranks.rank == 0)
        with terminations(), bar as shown:
            return draw(
                job.given,
                job.solver,
                job.number,
                job.batch_size,
                ranks,
                event=menu.state_shape(job.model),
                grid=job.grid,
                seed=job.seed,
                noise=job.noise,
                keep_finite=job.keep_finite,
                progress=lambda done: shown.update(done - shown.n),
            )
    except (KeyboardInterrupt, ChildProcessError) as error:
        culprit = ranks.culprit() if isinstance(error, TerminatedError) else ""
        if culprit or isinstance(error, ChildProcessError):
            found = (culprit or str(error)).rpartition("; ")[0]
            message = f"{found}; nothing is written, start again"
            raise ChildProcessError(message) from error
        raise


def _labels(
    name: str,
    model: Any,  # noqa: ANN401
    classes: str | None,
    guidance: float | None,
    number: int,
    *,
    told: bool,
) -> Tensor | None:
    """Return the class of every sample, None for samples of no class.

    Errors: ValueError for a model without classes, or without these; for guidance without a class,
    or of a network that has learned nothing about no class.
    """
    import torch

    if classes is None:
        if told and guidance is not None:
            _check_dropout(name, guidance)
        elif guidance is not None:
            raise wrong_value(
                "--guidance",
                "guidance",
                "go with a class to guide to",
                guidance,
                "add for example --class 7",
            )
        return None
    known = model.classes
    if not known:
        raise wrong_value(
            "--class",
            "class",
            "be left out for a model without classes",
            classes,
            "train one with sde-diffusion train --conditional",
        )
    if guidance is not None:
        _check_dropout(name, guidance)
    turns = torch.tensor(_numbers(classes, known, _names(name)))
    return turns[torch.arange(number) % len(turns)]


def _check_dropout(name: str, guidance: float) -> None:
    """Refuse to guide a model that has learned nothing of samples without conditions."""
    if _dropout(name) == 0:
        raise wrong_value(
            "--guidance",
            "guidance",
            "be left out for a model that was trained without label dropout",
            guidance,
            "train with --label-dropout .1",
        )


def _check_texts(
    model: Any,  # noqa: ANN401  (a score model)
    texts: tuple[str, ...],
    negative: str | None,
    guidance: float | None,
) -> None:
    """Refuse texts for a model without, and a negative one without a guidance."""
    from sde_diffusion.models.score import LearnedScore

    known = model.conditions if isinstance(model, LearnedScore) else {}
    if texts and "text" not in known:
        raise wrong_value(
            "--text",
            "text",
            "be left out for a model without texts",
            texts[0],
            "train one with sde-diffusion train --conditional, on data with a text for each",
        )
    if negative is not None and (not texts or guidance is None):
        raise wrong_value(
            "--negative",
            "negative",
            "go with a text and a weight of guidance",
            negative,
            "add for example --text seven --guidance 1",
        )


def _numbers(classes: str, known: int, names: Sequence[str]) -> list[int]:
    """Return the classes of a text like 7, 0-9, cat or 1,4,7-9; names count before numbers."""
    if classes in names:
        return [names.index(classes)]
    found = list[int]()
    for part in classes.split(","):
        word = part.strip()
        low, _, high = (word, "", word) if word in names else word.partition("-")
        first = _number(low, names)
        last = _number(high or low, names)
        if not 0 <= first <= last < known:
            some = [*names[:6], *(["…"] if len(names) > 6 else [])]
            named = f"{', '.join(some)}, or " if some else ""
            raise wrong_value(
                "--class",
                "class",
                f"be of {named}0 … {known - 1}, such as 7 or 0-2 or 1,2",
                classes,
                f"pass for example --class {known - 1}",
            )
        found += range(first, last + 1)
    return found


def _number(word: str, names: Sequence[str]) -> int:
    """Return the number of a class, -1 for no class."""
    if word in names:
        return names.index(word)
    return int(word) if re.fullmatch(r"[0-9]{1,9}", word) else -1


def _dropout(name: str) -> float | None:
    """Return the label dropout that a checkpoint was trained with, None if it does not say."""
    dropout: float | None = _record(name, "training").get("label_dropout")
    return dropout


def _names(name: str) -> list[str]:
    """Return the names of a checkpoint's classes, by number; none if it does not say."""
    names: list[str] = _record(name, "dataset").get("classes", [])
    return names


def _record(name: str, part: str) -> dict[str, Any]:
    """Return a part of what a checkpoint says of its training."""
    from sde_diffusion.checkpoints.checkpoint import describe, shipped

    found = describe(name).get(part) if name in shipped() or Path(name).exists() else None
    return found if isinstance(found, dict) else {}


def _write(folder: Path, job: SamplingJob, draws: Draws) -> tuple[list[Path], str | None]:
    """Write the arrays, and the picture; return the files, and why there is no picture."""
    import numpy as np

    from sde_diffusion._files import write_arrays
    from sde_diffusion.data.sounds import write_sounds
    from sde_diffusion.matrix_sde import MatrixLinearSDE
    from sde_diffusion.pictures.clips import clip_animation
    from sde_diffusion.pictures.samples import sample_picture

    spec = menu.observed(job.model)
    x = menu.decoded(job.model, draws.x)
    arrays: dict[str, Any] = {"x": x.numpy()}
    if x is not draws.x:
        kept = "states" if isinstance(job.model.sde, MatrixLinearSDE) else "latents"
        arrays[kept] = draws.x.numpy()
    if spec is not None and spec.levels is None:
        arrays["x"] = spec.decode(x).numpy()
    elif spec is not None and spec.levels is not None:
        arrays["levels"] = spec.decode(x).numpy().astype(np.uint8 if spec.levels <= 256 else int)
    if job.labels is not None:
        arrays["labels"] = job.labels[draws.number].numpy()
    if job.texts:
        texts = job.texts
        arrays["text"] = np.array([texts[i % len(texts)] for i in draws.number.tolist()])
    if job.guidance is not None:
        arrays["guidance"] = job.guidance
    if draws.failures:
        arrays["number"] = draws.number.numpy()
    npz = folder / "samples.npz"
    png = folder / "samples.png"
    wav = folder / "samples.wav"
    gif = folder / "samples.gif"
    played = [wav] if spec is not None and spec.rate is not None and x.ndim == 3 else []
    with writing("sample", folder, f"the {len(x)} samples are lost", "draw them again"):
        write_arrays(npz, arrays)
        for path in played:
            write_sounds(path, _sixteen_bits(spec, x), spec.rate)
    failure = _common.no_picture(lambda path: sample_picture(x, path, spec), png)
    moving = [gif] if failure is None and x.ndim == 5 and x.shape[1] in (1, 3) else []
    for path in moving:
        clip_animation(x, path, spec)
    return [*([png] if failure is None else []), npz, *played, *moving], failure


def _sixteen_bits(spec: DataSpec, x: Tensor) -> NDArray[Any]:
    """Return sounds as levels of 16 bits; those of real numbers have values in [−1, 1]."""
    from sde_diffusion.data.sounds import LEVELS

    share = spec.decode(x).double() / spec.levels if spec.levels else 0.5 + 0.5 * spec.decode(x)
    found: NDArray[Any] = (LEVELS * share).floor().clamp(0, LEVELS - 1).numpy()
    return found
