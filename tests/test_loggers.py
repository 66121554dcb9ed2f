"""Loggers hear what stands in metrics.jsonl, and TensorBoard reads what its logger writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    HeldOutBound,
    Logger,
    ScoreModel,
    TensorBoard,
    TrainingConfig,
    train,
)
from sde_diffusion.cli.main import main

VALUES = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
DATA = Dataset(DataSpec("points", (2,), None), VALUES, None)
CONFIG = TrainingConfig(steps=8, batch_size=4, log_every=2, evaluate_every=4, checkpoint_every=3)


class Heard(Logger):
    """Keeps everything that it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, Mapping[str, Any]]] = []

    def begin(self, step: int) -> None:
        self.events.append(("begin", step, {}))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self.events.append(("log", step, values))

    def close(self) -> None:
        self.events.append(("close", 0, {}))


def run(logger: Logger, stop: int | None = None, **options: Any) -> None:
    model = ScoreModel(MLP(2, width=8), VPSDE())
    monitors = [HeldOutBound(DATA, draws=4)]
    steps = train(model, DATA, CONFIG, monitors=monitors, loggers=[logger], **options)
    for progress in steps:
        if progress.step == stop:
            break


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_logger_hears_the_lines_of_the_metrics(tmp_path: Path) -> None:
    heard = Heard()
    run(heard, out=tmp_path)
    (first, *told, last) = heard.events
    assert first == ("begin", 0, {})
    assert last == ("close", 0, {})
    assert [{"step": step, **values} for _, step, values in told] == lines(tmp_path)
    assert [step for _, step, _ in told] == [2, 4, 4, 6, 8, 8]
    alone = Heard()
    run(alone)  # without a folder
    for (_, step, values), (_, other, expected) in zip(alone.events, heard.events, strict=True):
        assert step == other
        assert {**values, "seconds": 0} == {**expected, "seconds": 0}


def test_a_resumed_run_tells_where_it_goes_on_from(tmp_path: Path) -> None:
    run(Heard(), stop=5, out=tmp_path)
    again = Heard()
    run(again, out=tmp_path, resume=True)
    assert [(kind, step) for kind, step, _ in again.events] == [
        ("begin", 5),
        ("log", 6),
        ("log", 8),
        ("log", 8),
        ("close", 0),
    ]


def test_what_is_no_logger_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"train: loggers must be Loggers, got builtin_function"):
        run(print)  # type: ignore[arg-type]


def test_a_missing_tensorboard_is_named_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    sentence = r"the package tensorboard must be installed, .*; type pip install 'sde_diffusion\["
    with pytest.raises(ValueError, match=sentence):
        TensorBoard(tmp_path)
    out = tmp_path / "run"
    words = ["train", "--steps", "2", "--log", "tensorboard", "--out", str(out)]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 2
    assert found.stderr.count("\n") == 1
    assert "type pip install 'sde_diffusion[tensorboard]'" in found.stderr
    assert not out.exists()


def test_tensorboard_reads_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(TensorBoard(tmp_path / "tensorboard"), out=tmp_path / "run")
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = [line for line in lines(tmp_path / "run") if "loss" in line]
    losses = found.Scalars("loss")
    assert [event.step for event in losses] == [line["step"] for line in expected]
    assert [event.value for event in losses] == pytest.approx([line["loss"] for line in expected])
    assert [event.step for event in found.Scalars("evaluation/bits_per_dim")] == [4, 8]
