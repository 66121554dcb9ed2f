"""What a scheduler of diffusers says of its network: the noise, its time, and what it predicts.

How it samples is no part of that: its spacing of timesteps, ``clip_sample``, ``thresholding`` and
``shift`` are left to our grids, thresholds and solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import one_of, positive_integer, wrong_value
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.foreign.score_sde import of_noise
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.models.wrapped import AtTime, ClassLabels, time_of_noise
from sde_diffusion.sde import EDMSDE, VESDE

_WHAT: Final = "from_diffusers"
PREDICTIONS: Final = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_EDM_SIGNS: Final = {"epsilon": 1, "v_prediction": -1}  # of their c_out beside Karras et al.'s
_MOST_STEPS: Final = 10**6


@final
@dataclass(frozen=True)
class Told:
    """A network of diffusers, and what is known of it without the scheduler.

    Arguments:
        network: called as network(x, c) or with labels.
        labels: how it takes class labels; None for one that takes none.
        variance: "learned" where it has two outputs for each channel, else "fixed".
        dtype: of its timesteps; torch.long where it has a table of them.
        data: what the samples are, where that is known.
    """

    network: nn.Module
    labels: ClassLabels | None
    variance: str
    dtype: torch.dtype
    data: DataSpec | None


Config: TypeAlias = Mapping[str, Any]
# (scheduler, its configuration, the network) -> model
Reader: TypeAlias = Callable[[Any, Config, Told], ScoreModel]


def model_of(scheduler: Any, told: Told) -> ScoreModel:  # noqa: ANN401  (of diffusers)
    """Return the model of a network that was trained with the noise of this scheduler.

    Errors: ValueError for a setting under which its numbers mean something else.
    """
    return SCHEDULERS[type(scheduler).__name__](scheduler, scheduler.config, told)


def check_steps(config: Config) -> None:
    """Refuse a scheduler's configuration of too many timesteps, before it is built."""
    steps = config.get("num_train_timesteps", 1000)
    positive_integer(_WHAT, "num_train_timesteps", steps)
    if steps > _MOST_STEPS:
        rule = f"be at most {_MOST_STEPS}"
        raise wrong_value(_WHAT, "num_train_timesteps", rule, steps, "correct the configuration")


def _setting(name: str, rule: str, got: object) -> ValueError:
    return wrong_value(
        _WHAT, name, rule, got, "correct the scheduler's configuration, or wrap the network itself"
    )


def _check_fixed(scheduler: object, told: Told) -> None:
    if told.variance != "fixed":
        rule = f"be as many as its inputs with {type(scheduler).__name__}"
        raise _setting("out_channels", rule, "twice as many")


# --- chains: x_i = √ᾱ_i x0 + √(1 − ᾱ_i) eps, and the network is called with i − 1 ---


def _chain(scheduler: Any, config: Config, told: Told) -> ScoreModel:  # noqa: ANN401
    prediction = config["prediction_type"]
    one_of(_WHAT, "prediction_type", prediction, PREDICTIONS)
    if config.get("variance_type") == "learned":
        raise _setting("variance_type", "be learned_range or a fixed one", "learned")
    return ScoreModel.from_timesteps(
        told.network,
        _betas(scheduler, prediction),
        PREDICTIONS[prediction],
        variance=told.variance,
        labels=told.labels,
        data=told.data,
        dtype=told.dtype,
    )


def _betas(scheduler: Any, prediction: str) -> Tensor:  # noqa: ANN401
    """Return β_1 … β_N, the last 1 for a terminal SNR of 0, where eps would say nothing of x0."""
    betas: Tensor = scheduler.betas.double()
    if prediction == "epsilon" and bool((betas == 1).any()):
        rule = "be v_prediction or sample where rescale_betas_zero_snr leaves no signal at the end"
        raise _setting("prediction_type", rule, prediction)
    return betas


def _chain_or_flow(scheduler: Any, config: Config, told: Told) -> ScoreModel:  # noqa: ANN401
    flow = config["prediction_type"] == "flow_prediction"
    if flow != bool(config.get("use_flow_sigmas")):
        rule = "be true for flow_prediction, and for nothing else"
        raise _setting("use_flow_sigmas", rule, f"the prediction {config['prediction_type']}")
    return (_flow if flow else _chain)(scheduler, config, told)


# --- continuous noise ---


def _flow(scheduler: Any, config: Config, told: Told) -> ScoreModel:  # noqa: ANN401
    _check_fixed(scheduler, told)
    return ScoreModel.from_velocity(
        told.network,
        noise_at=0 if config.get("invert_sigmas") else 1,
        scale=config["num_train_timesteps"],
        labels=told.labels,
        data=told.data,
    )


def _edm(scheduler: Any, config: Config, told: Told) -> ScoreModel:  # noqa: ANN401
    _check_fixed(scheduler, told)
    prediction = config["prediction_type"]
    one_of(_WHAT, "prediction_type", prediction, _EDM_SIGNS)
    sde = EDMSDE(config["sigma_max"])
    wrapped = AtTime(
        told.network,
        _unchanged,
        told.labels,
        sign=_EDM_SIGNS[prediction],
        t_min=time_of_noise(sde, config["sigma_min"]),
    )
    model = ScoreModel(
        wrapped,
        sde,
        "edm",
        sigma_data=config["sigma_data"],
        data=told.data,
    )
    return model.train(told.network.training)


def _unchanged(c: Tensor) -> Tensor:
    """Return c, ¼ ln sigma: the precondition of "edm" has made it."""
    return c


def _ve(scheduler: Any, config: Config, told: Told) -> ScoreModel:  # noqa: ANN401
    _check_fixed(scheduler, told)
    sde = VESDE(config["sigma_min"], config["sigma_max"])
    return of_noise(told.network, sde, told.labels, told.data)


SCHEDULERS: Final[Mapping[str, Reader]] = {
    "DDPMScheduler": _chain,
    "DDIMScheduler": _chain,
    "DPMSolverMultistepScheduler": _chain_or_flow,
    "UniPCMultistepScheduler": _chain_or_flow,
    "EDMEulerScheduler": _edm,
    "EDMDPMSolverMultistepScheduler": _edm,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "ScoreSdeVeScheduler": _ve,
}
