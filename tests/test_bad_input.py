"""Every mistake is one clear line on the command line, and one clear exception in Python.

A row of `MISTAKES` is one mistake: the arguments of the command line, parts of the line it must
print, the same mistake in Python, the exception it must raise and a pattern of its message. A row
leaves out the side on which the mistake cannot be made.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from sde_diffusion import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CosineBeta,
    Dataset,
    DataSpec,
    DiscreteBeta,
    Exact,
    Gaussian,
    GaussianMixture,
    Hutchinson,
    LinearBeta,
    PerSampleNoise,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    ScoreModel,
    TrainingConfig,
    UNet,
    integrate,
    karras,
    load,
    load_data,
    log_prob,
    sample,
    save_model,
    train,
    uniform,
)
from sde_diffusion.cli import _common, menu
from sde_diffusion.cli.main import main
from sde_diffusion.solvers import Ancestral, DormandPrince, EulerMaruyama, Heun, TorchDiffEq

OWN = """
import torch
from sde_diffusion import DataSpec, DiscreteBeta, GaussianMixture, LinearBeta, ScoreLike, VPSDE
from sde_diffusion.solvers import Heun

ring = GaussianMixture.ring(8)
number = 3
late = torch.tensor([1.5, 0.5], dtype=torch.float64)
unsorted = torch.tensor([1.0, 0.2, 0.5], dtype=torch.float64)
forward = torch.tensor([0.5, 1.0], dtype=torch.float64)
single = torch.tensor([1.0, 0.5])

class Picky:
    def __init__(self, order):
        self.order = order

class Blind(ScoreLike):
    sde = VPSDE()
    def __call__(self, x, t):
        return -x

class Broken(Blind):
    data = DataSpec("ring", (2,), None)
    def __call__(self, x, t):
        return x / torch.zeros_like(x) * 0

def steep():
    return VPSDE(LinearBeta(-1.0, 20.0))

def clipped():
    return VPSDE(DiscreteBeta(torch.tensor([0.5, 1.5])))
