"""Brownian motion between walls: dx = g(t) dw on the cube [0, 1]^d, reflected at its faces.

Its kernel is that of the heat equation without flow through the faces, in every coordinate by
images of x0,

    p_t(x | x0) = Σ_k N(x; 2k + x0, v) + N(x; 2k − x0, v)
                = 1 + 2 Σ_{n≥1} e^{−n²π²v/2} cos(nπx) cos(nπx0),      v = ∫₀ᵗ g²,

and the uniform distribution is stationary. x_t is x0 + √v z folded into the cube.

Source: Lou & Ermon 2023 (reflected diffusion models), section 3 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sde_diffusion._check import positive_number, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state, check_times, expand, flat_sum
from sde_diffusion.noise import Noise
from sde_diffusion.sde import SDE


def fold(x: Tensor) -> Tensor:
    """Return where reflections at 0 and 1 take every number.

    >>> fold(torch.tensor([-0.25, 0.5, 1.25, 2.5])).tolist()
    [0.25, 0.5, 0.75, 0.5]
    """
    return 1 - (1 - x.remainder(2)).abs()


@final
class UniformCube:
    """The uniform distribution on [0, 1]^d."""

    __repr__ = shown

    def sample(
        self,
        noise: Noise,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return draws: a normal of standard deviation 5, folded, is uniform to 1e-53.

        Arguments:
            noise: the source of the normals.
            shape: that of the draws, (B, *event).
            dtype: that of the draws, floating-point.
            device: where the draws are made.
        """
        return fold(5 * noise.normal(torch.empty(tuple(shape), dtype=dtype, device=device)))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return 0, or −∞ outside; (B, *event) → (B,)."""
        inside = ((x >= 0) & (x <= 1)).flatten(1).all(1)
        return torch.where(inside, 0.0, -math.inf).to(x.dtype)


@final
@dataclass(frozen=True)
class ReflectedDiffusion(SDE):
    """dx = g(t) dw on [0, 1]^d with reflecting faces; ∫₀ᵗ g² = low² ((high/low)^{2t} − 1).

    Its kernel is known, so that `ReflectedScoreMatching` trains a `DirectScore` without
    simulation. `EulerMaruyama` stays inside; other solvers refuse it by name, as does what needs
    alpha and sigma.

    Arguments:
        low: √v grows from this size on, above 0.
        high: √v at 1, above low; at 2 or more x_1 is uniform to 1e-8.

    Source: Lou & Ermon 2023, with the schedule of Song et al. 2021 (VE).

    >>> sde = ReflectedDiffusion()
    >>> x0, t = torch.tensor([[0.9]]).double(), torch.tensor(0.5).double()
    >>> eps = torch.tensor([[1.0]]).double()
    >>> sde.perturb(x0, t, eps).item() < 1  # .9 + .22 would be beyond the face
    True
    """

    low: float = 0.01
    high: float = 5.0

    def __post_init__(self) -> None:
        positive_number("ReflectedDiffusion", "low", self.low, "pass low=0.01")
        positive_number("ReflectedDiffusion", "high", self.high, "pass high=5.0")
        if self.high <= self.low:
            rule = "be above low"
            raise wrong_value("ReflectedDiffusion", "high", rule, self.high, "pass high=5.0")

    def variance(self, t: Tensor) -> Tensor:
        """Return v(t) of the free motion."""
        return self.low**2 * torch.expm1(2 * math.log(self.high / self.low) * t)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002  (none at any time)
        return torch.zeros_like(x)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        rate = math.log(self.high / self.low)
        return expand(self.low * math.sqrt(2 * rate) * (rate * t).exp(), x)

    def noise_divergence(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros((), dtype=x.dtype, device=x.device)

    def inside(self, x: Tensor) -> Tensor:
        return fold(x)

    def prior(self) -> UniformCube:
        """Return the distribution from which sampling starts."""
        return UniformCube()

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = fold(x0 + √v eps), a draw of the kernel.

        Shapes: x0, eps and result (B, *event); t () or (B,).
        """
        check_state("ReflectedDiffusion", x0, "x0")
        check_times("perturb", t)
        if bool((x0 < 0).any()) or bool((x0 > 1).any()):
            got = f"numbers from {float(x0.min()):.3g} to {float(x0.max()):.3g}"
            remedy = "scale the data, for levels by Affine(0, 1)"
            raise wrong_value("ReflectedDiffusion", "x0", "lie in [0, 1]", got, remedy)
        return fold(x0 + expand(self.variance(t).sqrt(), x0) * eps)

    @cached_property
    def _shifts(self) -> Tensor:
        """The 2k of all images that matter up to the largest v: those beyond are below e⁻³²."""
        most = math.ceil(4 * self.high) + 1
        return 2 * torch.arange(-most, most + 1, dtype=torch.float64)

    def log_kernel(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(x | x0) in nats, by images.

        Shapes: x and x0 (B, *event), t () or (B,), above 0; result (B,), float64.
        """
        return self.kernel(x, x0, t)[0]

    def kernel_score(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Return ∇_x log p_t(x | x0), the mean over images of −(x − image)/v; in x's shape."""
        return self.kernel(x, x0, t)[1]

    def kernel(self, x: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p_t(x | x0), (B,), and its gradient in x, (B, *event); float64."""
        shifts = self._shifts.to(x.device)
        v = expand(self.variance(t.double()), x.double())[..., None]
        here = x.double()[..., None]
        there = x0.double()[..., None]
        off = torch.cat([here - there - shifts, here + there - shifts], -1)
        exponents = -0.5 * off**2 / v
        each = exponents.logsumexp(-1) - 0.5 * (2 * math.pi * v[..., 0]).log()
        return flat_sum(each), -(exponents.softmax(-1) * off / v).sum(-1)
