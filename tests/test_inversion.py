"""The latent from which a sampler's own steps end at given data."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    Denoised,
    GaussianMixture,
    PerSampleNoise,
    ProbabilityFlow,
    ScoreModel,
    integrate,
    log_prob,
    quadratic,
    uniform,
)
from sde_diffusion.forms import converted
from sde_diffusion.likelihood.divergence import Exact
from sde_diffusion.likelihood.sampler_density import sampler_log_prob
from sde_diffusion.sampling.encoding import encode
from sde_diffusion.sampling.inversion import FixedPoint, Newton, sampler_inverse
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solvers import DDIM, AngularAdams, DormandPrince, DPMSolverPP, EDMHeun, Euler


def flow_of(d: int = 2) -> ProbabilityFlow:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(3, d, d, generator=generator, dtype=torch.float64)
    means = torch.randn(3, d, generator=generator, dtype=torch.float64)
    data = GaussianMixture([1, 2, 1.5], means, 0.3 * a @ a.mT / d + 0.1 * torch.eye(d))
    return ProbabilityFlow(VPSDE(), data.diffused(VPSDE()))


def latents(n: int, *event: int) -> torch.Tensor:
    z = torch.empty(n, *event, dtype=torch.float64)
    return PerSampleNoise.numbered(0, 0, n).normal(z)


@pytest.mark.parametrize("solver", [DDIM(), EDMHeun(), DPMSolverPP(order=2)])
@pytest.mark.parametrize("method", [Newton(), FixedPoint()])
def test_the_latent_of_a_sample_is_found_again(solver, method) -> None:
    flow = flow_of()
    z = latents(3, 2)
    grid = uniform(10, 1.0, 0.05)
    x = integrate(flow, solver, z, grid).x
    found = sampler_inverse(x, flow, solver, grid, method=method, tolerance=1e-12)
    assert torch.allclose(found.latent, z, rtol=0, atol=1e-9)
    again = integrate(flow, solver, found.latent, grid).x
    assert torch.allclose(found.residual, (again - x).square().mean(1).sqrt(), atol=1e-18)
    assert float(found.residual.max()) <= 1e-12 * float(x.abs().max())
    # `encode` with as many steps is the latent of the flow, to the solver's error.
    assert float((encode(x, flow, solver, grid.flip(0)).x - z).abs().max()) > 1e-4


def test_newton_doubles_the_digits() -> None:
    flow = flow_of()
    grid = uniform(6, 1.0, 0.05)
    x = integrate(flow, DDIM(), latents(4, 2), grid).x
    rough, fine = (
        sampler_inverse(x, flow, DDIM(), grid, method=Newton(), tolerance=tolerance).iterations
        for tolerance in (1e-3, 1e-12)
    )
    assert int((fine - rough).max()) <= 2
    slow = sampler_inverse(x, flow, DDIM(), grid, method=FixedPoint()).iterations
    assert int(slow.min()) > int(fine.max())


@pytest.mark.parametrize(
    "grid", [uniform(5, 1.0, 0.0), Denoised(uniform(5)), uniform(1, 1.0, 0.0)]
)
def test_a_grid_may_end_without_noise(grid) -> None:
    """No score is asked for on the way back where sigma is 0."""
    flow = flow_of()
    z = 0.7 * latents(4, 2)
    x = integrate(flow, DDIM(), z, grid).x
    found = sampler_inverse(x, flow, DDIM(), grid, method=Newton())
    assert torch.allclose(found.latent, z, atol=1e-6)


def test_the_density_of_data_comes_near_the_flow_s() -> None:
    flow = flow_of()
    grid = quadratic(80)
    solver = AngularAdams()
    x = flow.score.function.oracle.sample(4, torch.Generator().manual_seed(0))
    z = sampler_inverse(x, flow, solver, grid).latent
    found = sampler_log_prob(z, flow, solver, grid).nats
    whole = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    exact = log_prob(x, flow, DormandPrince(1e-8, 1e-8), grid=whole, divergence=Exact()).nats
    assert torch.allclose(found, exact, atol=1e-4)


def test_a_latent_is_the_same_alone_and_in_a_batch_bit_for_bit() -> None:
    flow = flow_of()
    grid = uniform(5, 1.0, 0.05)
    x = integrate(flow, DDIM(), latents(4, 2), grid).x
    for method in (Newton(), FixedPoint()):
        together = sampler_inverse(x, flow, DDIM(), grid, method=method)
        assert len(set(together.iterations.tolist())) > 1  # they leave at different times
        for i in range(4):
            alone = sampler_inverse(x[i : i + 1], flow, DDIM(), grid, method=method)
            for name in ("latent", "residual", "iterations"):
                same = torch.equal(getattr(alone, name), getattr(together, name)[i : i + 1])
                assert same, (method, i, name)


class Each(ScoreLike):
    """A score that is another one for every sample, as labels make it."""

    sde = VPSDE()

    def __init__(self, scores) -> None:
        self.scores = scores

    def __call__(self, x, t):
        return torch.cat([score(x[i : i + 1], t) for i, score in enumerate(self.scores)])

    def rows(self, index) -> Each:
        return Each([self.scores[i] for i in index.tolist()])


def two(std: float):
    """Modes whose flow is the steeper between them, the narrower they are."""
    means = torch.tensor([[-1.0], [1.0]])
    return GaussianMixture([1, 1], means, stds=[std, std]).diffused(VPSDE())


@pytest.mark.parametrize("method", [Newton(), FixedPoint()])
def test_every_sample_keeps_its_own_score(method) -> None:
    """Also where some have left, and where some of Newton's steps are halved and others not."""
    stds = (0.05, 0.5) if method == Newton() else (0.4, 0.8)
    scores = [two(std) for std in stds for _ in range(3)]
    grid = uniform(15, 1.0, 0.02)
    x = torch.linspace(-1.3, 1.2, 6, dtype=torch.float64)[:, None]
    flow = ProbabilityFlow(VPSDE(), Each(scores))
    found = sampler_inverse(x, flow, DDIM(), grid, method=method)
    assert len(set(found.iterations.tolist())) > 2
    for i in (0, 2, 3):
        alone = ProbabilityFlow(VPSDE(), scores[i])
        own = sampler_inverse(x[i : i + 1], alone, DDIM(), grid, method=method)
        assert torch.allclose(own.latent, found.latent[i : i + 1], rtol=0, atol=1e-7)


