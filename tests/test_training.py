"""Training: exact schedules and averages, runs that survive a kill, and an oracle reached."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor, nn

from sde_diffusion import (
    MLP,
    VESDE,
    VPSDE,
    Dataset,
    DataSpec,
    Gaussian,
    LinearSDE,
    ScoreModel,
    TrainingConfig,
    describe,
    load,
    train,
)
from sde_diffusion._seeds import mix
from sde_diffusion.checkpoints.fingerprint import network_settings
from sde_diffusion.cli.main import main
from sde_diffusion.data.shuffling import batch_rows
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.objectives.denoising import Denoising
from sde_diffusion.objectives.score_matching import Sliced
from sde_diffusion.objectives.spacings import Stratified
from sde_diffusion.objectives.uncertainty import Uncertainty
from sde_diffusion.objectives.weighting import EDM
from sde_diffusion.time_distributions import UniformTimes
from sde_diffusion.training.averages import ema_decay, update_average
from sde_diffusion.training.batch import GlobalBatch
from sde_diffusion.training.monitors import HeldOutBound
from sde_diffusion.training.objective_by_name import objective_of
from sde_diffusion.training.trainer import learning_rate

CONFIG = TrainingConfig(
    steps=9,
    batch_size=16,
    learning_rate=0.01,
    warmup=4,
    schedule="cosine",
    ema_decay=0.5,
    weighting="likelihood",
    checkpoint_every=3,
    log_every=2,
    seed=5,
)


def points(rows: int = 50) -> Dataset:
    values = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    return Dataset(DataSpec("points", (2,), None), values, torch.arange(rows) % 3)


def fresh(shift: float = 0.0) -> ScoreModel:
    """The model of these tests, its initial weights shifted (a resumed run must not see them)."""
    model = ScoreModel(MLP(2, width=16, classes=3, dropout=0.2), VPSDE())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shift)
    return model


def state(out: Path) -> dict[str, object]:
    saved: dict[str, object] = torch.load(out / "state.pt", weights_only=True)
    return saved


def metrics(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same(a: object, b: object) -> None:
    """Assert equality bit for bit, but for the time a run took."""
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "checksum"}:
            assert_same(a[key], b[key])
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def assert_same_run(a: Path, b: Path) -> None:
    assert_same(state(a), state(b))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert metrics(a) == metrics(b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert [p.step for p in train(fresh(), points(), CONFIG, out=out)] == list(range(1, 10))
    assert [line["step"] for line in metrics(out)] == [2, 4, 6, 8, 9]
    return out


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8])
def test_resumed_run_equals_the_uninterrupted_one(whole: Path, tmp_path: Path, stop: int):
    run = train(fresh(), points(), CONFIG, out=tmp_path / "closed")
    for _ in range(stop):
        next(run)
    # As a kill at this moment would leave it: at the last checkpoint, with later metrics.
    shutil.copytree(tmp_path / "closed", tmp_path / "killed")
    run.close()  # type: ignore[attr-defined]
    assert state(tmp_path / "closed")["step"] == stop
    assert state(tmp_path / "killed")["step"] == stop // 3 * 3
    for out in (tmp_path / "closed", tmp_path / "killed"):
        torch.manual_seed(stop)  # the global generator must not matter
        steps = [p.step for p in train(fresh(0.1), points(), CONFIG, out=out, resume=True)]
        assert steps[-1] == 9
        assert_same_run(whole, out)


def test_training_leaves_the_global_generator_alone_and_ends_with_the_average(whole: Path):
    before = torch.get_rng_state()
    model = fresh()
    for _ in train(model, points(), CONFIG):
        pass
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(dict(model.network.state_dict()), dict(load(whole).network.state_dict()))


def test_metrics_are_means_since_the_line_before(whole: Path):
    progress = list(train(fresh(), points(), CONFIG))
    means = [
        math.fsum(p.loss for p in progress[i : i + 2]) / len(progress[i : i + 2])
        for i in range(0, 9, 2)
    ]
    assert [line["loss"] for line in metrics(whole)] == means
    assert metrics(whole)[0]["grad_norm"] == progress[1].grad_norm


MONITORS = [HeldOutBound(points(12), draws=4)]
KILLED = replace(
    CONFIG,
    steps=100_000,
    checkpoint_every=1,
    log_every=1,
    schedule="constant",
    ema_half_lives=(5.0,),
    ema_widths=(0.1,),
    snapshot_every=3,
    evaluate_every=2,
)
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from forks import ended, start
from test_training import KILLED, MONITORS, check_files, fresh, points, state, train

out, moment, steps = Path({out!r}), random.Random(0), [-1]

def go_on(resume):
    for _ in train(fresh(), points(), KILLED, out=out, resume=resume, monitors=MONITORS):
        pass

for kill in range(20):
    child = start(lambda: go_on(kill > 0))
    deadline = time.monotonic() + 60
    while not (out / "state.pt").is_file() or state(out)["step"] <= steps[-1]:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(moment.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    ended(child, killed=True)
    ended(start(lambda: check_files(out)))
    steps.append(state(out)["step"])
print(*steps)
"""


