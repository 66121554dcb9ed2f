"""The oracles against independent programs: torch.distributions and automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sde_diffusion import EDMSDE, VESDE, VPSDE, Gaussian, GaussianMixture, RectifiedFlow, SubVPSDE

T = torch.tensor(0.35, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariances(k: int, d: int) -> torch.Tensor:
    a = torch.randn(k, d, d, generator=generator(1), dtype=torch.float64)
    return a @ a.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)


def mixture(k: int = 3, d: int = 4) -> GaussianMixture:
    means = torch.randn(k, d, generator=generator(2), dtype=torch.float64)
    return GaussianMixture(torch.arange(1.0, k + 1), means, covariances(k, d))


def by_torch(alpha: float, sigma: float, k: int = 3, d: int = 4) -> MixtureSameFamily:
    means = torch.randn(k, d, generator=generator(2), dtype=torch.float64)
    spread = alpha**2 * covariances(k, d) + sigma**2 * torch.eye(d, dtype=torch.float64)
    parts = MultivariateNormal(alpha * means, spread)
    return MixtureSameFamily(Categorical(torch.arange(1.0, k + 1).double()), parts)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow()])
def test_density_and_score_agree_with_torch(sde) -> None:
    model = mixture().diffused(sde)
    x = model.sample(50, T, generator()).requires_grad_()
    expected = by_torch(float(sde.alpha(T)), float(sde.sigma(T))).log_prob(x)
    assert torch.allclose(model.log_prob(x, T), expected, rtol=1e-11)
    gradient = torch.autograd.grad(expected.sum(), x)[0]
    assert torch.allclose(model.score(x, T), gradient, rtol=1e-9, atol=1e-10)


def test_posterior_mean_is_tweedies() -> None:
    sde = VPSDE()
    model = mixture().diffused(sde)
    x = model.sample(50, T, generator())
    tweedie = (x + sde.sigma(T) ** 2 * model.score(x, T)) / sde.alpha(T)
    assert torch.allclose(model.denoise(x, T), tweedie, rtol=1e-10, atol=1e-12)
    recomposed = sde.alpha(T) * model.denoise(x, T) + sde.sigma(T) * model.eps(x, T)
    assert torch.allclose(recomposed, x, rtol=1e-11, atol=1e-12)


def test_velocity_is_the_flow_of_the_density() -> None:
    """The continuity equation ∂p/∂t + ∇·(p v) = 0, with ∇·(p v)/p = ∇·v + v·score."""
    model = mixture(2, 2).diffused(VPSDE())
    x = model.sample(20, T, generator()).requires_grad_()
    t = T.clone().requires_grad_()
    change = torch.autograd.functional.jacobian(lambda u: model.log_prob(x.detach(), u), t)
    v = model.velocity(x, T)
    divergence = sum(
        torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)
    )
    assert torch.allclose(change, -(divergence + (v * model.score(x, T)).sum(1)), atol=1e-9)


def test_one_time_per_sample_is_the_same_as_one_at_a_time() -> None:
    model = mixture().diffused(VPSDE())
    x = model.sample(6, T, generator())
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    rows = torch.cat([model.score(x[i : i + 1], t[i]) for i in range(6)])
    assert torch.equal(model.score(x, t), rows)


def test_a_sample_never_depends_on_its_batch_mates() -> None:
    model = mixture(3, 16).diffused(VPSDE())
    x = model.sample(37, T, generator())
    assert torch.equal(model.score(x, T)[20:], model.score(x[20:], T))
    assert torch.equal(model.score(x, T)[:1], model.score(x[:1], T))


def test_image_shaped_mixture_equals_its_flat_twin() -> None:
    means = torch.randn(3, 1, 4, 4, generator=generator(), dtype=torch.float64)
    stds = [0.1, 0.2, 0.3]
    image = GaussianMixture([1, 1, 2], means, stds=stds).diffused(VPSDE())
    full = torch.eye(16, dtype=torch.float64) * torch.tensor(stds)[:, None, None] ** 2
    flat = GaussianMixture([1, 1, 2], means.flatten(1), full).diffused(VPSDE())
    x = image.sample(10, T, generator())
    assert torch.allclose(image.score(x, T).flatten(1), flat.score(x.flatten(1), T), atol=1e-6)


def test_samples_have_the_moments() -> None:
    data = mixture(3, 2)
    x = data.sample(200_000, generator())
    w = data.weights
    mean = (w[:, None] * data.means).sum(0)
    spread = (w[:, None, None] * covariances(3, 2)).sum(0)
    centred = data.means - mean
    spread = spread + torch.einsum("k,ki,kj->ij", w, centred, centred)
    assert torch.allclose(x.mean(0), mean, atol=0.02)
    assert torch.allclose(torch.cov(x.T), spread, atol=0.03)


def test_flow_of_a_gaussian_moves_with_its_velocity() -> None:
    model = Gaussian(torch.ones(3), covariances(1, 3)[0]).diffused(VPSDE())
    x = model.sample(5, T, generator())
    dt = 1e-4
    difference = (model.flow(x, T, T + dt) - model.flow(x, T, T - dt)) / (2 * dt)
    assert torch.allclose(difference, model.velocity(x, T), rtol=1e-5, atol=1e-6)
    there = model.flow(x, T, T + 0.5)
    assert torch.allclose(model.flow(there, T + 0.5, T), x, rtol=1e-11, atol=1e-12)


def test_flow_of_a_one_dimensional_mixture_moves_with_its_velocity() -> None:
    means = torch.tensor([[-1.0], [1.0]])
    model = GaussianMixture([0.3, 0.7], means, stds=[0.3, 0.2]).diffused(VPSDE())
    x = model.sample(20, T, generator())
    dt = 1e-4
    difference = (model.flow(x, T, T + dt) - model.flow(x, T, T - dt)) / (2 * dt)
    assert torch.allclose(difference, model.velocity(x, T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Gaussian(torch.zeros(2), torch.ones(2, 3)), r"symmetric \(2, 2\) matrix"),
        (lambda: Gaussian(torch.zeros(2), -torch.eye(2)), "positive definite, got the eigenvalue"),
        (lambda: GaussianMixture([1], torch.zeros(1, 2)), "given one at a time, got neither"),
        (lambda: GaussianMixture([1, 1], torch.zeros(1, 2), stds=[1]), "be 1 positive numbers"),
        (lambda: GaussianMixture([1], torch.zeros(1, 2), stds=[0]), "stds must be 1 positive"),
        (
            lambda: mixture().diffused(VPSDE()).score(torch.zeros(1, 3), T),
            r"event shape \(4,\), got \(3,\)",
        ),
        (
            lambda: mixture().diffused(VPSDE()).flow(torch.zeros(1, 4), T, T),
            "one Gaussian or one-dimensional, got 3 components in 4 dimensions",
        ),
    ],
)
def test_bad_oracles_are_refused(make, text) -> None:
    with pytest.raises(ValueError, match=text):
        make()
