"""Autoencoders in checkpoints: their configuration, checked before one is built.

It is ``{class, network: {class, config}, data}`` of a "GaussianAutoencoder" and
``{class, event, latent, data}`` of a "LinearAutoencoder". A `LatentModel` is one file: the
configuration of its score with the class "LatentModel", that of the score as ``score`` and that of
the autoencoder as ``autoencoder``; its tensors are ``score.NAME`` and ``autoencoder.NAME``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from torch import Tensor

from sde_diffusion._check import one_of, wrong_type, wrong_value
from sde_diffusion.checkpoints.configuration import (
    OwnClassError,
    Shapes,
    check_data,
    check_integer,
    check_network,
    network_of,
)
from sde_diffusion.checkpoints.fingerprint import network_settings
from sde_diffusion.checkpoints.reading import fill, parts_of, values
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.latents.autoencoder import Autoencoder
from sde_diffusion.latents.convolutional import ConvolutionalAutoencoder
from sde_diffusion.latents.encoder_decoder import EncoderDecoder, GaussianAutoencoder
from sde_diffusion.latents.linear import LinearAutoencoder

SCORE: Final = "score."
AUTOENCODER: Final = "autoencoder."
NAMES: Final = (GaussianAutoencoder.__name__, LinearAutoencoder.__name__)
_NETWORKS: Final = {ConvolutionalAutoencoder.__name__: ConvolutionalAutoencoder}
_WHAT: Final = "configuration"
_REMEDY: Final = "save the model again with save_model"
_MOST_ELEMENTS: Final = 2**24


def encode_autoencoder(autoencoder: Autoencoder) -> dict[str, Any]:
    """Return the configuration from which `autoencoder_of` rebuilds it, without the weights.

    Errors: TypeError for an autoencoder of another class.
    """
    data = None if autoencoder.data is None else autoencoder.data.to_json()
    if isinstance(autoencoder, LinearAutoencoder):
        shapes = {"event": list(autoencoder.event), "latent": list(autoencoder.latent)}
        return {"class": NAMES[1], **shapes, "data": data}
    if not isinstance(autoencoder, GaussianAutoencoder):
        rule = "be a GaussianAutoencoder or a LinearAutoencoder"
        remedy = "make it of an EncoderDecoder: GaussianAutoencoder(network)"
        got = type(autoencoder).__name__
        raise wrong_type("save_model", "autoencoder", rule, got, remedy)
    network = autoencoder.network
    kind = type(network)
    if isinstance(network, ConvolutionalAutoencoder):
        described = {"class": kind.__name__, "config": network.config}
    else:
        own = f"{kind.__module__}.{kind.__qualname__}"
        described = {"class": own, "settings": network_settings(network)}
    return {"class": NAMES[0], "network": described, "data": data}


def tensors_of(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Return its weights by name."""
    if isinstance(autoencoder, GaussianAutoencoder):
        return autoencoder.network.state_dict()
    return autoencoder.state_dict()


def check_autoencoder(found: object, shapes: Shapes) -> None:
    """Refuse a configuration from which no autoencoder can be built, before anything is.

    Arguments:
        found: the configuration.
        shapes: those of its tensors in the file, by name.

    Errors: TypeError or ValueError that names the first entry that is wrong.
    """
    if not isinstance(found, dict):
        raise wrong_type(_WHAT, "autoencoder", "be an object with a class", found, _REMEDY)
    one_of(_WHAT, "autoencoder.class", found.get("class"), NAMES)
    if found.get("data") is not None:
        check_data(found["data"])
    if found["class"] == NAMES[0]:
        check_network(found.get("network"), shapes, _NETWORKS)
        return
    d = shapes.get("matrix", (0,))[0]
    for name in ("event", "latent"):
        sizes = found.get(name)
        if not isinstance(sizes, list):
            raise wrong_type(_WHAT, name, "be a list of integers", sizes, _REMEDY)
        for size in sizes:
            check_integer(name, size, _MOST_ELEMENTS)
        if math.prod(sizes) != d:
            raise wrong_value(_WHAT, name, f"have the {d} elements of the matrix", sizes, _REMEDY)
    if dict(shapes) != {"matrix": (d, d), "offset": (d,)}:
        rule = f"be those of a matrix ({d}, {d}) and an offset ({d},)"
        raise wrong_value(_WHAT, "the tensors", rule, dict(shapes), _REMEDY)


def autoencoder_of(
    found: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: Path,
    prefix: str = "",
    network: EncoderDecoder | None = None,
) -> Autoencoder:
    """Return the autoencoder of a configuration that `check_autoencoder` has seen.

    Arguments:
        found: the configuration.
        tensors: of the file, without values.
        path: the file.
        prefix: of the names of its tensors there.
        network: one of a class of your own, which is not rebuilt from the file.

    Errors: `OwnClassError` where such a network is not passed; those of `fill`.
    """
    spec = None if found["data"] is None else DataSpec.from_json(found["data"])
    if found["class"] == NAMES[1]:
        parts = parts_of(values(path), prefix)
        return LinearAutoencoder(
            parts["matrix"],
            parts["offset"],
            event=tuple(found["event"]),
            latent=tuple(found["latent"]),
            data=spec,
        ).eval()
    if network is None:
        try:
            network = cast("EncoderDecoder", network_of(found["network"], _NETWORKS))
        except OwnClassError as error:
            raise OwnClassError("autoencoder", error.args[1]) from None
    fill(network, tensors, path, prefix)
    return GaussianAutoencoder(network, spec).eval()
