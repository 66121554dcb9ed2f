"""How near every training objective brings an MLP to the exact score of a mixture in the plane.

Run it as `python benchmarks/objectives.py`. Every row is a run of `train` from the same weights on
the same data; the error is √(E σ²‖s_θ − s‖²/E σ²‖s‖²) over x_t ~ p_t and t such that ln(σ/α) is
uniform between ln .05 and ln 10, where the exact score s is known. The script fails where an
error is above --accept. The second table is of flow matching with and without optimal transport,
whose eps is no score: the sliced W₂ of samples in few steps.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from _common import options, parsed, seconds, table, write
from torch import Tensor

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    GaussianMixture,
    LinearSDE,
    RectifiedFlow,
    ScoreModel,
    TrainingConfig,
    sample,
    train,
)
from sde_diffusion.diagnostics.metrics import sliced_wasserstein
from sde_diffusion.objectives.base import Objective
from sde_diffusion.objectives.denoising import Explicit
from sde_diffusion.objectives.spacings import Stratified
from sde_diffusion.objectives.weighting import perceptual
from sde_diffusion.solvers import Euler
from sde_diffusion.time_distributions import UniformTimes

DATA: Final = GaussianMixture(
    [0.2, 0.3, 0.5], torch.tensor([[-1.0, -0.6], [1.0, -0.4], [0.0, 0.9]]), stds=[0.3, 0.25, 0.35]
)
SPREAD: Final = 0.76  # the standard deviation of its coordinates
T_MIN: Final = 1e-3
STEPS_OF_A_FLOW: Final = (2, 4, 16)


@dataclass(frozen=True)
class Row:
    """A run: its settings, and the model that it trains."""

    name: str
    settings: dict[str, Any]
    prediction: str = "eps"
    sde: LinearSDE = field(default_factory=VPSDE)
    variance: str = "fixed"
    objective: Callable[[], Objective] | None = None


def explicit() -> Objective:
    """Return explicit score matching against the mixture."""
    return Explicit(UniformTimes(), Stratified(), T_MIN, perceptual, DATA.diffused(VPSDE()))


STRAIGHT: Final = RectifiedFlow()
ROWS: Final = (
    Row("simple (perceptual)", {}),
    Row("simple, independent times", {"spacing": "independent"}),
    Row("simple, antithetic times", {"spacing": "antithetic"}),
    Row("simple, loss-aware times", {"spacing": "loss-aware"}),
    Row("simple, log-normal times by ratio", {"times": "log-normal"}, "v"),
    Row("explicit, by the oracle", {}, objective=explicit),
    Row("likelihood, times by importance", {"weighting": "likelihood"}),
    Row("vdm", {"weighting": "vdm"}, "v"),
    Row("exact λ_k, 100 steps", {"weighting": "exact", "chain_steps": 100}),
    Row("min-SNR", {"weighting": "min-snr"}, "x0"),
    Row("P2", {"weighting": "p2"}, "v"),
    Row("EDM", {"weighting": "edm"}, "edm"),
    Row("EDM, learned uncertainty", {"weighting": "edm", "uncertainty": "learned"}, "edm"),
    Row("flow matching", {"weighting": "flow-matching"}, "flow", STRAIGHT),
    Row("flow matching, logit-normal (sd3)", {"weighting": "sd3"}, "flow", STRAIGHT),
    Row(
        "vlb, 100 steps, loss-aware",
        {"objective": "vlb", "chain_steps": 100, "spacing": "loss-aware"},
    ),
    Row(
        "hybrid, 100 steps, learned variance",
        {"objective": "hybrid", "chain_steps": 100},
        variance="learned",
    ),
    Row("sliced score matching", {"objective": "sliced"}),
    Row("implicit score matching", {"objective": "implicit"}),
)
COUPLINGS: Final = tuple(
    Row(name, {"weighting": "flow-matching", "coupling": name}, "flow", STRAIGHT)
    for name in ("independent", "optimal-transport")
)


def trained(row: Row, steps: int, batch: int) -> tuple[ScoreModel, float]:
    """Return the averaged model of a run and its seconds."""
    settings = {
        "steps": steps,
        "batch_size": batch,
        "t_min": T_MIN,
        "schedule": "cosine",
        "learning_rate": 2e-3,
        "ema_decay": 0.995,
    }
    config = TrainingConfig(**(settings | row.settings))
    outputs = 4 if row.variance == "learned" else 2
    model = ScoreModel(
        MLP(2, width=64, outputs=outputs),
        row.sde,
        row.prediction,
        sigma_data=SPREAD,
        variance=row.variance,
    )
    values = DATA.sample(1 << 16, torch.Generator().manual_seed(0)).float()
    dataset = Dataset(DataSpec("mixture", (2,), None), values, None)
    objective = None if row.objective is None else row.objective()
    run = train(model, dataset, config, objective=objective)
    return model, seconds(lambda: deque(run, maxlen=0))


@torch.no_grad()
def error(model: ScoreModel, n: int) -> float:
    """Return the relative error of the model's score, all levels together."""
    sde = model.sde
    exact = DATA.diffused(model.sde)
    generator = torch.Generator().manual_seed(1)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    t = sde.time(-(math.log(0.05) + math.log(10 / 0.05) * u))
    x0 = DATA.sample(n, generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    x = sde.perturb(x0, t, eps)
    truth = exact.eps(x, t)  # −σ s
    return float(((model.eps(x.float(), t) - truth).square().sum() / truth.square().sum()).sqrt())


def distances(model: ScoreModel, n: int) -> list[float]:
    """Return the sliced W₂ between the data and samples in few Euler steps of the flow."""
    data = DATA.sample(n, torch.Generator().manual_seed(2)).float()

    def distance(steps: int) -> float:
        made: Tensor = sample(model, Euler(), (n, 2), steps=steps, seed=3).x
        return sliced_wasserstein(made, data)

    return [distance(steps) for steps in STEPS_OF_A_FLOW]


def scores(chosen: argparse.Namespace, points: int) -> list[dict[str, Any]]:
    """Train the rows that are asked for; print and return their errors."""
    rows = []
    for row in ROWS:
        if chosen.only and not any(part in row.name for part in chosen.only):
            continue
        model, taken = trained(row, chosen.steps, chosen.batch)
        rows.append(
            {
                "objective": row.name,
                "sde": type(row.sde).__name__,
                "prediction": row.prediction,
                "error": error(model, points),
                "seconds": taken,
            }
        )
        print(f"{row.name}: {rows[-1]['error']:.4f}, {taken:.1f} s", file=sys.stderr)
    table(
        f"{chosen.steps} steps of {chosen.batch}",
        ["objective", "SDE", "prediction", "relative L2 error of the score", "ms a step"],
        [
            [
                row["objective"],
                row["sde"],
                row["prediction"],
                f"{row['error']:.3f}",
                f"{1e3 * row['seconds'] / chosen.steps:.1f}",
            ]
            for row in rows
        ],
    )
    return rows


def flows(chosen: argparse.Namespace, points: int) -> list[dict[str, Any]]:
    """Train the flow with both couplings; print and return the distances of its samples."""
    rows = []
    batch = min(256, chosen.batch)  # an assignment of n pairs takes a time like n³
    for row in COUPLINGS:
        model, taken = trained(row, chosen.steps, batch)
        rows.append(
            {"coupling": row.name, "seconds": taken, "distances": distances(model, points)}
        )
    table(
        f"sliced W₂ of Euler samples of the flow, {chosen.steps} steps of {batch}",
        ["coupling", *(f"{steps} steps" for steps in STEPS_OF_A_FLOW), "ms a step"],
        [
            [
                row["coupling"],
                *(f"{d:.3f}" for d in row["distances"]),
                f"{1e3 * row['seconds'] / chosen.steps:.1f}",
            ]
            for row in rows
        ],
    )
    return rows


def main() -> None:
    """Train, print the tables, write the JSON, and fail where a score is not reached."""
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps of a run")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--only", action="append", help="the rows with this in their name")
    parser.add_argument("--accept", type=float, default=0.15, help="the largest error")
    chosen = parsed(parser)
    if chosen.quick:
        chosen.steps = 3
        chosen.batch = 32
        chosen.accept = math.inf
    rows = scores(chosen, 1000 if chosen.quick else 40_000)
    couplings = [] if chosen.only else flows(chosen, 250 if chosen.quick else 10_000)
    write(chosen.out, steps=chosen.steps, batch=chosen.batch, rows=rows, couplings=couplings)
    missed = [row["objective"] for row in rows if not row["error"] <= chosen.accept]
    if missed:
        sys.exit(f"error above {chosen.accept}: {', '.join(missed)}")


if __name__ == "__main__":
    main()
