"""Operators and likelihood scores by the names that `restore` takes."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sde_diffusion._check import wrong_value

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.inverse_problems import (
        LikelihoodScore,
        Measurement,
        MeasurementNoise,
        Operator,
        PosteriorSamples,
    )
    from sde_diffusion.scores import ScoreLike

# The part that is hidden -> the axis of it and whether it is the first half.
_HALVES: Final = {
    "left": (-1, True),
    "right": (-1, False),
    "top": (-2, True),
    "bottom": (-2, False),
}
OPERATORS: Final = "inpaint:left, right, top, bottom, box or SHARE, downsample:F, blur:STD, grey"
METHODS: Final = (
    "mmps",
    "dense-mmps",
    "pigdm",
    "tmpd",
    "dps",
    "diffpir",
    "plug-in",
    "repaint",
)
NOISES: Final = "a standard deviation, laplace:SCALE or poisson:PEAK"
_ANY_NOISE: Final = "plug-in"
_KINDS: Final = ("inpaint", "downsample", "blur", "grey")
_EXAMPLE: Final = "pass for example --operator inpaint:.5"


def operator(text: str, event: Sequence[int]) -> Operator:
    """Return the operator of a name such as downsample:4, for samples of a shape.

    Errors: ValueError for another name, for a setting that it does not take, or for an operator
    that samples of this shape do not have.
    """
    kind, _, detail = text.partition(":")
    made = {"inpaint": _mask, "downsample": _downsample, "blur": _blur, "grey": _grey}
    if kind not in made:
        close = difflib.get_close_matches(kind, _KINDS, n=1)
        remedy = f"did you mean {close[0]}?" if close else _EXAMPLE
        raise wrong_value("--operator", "operator", f"be one of {OPERATORS}", text, remedy)
    return made[kind](detail, tuple(event))


def _mask(detail: str, event: tuple[int, ...]) -> Operator:
    from sde_diffusion.inverse_problems import Mask

    share = _number(detail)
    if share is not None:
        return Mask(_share(share, event))
    if detail not in (*_HALVES, "box"):
        rule = f"be {', '.join(_HALVES)}, box or the share of the pixels that is kept"
        raise wrong_value("--operator", "inpaint", rule, detail or "nothing", _EXAMPLE)
    if len(event) < 2:
        rule = "be a share for samples that are no images"
        raise wrong_value("--operator", "inpaint", rule, detail, _EXAMPLE)
    return Mask(_region(detail, event))


def _downsample(detail: str, event: tuple[int, ...]) -> Operator:
    from sde_diffusion.inverse_problems import Downsample

    _check_images("downsample", event)
    height, width = event[1:]
    known = [f for f in range(2, min(height, width) + 1) if not height % f and not width % f]
    factor = _number(detail)
    if factor not in known:
        some = ", ".join(map(str, known)) or "left out: it has none"
        rule = f"be a factor of both sides {height} × {width}: {some}"
        remedy = f"pass --operator downsample:{known[0]}" if known else _EXAMPLE
        raise wrong_value("--operator", "downsample", rule, detail or "nothing", remedy)
    return Downsample(int(factor))


def _blur(detail: str, event: tuple[int, ...]) -> Operator:
    from sde_diffusion.inverse_problems import Blur

    _check_images("blur", event)
    std = _number(detail)
    if not std:
        rule = "be a standard deviation in pixels, above 0"
        remedy = "pass for example --operator blur:1.5"
        raise wrong_value("--operator", "blur", rule, detail or "nothing", remedy)
    return Blur.gaussian(std)


def _grey(detail: str, event: tuple[int, ...]) -> Operator:
    from sde_diffusion.inverse_problems import Grey

    _check_images("grey", event)
    if detail or event[0] == 1:
        rule = "have nothing behind it, and images of several channels"
        got = f"{detail or 'grey'} for samples of shape {event}"
        raise wrong_value("--operator", "grey", rule, got, _EXAMPLE)
    return Grey(event[0])


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", text) else None


def _check_images(kind: str, event: tuple[int, ...]) -> None:
    if len(event) != 3:
        rule = "go with images (C, H, W)"
        raise wrong_value("--operator", kind, rule, f"samples of shape {event}", _EXAMPLE)


def _region(name: str, event: tuple[int, ...]) -> Tensor:
    """Return where a half, or all but the middle quarter of the area, is kept."""
    import torch

    kept = torch.ones(*event, dtype=torch.bool)
    if name in _HALVES:
        axis, first = _HALVES[name]
        half = event[axis] // 2
        kept.narrow(axis, 0 if first else event[axis] - half, half).fill_(False)
        return kept
    part = kept
    for axis in range(-min(len(event) - 1, 2), 0):
        size = event[axis]
        part = part.narrow(axis, size // 4, max(size // 2, 1))
    part.fill_(False)
    return kept


def _share(share: float, event: tuple[int, ...]) -> Tensor:
    """Return where a share of the pixels is kept, at random but always the same ones."""
    import torch

    if not 0 < share < 1:
        rule = "be a share between 0 and 1"
        raise wrong_value("--operator", "inpaint", rule, share, _EXAMPLE)
    pixels = event[1:] if len(event) == 3 else event
    count = math.prod(pixels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[order[: max(round(share * count), 1)]] = True
    return kept.reshape(pixels).expand(*event).clone()


def noise(text: str, method: str) -> MeasurementNoise:
    """Return the noise of a name such as .05, laplace:.1 or poisson:30.

    Errors: ValueError for another name or setting, or for noise that is not Gaussian with a
    method by closed forms.
    """
    from sde_diffusion import inverse_problems as room

    kinds: Mapping[str, Callable[[float], MeasurementNoise]] = {
        "gaussian": room.GaussianNoise,
        "laplace": room.LaplaceNoise,
        "poisson": room.PoissonNoise,
    }
    kind, _, setting = text.partition(":") if ":" in text else ("gaussian", "", text)
    size = _number(setting)
    if kind not in kinds or not size:
        remedy = "pass for example --noise .05"
        raise wrong_value("--noise", "noise", f"be {NOISES}, above 0", text, remedy)
    if kind != "gaussian" and method != _ANY_NOISE:
        rule = f"be Gaussian for --method {method}"
        remedy = f"pass --method {_ANY_NOISE}, and --weighted for its weights"
        raise wrong_value("--noise", "noise", rule, text, remedy)
    return kinds[kind](size)


def sampler(text: str, made: Operator, *, weighted: bool) -> Callable[..., PosteriorSamples]:
    """Return what draws by the method of a name such as mmps:3, dps:.5 or repaint:20.

    It is called with the model, the measurement, the shape of a sample and the number of draws,
    and with steps=, seed= and first=.

    Arguments:
        text: the name, with its setting.
        made: the operator that it goes with.
        weighted: whether draws are weighed and resampled.

    Errors: ValueError for another name or setting, or one that does not go with the others.
    """
    from sde_diffusion import inverse_problems as room

    name, _, setting = text.partition(":")
    if name != "repaint":
        likelihood = _likelihood_score(text)
        below = 0.5 if weighted else 0.0

        def draw(
            model: ScoreLike,
            measurement: Measurement,
            event: Sequence[int],
            *,
            draws: int,
            **settings: Any,  # noqa: ANN401  (steps, seed and first)
        ) -> PosteriorSamples:
            asked = {"particles": draws, "resample_below": below, **settings}
            return room.sample_posterior(model, measurement, event, likelihood, **asked)

        return draw
    if weighted:
        rule = "go without --weighted: its draws have no weights"
        raise wrong_value("--method", "method", rule, text, "drop --weighted")
    if not isinstance(made, room.Mask):
        rule = "go with --operator inpaint:…, whose pixels can be replaced"
        remedy = "pass for example --method mmps"
        raise wrong_value("--method", "method", rule, text, remedy)
    resamplings = _resamplings(setting, text)
    return partial(room.repaint, resamplings=resamplings)


def _resamplings(setting: str, text: str) -> int:
    if not setting:
        return 10
    if not re.fullmatch("[0-9]{1,4}", setting) or int(setting) < 1:
        raise _unknown(text)
    return int(setting)


def _likelihood_score(text: str) -> LikelihoodScore:
    """Return the likelihood score of a name such as mmps:3 or dps:.5."""
    from sde_diffusion import inverse_problems as room

    made: Mapping[str, Callable[..., Any]] = {
        "mmps": lambda n="3": room.MMPS(int(n)),
        "dense-mmps": room.DenseMMPS,
        "pigdm": lambda d="1": room.PiGDM(float(d)),
        "tmpd": room.TMPD,
        "dps": lambda scale="1": room.DPS(float(scale)),
        "diffpir": lambda weight="1": room.DiffPIR(float(weight)),
        "plug-in": room.PlugIn,
    }
    name, _, setting = text.partition(":")
    if name in made:
        try:
            found: LikelihoodScore = made[name](*([setting] if setting else []))
        except (TypeError, ValueError) as error:
            raise _unknown(text) from error
        return found
    raise _unknown(text)


def _unknown(text: str) -> ValueError:
    return wrong_value(
        "--method",
        "method",
        f"be one of {', '.join(METHODS)}, some with a setting as in mmps:3 or dps:.5",
        text,
        "pass for example --method mmps",
    )
