"""What the objectives of students share: where x_t goes along the flow, the error of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import an_object, wrong_type
from sde_diffusion._forward_mode import dual, dual_level, parts
from sde_diffusion._shown import shown
from sde_diffusion._tensors import expand, flat_sum
from sde_diffusion.checkpoints.fingerprint import fingerprint
from sde_diffusion.coefficients import Levels
from sde_diffusion.dynamics import ProbabilityFlow
from sde_diffusion.forms import turning
from sde_diffusion.integration import check_evaluation
from sde_diffusion.models.few_steps import FewStepModel
from sde_diffusion.models.score import LearnedScore, ScoreModel
from sde_diffusion.noise import WhiteNoise
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE, derivative
from sde_diffusion.solver import OneStep


class StudentObjective(Objective, ABC):
    """An objective of a `FewStepModel`. The times of its batch are (B, 2): those of t and s."""

    def check(self, model: ScoreModel) -> None:
        rule = f"be a FewStepModel for {type(self).__name__}"
        remedy = "pass FewStepModel(network, sde)"
        raise wrong_type("train", "model", rule, type(model).__name__, remedy)

    def check_few_steps(self, model: FewStepModel) -> None:
        """Refuse nothing: any student will do."""


class Trajectory(ABC):
    """Where x_t = alpha x0 + sigma eps goes along the flow, as far as it is known in training."""

    __repr__ = shown

    @abstractmethod
    def velocity(self, model: FewStepModel, batch: Batch, x: Tensor, t: Tensor) -> Tensor:
        """Return dx/dt at (x_t, t), or what has it as its mean given x_t.

        Arguments:
            model: the student, for its SDE and its labels.
            batch: the data and their noise.
            x: the states x_t; (B, *event).
            t: their times; (B,).
        """

    @abstractmethod
    def earlier(
        self, model: FewStepModel, batch: Batch, x: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        """Return the state at s < t.

        Arguments:
            model: the student, for its SDE and its labels.
            batch: the data and their noise.
            x: the states x_t; (B, *event).
            t: their times; (B,).
            s: the times to go to; (B,).
        """


@final
class DataTrajectory(Trajectory):
    """The conditional path alpha x0 + sigma eps of a sample: no teacher is needed.

    Its velocity alpha' x0 + sigma' eps is that of the flow on average, given x_t.

    Source: Song et al. 2023, equation 10 (consistency training); Geng et al. 2025, equation 10.
    """

    def velocity(self, model: FewStepModel, batch: Batch, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = slopes(model.sde, t)
        return expand(alpha, x) * batch.x0 + expand(sigma, x) * batch.eps

    def earlier(
        self,
        model: FewStepModel,
        batch: Batch,
        x: Tensor,  # noqa: ARG002  (a Trajectory's)
        t: Tensor,  # noqa: ARG002
        s: Tensor,
    ) -> Tensor:
        return model.sde.perturb(batch.x0, s, batch.eps)


@final
class TeacherTrajectory(Trajectory):
    """The flow of a teacher.

    Arguments:
        teacher: a score; or a student for `earlier` alone, by its own steps.
        solver: that goes to earlier states, of one step and a time for each sample, such as
            `Heun`; the teacher's own step, DDIM's of a score, if None.

    Source: Song et al. 2023, equation 6; Lu & Song 2024, equation 7.
    """

    def __init__(self, teacher: ScoreLike, solver: OneStep[Any] | None = None) -> None:
        check_teacher("TeacherTrajectory", teacher)
        self.teacher = teacher
        self.solver = solver
        self.weights = fingerprint(list(teacher.parameters()))  # a run goes on with the same ones

    def velocity(self, model: FewStepModel, batch: Batch, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        with torch.no_grad():
            return like(self.teacher, model).velocity(x, t)

    def earlier(
        self,
        model: FewStepModel,
        batch: Batch,  # noqa: ARG002  (a Trajectory's)
        x: Tensor,
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        teacher = like(self.teacher, model)
        with torch.no_grad():
            if self.solver is None:
                return teacher.jump(x, t, s)
            flow = ProbabilityFlow(model.sde, teacher)
            return self.solver.step(flow, x, t, s, WhiteNoise(0))


def check_teacher(what: str, teacher: ScoreLike) -> None:
    """Refuse what is no model, and one in training mode."""
    remedy = "pass load(path) or an oracle's .diffused(sde)"
    an_object(what, "teacher", teacher, ScoreLike, remedy)
    check_evaluation(what, teacher)


def like(teacher: ScoreLike, model: FewStepModel) -> ScoreLike:
    """Return the teacher with the student's labels, where both have classes."""
    if model.labels is None or not isinstance(teacher, LearnedScore) or not teacher.classes:
        return teacher
    return teacher.given(model.labels)


def slopes(sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha' and sigma' at t, in t's shape."""
    return derivative(sde.alpha, t), derivative(sde.sigma, t)


def step_loss(model: FewStepModel, x: Tensor, ends: Tensor, target: Tensor) -> Tensor:
    """Return ‖f(x_t, t → s) − target‖²/(q² D), the squared error of v, which f has with q.

    Arguments:
        model: the student.
        x: the states x_t; (B, *event).
        ends: t and s of each; (B, 2).
        target: what f is to be; (B, *event).

    Shapes: result (B,).
    Source: Salimans & Ho 2022, section 4: the weight of x0 that is 1 for v.
    """
    sde = model.sde
    t, s = ends.unbind(1)
    _, q = turning(Levels(sde.alpha(t), sde.sigma(t)), sde.alpha(s), sde.sigma(s))
    error = (model.jump(x, t, s) - target) / expand(torch.as_tensor(q), x)
    return flat_sum(error**2) / error[0].numel()


def tangent(model: FewStepModel, x: Tensor, ends: Tensor, velocity: Tensor) -> Tensor:
    """Return df/dt of f(x_t, t → s) along the path with dx/dt = ``velocity``; 0 where f is exact.

    Arguments:
        model: the student.
        x: the states x_t; (B, *event).
        ends: t and s of each; (B, 2).
        velocity: dx/dt; (B, *event).

    Shapes: result (B, *event), without a graph.
    Source: Lu & Song 2024, section 3.1; Geng et al. 2025, equations 7 and 8.
    """
    t, s = ends.unbind(1)
    with torch.no_grad(), dual_level():
        moving = model.jump(dual(x, velocity), dual(t, torch.ones_like(t)), s)
        return parts(moving)[1]
