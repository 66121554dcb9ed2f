"""Training of autoencoders, and of scores of their latents: the loss, resumption, files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sde_diffusion import (
    MLP,
    VPSDE,
    AutoencoderBound,
    ConvolutionalAutoencoder,
    Dataset,
    DataSpec,
    DirectScore,
    GaussianAutoencoder,
    HybridScoreMatching,
    LatentModel,
    ScoreModel,
    TrainingConfig,
    UNet,
    autoencoder_loss,
    load,
    load_autoencoder,
    load_data,
    load_latent,
    train,
)
from sde_diffusion.training import reconstruct_average

CONFIG = TrainingConfig(steps=6, batch_size=8, warmup=1, checkpoint_every=3, log_every=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**settings) -> GaussianAutoencoder:
    arguments = {"latent": 2, "width": 8, "multipliers": (1, 1)} | settings
    return GaussianAutoencoder(ConvolutionalAutoencoder((1, 8, 8), **arguments))


def score_of(autoencoder) -> ScoreModel:
    return ScoreModel(UNet(autoencoder.latent[0], 8, (1,), 1, ()), VPSDE())


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(v, other[k]) for k, v in one.items()) and one.keys() == other.keys()


@pytest.mark.parametrize("settings", [{}, {"noise": 0.3, "spread": 0.2}])
def test_the_loss_is_that_of_torchs_distributions(settings):
    autoencoder = small(**settings)
    x = torch.randn(3, 1, 8, 8, generator=generator())
    eps = torch.randn(3, 2, 4, 4, generator=generator(1))
    mean, std = autoencoder.network.posterior(x)
    around, sigma = autoencoder.network.reconstruction(mean + std * eps)
    kl = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).flatten(1).sum(1)
    log_p = Normal(around, sigma).log_prob(x).flatten(1).sum(1)
    found = autoencoder_loss(autoencoder, x, eps, beta=0.7)
    assert torch.allclose(found.float(), (0.7 * kl - log_p) / 64, atol=1e-5)
    if settings:
        assert float(sigma) == pytest.approx(0.2)
        assert torch.equal(std, torch.full_like(std, 0.3))


def test_a_run_of_an_autoencoder_goes_on_bit_for_bit_and_keeps_its_scale(tmp_path):
    dataset = load_data("digits", limit=16)
    whole = small()
    losses = [p.loss for p in train(whole, dataset, CONFIG, out=tmp_path / "whole")]
    halves = small()
    run = train(halves, dataset, CONFIG, out=tmp_path / "halves")
    next(run)
    run.close()
    halves = small()
    rest = train(halves, dataset, CONFIG, out=tmp_path / "halves", resume=True)
    assert [p.loss for p in rest] == losses[1:]
    assert same(weights(whole), weights(halves))
    loaded = load_autoencoder(tmp_path / "halves")
    assert same(weights(loaded), weights(whole))
    assert loaded.data == dataset.spec
    # The scale is that of the data's latents: those of the draws have mean 0 and deviation 1.
    z = loaded.latents(dataset).values.double()
    _, std = loaded.posterior(dataset.centred())
    axes = (0, 2, 3)
    assert z.mean(axes).abs().max() < 1e-4
    assert (z.square().mean(axes) + std.double().square().mean(axes) - 1).abs().max() < 1e-4


def test_the_bound_falls_and_pictures_come_back():
    dataset = load_data("digits", limit=128)
    autoencoder = small(latent=4)
    config = replace(CONFIG, steps=80, batch_size=16, learning_rate=1e-2, ema_decay=0.9)
    x = dataset.centred()
    losses = [p.loss for p in train(autoencoder, dataset, config, objective=AutoencoderBound(0.1))]
    assert sum(losses[-10:]) / 10 < sum(losses[:3]) / 3 - 0.3
    autoencoder.requires_grad_(requires_grad=False)
    again = autoencoder.decode(autoencoder.encode(x))
    assert (again - x).square().mean() < 0.5 * x.var()
    # σ is learned: at its best it is the root mean square of what is missed.
    missed = float((again - x).square().mean().sqrt())
    assert missed < float(autoencoder.decoder(autoencoder.encode(x[:1]))[1]) < 3 * missed


def test_a_score_of_latents_is_trained_resumed_and_saved_with_its_autoencoder(tmp_path):
    dataset = load_data("digits", limit=16)
    autoencoder = small().eval()
    autoencoder.data = dataset.spec
    autoencoder.measure(dataset)
    before = weights(autoencoder)
    config = replace(CONFIG, ema_half_lives=(2.0,), ema_widths=(0.1, 0.2), snapshot_every=1)
    whole = LatentModel(autoencoder, score_of(autoencoder))
    losses = [p.loss for p in train(whole, dataset, config, out=tmp_path / "whole")]
    halves = LatentModel(autoencoder, score_of(autoencoder))
    run = train(halves, dataset, config, out=tmp_path / "halves")
    next(run)
    run.close()
    halves = load_latent(tmp_path / "halves")
    rest = train(halves, dataset, config, out=tmp_path / "halves", resume=True)
    assert [p.loss for p in rest] == losses[1:]
    loaded = load(tmp_path / "halves")
    assert same(weights(loaded.model), weights(whole.model))
    assert same(weights(loaded.autoencoder), before)
    assert (loaded.data.shape, loaded.observed) == ((2, 4, 4), dataset.spec)
    # What is trained is what `train` makes of the latents as data, to the bit.
    alone = score_of(autoencoder)
    assert [p.loss for p in train(alone, autoencoder.latents(dataset), config)] == losses
    # Other averages are latent models too.
    other = load(tmp_path / "whole" / "ema-2.safetensors")
    assert isinstance(other, LatentModel)
    assert isinstance(reconstruct_average(tmp_path / "whole", 0.15), LatentModel)


def test_another_autoencoder_or_other_data_do_not_go_on_with_a_run(tmp_path):
    dataset = load_data("digits", limit=32)
    one = small().eval()
    run = train(LatentModel(one, score_of(one)), dataset, CONFIG, out=tmp_path)
    next(run)
    run.close()
    two = small(seed=1).eval()
    with pytest.raises(ValueError, match=r"autoencoder\.content must be"):
        train(LatentModel(two, score_of(two)), dataset, CONFIG, out=tmp_path, resume=True)
    less = load_data("digits", limit=31)
    with pytest.raises(ValueError, match=r"dataset\.crc32 must be"):
        train(LatentModel(one, score_of(one)), less, CONFIG, out=tmp_path, resume=True)


def test_objectives_of_another_kind_are_refused():
    dataset = load_data("digits", limit=32)
    points = Dataset(DataSpec("p", (2,), None), torch.zeros(8, 2), None)
    with pytest.raises(TypeError, match="objective must be AutoencoderBound"):
        train(small(), dataset, CONFIG, objective=HybridScoreMatching())
    for model in (ScoreModel(MLP(2), VPSDE()), DirectScore(MLP(2), VPSDE())):
        with pytest.raises(TypeError, match="must be a GaussianAutoencoder"):
            train(model, points, CONFIG, objective=AutoencoderBound())
    with pytest.raises(ValueError, match="AutoencoderBound: beta must be at least 0"):
        AutoencoderBound(-1.0)
    with pytest.raises(ValueError, match="must have shape"):
        autoencoder_loss(small(), torch.zeros(1, 1, 9, 9), torch.zeros(1, 2, 5, 5))
