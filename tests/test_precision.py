"""Half precision, divided batches, memory formats and compilation: what they may change."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    Gaussian,
    ScoreModel,
    TrainingConfig,
    compiled,
    denoising_loss,
    load,
    sample,
    train,
)
from sde_diffusion.checkpoints.fingerprint import fingerprint
from sde_diffusion.data.shuffling import batch_rows
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.objectives.spacings import SPACINGS
from sde_diffusion.solvers import EulerMaruyama, Heun
from sde_diffusion.time_distributions import UniformTimes
from sde_diffusion.training.batch import GlobalBatch
from sde_diffusion.training.objective_by_name import objective_of
from sde_diffusion.training.precision import release
from sde_diffusion.training.trainer import Trainer, learning_rate

CONFIG = TrainingConfig(steps=6, batch_size=24, warmup=2, learning_rate=0.01, clip=0.5, seed=3)


def points(rows: int = 50) -> Dataset:
    values = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    return Dataset(DataSpec("points", (2,), None), values, torch.arange(rows) % 3)


def fresh(dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> ScoreModel:
    """A network with classes whose output is not 0, as it is when it is made."""
    model = ScoreModel(MLP(2, width=16, classes=3, dropout=dropout), VPSDE())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(run: Trainer) -> Tensor:
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


class Noisy(Objective):
    """A loss that draws: the error at another noise than that of the batch."""

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        return denoising_loss(model, batch.x0, batch.t, batch.noise.normal(batch.x0))


def noisy() -> Objective:
    return Noisy(UniformTimes(), SPACINGS["stratified"](1), 1e-5)


# --- a divided batch ---


@pytest.mark.parametrize(
    "objective",
    [None, noisy, lambda: objective_of(replace(CONFIG, spacing="loss-aware"))],
    ids=["denoising", "draws", "loss-aware"],
)
def test_gradients_of_a_divided_batch_are_those_of_the_whole(
    objective: Callable[[], Objective] | None,
) -> None:
    config = replace(CONFIG, clip=1e9)
    found = list[tuple[Tensor, float]]()
    for accumulate in (1, 2, 24):
        made = None if objective is None else objective()
        divided = replace(config, accumulate=accumulate)
        run = Trainer(fresh(torch.float64), points(), divided, made)
        progress = [run.advance() for _ in range(3)][-1]
        found.append((gradient(run), progress.loss))
    for other, loss in found[1:]:
        assert torch.allclose(other, found[0][0], rtol=0, atol=1e-12)
        assert loss == pytest.approx(found[0][1], abs=1e-12)
    assert found[0][0].abs().max() > 1e-3


def test_a_loss_that_forgets_the_numbers_of_its_rows_is_seen() -> None:
    """The test above would see noise that depends on the division: here is one that does."""

    class Forgetful(Objective):
        def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
            z = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(0))
            return denoising_loss(model, batch.x0, batch.t, z.to(batch.x0))

    losses = []
    for accumulate in (1, 2):
        objective = Forgetful(UniformTimes(), SPACINGS["stratified"](1), 1e-5)
        config = replace(CONFIG, accumulate=accumulate)
        losses.append(Trainer(fresh(), points(), config, objective).advance().loss)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_masks_of_dropout_differ_between_the_parts() -> None:
    class Marks(nn.Module):
        """A network that keeps the masks that it draws."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.seen = list[Tensor]()

        def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
            self.seen.append(nn.functional.dropout(torch.ones_like(x), 0.5))
            return self.weight * x

    network = Marks()
    Trainer(ScoreModel(network, VPSDE()), points(), replace(CONFIG, accumulate=2)).advance()
    assert not torch.equal(*network.seen)


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    says = r"batch_size must be a multiple of accumulate × processes = 5, got 24; pass .*=20"
    with pytest.raises(ValueError, match=says):
        Trainer(fresh(), points(), replace(CONFIG, accumulate=5))
    with pytest.raises(ValueError, match="pass batch_size=25"):
        Trainer(fresh(), points(), replace(CONFIG, accumulate=25))


def test_weights_of_another_dtype_are_trained_on_the_same_batch() -> None:
    """16 numbers and more: there a generator's float64 draws are others than its float32 ones."""
    labelled = replace(points(), labels=torch.arange(50))
    config = replace(CONFIG, label_dropout=0.5)
    rows = batch_rows(50, 24, 3, 1)
    single, double = (
        GlobalBatch.draw(objective_of(config), fresh(dtype), labelled, rows, config, 1)
        for dtype in (torch.float32, torch.float64)
    )
    assert double.eps.dtype == torch.float64
    assert torch.equal(double.eps.float(), single.eps)
    assert torch.equal(double.given["labels"], single.given["labels"])


