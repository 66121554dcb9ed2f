"""Classifier guidance by an exact classifier is the exact score of the class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sde_diffusion import VPSDE, ClassifierGuided, Gaussian, GaussianMixture, sample
from sde_diffusion.solvers import DormandPrince, Heun

SDE = VPSDE()
MIXTURE = GaussianMixture([0.4, 0.6], torch.tensor([[-0.8], [0.7]]), stds=[0.5, 0.3])
ALL = MIXTURE.diffused(SDE)
CLASSES = [
    Gaussian(torch.tensor([m]), torch.tensor([[s * s]])).diffused(SDE)
    for m, s in ((-0.8, 0.5), (0.7, 0.3))
]


def exact(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return log w_k p_t(x | k), the logits of Bayes' rule."""
    rows = [c.log_prob(x, t) for c in CLASSES]
    return torch.stack(rows, 1) + torch.tensor([0.4, 0.6], dtype=torch.float64).log()


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_a_push_of_w_is_the_classes_score_at_1(weight: float) -> None:
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    for t in (torch.tensor(0.3).double(), torch.linspace(0.1, 0.6, 6).double()):
        each = torch.stack([c(x, t) for c in CLASSES])[labels, torch.arange(6)]
        wanted = (1 - weight) * ALL(x, t) + weight * each
        found = ClassifierGuided(ALL, exact, labels, weight)(x, t)
        assert torch.allclose(found, wanted, rtol=1e-9)


def test_samples_are_those_of_the_class_and_keep_their_labels_on_the_way() -> None:
    labels = torch.arange(600) % 2
    guided = ClassifierGuided(ALL, exact, labels)
    x = sample(guided, Heun(), (600, 1), steps=40, dtype=torch.float64).x[:, 0]
    assert float(x[labels == 0].mean()) == pytest.approx(-0.8, abs=0.1)
    assert float(x[labels == 1].mean()) == pytest.approx(0.7, abs=0.06)
    assert float(x[labels == 1].std()) == pytest.approx(0.3, abs=0.05)
    # An adaptive solver, whose finished samples leave the batch, asks for the labels of the rest.
    few = ClassifierGuided(ALL, exact, labels[:8])
    found = sample(few, DormandPrince(1e-6, 1e-6), (8, 1), steps=1, dtype=torch.float64).x
    alone = ClassifierGuided(ALL, exact, labels[1:2])
    again = sample(alone, DormandPrince(1e-6, 1e-6), (1, 1), steps=1, first=1, dtype=torch.float64)
    assert torch.allclose(found[1], again.x[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("made", "error", "says"),
    [
        (lambda: ClassifierGuided(3, exact, torch.tensor([0])), TypeError, "model must be"),
        (lambda: ClassifierGuided(ALL, 3, torch.tensor([0])), TypeError, "be a callable"),
        (lambda: ClassifierGuided(ALL, exact, torch.ones(1)), TypeError, "row of integers"),
        (lambda: ClassifierGuided(ALL, exact, torch.tensor([0, 1])), ValueError, "of the 3 sam"),
        (lambda: ClassifierGuided(ALL, exact, torch.tensor([0, 2, 0])), ValueError, "K above 2"),
        (
            lambda: ClassifierGuided(ALL, lambda x, t: exact(x, t).detach(), torch.zeros(3).int()),
            TypeError,
            "with a graph to x, got a detached tensor",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(made, error, says) -> None:
    with pytest.raises(error, match=says):
        made()(torch.zeros(3, 1).double(), torch.tensor(0.5).double())


class Logits(nn.Module):
    """A linear classifier, with dropout where it is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.layer.bias.zero_()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(self.dropout(x) * (1 - t))
        return out


def test_a_network_is_part_of_the_score() -> None:
    """Of logits ∓(1 − t) x the push to class 1 is 2 (1 − t) p(0 | x)."""
    labels = torch.tensor([1, 1, 1])
    network = Logits()
    guided = ClassifierGuided(ALL, network, labels)
    with pytest.raises(ValueError, match="be in evaluation mode, got training mode"):
        sample(guided, Heun(), (3, 1), steps=4)
    network.eval()
    assert list(guided.parameters()) == list(network.parameters())
    x = torch.tensor([[-1.0], [0.2], [0.9]])
    t = torch.tensor(0.4, dtype=torch.float64)
    wanted = 2 * 0.6 * torch.sigmoid(-2 * 0.6 * x)
    assert torch.allclose(guided.push(x, t), wanted, rtol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(guided.push(x, torch.tensor(0.4)), wanted, rtol=1e-5)
    wide = guided.in_double().push(x.double(), t)
    assert torch.allclose(wide, wanted.double(), rtol=1e-6)
    assert network.layer.weight.dtype == torch.float32
    assert sample(guided, Heun(), (3, 1), steps=4).x.isfinite().all()


def test_a_class_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="labels must be 0 or more, got -1"):
        ClassifierGuided(ALL, exact, torch.tensor([0, -1]))
