"""A student for a teacher, and the objective that a method's name stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from sde_diffusion._check import one_of, positive_integer, wrong_value
from sde_diffusion.checkpoints.configuration import NETWORKS
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.models.conditioned import Enclosing
from sde_diffusion.models.few_steps import STEP_PREDICTIONS, FewStepModel
from sde_diffusion.models.score import LearnedScore, ScoreModel
from sde_diffusion.nets.mlp import MLP
from sde_diffusion.nets.unet import UNet
from sde_diffusion.objectives.consistency import Consistency, ContinuousConsistency, MeanFlow
from sde_diffusion.objectives.flow_maps import (
    FlowMapRegression,
    ProgressiveDistillation,
    flow_paths,
)
from sde_diffusion.objectives.students import (
    DataTrajectory,
    StudentObjective,
    TeacherTrajectory,
    Trajectory,
)
from sde_diffusion.solver import OneStep, Solver

if TYPE_CHECKING:
    from sde_diffusion.scores import ScoreLike

METHODS: Final = ("regression", "progressive", "consistency", "continuous", "mean-flow")
TRAJECTORIES: Final = ("teacher", "data")


def student_of(teacher: ScoreLike, data: DataSpec, **network: Any) -> FewStepModel:  # noqa: ANN401
    """Return an untrained student of a teacher: of its SDE, and of two times.

    It starts from the teacher's weights where they are those of an MLP or a U-Net, its prediction
    tells x0 in pure noise (v, x0, flow, edm) and nothing else is asked for. Else it is a fresh
    network of v: of the teacher's arguments, with those in ``network`` in their place.

    Arguments:
        teacher: a score or a student.
        data: what the samples are.
        network: arguments of the MLP for rows of numbers, or of the U-Net.

    Errors: those of the network; ValueError for samples of axes and a teacher of another network.
    """
    sde = teacher.linear_sde()
    own = teacher.network if isinstance(teacher, LearnedScore) else None
    while isinstance(own, Enclosing):
        own = own.network
    config = own.config if isinstance(own, (MLP, UNet)) else {}
    if own is None or not config:
        return FewStepModel(_fresh(data, network), sde, data=data)
    kind = NETWORKS[type(own).__name__]
    made = kind(**(config | {"outputs": data.shape[0], "times": 2} | network))
    kept = teacher.prediction in STEP_PREDICTIONS and not network
    if not kept or teacher.variance == "learned":
        return FewStepModel(made, sde, data=data)
    made.load_state_dict(own.state_dict(), strict=False)  # but those of the second time, 0
    sigma_data = teacher.sigma_data if isinstance(teacher, (ScoreModel, FewStepModel)) else 0.5
    return FewStepModel(made, sde, teacher.prediction, sigma_data=sigma_data, data=data)


def _fresh(data: DataSpec, network: dict[str, Any]) -> MLP:
    """Return an MLP for a teacher whose network is none of ours."""
    if len(data.shape) != 1:
        rule = "be of an MLP or a U-Net of this package, or of rows of numbers"
        remedy = "pass your own FewStepModel(network, sde) to train(…, objective=…)"
        raise wrong_value("student_of", "teacher", rule, f"one of {data.shape}", remedy)
    return MLP(data.shape[0], **({"time_scale": 1.0, "times": 2} | network))


@final
@dataclass(frozen=True)
class Distillation:
    """How a student is to be trained, by names and numbers.

    Arguments:
        method: "regression", "progressive", "consistency", "continuous" or "mean-flow".
        trajectory: "teacher", or "data" for consistency and mean flow without a teacher's score.
        steps: of the student: its largest number for regression, that of progressive.
        levels: of consistency.
        paths: of regression, solved once.
        seed: of the noise of the paths.

    Errors: ValueError or TypeError by name.

    >>> Distillation("progressive", trajectory="data")
    Traceback (most recent call last):
    ValueError: Distillation: trajectory must be 'teacher' for progressive, got 'data'; drop it
    """

    method: str
    trajectory: str = "teacher"
    steps: int = 4
    levels: int = 64
    paths: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("Distillation", "method", self.method, METHODS)
        one_of("Distillation", "trajectory", self.trajectory, TRAJECTORIES)
        for name in ("steps", "levels", "paths"):
            positive_integer("Distillation", name, vars(self)[name])
        if self.trajectory == "data" and self.method in ("regression", "progressive"):
            rule = f"be 'teacher' for {self.method}"
            raise wrong_value("Distillation", "trajectory", rule, "'data'", "drop it")

    def objective(
        self, teacher: ScoreLike, student: FewStepModel, solver: Solver[Any], step: OneStep[Any]
    ) -> StudentObjective:
        """Return what is minimised.

        Arguments:
            teacher: in evaluation mode; its SDE alone counts for trajectory="data".
            student: for its shape.
            solver: that makes the pairs of regression, such as `AngularAdams`.
            step: that follows the teacher between the levels of consistency, such as `Heun`.
        """
        sde = teacher.linear_sde()
        end = teacher.t_min
        if self.method == "regression":
            student_shape = () if student.data is None else student.data.shape
            shape = (self.paths, *student_shape)
            lengths = [n for n in (1, 2, 4, 8, 16) if self.steps % n == 0]
            settings = {"steps": self.steps, "substeps": max(8, 128 // self.steps)}
            paths = flow_paths(teacher, solver, shape, **settings, seed=self.seed, end=end)
            return FlowMapRegression(paths, lengths)
        if self.method == "progressive":
            return ProgressiveDistillation(teacher, self.steps, end=end)
        along: Trajectory = DataTrajectory()
        if self.trajectory == "teacher":
            along = TeacherTrajectory(teacher, step)
        if self.method == "consistency":
            return Consistency(along, sde, self.levels, end=end)
        kind = ContinuousConsistency if self.method == "continuous" else MeanFlow
        return kind(along, sde, end=end)
