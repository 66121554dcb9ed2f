"""The exact posterior of Gaussian mixtures under linear measurements."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion.inverse_problems.measurement import Measurement
from sde_diffusion.inverse_problems.operators import LinearOperator
from sde_diffusion.models.exact import GaussianMixture, Oracle


def exact_posterior(data: Oracle, measurement: Measurement) -> tuple[GaussianMixture, float]:
    """Return p(x | y), itself a mixture, and log p(y) in nats.

    With S_k = A C_k Aᵀ + sigma_y² I and K_k = C_k Aᵀ S_k⁻¹ its components are
    N(m_k + K_k (y − A m_k), C_k − K_k A C_k), weighted by w_k N(y; A m_k, S_k).

    Errors: TypeError for an operator that is not linear or noise that is not Gaussian;
    ValueError for a y of several rows.

    >>> from sde_diffusion import Gaussian
    >>> from sde_diffusion.inverse_problems import Matrix
    >>> seen = Measurement(Matrix(torch.eye(1)), torch.tensor([[1.0]]), std=1.0)
    >>> found, log_evidence = exact_posterior(Gaussian(torch.zeros(1), torch.eye(1)), seen)
    >>> found.means.item(), round(found.variances.item(), 9), round(log_evidence, 6)
    (0.5, 0.5, -1.515512)
    """
    operator = measurement.operator
    if not isinstance(operator, LinearOperator):
        raise wrong_type(
            "exact_posterior",
            "measurement.operator",
            "be a LinearOperator",
            type(operator).__name__,
            "there is no closed form of others: use sample_posterior",
        )
    if len(measurement.y) != 1:
        raise wrong_value(
            "exact_posterior",
            "measurement.y",
            "have one row",
            len(measurement.y),
            "ask for one at a time: measurement.rows(torch.tensor([i]))",
        )
    a = _matrix(operator, data)
    y = measurement.y.double().flatten()
    covariances = _covariances(data)
    noise = measurement.gaussian_std("exact_posterior") ** 2 * torch.eye(
        len(y), dtype=torch.float64
    )
    cross = covariances @ a.mT  # C Aᵀ
    s = a @ cross + noise * torch.eye(len(y), dtype=torch.float64)
    gain = torch.linalg.solve(s, cross.mT).mT
    off = y - data.means @ a.mT
    means = data.means + (gain @ off[:, :, None])[:, :, 0]
    left = covariances - gain @ cross.mT
    log_joint = data.weights.log() + _log_normal(off, s)
    weights = log_joint.softmax(0).clamp(min=1e-300)
    found = GaussianMixture(weights, means.reshape(-1, *data.event), 0.5 * (left + left.mT))
    return found, float(log_joint.logsumexp(0))


def _log_normal(off: Tensor, covariances: Tensor) -> Tensor:
    """Return log N(off_k; 0, S_k): (K, m), (K, m, m) → (K,)."""
    root = torch.linalg.cholesky(covariances)
    z = torch.linalg.solve_triangular(root, off[:, :, None], upper=False)[:, :, 0]
    log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = 0.5 * off.shape[1] * math.log(2 * math.pi)
    found: Tensor = -0.5 * z.square().sum(1) - log_det - constant
    return found


def _matrix(operator: LinearOperator, data: Oracle) -> Tensor:
    """Return A as a matrix (m, D), column by column."""
    identity = torch.eye(data.dimension, dtype=torch.float64).reshape(-1, *data.event)
    return operator(identity).flatten(1).mT


def _covariances(data: Oracle) -> Tensor:
    """Return C_k = Q diag(v) Qᵀ: (K, D, D)."""
    if data.bases is None:
        return torch.diag_embed(data.variances)
    return (data.bases * data.variances[:, None]) @ data.bases.mT
