"""Refusals of data that do not fit a model or a likelihood."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion._tensors import check_state

if TYPE_CHECKING:
    from sde_diffusion.data.dataset import Dataset
    from sde_diffusion.data.spec import DataSpec

_ON_A_LEVEL: Final = 1e-3
_FEWEST: Final = 4  # so many values lie on levels by chance once in 10⁸ times


def check_dequantized(what: str, x: Tensor, spec: DataSpec) -> None:
    """Refuse x that is not the scaled data of ``spec``, or that is not dequantized.

    The density of integers that are not dequantized is unbounded. A row counts as such where all
    its values are edges or centres of bins, or k of the scaling that takes L − 1 to the end; rows
    of less than 8 dimensions only where all of the batch are, as a few may be so by chance.

    Errors: ValueError for another shape, values that are not finite or outside the range of the
    scaling, and rows that are not dequantized.
    """
    check_state(what, x)
    if tuple(x.shape[1:]) != spec.shape:
        raise wrong_value(
            what, "x", f"have the data's shape {spec.shape}", tuple(x.shape[1:]), "reshape it"
        )
    span = f"{float(x.min()):.4g} … {float(x.max()):.4g}"
    if not bool(torch.isfinite(x).all()):
        raise wrong_value(what, "x", "be finite", span, "remove the rows that are not")
    if spec.levels is None:
        return
    scaling = spec.scaling
    levels = spec.levels
    low, high = scaling.forward(torch.tensor([0.0, 1.0])).tolist()
    if not low - scaling.rounding <= float(x.min()) <= float(x.max()) <= high + scaling.rounding:
        raise wrong_value(
            what,
            "x",
            f"lie in [{_short(low)}, {_short(high)}], as levels are scaled",
            span,
            "scale it with dataset.spec.encode",
        )
    near = max(_ON_A_LEVEL, scaling.rounding * scaling.slope(levels))
    y = scaling.inverse(x, levels)
    # Twice y, so that edges and centres are integers.
    for place in (2 * y, y * (levels - 1) / levels):
        rows = ((place - place.round()).abs() < near).flatten(1).all(1)
        few = x[0].numel() < 8
        if bool(rows.all()) and x.numel() >= _FEWEST if few else bool(rows.any()):
            raise wrong_value(
                what,
                "x",
                "be dequantized",
                f"values on the {levels} levels only",
                "add uniform noise: dataset.dequantized(generator)",
            )


def check_levels(what: str, model_spec: DataSpec | None, levels: int | None) -> None:
    """Refuse grey levels for a model whose states are real numbers, such as latents.

    Errors: ValueError.
    """
    if levels is not None and model_spec is not None and model_spec.levels is None:
        rule = f"be left out for {model_spec.name}, which are real numbers"
        remedy = "drop it; of a LatentModel call latent_log_prob(x, model, log_p, levels=256)"
        raise wrong_value(what, "levels", rule, levels, remedy)


def check_fits(model_spec: DataSpec | None, spec: DataSpec) -> None:
    """Refuse data of another shape, levels, scaling or rate than the model was trained on.

    Its likelihood would mean nothing. Any data fit a model whose data are not known.

    Errors: ValueError.
    """
    if model_spec is None:
        return
    remedy = "name the data it was trained on"
    if spec.shape != model_spec.shape:
        raise wrong_value(
            "data", "samples", f"have the model's shape {model_spec.shape}", spec.shape, remedy
        )
    if spec.levels != model_spec.levels:
        known = model_spec.levels
        remedy = f"pass --levels {known}" if known else "use data of real numbers"
        if spec.levels is None:
            remedy = f"save whole numbers from 0 to {(known or 1) - 1}"
        raise wrong_value(
            "data",
            "samples",
            f"have the model's {known or 'no'} grey levels",
            spec.levels or "real numbers",
            remedy,
        )
    if None not in (spec.rate, model_spec.rate) and spec.rate != model_spec.rate:
        known = model_spec.rate
        raise wrong_value(
            "data",
            "samples",
            f"have the model's rate, {known} a second",
            spec.rate,
            f"convert them with ffmpeg -i IN.wav -ar {known} OUT.wav",
        )
    if spec.scaling != model_spec.scaling:
        raise wrong_value(
            "data",
            "samples",
            f"have the model's scaling {model_spec.scaling}",
            spec.scaling,
            "scale them as for training",
        )


def scaled_for(model_spec: DataSpec | None, dataset: Dataset) -> Dataset:
    """Return the data in the scaling of those that a model was trained on.

    Data whose scaling was chosen by hand stay as they are, and are refused where it is another.

    Errors: those of `check_fits`.
    """
    if model_spec is None:
        return dataset
    spec = dataset.spec
    if spec.levels == model_spec.levels and spec.is_natural:
        spec = replace(spec, scaling=model_spec.scaling)
    check_fits(model_spec, spec)
    return replace(dataset, spec=spec)


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")
