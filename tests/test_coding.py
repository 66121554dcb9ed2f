"""Bits back: what is compressed comes back to the bit, and is as long as the discrete bound."""

from __future__ import annotations

import json
import lzma
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    MLP,
    VPSDE,
    Affine,
    Chain,
    ClassifierGuided,
    Dataset,
    DataSpec,
    DiscreteBeta,
    Gaussian,
    GaussianMixture,
    RectifiedFlow,
    ScoreLike,
    ScoreModel,
    linear_betas,
    load,
    load_data,
)
from sde_diffusion.cli.main import main
from sde_diffusion.coding import compress, decompress
from sde_diffusion.coding.block import BlockCoder
from sde_diffusion.coding.comparison import _histograms, discrete_bound, other_sizes
from sde_diffusion.coding.counts import Counts
from sde_diffusion.coding.file_format import Head, joined, parsed
from sde_diffusion.coding.normals import FINE, PARTS, LevelNormals, Normals, weights
from sde_diffusion.coding.predictions import GUARD, Exceptions, Predictor
from sde_diffusion.coding.stack import Stack, borrowed
from sde_diffusion.coding.varints import read_varints, varints
from sde_diffusion.coding.whole_chain import WholeChain
from sde_diffusion.ddpm.level_times import level_centres, level_times
from sde_diffusion.likelihood.decoders import LevelDecoder

D = 16
SPEC = DataSpec("grey", (D,), 16)


def covariance() -> Tensor:
    """Neighbours that are like each other."""
    i = torch.arange(D)
    return 0.09 * torch.exp(-(i[:, None] - i).abs() / 4).double()


MODEL = Gaussian(torch.zeros(D), covariance()).diffused(VPSDE())


def drawn(count: int, seed: int = 0) -> Dataset:
    """Levels of which `MODEL` is the exact one, but for the rounding."""
    x = MODEL.oracle.sample(count, torch.Generator().manual_seed(seed))
    return Dataset(SPEC, SPEC.decode(x), None)


@pytest.fixture(scope="module")
def blob() -> bytes:
    return compress(MODEL, drawn(6), steps=8)


# --- discrete normals ---


def test_weights_are_those_of_the_exponential() -> None:
    y = np.linspace(0, 60, 10_001)
    assert np.abs(weights(y) / 2.0**40 - np.exp(-y)).max() < 2.0**-39


@pytest.mark.parametrize("std", [0.75, 1.9])
def test_discrete_normals_have_the_normaliser_mean_and_variance_of_the_density(std: float) -> None:
    """Poisson's sum: the first term left out is 2 exp(−2π²s²)."""
    whole = round(std * PARTS * FINE)
    normals = Normals.of(whole)
    std = whole / (PARTS * FINE)
    cells = np.arange(-normals.reach, normals.reach + 1)
    total = normals.table.sum(1)
    mean = (normals.table * cells).sum(1) / total
    square = (normals.table * cells**2).sum(1) / total - mean**2
    near = 4 * math.exp(-2 * math.pi**2 * std**2) * (2 * math.pi * std) ** 2 + 1e-9
    assert np.abs(total / 2.0**40 / (std * math.sqrt(2 * math.pi)) - 1).max() < near
    assert np.abs(mean - np.arange(PARTS) / PARTS).max() < near
    assert np.abs(square / std**2 - 1).max() < near


def test_level_normals_are_the_level_decoder() -> None:
    centres = level_centres(SPEC)
    std = 0.05
    unit = PARTS * 0.75 / std
    normals = LevelNormals(
        np.rint(centres.numpy() * unit * FINE).astype(np.int64), round(0.75 * PARTS * FINE)
    )
    mean = torch.tensor([[-0.31]], dtype=torch.float64)
    levels = range(4, 8)
    stack = Stack(borrowed(64), sealed=True)
    for level in levels:
        before = stack.bits
        many = np.full(1000, level, np.int64)
        normals.push(stack, many, np.full(1000, round(float(mean) * unit), np.int64))
        spent = (stack.bits - before) / 1000
        nats = LevelDecoder(centres).log_prob(
            centres[level].view(1, 1), mean, torch.tensor(std**2)
        )
        assert spent == pytest.approx(-float(nats) / math.log(2), abs=0.06 + 0.01 * spent)