def check_files(out: Path) -> None:
    """Every file of the run's folder, unless its name says it is temporary, is whole."""
    for path in out.rglob("*"):
        if path.name.startswith(".lock~"):
            continue
        if path.suffix == ".safetensors":
            assert load(path).data == points().spec
        elif path.suffix == ".pt":
            assert torch.load(path, weights_only=True)["step"] >= 0
        elif path.suffix == ".json":
            assert json.loads(path.read_text())["sessions"]
        else:
            assert path.suffix in {".jsonl", ".tmp"} or path.name == "snapshots"


@pytest.mark.slow
def test_a_run_killed_twenty_times_leaves_whole_files_and_ends_alike(tmp_path: Path):
    out = tmp_path / "killed"
    script = KILLER.format(tests=str(Path(__file__).parent), out=str(out))
    program = [sys.executable, "-c", script]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    steps = [int(word) for word in done.stdout.split()]
    assert len(set(steps)) == 21  # no kill came before its run had gone on
    config = replace(KILLED, steps=steps[-1] + 3, checkpoint_every=1000)
    for _ in train(fresh(0.1), points(), config, out=out, resume=True, monitors=MONITORS):
        pass
    for _ in train(fresh(), points(), config, out=tmp_path / "whole", monitors=MONITORS):
        pass
    assert_same_run(tmp_path / "whole", out)
    files = [
        sorted(str(path.relative_to(run)) for path in run.rglob("*"))
        for run in (tmp_path / "whole", out)
    ]
    assert files[0] == files[1]  # and no temporary one
    for name in files[0]:
        if name.endswith(".safetensors"):
            assert_same(*(load_file(run / name) for run in (tmp_path / "whole", out)))


class Breaks(nn.Module):
    """A network that goes wrong at its n-th call."""

    def __init__(self, call: int, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.calls = 0
        self.call = call
        self.factor = factor

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        self.calls += 1
        return self.weight * x * (self.factor if self.calls == self.call else 1.0)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    tmp_path: Path, factor: float
):
    model = ScoreModel(Breaks(6, factor), VPSDE())
    run = train(model, points(), replace(CONFIG, checkpoint_every=2), out=tmp_path)
    with pytest.raises(FloatingPointError, match=r"loss must be finite at step 6, got .*lower"):
        list(run)
    assert state(tmp_path)["step"] == 4
    kept = load(tmp_path, network=Breaks(0, 1.0))
    assert torch.isfinite(kept.network.weight).all()
    config = replace(CONFIG, checkpoint_every=2)
    steps = train(model, points(), config, out=tmp_path, resume=True)  # it breaks once
    assert [p.step for p in steps] == [5, 6, 7, 8, 9]


def test_a_gradient_that_is_not_finite_stops_with_the_weights_unchanged(infinite_slope):
    model = ScoreModel(infinite_slope, VPSDE())
    with pytest.raises(FloatingPointError, match="gradient norm must be finite at step 1"):
        list(train(model, points(), CONFIG))
    assert torch.equal(model.network.weight, torch.zeros(2))