def test_steps_too_long_for_a_steep_map_are_halved() -> None:
    x = torch.linspace(-1.5, 1.5, 15, dtype=torch.float64)[:, None]
    flow = ProbabilityFlow(VPSDE(), two(0.05))
    grid = uniform(20)
    found = sampler_inverse(x, flow, DDIM(), grid)
    assert torch.allclose(integrate(flow, DDIM(), found.latent, grid).x, x, rtol=0, atol=1e-9)
    assert int(found.iterations.max()) < 20


def test_a_network_in_single_precision() -> None:
    model = ScoreModel(MLP(3, width=16, depth=1, seed=1), VPSDE()).eval()
    flow = ProbabilityFlow(VPSDE(), model)
    z = latents(3, 3).float()
    grid = uniform(8, 1.0, 0.05)
    with torch.no_grad():
        x = integrate(flow, DDIM(), z, grid).x
    found = sampler_inverse(x, flow, DDIM(), grid)
    assert found.latent.dtype == torch.float32
    assert torch.allclose(found.latent, z, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            # One step of a score x/2 from dx = −½g²s dt: nothing but the range (−1, 1) of tanh.
            lambda: sampler_inverse(
                torch.tensor([[0.5], [2.0]], dtype=torch.float64),
                ProbabilityFlow(VPSDE(), TANH),
                DDIM(),
                uniform(1, 1.0, 0.0),
                method=Newton(20),
            ),
            FloatingPointError,
            r"be reached from a latent that the iteration finds, got a residual of [\d.]+ for"
            " sample 1 after 20 iterations; use more steps, another method",
        ),
        (
            lambda: sampler_inverse(
                torch.ones(1, 2, dtype=torch.float64),
                flow_of(),
                Euler(),
                uniform(1),
                method=FixedPoint(3),
            ),
            FloatingPointError,
            "for sample 0 after 3 iterations",
        ),
        (
            lambda: sampler_inverse(torch.ones(1, 2), flow_of(), DormandPrince(), uniform(2)),
            ValueError,
            "sampler_inverse: solver must have fixed steps",
        ),
        (
            lambda: sampler_inverse(
                torch.ones(1, 2), flow_of(), DDIM(), uniform(2), tolerance=0.0
            ),
            ValueError,
            "tolerance must be finite and above 0",
        ),
        (lambda: Newton(iterations=0), ValueError, "iterations must be at least 1, got 0"),
        (lambda: FixedPoint(iterations=0), ValueError, "iterations must be at least 1, got 0"),
    ],
)
def test_mistakes_end_in_one_clear_sentence(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()


class Bounded(ScoreLike):
    """A model whose x0 is tanh x, so that a step to t = 0 ends in (−1, 1)."""

    sde = VPSDE()

    def __call__(self, x, t):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return (alpha * torch.tanh(x) - x) / sigma**2

    def denoise(self, x, t):  # noqa: ARG002
        return torch.tanh(x)

    def predict(self, form, x, t, at):
        return converted(form, "x0", self.denoise(x, t), x, at)


TANH = Bounded()
