"""Students of a teacher's states: regression of exact pairs, and progressive distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion.integration import integrate
from sde_diffusion.models.few_steps import FewStepModel
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.objectives.base import Batch, Drawn
from sde_diffusion.objectives.spacings import Spacing, Stratified
from sde_diffusion.objectives.students import StudentObjective, TeacherTrajectory, step_loss
from sde_diffusion.sampling.few_steps import equal_angles
from sde_diffusion.sampling.generate import begun, checked_grid
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE
from sde_diffusion.solver import Solver
from sde_diffusion.time_distributions import UniformTimes


@final
@dataclass(frozen=True, eq=False)
class FlowPaths:
    """States of the flow at the times of a student's steps, of the same noise.

    Arguments:
        x: the states of N paths; (N, steps + 1, *event).
        t: their times, falling; (steps + 1,).
    """

    x: Tensor
    t: Tensor

    __repr__ = shown


def flow_paths(
    teacher: ScoreLike,
    solver: Solver[Any],
    shape: Sequence[int],
    *,
    steps: int = 4,
    substeps: int = 16,
    seed: int = 0,
    end: float | None = None,
    batch_size: int = 4096,
) -> FlowPaths:
    """Return the teacher's states at the `equal_angles` of the student's steps, from noise.

    Path i starts from the noise of sample i of `sample` with this seed.

    Arguments:
        teacher: the score whose flow it is, in evaluation mode.
        solver: an accurate solver of ODEs.
        shape: (N, *event).
        steps: of the student, at most.
        substeps: of the solver within each.
        seed: of the noise.
        end: the last time; the teacher's t_min or the SDE's cutoff if None.
        batch_size: paths solved at once.

    Errors: those of `sample`.
    """
    sde = teacher.linear_sde()
    end = teacher.t_min if end is None else end
    fine = equal_angles(sde, steps * substeps, end=end)
    checked_grid("flow_paths", teacher, solver, shape, None, fine)
    parts = []
    for first in range(0, shape[0], batch_size):
        size = (min(batch_size, shape[0] - first), *shape[1:])
        noise = PerSampleNoise.numbered(seed, first, size[0])
        with torch.no_grad():
            x, dynamics = begun(teacher, solver, noise, size, fine, torch.float32)
            states = [x]

            def keep(step: int, t: Tensor, x: Tensor, states: list[Tensor] = states) -> None:  # noqa: ARG001
                if step % substeps == 0:
                    states.append(x.clone())

            integrate(dynamics, solver, x, fine, noise=noise, callback=keep)
        parts.append(torch.stack(states, 1))
    return FlowPaths(torch.cat(parts), fine[::substeps])


@final
class FlowMapRegression(StudentObjective):
    """The squared error of v for exact pairs (x_t, x_s) of one path, for every number of steps.

    Each of ``lengths``, such as 1, 2 and 4 steps from noise to data, has the same share of the
    batch, and all its steps too. The data of the batch play no part.

    Arguments:
        paths: the exact states.
        lengths: numbers of steps, divisors of those of the paths.
        spacing: how the places of a batch are drawn.

    Source: Luhman & Luhman 2021, section 3; the weight is that of `step_loss`.
    """

    def __init__(
        self,
        paths: FlowPaths,
        lengths: Sequence[int] = (1, 2, 4),
        spacing: Spacing | None = None,
    ) -> None:
        super().__init__(UniformTimes(), spacing or Stratified(), float(paths.t[-1]))
        most = len(paths.t) - 1
        for length in lengths:
            positive_integer("FlowMapRegression", "lengths", length, most=most)
            if most % length:
                rule = f"divide the {most} steps of the paths"
                remedy = f"pass lengths=({most},)"
                raise wrong_value("FlowMapRegression", "lengths", rule, length, remedy)
        self.paths = paths
        self.lengths = tuple(lengths)
        turns = math.lcm(*lengths)
        strides = {length: most // length for length in lengths}
        self.steps = [
            (i * strides[length], (i + 1) * strides[length])
            for length in lengths
            for i in range(length)
            for _ in range(turns // length)
        ]

    def check_few_steps(self, model: FewStepModel) -> None:
        if model.classes:
            rule = "have no classes for pairs without labels"
            remedy = (
                "train it by ProgressiveDistillation(teacher, steps), --method progressive, or "
                "build classes=None"
            )
            raise wrong_value("train", "model", rule, f"{model.classes} classes", remedy)

    def draw(self, sde: LinearSDE, n: int, generator: torch.Generator) -> Drawn:  # noqa: ARG002
        """Return, in the place of the times, the numbers of a path and of a step; (n, 2)."""
        u, weight = self.spacing.draw(n, generator)
        place = u * len(self.paths.x)
        path = place.long()
        step = ((place - path) * len(self.steps)).long()
        return Drawn(torch.stack([path, step], 1), u, weight)

    def forward(self, model: FewStepModel, batch: Batch) -> Tensor:  # type: ignore[override]
        path, step = batch.t.unbind(1)
        ends = torch.tensor(self.steps)[step]
        x, target = (self.paths.x[path, places] for places in ends.unbind(1))
        return step_loss(model, x.to(batch.x0), self.paths.t[ends], target.to(batch.x0))


@final
class ProgressiveDistillation(StudentObjective):
    """The squared error of v for a step of the student to where two of the teacher lead.

    The teacher's steps are DDIM's where it is a score, and its own where it is a student: halving
    ``steps`` from run to run, each student the next one's teacher, ends in one step.

    Arguments:
        teacher: a score or a student, in evaluation mode.
        steps: of the student, along `equal_angles`; the teacher takes twice as many.
        end: the last time; the teacher's t_min or the SDE's cutoff if None.
        spacing: how the steps of a batch are drawn.

    Source: Salimans & Ho 2022, algorithm 2.
    """

    def __init__(
        self,
        teacher: ScoreLike,
        steps: int,
        *,
        end: float | None = None,
        spacing: Spacing | None = None,
    ) -> None:
        trajectory = TeacherTrajectory(teacher)
        positive_integer("ProgressiveDistillation", "steps", steps)
        end = teacher.t_min if end is None else end
        grid = equal_angles(teacher.linear_sde(), 2 * steps, end=end)
        super().__init__(UniformTimes(), spacing or Stratified(), float(grid[-1]))
        self.trajectory = trajectory
        self.steps = steps
        self.grid = grid

    def draw(self, sde: LinearSDE, n: int, generator: torch.Generator) -> Drawn:  # noqa: ARG002
        u, weight = self.spacing.draw(n, generator)
        first = 2 * (u * self.steps).long()
        return Drawn(torch.stack([self.grid[first + i] for i in range(3)], 1), u, weight)

    def target(self, model: FewStepModel, batch: Batch, x: Tensor) -> Tensor:
        """Return where two steps of the teacher lead.

        Shapes: x, at the first of the batch's three times, and result (B, *event).
        """
        t, middle, s = batch.t.unbind(1)
        half = self.trajectory.earlier(model, batch, x, t, middle)
        return self.trajectory.earlier(model, batch, half, middle, s)

    def forward(self, model: FewStepModel, batch: Batch) -> Tensor:  # type: ignore[override]
        t = batch.t[:, 0]
        x = model.sde.perturb(batch.x0, t, batch.eps)
        target = self.target(model, batch, x)
        return step_loss(model, x, batch.t[:, ::2], target)
