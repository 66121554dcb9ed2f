"""Denoising score matching: the error of a predicted noise, or of a score, at random times."""

from __future__ import annotations

from typing import final

from torch import Tensor

from sde_diffusion._check import a_function, an_object, wrong_value
from sde_diffusion._tensors import check_state, check_times, flat_sum
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.objectives.coupling import Coupling
from sde_diffusion.objectives.spacings import Spacing
from sde_diffusion.objectives.uncertainty import Uncertainty
from sde_diffusion.objectives.weighting import EDM, Weighting, perceptual
from sde_diffusion.scores import ScoreLike
from sde_diffusion.time_distributions import TimeDistribution


def denoising_loss(
    model: ScoreLike,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weighting: Weighting = perceptual,
) -> Tensor:
    """Return w(t) ‖eps − eps_θ(x_t, t)‖²/D, x_t = alpha x0 + sigma eps, in D dimensions.

    Its mean is least at eps_θ = E[eps | x_t] = −sigma ∇log p_t(x_t), whatever w > 0; it differs
    from that of the explicit w ‖eps_θ + sigma ∇log p_t‖²/D by a constant.

    Arguments:
        model: its SDE, and its prediction eps_θ.
        x0: the data, scaled; (B, *event).
        t: the times; () or (B,).
        eps: standard normal noise; (B, *event).
        weighting: the weight w as a function of the SDE and the times.

    Shapes: result (B,).
    Errors: ValueError where the shapes of x0, t and eps disagree.
    Source: Vincent 2011; Song et al. 2021, equation 7; Ho et al. 2020, equation 14.

    >>> import torch
    >>> from sde_diffusion import VPSDE, ScoreModel
    >>> class Zero(torch.nn.Module):
    ...     def forward(self, x, c):
    ...         return torch.zeros_like(x)
    >>> eps = torch.tensor([[1.0, 3.0]])
    >>> t = torch.tensor(0.5, dtype=torch.float64)
    >>> denoising_loss(ScoreModel(Zero(), VPSDE()), torch.zeros(1, 2), t, eps).tolist()
    [5.0]
    """
    _check("denoising_loss", model, (x0, eps), t, weighting)
    x_t = model.linear_sde().perturb(x0, t, eps)
    return _weighted(model, eps - model.eps(x_t, t), t, weighting)


def explicit_loss(
    model: ScoreLike,
    exact: ScoreLike,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weighting: Weighting = perceptual,
) -> Tensor:
    """Return w(t) ‖E[eps|x_t] − eps_θ(x_t, t)‖²/D, the target given by an oracle.

    It is w sigma² ‖s_θ − ∇log p_t‖²/D. Its mean has the gradient of `denoising_loss` in θ, and is
    0 at the exact score.

    Arguments:
        model: its SDE, and its prediction eps_θ.
        exact: the oracle, which gives E[eps | x_t] under the same SDE.
        x0: the data, scaled; (B, *event).
        t: the times; () or (B,).
        eps: standard normal noise; (B, *event).
        weighting: the weight w as a function of the SDE and the times.

    Shapes: result (B,).
    Errors: those of `denoising_loss`.
    Source: Hyvärinen 2005, equation 2; Vincent 2011, section 4.

    >>> import torch
    >>> from sde_diffusion import VPSDE, Gaussian
    >>> exact = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> t = torch.tensor(0.5, dtype=torch.float64)
    >>> explicit_loss(exact, exact, torch.ones(2, 1), t, torch.ones(2, 1)).tolist()
    [0.0, 0.0]
    """
    _check("explicit_loss", model, (x0, eps), t, weighting)
    an_object("explicit_loss", "exact", exact, ScoreLike, "pass an oracle's .diffused(sde)")
    x_t = model.linear_sde().perturb(x0, t, eps)
    return _weighted(model, exact.eps(x_t, t) - model.eps(x_t, t), t, weighting)


def _check(
    what: str,
    model: ScoreLike,
    states: tuple[Tensor, Tensor],
    t: Tensor,
    weighting: Weighting,
) -> None:
    """Refuse parts of another kind: a model, x0 and eps, times, or a weight."""
    an_object(what, "model", model, ScoreLike, "pass ScoreModel(network, sde)")
    for name, x in zip(("x0", "eps"), states, strict=True):
        check_state(what, x, name)
    check_times(what, t)
    a_function(what, "weighting", weighting, "(sde, t) -> w", "pass for example perceptual")


