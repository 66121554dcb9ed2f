"""The faster mode of differentiation, by measurement on this machine."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, TypeVar

import torch
from torch import Tensor

from sde_diffusion._check import a_function, an_object
from sde_diffusion._tensors import check_state
from sde_diffusion.likelihood.divergence import MODES, Divergence, Exact, Hutchinson, Mode
from sde_diffusion.likelihood.jacobian import Velocity

DivergenceT = TypeVar("DivergenceT", bound="Divergence")


def fastest(
    divergence: DivergenceT, velocity: Velocity, x: Tensor, repeats: int = 3
) -> tuple[DivergenceT, str]:
    """Return the divergence in the mode that takes less time on this batch, and the two times.

    A mode in which the velocity cannot be differentiated is not taken, nor is forward mode if
    `Exact` has no memory for it. A divergence with one mode only is returned as it is.

    Arguments:
        divergence: the divergence, in either mode.
        velocity: v of x at one time.
        x: the batch to measure with; (B, *event).
        repeats: how often the modes are timed, in turn; the shortest time of each counts.

    Errors: TypeError for a velocity without a derivative in x.
    """
    an_object("fastest", "divergence", divergence, Divergence, "pass for example Exact()")
    a_function("fastest", "velocity", velocity, "of x", "pass lambda x: flow.velocity(x, t)")
    check_state("fastest", x)
    if not isinstance(divergence, (Exact, Hutchinson)):
        return divergence, f"{type(divergence).__name__} has no mode to choose"
    if isinstance(divergence, Exact) and divergence._crowded(velocity, x):
        shown = "reverse mode: forward mode would form all products at once, beyond the memory"
        return _in_mode(divergence, "reverse"), shown
    z = divergence.draw(x)
    times: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    failed: dict[Mode, Exception] = {}
    for _ in range(repeats):
        for mode in [mode for mode in MODES if mode not in failed]:
            try:
                times[mode].append(_seconds(_in_mode(divergence, mode), velocity, x, z))
            except (RuntimeError, TypeError) as error:
                failed[mode] = error
    if len(failed) == len(MODES):
        raise failed["reverse"]
    best, other = sorted(MODES, key=lambda mode: (mode in failed, min(times[mode], default=0.0)))
    shown = f"{best} mode: {1e3 * min(times[best]):.3g} ms an evaluation, {other} "
    if other in failed:
        shown += "impossible through this network"
    else:
        shown += f"{1e3 * min(times[other]):.3g} ms"
    return _in_mode(divergence, best), shown


def _in_mode(divergence: DivergenceT, mode: Mode) -> DivergenceT:
    """Return the divergence in another mode, each field as it is."""
    settings: Any = divergence  # a frozen dataclass with the field mode, `Exact` or `Hutchinson`
    same: DivergenceT = dataclasses.replace(settings, mode=mode)
    return same


def _seconds(divergence: Divergence, velocity: Velocity, x: Tensor, z: Tensor) -> float:
    """Return the time of one evaluation."""
    _wait(x.device)
    begin = time.perf_counter()
    divergence.evaluate(velocity, x, z)
    _wait(x.device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
