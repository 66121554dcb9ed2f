"""Checkpoints: exact round trips, and a sentence for every file that cannot be loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CosineBeta,
    DataSpec,
    DiscreteBeta,
    Gaussian,
    LinearBeta,
    LinearSDE,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    cosine_betas,
    denoising_loss,
    describe,
    load,
    load_data,
    save_model,
)
from sde_diffusion._files import write_atomically
from sde_diffusion.checkpoints.checkpoint import shipped
from sde_diffusion.objectives.spacings import Stratified

SDES: list[LinearSDE] = [
    VPSDE(),
    VPSDE(LinearBeta(0.07, 12.3)),
    VPSDE(CosineBeta(s=0.0123)),
    VPSDE(DiscreteBeta(cosine_betas(37))),
    SubVPSDE(LinearBeta(0.1, 7.0)),
    VESDE(0.0123, 45.6),
    EDMSDE(71.0),
    RectifiedFlow(),
]


def network(seed: int = 0) -> MLP:
    mlp = MLP(2, width=16)
    generator = torch.Generator().manual_seed(seed)
    for parameter in mlp.parameters():  # no zeros: an unloaded weight must show
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return mlp


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow", "edm"])
def test_a_loaded_model_is_the_saved_one(tmp_path: Path, sde: LinearSDE, prediction: str):
    spec = DataSpec("points", (2,), 17)
    model = ScoreModel(network(), sde, prediction, sigma_data=0.37, data=spec)
    save_model(tmp_path / "m.safetensors", model, {"training": {"steps": 3}})
    loaded = load(tmp_path / "m.safetensors")
    x = torch.tensor([[0.3, -1.2], [2.0, 0.1]])
    t = torch.tensor([0.21, 0.83], dtype=torch.float64)
    assert torch.equal(loaded(x, t), model.eval()(x, t))
    for coefficient in ("alpha", "sigma", "g"):
        assert torch.equal(getattr(loaded.sde, coefficient)(t), getattr(sde, coefficient)(t))
    assert (loaded.prediction, loaded.sigma_data, loaded.data) == (prediction, 0.37, spec)
    assert not loaded.training
    assert describe(tmp_path / "m.safetensors")["training"] == {"steps": 3}


@pytest.mark.parametrize(("variance", "outputs"), [("fixed", 2), ("learned", 4)])
@pytest.mark.parametrize("coupling", ["independent", "optimal-transport"])
def test_variance_and_coupling_are_kept(tmp_path, variance, outputs, coupling):
    mlp = MLP(2, width=8, outputs=outputs)
    nn.init.normal_(mlp.head.weight, generator=torch.Generator().manual_seed(0))
    model = ScoreModel(mlp, VPSDE(), variance=variance, coupling=coupling)
    save_model(tmp_path / "m.safetensors", model)
    loaded = load(tmp_path / "m.safetensors")
    assert (loaded.variance, loaded.coupling) == (variance, coupling)
    x = torch.ones(1, 2)
    t = torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(loaded.eps(x, t), model.eval().eps(x, t))
    if variance == "learned":
        assert torch.equal(loaded.fraction(x, t), model.fraction(x, t))


def test_a_file_of_format_1_is_that_of_a_fixed_variance(tmp_path: Path):
    """As written before networks had outputs, and models a kind, a variance and a coupling."""
    path = tmp_path / "m.safetensors"
    model = ScoreModel(network(), VPSDE()).eval()
    save_model(path, model)
    old = describe(path) | {"format": 1}
    del old["class"], old["variance"], old["coupling"], old["network"]["config"]["outputs"]
    save_file(load_file(path), path, metadata={"sde_diffusion": json.dumps(old)})
    loaded = load(path)
    x = torch.ones(1, 2)
    t = torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(loaded(x, t), model(x, t))
    assert (loaded.variance, loaded.coupling) == ("fixed", "independent")


def test_describe_names_everything_but_the_weights(tmp_path: Path):
    model = ScoreModel(network(), VPSDE(DiscreteBeta(torch.tensor([0.1, 0.2]).double())), "v")
    save_model(tmp_path / "m.safetensors", model)
    found = describe(tmp_path / "m.safetensors")
    assert found["network"] == {"class": "MLP", "config": json.loads(json.dumps(network().config))}
    assert found["sde"]["class"] == "VPSDE"
    assert found["sde"]["beta"]["class"] == "DiscreteBeta"
    assert found["sde"]["beta"]["betas"] == torch.tensor([0.1, 0.2]).double().tolist()
    assert (found["format"], found["prediction"], found["data"]) == (2, "v", None)
    assert found["versions"]["torch"] == str(torch.__version__)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_keep_their_precision(tmp_path: Path, dtype: torch.dtype):
    model = ScoreModel(network().to(dtype), VPSDE())
    save_model(tmp_path / "m.safetensors", model)
    loaded = load(tmp_path / "m.safetensors").network.state_dict()
    for name, tensor in model.network.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


class Tied(nn.Module):
    """A network of one's own, with a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x)) + c[:, None]
        return out


