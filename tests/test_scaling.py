"""Scalings against autograd and independent formulas, and the refusals of data off the scale."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.special
import torch
from torch import Tensor

from sde_diffusion import DataSpec
from sde_diffusion.data.checks import check_dequantized, check_fits
from sde_diffusion.data.scaling import Affine, Logit, Scaling, scaling_from_json

SCALINGS = [Affine(), Affine(0, 1), Affine(-3.5, 0.25), Affine(0, 255), Logit(), Logit(1e-6)]
every_scaling = pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
LEVELS = [1, 2, 17, 256]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


# --- scalings ---------------------------------------------------------------------------------


@every_scaling
@pytest.mark.parametrize("levels", LEVELS)
def test_the_inverse_undoes_the_scaling(scaling: Scaling, levels: int) -> None:
    y = torch.linspace(0, levels, 1001, dtype=torch.float64)
    x = scaling.forward(y, levels)
    assert torch.allclose(scaling.inverse(x, levels), y, rtol=0, atol=1e-12 * levels)
    assert bool((x.diff() > 0).all())


@every_scaling
@pytest.mark.parametrize("levels", LEVELS)
def test_log_det_is_the_logarithm_of_autograds_determinant(scaling: Scaling, levels: int) -> None:
    y = levels * draw(5, 2, 3)
    found = scaling.log_det(scaling.forward(y, levels), levels)
    for row, value in zip(y, found, strict=True):
        forward: Callable[[Tensor], Tensor] = lambda v: scaling.forward(v, levels)  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(forward, row).reshape(6, 6)
        assert float(value) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), rel=1e-9)
    assert found.dtype == torch.float64
    assert scaling.log_det(torch.zeros(5, 3), levels).dtype == torch.float64


@every_scaling
def test_the_slope_is_the_largest(scaling: Scaling) -> None:
    y = torch.linspace(0, 17, 2001, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(scaling.forward(y, 17).sum(), y)
    assert float((1 / gradient).max()) == pytest.approx(scaling.slope(17), rel=1e-12)


@every_scaling
def test_float32_rounds_by_less_than_said(scaling: Scaling) -> None:
    x = scaling.forward(draw(20_000))
    worst = float((x.float().double() - x).abs().max())
    assert worst < scaling.rounding < 10 * worst


def test_logit_is_that_of_the_papers() -> None:
    y = 256 * draw(100)
    p = 1e-6 + (1 - 2e-6) * y.numpy() / 256
    expected = torch.from_numpy(scipy.special.logit(p))
    assert torch.allclose(Logit(1e-6).forward(y, 256), expected, rtol=1e-12, atol=1e-12)
    # Both ends keep the margin's digits.
    low, high = Logit(1e-9).forward(torch.tensor([0.0, 256.0]), 256).tolist()
    assert -low == high == pytest.approx(math.log(1e9 - 1), rel=1e-15)


@every_scaling
def test_a_scaling_survives_json(scaling: Scaling) -> None:
    assert scaling_from_json(json.loads(json.dumps(scaling.to_json()))) == scaling


@pytest.mark.parametrize("count", [1, 2, 5])
def test_log_det_of_a_sample_is_the_same_in_any_batch(count: int) -> None:
    x = Logit().forward(draw(10, 1, 7, 9))
    parts = [Logit().log_det(part) for part in x.split(count)]
    assert torch.equal(torch.cat(parts), Logit().log_det(x))


# --- refusals ---------------------------------------------------------------------------------

WHERE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "edges": lambda k, levels: k,  # noqa: ARG005
    "centres": lambda k, levels: k + 0.5,  # noqa: ARG005
    "k/(L − 1)": lambda k, levels: k * levels / (levels - 1),
}
GREY = [
    (Affine(), 2),
    (Affine(), 256),
    (Affine(), 65536),
    (Affine(0, 1), 65536),
    (Affine(0, 255), 256),
    (Logit(), 17),
    (Logit(1e-6), 256),
]
every_grey = pytest.mark.parametrize(("scaling", "levels"), GREY)


@every_grey
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_undequantized_rows_are_refused(
    scaling: Scaling, levels: int, where: str, dtype: torch.dtype
) -> None:
    spec = DataSpec("grey", (1, 4, 4), levels, scaling)
    x = scaling.forward(levels * draw(6, 1, 4, 4), levels).to(dtype)
    check_dequantized("log_prob", x, spec)
    k = (levels * draw(1, 4, 4, seed=1)).floor()
    x[3] = scaling.forward(WHERE[where](k, levels), levels)
    text = f"x must be dequantized, got values on the {levels} levels only; add uniform noise"
    with pytest.raises(ValueError, match=text):
        check_dequantized("log_prob", x, spec)


@every_grey
def test_dequantized_data_is_accepted(scaling: Scaling, levels: int) -> None:
    spec = DataSpec("grey", (8,), levels, scaling)
    k = (levels * draw(4000, 8)).to(spec.storage)
    for u in (draw(4000, 8, seed=1), draw(4000, 8, seed=1).float().clamp(max=1 - 2**-24)):
        check_dequantized("log_prob", spec.encode(k, u), spec)
    # Ends of the range are in it, in float32 too.
    ends = scaling.forward(torch.tensor([[0.0] + [0.3] * 6 + [1.0]])).float()
    check_dequantized("log_prob", ends, spec)


def test_few_numbers_may_lie_on_a_level_by_chance() -> None:
    spec = DataSpec("one", (1,), 8)
    x = spec.encode(torch.arange(3000)[:, None] % 8, draw(3000, 1))
    on_level = ((8 * (x + 1)).round() - 8 * (x + 1)).abs() < 1e-3
    assert int(on_level.sum()) >= 3  # the case is there
    for row in [*x[on_level.any(1)], *x[:20]]:
        check_dequantized("log_prob", row[None], spec)
    check_dequantized("log_prob", torch.zeros(3, 1), spec)
    with pytest.raises(ValueError, match="x must be dequantized"):
        check_dequantized("log_prob", torch.zeros(4, 1), spec)


IMAGE = DataSpec("images", (1, 2, 2), 256)
LOGIT = DataSpec("images", (1, 2, 2), 256, Logit())
REAL = DataSpec("images", (1, 2, 2), None)


def refused(x: Tensor, spec: DataSpec) -> Callable[[], None]:
    return lambda: check_dequantized("log_prob", x, spec)


def misfit(spec: DataSpec, *, model: DataSpec = IMAGE) -> Callable[[], None]:
    return lambda: check_fits(model, spec)


TEXTS: list[tuple[Callable[[], object], str]] = [
    (
        refused(torch.full((1, 1, 2, 2), 1.5), IMAGE),
        "log_prob: x must lie in [−1, 1], as levels are scaled, got 1.5 … 1.5; scale it with "
        "dataset.spec.encode",
    ),
    (refused(torch.full((1, 1, 2, 2), -1.0001), IMAGE), "log_prob: x must lie in [−1, 1]"),
    (
        refused(torch.full((1, 1, 2, 2), 3.0), LOGIT),
        "log_prob: x must lie in [−2.944, 2.944], as levels are scaled, got 3 … 3; scale it with "
        "dataset.spec.encode",
    ),
    (
        refused(torch.full((1, 1, 2, 2), math.nan), IMAGE),
        "log_prob: x must be finite, got nan … nan; remove the rows that are not",
    ),
    (refused(torch.full((1, 1, 2, 2), math.inf), REAL), "log_prob: x must be finite, got inf"),
    (
        refused(torch.zeros(1, 4), IMAGE),
        "log_prob: x must have the data's shape (1, 2, 2), got (4,); reshape it",
    ),
    (
        misfit(DataSpec("a", (1, 3, 3), 256)),
        "data: samples must have the model's shape (1, 2, 2), got (1, 3, 3); name the data it was "
        "trained on",
    ),
    (
        misfit(DataSpec("a", (1, 2, 2), 17)),
        "data: samples must have the model's 256 grey levels, got 17; pass --levels 256",
    ),
    (
        misfit(REAL),
        "have the model's 256 grey levels, got real numbers; save whole numbers from 0 to 255",
    ),
    (
        misfit(IMAGE, model=REAL),
        "data: samples must have the model's no grey levels, got 256; use data of real numbers",
    ),
    (
        misfit(LOGIT),
        "data: samples must have the model's scaling Affine(low=-1, high=1), got "
        "Logit(margin=0.05); scale them as for training",
    ),
    (
        misfit(DataSpec("a", (1, 2, 2), 256, Logit(0.1)), model=LOGIT),
        "the model's scaling Logit(margin=0.05), got Logit(margin=0.1)",
    ),
    (lambda: Affine(1, 1), "Affine: high must be above low=1, got 1; pass low=-1, high=1"),
    (lambda: Affine(-math.inf), "Affine: low must be finite, got -inf; pass another number"),
    (lambda: Logit(0.5), "Logit: margin must be above 0 and below 0.5, got 0.5; pass margin=0.05"),
    (lambda: Logit(0), "Logit: margin must be above 0 and below 0.5, got 0"),
    (
        lambda: scaling_from_json({"class": "Cubic", "a": 1}),
        "scaling_from_json: scaling must be one of Affine, Logit, got Cubic; make an object",
    ),
]


@pytest.mark.parametrize(("call", "text"), TEXTS, ids=[text for _, text in TEXTS])
def test_mistakes_end_in_one_clear_sentence(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is compared below)
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("margin", [True, "0.1", None])
def test_a_margin_that_is_no_number(margin: Any) -> None:
    with pytest.raises(TypeError, match="Logit: margin must be a number, got "):
        Logit(margin)


def test_what_fits() -> None:
    check_fits(None, IMAGE)  # a model that knows nothing of its data
    check_fits(IMAGE, DataSpec("other name", (1, 2, 2), 256, Affine(-1.0, 1.0)))
    check_dequantized("log_prob", torch.full((2, 1, 2, 2), 40.0), REAL)