# --- half precision ---


def by_hand(model: ScoreModel, config: TrainingConfig, half: torch.dtype | None) -> list[float]:
    """Train by a plain loop that shares with `Trainer` nothing but the draws."""
    data = points()
    losses = []
    objective = objective_of(config)
    average = fresh()
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(1, config.steps + 1):
        rows = batch_rows(len(data), config.batch_size, config.seed, step)
        drawn = GlobalBatch.draw(objective, model, data, rows, config, step)
        x_t = model.sde.perturb(drawn.x0, drawn.drawn.t, drawn.eps)
        with torch.autocast("cpu", half, enabled=half is not None):
            eps = model.network(x_t, drawn.drawn.t.float(), drawn.given.get("labels"))
        loss = (drawn.eps - eps.float()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_is_the_plain_loop(precision: str) -> None:
    config = replace(CONFIG, precision=precision)
    model = fresh()
    run = Trainer(model, points(), config)
    found = [run.advance().loss for _ in range(config.steps)]
    other = fresh()
    expected = by_hand(other, config, torch.bfloat16 if precision == "bfloat16" else None)
    assert found == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(weights(model), weights(other), rtol=0, atol=1e-6)
    plain = by_hand(fresh(), config, None)
    assert (found != pytest.approx(plain, rel=1e-5)) == (precision == "bfloat16")


def test_float16_is_the_plain_loop_once_its_scale_fits() -> None:
    """Without the scale, float16 would lose the small gradients; clipping sees the true norm."""
    config = replace(CONFIG, precision="float16", clip=0.1)
    run = Trainer(fresh(), points(), config)
    other = Trainer(fresh(), points(), CONFIG)
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 1024.0})
    half = run.advance()
    plain = other.advance()
    assert half.loss == pytest.approx(plain.loss, rel=1e-3)
    assert half.loss != plain.loss
    assert half.grad_norm == pytest.approx(plain.grad_norm, rel=1e-2)
    assert gradient(run).norm().item() == pytest.approx(0.1, rel=1e-4)


