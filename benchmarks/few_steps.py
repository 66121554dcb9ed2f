"""Students of every method on a ring and a mixture in 16 dimensions, at 1, 2 and 4 steps.

Run it as `python benchmarks/few_steps.py`; it takes ten to twenty minutes on one core.
`--only regression --only mean-flow` trains these methods alone, `--problem ring` on that data.

RMS is the distance to the ends of the exact flow from the same noise, and beside it the median;
consistency models that add fresh noise between their steps have other ends. KL is that of the
samples to the data in nats, −H − E log p with Kozachenko & Leonenko's estimate of the entropy H,
less that of the flow's own samples, which is its bias. It fails where no one-step student of the
ring has an RMS of .02 or less, or one larger than the teacher's best solver in 8 evaluations, or
two steps of consistency distillation are no better than one.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from _common import options, parsed, table, write
from torch import Tensor

from sde_diffusion import (
    MLP,
    VPSDE,
    Dataset,
    DataSpec,
    FewStepModel,
    FewSteps,
    GaussianMixture,
    Renoised,
    TrainingConfig,
    sample,
    train,
)
from sde_diffusion.diagnostics import rms_distance
from sde_diffusion.models.exact import ExactScore
from sde_diffusion.objectives import (
    Consistency,
    ContinuousConsistency,
    DataTrajectory,
    FlowMapRegression,
    MeanFlow,
    Objective,
    ProgressiveDistillation,
    TeacherTrajectory,
    flow_paths,
)
from sde_diffusion.solvers import AdamsBashforth, AngularAdams, Heun

STEPS: Final = (1, 2, 4)
SDE: Final = VPSDE()
WIDTH: Final = 64
BATCH: Final = 512
RATE: Final = 2e-3
HALVINGS: Final = 7  # of the steps of progressive distillation, from 64 to 1
Students = Mapping[int, FewStepModel]  # by the number of steps that they take


def ring() -> GaussianMixture:
    """Return eight Gaussians on a circle."""
    return GaussianMixture.ring(8)


def mixture() -> GaussianMixture:
    """Return four Gaussians in 16 dimensions, each correlated in its own way."""
    draws = torch.Generator().manual_seed(0)
    means = 1.5 * torch.randn(4, 16, generator=draws, dtype=torch.float64)
    roots = torch.randn(4, 16, 16, generator=draws, dtype=torch.float64) / 16**0.5
    noise = 0.05 * torch.eye(16, dtype=torch.float64)
    covariances = 0.5 * roots @ roots.mT + noise
    return GaussianMixture(torch.ones(4), means, covariances)


PROBLEMS: Final = {"ring": ring, "mixture": mixture}


class Workshop:
    """What students of one problem are made of."""

    def __init__(self, oracle: GaussianMixture, steps: int, paths: int) -> None:
        self.teacher: ExactScore = oracle.diffused(SDE)
        self.dimension = oracle.dimension
        self.steps = steps
        self.paths = paths
        rows = oracle.sample(1 << 15, torch.Generator().manual_seed(0)).float()
        self.data = Dataset(DataSpec("mixture", (self.dimension,), None), rows, None)

    def trained(
        self, objective: Objective, steps: int, start: FewStepModel | None = None
    ) -> FewStepModel:
        """Return a student of the objective, from the weights of another one if it is given."""
        network = MLP(self.dimension, WIDTH, times=2, time_scale=1.0)
        if start is not None:
            network.load_state_dict(start.network.state_dict())
        student = FewStepModel(network, SDE)
        config = TrainingConfig(
            steps=steps,
            batch_size=BATCH,
            learning_rate=RATE,
            schedule="cosine",
            ema_decay=0.998,
        )
        for _ in train(student, self.data, config, objective=objective):
            pass
        return student

    def regression(self) -> Students:
        """Regression of pairs of the exact flow; one student for all numbers of steps."""
        shape = (self.paths, self.dimension)
        paths = flow_paths(self.teacher, AngularAdams(), shape, substeps=32, seed=1)
        return dict.fromkeys(STEPS, self.trained(FlowMapRegression(paths), self.steps))

    def progressive(self) -> Students:
        """Progressive distillation, from twice 64 steps of DDIM; a student for each number."""
        found: dict[int, FewStepModel] = {}
        teacher: Any = self.teacher
        start = None
        for halving in reversed(range(HALVINGS)):
            objective = ProgressiveDistillation(teacher, 2**halving)
            start = teacher = self.trained(objective, self.steps // HALVINGS, start)
            found[2**halving] = teacher
        return {steps: found[steps] for steps in STEPS}

    def alone(self, objective: Objective) -> Students:
        """Return one student of an objective for all numbers of steps."""
        return dict.fromkeys(STEPS, self.trained(objective, self.steps))


def methods(shop: Workshop) -> dict[str, tuple[Callable[[], Students], Any]]:
    """Return how each student is made, and how it is sampled."""
    teacher = TeacherTrajectory(shop.teacher, Heun())
    data = DataTrajectory()
    objectives = {
        "consistency distillation": (Consistency(teacher, SDE, 64), Renoised()),
        "consistency training": (Consistency(data, SDE, 64), Renoised()),
        "continuous distillation": (ContinuousConsistency(teacher, SDE), Renoised()),
        "continuous training": (ContinuousConsistency(data, SDE), Renoised()),
        "mean flow of the teacher": (MeanFlow(teacher, SDE, power=0.5), FewSteps()),
        "mean flow": (MeanFlow(data, SDE, power=0.5), FewSteps()),
    }
    made: dict[str, tuple[Callable[[], Students], Any]] = {
        "regression": (shop.regression, FewSteps()),
        "progressive": (shop.progressive, FewSteps()),
    }
    for name, (objective, solver) in objectives.items():
        made[name] = (lambda objective=objective: shop.alone(objective), solver)  # type: ignore[misc]
    return made


def entropy(x: Tensor, neighbours: int = 5) -> float:
    """Return Kozachenko & Leonenko's ψ(n) − ψ(k) + log V_D + (D/n) Σ log ρ_k(x_i), in nats."""
    n, d = x.shape
    parts = (torch.cdist(rows, x.double()) for rows in torch.split(x.double(), 1024))
    far = torch.cat([part.kthvalue(neighbours + 1, 1).values for part in parts])  # 0 is itself
    psi = torch.digamma(torch.tensor([float(n), float(neighbours)], dtype=torch.float64))
    volume = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
    return float(psi[0] - psi[1]) + volume + d * float(far.log().mean())


