"""The networks: exact identities of their parts, laws of the whole, and what training needs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.nets import MLP, DiT, UNet, _norm
from sde_diffusion.nets._norm import normalised
from sde_diffusion.nets.blocks import Attention, ResidualBlock
from sde_diffusion.nets.embedding import GaussianFourier, Sinusoidal
from sde_diffusion.nets.resampling import convolved_double, doubled, halved
from sde_diffusion.nets.unet import digits_config, mnist_config

SMALL: dict[str, Any] = {
    "channels": 1,
    "width": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (0, 1),
    "heads": 2,
}
TINY: dict[str, Any] = {"channels": 1, "width": 12, "depth": 2, "heads": 2}
OPTIONS = {"resampling": "fir", "progressive": "residual", "rescaling": "none"}

# PyTorch compiles its own rules for forward mode with this when they are first needed.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


@pytest.fixture(params=[0, 2**60], ids=["large", "small"])
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of computing, whatever the size: that for large images and that for small ones."""
    monkeypatch.setattr(_norm, "SMALL", request.param)


either = pytest.mark.usefixtures("regime")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def shaken(net: nn.Module) -> Any:
    """The network, frozen, with every weight moved by N(0, 0.2²), so that nothing is 0."""
    draws = generator(7)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draws)
    return net.eval().requires_grad_(requires_grad=False)


def small(**settings: Any) -> Any:
    return shaken(UNet(**SMALL | settings))


