"""Our models as folders of diffusers, which its pipelines open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion._check import Reason, positive_integer, wrong_type, wrong_value
from sde_diffusion._tensors import expand
from sde_diffusion.checkpoints.checkpoint import configuration_of
from sde_diffusion.checkpoints.configuration import NETWORKS, UNBUILT, OwnClassError, sde_of
from sde_diffusion.coefficients import Levels
from sde_diffusion.foreign.installed import missing
from sde_diffusion.integration import check_evaluation
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.sde import LinearSDE

try:
    from diffusers import ConfigMixin, DDIMPipeline, DDIMScheduler, ModelMixin
    from diffusers.models.unets.unet_2d import UNet2DOutput
except ImportError as error:
    raise ImportError(missing("diffusers", error)) from error

_WHAT: Final = "save_diffusers"
# What the network of a model predicts -> the form that it is exported in, and diffusers' name.
_FORMS: Final = {
    "eps": ("eps", "epsilon"),
    "score": ("eps", "epsilon"),
    "x0": ("x0", "sample"),
    "edm": ("x0", "sample"),
    "v": ("v", "v_prediction"),
    "flow": ("v", "v_prediction"),
}
_LEAST: Final = 1e-5  # 1 − ᾱ that float32 resolves to .6 %, with sigma .003 to 1e-5


@final
class ExportedModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # without types
    """A score model of ours as a network of diffusers, for a DDPM of N betas.

    The timestep k is the time t = (k + 1)/N of the model's SDE, and its state is y = x/r with
    r² = alpha² + sigma²: as y any linear SDE is variance-preserving, with the same x0 and eps,
    v/r for v, and ᾱ = alpha²/r², of which `betas_of` makes the betas. It gives eps, x0 or v,
    whichever is nearest to what the network predicts.

    Arguments:
        configuration: of the model, as a checkpoint has it.
        steps: N.
        in_channels: of the images.
        sample_size: of the images, their height and width.

    Errors: ImportError without diffusers; ValueError for a configuration that builds no model.

    >>> from sde_diffusion import UNet, VPSDE
    >>> model = ScoreModel(UNet(1, 8, (1,), 1, (), 1), VPSDE()).eval()
    >>> exported = ExportedModel(configuration_of(model), 1000, 1, (8, 8)).eval()
    >>> exported(torch.ones(1, 1, 8, 8), 999).sample.abs().max().item()
    0.0
    """

    config_name = "config.json"

    def __init__(
        self,
        configuration: Mapping[str, Any],
        steps: int,
        in_channels: int,
        sample_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.register_to_config(
            configuration=configuration,
            steps=steps,
            in_channels=in_channels,
            sample_size=sample_size,
        )
        self.steps = steps
        self.score = _built(configuration)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Return eps, x0 or v at the state y and the timestep k.

        Arguments:
            sample: y; (B, C, H, W).
            timestep: k = 0 … N − 1; a number, () or (B,).
            class_labels: one a sample, −1 for none; (B,), or None for none at all.
            return_dict: whether it stands in an object, as ``sample``.
        """
        t = (torch.as_tensor(timestep).double() + 1) / self.steps
        t = t.reshape(()) if t.numel() == 1 else t
        at = Levels(self.score.sde.alpha(t), self.score.sde.sigma(t))
        score = self.score if class_labels is None else self.score.given(class_labels)
        form, _ = _FORMS[score.prediction]
        found = score.predict(form, expand(at.radius, sample) * sample, t, at)
        found = found / expand(at.radius, found) if form == "v" else found
        return UNet2DOutput(sample=found) if return_dict else (found,)


def betas_of(sde: LinearSDE, steps: int) -> Tensor:
    """Return β_1 … β_N of ᾱ_k = alpha²/(alpha² + sigma²) at t = k/N.

    Errors: ValueError for an SDE with hardly any noise at 1/N.

    >>> from sde_diffusion import VPSDE
    >>> round(betas_of(VPSDE(), 1000)[0].item(), 6)  # ∫ β over the first of 1000 steps
    0.00011
    """
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    betas = -torch.expm1(F.logsigmoid(2 * sde.lambda_(t)).diff())
    if betas[0] < _LEAST:
        enough = 0.5 * math.log(1 / _LEAST - 1)  # lambda at that beta
        first = float(sde.time(torch.tensor(enough, dtype=torch.float64)))
        raise wrong_value(
            _WHAT,
            "steps",
            f"have a first beta of at least {_LEAST}, which diffusers' float32 resolves",
            f"{float(betas[0]):.3g} of {steps} steps",
            f"pass steps={int(1 / first)}",
        )
    return betas


def save_diffusers(model: ScoreModel, folder: str | Path, *, steps: int = 1000) -> None:
    """Write a model of images as a folder that `DDIMPipeline.from_pretrained` opens.

    The folder names `ExportedModel`, a class of this package: no configuration of diffusers builds
    our network. Its timesteps are the times k/N of the model's SDE, and its scheduler the DDIM.

    Errors: ImportError without diffusers; TypeError for what is no ScoreModel; ValueError for a
    network or an SDE of one's own, or data that are no images.
    """
    if not isinstance(model, ScoreModel):
        got = type(model).__name__
        raise wrong_type(_WHAT, "model", "be a ScoreModel", got, "pass ScoreModel(network, sde)")
    positive_integer(_WHAT, "steps", steps)
    check_evaluation(_WHAT, model)
    shape = () if model.data is None else model.data.shape
    if len(shape) != 3:
        remedy = "build it as ScoreModel(…, data=DataSpec(name, (channels, height, width), 256))"
        raise wrong_value(_WHAT, "model.data", "be images", shape or None, remedy)
    exported = ExportedModel(configuration_of(model), steps, shape[0], shape[1:])
    for own, parameter in zip(exported.parameters(), model.parameters(), strict=True):
        own.data = own.data.to(parameter.dtype)
    exported.score.load_state_dict(model.state_dict())
    betas = betas_of(model.sde, steps).tolist()
    _, predicted = _FORMS[model.prediction]
    # By name: what is given by its place, diffusers takes for a default when it copies one.
    scheduler = DDIMScheduler(
        num_train_timesteps=steps,
        trained_betas=betas,
        clip_sample=False,
        prediction_type=predicted,
    )
    DDIMPipeline(exported.eval(), scheduler).save_pretrained(folder, safe_serialization=True)


def _built(configuration: Mapping[str, Any]) -> ScoreModel:
    """Return the model of a configuration, of the package's classes alone."""
    try:
        return ScoreModel(
            _network(configuration["network"]),
            sde_of(configuration["sde"]),
            configuration["prediction"],
            sigma_data=configuration["sigma_data"],
            variance=configuration["variance"],
        )
    except OwnClassError as error:
        argument, got = error.args
        remedy = "save the model with save_model, or the weights alone with safetensors"
        rule = "be of a class of the package, which a folder can name"
        raise wrong_value(_WHAT, argument, rule, got, remedy) from None
    except UNBUILT as error:
        got = Reason(f"{type(error).__name__}: {error}")
        remedy = "write the folder again with save_diffusers"
        raise wrong_value(_WHAT, "model", "be a whole configuration", got, remedy) from error


def _network(description: Mapping[str, Any]) -> nn.Module:
    if description["class"] not in NETWORKS:
        raise OwnClassError("network", description["class"])
    network: nn.Module = NETWORKS[description["class"]](**description["config"])
    return network
