"""The AutoencoderKL of diffusers as an autoencoder, from memory and from the folders it saves.

Their latents are z = (h − shift_factor) scaling_factor of the network's own h. A folder is data:
its weights are safetensors, nothing is unpickled and nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import (
    Reason,
    check_shape,
    kind_of,
    positive_number,
    wrong_type,
    wrong_value,
)
from sde_diffusion._files import json_object
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.foreign.diffusers_sizes import TooLargeError, check_size
from sde_diffusion.foreign.installed import program
from sde_diffusion.latents.encoder_decoder import EncoderDecoder, GaussianAutoencoder

_NAME: Final = "AutoencoderKL"
_PART: Final = "vae"  # what a pipeline calls it
_WHAT: Final = "autoencoder_from_diffusers"
_REMEDY: Final = "save it with AutoencoderKL.save_pretrained(folder)"


@final
class FromAutoencoderKL(EncoderDecoder):
    """The network of an AutoencoderKL, with the constant deviation ``spread`` of the decoder.

    Arguments:
        network: the AutoencoderKL.
        event: the shape of a sample, (C, H, W).
        spread: σ of p(x|z), which its configuration does not tell.
    """

    def __init__(self, network: Any, event: tuple[int, ...], spread: float) -> None:  # noqa: ANN401
        config = network.config
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        for size in event[1:]:
            if size % factor:
                rule = f"have a height and width of multiples of {factor}"
                raise wrong_value(_WHAT, "event", rule, event, "resize the pictures")
        super().__init__(event, (config["latent_channels"], *(n // factor for n in event[1:])))
        self.network = network
        self.spread = spread
        # z = (h − shift_factor) scaling_factor = (h − shift)/scale
        self.shift.fill_(config.get("shift_factor") or 0.0)
        self.scale.fill_(1 / config["scaling_factor"])
        self.train(network.training)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network.encode(x).latent_dist
        return found.mean, found.std

    def reconstruction(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean: Tensor = self.network.decode(h).sample
        return mean, mean.new_tensor(self.spread)


def autoencoder_from_diffusers(
    network: nn.Module,
    *,
    event: tuple[int, ...] | None = None,
    spread: float = 1.0,
    data: DataSpec | None = None,
) -> GaussianAutoencoder:
    """Return an AutoencoderKL of diffusers as an autoencoder, in eval mode as it is handed in.

    Arguments:
        network: the AutoencoderKL; scaling_factor and shift_factor are read from its config.
        event: the shape of a sample; that of ``data``, or (in_channels, sample_size, sample_size)
            of its config, if not given.
        spread: σ of p(x|z), which its configuration does not tell.
        data: what the samples are; real numbers if not given.

    Errors: ValueError without diffusers, and for settings under which the latents mean something
    else; TypeError for an object of another class.
    """
    kind = program("diffusers", "diffusers").AutoencoderKL
    if not isinstance(network, kind):
        rule = f"be an {_NAME} of diffusers"
        remedy = "make it of an EncoderDecoder: GaussianAutoencoder(network)"
        raise wrong_type(_WHAT, "network", rule, kind_of(network), remedy)
    positive_number(_WHAT, "spread", spread)
    config: Any = network.config
    for name in ("latents_mean", "latents_std"):
        if config.get(name) is not None:
            rule = "be None, as scaling_factor is the scale"
            remedy = "make it of an EncoderDecoder: GaussianAutoencoder(network)"
            raise wrong_value(_WHAT, name, rule, config[name], remedy)
    if event is None:
        size = config["sample_size"]
        sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        event = (config["in_channels"], *sides) if data is None else data.shape
    check_shape(_WHAT, event)
    if len(event) != 3 or event[0] != config["in_channels"]:
        rule = f"be a shape (C, H, W) with its {config['in_channels']} channels"
        remedy = f"pass event=({config['in_channels']}, 64, 64)"
        raise wrong_value(_WHAT, "event", rule, event, remedy)
    made = GaussianAutoencoder(FromAutoencoderKL(network, tuple(event), spread), data)
    return made.train(network.training)


def load_diffusers_autoencoder(folder: str | Path) -> GaussianAutoencoder:
    """Return the autoencoder of a folder of an AutoencoderKL, or of a pipeline with one.

    Errors: FileNotFoundError for a folder that is not there or holds none; ValueError without
    diffusers, and for a folder of another class or one that is damaged.
    """
    folder = Path(folder)
    part = folder / _PART if (folder / "model_index.json").is_file() else folder
    path = part / "config.json"
    if not path.is_file():
        rule = f"hold an {_NAME} of diffusers, or a pipeline with one in {_PART}"
        raise FileNotFoundError(
            str(wrong_value("load_autoencoder", "folder", rule, str(folder), _REMEDY))
        )
    try:
        config = json_object(path.read_text(encoding="utf-8"))
    except ValueError as error:
        got = Reason(f"{type(error).__name__}: {error}")
        rule = "hold a JSON object"
        raise wrong_value("load_autoencoder", str(path), rule, got, _REMEDY) from error
    if config.get("_class_name") != _NAME:
        other = str(config.get("_class_name"))
        raise wrong_value("load_autoencoder", str(path), f"be of an {_NAME}", other, _REMEDY)
    return autoencoder_from_diffusers(_network(part, config))


def _network(part: Path, config: dict[str, Any]) -> nn.Module:
    """Return the network of a folder, refusing weights that are not all of its own."""
    kind = program("diffusers", "diffusers").AutoencoderKL
    try:
        check_size(kind, config, part)
        with torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            network, found = kind.from_pretrained(
                part,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except TooLargeError:
        raise
    # Whatever another program raises over a file that it cannot read.
    except Exception as error:
        got = Reason(f"{type(error).__name__}: {error}")
        rule = f"hold an {_NAME} as diffusers saves it, in safetensors"
        raise wrong_value("load_autoencoder", str(part), rule, got, _REMEDY) from error
    wrong = [name for names in found.values() for name in names]
    if wrong:
        rule = "hold the weights of its network, and no others"
        names = ", ".join(map(str, wrong))
        raise wrong_value("load_autoencoder", str(part), rule, names, _REMEDY)
    made: nn.Module = network
    return made
