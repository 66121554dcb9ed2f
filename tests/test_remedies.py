"""A remedy that an error names works when it is typed, in Python and on the command line.

A row of `ROWS` is a wrong command, the remedy it must print, and what is typed instead of what:
the words of the remedy itself, wherever it names any. A row of `remedies.txt` is a wrong line of
Python, the remedy of its error, and the right lines, in which what stands between « and » is taken
from the remedy word for word. All remedies of the package are read from its source: one that names
something to type stands in a row, or in `remedies_untyped.txt`, which says why it does not.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

from sde_diffusion.cli.main import main

TINY = "train --steps 1 --batch-size 4 --width 8 --device cpu --out new"
PUPIL = "distil --steps 1 --batch-size 4 --method progressive --device cpu --out new --teacher"
DRAW = "sample -n 2 --steps 2 --device cpu"
EVALUATE = "likelihood --limit 2 --bound elbo --times 4 --device cpu"
RESTORE = "restore --limit 1 --draws 1 --steps 1 --device cpu"
SOLVES = "compare --model ring --samples 2 --replicates 2 --reference-steps 2 --device cpu"
OWN = """
import torch
from sde_diffusion import *
ring = GaussianMixture.ring(8)
times = uniform(3)
model = ring.diffused(VPSDE())
number = 3
name, shape, levels = "points", (2,), None
net, betas = MLP(2, width=8), linear_betas(20)
silent = ScoreModel(net, VPSDE())
telling = ScoreModel(net, VPSDE(), data=DataSpec(name, shape, levels))
chain = ScoreModel.from_timesteps(net, betas, data=DataSpec(name, shape, levels))
class Moved(MLP):
    def forward(self, x, t, by):
        return super().forward(x, t) + by
conditions = Conditioned(Moved(2, width=8), {"by": times.float()[:3, None]})
conditioned = ScoreModel(conditions, VPSDE(), data=DataSpec(name, shape, levels))
told = ScoreModel(DiT(1, (1,), width=8, depth=1, text=8), VPSDE(),
    data=DataSpec(name, (1, 4), levels)).eval()
