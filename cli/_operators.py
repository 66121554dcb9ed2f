"""Operators and likelihood scores by the names that `restore` takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sde_diffusion._check import wrong_value

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.inverse_problems import LikelihoodScore, Operator

OPERATORS: Final = (
    "inpaint:left, inpaint:top, inpaint:box, inpaint:SHARE, downsample:F, blur:STD, grey"
)
METHODS: Final = ("mmps", "dense-mmps", "pigdm", "tmpd", "dps", "diffpir")


def operator(text: str, event: Sequence[int]) -> Operator:
    """Return the operator of a name such as downsample:4, for samples of a shape.

    Errors: ValueError for another name, or one that samples of this shape do not have.
    """
    from sde_diffusion.inverse_problems import Blur, Downsample, Grey, Mask

    kind, _, detail = text.partition(":")
    images = len(event) == 3
    number = float(detail) if re.fullmatch(r"[0-9]*\.?[0-9]+", detail) else None
    if kind == "inpaint" and (detail == "box" or detail in _HALVES or number is not None):
        if number is not None:
            return Mask(_share(number, event))
        if len(event) >= 2:
            return Mask(_region(detail, event))
    whole = number is not None and number == int(number) > 0
    if kind == "downsample" and whole and images:
        factor = int(number or 1)
        if not event[1] % factor and not event[2] % factor:
            return Downsample(factor)
    if kind == "blur" and number and images:
        return Blur.gaussian(number)
    if text == "grey" and len(event) >= 2 and event[0] > 1:
        return Grey(event[0])
    raise wrong_value(
        "--operator",
        "operator",
        f"be one of {OPERATORS}, for samples of shape {tuple(event)}",
        text,
        "pass for example --operator inpaint:.5",
    )


_HALVES: Final = {"left": -1, "top": -2}  # the half that is hidden, and its axis


def _region(name: str, event: Sequence[int]) -> Tensor:
    """Return where a half, or all but the middle quarter of the area, is kept."""
    import torch

    kept = torch.ones(*event, dtype=torch.bool)
    if name in _HALVES:
        axis = _HALVES[name]
        kept.narrow(axis, 0, event[axis] // 2).fill_(False)
        return kept
    part = kept
    for axis in range(-min(len(event) - 1, 2), 0):
        size = event[axis]
        part = part.narrow(axis, size // 4, max(size // 2, 1))
    part.fill_(False)
    return kept


def _share(share: float, event: Sequence[int]) -> Tensor:
    """Return where a share of the pixels is kept, at random but always the same ones."""
    import torch

    if not 0 < share < 1:
        raise wrong_value(
            "--operator", "share", "lie between 0 and 1", share, "pass for example inpaint:.5"
        )
    pixels = tuple(event[1:]) if len(event) == 3 else tuple(event)
    count = math.prod(pixels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[order[: max(round(share * count), 1)]] = True
    return kept.reshape(pixels).expand(*event).clone()


def method(text: str) -> LikelihoodScore:
    """Return the likelihood score of a name such as mmps:3 or dps:.5.

    Errors: ValueError for another name or setting.
    """
    from sde_diffusion import inverse_problems as room

    made: Mapping[str, Callable[..., Any]] = {
        "mmps": lambda n="3": room.MMPS(int(n)),
        "dense-mmps": room.DenseMMPS,
        "pigdm": lambda d="1": room.PiGDM(float(d)),
        "tmpd": room.TMPD,
        "dps": lambda scale="1": room.DPS(float(scale)),
        "diffpir": lambda weight="1": room.DiffPIR(float(weight)),
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