def divergence(x: Tensor, exact: ExactScore) -> float:
    """Return KL of the samples to the data, noised as they are at the end of the grid."""
    end = torch.tensor(SDE.cutoff, dtype=torch.float64)
    log_p = exact.log_prob(x.double(), end)
    return -entropy(x) - float(log_p.mean())


def measured(x: Tensor, ends: Tensor, exact: ExactScore) -> dict[str, Any]:
    """Return the errors of samples against the flow's from the same noise."""
    apart = (x - ends).square().mean(1).sqrt()
    found = {"rms": rms_distance(x, ends), "median": float(apart.median())}
    return {**found, "kl": divergence(x, exact) - divergence(ends, exact)}


def cells(found: Mapping[str, Any]) -> str:
    """Return the RMS, the median and KL as text; no distance of fresh noise means anything."""
    distance = f"{found['rms']:.4f} ({found['median']:.4f})" if found["paired"] else "–"
    return f"{distance}  {found['kl']:.3f}"


def compared(name: str, only: tuple[str, ...], steps: int, number: int) -> list[dict[str, Any]]:
    """Print the table of one problem; return its rows."""
    shop = Workshop(PROBLEMS[name](), steps, 8 * number)
    shape = (number, shop.dimension)
    exact = shop.teacher
    reference = flow_paths(exact, AdamsBashforth(order=4), shape, substeps=50, seed=9).x[:, -1]
    eight = sample(exact, AngularAdams(), shape, steps=8, seed=9)
    found = measured(eight.x, reference, exact) | {"paired": True}
    name_of_best = f"angular-adams, NFE {eight.nfe}"
    rows: list[dict[str, Any]] = [{"method": name_of_best, "steps": 8, **found}]
    shown = [(name_of_best, cells(found), "", "", "")]
    made = {"teacher, DDIM": (lambda: dict.fromkeys(STEPS, exact), FewSteps()), **methods(shop)}
    for method, (make, solver) in made.items():
        if only and method not in only:
            continue
        began = time.process_time()
        students: Any = make()
        seconds = time.process_time() - began
        line = []
        for count in STEPS:
            x = sample(students[count], solver, shape, steps=count, seed=9).x
            paired = count == 1 or isinstance(solver, FewSteps)
            found = measured(x, reference, exact) | {"paired": paired}
            rows.append({"method": method, "steps": count, "seconds": seconds, **found})
            line.append(cells(found))
        shown.append((method, *line, f"{seconds:.0f}"))
        said = "; ".join(line)
        print(f"{name}: {method}, {seconds:.0f} s: {said}", file=sys.stderr, flush=True)
    header = ["RMS (median)  KL", *(f"steps: {n}" for n in STEPS), "CPU s"]
    table(f"{name}, {shop.dimension} dimensions, {steps} steps of {BATCH}", header, shown)
    return rows


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Return what of the ring is worse than it should be."""
    of = {(row["method"], row.get("steps")): row for row in rows}
    single = [row["rms"] for (_, count), row in of.items() if count == 1]
    found = []
    most = min(0.02, rows[0]["rms"])
    if min(single) > most:
        found.append(f"the best one-step student has RMS {min(single):.4f}, not {most:.4f}")
    one, two = (of.get(("consistency distillation", count)) for count in (1, 2))
    if one and two and two["kl"] > one["kl"]:
        found.append("two steps of consistency distillation are no better than one")
    return found


def main() -> None:
    """Print a table for each problem, and fail where a student of the ring is not good enough."""
    parser = options(__doc__)
    parser.add_argument("--only", action="append", default=[], help="a method; repeatable")
    parser.add_argument("--problem", action="append", choices=[*PROBLEMS], help="repeatable")
    parser.add_argument("--steps", type=int, default=4000, help="of each student's training")
    chosen = parsed(parser)
    steps, number = (7, 64) if chosen.quick else (chosen.steps, 4096)
    only = tuple(name.replace("-", " ") for name in chosen.only)
    found = {name: compared(name, only, steps, number) for name in chosen.problem or [*PROBLEMS]}
    write(chosen.out, steps=steps, rows=found)
    wrong = failures(found["ring"]) if "ring" in found and not chosen.quick and not only else []
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
