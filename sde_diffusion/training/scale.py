"""The scale of real data in training: measured, given as a range, or left as it is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from sde_diffusion._check import wrong_value
from sde_diffusion.data.checks import scaled_for
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.scaling import Affine
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.objectives.base import Trained
from sde_diffusion.priors import check_prior, meets_prior
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.training.config import range_of

_UNCHANGED: Final = ("auto", "none")
_ALIKE: Final = 1e-6  # of one data set, measured on two machines


def scaled(dataset: Dataset, scale: str, sde: SDE) -> Dataset:
    """Return the data in the scaling that ``scale`` names, which the SDE's prior must cover.

    Real data y become x = (y − mean)/std by "standardize", x = 2 (y − A)/(B − A) − 1 by "A:B", one
    scaling for all dimensions; "none" leaves them as they are, and so does "auto" where the prior
    covers them: others it standardizes. Levels, and data whose scaling was chosen by hand, stay.

    Arguments:
        dataset: the data.
        scale: "auto", "standardize", "A:B" or "none".
        sde: the model's.

    Errors: ValueError for data that do not meet the prior (`prior_mismatch`), that do not vary, or
    that have a scaling already.

    >>> import torch
    >>> from sde_diffusion import DataSpec, VPSDE
    >>> y = torch.tensor([[190.0], [210.0]])
    >>> scaled(Dataset(DataSpec("y", (1,), None), y, None), "auto", VPSDE()).centred().tolist()
    [[-1.0], [1.0]]
    """
    spec = dataset.spec
    own = spec.levels is not None or not spec.is_natural
    if own and scale not in _UNCHANGED:
        rule = "be left out for data that have a scaling"
        raise wrong_value("train", "scale", rule, f"{scale!r} for {spec.scaling}", "leave it out")
    left = own or scale == "none" or (scale == "auto" and meets_prior(sde, dataset))
    found = dataset if left else _with(dataset, _affine(dataset, scale))
    check_prior("train", "dataset", sde, found, _remedy(spec, scale))
    return found


def data_for(model: Trained, dataset: Dataset, scale: str) -> Dataset:
    """Return the data as the model is to see them: in its own scaling, where it has one.

    Errors: those of `scaled`; ValueError for data of another shape, levels or scaling than the
    model's.
    """
    # Data that the prior of VP covers have the scale that an autoencoder takes too.
    sde = model.sde if isinstance(model, LearnedScore) else VPSDE()
    if model.data is None:
        return scaled(dataset, scale, sde)
    found = scaled_for(model.data, dataset)
    if scale not in _UNCHANGED and not _alike(scaled(dataset, scale, sde).spec, found.spec):
        rule = f"give the model's scaling {model.data.scaling}"
        remedy = "leave it out, to take the model's"
        raise wrong_value("train", "scale", rule, repr(scale), remedy)
    remedy = "train a new model, with scale='standardize', --scale standardize"
    check_prior("train", "dataset", sde, found, remedy)
    return found


def spread(dataset: Dataset) -> float:
    """Return the standard deviation of all numbers of the scaled data, such as sigma_data."""
    return _pooled(dataset)[1]


def _remedy(spec: DataSpec, scale: str) -> str:
    """Return what to do about data that the prior does not cover."""
    if spec.levels is not None:
        return "train with more noise at the end, as of EDMSDE(), --sde edm"
    if not spec.is_natural:
        return "leave out their scaling and pass scale='standardize'"
    if scale not in ("auto", "standardize"):
        return "pass scale='standardize', --scale standardize"
    return "subtract from every dimension its mean and divide it by its standard deviation"


def _affine(dataset: Dataset, scale: str) -> Affine:
    if scale not in ("auto", "standardize"):
        a, b = range_of(scale)
        return Affine(-1 - 2 * a / (b - a), -1 + 2 * (1 - a) / (b - a))
    mean, std = _pooled(dataset)
    if not std > 0:
        remedy = "check the source of the data"
        raise wrong_value("train", "dataset", "vary", f"{mean:g} everywhere", remedy)
    return Affine(-mean / std, (1 - mean) / std)


def _pooled(dataset: Dataset) -> tuple[float, float]:
    """Return the mean and the standard deviation of all numbers, whatever their dimension."""
    mean, std = dataset.moments()
    return float(mean.mean()), math.sqrt(float((std**2).mean() + mean.var(correction=0)))


def _with(dataset: Dataset, scaling: Affine) -> Dataset:
    return replace(dataset, spec=replace(dataset.spec, scaling=scaling))


def _alike(one: DataSpec, other: DataSpec) -> bool:
    """Return whether both are affine scalings of real data that agree but for rounding."""
    if not isinstance(one.scaling, Affine) or not isinstance(other.scaling, Affine):
        return False
    near = _ALIKE * abs(other.scaling.high - other.scaling.low)
    near = max(near, _ALIKE * abs(other.scaling.low))
    return (
        abs(one.scaling.low - other.scaling.low) <= near
        and abs(one.scaling.high - other.scaling.high) <= near
    )
