"""Refusals shared by the solvers."""

from __future__ import annotations

import math

from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion.reverse import ReverseSDE


def backward(what: str, t: Tensor, s: Tensor) -> None:
    """Refuse a step that does not go from noise to data."""
    if not float(s) < float(t):
        raise wrong_value(what, "grid", "run from noise (t near 1) to data",
                          f"a step from {float(t):.6g} to {float(s):.6g}",
                          "reverse it with grid.flip(0)")  # fmt: skip


def at_least_zero(what: str, argument: str, value: float, remedy: str) -> None:
    """Refuse a negative, infinite or missing number."""
    if not 0 <= value < math.inf:
        raise wrong_value(what, argument, "be finite and at least 0", value, remedy)


def own_noise(what: str, dynamics: ReverseSDE, remedy: str) -> None:
    """Refuse a noise_scale where the solver itself says how much is drawn."""
    if dynamics.noise_scale != 1:
        raise wrong_value(what, "dynamics.noise_scale", "be 1", dynamics.noise_scale, remedy)
