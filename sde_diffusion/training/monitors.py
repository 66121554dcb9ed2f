"""Evaluations during training: losses by noise level, a held-out bound, pictures of samples.

A monitor sees the averaged model, and its draws are those of its own seed: the values of two
evaluations, or of two runs, differ by the models alone, and no evaluation changes the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import flat_sum
from sde_diffusion.checkpoints.checkpoint import Saveable
from sde_diffusion.data.checks import scaled_for
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.likelihood.continuous_bound import elbo
from sde_diffusion.likelihood.decoders import Decoder, GaussianDecoder, LevelDecoder
from sde_diffusion.likelihood.estimates import check_draws
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.pictures.samples import sample_picture
from sde_diffusion.training.folder import SAMPLES

BOUND: Final = "bits_per_dim"  # the value that patience waits on
_FARTHEST: Final = 10.0  # the largest |λ|: beyond it x_t is the data, or the noise, alone


class Monitor(Protocol):
    """What is called with the averaged model, in evaluation mode, every ``evaluate_every`` steps.

    Torch's global generators are seeded before it, and put back after it.
    """

    # Any, as one may take ScoreModels alone: check_monitors.
    def __call__(self, model: Any, step: int, folder: Path | None) -> Mapping[str, Any]:  # noqa: ANN401
        """Return JSON values by name, for the metrics; files go to the run's folder, if any."""


@final
class LossByLevel:
    """The mean of ‖eps − eps_θ‖²/D on held-out data in equal bins of λ = log(alpha/sigma).

    λ runs from that of the horizon to that of ``t_min``, within ±10. For every sample and bin
    there is one draw of (t, eps). The data are scaled as the model's own.

    Arguments:
        dataset: the held-out data.
        bins: the number of bins.
        rows: the number of samples, the first of the data.
        batch_size: samples of one network evaluation.
        t_min: the least time.
        seed: of all draws.

    >>> from sde_diffusion import DataSpec, Gaussian, VPSDE
    >>> x = torch.linspace(-1.5, 1.5, 9)[:, None]
    >>> data = Dataset(DataSpec("x", (1,), None), x, None)
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> found = LossByLevel(data, bins=3)(model, 1, None)["loss_by_level"]
    >>> [round(x, 2) for x in found["lambda"]], found["loss"][0] < 0.2 < 0.8 < found["loss"][2]
    ([-3.04, 0.94, 4.92], True)
    """

    __repr__ = shown

    def __init__(
        self,
        dataset: Dataset,
        *,
        bins: int = 10,
        rows: int = 1000,
        batch_size: int = 100,
        t_min: float = 1e-5,
        seed: int = 0,
    ) -> None:
        for name, value in (("bins", bins), ("rows", rows), ("batch_size", batch_size)):
            positive_integer("LossByLevel", name, value)
        _check_rows("LossByLevel", dataset, 1)
        self.bins = bins
        self.batch_size = batch_size
        self.t_min = t_min
        self.seed = seed
        self._dataset = _first(dataset, rows)

    @torch.no_grad()
    def __call__(self, model: ScoreModel, step: int, folder: Path | None) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the centres of the bins, as "lambda", and the mean "loss" in each."""
        ends = torch.tensor([model.sde.horizon, self.t_min], dtype=torch.float64)
        far, near = model.sde.lambda_(ends).clamp(-_FARTHEST, _FARTHEST).tolist()
        width = (near - far) / self.bins
        generator = torch.Generator().manual_seed(mix(self.seed, Purpose.LOSS_BY_LEVEL_DATA))
        data = scaled_for(model.data, self._dataset)
        x = data.batch(torch.arange(len(data)), generator)
        totals = torch.zeros(self.bins, dtype=torch.float64)
        for first in range(0, len(x), self.batch_size):
            x0 = _for(model, x[first : first + self.batch_size])
            noise = PerSampleNoise.numbered(mix(self.seed, Purpose.LOSS_BY_LEVEL), first, len(x0))
            for i in range(self.bins):
                u = torch.special.ndtr(noise.normal(torch.empty(len(x0), 1).double()))[:, 0]
                t = model.sde.time(far + width * (i + u)).clamp(self.t_min, model.sde.horizon)
                eps = noise.normal(x0)
                error = eps - model.eps(model.sde.perturb(x0, t, eps), t)
                totals[i] += flat_sum(error.double().square()).sum().cpu() / x0[0].numel()
        middles = [far + width * (i + 0.5) for i in range(self.bins)]
        return {"loss_by_level": {"lambda": middles, "loss": (totals / len(x)).tolist()}}


@final
class HeldOutBound:
    """The bound of `elbo` on −log2 p of held-out data, in bits per dimension, with its error.

    For integer data it bounds the probability of the levels, at the centres of their bins; for
    real data the density in their own units. The draws are the same in every evaluation. The data
    are scaled as the model's own.

    Arguments:
        dataset: the held-out data.
        draws: of (t, eps) for each sample; even, at least 4.
        rows: the number of samples, the first of the data.
        batch_size: samples of one call of `elbo`.
        t_min: the least time.
        seed: of all draws.

    >>> from sde_diffusion import DataSpec, Gaussian, VPSDE
    >>> data = Dataset(DataSpec("zeros", (1,), None), torch.zeros(8, 1), None)
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> found = HeldOutBound(data)(model, 1, None)  # log2 √2π = 1.3257
    >>> abs(found["bits_per_dim"] - 1.3257) < 4 * found["standard_error"]
    True
    """

    __repr__ = shown

    def __init__(
        self,
        dataset: Dataset,
        *,
        draws: int = 32,
        rows: int = 1000,
        batch_size: int = 100,
        t_min: float = 1e-5,
        seed: int = 0,
    ) -> None:
        for name, value in (("rows", rows), ("batch_size", batch_size)):
            positive_integer("HeldOutBound", name, value)
        check_draws("HeldOutBound", draws)
        _check_rows("HeldOutBound", dataset, 2)
        self.draws = draws
        self.batch_size = batch_size
        self.t_min = t_min
        self.seed = seed
        self._dataset = _first(dataset, rows)

    def __call__(self, model: ScoreModel, step: int, folder: Path | None) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the mean over samples, "bits_per_dim", and its "standard_error" over them."""
        data = scaled_for(model.data, self._dataset)
        parts = [self._bits(model, data, i) for i in range(0, len(data), self.batch_size)]
        bits = torch.cat(parts)
        error = bits.std() / math.sqrt(len(bits))
        return {BOUND: bits.mean().item(), "standard_error": error.item()}

    def _bits(self, model: ScoreModel, data: Dataset, first: int) -> Tensor:
        spec = data.spec
        k = data.values[first : first + self.batch_size]
        x = spec.encode(k, 0.5)
        decoder: Decoder = GaussianDecoder()
        if spec.levels is not None:
            decoder = LevelDecoder(spec.encode(torch.arange(spec.levels), 0.5))
        bound = elbo(
            _for(model, x),
            model,
            decoder=decoder,
            draws=self.draws,
            seed=self.seed,
            first=first,
            t_min=self.t_min,
        )
        nats = bound.nats.cpu()
        if spec.levels is None:
            nats = nats + spec.log_volume(x)
        return -nats / (math.prod(spec.shape) * math.log(2))


