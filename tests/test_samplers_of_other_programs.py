"""One call each gives what the samplers of improved-diffusion, ADM, DiT and SiT give.

Their loops are written here in numpy, in their programs' letters, on the same draws; the network
is a function of numpy too, so that nothing of ours is in what is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sde_diffusion import (
    ClassLabels,
    Noise,
    ProbabilityFlow,
    ReverseSDE,
    ScoreModel,
    StaticThreshold,
    cosine_betas,
    guided,
    integrate,
    lattice,
    linear_betas,
    linspace,
)
from sde_diffusion.solvers import DDPM, Euler

Array: TypeAlias = NDArray[np.float64]
Network: TypeAlias = Callable[..., Array]  # (x, timesteps) or (x, timesteps, y)
D: Final = 3
N: Final = 60
CLASSES: Final = 4
RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(2 * D, D)) / 2
SHIFTS = RANDOM.normal(size=(CLASSES + 1, 2 * D))  # the last of the null class


def net(x: Array, timesteps: Array, y: Array | None = None) -> Array:
    """Any smooth function of the state, the timestep and the class: 2 D numbers a sample."""
    label = 0.0 if y is None else SHIFTS[y]
    return np.tanh(x @ W.T + np.sin(timesteps[:, None] / 7 + np.arange(2 * D)) + label)


class InTorch(nn.Module):
    """A function of numpy as a network, with its labels as ``y``."""

    def __init__(self, function: Network) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        rows = [x, c.double()] if y is None else [x, c.double(), y]
        return torch.from_numpy(self.function(*(row.numpy() for row in rows)))


class Tape(Noise):
    """Plays the given draws one after another."""

    def __init__(self, draws: Array) -> None:
        self.draws = iter(draws)

    def normal(self, x: Tensor) -> Tensor:
        return torch.from_numpy(next(self.draws)).to(x)


def p_sample_loop(
    model: Network, betas: Array, x: Array, z: Array, named: Array, *, clip: bool = False
) -> Array:
    """gaussian_diffusion.py of improved-diffusion and ADM, for LEARNED_RANGE and EPSILON.

    ``named`` is what the network is called with at each step: the index, the map of a
    SpacedDiffusion, or either rescaled to 1000.
    """
    alphas_cumprod = np.cumprod(1.0 - betas)
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    posterior_variance = betas * (1.0 - alphas_cumprod_prev) / (1.0 - alphas_cumprod)
    clipped = np.log(np.append(posterior_variance[1], posterior_variance[1:]))
    coef1 = betas * np.sqrt(alphas_cumprod_prev) / (1.0 - alphas_cumprod)
    coef2 = (1.0 - alphas_cumprod_prev) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod)
    for draw, i in zip(z, range(len(betas))[::-1], strict=True):
        model_output, values = np.split(model(x, np.full(len(x), named[i])), 2, axis=1)
        frac = (values + 1) / 2
        log_variance = frac * np.log(betas[i]) + (1 - frac) * clipped[i]
        xstart = np.sqrt(1.0 / alphas_cumprod[i]) * x
        xstart = xstart - np.sqrt(1.0 / alphas_cumprod[i] - 1) * model_output
        xstart = xstart.clip(-1, 1) if clip else xstart
        mean = coef1[i] * xstart + coef2[i] * x
        x = mean + (i != 0) * np.exp(0.5 * log_variance) * draw
    return x


def space_timesteps(count: int) -> list[int]:
    """respace.py, for one section of the N steps."""
    stride = (N - 1) / (count - 1)
    return [round(stride * i) for i in range(count)]


def respaced(betas: Array, kept: list[int]) -> Array:
    """SpacedDiffusion.__init__."""
    new = []
    last = 1.0
    for i, alpha_cumprod in enumerate(np.cumprod(1.0 - betas)):
        if i in kept:
            new.append(1 - alpha_cumprod / last)
            last = alpha_cumprod
    return np.array(new)


def draws(steps: int) -> tuple[Array, Array]:
    random = np.random.default_rng(1)
    return random.normal(size=(5, D)), random.normal(size=(steps, 5, D))


def ours(model: Any, x: Array, z: Array, grid: Tensor) -> Array:
    dynamics = ReverseSDE(model.sde, model)
    found: Array = integrate(dynamics, DDPM(), torch.from_numpy(x), grid, noise=Tape(z)).x.numpy()
    return found


BETAS = {"linear": linear_betas(N, 2e-3, 0.3), "cosine": cosine_betas(N)}
INDEX = np.arange(N, dtype=np.float64)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS)
def test_improved_diffusion_is_one_call(betas: Tensor, rescaled: bool, clip: bool) -> None:
    named = INDEX * 1000 / N if rescaled else INDEX
    x, z = draws(N)
    expected = p_sample_loop(net, betas.numpy(), x, z, named, clip=clip)
    given = {"timesteps": torch.from_numpy(named)} if rescaled else {}
    model: Any = ScoreModel.from_timesteps(InTorch(net).eval(), betas, variance="learned", **given)
    model = StaticThreshold(model, -1, 1) if clip else model  # their clip_denoised=True
    assert np.abs(ours(model, x, z, lattice(N)) - expected).max() < 1e-9
    if rescaled:  # the slip: without the flag
        slipped = ScoreModel.from_timesteps(InTorch(net).eval(), betas, variance="learned")
        assert np.abs(ours(slipped, x, z, lattice(N)) - expected).max() > 1e-2


@pytest.mark.parametrize("count", [6, 17, 60])
def test_a_respaced_chain_of_adm_is_one_call_with_classes(count: int) -> None:
    """Its SpacedDiffusion, of all betas with our grid, and of the betas that are left."""
    betas = BETAS["linear"]
    kept = space_timesteps(count)
    few = respaced(betas.numpy(), kept)
    x, z = draws(count)
    y = np.array([0, 3, 1, 2, 2])
    named = np.array(kept, dtype=np.float64)
    expected = p_sample_loop(lambda x, t: net(x, t, y), few, x, z, named)
    labels = ClassLabels(CLASSES, keyword="y")
    network = InTorch(net).eval()
    one = ScoreModel.from_timesteps(network, betas, variance="learned", labels=labels)
    found = ours(one.given(torch.from_numpy(y)), x, z, linspace(N, count))
    assert np.abs(found - expected).max() < 1e-9
    other = ScoreModel.from_timesteps(
        network,
        torch.from_numpy(few),
        variance="learned",
        labels=labels,
        timesteps=torch.from_numpy(named),
    )
    found = ours(other.given(torch.from_numpy(y)), x, z, lattice(count))
    assert np.abs(found - expected).max() < 1e-9


def test_dit_with_its_null_class_and_guidance_scale_is_one_call() -> None:
    """forward_with_cfg on all channels: its cfg_scale 4 is our weight 3."""
    betas = BETAS["linear"]
    x, z = draws(N)
    y = np.array([0, 3, 1, 2, 2])

    def forward_with_cfg(x: Array, t: Array) -> Array:
        combined = np.concatenate([x, x])
        both = net(combined, np.concatenate([t, t]), np.append(y, np.full(len(y), CLASSES)))
        eps, rest = both[:, :D], both[:, D:]
        cond_eps, uncond_eps = np.split(eps, 2)
        half_eps = uncond_eps + 4.0 * (cond_eps - uncond_eps)
        return np.concatenate([half_eps, rest[: len(x)]], axis=1)

    expected = p_sample_loop(forward_with_cfg, betas.numpy(), x, z, INDEX)
    model = ScoreModel.from_timesteps(
        InTorch(net).eval(),
        betas,
        variance="learned",
        labels=ClassLabels(CLASSES, null=CLASSES, keyword="y"),
    )
    found = ours(guided(model, torch.from_numpy(y), 3.0), x, z, lattice(N))
    assert np.abs(found - expected).max() < 1e-9
    found = ours(guided(model, torch.from_numpy(y), 4.0), x, z, lattice(N))  # the slip
    assert np.abs(found - expected).max() > 1e-2


def test_sit_whose_data_are_at_1_is_one_call() -> None:
    """Its ODE sampler by Euler's method: x += v dt from noise at 0 to data at 1."""

    def velocity(x: Array, t: Array, y: Array) -> Array:
        return net(x, 10 * t, y)[:, :D]

    x, _ = draws(0)
    y = np.array([0, 3, 1, 2, 2])
    times = np.linspace(0, 0.96, 25)
    expected = x
    for t, s in pairwise(times):
        expected = expected + (s - t) * velocity(expected, np.full(len(x), t), y)
    labels = ClassLabels(CLASSES, null=CLASSES, keyword="y")
    model = ScoreModel.from_velocity(InTorch(velocity).eval(), noise_at=0, labels=labels)
    model = model.given(torch.from_numpy(y))
    flow = ProbabilityFlow(model.sde, model)
    grid = torch.from_numpy(1 - times)
    found = integrate(flow, Euler(), torch.from_numpy(x), grid).x.numpy()
    assert np.abs(found - expected).max() < 1e-9
