"""Likelihoods against closed forms, their error bars, and what one evaluation costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    Exact,
    Gaussian,
    GaussianMixture,
    Hutchinson,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    ScoreModel,
    SubVPSDE,
    log_prob,
    uniform,
)
from sde_diffusion.solvers import (
    DDIM,
    DormandPrince,
    Euler,
    EulerMaruyama,
    RungeKutta4,
    TorchDiffEq,
)

FAMILY = [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]
every_sde = pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)


def correlated(d: int = 16) -> Gaussian:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    mean = torch.randn(d, generator=generator, dtype=torch.float64)
    return Gaussian(mean, a @ a.mT / d + 0.1 * torch.eye(d, dtype=torch.float64))


def draw(data, n: int = 6) -> torch.Tensor:
    return data.sample(n, torch.Generator().manual_seed(1))


def whole(sde) -> torch.Tensor:
    return torch.tensor([0.0, sde.horizon], dtype=torch.float64)


@every_sde
def test_correlated_gaussian_to_1e_6_nats(sde) -> None:
    data = correlated()
    model = data.diffused(sde)
    x = draw(data)
    found = log_prob(
        x,
        ProbabilityFlow(sde, model),
        DormandPrince(1e-9, 1e-9),
        grid=whole(sde),
        divergence=Exact(memory=4096),
        prior=model.marginal(whole(sde)[1]),
    )
    assert torch.allclose(found.nats, data.log_prob(x), rtol=0, atol=1e-6)
    assert torch.equal(found.standard_error, torch.zeros(6, dtype=torch.float64))
    assert torch.allclose(found.terms["prior"] + found.terms["divergence"], found.nats)
    # The latent is the exact flow's end.
    assert torch.allclose(found.latent, model.flow(x, *whole(sde)), atol=1e-5)


def test_mixture_and_image_shape() -> None:
    means = torch.randn(3, 1, 3, 2, generator=torch.Generator().manual_seed(2))
    data = GaussianMixture([1, 2, 3], means, stds=[0.4, 0.5, 0.3])
    model = data.diffused(VPSDE())
    x = draw(data)
    found = log_prob(
        x,
        ProbabilityFlow(model.sde, model),
        DormandPrince(1e-9, 1e-9),
        grid=whole(model.sde),
        divergence=Exact(),
        prior=model.marginal(torch.tensor(1.0, dtype=torch.float64)),
    )
    assert torch.allclose(found.nats, data.log_prob(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("event", [(2,), (16,), (64,), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("components", [1, 3])
def test_correlated_gaussians_and_mixtures_to_1e_6_nats(event, components) -> None:
    d = math.prod(event)
    g = torch.Generator().manual_seed(7)
    roots = torch.randn(components, d, d, generator=g, dtype=torch.float64) / d**0.5
    covariances = roots @ roots.mT + 0.1 * torch.eye(d, dtype=torch.float64)
    means = torch.randn(components, *event, generator=g, dtype=torch.float64)
    data = GaussianMixture([1.0 + k for k in range(components)], means, covariances=covariances)
    model = data.diffused(VPSDE())
    x = draw(data, 3)
    found = log_prob(
        x,
        ProbabilityFlow(model.sde, model),
        DormandPrince(1e-8, 1e-8),
        grid=whole(model.sde),
        divergence=Exact(),
        prior=model.marginal(torch.tensor(1.0, dtype=torch.float64)),
    )
    assert torch.allclose(found.nats, data.log_prob(x), rtol=0, atol=1e-6)


def test_prior_mismatch_of_vp_is_what_mixes_in() -> None:
    """The SDE's own N(0, I) instead of the true p_1 costs KL(p_1‖N) on average, in closed form."""
    data = correlated(2)
    model = data.diffused(VPSDE())
    sde = VPSDE()
    x = data.sample(4000, torch.Generator().manual_seed(3))
    flow = ProbabilityFlow(sde, model)
    solver = DormandPrince(1e-8, 1e-8)
    true = log_prob(
        x,
        flow,
        solver,
        grid=whole(sde),
        divergence=Exact(),
        prior=model.marginal(whole(sde)[1]),
    )
    own = log_prob(x, flow, solver, grid=whole(sde), divergence=Exact())
    p1 = model.marginal(whole(sde)[1])
    mean = p1.means[0]
    v = p1.variances[0]
    kl = 0.5 * float((v + 0 * v - 1 - v.log()).sum() + (mean**2).sum())
    gap = true.nats - own.nats
    assert float(gap.mean()) == pytest.approx(kl, abs=5 * float(gap.std()) / 4000**0.5)


