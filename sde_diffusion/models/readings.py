"""What else a network could mean: the readings that likely mistakes make of it.

Each comes with what to write for it: the argument of the call that makes the model, or the module
to wrap the network in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import torch
from torch import Tensor, nn

from sde_diffusion.forms import FORMS
from sde_diffusion.models.conditioned import Labelled
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.models.wrapped import AtNoise, AtTime, AtTimesteps, ClassLabels, Wrapped
from sde_diffusion.sde import LinearSDE

TimeOf: TypeAlias = Callable[[Tensor], Tensor]
Misread: TypeAlias = tuple[str, str, nn.Module]  # its name, what to write, the network so read

_PROBE: Final = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
_EVEN: Final = 1e-3  # by which distances differ that are one, of a map in float32
_THOUSAND: Final = 1000  # steps, by which most programs count


@final
@dataclass(frozen=True)
class Other:
    """A model that the network would make if it meant something else.

    Arguments:
        name: in words.
        remedy: what to write for it.
        model: the network so read.
    """

    name: str
    remedy: str
    model: ScoreModel


def others(model: ScoreModel) -> Iterator[Other]:
    """Yield the model's network in other readings."""
    outer = model.network
    inner = outer.network if isinstance(outer, Labelled) else outer

    def read(network: nn.Module, prediction: str) -> ScoreModel:
        other = ScoreModel(
            Labelled(network, outer.labels) if isinstance(outer, Labelled) else network,
            model.sde,
            prediction,
            sigma_data=model.sigma_data,
            variance=model.variance,
        )
        return other.train(model.training)

    given = model.prediction
    for form in FORMS if given in FORMS else ():
        if form != given:
            remedy = f'prediction="{form}"'
            if given == "flow" and isinstance(inner, AtTime):  # of from_velocity, which has none
                remedy = f"from_score(net, RectifiedFlow(), {remedy})"
            yield Other(f'prediction "{form}"', remedy, read(inner, form))
    yield Other("the other sign", "a module of -net(x, t)", read(_negated(inner), given))
    if given == "edm":  # called with its own number, not with t
        return
    for name, remedy, network in _misread(inner, model.sde, given):
        yield Other(name, remedy, read(network, given))


def unit_remedy(model: ScoreModel, x0: Tensor) -> str:
    """Return what makes a network of data in other units one of data of mean 0 and size 1."""
    m, s = f"{float(x0.double().mean()):.4g}", f"{float(x0.double().std()):.4g}"
    outer = model.network
    inner = outer.network if isinstance(outer, Labelled) else outer
    call = f"net({s} * x + {m}, {s} * sigma)"
    if isinstance(inner, AtNoise) and model.prediction == "eps":
        return f"a module of {call}"
    if isinstance(inner, AtNoise) and model.prediction == "x0":
        return f"a module of ({call} - {m}) / {s}"
    return f"a network of (data - {m}) / {s}, which has to be trained"


def _negated(network: nn.Module) -> nn.Module:
    return _outside(network, lambda t: t, sign=-1)


def _outside(network: nn.Module, time: TimeOf, sign: int = 1) -> AtTime:
    """Return the network called at another time, or of the other sign, its labels passed on."""
    own = network.labels if isinstance(network, Wrapped) else None
    labels = None if own is None else ClassLabels(own.count, own.null)
    return AtTime(network, time, labels, sign=sign)


def _misread(network: nn.Module, sde: LinearSDE, prediction: str) -> Iterator[Misread]:
    match network:
        case AtTimesteps():
            yield from _of_steps(network)
        case AtNoise():
            yield from _of_noise(network)
        case AtTime() if prediction == "flow":
            yield from _of_velocity(network)
        case AtTime():
            for name, words, time in _times_of(sde):
                if not torch.allclose(time(_PROBE), network.time(_PROBE).double()):
                    yield f"{name} for its time", f"time={words}", _called_at(network, time)
        case _:
            for name, words, time in _times_of(sde)[1:]:
                remedy = f'from_score(net, sde, {words}, prediction="{prediction}")'
                yield f"{name} for t", remedy, AtTime(network, time)


# --- a chain's index ---


