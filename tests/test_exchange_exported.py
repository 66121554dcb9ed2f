"""A folder that we write opens in diffusers and gives our samples."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from sde_diffusion import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    DataSpec,
    LinearBeta,
    LinearSDE,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    UNet,
    integrate,
    lattice,
    leading,
    load,
    read_weights,
    save_model,
    trailing,
)
from sde_diffusion.models.conditioned import Labelled
from sde_diffusion.solvers import DDIM, AngularAdams

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
from sde_diffusion.exchange import SolverScheduler, save_diffusers  # noqa: E402  (after the skip)
from sde_diffusion.exchange.exported import betas_of  # noqa: E402

DATA = DataSpec("tiny", (1, 8, 8), 17)
EXACT = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def network(**settings):
    """A U-Net whose weights are all random, those of the last layer too."""
    made = UNet(1, 8, (1, 2), 1, (1,), 2, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return made


def off(one, other):
    return float((one - other).abs().max())


MODELS = {
    "vp, v": lambda: ScoreModel(network(), VPSDE(), "v", data=DATA),
    "sub-vp, x0": lambda: ScoreModel(network(), SubVPSDE(), "x0", data=DATA),
    "flow": lambda: ScoreModel(network(), RectifiedFlow(), "flow", data=DATA),
    "digits": lambda: load("digits"),
    "ve, edm": lambda: ScoreModel(network(), VESDE(), "edm", sigma_data=0.4, data=DATA),
    "edm, learned": lambda: ScoreModel(
        network(outputs=2), EDMSDE(5.0), "edm", data=DATA, variance="learned"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_pipeline_opens_the_folder_and_gives_our_samples(name, tmp_path) -> None:
    model = MODELS[name]().eval()
    steps = {"sub-vp, x0": 50, "ve, edm": 100, "flow": 100}.get(name, 1000)
    save_diffusers(model, tmp_path, steps=steps)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def pictures(n):
        found = pipeline(
            2, torch.Generator().manual_seed(4), num_inference_steps=n, output_type="np"
        )
        return torch.as_tensor(found.images)

    def ours(solver, grid):
        x = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(4))
        radius = torch.hypot(model.sde.alpha(grid[0]), model.sde.sigma(grid[0]))
        with torch.no_grad():
            flow = ProbabilityFlow(model.sde, model)
            x = integrate(flow, solver, x * float(radius), grid).x
        return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    expected = ours(DDIM(), leading(steps, 5))
    assert float(((expected > 0) & (expected < 1)).double().mean()) > 0.5  # not all clipped
    assert off(pictures(5), expected) < EXACT
    if name == "flow":
        return  # its t = 1 is all noise, where the lattice of a SolverScheduler would start
    pipeline.scheduler = SolverScheduler.from_config(
        pipeline.scheduler.config, solver=AngularAdams(), grid="trailing"
    )
    assert off(pictures(5), ours(AngularAdams(), trailing(steps, 5))) < EXACT


def test_the_network_takes_labels_and_times_of_each_sample(tmp_path) -> None:
    model = ScoreModel(network(classes=4), VESDE(), data=DATA).eval().double()
    save_diffusers(model, tmp_path, steps=50)
    exported = diffusers.DDIMPipeline.from_pretrained(tmp_path).unet.double()
    y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([3, -1])
    k = torch.tensor([0, 49])
    t = (k.double() + 1) / 50
    radius = torch.hypot(model.sde.alpha(t), model.sde.sigma(t)).reshape(2, 1, 1, 1)
    with torch.no_grad():
        expected = model.given(labels).eps(radius * y, t)
        assert off(exported(y, k, class_labels=labels).sample, expected) < 1e-12
        assert off(exported(y, k).sample, model.eps(radius * y, t)) < 1e-12
        assert off(exported(y, k, labels, return_dict=False)[0], expected) < 1e-12


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE(), SubVPSDE()])
def test_the_betas_have_the_signal_of_the_lattice(sde) -> None:
    t = lattice(50).flip(0)
    signal = sde.alpha(t) ** 2 / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
    found = torch.cumprod(1 - betas_of(sde, 50), 0)
    assert off(found / signal[1:], torch.ones(50)) < 1e-9


def test_noise_that_their_float32_does_not_resolve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.21e-08 of 1000 steps; pass steps=74") as refused:
        betas_of(SubVPSDE(), 1000)
    steps = int(str(refused.value).rpartition("=")[2])
    assert betas_of(SubVPSDE(), steps)[0] > 1e-5  # the remedy works, and no more would
    with pytest.raises(ValueError, match="pass steps"):
        betas_of(SubVPSDE(), steps + 1)


def test_what_no_folder_can_hold_is_refused(tmp_path) -> None:
    class Own(LinearSDE):
        def alpha(self, t):
            return 1 - 0.9 * t

        def sigma(self, t):
            return t

    images = {"data": DATA}
    refused = [
        (ScoreModel(network(), Own(), **images), "sde must be of a class of the package"),
        (ScoreModel(Labelled(network(), torch.tensor(0)), VPSDE(), **images), "network must be"),
        (ScoreModel(network(), VPSDE()), r"model.data must be images, got None"),
        (ScoreModel(MLP(2), VPSDE(), data=DataSpec("points", (2,), None)), "must be images"),
        (ScoreModel(network(), VPSDE(), **images).train(), "model must be in evaluation mode"),
    ]
    for model, says in refused:
        model = model if says.endswith("mode") else model.eval()
        with pytest.raises(ValueError, match=says):
            save_diffusers(model, tmp_path / "folder")
        assert not (tmp_path / "folder").exists()


def test_a_folder_makes_no_class_but_ours(tmp_path) -> None:
    save_diffusers(MODELS["vp, v"]().eval(), tmp_path)
    path = tmp_path / "unet" / "config.json"
    written = json.loads(path.read_text())
    for change in ({"class": "os.system", "config": {"command": "true"}}, {"class": "UNet"}):
        other = written["configuration"] | {"network": change}
        path.write_text(json.dumps(written | {"configuration": other}))
        with pytest.raises(ValueError, match=r"save_diffusers: (network|model) must be"):
            diffusers.DDIMPipeline.from_pretrained(tmp_path)


def test_a_checkpoint_is_a_plain_state_dict_and_back(tmp_path) -> None:
    model = ScoreModel(network(), VPSDE(LinearBeta(0.2, 9.0)), "v", data=DATA).eval()
    save_model(tmp_path / "ours.safetensors", model)
    torch.save(read_weights(tmp_path / "ours.safetensors").tensors, tmp_path / "plain.pt")
    plain = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert plain.keys() == model.network.state_dict().keys()
    again = UNet(1, 8, (1, 2), 1, (1,), 2)
    again.load_state_dict(plain)
    save_model(tmp_path / "again.safetensors", ScoreModel(again, model.sde, "v", data=DATA))
    x = torch.ones(1, 1, 8, 8)
    t = torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(load(tmp_path / "again.safetensors").eps(x, t), model.eps(x, t))


def test_another_program_opens_the_folder_once_it_imported_the_class(tmp_path) -> None:
    save_diffusers(MODELS["vp, v"]().eval(), tmp_path / "out", steps=20)
    program = """
import warnings
warnings.simplefilter("ignore")
import sde_diffusion.exchange.exported
from diffusers import DDIMPipeline
print(type(DDIMPipeline.from_pretrained("out", local_files_only=True).unet).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "ExportedModel"
