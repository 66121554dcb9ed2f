"""The exact score of point masses under a reflected diffusion."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sde_diffusion._check import an_object, wrong_value
from sde_diffusion._tensors import check_state, expand
from sde_diffusion.reflected_sde import ReflectedDiffusion
from sde_diffusion.scores import ScoreLike


@final
class ReflectedPoints(ScoreLike):
    """∇ log Σ_i w_i p_t(x | x_i): the score that the best network of the data x_i learns.

    Arguments:
        points: the data x_i, in [0, 1]; (N, *event).
        sde: the reflected diffusion.
        weights: w_i, above 0, of any sum; all alike if not given.

    >>> model = ReflectedPoints(torch.tensor([[0.25], [0.75]]), ReflectedDiffusion())
    >>> model(torch.tensor([[0.0], [0.5], [1.0]]).double(), torch.tensor(0.6)).abs().max() < 1e-12
    tensor(True)
    """

    row_by_row = True

    def __init__(
        self, points: Tensor, sde: ReflectedDiffusion, weights: Tensor | None = None
    ) -> None:
        check_state("ReflectedPoints", points, "points")
        an_object("ReflectedPoints", "sde", sde, ReflectedDiffusion, "pass ReflectedDiffusion()")
        if bool((points < 0).any()) or bool((points > 1).any()):
            got = f"numbers from {float(points.min()):.3g} to {float(points.max()):.3g}"
            remedy = "scale the data, for levels by Affine(0, 1)"
            raise wrong_value("ReflectedPoints", "points", "lie in [0, 1]", got, remedy)
        w = torch.ones(len(points)) if weights is None else torch.as_tensor(weights)
        if w.shape != points.shape[:1] or not bool((w > 0).all()):
            rule = f"be {len(points)} numbers above 0"
            raise wrong_value("ReflectedPoints", "weights", rule, w.tolist(), "drop weights")
        self.points = points.double()
        self.sde: ReflectedDiffusion = sde
        self._log_weights = (w.double() / w.double().sum()).log()

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(x) in nats; (B, *event) → (B,), float64."""
        return self._joint(x, t)[0].logsumexp(1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        log_joint, scores = self._joint(x, t)
        shares = log_joint.softmax(1)
        return torch.einsum("bn,bn...->b...", shares, scores).to(x.dtype)

    def _joint(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log w_i p_t(x | x_i), (B, N), and the scores of the kernels, (B, N, *event)."""
        check_state("ReflectedPoints", x)
        expand(t, x)  # refuses another number of times than of samples
        n = len(self.points)
        rows = x.repeat_interleave(n, 0)
        all_points = self.points.to(x.device).repeat(len(x), *[1] * (x.ndim - 1))
        times = t.repeat_interleave(n) if t.ndim else t
        log_kernel, scores = self.sde.kernel(rows, all_points, times)
        log_joint = log_kernel.view(len(x), n) + self._log_weights.to(x.device)
        return log_joint, scores.view(len(x), n, *x.shape[1:])