"""

X = torch.zeros(4, 2)
T = torch.tensor(0.5, dtype=torch.float64)
RING = GaussianMixture.ring(8).diffused(VPSDE())
FLOW = ProbabilityFlow(VPSDE(), RING)
NUMBERS = DataSpec("numbers", (2,), None)


def mlp() -> MLP:
    return MLP(2, width=8)


def dataset() -> Dataset:
    return Dataset(NUMBERS, torch.zeros(8, 2), None)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wrong files, and one right run and data set."""
    root = tmp_path_factory.mktemp("bad")
    (root / "file").write_text("not a folder")
    (root / "empty").mkdir()
    (root / "my_bad_objects.py").write_text(OWN)
    (root / "my_broken_module.py").write_text("import no_such_dependency\n")
    model = ScoreModel(mlp(), VPSDE(), data=NUMBERS)
    for _ in train(model, dataset(), TrainingConfig(steps=2, batch_size=4), out=root / "run"):
        pass
    whole = (root / "run" / "model.safetensors").read_bytes()
    (root / "short.safetensors").write_bytes(whole[:-10])
    save_file({"w": torch.zeros(1)}, root / "foreign.safetensors")
    (root / "torch.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    grey = DataSpec("grey", (2,), 17)
    save_model(root / "grey.safetensors", ScoreModel(mlp(), VPSDE(), data=grey), {})
    np.save(root / "points.npy", np.random.default_rng(0).normal(size=(6, 2)))
    np.save(root / "wide.npy", np.zeros((6, 3)))
    np.save(root / "nan.npy", np.array([[0.0, np.nan]] * 4))
    np.save(root / "text.npy", np.array([["a", "b"]] * 4))
    np.save(root / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(root / "row.npy", np.zeros(5))
    np.save(root / "bytes.npy", np.full((4, 2), 3, np.uint8))
    (root / "magic-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x0D03, 1, 2, 2) + bytes(4))
    (root / "short-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x0803, 2, 2, 2) + bytes(5))
    (root / "mixed").mkdir()
    for size in (4, 5):
        Image.new("L", (size, size)).save(root / "mixed" / f"{size}.png")
    return root


@dataclass(frozen=True)
class Mistake:
    """One mistake, on the command line and in Python; {there} is the folder of the fixture."""

    name: str
    line: str | None = None
    says: tuple[str, ...] = ()
    call: Callable[[Path], object] | None = None
    error: type[Exception] = ValueError
    match: str = ""


SAMPLE = "sample --model ring -n 2 --out {there}/out "
LIKELIHOOD = "likelihood --model ring --data {there}/points.npy --out {there}/out "
TRAIN = "train --data {there}/points.npy --steps 2 --batch-size 4 --out {there}/fresh "

MISTAKES = [
    # --- names ---
    Mistake(
        "unknown solver",
        SAMPLE + "--solver huen",
        ("a name of `sde-diffusion solvers`, ", "'huen'", "did you mean heun?"),
        lambda _: TorchDiffEq("huen"),
        ValueError,
        "method must be one of euler, .* got huen",
    ),
    Mistake(
        "unknown torchdiffeq method",
        SAMPLE + "--solver torchdiffeq:dopri6",
        ("method must be one of", "got dopri6"),
        lambda _: menu.solver("torchdiffeq:"),
        ValueError,
        "method must be one of",
    ),
    Mistake(
        "unknown SDE",
        TRAIN + "--sde vpp",
        ("one of vp, vp-cosine, ddpm", "did you mean vp?"),
        lambda _: ScoreModel(mlp(), "vpp"),  # type: ignore[arg-type]
        TypeError,
        "sde must be a LinearSDE, got str",
    ),
    Mistake(
        "unknown SDE of the oracle",
        SAMPLE + "--model ring:vw",
        ("did you mean vp or ve",),
        lambda _: GaussianMixture.ring(8).diffused("ve"),  # type: ignore[arg-type]
        TypeError,
        "sde must be a LinearSDE or a MatrixLinearSDE, got str",
    ),
    Mistake(
        "unknown grid",
        SAMPLE + "--grid karas",
        ("did you mean karras?",),
        lambda _: karras("karas", 5),  # type: ignore[arg-type]
        TypeError,
        "sde must be a LinearSDE, got str",
    ),
    Mistake(
        "unknown model",
        SAMPLE + "--model digit",
        ("'digit'", "ring, ring:SDE", "the path of a checkpoint"),
        lambda _: load("digit"),
        FileNotFoundError,
        "got 'digit'; check the spelling",
    ),
    Mistake(
        "unknown data",
        "train --data digitz --out {there}/fresh",
        ("'digitz'", "be 'digits'"),
        lambda _: load_data("digitz"),
        FileNotFoundError,
        "be 'digits', an IDX .*'digitz'",
    ),
    Mistake(
        "unknown split",
        LIKELIHOOD + "--split valid",
        ("'valid'", "'test'"),
        lambda _: load_data("digits", "valid"),
        ValueError,
        "train, test or all, got valid",
    ),
    Mistake(
        "unknown prediction",
        TRAIN + "--prediction noise",
        ("'noise'", "'eps'"),
        lambda _: ScoreModel(mlp(), VPSDE(), "noise"),
        ValueError,
        "one of eps, x0, v",
    ),
    Mistake(
        "unknown weighting",
        TRAIN + "--weighting snr",
        ("'snr'", "'min-snr'"),
        lambda _: TrainingConfig(weighting="snr"),
        ValueError,
        "one of perceptual, likeli",
    ),
    Mistake("unknown command", "smaple", ("No such command 'smaple'; did you mean sample?",)),
    Mistake("a command like no other", "draw", ("choose train, distil, sample, likelihood",)),
    Mistake("unknown option", SAMPLE + "--step 3", ("No such option", "--steps")),
    Mistake(
        "points for pictures",
        "compare --model mnist --data {there}/points.npy --out {there}/out",
        ("data must have samples of the model's shape (1, 28, 28), got",),
    ),
    Mistake(
        "guidance to nothing",
        SAMPLE + "--model digits --guidance 2",
        ("guidance must go with a class to guide to, got 2.0; add for example --class 7",),
    ),
    Mistake(
        "a model named twice",
        "compare --model ring --model ring --out {there}/out",
        ("--model: name must be given once, got ring, ring",),
    ),
    # --- objects of your own ---
    Mistake(
        "no such module",
        SAMPLE + "--solver my_bad_objekts:x",
        ("my_bad_objekts", "spelling"),
        lambda _: menu.solver("my_bad_objekts:x"),
        ValueError,
        "must name a module",
    ),
    Mistake(
        "broken module",
        SAMPLE + "--solver my_broken_module:x",
        ("my_broken_module must import", "No module named 'no_such_dependency'"),
    ),
    Mistake(
        "no such attribute",
        SAMPLE + "--solver sde_diffusion.solvers:Hune",
        ("no 'Hune' there", "did you mean Heun?"),
        lambda _: menu.solver("sde_diffusion.solvers:Hune"),
        ValueError,
        "mean Heun",
    ),
    Mistake(
        "not a solver",
        SAMPLE + "--solver my_bad_objects:number",
        ("my_bad_objects:number must be a solver, got int",),
        lambda _: integrate(FLOW, 3, X, uniform(4)),  # type: ignore[arg-type]
        TypeError,
        "solver must be a solver object, got int",
    ),
    Mistake(
        "a class that needs arguments",
        SAMPLE + "--solver my_bad_objects:Picky",
        ("must need no arguments", "'order'"),
        lambda _: integrate(FLOW, Heun, X, uniform(4)),  # type: ignore[arg-type]
        TypeError,
        "solver object, got Heun; pass for example Heun.., with its brackets",
    ),
    Mistake(
        "not an SDE",
        TRAIN + "--sde my_bad_objects:number",
        ("be a LinearSDE, got int",),
        lambda _: ReverseSDE(3, RING),
        TypeError,
        "sde must be an SDE, got int",
    ),  # type: ignore[arg-type]
    Mistake(
        "not a model",
        SAMPLE + "--model my_bad_objects:ring",
        ("must be a ScoreLike", "got GaussianMixture"),
        lambda _: sample(GaussianMixture.ring(8), Heun(), (2, 2)),  # type: ignore[arg-type]
        TypeError,
        r"be a ScoreLike of a LinearSDE or .*SDE, got GaussianMixture; .*diffused\(sde\)",
    ),
    Mistake(
        "a model that does not tell its shape",
        SAMPLE + "--model my_bad_objects:Blind",
        ("tell the shape of its data",),
    ),
    Mistake(
        "not a grid",
        SAMPLE + "--grid my_bad_objects:number",
        ("be a torch.Tensor, got int",),
        lambda _: integrate(FLOW, Heun(), X, [1.0, 0.5]),  # type: ignore[arg-type]
        TypeError,
        "grid must be a torch.Tensor, got list",
    ),
    # --- grids and times ---
    Mistake(
        "time beyond the horizon",
        SAMPLE + "--grid my_bad_objects:late",
        ("lie in [0, 1], got 1.5",),
        lambda _: integrate(ProbabilityFlow(RectifiedFlow(), RING.score), Heun(), X, uniform(4)),
        ValueError,
        r"have alpha above 0 where the model gives score.* start the grid at sde.horizon",
    ),
    Mistake(
        "unsorted grid",
        SAMPLE + "--grid my_bad_objects:unsorted",
        ("strictly monotone", "0.2, 0.5 at places 1, 2"),
        lambda _: integrate(FLOW, Heun(), X, torch.tensor([1.0, 0.5, 0.5]).double()),
        ValueError,
        "0.5, 0.5 at places 1, 2; sort it",
    ),
    Mistake(
        "float32 grid",
        SAMPLE + "--grid my_bad_objects:single",
        ("float64 on the CPU, got torch.float32",),
        lambda _: integrate(FLOW, Heun(), X, uniform(4).float()),
        TypeError,
        "be float64",
    ),
    Mistake(
        "grid with NaN",
        call=lambda _: integrate(FLOW, Heun(), X, torch.tensor([1.0, float("nan"), 0.5]).double()),
        match="strictly monotone and finite",
    ),
    Mistake(
        "likelihood against the time",
        call=lambda _: log_prob(X, FLOW, Heun(), grid=uniform(4)),
        match="from the data .* to the prior, .* grid.flip",
    ),
    Mistake(
        "sampling against the time",
        SAMPLE + "--grid my_bad_objects:forward",
        ("run from noise (t near 1) to data, got 0.5 … 1",),
        lambda _: sample(RING, Heun(), (2, 2), grid=uniform(4).flip(0)),
        ValueError,
        r"from noise \(t near 1\) to data, got 0.001 … 1; reverse it",
    ),
    Mistake(
        "another number of steps than the grid's",
        SAMPLE + "--steps 3 --grid my_bad_objects:forward",
        ("have the 3 steps of --steps, got 1",),
    ),
    Mistake(
        "an ancestral step against the time",
        call=lambda _: integrate(
            ReverseSDE(VPSDE(), RING),
            Ancestral(),
            X,
            uniform(4).flip(0),
            noise=PerSampleNoise(range(4)),
        ),
        match="run from noise .*grid.flip",
    ),
    Mistake(
        "zero steps",
        SAMPLE + "--steps 0",
        ("'--steps'", "0 is not in the range x>=1"),
        lambda _: uniform(0),
        ValueError,
        "steps must be at least 1, got 0",
    ),
    Mistake(
        "steps and grid",
        call=lambda _: sample(RING, Heun(), (2, 2), steps=3, grid=uniform(3)),
        match="steps, grid must not be given together",
    ),
    Mistake("empty interval", call=lambda _: uniform(3, 0.5, 0.5), match="two different times"),
    # --- solvers ---
    Mistake(
        "SDE solver for a likelihood",
        LIKELIHOOD + "--solver ancestral",
        ("be a solver of any ODE", "got ancestral", "dormand-prince"),
        lambda _: integrate(ReverseSDE(VPSDE(), RING), Heun(), X, uniform(4)),  # type: ignore[misc]
        TypeError,
        r"Heun: dynamics must be .* ODE, got ReverseSDE; pass ProbabilityFlow\(",
    ),
    Mistake(
        "ODE for an SDE solver",
        call=lambda _: integrate(FLOW, Ancestral(), X, uniform(4)),  # type: ignore[misc]
        error=TypeError,
        match=r"kind ReverseSDE, got ProbabilityFlow; pass ReverseSDE\(",
    ),
    Mistake(
        "no noise",
        call=lambda _: integrate(ReverseSDE(VPSDE(), RING), EulerMaruyama(), X, uniform(4)),
        error=TypeError,
        match="noise must be given for a solver that draws",
    ),
    Mistake(
        "negative tolerance",
        SAMPLE + "--solver dormand-prince --tolerance -1",
        ("rtol must be above 0, got -1.0",),
        lambda _: DormandPrince(-1.0),
        ValueError,
        "rtol must be above 0, got -1.0",
    ),
    Mistake(
        "tolerance below the rounding of the states",
        SAMPLE + "--solver dormand-prince --tolerance 1e-10",
        ("rtol, atol must allow more than the rounding of x", "torch.float32, got 1e-10, 1e-10"),
        lambda _: integrate(FLOW, DormandPrince(1e-10, 1e-10), X + 1, uniform(1)),
        ValueError,
        "the rounding of x, 5.96e-08 of it in torch.float32, got 1e-10, 1e-10; raise them",
    ),
    Mistake(
        "tolerance that is no number",
        SAMPLE + "--solver torchdiffeq:dopri5 --tolerance nan",
        ("rtol must be above 0, got nan",),
        lambda _: TorchDiffEq("dopri5", float("nan")),
        ValueError,
        "rtol must be above 0",
    ),
    Mistake(
        "tolerance for fixed steps",
        SAMPLE + "--solver heun --tolerance 1e-3",
        ("be left out for a solver with fixed steps", "--steps"),
        lambda _: menu.solver("heun", 1e-3),
        ValueError,
        "be left out",
    ),
    Mistake(
        "a score that is not finite",
        SAMPLE + "--model my_bad_objects:Broken",
        ("x must stay finite", "at step 1 "),
        lambda _: integrate(
            ProbabilityFlow(VPSDE(), lambda x, _: x / 0), Heun(), X + 1, uniform(4)
        ),
        FloatingPointError,
        "NaN or infinity at step 1 ",
    ),
    # --- states and coefficients ---
    Mistake(
        "data of another shape",
        LIKELIHOOD + "--data {there}/wide.npy",
        ("the model's shape (2,), got (3,)",),
        lambda _: RING(torch.zeros(4, 3), T),
        ValueError,
        r"event shape \(2,\), got \(3,\)",
    ),
    Mistake(
        "no batch axis", call=lambda _: RING(torch.zeros(2), T), match=r"shape \(B, \*event\)"
    ),
    Mistake(
        "integer state",
        call=lambda _: RING(torch.zeros(4, 2, dtype=torch.int64), T),
        error=TypeError,
        match="floating-point dtype, got torch.int64",
    ),
    Mistake(
        "wrong number of times",
        call=lambda _: RING(X, torch.zeros(3).double() + 0.5),
        match=r"shape \(\) or \(4,\) .* got \(3,\)",
    ),
    Mistake(
        "noise of another shape",
        call=lambda _: VPSDE().perturb(X, T, torch.zeros(4, 3)),
        match=r"eps must have the shape \(4, 2\) of x0, got \(4, 3\)",
    ),
    Mistake(
        "noise for another batch",
        call=lambda _: PerSampleNoise([1, 2]).normal(X),
        match="one row for each of the 2 seeds",
    ),
    Mistake(
        "negative beta",
        TRAIN + "--sde my_bad_objects:steep",
        ("0 < low <= high, got -1.0, 20.0",),
        lambda _: LinearBeta(-1.0, 20.0),
        ValueError,
        "satisfy 0 < low <= high",
    ),
    Mistake(
        "beta above one",
        TRAIN + "--sde my_bad_objects:clipped",
        ("betas (at k = 2) must lie in (0, 1), but for a last one of 1, got 1.5",),
        lambda _: DiscreteBeta(torch.tensor([0.5, 1.5])),
        ValueError,
        "at k = 2",
    ),
    Mistake("cosine offset", call=lambda _: CosineBeta(s=0.0), match="s must be above 0"),
    Mistake(
        "sigmas the wrong way round",
        call=lambda _: VESDE(50.0, 0.01),
        match="0 < sigma_min < sigma_max, got 50.0, 0.01",
    ),
    Mistake("sigma below the end", call=lambda _: EDMSDE(1e-3), match="be above 0.002"),
    Mistake(
        "covariance that is none",
        call=lambda _: Gaussian(torch.zeros(2), -torch.eye(2)),
        match="positive definite, got the eigenvalue -1",
    ),
    # --- numbers ---
    Mistake(
        "negative batch",
        SAMPLE + "--batch-size -1",
        ("'--batch-size'", "-1 is not in the"),
        lambda _: sample(RING, Heun(), (-1, 2)),
        ValueError,
        "shape must be at least 1",
    ),
    Mistake(
        "no samples",
        SAMPLE + "-n 0",
        ("'--number'", "0 is not in the range"),
        lambda _: sample(RING, Heun(), (0, 2)),
        ValueError,
        "shape must be at least 1, got 0",
    ),
    Mistake(
        "text for a number",
        SAMPLE + "-n many",
        ("'many' is not a valid integer",),
        lambda _: sample(RING, Heun(), ("2", 2)),  # type: ignore[arg-type]
        TypeError,
        "shape must be an integer",
    ),
    Mistake(
        "negative seed",
        SAMPLE + "--seed -1",
        ("'--seed'", "-1 is not in the range"),
        lambda _: sample(RING, Heun(), (2, 2), seed=-1),
        ValueError,
        "seed must be at leas",
    ),
    Mistake(
        "no probes",
        LIKELIHOOD + "--probes 0",
        ("'--probes'", "0 is not in the range"),
        lambda _: Hutchinson(0),
        ValueError,
        "probes must be at least 1, got 0",
    ),
    Mistake("no memory", call=lambda _: Exact(memory=0), match="memory must be at least 1, got 0"),
    Mistake(
        "no limit",
        LIKELIHOOD + "--limit 0",
        ("'--limit'", "0 is not in the range"),
        lambda _: load_data("digits", limit=0),
        ValueError,
        "limit must be at least 1, got 0",
    ),
    Mistake(
        "negative learning rate",
        TRAIN + "--learning-rate -1",
        ("learning_rate must be finite and above 0, got -1.0",),
        lambda _: TrainingConfig(learning_rate=-1.0),
        ValueError,
        "learning_rate must be",
    ),
    Mistake(
        "ema of one",
        TRAIN + "--ema-decay 1",
        ("ema_decay must lie in [0, 1), got 1.0",),
        lambda _: TrainingConfig(ema_decay=1.0),
        ValueError,
        r"lie in \[0, 1\)",
    ),
    Mistake(
        "dropout above one",
        TRAIN + "--dropout 2",
        ("dropout must", "got 2.0"),
        lambda _: MLP(2, dropout=2.0),
        ValueError,
        "dropout must .* got 2.0",
    ),
    Mistake(
        "width that has no heads",
        "train --width 31 --out {there}/fresh",
        ("--width", "be even for a U-Net, got 31"),
        lambda _: UNet(1, width=31),
        ValueError,
        "heads must divide",
    ),
    # --- data ---
    Mistake(
        "NaN data",
        LIKELIHOOD + "--data {there}/nan.npy",
        ("nan.npy must hold finite",),
        lambda there: load_data(there / "nan.npy"),
        ValueError,
        "of 8 that are not, the first nan at",
    ),
    Mistake(
        "text data",
        LIKELIHOOD + "--data {there}/text.npy",
        ("integers or floats", "<U1"),
        lambda there: load_data(there / "text.npy"),
        ValueError,
        "integers or floats",
    ),
    Mistake(
        "pickled data",
        LIKELIHOOD + "--data {there}/objects.npy",
        ("objects.npy must hold integers or floats, got dtype object",),
        lambda there: load_data(there / "objects.npy"),
        ValueError,
        "integers or floats",
    ),
    Mistake(
        "one row of numbers",
        LIKELIHOOD + "--data {there}/row.npy",
        ("at least two axes",),
        lambda there: load_data(there / "row.npy"),
        ValueError,
        r"two axes, got \(5,\)",
    ),
    Mistake(
        "wrong magic number",
        LIKELIHOOD + "--data {there}/magic-idx3-ubyte",
        ("magic number 0x00000803 of images, got 0x00000d03",),
        lambda there: load_data(there / "magic-idx3-ubyte"),
        ValueError,
        "got 0x00000d03",
    ),
    Mistake(
        "truncated IDX",
        LIKELIHOOD + "--data {there}/short-idx3-ubyte",
        ("be 24 bytes long by its header, got 21",),
        lambda there: load_data(there / "short-idx3-ubyte"),
        ValueError,
        "24 bytes long",
    ),
    Mistake(
        "images of mixed sizes",
        TRAIN + "--data {there}/mixed",
        ("5.png", "size"),
        lambda there: load_data(there / "mixed"),
        ValueError,
        "size",
    ),
    Mistake(
        "empty folder",
        TRAIN + "--data {there}/empty",
        ("empty must hold",),
        lambda there: load_data(there / "empty"),
        ValueError,
        "empty must hold",
    ),
    Mistake(
        "another kind of file",
        TRAIN + "--data {there}/file",
        ("an IDX image file",),
        lambda there: load_data(there / "file"),
        ValueError,
        "an IDX image file",
    ),
    Mistake(
        "test part of a file",
        LIKELIHOOD + "--split test",
        ("has no test part",),
        lambda there: load_data(there / "points.npy", "test"),
        ValueError,
        "no test part",
    ),
    Mistake(
        "data of another scaling",
        LIKELIHOOD + "--model {there}/grey.safetensors --data {there}/bytes.npy --levels 256",
        ("the model's 17 grey levels, got 256; pass --levels 17",),
    ),
    Mistake(
        "levels below the data",
        LIKELIHOOD + "--data {there}/bytes.npy --levels 2",
        ("integers from 0 to 1, got 3 … 3; pass levels=4, on the command line --levels 4",),
        lambda there: load_data(there / "bytes.npy", levels=2),
        ValueError,
        "pass levels=4",
    ),
    Mistake(
        "undequantized data",
        call=lambda _: log_prob(
            load_data("digits", limit=4).centred().flatten(1), FLOW, Heun(), levels=17
        ),
        match="be dequantized, got values on the 17 levels only",
    ),
    # --- checkpoints ---
    Mistake(
        "missing checkpoint",
        "info {there}/nowhere.safetensors",
        ("nowhere.safetensors",),
        lambda there: load(there / "nowhere"),
        FileNotFoundError,
        "nowhere'; check the spell",
    ),
    Mistake(
        "folder without a run",
        "info {there}/empty",
        ("be a file, a run folder",),
        lambda there: load(there / "empty"),
        FileNotFoundError,
        "be a file, a run folder",
    ),
    Mistake(
        "truncated checkpoint",
        SAMPLE + "--model {there}/short.safetensors",
        ("short.safetensors must be a whole .safetensors file", "download it again"),
        lambda there: load(there / "short.safetensors"),
        ValueError,
        "a whole .safetensors",
    ),
    Mistake(
        "foreign safetensors",
        "info {there}/foreign.safetensors",
        ("save_model",),
        lambda there: load(there / "foreign.safetensors"),
        ValueError,
        "that save_model wri",
    ),
    Mistake(
        "another format",
        "info {there}/torch.safetensors",
        ("a whole .safetensors file",),
        lambda there: load(there / "torch.safetensors"),
        ValueError,
        "a whole .safetensors",
    ),
    Mistake(
        "class of a model without classes",
        SAMPLE + "--model {there}/run --class 3",
        ("be left out for a model without classes", "--conditional"),
    ),
    Mistake("class of an oracle", SAMPLE + "--class 0", ("model without classes, got 0",)),
    Mistake(
        "model in training",
        call=lambda _: sample(ScoreModel(mlp(), VPSDE()).train(), Heun(), (2, 2)),
        match="evaluation mode, .*model.eval",
    ),
    # --- runs ---
    Mistake(
        "a run is there",
        "train --data {there}/points.npy --out {there}/run",
        ("be a folder without a run", "--resume"),
        lambda there: train(
            ScoreModel(mlp(), VPSDE()), dataset(), TrainingConfig(steps=2), out=there / "run"
        ),
        FileExistsError,
        "without a run, .*resume=True",
    ),
    Mistake(
        "no run to resume",
        "train --resume --out {there}/empty",
        ("be the folder of a run",),
        lambda there: train(
            ScoreModel(mlp(), VPSDE()),
            dataset(),
            TrainingConfig(steps=2),
            out=there / "empty",
            resume=True,
        ),
        FileNotFoundError,
        "hold a state.pt",
    ),
    Mistake(
        "resumed with other data",
        "train --resume --out {there}/run",
        ("have the model's shape (2,), got (1, 8, 8); name the data it was trained on",),
    ),
    Mistake(
        "resumed with another setting",
        "train --data {there}/points.npy --resume --out {there}/run --seed 9",
        ("as in the run that is resumed",),
        lambda there: train(
            ScoreModel(mlp(), VPSDE(), data=NUMBERS),
            dataset(),
            TrainingConfig(steps=2, batch_size=4, seed=9),
            out=there / "run",
            resume=True,
        ),
        ValueError,
        "training.seed must be 0 as in the run that is resumed, got 9",
    ),
    Mistake(
        "classes of data without labels",
        TRAIN + "--conditional",
        ("have labels, got none",),
        lambda _: train(
            ScoreModel(MLP(2, width=8, classes=3), VPSDE()), dataset(), TrainingConfig(steps=2)
        ),
        ValueError,
        "have labels for a network with classes",
    ),
    # --- output and devices ---
    Mistake(
        "output below a file",
        SAMPLE + "--out {there}/file/out",
        ("be a folder that can be written", "file/out"),
        lambda there: train(
            ScoreModel(mlp(), VPSDE()),
            dataset(),
            TrainingConfig(steps=2),
            out=there / "file" / "out",
        ),
        OSError,
        "be a folder that can be written",
    ),
    Mistake(
        "likelihoods below a file",
        LIKELIHOOD + "--out {there}/file",
        ("be a folder that can be written",),
        lambda there: save_model(there / "file" / "m.safetensors", ScoreModel(mlp(), VPSDE())),
        OSError,
        "Not a directory",
    ),
    Mistake(
        "a device that is none",
        SAMPLE + "--device gpu",
        ("auto, cpu, cuda or", "got gpu"),
        lambda _: _common.resolve_device("cuda:x"),
        ValueError,
        "got cuda:x",
    ),
    Mistake(
        "a GPU that is not there",
        SAMPLE + "--device cuda:99",
        ("cuda:99 with", "GPU here"),
        lambda _: _common.resolve_device("cuda:99"),
        ValueError,
        "--device auto or cpu",
    ),
]


def name_of(mistake: Mistake) -> str:
    return mistake.name


@pytest.fixture
def at_home(there: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the current one, from which a user's modules are imported."""
    monkeypatch.chdir(there)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return there


def test_there_are_many_mistakes_and_each_has_a_name() -> None:
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 25


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.line is not None], ids=name_of)
def test_a_mistake_on_the_command_line_is_one_line(at_home: Path, mistake: Mistake) -> None:
    assert mistake.line is not None
    arguments = [word.format(there=at_home) for word in mistake.line.split()]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)  # no traceback
    *before, line = result.stderr.rstrip("\n").split("\n")
    # click says how a command is called before it says what is wrong with the call.
    assert all(text.startswith(("Usage: ", "Try ")) or not text for text in before), result.stderr
    assert line.startswith("Error: ")
    for part in mistake.says:
        assert part in line
    assert not (at_home / "out").exists() or not any((at_home / "out").iterdir())
    assert not (at_home / "fresh").exists()


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.call is not None], ids=name_of)
def test_a_mistake_in_python_is_an_exception_that_says_what_to_do(
    there: Path, mistake: Mistake
) -> None:
    assert mistake.call is not None
    with pytest.raises(mistake.error, match=mistake.match) as caught:
        mistake.call(there)
    if caught.type is not NotADirectoryError:  # the system's own words
        # <what>: <argument> must <rule>, got <value>; <remedy>
        assert re.fullmatch(r"(?s).+: .+ must .+(, got .+)?; .+", str(caught.value))


def test_the_program_itself_ends_with_code_2_and_one_line(there: Path) -> None:
    command = [sys.executable, "-m", "sde_diffusion.cli", "sample", "--solver", "huen"]
    ended = subprocess.run(command, cwd=there, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(
        "Error: --solver: name must be a name of `sde-diffusion solvers`"
    )
