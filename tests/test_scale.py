"""The scale of data against the prior: the mismatch in closed form, its refusal, and scalings."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from sde_diffusion import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    Affine,
    CosineBeta,
    Dataset,
    DataSpec,
    Gaussian,
    GaussianMixture,
    LinearSDE,
    PerSampleNoise,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    TrainingConfig,
    check_convention,
    evaluate,
    integrate,
    load,
    load_data,
    prior_mismatch,
    recommended,
    sample,
    save_model,
    train,
)
from sde_diffusion.cli.main import main
from sde_diffusion.data.checks import scaled_for
from sde_diffusion.priors import MOST_NATS, check_noise, too_large
from sde_diffusion.solvers import AngularAdams, DormandPrince
from sde_diffusion.training.monitors import HeldOutBound, LossByLevel
from sde_diffusion.training.scale import scaled, spread

FAMILY = [VPSDE(), VPSDE(CosineBeta()), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow()]
every_sde = pytest.mark.parametrize("sde", FAMILY, ids=repr)
MEAN = torch.tensor([200.0, 120.0, 60.0])


class Weak(LinearSDE):
    """An SDE of one's own whose last time keeps half of the data."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t / 2

    def sigma(self, t: Tensor) -> Tensor:
        return t


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def real(values: Tensor, scaling: Affine | None = None) -> Dataset:
    return Dataset(DataSpec("real", tuple(values.shape[1:]), None, scaling), values, None)


def colours(rows: int = 2000) -> Dataset:
    """Rows of N((200, 120, 60), 10²), in [0, 255]."""
    return real(MEAN + 10 * normal(rows, 3))


# --- the mismatch -----------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [*FAMILY, Weak()], ids=lambda sde: type(sde).__name__)
def test_the_mismatch_is_torchs_divergence_of_two_gaussians(sde: LinearSDE) -> None:
    mean = torch.tensor([0.0, -3.0, 200.0, 5000.0, 1e-3]).double()
    std = torch.tensor([0.0, 1.0, 73.6, 1000.0, 2.0]).double()
    t = torch.tensor(sde.horizon, dtype=torch.float64)
    end = Normal(sde.alpha(t) * mean, ((sde.alpha(t) * std) ** 2 + sde.sigma(t) ** 2).sqrt())
    expected = kl_divergence(end, Normal(torch.zeros(5).double(), sde.prior().std))
    found = prior_mismatch(sde, mean, std)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14)


@every_sde
def test_it_is_what_an_exact_flow_gets_wrong(sde: LinearSDE) -> None:
    """The exact flow of N(m, s²) is affine: the law of its end points from the prior is known."""
    m, s = 30.0, 8.0
    model = Gaussian(torch.tensor([m]), torch.tensor([[s * s]])).diffused(sde)
    x = sde.prior().std * torch.tensor([[-1.0], [1.0]]).double()
    grid = torch.tensor([sde.horizon, 1e-9], dtype=torch.float64)
    low, high = integrate(ProbabilityFlow(sde, model), DormandPrince(1e-9, 1e-9), x, grid).x
    samples = Normal((low + high) / 2, (high - low) / 2)
    expected = float(kl_divergence(Normal(m, s), samples))
    moments = torch.tensor([m]), torch.tensor([s])
    assert float(prior_mismatch(sde, *moments)) == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_what_ships_is_far_below_the_limit_and_bytes_as_floats_far_above() -> None:
    pixel = torch.tensor([-1.0]), torch.tensor([0.0])
    digits = load_data("digits").moments()
    ring = GaussianMixture.ring(8).sample(4096, torch.Generator().manual_seed(0))
    for sde in FAMILY:
        for moments in (pixel, digits, real(ring.float()).moments()):
            assert float(prior_mismatch(sde, *moments).max()) < MOST_NATS / 4.9
    bytes_ = torch.tensor([127.5]), torch.tensor([73.6])
    least = {type(sde).__name__: float(prior_mismatch(sde, *bytes_)) for sde in FAMILY[2:]}
    assert min(least.values()) == least["RectifiedFlow"] > 8 * MOST_NATS
    assert float(prior_mismatch(VPSDE(), *bytes_)) > 350 * MOST_NATS


