"""Latents: exact likelihoods through a linear map, bounds through a Gaussian one, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import (
    MLP,
    VESDE,
    VPSDE,
    ConvolutionalAutoencoder,
    Dataset,
    DataSpec,
    EncoderDecoder,
    FunctionScore,
    Gaussian,
    GaussianAutoencoder,
    GaussianMixture,
    Guided,
    LatentModel,
    LinearAutoencoder,
    LogLikelihood,
    ProbabilityFlow,
    ScoreModel,
    UNet,
    elbo,
    latent_log_prob,
    load,
    load_autoencoder,
    load_latent,
    log_prob,
    sample,
    save_model,
)
from sde_diffusion.likelihood import Exact
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.solvers import DormandPrince, Heun

TIGHT = DormandPrince(rtol=1e-9, atol=1e-9)
FAST = DormandPrince(rtol=1e-5, atol=1e-5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def by_flow(model: LatentModel, solver=TIGHT):
    flow = ProbabilityFlow(model.sde, model)
    return lambda z, _first: log_prob(z, flow, solver, divergence=Exact())


def exactly_normal(z, _first):
    """Return log N(z; 0, 1), which the flow of VP gives as well but for its solver's error."""
    nats = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    none = torch.zeros_like(nats)
    return LogLikelihood(nats, none, none, none, {}, 0, z)


# --- a linear autoencoder ---


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 20.0)])
def test_the_latents_density_and_the_determinant_are_the_datas_density(sde):
    # x = W⁻¹ z + b of a mixture is a mixture; the flow of z with log|det W| must give its density.
    matrix = normals(2, 2) + 2 * torch.eye(2, dtype=torch.float64)
    offset = normals(2, seed=1)
    means = normals(2, 2, seed=2)
    covariances = torch.stack([torch.diag(torch.tensor(v)) for v in ([0.5, 1], [1, 0.3])])
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    inverse = torch.linalg.inv(matrix)
    latent = GaussianMixture(weights, means, covariances.double())
    observed = GaussianMixture(
        weights, means @ inverse.T + offset, inverse @ covariances.double() @ inverse.T
    )
    model = LatentModel(LinearAutoencoder(matrix, offset), latent.diffused(sde)).eval()
    x = observed.sample(3, generator())
    solver = DormandPrince(rtol=1e-7, atol=1e-7)
    found = latent_log_prob(x, model, by_flow(model, solver))
    # The same flow on the latents alone, and the oracle of x, which shares none of this code.
    z = model.encode(x)
    alone = log_prob(z, ProbabilityFlow(sde, latent.diffused(sde)), solver, divergence=Exact())
    assert (found.nats - alone.nats - torch.linalg.slogdet(matrix)[1]).abs().max() < 1e-12
    exactly = latent.log_prob(z) + torch.linalg.slogdet(matrix)[1]
    assert (observed.log_prob(x) - exactly).abs().max() < 1e-12
    flow_error = (alone.nats - latent.log_prob(z)).abs().max()
    assert (found.nats - observed.log_prob(x)).abs().max() < flow_error + 1e-10
    assert found.exact
    assert found.nfe == alone.nfe  # one solve, whatever `draws` says