def test_what_is_popped_and_pushed_leaves_the_stack_as_it_was() -> None:
    lent = borrowed(500)
    stack = Stack(lent, sealed=True)
    means = np.random.default_rng(0).integers(-(10**6), 10**6, 3000)
    normals = Normals.of(PARTS * FINE)
    drawn_cells = normals.pop(stack, means)
    assert not stack.holds(lent)
    assert (drawn_cells * PARTS - means).std() / PARTS == pytest.approx(1, abs=0.05)
    normals.push(stack, drawn_cells, means)
    assert stack.holds(lent)


def test_counts_take_the_bits_that_they_say_and_are_drawn_back() -> None:
    values = np.random.default_rng(0).binomial(15, 0.1, (3, 400))
    stack = Stack(borrowed(8), sealed=True)
    begun = stack.bits
    Counts(16).push(stack, values)
    said = Counts(16).bits(values)
    assert stack.bits - begun == pytest.approx(said.sum(), abs=33)
    assert said[0] > said[2] + 20  # it has learnt
    assert np.array_equal(Counts(16).pop(stack, values.shape), values)
    assert stack.holds(borrowed(8))


# --- lengths ---


def test_a_head_and_what_the_first_samples_borrow_are_few_bytes() -> None:
    """Of one sample its counts and the coder's two words; of ten, less than one's latents."""
    one, ten = (compress(MODEL, drawn(n), steps=40) for n in (1, 10))
    head, ((_, code),) = parsed(one)
    assert len(head.to_bytes()) <= 32
    counted = float(Counts(16).bits(drawn(1).values.numpy().astype(np.int64))[0])
    assert 8 * len(code) < counted + 64 + 8 * 9
    bound = -float(discrete_bound(MODEL, drawn(10), 40).nats.sum()) / math.log(2)
    chain = Chain(MODEL.sde, level_times(MODEL, SPEC, 40))
    assert 8 * len(ten) < bound + 0.75 * WholeChain(chain, SPEC).lent(D) + 8 * 60


def exceptions_of(code: bytes) -> tuple[Exceptions, memoryview]:
    """Return the exceptions of a block's code, and its words."""
    _, rest = read_varints(memoryview(code), 3)
    return Exceptions.from_bytes(rest[4:])


def counted_of(code: bytes) -> int:
    """Return how many samples of a block go by their counts."""
    return read_varints(memoryview(code), 3)[0][1]


def code_bits(model: ScoreLike, data: Dataset, steps: int) -> float:
    ((_, code),) = parsed(compress(model, data, steps=steps))[1]
    return 8.0 * len(code)


@pytest.mark.parametrize("steps", [8, 40])
def test_the_code_is_as_long_as_the_discrete_bound(steps: int) -> None:
    """Up to what the first sample borrows, and the draw of the path: sqrt(2 KL) nats."""
    data = drawn(800)
    bound = -float(discrete_bound(MODEL, data, steps).nats.sum()) / math.log(2)
    chain = Chain(MODEL.sde, level_times(MODEL, SPEC, steps))
    first = WholeChain(chain, SPEC).lent(D) + 8 * 40
    noise = math.sqrt(2 * bound * math.log(2)) / math.log(2)
    found = code_bits(MODEL, data, steps)
    assert abs(found - bound - first) < 4 * noise + 200
    assert found < 1.02 * bound + first


def test_the_chain_of_the_code_is_that_of_the_evaluation() -> None:
    from sde_diffusion.evaluation.chains import chain_times, decided_chain
    from sde_diffusion.evaluation.settings import EvaluationSettings

    betas = Gaussian(torch.zeros(D), covariance()).diffused(VPSDE(DiscreteBeta(linear_betas(50))))
    for model in (MODEL, betas):
        asked = EvaluationSettings(("vlb",), dequantization="none", steps=30)
        decided = decided_chain(asked, model, SPEC)
        assert torch.equal(chain_times(decided, model, SPEC), level_times(model, SPEC, 30))


def test_histograms_are_the_product_of_their_predictions() -> None:
    values = torch.tensor([[0, 3], [1, 3], [1, 0]], dtype=torch.uint8)
    data = Dataset(DataSpec("pairs", (2,), 4), values, None)
    p = (1 / 4) * (1 / 4 / 2) * (5 / 4 / 3) * (1 / 4) * (5 / 4 / 2) * (1 / 4 / 3)
    assert 8 * other_sizes(data)["histograms"] == pytest.approx(-math.log2(p))
    assert other_sizes(data)["LZMA"] == len(lzma.compress(values.numpy().tobytes(), preset=9))


