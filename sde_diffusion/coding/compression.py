"""Lossless compression of levels by a model: a likelihood that is a file's length."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._check import (
    a_function,
    an_object,
    kind_of,
    positive_integer,
    wrong_type,
    wrong_value,
)
from sde_diffusion.checkpoints.fingerprint import fingerprint
from sde_diffusion.coding.block import BlockCoder
from sde_diffusion.coding.file_format import (
    MOST_DIMENSIONS,
    MOST_SAMPLES,
    MOST_STEPS,
    Head,
    joined,
    parsed,
)
from sde_diffusion.coding.predictions import Predictor
from sde_diffusion.coding.whole_chain import WholeChain
from sde_diffusion.data.checks import scaled_for
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.ddpm.level_times import level_times
from sde_diffusion.dynamics import check_coupling
from sde_diffusion.integration import check_evaluation
from sde_diffusion.models.exact import ExactScore
from sde_diffusion.scores import ScoreLike

Callback = Callable[[int], object]


def compress(
    model: ScoreLike,
    data: Dataset,
    *,
    steps: int = 128,
    block_size: int = 4096,
    batch_size: int = 64,
    callback: Callback | None = None,
) -> bytes:
    """Return the levels of a data set as bytes that `decompress` takes back to them.

    Bits back on the chain of `level_times`, with the variances β̃_k and a `LevelDecoder`: of many
    samples the bytes are as many as `vlb` of that chain says, and its head. What encoder and
    decoder must agree on are whole numbers; the network's predictions, in float64, are rounded to
    such, and written down where another machine might round otherwise.

    Arguments:
        model: a score model or oracle of a linear SDE.
        data: levels, in the model's shape.
        steps: of the chain.
        block_size: samples of a block, which has a checksum of its own; the first one borrows
            some five bits a dimension.
        batch_size: samples that the network gets at once; no byte depends on it.
        callback: told after every evaluation of how many samples it was; `steps` in all for each.

    NFE: ``steps`` for each sample.
    Errors: ValueError for real data or none, for data that do not fit the model, or where
    constriction is not installed; FloatingPointError for predictions that are not finite.
    Source: Townsend et al. 2019 (BB-ANS); Kingma et al. 2019 (Bit-Swap).

    >>> from sde_diffusion import Dataset, DataSpec, Gaussian, VPSDE
    >>> model = Gaussian(torch.zeros(2), 0.1 * torch.eye(2)).diffused(VPSDE())
    >>> data = Dataset(DataSpec("pairs", (2,), 8), torch.tensor([[3, 4], [5, 2]]), None)
    >>> decompress(model, compress(model, data, steps=8)).tolist()
    [[3, 4], [5, 2]]
    """
    an_object("compress", "data", data, Dataset, "pass load_data('digits', 'test')")
    _check("compress", model, batch_size, callback)
    positive_integer("compress", "steps", steps, least=2, most=MOST_STEPS)
    positive_integer("compress", "block_size", block_size, most=MOST_SAMPLES)
    levels = data.spec.levels
    if levels is None or not len(data):
        got = "real numbers" if len(data) else "no samples"
        rule = "be samples of levels"
        raise wrong_value("compress", "data", rule, got, "pass integers, with their levels")
    if prod(data.spec.shape) > MOST_DIMENSIONS:
        rule = f"have at most {MOST_DIMENSIONS} dimensions"
        raise wrong_value("compress", "data", rule, data.spec.shape, "cut them into pieces")
    data = scaled_for(model.data, data)
    usual = DataSpec(data.spec.name, data.spec.shape, levels).scaling
    if model.data is None and data.spec.scaling != usual:
        rule = f"have the scaling {usual} for a model that knows no data"
        remedy = "pass ScoreModel(network, sde, data=data.spec)"
        raise wrong_value("compress", "data", rule, data.spec.scaling, remedy)
    values = data.values.reshape(len(data), -1).numpy().astype(np.int64)
    whole, coder = _coder("compress", model, data.spec, steps, batch_size, callback)
    head = Head(fingerprint(model), data.spec.shape, levels, len(data), steps, whole.checksum)
    blocks = [values[first : first + block_size] for first in range(0, len(data), block_size)]
    return joined(head, ((len(block), coder.encoded(block)) for block in blocks))


def decompress(
    model: ScoreLike,
    blob: bytes,
    *,
    batch_size: int = 64,
    callback: Callback | None = None,
) -> Tensor:
    """Return the levels that `compress` was given.

    Arguments:
        model: the model that compressed them.
        blob: what `compress` returned.
        batch_size: samples that the network gets at once.
        callback: as that of `compress`.

    Shapes: result (N, *event), integers.
    Errors: ValueError for bytes that are cut short or damaged, another model, and a machine on
    which the model predicts otherwise: levels are returned only where all checksums agree.
    """
    if not isinstance(blob, (bytes, bytearray)):
        remedy = "pass Path('data.sdz').read_bytes()"
        raise wrong_type("decompress", "blob", "be bytes", kind_of(blob), remedy)
    _check("decompress", model, batch_size, callback)
    head, blocks = parsed(bytes(blob))
    _check_model(model, head)
    spec = _spec(model, head)
    whole, coder = _coder("decompress", model, spec, head.steps, batch_size, callback)
    if whole.checksum != head.chain:
        raise _otherwise("model", "have the chain of the file", "other numbers")
    parts = list[Tensor]()
    for i, (samples, code) in enumerate(blocks):
        levels = coder.decoded(code, samples)
        if levels is None:
            raise _otherwise(
                "model", "predict what it did in compress", f"other numbers in block {i}"
            )
        parts.append(torch.from_numpy(levels).to(spec.storage))
    return torch.cat(parts).reshape(-1, *spec.shape)


def _coder(
    what: str,
    model: ScoreLike,
    spec: DataSpec,
    steps: int,
    batch_size: int,
    callback: Callback | None,
) -> tuple[WholeChain, BlockCoder]:
    chain = Chain(model.linear_sde(), level_times(model, spec, steps))
    whole = WholeChain(chain, spec)
    told = callback or (lambda _: None)
    predictor = Predictor(model, whole, chain.times, spec.shape, batch_size, told, what)
    return whole, BlockCoder(whole, predictor, prod(spec.shape))


def _check(what: str, model: ScoreLike, batch_size: int, callback: Callback | None) -> None:
    remedy = "pass a ScoreModel, or an oracle's .diffused(sde)"
    an_object(what, "model", model, ScoreLike, remedy)
    model.linear_sde()
    check_evaluation(what, model)
    check_coupling(what, "model", model)
    if model.rows(torch.zeros(1, dtype=torch.int64)) is not model:
        raise wrong_type(
            what,
            "model",
            "be one for all samples",
            "one with conditions of each",
            "condition it on one class or embedding for all",
        )
    positive_integer(what, "batch_size", batch_size)
    if callback is not None:
        a_function(what, "callback", callback, "(samples)", "pass print")


def _check_model(model: ScoreLike, head: Head) -> None:
    found = fingerprint(model)
    known = model.data
    if known is not None and (known.shape, known.levels) != (head.shape, head.levels):
        found = f"one of {known.levels} levels and shape {known.shape}"
    if isinstance(model, ExactScore) and model.oracle.event != head.shape:
        found = f"one of shape {model.oracle.event}"
    if found != head.model:
        raise wrong_value(
            "decompress",
            "model",
            f"be the one that compressed the file, {head.model}",
            found,
            "pass that one",
        )


def _spec(model: ScoreLike, head: Head) -> DataSpec:
    """Return what the samples are: as the model knows it, or else as the head says."""
    if model.data is not None:
        return model.data
    return DataSpec("decompressed", head.shape, head.levels)


def _otherwise(argument: str, rule: str, got: str) -> ValueError:
    remedy = "decompress it with the versions and on the kind of machine that compressed it"
    return wrong_value("decompress", argument, rule, got, remedy)