langevin = Gaussian([0.0, 0.0], torch.eye(2)).diffused(CriticallyDampedLangevin())
wild = FunctionScore(lambda x, t: -(x**3), VPSDE())
wild.data = DataSpec(name, shape, levels)
"""

# wrong command, its last words; what it replaces; what is typed
ROWS = [
    (
        f"{SOLVES} --solver ddim --nfe 2 --precision bfloat16",
        "pass --model digits",
        "--model ring",
        "--model digits",
    ),
    (f"{RESTORE} --operator blur:1 --noise 0", "pass for example --noise .05", "0", ".05"),
    (
        f"{RESTORE} --operator blur:1 --noise poisson:30",
        "pass --method plug-in, and --weighted for its weights",
        "poisson:30",
        "poisson:30 --method plug-in --weighted",
    ),
    (
        "likelihood --model own_remedies:langevin --data points.npy --device cpu",
        "pass it to sde-diffusion sample, and to hidden_parts_bound for likelihoods",
        "likelihood --model own_remedies:langevin --data points.npy",
        "sample -n 2 --steps 2 --solver heun --model own_remedies:langevin",
    ),
    (f"{TINY} --kl-weight 1", "add --autoencoder", "--kl-weight 1", "--kl-weight 1 --autoencoder"),
    (
        "info own_remedies:conditioned --data points.npy",
        "give one condition for each sample of the data, or pass --limit 3, to sample -n 3",
        "points.npy",
        "points.npy --limit 3",
    ),
    (
        f"{DRAW} --model own_remedies:conditioned".replace("-n 2", "-n 4"),
        "give one condition for each sample of the data, or pass --limit 3, to sample -n 3",
        "-n 4",
        "-n 3",
    ),
    (
        f"{TINY} --network multipliers=2",
        "pass for example --network multipliers=1,2",
        "multipliers=2",
        "multipliers=1,2",
    ),
    (f"{TINY} --network heads=3", "pass --network heads=1", "heads=3", "heads=1"),
    (f"{TINY} --network kind=vit", "pass --network kind=unet", "kind=vit", "kind=unet"),
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
    (f"{TINY} --length 3", "drop it (--length)", "--length 3", ""),
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
        "pass --learning-rate 0.001",
        "--learning-rate -1",
        "--learning-rate 0.001",
    ),
    (f"{TINY} --t-min 0", "pass --t-min 1e-05", "--t-min 0", "--t-min 1e-05"),
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
    ("distil --out new", "pass for example --teacher digits", "distil", f"{PUPIL} digits"),
    (
        f"{PUPIL} own_remedies:telling",
        "pass --data with its training data",
        "own_remedies:telling",
        "own_remedies:telling --data points.npy",
    ),
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
        "name the data it was trained on, or a model of these",
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
    (f"{DRAW} --device cuda:99", "pass --device auto or cpu", "cuda:99", "auto"),
    ("info ring --data points.npy", "leave out --data", "--data points.npy", ""),
    (
        f"{DRAW} --grid own_remedies:times",
        "leave out --steps, or name a function (sde, steps)",
        "--steps 2",
        "",
    ),
    (
        f"{TINY} --data points.npy --held-out 4 --evaluate-every 1 --patience 2 "
        "--coupling optimal-transport",
        "drop --patience",
        "--patience 2",
        "",
    ),
    (f"{TINY} --config wrong.toml", "write lines like steps = 2000", "wrong.toml", "right.toml"),
    (
        f"{RESTORE} --operator zzz",
        "pass for example --operator inpaint:.5",
        "--operator zzz",
        "--operator inpaint:.5",
    ),
    (
        f"{RESTORE} --operator inpaint:2",
        "pass for example --operator inpaint:.5",
        "--operator inpaint:2",
        "--operator inpaint:.5",
    ),
    (
        f"{RESTORE} --operator downsample:3",
        "pass --operator downsample:2",
        "--operator downsample:3",
        "--operator downsample:2",
    ),
    (
        f"{RESTORE} --operator blur:wide",
        "pass for example --operator blur:1.5",
        "--operator blur:wide",
        "--operator blur:1.5",
    ),
    (
        f"{RESTORE} --operator inpaint:.5 --method zzz",
        "pass for example --method mmps",
        "--method zzz",
        "--method mmps",
    ),
    (
        f"{RESTORE} --operator blur:1 --method repaint",
        "pass for example --method mmps",
        "--method repaint",
        "--method mmps",
    ),
    (
        f"{RESTORE} --operator inpaint:.5 --method repaint --weighted",
        "drop --weighted",
        "--weighted",
        "",
    ),
    (
        f"{DRAW} --model own_remedies:net",
        "name a model made of it, such as model = ScoreModel.from_timesteps(net, betas, "
        "data=DataSpec(name, shape, levels))",
        "own_remedies:net",
        "own_remedies:chain",
    ),
    (
        f"{DRAW} --model own_remedies:silent",
        "build it as ScoreModel(…, data=DataSpec(name, shape, levels))",
        "own_remedies:silent",
        "own_remedies:telling",
    ),
    (
        "sample -n 1 --device cpu --model own_remedies:wild --solver heun --keep-finite --steps 6",
        "pass more --steps, or another --solver",
        "--steps 6",
        "--steps 100",
    ),
    (
        f"{EVALUATE} --data eights.npy --levels 256",
        "pass --levels 17",
        "--levels 256",
        "--levels 17",
    ),
    (
        f"{EVALUATE} --data reals.npy",
        "save whole numbers from 0 to 16",
        "reals.npy",
        "eights.npy",
    ),
    (
        f"{DRAW} --model ring --class 3",
        "train one with sde-diffusion train --conditional",
        f"{DRAW} --model ring --class 3",
        f"{TINY} --conditional",
    ),
    (
        f"{DRAW} --model ring --text a",
        "train one with sde-diffusion train --conditional, on data with a text for each",
        f"{DRAW} --model ring --text a",
        f"{TINY} --data told.npz --conditional",
    ),
    (
        f"{DRAW} --model own_remedies:told --negative one",
        "add for example --text seven --guidance 1",
        "--model",
        "--text seven --guidance 1 --model",
    ),
    (
        f"{TINY.replace('new', 'old')} --data points.npy",
        "pass --resume to go on with it, or another --out",
        "--out old",
        "--out new",
    ),
    ("info digitz", "did you mean digits?", "digitz", "digits"),
    ("infos", "did you mean info?", "infos", "info"),
]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_remedies.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "wrong.toml").write_text("steps 2000", encoding="utf-8")
    (tmp_path / "right.toml").write_text("steps = 2000", encoding="utf-8")
    np.save("points.npy", np.random.default_rng(0).normal(size=(40, 2)))
    levels = np.arange(640, dtype=np.uint8).reshape(10, 1, 8, 8) % 17
    np.save("eights.npy", levels)
    np.savez("told.npz", x=levels, text=np.array(["a one"] * 10))
    np.save("reals.npy", levels / 16)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "state.pt").touch()
    return tmp_path


@pytest.mark.parametrize(("wrong", "remedy", "words", "instead"), ROWS, ids=lambda v: str(v)[-40:])
def test_the_remedy_of_a_command_works(
    wrong: str, remedy: str, words: str, instead: str, there: Path
) -> None:
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


# --- in Python ---

NAMES = """
import math
import os
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from torch import nn
from sde_diffusion import *
from sde_diffusion.coding import *
from sde_diffusion.ddpm import *
from sde_diffusion.diagnostics import *
from sde_diffusion.evaluation import *
from sde_diffusion.exchange import *
from sde_diffusion.inverse_problems import *
from sde_diffusion.likelihood import *
from sde_diffusion.likelihood.decoders import bin_centres
from sde_diffusion.models import in_precision
from sde_diffusion.objectives import *
from sde_diffusion.objectives.spacings import *
from sde_diffusion.objectives.weighting import P2, min_snr
from sde_diffusion.pictures import *
from sde_diffusion.pictures.samples import tiles
from sde_diffusion.sampling import CapturedSampler
from sde_diffusion.solvers import *
from sde_diffusion.time_distributions import *

