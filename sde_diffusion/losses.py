"""Denoising score matching, and the explicit score matching that it stands for."""

from __future__ import annotations

from torch import Tensor

from sde_diffusion._tensors import flat_sum
from sde_diffusion.models.protocols import NoisePredictor
from sde_diffusion.weighting import Weighting, perceptual


def denoising_loss(
    model: NoisePredictor,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weighting: Weighting = perceptual,
) -> Tensor:
    """Return w(t) ‖eps − eps_θ(x_t, t)‖²/D with x_t = alpha x0 + sigma eps, D numbers a sample.

    Its mean over eps is least at eps_θ = E[eps | x_t] = −sigma ∇log p_t(x_t), whatever w > 0; it
    differs from the explicit w ‖eps_θ + sigma ∇log p_t‖²/D by a constant.

    Shapes: x0, eps (B, *event); t () or (B,); result (B,).
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
    x_t = model.sde.perturb(x0, t, eps)
    return _weighted(model, eps - model.eps(x_t, t), t, weighting)


def explicit_loss(
    model: NoisePredictor,
    exact: NoisePredictor,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weighting: Weighting = perceptual,
) -> Tensor:
    """Return w(t) ‖E[eps|x_t] − eps_θ(x_t, t)‖²/D, the target given by the oracle ``exact``.

    It is w sigma² ‖s_θ − ∇log p_t‖²/D. Its mean has the gradient of `denoising_loss` in θ, and is
    0 at the exact score.

    Shapes: as `denoising_loss`. Errors: as `denoising_loss`.
    Source: Hyvärinen 2005, equation 2; Vincent 2011, section 4.

    >>> import torch
    >>> from sde_diffusion import VPSDE, Gaussian
    >>> exact = Gaussian(torch.zeros(1), torch.eye(1)).diffused(VPSDE())
    >>> t = torch.tensor(0.5, dtype=torch.float64)
    >>> explicit_loss(exact, exact, torch.ones(2, 1), t, torch.ones(2, 1)).tolist()
    [0.0, 0.0]
    """
    x_t = model.sde.perturb(x0, t, eps)
    return _weighted(model, exact.eps(x_t, t) - model.eps(x_t, t), t, weighting)


def _weighted(model: NoisePredictor, error: Tensor, t: Tensor, weighting: Weighting) -> Tensor:
    """Return w(t) ‖error‖²/D: (B, *event) → (B,)."""
    weight = weighting(model.sde, t).to(device=error.device, dtype=error.dtype)
    return weight * flat_sum(error**2) / error[0].numel()