def test_hutchinson_is_unbiased_within_its_error_bar() -> None:
    data = correlated(8)
    model = data.diffused(VPSDE())
    x = draw(data, 64)
    found = log_prob(
        x,
        ProbabilityFlow(model.sde, model),
        DormandPrince(1e-6, 1e-6),
        grid=whole(model.sde),
        divergence=Hutchinson(probes=50, seed=1),
        prior=model.marginal(whole(model.sde)[1]),
    )
    z = (found.nats - data.log_prob(x)) / found.standard_error
    # 64 studentised errors: mean 0 ± 1/8, mean square 1 within five standard deviations.
    assert abs(float(z.mean())) < 5 / 8
    assert float(z.square().mean()) == pytest.approx(1.0, abs=5 * (2 / 64) ** 0.5)
    assert float(found.standard_error.min()) > 0


def test_error_of_a_mean_over_probes() -> None:
    """s/√K with s² = Σ(x − mean)²/(K − 1): 1/√3 for 1, 2, 3."""
    integral = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    assert float(Hutchinson(3).error(integral)) == pytest.approx(3**-0.5, rel=1e-12)


def test_rademacher_probes_are_exact_on_a_diagonal_jacobian() -> None:
    data = Gaussian(torch.zeros(5), torch.diag(torch.arange(1.0, 6.0)))
    model = data.diffused(VPSDE())
    x = draw(data)
    arguments = {"grid": whole(model.sde), "prior": model.marginal(whole(model.sde)[1])}
    flow = ProbabilityFlow(model.sde, model)
    one = log_prob(x, flow, DormandPrince(1e-9, 1e-9), divergence=Hutchinson(), **arguments)
    assert torch.allclose(one.nats, data.log_prob(x), atol=1e-6)
    assert bool(one.standard_error.isnan().all())  # one probe knows nothing of its error


def test_batches_of_1_and_of_64_differ_by_exactly_0() -> None:
    data = GaussianMixture([1, 2], torch.tensor([[0.5, -0.4], [-0.6, 0.3]]), stds=[0.2, 0.3])
    model = data.diffused(VPSDE())
    x = draw(data, 64)
    flow = ProbabilityFlow(model.sde, model)
    solver = DormandPrince(1e-3, 1e-3)
    whole_batch = log_prob(x, flow, solver, divergence=Exact())
    for i in range(64):
        alone = log_prob(x[i : i + 1], flow, solver, divergence=Exact())
        assert float((alone.nats - whole_batch.nats[i]).abs()) == 0
        assert torch.equal(alone.latent, whole_batch.latent[i : i + 1])


def test_a_value_is_the_same_alone_and_in_a_batch_bit_for_bit() -> None:
    data = correlated(4)
    model = data.diffused(VPSDE())
    x = draw(data, 9)
    flow = ProbabilityFlow(model.sde, model)
    solver = DormandPrince()
    together = log_prob(x, flow, solver, divergence=Hutchinson(3, seed=2))
    for i in range(9):
        alone = log_prob(x[i : i + 1], flow, solver, divergence=Hutchinson(3, seed=2, first=i))
        assert torch.equal(alone.nats, together.nats[i : i + 1])
        assert torch.equal(alone.standard_error, together.standard_error[i : i + 1])


@pytest.mark.parametrize(
    "solver", [RungeKutta4(), TorchDiffEq("dopri5", 1e-8, 1e-8)], ids=["rk4", "torchdiffeq"]
)
def test_other_solvers_agree(solver) -> None:
    data = correlated(3)
    model = data.diffused(VPSDE())
    x = draw(data)
    found = log_prob(
        x,
        ProbabilityFlow(model.sde, model),
        solver,
        grid=uniform(150, 1e-3, 1.0),
        divergence=Exact(),
        prior=model.marginal(whole(model.sde)[1]),
    )
    start = model.marginal(torch.tensor(1e-3, dtype=torch.float64))
    assert torch.allclose(found.nats, start.log_prob(x), atol=1e-5)


