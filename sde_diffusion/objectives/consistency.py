"""Consistency models and mean flow: students that agree with themselves along the flow."""

from __future__ import annotations

from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, real_number, wrong_value
from sde_diffusion._tensors import expand, flat_sum
from sde_diffusion.coefficients import Levels
from sde_diffusion.models.few_steps import FewStepModel
from sde_diffusion.objectives.base import Batch, Drawn
from sde_diffusion.objectives.spacings import Spacing, Stratified
from sde_diffusion.objectives.students import (
    StudentObjective,
    Trajectory,
    slopes,
    step_loss,
    tangent,
)
from sde_diffusion.objectives.uncertainty import Uncertainty
from sde_diffusion.sampling.few_steps import equal_angles
from sde_diffusion.sde import LinearSDE
from sde_diffusion.time_distributions import AngleTimes, TimeDistribution

_SOFTENED: Final = 0.1  # c of g/(‖g‖ + c)
_FLOOR: Final = 1e-3  # c of 1/(‖Δ‖² + c)^p


@final
class Consistency(StudentObjective):
    """The squared error of v for f(x_t, t → ε) against f(x_s, s → ε) one level earlier.

    The target has no graph, and is the student's own: theta⁻ = theta.

    Arguments:
        trajectory: from x_t to x_s: `TeacherTrajectory` for consistency distillation,
            `DataTrajectory` for consistency training.
        sde: of the model.
        levels: how many steps there are from the horizon to ε, along `equal_angles`.
        end: ε; the SDE's cutoff if None.
        spacing: how the levels of a batch are drawn.

    Source: Song et al. 2023, equations 7 (distillation) and 10 (training); Song & Dhariwal 2023,
    section 3.2, for theta⁻ = theta.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        sde: LinearSDE,
        levels: int = 64,
        *,
        end: float | None = None,
        spacing: Spacing | None = None,
    ) -> None:
        positive_integer("Consistency", "levels", levels)
        grid = equal_angles(sde, levels, end=end)
        super().__init__(AngleTimes(), spacing or Stratified(), float(grid[-1]))
        self.trajectory = trajectory
        self.levels = levels
        self.grid = grid

    def draw(self, sde: LinearSDE, n: int, generator: torch.Generator) -> Drawn:  # noqa: ARG002
        u, weight = self.spacing.draw(n, generator)
        level = (u * self.levels).long()
        return Drawn(torch.stack([self.grid[level], self.grid[level + 1]], 1), u, weight)

    def forward(self, model: FewStepModel, batch: Batch) -> Tensor:  # type: ignore[override]
        t, s = batch.t.unbind(1)
        end = self.grid[-1].expand(len(t))
        x = model.sde.perturb(batch.x0, t, batch.eps)
        with torch.no_grad():
            earlier = self.trajectory.earlier(model, batch, x, t, s)
            target = model.jump(earlier, s, end)
        return step_loss(model, x, torch.stack([t, end], 1), target)


@final
class ContinuousConsistency(StudentObjective):
    """Consistency without levels: ‖v_θ − v_θ⁻ − g/(‖g‖ + 0.1)‖²/D with g = cos φ df_θ⁻/dφ.

    φ = atan(sigma/alpha) is the angle of TrigFlow, f = p x + q v and q < 0, so that the gradient
    takes f against df/dφ. Dividing by ‖g‖ + 0.1 bounds its variance; the optimum, g = 0, stays.

    Arguments:
        trajectory: the velocity of x_t: `TeacherTrajectory` for distillation, `DataTrajectory`
            for training.
        sde: of the model.
        law: the distribution of times.
        end: ε; the SDE's cutoff if None.
        uncertainty: a learned weight for every time; none if None.

    Source: Lu & Song 2024 (Simplifying, stabilizing and scaling continuous-time consistency
    models), equations 6 and 8 and section 4.2 (tangent normalization).
    """

    def __init__(
        self,
        trajectory: Trajectory,
        sde: LinearSDE,
        *,
        law: TimeDistribution | None = None,
        end: float | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        last = sde.cutoff if end is None else end
        super().__init__(AngleTimes() if law is None else law, Stratified(), last)
        self.trajectory = trajectory
        self.uncertainty = uncertainty

    def draw(self, sde: LinearSDE, n: int, generator: torch.Generator) -> Drawn:
        t, u, weight = super().draw(sde, n, generator)
        return Drawn(torch.stack([t, torch.full_like(t, self.t_min)], 1), u, weight)

    def forward(self, model: FewStepModel, batch: Batch) -> Tensor:  # type: ignore[override]
        sde = model.sde
        t, end = batch.t.unbind(1)
        x = sde.perturb(batch.x0, t, batch.eps)
        velocity = self.trajectory.velocity(model, batch, x, t)
        at = Levels(sde.alpha(t), sde.sigma(t))
        g = expand(_along_angle(sde, t, at), x) * tangent(model, x, batch.t, velocity)
        norm = flat_sum(g**2).sqrt().to(torch.float64)
        aim = g / expand(norm + _SOFTENED, x)
        v = model.towards(end).predict("v", x, t, at)
        losses = flat_sum((v - v.detach() - aim) ** 2) / v[0].numel()
        return losses if self.uncertainty is None else self.uncertainty(losses, sde, t)


def _along_angle(sde: LinearSDE, t: Tensor, at: Levels) -> Tensor:
    """Return cos φ dt/dφ, dφ/dt = (sigma' alpha − sigma alpha')/r²."""
    alpha, sigma = slopes(sde, t)
    turn = (sigma * at.alpha - at.sigma * alpha) / at.radius**2
    return at.alpha / at.radius / turn


@final
class MeanFlow(StudentObjective):
    """The mean velocity u of a step: w ‖u_θ − (u_θ⁻ + df_θ⁻/dτ)‖²/D, w = 1/(‖Δ‖² + 10⁻³)^p.

    In y = x/(alpha + sigma) and τ = sigma/(alpha + sigma) every linear SDE is the straight
    interpolant: y_s = f = y_t − (τ_t − τ_s) u, and df/dτ = v − u − (τ_t − τ_s) du/dτ is 0 where u
    is the mean of v. A share of the steps has no length, where u is the velocity itself.

    Arguments:
        trajectory: the velocity of x_t: `DataTrajectory` as in the paper, or a teacher's.
        sde: of the model.
        law: the distribution of both times, of which the later one is t.
        share: of the steps with s < t.
        power: p of the weight; 0 for the plain squared error.
        end: the least time; the SDE's cutoff if None.

    Source: Geng et al. 2025 (Mean flows), equations 6, 9 and 10, with its adaptive weight w.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        sde: LinearSDE,
        *,
        law: TimeDistribution | None = None,
        share: float = 0.75,
        power: float = 1.0,
        end: float | None = None,
    ) -> None:
        last = sde.cutoff if end is None else end
        super().__init__(AngleTimes() if law is None else law, Stratified(), last)
        real_number("MeanFlow", "share", share, "pass share=0.75")
        real_number("MeanFlow", "power", power, "pass power=1.0")
        if not 0 <= share <= 1:
            raise wrong_value("MeanFlow", "share", "lie in [0, 1]", share, "pass share=0.75")
        self.trajectory = trajectory
        self.share = share
        self.power = power

    def check_few_steps(self, model: FewStepModel) -> None:
        if model.times != 2:
            rule = "have a network of two times for mean flow"
            remedy = "build it with times=2, as MLP(2, times=2)"
            raise wrong_value("train", "model", rule, f"{model.times}", remedy)

    def draw(self, sde: LinearSDE, n: int, generator: torch.Generator) -> Drawn:
        one, u, weight = super().draw(sde, n, generator)
        v = torch.rand(2, n, generator=generator, dtype=torch.float64, device=generator.device)
        other = self.distribution.time(sde, v[0], self.t_min)
        s = torch.where(v[1] < self.share, torch.minimum(one, other), torch.maximum(one, other))
        return Drawn(torch.stack([torch.maximum(one, other), s], 1), u, weight)

    def forward(self, model: FewStepModel, batch: Batch) -> Tensor:  # type: ignore[override]
        sde = model.sde
        t, s = batch.t.unbind(1)
        x = sde.perturb(batch.x0, t, batch.eps)
        velocity = self.trajectory.velocity(model, batch, x, t)
        at = Levels(sde.alpha(t), sde.sigma(t))
        # df/dτ of f in units of y at s, dτ/dt = (sigma' alpha − sigma alpha')/(alpha + sigma)².
        alpha, sigma = slopes(sde, t)
        turn = (sigma * at.alpha - at.sigma * alpha) / (at.alpha + at.sigma) ** 2
        per_tau = 1 / (turn * (sde.alpha(s) + sde.sigma(s)))
        error = expand(per_tau, x) * tangent(model, x, batch.t, velocity)
        # u = eps − x0 = ((sigma − alpha) x + (alpha + sigma) v)/r².
        v = model.towards(s).predict("v", x, t, at)
        u = expand((at.alpha + at.sigma) / at.radius**2, x) * v
        squared = flat_sum((u - u.detach() - error) ** 2) / u[0].numel()
        weight = (squared.detach() * u[0].numel() + _FLOOR) ** -self.power
        return weight * squared