def inputs(net: UNet | DiT | MLP, rows: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    event = (net.config["dimension"],) if isinstance(net, MLP) else (net.config["channels"],)
    if not isinstance(net, MLP):
        dims = len(net.strides if isinstance(net, UNet) else net.config["patch"])
        event += {1: (9,), 2: (5, 7), 3: (3, 5, 4)}[dims]
    x = normal(rows, *event, seed=1, dtype=dtype)
    return x, torch.linspace(0.1, 0.9, rows, dtype=dtype)


# Embeddings ---------------------------------------------------------------------------------


def test_sinusoidal_frequencies_fall_from_the_scale_by_equal_factors():
    c = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    got = Sinusoidal(4, scale=50.0)(c)
    for k in range(4):
        angle = 50.0 / 10**k * c  # 10⁴^(−k/4) = 10^−k
        assert torch.allclose(got[:, k], math.sqrt(2) * angle.cos(), rtol=0, atol=1e-12)
        assert torch.allclose(got[:, 4 + k], math.sqrt(2) * angle.sin(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_products_of_fourier_features_tend_to_the_gaussian_kernel(scale: float):
    c = torch.linspace(-0.5, 0.5, 41, dtype=torch.float64)
    kernel = torch.exp(-((2 * math.pi * scale) ** 2) * (c[:, None] - c) ** 2 / 2)
    worst = []
    for pairs in (100, 40_000):
        phi = GaussianFourier(pairs, scale, generator())(c)
        worst.append((phi @ phi.T / phi.shape[1] - kernel).abs().max())
    assert worst[1] < 4 / math.sqrt(40_000)  # four deviations of a mean of cosines
    assert worst[1] < worst[0] / 3


def test_casting_a_network_to_bfloat16_leaves_the_phases_alone():
    for embedding in ("fourier", "sinusoidal"):
        net = MLP(2, width=32, embedding=embedding)
        c = torch.tensor([0.25, 0.875])
        before = net.condition.waves(c)
        assert torch.equal(net.bfloat16().condition.waves(c), before)


# Norms and resampling -----------------------------------------------------------------------


@either
@pytest.mark.parametrize("rows", [(), (3,)], ids=["shared", "per sample"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_group_norm_is_that_of_pytorch_and_so_are_its_derivatives(
    rows: tuple[int, ...], layout: torch.memory_format
):
    x = (2 + normal(3, 6, 4, 5, dtype=torch.float64)).to(memory_format=layout)
    weight, bias = (normal(*rows, 6, seed=seed, dtype=torch.float64) for seed in (1, 2))
    leaves = [part.requires_grad_() for part in (x, weight, bias)]
    got = normalised(x, 2, weight, bias)
    slope, start = (part[..., None, None].expand_as(x) for part in (weight, bias))
    expected = F.group_norm(x.contiguous(), 2) * slope + start
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    z = torch.cos(3 * got.detach())
    for a, b in zip(*(torch.autograd.grad(v, leaves, z) for v in (got, expected)), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@either
@forward_mode
@pytest.mark.parametrize("rows", [(), (2,)], ids=["shared", "per sample"])
def test_group_norm_differentiates_every_way(rows: tuple[int, ...]):
    leaves = [
        normal(*shape, seed=seed, dtype=torch.float64).requires_grad_()
        for seed, shape in enumerate([(2, 4, 2, 3), (*rows, 4), (*rows, 4)])
    ]

    def norm(*given: Tensor) -> Tensor:
        return normalised(given[0], 2, *given[1:])

    batched = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(norm, leaves, check_forward_ad=True, **batched)
    assert torch.autograd.gradgradcheck(norm, leaves, check_fwd_over_rev=True, **batched)


@either
def test_a_large_batch_is_normalised_like_a_small_one():
    x = normal(12, 4, 200, 200)
    weight = normal(12, 4, seed=1)
    bias = normal(12, 4, seed=2)
    many = normalised(x, 2, weight, bias)
    one = [normalised(x[i : i + 1], 2, weight[i : i + 1], bias[i : i + 1]) for i in range(12)]
    assert torch.allclose(many, torch.cat(one), rtol=0, atol=1e-5)


def taps(x: Tensor, size: int, axis: int) -> Tensor:
    """Σ_j k_j x_{2i−1+j} with k = (1, 3, 3, 1)/8 and the nearest pixel beyond the edges."""
    at = 2 * torch.arange(size)[:, None] - 1 + torch.arange(4)
    weights = torch.tensor([1, 3, 3, 1], dtype=x.dtype) / 8
    found = x.movedim(axis, -1)[..., at.clamp(0, x.shape[axis] - 1)] @ weights
    return found.movedim(-1, axis)


def inserted(x: Tensor, axis: int) -> Tensor:
    """Zeros after every pixel, then the filter 2 (1, 3, 3, 1)/8, over an image that goes on."""
    longer = x.movedim(axis, -1)
    longer = torch.cat([longer[..., :1], longer, longer[..., -1:]], -1)
    spread = torch.stack([longer, torch.zeros_like(longer)], -1).flatten(-2)
    weights = torch.tensor([1, 3, 3, 1], dtype=x.dtype) / 4
    found = spread.unfold(-1, 4, 1) @ weights
    return found[..., : 2 * x.shape[axis]].movedim(-1, axis)


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 4), (2, 1)], ids=str)
def test_binomial_resampling_is_its_definition(size: tuple[int, int]):
    x = normal(2, 3, *size, dtype=torch.float64)
    half = [-(-n // 2) for n in size]
    expected = taps(taps(x, half[0], 2), half[1], 3)
    assert torch.allclose(halved(x), expected, rtol=0, atol=1e-14)
    assert torch.allclose(doubled(x), inserted(inserted(x, 2), 3), rtol=0, atol=1e-14)
    constant = torch.full((1, 2, *size), 0.7, dtype=torch.float64)
    assert torch.allclose(halved(constant), constant[:, :, : half[0], : half[1]], rtol=1e-15)
    assert float((doubled(constant) - 0.7).abs().max()) < 1e-15


@pytest.mark.parametrize("strides", [(2,), (2, 1), (1, 2, 2), (2, 2, 2)], ids=str)
def test_binomial_resampling_takes_the_axes_that_it_is_told(strides: tuple[int, ...]):
    size = (5, 4, 3)[: len(strides)]
    x = normal(2, 3, *size, dtype=torch.float64)
    half = double = x
    for axis, stride in enumerate(strides, start=2):
        if stride == 2:
            half = taps(half, -(-half.shape[axis] // 2), axis)
            double = inserted(double, axis)
    assert torch.allclose(halved(x, strides), half, rtol=0, atol=1e-14)
    assert torch.allclose(doubled(x, strides), double, rtol=0, atol=1e-14)


def test_binomial_doubling_is_the_transpose_of_halving_inside():
    x, y = (normal(1, 1, n, n, seed=n, dtype=torch.float64) for n in (12, 6))
    x[..., [0, 1, -2, -1], :] = x[..., [0, 1, -2, -1]] = 0
    assert float(4 * (halved(x) * y).sum()) == pytest.approx(float((x * doubled(y)).sum()))


@pytest.mark.parametrize("size", [(4, 3), (1, 2)], ids=str)
def test_a_convolution_of_a_doubled_image_takes_the_image_itself(size: tuple[int, int]):
    x = normal(2, 3, *size, dtype=torch.float64)
    weight = normal(5, 3, 3, 3, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)
    assert torch.allclose(convolved_double(x, weight), expected, rtol=0, atol=1e-12)


# Blocks -------------------------------------------------------------------------------------


@either
def test_residual_block_is_its_formula():
    block = shaken(ResidualBlock(8, 12, 5, 0.0, 0.5, generator())).double()
    x = normal(2, 8, 4, 3, dtype=torch.float64)
    e = normal(2, 5, dtype=torch.float64)

    def normed(h: Tensor, groups: int) -> Tensor:
        parts = h.unflatten(1, (groups, -1))
        mean = parts.mean((2, 3, 4), keepdim=True)
        variance = (parts - mean).square().mean((2, 3, 4), keepdim=True)
        return ((parts - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)

    def affine(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return h * scale.reshape(*scale.shape, 1, 1) + shift.reshape(*shift.shape, 1, 1)

    h = affine(normed(x, 2), block.first_norm.weight[None], block.first_norm.bias[None])
    h = normed(block.first(h * h.sigmoid()), 3)
    m = e @ block.modulation.weight.T + block.modulation.bias
    h = affine(h, 1 + m[:, :12], m[:, 12:])
    expected = (block.skip(x) + block.second(h * h.sigmoid())) / 2
    assert torch.allclose(block(x, e), expected, rtol=0, atol=1e-12)


@either
# 4 groups of 6 channels from 24: whole ones for 12 and 12, but not for 8 and 16.
@pytest.mark.parametrize("channels", [(12, 12), (8, 16)], ids=str)
@pytest.mark.parametrize("size", [(2, 3), (4, 6)], ids=str)
def test_images_side_by_side_are_one_image(channels: tuple[int, int], size: tuple[int, int]):
    block = shaken(ResidualBlock(24, 8, 5, 0.0, 0.7, generator())).double().requires_grad_()
    block.first_norm.num_groups = 4
    x = normal(2, channels[0], *size)
    beside = normal(2, channels[1], 4, 6, seed=1)
    e = normal(2, 5, seed=2, dtype=torch.float64)
    leaves = [part.double().requires_grad_() for part in (x, beside)]
    whole = torch.cat([F.interpolate(leaves[0], size=(4, 6)), leaves[1]], dim=1)
    expected = block(whole, e)
    got = block(leaves[0], e, leaves[1])
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    z = torch.cos(3 * got.detach())
    leaves = [*leaves, *block.parameters()]
    for a, b in zip(*(torch.autograd.grad(v, leaves, z) for v in (got, expected)), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_attention_is_its_formula_and_does_not_see_the_order_of_pixels():
    layer = shaken(Attention(8, 2, 0.5, generator())).double()
    x = normal(2, 8, 3, 5, dtype=torch.float64)
    q, k, v = layer.qkv(layer.norm(x).flatten(2).transpose(1, 2)).split(8, dim=2)
    heads = []
    for one in (slice(0, 4), slice(4, 8)):
        scores = torch.einsum("bic,bjc->bij", q[..., one], k[..., one]) / math.sqrt(4)
        weights = scores.exp() / scores.exp().sum(2, keepdim=True)
        heads.append(torch.einsum("bij,bjc->bic", weights, v[..., one]))
    added = layer.out(torch.cat(heads, 2)).transpose(1, 2).reshape(x.shape)
    got = layer(x)
    assert torch.allclose(got, (x + added) / 2, rtol=0, atol=1e-12)
    order = torch.randperm(15, generator=generator())
    moved = layer(x.flatten(2)[..., order].reshape(x.shape))
    assert torch.allclose(moved.flatten(2), got.flatten(2)[..., order], rtol=0, atol=1e-12)


def test_blocks_only_rescale_at_first():
    x = normal(2, 8, 3, 5)
    e = normal(2, 4)
    for block in (
        lambda h: ResidualBlock(8, 8, 4, 0.0, 0.7, generator())(h, e),
        Attention(8, 2, 0.7, generator()),
    ):
        assert torch.allclose(block(x), 0.7 * x, rtol=1e-6, atol=0)


# The whole ----------------------------------------------------------------------------------

NETS: dict[str, Callable[..., Any]] = {
    "unet": lambda **kw: UNet(**SMALL | kw),
    "unet-colour": lambda **kw: UNet(**SMALL | {"channels": 3, "embedding": "fourier"} | kw),
    "unet-options": lambda **kw: UNet(**SMALL | OPTIONS | {"channels": 2} | kw),
    "unet-series": lambda **kw: UNet(**SMALL | OPTIONS | {"channels": 2, "dims": 1} | kw),
    "unet-clips": lambda **kw: UNet(**SMALL | {"dims": 3, "strides": (1, 2, 2)} | kw),
    "dit": lambda **kw: DiT(**TINY | kw),
    "dit-options": lambda **kw: DiT(**TINY | {"positions": "rotary", "qk_norm": "rms"} | kw),
    "dit-series": lambda **kw: DiT(**TINY | {"channels": 2, "patch": (2,)} | kw),
    "dit-clips": lambda **kw: DiT(**TINY | {"patch": (1, 2, 2), "positions": "rotary"} | kw),
    "mlp": lambda **kw: MLP(3, width=16, **kw),
    "mlp-sinusoidal": lambda **kw: MLP(3, width=15, embedding="sinusoidal", **kw),
}
every = pytest.mark.parametrize("build", NETS.values(), ids=NETS)


@every
def test_output_is_zero_at_first_and_can_leave_zero(build: Callable[..., Any]):
    net = build(classes=3)
    x, c = inputs(net)
    out = net(x, c, torch.tensor([0, 2]))
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().sum().backward()
    assert float(net.head.weight.grad.abs().max()) > 1e-3


@every
def test_weights_follow_from_the_seed_alone(build: Callable[..., Any]):
    torch.randn(3)
    before = torch.get_rng_state()
    first = build(seed=3)
    again = build(seed=3)
    other = build(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.stem.weight, other.stem.weight)


@every
def test_config_rebuilds_the_network_after_a_trip_through_json(build: Callable[..., Any]):
    net = build(classes=2, dropout=0.25, seed=5)
    config = json.loads(json.dumps(net.config))
    copy = type(net)(**config)
    assert copy.config == config == net.config
    x, c = inputs(net)
    expected = shaken(net)(x, c)
    assert float(expected.abs().mean()) > 1e-2
    assert torch.equal(shaken(copy)(x, c), expected)


@every
def test_dropout_acts_in_training_only(build: Callable[..., Any]):
    with_dropout = shaken(build(dropout=0.5))
    without = shaken(build())
    x, c = inputs(without)
    assert torch.equal(with_dropout(x, c), without(x, c))
    with torch.random.fork_rng():
        assert float((with_dropout.train()(x, c) - without(x, c)).abs().max()) > 1e-2


@every
def test_double_precision_agrees_with_single(build: Callable[..., Any]):
    net = shaken(build(classes=3))
    x, c = inputs(net)
    labels = torch.tensor([1, -1])
    single = net(x, c, labels)
    double = net.double()(x.double(), c.double(), labels)
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, rtol=0, atol=1e-4 * float(double.abs().max()))


@torch.no_grad()
def plain(net: UNet, x: Tensor, c: Tensor) -> Tensor:
    """The network as its papers write it: images joined, doubled, and normalised by PyTorch."""
    e = net.condition(c, None)
    settings = net.config
    fir = settings["resampling"] == "fir"
    strides = net.strides
    ones = [1] * len(strides)
    factor = 0.5**0.5
    if settings["rescaling"] == "none":
        factor = 1.0

    def norm(layer: nn.GroupNorm, h: Tensor) -> Tensor:
        return F.group_norm(h.contiguous(), layer.num_groups, layer.weight, layer.bias)

    def stage(module: nn.Module, h: Tensor) -> Tensor:
        block = module.block
        attention = module.attention
        scale, shift = block.modulation(e).unflatten(1, (-1, *ones)).chunk(2, dim=1)
        out = norm(block.second_norm, block.first(F.silu(norm(block.first_norm, h))))
        out = block.second(F.silu((1 + scale) * out + shift))
        h = factor * (out + (h if block.skip is None else block.skip(h)))
        if attention is None:
            return h
        parts = attention.qkv(norm(attention.norm, h).flatten(2).mT).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (attention.heads, -1)).transpose(1, 2) for part in parts)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return factor * (h + attention.out(out).mT.reshape(h.shape))

    h = net.stem(x)
    image = x
    skips = []
    for level, stages in enumerate(net.down):
        if level:
            h = net.shrink[level - 1](halved(h, strides) if fir else h)
            if settings["progressive"] == "residual":
                image = net.pyramid[level - 1](halved(image, strides) if fir else image)
                h = image = factor * (h + image)
        for module in stages:
            h = stage(module, h)
            skips.append(h)
    for module in net.middle:
        h = stage(module, h)
    for level in reversed(range(len(net.up))):
        for module in net.up[level]:
            h = stage(module, torch.cat([h, skips.pop()], dim=1))
        if level:
            h = net.grow[level - 1](h)
            size = skips[-1].shape[2:]
            cut = (..., *map(slice, size))
            h = doubled(h, strides)[cut] if fir else F.interpolate(h, tuple(size))
    return net.head(F.silu(norm(net.norm, h)))


SIZES = {
    1: [(1,), (16,), (11,)],
    2: [(8, 8), (7, 9), (12, 5), (1, 3)],
    3: [(4, 4, 4), (3, 5, 6), (1, 2, 3)],
}
AXES: list[dict[str, Any]] = [{}, {"dims": 1}, {"dims": 3}, {"dims": 3, "strides": (1, 2, 2)}]


@either
@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("option", [{}, *({name: OPTIONS[name]} for name in OPTIONS)], ids=str)
def test_the_network_is_its_plain_formula_at_any_size(
    option: dict[str, str], axes: dict[str, Any]
):
    settings = {"multipliers": (1, 2, 3), "attention": (1, 2), "channels": 2, "blocks": 2} | axes
    net = small(**settings | option).double()
    for size in SIZES[len(net.strides)]:
        x = normal(2, 2, *size, dtype=torch.float64)
        c = torch.tensor([0.2, 0.7]).double()
        expected = plain(net, x, c)
        got = net(x, c)
        assert torch.allclose(got, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    default = small(**settings).double()
    default.load_state_dict(net.state_dict(), strict=False)
    assert (float((default(x, c) - got).abs().max()) > 1e-3) == bool(option)


def test_options_leave_the_other_weights_as_they_are():
    first = UNet(**SMALL)
    second = UNet(**SMALL | OPTIONS)
    assert {name.split(".")[0] for name in second.state_dict()} - {"pyramid"} == {
        name.split(".")[0] for name in first.state_dict()
    }
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def assert_rows_are_independent(net: nn.Module, x: Tensor, c: Tensor) -> None:
    """Row 1 changes with itself only; and it does change."""
    out = net(x, c)
    assert out.shape == x.shape
    others = x.clone()
    itself = x.clone()
    others[0] += 1
    itself[1] += 0.1
    c_others = c.clone()
    c_others[0] += 0.3
    scale = float(out.abs().max())
    assert torch.allclose(net(others, c_others)[1], out[1], rtol=0, atol=1e-5 * scale)
    assert torch.allclose(net(x[1:], c[1:])[0], out[1], rtol=0, atol=1e-5 * scale)
    assert float((net(itself, c)[1] - out[1]).abs().max()) > 1e-3 * scale


@either
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (28, 28), (33, 47), (1, 3)], ids=str)
@torch.no_grad()
def test_images_of_any_size_go_through_row_by_row(size: tuple[int, int]):
    net = small(multipliers=(1, 2, 2), attention=(2,), channels=2)
    assert_rows_are_independent(net, normal(3, 2, *size), torch.tensor([0.1, 0.5, 0.9]))


@torch.no_grad()
def test_points_go_through_row_by_row():
    assert_rows_are_independent(
        shaken(MLP(3, width=16)), normal(3, 3), torch.tensor([0.1, 0.5, 0.9])
    )


@torch.no_grad()
def test_without_attention_and_norms_far_pixels_do_not_meet():
    net = small(multipliers=(1,), attention=())
    for module in net.modules():  # norms see the whole image
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda h, *_, **__: h  # type: ignore[method-assign]
    x = normal(1, 1, 40, 3)
    c = torch.tensor([0.5])
    moved = x.clone()
    moved[..., 0, 1] += 1
    changed = (net(moved, c) - net(x, c)).abs().amax((0, 1, 3)).nonzero().flatten()
    # Stem, head, and 4 blocks (1 down, 2 in the middle, 1 up) of 2 convolutions reach 1 row each.
    assert changed.tolist() == list(range(11))


# Series, images and volumes -----------------------------------------------------------------


def thickened(net: Any, dims: int, axis: int, **settings: Any) -> Any:
    """The network of a further axis, with the weights in the middle slice of its kernels."""
    made = UNet(**net.config | {"dims": dims, "strides": None} | settings)
    state = made.state_dict()
    for name, weight in net.state_dict().items():
        if weight.shape == state[name].shape:
            state[name] = weight
        else:
            state[name] = torch.zeros_like(state[name])
            middle = state[name].shape[2 + axis] // 2
            state[name].select(2 + axis, middle).copy_(weight)
    made.load_state_dict(state)
    return made.double().eval()


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize(("dims", "axis"), [(1, 0), (2, 0), (2, 2)])
@torch.no_grad()
def test_a_network_of_one_more_axis_of_length_one_is_the_thinner_one(
    dims: int, axis: int, options: dict[str, str]
):
    net = small(**options | {"dims": dims, "channels": 2}).double()
    x = normal(2, 2, *(7, 5)[:dims], dtype=torch.float64)
    c = torch.tensor([0.2, 0.7], dtype=torch.float64)
    expected = net(x, c)
    got = thickened(net, dims + 1, axis)(x.unsqueeze(2 + axis), c).squeeze(2 + axis)
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(got, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@torch.no_grad()
def test_a_network_of_clips_is_that_of_images_on_a_still_one():
    net = small(channels=2).double()
    still = thickened(net, 3, 0, strides=(1, 2, 2))
    x = normal(2, 2, 6, 5, dtype=torch.float64)
    c = torch.tensor([0.2, 0.7], dtype=torch.float64)
    expected = net(x, c)[:, :, None].expand(-1, -1, 4, -1, -1)
    got = still(x[:, :, None].expand(-1, -1, 4, -1, -1).contiguous(), c)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("axes", AXES, ids=str)
@torch.no_grad()
def test_the_network_moves_with_what_it_sees(axes: dict[str, Any]):
    net = small(**axes).double()
    for module in net.modules():  # norms and attention see the edges, however far
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda h, *_, **__: h  # type: ignore[method-assign]
        if isinstance(module, Attention):
            module.forward = lambda h: h  # type: ignore[method-assign]
    c = torch.tensor([0.5], dtype=torch.float64)
    for axis, stride in enumerate(net.strides):
        long = [2] * len(net.strides)
        long[axis] = 128
        pulse, moved = (torch.zeros(1, 1, *long, dtype=torch.float64) for _ in range(2))
        at = normal(1, 1, *(2 if n == 128 else n for n in long), dtype=torch.float64)
        pulse.narrow(2 + axis, 62, 2).copy_(at)
        moved.narrow(2 + axis, 62 + stride, 2).copy_(at)
        one, other = (net(x, c) for x in (pulse, moved))
        # The edges are seen from less than 30 pixels away.
        inner = one.narrow(2 + axis, 30, 64)
        assert float((inner.diff(dim=2 + axis)).abs().max()) > 1e-3
        shifted = other.narrow(2 + axis, 30 + stride, 64)
        assert torch.allclose(inner, shifted, rtol=0, atol=1e-12 * float(inner.abs().max()))


# Labels -------------------------------------------------------------------------------------


@every
def test_labels_choose_their_row_and_the_null_class_is_none_or_minus_one(
    build: Callable[..., Any],
):
    net = shaken(build(classes=3))
    x, c = inputs(net, rows=4)
    labels = torch.tensor([0, 2, -1, 2])
    before = net(x, c, labels)
    null = net(x, c)
    assert torch.equal(net(x, c, torch.full((4,), -1)), null)
    assert torch.equal(before[2], null[2])
    assert float((before[0] - null[0]).abs().max()) > 1e-3
    with torch.no_grad():
        net.condition.classes.weight[1 + 2] += 1
    change = (net(x, c, labels) - before).abs().flatten(1).amax(1)
    assert (change > 1e-3).tolist() == [False, True, False, True]
    assert torch.equal(net(x, c), null)


# Derivatives --------------------------------------------------------------------------------


@either
@forward_mode
@every
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=["float32", "float64"]
)
def test_forward_and_reverse_mode_are_dual(
    build: Callable[..., Any], dtype: torch.dtype, atol: float
):
    net = shaken(build()).to(dtype)
    x, c = inputs(net, dtype=dtype)
    v = torch.sin(3 * x)
    w = torch.cos(5 * c)
    out, along = torch.func.jvp(lambda x, c: net(x, c), (x, c), (v, w))
    assert torch.allclose(out, net(x, c), rtol=0, atol=atol)
    z = torch.cos(2 * x)
    _, pull = torch.func.vjp(lambda x, c: net(x, c), x, c)
    back_x, back_c = pull(z)
    left, right = (z * along).sum(), (back_x * v).sum() + (back_c * w).sum()
    size = (z * along).abs().sum()
    assert abs(left) > 1e-3 * size
    assert abs(left - right) < atol * size


@either
@forward_mode
@every
def test_derivatives_in_batches_equal_those_one_by_one(build: Callable[..., Any]):
    net = shaken(build()).double()
    x, c = inputs(net, dtype=torch.float64)
    probes = normal(3, *x.shape, seed=4, dtype=torch.float64)
    x.requires_grad_()
    out = net(x, c)
    one = [torch.autograd.grad(out, x, z, retain_graph=True)[0] for z in probes]
    (many,) = torch.autograd.grad(out, x, probes, is_grads_batched=True)
    assert torch.allclose(many, torch.stack(one), rtol=0, atol=1e-10)

    def push(v: Tensor) -> Tensor:
        result: Tensor = torch.func.jvp(lambda x: net(x, c), (x.detach(),), (v,))[1]
        return result

    assert torch.allclose(
        torch.func.vmap(push)(probes), torch.stack([push(v) for v in probes]), rtol=0, atol=1e-10
    )


@either
@forward_mode
@every
def test_second_derivatives_agree_between_reverse_and_forward_mode(build: Callable[..., Any]):
    net = shaken(build()).double()
    x, c = inputs(net, dtype=torch.float64)
    z = torch.cos(2 * x)
    v = torch.sin(3 * x)

    def pulled(x: Tensor) -> Tensor:
        result: Tensor = torch.func.vjp(lambda x: net(x, c), x)[1](z)[0]
        return result

    forward_over_reverse = torch.func.jvp(pulled, (x,), (v,))[1]
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(net(leaf, c), leaf, z, create_graph=True)
    (reverse_twice,) = torch.autograd.grad(first, leaf, v)
    assert float(reverse_twice.abs().max()) > 1e-3
    assert torch.allclose(forward_over_reverse, reverse_twice, rtol=1e-8, atol=1e-9)


@either
def test_the_memory_layout_changes_nothing():
    net = small(channels=3).double()
    x, c = inputs(net, dtype=torch.float64)
    expected = net(x, c)
    assert expected.is_contiguous()
    net.to(memory_format=torch.channels_last)
    got = net(x.to(memory_format=torch.channels_last), c)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert got.is_contiguous()


# Training -----------------------------------------------------------------------------------


def noisy(x0: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """One batch (x_t, t, eps) at noise levels from small to large, in random order."""
    t = torch.linspace(0.05, 0.95, rows)[torch.randperm(rows, generator=generator(2))]
    eps = normal(rows, *x0.shape[1:], seed=3)
    angle = (0.5 * math.pi * t).reshape(-1, *(1 for _ in x0.shape[1:]))
    return angle.cos() * x0 + angle.sin() * eps, t, eps


def fit(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor], steps: int, rate: float) -> float:
    x, t, eps = batch
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        F.mse_loss(net(x, t), eps).backward()
        optimizer.step()
    return loss(net, batch)


@torch.no_grad()
def loss(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    x, t, eps = batch
    return float(F.mse_loss(net(x, t), eps))


@pytest.fixture(scope="module")
def trained() -> Any:
    batch = noisy(normal(16, 1, 8, 8, seed=6), 16)
    net = UNet(1, width=16, multipliers=(1, 2), blocks=1, attention=(1,))
    start = loss(net, batch)
    return net, batch, start, fit(net, batch, 200, 4e-3)


def test_unet_overfits_one_batch(trained: Any):
    _, _, start, end = trained
    assert 0.9 < start < 1.1  # the output is 0 and eps is normal
    assert end < 0.02


@pytest.mark.parametrize("embedding", ["fourier", "sinusoidal"])
def test_mlp_overfits_one_batch(embedding: str):
    batch = noisy(normal(64, 2, seed=6), 64)
    assert fit(MLP(2, width=64, embedding=embedding), batch, 300, 5e-3) < 0.01


@torch.no_grad()
def test_removing_the_time_hurts(trained: Any):
    net, batch, _, end = trained
    layer = net.condition.inner
    kept = layer.weight.clone()
    layer.weight.zero_()
    without = loss(net, batch)
    layer.weight.copy_(kept)
    x, t, eps = batch
    assert without > 10 * end
    assert loss(net, (x, t.flip(0), eps)) > 10 * end
    assert loss(net, batch) == pytest.approx(end)


@pytest.mark.parametrize("level", [0, 1])
@torch.no_grad()
def test_removing_a_skip_hurts(trained: Any, level: int):
    net, batch, _, end = trained

    def cut(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return *args[:2], torch.zeros_like(args[2])

    hook = net.up[level][0].register_forward_pre_hook(cut)
    without = loss(net, batch)
    hook.remove()
    assert without > 10 * end


@pytest.mark.parametrize(
    ("config", "least", "most"), [(mnist_config(), 2.4e6, 2.7e6), (digits_config(), 6e5, 9e5)]
)
def test_sizes_are_those_that_are_promised(config: dict[str, Any], least: float, most: float):
    assert least < sum(p.numel() for p in UNet(**config).parameters()) < most


# Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "UNet: channels must be at least 1, got 0"),
        ({"channels": (1, 28, 28)}, "UNet: channels must be an integer"),
        ({"width": 3}, "UNet: width must be at least 4, got 3"),
        ({"blocks": 0}, "UNet: blocks must be at least 1"),
        ({"blocks": 20000}, "UNet: blocks must be at most 100, got 20000; pass .* blocks=2"),
        ({"multipliers": ()}, r"UNet: multipliers must be positive, one or more, got \[\]"),
        ({"multipliers": (1, 0)}, r"UNet: multipliers must be positive, .* got \[1, 0\]"),
        ({"multipliers": 2}, "UNet: multipliers must be a sequence of integers, got 2"),
        ({"attention": "1"}, "UNet: attention must be a sequence of integers"),
        ({"attention": (2,)}, r"UNet: attention must list levels from 0 to 1, got \[2\]"),
        ({"heads": 3}, "UNet: heads must divide the 8 channels of level 0, got 3; pass heads=1"),
        ({"embedding": "random"}, "UNet: embedding must be one of sinusoidal, fourier"),
        ({"time_scale": 0.0}, "UNet: time_scale must be finite and above 0"),
        ({"classes": 0}, "UNet: classes must be at least 1"),
        ({"resampling": "cubic"}, "UNet: resampling must be one of strided, fir, got cubic"),
        ({"progressive": "skip"}, "UNet: progressive must be one of none, residual"),
        ({"rescaling": 1}, "UNet: rescaling must be one of half-power, none, got 1"),
        ({"dropout": 1.0}, r"UNet: dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": "much"}, "UNet: dropout must be a number"),
        ({"seed": -1}, "UNet: seed must be at least 0"),
        ({"dims": 4}, "UNet: dims must be at most 3, got 4"),
        ({"dims": 0}, "UNet: dims must be at least 1, got 0"),
        ({"strides": (2,)}, r"UNet: strides must be 2 numbers for dims=2, 1 or 2 each, got \[2\]"),
        ({"dims": 3, "strides": (1, 2, 3)}, r"UNet: strides must be 3 numbers .*=\(1, 2, 2,\)"),
        ({"strides": "12"}, "UNet: strides must be a sequence of integers"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        UNet(**SMALL | settings)


def test_impossible_settings_of_the_mlp_are_refused():
    with pytest.raises(TypeError, match="MLP: dimension must be an integer"):
        MLP((2,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="MLP: depth must be at most 1000, got 20000; pass"):
        MLP(2, depth=20000)
    with pytest.raises(ValueError, match="MLP: depth must be at least 1"):
        MLP(2, depth=0)


@pytest.mark.parametrize(
    ("x", "c", "labels", "kind", "message"),
    [
        (torch.ones(2, 3, 8, 8), None, None, ValueError, r"x must have shape \(B, 1, H, W\), got"),
        (torch.ones(2, 8, 8), None, None, ValueError, r"x must have shape \(B, 1, H, W\), got"),
        (torch.ones(2, 1, 0, 8), None, None, ValueError, r"x must have shape \(B, 1, H, W\), got"),
        ([1.0], torch.ones(1), None, TypeError, "x must be a torch.Tensor, got list"),
        (torch.ones(2, 1, 8, 8).double(), None, None, TypeError, "x must have the weights' dtype"),
        (torch.ones(2, 1, 8, 8).long(), None, None, TypeError, "x must have the weights' dtype"),
        (None, torch.tensor(0.5), None, ValueError, r"c must have shape \(2,\) for this x, got"),
        (None, torch.ones(3), None, ValueError, r"c must have shape \(2,\) .* got \(3,\)"),
        (None, torch.ones(2).long(), None, TypeError, "c must be a floating-point tensor"),
        (None, 0.5, None, TypeError, "c must be a floating-point tensor, got float"),
        (None, None, torch.tensor([0, 4]), ValueError, "labels must lie in 0 … 3, .* to 4"),
        (None, None, torch.tensor([-2, 0]), ValueError, "labels must lie in 0 … 3, or be −1"),
        (None, None, torch.tensor([1]), ValueError, r"labels must have shape \(2,\)"),
        (None, None, torch.tensor([1.0, 2.0]), TypeError, "labels must be an int64 tensor"),
        (None, None, [1, 2], TypeError, "labels must be an int64 tensor, got list"),
    ],
)
def test_wrong_inputs_are_refused(x: Any, c: Any, labels: Any, kind: type, message: str):
    net = UNet(**SMALL | {"classes": 4})
    x = torch.ones(2, 1, 8, 8) if x is None else x
    c = torch.ones(2) if c is None else c
    with pytest.raises(kind, match=f"^UNet: {message}"):
        net(x, c, labels)


def test_labels_for_a_network_without_classes_are_refused():
    with pytest.raises(ValueError, match=r"labels must be None .*; build the network with UNet\("):
        UNet(**SMALL)(torch.ones(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1]))


def test_points_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"^MLP: x must have shape \(B, 4\), got \(2, 1, 2, 2\)"):
        MLP(4)(torch.ones(2, 1, 2, 2), torch.ones(2))
