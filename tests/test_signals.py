"""Series, volumes and clips, by the commands: an untrained network has a closed form."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sde_diffusion import VPSDE, describe
from sde_diffusion.cli.main import main
from sde_diffusion.nets import UNet
from sde_diffusion.nets.choices import unet_for

SHAPES = {"series": (2, 21), "clips": (1, 3, 6, 5)}


def run(*words: Any) -> Any:
    ended = CliRunner().invoke(main, [*map(str, words)])
    assert ended.exit_code == 0, ended.output
    return ended


@pytest.mark.parametrize("name", SHAPES)
def test_commands_work_on_every_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = SHAPES[name]
    rng = np.random.default_rng(0)
    data = rng.normal(size=(6, *shape)).astype(np.float32)
    np.save(f"{name}.npy", data)
    words = ("--data", f"{name}.npy", "--layout", "cl" if name == "series" else "cdhw")
    # A step so short that the network stays 0: eps = 0, whose flow is dx/dt = rate x.
    brief = ("--steps", 1, "--batch-size", 2, "--width", 8, "--learning-rate", 1e-30)
    run("train", *words, *brief, "--scale", "none", "--out", "run")
    assert describe("run")["network"]["config"]["dims"] == len(shape) - 1
    sde = VPSDE()
    t_min = 1e-5
    start, end = (float(sde.alpha(torch.tensor(t, dtype=torch.float64))) for t in (t_min, 1.0))
    shrunk = end / start

    two = ("--limit", 2, "--tolerance", 1e-3)
    run("likelihood", "--model", "run", *words, *two, "--out", "found")
    with open("found/likelihood.csv") as file:
        nats = [float(row["nats"]) for row in csv.DictReader(file)]
    x = data[:2].reshape(2, -1).astype(np.float64)
    normal = -0.5 * (shrunk * x) ** 2 - 0.5 * math.log(2 * math.pi) + math.log(shrunk)
    assert np.allclose(nats, normal.sum(1), rtol=1e-2, atol=0)

    sampled = ("--model", "run", "--solver", "ddim", "--steps", 3, "-n", 40)
    found = json.loads(run("sample", *sampled, "--out", "drawn", "--json").stdout)
    assert found["no_picture"] is None
    drawn = np.load("drawn/samples.npz")["x"] * shrunk  # the draws of the prior
    assert drawn.shape == (40, *shape)
    assert abs(drawn.std() - 1) < 5 / math.sqrt(2 * drawn.size)

    few = ("--nfe", 5, "--samples", 3, "--replicates", 2, "--reference-steps", 2)
    run("compare", "--model", "run", *words, "--solver", "ddim", *few, "--out", "compared")
    assert Path("compared/samples-run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("shape", "levels"), [((2, 16000), 5), ((1, 100), 3), ((3, 16), 2), ((1, 64, 64, 64), 4)]
)
def test_the_network_of_a_shape_sees_at_most_a_thousand_places_at_once(
    shape: tuple[int, ...], levels: int
) -> None:
    config = unet_for(shape)
    assert len(config["multipliers"]) == levels
    assert config["attention"] == [levels - 1]
    net = UNet(**config)
    places = math.prod(-(-n // 2 ** (levels - 1)) for n in shape[1:])
    assert places <= 1024
    assert net.config["channels"] == shape[0]
