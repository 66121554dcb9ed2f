"""Refusals shared by the solvers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sde_diffusion._check import wrong_value


def backward(what: str, t: Tensor, s: Tensor) -> None:
    """Refuse a step that does not go from noise to data."""
    if not float(s) < float(t):
        raise wrong_value(
            what,
            "grid",
            "run from noise (t near 1) to data",
            f"a step from {float(t):.6g} to {float(s):.6g}",
            "reverse it with grid.flip(0)",
        )


def at_least_zero(what: str, argument: str, value: float, remedy: str) -> None:
    """Refuse what is negative, infinite or NaN.

    Arguments:
        what: the class that refuses.
        argument: the name of the argument.
        value: its value.
        remedy: what to write instead.
    """
    if not 0 <= value < math.inf:
        raise wrong_value(what, argument, "be finite and at least 0", value, remedy)


def above_zero(what: str, usual: str, **given: float) -> None:
    """Refuse what is not above 0; it may be infinite."""
    for argument, value in given.items():
        if not value > 0:
            raise wrong_value(what, argument, "be above 0", value, f"pass {argument}={usual}")


def own_noise(what: str, noise_scale: float, remedy: str) -> None:
    """Refuse a noise_scale where the solver itself says how much is drawn."""
    if noise_scale != 1:
        raise wrong_value(what, "dynamics.noise_scale", "be 1", noise_scale, remedy)


def choice(what: str, argument: str, choices: Sequence[object], got: object) -> None:
    """Refuse what is not one of the choices.

    Arguments:
        what: the class that refuses.
        argument: the name of the argument.
        choices: the values allowed, two or more; the error suggests the last.
        got: the value.
    """
    if got not in choices:
        *others, last = map(str, choices)
        rule = f"be {', '.join(others)} or {last}"
        raise wrong_value(what, argument, rule, got, f"pass {argument}={choices[-1]!r}")