class Linear(nn.Module):
    """A network that counts its passes, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.eye(3))
        self.forwards = self.backwards = 0

    def forward(self, x, c):  # noqa: ARG002
        self.forwards += 1
        out = x @ self.weight
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, gradient) -> None:  # noqa: ARG002  (a hook's form)
        self.backwards += 1


@pytest.mark.parametrize("divergence", [Hutchinson(), Hutchinson(4), Exact()], ids=repr)
def test_one_evaluation_is_one_forward_and_one_vjp(divergence) -> None:
    network = Linear()
    model = ScoreModel(network, VPSDE()).eval()
    found = log_prob(
        torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
        ProbabilityFlow(model.sde, model),
        Euler(),
        grid=uniform(10, 1e-3, 1.0),
        divergence=divergence,
    )
    assert (found.nfe, network.forwards, network.backwards) == (10, 10, 10)
    assert network.weight.requires_grad  # frozen during the solve only


@pytest.mark.parametrize(("levels", "offset"), [(256, 7.0), (17, math.log2(8.5)), (None, 0.0)])
def test_bits_per_dim_of_scaled_levels(levels, offset) -> None:
    """Uniform density on [−1, 1]^D is log2(levels) bits a dimension; offset log2(levels/2)."""
    data = correlated(2)
    model = data.diffused(VPSDE())
    x = draw(data).tanh()
    found = log_prob(x, ProbabilityFlow(model.sde, model), DormandPrince(), levels=levels)
    expected = -found.nats / (2 * math.log(2)) + offset
    assert torch.allclose(found.bits_per_dim, expected, rtol=1e-12)


def test_inference_mode_changes_nothing() -> None:
    data = correlated(2)
    model = data.diffused(VPSDE())
    x = draw(data)
    flow = ProbabilityFlow(model.sde, model)
    solver = DormandPrince()
    outside = log_prob(x, flow, solver, divergence=Exact()).nats
    with torch.inference_mode():
        inside = log_prob(x, flow, solver, divergence=Exact()).nats
    assert torch.equal(outside, inside)


def test_dequantized_rows_near_a_level_by_chance_are_no_mistake() -> None:
    data = Gaussian(torch.zeros(1), 0.1 * torch.eye(1))
    model = data.diffused(VPSDE())
    k = torch.arange(4000) % 8
    u = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (2 * (k + u) / 8 - 1)[:, None]
    near = ((x + 1) * 8 - ((x + 1) * 8).round()).abs() < 1e-3
    assert bool(near.any())  # the case is there
    flow = ProbabilityFlow(model.sde, model)
    found = log_prob(x, flow, DormandPrince(1e-4, 1e-4), divergence=Exact(), levels=8)
    start = model.marginal(torch.tensor(1e-5, dtype=torch.float64))
    assert torch.allclose(found.nats, start.log_prob(x), atol=0.01)


def test_one_undequantized_row_among_many_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(5, 16, generator=generator) - 1
    x[3] = (2 * torch.arange(16) + 1) / 16 - 1
    flow = ProbabilityFlow(VPSDE(), correlated(16).diffused(VPSDE()))
    with pytest.raises(ValueError, match="x must be dequantized"):
        log_prob(x, flow, DormandPrince(), levels=16)


VP_MODEL = correlated(2).diffused(VPSDE())
FLOW = ProbabilityFlow(VPSDE(), VP_MODEL)
X = torch.zeros(1, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: log_prob(X, ReverseSDE(VPSDE(), VP_MODEL), DormandPrince()),
            TypeError,
            "flow must be a ProbabilityFlow, got ReverseSDE",
        ),
        (
            lambda: log_prob(X, FLOW, EulerMaruyama()),
            TypeError,
            "solver must be one of any ODE, got EulerMaruyama, one of SDE; pass for example Dor",
        ),
        (
            lambda: log_prob(X, FLOW, DDIM()),
            TypeError,
            "solver must be one of any ODE, got DDIM, one of ProbabilityFlow; pass for example",
        ),
        (
            lambda: log_prob(X, FLOW, RungeKutta4()),
            ValueError,
            "grid must be given for a solver with fixed steps, got none",
        ),
        (
            lambda: log_prob(
                X, ProbabilityFlow(VPSDE(), torch.no_grad()(VP_MODEL.score)), DormandPrince()
            ),
            TypeError,
            "score must be differentiable in x, got a detached tensor",
        ),
        (
            lambda: log_prob(
                X.float()[:, :1].expand(1, 3).clone(),
                ProbabilityFlow(VPSDE(), ScoreModel(Linear(), VPSDE())),
                DormandPrince(),
            ),
            ValueError,
            "model must be in evaluation mode",
        ),
        (
            lambda: log_prob(X + 5, FLOW, DormandPrince(), levels=8),
            ValueError,
            r"x must lie in \[−1, 1\], as levels are scaled, got 5 … 5",
        ),
        (
            lambda: log_prob(
                torch.tensor([[0, 3], [7, 5]]) / 3.5 - 1, FLOW, DormandPrince(), levels=8
            ),
            ValueError,
            "x must be dequantized",
        ),
        (
            lambda: log_prob(X, FLOW, DormandPrince(), grid=uniform(5)),
            ValueError,
            r"run from the data \(t near 0\) to the prior, got 1 … 0.001",
        ),
        (
            lambda: log_prob(
                (torch.arange(8).reshape(4, 2) + 0.5) / 8 * 2 - 1, FLOW, DormandPrince(), levels=8
            ),
            ValueError,
            "x must be dequantized, got values on the 8 levels only",
        ),
        (
            lambda: log_prob(X, FLOW, DormandPrince(), levels=1),
            ValueError,
            "levels must be at least 2",
        ),
        (lambda: Hutchinson(probes=0), ValueError, "probes must be at least 1, got 0"),
        (lambda: Exact(memory=-1), ValueError, "memory must be at least 1, got -1"),
        (lambda: log_prob(X.long(), FLOW, DormandPrince()), TypeError, "floating-point dtype"),
    ],
)
def test_mistakes_end_in_one_clear_sentence(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
