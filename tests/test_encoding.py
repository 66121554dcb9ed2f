"""Latents against the flow's closed form, round trips, and the laws of interpolation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    Denoised,
    Gaussian,
    GaussianMixture,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    SubVPSDE,
    log_prob,
    uniform,
)
from sde_diffusion.likelihood.divergence import Exact
from sde_diffusion.sampling.encoding import decode, encode, interpolate, reconstruct
from sde_diffusion.solvers import DDIM, DormandPrince, EulerMaruyama, Heun, RungeKutta4

FAMILY = [VPSDE(), SubVPSDE(), VESDE(0.01, 5.0), EDMSDE(5.0), RectifiedFlow()]
every_sde = pytest.mark.parametrize("sde", FAMILY, ids=lambda sde: type(sde).__name__)
TIGHT = DormandPrince(1e-9, 1e-9)


def draws(n: int, *event: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *event, generator=generator, dtype=torch.float64)


def correlated() -> Gaussian:
    a = draws(3, 3, seed=1)
    return Gaussian(draws(3, seed=2), a @ a.mT / 3 + 0.2 * torch.eye(3, dtype=torch.float64))


def ends(sde) -> torch.Tensor:
    return torch.tensor([1e-5, sde.horizon], dtype=torch.float64)


@every_sde
def test_the_latents_of_a_gaussian_are_the_flow_s_in_closed_form(sde) -> None:
    model = correlated().diffused(sde)
    flow = ProbabilityFlow(sde, model)
    x = draws(5, 3)
    there = encode(x, flow, TIGHT)
    assert torch.allclose(there.x, model.flow(x, *ends(sde)), rtol=0, atol=1e-6)
    back = decode(there.x, flow, TIGHT)
    assert torch.allclose(back.x, x, rtol=0, atol=1e-6)
    assert there.nfe + back.nfe == flow.nfe


def test_the_latent_is_that_of_log_prob() -> None:
    model = GaussianMixture.ring(3).diffused(VPSDE())
    flow = ProbabilityFlow(model.sde, model)
    x = draws(4, 2)
    likely = log_prob(x, flow, TIGHT, divergence=Exact())
    assert torch.allclose(encode(x, flow, TIGHT).x, likely.latent, atol=1e-6)


def test_what_a_round_trip_loses_falls_at_the_solver_s_order() -> None:
    model = correlated().diffused(VPSDE())
    flow = ProbabilityFlow(model.sde, model)
    x = draws(5, 3)
    for solver, order in ((DDIM(), 1), (Heun(), 2)):
        errors = []
        for steps in (40, 80):
            trip = reconstruct(x, flow, solver, uniform(steps, 0.2, 1.0))
            expected = (trip.x - x).square().mean(1).sqrt()
            assert torch.allclose(trip.error, expected, rtol=1e-12)
            assert trip.nfe == 2 * order * steps
            errors.append(float(trip.error.mean()))
        # Heun's first error terms cancel between the way there and the way back.
        assert math.log2(errors[0] / errors[1]) > order - 0.1
    assert float(reconstruct(x, flow, TIGHT).error.max()) < 1e-6


def test_a_decoding_may_end_with_a_tweedie_step() -> None:
    model = correlated().diffused(VPSDE())
    flow = ProbabilityFlow(model.sde, model)
    z = draws(2, 3)
    grid = uniform(10)
    plain = decode(z, flow, RungeKutta4(), grid).x
    found = decode(z, flow, RungeKutta4(), Denoised(grid)).x
    assert torch.allclose(found, model.denoise(plain, grid[-1]), rtol=1e-12)


def test_a_latent_is_the_same_alone_and_in_a_batch_bit_for_bit() -> None:
    model = GaussianMixture.ring(3).diffused(VPSDE())
    flow = ProbabilityFlow(model.sde, model)
    x = draws(5, 2)
    together = reconstruct(x, flow, DormandPrince())
    for i in range(5):
        alone = reconstruct(x[i : i + 1], flow, DormandPrince())
        assert torch.equal(alone.latent, together.latent[i : i + 1])
        assert torch.equal(alone.error, together.error[i : i + 1])


# Interpolation.

number = st.floats(-3, 3)
vector = st.lists(number, min_size=4, max_size=4).map(
    lambda values: torch.tensor([values], dtype=torch.float64).reshape(1, 2, 2)
)
weight = st.floats(0, 1)


def length(z: torch.Tensor) -> torch.Tensor:
    return z.flatten(-2).norm(dim=-1)


@given(vector, vector, weight)
def test_the_length_changes_in_proportion(z0, z1, w) -> None:
    found = interpolate(z0, z1, [0.0, w, 1.0])
    expected = (1 - w) * length(z0) + w * length(z1)
    assert torch.allclose(length(found[1]), expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found[[0, 2]], torch.stack([z0, z1]), rtol=1e-9, atol=1e-9)


@given(vector, vector, weight, st.floats(1e-3, 1e3))
def test_the_scale_of_the_prior_and_the_sense_of_the_way_do_not_matter(z0, z1, w, c) -> None:
    found = interpolate(z0, z1, [w])
    assert torch.allclose(interpolate(c * z0, c * z1, [w]), c * found, rtol=1e-6, atol=1e-6 * c)
    if float((z0 + z1).norm()) > 1e-3:  # opposite latents have two ways
        assert torch.allclose(interpolate(z1, z0, [1 - w]), found, rtol=1e-6, atol=1e-6)


def test_the_direction_turns_at_a_constant_rate() -> None:
    """At weight w the angle to z0 is w times that to z1, by acos."""
    z0 = draws(6, 5)
    z1 = draws(6, 5, seed=1)
    found = interpolate(z0, z1, torch.linspace(0, 1, 5))
    angle = torch.acos(torch.cosine_similarity(found, z0[None], dim=2).clamp(max=1))
    whole = torch.acos(torch.cosine_similarity(z0, z1, dim=1))
    assert torch.allclose(angle, torch.linspace(0, 1, 5)[:, None] * whole, atol=1e-7)


@pytest.mark.parametrize("gap", [0.0, 1e-15, 1e-12, 1e-8, 1e-4])
def test_nearly_parallel_and_opposite_latents(gap) -> None:
    z0 = torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64)
    z1 = z0 + gap * torch.tensor([[4.0, -3.0, 1.0]], dtype=torch.float64)
    near = interpolate(z0, z1, [0.25])[0]
    assert torch.allclose(near, 0.75 * z0 + 0.25 * z1, rtol=0, atol=5e-15 + gap**2)
    far = interpolate(z0, -z1, [0.0, 0.5, 1.0])
    assert torch.allclose(far.norm(dim=2), torch.tensor(5.0, dtype=torch.float64), rtol=1e-8)
    assert torch.allclose(far[[0, 2]], torch.stack([z0, -z1]), rtol=0, atol=1e-12)
    assert abs(float((far[1] * z0).sum())) < 1e-7 + 26 * gap  # half the way is a right angle


def test_zero_and_one_dimension_go_straight() -> None:
    z = torch.tensor([[3.0, 4.0]])
    zero = torch.zeros(1, 2)
    assert torch.allclose(interpolate(zero, z, [0.5]), z[None] / 2)
    assert torch.allclose(interpolate(z, zero, [0.25]), 0.75 * z[None])
    assert torch.equal(interpolate(zero, zero, [0.5]), zero[None])
    one = interpolate(torch.tensor([[1.0]]), torch.tensor([[3.0]]), [0.0, 0.5, 1.0])
    assert torch.allclose(one.flatten(), torch.tensor([1.0, 2.0, 3.0]))
    through = interpolate(torch.tensor([[1.0]]), torch.tensor([[-3.0]]), [0.0, 0.5, 1.0])
    assert torch.allclose(through.flatten(), torch.tensor([1.0, 0.0, -3.0]), atol=1e-6)


@every_sde
def test_the_lengths_are_those_of_the_prior(sde) -> None:
    """χ of 64 dimensions: mean 7.97 and deviation .71, in units of the prior's deviation."""
    std = sde.prior().std
    z0 = std * draws(400, 64)
    z1 = std * draws(400, 64, seed=1)
    middle = interpolate(z0, z1, [0.5])[0] / std
    assert float(middle.norm(dim=1).mean()) == pytest.approx(7.969, abs=0.1)
    straight = (z0 + z1) / 2 / std
    assert float(straight.norm(dim=1).mean()) < 6


