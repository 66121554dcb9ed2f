"""Divergences against linear fields and closed forms, their laws, their costs and their errors."""

from __future__ import annotations

import itertools
import math
import re
import time
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sde_diffusion._seeds import mix
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.likelihood.divergence import Exact, Hutchinson, HutchPlusPlus
from sde_diffusion.likelihood.fastest_mode import fastest
from sde_diffusion.likelihood.jacobian import Graph
from sde_diffusion.models.exact import Gaussian, GaussianMixture, fit_gaussian
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sde import VPSDE

both_modes = pytest.mark.parametrize("mode", ["reverse", "forward"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(a: Tensor):
    """The velocity A x, of x with any event shape."""
    return lambda x: (x.flatten(1) @ a.T).reshape(x.shape)


def signs(d: int) -> Tensor:
    """All 2^d sign vectors as the probes of one sample: (1, 2^d, d)."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d)), dtype=torch.float64)[None]


def mixture(d: int) -> GaussianMixture:
    a = normal(3, d, d, seed=1)
    covariances = a @ a.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture([1, 2, 3], normal(3, d, seed=2), covariances)


def flow_at(data, t: float):
    model = data.diffused(VPSDE())
    flow = ProbabilityFlow(model.sde, model)
    at = torch.tensor(t, dtype=torch.float64)
    return lambda x: flow.velocity(x, at)


def divergence_of(data: GaussianMixture, t: float, x: Tensor) -> Tensor:
    """D rate − ½ g² ∇·s, with ∇·s = Σ p_k (|s_k|² − tr Λ_k) − |Σ p_k s_k|², by plain inverses."""
    sde = VPSDE()
    at = torch.tensor(t, dtype=torch.float64)
    alpha = float(sde.alpha(at))
    sigma = float(sde.sigma(at))
    d = x.shape[1]
    c = data.bases @ torch.diag_embed(data.variances) @ data.bases.mT
    c = alpha**2 * c + sigma**2 * torch.eye(d, dtype=torch.float64)
    scores = -torch.einsum("kij,bkj->bki", c.inverse(), x[:, None] - alpha * data.means)
    log_p = -0.5 * torch.einsum("bki,kij,bkj->bk", scores, c, scores) - 0.5 * c.logdet()
    p = (log_p + data.weights.log()).softmax(1)
    trace = c.inverse().diagonal(dim1=1, dim2=2).sum(1)
    inner = (p * (scores.square().sum(2) - trace)).sum(1)
    outer = torch.einsum("bk,bki->bi", p, scores).square().sum(1)
    return d * float(sde.rate(at)) - 0.5 * float(sde.g(at)) ** 2 * (inner - outer)


# Values --------------------------------------------------------------------------------------


@both_modes
def test_exact_is_the_trace_of_a_linear_field(mode):
    a = normal(6, 6)
    x = normal(3, 1, 2, 3, seed=1)
    divergence = Exact(mode=mode)
    v, columns = divergence.evaluate(linear(a), x, divergence.draw(x))
    assert torch.allclose(columns, a.trace().expand(3, 1), rtol=0, atol=1e-13)
    assert torch.equal(v, linear(a)(x))
    assert torch.equal(divergence.error(columns), torch.zeros(3, dtype=torch.float64))


@both_modes
@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_hutchinson_is_the_quadratic_form_of_its_probes(mode, probes, law):
    a = normal(6, 6)
    x = normal(3, 1, 2, 3, seed=1)
    divergence = Hutchinson(probes, law=law, mode=mode)
    z = divergence.draw(x)
    v, columns = divergence.evaluate(linear(a), x, z)
    expected = torch.einsum("bpi,ij,bpj->bp", z.flatten(2), a, z.flatten(2))
    assert torch.allclose(columns, expected, rtol=0, atol=1e-12)
    assert torch.equal(v, linear(a)(x))
    assert divergence.columns == columns.shape[1]


@both_modes
def test_mixtures_agree_with_the_closed_form(mode):
    data = mixture(5)
    x = normal(7, 5, seed=3)
    columns = Exact(mode=mode).evaluate(flow_at(data, 0.2), x, x[:, None])[1]
    assert torch.allclose(columns[:, 0], divergence_of(data, 0.2, x), rtol=0, atol=1e-11)


@both_modes
@pytest.mark.parametrize(
    ("network", "event"),
    [
        (UNet(1, 8, (1, 2), 1, (0, 1), 2, seed=1), (1, 6, 5)),
        (MLP(6, seed=1), (6,)),
    ],
    ids=["UNet", "MLP"],
)
def test_networks_agree_with_central_differences(mode, network, event):
    """On random float64 weights the quadratic forms are those of differences, in both modes."""
    network = network.double().eval()
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            parameter += 0.2 * normal(*parameter.shape, seed=k)
    x = normal(2, *event)
    c = torch.tensor([0.3, 0.7], dtype=torch.float64)
    estimates = {}
    for divergence in (Hutchinson(mode=mode), Hutchinson(3, mode=mode)):
        z = divergence.draw(x)
        estimates[divergence.columns] = divergence.evaluate(lambda x: network(x, c), x, z)[1]
        other = "forward" if mode == "reverse" else "reverse"
        there = Hutchinson(divergence.columns, mode=other)
        again = there.evaluate(lambda x: network(x, c), x, z)[1]
        # One rounding of some thousand terms, in two orders.
        assert torch.allclose(estimates[divergence.columns], again, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            h = 1e-5
            ends = [network(x + sign * h * z[:, 0], c) for sign in (1, -1)]
        slope = ((ends[0] - ends[1]) / (2 * h) * z[:, 0]).flatten(1).sum(1)
        assert torch.allclose(estimates[divergence.columns][:, 0], slope, rtol=1e-7, atol=1e-7)


# Laws ----------------------------------------------------------------------------------------


class Squares(torch.autograd.Function):
    """x² in the way of old programs, which torch cannot transform."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def attention(q: nn.Conv2d):
    """Attention over all pixels by einsum, as foreign networks write it."""

    def velocity(x: Tensor) -> Tensor:
        a, b, c = q(x).chunk(3, 1)
        w = torch.einsum("bchw,bcij->bhwij", a, b).flatten(3).softmax(-1)
        return torch.einsum("bhwij,bcij->bchw", w.unflatten(3, x.shape[2:]), c)

    return velocity


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def foreign(name: str):
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 4).double()
    conv = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1))
    one_pixel = attention(nn.Conv2d(4, 12, 1).double())
    last = conv.double().to(memory_format=torch.channels_last)
    return {
        "group norm": lambda x: norm(channels_last(x)),
        "convolutions": lambda x: last(x),
        "attention": attention(nn.Conv2d(4, 12, 1).double()),
        "attention on one pixel": lambda x: one_pixel(channels_last(x[:, :, :1, :1])).expand_as(x),
        "autograd.Function": Squares.apply,
    }[name]


