"""Autoencoders, and scores of their latents, as `sde-diffusion train` makes and watches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sde_diffusion._check import wrong_value

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.data.dataset import Dataset
    from sde_diffusion.latents.encoder_decoder import GaussianAutoencoder
    from sde_diffusion.latents.latent_model import LatentModel
    from sde_diffusion.models.score import ScoreModel
    from sde_diffusion.objectives.autoencoding import AutoencoderBound

_SEEN: Final = 4096  # samples whose latents tell the scale of all
# Options of a score, which an autoencoder has no use for.
_OF_SCORES: Final = ("conditional", "variance", "latents", "dropout")


def check_latent_options(options: Mapping[str, Any]) -> None:
    """Refuse options that do not go with --autoencoder, or without it."""
    if options["kl_weight"] is not None and not options["autoencoder"]:
        got = options["kl_weight"]
        raise wrong_value(
            "--kl-weight", "kl_weight", "go with --autoencoder", got, "add --autoencoder"
        )
    if not options["autoencoder"]:
        return
    for name in _OF_SCORES:
        if options[name]:
            flag = f"--{name.replace('_', '-')}"
            rule = "be left out with --autoencoder"
            raise wrong_value(flag, name, rule, options[name], f"drop {flag}")
    if options["patience"]:
        rule = "be 0 with --autoencoder, which has no held-out bound"
        raise wrong_value("--patience", "patience", rule, options["patience"], "drop --patience")


def autoencoder_for(options: Mapping[str, Any], dataset: Dataset) -> GaussianAutoencoder:
    """Return a fresh autoencoder for the data."""
    from sde_diffusion.cli._network import check_arguments
    from sde_diffusion.latents.convolutional import ConvolutionalAutoencoder
    from sde_diffusion.latents.encoder_decoder import GaussianAutoencoder
    from sde_diffusion.sde import VPSDE
    from sde_diffusion.training.scale import scaled

    seen = scaled(dataset, options["scale"], VPSDE())
    others = dict(options["network"])
    settings = {"seed": options["seed"]}
    if options["width"] is not None:
        settings["width"] = options["width"]
    check_arguments(ConvolutionalAutoencoder, settings, others)
    network = ConvolutionalAutoencoder(tuple(seen.spec.shape), **settings | others)
    return GaussianAutoencoder(network, seen.spec)


def objective_for(options: Mapping[str, Any]) -> AutoencoderBound | None:
    """Return the bound of an autoencoder, None for what the settings name."""
    from sde_diffusion.objectives.autoencoding import AutoencoderBound

    weight = options["kl_weight"]
    if not options["autoencoder"]:
        return None
    return AutoencoderBound() if weight is None else AutoencoderBound(weight)


def latent_model_for(
    options: Mapping[str, Any],
    dataset: Dataset,
    score_for: Callable[[Dataset], ScoreModel],
) -> LatentModel:
    """Return a fresh score of the latents of the data, with the autoencoder of --latents.

    Arguments:
        options: of the command.
        dataset: the data.
        score_for: makes the score of latents.
    """
    from sde_diffusion.checkpoints.checkpoint import load_autoencoder
    from sde_diffusion.data.checks import scaled_for
    from sde_diffusion.latents.latent_model import LatentModel

    autoencoder = load_autoencoder(options["latents"])
    rows = slice(_SEEN)
    few = replace(
        scaled_for(autoencoder.data, dataset),
        values=dataset.values[rows],
        labels=None if dataset.labels is None else dataset.labels[rows],
    )
    latents = autoencoder.latents(few)
    return LatentModel(autoencoder, score_for(latents))


def load_run(folder: Path, options: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return what a run has trained so far."""
    from sde_diffusion.checkpoints.checkpoint import load, load_autoencoder

    return load_autoencoder(folder) if options["autoencoder"] else load(folder)


def reconstructed(held_out: Dataset) -> Callable[[Any], Tensor]:
    """Return what draws, for a monitor, samples beside what an autoencoder makes of them."""
    import torch

    x = held_out.centred()[:32]

    def draw(trained: GaussianAutoencoder) -> Tensor:
        with torch.no_grad():
            there = x.to(trained.device)
            pairs = torch.stack([there, trained.decode(trained.encode(there))], 1)
        return pairs.flatten(0, 1).cpu()

    return draw


def in_latents(
    model: Any,  # noqa: ANN401  (whatever is trained)
    held_out: Dataset,
) -> Dataset:
    """Return held-out data as the score sees them: their latents, of a latent model."""
    from sde_diffusion.data.checks import scaled_for
    from sde_diffusion.latents.latent_model import LatentModel

    if not isinstance(model, LatentModel):
        return held_out
    return model.latents(scaled_for(model.autoencoder.data, held_out))