class Wide(nn.Module):
    """A network whose products are recorded and whose gradients are as large as ``factor``."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2, bias=False)
        self.factor = factor
        self.seen = list[object]()
        with torch.no_grad():
            self.inner.weight.copy_(torch.eye(2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        y: Tensor = self.inner(x)
        self.seen.append(y.dtype)
        return self.factor * y


def test_float16_skips_steps_until_the_scale_fits() -> None:
    network = Wide(30.0)
    run = Trainer(ScoreModel(network, VPSDE()), points(), replace(CONFIG, precision="float16"))
    first = weights(run.model)
    skipped = 0
    progress = run.advance()
    while not math.isfinite(progress.grad_norm):
        skipped += 1
        assert torch.equal(weights(run.model), first)
        assert all(
            not state["exp_avg"].any() and state["step"] == 0
            for state in run.optimizer.state.values()
        )
        assert run.scaler.get_scale() == 2.0 ** (16 - skipped)
        assert run.line(progress)["grad_norm"] is None
        progress = run.advance()
    assert 2 < skipped < 12
    assert run.step == skipped + 1
    assert not torch.equal(weights(run.model), first)
    assert set(network.seen) == {torch.float16}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert {s["exp_avg"].dtype for s in run.optimizer.state.values()} == {torch.float32}


def test_float16_gives_up_where_no_scale_helps(infinite_slope: nn.Module) -> None:
    config = replace(CONFIG, precision="float16", steps=50)
    run = Trainer(ScoreModel(infinite_slope, VPSDE()), points(), config)
    says = r"gradient norm must be finite at step 18, .*pass precision='bfloat16'"
    for _ in range(17):  # from 2¹⁶ down to 1
        assert not math.isfinite(run.advance().grad_norm)
    with pytest.raises(FloatingPointError, match=says):
        run.advance()
    assert not weights(run.model).any()


def test_a_resumed_float16_run_keeps_its_scale(tmp_path: Path) -> None:
    config = replace(CONFIG, precision="float16")

    def wide() -> ScoreModel:
        return ScoreModel(Wide(30.0), VPSDE())

    whole = wide()
    for _ in train(whole, points(), config, out=tmp_path / "whole"):
        pass
    run = train(wide(), points(), config, out=tmp_path / "cut")
    for _ in range(3):
        next(run)
    run.close()  # type: ignore[attr-defined]
    resumed = wide()
    for _ in train(resumed, points(), config, out=tmp_path / "cut", resume=True):
        pass
    assert torch.equal(weights(resumed), weights(whole))
    states = [
        torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "cut")
    ]
    assert states[0]["scaler"] == states[1]["scaler"]
    assert states[0]["scaler"]["scale"] < 2**15


def test_half_precision_of_other_weights_is_refused() -> None:
    says = r"precision must be float32 unless .*, got bfloat16 for weights in torch.float64"
    with pytest.raises(ValueError, match=says):
        Trainer(fresh(torch.float64), points(), replace(CONFIG, precision="bfloat16"))


# --- memory format, compilation ---


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.strides = list[bool]()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        hidden = self.first(x).relu()
        self.strides.append(hidden.is_contiguous(memory_format=torch.channels_last))
        out: Tensor = self.last(hidden)
        return out


def images() -> Dataset:
    values = torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    return Dataset(DataSpec("images", (2, 6, 6), None), values, None)


def test_channels_last_changes_the_layout_and_no_result(tmp_path: Path) -> None:
    found = []
    last = False
    for last in (False, True):
        network = Convolutions()
        config = replace(CONFIG, channels_last=last, batch_size=10)
        for _ in train(ScoreModel(network, VPSDE()), images(), config, out=tmp_path / str(last)):
            pass
        assert set(network.strides) == {last}
        kept = load(tmp_path / str(last), network=Convolutions())
        assert torch.equal(weights(kept), weights(network))
        found.append(weights(kept))
    assert torch.allclose(*found, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's own, when it compiles
def test_a_compiled_network_trains_alike_and_keeps_its_names(tmp_path: Path) -> None:
    config = replace(CONFIG, compile=True)
    run = Trainer(fresh(), points(), config)
    plain = Trainer(fresh(), points(), CONFIG)
    found = [run.advance().loss for _ in range(3)]
    assert found == pytest.approx([plain.advance().loss for _ in range(3)], rel=1e-5)
    assert run.model.network._compiled_call_impl is not None
    assert run.averages.main.network._compiled_call_impl is None
    names = list(run.model.network.state_dict())
    assert names == list(plain.model.network.state_dict())
    run.finish()
    assert run.model.network._compiled_call_impl is None
    assert list(run.model.network.state_dict()) == names
    steps = train(fresh(), points(), replace(config, steps=2), out=tmp_path)
    assert [p.step for p in steps] == [1, 2]
    assert list(load(tmp_path).network.state_dict()) == names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's own, when it compiles
def test_a_compiled_model_has_the_scores_names_and_weights_of_the_model() -> None:
    model = fresh().eval()
    found = compiled(model)
    assert fingerprint(found) == fingerprint(model)
    assert list(found.state_dict()) == list(model.state_dict())
    for solver in (Heun(), EulerMaruyama()):
        expected = sample(model, solver, (4, 2), steps=5)
        again = sample(found, solver, (4, 2), steps=5)
        assert torch.allclose(again.x, expected.x, rtol=1e-5, atol=1e-5)
        assert again.nfe == expected.nfe
    assert found.network._compiled_call_impl is not None
    release(found.network)
    assert fingerprint(found) == fingerprint(model)
    assert model.network._compiled_call_impl is None
    assert all(a is b for a, b in zip(found.parameters(), model.parameters(), strict=True))


def test_what_has_no_network_is_not_compiled() -> None:
    with pytest.raises(TypeError, match=r"compiled: model must be a LearnedScore object"):
        compiled(Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE()))


@pytest.mark.slow
def test_without_a_compiler_the_remedy_is_named(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_precision import CONFIG, Trainer, fresh, points, replace
Trainer(fresh(), points(), replace(CONFIG, compile=True))
"""
    # Another cache, for a line that is compiled already needs no compiler.
    environment = os.environ | {
        "CXX": "no-such-compiler",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    line = done.stderr.splitlines()[-1]
    assert line.startswith("ValueError: train: compile must be False without a C++ compiler")
    assert line.endswith("install a C++ compiler such as g++, or pass compile=False")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_trains_alike(precision: str) -> None:
    config = replace(CONFIG, precision=precision, accumulate=2)
    run = Trainer(fresh().to("cuda"), points(), config)
    plain = Trainer(fresh(), points(), CONFIG)
    found = [run.advance().loss for _ in range(3)]
    close = 1e-4 if precision == "float32" else 1e-2
    assert found == pytest.approx([plain.advance().loss for _ in range(3)], rel=close)
