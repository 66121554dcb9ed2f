"""Networks of score_sde give the score that its own program makes of them.

`theirs` is that program's rule in its letters (its models/utils.py and sde_lib.py), with numpy's
numbers and no SDE of ours; the network itself is any function of the state and of its label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import VESDE, Affine, DataSpec, ScoreModel, from_score_sde

N: Final = 100
LOW, HIGH = 0.01, 50.0
BETA_MIN, BETA_MAX = 0.1, 20.0


class Net(nn.Module):
    """A network in which a slip of the label or of the state shows."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = (0.3 * torch.randn(s, generator=generator) for s in ((3, 3, 1, 1), (3,)))
        self.mix, self.shift = (nn.Parameter(weight) for weight in weights)
        self.W = nn.Parameter(torch.ones(3), requires_grad=False)  # as their Fourier features
        self.register_buffer("sigmas", torch.linspace(1, 2, N))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        # As theirs, it takes any label as a number; those of levels also as places in a table.
        level = 1.0 if label.is_floating_point() else self.sigmas[label].reshape(-1, 1, 1, 1)
        c = torch.log1p(label.to(x.dtype)).reshape(-1, 1, 1, 1)
        mixed = nn.functional.conv2d(x, self.mix.to(x.dtype)) + self.shift.reshape(3, 1, 1)
        return torch.tanh(mixed * c + self.W.reshape(3, 1, 1)) * level


def config(sde: str, continuous: bool = True, centered: bool = False) -> dict[str, Any]:
    return {
        "training": {"sde": sde, "continuous": continuous},
        "data": {"image_size": 4, "num_channels": 3, "centered": centered},
        "model": {
            "sigma_min": LOW,
            "sigma_max": HIGH,
            "num_scales": N,
            "beta_min": BETA_MIN,
            "beta_max": BETA_MAX,
        },
    }


