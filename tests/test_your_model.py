"""Every row of the table of docs/your_model.md makes the model that it says, as it is written.

What stands there in code is evaluated, on networks that are exact for data from N(0, ¼), whose
score is −x/(alpha²/4 + sigma²) at every noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from sde_diffusion import VPSDE, LinearSDE, ScoreModel, linear_betas, linspace, zero_terminal_snr
from sde_diffusion.cli.main import main

N: Final = 1000
BETAS: Final = linear_betas(N)
X: Final = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
K: Final = torch.tensor([3, 120, 480, 799, 999])
T: Final = (K.double() + 1) / N
Levels = Callable[[Tensor], tuple[Tensor, Tensor]]


def table() -> dict[str, set[str]]:
    """Return the pieces of code in the second column, by the first."""
    page = Path(__file__).resolve().parents[1] / "docs" / "your_model.md"
    rows = page.read_text(encoding="utf-8").split("|---|---|\n")[1].split("\n\n")[0]
    cells = [row.strip("| ").split(" | ") for row in rows.splitlines()]
    return {first: set(re.findall(r"`([^`]*)`", second)) for first, second in cells}


TABLE: Final = table()
NAMES: Final[dict[str, Any]] = {}
exec("import torch\nfrom sde_diffusion import *", NAMES)


class Exact(nn.Module):
    """What a network of these levels of noise predicts, at the number that it is called with."""

    def __init__(self, levels: Levels, kind: str = "eps", sign: int = 1) -> None:
        super().__init__()
        self.levels = levels
        self.kind = kind
        self.sign = sign

    def forward(self, x: Tensor, c: Tensor, **given: Tensor) -> Tensor:
        a, s = (level.to(x.dtype)[:, None] for level in self.levels(c.double()))
        mean = sum((tensor.to(x.dtype).reshape(len(x), -1) for tensor in given.values()), 0 * x)
        r = (x - a * mean) / (a**2 / 4 + s**2)
        eps, x0 = s * r, mean + a / 4 * r
        said = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -r, "flow": eps - x0}
        return self.sign * said[self.kind]


def chain(betas: Tensor = BETAS, step: float = 1) -> Levels:
    bar = torch.from_numpy(np.cumprod(1 - betas.numpy()))

    def levels(k: Tensor) -> tuple[Tensor, Tensor]:
        at = bar[(k / step).round().long()]
        return at.sqrt(), (1 - at).sqrt()

    return levels


def made(row: str, code: str, *more: str, **names: Any) -> Any:
    """Return what the code of a row makes, with more of its words inside of the call."""
    assert {code, *more} <= TABLE[row]
    call = code if "(" in code else f"ScoreModel.{code}(net, betas)"
    text = ", ".join([call.removesuffix(")"), *more]) + ")" if more else call
    return eval(text, NAMES | {"betas": BETAS} | names)


def check(model: ScoreModel, levels: Levels, t: Tensor = T, mean: Tensor | float = 0.0) -> None:
    a, s = (level[:, None] for level in levels(t))
    expected = -(X - a * mean) / (a**2 / 4 + s**2)
    assert torch.allclose(model.score(X, t), expected, rtol=1e-8, atol=1e-10)


def at_index(levels: Levels) -> Levels:
    return lambda t: levels(t * N - 1)


def timesteps(row: str) -> None:
    call = "ScoreModel.from_timesteps(net, betas)"
    check(made(row, call, net=Exact(chain())), at_index(chain()))
    check(made(row, call, 'prediction="v"', net=Exact(chain(), "v")), at_index(chain()))
    assert '"x0"' in TABLE[row]
    x0 = ScoreModel.from_timesteps(Exact(chain(), "x0"), BETAS, prediction="x0")
    check(x0, at_index(chain()))


def learned(row: str) -> None:
    class Twice(Exact):
        def forward(self, x: Tensor, c: Tensor, **given: Tensor) -> Tensor:
            return torch.cat([super().forward(x, c, **given), x.tanh()], 1)

    call = 'ScoreModel.from_timesteps(net, betas, variance="learned")'
    model = made(row, call, net=Twice(chain()))
    check(model, at_index(chain()))
    assert torch.allclose(model.fraction(X, T), 0.5 * (X.tanh() + 1))


def classes(row: str) -> None:
    """Data of the class y lie around y, and around 1000 for the label of none."""
    word = 'labels=ClassLabels(1000, null=1000, keyword="y")'
    assert {word, "model.given(labels)"} <= TABLE[row]
    labels = eval(f"dict({word})", dict(NAMES))
    model = ScoreModel.from_timesteps(Exact(chain()), BETAS, **labels)
    check(model, at_index(chain()), mean=1000.0)
    y = torch.tensor([3, 0, 999, 7, -1])
    given = eval("model.given(labels)", {"model": model, "labels": y})
    check(given, at_index(chain()), mean=torch.where(y < 0, 1000, y)[:, None].double())


def without_signal(row: str) -> None:
    betas = zero_terminal_snr(BETAS)
    assert betas[-1] == 1
    levels = chain(betas)
    net = Exact(levels, "v")
    model = made(row, 'ScoreModel.from_timesteps(net, zero_terminal_snr(betas), "v")', net=net)
    check(model, at_index(levels))


def conditions(row: str) -> None:
    text = torch.arange(5.0)[:, None].double()
    code = 'Conditioned(net, {"encoder_hidden_states": text})'
    net = made(row, code, net=Exact(chain()), text=text)
    model = ScoreModel.from_timesteps(net, BETAS)
    check(model, at_index(chain()), mean=text)


def respaced(row: str) -> None:
    assert {"from_timesteps", "sample(…, grid=linspace(1000, 250))", "timesteps="} <= TABLE[row]
    grid = linspace(1000, 250)
    kept = grid[:-1].flip(0) * N - 1
    assert torch.allclose(kept, kept.round(), atol=1e-9)
    bar = torch.cumprod(1 - BETAS, 0)[kept.round().long()]
    few = 1 - bar / torch.cat([torch.ones(1), bar[:-1]])
    model = ScoreModel.from_timesteps(Exact(chain()), few, timesteps=kept.round())
    t = torch.tensor([1, 40, 130, 200, 250]).double() / 250
    check(model, lambda t: chain(few)(250 * t - 1), t)


def rescaled(row: str) -> None:
    betas = linear_betas(250, 4e-4, 0.08)
    net = Exact(chain(betas, 4))
    word = "timesteps=torch.arange(N) * 1000 / N"
    model = made(row, "from_timesteps", word, net=net, betas=betas, N=250)
    t = torch.tensor([1, 40, 130, 200, 250]).double() / 250
    check(model, lambda t: chain(betas)(250 * t - 1), t)


def of_score_sde(row: str) -> None:
    sde = VPSDE()

    class Net(Exact):
        def __init__(self) -> None:
            super().__init__(lambda c: (sde.alpha(c / 999), sde.sigma(c / 999)))
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, c: Tensor, **given: Tensor) -> Tensor:
            return self.scale * super().forward(x, c, **given)

    net = Net()
    averages = {"decay": 0.999, "shadow_params": [torch.ones(())]}
    torch.save({"model": net.state_dict(), "ema": averages, "step": 7}, "checkpoint.pth")
    told = {
        "training": {"sde": "vpsde", "continuous": True},
        "model": {"beta_min": 0.1, "beta_max": 20.0},
        "data": {"image_size": 8, "num_channels": 3, "centered": True},
    }
    config = SimpleNamespace(to_dict=lambda: told)
    code = 'from_score_sde(net, config.to_dict(), "checkpoint.pth")'
    check(made(row, code, net=net, config=config), lambda t: (sde.alpha(t), sde.sigma(t)))


def denoisers(row: str) -> None:
    def levels(sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(sigma), sigma

    call = "ScoreModel.from_denoiser(net)"
    check(made(row, call, net=Exact(levels, "x0")), lambda t: levels(80 * t))
    check(made(row, call, 'prediction="eps"', net=Exact(levels)), lambda t: levels(80 * t))


def velocities(row: str) -> None:
    call = "ScoreModel.from_velocity(net)"
    net = Exact(lambda t: (1 - t, t), "flow")
    turned = Exact(lambda t: (t, 1 - t), "flow", sign=-1)
    thousand = Exact(lambda t: (1 - t / 1000, t / 1000), "flow")
    for words, one in (((), net), (("noise_at=0",), turned), (("scale=1000",), thousand)):
        check(made(row, call, *words, net=one), lambda t: (1 - t, t), T * 0.99)


def scores(row: str) -> None:
    sde = VPSDE()

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        return sde.alpha(t), sde.sigma(t)

    call = "ScoreModel.from_score(net, sde, lambda t: 999 * t)"
    score, eps = (Exact(lambda c: levels(c / 999), kind) for kind in ("score", "eps"))
    check(made(row, call, net=score, sde=sde), levels)
    check(made(row, call, 'prediction="eps"', net=eps, sde=sde), levels)
    times_sigma = Exact(lambda c: levels(c / 999), "eps", sign=-1)

    class Negated(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            found: Tensor = eval("-net(x, c)", {"net": times_sigma, "x": x, "c": c})
            return found

    assert "-net(x, c)" in TABLE[row]
    check(made(row, call, 'prediction="eps"', net=Negated(), sde=sde), levels)


def of_its_own_noise(row: str) -> None:
    class Cosine(LinearSDE):
        def alpha(self, t: Tensor) -> Tensor:
            return torch.cos(1.5 * t)

        def sigma(self, t: Tensor) -> Tensor:
            return torch.sin(1.5 * t)

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(1.5 * t), torch.sin(1.5 * t)

    assert {"LinearSDE", "from_score(net, sde, time, prediction=…)"} <= TABLE[row]
    net = Exact(lambda c: levels(c / 7), "v")
    model = ScoreModel.from_score(net, Cosine(), lambda t: 7 * t, prediction="v")
    check(model, levels)


def weights(row: str) -> None:
    network = nn.Linear(2, 3)
    torch.save(network.state_dict(), "net.pt")
    net = made(row, "read_weights(path).fill(net)", path="net.pt", net=nn.Linear(2, 3))
    assert torch.equal(net.weight, network.weight)
    assert "convert" in TABLE[row]
    done = CliRunner().invoke(main, ["convert", "net.pt", "net.safetensors"])
    assert done.exit_code == 0, done.output
    net = made(row, "read_weights(path).fill(net)", path="net.safetensors", net=nn.Linear(2, 3))
    assert torch.equal(net.weight, network.weight)


def of_diffusers(row: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    small = {"block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4}
    network = diffusers.UNet2DModel(8, 1, 1, add_attention=False, **small, **blocks).eval()
    scheduler = diffusers.DDIMScheduler()
    if "FOLDER" in str(TABLE[row]):
        diffusers.DDPMPipeline(network, scheduler).save_pretrained("FOLDER")
        assert "--model diffusers:FOLDER" in TABLE[row]
        model = made(row, 'load("diffusers:FOLDER")')
    else:
        code = "from_diffusers(network, scheduler)"
        model = made(row, code, network=network, scheduler=scheduler)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model.eps(x, T), network(x, K).sample, atol=1e-6)


CASES: Final[dict[str, Callable[[str], None]]] = {
    "a folder that a pipeline of diffusers": of_diffusers,
    "a network and a scheduler of diffusers": of_diffusers,
    "a DDPM's `net(x, k)`": timesteps,
    "the same with a learned variance": learned,
    "the same with class labels": classes,
    "the same with zero terminal SNR": without_signal,
    "other conditions, one for each sample": conditions,
    "a chain that its program respaced": respaced,
    "a chain whose program rescales": rescaled,
    "a network of score_sde": of_score_sde,
    "a denoiser `net(x, sigma)`": denoisers,
    "a velocity `net(x, t)`": velocities,
    "a score `net(x, c)`": scores,
    "a network of its own noise": of_its_own_noise,
    "its weights in a file of torch": weights,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy 2 warns of diffusers' tensors
@pytest.mark.parametrize("row", TABLE)
def test_a_row_makes_what_it_says(row: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (case,) = [case for start, case in CASES.items() if row.startswith(start)]
    case(row)


def test_every_case_has_its_row() -> None:
    assert len(TABLE) == len(CASES)
