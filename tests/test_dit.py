"""The transformer: its block is that of diffusers, its places and sizes are exact identities."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion import VPSDE, ScoreModel, load, save_model
from sde_diffusion.cli.main import main
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.likelihood import Exact
from sde_diffusion.nets import DiT, UNet
from sde_diffusion.nets.attention import attended
from sde_diffusion.nets.choices import dit_for
from sde_diffusion.nets.cost import flops
from sde_diffusion.nets.dit import Block
from sde_diffusion.nets.patches import tokens_of
from sde_diffusion.nets.positions import angles, coordinates, rotated, sinusoids
from sde_diffusion.nets.unet import mnist_config

# PyTorch compiles its own rules for forward mode with this when they are first needed.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


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


def dit(**settings: Any) -> Any:
    return shaken(DiT(**{"channels": 2, "width": 24, "depth": 2, "heads": 2} | settings))


# Parts ----------------------------------------------------------------------------------------


def test_a_block_is_the_identity_at_first_and_leaves_it_by_its_gates():
    block = Block(8, 2, "rms", 0.0, generator())
    x, e = normal(2, 3, 8).float(), normal(2, 8, seed=1).float()
    out = block(x, e)
    assert torch.equal(out, x)
    out.square().sum().backward()
    gates = block.modulation.weight.grad.unflatten(0, (6, 8))
    assert [bool(part.any()) for part in gates] == [False, False, True, False, False, True]


def test_the_block_is_that_of_diffusers():
    attention = pytest.importorskip("diffusers.models.attention")
    peer = attention.BasicTransformerBlock(
        24,
        3,
        8,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=5,
        attention_bias=True,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    peer = shaken(peer)
    block = Block(24, 3, "none", 0.0, generator()).double()
    one, mlp = peer.attn1, peer.ff.net
    block.modulation.load_state_dict(peer.norm1.linear.state_dict())
    block.attention.out.load_state_dict(one.to_out[0].state_dict())
    block.inner.load_state_dict(mlp[0].proj.state_dict())
    block.outer.load_state_dict(mlp[2].state_dict())
    parts = (one.to_q, one.to_k, one.to_v)
    qkv = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("weight", "bias")}
    block.attention.qkv.load_state_dict(qkv)
    x, times, labels = normal(2, 7, 24), torch.tensor([3, 800]), torch.tensor([1, 4])
    e = F.silu(peer.norm1.emb(times, labels, hidden_dtype=torch.float64))
    got, expected = block(x, e), peer(x, timestep=times, class_labels=labels)
    assert float((expected - x).abs().max()) > 0.1
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


def test_sinusoids_are_those_of_diffusers_axis_by_axis():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    at = coordinates((3, 5), torch.zeros(1, dtype=torch.float64))
    found = sinusoids(at, 24)
    for axis in (0, 1):
        known = embeddings.get_1d_sincos_pos_embed_from_grid(12, at[:, axis], flip_sin_to_cos=True)
        assert torch.allclose(found[:, 12 * axis : 12 * (axis + 1)], known, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_tokens_times_weights_are_a_strided_convolution(dims: int):
    sizes, patch = (6, 4, 3)[:dims], (3, 2, 1)[:dims]
    x, weight = normal(2, 3, *sizes), normal(5, 3, *patch, seed=1)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    expected = convolution(x, weight, stride=patch).flatten(2).mT
    assert torch.allclose(tokens_of(x, patch) @ weight.flatten(1).T, expected, rtol=0, atol=1e-12)


def test_attention_is_its_formula_and_hidden_keys_have_no_weight():
    q, k, v = (normal(2, 3, n, 4, seed=n) for n in (5, 6, 6))
    v = normal(2, 3, 6, 4, seed=9)
    hidden = torch.tensor([[False] * 6, [False, True, False, True, True, False]])
    expected = torch.empty(2, 3, 5, 4, dtype=torch.float64)
    for row in range(2):
        there = ~hidden[row]
        scores = torch.einsum("hnd,hmd->hnm", q[row], k[row][:, there]) / 2
        expected[row] = scores.softmax(2) @ v[row][:, there]
    assert torch.allclose(attended(q, k, v, hidden), expected, rtol=0, atol=1e-12)


@forward_mode
def test_attention_differentiates_every_way():
    leaves = [normal(2, 1, n, 2, seed=n).requires_grad_() for n in (2, 3, 4)]
    hidden = torch.tensor([[False, False, True], [False, True, False]])

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attended(q, k, v[:, :, :3], hidden)

    assert torch.autograd.gradcheck(
        function, leaves, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_products_of_rotated_vectors_depend_on_differences_of_places(dims: int):
    at = 10 * normal(6, dims)
    q, k = (normal(1, 1, 6, 16, seed=seed).expand(2, 3, 6, 16) for seed in (1, 2))

    def products(at: Tensor) -> Tensor:
        turn = angles(at, 16)
        return rotated(q, turn) @ rotated(k, turn).mT

    shift = 10 * normal(dims, seed=3)
    assert torch.allclose(products(at), products(at + shift), rtol=0, atol=1e-11)
    for axis in range(dims):  # and on those along every axis
        moved = at.clone()
        moved[0, axis] += 0.5
        assert float((products(moved) - products(at)).abs().max()) > 0.05


# The whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["sin-cos", "rotary", "none"])
def test_the_order_of_patches_matters_only_by_their_positions(positions: str):
    net = dit(patch=(1, 1), positions=positions)
    x, c = normal(2, 2, 3, 4), torch.tensor([0.2, 0.7], dtype=torch.float64)
    order = torch.randperm(12, generator=generator(5))
    moved = x.flatten(2)[:, :, order].reshape(x.shape)
    expected = net(x, c).flatten(2)[:, :, order].reshape(x.shape)
    error = float((net(moved, c) - expected).abs().max())
    assert error < 1e-11 if positions == "none" else error > 1e-2


@pytest.mark.parametrize("positions", ["sin-cos", "rotary"])
@pytest.mark.parametrize("patch", [(2,), (2, 2), (1, 2, 2)], ids=str)
def test_samples_of_mixed_sizes_are_those_alone_and_see_nothing_outside(
    patch: tuple[int, ...], positions: str
):
    net = dit(patch=patch, positions=positions, classes=3).float()
    most = (5, 7, 4)[: len(patch)]
    sizes = torch.tensor([most, (4, 7, 3)[: len(patch)], (1, 2, 4)[: len(patch)]])
    x = normal(3, 2, *most).float()
    c, labels = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([2, -1, 0])
    out = net(x, c, labels, sizes=sizes)
    other = x.clone()
    for row, size in enumerate(sizes.tolist()):
        inside = (slice(None), *(slice(n) for n in size))
        alone = net(x[row][inside][None], c[row : row + 1], labels[row : row + 1])
        assert torch.allclose(out[row][inside], alone[0], rtol=0, atol=1e-5)
        outside = torch.ones(most, dtype=torch.bool)
        outside[inside[1:]] = False
        assert not bool(out[row][:, outside].any())
        order = torch.randperm(int(outside.sum()), generator=generator(row))
        other[row][:, outside] = other[row][:, outside][:, order]
        if row == 2:
            other[row][:, outside] = math.nan
    assert not torch.equal(other, x)
    assert torch.equal(net(other, c, labels, sizes=sizes), out)


@torch.no_grad()
def test_samples_do_not_depend_on_their_batch():
    net = dit(channels=1, qk_norm="rms", positions="rotary")
    x, c = normal(5, 1, 6, 4), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    whole = net(x, c)
    parts = torch.cat([net(x[i : i + 1], c[i : i + 1]) for i in range(5)])
    assert torch.allclose(whole, parts, rtol=0, atol=1e-12)


def test_the_scale_of_queries_and_keys_is_taken_out_by_their_norm():
    net = Block(16, 2, "rms", 0.0, generator()).double()
    plain = Block(16, 2, "none", 0.0, generator()).double()
    x = normal(1, 5, 16)
    for block, same in ((net, True), (plain, False)):
        before = block.attention(x, None, None)
        with torch.no_grad():
            block.attention.qkv.weight[:32] *= 3
        after = block.attention(x, None, None)
        assert torch.allclose(after, before, rtol=0, atol=1e-4) is same


@forward_mode
@pytest.mark.parametrize("positions", ["sin-cos", "rotary"])
def test_divergences_agree_between_the_modes_and_with_the_whole_jacobian(positions: str):
    net = dit(channels=1, positions=positions, qk_norm="rms")
    model = ScoreModel(net, VPSDE())
    flow = ProbabilityFlow(model.sde, model)
    x = normal(2, 1, 4, 3)
    at = torch.tensor(0.4, dtype=torch.float64)

    def velocity(x: Tensor) -> Tensor:
        return flow.velocity(x, at)

    found = [
        way.evaluate(velocity, x, way.draw(x))[1]
        for way in (Exact(mode="reverse"), Exact(mode="forward"))
    ]
    jacobian = torch.autograd.functional.jacobian(velocity, x).reshape(2, 12, 2, 12)
    known = torch.stack([jacobian[i, :, i].trace() for i in range(2)])
    for one in found:
        assert torch.allclose(one[:, 0], known, rtol=0, atol=1e-10)


def test_operations_are_those_of_the_formula_and_of_pytorchs_counter():
    w, depth, tokens = 32, 2, 20
    of_block = 6 * w * w + tokens * 12 * w * w + 2 * tokens * tokens * w
    ends = 2 * w * w + 2 * w * w + 2 * tokens * 4 * w
    net = DiT(1, (2, 2), w, depth, positions="rotary")
    assert flops(net, (1, 8, 10)) == 2 * (depth * of_block + ends)
    # torch.utils.flop_counter of PyTorch 2.13 says 724,046,752.
    assert flops(UNet(**mnist_config()), (1, 28, 28)) == 724_046_752


# Commands and files ---------------------------------------------------------------------------


def run(*words: Any, code: int = 0) -> Any:
    ended = CliRunner().invoke(main, [*map(str, words)])
    assert ended.exit_code == code, ended.output
    return ended


def test_a_transformer_is_trained_and_used_by_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("series.npy", np.random.default_rng(0).normal(size=(6, 2, 9)).astype(np.float32))
    words = ("--data", "series.npy", "--layout", "cl")
    # A step so short that the network stays 0: eps = 0.
    brief = ("--steps", 1, "--batch-size", 2, "--width", 8, "--learning-rate", 1e-30)
    kind = ("--network", "kind=dit", "--network", "depth=1", "--network", "positions=rotary")
    run("train", *words, *brief, *kind, "--scale", "none", "--out", "run")
    model = load("run")
    assert isinstance(model.network, DiT)
    assert model.network.config["patch"] == [2]
    run("train", "--steps", 2, "--resume", "--out", "run")
    found = json.loads(run("info", "run", "--json").stdout)
    assert found["flops"] == flops(model.network, (2, 9))
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    run("sample", "--model", "run", "--solver", "ddim", "--steps", 2, "-n", 3, "--out", "drawn")
    assert np.load("drawn/samples.npz")["x"].shape == (3, 2, 9)


def test_a_checkpoint_of_a_transformer_gives_its_outputs_back(tmp_path: Path) -> None:
    net = dit(positions="rotary", qk_norm="rms", classes=3).float()
    save_model(tmp_path / "net.safetensors", ScoreModel(net, VPSDE()))
    again = load(tmp_path / "net.safetensors")
    x, t = normal(2, 2, 5, 4).float(), torch.tensor(0.3)
    assert torch.equal(again.given(1).eps(x, t), ScoreModel(net, VPSDE()).given(1).eps(x, t))


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [((1, 8, 8), 16), ((1, 28, 28), 196), ((2, 16000), 250), ((3, 9, 9, 9), 125)],
)
def test_a_transformer_of_a_shape_has_at_most_256_tokens(shape: tuple[int, ...], tokens: int):
    config = dit_for(shape)
    x = torch.zeros(1, *shape)
    assert tokens_of(x, config["patch"]).shape[1] == tokens
    net = DiT(**config | {"depth": 1})
    assert torch.equal(net(x, torch.zeros(1)), x)


# Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "DiT: channels must be at least 1, got 0"),
        ({"patch": 2}, r"DiT: patch must be a sequence of integers, got 2; .* patch=\(2, 2\)"),
        ({"patch": ()}, r"DiT: patch must be 1 to 3 positive numbers, .* got \[\]"),
        ({"patch": (1, 0)}, r"DiT: patch must be 1 to 3 positive numbers, .* got \[1, 0\]"),
        ({"patch": (1,) * 4}, "DiT: patch must be 1 to 3 positive numbers"),
        ({"width": 10, "heads": 4}, "DiT: heads must divide the width 10, got 4; pass heads=1"),
        ({"width": 9, "heads": 3, "positions": "rotary"}, "DiT: heads must be such that"),
        ({"depth": 2000}, "DiT: depth must be at most 1000"),
        ({"positions": "learned"}, "DiT: positions must be one of sin-cos, rotary, none"),
        ({"qk_norm": "layer"}, "DiT: qk_norm must be one of none, rms"),
        ({"dropout": 1.0}, r"DiT: dropout must be in \[0, 1\)"),
        ({"seed": -1}, "DiT: seed must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        DiT(**{"channels": 1} | settings)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[2, 2], [1, 1]], "sizes must be a tensor of integers, got list"),
        (torch.ones(2, 2), "sizes must be a tensor of integers, got torch.float32"),
        (torch.ones(2, 1).long(), r"sizes must have shape \(2, 2\) for this x, got \(2, 1\)"),
        (
            torch.tensor([[4, 5], [0, 1]]),
            r"sizes must lie in 1 … \(4, 5\), got values from 0 to 5",
        ),
        (
            torch.tensor([[5, 4], [1, 1]]),
            r"sizes must lie in 1 … \(4, 5\), got values from 1 to 5",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: Any, message: str):
    net = DiT(1, width=8, depth=1)
    with pytest.raises((ValueError, TypeError), match=f"^DiT: {message}"):
        net(torch.zeros(2, 1, 4, 5), torch.zeros(2), sizes=sizes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("kind=vit",), "--network: kind must be unet or dit for samples of shape .* kind=unet"),
        (("kind=mlp",), "--network: kind must be unet or dit"),
        (("kind=dit", "blocks=2"), "--network: network must be one of patch, depth, heads"),
        (("kind=dit", "heads=5"), "DiT: heads must divide the width 96, .* --network heads=1"),
        (("kind=dit", "patch=2"), "DiT: patch must be a sequence .* --network patch=2,2"),
    ],
)
def test_kinds_of_networks_are_refused_by_name(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    given = [part for word in words for part in ("--network", word)]
    ended = CliRunner().invoke(main, ["train", *given, "--out", str(tmp_path / "run")])
    assert ended.exit_code
    assert re.search(message, ended.output), ended.output
    assert not (tmp_path / "run").exists()