@final
class SamplePicture:
    """A picture of samples as ``samples/STEP.png`` in the run's folder.

    ``draw`` returns samples of a model, from a seed of its own: for example
    ``lambda model: sample(model, AngularAdams(), (64, 1, 8, 8), steps=10, seed=0).x``. It is
    drawn as the model's data, or as ``data``: those that samples of latents are decoded to.

    >>> SamplePicture(lambda model: model.sde)(model=None, step=10, folder=None)  # nowhere to draw
    {}
    """

    __repr__ = shown

    def __init__(self, draw: Callable[[Any], Tensor], data: DataSpec | None = None) -> None:
        self.draw = draw
        self.data = data

    def __call__(self, model: Any, step: int, folder: Path | None) -> Mapping[str, Any]:  # noqa: ANN401
        """Return the picture's name below the folder; without a folder nothing is drawn."""
        if folder is None:
            return {}
        path = folder / SAMPLES / f"{step:08}.png"
        path.parent.mkdir(exist_ok=True)
        sample_picture(self.draw(model), path, model.data if self.data is None else self.data)
        return {"picture": f"{path.parent.name}/{path.name}"}


def check_monitors(monitors: Sequence[Monitor], model: object) -> None:
    """Refuse monitors of eps for a model that has none."""
    for monitor in monitors:
        of_eps = isinstance(monitor, LossByLevel | HeldOutBound)
        if of_eps and not isinstance(model, ScoreModel):
            raise wrong_type(
                "train",
                "monitors",
                f"do without alpha and sigma, which a {type(model).__name__} has not",
                type(monitor).__name__,
                "pass SamplePicture(draw)",
            )


def observe(
    monitors: Sequence[Monitor], model: Saveable, step: int, folder: Path | None, seed: int
) -> dict[str, Any]:
    """Return the values of all monitors; where two have the same name, the later one's.

    Arguments:
        monitors: what is called.
        model: the averaged model.
        step: the number of the step.
        folder: the folder of the run, None for one that writes nothing.
        seed: of torch's global generators, for monitors that draw from them.
    """
    found: dict[str, Any] = {}
    device = model.device
    for monitor in monitors:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(mix(seed, Purpose.MONITOR))
            found |= monitor(model.eval(), step, folder)
    return found


def note_best(notes: dict[str, Any], step: int, found: Mapping[str, Any]) -> bool:
    """Return whether this evaluation's bound is the best so far, and record that in the notes.

    ``notes["best"]`` has the bound, its step, and the number of evaluations "since" that were no
    better.
    """
    if BOUND not in found:
        return False
    best = notes.get("best")
    bits = float(found[BOUND])
    if best is None or bits < best[BOUND]:
        notes["best"] = {BOUND: bits, "step": step, "since": 0}
        return True
    notes["best"] = best | {"since": best["since"] + 1}
    return False


def out_of_patience(notes: Mapping[str, Any], patience: int) -> bool:
    """Return whether so many evaluations in a row were no better than the best; 0 for never."""
    since: int = notes.get("best", {"since": 0})["since"]
    return 0 < patience <= since


def _check_rows(what: str, dataset: Dataset, least: int) -> None:
    if len(dataset) < least:
        raise wrong_value(
            what, "dataset", f"have at least {least} rows", len(dataset), "hold more data out"
        )


def _first(dataset: Dataset, rows: int) -> Dataset:
    return Dataset(dataset.spec, dataset.values[:rows], None)


def _for(model: ScoreModel, x: Tensor) -> Tensor:
    """Return x on the model's device, in the dtype of its weights, float32 if it has none."""
    weight = next(model.parameters(), torch.zeros(()))
    return x.to(model.device, weight.dtype)