def test_the_table_in_the_docstring_is_true() -> None:
    order = (VPSDE(), VPSDE(CosineBeta()), VESDE(), EDMSDE(), RectifiedFlow())
    rows = {
        "digits, the worst pixel": load_data("digits").moments(),
        "a pixel that is always −1": (torch.tensor([-1.0]), torch.tensor([0.0])),
        "N(0, 1)": (torch.tensor([0.0]), torch.tensor([1.0])),
        "uniform in [0, 255]": (torch.tensor([127.5]), torch.tensor([255 / 12**0.5])),
        "N(5000, 1000²)": (torch.tensor([5000.0]), torch.tensor([1000.0])),
    }
    text = str(prior_mismatch.__doc__)
    for name, moments in rows.items():
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"| {name} |")]
        shown = [float(cell) for cell in line.split("|")[2:-1]]
        found = [float(prior_mismatch(sde, *moments).max()) for sde in order]
        assert found == pytest.approx(shown, rel=0.06, abs=1e-14), name


@pytest.mark.parametrize("levels", [None, 256])
def test_moments_are_numpys_in_every_dimension(levels: int | None) -> None:
    values = torch.randint(0, 256, (5000, 2, 3), generator=torch.Generator().manual_seed(0))
    values[:, 0, 0] = 17
    kept = values.float() + 1e5 if levels is None else values.to(torch.uint8)
    scaling = Affine(-300, -299.5) if levels is None else None
    data = Dataset(DataSpec("d", (2, 3), levels, scaling), kept, None)
    y = kept.numpy().astype(np.float64)
    x = y / 2 - 300 if levels is None else (y + 0.5) / 128 - 1
    mean, std = data.moments()
    assert np.allclose(mean, x.mean(0), rtol=1e-7, atol=1e-7)
    assert np.allclose(std, x.std(0), rtol=1e-6, atol=1e-7)
    assert spread(data) == pytest.approx(x.std(), rel=1e-6)


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (
            torch.zeros(2),
            torch.ones(3),
            "std must have the shape (2,) of the mean, got (3,); pass",
        ),
        (torch.zeros(1), torch.tensor([math.nan]), "mean, std must be finite, and std at least 0"),
        (torch.zeros(1), torch.tensor([-1.0]), "mean, std must be finite, and std at least 0"),
    ],
)
def test_moments_that_are_none(mean: Tensor, std: Tensor, text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is compared below)
        prior_mismatch(VPSDE(), mean, std)
    assert text in str(caught.value)
    one_row = normal(1, 2)
    assert bool((prior_mismatch(VPSDE(), one_row.mean(0), torch.zeros(2)) < 1e-3).all())
    with pytest.raises(TypeError, match="sde must be a LinearSDE, got str; pass"):
        prior_mismatch("vp", mean, std)  # type: ignore[arg-type]


# --- samples ----------------------------------------------------------------------------------


class Denoiser(torch.nn.Module):
    """E[x0 | x0 + sigma eps = y] of N(m, s²)."""

    def __init__(self, m: float, s: float) -> None:
        super().__init__()
        self.m = m
        self.v = s**2

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        share = self.v / (self.v + sigma[:, None] ** 2)
        return self.m + share * (y - self.m)


BYTES = (128.0, 70.0)
# The flow of N(m, s²) from N(0, T²) shrinks about m by s/√(s² + T²).
SHRUNK = BYTES[1] / math.hypot(BYTES[1], 80)
ENDS = (BYTES[0] * (1 - SHRUNK), 80 * SHRUNK)
SIZE = math.hypot(*ENDS)


def gaussian(m: float, s: float, d: int) -> Gaussian:
    return Gaussian(torch.full((d,), m), s * s * torch.eye(d))


