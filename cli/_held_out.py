"""Data for a model that knows its own: read as it takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_diffusion._check import wrong_value
from sde_diffusion.cli import _common, menu

if TYPE_CHECKING:
    from sde_diffusion.data.dataset import Dataset


def read_for(name: str, model: Any, reading: Mapping[str, Any]) -> Dataset:  # noqa: ANN401
    """Return data of the shape and levels of the model's samples, and say what was made of them.

    Where no number of levels is told, it is the model's: that of a file is a guess.

    Arguments:
        name: digits, or a path.
        model: the score model.
        reading: how files are read; split None for the part that is held out.

    Errors: ValueError for data of another shape, whose likelihood would mean nothing.
    """
    from sde_diffusion.data.dataset import held_out_split, load_data
    from sde_diffusion.data.readers import kind_of
    from sde_diffusion.parallel.ranks import place

    event = menu.sample_shape(model)
    known = menu.observed(model)
    how = {**reading, "split": reading["split"] or held_out_split(name)}
    if how.get("length") is None and len(event) == 2 and kind_of(Path(name)) == "sounds":
        how["length"] = event[1]
    dataset = load_data(name, mode=_common.mode_of(event), **how)
    if how.get("levels") is None and known is not None and known.levels and name != "digits":
        dataset = _in_levels(dataset, known.levels)
    if place()[0] == 0:
        _common.tell(dataset.notes)
    if dataset.spec.shape != event:
        raise wrong_value(
            "--data",
            "data",
            f"have samples of the model's shape {event}",
            dataset.spec.shape,
            "name the data it was trained on, or a model of these",
        )
    return dataset


def _in_levels(dataset: Dataset, levels: int) -> Dataset:
    """Return whole numbers below ``levels`` as such levels, and anything else as it is."""
    from sde_diffusion.data.spec import DataSpec

    values = dataset.values
    if dataset.spec.levels is None and bool((values != values.round()).any()):
        return dataset
    if bool((values < 0).any()) or int(values.max()) >= levels:
        return dataset
    spec = DataSpec(dataset.spec.name, dataset.spec.shape, levels, rate=dataset.spec.rate)
    return replace(dataset, spec=spec, values=values.to(spec.storage))


def scaled_like(model: Any, dataset: Dataset) -> Dataset:  # noqa: ANN401
    """Return the data in the model's scaling.

    Errors: ValueError for data of other levels, or on another scale than the prior covers.
    """
    from sde_diffusion.data.checks import scaled_for
    from sde_diffusion.latents.latent_model import LatentModel
    from sde_diffusion.priors import check_units

    found = scaled_for(menu.observed(model), dataset)
    if not isinstance(model, LatentModel):  # whose prior is to cover the latents
        check_units("--data", "data", model.sde, found)
    return found


def data_of_model(name: str, model: Any, reading: Mapping[str, Any]) -> Dataset:  # noqa: ANN401
    """Return data as `read_for` does, in the model's scaling.

    Arguments:
        name: digits, or a path.
        model: the score model.
        reading: how files are read.
    """
    return scaled_like(model, read_for(name, model, reading))