def _of_steps(network: AtTimesteps) -> Iterator[Misread]:
    n = network.steps
    index = torch.arange(n, dtype=torch.float64)
    named = network.timesteps
    k = index if named is None else named
    text = f"torch.arange({n})" if named is None else "timesteps"
    step = _step(k)
    yield "index k + 1 for k", f"timesteps={text} + {step:g}", _of_names(network, k + step)
    yield "index k - 1 for k", f"timesteps={text} - {step:g}", _of_names(network, k - step)
    if step > 1:  # a map of a longer chain's steps
        yield "timesteps + 1", "timesteps=timesteps + 1", _of_names(network, k + 1)
        yield "timesteps - 1", "timesteps=timesteps - 1", _of_names(network, k - 1)
    remedy = f"timesteps=(torch.arange({n}) + 1) / {n}"
    yield "t for the index", remedy, _of_names(network, (index + 1) / n)
    if named is not None:
        yield "the index for its map", "no timesteps=", _of_names(network, None)
    elif n != _THOUSAND:
        remedy = f"timesteps=torch.arange({n}) * 1000 / {n}"
        yield "1000 k/N for the index", remedy, _of_names(network, index * _THOUSAND / n)
    turned = _outside(network, lambda t: 1 - t + 1 / n)
    last = float(k[0] + k[-1])
    yield "time from noise to data", f"a module of net(x, {last:g} - k)", turned


def _step(named: Tensor) -> float:
    """Return the distance of the timesteps where all have one, such as 1/N, and else 1."""
    steps = named.diff()
    if len(steps) == 0 or float(steps.max() - steps.min()) > _EVEN * float(steps.mean()):
        return 1.0
    return float(steps.mean())


def _of_names(network: AtTimesteps, timesteps: Tensor | None) -> AtTimesteps:
    return AtTimesteps(
        network.network, network.steps, network.labels, dtype=network.dtype, timesteps=timesteps
    )


# --- a velocity's time ---


def _of_velocity(network: AtTime) -> Iterator[Misread]:
    ends = network.time(torch.tensor([0.0, 1.0], dtype=torch.float64))
    scale = float((ends[1] - ends[0]).abs())
    end = 0 if network.sign == 1 else 1  # the other one for noise
    for factor in (1.0, *((1000.0, 999.0) if scale == 1 else (1 / scale,))):
        words = f"scale={scale * factor:g}"
        if factor != 1:
            yield f"{scale * factor:g} t for its time", words, _scaled(network, factor)
        words = f"noise_at={end}" + (f", {words}" if factor != 1 else "")
        name = "noise at the other end" if factor == 1 else f"other end, {scale * factor:g} t"
        yield name, words, _turned(network, factor)
    turned = _called_at(network, lambda t: network.time(1 - t))
    yield "time from noise to data", f"a module of net(x, {scale:g} - t)", turned


def _scaled(network: AtTime, factor: float) -> AtTime:
    return _called_at(network, lambda t: factor * network.time(t))


def _turned(network: AtTime, factor: float) -> AtTime:
    """Return a velocity of the other end: d/dt turns with the time."""
    turned = _called_at(network, lambda t: factor * network.time(1 - t))
    turned.sign = -network.sign
    return turned


def _called_at(network: AtTime, time: TimeOf) -> AtTime:
    return AtTime(network.network, time, network.labels, sign=network.sign)


# --- other times and levels ---


def _times_of(sde: LinearSDE) -> list[tuple[str, str, TimeOf]]:
    """Return what programs call their networks with: in words, as code, and the function."""
    return [
        ("t", "lambda t: t", lambda t: t),
        ("999 t", "lambda t: 999 * t", lambda t: 999 * t),
        ("1000 t", "lambda t: 1000 * t", lambda t: 1000 * t),
        ("the index 1000 t - 1", "lambda t: 1000 * t - 1", lambda t: 1000 * t - 1),
        ("sigma", "sde.sigma", sde.sigma),
        ("log sigma", "lambda t: sde.sigma(t).log()", lambda t: sde.sigma(t).log()),
        ("time from noise to data", "lambda t: 1 - t", lambda t: 1 - t),
    ]


def _of_noise(network: AtNoise) -> Iterator[Misread]:
    for name, words, level in (
        ("log sigma for sigma", "sigma.log()", torch.log),
        ("¼ log sigma for sigma", "sigma.log() / 4", lambda s: s.log() / 4),
    ):
        made = AtNoise(
            _Levelled(network.network, level),
            network.sde,
            network.labels,
            sigma_min=network.sigma_min,
        )
        yield name, f"a module of net(x, {words})", made


@final
class _Levelled(nn.Module):
    """A denoiser that is called with another number of the noise."""

    def __init__(self, network: nn.Module, level: TimeOf) -> None:
        super().__init__()
        self.network = network
        self.level = level

    def forward(self, x: Tensor, s: Tensor, *labels: Tensor, **words: Tensor) -> object:
        return self.network(x, self.level(s), *labels, **words)