X = 0.1 + torch.arange(8.0).reshape(4, 2) / 8
T = torch.tensor(0.5, dtype=torch.float64)
RING = GaussianMixture.ring(8).diffused(VPSDE())
FLOW = ProbabilityFlow(VPSDE(), RING)
BACK = ReverseSDE(VPSDE(), RING)
NOISE = PerSampleNoise(range(4))
NUMBERS = DataSpec("numbers", (2,), None)

def mlp(**more):
    return MLP(2, width=8, depth=1, **more)

def net():
    return ScoreModel(mlp(), VPSDE(), data=NUMBERS)

def points():
    return Dataset(NUMBERS, torch.linspace(-1, 1, 16).reshape(8, 2), None)

def grey():
    levels = torch.arange(128).reshape(8, 1, 4, 4) % 17
    return Dataset(DataSpec("grey", (1, 4, 4), 17), levels, None)

def run(model, dataset=None, *, out=None, **settings):
    names = ("resume", "monitors", "objective")
    more = {name: settings.pop(name) for name in names if name in settings}
    config = replace(settings.pop("settings", TrainingConfig()), steps=1, batch_size=4, **settings)
    return list(train(model, dataset or points(), config, out=out, **more))

def solve(solver, dynamics=FLOW, x=X, grid=None, **more):
    return integrate(dynamics, solver, x, uniform(4) if grid is None else grid, **more)