FOREIGN = [
    "group norm",
    "convolutions",
    "attention",
    "attention on one pixel",
    "autograd.Function",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_several_products_are_those_of_one_at_a_time(name):
    """Of networks for which torch cannot form several products at once, too."""
    velocity = foreign(name)
    x = normal(2, 4, 4, 4)
    vectors = normal(3, 2, 4, 4, 4, seed=1)
    for last in (False, True):
        found = Graph("Hutchinson", velocity, x, create_graph=False).products(vectors, last=last)
        for u, product in zip(vectors, found, strict=True):
            leaf = x.clone().requires_grad_()
            (alone,) = torch.autograd.grad(velocity(leaf), leaf, u)
            assert torch.allclose(product, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["attention", "attention on one pixel"])
@pytest.mark.parametrize("probes", [1, 3])
def test_forward_mode_of_a_foreign_network_is_reverse_modes_number(name, probes):
    velocity = foreign(name)
    x = normal(2, 4, 4, 4)
    z = Hutchinson(probes).draw(x)
    forward = Hutchinson(probes, mode="forward").evaluate(velocity, x, z)[1]
    reverse = Hutchinson(probes).evaluate(velocity, x, z)[1]
    assert torch.allclose(forward, reverse, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["group norm", "convolutions", "autograd.Function"])
@pytest.mark.parametrize("probes", [1, 3])
def test_a_network_without_forward_mode_is_told_of_reverse_mode(name, probes):
    velocity = foreign(name)
    x = normal(2, 4, 4, 4)
    forward = Hutchinson(probes, mode="forward")
    says = r"velocity must have derivatives in forward mode, got .*; pass mode='reverse'"
    with pytest.raises(TypeError, match=says):
        forward.evaluate(velocity, x, forward.draw(x))
    assert fastest(forward, velocity, x)[0].mode == "reverse"


def test_rademacher_mean_and_variance_over_all_sign_vectors():
    """Mean tr A and variance 2 Σ_{i≠j} S_ij², S = (A + Aᵀ)/2: an exact sum over 2⁶ probes."""
    a = normal(6, 6)
    x = normal(1, 6, seed=1)
    columns = Hutchinson().evaluate(linear(a), x, signs(6))[1]
    s = 0.5 * (a + a.T)
    variance = 2 * (s.square().sum() - s.diagonal().square().sum())
    assert float(columns.mean()) == pytest.approx(float(a.trace()), abs=1e-12)
    assert float(columns.var(correction=0)) == pytest.approx(float(variance), rel=1e-12)


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_drawn_probes_are_unbiased_with_the_variance_of_their_law(law):
    a = normal(6, 6)
    n = 20_000
    divergence = Hutchinson(n, law=law, seed=3)
    x = normal(1, 6, seed=1)
    columns = divergence.evaluate(linear(a), x, divergence.draw(x))[1][0]
    s = 0.5 * (a + a.T)
    diagonal = s.diagonal().square().sum() if law == "rademacher" else 0.0
    variance = 2 * (s.square().sum() - diagonal)
    squares = (columns - a.trace()).square()
    # Both means of n draws within five of their standard deviations.
    assert abs(float(columns.mean() - a.trace())) < 5 * float(variance / n) ** 0.5
    assert abs(float(squares.mean() - variance)) < 5 * float(squares.std()) / n**0.5
    error = divergence.error(columns[None])
    assert float(error) == pytest.approx(float(columns.std()) / n**0.5, rel=1e-9)


def test_error_of_a_mean_over_columns():
    """s/√K with s² = Σ(x − mean)²/(K − 1): 1/√3 for 1, 2, 3; nothing is known from one."""
    integral = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    for divergence in (Hutchinson(3), HutchPlusPlus(2, 3)):
        assert float(divergence.error(integral)) == pytest.approx(3**-0.5, rel=1e-12)
        assert math.isnan(float(divergence.error(integral[:, :1])))


def test_probes_are_the_signs_of_each_samples_own_normals():
    x = torch.zeros(4, 2, 3)
    normals = PerSampleNoise.numbered(mix(5, 5), 10, 4).normal(torch.empty(4, 3, 2, 3))
    assert torch.equal(Hutchinson(3, 5, 10).draw(x), 1 - 2.0 * (normals < 0))
    assert torch.equal(Hutchinson(3, 5, 10, law="gaussian").draw(x), normals)
    for divergence in (Hutchinson(3, 5, 12), HutchPlusPlus(2, 1, 5, 12)):
        assert torch.equal(divergence.draw(x[:1]), 1 - 2.0 * (normals[2:3] < 0))


# Hutch++ -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3])
def test_hutch_plus_plus_is_exact_up_to_the_rank_of_its_sketch(rank):
    a = normal(8, rank) @ normal(rank, 8, seed=1)
    x = normal(2, 8, seed=2)
    exactly = HutchPlusPlus(sketch=rank, probes=2)
    columns = exactly.evaluate(linear(a), x, exactly.draw(x))[1]
    assert torch.allclose(columns, a.trace().expand(2, 2), rtol=0, atol=1e-11)
    short = HutchPlusPlus(sketch=2, probes=1)  # of rank 3 it misses a part
    missed = short.evaluate(linear(a), x, short.draw(x))[1] - a.trace()
    assert (rank > 2) == (float(missed.abs().min()) > 1e-3)


def test_hutch_plus_plus_is_its_formula():
    a = normal(7, 7)
    x = normal(1, 7, seed=1)
    divergence = HutchPlusPlus(sketch=2, probes=3, seed=4)
    z = divergence.draw(x)
    found = divergence.evaluate(linear(a), x, z)[1][0].numpy()
    j = a.numpy()
    s = z[0, :2].numpy().T
    g = z[0, 2:].numpy().T
    q = np.linalg.qr(j.T @ s)[0]
    rest = g - q @ q.T @ g
    expected = np.trace(q.T @ j @ q) + np.einsum("ik,ij,jk->k", rest, j, rest)
    assert np.allclose(found, expected, rtol=0, atol=1e-12)


def test_hutch_plus_plus_is_unbiased_over_all_sign_vectors():
    a = normal(6, 6)
    x = normal(1, 6, seed=1)
    z = torch.cat([signs(6)[:, [3, 17]], signs(6)], 1)  # one sketch, and every g
    columns = HutchPlusPlus(2, 64).evaluate(linear(a), x, z)[1]
    assert float(columns.mean()) == pytest.approx(float(a.trace()), abs=1e-12)
    assert float(columns.std()) > 0.1


# Control variate -----------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_control_makes_one_probe_exact_on_a_gaussian(mode, law):
    """∫ zᵀJz dt less the correction is Σ log(s_i(1)/s_i(0)), by Gauss–Legendre over t."""
    a = normal(4, 4)
    data = Gaussian(normal(2, 2, seed=1), a @ a.T / 4 + 0.1 * torch.eye(4, dtype=torch.float64))
    sde = VPSDE()
    divergence = Hutchinson(2, law=law, mode=mode, control=data)
    x = normal(3, 2, 2, seed=2)
    z = divergence.draw(x)
    first, last = 0.05, 0.9
    nodes, weights = np.polynomial.legendre.leggauss(40)
    integral = torch.zeros(3, 2, dtype=torch.float64)
    for node, weight in zip(nodes, weights, strict=True):
        t = first + (last - first) * (node + 1) / 2
        columns = divergence.evaluate(flow_at(data, t), x, z)[1]
        integral += 0.5 * (last - first) * weight * columns

    def growth(variances: Tensor) -> Tensor:
        times = torch.tensor([first, last], dtype=torch.float64)
        s = (sde.alpha(times)[:, None] ** 2 * variances + sde.sigma(times)[:, None] ** 2).sqrt()
        return (s[1] / s[0]).log()

    exact = growth(data.variances[0]).sum()
    assert float((integral - exact).abs().min()) > 0.01
    corrected = integral - divergence.correction(z, growth)
    assert torch.allclose(corrected, exact.expand(3, 2), rtol=0, atol=1e-10)


def test_correction_is_unbiased_over_all_sign_vectors():
    a = normal(6, 6)
    control = fit_gaussian(normal(40, 6, seed=1) @ a)
    found = Hutchinson(64, control=control).correction(signs(6), lambda v: v.log())
    assert float(found.std()) > 0.1
    assert abs(float(found.mean())) < 1e-12
    assert Hutchinson().correction(signs(6), lambda v: v) is None
    assert HutchPlusPlus().correction(signs(6), lambda v: v) is None


def test_fitted_gaussian_has_the_moments_of_the_samples():
    samples = normal(50, 2, 2) * 3 + 1
    fitted = fit_gaussian(samples, shrinkage=0.2)
    rows = samples.flatten(1).numpy()
    c = np.cov(rows.T)
    expected = 0.8 * c + 0.2 * np.trace(c) / 4 * np.eye(4)
    found = (fitted.bases * fitted.variances[:, None]) @ fitted.bases.mT
    assert fitted.event == (2, 2)
    assert np.allclose(fitted.means[0], rows.mean(0), rtol=0, atol=1e-12)
    assert np.allclose(found[0], expected, rtol=0, atol=1e-12)


# Batches, chunks, calls ----------------------------------------------------------------------

ALL = [
    *(Exact(mode=mode) for mode in ("reverse", "forward")),
    *(Hutchinson(k, mode=mode) for k in (1, 3) for mode in ("reverse", "forward")),
    Hutchinson(2, law="gaussian"),
    HutchPlusPlus(2, 2),
]
every_divergence = pytest.mark.parametrize("divergence", ALL, ids=repr)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_divergence
def test_a_sample_has_its_bits_alone_and_in_any_batch(divergence, dtype):
    data = mixture(16)
    x = data.sample(9, torch.Generator().manual_seed(0)).to(dtype)
    velocity = flow_at(data, 0.3)
    v, columns = divergence.evaluate(velocity, x, divergence.draw(x))
    for rows in (1, 4):
        part = divergence.evaluate(velocity, x[:rows], divergence.draw(x[:rows]))
        assert torch.equal(part[0], v[:rows])
        assert torch.equal(part[1], columns[:rows])
    assert v.dtype == dtype
    assert columns.dtype == torch.float64


def test_correction_has_its_bits_alone_and_in_any_batch():
    control = fit_gaussian(normal(40, 16) @ normal(16, 16, seed=1))
    divergence = Hutchinson(3, control=control)
    z = divergence.draw(normal(20, 16))
    together = divergence.correction(z, lambda v: v.log())
    assert torch.equal(divergence.correction(z[:1], lambda v: v.log()), together[:1])


@pytest.mark.parametrize("memory", [1, 80_000, 130_000, 380_000])
def test_chunks_leave_no_trace(memory):
    """Chunks of 2, 3, 5 and 15 products of 16; all but the first leave a single one over."""
    data = mixture(16)
    x = data.sample(9, torch.Generator().manual_seed(0))
    velocity = flow_at(data, 0.3)
    whole = Exact().evaluate(velocity, x, x[:, None])[1]
    assert torch.equal(Exact(memory).evaluate(velocity, x, x[:, None])[1], whole)


def peak(function) -> int:
    """Bytes allocated at most inside the function, beside what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    now = most = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_exact_stays_within_its_memory():
    w = normal(64, 64) / 8
    x = normal(8, 64)

    def velocity(x: Tensor) -> Tensor:
        for _ in range(6):
            x = torch.tanh(x @ w)
        return x

    graph = peak(lambda: Hutchinson().evaluate(velocity, x, x[:, None]))
    memory = 2**18
    extra = peak(lambda: Exact(memory).evaluate(velocity, x, x[:, None])) - graph
    assert memory / 20 < extra < memory < peak(lambda: Exact().evaluate(velocity, x, x[:, None]))


@every_divergence
def test_one_call_of_the_velocity(divergence):
    calls = []

    def velocity(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return x.sin()

    x = normal(3, 40)
    divergence.evaluate(velocity, x, divergence.draw(x))
    assert calls == [x.shape]


def test_the_graph_is_freed_when_exact_is_done():
    """A tensor kept by its own graph would be freed by nobody."""
    outputs = []

    def velocity(x: Tensor) -> Tensor:
        v = torch.tanh(x)
        outputs.append(weakref.ref(v))
        return v

    x = normal(3, 4)
    Exact(1).evaluate(velocity, x, x[:, None])
    assert outputs[0]() is None


# Gradients and modes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "divergence",
    [
        *(d for d in ALL if not isinstance(d, HutchPlusPlus)),
        HutchPlusPlus(4, 1),  # with Q of all dimensions, whose choice does not matter
    ],
    ids=repr,
)
def test_gradients_against_finite_differences(divergence):
    z = divergence.draw(normal(2, 4))
    a = normal(2, 4)
    b = normal(2, divergence.columns)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        v, columns = divergence.evaluate(lambda x: torch.tanh(x @ w), x, z, create_graph=True)
        return (a * v).sum() + (b * columns).sum()

    x = normal(2, 4, seed=1).requires_grad_()
    w = normal(4, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, w))


@every_divergence
def test_no_graph_comes_back_unless_asked_for(divergence):
    w = normal(4, 4).requires_grad_()
    x = normal(2, 4).requires_grad_()
    z = divergence.draw(x.detach())
    for kept in divergence.evaluate(lambda x: torch.tanh(x @ w), x, z):
        assert not kept.requires_grad
    with torch.no_grad():  # as inside an autograd.Function, whose x has no graph to join
        v, _ = divergence.evaluate(lambda x: torch.tanh(x @ w), x, z, create_graph=True)
    assert torch.autograd.grad(v.sum(), x, allow_unused=True) == (None,)


@every_divergence
def test_the_callers_grad_modes_change_nothing(divergence):
    x = normal(2, 4)
    w = normal(4, 4).requires_grad_()
    z = divergence.draw(x)
    outside = divergence.evaluate(lambda x: torch.tanh(x @ w), x, z)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            inside = divergence.evaluate(lambda x: torch.tanh(x @ w), x.clone(), z.clone())
        assert torch.equal(inside[0], outside[0])
        assert torch.equal(inside[1], outside[1])


@every_divergence
@pytest.mark.parametrize(
    "velocity",
    [lambda x: x.detach().sin(), lambda x: torch.ones_like(x)],
    ids=["detached", "constant"],
)
def test_a_velocity_without_a_derivative_is_refused(divergence, velocity):
    x = normal(2, 4)
    match = f"^{type(divergence).__name__}: velocity must be differentiable in x, got a detached"
    with pytest.raises(TypeError, match=match + " tensor; remove no_grad or detach$"):
        divergence.evaluate(velocity, x, divergence.draw(x))


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(), HutchPlusPlus()], ids=repr)
def test_a_graph_to_parameters_alone_is_refused(divergence):
    w = normal(4, 4).requires_grad_()
    x = normal(2, 4)
    with pytest.raises(TypeError, match="must be differentiable in x"):
        divergence.evaluate(lambda x: x.detach() @ w, x, divergence.draw(x))


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(), HutchPlusPlus()], ids=repr)
def test_a_tensor_changed_in_place_is_refused(divergence):
    def velocity(x: Tensor) -> Tensor:
        y = 2 * x
        v = y.sin()
        y.mul_(2)
        return v

    x = normal(2, 4)
    with pytest.raises(RuntimeError, match=r"changed in place|inplace operation"):
        divergence.evaluate(velocity, x, divergence.draw(x))


# The faster mode -----------------------------------------------------------------------------


class Lopsided(torch.autograd.Function):
    """sin, with a derivative that is slow in reverse mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004  (autograd's form)
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.03)
        return gradient * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0].cos()