def test_average_is_the_closed_form_of_its_weights():
    model = fresh()
    config = replace(CONFIG, ema_decay=0.1)  # the ramp starts at .1
    weights = [nn.utils.parameters_to_vector(model.parameters()).detach().double()]
    run = train(model, points(), config)
    for _ in range(8):  # the ninth step hands the average over
        next(run)
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach().double())
    last = fresh()
    average = weights[0]
    for value in weights[1:]:
        nn.utils.vector_to_parameters(average.float(), last.parameters())
        average = 0.1 * average + 0.9 * value
    closed = 0.1**8 * weights[0] + sum(0.9 * 0.1 ** (8 - i) * weights[i] for i in range(1, 9))
    assert torch.allclose(average, closed, rtol=0, atol=1e-12)
    mean = fresh()
    module = fresh()
    nn.utils.vector_to_parameters(weights[0].float(), mean.parameters())
    for value in weights[1:]:
        nn.utils.vector_to_parameters(value.float(), module.parameters())
        update_average(mean, module, 0.1)
    got = nn.utils.parameters_to_vector(mean.parameters()).double()
    assert torch.allclose(got, closed, rtol=0, atol=1e-6)


def test_average_of_a_run_follows_its_weights(tmp_path: Path):
    config = replace(CONFIG, steps=8, schedule="constant", ema_decay=0.1)
    weights = []
    model = fresh()
    expected = nn.utils.parameters_to_vector(model.parameters()).detach().double()
    run = train(model, points(), replace(config, steps=9))
    for _ in range(8):
        next(run)
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach().double())
    for value in weights:
        expected = 0.1 * expected + 0.9 * value
    for _ in train(fresh(), points(), config, out=tmp_path):
        pass
    got = nn.utils.parameters_to_vector(load(tmp_path).parameters()).double()
    assert torch.allclose(got, expected, rtol=0, atol=1e-6)


def test_average_of_bfloat16_weights_is_kept_in_float32(tmp_path: Path):
    network = fresh().network.bfloat16()
    model = ScoreModel(network, VPSDE())
    for _ in train(model, points(), replace(CONFIG, ema_decay=0.999), out=tmp_path):
        pass
    weights = {parameter.dtype for parameter in load(tmp_path).parameters()}
    assert weights == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_decay_ramps_up_to_its_limit():
    config = replace(CONFIG, ema_decay=0.9)
    assert [ema_decay(config.ema_decay, step) for step in (1, 2, 81, 82, 500)] == [
        1 / 10,
        2 / 11,
        81 / 90,
        0.9,
        0.9,
    ]


def test_learning_rates_are_exact():
    constant = TrainingConfig(steps=12, warmup=4, learning_rate=0.2)
    assert [learning_rate(constant, step) for step in (1, 2, 3, 4, 5, 12)] == [
        0.05,
        0.1,
        0.2 * 0.75,
        0.2,
        0.2,
        0.2,
    ]
    cosine = replace(constant, schedule="cosine")
    rates = [learning_rate(cosine, step) for step in (2, 4, 6, 8, 12)]
    expected = [0.1, 0.2, 0.2 * (0.5 + math.sqrt(0.125)), 0.1, 0.0]
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-17)
    assert learning_rate(replace(constant, warmup=0), 1) == 0.2
    steps = train(fresh(), points(), replace(cosine, batch_size=4))
    assert [p.learning_rate for p in steps] == [learning_rate(cosine, k) for k in range(1, 13)]


def test_gradients_are_clipped_by_their_norm():
    for clip in (1e-3, 1e3):
        model = fresh()
        progress = next(iter(train(model, points(), replace(CONFIG, clip=clip))))
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        norm = torch.cat(gradients).norm().item()
        assert norm == pytest.approx(min(clip, progress.grad_norm), rel=1e-4)
        assert 1e-3 < progress.grad_norm < 1e3


