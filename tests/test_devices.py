"""All but the solvers on a CUDA device: the numbers of the CPU.

The device is the GPU where there is one, else the pretend one of `pretend_device`, which refuses
what CUDA would: devices that mix, a generator of another device, NumPy. Whatever draws on the
device draws other numbers there, and is held to a closed form or to its own standard error.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pretend_device import current_log
from torch import Tensor, nn

from sde_diffusion import (
    MLP,
    VPSDE,
    AnalyticVariance,
    Angle,
    ArnoldiLogDet,
    BinDecoder,
    Chain,
    CosineBeta,
    Dataset,
    DataSpec,
    DiscreteBeta,
    DynamicThreshold,
    EvaluationSettings,
    Exact,
    Explicit,
    FixedPoint,
    Gaussian,
    GaussianMixture,
    Guided,
    HeldOutBound,
    Hutchinson,
    HutchPlusPlus,
    LevelDecoder,
    Logit,
    LogSNR,
    LossByLevel,
    Newton,
    PerSampleNoise,
    ProbabilityFlow,
    RectifiedFlow,
    SamplePicture,
    ScoreLike,
    ScoreModel,
    StaticThreshold,
    SubVPSDE,
    Time,
    TrainingConfig,
    TruncatedNormal,
    UNet,
    Uniform,
    Variational,
    audit,
    decode,
    discrete_log_prob,
    elbo,
    encode,
    evaluate,
    first_fold,
    fit_dequantizer,
    fit_gaussian,
    guided,
    interpolate,
    lattice,
    linear_betas,
    load,
    log_prob,
    optimised,
    reconstruct,
    reconstruct_average,
    sample,
    sample_tilted,
    sampler_inverse,
    sampler_log_prob,
    save_model,
    train,
    uniform,
    vlb,
)
from sde_diffusion.cli.main import main
from sde_diffusion.diagnostics.metrics import (
    Reference,
    frechet_distance,
    mmd,
    rms_distance,
    sliced_wasserstein,
)
from sde_diffusion.objectives.spacings import Stratified
from sde_diffusion.objectives.weighting import perceptual
from sde_diffusion.solvers import (
    DDIM,
    DDPM,
    AdaptiveAdams,
    AngularAdams,
    DormandPrince,
    EulerMaruyama,
    Heun,
    RungeKutta4,
)
from sde_diffusion.time_distributions import UniformTimes

VP = VPSDE()


@cache
def weights(kind: str) -> nn.Module:
    """Return a network whose output is not zero; the same for every device."""
    images = {"channels": 1, "width": 4, "multipliers": (1,), "blocks": 1, "attention": ()}
    made = {
        "mlp": lambda: MLP(2, width=8, depth=1),
        "unet": lambda: UNet(**images, classes=3),
        "fir": lambda: UNet(**images | {"multipliers": (1, 1), "resampling": "fir"}),
        "learned": lambda: UNet(**images, outputs=2),
    }[kind]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def net(kind: str, device: str, **more: object) -> ScoreModel:
    return ScoreModel(copy.deepcopy(weights(kind)), VP, **more).to(device).eval()


def ring(device: str) -> ScoreLike:
    return GaussianMixture.ring(3).to(device).diffused(VP)


MODELS = {"mlp": lambda device: net("mlp", device), "ring": ring}


def drawn(*shape: int, device: str = "cpu", seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def flow_of(model: ScoreLike) -> ProbabilityFlow:
    return ProbabilityFlow(model.sde, model)


def same(make: Callable[[str], object], close: float = 1e-5) -> None:
    """Hold what is made on the device, tensors or numbers, to what the CPU makes."""
    expected = make("cpu")
    found = make("cuda")
    if not isinstance(expected, tuple):
        expected, found = (expected,), (found,)
    for a, b in zip(expected, found, strict=True):
        if isinstance(a, Tensor) and a.numel() > 1:
            assert b.device.type == "cuda"
        a, b = (torch.as_tensor(v).detach().cpu().double() for v in (a, b))
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=close, atol=close), (a - b).abs().max()


pytestmark = pytest.mark.usefixtures("device")  # both run with it: "cpu" is the CPU itself


# --- coefficients and scores ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "sde",
    [VP, VPSDE(CosineBeta()), VPSDE(DiscreteBeta(linear_betas(20))), SubVPSDE(), RectifiedFlow()],
    ids=repr,
)
def test_coefficients_at_times_on_the_device(sde) -> None:
    def found(device: str) -> tuple[Tensor, ...]:
        t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, device=device)
        lambda_ = sde.lambda_(t)
        return (sde.alpha(t), sde.sigma(t), sde.rate(t), sde.g(t), lambda_, sde.time(lambda_))

    same(found, 1e-9)


@pytest.mark.parametrize("kind", MODELS)
def test_scores_at_one_time_and_at_times_of_their_own(kind: str) -> None:
    def found(device: str) -> tuple[Tensor, ...]:
        model = MODELS[kind](device)
        x = drawn(3, 2, device=device)
        own = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
        times = (torch.tensor(0.5), own, own.to(device), torch.tensor(0.5, device=device))
        forms = (model, model.eps, model.denoise, model.velocity)
        return tuple(form(x, t) for form in forms for t in times)

    same(found)


def test_an_oracle_answers_where_the_states_are() -> None:
    model = GaussianMixture.ring(3).diffused(VP)  # its arrays are on the CPU
    x = drawn(4, 2)
    t = torch.tensor(0.3, dtype=torch.float64)
    for form in (model, model.denoise, model.log_prob, lambda x, _: model.oracle.log_prob(x)):
        found = form(x.to("cuda"), t)
        assert found.device.type == "cuda"
        assert torch.allclose(found.cpu(), form(x, t))
    assert model.device.type == "cpu"


@pytest.mark.parametrize("covariance", ["stds", "full"])
def test_draws_of_an_oracle_are_the_generator_s_wherever_its_arrays_are(covariance: str) -> None:
    def made(device: str) -> GaussianMixture:
        means = torch.tensor([[0.0, 1.0], [2.0, 0.0]], device=device)
        if covariance == "stds":
            return GaussianMixture([1.0, 2.0], means, stds=[0.1, 0.2])
        shapes = torch.tensor([[[1.0, 0.2], [0.2, 1.0]]] * 2, device=device)
        return GaussianMixture([1.0, 2.0], means, shapes)

    def found(device: str) -> tuple[Tensor, ...]:
        score = made(device).diffused(VP)
        generator = torch.Generator().manual_seed(3)
        t = torch.tensor(0.5, dtype=torch.float64)
        return score.oracle.sample(5, generator), score.sample(5, t, generator)

    same(found, 1e-12)
    there = made("cuda").sample(5000, torch.Generator("cuda").manual_seed(0))
    assert there.device.type == "cuda"
    assert torch.allclose(there.mean(0).cpu(), torch.tensor([4 / 3, 1 / 3]).double(), atol=0.1)


def test_a_fir_network_does_not_wait(pretend) -> None:
    model = net("fir", "cuda")
    x = drawn(2, 1, 8, 8, device="cuda")
    t = torch.full((2,), 0.5, device="cuda")
    since = len(pretend.events)
    with torch.no_grad():
        found = model.network(x, t)
    assert pretend.counts(since).keys() == {"kernel"}
    assert torch.allclose(found.cpu(), weights("fir")(x.cpu(), t.cpu()), atol=1e-5)


# --- guidance, thresholds, grids -----------------------------------------------------------------


def of_labels(device: str) -> ScoreModel:
    return net("unet", device).given(torch.tensor([0, 2]))


GUIDED = {
    "given": of_labels,
    "guided": lambda device: guided(net("unet", device), torch.tensor([0, 1]), 0.7),
    "static": lambda device: StaticThreshold(of_labels(device)),
    "dynamic": lambda device: DynamicThreshold(of_labels(device)),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_and_thresholds(name: str) -> None:
    def found(device: str) -> Tensor:
        model = GUIDED[name](device)
        x = drawn(2, 1, 4, 4, device=device)
        with torch.no_grad():
            return decode(x, flow_of(model), DDIM(), uniform(3, 1.0, 1e-3)).x

    same(found, 1e-3)


def test_guidance_of_two_oracles_and_a_tilted_sample() -> None:
    def tilted(device: str) -> ScoreLike:
        return Guided(ring(device), ring(device), 0.5)

    x = drawn(4, 2)
    t = torch.tensor(0.4, dtype=torch.float64)
    assert torch.allclose(tilted("cuda")(x.to("cuda"), t).cpu(), tilted("cpu")(x, t))
    found = sample_tilted(tilted("cuda"), EulerMaruyama(), (6, 2), steps=20, resample_below=1.0)
    # Guidance of a score by itself is that score: every weight is one.
    assert found.effective_size == pytest.approx(6, rel=1e-6)
    assert found.resampled().device.type == "cuda"


def test_a_fitted_grid_is_better_than_an_even_one() -> None:
    model = ring("cuda")
    grid = optimised(model, DDIM(), 4, shape=(8, 2))
    assert grid.device.type == "cpu"
    cpu = ring("cpu")
    x = drawn(64, 2)
    exact = decode(x, flow_of(cpu), RungeKutta4(), uniform(60, 1.0, float(grid[-1]))).x
    even = uniform(4, 1.0, float(grid[-1]))
    errors = [rms_distance(decode(x, flow_of(cpu), DDIM(), g).x, exact) for g in (grid, even)]
    assert errors[0] < 0.7 * errors[1]


# --- likelihoods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("kind", MODELS)
def test_log_likelihoods_with_the_exact_divergence(kind: str, mode: str) -> None:
    def found(device: str) -> tuple[Tensor, ...]:
        flow = flow_of(MODELS[kind](device))
        x = 0.5 * drawn(3, 2, device=device)
        made = log_prob(
            x, flow, RungeKutta4(), grid=uniform(4, 1e-3, 1.0), divergence=Exact(mode=mode)
        )
        return made.nats, made.bits_per_dim, made.latent

    same(found, 1e-4)


NORMAL = Gaussian(torch.zeros(2), 0.25 * torch.eye(2))


@pytest.mark.parametrize(
    "divergence",
    [
        Hutchinson(2),
        Hutchinson(2, mode="forward"),
        HutchPlusPlus(2, 1),
        Hutchinson(2, control=NORMAL),
    ],
    ids=repr,
)
def test_probes_on_the_device_find_the_divergence_of_a_round_gaussian(divergence) -> None:
    """The Jacobian is a multiple of 1: Rademacher probes are exact."""
    flow = flow_of(NORMAL.diffused(VP))
    x = 0.5 * drawn(3, 2).double()
    grid = uniform(3, 1e-3, 1.0)
    expected = log_prob(x, flow, RungeKutta4(), grid=grid, divergence=Exact())
    found = log_prob(x.to("cuda"), flow, RungeKutta4(), grid=grid, divergence=divergence)
    assert torch.allclose(found.nats.cpu(), expected.nats, atol=1e-8)


@pytest.mark.parametrize(
    "solver", [RungeKutta4(), DormandPrince(1e-2, 1e-2), AdaptiveAdams(1e-2, 1e-2)]
)
@pytest.mark.parametrize("variable", [Time, LogSNR, Angle])
def test_log_likelihoods_in_every_variable(variable, solver) -> None:
    def found(device: str) -> Tensor:
        x = 0.5 * drawn(3, 2, device=device)
        grid = None if solver.adaptive else uniform(3, 1e-3, 1.0)
        flow = flow_of(NORMAL.diffused(VP))
        return log_prob(x, flow, solver, grid=grid, variable=variable, divergence=Exact()).nats

    same(found, 1e-4)


def test_gradients_of_a_log_likelihood() -> None:
    def found(device: str) -> tuple[Tensor, ...]:
        model = net("mlp", device)
        x = (0.5 * drawn(3, 2, device=device)).requires_grad_()
        made = log_prob(
            x,
            flow_of(model),
            Heun(),
            grid=uniform(3, 1e-3, 1.0),
            divergence=Exact(),
            keep_graph=True,
        )
        made.nats.sum().backward()
        return (x.grad, *(p.grad for p in model.parameters() if p.grad is not None))

    same(found, 1e-3)


GREYS = DataSpec("d", (1, 4, 4), 5)
K = torch.randint(0, 5, (2, 1, 4, 4), generator=torch.Generator().manual_seed(0))
CENTRES = GREYS.encode(torch.arange(5), 0.5)

BOUNDS = {
    "elbo": lambda x, m: elbo(x, m, draws=40),
    "elbo of levels": lambda x, m: elbo(x, m, draws=40, decoder=LevelDecoder(CENTRES)),
    "vlb": lambda x, m: vlb(x, m, lattice(10)),
    "vlb of bins": lambda x, m: vlb(x, m, lattice(40), decoder=BinDecoder(CENTRES), draws=20),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_those_of_the_cpu_within_their_errors(name: str) -> None:
    x = GREYS.encode(K, 0.5)
    data = Gaussian(torch.zeros(1, 4, 4), 0.3 * torch.eye(16))
    model = data.diffused(VP)
    expected = BOUNDS[name](x, model)
    found = BOUNDS[name](x.to("cuda"), model)
    error = (expected.standard_error**2 + found.standard_error.cpu() ** 2).sqrt()
    assert ((found.nats.cpu() - expected.nats).abs() <= 5 * error + 1e-9).all()


def test_learned_and_analytic_variances() -> None:
    def learned(device: str) -> Tensor:
        model = net("learned", device, variance="learned")
        x = drawn(2, 1, 4, 4, device=device)
        with torch.no_grad():
            mean, v = model.with_fraction("x0", x, torch.tensor(0.5, dtype=torch.float64))
        return torch.cat([mean, v])

    same(learned)
    chain = Chain(VP, lattice(6))
    model = NORMAL.diffused(VP)
    x0 = 0.5 * drawn(4000, 2)
    powers = [AnalyticVariance.estimated(model, x, chain).power for x in (x0, x0.to("cuda"))]
    assert torch.allclose(*powers, rtol=0.1)
    made = AnalyticVariance(powers[0])
    assert sample(model, DDPM(variance=made), (2, 2), grid=lattice(6)).x.isfinite().all()


@pytest.mark.parametrize("reference", [None, ring], ids=["plain", "reference"])
def test_a_ledger(reference) -> None:
    def found(device: str) -> tuple[float, ...]:
        flow = flow_of(net("mlp", device))
        x = 0.5 * drawn(3, 2, device=device)
        made = audit(
            x,
            flow,
            Heun(),
            grid=uniform(3, 1e-3, 1.0),
            divergence=Exact(),
            # As it is made, on the CPU.
            reference=None if reference is None else reference("cpu"),
        )
        rows = [row[1:3] for row in made.table()]
        return (made.value, made.corrected, made.half_width(), *(v for row in rows for v in row))

    same(found, 1e-4)


def test_a_gaussian_of_data_on_the_device() -> None:
    def found(device: str) -> tuple[Tensor, ...]:
        made = fit_gaussian(drawn(40, 2, device=device))
        end = made.diffused(VP).marginal(torch.tensor(1.0, dtype=torch.float64))
        return made.means, made.variances, end.log_prob(drawn(3, 2, device=device).double())

    same(found, 1e-9)


# --- encoding, inversion, the sampler's own density ----------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_encoding_and_its_way_back(kind: str) -> None:
    def found(device: str) -> tuple[Tensor, ...]:
        flow = flow_of(MODELS[kind](device))
        x = 0.5 * drawn(3, 2, device=device)
        with torch.no_grad():
            latent = encode(x, flow, DormandPrince(1e-2, 1e-2)).x
            back = reconstruct(x, flow, Heun(), uniform(6, 1e-3, 1.0))
        return latent, back.x, interpolate(latent, latent.flip(0), [0.25, 0.5])

    same(found, 1e-4)


@pytest.mark.parametrize("method", [Newton(), FixedPoint()], ids=["newton", "fixed-point"])
def test_the_inverse_of_a_sampler(method) -> None:
    def found(device: str) -> Tensor:
        flow = flow_of(net("mlp", device))
        x = 0.5 * drawn(3, 2, device=device)
        return sampler_inverse(x, flow, DDIM(), uniform(6), method=method, tolerance=1e-4).latent

    same(found, 1e-3)


@pytest.mark.parametrize("solver", [DDIM(), AngularAdams()], ids=["one-step", "multistep"])
def test_the_density_of_a_sampler(solver) -> None:
    def found(device: str) -> tuple[Tensor, ...]:
        flow = flow_of(net("mlp", device))
        z = drawn(3, 2, device=device)
        made = sampler_log_prob(z, flow, solver, uniform(12))
        return made.nats, made.x

    same(found, 1e-3)


def test_other_ways_to_a_sampler_s_density() -> None:
    flow = flow_of(net("mlp", "cuda"))
    z = drawn(3, 2, device="cuda")
    grid = uniform(12)
    exact = sampler_log_prob(z, flow, DDIM(), grid).nats
    krylov = sampler_log_prob(z, flow, DDIM(), grid, log_det=ArnoldiLogDet(2, 4)).nats
    assert torch.allclose(exact.cpu(), krylov.cpu(), atol=0.5)
    host = flow_of(net("mlp", "cpu"))
    folds = first_fold(z, flow, DDIM(), grid)
    assert torch.equal(folds.cpu(), first_fold(z.cpu(), host, DDIM(), grid))


# --- data, dequantization, metrics ---------------------------------------------------------------


@pytest.mark.parametrize("spec", [GREYS, DataSpec("d", (1, 4, 4), 5, Logit())], ids=repr)
def test_data_are_scaled_where_they_are(spec) -> None:
    def found(device: str) -> tuple[Tensor, ...]:
        k = K.to(device)
        x = spec.encode(k, torch.full(k.shape, 0.25, device=device))
        generator = torch.Generator().manual_seed(0)
        dequantized = Dataset(spec, k, None).batch(torch.tensor([1, 0]), generator)
        return x, spec.decode(x), spec.log_volume(x), dequantized

    same(found)


DEQUANTIZERS = {
    "uniform": lambda device: Uniform(),  # noqa: ARG005
    "truncated": lambda device: TruncatedNormal(0.4),  # noqa: ARG005
    "variational": lambda device: variational().to(device),
}


def variational() -> Variational:
    made = Variational(GREYS, couplings=1, width=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.layers.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.mark.parametrize("levels", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["uniform", "truncated", "variational"])
def test_discrete_likelihoods_of_levels_on_either_device(name: str, levels: str) -> None:
    """Of a density that is the same for all x in a cell: one draw is exact, whatever is drawn."""
    constant = math.log(0.5) * 16

    def density(x: Tensor, first: int) -> Tensor:  # noqa: ARG001
        return torch.full((len(x),), constant, dtype=torch.float64, device=x.device)

    made = {"uniform": Uniform(), "truncated": TruncatedNormal(0.4), "variational": variational()}
    found = discrete_log_prob(K.to(levels), GREYS, density, made[name], draws=400)
    expected = discrete_log_prob(K, GREYS, density, made["uniform"], draws=1)
    gap = (found.nats.cpu() - expected.nats).abs()
    assert (gap <= 5 * found.standard_error.cpu() + 0.3).all()


def test_a_dequantizer_is_fitted_where_the_model_is() -> None:
    def found(device: str) -> tuple[Tensor, ...]:
        noise = variational()
        noise.layers.to(device)
        fit_dequantizer(noise, Dataset(GREYS, K, None), net("unet", device), steps=1, batch_size=2)
        return tuple(p.detach() for p in noise.layers.parameters())

    same(found, 5e-3)


def test_distances_of_samples_on_different_devices() -> None:
    x = drawn(40, 3)
    y = drawn(40, 3, seed=2)
    for here, there in [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")]:
        a = x.to(here)
        b = y.to(there)
        for distance in (rms_distance, sliced_wasserstein, mmd, frechet_distance):
            assert distance(a, b) == pytest.approx(distance(x, y), rel=1e-6, abs=1e-9)
        own = Reference(b)
        plain = Reference(y)
        assert own.mmd(a) == pytest.approx(plain.mmd(x), rel=1e-6, abs=1e-9)
        assert own.frechet(a) == pytest.approx(plain.frechet(x), rel=1e-6)
        assert own.sliced_wasserstein(a) == pytest.approx(plain.sliced_wasserstein(x), rel=1e-6)


def test_an_evaluation_of_a_data_set() -> None:
    """Of uniform levels under their own density, 16 dimensions of a bit and a third each."""
    k = torch.randint(0, 5, (64, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    settings = EvaluationSettings(("elbo",), batch_size=32, draws=1, times=8)
    model = Gaussian(torch.zeros(1, 4, 4), torch.eye(16) / 3).diffused(VP)

    def found(place: ScoreLike) -> float:
        made = evaluate(place, Dataset(GREYS, k, None), DDIM(), settings)
        return made.summary("elbo").bits_per_dim

    assert found(model.to("cuda")) == pytest.approx(found(model), abs=0.1)


# --- training ------------------------------------------------------------------------------------

BASE = {"steps": 3, "batch_size": 4, "warmup": 1, "chain_steps": 10, "log_every": 1}
KINDS = {
    "denoising": {},
    "likelihood": {"weighting": "likelihood"},
    "min-snr": {"weighting": "min-snr"},
    "vdm": {"weighting": "vdm"},
    "loss-aware": {"spacing": "loss-aware"},
    "antithetic": {"spacing": "antithetic"},
    "uncertainty": {"uncertainty": "learned"},
    "vlb": {"objective": "vlb"},
    "accumulate": {"accumulate": 2},
    "averages": {"ema_half_lives": (2.0,), "ema_widths": (0.1,)},
}
IMAGES = DataSpec("d", (1, 4, 4), 5)


def images(labels: bool) -> Dataset:
    k = torch.randint(0, 5, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return Dataset(IMAGES, k, torch.arange(12) % 3 if labels else None)


def losses(
    model: ScoreModel, data: Dataset, config: TrainingConfig, **more: object
) -> list[float]:
    return [progress.loss for progress in train(model, data, config, **more)]


@pytest.mark.parametrize("name", KINDS)
def test_every_objective_trains_as_on_the_cpu(name: str) -> None:
    def found(device: str) -> tuple[float, ...]:
        kind = "unet"
        model = net(kind, device)
        return tuple(losses(model, images(labels=True), TrainingConfig(**BASE | KINDS[name])))

    same(found, 1e-3)


@pytest.mark.parametrize("objective", ["implicit", "sliced"])
def test_score_matching_trains_on_the_device(objective: str) -> None:
    """Its own draws are the device's: the first loss is of the size that the CPU finds."""
    points = Dataset(DataSpec("p", (2,), None), drawn(256, 2), None)
    config = TrainingConfig(**BASE | {"objective": objective, "batch_size": 256, "steps": 1})
    here, there = (losses(net("mlp", d), points, config)[0] for d in ("cpu", "cuda"))
    assert there == pytest.approx(here, rel=0.5, abs=0.5)


