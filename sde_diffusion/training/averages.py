"""Exponential moving averages of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn

from sde_diffusion._check import positive_number, wrong_value
from sde_diffusion.checkpoints.checkpoint import Saveable, save_model
from sde_diffusion.latents.autoencoder import Autoencoder
from sde_diffusion.latents.latent_model import LatentModel
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.objectives.base import Trained
from sde_diffusion.training.config import WIDEST

if TYPE_CHECKING:
    from sde_diffusion.training.config import TrainingConfig

SNAPSHOTS: Final = "snapshots"
NARROWEST: Final = 1e-6  # relative width of an average


def ema_decay(limit: float, step: int) -> float:
    """Return the decay min(limit, step/(9 + step)) of a step, counted from 1.

    The ramp lets the average forget the random initial weights sooner than in 1/(1 − limit) steps.
    """
    return min(limit, step / (9 + step))


@lru_cache
def gamma_of(width: float) -> float:
    """Return γ of the average whose weights θ(t) count as (γ+1) t^γ on [0, 1].

    Its relative width, the standard deviation of that profile, is
    σ_rel = (γ+1)^{1/2} (γ+2)^{−1} (γ+3)^{−1/2}: at most 12^{−1/2}, at γ = 0, the mean of all θ.

    Source: Karras et al. 2024 (EDM2), section 3.1.

    >>> round(gamma_of(0.05), 2), round(gamma_of(0.1), 2)
    (16.97, 6.94)
    """
    if width > WIDEST:
        raise wrong_value(
            "gamma_of",
            "width",
            f"be at most {WIDEST}, that of the mean of all weights",
            width,
            "pass width=0.1",
        )
    positive_number("gamma_of", "width", width)
    if width < NARROWEST:
        rule = f"be at least {NARROWEST:g}"
        raise wrong_value("gamma_of", "width", rule, width, "pass width=0.1")
    inverse = width**-2  # (γ+2)² (γ+3) = (γ+1) σ_rel⁻², which has one root γ ≥ 0
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return max(0.0, float(roots.real.max()))


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the average: decay · average + (1 − decay) · weights; buffers are copied."""
    means: list[Tensor] = [*average.parameters()]
    values = [v.to(m.dtype) for m, v in zip(means, module.parameters(), strict=True)]
    torch._foreach_lerp_(means, values, 1 - decay)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)


@final
class Averages:
    """The averages of a run's weights; ``main`` is the one that is kept as the model.

    ``half_lives`` are the exponential averages by their half-life in steps; ``powers`` those in
    which step i has a weight proportional to i^γ, by their relative width σ_rel (EDM2).

    Arguments:
        model: what is trained.
        config: the settings.
        around: the autoencoder of whose latents it is the score, saved with it; None for none.
    """

    def __init__(
        self, model: Trained, config: TrainingConfig, around: Autoencoder | None = None
    ) -> None:
        self.config = config
        self.around = around
        self.main = _averaged(model)
        self.half_lives = {half_life: _averaged(model) for half_life in config.ema_half_lives}
        self.powers = {width: _averaged(model) for width in config.ema_widths}

    def update(self, model: Trained, step: int) -> None:
        """Update the averages by the weights after ``step``."""
        update_average(self.main, model, ema_decay(self.config.ema_decay, step))
        for half_life, average in self.half_lives.items():
            update_average(average, model, ema_decay(0.5 ** (1 / half_life), step))
        for width, average in self.powers.items():
            update_average(average, model, (1 - 1 / step) ** (gamma_of(width) + 1))

    def models(self) -> list[Trained]:
        """Return all of them, as models."""
        return [average for _, average in self._named()]

    def whole(self, average: Trained) -> Saveable:
        """Return one of them as it is saved and evaluated."""
        if self.around is None or not isinstance(average, LearnedScore):
            return average
        return LatentModel(self.around, average)

    def write(self, folder: Path, extra: dict[str, Any]) -> None:
        """Write each average of a half-life as ``ema-HALFLIFE.safetensors``."""
        for half_life, average in self.half_lives.items():
            save_model(
                folder / f"ema-{half_life:.15g}.safetensors",
                self.whole(average),
                extra | {"half_life": half_life},
            )

    def snapshot(self, folder: Path, extra: dict[str, Any], step: int) -> None:
        """Write the averages of all widths as ``snapshots/STEP-WIDTH.safetensors``."""
        for width, average in self.powers.items():
            (folder / SNAPSHOTS).mkdir(exist_ok=True)
            save_model(
                folder / SNAPSHOTS / f"{step:08}-{width:.15g}.safetensors",
                self.whole(average),
                extra | {"width": width},
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {name: average.network.state_dict() for name, average in self._named()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the averages that were saved."""
        for name, average in self._named():
            average.network.load_state_dict(state[name])

    def _named(self) -> Iterator[tuple[str, Trained]]:
        yield "main", self.main
        yield from ((f"half-life {number!r}", a) for number, a in self.half_lives.items())
        yield from ((f"width {number!r}", a) for number, a in self.powers.items())


def _averaged(model: Trained) -> Trained:
    """Return a copy of the model to hold the average, in float32 at least.

    In bfloat16 an update of the average, (1 − decay) of a difference, would round to 0.
    """
    average = copy.deepcopy(model).requires_grad_(requires_grad=False)
    for parameter in average.parameters():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return average.eval()