@pytest.mark.parametrize(("rows", "batch"), [(10, 3), (10, 10), (7, 20), (1, 4)])
def test_every_epoch_visits_every_row_once(rows: int, batch: int):
    steps = 40
    stream = torch.cat([batch_rows(rows, batch, 3, step) for step in range(1, steps + 1)])
    epochs = stream[: len(stream) // rows * rows].reshape(-1, rows)
    assert torch.equal(epochs.sort(1).values, torch.arange(rows).expand_as(epochs))
    assert rows < 7 or not torch.equal(epochs[0], epochs[1])


class Records(nn.Module):
    """A conditional network that remembers the labels it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.config = {"classes": 3}
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, c: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        self.seen.append(labels.clone())
        return self.weight * x


def drawn_by(batch: Batch) -> Tensor:
    """What a loss would draw."""
    return torch.stack([batch.noise.normal(batch.x0) for _ in range(2)], 1)


def test_what_losses_draw_is_each_samples_own_however_the_batch_is_divided():
    model = fresh()
    data = points()
    objective = objective_of(TrainingConfig())
    batch = GlobalBatch.draw(objective, model, data, torch.arange(12), CONFIG, 7)
    numbered = PerSampleNoise.numbered(mix(CONFIG.seed, 16, 7), 0, 12)
    expected = torch.stack([numbered.normal(torch.empty(12, 2)) for _ in range(2)], 1)
    for count in (1, 3, 4):
        parts = [batch.part(index, count, model.device) for index in range(count)]
        assert torch.equal(torch.cat([drawn_by(part.batch) for part in parts]), expected)


def test_labels_follow_their_rows_and_drop_at_the_given_rate():
    network = Records()
    data = points()
    config = replace(CONFIG, steps=100, batch_size=100, label_dropout=0.3)
    for _ in train(ScoreModel(network, VPSDE()), data, config):
        pass
    rows = torch.cat([batch_rows(50, 100, config.seed, step) for step in range(1, 101)])
    seen = torch.cat(network.seen)
    kept = seen != -1
    assert data.labels is not None
    assert torch.equal(seen[kept], data.labels[rows][kept])
    assert abs((~kept).double().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(seen))


def test_training_reaches_the_exact_score_of_a_gaussian():
    """Relative error E‖eps_θ − eps*‖²/E‖eps*‖² below 2 % at every t from .05 to .9."""
    oracle = Gaussian(
        torch.tensor([0.4, -0.2]).double(), torch.tensor([[0.5, 0.25], [0.25, 0.3]]).double()
    )
    generator = torch.Generator().manual_seed(0)
    rows = oracle.sample(20_000, generator).float()
    model = ScoreModel(MLP(2, width=64, depth=2), VPSDE())
    config = TrainingConfig(
        steps=800, batch_size=256, learning_rate=3e-3, schedule="cosine", ema_decay=0.99
    )
    for _ in train(model, Dataset(DataSpec("gaussian", (2,), None), rows, None), config):
        pass
    exact = oracle.diffused(VPSDE())
    for t in torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64):
        x = exact.sample(4000, t, generator).float()
        with torch.no_grad():
            best = exact.eps(x, t)
            got = model.eps(x, t)
        assert (got - best).square().sum() < 0.02 * best.square().sum()


@pytest.mark.parametrize(
    ("setting", "value", "error", "message"),
    [
        ("steps", 0, ValueError, "steps must be at least 1, got 0"),
        ("steps", 2.5, TypeError, "steps must be an integer, got 2.5"),
        ("batch_size", -4, ValueError, "batch_size must be at least 1, got -4"),
        ("warmup", -1, ValueError, "warmup must be at least 0, got -1"),
        ("learning_rate", 0.0, ValueError, "learning_rate must be finite and above 0"),
        ("learning_rate", math.nan, ValueError, "learning_rate must be finite and above 0"),
        ("clip", -1.0, ValueError, "clip must be finite and above 0"),
        ("ema_decay", 1.0, ValueError, r"ema_decay must lie in \[0, 1\), got 1.0"),
        ("label_dropout", -0.1, ValueError, r"label_dropout must lie in \[0, 1\)"),
        ("weight_decay", -1.0, ValueError, "weight_decay must be finite and at least 0"),
        ("schedule", "linear", ValueError, "schedule must be one of constant, cosine"),
        ("weighting", "elbo", ValueError, "weighting must be one of perceptual, likelihood"),
        ("t_min", 0.0, ValueError, "t_min must be finite and above 0"),
        ("seed", -1, ValueError, "seed must be at least 0"),
        ("checkpoint_every", 0, ValueError, "checkpoint_every must be at least 1"),
        ("objective", "flow", ValueError, "objective must be one of denoising, vlb, .* got flow"),
        ("times", "log-norm", ValueError, "times must be one of uniform, likelihood, .*"),
        ("spacing", "even", ValueError, "spacing must be one of stratified, .* got even"),
        ("coupling", "ot", ValueError, "coupling must be one of independent, .* got ot"),
        ("uncertainty", "yes", ValueError, "uncertainty must be one of none, learned"),
        ("precision", "fp16", ValueError, "precision must be one of float32, bfloat16, float16"),
        ("chain_steps", 0, ValueError, "chain_steps must be at least 1"),
        ("accumulate", 0, ValueError, "accumulate must be at least 1"),
        ("compile", 1, TypeError, "compile must be True or False, got 1"),
        ("ema_half_lives", (0.0,), ValueError, "ema_half_lives must be finite and above 0"),
        ("ema_half_lives", (2.0, 2.0), ValueError, "ema_half_lives must differ"),
        ("ema_widths", [0.3], ValueError, "ema_widths must be at most 0.2886.* got 0.3"),
        ("snapshot_every", 5, ValueError, "snapshot_every must be 0 without ema_widths"),
        ("evaluate_every", -1, ValueError, "evaluate_every must be at least 0"),
        ("patience", 1, ValueError, "evaluate_every must be above 0 for patience"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(
    setting: str, value: object, error: type[Exception], message: str
):
    with pytest.raises(error, match=f"TrainingConfig: {message}"):
        replace(CONFIG, **{setting: value})


@pytest.mark.parametrize(
    ("model", "data", "config", "message"),
    [
        (None, None, {"batch_size": 8}, "training.batch_size must be 16 as in the run"),
        (None, None, {"seed": 6}, "training.seed must be 5 as in"),
        (None, None, {"steps": 12}, "training.steps must be 9 as in"),  # cosine: another rate
        (
            ScoreModel(MLP(2, width=16, classes=3, dropout=0.2), VESDE(0.01, 50.0)),
            None,
            {},
            "sde.beta.class must be 'LinearBeta' as in the run that is resumed, got None",
        ),
        (
            ScoreModel(MLP(2, width=32, classes=3, dropout=0.2), VPSDE()),
            None,
            {},
            "network.config.width must be 16",
        ),
        (None, points(49), {}, "dataset.crc32 must be"),
    ],
)
def test_resuming_another_run_is_refused_by_name(
    whole: Path,
    model: ScoreModel | None,
    data: Dataset | None,
    config: dict[str, int],
    message: str,
):
    changed = replace(CONFIG, **config)
    with pytest.raises(ValueError, match=message):
        train(model or fresh(), data or points(), changed, out=whole, resume=True)


def test_what_cannot_be_trained_or_written_is_refused_at_once(whole: Path, tmp_path: Path):
    with pytest.raises(FileExistsError, match="out must be a folder without a run"):
        train(fresh(), points(), CONFIG, out=whole)
    with pytest.raises(FileNotFoundError, match=r"out must hold a state\.pt to resume from"):
        train(fresh(), points(), CONFIG, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="out must be given to resume"):
        train(fresh(), points(), CONFIG, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="out must be a folder that can be written"):
        train(fresh(), points(), CONFIG, out=tmp_path / "file" / "run")
    unlabelled = replace(points(), labels=None)
    with pytest.raises(ValueError, match="dataset must have labels"):
        train(fresh(), unlabelled, CONFIG)
    with pytest.raises(ValueError, match=r"t_min must be below the SDE's horizon 1\.0, got 2\.0"):
        train(fresh(), points(), replace(CONFIG, t_min=2.0))
    with pytest.raises(TypeError, match="model must be a ScoreModel or a DirectScore, got MLP"):
        train(fresh().network, points(), CONFIG)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model must have parameters to train"):
        train(fresh().requires_grad_(requires_grad=False), points(), CONFIG)


class OwnNetwork(nn.Module):
    """A network with settings that its weights do not show, and with notes that it takes."""

    def __init__(self, scale: float = 1.0, p: float = 0.1, width: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.drop = nn.Dropout(p)
        self.size = torch.Size([width])
        self._kind = np.float32(scale)
        self.register_buffer("waves", torch.arange(3) * scale, persistent=False)
        self.calls = 0
        self.table: Tensor | None = None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        self.calls += 1
        self.table = x.detach()
        return self.drop(self.weight * x)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (
            {"p": 0.2},
            r"network\.settings\.drop\.p must be 0\.1 as .*, got 0\.2; pass the network",
        ),
        ({"width": 4}, r"network\.settings\.size must be \[3\]"),
        ({"scale": 2.0}, r"network\.settings\._kind must be 'np\.float32\(1\.0\)'"),
    ],
)
def test_resuming_with_another_network_of_ones_own_is_refused(
    tmp_path: Path, settings: dict[str, float], name: str
):
    model = ScoreModel(OwnNetwork(), VPSDE())
    run = train(model, points(), CONFIG, out=tmp_path)
    first = [next(run).loss, next(run).loss]
    run.close()
    before = (tmp_path / "state.pt").read_bytes()
    other = ScoreModel(OwnNetwork(**settings), VPSDE())
    with pytest.raises(ValueError, match=name):
        train(other, points(), CONFIG, out=tmp_path, resume=True)
    assert (tmp_path / "state.pt").read_bytes() == before
    # The same network goes on, whether it has run before or not.
    for again in (model, ScoreModel(OwnNetwork(), VPSDE())):
        run = train(again, points(), CONFIG, out=tmp_path, resume=True)
        found = next(run)
        run.close()
        assert found.step == len(first) + 1
        first.append(found.loss)
    uncut = list(train(ScoreModel(OwnNetwork(), VPSDE()), points(), CONFIG))
    assert [step.loss for step in uncut][:4] == first
    described = describe(tmp_path)["network"]["settings"]
    assert described["calls"] == described["table"] == "changes in use"
    assert described["drop.p"] == 0.1


def test_a_buffer_that_is_not_saved_is_a_setting_of_a_network():
    one, two = (network_settings(OwnNetwork(scale=scale)) for scale in (1.0, 2.0))
    assert {name for name in one if one[name] != two[name]} == {"_kind", "waves"}


def test_resuming_with_other_weights_is_refused(tmp_path: Path):
    wider = Breaks(0, 1.0)
    wider.bias = nn.Parameter(torch.zeros(2))  # weights are no settings
    for _ in train(ScoreModel(Breaks(0, 1.0), VPSDE()), points(), CONFIG, out=tmp_path):
        pass
    with pytest.raises(ValueError, match="model must fit the weights of the run that is resumed"):
        train(ScoreModel(wider, VPSDE()), points(), CONFIG, out=tmp_path, resume=True)


def test_a_fresh_run_drops_the_metrics_of_one_without_a_state(whole: Path, tmp_path: Path):
    for name in ("metrics.jsonl", "model.safetensors"):
        shutil.copy(whole / name, tmp_path / name)
    for _ in train(fresh(), points(), CONFIG, out=tmp_path):
        pass
    assert_same_run(whole, tmp_path)


def test_a_damaged_state_is_refused(whole: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    damaged = (out / "state.pt").read_bytes()[:1000]
    (out / "state.pt").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"state\.pt must be the state of a run"):
        train(fresh(), points(), CONFIG, out=out, resume=True)
    assert (out / "state.pt").read_bytes() == damaged


@pytest.mark.parametrize("room", [1, 3000, 10_000, 20_000])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path: Path, room: int):
    """Files that may grow to ``room`` bytes stand for the disk: each next write fails half-way."""
    resource = pytest.importorskip("resource")
    config = replace(KILLED, steps=9)
    out = tmp_path / "full"
    soft_and_hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = train(fresh(), points(), config, out=out, monitors=MONITORS)
    for _ in range(5):
        next(run)
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.name[0] != "."}
    assert 10_000 < len(before[out / "model.safetensors"]) < 20_000 < len(before[out / "state.pt"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, soft_and_hard[1]))
    try:
        with pytest.raises(OSError, match=r"out must take the files, .* resume") as caught:
            list(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_and_hard)
    assert "File too large in" in str(caught.value)
    assert set(out.rglob("*")) >= before.keys()
    assert not list(out.rglob(".*"))  # no temporary file
    check_files(out)
    assert state(out)["step"] == 5
    for _ in train(fresh(0.1), points(), config, out=out, resume=True, monitors=MONITORS):
        pass
    for _ in train(fresh(), points(), config, out=tmp_path / "whole", monitors=MONITORS):
        pass
    assert_same_run(tmp_path / "whole", out)


def change(out: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Rewrite a state and the configuration inside it, as earlier versions wrote them."""
    saved = torch.load(out / "state.pt", weights_only=True)
    configuration = json.loads(saved["configuration"])
    edit(saved, configuration)
    saved.pop("checksum", None)  # which they did not write
    torch.save(saved | {"configuration": json.dumps(configuration)}, out / "state.pt")


def first_release(saved: dict[str, Any], configuration: dict[str, Any]) -> None:  # noqa: ARG001
    """Leave the settings that the first release had."""
    kept = (
        "steps",
        "batch_size",
        "learning_rate",
        "weight_decay",
        "warmup",
        "schedule",
        "clip",
        "ema_decay",
        "weighting",
        "t_min",
        "label_dropout",
        "seed",
        "checkpoint_every",
        "log_every",
    )
    configuration["training"] = {name: configuration["training"][name] for name in kept}
    del configuration["class"], configuration["variance"], configuration["coupling"]
    del configuration["network"]["config"]["outputs"]
    configuration["format"] = 1


def test_a_record_without_the_newer_settings_has_their_defaults(whole: Path, tmp_path: Path):
    out = tmp_path / "run"
    run = train(fresh(), points(), CONFIG, out=out)
    for _ in range(4):
        next(run)
    run.close()  # type: ignore[attr-defined]
    change(out, first_release)
    other = replace(CONFIG, objective="sliced", weighting="perceptual")
    with pytest.raises(ValueError, match=r"training\.objective must be 'denoising' as in the run"):
        train(fresh(0.1), points(), other, out=out, resume=True)
    with pytest.raises(
        ValueError, match=r"training\.weighting must be 'likelihood' as in the run"
    ):
        train(fresh(0.1), points(), replace(CONFIG, weighting="p2"), out=out, resume=True)
    for _ in train(fresh(0.1), points(), CONFIG, out=out, resume=True):
        pass
    assert_same_run(whole, out)


def test_a_state_of_an_earlier_layout_is_refused_by_what_it_lacks(whole: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    change(out, lambda saved, _: [saved.pop(name) for name in ("averages", "notes")] and None)
    with pytest.raises(ValueError, match="one without averages, notes; load its model"):
        train(fresh(), points(), CONFIG, out=out, resume=True)


def test_the_manifest_tells_every_start_of_a_run(tmp_path: Path):
    for steps in (3, 5):
        config = replace(CONFIG, schedule="constant", steps=steps)
        for _ in train(fresh(), points(), config, out=tmp_path, resume=steps == 5):
            pass
    found = json.loads((tmp_path / "manifest.json").read_text())
    assert found["training"]["steps"] == 5
    assert found["dataset"] == json.loads(str(state(tmp_path)["configuration"]))["dataset"]
    first, second = found["sessions"]
    assert [(s["first_step"], s["step"]) for s in (first, second)] == [(0, 3), (3, 5)]
    assert first["torch"] == str(torch.__version__)
    assert first["threads"] == torch.get_num_threads()
    assert first["device"] == "cpu"
    assert first["seconds"] > 0
    assert not {socket.gethostname(), os.path.expanduser("~")} & set(map(str, first.values()))


def test_a_run_with_a_constant_rate_can_be_made_longer(tmp_path: Path):
    config = replace(CONFIG, schedule="constant", log_every=1)
    for name, steps in (("long", 12), ("grown", 9)):
        for _ in train(fresh(), points(), replace(config, steps=steps), out=tmp_path / name):
            pass
    longer = replace(config, steps=12)
    for _ in train(fresh(0.1), points(), longer, out=tmp_path / "grown", resume=True):
        pass
    assert_same_run(tmp_path / "long", tmp_path / "grown")


class Cooling(LinearSDE):
    """An SDE of one's own, with a parameter."""

    def __init__(self, speed: float) -> None:
        self.speed = speed

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.speed * t)

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-2 * self.speed * t)).sqrt()