def test_a_gaussians_likelihood_through_a_matrix_is_the_datas_to_1e_8():
    # N(0, I) is kept by VP, so that the flow has no error of its own, nor a cut at t_min.
    matrix = normals(4, 4) + 3 * torch.eye(4, dtype=torch.float64)
    latent = Gaussian(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    inverse = torch.linalg.inv(matrix)
    observed = Gaussian(torch.zeros(4, dtype=torch.float64), inverse @ inverse.T)
    autoencoder = LinearAutoencoder(matrix, event=(1, 2, 2), latent=(4,))
    model = LatentModel(autoencoder, latent.diffused(VPSDE())).eval()
    x = observed.sample(6, generator())
    found = latent_log_prob(x.reshape(6, 1, 2, 2), model, by_flow(model))
    assert (found.nats - observed.log_prob(x)).abs().max() < 1e-8
    bits = -observed.log_prob(x) / (4 * math.log(2))
    assert (found.bits_per_dim - bits).abs().max() < 1e-8


def test_principal_components_are_white_and_decoding_undoes_encoding():
    x = normals(50, 1, 2, 2) @ normals(2, 2, seed=1) + 3
    autoencoder = LinearAutoencoder.principal(x)
    z = autoencoder.encode(x)
    white = z.flatten(1).T @ z.flatten(1) / len(z)
    assert (white - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-10
    assert z.mean(0).abs().max() < 1e-10
    assert (autoencoder.decode(z) - x).abs().max() < 1e-10


def test_samples_decoded_are_those_of_the_data():
    matrix = torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    latent = Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    model = LatentModel(LinearAutoencoder(matrix), latent.diffused(VPSDE()))
    z = sample(model, Heun(), (4000, 2), steps=10, dtype=torch.float64).x
    x = model.decode(z)
    inverse = torch.linalg.inv(matrix)
    assert (x.T @ x / len(x) - inverse @ inverse.T).abs().max() < 0.25  # largest variance 5


# --- a Gaussian autoencoder ---


class Linear(EncoderDecoder):
    """h = a x with deviation s, and x = c h with deviation σ: its bound has a closed form."""

    def __init__(self, d: int, a: float, s: float, c: float, sigma: float) -> None:
        super().__init__((d,), (d,))
        self.numbers = (a, s, c, sigma)

    def posterior(self, x):
        return self.numbers[0] * x, torch.full_like(x, self.numbers[1])

    def reconstruction(self, h):
        return self.numbers[2] * h, h.new_tensor(self.numbers[3])


def gaussian_model(a: float, s: float, c: float, sigma: float) -> LatentModel:
    d = 2
    network = Linear(d, a, s, c, sigma).double()
    unit = Gaussian(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    return LatentModel(GaussianAutoencoder(network), unit.diffused(VPSDE())).eval()


def test_the_bound_is_the_likelihood_where_the_encoder_is_the_posterior():
    # x = c z + σ n with z ~ N(0, 1): q = p(z|x) = N(c x/(c² + σ²), σ²/(c² + σ²)), and then every
    # draw of z gives log p(x) = log N(x; 0, c² + σ²), with no variance at all.
    c, sigma = 1.5, 0.5
    total = c * c + sigma * sigma
    model = gaussian_model(c / total, sigma / math.sqrt(total), c, sigma)
    x = normals(5, 2)
    found = latent_log_prob(x, model, by_flow(model), draws=3)
    exactly = -0.5 * (x.square() / total + math.log(2 * math.pi * total)).sum(1)
    assert (found.nats - exactly).abs().max() < 1e-8
    assert found.standard_error.max() < 1e-8
    assert (sum(found.terms.values()) - found.nats).abs().max() < 1e-12
    assert not found.exact


def test_the_bound_has_its_closed_form_and_its_error():
    a, s, c, sigma = 0.4, 0.6, 1.3, 0.7
    model = gaussian_model(a, s, c, sigma)
    x = normals(8, 2)
    found = latent_log_prob(x, model, exactly_normal, draws=64, seed=3)
    # E_q: log p(x|z) with E(x − c z)² = (1 − ca)² x² + c² s², log p(z) with a² x² + s², entropy.
    miss = ((1 - c * a) * x).square() + (c * s) ** 2
    decoder = -0.5 * (miss / sigma**2 + math.log(2 * math.pi * sigma**2)).sum(1)
    latent = -0.5 * ((a * x).square() + s * s + math.log(2 * math.pi)).sum(1)
    entropy = torch.full((8,), 2 * 0.5 * math.log(2 * math.pi * math.e * s * s))
    expected = {"decoder": decoder, "latent": latent, "encoder": entropy}
    gap = (found.nats - sum(expected.values())) / found.standard_error
    assert gap.abs().max() < 4
    assert gap.square().mean() > 0.1  # the error is not too large either
    for name, value in expected.items():
        assert (found.terms[name] - value).abs().max() < 0.6, name


def test_draws_belong_to_the_sample_whatever_its_batch():
    model = gaussian_model(0.4, 0.6, 1.3, 0.7)
    x = normals(4, 2)

    def log_p(z, first):
        return elbo(z, model, draws=4, seed=5, first=first)

    whole = latent_log_prob(x, model, log_p, draws=2, seed=1)
    parts = [latent_log_prob(x[i : i + 2], model, log_p, draws=2, seed=1, first=i) for i in (0, 2)]
    assert torch.equal(whole.nats, torch.cat([part.nats for part in parts]))


def test_the_scale_of_latents_is_measured_and_used():
    # h = 3 x with s = 0.6, of x with mean 1 and deviation ½ (exactly, over the data).
    network = Linear(2, 3.0, 0.6, 1 / 3, 0.1)
    autoencoder = GaussianAutoencoder(network).eval()
    x = torch.tensor([[0.5, 1.5], [1.5, 0.5]])
    autoencoder.measure(Dataset(DataSpec("x", (2,), None), x, None))
    assert torch.allclose(network.shift, torch.full((2,), 3.0))
    assert torch.allclose(network.scale, torch.full((2,), math.sqrt(1.5**2 + 0.6**2)))
    assert torch.allclose(autoencoder.decode(autoencoder.encode(x)), x, atol=1e-6)
    # log p(x|z) − log q(z|x) of a scaled z: q has the scale's determinant in it.
    noise = PerSampleNoise.numbered(0, 0, 2)
    z, terms = autoencoder.draw(x, noise)
    h = network.shift + network.scale * z
    log_q = torch.distributions.Normal(3 * x, 0.6).log_prob(h).sum(1) + network.scale.log().sum()
    assert torch.allclose(terms["encoder"].float(), -log_q, atol=1e-4)


@pytest.mark.parametrize("event", [(2, 9), (1, 8, 7), (1, 3, 5, 4)])
def test_a_convolutional_autoencoder_gives_any_size_back(event):
    network = ConvolutionalAutoencoder(event, latent=3, width=8, multipliers=(1, 1, 1))
    autoencoder = GaussianAutoencoder(network)
    x = torch.randn(2, *event, generator=generator())
    z = autoencoder.encode(x)
    assert z.shape[1:] == (3, *(math.ceil(n / 4) for n in event[1:]))
    assert autoencoder.decode(z).shape == x.shape
    same = GaussianAutoencoder(ConvolutionalAutoencoder(**network.config))
    assert torch.equal(same.encode(x), z)
    # One sample is not another's business.
    assert torch.allclose(autoencoder.encode(x[:1]), z[:1], atol=1e-5)


# --- the model as a score ---


def test_the_forms_are_those_of_the_score_and_guidance_goes_around_it():
    one, all_ = (Gaussian(torch.full((2,), m), torch.eye(2)).diffused(VPSDE()) for m in (1.0, 0.0))
    autoencoder = LinearAutoencoder(2 * torch.eye(2))
    model = LatentModel(autoencoder, one)
    x = torch.ones(3, 2)
    t = torch.tensor(0.3, dtype=torch.float64)
    for form in ("eps", "denoise", "velocity"):
        assert torch.allclose(getattr(model, form)(x, t), getattr(one, form)(x, t)), form
    around = Guided(model, LatentModel(autoencoder, all_), 2.0)
    inside = Guided(one, all_, 2.0)
    assert torch.allclose(around(x, t), inside(x, t), atol=1e-6)


# --- bad input ---


def test_what_does_not_fit_is_refused_by_name():
    autoencoder = LinearAutoencoder(torch.eye(4), event=(1, 2, 2), latent=(4,))
    unit = Gaussian(torch.zeros(4), torch.eye(4)).diffused(VPSDE())
    model = LatentModel(autoencoder, unit)
    x = torch.randn(2, 1, 2, 2, generator=generator())
    half = torch.tensor(0.5, dtype=torch.float64)

    with pytest.raises(
        ValueError, match=r"LatentModel: x must be latents of shape .* model\.encode"
    ):
        model(x, half)
    with pytest.raises(
        ValueError, match=r"LatentModel: x must be latents of shape .* model\.encode"
    ):
        log_prob(x, ProbabilityFlow(model.sde, model), FAST)
    with pytest.raises(ValueError, match="log_prob: levels must be left out"):
        log_prob(model.encode(x), ProbabilityFlow(model.sde, model), FAST, levels=256)
    with pytest.raises(ValueError, match="elbo: levels must be left out"):
        elbo(model.encode(x), model, levels=256)
    with pytest.raises(ValueError, match=r"x must have shape .* pass samples, not latents"):
        latent_log_prob(model.encode(x), model, by_flow(model))
    with pytest.raises(ValueError, match=r"z must have shape .* pass encode\(x\), not samples"):
        model.decode(x)
    with pytest.raises(TypeError, match="latent_log_prob: log_p must be a LogLikelihood"):
        latent_log_prob(x, model, lambda z, _: z)
    other = ScoreModel(MLP(3), VPSDE(), data=DataSpec("z", (3,), None))
    with pytest.raises(ValueError, match="LatentModel: score must be of latents"):
        LatentModel(autoencoder, other)
    with pytest.raises(TypeError, match="LatentModel: autoencoder must be a Autoencoder"):
        LatentModel(MLP(3), unit)
    with pytest.raises(ValueError, match="LinearAutoencoder: matrix must be an invertible"):
        LinearAutoencoder(torch.ones(2, 2))
    with pytest.raises(ValueError, match="LinearAutoencoder: latent must have the 4 elements"):
        LinearAutoencoder(torch.eye(4), latent=(2,))
    with pytest.raises(ValueError, match="ConvolutionalAutoencoder: event must be"):
        ConvolutionalAutoencoder((5,))
    network = ConvolutionalAutoencoder((1, 8, 8), width=8)
    with pytest.raises(ValueError, match="GaussianAutoencoder: data must have the shape"):
        GaussianAutoencoder(network, DataSpec("digits", (1, 9, 9), 17))
    with pytest.raises(ValueError, match="GaussianAutoencoder: x must have shape"):
        GaussianAutoencoder(network).encode(torch.zeros(1, 3, 8, 8))
    free = LatentModel(GaussianAutoencoder(network), FunctionScore(lambda x, _: -x, VPSDE()))
    with pytest.raises(ValueError, match="evaluation mode"):
        latent_log_prob(torch.zeros(1, 1, 8, 8), free, by_flow(free))


# --- files ---


def small_latent_model() -> LatentModel:
    network = ConvolutionalAutoencoder((1, 8, 8), latent=2, width=8, multipliers=(1, 1), seed=3)
    network.shift.fill_(0.5)
    autoencoder = GaussianAutoencoder(network, DataSpec("digits", (1, 8, 8), 17))
    shape = DataSpec("digits", (2, 4, 4), None)
    score = ScoreModel(UNet(2, 8, (1,), 1, (), seed=1), VPSDE(), "v", data=shape)
    torch.nn.init.normal_(score.network.head.weight, generator=generator())
    return LatentModel(autoencoder, score).eval()


def test_a_latent_model_is_one_file_with_both_parts(tmp_path):
    model = small_latent_model()
    save_model(tmp_path / "m.safetensors", model)
    z = torch.randn(2, 2, 4, 4, generator=generator())
    t = torch.tensor(0.5, dtype=torch.float64)
    for loaded in (load(tmp_path / "m.safetensors"), load_latent(tmp_path / "m.safetensors")):
        assert isinstance(loaded, LatentModel)
        assert torch.equal(loaded(z, t), model(z, t))
        assert torch.equal(loaded.decode(z), model.decode(z))
        assert (loaded.data, loaded.observed) == (model.data, model.observed)
        assert not loaded.in_training()
    autoencoder = load_autoencoder(tmp_path / "m.safetensors")
    assert torch.equal(autoencoder.decode(z), model.decode(z))


def test_autoencoders_are_files_alone(tmp_path):
    model = small_latent_model()
    save_model(tmp_path / "a.safetensors", model.autoencoder)
    z = torch.randn(2, 2, 4, 4, generator=generator())
    assert torch.equal(load_autoencoder(tmp_path / "a.safetensors").decode(z), model.decode(z))
    matrix = normals(4, 4) + 3 * torch.eye(4, dtype=torch.float64)
    linear = LinearAutoencoder(matrix, normals(4), event=(1, 2, 2), latent=(4,))
    save_model(tmp_path / "l.safetensors", linear)
    x = normals(3, 1, 2, 2)
    loaded = load_autoencoder(tmp_path / "l.safetensors")
    assert torch.equal(loaded.encode(x), linear.encode(x))
    assert torch.equal(loaded.decode(linear.encode(x)), linear.decode(linear.encode(x)))


def test_files_of_another_kind_say_what_to_call(tmp_path):
    model = small_latent_model()
    save_model(tmp_path / "a.safetensors", model.autoencoder)
    save_model(tmp_path / "s.safetensors", model.model)
    with pytest.raises(ValueError, match=r"call load_autoencoder\(path\)"):
        load(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"must hold a LatentModel, got a ScoreModel"):
        load_latent(tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="must hold an autoencoder, got a ScoreModel"):
        load_autoencoder(tmp_path / "s.safetensors")
    save_model(tmp_path / "own.safetensors", GaussianAutoencoder(Linear(2, 1.0, 0.5, 1.0, 0.5)))
    with pytest.raises(ValueError, match=r"call load_autoencoder\(path, autoencoder=...\)"):
        load_autoencoder(tmp_path / "own.safetensors")
    own = Linear(2, 1.0, 0.5, 1.0, 0.5)
    loaded = load_autoencoder(tmp_path / "own.safetensors", autoencoder=own)
    assert torch.equal(loaded.encode(torch.ones(1, 2)), torch.ones(1, 2))
    exact = Gaussian(torch.zeros(4), torch.eye(4)).diffused(VPSDE())
    with pytest.raises(TypeError, match="save_model: model must be a ScoreModel"):
        save_model(tmp_path / "o.safetensors", LatentModel(LinearAutoencoder(torch.eye(4)), exact))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": None}, "autoencoder must be an object"),
        ({"autoencoder": {"class": "Pickle"}}, "autoencoder.class must be one of"),
        ({"score": "Pickle"}, "score must be one of"),
    ],
)
def test_a_configuration_that_builds_nothing_is_refused(tmp_path, change, message):
    path = tmp_path / "m.safetensors"
    save_model(path, small_latent_model(), change)
    with pytest.raises(ValueError, match=message):
        load(path)