def test_the_size_of_samples_is_a_bound_on_the_mismatch_of_their_data() -> None:
    """Of all N(m, s²) with m² + s² = q the mismatch is least at m = 0, which is what is told."""
    q = 50.0**2
    m = torch.linspace(0, 50, 101).double()
    for sde in (*FAMILY, Weak()):
        nats = prior_mismatch(sde, m, (q - m**2).clamp(min=0).sqrt())
        assert int(nats.argmin()) == 0
        told = too_large(sde, torch.tensor([[50.0], [-50.0]]))
        if told is not None:
            assert float(told.split()[0]) == pytest.approx(float(nats[0]), rel=0.05)
            assert told.endswith("(root mean square 50)")
    assert too_large(EDMSDE(), torch.full((4, 2), 50.0)) is not None
    assert too_large(RectifiedFlow(), torch.full((4, 2), 50.0)) is None  # 1.5e-6


@pytest.mark.parametrize("number", [1, 400])
@pytest.mark.parametrize("learned", [True, False])
def test_samples_of_a_denoiser_of_bytes_are_too_large(learned: bool, number: int) -> None:
    """N(128, 70²) under EDM, whose sigma_max is only 1.1 of its standard deviation."""
    denoiser = ScoreModel.from_denoiser(Denoiser(*BYTES).eval())
    exact = gaussian(*BYTES, 64).diffused(EDMSDE())
    with pytest.raises(ValueError, match=r"model must meet the prior of EDMSDE .*mean 128"):
        sample(exact, AngularAdams(), (number, 64))
    start = EDMSDE().prior().sample(PerSampleNoise.numbered(0, 0, number), (number, 64))
    flow = ProbabilityFlow(EDMSDE(), denoiser if learned else exact)
    grid = recommended(EDMSDE(), 100)
    told = too_large(EDMSDE(), integrate(flow, AngularAdams(), start, grid).x)
    assert told is not None
    found = re.fullmatch(r"(\S+) at least \(root mean square (\S+)\)", told)
    assert found is not None, told
    assert float(found[2]) == pytest.approx(SIZE, rel=0.5 / number**0.5)
    least = float(prior_mismatch(EDMSDE(), torch.zeros(()), torch.tensor(float(found[2]))))
    assert float(found[1]) == pytest.approx(least, rel=0.06)
    assert least < float(prior_mismatch(EDMSDE(), *map(torch.tensor, BYTES)))


class NoiseIn(Denoiser):
    """E[eps | x0 + sigma eps = y] of the same."""

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        return (y - super().forward(y, sigma)) / sigma[:, None]