def _weighted(model: ScoreLike, error: Tensor, t: Tensor, weighting: Weighting) -> Tensor:
    """Return w(t) ‖error‖²/D: (B, *event) → (B,)."""
    weight = weighting(model.linear_sde(), t).to(device=error.device, dtype=error.dtype)
    return weight * flat_sum(error**2) / error[0].numel()


@final
class Denoising(Objective):
    """Denoising score matching: the mean of w(t) ‖eps − eps_θ(x_t, t)‖²/D over times and data.

    Losses at times drawn from another distribution are multiplied by the ratio of the densities:
    the variance of the gradient changes, its mean does not. After training with a coupling other
    than the independent one only the model's flow is right; its `coupling` then says so.

    Arguments:
        law: the distribution of times over which the mean is minimised.
        spacing: how the quantiles u of a batch are spread over [0, 1).
        t_min: the least time.
        weighting: the weight w; `EDM` takes its ``sigma_data`` from the model that is trained.
        times: the distribution from which times are drawn; ``law`` if None.
        coupling: how noise is paired with data; independently if None.
        uncertainty: a learned weight for every time; none if None.

    >>> import torch
    >>> from sde_diffusion import VPSDE
    >>> from sde_diffusion.objectives.spacings import Stratified
    >>> from sde_diffusion.objectives.weighting import perceptual
    >>> from sde_diffusion.time_distributions import UniformTimes
    >>> objective = Denoising(UniformTimes(), Stratified(), 1e-5, perceptual)
    >>> objective.draw(VPSDE(), 3, torch.Generator().manual_seed(0)).weight.tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        law: TimeDistribution,
        spacing: Spacing,
        t_min: float,
        weighting: Weighting,
        *,
        times: TimeDistribution | None = None,
        coupling: Coupling | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        super().__init__(law if times is None else times, spacing, t_min)
        self.minimised = law
        self.weighting = weighting
        if coupling is not None:
            self.coupling = coupling
        self.uncertainty = uncertainty

    def check(self, model: ScoreModel) -> None:
        if self.coupling.name != "independent" and (model.classes or model.conditions):
            # Within a class the coupled noise would not be standard normal, as sampling has it.
            raise wrong_value(
                "train",
                "coupling",
                "be independent for a network with classes",
                self.coupling.name,
                "drop it, or build classes=None",
            )
        super().check(model)

    def adopt(self, model: ScoreModel) -> None:
        super().adopt(model)
        if isinstance(self.weighting, EDM):
            self.weighting = EDM(model.sigma_data)

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        sde = model.sde
        t = batch.t
        losses = denoising_loss(model, batch.x0, t, batch.eps, self.weighting)
        if self.uncertainty is not None:
            losses = self.uncertainty(losses, sde, t)
        if self.minimised == self.distribution:
            return losses
        wanted = self.minimised.density(sde, t, self.t_min)
        ratio = wanted / self.distribution.density(sde, t, self.t_min)
        return ratio.to(losses) * losses


@final
class Explicit(Objective):
    """Explicit score matching against an oracle, w(t) ‖E[eps|x_t] − eps_θ(x_t, t)‖²/D.

    Arguments:
        law: the distribution of times over which the mean is minimised.
        spacing: how the quantiles u of a batch are spread over [0, 1).
        t_min: the least time.
        weighting: the weight w.
        exact: the oracle, under the SDE of the model that is trained.

    >>> import torch
    >>> from sde_diffusion import VPSDE, Gaussian
    >>> from sde_diffusion.objectives.spacings import Stratified
    >>> from sde_diffusion.objectives.weighting import perceptual
    >>> from sde_diffusion.time_distributions import UniformTimes
    >>> exact = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> Explicit(UniformTimes(), Stratified(), 1e-5, perceptual, exact).t_min
    1e-05
    """

    def __init__(
        self,
        law: TimeDistribution,
        spacing: Spacing,
        t_min: float,
        weighting: Weighting,
        exact: ScoreLike,
    ) -> None:
        super().__init__(law, spacing, t_min)
        self.weighting = weighting
        self.exact = exact

    def check(self, model: ScoreModel) -> None:
        super().check(model)
        if self.exact.sde != model.sde:
            raise wrong_value(
                "Explicit",
                "exact",
                f"be diffused by the model's {model.sde}",
                str(self.exact.sde),
                "pass oracle.diffused(model.sde)",
            )

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        return explicit_loss(model, self.exact, batch.x0, batch.t, batch.eps, self.weighting)