class ReverseOnly(torch.autograd.Function):
    """sin, without a derivative in forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(2, 3, 4, "gaussian")], ids=repr)
def test_fastest_takes_the_mode_with_the_lesser_time(divergence):
    found, shown = fastest(divergence, Lopsided.apply, normal(2, 3))
    forward, reverse = map(float, re.findall(r"([\d.e+]+) ms", shown))
    assert shown.startswith("forward mode: ")
    assert forward < 30 <= reverse
    assert found.mode == "forward"
    assert divergence.mode == "reverse"  # untouched
    assert found.columns == divergence.columns
    x = normal(2, 3)
    assert torch.equal(found.draw(x), divergence.draw(x))


def test_fastest_leaves_a_mode_that_does_not_go_through():
    found, shown = fastest(Hutchinson(mode="forward"), ReverseOnly.apply, normal(2, 3))
    assert found.mode == "reverse"
    assert "forward impossible through this network" in shown

    def graphless(x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.sin()

    found, shown = fastest(Hutchinson(), graphless, normal(2, 3))
    assert found.mode == "forward"
    assert "reverse impossible through this network" in shown
    with pytest.raises(TypeError, match="must be differentiable in x"):
        fastest(Hutchinson(), torch.ones_like, normal(2, 3))


def test_fastest_keeps_exact_within_its_memory():
    found, shown = fastest(Exact(1, "forward"), torch.sin, normal(2, 3))
    assert found == Exact(1, "reverse")
    assert "beyond the memory" in shown
    assert fastest(HutchPlusPlus(), torch.sin, normal(2, 3)) == (
        HutchPlusPlus(),
        "HutchPlusPlus has no mode to choose",
    )


# Wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: Exact(0), "Exact: memory must be at least 1, got 0"),
        (lambda: Exact(mode="both"), "Exact: mode must be reverse or forward, got 'both'"),
        (lambda: Hutchinson(0), "Hutchinson: probes must be at least 1, got 0"),
        (lambda: Hutchinson(first=-1), "Hutchinson: first must be at least 0, got -1"),
        (lambda: Hutchinson(law="x"), "Hutchinson: law must be rademacher or gaussian, got 'x'"),
        (lambda: Hutchinson(mode="x"), "Hutchinson: mode must be reverse or forward, got 'x'"),
        (lambda: Hutchinson(control=1), "Hutchinson: control must be a Gaussian, got int"),
        (lambda: HutchPlusPlus(0), "HutchPlusPlus: sketch must be at least 1, got 0"),
        (lambda: HutchPlusPlus(1, 0), "HutchPlusPlus: probes must be at least 1, got 0"),
        (lambda: fit_gaussian(torch.ones(1, 2)), "fit_gaussian: samples must be two or more"),
        (lambda: fit_gaussian(torch.ones(9, 2), 2), r"fit_gaussian: shrinkage must lie in \[0, 1"),
        (lambda: fit_gaussian(normal(5, 2)[:, :1].expand(5, 2), 0.0), "positive definite"),
        (
            lambda: Hutchinson(control=fit_gaussian(normal(9, 2))).correction(
                torch.ones(1, 1, 3), lambda v: v
            ),
            r"Hutchinson: control must have the event shape \(3,\), got \(2,\)",
        ),
    ],
)
def test_wrong_arguments_are_refused(wrong, text):
    with pytest.raises((TypeError, ValueError), match=text):
        wrong()
