"""Data for a model that knows its own: read as it takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sde_diffusion._check import wrong_value
from sde_diffusion.cli import _common, menu

if TYPE_CHECKING:
    from sde_diffusion.data.dataset import Dataset


def data_of_model(name: str, model: Any, reading: Mapping[str, Any]) -> Dataset:  # noqa: ANN401
    """Return the held-out part of the data, with the model's number of levels and its scaling.

    Arguments:
        name: digits, or a path.
        model: the score model.
        reading: the options that say how files are read; split None for the held-out part.
    """
    from sde_diffusion.data.checks import scaled_for
    from sde_diffusion.data.dataset import held_out_split, load_data
    from sde_diffusion.priors import check_units

    event = menu.event_shape(model)
    how = {**reading, "split": reading["split"] or held_out_split(name)}
    dataset = load_data(name, mode=_common.mode_of(event), **how)
    _common.tell(dataset.notes)
    if dataset.spec.shape != event:
        raise wrong_value(
            "--data",
            "data",
            f"have the shape {event} of the model's",
            dataset.spec.shape,
            "pass the data it was trained on",
        )
    known = model.data
    # The levels that a file was read with are a guess.
    guessed = known is not None and known.levels and dataset.spec.levels and name != "digits"
    if guessed:
        dataset = replace(dataset, spec=replace(dataset.spec, levels=known.levels))
    found = scaled_for(known, dataset)
    check_units("--data", "data", model.sde, found)
    return found
