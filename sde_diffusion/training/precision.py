"""How a training step computes: half precision, memory format, compilation, fused updates.

Weights, optimizer states and averages stay in float32; half precision is that of the network's
matrix products and convolutions alone, chosen operation by operation by `torch.autocast`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeVar

import torch
from torch import Tensor, nn

from sde_diffusion._check import Reason, an_object, wrong_value
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.objectives.base import Trained

if TYPE_CHECKING:
    from sde_diffusion.training.config import TrainingConfig

ScoreT = TypeVar("ScoreT", bound=LearnedScore)

_HALF: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_FUSED: Final = ("cpu", "cuda")  # where AdamW can update all weights in one pass


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context in which networks compute in ``precision``.

    >>> with autocast("bfloat16", torch.device("cpu")):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    return torch.autocast(device.type, _HALF.get(precision), enabled=precision in _HALF)


def scaler_of(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return a scaler that keeps small gradients from underflow in float16, and else does nothing.

    The loss is multiplied by a scale, 2¹⁶ at first. Where gradients overflow the step is skipped
    and the scale halved; after 2000 steps that do not overflow it doubles.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def adamw(parameters: Iterable[Tensor], config: TrainingConfig) -> torch.optim.AdamW:
    """Return the optimizer of a run."""
    found = list(parameters)
    fused = all(parameter.device.type in _FUSED for parameter in found)
    return torch.optim.AdamW(
        found, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
    )


def prepare(model: Trained, config: TrainingConfig) -> None:
    """Lay out and compile the model's network as the settings say, in place.

    Errors: ValueError for half precision of weights that are not float32, or where nothing can be
    compiled.
    """
    kinds = {p.dtype for p in model.parameters()} - {torch.float32}
    if config.precision in _HALF and kinds:
        raise wrong_value(
            "train",
            "precision",
            "be float32 unless the weights are in float32",
            f"{config.precision} for weights in {kinds.pop()}",
            "pass precision='float32' or model.float()",
        )
    if config.channels_last:
        for weight in (p for p in model.parameters() if p.ndim == 4):
            weight.data = weight.data.to(memory_format=torch.channels_last)
    if config.compile:
        if (lack := _lack(model.device)) is not None:
            needed, reason = lack
            got = Reason(f"True ({reason})")
            rule = f"be False without {needed}"
            remedy = f"install {needed}, or pass compile=False"
            raise wrong_value("train", "compile", rule, got, remedy)
        # In place: the weights keep their names, and whatever holds the network calls it compiled.
        # The shapes of training do not change; compiled for any shape it would be slower.
        model.network.compile(dynamic=False)


def compiled(model: ScoreT) -> ScoreT:
    """Return a model whose network is compiled by torch.compile, at its first call of each shape.

    It shares the weights and modules of ``model``, whose own calls are not compiled; their names,
    and so checkpoints and fingerprints, do not change. Scores are those of ``model`` up to the
    rounding of float32. A GPU's are not tested: none has run it.

    Errors: ValueError where nothing can be compiled; TypeError for what is no learned score.
    """
    an_object("compiled", "model", model, LearnedScore, "pass one that is learned")
    if (lack := _lack(model.device)) is not None:
        needed, reason = lack
        rule = f"stay as it is without {needed}"
        raise wrong_value("compiled", "model", rule, Reason(reason), f"install {needed}")
    made = copy.copy(model)
    made._modules = dict(model._modules)
    made.network = copy.copy(model.network)
    made.network.compile(dynamic=False)
    return made


def release(network: nn.Module) -> None:
    """Undo the compilation, which would start again for other shapes than training's."""
    network._compiled_call_impl = None


def _lack(device: torch.device) -> tuple[str, str] | None:
    """Return what a compilation needs and lacks, and what PyTorch says of it; None for nothing.

    A line is compiled, for PyTorch says what it lacks in many ways and at the first step only.
    """
    try:
        torch.compile(_line)(torch.zeros(2, device=device))
    except RuntimeError as error:
        needed = "a C++ compiler such as g++" if device.type == "cpu" else "Triton"
        return needed, str(error).partition("\n")[0]
    return None


def _line(x: Tensor) -> Tensor:
    return x.sin() + 1