# --- round trips ---


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedFlow()], ids=repr)
def test_levels_come_back(sde: VPSDE) -> None:
    model = Gaussian(torch.zeros(D), covariance()).diffused(sde)
    data = drawn(40)
    found = decompress(model, compress(model, data, steps=12))
    assert torch.equal(found, data.values)
    assert found.dtype == data.values.dtype


def test_any_levels_come_back_and_what_no_prediction_reaches_is_written_down() -> None:
    narrow = GaussianMixture([1.0], torch.zeros(1, 1, 2, 2), stds=[0.01]).diffused(VPSDE())
    spec = DataSpec("wide", (1, 2, 2), 1000)
    values = torch.randint(1000, (30, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    data = Dataset(spec, values.to(spec.storage), None)
    blob = compress(narrow, data, steps=16)
    assert torch.equal(decompress(narrow, blob), data.values)
    ((_, code),) = parsed(blob)[1]
    assert len(exceptions_of(code)[0].places)


def test_samples_that_leave_no_bits_for_those_after_them_come_back() -> None:
    """The first takes many bits, which say nothing of the others, which take none."""
    sure = GaussianMixture([1.0], torch.zeros(1, D) + 1 / 16, stds=[1e-3]).diffused(VPSDE())
    values = torch.full((400, D), 8, dtype=torch.uint8)
    values[0] = torch.arange(D)
    data = Dataset(SPEC, values, None)
    blob = compress(sure, data, steps=4)
    assert len(blob) < 4 * (D + 64) + 400
    assert torch.equal(decompress(sure, blob), values)


def test_bytes_do_not_depend_on_the_batches_of_the_network() -> None:
    data = drawn(30)
    whole = compress(MODEL, data, steps=8)
    for size in (1, 3):
        assert compress(MODEL, data, steps=8, batch_size=size) == whole
        assert torch.equal(decompress(MODEL, whole, batch_size=size), data.values)


def test_blocks_stand_alone() -> None:
    data = drawn(25)
    head, blocks = parsed(compress(MODEL, data, steps=8, block_size=10))
    assert [samples for samples, _ in blocks] == [10, 10, 5]
    chosen = joined(Head(**{**vars(head), "samples": 5}), blocks[2:])
    assert torch.equal(decompress(MODEL, chosen), data.values[20:])


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_shipped_models_give_their_images_back(name: str) -> None:
    model = load(name)
    if name == "digits":
        data = load_data("digits", "test", limit=6)
    else:
        values = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
        values[:, :, 6:22, 12:16] = torch.randint(
            200, 256, (2, 1, 16, 4), generator=torch.Generator().manual_seed(0)
        ).byte()
        data = Dataset(model.data, values, None)
    assert torch.equal(decompress(model, compress(model, data, steps=10)), data.values)


def test_exceptions_are_read_as_they_were_written() -> None:
    values = np.array([0, -1, 5_000_000, -(2**39)])
    told = Exceptions(np.array([0, 1, 127, 2**45]), values)
    found, rest = Exceptions.from_bytes(memoryview(told.to_bytes() + b"rest"))
    assert bytes(rest) == b"rest"
    assert np.array_equal(found.places, told.places)
    assert np.array_equal(found.values, values)


# --- predictions that differ ---

PLANT = {"shift": 0.0, "only": math.inf}  # no attribute: the model's fingerprint is the same


class Planted(ScoreLike):
    """`MODEL`, whose x̂0 is wrong by a shift at times up to `only`."""

    sde = MODEL.sde
    half = 0.0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return MODEL(x, t)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        shift = PLANT["shift"] if float(t) <= PLANT["only"] else 0.0
        return MODEL.denoise(x, t) + shift


class Halves(Planted):
    """Predictions that all lie halfway between two whole numbers."""

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        times, scales = halves(8)
        scale = scales[int((times - t).abs().argmin()) - 1]
        return ((MODEL.denoise(x, t) * scale).floor() + 0.5 + PLANT["shift"]) / scale


def halves(steps: int) -> tuple[Tensor, np.ndarray]:
    chain = Chain(MODEL.sde, level_times(MODEL, SPEC, steps))
    return chain.times, WholeChain(chain, SPEC).scales


@pytest.fixture(autouse=True)
def _unplanted() -> Iterator[None]:
    yield
    PLANT.update(shift=0.0, only=math.inf)


def test_rounding_in_the_last_place_changes_nothing() -> None:
    data = drawn(20)
    blob = compress(Planted(), data, steps=8)
    for shift in (1e-15, -1e-12):
        PLANT["shift"] = shift
        assert torch.equal(decompress(Planted(), blob), data.values)
        assert compress(Planted(), data, steps=8) == blob


def test_a_prediction_that_could_be_rounded_otherwise_is_written_down() -> None:
    data = drawn(4)
    blob = compress(Halves(), data, steps=8)
    ((_, code),) = parsed(blob)[1]
    assert len(exceptions_of(code)[0].places) == (4 - counted_of(code)) * D * 8
    assert counted_of(code) < 4
    for shift in (-GUARD, GUARD):
        PLANT["shift"] = shift
        assert torch.equal(decompress(Halves(), blob), data.values)


@pytest.mark.parametrize("shift", [1e-3, -0.2])
def test_another_prediction_is_refused_not_decoded(shift: float) -> None:
    """At the first step to be decoded, at the last, and at all."""
    data = drawn(12)
    blob = compress(Planted(), data, steps=8)
    first_time = float(halves(8)[0][1])
    for only in (first_time, math.inf):
        PLANT.update(shift=shift, only=only)
        with pytest.raises(ValueError, match="must predict what it did in compress"):
            decompress(Planted(), blob)


def test_a_prediction_one_off_at_one_step_is_detected() -> None:
    """By the predictions' checksum, even where the levels would be the same."""
    chain = Chain(MODEL.sde, level_times(MODEL, SPEC, 8))
    whole = WholeChain(chain, SPEC)

    class Off(Predictor):
        def at(self, state, k):
            values, near = super().at(state, k)
            values[0, 3] += k == 5
            return values, near

    right, wrong = (
        BlockCoder(whole, kind(MODEL, whole, chain.times, (D,), 64, lambda _: None), D)
        for kind in (Predictor, Off)
    )
    levels = drawn(9).values.numpy().astype(np.int64)
    code = right.encoded(levels)
    assert np.array_equal(right.decoded(code, 9), levels)
    assert wrong.decoded(code, 9) is None


# --- files ---


def test_every_flipped_byte_is_refused_in_one_sentence(blob: bytes) -> None:
    for i in range(len(blob)):
        damaged = bytearray(blob)
        damaged[i] ^= 1 << (i % 8)
        with pytest.raises(ValueError, match=r"^decompress: [^\n]* must [^\n]*, got [^\n]*; "):
            decompress(MODEL, bytes(damaged))


def test_every_shorter_and_longer_file_is_refused(blob: bytes) -> None:
    for size in range(len(blob)):
        with pytest.raises(ValueError, match="decompress: "):
            decompress(MODEL, blob[:size])
    with pytest.raises(ValueError, match="get it again, it is cut short"):
        decompress(MODEL, blob + b"\0")


def test_a_code_whose_checksum_was_made_to_fit_is_refused(blob: bytes) -> None:
    """What was borrowed does not come back, or the levels are not those of their checksum."""
    head, ((samples, code),) = parsed(blob)
    for i in range(0, len(code), 4):
        changed = bytearray(code)
        changed[i] ^= 1 << (i % 8)
        with pytest.raises(ValueError, match="decompress: "):
            decompress(MODEL, joined(head, [(samples, bytes(changed))]))
    for count in (samples - 1, samples + 1, 60_000):
        wrong = Head(**{**vars(head), "samples": count})
        with pytest.raises(ValueError, match="decompress: "):
            decompress(MODEL, joined(wrong, [(count, code)]))


def test_a_file_with_the_bytes_of_its_words_turned_round_is_refused(blob: bytes) -> None:
    head, ((samples, code),) = parsed(blob)
    _, words = exceptions_of(code)
    turned = code[: -len(words)] + np.frombuffer(words, "<u4").byteswap().tobytes()
    with pytest.raises(ValueError, match="must predict what it did in compress"):
        decompress(MODEL, joined(head, [(samples, turned)]))
    with pytest.raises(ValueError, match="begin as compress writes it"):
        decompress(MODEL, blob[:4][::-1] + blob[4:])


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 10**15},
        {"samples": 0},
        {"shape": (10**9, 10**9)},
        {"shape": (0, 16)},
        {"shape": 17 * (1,)},
        {"shape": ()},
        {"steps": 10**12},
        {"steps": 0},
        {"levels": 10**9},
        {"model": "0" * 16},
        {"chain": 1},
    ],
    ids=repr,
)
def test_a_hostile_head_is_refused(blob: bytes, change: dict[str, object]) -> None:
    head, blocks = parsed(blob)
    hostile = joined(Head(**{**vars(head), **change}), blocks)
    with pytest.raises(ValueError, match=r"^[^\n]* must [^\n]*, got [^\n]*; "):
        decompress(MODEL, hostile)


