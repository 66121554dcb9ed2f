"""Does a network's convention fit? Its denoising error on data, beside those of likely mistakes.

At x_t = alpha x0 + sigma eps the mean square error of the predicted eps is at best the posterior
variance. The best linear prediction from the mean and the variance v of the data, which knows
nothing else of them, has the error alpha² v/(alpha² v + sigma²). In units of that a trained
network is below 1, or little above where the data are close to Gaussian. One that is read wrongly
is far above.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import kind_of, positive_number, wrong_type, wrong_value
from sde_diffusion._seeds import Purpose, check_seed, mix
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state
from sde_diffusion.models.conditioned import Labelled
from sde_diffusion.models.readings import others, unit_remedy
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.models.wrapped import AtTimesteps
from sde_diffusion.noise import WhiteNoise
from sde_diffusion.priors import beyond_prior

_SLACK: Final = 1.25  # the error that a network may have, in units of the linear prediction's
_CLEAR: Final = 4.0  # standard errors by which another convention must be better
_UNCLEAR: Final = 2.0  # those of one that is told of
_NAMES: Final = 28  # the width of a reading's name


@final
@dataclass(frozen=True)
class Reading:
    """The errors of one reading of a network, |eps − predicted eps|²/D of each time and sample.

    Shapes: errors (L, B).
    Units: the error of the best linear prediction, so that it has 1.
    """

    __repr__ = shown

    name: str
    errors: Tensor
    remedy: str = ""  # what to write for it

    @property
    def mean(self) -> list[float]:
        """The mean error at each time."""
        found: list[float] = self.errors.mean(1).tolist()
        return found

    def excess(self, other: Reading) -> Tensor:
        """Return by how much each sample's error is above another's, in its means: (B,)."""
        scale = other.errors.mean(1, keepdim=True).clamp(min=1e-30)
        return ((self.errors - other.errors) / scale).mean(0)


@final
@dataclass(frozen=True)
class ConventionCheck:
    """What `check_convention` found: the model's own reading first, then the others.

    >>> error = torch.full((1, 4), 0.1)
    >>> ConventionCheck((0.5,), (Reading("as given", error),)).fits
    True
    """

    __repr__ = shown

    times: tuple[float, ...]
    readings: tuple[Reading, ...]
    beyond: str = (
        ""  # by how much the data miss the prior, and what to write; "" where they do not
    )

    @property
    def best(self) -> Reading:
        """The reading of the least error that is clearly better than the one given, or that."""
        return self._better(_CLEAR)

    def _better(self, errors: float) -> Reading:
        """Return the best of the readings that are better by so many standard errors."""
        chosen = self.readings[0]
        for other in self.readings[1:]:
            if self.gain(other) > errors and chosen.excess(other).mean() > 0:
                chosen = other
        return chosen

    def gain(self, other: Reading) -> float:
        """Return by how much another reading is better than the one given, in standard errors."""
        gain = self.readings[0].excess(other)
        return float(gain.mean() / (gain.std() / math.sqrt(len(gain))).clamp(min=1e-30))

    @property
    def fits(self) -> bool:
        """Whether no other reading is clearly better and the errors are those of a denoiser.

        And the data are in units that meet the prior, from which sampling starts.
        """
        small = all(error <= _SLACK for error in self.readings[0].mean)
        return small and self.best is self.readings[0] and not self.beyond

    def __str__(self) -> str:
        head = "reading".ljust(_NAMES) + "".join(f"  t = {t:<7.4g}" for t in self.times)
        rows = [f"{head}  what to write"]
        rows += ["linear prediction".ljust(_NAMES) + _columns([1.0] * len(self.times)).rstrip()]
        for one in self.readings:
            rows.append(f"{one.name:<{_NAMES}}{_columns(one.mean)}  {one.remedy}".rstrip())
        return "\n".join([*rows, self._verdict()])

    def _verdict(self) -> str:
        given, best, close = self.readings[0], self.best, self._better(_UNCLEAR)
        if best is not given:
            return f"The convention does not fit; this does better: {best.name}: {best.remedy}."
        if self.beyond:
            return f"The convention does not fit: {self.beyond}."
        found = (
            "The convention fits."
            if self.fits
            else "The errors are too large for a denoiser, and no other reading explains it."
        )
        if close is not given:
            found += (
                f" By {self.gain(close):.1f} standard errors this does better, which is not clear "
                f"({_CLEAR:g} would be): {close.name}: {close.remedy}. More samples would decide"
                ", or times nearer to 0."
            )
        return found


def _columns(values: list[float]) -> str:
    return "".join(f"  {value:<11.4g}" for value in values)


@torch.no_grad()
def check_convention(
    model: ScoreModel, data: Tensor, *, times: tuple[float, ...] | None = None, seed: int = 0
) -> ConventionCheck:
    """Return how well the model predicts the noise in data, and what mistake would explain it.

    It is looked at in evaluation mode, as it would be used; its own mode is put back.

    The others are: the output taken for another prediction or with the other sign, the time one
    step of the chain earlier or later, t for the index and the index for t, time that runs the
    other way (of a velocity with its sign), data in [0, 1] for [−1, 1] or 0 … 255 and the other
    way round. Each says what to write for it. All readings see the same noise. Data that the prior
    does not cover (`prior_mismatch`) fit no convention: samples of their network would be wrong.

    Arguments:
        model: the score model of the network in question, with its labels where it needs them.
        data: samples x0 in the units of the model's states, two or more; (B, *event).
        times: at which noise is added; if not given those of σ²/(σ² + α² v) = .01 and .5, with v
            the data's variance. For a chain the first is its second step: an index that is off by
            one shows where the data are thinner than the noise of the first steps.
        seed: of the noise.

    Errors: TypeError for what is no ScoreModel; ValueError for data that do not vary.

    >>> from sde_diffusion import VPSDE
    >>> class Noise(torch.nn.Module):  # predicts eps where the data are N(0, 1): sigma x
    ...     def forward(self, x, t):
    ...         return VPSDE().sigma(t)[:, None] * x
    >>> x0 = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> check_convention(ScoreModel(Noise(), VPSDE(), "eps"), x0).fits
    True
    >>> check_convention(ScoreModel(Noise(), VPSDE(), "v"), x0).best.name
    'prediction "eps"'
    """
    if not isinstance(model, ScoreModel):
        got = type(model).__name__
        raise wrong_type(
            "check_convention", "model", "be a ScoreModel", got, "pass ScoreModel(network, sde)"
        )
    check_state("check_convention", data, "data")
    check_seed("check_convention", seed)
    _check_times(times)
    variance = float(data.double().var(0).mean()) if len(data) > 1 else math.nan
    if not 0 < variance < math.inf:
        rule = "be two samples or more that vary"
        raise wrong_value(
            "check_convention", "data", rule, tuple(data.shape), "pass a batch of real data"
        )
    chosen = _times(model, variance) if times is None else times
    device = model.device
    x0 = data.to(device)
    noise = WhiteNoise(mix(seed, Purpose.CONVENTION))
    eps = [noise.normal(x0) for _ in chosen]

    def errors(reading: ScoreModel, scale: float, shift: float) -> Tensor:
        clean = scale * x0 + shift
        rows = []
        for t, e in zip(chosen, eps, strict=True):
            time = torch.tensor(t, dtype=torch.float64)
            found = reading.eps(model.sde.perturb(clean, time, e), time)
            square = (found.double() - e.double()).square().flatten(1).mean(1)
            rows.append(square / _linear(model, time, scale**2 * variance))
        return torch.stack(rows).cpu()

    with _evaluating(model):
        readings = [Reading("as given", errors(model, 1, 0))]
        for one in others(model):
            with suppress(IndexError):  # it asks for a step that a table of the network has not
                readings.append(Reading(one.name, errors(one.model, 1, 0), one.remedy))
        for name, (scale, shift, remedy) in _SCALES.items():
            readings.append(Reading(name, errors(model, scale, shift), remedy))
    return ConventionCheck(tuple(chosen), tuple(readings), _beyond(model, x0))


def _beyond(model: ScoreModel, x0: Tensor) -> str:
    """Return by how much the data miss the prior, and what to write; "" where they do not."""
    missed = beyond_prior(model.sde, x0)
    if missed is None:
        return ""
    kind = type(model.sde).__name__
    return (
        f"data meet the prior of {kind} only by {missed} nats a dimension, so that samples come "
        f"out wrong; this is of data of size 1: {unit_remedy(model, x0)}"
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without dropout, and each of its modules back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# What the data would have to be, scale · x0 + shift, and what gives them.
_SCALES: Final = {
    "data in [0, 1], not [-1, 1]": (0.5, 0.5, "DataSpec(…, scaling=Affine(0, 1))"),
    "data in [-1, 1], not [0, 1]": (2.0, -1.0, "DataSpec(…, scaling=Affine(-1, 1))"),
    "data in [-1, 1], not 0 … 255": (1 / 127.5, -1.0, "DataSpec(…, scaling=Affine(-1, 1))"),
    "data in 0 … 255": (127.5, 127.5, "DataSpec(…, scaling=Affine(0, 255))"),
}


def _check_times(times: object) -> None:
    """Refuse times that are none of noise."""
    remedy = "pass for example times=(0.1, 0.5)"
    if times is not None and not isinstance(times, (tuple, list)):
        raise wrong_type("check_convention", "times", "be a row", kind_of(times), remedy)
    for t in times or ():
        positive_number("check_convention", "times", t, remedy)


def _times(model: ScoreModel, variance: float) -> tuple[float, ...]:
    """Return the times at which the noise is .01 and .5 of the state's variance."""
    found = []
    for share in (0.01, 0.5):
        lambda_ = 0.5 * math.log((1 - share) / (share * variance))
        found.append(float(model.sde.time(torch.tensor(lambda_, dtype=torch.float64))))
    network = model.network
    inner = network.network if isinstance(network, Labelled) else network
    if isinstance(inner, AtTimesteps):
        n = inner.steps
        found = [2 / n, max(round(found[1] * n), 3) / n]
    return tuple(found)


def _linear(model: ScoreModel, t: Tensor, variance: float) -> float:
    """Return the mean square error of the best linear prediction of eps."""
    signal = float(model.sde.alpha(t)) ** 2 * variance
    return signal / (signal + float(model.sde.sigma(t)) ** 2)