@pytest.mark.parametrize(("kind", "prediction"), [(Denoiser, "x0"), (NoiseIn, "eps")])
def test_a_convention_of_bytes_does_not_fit_and_its_remedy_does(
    kind: type[Denoiser], prediction: str
) -> None:
    """The network is exact for the data, but the prior is elsewhere at the end of time."""
    m, s = BYTES
    net = kind(m, s)
    data = m + s * normal(1000, 3)
    found = check_convention(ScoreModel.from_denoiser(net, prediction=prediction), data)
    assert found.best is found.readings[0]
    assert not found.fits
    nats = float(prior_mismatch(EDMSDE(), data.mean(0), data.std(0)).max())
    assert f"only by {nats:.2g} (mean " in str(found)
    formula = found.beyond.partition("a module of ")[2]

    class Wrapped(torch.nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            right: Tensor = eval(formula, {"net": net, "x": x, "sigma": sigma})
            return right

    model = ScoreModel.from_denoiser(Wrapped(), prediction=prediction)
    unit = (data - data.mean()) / data.std()
    assert check_convention(model, unit).fits, str(check_convention(model, unit))
    chain = ScoreModel(MLP(3, width=8), VPSDE())
    assert check_convention(chain, data).beyond.endswith("which has to be trained")


@every_sde
def test_samples_of_data_that_meet_the_prior_are_not_too_large(sde: LinearSDE) -> None:
    """At the limit, all of it by the mean; half of it by the spread; and of one sample."""
    a = float(sde.alpha(torch.tensor(sde.horizon).double())) / sde.prior().std
    mean = math.sqrt(2 * MOST_NATS) / a
    spread_ = math.sqrt(math.sqrt(2 * MOST_NATS)) / a
    for m, s, shape in ((mean, 1.0, (1, 4)), (0.0, spread_, (200, 16)), (0.0, 1.0, (1, 1))):
        x = sample(gaussian(m, s, shape[1]).diffused(sde), AngularAdams(), shape).x
        assert too_large(sde, x) is None


def test_of_a_network_that_is_not_trained_the_command_tells_it(tmp_path: Path) -> None:
    """Its samples are the prior's noise over alpha: of any network that predicts no x0."""
    spec = DataSpec("points", (2,), None)
    for prediction, told in (("eps", True), ("edm", False)):
        model = ScoreModel(MLP(2, width=8), VPSDE(), prediction, data=spec)
        save_model(tmp_path / "m.safetensors", model)
        options = ["sample", "--model", str(tmp_path / "m.safetensors"), "-n", "40"]
        done = CliRunner().invoke(main, [*options, "--out", str(tmp_path), "--device", "cpu"])
        assert done.exit_code == 0, done.output
        assert ("do not meet the prior of VPSDE, by 0.1" in done.stderr) == told
        assert len(np.load(tmp_path / "samples.npz")["x"]) == 40


# --- scalings ---------------------------------------------------------------------------------


@every_sde
def test_standardized_data_have_the_moments_of_the_prior(sde: LinearSDE) -> None:
    data = scaled(colours(), "standardize", sde)
    x = data.centred().double()
    assert float(x.mean()) == pytest.approx(0, abs=1e-6)
    assert float(x.std(correction=0)) == pytest.approx(1, rel=1e-6)
    assert spread(data) == pytest.approx(1, rel=1e-8)
    assert torch.allclose(data.spec.decode(data.centred()), colours().values, rtol=1e-6)


def test_a_range_becomes_minus_one_to_one() -> None:
    data = scaled(colours(), "-10:260.5", VPSDE())
    x = data.spec.encode(torch.tensor([-10.0, 125.25, 260.5]), 0.5)
    assert x.tolist() == pytest.approx([-1, 0, 1], abs=1e-6)


def test_auto_leaves_what_fits_and_standardizes_what_does_not() -> None:
    fitting = real(1.5 * normal(100, 2) - 2)
    assert scaled(fitting, "auto", VPSDE()) is fitting
    assert (
        scaled(colours(), "auto", VPSDE()).spec == scaled(colours(), "standardize", VPSDE()).spec
    )
    grey = load_data("digits", limit=20)
    assert scaled(grey, "auto", VPSDE()) is grey
    by_hand = real(colours().values, Affine(-1, -1 + 2 / 255))
    assert scaled(by_hand, "auto", VPSDE()) is by_hand


def steps(model: ScoreModel, data: Dataset, **settings: Any) -> ScoreModel:
    config = TrainingConfig(steps=1, batch_size=4, warmup=0, **settings)
    list(train(model, data, config))
    return model


def small(sde: LinearSDE | None = None, data: DataSpec | None = None) -> ScoreModel:
    return ScoreModel(MLP(3, width=8), VPSDE() if sde is None else sde, data=data)


def told(error: pytest.ExceptionInfo[ValueError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value).partition("train: ")[2]


def test_train_refuses_data_off_the_prior_and_its_remedies_work() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is compared below)
        steps(small(), colours())
    assert told(caught) == (
        "dataset must meet the prior of VPSDE within 0.001 nats a dimension, got 0.86 (mean "
        "199.9, std 9.932); pass scale='standardize', --scale standardize"
    )
    model = steps(small(), colours(), scale="standardize")
    assert model.data == scaled(colours(), "standardize", VPSDE()).spec

    with pytest.raises(ValueError, match=r"got 3\.4 .*; pass scale='standardize'"):
        steps(small(), colours(), scale="0:1")

    by_hand = real(colours().values, Affine(0, 2))
    with pytest.raises(ValueError, match="leave out their scaling and pass scale='standardize'"):
        steps(small(), by_hand)
    with pytest.raises(ValueError, match="scale must be left out for data that have a scaling"):
        steps(small(), by_hand, scale="standardize")

    # Grey levels meet any prior but that of an SDE that ends with little noise.
    grey = Dataset(DataSpec("grey", (3,), 4), torch.zeros(8, 3, dtype=torch.uint8), None)
    with pytest.raises(ValueError, match=r"train with more noise at the end, as of EDMSDE\(\)"):
        steps(small(VESDE(0.01, 1.0)), grey)
    steps(small(EDMSDE()), grey)
    with pytest.raises(ValueError, match=r"scale must be left out .*; leave it out"):
        steps(small(), grey, scale="0:255")
    assert steps(small(), grey).data == grey.spec

    # One scale for dimensions that are far apart is not enough.
    apart = real(torch.cat([normal(400, 299), 1e4 + normal(400, 1)], 1))
    wide = ScoreModel(MLP(300, width=8), VPSDE())
    with pytest.raises(ValueError, match="subtract from every dimension its mean and divide it"):
        steps(wide, apart, scale="standardize")
    y = apart.values.double()
    steps(wide, real(((y - y.mean(0)) / y.std(0)).float()))

    with pytest.raises(ValueError, match=r"vary, got 9000 everywhere; check the source"):
        steps(small(), real(torch.full((8, 3), 9000.0)), scale="auto")


def test_a_model_that_knows_its_data_gives_them_its_scaling() -> None:
    spec = scaled(colours(), "0:255", VPSDE()).spec
    model = steps(small(data=spec), colours())
    assert model.data == spec
    # What training sees is the scaled data: the loss is that of a model fed by hand.
    rows = colours(40)
    seen = real(spec.encode(rows.values, 0.5))
    config = TrainingConfig(steps=3, batch_size=4)
    known = [p.loss for p in train(small(data=spec), rows, config)]
    assert known == [p.loss for p in train(small(), seen, config)]
    with pytest.raises(ValueError, match=r"the model's scaling .*; leave it out, to take"):
        steps(small(data=spec), colours(), scale="standardize")
    steps(small(data=spec), colours(), scale="0:255")
    other = real(colours().values, Affine(-2, -1.9))
    with pytest.raises(ValueError, match="scale them as for training"):
        steps(small(data=spec), other)
    steps(small(data=spec), scaled_for(spec, colours()))
    unscaled = DataSpec("real", (3,), None)
    with pytest.raises(ValueError, match="train a new model, with scale='standardize', --scale"):
        steps(small(data=unscaled), colours())


@pytest.mark.parametrize("scale", ["255", "0:255:1", "255:0", "3:3", "nan:1", "0:inf", "all", ""])
def test_a_scale_that_is_none(scale: str) -> None:
    with pytest.raises(ValueError, match="scale must be auto, standardize, none, or A:B with"):
        TrainingConfig(scale=scale)
    TrainingConfig(scale="0:255")  # the remedy


# --- likelihoods ------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_likelihoods_are_in_the_units_of_the_data(factor: float) -> None:
    """The Gaussian of the scaled data is exact, so their density in y's units is known."""
    y = factor * torch.tensor([[190.0, 130.0, 61.0], [202.0, 119.0, 75.0]])
    sde = VPSDE(CosineBeta())  # whose own mismatch is too small to see
    data = scaled(real(y), "standardize", sde)
    a = 1 / data.spec.scaling.slope()
    shift = data.spec.scaling.forward(torch.tensor(0.0))
    mean, std = factor * MEAN, factor * 10.0
    model = Gaussian(a * mean.double() + shift, (a * std) ** 2 * torch.eye(3)).diffused(sde)
    found = evaluate(model, data, DormandPrince(1e-6, 1e-6))
    expected = Normal(mean.double(), std).log_prob(y.double()).sum(1)
    assert torch.allclose(found.values["flow_nats"].double(), expected, rtol=0, atol=2e-3)
    bits = -float(expected.mean()) / (3 * math.log(2))
    assert found.summary("flow").bits_per_dim == pytest.approx(bits, abs=1e-3)


def test_other_units_shift_nats_by_d_log_c_exactly() -> None:
    c = 64.0  # a power of two scales floats exactly
    small_units, large_units = colours(6), real(c * colours(6).values)
    one = scaled(small_units, "standardize", VPSDE())
    other = scaled(large_units, "standardize", VPSDE())
    assert torch.allclose(one.centred(), other.centred(), rtol=0, atol=1e-6)
    log_volumes = [data.spec.log_volume(data.centred()) for data in (one, other)]
    assert torch.allclose(log_volumes[0] - log_volumes[1], torch.tensor(3 * math.log(c)).double())
    # Held-out bounds are in the data's units, and take the model's scaling by themselves.
    bounds = []
    for natural, known in ((small_units, one), (large_units, other)):
        model = small(data=known.spec).eval()
        found = HeldOutBound(natural, draws=4)(model, 1, None)
        by_hand = HeldOutBound(known, draws=4)(model, 1, None)
        assert found == by_hand
        levels = LossByLevel(natural, bins=3)(model, 1, None)
        assert levels == LossByLevel(known, bins=3)(model, 1, None)
        bounds.append(found["bits_per_dim"])
    assert bounds[1] - bounds[0] == pytest.approx(math.log2(c), abs=1e-4)


def test_evaluate_refuses_other_units_and_takes_those_of_the_model() -> None:
    model = Gaussian(torch.zeros(3), torch.eye(3)).diffused(VPSDE())
    with pytest.raises(ValueError, match="bring them to the units of the model's data"):
        evaluate(model, colours(4), DormandPrince(1e-3, 1e-3))
    known = scaled(colours(4), "standardize", VPSDE())
    by_hand = evaluate(model, known, DormandPrince(1e-3, 1e-3))
    # A model that knows its data's scaling needs no other.
    model.data = known.spec
    found = evaluate(model, colours(4), DormandPrince(1e-3, 1e-3))
    assert torch.equal(found.values["flow_nats"], by_hand.values["flow_nats"])
    # An SDE that keeps half of the data has a mismatch of its own, which is no matter of units.
    weak = Gaussian(torch.zeros(3), torch.eye(3)).diffused(Weak())
    evaluate(weak, real(normal(4, 3)), DormandPrince(1e-3, 1e-3))
    with pytest.raises(ValueError, match="bring them to the units"):
        evaluate(weak, colours(4), DormandPrince(1e-3, 1e-3))


# --- the commands -----------------------------------------------------------------------------

TINY = ["--width", 8, "--batch-size", 8, "--warmup", 0, "--device", "cpu"]
EXACT = """
import torch
from sde_diffusion import Affine, DataSpec, Gaussian, RectifiedFlow, ScoreLike

class Exact(ScoreLike):  # of y ~ N((200, 120, 60), 10²), seen as x = (y − 127.5)/127.5
    data = DataSpec("colours", (3,), None, Affine(-1, -1 + 2 / 255))

    def __init__(self):
        mean = torch.tensor([200.0, 120.0, 60.0]) / 127.5 - 1
        self.model = Gaussian(mean, (10 / 127.5) ** 2 * torch.eye(3)).diffused(RectifiedFlow())
        self.sde = self.model.sde

    def __call__(self, x, t):
        return self.model(x, t)

model = Exact()
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the colours in bytes as floats, and an exact model of them."""
    np.save(tmp_path / "colours.npy", colours(1200).values.numpy())
    np.save(tmp_path / "small.npy", (colours(1200).values / 127.5 - 1).numpy())
    (tmp_path / "exact_colours.py").write_text(EXACT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def moments_of_samples() -> tuple[Any, Any]:
    with np.load("samples/samples.npz", allow_pickle=False) as file:
        return file["x"].mean(0), file["x"].std(0)


@pytest.mark.usefixtures("here")
def test_samples_come_out_in_the_units_of_the_data() -> None:
    done("sample", "--model", "exact_colours:model", "-n", 1200, "--batch-size", 1200)
    mean, std = moments_of_samples()
    assert mean == pytest.approx(MEAN.numpy(), abs=4 * 10 / math.sqrt(1200))
    assert std == pytest.approx([10, 10, 10], rel=4 / math.sqrt(2400))


@pytest.mark.usefixtures("here")
@pytest.mark.slow
def test_a_model_trained_on_bytes_as_floats_samples_them() -> None:
    line = "data y scaled to x = (y − 126.6)/58.02; sample undoes it, and likelihoods are in the"
    flags = ["--width", 64, "--steps", 500, "--ema-decay", 0.98, "--prediction", "edm"]
    trained = done(
        "train", "--data", "colours.npy", *flags, "--sigma-data", "auto", "--out", "run"
    )
    assert trained.stderr.count(line[:30]) == 1
    done("sample", "--model", "run", "-n", 1200, "--batch-size", 1200, "--device", "cpu")
    mean, std = moments_of_samples()
    assert mean == pytest.approx(MEAN.numpy(), abs=3)
    assert std == pytest.approx([10, 10, 10], abs=2)


@pytest.mark.usefixtures("here")
def test_the_scale_and_sigma_data_are_kept_and_resumed() -> None:
    standard = scaled(real(torch.from_numpy(np.load("colours.npy"))), "standardize", VPSDE())
    flags = ["--data", "colours.npy", *TINY, "--sigma-data", "auto", "--held-out", 20]
    flags += ["--evaluate-every", 2]
    told = done("train", *flags, "--steps", 2, "--out", "auto").stderr
    assert "data y scaled to x = (y − " in told
    model = load("auto")
    kept = real(torch.from_numpy(np.load("colours.npy"))[:-20])
    assert model.data is not None
    assert model.data.scaling == scaled(kept, "standardize", VPSDE()).spec.scaling
    assert model.sigma_data == pytest.approx(1, rel=1e-8)
    done("train", "--resume", "--steps", 4, "--out", "auto", "--device", "cpu")
    assert load("auto").data == model.data
    done("train", "--config", "auto/config.toml", "--out", "again", "--device", "cpu")
    assert load("again").data == model.data
    text = Path("auto/metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    (last,) = [line["evaluation"] for line in lines if "evaluation" in line and line["step"] == 4]
    held_out = real(torch.from_numpy(np.load("colours.npy"))[-20:], model.data.scaling)
    by_hand = HeldOutBound(held_out)(load("auto"), 4, None)
    assert last["bits_per_dim"] == pytest.approx(by_hand["bits_per_dim"], rel=1e-5)

    done("train", *flags, "--scale", "0:255", "--steps", 1, "--out", "range")
    model = load("range")
    assert model.data is not None
    assert model.data.scaling == Affine(-1, -1 + 2 / 255)
    assert model.sigma_data == pytest.approx(float(kept.values.double().std()) / 127.5, rel=1e-3)
    assert spread(standard) == pytest.approx(1)

    fits = done("train", "--data", "small.npy", *TINY, "--steps", 1, "--out", "small")
    assert "scaled" not in fits.stderr
    assert load("small").data == DataSpec("small", (3,), None)
    assert load("small").sigma_data == 0.5


@pytest.mark.usefixtures("here")
def test_the_command_refuses_as_the_library_and_its_remedies_work() -> None:
    flags = ["train", "--data", "colours.npy", *TINY, "--steps", 1]
    text = refused(*flags, "--scale", "none", "--out", "none")
    assert "within 0.001 nats a dimension, got 0.86 (mean 200, std 9.954)" in text
    assert text.endswith("pass scale='standardize', --scale standardize")
    done(*flags, "--scale", "standardize", "--out", "standard")
    text = refused(*flags, "--scale", "255", "--out", "none")
    assert text.endswith("got '255'; pass --scale 0:255")
    done(*flags, "--scale", "0:255", "--out", "range")
    text = refused("train", *TINY, "--scale", "0:16", "--out", "none")
    assert text.endswith("got '0:16' for Affine(low=-1, high=1); leave it out")
    text = refused(*flags, "--sigma-data", "much", "--out", "none")
    assert "'much' is neither a number nor auto" in text
    assert not Path("none").exists()
    Path("wrong.toml").write_text("sigma-data = true\n")
    assert "of another type" in refused("train", "--config", "wrong.toml")


@pytest.mark.usefixtures("here")
def test_likelihood_takes_the_models_scaling_and_refuses_other_units() -> None:
    model = ["--model", "exact_colours:model"]
    rows = ["--limit", 20, "--divergence", "exact", "--tolerance", 1e-6, "--json"]
    found = json.loads(done("likelihood", *model, "--data", "colours.npy", *rows).stdout)
    y = torch.from_numpy(np.load("colours.npy"))[:20].double()
    nats = Normal(MEAN.double(), 10.0).log_prob(y).sum(1).mean()
    assert found["bounds"]["flow"]["nats"] == pytest.approx(float(nats), abs=5e-3)
    # A model that was trained on scaled data by hand: its own units are asked for.
    save_model("by-hand.safetensors", small(data=DataSpec("x", (3,), None)))
    by_hand = ["--model", "by-hand.safetensors", "--divergence", "exact", "--limit", 2]
    text = refused("likelihood", *by_hand, "--data", "colours.npy")
    assert "within 0.0012 nats a dimension, got" in text
    assert text.endswith("bring them to the units of the model's data")
    done("likelihood", *by_hand, "--data", "small.npy")


@pytest.mark.usefixtures("here")
def test_compare_takes_the_models_scaling_and_refuses_other_units() -> None:
    flags = ["--solver", "heun", "--nfe", 40, "--samples", 64, "--reference-steps", 40, "--json"]
    model = ["--model", "exact_colours:model"]
    found = json.loads(done("compare", *model, "--data", "colours.npy", *flags).stdout)
    (comparison,) = found["comparisons"]
    (row,) = comparison["rows"]
    assert row["sliced_wasserstein"]["mean"] < 3 * 10 / 127.5 / math.sqrt(64)
    save_model("by-hand.safetensors", small(data=DataSpec("x", (3,), None)))
    flags[1] = "euler"
    text = refused("compare", "--model", "by-hand.safetensors", "--data", "colours.npy", *flags)
    assert text.endswith("bring them to the units of the model's data")
    done("compare", "--model", "by-hand.safetensors", "--data", "small.npy", *flags)
    # Levels are those of the model, whatever the file says of them.
    grey = DataSpec("grey", (3,), 4)
    save_model("grey.safetensors", small(data=grey))
    np.save("grey.npy", np.random.default_rng(0).integers(0, 4, (400, 3)))
    done("compare", "--model", "grey.safetensors", "--data", "grey.npy", *flags)


# --- noise that falls ---


class Backwards(LinearSDE):
    """Time from noise to data, as in some programs."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return 2 * (1.001 - t)


def test_noise_that_falls_with_time_is_refused_where_a_model_meets_data() -> None:
    data = real(0.5 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
    model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(Backwards())
    says = r"evaluate: sde must have alpha/sigma that falls with t.* got Backwards, where it does "
    with pytest.raises(ValueError, match=says):
        evaluate(model, data, DormandPrince())
    says = "train: sde must have alpha/sigma that falls with t"
    with pytest.raises(ValueError, match=says):
        next(iter(train(ScoreModel(MLP(2), Backwards()), data, TrainingConfig(steps=1))))


@every_sde
def test_the_noise_of_every_sde_here_rises(sde: LinearSDE) -> None:
    check_noise("test", sde)  # and the remedy for another's works:
    check_noise("test", Forwards())


class Forwards(LinearSDE):
    """Backwards in 1 − t."""

    def alpha(self, t: Tensor) -> Tensor:
        return Backwards().alpha(1 - t)

    def sigma(self, t: Tensor) -> Tensor:
        return Backwards().sigma(1 - t)