def test_a_file_of_another_version_says_what_to_install(blob: bytes) -> None:
    with pytest.raises(ValueError, match="have version 2, got 1; install the sde_diffusion that"):
        decompress(MODEL, b"SDZ\x01" + blob[4:])


def test_a_shape_that_its_blocks_have_no_bytes_for_is_refused_at_once() -> None:
    """Of a model that knows no shape: 16 million dimensions of a file of two asked for 1 GB."""
    silent = ScoreModel(MLP(2, width=8), VPSDE()).eval()
    data = Dataset(DataSpec("pairs", (2,), 8), torch.tensor([[3, 4], [5, 2]]), None)
    head, blocks = parsed(compress(silent, data, steps=4))
    forged = joined(Head(**{**vars(head), "shape": (2**24,)}), blocks)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="shape that its blocks have bytes for, got"):
            decompress(silent, forged)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_every_sample_of_many_dimensions_has_the_bytes_that_its_head_is_believed_for() -> None:
    """Even of levels that the model is sure of: the latents of the first one are paid for."""
    d = 6000
    sure = GaussianMixture([1.0], torch.zeros(1, d) + 1 / 16, stds=[1e-3]).diffused(VPSDE())
    spec = DataSpec("sure", (d,), 16)
    data = Dataset(spec, torch.full((1, d), 8, dtype=torch.uint8), None)
    blob = compress(sure, data, steps=2)
    ((_, code),) = parsed(blob)[1]
    assert len(code) > 0.9 * d / 8
    assert torch.equal(decompress(sure, blob), data.values)


