"""The DDPM's own steps with every variance, against Ho et al., `Ancestral` and exact laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    MLP,
    VESDE,
    VPSDE,
    DiscreteBeta,
    Gaussian,
    GaussianMixture,
    ReverseSDE,
    ScoreModel,
    SubVPSDE,
    integrate,
    lattice,
    linear_betas,
    uniform,
)
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.ddpm.variances import AnalyticVariance, LearnedVariance, PosteriorVariance
from sde_diffusion.noise import Noise, WhiteNoise
from sde_diffusion.solvers import DDPM, Ancestral

N = 100
BETAS = linear_betas(N, 1e-3, 0.2)


class Tape(Noise):
    """Plays the given draws one after another."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = iter(draws)

    def normal(self, x: Tensor) -> Tensor:
        return next(self.draws).to(x)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def mixture(sde):
    return GaussianMixture(torch.ones(5), randn(5, 1, 2, 3), stds=[0.3] * 5).diffused(sde)


def algorithm_2(model, x: Tensor, z: Tensor, second=None) -> Tensor:
    """Ho et al. 2020, algorithm 2, line by line, σ_k² = β_k or as improved diffusion learns it."""
    alphas = 1 - BETAS
    bar = torch.cumprod(alphas, 0)
    for k in range(N, 0, -1):
        a = alphas[k - 1]
        ab = bar[k - 1]
        b = BETAS[k - 1]
        t = torch.tensor(k / N, dtype=torch.float64)
        variance = b
        if second is not None and k > 1:
            log_low = (b * (1 - bar[k - 2]) / (1 - ab)).log()
            frac = (second(x, t) + 1) / 2
            variance = (frac * b.log() + (1 - frac) * log_low).exp()
        noise = variance.sqrt() * z[N - k] if k > 1 else 0
        x = (x - b / (1 - ab).sqrt() * model.eps(x, t)) / a.sqrt() + noise
    return x


def test_with_beta_it_is_algorithm_2() -> None:
    model = mixture(VPSDE(DiscreteBeta(BETAS)))
    z = randn(N + 1, 4, 1, 2, 3)
    dynamics = ReverseSDE(model.sde, model)
    ours = integrate(dynamics, DDPM(), z[N], lattice(N), noise=Tape(z))
    assert torch.allclose(ours.x, algorithm_2(model, z[N], z), rtol=0, atol=1e-10)
    assert ours.nfe == N


def learned() -> ScoreModel:
    net = MLP(2, width=8, outputs=4).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return ScoreModel(net, VPSDE(DiscreteBeta(BETAS)), "x0", variance="learned").eval()


def test_a_learned_variance_is_that_of_improved_diffusion_and_comes_with_the_pass() -> None:
    model = learned()
    z = randn(N + 1, 4, 2)
    calls = []
    with torch.no_grad():
        expected = algorithm_2(model, z[N], z, lambda x, t: 2 * model.fraction(x, t) - 1)
        model.network.register_forward_hook(lambda *_: calls.append(1))
        for solver, passes in ((DDPM(), N), (DDPM(LearnedVariance(model.fraction)), 2 * N)):
            calls.clear()
            ours = integrate(ReverseSDE(model.sde, model), solver, z[N], lattice(N), noise=Tape(z))
            assert torch.allclose(ours.x, expected, rtol=0, atol=1e-10)
            assert ours.nfe == len(calls) == passes


@pytest.mark.parametrize("end", [0.0, 0.05])
@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0)], ids=repr)
def test_with_the_posteriors_variance_it_is_ancestral(sde, end) -> None:
    """On any grid, to the data and short of it."""
    model = mixture(sde)
    z = randn(8, 4, 1, 2, 3)
    grid = uniform(7, 1.0, end) ** 1.5
    x = z[7] * sde.prior().std
    one, other = (
        integrate(ReverseSDE(sde, model), solver, x, grid, noise=Tape(z)).x
        for solver in (DDPM(PosteriorVariance()), Ancestral())
    )
    assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_five_steps_of_the_analytic_variance_leave_the_law_of_a_gaussian_exact() -> None:
    """Affine in x and z: variances by unit vectors, from p_1 to p_ε; with β they are not."""
    v = 0.3
    sde = VPSDE()
    grid = uniform(5, 1.0, 0.1)
    model = Gaussian(torch.zeros(1), v * torch.eye(1).double()).diffused(sde)
    chain = Chain(sde, torch.cat([grid, torch.zeros(1).double()]))
    total = (chain.alpha**2 * v + chain.sigma**2)[1:]
    analytic = AnalyticVariance(chain.sigma[1:] ** 2 / total)

    def end(solver: DDPM) -> float:
        rows = torch.eye(6, dtype=torch.float64)[:, :, None]  # the start, then the draws
        found = [
            integrate(ReverseSDE(sde, model), solver, row[:1], grid, noise=Tape(row[1:, None])).x
            for row in rows
        ]
        found[0] = found[0] * total[-1].sqrt()
        return float(torch.cat(found).square().sum())

    assert end(DDPM(analytic)) == pytest.approx(float(total[0]), rel=1e-12)
    assert end(DDPM()) > 1.05 * float(total[0])
    assert end(DDPM(PosteriorVariance())) < 0.95 * float(total[0])


def test_refusals() -> None:
    model = mixture(VPSDE())
    x = randn(2, 1, 2, 3)
    with pytest.raises(ValueError, match="noise_scale must be 1"):
        integrate(ReverseSDE(model.sde, model, 0.5), DDPM(), x, uniform(4), noise=WhiteNoise(0))
    with pytest.raises(ValueError, match="from noise"):
        list(DDPM().steps(ReverseSDE(model.sde, model), x, uniform(4, 0.0, 1.0), WhiteNoise(0)))
    with pytest.raises(ValueError, match=r"power must have 5 numbers, got \(4,\)"):
        integrate(
            ReverseSDE(model.sde, model),
            DDPM(AnalyticVariance(torch.zeros(4))),
            x,
            uniform(4),
            noise=WhiteNoise(0),
        )
