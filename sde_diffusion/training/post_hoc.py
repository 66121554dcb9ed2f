"""Averages of any width after the run, from snapshots of averages of a few widths (EDM2).

After step t the average of relative width σ_rel is ∫ p(τ) θ(τ) dτ with the profile
p(τ) = (γ+1) τ^γ/t^{γ+1} on [0, t]. A wanted profile is approximated by a sum Σ c_i p_i of those
of the snapshots, and the same sum of the snapshots' weights is the wanted average.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sde_diffusion._check import positive_integer, positive_number, wrong_value
from sde_diffusion.checkpoints.autoencoders import SCORE
from sde_diffusion.checkpoints.checkpoint import describe, load, score_in
from sde_diffusion.checkpoints.reading import check_weights, parts_of, read, values
from sde_diffusion.latents.latent_model import LatentModel
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.sde import LinearSDE
from sde_diffusion.training.averages import SNAPSHOTS, gamma_of

_FAR = 0.2


class Profile(NamedTuple):
    """The weights of an average: its last step, and its relative width σ_rel."""

    step: int
    width: float


class Fit(NamedTuple):
    """The coefficients c of known profiles, and the relative error ‖p − Σ c_i p_i‖/‖p‖."""

    coefficients: NDArray[np.float64]
    error: float


def inner_product(a: Profile, b: Profile) -> float:
    """Return ∫ p_a p_b dτ = (γ_a+1)(γ_b+1)/(γ_a+γ_b+1) (t_a/t_b)^{γ_b}/t_b for t_a ≤ t_b."""
    a, b = sorted((a, b))
    x = gamma_of(a.width)
    y = gamma_of(b.width)
    decayed: float = (a.step / b.step) ** y
    return (x + 1) * (y + 1) / (x + y + 1) * decayed / b.step


def fit(kept: Sequence[Profile], wanted: Profile) -> Fit:
    """Return the sum of kept profiles nearest to the wanted one in L², with Σ c_i = 1.

    EDM2 does not constrain the sum: with few snapshots the weights would then be scaled down.

    Source: Karras et al. 2024 (EDM2), section 3.2.

    >>> found = fit([Profile(50, 0.05), Profile(100, 0.05), Profile(100, 0.1)], Profile(100, 0.1))
    >>> found.coefficients.round(9).tolist(), found.error < 1e-6
    ([0.0, 0.0, 1.0], True)
    """
    norms = np.sqrt([inner_product(p, p) for p in kept])  # to compare directions: steps differ
    gram = np.array([[inner_product(p, q) for q in kept] for p in kept]) / np.outer(norms, norms)
    right = np.array([inner_product(p, wanted) for p in kept]) / norms
    ones = 1 / norms
    system = np.block([[gram, ones[:, None] / ones.max()], [ones / ones.max(), np.zeros(1)]])
    c = np.linalg.lstsq(system, np.append(right, 1 / ones.max()), rcond=None)[0][:-1]
    square = inner_product(wanted, wanted)
    rest = square - 2 * c @ right + c @ gram @ c
    return Fit(c / norms, float(np.sqrt(max(0.0, rest) / square)))


@torch.no_grad()
def reconstruct_average(
    folder: str | Path,
    width: float,
    *,
    network: nn.Module | None = None,
    sde: LinearSDE | None = None,
) -> ScoreModel:
    """Return the model of a run with the average of any relative width at its last snapshot.

    The run kept snapshots (``snapshot_every``) of the averages of ``ema_widths``.
    ``save_model(path, reconstruct_average(…))`` keeps the result.

    Arguments:
        folder: the folder of the run.
        width: the relative width σ_rel.
        network: one of a class of your own, as for `load`.
        sde: one of a class of your own, as for `load`.

    Errors: FileNotFoundError for a folder without snapshots; ValueError for a width whose profile
    they approximate with an error above 20 %; those of `load`.
    """
    what = "reconstruct_average"
    paths = sorted((Path(folder) / SNAPSHOTS).glob("*.safetensors"))
    if not paths:
        error = wrong_value(
            what,
            "folder",
            "hold snapshots",
            str(folder),
            "train with ema_widths and snapshot_every",
        )
        raise FileNotFoundError(str(error))
    kept = [_profile(path) for path in paths]
    found = fit(kept, Profile(max(kept).step, width))
    if found.error > _FAR:
        widths = ", ".join(f"{w:g}" for w in sorted({p.width for p in kept}))
        rule = f"be a width that {len(kept)} snapshots of {widths} make to within {_FAR:.0%}"
        raise wrong_value(
            what,
            "width",
            rule,
            f"{width}, made to {found.error:.0%}",
            "choose one nearer to these",
        )
    found_model: Any = load(paths[-1], network=network, sde=sde)
    latent = isinstance(found_model, LatentModel)
    model = score_in(found_model) if latent else found_model
    prefix = SCORE if latent else ""
    total = {
        name: torch.zeros_like(value, dtype=torch.float64)
        for name, value in model.network.named_parameters()
    }
    for path, c in zip(paths, found.coefficients, strict=True):
        check_weights(model.network, parts_of(read(path)[1], prefix), path)
        weights = parts_of(values(path), prefix)
        for name, value in total.items():
            value.add_(weights[name].double(), alpha=float(c))
    for name, parameter in model.network.named_parameters():
        parameter.copy_(total[name])
    made: ScoreModel = found_model
    return made


def _profile(path: Path) -> Profile:
    """Return what a snapshot is the average of, as its file says."""
    record = describe(path)
    step: Any = record.get("step")
    width: Any = record.get("width")
    positive_integer("reconstruct_average", f"step of {path}", step, most=2**53)
    positive_number("reconstruct_average", f"width of {path}", width)
    return Profile(step, width)
