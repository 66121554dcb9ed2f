"""Derivatives in forward mode: values that carry a tangent."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import dual_level

__all__ = ["dual", "dual_level", "parts"]


def dual(value: Tensor, tangent: Tensor) -> Tensor:
    """Return the value with a tangent, within ``dual_level()``."""
    with warnings.catch_warnings():
        # Its first use loads a module of torch's that warns of another one.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        made: Tensor = forward_ad.make_dual(value.clone(), tangent.clone())  # type: ignore[no-untyped-call]
    return made


def parts(moving: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and the tangent, 0 where there is none."""
    value, tangent = forward_ad.unpack_dual(moving)  # type: ignore[no-untyped-call]
    return value, torch.zeros_like(value) if tangent is None else tangent
