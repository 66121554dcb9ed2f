"""The AutoencoderKL of diffusers as an autoencoder: its numbers are those of diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    FunctionScore,
    LatentModel,
    autoencoder_from_diffusers,
    load_autoencoder,
    save_model,
)
from sde_diffusion.noise import PerSampleNoise

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=0.7,
        shift_factor=0.1,
    ).eval()


def pictures() -> torch.Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", ["memory", "folder", "pipeline"])
@torch.no_grad()
def test_latents_and_pictures_are_those_of_diffusers(network, tmp_path: Path, place: str):
    if place == "memory":
        made = autoencoder_from_diffusers(network)
    elif place == "folder":
        network.save_pretrained(tmp_path)
        made = load_autoencoder(f"diffusers:{tmp_path}")
    else:
        network.save_pretrained(tmp_path / "vae")
        (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "x"]}))
        made = load_autoencoder(f"diffusers:{tmp_path}")
    x = pictures()
    posterior = network.encode(x).latent_dist
    # As the pipelines of diffusers scale them, and back: h = z/scaling_factor + shift_factor.
    z = (posterior.mean - 0.1) * 0.7
    assert (made.encode(x) - z).abs().max() < 1e-6
    assert (made.posterior(x)[1] - posterior.std * 0.7).abs().max() < 1e-6
    assert (made.decode(z) - network.decode(z / 0.7 + 0.1).sample).abs().max() < 1e-6
    assert (made.event, made.latent) == ((1, 8, 8), (2, 4, 4))
    assert not made.training


@torch.no_grad()
def test_a_latent_model_of_it_has_a_bound_and_a_file(network, tmp_path: Path):
    made = autoencoder_from_diffusers(network, spread=0.3)
    x = pictures()
    z, terms = made.draw(x, PerSampleNoise.numbered(0, 0, 3))
    around = network.decode(z / 0.7 + 0.1).sample
    log_p = torch.distributions.Normal(around, 0.3).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(terms["decoder"].float(), log_p, rtol=1e-5)
    save_model(tmp_path / "a.safetensors", made)
    with pytest.raises(ValueError, match=r"call load_autoencoder\(path, autoencoder=...\)"):
        load_autoencoder(tmp_path / "a.safetensors")
    other = diffusers.AutoencoderKL.from_config(network.config)
    again = load_autoencoder(
        tmp_path / "a.safetensors", autoencoder=autoencoder_from_diffusers(other).network
    )
    assert torch.equal(again.encode(x), made.encode(x))
    free = LatentModel(made, FunctionScore(lambda z, _: -z, VPSDE()))
    assert torch.equal(free.decode(z), made.decode(z))


def test_what_is_another_is_refused_by_name(network, tmp_path: Path):
    with pytest.raises(TypeError, match="network must be an AutoencoderKL of diffusers"):
        autoencoder_from_diffusers(MLP(2))
    with pytest.raises(ValueError, match=r"event must be a shape .* with its 1 channels"):
        autoencoder_from_diffusers(network, event=(3, 8, 8))
    with pytest.raises(ValueError, match="multiples of 2"):
        autoencoder_from_diffusers(network, event=(1, 9, 9))
    with pytest.raises(FileNotFoundError, match="hold an AutoencoderKL"):
        load_autoencoder(f"diffusers:{tmp_path}")
    network.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="in safetensors"):
        load_autoencoder(f"diffusers:{tmp_path}")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("AutoencoderKL", "VQModel"))
    with pytest.raises(ValueError, match="be of an AutoencoderKL"):
        load_autoencoder(f"diffusers:{tmp_path}")