class Brown(SDE):
    def __init__(self, g):
        self.g = g
    def drift(self, x, t):
        return torch.zeros_like(x)
    def diffusion(self, x, t):
        return self.g(x, t)

class Plain(nn.Module):
    def forward(self, x, c):
        return 0.1 * x

class TakesLabels(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 2)
    def forward(self, x, c, labels):
        return 0.1 * x + self.table(labels)

class TakesY(TakesLabels):
    def forward(self, x, c, *, y):
        return super().forward(x, c, y)

def attending():
    import diffusers
    kinds = {'down_block_types': ('CrossAttnDownBlock2D',), 'mid_block_type': None}
    kinds |= {'up_block_types': ('CrossAttnUpBlock2D',)}
    few = {'block_out_channels': (4,), 'norm_num_groups': 2, 'layers_per_block': 1}
    few |= {'attention_head_dim': 2, 'cross_attention_dim': 6}
    return diffusers.UNet2DConditionModel(sample_size=8, **kinds, **few)

def plain_unet():
    import diffusers
    kinds = {'down_block_types': ('DownBlock2D',), 'up_block_types': ('UpBlock2D',)}
    few = {'block_out_channels': (4,), 'norm_num_groups': 2, 'layers_per_block': 1}
    return diffusers.UNet2DModel(sample_size=8, add_attention=False, **kinds, **few)

def pictured(sde):
    network = UNet(1, width=8, multipliers=(1,), attention=())
    return ScoreModel(network, sde, data=DataSpec('pictured', (1, 4, 4), 256)).eval()

def scheduler():
    import diffusers
    return diffusers.DDIMScheduler(20)
"""


class Row(NamedTuple):
    """A wrong line of Python, the remedy of its error, and right lines with its words marked."""

    wrong: str
    remedy: str
    right: str


def rows() -> list[Row]:
    text = (Path(__file__).parent / "remedies.txt").read_text(encoding="utf-8")
    split = re.compile(r"^; (.*)\n", re.MULTILINE)
    return [Row(*split.split(block, maxsplit=1)) for block in text.strip().split("\n\n")]


PYTHON = rows()


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(NAMES, found)
    return found


@pytest.mark.parametrize("row", PYTHON, ids=lambda row: row.wrong[:60])
def test_the_remedy_in_python_works(
    row: Row, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "diffusers" in row.right or "SolverScheduler" in row.right:
        pytest.importorskip("diffusers")
    if "import transformers" in row.right:
        pytest.importorskip("transformers")
    with pytest.raises((ValueError, TypeError, ArithmeticError, OSError)) as caught:
        exec(row.wrong, {**names})
    assert str(caught.value).endswith(f"; {row.remedy}")
    words = re.findall("«(.*?)»", row.right)
    assert all(word in row.remedy for word in words)
    exec(row.right.replace("«", "").replace("»", ""), {**names})


# --- all of them ---


@pytest.fixture
def said(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "tests"))
    return importlib.import_module("said")


def as_flags(text: str) -> str:
    """Return a remedy as the command line has it: `dropout=0.1` is `--dropout 0.1` there."""
    return re.sub(r"(\w+)=(\S+)", lambda m: f"--{m[1].replace('_', '-')} {m[2]}", text)


def test_every_remedy_is_typed(said: ModuleType, root: Path) -> None:
    typed = [row.remedy for row in PYTHON] + [row[1] for row in ROWS]
    open_ = (root / "tests" / "remedies_untyped.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in open_ if line and not line.startswith("#")]
    missing = []
    found = said.remedies(root)
    for text, place in found.items():
        ways = [re.escape(way).replace("…", ".*") for way in {text, as_flags(text)}]
        known = any(re.fullmatch(way, one) for way in ways for one in typed)
        if known == (text in listed):
            missing.append(f"{place}: {text}")
    assert missing == [], "give each a row in remedies.txt or ROWS, which types it"
    assert set(listed) <= found.keys()