class Half(LinearSDE):
    """An SDE of one's own."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-t)

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-2 * t)).sqrt()


def test_own_networks_and_sdes_are_passed_in(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    model = ScoreModel(Tied(), Half())
    save_model(path, model)
    with pytest.raises(ValueError, match=r"^load: sde must be passed .*Half.*load\(path, sde="):
        load(path, network=Tied())
    with pytest.raises(ValueError, match=r"^load: network must be passed .*Tied.*network=\.\.\."):
        load(path, sde=Half())
    loaded = load(path, network=Tied(), sde=Half())
    x = torch.ones(1, 2)
    t = torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(loaded(x, t), model(x, t))
    assert loaded.network.a.weight is loaded.network.b.weight


def rewritten(path: Path, change: dict[str, object] | None) -> Path:
    """A copy of the checkpoint with other metadata, or with none."""
    other = path.with_name("other.safetensors")
    metadata = None
    if change is not None:
        metadata = {"sde_diffusion": json.dumps(describe(path) | change)}
    save_file(load_file(path), other, metadata=metadata)
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "must carry the configuration that save_model writes, got none that can be read"),
        ({"format": 3}, "must have a format of at most 2, got 3; install a newer sde_diffusion"),
        ({"format": "x"}, "must carry the configuration"),
        (
            {"network": {"class": "os.system", "config": {"command": "true"}}},
            "network must be passed for a class of your own, got os.system",
        ),
        ({"sde": {"class": "Tensor"}}, "sde must be passed for a class of your own, got Tensor"),
        ({"sde": {"class": "VPSDE", "gamma": 1}}, "hold a configuration that builds a model"),
        ({"sde": {"class": "VESDE", "sigma_min": -1}}, "hold a configuration that builds a model"),
        ({"variance": "large"}, "hold a configuration that builds a model, got ValueError"),
        ({"class": "Oracle"}, "or a FewStepModel or a LatentModel, got a Oracle"),
        ({"prediction": "noise"}, "hold a configuration that builds a model, got ValueError"),
        ({"network": 7}, "hold a configuration that builds a model, got TypeError"),
        (
            {"network": {"class": "MLP", "config": {"dimension": 3, "width": 16}}},
            r"must match the network's \(.*\), got \(.*\); pass the network that was saved",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, object] | None, message: str
):
    save_model(tmp_path / "m.safetensors", ScoreModel(network(), VPSDE()))
    with pytest.raises(ValueError, match=message):
        load(rewritten(tmp_path / "m.safetensors", change))


def test_weights_of_another_network_are_refused_by_the_first_that_differs(tmp_path: Path):
    save_model(tmp_path / "m.safetensors", ScoreModel(Tied(), VPSDE()))
    with pytest.raises(ValueError, match=r"a\.bias of .* must match the network's no such weight"):
        load(tmp_path / "m.safetensors", network=nn.Identity())


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_files_are_refused(tmp_path: Path, size: int):
    path = tmp_path / "m.safetensors"
    save_model(path, ScoreModel(network(), VPSDE()))
    path.write_bytes(path.read_bytes()[:size])
    for read in (load, describe):
        with pytest.raises(ValueError, match=r"must be a whole \.safetensors file"):
            read(path)


def test_a_pickle_is_refused_unread(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"must be a whole \.safetensors file"):
        load(path)


@pytest.mark.parametrize("name", ["digit", "nowhere/m.safetensors"])
def test_a_missing_file_names_the_shipped_models(name: str):
    rule = f"a file, a run folder or the name of a shipped model ({', '.join(shipped())})"
    with pytest.raises(FileNotFoundError) as caught:
        load(name)
    assert rule in str(caught.value)
    assert repr(name) in str(caught.value)


def test_only_a_score_model_with_json_extras_is_saved(tmp_path: Path):
    with pytest.raises(TypeError, match="model must be a ScoreModel or a DirectScore, got MLP"):
        save_model(tmp_path / "m", network())  # type: ignore[arg-type]
    for extra in ({"a": torch.zeros(1)}, {"a": math.nan}):
        with pytest.raises(ValueError, match="extra must hold JSON values only"):
            save_model(tmp_path / "m", ScoreModel(network(), VPSDE()), extra)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_model(tmp_path / "nowhere" / "m", ScoreModel(network(), VPSDE()))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    def fail(file: Path) -> None:
        file.write_text("half")
        raise InterruptedError

    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(InterruptedError):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_file_and_never_rewrites_it(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:  # one who opened the old file goes on reading the old file
        write_atomically(path, lambda file: file.write_text("new"))
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_the_shipped_digits_beat_the_best_gaussian_on_images_they_never_saw():
    model = load("digits")
    seen = load_data("digits", "train")
    held = load_data("digits", "test")
    generator = torch.Generator().manual_seed(0)
    rows = seen.dequantized(generator).double()
    covariance = rows.flatten(1).T.cov()
    gaussian = Gaussian(rows.mean(0), covariance).diffused(model.sde)
    x0 = held.dequantized(generator)
    eps = torch.randn(x0.shape, generator=generator)
    t = Stratified().draw(len(x0), generator).u[torch.randperm(len(x0), generator=generator)]
    assert held.labels is not None
    with torch.no_grad():
        labelled, plain, linear = (
            denoising_loss(m, x0, 1e-3 + 0.999 * t, eps).mean()
            for m in (model.given(held.labels), model, gaussian)
        )
    assert labelled < plain < 0.8 * linear
    assert model.data == held.spec
    assert [shipped(), model.prediction] == [["digits", "mnist"], "v"]


# --- a network that is read wrongly ---


def test_a_network_that_means_something_else_on_the_data_is_refused(tmp_path: Path) -> None:
    """The shipped model predicts v; the same weights under "eps", or of no use, are found out."""
    right = load("digits")
    digits = load_data("digits", split="test").dequantized(torch.Generator().manual_seed(0))
    assert load("digits", data=digits[:128]).prediction == "v"
    path = tmp_path / "model.safetensors"
    save_model(path, ScoreModel(right.network, right.sde, "eps", data=right.data))
    words = (
        'the network must predict the noise in the data .* got smaller errors by prediction "v"'
    )
    with pytest.raises(ValueError, match=words):
        load(path, data=digits[:128])
    with torch.no_grad():
        for weight in right.network.parameters():
            weight.mul_(3.0)
    save_model(path, right)
    with pytest.raises(ValueError, match="the network must predict the noise in the data"):
        load(path, data=digits[:128])
    with pytest.raises(ValueError, match="data must be two samples or more that vary"):
        load("digits", data=digits[:1])
