"""The models that ship: they know their data, and say how they were made."""

from __future__ import annotations

import math
import re

import pytest
import torch

from sde_diffusion import (
    Gaussian,
    ProbabilityFlow,
    describe,
    elbo,
    load,
    load_data,
    log_prob,
    quadratic,
    sample,
)
from sde_diffusion.objectives.denoising import denoising_loss
from sde_diffusion.solvers import AdamsBashforth, AngularAdams, DormandPrince


@pytest.fixture(scope="module")
def model():
    return load("digits")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def histogram_bits(train: torch.Tensor, test: torch.Tensor) -> float:
    """Return the bits per dimension of one smoothed histogram for each pixel."""
    counts = torch.stack([torch.bincount(train[:, i], minlength=17) for i in range(64)]).double()
    p = (counts + 1) / (counts + 1).sum(1, keepdim=True)
    return -float(p[torch.arange(64), test].log2().mean())


def test_bits_per_dim_of_unseen_digits_are_below_the_pixel_histograms(model) -> None:
    train = load_data("digits", "train")
    test = load_data("digits", "test")
    baseline = histogram_bits(train.values.long().flatten(1), test.values.long().flatten(1))
    assert baseline == pytest.approx(2.42, abs=0.01)
    x = test.dequantized(generator())[:72]
    found = log_prob(
        x, ProbabilityFlow(model.sde, model), DormandPrince(1e-3, 1e-3), levels=test.spec.levels
    )
    bits = found.bits_per_dim
    assert float(bits.mean() + 5 * bits.std() / math.sqrt(len(bits))) < baseline


def test_it_denoises_better_than_the_best_gaussian_and_better_with_the_class(model) -> None:
    train = load_data("digits", "train")
    test = load_data("digits", "test")
    rows = train.dequantized(generator()).flatten(1).double()
    fit = Gaussian(rows.mean(0).reshape(1, 8, 8), torch.cov(rows.T)).diffused(model.sde)
    x0 = test.dequantized(generator(1))
    t = torch.linspace(0.02, 0.98, len(x0), dtype=torch.float64)[
        torch.randperm(len(x0), generator=generator(2))
    ]
    eps = torch.randn(x0.shape, generator=generator(3))
    with torch.no_grad():
        gaussian, alone, given = (
            float(denoising_loss(m, x0, t, eps).mean())
            for m in (fit, model, model.given(test.labels))
        )
    assert given < 0.95 * alone
    assert alone < 0.8 * gaussian


def test_samples_of_a_class_are_that_digit_to_a_nearest_neighbour_classifier(model) -> None:
    train = load_data("digits", "train")
    labels = torch.arange(10).repeat_interleave(20)
    x = sample(
        model.given(labels),
        AdamsBashforth(2),
        (200, 1, 8, 8),
        grid=quadratic(25, 1.0, 1e-3),
        seed=4,
    ).x
    nearest = torch.cdist(x.flatten(1), train.centred().flatten(1)).argmin(1)
    assert float((train.labels[nearest] == labels).float().mean()) > 0.9
    # And they are no copies: as far from the training digits as unseen digits are.
    unseen = load_data("digits", "test").dequantized(generator()).flatten(1)
    near = torch.cdist(x.flatten(1), train.centred().flatten(1)).min(1).values.mean()
    apart = torch.cdist(unseen, train.centred().flatten(1)).min(1).values.mean()
    assert float(near) > 0.75 * float(apart)


@pytest.mark.parametrize(("name", "source"), [("digits", "digits"), ("mnist", "path/to/mnist")])
def test_the_readmes_command_is_how_it_was_made(root, name: str, source: str) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    command = re.search(rf"^(sde-diffusion train --data {source} --conditional .*)$", readme, re.M)
    assert command is not None
    words = command[1].split()
    options = {
        word[2:].replace("-", "_"): value
        for word, value in zip(words, [*words[1:], ""], strict=True)
        if word.startswith("--")
    }
    made = describe(name)
    settings = made["training"] | made["network"]["config"] | {"prediction": made["prediction"]}
    assert options.pop("conditional") == "--label-dropout"
    assert (options.pop("data"), made["data"]["name"]) == (source, name)
    assert settings["classes"] == 10
    options.pop("out")
    assert len(options) >= 5
    for option, value in options.items():
        assert str(settings[option]) == value, option


def test_bits_per_dim_of_unseen_mnist_are_below_the_pixel_histograms(mnist) -> None:
    """One smoothed histogram for each pixel has 1.69 bits/dim on the test images."""
    model = load("mnist")
    test = load_data(mnist, "test", limit=24)
    x = test.batch(torch.arange(24), generator())
    bound = elbo(x, model, draws=32, levels=256).bits_per_dim
    assert float(bound.mean() + 5 * bound.std() / math.sqrt(24)) < 1.69


def test_samples_of_mnist_are_of_their_class_to_a_nearest_neighbour_classifier(mnist) -> None:
    model = load("mnist")
    train = load_data(mnist, "train", limit=10_000)
    labels = torch.arange(10).repeat_interleave(4)
    x = sample(model.given(labels), AngularAdams(), (40, 1, 28, 28), steps=12, seed=4).x
    nearest = torch.cdist(x.flatten(1), train.centred().flatten(1)).argmin(1)
    assert float((train.labels[nearest] == labels).float().mean()) > 0.8
