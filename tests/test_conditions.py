"""Vectors, images, texts and tokens as conditions: exact identities, and every path they take."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from sde_diffusion import (
    VPSDE,
    Dataset,
    DataSpec,
    GuidanceInterval,
    Guided,
    ScoreModel,
    TrainingConfig,
    guided,
    load,
    load_data,
    log_prob,
    sample,
    save_model,
    train,
)
from sde_diffusion.cli.main import main
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.likelihood import Exact
from sde_diffusion.nets import MLP, DiT, UNet, context_of
from sde_diffusion.nets.conditions import bytes_of
from sde_diffusion.nets.given import Tokens
from sde_diffusion.solvers import AngularAdams, Heun
from sde_diffusion.training.batch import GlobalBatch
from sde_diffusion.training.objective_by_name import objective_of

forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
ALL: dict[str, Any] = {"vector": 3, "image": 2, "text": 6, "context": 5}
NETS: dict[str, Any] = {
    "unet": lambda **kw: UNet(
        **{"channels": 1, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (0, 1)}
        | {"heads": 2}
        | kw
    ),
    "dit": lambda **kw: DiT(**{"channels": 1, "width": 12, "depth": 2, "heads": 2} | kw),
}
every = pytest.mark.parametrize("build", NETS.values(), ids=NETS)
T = torch.tensor(0.4, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def shaken(net: nn.Module) -> Any:
    """The network in float64, frozen, with every weight moved by N(0, 0.2²)."""
    draws = generator(7)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draws)
    return net.double().eval().requires_grad_(requires_grad=False)


def values(rows: int = 2) -> dict[str, Tensor]:
    text = nn.functional.pad(bytes_of(["ab", "cdef", "x"][:rows]), (0, 2), value=-1)[:, :6]
    return {
        "vector": normal(rows, 3, seed=1),
        "image": normal(rows, 2, 5, 4, seed=2),
        "text": text,
        "context": normal(rows, 4, 5, seed=3),
    }


def inputs(rows: int = 2) -> tuple[Tensor, Tensor]:
    return normal(rows, 1, 5, 4), torch.linspace(0.2, 0.8, rows, dtype=torch.float64)


# The networks ---------------------------------------------------------------------------------


@every
def test_cross_attention_is_the_identity_at_first(build: Any):
    plain = shaken(build())
    net = build(text=6, context=5).double()
    missing = net.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert {name.split(".")[0] for name in missing.missing_keys} == {"tokens", "crosses"}
    x, c = inputs()
    given = values()
    out = net(x, c, text=given["text"], context=given["context"])
    assert torch.equal(out, plain(x, c))
    out.square().sum().backward()
    assert all(bool(cross.out.weight.grad.any()) for cross in net.crosses)


@every
@pytest.mark.parametrize("name", ALL)
def test_a_condition_matters_and_nothing_is_none(build: Any, name: str):
    net = shaken(build(**ALL))
    x, c = inputs()
    value = values()[name]
    out = net(x, c, **{name: value})
    none = net(x, c)
    assert float((out - none).abs().amax((1, 2, 3)).min()) > 1e-2
    empty = torch.full_like(value, -1 if name == "text" else math.nan)
    assert torch.allclose(net(x, c, **{name: empty}), none, rtol=0, atol=1e-12)
    mixed = torch.stack([value[0], empty[1]])
    expected = torch.stack([out[0], none[1]])
    assert torch.allclose(net(x, c, **{name: mixed}), expected, rtol=0, atol=1e-12)


@every
def test_masked_tokens_never_matter(build: Any):
    net = shaken(build(context=5))
    x, c = inputs()
    context = values()["context"]
    context[0, 1, 2] = context[1, 0] = context[1, 3] = math.nan
    out = net(x, c, context=context)
    other = context.clone()
    other[0, 1] = torch.tensor([7.0, -3.0, math.nan, 1e6, math.inf])
    other[1, [0, 3], 1:] = normal(2, 4, seed=9)
    assert torch.equal(net(x, c, context=other), out)
    swapped = other.clone()
    swapped[1, [0, 3]] = other[1, [3, 0]]
    assert torch.equal(net(x, c, context=swapped), out)
    alone = net(x[1:], c[1:], context=context[1:, [1, 2]])
    assert torch.allclose(alone, out[1:], rtol=0, atol=1e-12)


def test_a_text_is_read_alike_by_networks_of_longer_texts():
    short, long = (shaken(Tokens(size, None, 8, generator())) for size in (6, 11))
    text = values()["text"]
    tokens, hidden = short(2, text, None)
    more, hidden_too = long(2, nn.functional.pad(text, (0, 5), value=-1), None)
    assert torch.equal(hidden_too[:, :7], hidden)
    assert bool(hidden_too[:, 7:].all())
    there = ~hidden
    assert torch.allclose(more[:, :7][there], tokens[there], rtol=0, atol=1e-12)
    turned = short(1, torch.tensor([[98, 97, -1]]), None)[0][:, 0]
    assert float((turned - tokens[:1, 0]).abs().max()) > 1e-3  # "ba" is not "ab"


@every
def test_an_image_stands_beside_the_state_with_where_it_is_known(build: Any):
    net = shaken(build(image=1))
    wide = build(channels=3, outputs=1).double().eval()
    wide.load_state_dict(net.state_dict())
    x, c = inputs()
    image = values()["image"][:, :1]
    image[0, 0, 2:, 1] = math.nan
    known = (~image.isnan()).double()
    expected = wide(torch.cat([x, image.nan_to_num(0.0), known], dim=1), c)
    assert torch.allclose(net(x, c, image=image), expected, rtol=0, atol=1e-12)


def test_a_vector_is_added_as_the_row_of_a_class_is():
    net = shaken(MLP(2, width=8, vector=3))
    classes = MLP(2, width=8, classes=2).double().eval()
    classes.load_state_dict(net.state_dict(), strict=False)
    vector = torch.tensor([[0.5, math.nan, -1.0], [2.0, 0.1, 0.3]], dtype=torch.float64)
    weight, bias = net.vector.map.weight, net.vector.map.bias
    seen = torch.cat([vector.nan_to_num(0.0), (~vector.isnan()).double()], dim=1)
    with torch.no_grad():
        classes.condition.classes.weight[0] = bias
        classes.condition.classes.weight[1:] = seen @ weight.T + bias
    x, c = normal(2, 2), torch.tensor([0.3, 0.6], dtype=torch.float64)
    got = net(x, c, vector=vector)
    assert torch.allclose(got, classes(x, c, torch.tensor([0, 1])), rtol=0, atol=1e-12)
    assert torch.allclose(net(x, c), classes(x, c), rtol=0, atol=1e-12)


# The model ------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("name", ALL)
def test_guidance_is_its_formula_in_one_call_for_every_kind(build: Any, name: str):
    net = shaken(build(**ALL, classes=3))
    model = ScoreModel(net, VPSDE()).eval()
    value = values()[name]
    x, _ = inputs()
    calls = []
    net.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    both = guided(model, torch.tensor([1, 2]), 1.5, **{name: value})
    got = both.eps(x, T)
    assert calls == [4]
    c = model.given(torch.tensor([1, 2]), **{name: value}).eps(x, T)
    u = model.eps(x, T)
    assert float((c - u).abs().max()) > 1e-2
    assert torch.allclose(got, c + 1.5 * (c - u), rtol=0, atol=1e-10)
    alone = guided(model, None, 1.5, **{name: value}).eps(x, T)
    c = model.given(**{name: value}).eps(x, T)
    assert torch.allclose(alone, c + 1.5 * (c - u), rtol=0, atol=1e-10)
    off = GuidanceInterval(VPSDE(), 1.5, low=50.0)
    assert torch.equal(guided(model, None, off, **{name: value}).eps(x, T), c)
    for i in range(2):
        part = both.rows(torch.tensor([i])).eps(x[i : i + 1], T)
        assert torch.allclose(part, got[i : i + 1], rtol=0, atol=1e-10)


def test_a_negative_prompt_takes_the_place_of_no_text():
    net = shaken(NETS["dit"](text=6, classes=2))
    model = ScoreModel(net, VPSDE()).eval()
    x, _ = inputs()
    calls = []
    net.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    got = Guided(model.given(text=["ab", "cdef"]), model.given(text="x"), 2.0).eps(x, T)
    assert calls == [4]
    c, u = (model.given(text=text).eps(x, T) for text in (["ab", "cdef"], "x"))
    assert torch.allclose(got, 3 * c - 2 * u, rtol=0, atol=1e-10)


def test_conditions_join_and_replace_one_another():
    net = shaken(NETS["dit"](**ALL, classes=3))
    model = ScoreModel(net, VPSDE()).eval()
    x, _ = inputs()
    given = values()
    at_once = model.given(torch.tensor([0, 2]), text=["ab", "cdef"], vector=given["vector"])
    text = model.given(text="x").given(text=["ab", "cdef"])
    for other in (
        text.given(torch.tensor([0, 2])).given(vector=given["vector"]),
        text.given(vector=given["vector"]).given(torch.tensor([0, 2])),
    ):
        assert torch.equal(other.eps(x, T), at_once.eps(x, T))
    same = net(x, T.expand(2), torch.tensor([0, 2]), text=given["text"], vector=given["vector"])
    assert torch.equal(at_once.eps(x, T), same)
    one = model.given(text="ab").eps(x, T)
    assert torch.equal(one, model.given(text=["ab", "ab"]).eps(x, T))
    assert torch.equal(
        model.given(text="").eps(x, T), model.given(text="ab").given(text="").eps(x, T)
    )


@forward_mode
@every
def test_divergences_of_conditional_flows_agree_between_the_modes(build: Any):
    model = ScoreModel(shaken(build(**ALL)), VPSDE()).eval().given(**values())
    flow = ProbabilityFlow(model.sde, model)
    x, _ = inputs()
    one, two = (
        way.evaluate(lambda x: flow.velocity(x, T), x, way.draw(x))[1]
        for way in (Exact(mode="reverse"), Exact(mode="forward"))
    )
    assert torch.allclose(one, two, rtol=0, atol=1e-10)


def test_solvers_and_likelihoods_take_a_conditional_model_as_it_is():
    net = shaken(DiT(1, (1,), width=8, depth=1, heads=2, text=6))
    with torch.no_grad():
        net.head.weight *= 0.02
        net.head.bias *= 0.02
    model = ScoreModel(net.float(), VPSDE()).eval()
    texts = ["ab", "cdef", "x"]
    many = model.given(text=texts)
    drawn = sample(many, AngularAdams(), (3, 1, 4), steps=4, seed=0).x
    x = normal(3, 1, 4).float()
    grid = torch.linspace(1e-2, 1.0, 6, dtype=torch.float64)

    def nats(given: ScoreModel, x: Tensor) -> Tensor:
        flow = ProbabilityFlow(model.sde, given)
        return log_prob(x, flow, Heun(), grid=grid, divergence=Exact()).nats

    found = nats(many, x)
    for i, text in enumerate(texts):
        one, own = model.given(text=text), x[i : i + 1]
        assert torch.equal(many.rows(torch.tensor([i])).eps(own, T), one.eps(own, T))
        assert abs(float(nats(one, own)) - float(found[i])) < 1e-4 * abs(float(found[i]))
    assert len(set(found.tolist())) == 3
    first = sample(model.given(text="ab"), AngularAdams(), (1, 1, 4), steps=4, seed=0).x
    assert torch.allclose(first, drawn[:1], rtol=0, atol=1e-6)


def test_an_encoder_of_another_program_gives_tokens_that_count():
    def encoder(texts: Any) -> tuple[Tensor, Tensor]:
        tokens = torch.stack([torch.arange(10.0).reshape(2, 5) + len(text) for text in texts])
        return tokens, torch.tensor([[True, len(text) > 1] for text in texts])

    context = context_of(encoder, ["ab", "c"])
    model = ScoreModel(shaken(NETS["dit"](context=5)), VPSDE()).eval()
    x, _ = inputs()
    got = model.given(context=context).eps(x, T)
    tokens, _ = encoder(["ab", "c"])
    short = model.given(context=tokens[1:, :1]).eps(x[1:], T)
    assert torch.allclose(got[1:], short, rtol=0, atol=1e-12)


def test_a_checkpoint_keeps_the_conditions(tmp_path: Path) -> None:
    for build in NETS.values():
        model = ScoreModel(shaken(build(**ALL)).float(), VPSDE()).eval()
        save_model(tmp_path / "net.safetensors", model)
        again = load(tmp_path / "net.safetensors")
        x = inputs()[0].float()
        given = {name: v.float() if name != "text" else v for name, v in values().items()}
        assert torch.equal(again.given(**given).eps(x, T), model.given(**given).eps(x, T))


# Training and commands ------------------------------------------------------------------------


def told(rows: int = 6) -> Dataset:
    draws = generator(3)
    side = torch.arange(rows) % 2
    x = torch.where(side[:, None, None] == 1, 1.0, -1.0) + 0.1 * torch.randn(
        rows, 1, 2, generator=draws
    )
    conditions = {
        "text": bytes_of([["left", "to the right"][i] for i in side.tolist()]),
        "vector": side[:, None].float(),
    }
    return Dataset(DataSpec("told", (1, 2), None), x, side, conditions=conditions)


def test_dropout_takes_all_conditions_of_a_sample_and_draws_what_labels_alone_do():
    data = told(200)
    model = ScoreModel(DiT(1, (1,), width=8, depth=1), VPSDE())
    config = TrainingConfig(label_dropout=0.3, seed=2)
    labels_alone = data.for_network(2, ())
    batches = [
        GlobalBatch.draw(objective_of(config), model, d, torch.arange(200), config, 1)
        for d in (data, labels_alone)
    ]
    all_, alone = (batch.given for batch in batches)
    assert set(alone) == {"labels"}
    assert torch.equal(all_["labels"], alone["labels"])
    dropped = all_["labels"] == -1
    assert abs(float(dropped.double().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 200)
    assert torch.equal((all_["text"] == -1).all(1), dropped)
    assert torch.equal(all_["vector"].isnan().all(1), dropped)
    assert torch.equal(all_["text"][~dropped], data.conditions["text"][~dropped])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told")
    data = told(64)
    words = ["left", "to the right"]
    text = np.array([words[int(i)] for i in data.labels])
    np.savez(folder / "told.npz", x=data.values.numpy(), text=text)
    net = ("--network", "kind=dit", "--network", "patch=1,", "--network", "depth=1")
    size = ("--width", "16", "--steps", "100", "--batch-size", "64", "--learning-rate", "1e-2")
    run(
        "train",
        "--data",
        folder / "told.npz",
        "--layout",
        "cl",
        "--conditional",
        *net,
        *size,
        "--scale",
        "none",
        "--ema-decay",
        ".9",
        "--out",
        folder / "run",
    )
    return folder


def run(*words: Any) -> Any:
    ended = CliRunner().invoke(main, [*map(str, words)])
    assert ended.exit_code == 0, ended.output
    return ended


def test_a_text_decides_what_is_drawn(learned: Path) -> None:
    model = load(learned / "run").requires_grad_(requires_grad=False)
    assert model.network.config["text"] == len("to the right")
    x, start = normal(4, 1, 2).float(), torch.tensor(1.0, dtype=torch.float64)
    # From pure noise the denoised state is E[x0 | text], −1 and 1, and 0 of no text.
    means = [
        float(m.denoise(x, start).mean())
        for m in (model.given(text="left"), model.given(text="to the right"))
    ]
    assert means[0] < -0.5
    assert means[1] > 0.5
    drawn = ("--model", learned / "run", "-n", 6, "--steps", 8, "--out", learned / "drawn")
    run("sample", *drawn, "--text", "left", "--text", "to the right")
    with np.load(learned / "drawn" / "samples.npz") as arrays:
        assert arrays["text"].tolist() == ["left", "to the right"] * 3
        assert (np.sign(arrays["x"].mean((1, 2))) == [-1, 1] * 3).all()
    away = ("--text", "left", "--negative", "to the right", "--guidance", 1)
    found = json.loads(run("sample", *drawn, *away, "--json").stdout)
    assert found["negative"] == "to the right"
    with np.load(learned / "drawn" / "samples.npz") as arrays:
        assert (arrays["x"].mean((1, 2)) < 0).all()


def test_a_run_goes_on_with_its_own_texts_alone(learned: Path) -> None:
    with np.load(learned / "told.npz") as arrays:
        x, text = arrays["x"], arrays["text"]
    data = load_data(learned / "told.npz", layout="cl")
    assert data.conditions["text"].shape == (64, 12)
    np.savez(learned / "other.npz", x=x, text=text[::-1])
    other = load_data(learned / "other.npz", layout="cl")
    config = TrainingConfig(steps=1, batch_size=4)

    def model() -> ScoreModel:
        return ScoreModel(DiT(1, (1,), width=8, depth=1, text=12), VPSDE(), data=data.spec)

    folder = learned / "own"
    list(train(model(), data, config, out=folder))
    more = TrainingConfig(steps=2, batch_size=4)
    with pytest.raises(ValueError, match="conditions_crc32"):
        list(train(model(), other, more, out=folder, resume=True))
    list(train(model(), data, more, out=folder, resume=True))


# Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"text": "seven !"},
            "condition: text must have at most the 6 bytes .* 7 bytes, 'seven !'",
        ),
        ({"text": ["a", "é" * 4]}, "condition: text must have at most the 6 bytes .* got 8 bytes"),
        ({"text": torch.zeros(2, 7).long()}, "condition: text must have at most the 6 bytes"),
        ({"text": torch.full((2, 3), 256)}, "condition: text must hold bytes 0 … 255, .* got 256"),
        ({"text": torch.full((2, 3), -2)}, "condition: text must hold bytes .* got -2"),
        ({"text": torch.zeros(2, 3)}, "condition: text must hold bytes, got torch.float32"),
        ({"text": 7}, "condition: text must be a tensor, got int; pass a text"),
        (
            {"vector": torch.zeros(2, 4)},
            r"condition: vector must have shape \(n, 3\), got \(2, 4\)",
        ),
        (
            {"vector": torch.zeros(2, 3).long()},
            "condition: vector must hold floating-point numbers",
        ),
        ({"image": torch.zeros(2, 1, 5, 4)}, r"condition: image must have shape \(n, 2, …\), got"),
        (
            {"image": torch.zeros(2, 2, 4, 4)},
            r"DiT: image must have shape \(2, 2, 5, 4\) for this x",
        ),
        (
            {"context": torch.zeros(2, 1, 4)},
            r"condition: context must have shape \(n, L, 5\), got",
        ),
        ({"context": torch.zeros(2, 5)}, "condition: context must have 3 axes"),
        (
            {"sound": torch.zeros(2)},
            "conditions must be one of labels, vector, image, text, context",
        ),
        ({"text": ["a", "b", "c"]}, "Conditioned: x must have 3 samples"),
    ],
    ids=str,
)
def test_conditions_that_do_not_fit_are_refused_by_name(given: Any, message: str) -> None:
    model = ScoreModel(NETS["dit"](**ALL), VPSDE()).eval()
    with pytest.raises((ValueError, TypeError), match=message):
        model.given(**given).eps(inputs()[0].float(), T)


def test_conditions_for_networks_without_are_refused_by_name() -> None:
    model = ScoreModel(NETS["dit"](), VPSDE())
    with pytest.raises(
        ValueError, match=r"conditions must be one of labels, which .* got text; build"
    ):
        model.given(text="a")
    x, c = (part.float() for part in inputs())
    with pytest.raises(ValueError, match="DiT: text must be None for a network without text"):
        NETS["dit"]()(x, c, text=torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match=r"UNet: attention must list .* attention=\(1,\)"):
        NETS["unet"](text=6, attention=())
    with pytest.raises(ValueError, match="DiT: text must be at least 1, got 0"):
        DiT(1, text=0)
    with pytest.raises(ValueError, match="train: dataset must have a text for each sample"):
        list(
            train(
                ScoreModel(DiT(1, (1,), text=4), VPSDE()),
                told().for_network(None, ()),
                TrainingConfig(steps=1, batch_size=2),
                out="never",
            )
        )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"text": np.array(["a", "b"])}, r"hold one text for each of 3 rows, got shape \(2, 1\)"),
        ({"text": np.zeros(3)}, "hold texts as text, got dtype float64; save numpy.array"),
        ({"vector": np.zeros((3, 2), int)}, "hold conditions of floats, got dtype int64"),
        ({"vector": np.zeros((2, 2))}, r"hold one vector for each of 3 rows, got shape \(2, 2\)"),
    ],
)
def test_conditions_of_files_are_refused_by_name(
    tmp_path: Path, arrays: Any, message: str
) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2), np.float32), **arrays)
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path / "a.npz")


def test_conditions_of_files_are_read_row_by_row(tmp_path: Path) -> None:
    vector = np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0]])
    text = np.array(["é", "", "abc"])
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(tmp_path / "a.npz", x=x, y=[1, 0, 2], text=text, vector=vector)
    data = load_data(tmp_path / "a.npz", limit=2)
    assert data.conditions["text"].tolist() == [[0xC3, 0xA9, -1], [-1, -1, -1]]
    assert np.array_equal(data.conditions["vector"].numpy(), vector[:2], equal_nan=True)
    assert data.labels is not None
    assert set(data.given) == {"labels", "text", "vector"}
    assert data.part(slice(1, 2)).conditions["vector"].tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text", "a"), "--text: text must be left out for a model without texts, got a; train"),
        (("--negative", "a"), "--negative: negative must go with a text and a weight of guidance"),
    ],
)
def test_texts_for_a_model_without_are_refused(words: Any, message: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(main, ["sample", *words, "--out", str(tmp_path / "drawn")])
    assert ended.exit_code
    assert message in ended.output