def test_the_explicit_objective_takes_an_oracle_as_it_is_made() -> None:
    def found(device: str) -> tuple[float, ...]:
        points = Dataset(DataSpec("p", (2,), None), drawn(16, 2), None)
        objective = Explicit(UniformTimes(), Stratified(), 1e-5, perceptual, ring("cpu"))
        config = TrainingConfig(**BASE)
        return tuple(losses(net("mlp", device), points, config, objective=objective))

    same(found, 1e-3)


@pytest.mark.parametrize("coupling", ["independent", "optimal-transport"])
def test_data_on_the_device_train_as_on_the_cpu(coupling: str) -> None:
    def found(device: str) -> tuple[float, ...]:
        labelled = coupling == "independent"
        data = images(labels=labelled)
        labels = data.labels.to(device) if labelled else None
        data = Dataset(IMAGES, data.values.to(device), labels)
        kind = "unet" if labelled else "fir"
        config = TrainingConfig(**BASE | {"coupling": coupling})
        return tuple(losses(net(kind, device), data, config))

    same(found, 1e-3)


def test_a_run_is_kept_resumed_and_loaded_on_the_device(tmp_path) -> None:
    data = images(labels=True)
    config = TrainingConfig(
        **BASE | {"steps": 4},
        checkpoint_every=2,
        evaluate_every=2,
        spacing="loss-aware",
        ema_widths=(0.1,),
        snapshot_every=2,
    )
    monitors = [
        LossByLevel(data, bins=2, rows=4),
        HeldOutBound(data, draws=2, rows=4),
        SamplePicture(lambda m: sample(m, DDIM(), (2, 1, 4, 4), steps=2).x),
    ]
    whole = net("unet", "cuda")
    for _ in train(whole, data, config):
        pass
    for progress in train(net("unet", "cuda"), data, config, out=tmp_path / "run"):
        if progress.step == 2:
            break
    again = net("unet", "cuda")
    for _ in train(again, data, config, out=tmp_path / "run", resume=True, monitors=monitors):
        pass
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.cpu(), b.cpu())
    for place in ("cuda", "cpu"):
        read = load(tmp_path / "run", device=place)
        assert read.device.type == place
        x = drawn(2, 1, 4, 4)
        t = torch.tensor(0.5)
        with torch.no_grad():
            assert torch.allclose(read(x.to(place), t).cpu(), again.eval()(x.to("cuda"), t).cpu())
    save_model(tmp_path / "copy.safetensors", again)
    assert reconstruct_average(tmp_path / "run", 0.11).device.type == "cpu"


# --- the command line ----------------------------------------------------------------------------


COMMANDS = {
    "sample": "sample --model digits --solver ddim --steps 2 -n 2 --class 0-1 --out s",
    "sample ring": "sample --model ring --solver heun --steps 3 -n 4 --out s",
    "compare": "compare --model ring --solver heun --nfe 4 --samples 32 --out c",
    "likelihood": "likelihood --model digits --data digits --limit 2 --bound elbo --out b",
    "train": "train --data digits --steps 2 --batch-size 4 --width 8 --out run",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_computes_on_the_device(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = current_log()
    done = CliRunner().invoke(main, [*COMMANDS[name].split(), "--device", "cuda"])
    assert log is None or log.counts()["kernel"] > 100
    assert done.exit_code == 0, done.output
    assert any(tmp_path.iterdir())


def test_numbers_of_the_device_leave_it_by_a_copy_only(pretend) -> None:
    x = drawn(2, device="cuda")
    with pytest.raises(TypeError, match="to numpy"):
        np.asarray(x)
    assert PerSampleNoise([1]).normal(x[None]).device.type == "cuda"
    assert pretend.counts()["h2d"] == 1