def theirs(
    sde: str, continuous: bool, net: nn.Module, x: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return their score at their time t, and the sigma there."""

    def spread(c: Tensor) -> Tensor:
        return c.reshape(-1, 1, 1, 1)

    if sde == "vesde":
        sigma = LOW * (HIGH / LOW) ** t
        labels = sigma if continuous else torch.round((1 - t) * (N - 1)).long()
        return net(x, labels), sigma
    log_mean = -0.25 * t**2 * (BETA_MAX - BETA_MIN) - 0.5 * t * BETA_MIN
    if sde == "subvpsde" or continuous:
        labels = t * 999
        std = 1 - torch.exp(2 * log_mean)
        std = std if sde == "subvpsde" else torch.sqrt(std)
    else:
        labels = t * (N - 1)
        betas = np.linspace(BETA_MIN / N, BETA_MAX / N, N)
        rows = torch.from_numpy(np.sqrt(1 - np.cumprod(1 - betas)))
        std = rows[labels.round().long()]
    return -net(x, labels) / spread(std), std


KINDS: Final = [
    ("vpsde", True),
    ("vpsde", False),
    ("subvpsde", True),
    ("subvpsde", False),
    ("vesde", True),
    ("vesde", False),
]


def compared(model: ScoreModel, sde: str, continuous: bool) -> tuple[float, float]:
    """Return the largest relative differences of the scores and of sigma, at 50 of their times."""
    on_lattice = not continuous and sde != "subvpsde"
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    if on_lattice:
        t = torch.arange(0, N, 2, dtype=torch.float64) / (N - 1)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(t), 3, 4, 4, generator=generator, dtype=torch.float64)
    expected, sigma = theirs(sde, continuous, Net(), x, t)
    at = (t * (N - 1) + 1) / N if on_lattice else t
    if isinstance(model.sde, VESDE):  # theirs without the term at t = 0
        at = model.sde.time(-torch.log(sigma)).clamp(max=1)
    found = model.score(x, at)
    scale = expected.abs().flatten(1).amax(1)
    score = (found - expected).abs().flatten(1).amax(1) / scale
    return float(score.max()), float((model.sde.sigma(at) / sigma - 1).abs().max())


@pytest.mark.parametrize(("sde", "continuous"), KINDS)
@torch.no_grad()
def test_the_score_is_that_of_score_sde(sde: str, continuous: bool) -> None:
    score, sigma = compared(from_score_sde(Net(), config(sde, continuous)), sde, continuous)
    # At t = 1 their sigma is 50 and the highest of ours √(50² − .01²), 2e-8 lower.
    assert score < (1e-6 if sde == "vesde" else 1e-9)
    assert sigma < (3e-8 if sde == "vesde" else 1e-9)


@pytest.mark.parametrize(
    ("sde", "continuous", "read"),
    [
        ("vpsde", True, ("vpsde", False)),
        ("vpsde", False, ("vpsde", True)),
        ("subvpsde", True, ("vpsde", True)),
        ("vesde", True, ("vesde", False)),
        ("vesde", False, ("vesde", True)),
    ],
)
@torch.no_grad()
def test_a_network_read_as_another_kind_is_far_off(sde, continuous, read) -> None:
    assert compared(from_score_sde(Net(), config(*read)), sde, continuous)[0] > 1e-3


@pytest.mark.parametrize("continuous", [True, False])
def test_noise_that_explodes_was_trained_from_its_least_level_on(continuous: bool) -> None:
    given = config("vesde", continuous)
    model = from_score_sde(Net(), given)
    t = torch.tensor(model.t_min, dtype=torch.float64)
    assert float(model.sde.sigma(t)) == pytest.approx(given["model"]["sigma_min"])


def test_data_are_in_the_range_that_the_configuration_says() -> None:
    found = from_score_sde(Net(), config("vesde")).data
    assert found == DataSpec("score_sde", (3, 4, 4), 256, Affine(0, 1))
    assert from_score_sde(Net(), config("vesde", centered=True)).data == DataSpec(
        "score_sde", (3, 4, 4), 256
    )


# --- checkpoints ---


def checkpoint(path: Path, **changes: Any) -> dict[str, Any]:
    """Write one as their save_checkpoint does: a DataParallel's names, averages as a list."""
    net = Net()
    parallel = nn.DataParallel(net)
    learned = [p for p in net.parameters() if p.requires_grad]
    averages = [p.detach() + 0.25 * (i + 1) for i, p in enumerate(learned)]
    net.sigmas += 1
    saved = {
        "optimizer": {"state": {}},
        "model": parallel.state_dict(),
        "ema": {"decay": 0.999, "num_updates": 3, "shadow_params": averages},
        "step": 4,
    }
    torch.save(saved | changes, path)
    return saved


@pytest.mark.parametrize("wrap", [nn.Module.eval, nn.DataParallel], ids=["bare", "DataParallel"])
def test_the_averages_are_filled_in_in_the_order_of_the_parameters(tmp_path, wrap) -> None:
    saved = checkpoint(tmp_path / "checkpoint_8.pth")
    net = Net()
    model = from_score_sde(wrap(net), config("vesde"), tmp_path / "checkpoint_8.pth")
    assert torch.equal(net.mix, saved["ema"]["shadow_params"][0])
    assert torch.equal(net.shift, saved["ema"]["shadow_params"][1])
    assert torch.equal(net.W, torch.ones(3))
    assert torch.equal(net.sigmas, saved["model"]["module.sigmas"])
    assert not model.training


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"ema": {"shadow_params": [torch.zeros(3)]}},
            "ema of c.pth must have 2 tensors, got 1",
        ),
        (
            {"ema": {"shadow_params": [torch.zeros(3, 3, 1, 1), torch.zeros(4)]}},
            r"ema of c.pth must have shift of shape \(3,\), got \(4,\)",
        ),
        ({"model": {"module.mix": torch.zeros(1)}}, "model of c.pth must have .* of shape"),
        ({"ema": {"decay": 0.9}}, "part must be one of decay, got shadow_params"),
    ],
)
def test_a_checkpoint_of_another_network_changes_nothing(tmp_path, changes, words) -> None:
    checkpoint(tmp_path / "c.pth", **changes)
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        from_score_sde(net, config("vesde"), tmp_path / "c.pth")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_another_configuration_is_refused_by_the_entry() -> None:
    with pytest.raises(TypeError, match=r"config must be a dictionary, got str; pass config.to_"):
        from_score_sde(Net(), "vesde")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"training\.sde must be one of subvpsde, vesde, vpsde"):
        from_score_sde(Net(), config("edm"))
    short = config("vpsde")
    del short["model"]["beta_min"]
    with pytest.raises(ValueError, match=r"config must have model\.beta_min, got none"):
        from_score_sde(Net(), short)
    with pytest.raises(ValueError, match=r"config must have training\.sde, got none"):
        from_score_sde(Net(), {})