def test_an_oracle_refuses_a_head_of_another_shape(blob: bytes) -> None:
    head, blocks = parsed(blob)
    forged = joined(Head(**{**vars(head), "shape": (D, 1)}), blocks)
    with pytest.raises(ValueError, match=r"the one that .* got one of shape \(16,\)"):
        decompress(MODEL, forged)


def test_conditions_of_each_sample_are_refused_by_name(blob: bytes) -> None:
    def two(x: Tensor, _t: Tensor) -> Tensor:
        return torch.stack([x[:, 0], -x[:, 0]], 1)

    guided = ClassifierGuided(MODEL, two, torch.tensor([0, 1, 0, 1]))
    for call in (lambda: compress(guided, drawn(4), steps=4), lambda: decompress(guided, blob)):
        with pytest.raises(TypeError, match="model must be one for all samples, got one with"):
            call()


def test_predictions_that_are_not_finite_are_told_by_the_function_that_was_called() -> None:
    blob = compress(Planted(), drawn(2), steps=4)
    PLANT["shift"] = math.nan
    with pytest.raises(FloatingPointError, match=r"^decompress: the prediction must be finite"):
        decompress(Planted(), blob)
    with pytest.raises(FloatingPointError, match=r"^compress: the prediction must be finite"):
        compress(Planted(), drawn(2), steps=4)


def test_histograms_of_sixteen_bits_need_no_table_of_all_levels() -> None:
    """They are those of a dictionary, and 2¹² pixels would make a table of 2 GB."""
    values = torch.randint(0, 40, (50, 2**12), generator=torch.Generator().manual_seed(0))
    bits = 0.0
    for d in range(0, 2**12, 512):
        seen: dict[int, int] = {}
        for n, v in enumerate(values[:, d].tolist()):
            bits -= math.log2((seen.get(v, 0) + 2**-16) / (n + 1))
            seen[v] = seen.get(v, 0) + 1
    few = Dataset(DataSpec("few", (8,), 2**16), values[:, ::512].contiguous(), None)
    assert 8 * other_sizes(few)["histograms"] == pytest.approx(bits)
    tracemalloc.start()
    try:
        _histograms(values.numpy(), 2**16)  # LZMA takes .7 GB of its own
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_another_model_is_refused(blob: bytes) -> None:
    other = Gaussian(torch.zeros(D), covariance() * 1.001).diffused(VPSDE())
    with pytest.raises(ValueError, match="model must be the one that compressed the file"):
        decompress(other, blob)