MODEL = correlated().diffused(VPSDE())
FLOW = ProbabilityFlow(VPSDE(), MODEL)
X = torch.zeros(1, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: encode(X, FLOW, Heun()),
            ValueError,
            "encode: grid must be given for a solver with fixed steps, got none; pass for example",
        ),
        (lambda: decode(X, FLOW, Heun()), ValueError, "decode: grid must be given"),
        (
            lambda: encode(X, FLOW, Heun(), uniform(5)),
            ValueError,
            r"run from the data \(t near 0\) to the prior, got 1 … 0.001; reverse it with grid",
        ),
        (
            lambda: decode(X, FLOW, Heun(), uniform(5, 1e-3, 1.0)),
            ValueError,
            "decode: grid must run from noise",
        ),
        (
            lambda: decode(X, ReverseSDE(VPSDE(), MODEL), EulerMaruyama(), uniform(5)),
            TypeError,
            "decode: flow must be a ProbabilityFlow, got ReverseSDE",
        ),
        (
            lambda: encode(X, MODEL, DormandPrince()),
            TypeError,
            r"encode: flow must be .*, got ExactScore; pass ProbabilityFlow\(sde, score\)",
        ),
        (
            lambda: encode(X, FLOW, EulerMaruyama(), uniform(5, 1e-3, 1.0)),
            TypeError,
            "dynamics must be of the kind SDE",
        ),
        (lambda: encode(X, FLOW, Heun(), [0.1, 1.0]), TypeError, "be a torch.Tensor, got list"),
        (
            lambda: interpolate(X, torch.zeros(1, 2), [0.5]),
            ValueError,
            r"z1 must have the shape \(1, 3\) of z0, got \(1, 2\)",
        ),
        (lambda: interpolate(X, X, 0.5), ValueError, r"weights must be one row of numbers"),
    ],
)
def test_mistakes_end_in_one_clear_sentence(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
