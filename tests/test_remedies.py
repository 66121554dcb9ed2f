"""A remedy that an error names on the command line works when it is typed.

A row is a wrong command, the remedy it must print, and what is typed instead of what: the words
of the remedy itself, wherever it names any.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sde_diffusion.cli.main import main

TINY = "train --steps 1 --batch-size 4 --width 8 --device cpu --out new"
DRAW = "sample -n 2 --steps 2 --device cpu"
SOLVES = "compare --model ring --samples 2 --replicates 2 --reference-steps 2 --device cpu"
OWN = """
from sde_diffusion import DataSpec, GaussianMixture, VPSDE
ring = GaussianMixture.ring(8)
model = ring.diffused(VPSDE())
number = 3
"""

# wrong command, its last words; what it replaces; what is typed
ROWS = [
    (
        f"{TINY} --network multipliers=2",
        "pass for example --network multipliers=1,2",
        "multipliers=2",
        "multipliers=1,2",
    ),
    (f"{TINY} --network heads=3", "pass --network heads=1", "heads=3", "heads=1"),
    (f"{TINY} --network depth=2", "pass for example --network blocks=2", "depth=2", "blocks=2"),
    (
        f"{TINY} --data points.npy --network blocks=2",
        "pass for example --network depth=3",
        "blocks=2",
        "depth=3",
    ),
    (
        f"{TINY} --network embedding=no",
        "pass --network embedding=sinusoidal",
        "embedding=no",
        "embedding=sinusoidal",
    ),
    (f"{TINY} --width 9", "pass for example --width 32", "--width 9", "--width 32"),
    (f"{TINY} --dropout 2", "pass --dropout 0.1", "--dropout 2", "--dropout 0.1"),
    (
        f"{TINY} --data points.npy --held-out 100",
        "pass --held-out 4",
        "--held-out 100",
        "--held-out 4",
    ),
    (
        f"{TINY} --data points.npy --evaluate-every 1",
        "pass --held-out 4",
        "--data",
        "--held-out 4 --data",
    ),
    (f"{TINY} --data points.npy --conditional", "leave out --conditional", "--conditional", ""),
    (
        f"{TINY} --data points.npy --held-out 4 --patience 2",
        "pass --evaluate-every 1000",
        "--patience",
        "--evaluate-every 1000 --patience",
    ),
    (f"{TINY} --t-min 2", "pass --t-min 1e-5", "--t-min 2", "--t-min 1e-5"),
    (f"{TINY} --clip 0", "pass --clip 1.0", "--clip 0", "--clip 1.0"),
    (
        f"{TINY} --learning-rate -1",
        "pass --learning-rate 1.0",
        "--learning-rate -1",
        "--learning-rate 1.0",
    ),
    (f"{TINY} --ema-decay 2", "pass --ema-decay 0.999", "--ema-decay 2", "--ema-decay 0.999"),
    (
        f"{TINY} --ema-widths 0.9",
        "pass --ema-widths 0.05,0.1",
        "--ema-widths 0.9",
        "--ema-widths 0.05,0.1",
    ),
    (
        f"{TINY} --snapshot-every 2",
        "pass --ema-widths 0.05,0.1",
        "--snapshot",
        "--ema-widths 0.05,0.1 --snapshot",
    ),
    (f"{TINY} --accumulate 3", "pass --batch-size 3", "--batch-size 4", "--batch-size 3"),
    (
        f"{TINY} --variance learned",
        "pass --objective hybrid",
        "--variance",
        "--objective hybrid --variance",
    ),
    (f"{TINY} --objective hybrid --variance fixed", "drop --variance", "--variance fixed", ""),
    (f"{TINY} --spacing loss-aware --uncertainty learned", "drop it", "--uncertainty learned", ""),
    (f"{TINY} --weighting exact --times log-normal", "drop it", "--times log-normal", ""),
    (f"{TINY} --sde no", "pass for example --sde vp", "--sde no", "--sde vp"),
    (f"{TINY} --resume", "leave out --resume to start one", "--resume", ""),
    (f"{TINY} --device tpu", "pass --device auto", "--device tpu", "--device auto"),
    (f"{DRAW} --guidance 1", "add for example --class 7", "--guidance", "--class 7 --guidance"),
    (f"{DRAW} --class 77", "pass for example --class 9", "--class 77", "--class 9"),
    (
        f"{DRAW} --tolerance 1e-1",
        "use --steps, or --solver dormand-prince",
        "--steps 2",
        "--steps 1 --solver dormand-prince",
    ),
    (f"{DRAW} --solver hoin", "did you mean midpoint or heun?", "hoin", "heun"),
    (
        f"{DRAW} --solver zzz",
        "pass for example --solver adams-bashforth",
        "zzz",
        "adams-bashforth",
    ),
    (f"{DRAW} --solver heun:order=3", "write --solver heun", "heun:order=3", "heun"),
    (f"{DRAW} --solver unipc:q=3", "write --solver unipc:p=3", "unipc:q=3", "unipc:p=3"),
    (f"{DRAW} --solver unipc:p=9", "pass --solver unipc:p=3", "unipc:p=9", "unipc:p=3"),
    (f"{DRAW} --grid zzz", "pass for example --grid auto", "zzz", "auto"),
    (f"{DRAW} --model digitz", "did you mean digits?", "digitz", "digits"),
    (
        f"{SOLVES} --model digits --data points.npy --solver heun --nfe 4",
        "pass one --model with it",
        "--model digits",
        "",
    ),
    (
        f"{SOLVES} --model ring --solver heun --nfe 4",
        "drop the repeats",
        "--model ring",
        "",
    ),
    (
        f"{SOLVES} --solver heun --nfe 1",
        "raise the budget or drop the solver",
        "--nfe 1",
        "--nfe 2",
    ),
    ("verify --solver heun --sde zzz", "pass for example --sde vp", "zzz", "vp"),
    ("info digitz", "did you mean digits?", "digitz", "digits"),
    ("infos", "did you mean info?", "infos", "info"),
]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_remedies.py").write_text(OWN, encoding="utf-8")
    np.save("points.npy", np.random.default_rng(0).normal(size=(40, 2)))
    return tmp_path


@pytest.mark.parametrize(("wrong", "remedy", "words", "instead"), ROWS, ids=lambda v: str(v)[-40:])
def test_the_remedy_works(wrong: str, remedy: str, words: str, instead: str, there: Path) -> None:
    failed = CliRunner().invoke(main, wrong.split())
    assert failed.exit_code == 2, failed.output
    told = " ".join(failed.output.split())
    assert told.rpartition("; ")[2].startswith(remedy), told
    assert not (there / "new" / "model.safetensors").exists()
    assert words in wrong
    done = CliRunner().invoke(main, wrong.replace(words, instead, 1).split())
    assert done.exit_code == 0, done.output


@pytest.mark.usefixtures("there")
def test_numbers_with_commas_are_a_sequence() -> None:
    """What a user types first: `--network multipliers=1,2,2`."""
    for text in ("1,2,2", "[1,2,2]", "(1,2,2)"):
        done = CliRunner().invoke(
            main, f"{TINY}-{text} --network multipliers={text} --network blocks=1".split()
        )
        assert done.exit_code == 0, done.output
        shown = CliRunner().invoke(main, ["info", f"new-{text}"]).output
        assert "multipliers=[1, 2, 2]" in shown