def test_data_without_levels_and_none_at_all_are_refused() -> None:
    real = Dataset(DataSpec("real", (D,), None), torch.zeros(2, D), None)
    none = Dataset(SPEC, torch.zeros(0, D, dtype=torch.uint8), None)
    for data, got in ((real, "real numbers"), (none, "no samples")):
        with pytest.raises(ValueError, match=f"must be samples of levels, got {got}; pass"):
            compress(MODEL, data)


def test_a_scaling_that_decompress_could_not_know_is_refused() -> None:
    spec = DataSpec("shifted", (4,), 16, Affine(0, 1))
    data = Dataset(
        spec, torch.randint(16, (3, 4), generator=torch.Generator().manual_seed(0)), None
    )
    model = Gaussian(torch.full((4,), 0.5), 0.1 * torch.eye(4)).diffused(VPSDE())
    with pytest.raises(ValueError, match=r"must have the scaling .* knows no data, got Affine"):
        compress(model, data, steps=4)
    # With a model that says so they come back.
    known = ScoreModel(MLP(4, width=8), VPSDE(), data=spec).eval()
    assert torch.equal(decompress(known, compress(known, data, steps=4)).long(), data.values)


def test_data_beyond_the_reach_of_the_prior_are_refused() -> None:
    spec = DataSpec("far", (1,), 2**16, Affine(0, 65535))
    model = ScoreModel(MLP(1, width=8), VPSDE(), data=spec).eval()
    data = Dataset(spec, torch.tensor([[65535], [3]]), None)
    with pytest.raises(ValueError, match="data must be in reach of the model's prior"):
        compress(model, data, steps=4)


def test_no_block_stands_for_another() -> None:
    data = drawn(8)
    found = compress(MODEL, data, steps=4, block_size=4)
    head, blocks = parsed(found)
    assert len(blocks) == 2
    whole = joined(head, blocks)
    assert whole == found
    first = len(joined(head, []))
    code = blocks[0][1]
    second = first + len(varints(len(code), 4)) + 4 + len(code)
    assert joined(head, blocks[:1]) == found[:second]
    turned = found[:first] + found[second:] + found[first:second]
    with pytest.raises(ValueError, match="hold a block of its checksum, got another"):
        decompress(MODEL, turned)


@pytest.mark.parametrize("numbers", [(2, 5, 0, 0, 0), (2, 2**61, 0, 2**61, 0)])
def test_predictions_that_are_told_out_of_order_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="tell predictions in their order"):
        Exceptions.from_bytes(memoryview(varints(*numbers)))


def test_without_constriction_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(ValueError, match=r"type pip install 'sde_diffusion\[coding\]'"):
        compress(MODEL, drawn(2), steps=4)


# --- commands ---


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, [*words, "--device", "cpu"])
    return done.exit_code, done.output


def test_the_commands_write_a_file_and_the_levels_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = run("compress", "--limit", "3", "--steps", "4", "--table", "--json")
    assert code == 0, said
    found = json.loads(said)
    assert found["bytes"] == Path("compressed.sdz").stat().st_size
    assert [row["coder"] for row in found["table"]] == [
        "discrete bound",
        "this file",
        "PNG",
        "LZMA",
        "histograms",
    ]
    assert run("decompress", "compressed.sdz") == (
        0,
        "compressed.npy: 3 samples of (1, 8, 8), uint8, by the model digits\n",
    )
    data = load_data("digits", "test", limit=3)
    assert np.array_equal(np.load("compressed.npy"), data.values.numpy())


def test_nothing_is_written_of_a_damaged_file_or_into_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blob: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut.sdz").write_bytes(blob[:-1])
    Path("other.sdz").write_bytes(blob)
    for words, says in (
        (("cut.sdz",), "it is cut short"),
        (("other.sdz", "--model", "digits"), "be the one that"),
        (("other.sdz",), "--model must be given for a file of the model "),
    ):
        code, said = run("decompress", *words)
        assert (code, said.count("\n")) == (2, 1)
        assert says in said
    assert run("decompress", "none.sdz") == (2, "Error: none.sdz: No such file or directory\n")
    code, said = run("compress", "--out", ".")
    assert (code, "name a file" in said) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.sdz", "other.sdz"]