def own_objective(t_min: float = 1e-3) -> Denoising:
    weighting = EDM(0.5)
    return Denoising(UniformTimes(), Stratified(), t_min, weighting, uncertainty=Uncertainty())


@pytest.mark.parametrize(
    ("started", "resumed", "message"),
    [
        (own_objective(), own_objective(1e-2), r"objective\.t_min must be 0\.001 as in the run"),
        (
            own_objective(),
            Sliced(UniformTimes(), Stratified(), 1e-3),
            r"objective\.class must be 'sde_diffusion\..*Denoising' as in the run",
        ),
        (own_objective(), None, r"objective\.class must be .*, got None; pass the objective that"),
        (None, own_objective(), r"objective\.class must be left out as in the run that is resum"),
    ],
)
def test_an_objective_of_ones_own_is_recorded_and_another_one_refused(
    tmp_path: Path, started: Denoising | None, resumed: Objective | None, message: str
) -> None:
    for _ in train(fresh(), points(), CONFIG, out=tmp_path, objective=started):
        pass
    record = json.loads((tmp_path / "manifest.json").read_text())
    if started is None:
        assert record["objective"] is None
        assert record["training"]["weighting"] == "likelihood"
    else:
        assert record["objective"]["class"].endswith("Denoising")
        assert record["objective"]["weighting"]["sigma_data"] == 0.5
        assert not {"objective", "weighting", "times", "t_min"} & record["training"].keys()
        shown = CliRunner().invoke(main, ["info", str(tmp_path)]).output
        assert "objective   sde_diffusion." in shown
        assert "weighting=perceptual" not in shown
    with pytest.raises(ValueError, match=message):
        train(fresh(), points(), CONFIG, out=tmp_path, resume=True, objective=resumed)
    # The same object, which has learned since, and one made alike go on.
    for again in (started, None if started is None else own_objective()):
        run = train(fresh(), points(), CONFIG, out=tmp_path, resume=True, objective=again)
        assert list(run) == []


def without_what_is_ones_own(saved: dict[str, Any], configuration: dict[str, Any]) -> None:  # noqa: ARG001
    del configuration["sde"]["speed"], configuration["objective"]


def test_another_parameter_of_an_sde_of_ones_own_is_refused(tmp_path: Path) -> None:
    def begun(speed: float, *, resume: bool) -> Iterator[object]:
        model = ScoreModel(MLP(2, width=16), Cooling(speed))
        config = replace(CONFIG, weighting="perceptual")
        return train(model, points(), config, out=tmp_path, resume=resume)

    assert len(list(begun(2.0, resume=False))) == 9
    assert json.loads((tmp_path / "manifest.json").read_text())["sde"]["speed"] == 2.0
    with pytest.raises(ValueError, match=r"sde\.speed must be 2\.0 as in the run .*, got 3\.0"):
        begun(3.0, resume=True)
    assert list(begun(2.0, resume=True)) == []
    # Version 0.1 kept its class alone, and none of the objective.
    change(tmp_path, without_what_is_ones_own)
    assert list(begun(3.0, resume=True)) == []
